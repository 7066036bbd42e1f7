"""The picture of one image's explanations: input, teacher, student and their difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mmkdx.functional import degenerate_maps
from mmkdx.visualization.rendering import color_table, colorize, difference, grid, overlay, put_text

#: In which order the models stand.
ORDER = ('teacher', 'student', 'base')


def explanation_panel(
    image: np.ndarray | Tensor,
    maps: Mapping[str, Tensor],
    captions: Mapping[str, Sequence[str]] | None = None,
    side: int = 224,
    student: str = 'student',
) -> np.ndarray:
    """Draws an image, each model's map over it, and the student's map minus the teacher's.

    Maps are drawn without negative evidence, each in its own range; a legend below says what the
    colours mean.

    Args:
        image (np.ndarray | Tensor): The RGB or grey image, see ``as_rgb``.
        maps (Mapping[str, Tensor]): Raw maps of shape (h, w) of 'student' and, where there are such,
            'teacher' and 'base'.
        captions (Mapping[str, Sequence[str]], optional): Lines of text for each of these and for
            'input' and 'difference', under their names. Defaults to None.
        side (int): The size of each picture in pixels. Defaults to 224.
        student (str): What the student is called, such as the name of a model that has no teacher.
            Defaults to 'student'.

    Returns:
        np.ndarray: The RGB picture, uint8.
    """
    captions = captions or {}
    image = as_rgb(image)
    pictures, lines = [image], [['input', *captions.get('input', ())]]
    canvas = torch.from_numpy(enlarged(image, side))[None]
    for name in ORDER:
        if name in maps:
            values = maps[name][None].float()
            pictures.append(overlay(canvas, values)[0].numpy())
            words = remark(values)
            head = student if name == 'student' else name
            lines.append([head, *captions.get(name, ()), *([words] if words else [])])
    if 'teacher' in maps:
        gap = difference(maps['student'][None], maps['teacher'][None], canvas.shape[1:3])
        if gap.isnan().any():
            pictures.append(np.full_like(pictures[-1], 236))
            lines.append(['difference', 'none: a map says nothing'])
        else:
            pictures.append(colorize(gap, 'diverging')[0].numpy())
            lines.append(['difference', *captions.get('difference', ())])
    body = grid(pictures, lines, side=side)
    legends = [('evidence', 'none', 'most', 'viridis')]
    if 'teacher' in maps:
        legends.append(('difference', 'teacher more', 'student more', 'diverging'))
    return np.concatenate([body, legend(body.shape[1], legends)])


def as_rgb(image: np.ndarray | Tensor, from_bgr: bool = False) -> np.ndarray:
    """Turns what a pipeline yields into a picture.

    Args:
        image (np.ndarray | Tensor): An image with three channels, or a grey one with one channel, of
            shape (C, H, W), (H, W, C) or (H, W). Bytes are shown as they are, and floats from 0 to 255
            or from 0 to 1. Floats outside these are an image that the pipeline normalised by a mean and
            standard deviation that are not known here: they are scaled to their own range.
        from_bgr (bool): Whether its channels are in the order of OpenCV. Defaults to False.

    Returns:
        np.ndarray: The RGB picture, uint8 of shape (H, W, 3).

    Raises:
        ValueError: If it is no such image.
    """
    values = torch.as_tensor(image).cpu()
    values = values[None] if values.dim() == 2 else values
    last = values.dim() == 3 and values.shape[2] in (1, 3)
    if last and (isinstance(image, np.ndarray) or len(values) not in (1, 3)):
        values = values.permute(2, 0, 1)
    if values.dim() != 3 or len(values) not in (1, 3):
        raise ValueError(
            f'an image of shape {tuple(image.shape)} cannot be drawn; it must have 1 or 3 channels'
        )
    if values.is_floating_point():
        low, high = values.min(), values.max()
        if low < 0 or high > 255:
            values = (values - low) / (high - low).clamp(min=1e-12)
        values = values * 255 if values.max() <= 1 else values
    values = values.flip(0) if from_bgr else values
    return values.clamp(0, 255).byte().expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()


def enlarged(image: np.ndarray, side: int) -> np.ndarray:
    """An image (H, W, 3), enlarged by a whole factor up to a side, so that maps over it stay smooth."""
    factor = max(1, side // max(image.shape[:2]))
    return image.repeat(factor, 0).repeat(factor, 1)


def remark(maps: Tensor) -> str | None:
    """What is to be said of a map (1, h, w) that says nothing, if it does."""
    if not degenerate_maps(maps.relu())[0]:
        return None
    if maps.isfinite().all() and not degenerate_maps(maps)[0]:
        return 'no positive evidence'
    return 'no map: it is constant' if maps.isfinite().all() else 'no map: it is not finite'


def legend(width: int, legends: Sequence[tuple[str, str, str, str]]) -> np.ndarray:
    """A strip with a colour bar for each scale."""
    strip = np.full((28, width, 3), 255, dtype=np.uint8)
    left = 12
    for _, low, high, cmap in legends:
        put_text(strip, low, left, 18, 12, 92)
        bar = color_table(cmap)[None].repeat(10, 0)[:, ::2]
        begin = left + 8 + (88 if low == 'teacher more' else 34)
        strip[8:18, begin : begin + bar.shape[1]] = bar
        put_text(strip, high, begin + bar.shape[1] + 8, 18, 12, 96)
        left = begin + bar.shape[1] + 8 + 70
    return strip
