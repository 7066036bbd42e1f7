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
    image: np.ndarray,
    maps: Mapping[str, Tensor],
    captions: Mapping[str, Sequence[str]] | None = None,
    side: int = 224,
) -> np.ndarray:
    """Draws an image, each model's map over it, and the student's map minus the teacher's.

    Maps are drawn without negative evidence, each in its own range; a legend below says what the
    colours mean.

    Args:
        image (np.ndarray): The RGB image, uint8 of shape (H, W, 3).
        maps (Mapping[str, Tensor]): Raw maps of shape (h, w) of 'student' and, where there are such,
            'teacher' and 'base'.
        captions (Mapping[str, Sequence[str]], optional): Lines of text for each of these and for
            'input' and 'difference', under their names. Defaults to None.
        side (int): The size of each picture in pixels. Defaults to 224.

    Returns:
        np.ndarray: The RGB picture, uint8.
    """
    captions = captions or {}
    pictures, lines = [image], [['input', *captions.get('input', ())]]
    canvas = torch.from_numpy(enlarged(image, side))[None]
    for name in ORDER:
        if name in maps:
            values = maps[name][None].float()
            pictures.append(overlay(canvas, values)[0].numpy())
            words = remark(values)
            lines.append([name, *captions.get(name, ()), *([words] if words else [])])
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


def as_rgb(image: Tensor, from_bgr: bool) -> np.ndarray:
    """Turns what a pipeline yields into a picture.

    Args:
        image (Tensor): An image of shape (3, H, W) before normalisation, from 0 to 255 (or to 1).
        from_bgr (bool): Whether its channels are in the order of OpenCV.

    Returns:
        np.ndarray: The RGB picture, uint8 of shape (H, W, 3).
    """
    values = image.float()
    if image.is_floating_point() and values.max() <= 1:
        values = values * 255
    values = values.flip(0) if from_bgr else values
    return values.clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()


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
