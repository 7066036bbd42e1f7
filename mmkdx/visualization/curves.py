"""The charts of a report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from mmkdx.metrics.scores import Score

#: Curves by metric, then by run, as pairs (epoch, value).
Curves = Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]

# Okabe and Ito, "Color Universal Design", 2008, without black and yellow, which vanish on a dark and a
# light page. With the dashes twelve runs differ, in grey print, too.
COLORS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9')
DASHES = ('none', '7 3', '2 2.5', '9 3 2 3')

#: The axes of a chart in units of its ``viewBox``, as in report.html.
LEFT, RIGHT, TOP, BOTTOM = 46, 372, 12, 206


def charts(curves: Curves) -> list[dict[str, Any]]:
    """What the charts show: one for each metric that has finite values, with accuracy in front."""
    finite: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for metric, runs in curves.items():
        for run, points in runs.items():
            if kept := sorted((x, y) for x, y in points if math.isfinite(y)):
                finite.setdefault(metric, {})[run] = kept
    order = list(dict.fromkeys(run for runs in finite.values() for run in runs))
    first = [metric for metric in finite if metric.startswith('accuracy')][:1]
    # What is explained is what the page is about; how many maps say nothing is mostly 0
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
    """Scores over the depth of the networks, a chart for each, with their 95 % confidence intervals.

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
                    # Beside each other, so that intervals do not hide each other
                    x = x_place(at) + 4 * (i - 1)
                    point = dict(x=f'{x:.1f}', y=f'{y_place(score.value):.1f}', at=stage, bar=bar)
                    points.append(dict(point, value=f'{score.value:.3f}'))
            if points:
                name = student if model == 'student' else model
                lines.append(dict(run=name, points=points, color=COLORS[i], dash=DASHES[i]))
        x_ticks = [(stage, x_place(at)) for at, stage in enumerate(there)]
        found.append(dict(metric=metric, lines=lines, x_ticks=x_ticks, y_ticks=y_ticks))
    return found


def _axis(
    values: Sequence[float], begin: float, end: float, integer: bool = False
) -> tuple[list[tuple[str, float]], Callable[[float], float]]:
    """The ticks of an axis and their places, and what turns a value into a place.

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
