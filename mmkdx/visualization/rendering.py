"""Draws maps: colours, overlays, differences, texts and grids.

Pictures are RGB, uint8, in NumPy of shape (H, W, 3) and in tensors of shape (N, H, W, 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import torch
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mmkdx.arguments import number
from mmkdx.datasets.wrappers import class_text
from mmkdx.files import write_file
from mmkdx.functional import degenerate_maps, normalize_maps, resize_maps

#: Sequential colour maps of OpenCV. 'jet' is for comparison with papers: its lightness goes up and
#: down, and colour-blind people cannot read it.
COLORMAPS = ('viridis', 'cividis', 'inferno', 'magma', 'jet')

#: The colours of headlines and of other text.
DARK, QUIET = (24, 24, 24), (96, 96, 96)


def colorize(maps: Tensor, cmap: str = 'viridis') -> Tensor:
    """Colours maps, on their device.

    Args:
        maps (Tensor): Maps of shape (N, H, W) in [0, 1], for 'diverging' in [-1, 1].
        cmap (str): See ``color_table``. Defaults to 'viridis'.
    """
    table = torch.from_numpy(color_table(cmap)).to(maps.device)
    if cmap == 'diverging':
        maps = (maps + 1) / 2
    return table[(maps.clamp(0, 1) * 255).round().long()]


def overlay(
    images: Tensor, maps: Tensor, alpha: float = 0.8, cmap: str = 'viridis', relu: bool = True
) -> Tensor:
    """Lays raw maps over images in colours. The opacity follows the square root of the map.

    So the image stays visible where the map is low. A map that says nothing (see ``degenerate_maps``)
    leaves its image without colour. In maps of more than 64 x 64 values the highest 1 % share a colour:
    otherwise a few pixels of a gradient would leave all others without.

    Args:
        images (Tensor): The images, uint8 of shape (N, H, W, 3).
        maps (Tensor): Raw maps of shape (N, h, w); each is scaled to its own range.
        alpha (float): The opacity of the highest value, from 0 to 1. Defaults to 0.8.
        cmap (str): See ``color_table``. Defaults to 'viridis'.
        relu (bool): Whether negative evidence is left out. Defaults to True.
    """
    number('alpha', alpha, 0, 1)
    scaled = normalize_maps(maps, relu)
    if maps[0].numel() > 64 * 64:
        high = scaled.flatten(1).topk(maps[0].numel() // 100).values[:, -1, None, None]
        scaled = torch.where(high > 0, scaled / high, scaled).clamp(max=1)
    scaled = resize_maps(scaled, images.shape[1:3])
    colors, opacity = colorize(scaled, cmap).float(), alpha * scaled.clamp(0, 1).sqrt()[..., None]
    # The image under the colours is grey, so hue shows only the map.
    grey = images.float() @ images.new_tensor([0.299, 0.587, 0.114], dtype=torch.float)
    grey = grey[..., None].expand_as(colors)
    empty = degenerate_maps(maps.relu() if relu else maps)[:, None, None, None]
    return torch.where(empty, grey, torch.lerp(grey, colors, opacity)).round().byte()


def difference(student: Tensor, teacher: Tensor, size: Sequence[int]) -> Tensor:
    """Returns the student's map minus the teacher's, each scaled to [0, 1] without negative evidence.

    A difference is NaN all over where one of the maps says nothing.

    Args:
        student (Tensor): Raw maps of shape (N, h, w).
        teacher (Tensor): Raw maps of shape (N, h', w').
        size (Sequence[int]): Height and width of the result.

    Returns:
        Tensor: Differences of shape (N, height, width) in [-1, 1].
    """
    scaled = [resize_maps(normalize_maps(maps, relu=True), size) for maps in (student, teacher)]
    empty = [degenerate_maps(maps.relu()) for maps in (student, teacher)]
    return torch.where((empty[0] | empty[1])[:, None, None], torch.nan, scaled[0] - scaled[1])


@lru_cache
def color_table(cmap: str) -> np.ndarray:
    """Returns the 256 RGB colours of a colour map, lowest value first, uint8 of shape (256, 3).

    Args:
        cmap (str): One of ``COLORMAPS``, or 'diverging' (violet, white, orange).

    Raises:
        ValueError: If there is no such colour map.
    """
    if cmap == 'diverging':
        # ColorBrewer's PuOr, readable in print and for colour-blind people
        return matplotlib.colormaps['PuOr_r'](np.arange(256), bytes=True)[:, :3].copy()
    if cmap not in COLORMAPS:
        raise ValueError(
            f'there is no colour map {cmap!r}; there are {", ".join(COLORMAPS)} and diverging'
        )
    ramp = np.arange(256, dtype=np.uint8)[:, None]
    return cv2.applyColorMap(ramp, getattr(cv2, f'COLORMAP_{cmap.upper()}'))[:, 0, ::-1].copy()


def put_text(
    picture: np.ndarray,
    text: str,
    left: int,
    baseline: int,
    height: int = 14,
    width: int | None = None,
    color: Sequence[int] = (32, 32, 32),
) -> None:
    """Writes one line of text into a picture; its middle is left out if there is too little room.

    Letters that the font lacks are written as their Unicode numbers, so that no two texts look alike.

    Args:
        picture (np.ndarray): The picture, changed in place.
        text (str): The text.
        left (int): The column where it begins.
        baseline (int): The row on which it stands.
        height (int): The font's height in pixels. Defaults to 14.
        width (int, optional): The most pixels it may take. Defaults to None: up to the right edge.
        color (Sequence[int]): RGB. Defaults to nearly black.
    """
    font = _font(height)
    width = picture.shape[1] - left if width is None else width
    text = ''.join(each if each in _letters() else f'\\u{ord(each):04x}' for each in text)
    if font.getlength(text) > width:
        # The end also stays: it has a class's number and its score
        count = len(text) - 1
        while count and font.getlength(_without_middle(text, count)) > width:
            count -= 1
        text = _without_middle(text, count)
    canvas = Image.fromarray(picture)
    ImageDraw.Draw(canvas).text((left, baseline), text, tuple(color), font, anchor='ls')
    picture[:] = np.asarray(canvas)


def label_text(label: int, classes: Sequence[str] | None) -> str:
    """Returns the name of a class in a picture, like 'football helmet (560)'.

    Where there is no name, or no glyph for one of its letters, it is the number alone.
    """
    words = class_text(label, classes)
    return words if _letters().issuperset(words) else f'{label}'


def _without_middle(text: str, count: int) -> str:
    """Returns a text's first and last letters, ``count`` in all, keeping ' (560) 0.931' at the end."""
    end = min(12, count * 2 // 3)
    return f'{text[: count - end].rstrip()}…{text[len(text) - end :]}'


# DejaVu Sans comes with matplotlib, which mmengine needs. OpenCV's own fonts have only ASCII letters,
# and class names have others.
_FONT = str(Path(matplotlib.get_data_path()) / 'fonts' / 'ttf' / 'DejaVuSans.ttf')


@lru_cache
def _font(height: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_FONT, height)


@lru_cache
def _letters() -> frozenset[str]:
    return frozenset(map(chr, FT2Font(_FONT).get_charmap()))


def grid(
    pictures: Sequence[np.ndarray],
    captions: Sequence[Sequence[str]] | None = None,
    columns: int | None = None,
    side: int = 224,
    gap: int = 12,
) -> np.ndarray:
    """Lays pictures out in a grid, each with lines of text under it.

    Small pictures are enlarged by whole factors, without smoothing; large ones are reduced.

    Args:
        pictures (Sequence[np.ndarray]): The pictures.
        captions (Sequence[Sequence[str]], optional): For each picture its lines; the first is drawn
            stronger. Defaults to None.
        columns (int, optional): Pictures in a row. Defaults to None (all).
        side (int): Into which square, in pixels, each is fitted. Defaults to 224.
        gap (int): Pixels between them. Defaults to 12.
    """
    captions = captions or [()] * len(pictures)
    if not pictures or len(captions) != len(pictures):
        raise ValueError(
            f'a grid needs pictures and as many captions; there are {len(pictures)} and {len(captions)}'
        )
    columns = min(columns or len(pictures), len(pictures))
    fitted = [_fit(picture, side) for picture in pictures]
    line = 20
    height = max(picture.shape[0] for picture in fitted)
    step = height + line * max(map(len, captions)) + gap + 6
    rows = -(-len(pictures) // columns)
    canvas = np.full((rows * step + gap, columns * (side + gap) + gap, 3), 255, dtype=np.uint8)
    for i, (picture, lines) in enumerate(zip(fitted, captions)):
        top, left = gap + i // columns * step, gap + i % columns * (side + gap)
        paste(canvas, picture, top, left + (side - picture.shape[1]) // 2)
        for n, text in enumerate(lines):
            color = DARK if n == 0 else QUIET
            put_text(canvas, text, left, top + height + line * (n + 1), 14, side, color)
    return canvas


def _fit(picture: np.ndarray, side: int) -> np.ndarray:
    height, width = picture.shape[:2]
    factor = side / max(height, width)
    size = max(round(width * factor), 1), max(round(height * factor), 1)
    # Whole factors first, then the rest, keep the pixels of small images sharp
    picture = enlarged(picture, side)
    if picture.shape[1::-1] == size:
        return picture
    way = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return cv2.resize(picture, size, interpolation=way)


def enlarged(image: np.ndarray, side: int) -> np.ndarray:
    """Returns a copy of an image (H, W, 3), enlarged by the largest whole factor that fits a side."""
    factor = max(1, side // max(image.shape[:2]))
    return image.repeat(factor, 0).repeat(factor, 1)


def paste(canvas: np.ndarray, picture: np.ndarray, top: int, left: int) -> None:
    """Lays a picture onto a larger one."""
    canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture


def joined(pictures: Sequence[np.ndarray], axis: int = 0) -> np.ndarray:
    """Stacks pictures, for axis 1 side by side; smaller ones get a white margin."""
    across = max(picture.shape[1 - axis] for picture in pictures)
    pads = np.zeros((len(pictures), 3, 2), int)
    pads[:, 1 - axis, 1] = [across - picture.shape[1 - axis] for picture in pictures]
    padded = [np.pad(each, pad, constant_values=255) for each, pad in zip(pictures, pads)]
    return np.concatenate(padded, axis)


def legend(width: int, scales: Sequence[tuple[str, str, str, int]]) -> np.ndarray:
    """Draws a strip of 28 pixels in height with a colour bar for each scale.

    Scales that do not fit beside each other stand in rows, and a bar is shorter in a narrow strip.

    Args:
        width (int): The width of the strip in pixels.
        scales (Sequence[tuple]): For each scale the meaning of its lowest and of its highest value, its
            colour map, and the room for the first text in pixels.
    """
    if len(scales) > 1 and 12 + sum(room + 206 for *_, room in scales) > width:
        return joined([legend(width, [scale]) for scale in scales])
    strip = np.full((28, width, 3), 255, dtype=np.uint8)
    left = 12
    for low, high, cmap, room in scales:
        end = min(96, math.ceil(_font(12).getlength(high)))
        room = min(room, max(width - left - 40 - end, 24))  # 32 pixels of the bar at least
        put_text(strip, low, left, 18, 12, room)
        left += room
        shown = np.linspace(0, 255, min(128, max(width - left - 8 - end, 1))).round().astype(int)
        bar = color_table(cmap)[None, shown].repeat(10, 0)
        if cmap != 'diverging':  # as over an image, see ``overlay``
            ramp = torch.linspace(0, 1, bar.shape[1])[None, None]
            ground = torch.full((1, *bar.shape), 160, dtype=torch.uint8)
            bar = overlay(ground, ramp, cmap=cmap)[0].numpy()
        paste(strip, bar[:, : max(width - left, 0)], 8, left)
        left += bar.shape[1] + 8
        put_text(strip, high, left, 18, 12, 96)
        left += 70
    return strip


def write_picture(path: str | Path, picture: np.ndarray) -> None:
    """Writes a picture, RGB, uint8 of shape (H, W, 3), in the format of the file's suffix.

    Raises:
        WriteError: If the file cannot be written; an earlier one stays.
    """
    # OpenCV's own writer fails at names that are not UTF-8
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    write_file(path, cv2.imencode(Path(path).suffix, bgr)[1].tobytes())
