"""The charts of a report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

import numpy as np
from matplotlib.ticker import MaxNLocator

#: Curves by metric, then by run, as pairs (epoch, value).
Curves = Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]

# Okabe and Ito, "Color Universal Design", 2008, without black and yellow, which vanish on a dark and a
# light page. With the dashes twelve runs differ, in grey print, too.
COLORS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9')
DASHES = ('none', '7 3', '2 2.5', '9 3 2 3')

#: The axes of a chart in units of its ``viewBox``.
LEFT, RIGHT, TOP, BOTTOM = 46, 372, 12, 206


def curve_figures(curves: Curves, unit: str) -> tuple[str, list[str]]:
    """Draws a chart for each metric that has finite values, with accuracy in front.

    Returns:
        tuple[str, list[str]]: The charts as HTML, and the metrics after accuracy in their order.
    """
    finite: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for metric, runs in curves.items():
        for run, points in runs.items():
            if kept := sorted((x, y) for x, y in points if math.isfinite(y)):
                finite.setdefault(metric, {})[run] = kept
    order = dict.fromkeys(run for runs in finite.values() for run in runs)
    styles = {
        run: f'color="{COLORS[i % len(COLORS)]}" stroke-dasharray="{DASHES[i % len(DASHES)]}"'
        for i, run in enumerate(order)
    }
    first = [metric for metric in finite if metric.startswith('accuracy')][:1]
    # What is explained is what the page is about; how many maps say nothing is mostly 0
    others = sorted(
        (metric for metric in finite if metric not in first),
        key=lambda metric: ('degenerate' in metric, not metric.startswith('explain/')),
    )
    figures = [
        _figure(each, finite[each], styles, unit, 'choice' if each in others else '')
        for each in (*first, *others)
    ]
    return ''.join(figures), others


def _figure(
    metric: str,
    runs: Mapping[str, list[tuple[int, float]]],
    styles: Mapping[str, str],
    unit: str,
    kind: str,
) -> str:
    """A chart of one metric with its legend."""
    x_ticks, x_place = _axis([x for points in runs.values() for x, _ in points], LEFT, RIGHT, True)
    y_ticks, y_place = _axis([y for points in runs.values() for _, y in points], BOTTOM, TOP)
    name, unit = escape(metric), escape(unit)
    parts = []
    for tick in y_ticks:
        y = y_place(tick)
        parts += [
            f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>',
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.5g}</text>',
        ]
    for tick in x_ticks:
        x = x_place(tick)
        parts += [
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{BOTTOM}" y2="{BOTTOM + 4}"/>',
            f'<text x="{x:.1f}" y="{BOTTOM + 17}" text-anchor="middle">{tick:.5g}</text>',
        ]
    middle = (LEFT + RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{BOTTOM + 34}" text-anchor="middle">{unit}</text>')
    legend, words = [], []
    for run, points in runs.items():
        places = [(f'{x_place(x):.1f}', f'{y_place(y):.1f}') for x, y in points]
        line = ' '.join(f'{x},{y}' for x, y in places)
        # Markers of long runs would hide the line
        radius = 2.4 if len(points) <= 40 else 1
        marks = ''.join(
            f'<circle cx="{px}" cy="{py}" r="{radius}" data-tip="{unit} {x}: {y:.5g}"/>'
            for (px, py), (x, y) in zip(places, points)
        )
        shown, last = escape(run), f'{points[-1][1]:.5g} at {unit} {points[-1][0]}'
        parts.append(f'<g {styles[run]} data-run="{shown}"><polyline points="{line}"/>{marks}</g>')
        words.append(f'{shown}: {last}')
        legend.append(
            f'<li><svg viewBox="0 0 32 10" aria-hidden="true">'
            f'<line x1="0" x2="32" y1="5" y2="5" {styles[run]}/></svg>'
            f'<span>{shown}</span> <span class="quiet">{last}</span></li>'
        )
    return (
        f'<figure class="{kind}" data-metric="{name}"><figcaption>{name}</figcaption>'
        f'<svg class="chart" viewBox="0 0 380 246" role="img" '
        f'aria-label="{name} over the {unit}s; {"; ".join(words)}">{"".join(parts)}</svg>'
        f'<ul class="legend">{"".join(legend)}</ul></figure>\n'
    )


def _axis(
    values: Sequence[float], begin: float, end: float, integer: bool = False
) -> tuple[list[float], Callable[[float], float]]:
    """The ticks of an axis, and what turns a value into a place between its two ends.

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
    shown = [tick for tick in ticks if low <= tick <= high]
    return shown, lambda value: np.interp(value, (low, high), (begin, end))
