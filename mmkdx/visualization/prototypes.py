"""The pictures of prototype networks: where a prototype comes from, and what looks like it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from mmkdx.functional import normalize_maps, resize_maps
from mmkdx.visualization.rendering import color_table, colorize, grid, overlay, put_text

#: The colours of boxes.
YELLOW, BLACK = (255, 255, 0), (0, 0, 0)
#: Pixels between pictures, and of a line of text.
GAP, LINE = 12, 20


@dataclass
class Patch:
    """A patch of an image.

    Args:
        image (np.ndarray): The whole image, RGB, uint8 of shape (H, W, 3).
        box (Sequence[int]): x0, y0, x1, y1 in its pixels; x1 and y1 are outside of the box.
        similarity (Tensor, optional): How similar each place of the image is to the prototype, raw, of
            shape (h, w). Defaults to None.
        cell (Sequence[int], optional): Row and column of its most similar place. Defaults to None.
        grid (Sequence[int], optional): Of how many rows and columns. Defaults to None.
        lines (Sequence[str]): What is to be said of it. Defaults to ().
    """

    image: np.ndarray
    box: Sequence[int]
    similarity: Tensor | None = None
    cell: Sequence[int] | None = None
    grid: Sequence[int] | None = None
    lines: Sequence[str] = ()


def crop(image: np.ndarray, box: Sequence[int]) -> np.ndarray:
    """The region of an image in a box.

    Args:
        image (np.ndarray): RGB, uint8 of shape (H, W, 3).
        box (Sequence[int]): See ``Patch``.

    Returns:
        np.ndarray: RGB, uint8.

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


def draw_patch(patch: Patch, side: int = 192) -> np.ndarray:
    """Draws a patch's box on its image, inside of the box's edges, and a dot at its cell.

    The dot is where the similarity is highest. The box holds all places above a percentile, and so it
    may be large where similar places lie apart.

    Args:
        patch (Patch): The patch.
        side (int): A smaller image is enlarged before by the largest whole factor that fits, so that
            the lines are fine. Defaults to 192.

    Returns:
        np.ndarray: RGB, uint8.

    Raises:
        ValueError: See ``crop``.
    """
    crop(patch.image, patch.box)
    picture = _enlarged(patch.image, side)
    factor = picture.shape[0] // patch.image.shape[0]
    x0, y0, x1, y1 = (int(edge) * factor for edge in patch.box)
    width = max(1, round(max(picture.shape) / 64))
    dark = max(1, width // 3)
    for inset, stroke, color in ((0, width + 2 * dark, BLACK), (dark, width, YELLOW)):
        left, top, right, bottom = x0 + inset, y0 + inset, x1 - inset, y1 - inset
        for rows, columns in (
            (slice(top, min(top + stroke, bottom)), slice(left, right)),
            (slice(max(bottom - stroke, top), bottom), slice(left, right)),
            (slice(top, bottom), slice(left, min(left + stroke, right))),
            (slice(top, bottom), slice(max(right - stroke, left), right)),
        ):
            picture[rows, columns] = color
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
    image: np.ndarray, similarity: Tensor, cmap: str = 'viridis', side: int = 192
) -> np.ndarray:
    """Lays a similarity map over an image, scaled to its own range.

    With 'jet' it is the picture of prototype papers: half of the image and 0.3 of the colours. With
    other colour maps it is that of ``overlay``, whose image is grey.

    Args:
        image (np.ndarray): RGB, uint8 of shape (H, W, 3).
        similarity (Tensor): Raw, of shape (h, w).
        cmap (str): See ``colorize``. Defaults to 'viridis'.
        side (int): See ``draw_patch``. Defaults to 192.

    Returns:
        np.ndarray: RGB, uint8.
    """
    picture = _enlarged(image, side)
    maps = resize_maps(similarity[None].float().cpu(), picture.shape[:2])
    if cmap == 'jet':
        heat = colorize(normalize_maps(maps), cmap)[0].numpy()
        return cv2.addWeighted(picture, 0.5, heat, 0.3, 0)
    return overlay(torch.from_numpy(picture)[None], maps, cmap=cmap, relu=False)[0].numpy()


def global_sheet(
    title: Sequence[str],
    source: Patch,
    neighbours: dict[str, Sequence[Patch]],
    cmap: str = 'viridis',
    side: int = 192,
) -> np.ndarray:
    """Draws a prototype's source, and the patches of other images that are nearest to it.

    Args:
        title (Sequence[str]): The headline and lines under it.
        source (Patch): Where the prototype comes from.
        neighbours (dict[str, Sequence[Patch]]): Patches under a heading each, the nearest first. All
            need similarity maps.
        cmap (str): See ``heat_map``. Defaults to 'viridis'.
        side (int): The size of each picture in pixels. Defaults to 192.

    Returns:
        np.ndarray: The RGB picture, uint8.
    """
    count = max([4, *map(len, neighbours.values())])
    width = count * (side + GAP) + GAP
    first = _row(
        _views(source, cmap, side),
        source.lines,
        side,
        width - 3 * (side + GAP) - GAP,
        source.lines[:1],
    )
    parts = [_text(title, width), first]
    for heading, patches in neighbours.items():
        views = [_views(patch, cmap, side) for patch in patches]
        upper = [view[i] for i in range(2) for view in views]
        lines = [
            [part for line in patch.lines for part in _wrapped(line, side)] for patch in patches
        ]
        parts.append(_text([heading], width))
        if patches:
            parts.append(grid(upper, columns=len(patches), side=side, gap=GAP)[:-GAP])
            parts.append(grid([view[2] for view in views], lines, side=side, gap=GAP))
        else:
            parts.append(_text(['', 'none'], width))
    return _stacked([*parts, _legend(width, cmap)])


def local_sheet(
    title: Sequence[str],
    rows: Sequence[tuple[Patch, Patch, Sequence[str]]],
    summary: Sequence[str],
    cmap: str = 'viridis',
    side: int = 128,
) -> np.ndarray:
    """Draws which patches of an image look like which prototypes, one prototype a row.

    Args:
        title (Sequence[str]): The headline and lines under it.
        rows (Sequence[tuple]): For each prototype the patch of the image with its similarity map, the
            prototype's source, and what is to be said, the last line being the result.
        summary (Sequence[str]): Lines at the end.
        cmap (str): See ``heat_map``. Defaults to 'viridis'.
        side (int): The size of each picture in pixels. Defaults to 128.

    Returns:
        np.ndarray: The RGB picture, uint8.
    """
    heads = ('in this image', 'similarity', 'this patch', 'looks like this', 'taken from')
    body = []
    for patch, source, lines in rows:
        pictures = [
            *_views(patch, cmap, side),
            crop(source.image, source.box),
            draw_patch(source, side),
        ]
        body.append(_row(pictures, lines, side, 264, [lines[0], lines[-1]]))
    width = body[0].shape[1]
    parts = [_text(title, width), _heads(heads, side, width), *body, _text(summary, width)]
    return _stacked([*parts, _legend(width, cmap)])


def transfer_sheet(
    title: Sequence[str], rows: Sequence[tuple[Patch, Patch, Sequence[str]]], side: int = 128
) -> np.ndarray:
    """Draws prototypes of a teacher beside those of a student, one pair a row.

    Args:
        title (Sequence[str]): The headline and lines under it.
        rows (Sequence[tuple]): For each pair the sources of the teacher's and of the student's
            prototype, and what is to be said.
        side (int): The size of each picture in pixels. Defaults to 128.

    Returns:
        np.ndarray: The RGB picture, uint8.
    """
    heads = ("teacher's prototype", 'taken from', "student's prototype", 'taken from')
    body = []
    for teacher, student, lines in rows:
        pictures = []
        for patch in (teacher, student):
            pictures += [crop(patch.image, patch.box), draw_patch(patch, side)]
        body.append(_row(pictures, lines, side, 300, lines[::2]))
    width = body[0].shape[1]
    return _stacked([_text(title, width), _heads(heads, side, width), *body])


def _views(patch: Patch, cmap: str, side: int) -> list[np.ndarray]:
    """The image with its box, the similarity over it, and the patch itself."""
    return [
        draw_patch(patch, side),
        heat_map(patch.image, patch.similarity, cmap, side),
        crop(patch.image, patch.box),
    ]


def _enlarged(image: np.ndarray, side: int) -> np.ndarray:
    """A copy, enlarged by a whole factor, so that pixels stay sharp."""
    factor = max(1, side // max(image.shape[:2]))
    return image.repeat(factor, 0).repeat(factor, 1)


def _row(
    pictures: Sequence[np.ndarray],
    lines: Sequence[str],
    side: int,
    text_width: int,
    strong: Sequence[str],
) -> np.ndarray:
    """Pictures in a row, with text to the right of them, of which some lines are drawn stronger."""
    body = grid(pictures, side=side, gap=GAP)[:-GAP]
    wrapped = [(line, part) for line in lines for part in _wrapped(line, text_width - GAP)]
    height = max(body.shape[0], GAP + LINE * len(wrapped) + 6)
    picture = np.full((height, body.shape[1] + text_width, 3), 255, np.uint8)
    picture[: body.shape[0], : body.shape[1]] = body
    for n, (line, part) in enumerate(wrapped):
        color = (24, 24, 24) if line in strong else (96, 96, 96)
        put_text(picture, part, body.shape[1], GAP + 14 + LINE * n, 14, text_width - GAP, color)
    return picture


def _heads(heads: Sequence[str], side: int, width: int) -> np.ndarray:
    """The heads of columns."""
    strip = np.full((LINE, width, 3), 255, np.uint8)
    for n, head in enumerate(heads):
        put_text(strip, head, GAP + n * (side + GAP), 12, 13, side, (96, 96, 96))
    return strip


def _text(lines: Sequence[str], width: int) -> np.ndarray:
    """A headline and lines under it."""
    wrapped = [[part for part in _wrapped(line, width - 2 * GAP)] for line in lines]
    count = sum(map(len, wrapped))
    strip = np.full((LINE * count + 10, width, 3), 255, np.uint8)
    n = 0
    for first, parts in zip([True] + [False] * len(wrapped), wrapped):
        for part in parts:
            size, color = (16, (24, 24, 24)) if first else (14, (96, 96, 96))
            put_text(strip, part, GAP, 6 + LINE * n + 16, size, width - 2 * GAP, color)
            n += 1
    return strip


def _legend(width: int, cmap: str) -> np.ndarray:
    """What the colours of similarity maps mean."""
    strip = np.full((28, width, 3), 255, np.uint8)
    put_text(strip, 'similarity, each map in its own range: lowest', GAP, 18, 12)
    left = GAP + 276
    bar = color_table(cmap)[None].repeat(10, 0)[:, ::2]
    strip[8:18, left : left + bar.shape[1]] = bar
    put_text(strip, 'highest', left + bar.shape[1] + 8, 18, 12)
    return strip


def _wrapped(line: str, width: int) -> list[str]:
    """A line in as many lines as it needs; letters are some eight pixels wide."""
    return textwrap.wrap(line, max(width // 8, 8)) or ['']


def _stacked(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Strips under each other, all as wide as the widest."""
    width = max(part.shape[1] for part in parts)
    fill = [
        np.pad(part, ((0, 0), (0, width - part.shape[1]), (0, 0)), constant_values=255)
        for part in parts
    ]
    return np.concatenate(fill)
