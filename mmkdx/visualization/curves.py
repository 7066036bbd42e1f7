"""The charts of a report: curves, scores over the depth of networks, and scatter plots."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from mmkdx.metrics.scores import Score
from mmkdx.visualization.records import count_text

#: Curves by metric, then by run, as pairs (epoch, value).
Curves = Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]

# Okabe and Ito, "Color Universal Design", 2008, without black and yellow: they vanish on a dark or a
# light page. With the dashes twelve runs differ, also in grey print.
COLORS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9')
DASHES = ('none', '7 3', '2 2.5', '9 3 2 3')

#: Paths of marks around (0, 0): circle, square, triangle, diamond, and a triangle upside down. Their
#: number and that of the colours have no common factor, so 30 marks differ.
SHAPES = (
    *('M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0z', 'M-4-4h8v8h-8z', 'M0-5.2 4.9 3.6h-9.8z'),
    *('M0-5.6 5 0 0 5.6-5 0z', 'M0 5.2 4.9-3.6h-9.8z'),
)
#: Marks of models beside the methods: a star, and a cross.
FIXED = dict(
    teacher='M0-6.5 1.6-2.2 6.2-2 2.6.8 3.8 5.3 0 2.7-3.8 5.3-2.6.8-6.2-2-1.6-2.2z',
    base='M-4.5-2.5-2.5-4.5 0-2 2.5-4.5 4.5-2.5 2 0 4.5 2.5 2.5 4.5 0 2-2.5 4.5-4.5 2.5-2 0z',
)

#: The axes of a chart in units of its ``viewBox``, as in report.html.
LEFT, RIGHT, TOP, BOTTOM = 46, 372, 12, 206


def charts(curves: Curves) -> list[dict[str, Any]]:
    """Makes the charts: one for each metric with finite values, accuracy first."""
    finite: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for metric, runs in curves.items():
        for run, points in runs.items():
            if kept := sorted((x, y) for x, y in points if math.isfinite(y)):
                finite.setdefault(metric, {})[run] = kept
    order = list(dict.fromkeys(run for runs in finite.values() for run in runs))
    first = [metric for metric in finite if metric.startswith('accuracy')][:1]
    # Scores of explanations come first; the share of empty maps is mostly 0
    others = sorted(
        (metric for metric in finite if metric not in first),
        key=lambda metric: ('degenerate' in metric, not metric.startswith('explain/')),
    )
    found = []
    for metric in (*first, *others):
        runs = finite[metric]
        x_ticks, x_place = _axis([x for run in runs.values() for x, _ in run], LEFT, RIGHT, True)
        y_ticks, y_place = _axis([y for run in runs.values() for _, y in run], BOTTOM, TOP)
        lines = []
        for run, points in runs.items():
            i = order.index(run)
            places = [
                dict(x=f'{x_place(x):.1f}', y=f'{y_place(y):.1f}', at=x, value=f'{y:.5g}')
                for x, y in points
            ]
            style = dict(color=COLORS[i % len(COLORS)], dash=DASHES[i % len(DASHES)])
            lines.append(dict(run=run, points=places, **style))
        found.append(
            dict(
                metric=metric,
                choice=metric in others,
                lines=lines,
                x_ticks=x_ticks,
                y_ticks=y_ticks,
            )
        )
    return found


def stage_charts(
    values: Mapping[str, Mapping[str, Mapping[str, Score]]],
    stages: Sequence[str],
    student: str = 'student',
) -> list[dict[str, Any]]:
    """Makes charts of scores over the depth of the networks, with 95 % confidence intervals.

    Args:
        values (Mapping): For each score and stage the values of models, by 'student', 'teacher' and
            'base'.
        stages (Sequence[str]): The names of the stages, from the image to the classifier.
        student (str): The student's name. Defaults to 'student'.
    """
    found = []
    for metric, depth in values.items():
        there = [stage for stage in stages if stage in depth]
        ends = [
            end
            for row in depth.values()
            for score in row.values()
            for end in (score.value, score.low, score.high)
            if math.isfinite(end)
        ]
        if not ends:
            continue
        x_place = _axis([0, max(len(there) - 1, 1)], LEFT + 16, RIGHT - 16, True)[1]
        y_ticks, y_place = _axis(ends, BOTTOM, TOP)
        lines = []
        for i, model in enumerate(('student', 'teacher', 'base')):
            points = []
            for at, stage in enumerate(there):
                score = depth[stage].get(model)
                if score is not None and math.isfinite(score.value):
                    bar = [f'{y_place(y):.1f}' for y in (score.low, score.high) if math.isfinite(y)]
                    # Side by side, so that intervals do not hide each other
                    x = x_place(at) + 4 * (i - 1)
                    point = dict(x=f'{x:.1f}', y=f'{y_place(score.value):.1f}', at=stage, bar=bar)
                    points.append(dict(point, value=f'{score.value:.3f}'))
            if points:
                name = student if model == 'student' else model
                lines.append(dict(run=name, points=points, color=COLORS[i], dash=DASHES[i]))
        x_ticks = [(stage, x_place(at)) for at, stage in enumerate(there)]
        count = count_text(score for row in depth.values() for score in row.values())
        ticks = dict(x_ticks=x_ticks, y_ticks=y_ticks)
        found.append(dict(metric=metric, lines=lines, count=count, **ticks))
    return found


@dataclass
class Mark:
    """A point of a scatter plot.

    Args:
        name (str): What it is.
        x (Score): Where it stands, with its interval, if any.
        y (Score): Likewise.
        text (str): Both in words.
        note (str): What stands beside the name. Defaults to ''.
        fixed (str): A key of ``FIXED``. Defaults to '': a shape and a colour by its place in the list.
    """

    name: str
    x: Score
    y: Score
    text: str
    note: str = ''
    fixed: str = ''


def scatter(marks: Sequence[Mark], x_name: str, y_name: str) -> dict[str, Any]:
    """Makes a scatter plot: marks with crosses for their intervals, and names if there is room.

    Args:
        marks (Sequence[Mark]): The points. Those without a place are left out.
        x_name (str): What the horizontal axis shows.
        y_name (str): What the vertical axis shows.
    """
    ends = {
        axis: [
            end
            for mark in marks
            for end in getattr(mark, axis)[:3]
            if math.isfinite(mark.x.value + mark.y.value + end)
        ]
        for axis in 'xy'
    }
    if not ends['x']:
        return {}
    x_ticks, x_place = _axis(ends['x'], LEFT + 8, RIGHT - 8)
    y_ticks, y_place = _axis(ends['y'], BOTTOM - 8, TOP + 8)
    points = []
    for i, mark in enumerate(marks):
        if not math.isfinite(mark.x.value + mark.y.value):
            continue
        bars = [
            [f'{place(end):.1f}' for end in (score.low, score.high) if math.isfinite(end)]
            for score, place in ((mark.x, x_place), (mark.y, y_place))
        ]
        style = dict(color=COLORS[i % len(COLORS)], shape=SHAPES[i % len(SHAPES)])
        if mark.fixed:
            style = dict(color='', shape=FIXED[mark.fixed])
        place = dict(x=float(x_place(mark.x.value)), y=float(y_place(mark.y.value)), bars=bars)
        points.append(dict(name=mark.name, text=mark.text, note=mark.note, **place, **style))
    _place_names(points)
    return dict(x=x_name, y=y_name, x_ticks=x_ticks, y_ticks=y_ticks, points=points)


def _place_names(points: Sequence[dict[str, Any]]) -> None:
    """Sets the ``label`` (x, y, anchor) of points, so that no label hides a mark or another label."""
    boxes = [(p['x'] - 7, p['y'] - 7, p['x'] + 7, p['y'] + 7) for p in points]
    for point in points:
        wide, x, y = 6.2 * len(point['name']), point['x'], point['y']
        # First above the cross on the right, then around it
        for left, up in ((8, -6), (-8 - wide, -6), (8, 14), (-8 - wide, 14)):
            box = (x + left, y + up - 9, x + left + wide, y + up + 2)
            if box[0] < LEFT or box[2] > RIGHT or box[1] < TOP - 8 or box[3] > BOTTOM:
                continue
            if not any(_overlap(box, other) for other in boxes):
                boxes.append(box)
                point['label'] = dict(x=x + left, y=y + up)
                break


def _overlap(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether two boxes (left, top, right, bottom) overlap."""
    return all(first[i] < second[i + 2] and second[i] < first[i + 2] for i in (0, 1))


def _axis(
    values: Sequence[float], begin: float, end: float, integer: bool = False
) -> tuple[list[tuple[str, float]], Callable[[float], float]]:
    """Returns the ticks of an axis with their places, and a function from values to places.

    A value that all have stands in the middle. The ends are a tenth of it away; of 0 they are -1 and 1.
    """
    low, high = min(values), max(values)
    if math.isclose(low, high):
        middle, half = (low + high) / 2, abs(low) / 10 or 1
        low, high = middle - half, middle + half
        ticks = [middle] if integer else [low, middle, high]
    else:
        ticks = MaxNLocator(5, steps=(1, 2, 2.5, 5, 10), integer=integer).tick_values(low, high)
        if not integer:
            low, high = ticks[0], ticks[-1]

    def place(value: float) -> float:
        return np.interp(value, (low, high), (begin, end))

    return [(f'{tick:.5g}', place(tick)) for tick in ticks if low <= tick <= high], place
