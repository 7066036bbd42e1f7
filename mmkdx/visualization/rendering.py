"""Drawing maps: colours, overlays, differences and grids.

Maps are normalised and resized by ``mmkdx.functional`` (``normalize_maps``, ``resize_maps``); here
numbers in [0, 1] or [-1, 1] become colours.
"""

from __future__ import annotations

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
from mmkdx.functional import degenerate_maps, normalize_maps, resize_maps

#: Sequential colour maps, all of OpenCV; 'jet' is for comparison with papers, as its lightness goes up
#: and down and colour-blind people cannot read it.
COLORMAPS = {
    'viridis': cv2.COLORMAP_VIRIDIS,
    'cividis': cv2.COLORMAP_CIVIDIS,
    'inferno': cv2.COLORMAP_INFERNO,
    'magma': cv2.COLORMAP_MAGMA,
    'jet': cv2.COLORMAP_JET,
}

# ColorBrewer's PuOr with 11 classes (Harrower and Brewer, The Cartographic Journal 2003), which colour-
# blind people can read and which stays readable in print.
_DIVERGING = (
    (45, 0, 75), (84, 39, 136), (128, 115, 172), (178, 171, 210), (216, 218, 235), (247, 247, 247),
    (254, 224, 182), (253, 184, 99), (224, 130, 20), (179, 88, 6), (127, 59, 8),
)  # fmt: skip


def colorize(maps: Tensor, cmap: str = 'viridis') -> Tensor:
    """Gives maps colours.

    Args:
        maps (Tensor): Maps of shape (N, H, W) in [0, 1], for 'diverging' in [-1, 1].
        cmap (str): One of ``COLORMAPS``, or 'diverging' (violet below 0, white, orange above).
            Defaults to 'viridis'.

    Returns:
        Tensor: RGB pictures of shape (N, H, W, 3), uint8, on the maps' device.

    Raises:
        ValueError: If there is no such colour map.
    """
    table = torch.from_numpy(color_table(cmap)).to(maps.device)
    if cmap == 'diverging':
        maps = (maps + 1) / 2
    return table[(maps.clamp(0, 1) * 255).round().long()]


def overlay(
    images: Tensor, maps: Tensor, alpha: float = 0.6, cmap: str = 'viridis', relu: bool = True
) -> Tensor:
    """Lays raw maps over images.

    A map that says nothing (see ``degenerate_maps``) leaves its image without colour.

    Args:
        images (Tensor): RGB images of shape (N, H, W, 3), uint8.
        maps (Tensor): Raw maps of shape (N, h, w); each is scaled to its own range.
        alpha (float): The share of the map's colour, from 0 to 1. Defaults to 0.6.
        cmap (str): See ``colorize``. Defaults to 'viridis'.
        relu (bool): Whether negative evidence is left out. Defaults to True.

    Returns:
        Tensor: RGB pictures of shape (N, H, W, 3), uint8.

    Raises:
        ValueError: If there is no such colour map, or alpha is out of range.
    """
    number('alpha', alpha, 0, 1)
    scaled = normalize_maps(maps, relu)
    colors = colorize(resize_maps(scaled, images.shape[1:3]), cmap).float()
    # Under the colours the image is grey, so that hue belongs to the map alone.
    grey = images.float() @ images.new_tensor([0.299, 0.587, 0.114], dtype=torch.float)
    grey = grey[..., None].expand_as(colors)
    empty = degenerate_maps(maps.relu() if relu else maps)[:, None, None, None]
    return torch.where(empty, grey, (1 - alpha) * grey + alpha * colors).round().byte()


def difference(student: Tensor, teacher: Tensor, size: Sequence[int], relu: bool = True) -> Tensor:
    """The student's map minus the teacher's, each scaled to [0, 1] by its own range.

    Args:
        student (Tensor): Raw maps of shape (N, h, w).
        teacher (Tensor): Raw maps of shape (N, h', w').
        size (Sequence[int]): Height and width of the result.
        relu (bool): Whether negative evidence is left out. Defaults to True.

    Returns:
        Tensor: Differences of shape (N, height, width) in [-1, 1]; NaN all over where one of the maps
        says nothing.
    """
    scaled = [resize_maps(normalize_maps(maps, relu), size) for maps in (student, teacher)]
    empty = [degenerate_maps(maps.relu() if relu else maps) for maps in (student, teacher)]
    return torch.where((empty[0] | empty[1])[:, None, None], torch.nan, scaled[0] - scaled[1])


@lru_cache
def color_table(cmap: str) -> np.ndarray:
    """The 256 RGB colours of a colour map, from its lowest to its highest value, uint8 of (256, 3).

    Raises:
        ValueError: If there is no such colour map.
    """
    if cmap == 'diverging':
        places = np.linspace(0, 1, len(_DIVERGING))
        steps = np.linspace(0, 1, 256)
        channels = [np.interp(steps, places, channel) for channel in zip(*_DIVERGING)]
        return np.stack(channels, 1).round().astype(np.uint8)
    if cmap not in COLORMAPS:
        raise ValueError(
            f'there is no colour map {cmap!r}; there are {", ".join(COLORMAPS)} and diverging'
        )
    ramp = np.arange(256, dtype=np.uint8)[:, None]
    return cv2.applyColorMap(ramp, COLORMAPS[cmap])[:, 0, ::-1].copy()


def put_text(
    picture: np.ndarray,
    text: str,
    left: int,
    baseline: int,
    height: int = 14,
    width: int | None = None,
    color: Sequence[int] = (32, 32, 32),
) -> None:
    """Writes one line of text into a picture, without its middle where there is too little room.

    Letters that the font lacks are written as their Unicode numbers, so that no two texts look alike.

    Args:
        picture (np.ndarray): RGB, uint8 of shape (H, W, 3), changed in place.
        text (str): The text.
        left (int): Where it begins, in pixels.
        baseline (int): On which row it stands.
        height (int): The font's height in pixels. Defaults to 14.
        width (int, optional): The most it may take. Defaults to None: up to the right edge.
        color (Sequence[int]): RGB. Defaults to nearly black.
    """
    font = _font(height)
    width = picture.shape[1] - left if width is None else width
    text = ''.join(each if is_drawable(each) else f'\\u{ord(each):04x}' for each in text)
    if font.getlength(text) > width:
        # The end stays as well: there stand a class's number and its score
        count = len(text) - 1
        while count and font.getlength(_without_middle(text, count)) > width:
            count -= 1
        text = _without_middle(text, count)
    canvas = Image.fromarray(picture)
    ImageDraw.Draw(canvas).text((left, baseline), text, tuple(color), font, anchor='ls')
    picture[:] = np.asarray(canvas)


def label_text(label: int, classes: Sequence[str] | None) -> str:
    """How a picture names a class: 'football helmet (560)'.

    Args:
        label (int): The class.
        classes (Sequence[str], optional): The names of the classes, None where they are not known.

    Returns:
        str: Its name and number; the number alone where there is no name, or no glyph for a letter.
    """
    name = classes[label] if classes is not None and label < len(classes) else ''
    return f'{name} ({label})' if name and is_drawable(name) else f'{label}'


def is_drawable(text: str) -> bool:
    """Whether the font has a glyph for each letter of a text."""
    return _letters().issuperset(map(ord, text))


def _without_middle(text: str, count: int) -> str:
    """A text's first and last letters, ``count`` in all, with room for ' (560) 0.931' at the end."""
    end = min(12, count * 2 // 3)
    return f'{text[: count - end].rstrip()}…{text[len(text) - end :]}'


# DejaVu Sans comes with matplotlib, on which mmengine depends. OpenCV's own fonts have no letters
# beyond ASCII, and class names have.
_FONT = str(Path(matplotlib.get_data_path()) / 'fonts' / 'ttf' / 'DejaVuSans.ttf')


@lru_cache
def _font(height: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_FONT, height)


@lru_cache
def _letters() -> frozenset[int]:
    return frozenset(FT2Font(_FONT).get_charmap())


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
        pictures (Sequence[np.ndarray]): RGB pictures, uint8 of shape (H, W, 3).
        captions (Sequence[Sequence[str]], optional): For each picture its lines; the first is drawn
            stronger. Defaults to None.
        columns (int, optional): Pictures in a row. Defaults to None (all).
        side (int): Into which square, in pixels, each is fitted. Defaults to 224.
        gap (int): Pixels between them. Defaults to 12.

    Returns:
        np.ndarray: The RGB picture, uint8.

    Raises:
        ValueError: If there are no pictures, or not as many captions.
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
    step_y = height + line * max(map(len, captions)) + gap + 6
    rows = -(-len(pictures) // columns)
    canvas = np.full((rows * step_y + gap, columns * (side + gap) + gap, 3), 255, dtype=np.uint8)
    for i, (picture, lines) in enumerate(zip(fitted, captions)):
        top, left = gap + i // columns * step_y, gap + i % columns * (side + gap)
        shift = (side - picture.shape[1]) // 2
        canvas[top : top + picture.shape[0], left + shift : left + shift + picture.shape[1]] = (
            picture
        )
        for n, text in enumerate(lines):
            color = (24, 24, 24) if n == 0 else (96, 96, 96)
            put_text(canvas, text, left, top + height + line * (n + 1), 14, side, color)
    return canvas


def _fit(picture: np.ndarray, side: int) -> np.ndarray:
    height, width = picture.shape[:2]
    factor = side / max(height, width)
    if factor >= 1:
        # Whole factors and then the rest keep the pixels of small images sharp.
        whole = int(factor)
        picture = picture.repeat(whole, 0).repeat(whole, 1)
    size = max(round(width * factor), 1), max(round(height * factor), 1)
    if picture.shape[1::-1] == size:
        return picture
    way = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return cv2.resize(picture, size, interpolation=way)
