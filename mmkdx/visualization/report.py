"""A run's explanations as one HTML file: curves, scores and pictures."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from types import MappingProxyType

import cv2
import numpy as np
from matplotlib.ticker import MaxNLocator

from mmkdx.metrics.base import Score
from mmkdx.version import __version__
from mmkdx.visualization.records import by_model, score_rows

#: Curves by metric, then by run, as pairs (epoch, value).
Curves = Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]

# Okabe and Ito, "Color Universal Design", 2008, without black and yellow, which vanish on a dark and a
# light page. With the dashes twelve runs differ, in grey print, too.
COLORS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9')
DASHES = ('none', '7 3', '2 2.5', '9 3 2 3')

#: The axes of a chart in units of its ``viewBox``.
LEFT, RIGHT, TOP, BOTTOM = 46, 372, 12, 206

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
        predictions (dict[str, str]): What each model ('student', 'teacher', 'base') predicts.
        scores (dict[str, float]): Its values by the names of scores; NaN where there is none.
    """

    picture: np.ndarray
    index: int
    label: str | None
    predictions: dict[str, str]
    scores: dict[str, float]


@dataclass
class PictureSection:
    """A section of further pictures.

    Args:
        heading (str): Its headline.
        note (str): What the pictures show.
        pictures (Sequence[tuple[str, np.ndarray]]): What each shows, and the picture, RGB, uint8 of
            shape (H, W, 3).
    """

    heading: str
    note: str
    pictures: Sequence[tuple[str, np.ndarray]]


def class_word(label: int, classes: Sequence[str] | None) -> str:
    """What to call a class: by its name, with the index where several have it; or by the index.

    Args:
        label (int): The class.
        classes (Sequence[str], optional): The names of the data set; a head may have more classes.
    """
    if classes is None or label >= len(classes):
        return str(label)
    name = str(classes[label])
    # Of ImageNet's classes two are called crane
    return name if classes.count(classes[label]) == 1 else f'{name} ({label})'


def write_report(
    path: str | Path,
    *,
    title: str,
    facts: Mapping[str, str],
    scores: Mapping[str, Score] = MappingProxyType({}),
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
        facts='\n'.join(_pair(name, escape(fact)) for name, fact in facts.items() if fact),
        curves='' if curves is None else _curves(curves, unit),
        scores=_scores(scores),
        gallery=_gallery(gallery),
        sections='\n'.join(_pictures(f'pictures-{i}', each) for i, each in enumerate(sections)),
        version=__version__,
    )
    # Names of files may hold bytes that are no text.
    path.write_text(page, encoding='utf-8', errors='replace')
    return path


# Curves


def _curves(curves: Curves, unit: str) -> str:
    """The section of all curves, with accuracy in front."""
    finite = {
        metric: {run: kept for run, points in runs.items() if (kept := _finite(points))}
        for metric, runs in curves.items()
    }
    finite = {metric: runs for metric, runs in finite.items() if runs}
    if not finite:
        return _section('curves', 'Curves', '<p class="quiet">No log of a training was found.</p>')
    order = dict.fromkeys(run for runs in finite.values() for run in runs)
    styles = {
        run: f'color="{COLORS[i % len(COLORS)]}" stroke-dasharray="{DASHES[i % len(DASHES)]}"'
        for i, run in enumerate(order)
    }
    first = next((metric for metric in finite if metric.startswith('accuracy')), None)
    # What is explained is what the page is about; how many maps say nothing is mostly 0
    others = sorted(
        (metric for metric in finite if metric != first),
        key=lambda metric: ('degenerate' in metric, not metric.startswith('explain/')),
    )
    figures = [] if first is None else [_figure(first, finite[first], styles, unit)]
    figures += [_figure(each, finite[each], styles, unit, 'choice') for each in others]
    controls = _controls(_select('metric', 'Metric', {each: each for each in others}))
    return _section(
        'curves',
        'Curves',
        (controls if len(others) > 1 else '') + f'<div class="curves">{"".join(figures)}</div>',
    )


def _finite(points: Iterable[tuple[int, float]]) -> list[tuple[int, float]]:
    return sorted((x, y) for x, y in points if math.isfinite(y))


def _figure(
    metric: str,
    runs: Mapping[str, list[tuple[int, float]]],
    styles: Mapping[str, str],
    unit: str,
    kind: str = '',
) -> str:
    """A chart of one metric with its legend."""
    x_ticks, x_place = _axis([x for points in runs.values() for x, _ in points], LEFT, RIGHT, True)
    y_ticks, y_place = _axis([y for points in runs.values() for _, y in points], BOTTOM, TOP)
    parts = []
    for tick in y_ticks:
        y = y_place(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>'
        )
    for tick in x_ticks:
        x = x_place(tick)
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{BOTTOM}" y2="{BOTTOM + 4}"/>'
        )
        parts.append(
            f'<text x="{x:.1f}" y="{BOTTOM + 17}" text-anchor="middle">{_number(tick)}</text>'
        )
    parts.append(
        f'<text x="{(LEFT + RIGHT) / 2}" y="{BOTTOM + 34}" text-anchor="middle">{escape(unit)}</text>'
    )
    legend, words = [], []
    for run, points in runs.items():
        places = [(f'{x_place(x):.1f}', f'{y_place(y):.1f}') for x, y in points]
        line = ' '.join(f'{x},{y}' for x, y in places)
        # Markers of long runs would hide the line.
        radius = 2.4 if len(points) <= 40 else 1
        marks = ''.join(
            f'<circle cx="{px}" cy="{py}" r="{radius}" '
            f'data-tip="{escape(unit)} {x}: {_number(y)}"/>'
            for (px, py), (x, y) in zip(places, points)
        )
        parts.append(
            f'<g {styles[run]} data-run="{escape(run)}"><polyline points="{line}"/>{marks}</g>'
        )
        last = f'{_number(points[-1][1])} at {escape(unit)} {points[-1][0]}'
        words.append(f'{escape(run)}: {last}')
        legend.append(
            f'<li><svg viewBox="0 0 32 10" aria-hidden="true">'
            f'<line x1="0" x2="32" y1="5" y2="5" {styles[run]}/></svg>'
            f'<span>{escape(run)}</span> <span class="quiet">{last}</span></li>'
        )
    name = escape(metric)
    return (
        f'<figure class="{kind}" data-metric="{name}"><figcaption>{name}</figcaption>'
        f'<svg class="chart" viewBox="0 0 380 246" role="img" '
        f'aria-label="{name} over the {escape(unit)}s; {"; ".join(words)}">{"".join(parts)}</svg>'
        f'<ul class="legend">{"".join(legend)}</ul></figure>\n'
    )


def _axis(values: Sequence[float], begin: float, end: float, integer: bool = False):
    """The ticks of an axis, and what turns a value into a place between its two ends.

    Where all values are equal, theirs is the middle, and the ends are a tenth of it away, of 0 they are
    -1 and 1.
    """
    low, high = min(values), max(values)
    if math.isclose(low, high):
        middle, half = (low + high) / 2, abs(low) / 10 or 1
        low, high = middle - half, middle + half
        ticks = [middle] if integer else [low, middle, high]
    else:
        locator = MaxNLocator(5, steps=(1, 2, 2.5, 5, 10), integer=integer)
        ticks = locator.tick_values(low, high)
        if not integer:
            low, high = ticks[0], ticks[-1]
    return [
        tick for tick in ticks if low <= tick <= high
    ], lambda value: begin + (end - begin) * (value - low) / (high - low)


def _number(value: float) -> str:
    return f'{value:.5g}'


# Scores


def _scores(scores: Mapping[str, Score]) -> str:
    """The table of scores, as ``score_table`` has it, and how many maps say nothing."""
    if not scores:
        return ''
    head, *lines = score_rows(scores)
    heads = ''.join(f'<th scope="col">{cell}</th>' for cell in head)
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
        f'{escape(model)} {score.value:.0f} of {score.n}' for model, score in bad.items()
    )
    return _section(
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
        _select('class', 'Class', {'': 'all', **{str(i): name for i, name in enumerate(classes)}}),
        _select('verdict', 'Predictions', {'': 'all', **possible}),
        _select('sort', 'Sort by', {'': 'index', **{name: name for name in names}}),
        _select('order', 'Order', {'up': 'lowest first', 'down': 'highest first'}),
        '<output id="count" for="class verdict"></output>',
    ]
    cards = []
    for item, holds in zip(gallery, verdicts):
        number = classes.index(item.label) if item.label is not None else ''
        cards.append(_card(item, holds, number))
    return _section(
        'gallery',
        'Gallery',
        f'{_controls(*selects)}<div class="cards">\n{"".join(cards)}</div>',
    )


def _verdicts(item: GalleryItem) -> list[str]:
    """Which keys of ``VERDICTS`` hold of an image."""
    student, teacher = (item.predictions.get(model) for model in ('student', 'teacher'))
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
        rows.append(_pair(model, escape(prediction) + mark))
    values = [
        _pair(name, '–' if value is None else f'{value:.3f}') for name, value in scores.items()
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
    return _section(
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


# Pieces of HTML


def _section(name: str, heading: str, body: str) -> str:
    return (
        f'<section id="{name}" aria-labelledby="{name}-head">'
        f'<h2 id="{name}-head">{heading}</h2>\n{body}\n</section>'
    )


def _controls(*parts: str) -> str:
    # The script shows them.
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


def _pair(name: str, value: str) -> str:
    return f'<div><dt>{escape(name)}</dt><dd>{value}</dd></div>'
