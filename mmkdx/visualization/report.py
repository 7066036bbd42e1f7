"""Writes a run's explanations as one HTML file: curves, scores and pictures."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment

from mmkdx.files import write_file
from mmkdx.metrics.about import About
from mmkdx.metrics.scores import Floor, Score
from mmkdx.version import __version__
from mmkdx.visualization.curves import Curves, charts
from mmkdx.visualization.records import by_model
from mmkdx.visualization.score_groups import Table, score_groups
from mmkdx.visualization.sections import PictureSection

#: The choices of the gallery; each picture has those that hold for it.
VERDICTS = {
    'agree': 'student and teacher agree',
    'differ': 'student and teacher differ',
    'teacher-wrong': 'teacher wrong',
    'student-wrong': 'student wrong',
}


#: Why an image is shown first, in this order.
REASONS = {
    'differ': 'largest disagreement of the maps',
    'lost': 'the student is wrong and its teacher right',
    'won': 'the student is right and its teacher wrong',
    'wrong': 'the student is wrong',
    'typical': 'typical: the maps agree as in half of the images',
}

#: The most bytes of all pictures of a page, before they are written as text.
PICTURE_BYTES = 5_500_000


@dataclass
class GalleryItem:
    """One image of the gallery.

    Args:
        picture (np.ndarray): Its explanations, RGB, uint8 of shape (H, W, 3).
        index (int): Its position in the data set.
        label (str, optional): The name of its class, if known.
        predictions (dict[str, str]): What each model ('student', 'teacher', 'base', or a plain model's
            own name) predicts.
        scores (dict[str, float]): Its values by the names of scores; NaN where there is none.
        reason (str): Why it is shown first, a key of ``REASONS``. Defaults to '' (it is not).
    """

    picture: np.ndarray
    index: int
    label: str | None
    predictions: dict[str, str]
    scores: dict[str, float]
    reason: str = ''


@dataclass
class Tile:
    """A number of the first screen.

    Args:
        label (str): What it is.
        value (str): The number, with its unit.
        interval (str): Its 95 % confidence interval and n. Defaults to ''.
        hint (str): What it means, or what it is compared with. Defaults to ''.
        tone (str): 'good' or 'bad' where the statistics say so, else 'neutral'. Defaults to 'neutral'.
    """

    label: str
    value: str
    interval: str = ''
    hint: str = ''
    tone: str = 'neutral'


def write_report(
    path: str | Path,
    *,
    title: str,
    facts: Mapping[str, str],
    answer: Sequence[str] = (),
    details: Sequence[str] = (),
    tiles: Sequence[Tile] = (),
    plots: Sequence[Mapping[str, Any]] = (),
    compared: Table | None = None,
    scores: Mapping[str, Score] | None = None,
    about: Mapping[str, About] | None = None,
    stages: Sequence[str] = (),
    tables: Sequence[Table] = (),
    floors: Mapping[str, Floor] | None = None,
    notes: Mapping[str, str] | None = None,
    student: str = 'student',
    models: Mapping[str, str] | None = None,
    curves: Curves | None = None,
    gallery: Sequence[GalleryItem] = (),
    sections: Sequence[PictureSection] = (),
    unit: str = 'epoch',
) -> Path:
    """Writes a page that needs no other file and no network: first the answer, then its evidence.

    Without scripts all curves and pictures are there; with them they can be chosen.

    Args:
        path (str | Path): The file.
        title (str): The headline.
        facts (Mapping[str, str]): What is to be known of the run; empty ones are left out.
        answer (Sequence[str]): The sentences of the first paragraph. Defaults to ().
        details (Sequence[str]): Sentences that can be folded out under the numbers. Defaults to ().
        tiles (Sequence[Tile]): The numbers under it. Defaults to ().
        plots (Sequence[Mapping]): What ``scatter`` makes of several methods. Defaults to ().
        compared (Table, optional): Several methods, a row for each. Defaults to None.
        scores (Mapping[str, Score], optional): Scores as of ``ExplanationMetric``. Defaults to None.
        about (Mapping[str, About], optional): What these are, see ``score_groups``. Defaults to None.
        stages (Sequence[str]): The names of the stages, see ``score_groups``. Defaults to ().
        tables (Sequence[Table]): Further tables. Defaults to ().
        floors (Mapping[str, Floor], optional): See ``score_groups``. Defaults to None.
        notes (Mapping[str, str], optional): See ``score_groups``. Defaults to None.
        student (str): What the table calls the student. Defaults to 'student'.
        models (Mapping[str, str], optional): What the models are, by 'student', 'teacher' and 'base'.
            Defaults to None (unknown).
        curves (Mapping, optional): For each metric and run the pairs (epoch, value). Defaults to None:
            there is no such section.
        gallery (Sequence[GalleryItem]): The explained images. Those with a reason come first. Defaults
            to ().
        sections (Sequence[PictureSection]): Further pictures. Defaults to ().
        unit (str): What the curves run over. Defaults to 'epoch'.

    Raises:
        ValueError: If a picture is not RGB in uint8.
        WriteError: If the file cannot be written; an earlier one stays.
    """
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = Path(__file__).with_name('report.html').read_text(encoding='utf-8')
    scores = scores or {}
    figures = None if curves is None else charts(curves)
    degenerate = by_model(scores).get('degenerate', {})
    order = list(REASONS)
    gallery = sorted(gallery, key=lambda i: order.index(i.reason) if i.reason else len(order))
    count = len(gallery) + sum(len(section.pictures) for section in sections)
    room = PICTURE_BYTES / max(count, 1)
    page = environment.from_string(template).render(
        title=title,
        facts={name: fact for name, fact in facts.items() if fact},
        answer=answer,
        details=details,
        tiles=tiles,
        plots=[plot for plot in plots if plot],
        compared=compared,
        charts=figures,
        metrics=[(each['metric'], each['metric']) for each in figures or () if each['choice']],
        unit=unit,
        groups=score_groups(scores, about or {}, student, stages, tables, floors, notes),
        models={
            student if name == 'student' else name: what for name, what in (models or {}).items()
        },
        degenerate=[
            f'{student if model == "student" else model} {score.value:.0f} of {score.n}'
            for model, score in degenerate.items()
            if score.value > 0
        ],
        batches=any(score.batches is not None for score in scores.values()),
        gallery=[_card(item, room) for item in gallery],
        choices=_choices(gallery),
        reasons=REASONS,
        sections=[_pictures(section, room) for section in sections],
        version=__version__,
    )
    write_file(path, page)
    return Path(path)


def _choices(gallery: Sequence[GalleryItem]) -> dict[str, Any]:
    """Returns the options to choose and sort images, and the numbers of classes."""
    classes = sorted({item.label for item in gallery if item.label is not None})
    holds = {verdict for item in gallery for verdict in _verdicts(item)}
    names = dict.fromkeys(name for item in gallery for name in item.scores)
    telling = any(item.reason for item in gallery)
    return {
        'classes': {name: i for i, name in enumerate(classes)},
        'show': [('telling', 'most telling'), ('all', 'all')] if telling else [],
        'class': [('', 'all'), *enumerate(classes)],
        'verdict': [('', 'all'), *(each for each in VERDICTS.items() if each[0] in holds)],
        'sort': [('', 'reason' if telling else 'index'), *((name, name) for name in names)],
    }


def _verdicts(item: GalleryItem) -> list[str]:
    """Returns the keys of ``VERDICTS`` that hold for an image."""
    teacher = item.predictions.get('teacher')
    # A plain model has its own name
    alone = next(iter(item.predictions.values())) if len(item.predictions) == 1 else None
    student = item.predictions.get('student', alone)
    holds = []
    if student is not None and teacher is not None:
        holds.append('agree' if student == teacher else 'differ')
    for model, prediction in (('teacher', teacher), ('student', student)):
        if None not in (item.label, prediction) and prediction != item.label:
            holds.append(f'{model}-wrong')
    return holds


def _card(item: GalleryItem, room: float) -> tuple[GalleryItem, list[str], dict[str, Any], str]:
    """Returns an image of the gallery with its verdicts, picture, and scores for the page's script."""
    # JSON has no NaN
    scores = {
        name: float(value) if math.isfinite(value) else None for name, value in item.scores.items()
    }
    picture = _picture(item.picture, f'GalleryItem.picture of image {item.index}', room)
    return item, _verdicts(item), picture, json.dumps(scores)


def _pictures(
    section: PictureSection, room: float
) -> tuple[str, str, list[tuple[str, dict[str, Any]]]]:
    """Returns the headline, the note and the pictures of a section."""
    pictures = [
        (
            caption,
            _picture(picture, f'PictureSection.pictures[{i}] of {section.heading!r}', room),
        )
        for i, (caption, picture) in enumerate(section.pictures)
    ]
    return section.heading, section.note, pictures


def _picture(picture: np.ndarray, key: str, room: float) -> dict[str, Any]:
    """Encodes a picture, with its size, in a limited number of bytes; ``key`` names it in errors."""
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(
            f'{key} is {picture.dtype} of shape {picture.shape}; it must be RGB, uint8 of shape '
            '(H, W, 3)'
        )
    # Text is legible down to 35
    for quality in (90, 70, 50, 35):
        data = cv2.imencode('.webp', picture[..., ::-1], (cv2.IMWRITE_WEBP_QUALITY, quality))[1]
        if len(data) <= room:
            break
    url = f'data:image/webp;base64,{base64.b64encode(data).decode()}'
    return dict(width=picture.shape[1], height=picture.shape[0], url=url)
