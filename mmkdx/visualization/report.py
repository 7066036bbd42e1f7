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

import cv2
import numpy as np

from mmkdx.metrics.scores import Score
from mmkdx.version import __version__
from mmkdx.visualization.curves import Curves, curve_figures
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
    scores: Mapping[str, Score] | None = None,
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
        scores (Mapping[str, Score], optional): Scores as of ``ExplanationMetric``. Defaults to None.
        student (str): What the table calls the student. Defaults to 'student'.
        curves (Mapping, optional): For each metric and run the pairs (epoch, value). Defaults to None:
            there is no such section.
        gallery (Sequence[GalleryItem]): The explained images. Defaults to ().
        sections (Sequence[PictureSection]): Further pictures. Defaults to ().
        unit (str): What the curves run over. Defaults to 'epoch'.

    Raises:
        ValueError: If a picture is not RGB in uint8.
    """
    path = Path(path)
    template = Template(Path(__file__).with_name('report.html').read_text(encoding='utf-8'))
    page = template.substitute(
        title=escape(title),
        facts='\n'.join(_definition(name, escape(fact)) for name, fact in facts.items() if fact),
        curves=_curves(curves, unit),
        scores=_scores(scores or {}, student),
        gallery=_gallery(gallery),
        sections='\n'.join(_pictures(f'pictures-{i}', each) for i, each in enumerate(sections)),
        version=__version__,
    )
    # Names of files may hold bytes that are no text
    path.write_text(page, encoding='utf-8', errors='replace')
    return path


def _section(name: str, heading: str, body: str) -> str:
    """A section with its headline."""
    return (
        f'<section id="{name}" aria-labelledby="{name}-head">'
        f'<h2 id="{name}-head">{heading}</h2>\n{body}\n</section>'
    )


def _controls(*parts: str) -> str:
    """A row of choices, which the page's script shows."""
    return f'<div class="controls" hidden>{"".join(parts)}</div>'


def _select(name: str, label: str, options: Mapping[str, str]) -> str:
    """A choice; '' if there is nothing to choose."""
    if len(options) < 2:
        return ''
    items = ''.join(
        f'<option value="{escape(value)}">{escape(text)}</option>'
        for value, text in options.items()
    )
    return f'<label>{label}<select id="{name}" autocomplete="off">{items}</select></label>'


def _definition(name: str, value: str) -> str:
    """A name with its value, which is HTML."""
    return f'<div><dt>{escape(name)}</dt><dd>{value}</dd></div>'


def _curves(curves: Curves | None, unit: str) -> str:
    """The section of all curves."""
    if curves is None:
        return ''
    figures, choices = curve_figures(curves, unit)
    body = '<p class="quiet">No log of a training was found.</p>'
    if figures:
        select = _select('metric', 'Metric', {each: each for each in choices})
        body = (_controls(select) if select else '') + f'<div class="curves">{figures}</div>'
    return _section('curves', 'Curves', body)


def _scores(scores: Mapping[str, Score], student: str) -> str:
    """The table of scores, as ``score_table`` has it, and how many maps say nothing."""
    if not scores:
        return ''
    head, *lines = score_rows(scores, student)
    heads = ''.join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    rows = []
    for name, better, *cells in lines:
        arrow = f'<span title="{better} is better">{ARROWS[better]}</span>' if better else ''
        cells = [arrow, *('–' if cell == '-' else cell for cell in cells)]
        values = ''.join(f'<td>{cell}</td>' for cell in cells)
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{values}</tr>')
    notice = ', '.join(
        f'{escape(student if model == "student" else model)} {score.value:.0f} of {score.n}'
        for model, score in by_model(scores).get('degenerate', {}).items()
        if score.value > 0
    )
    parts = []
    if notice:
        parts.append(
            f'<p class="notice" role="note">Maps that say nothing (constant or not finite): {notice}. '
            'Scores leave them out unless their protocol counts them, see n.</p>'
        )
    parts.append(
        '<p class="quiet">Means with half of their 95 % confidence intervals over n images. '
        '↑ higher is better, ↓ lower is better, – there is no value.'
    )
    if any(score.batches is not None for score in scores.values()):
        parts.append(' An n like 256 in 4 is of 4 batches whose values are averaged.')
    parts.append(
        '</p><div class="scroll" tabindex="0" role="region" aria-label="Scores">'
        '<table aria-labelledby="scores-head">'
        f'<thead><tr>{heads}</tr></thead>\n<tbody>{"".join(rows)}</tbody></table></div>'
    )
    return _section('scores', 'Scores', ''.join(parts))


def _gallery(gallery: Sequence[GalleryItem]) -> str:
    """The section of all pictures, with what chooses among them."""
    if not gallery:
        return ''
    classes = sorted({item.label for item in gallery if item.label is not None})
    verdicts = [_verdicts(item) for item in gallery]
    possible = {key: text for key, text in VERDICTS.items() if any(key in v for v in verdicts)}
    names = {name: name for item in gallery for name in item.scores}
    controls = _controls(
        _select('class', 'Class', {'': 'all', **{str(i): name for i, name in enumerate(classes)}}),
        _select('verdict', 'Predictions', {'': 'all', **possible}),
        _select('sort', 'Sort by', {'': 'index', **names}),
        _select('order', 'Order', {'up': 'lowest first', 'down': 'highest first'}),
        '<output id="count" for="class verdict"></output>',
    )
    cards = ''.join(
        _card(item, holds, classes.index(item.label) if item.label is not None else '')
        for item, holds in zip(gallery, verdicts)
    )
    return _section('gallery', 'Gallery', f'{controls}<div class="cards">\n{cards}</div>')


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
        rows.append(_definition(model, escape(prediction) + mark))
    values = [
        _definition(name, '–' if value is None else f'{value:.3f}')
        for name, value in scores.items()
    ]
    alt = f'{head}, with the explanations of {escape(", ".join(item.predictions))}'
    return (
        f'<article data-index="{item.index}" data-class="{number}" '
        f'data-verdicts="{" ".join(verdicts)}" data-scores="{escape(json.dumps(scores))}">'
        f'<h3>{head}</h3>{_image(item.picture, alt, f"GalleryItem.picture of image {item.index}")}'
        f'<dl class="values">{"".join(rows)}</dl><dl class="values">{"".join(values)}</dl></article>\n'
    )


def _pictures(name: str, section: PictureSection) -> str:
    """A section of further pictures."""
    figures = ''
    for i, (caption, picture) in enumerate(section.pictures):
        key = f'PictureSection.pictures[{i}] of {section.heading!r}'
        figures += f'<figure>{_image(picture, escape(caption), key)}</figure>\n'
    body = f'<p class="quiet">{escape(section.note)}</p><div class="sheets">\n{figures}</div>'
    return _section(name, escape(section.heading), body)


def _image(picture: np.ndarray, alt: str, key: str) -> str:
    """A picture as HTML; ``key`` names it in errors."""
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(
            f'{key} is {picture.dtype} of shape {picture.shape}; it must be RGB, uint8 of shape '
            '(H, W, 3)'
        )
    data = cv2.imencode('.webp', picture[..., ::-1], (cv2.IMWRITE_WEBP_QUALITY, 90))[1]
    return (
        f'<div class="picture"><img width="{picture.shape[1]}" height="{picture.shape[0]}" '
        f'alt="{alt}" src="data:image/webp;base64,{base64.b64encode(data).decode()}"></div>'
    )
