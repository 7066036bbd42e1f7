"""Pictures of the classes that a model explains alike, and of the classes that it confuses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from mmkdx.metrics.class_similarity import ClassMatrices, Similarities
from mmkdx.visualization.panel import ORDER
from mmkdx.visualization.rendering import (
    DARK,
    QUIET,
    color_table,
    joined,
    label_text,
    paste,
    put_text,
)
from mmkdx.visualization.sections import PictureSection, draw

#: The explanation of the picture in a report.
NOTE = (
    "Left: how alike a model's explanations of the label's class (row) and of every class (column) are, "
    'as mean cosines over the images of the label. Right: which share of its images the model takes for '
    'which class. ρ is the rank correlation of both: where it is high, classes that a model explains '
    'alike are those that it confuses.'
)

#: The headlines of the two matrices of a model, and of the pairs below them.
WORDS = {
    'similarity': ('explanations: how alike those of row and column are', 'most alike'),
    'confusion': ('predictions: which images of row are taken for column', 'most confused'),
}

#: The largest number of classes that is drawn: more would not fit on a screen.
MOST_CLASSES = 2000

#: The smallest side of a matrix in pixels, and the smallest cell that shows its number.
SIDE, NUMBERED = 440, 34

#: The height of text, and the largest width of a class name.
TEXT, NAME_WIDTH = 12, 190

#: Pixels around the picture, to the left of a matrix without names, above and to the right of each
#: matrix, of a line of text, and of the bar of a scale.
GAP, LEFT, EDGE, LINE, BAR = 20, 12, 8, 18, 10

#: The colours of the diagonal and of classes without images, between cells, and around a matrix.
NOTHING, GRID, FRAME = (226, 226, 226), (238, 238, 238), (190, 190, 190)

#: The number of pairs of classes that are named.
PAIRS = 3


@draw.register
def similarity_section(
    content: Similarities, classes: Sequence[str] | None = None
) -> PictureSection | None:
    """Returns the section with ``similarity_panel``; None for more than ``MOST_CLASSES``."""
    matrices = content.matrices
    if len(next(iter(matrices.values())).similarity) > MOST_CLASSES:
        return None
    caption = f'similarity and confusion of classes, {", ".join(n for n in ORDER if n in matrices)}'
    heading = 'Class similarity' + (f' ({content.name})' if content.name else '')
    key = '_'.join(filter(None, (content.name, 'class_similarity_{mode}')))
    picture = similarity_panel(matrices, classes)
    return PictureSection(heading, NOTE, [(caption, picture)], [key])


def similarity_panel(
    matrices: Mapping[str, ClassMatrices], classes: Sequence[str] | None = None
) -> np.ndarray:
    """Draws how similarly classes are explained and how often they are confused, one row per model.

    All models have one scale, up to the largest value off the diagonal, and the classes stand in the
    order of the data set. Numbers are written where there is room, and of many classes every n-th
    name. The pairs with the largest values are named below.

    Args:
        matrices (Mapping[str, ClassMatrices]): Those of 'student', 'teacher' and 'base' there are.
        classes (Sequence[str], optional): The names of the classes. Defaults to None: their indices.
    """
    models = {name: matrices[name] for name in ORDER if name in matrices}
    count = len(next(iter(models.values())).similarity)
    names = [label_text(label, classes) for label in range(count)]
    peaks = {key: max(_largest(getattr(each, key)) for each in models.values()) for key in WORDS}
    cell = -(-SIDE // count)
    # Every name if there is room, else every second, fifth, …
    step = next(n for n in (1, 2, 5, 10, 20, 50) if n * cell > TEXT + 2)
    tiles = {i: _tile(names[i], TEXT, DARK) for i in range(0, count, step)}
    margin = max(tile.shape[1] for tile in tiles.values()) + 10
    rows = []
    for name, each in models.items():
        rho = 'none' if math.isnan(each.correlation) else f'{each.correlation:.2f}'
        head = [
            _strip(f'{name}, {each.n} images', TEXT + 4, DARK),
            _strip(f'   ρ = {rho}', TEXT + 4, QUIET),
        ]
        halves = []
        for key, cmap, room in (('similarity', 'diverging', margin), ('confusion', 'share', 0)):
            values = getattr(each, key)
            parts = [
                _strip(WORDS[key][0], TEXT, QUIET, room or LEFT),
                _matrix(values, peaks[key], cmap, cell, tiles, room),
                _pairs(values, names, key, room or LEFT),
            ]
            halves.append(joined(parts))
        rows += [joined(head, 1), joined(halves, 1), np.full((GAP, 1, 3), 255, np.uint8)]
    high, share = f'{peaks["similarity"]:.2f}', f'{100 * peaks["confusion"]:.3g} %'
    bars = [
        _bar('diverging', (f'−{high}', '0', high), halves[0].shape[1], margin),
        _bar('share', ('0 %', share), halves[1].shape[1], LEFT),
    ]
    note = 'grey: a class beside itself, and classes without images'
    rows += [joined(bars, 1), _strip(note, TEXT, QUIET, margin)]
    return np.pad(joined(rows), ((GAP, GAP), (GAP, GAP), (0, 0)), constant_values=255)


def _largest(matrix: np.ndarray) -> float:
    """Returns the largest magnitude off the diagonal; 1 if all values are 0 or there are none."""
    others = np.abs(matrix[~np.eye(len(matrix), dtype=bool)])
    return float(others[np.isfinite(others)].max(initial=0)) or 1.0


def _colors(cmap: str) -> np.ndarray:
    # Shares are also on white, so the few values above 0 stand out
    table = color_table('diverging')
    return table if cmap == 'diverging' else table[128:]


def _matrix(
    matrix: np.ndarray,
    peak: float,
    cmap: str,
    cell: int,
    tiles: Mapping[int, np.ndarray],
    margin: int,
) -> np.ndarray:
    """Draws a matrix with the names of columns below and, if there is a margin, of rows."""
    table = _colors(cmap)
    empty = np.eye(len(matrix), dtype=bool) | ~np.isfinite(matrix)
    share = np.where(empty, 0, matrix) / peak
    if cmap == 'diverging':
        share = (share + 1) / 2
    elif cell < 3:
        share = cv2.dilate(share, np.ones((3, 3)))  # otherwise they would not be visible
    index = (share.clip(0, 1) * (len(table) - 1)).round().astype(int)
    cells = np.where(empty[..., None], np.uint8(NOTHING), table[index])
    body = cells.repeat(cell, 0).repeat(cell, 1)
    if cell >= 8:
        body[::cell], body[:, ::cell] = GRID, GRID
    if cell >= NUMBERED:
        for (i, j), value in np.ndenumerate(matrix):
            if text := _number(value, cmap, i == j):
                place = body[i * cell + 1 : (i + 1) * cell, j * cell + 1 : (j + 1) * cell]
                _write(place, text, light=cells[i, j] @ (0.299, 0.587, 0.114) < 130)
    widest = max(tile.shape[1] for tile in tiles.values())
    flat = widest < cell - 4
    side, left = len(body), margin or LEFT
    below = (TEXT + 4 if flat else widest) + 12
    canvas = np.full((EDGE + side + 2 + below, left + side + 2 + EDGE, 3), 255, np.uint8)
    canvas[EDGE : EDGE + side + 2, left : left + side + 2] = FRAME
    paste(canvas, body, EDGE + 1, left + 1)
    for i, tile in tiles.items():
        center = 1 + i * cell + cell // 2
        if margin:
            top = EDGE + center - tile.shape[0] // 2
            paste(canvas, tile, top, margin - 8 - tile.shape[1])
            canvas[EDGE + center, margin - 5 : margin] = FRAME
        tile = tile if flat else np.rot90(tile)
        paste(canvas, tile, EDGE + side + 10, left + center - tile.shape[1] // 2)
        canvas[EDGE + side + 2 : EDGE + side + 7, left + center] = FRAME
    return canvas


def _number(value: float, cmap: str, own: bool) -> str:
    """Returns the text of a cell; '' if it needs none."""
    if not math.isfinite(value):
        return ''
    if cmap == 'diverging':
        # No sign for values that round to 0
        return '' if own else f'{round(value, 2) + 0:.2f}'.replace('-', '−').replace('0.', '.', 1)
    return f'{100 * value:.0f}%' if own or value else ''


def _pairs(matrix: np.ndarray, names: Sequence[str], key: str, margin: int) -> np.ndarray:
    """Returns lines that name the pairs of classes with the largest values."""
    alike = key == 'similarity'
    if alike:  # both directions of a pair, which may differ
        values = np.triu(np.ma.masked_invalid([matrix, matrix.T]).mean(0).filled(0), 1)
    else:
        values = np.where(np.isfinite(matrix) & ~np.eye(len(matrix), dtype=bool), matrix, 0)
    lines = []
    for place in np.argsort(-values, axis=None, kind='stable')[:PAIRS]:
        i, j = np.unravel_index(place, values.shape)
        if (value := values[i, j]) > 0:
            shown, sign = (f'{value:.2f}', '–') if alike else (f'{100 * value:.0f} %', '→')
            lines.append(f'{shown}  {names[i]} {sign} {names[j]}')
    strips = [_strip(f'{WORDS[key][1]}: {"" if lines else "none"}', TEXT, QUIET, margin)]
    strips += [_strip(line, TEXT, DARK, margin) for line in lines]
    blank = np.full(((PAIRS + 1 - len(strips)) * LINE, 1, 3), 255, np.uint8)
    return joined([*strips, blank])


def _bar(cmap: str, ticks: Sequence[str], width: int, margin: int) -> np.ndarray:
    """Draws a scale as wide as its matrix, with numbers below."""
    side = width - margin - EDGE
    table = _colors(cmap)
    canvas = np.full((BAR + LINE, width, 3), 255, np.uint8)
    canvas[:BAR, margin:-EDGE] = table[np.linspace(0, len(table) - 1, side).round().astype(int)]
    for place, text in zip(np.linspace(0, side, len(ticks)), ticks):
        tile = _tile(text, TEXT, DARK)
        left = min(max(int(place) - tile.shape[1] // 2, 0), side - tile.shape[1])
        paste(canvas, tile, BAR + 2, margin + left)
    return canvas


def _tile(text: str, height: int, color: Sequence[int], width: int = NAME_WIDTH) -> np.ndarray:
    """Draws a line of text on white, as wide as the text."""
    tile = np.full((height + 4, width, 3), 255, np.uint8)
    put_text(tile, text, 0, height, height, width, color)
    used = np.flatnonzero((tile < 255).any((0, 2)))
    return tile[:, : used[-1] + 1] if len(used) else tile[:, :1]


def _strip(text: str, height: int, color: Sequence[int], margin: int = 0) -> np.ndarray:
    """Draws a line of text with a margin."""
    tile = _tile(text, height, color, SIDE)
    return np.pad(tile, ((0, LINE - TEXT - 4), (margin, 0), (0, 0)), constant_values=255)


def _write(place: np.ndarray, text: str, light: bool) -> None:
    """Writes dark or light text into the middle of a cell."""
    tile = _tile(text, TEXT - 1, (0, 0, 0))
    top, left = (max((a - b) // 2, 0) for a, b in zip(place.shape, tile.shape[:2]))
    region = place[top : top + len(tile), left : left + tile.shape[1]]
    tile = tile[: len(region), : region.shape[1]]
    region[:] = np.maximum(region, 255 - tile) if light else np.minimum(region, tile)
