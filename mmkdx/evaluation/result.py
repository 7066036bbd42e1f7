"""The result of an evaluation of explanations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from mmkdx.metrics.about import About
from mmkdx.metrics.scores import Score
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

    def __str__(self) -> str:
        return score_table(self.scores, self.student)
