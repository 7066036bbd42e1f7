"""The result of an evaluation of explanations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from mmkdx.evaluation.floor import agreement_sentence
from mmkdx.metrics.about import About
from mmkdx.metrics.rank_agreement import Tau
from mmkdx.metrics.scores import Floor, Score
from mmkdx.visualization.records import score_table
from mmkdx.visualization.report import GalleryItem
from mmkdx.visualization.sections import PictureSection


@dataclass
class Evaluation:
    """The result of an evaluation of explanations; ``str`` of it is a table.

    Args:
        scores (dict[str, Score]): The scores, by name, on every rank.
        count (int): Number of explained images.
        seconds (float): Duration on this rank.
        student (str): The student's name in tables and pictures.
        rows (dict): For each image its values, by the names of scores; on the main rank, as all below.
        gallery (list[GalleryItem]): The pictures.
        maps (dict): For each image of the gallery its picture, RGB, uint8 of shape (H, W, 3), and the
            raw map (h, w) of each model.
        sections (list[PictureSection]): Further pictures.
        facts (dict[str, Any]): The settings: explained class, explainers, metrics, comparison.
        about (dict[str, About]): What a report says of each score, by its name without a model's.
        models (dict[str, str]): What each model is, by 'student', 'teacher' and 'base'.
        classes (tuple[str, ...], optional): The names of the classes.
        sample (str): Which images were explained.
        floors (dict[str, Floor]): What noise gets in place of the student's maps, by the names of those
            scores that judge maps, on every rank; empty where no floor was measured.
        metric_agreement (dict[tuple[str, str], Tau]): Kendall's tau over images of each pair of such
            scores.
    """

    scores: dict[str, Score]
    count: int
    seconds: float
    student: str
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    gallery: list[GalleryItem] = field(default_factory=list)
    maps: dict[int, tuple[np.ndarray, dict[str, Tensor]]] = field(default_factory=dict)
    sections: list[PictureSection] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    about: dict[str, About] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    sample: str = ''
    floors: dict[str, Floor] = field(default_factory=dict)
    metric_agreement: dict[tuple[str, str], Tau] = field(default_factory=dict)

    def __str__(self) -> str:
        table = score_table(self.scores, self.student, self.floors)
        return '\n'.join(filter(None, (table, self.sentence)))

    @property
    def sentence(self) -> str:
        """The agreement of scores in words; empty if there are fewer than two."""
        return agreement_sentence(self.metric_agreement)
