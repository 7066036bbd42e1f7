"""The curves of a report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from matplotlib.ticker import MaxNLocator

from mmkdx.visualization.html import control_row, page_section, select

#: Curves by metric, then by run, as pairs (epoch, value).
Curves = Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]

# Okabe and Ito, "Color Universal Design", 2008, without black and yellow, which vanish on a dark and a
# light page. With the dashes twelve runs differ, in grey print, too.
COLORS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9')
DASHES = ('none', '7 3', '2 2.5', '9 3 2 3')

#: The axes of a chart in units of its ``viewBox``.
LEFT, RIGHT, TOP, BOTTOM = 46, 372, 12, 206


def curves_section(curves: Curves, unit: str) -> str:
    """The section of all curves, with accuracy in front."""
    finite = {
        metric: {run: kept for run, points in runs.items() if (kept := _finite(points))}
        for metric, runs in curves.items()
    }
    finite = {metric: runs for metric, runs in finite.items() if runs}
    if not finite:
        return page_section(
            'curves', 'Curves', '<p class="quiet">No log of a training was found.</p>'
        )
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
    controls = control_row(select('metric', 'Metric', {each: each for each in others}))
    return page_section(
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
