"""A run's explanations as one HTML file: curves, scores and pictures."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from types import MappingProxyType

import cv2
import numpy as np

from mmkdx.metrics.scores import Score
from mmkdx.version import __version__
from mmkdx.visualization.curves import Curves, curves_section
from mmkdx.visualization.html import control_row, definition, page_section, select
from mmkdx.visualization.records import by_model, score_rows
from mmkdx.visualization.sections import PictureSection

ARROWS = {'higher': '↑', 'lower': '↓'}

#: The choices of the gallery; each picture has those that hold of it.
VERDICTS = {
    'agree': 'student and teacher agree',
    'differ': 'student and teacher differ',
    'teacher-wrong': 'teacher wrong',
    'student-wrong': 'student wrong',
}


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
    """

    picture: np.ndarray
    index: int
    label: str | None
    predictions: dict[str, str]
    scores: dict[str, float]


def write_report(
    path: str | Path,
    *,
    title: str,
    facts: Mapping[str, str],
    scores: Mapping[str, Score] = MappingProxyType({}),
    student: str = 'student',
    curves: Curves | None = None,
    gallery: Sequence[GalleryItem] = (),
    sections: Sequence[PictureSection] = (),
    unit: str = 'epoch',
) -> Path:
    """Writes a page that needs no other file and no network.

    Without scripts all curves and pictures are there; with them they can be chosen.

    Args:
        path (str | Path): The file, in a folder that exists.
        title (str): The headline.
        facts (Mapping[str, str]): What is to be known of the run; empty ones are left out.
        scores (Mapping[str, Score]): Scores as of ``ExplanationMetric``. Defaults to {}.
        student (str): What the table calls the student. Defaults to 'student'.
        curves (Mapping, optional): For each metric and run the pairs (epoch, value). Defaults to None:
            the page is of no training, and has no such section.
        gallery (Sequence[GalleryItem]): The pictures. Defaults to ().
        sections (Sequence[PictureSection]): Further pictures. Defaults to ().
        unit (str): What the curves run over. Defaults to 'epoch'.

    Returns:
        Path: The file.

    Raises:
        ValueError: If a picture is not RGB in uint8.
    """
    path = Path(path)
    template = Template(Path(__file__).with_name('report.html').read_text(encoding='utf-8'))
    page = template.substitute(
        title=escape(title),
        facts='\n'.join(definition(name, escape(fact)) for name, fact in facts.items() if fact),
        curves='' if curves is None else curves_section(curves, unit),
        scores=_scores(scores, student),
        gallery=_gallery(gallery),
        sections='\n'.join(_pictures(f'pictures-{i}', each) for i, each in enumerate(sections)),
        version=__version__,
    )
    # Names of files may hold bytes that are no text.
    path.write_text(page, encoding='utf-8', errors='replace')
    return path


# Scores


def _scores(scores: Mapping[str, Score], student: str) -> str:
    """The table of scores, as ``score_table`` has it, and how many maps say nothing."""
    if not scores:
        return ''
    head, *lines = score_rows(scores, student)
    heads = ''.join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    rows = []
    for name, better, *cells in lines:
        arrow = f'<span title="{better} is better">{ARROWS[better]}</span>' if better else ''
        cells = ['–' if cell == '-' else cell for cell in cells]
        rows.append(
            f'<tr><th scope="row">{escape(name)}</th>'
            + ''.join(f'<td>{cell}</td>' for cell in (arrow, *cells))
            + '</tr>'
        )
    degenerate = by_model(scores).get('degenerate', {})
    bad = {model: score for model, score in degenerate.items() if score.value > 0}
    notice = ', '.join(
        f'{escape(student if model == "student" else model)} {score.value:.0f} of {score.n}'
        for model, score in bad.items()
    )
    return page_section(
        'scores',
        'Scores',
        (
            f'<p class="notice" role="note">Maps that say nothing (constant or not finite): {notice}. '
            'Scores leave them out unless their protocol counts them, see n.</p>'
            if bad
            else ''
        )
        + '<p class="quiet">Means with half of their 95 % confidence intervals over n images. '
        '↑ higher is better, ↓ lower is better, – there is no value.'
        + (
            ' An n like 256 in 4 is of 4 batches whose values are averaged.'
            if any(score.batches is not None for score in scores.values())
            else ''
        )
        + '</p>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Scores">'
        '<table aria-labelledby="scores-head">'
        f'<thead><tr>{heads}</tr></thead>\n<tbody>{"".join(rows)}</tbody></table></div>',
    )


# Gallery


def _gallery(gallery: Sequence[GalleryItem]) -> str:
    """The section of all pictures, with what chooses among them."""
    if not gallery:
        return ''
    classes = sorted({item.label for item in gallery if item.label is not None})
    verdicts = [_verdicts(item) for item in gallery]
    possible = {key: text for key, text in VERDICTS.items() if any(key in v for v in verdicts)}
    names = dict.fromkeys(name for item in gallery for name in item.scores)
    selects = [
        select('class', 'Class', {'': 'all', **{str(i): name for i, name in enumerate(classes)}}),
        select('verdict', 'Predictions', {'': 'all', **possible}),
        select('sort', 'Sort by', {'': 'index', **{name: name for name in names}}),
        select('order', 'Order', {'up': 'lowest first', 'down': 'highest first'}),
        '<output id="count" for="class verdict"></output>',
    ]
    cards = []
    for item, holds in zip(gallery, verdicts):
        number = classes.index(item.label) if item.label is not None else ''
        cards.append(_card(item, holds, number))
    return page_section(
        'gallery',
        'Gallery',
        f'{control_row(*selects)}<div class="cards">\n{"".join(cards)}</div>',
    )


def _verdicts(item: GalleryItem) -> list[str]:
    """Which keys of ``VERDICTS`` hold of an image."""
    teacher = item.predictions.get('teacher')
    # A plain model has a name of its own
    alone = next(iter(item.predictions.values())) if len(item.predictions) == 1 else None
    student = item.predictions.get('student', alone)
    holds = []
    if student is not None and teacher is not None:
        holds.append('agree' if student == teacher else 'differ')
    for model, prediction in (('teacher', teacher), ('student', student)):
        if None not in (item.label, prediction) and prediction != item.label:
            holds.append(f'{model}-wrong')
    return holds


def _card(item: GalleryItem, verdicts: Sequence[str], number: int | str) -> str:
    """One image with its predictions and values."""
    head = f'Image {item.index}' + ('' if item.label is None else f': {escape(item.label)}')
    # JSON has no NaN.
    scores = {
        name: float(value) if math.isfinite(value) else None for name, value in item.scores.items()
    }
    rows = []
    for model, prediction in item.predictions.items():
        mark = ''
        if item.label is not None:
            word, sign = ('right', '✓') if prediction == item.label else ('wrong', '✗')
            mark = f' <span class="{word}" role="img" aria-label="{word}">{sign}</span>'
        rows.append(definition(model, escape(prediction) + mark))
    values = [
        definition(name, '–' if value is None else f'{value:.3f}') for name, value in scores.items()
    ]
    url = _data_url(item.picture, f'GalleryItem.picture of image {item.index}')
    height, width = item.picture.shape[:2]
    return (
        f'<article data-index="{item.index}" data-class="{number}" '
        f'data-verdicts="{" ".join(verdicts)}" data-scores="{escape(json.dumps(scores))}">'
        f'<h3>{head}</h3><div class="picture"><img width="{width}" height="{height}" '
        f'alt="{head}, with the explanations of {escape(", ".join(item.predictions))}" '
        f'src="{url}"></div>'
        f'<dl class="values">{"".join(rows)}</dl><dl class="values">{"".join(values)}</dl></article>\n'
    )


def _pictures(name: str, section: PictureSection) -> str:
    """A section of further pictures."""
    figures = []
    for i, (caption, picture) in enumerate(section.pictures):
        url = _data_url(picture, f'PictureSection.pictures[{i}] of {section.heading!r}')
        height, width = picture.shape[:2]
        figures.append(
            f'<figure><div class="picture"><img width="{width}" height="{height}" '
            f'alt="{escape(caption)}" src="{url}"></div></figure>\n'
        )
    return page_section(
        name,
        escape(section.heading),
        f'<p class="quiet">{escape(section.note)}</p><div class="sheets">\n{"".join(figures)}</div>',
    )


def _data_url(picture: np.ndarray, key: str) -> str:
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(
            f'{key} is {picture.dtype} of shape {picture.shape}; it must be RGB, uint8 of shape '
            '(H, W, 3)'
        )
    data = cv2.imencode('.webp', picture[..., ::-1], (cv2.IMWRITE_WEBP_QUALITY, 90))[1]
    return f'data:image/webp;base64,{base64.b64encode(data).decode()}'
