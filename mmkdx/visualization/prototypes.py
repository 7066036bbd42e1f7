"""Pictures of prototype networks: the source of a prototype, and similar patches.

Images and pictures are RGB, uint8 of shape (H, W, 3).
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from mmkdx.functional import normalize_maps, resize_maps
from mmkdx.visualization.rendering import (
    DARK,
    QUIET,
    colorize,
    enlarged,
    grid,
    joined,
    legend,
    overlay,
    put_text,
)

#: The colours of boxes.
YELLOW, BLACK = (255, 255, 0), (0, 0, 0)
#: Pixels between pictures, and of a line of text.
GAP, LINE = 12, 20
#: The size of each picture in pixels: in a global sheet, and in a sheet with one row per prototype.
LARGE, SMALL = 192, 128


@dataclass
class Patch:
    """A patch of an image.

    Args:
        image (np.ndarray): The whole image.
        box (Sequence[int]): x0, y0, x1, y1 in its pixels; x1 and y1 are outside of the box.
        similarity (Tensor, optional): How similar each place of the image is to the prototype, raw, of
            shape (h, w). Defaults to None.
        cell (Sequence[int], optional): Row and column of its most similar place. Defaults to None.
        grid (Sequence[int], optional): Number of rows and columns. Defaults to None.
        lines (Sequence[str]): What is to be said of it. Defaults to ().
    """

    image: np.ndarray
    box: Sequence[int]
    similarity: Tensor | None = None
    cell: Sequence[int] | None = None
    grid: Sequence[int] | None = None
    lines: Sequence[str] = ()


def crop(image: np.ndarray, box: Sequence[int]) -> np.ndarray:
    """Returns the region of an image (H, W, 3) in a box, see ``Patch``.

    Raises:
        ValueError: If the box is empty, or passes the border of the image.
    """
    x0, y0, x1, y1 = map(int, box)
    height, width = image.shape[:2]
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise ValueError(
            f'the box {[x0, y0, x1, y1]} does not lie in the image of {width} x {height} pixels'
        )
    return image[y0:y1, x0:x1]


def draw_patch(patch: Patch, side: int = LARGE) -> np.ndarray:
    """Draws a patch's box on its image, inside the box's edges, and a dot at its cell.

    The dot is where the similarity is highest. The box holds all places above a percentile, and so it
    may be large where similar places lie apart. An image smaller than ``side`` pixels is first enlarged
    by a whole factor, so that the lines are fine.

    Raises:
        ValueError: See ``crop``.
    """
    crop(patch.image, patch.box)
    plain = enlarged(patch.image, side)
    picture = plain.copy()
    factor = plain.shape[0] // patch.image.shape[0]
    x0, y0, x1, y1 = (int(edge) * factor for edge in patch.box)
    width = max(1, round(max(plain.shape) / 64))
    dark = max(1, width // 3)
    # Each fills the inside of the one before
    for inset, fill in (
        (0, BLACK),
        (dark, YELLOW),
        (dark + width, BLACK),
        (2 * dark + width, plain),
    ):
        region = np.s_[y0 + inset : max(y1 - inset, 0), x0 + inset : max(x1 - inset, 0)]
        picture[region] = fill[region] if fill is plain else fill
    if patch.cell is not None:
        # The cell's centre, in OpenCV's order x, y
        center = [
            int((place + 0.5) * size / count)
            for place, size, count in zip(patch.cell, picture.shape, patch.grid)
        ][::-1]
        for radius, color in ((width + 1 + dark, BLACK), (width + 1, YELLOW)):
            cv2.circle(picture, center, radius, color, cv2.FILLED, cv2.LINE_AA)
    return picture


def heat_map(
    image: np.ndarray, similarity: Tensor, cmap: str = 'viridis', side: int = LARGE
) -> np.ndarray:
    """Lays a similarity map (h, w) over an image, scaled to its own range.

    With 'jet' it is the picture of prototype papers: half of the image and 0.3 of the colours. With
    other colour maps it is that of ``overlay``, whose image is grey.
    """
    picture = enlarged(image, side)
    maps = resize_maps(similarity[None].float().cpu(), picture.shape[:2])
    if cmap == 'jet':
        heat = colorize(normalize_maps(maps), cmap)[0].numpy()
        return cv2.addWeighted(picture, 0.5, heat, 0.3, 0)
    return overlay(torch.from_numpy(picture)[None], maps, cmap=cmap, relu=False)[0].numpy()


def global_sheet(
    title: Sequence[str],
    source: Patch,
    neighbours: Mapping[str, Sequence[Patch]],
    cmap: str = 'viridis',
) -> np.ndarray:
    """Draws a prototype's source, and the nearest patches of other images.

    Args:
        title (Sequence[str]): The headline and lines under it.
        source (Patch): Where the prototype comes from.
        neighbours (Mapping[str, Sequence[Patch]]): Patches under a heading each, the nearest first. All
            need similarity maps.
        cmap (str): See ``heat_map``. Defaults to 'viridis'.
    """
    step = LARGE + GAP
    width = max([4, *map(len, neighbours.values())]) * step + GAP
    views = _views(source, cmap, LARGE)
    strong = source.lines[:1]
    parts = [_text(title, width), _row(views, source.lines, LARGE, width - 3 * step - GAP, strong)]
    for heading, patches in neighbours.items():
        parts.append(_text([heading], width))
        if not patches:
            parts.append(_text(['', 'none'], width))
            continue
        boxes, heats, regions = zip(*(_views(patch, cmap, LARGE) for patch in patches))
        lines = [[p for line in patch.lines for p in _wrapped(line, LARGE)] for patch in patches]
        upper = grid([*boxes, *heats], columns=len(patches), side=LARGE, gap=GAP)
        parts += [upper[:-GAP], grid(regions, lines, side=LARGE, gap=GAP)]
    return joined([*parts, _legend(width, cmap)])


def local_sheet(
    title: Sequence[str],
    rows: Sequence[tuple[Patch, Patch, Sequence[str]]],
    summary: Sequence[str],
    cmap: str = 'viridis',
) -> np.ndarray:
    """Draws the patches of an image beside the prototypes that they look like, one prototype a row.

    Args:
        title (Sequence[str]): The headline and lines under it.
        rows (Sequence[tuple]): For each prototype the patch of the image with its similarity map, the
            prototype's source, and lines of text, the last being the result.
        summary (Sequence[str]): Lines at the end.
        cmap (str): See ``heat_map``. Defaults to 'viridis'.
    """
    heads = ('in this image', 'similarity', 'this patch', 'looks like this', 'taken from')
    body = []
    for patch, source, lines in rows:
        pictures = [*_views(patch, cmap, SMALL), *_origin(source)]
        body.append(_row(pictures, lines, SMALL, 264, [lines[0], lines[-1]]))
    width = body[0].shape[1]
    end = [_text(summary, width), _legend(width, cmap)]
    return joined([_text(title, width), _heads(heads, width), *body, *end])


def transfer_sheet(
    title: Sequence[str], rows: Sequence[tuple[Patch, Patch, Sequence[str]]]
) -> np.ndarray:
    """Draws prototypes of a teacher beside those of a student, one pair a row.

    A row has the teacher's and the student's source, and lines of text.
    """
    heads = ("teacher's prototype", 'taken from', "student's prototype", 'taken from')
    body = [
        _row([*_origin(teacher), *_origin(student)], lines, SMALL, 300, lines[::2])
        for teacher, student, lines in rows
    ]
    width = body[0].shape[1]
    return joined([_text(title, width), _heads(heads, width), *body])


def _views(patch: Patch, cmap: str, side: int) -> list[np.ndarray]:
    """Returns the image with its box, the similarity over it, and the patch itself."""
    return [
        draw_patch(patch, side),
        heat_map(patch.image, patch.similarity, cmap, side),
        crop(patch.image, patch.box),
    ]


def _origin(source: Patch) -> list[np.ndarray]:
    """Returns the patch itself, and its image with the box."""
    return [crop(source.image, source.box), draw_patch(source, SMALL)]


def _row(
    pictures: Sequence[np.ndarray],
    lines: Sequence[str],
    side: int,
    text_width: int,
    strong: Sequence[str],
) -> np.ndarray:
    """Lays pictures in a row with text to their right; some lines are bold."""
    body = grid(pictures, side=side, gap=GAP)[:-GAP]
    room = text_width - GAP
    wrapped = [(line in strong, part) for line in lines for part in _wrapped(line, room)]
    height = max(body.shape[0], GAP + LINE * len(wrapped) + 6)
    text = np.full((height, text_width, 3), 255, np.uint8)
    for n, (stronger, part) in enumerate(wrapped):
        put_text(text, part, 0, GAP + 14 + LINE * n, 14, room, DARK if stronger else QUIET)
    return joined([body, text], 1)


def _heads(heads: Sequence[str], width: int) -> np.ndarray:
    """Draws the heads of columns."""
    strip = np.full((LINE, width, 3), 255, np.uint8)
    for n, head in enumerate(heads):
        put_text(strip, head, GAP + n * (SMALL + GAP), 12, 13, SMALL, QUIET)
    return strip


def _text(lines: Sequence[str], width: int) -> np.ndarray:
    """Draws a headline and lines under it."""
    room = width - 2 * GAP
    wrapped = [(i == 0, part) for i, line in enumerate(lines) for part in _wrapped(line, room)]
    strip = np.full((LINE * len(wrapped) + 10, width, 3), 255, np.uint8)
    for n, (first, part) in enumerate(wrapped):
        size, color = (16, DARK) if first else (14, QUIET)
        put_text(strip, part, GAP, 22 + LINE * n, size, room, color)
    return strip


def _legend(width: int, cmap: str) -> np.ndarray:
    """Draws the legend of similarity maps."""
    low = 'similarity, each map in its own range: lowest'
    return legend(width, [(low, 'highest', cmap, 276)])


def _wrapped(line: str, width: int) -> list[str]:
    """Breaks a line to fit; a letter is about eight pixels wide."""
    return textwrap.wrap(line, max(width // 8, 8)) or ['']
