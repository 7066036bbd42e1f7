"""Pictures of the explanations of one image, by one or several models and at several stages.

Pictures are RGB, uint8 of shape (H, W, 3). Maps are drawn without negative evidence, each in its own
range.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mmkdx.functional import degenerate_maps
from mmkdx.visualization.rendering import (
    colorize,
    difference,
    enlarged,
    grid,
    joined,
    legend,
    overlay,
)

#: The order of the models.
ORDER = ('teacher', 'student', 'base')

#: The columns of ``pair_panel``: each model's maps, then the features that only one model has learned.
COLUMNS = ('teacher', 'base', 'student', 'distilled', 'residual')

#: The explanation of the pictures of ``pair_panel`` in a report.
PAIR_NOTE = (
    'Rows are stages. Teacher, base and student: where each sees the label. Distilled: where the '
    'student sees what tells the labels apart and the base model has not learned; residual: where the '
    'base model does and the student has not. Distilled and residual maps depend on the whole batch '
    'of images that was compared.'
)

_EVIDENCE = ('none', 'most', 'viridis', 42)
_DIFFERENCE = ('teacher more', 'student more', 'diverging', 96)


def explanation_panel(
    image: np.ndarray | Tensor,
    maps: Mapping[str, Tensor],
    captions: Mapping[str, Sequence[str]] | None = None,
    side: int = 224,
    student: str = 'student',
) -> np.ndarray:
    """Draws an image, each model's map over it, and the student's map minus the teacher's.

    Args:
        image (np.ndarray | Tensor): The RGB or grey image, see ``as_rgb``.
        maps (Mapping[str, Tensor]): Raw maps of shape (h, w) of 'student' and, where there are such,
            'teacher' and 'base'.
        captions (Mapping[str, Sequence[str]], optional): Lines of text for each of these and for
            'input' and 'difference', under their names. Defaults to None.
        side (int): The size of each picture in pixels. Defaults to 224.
        student (str): What the student is called. Defaults to 'student'.
    """
    captions = captions or {}
    image = as_rgb(image)
    pictures, lines = [image], [['input', *captions.get('input', ())]]
    canvas = enlarged(image, side)
    for name in ORDER:
        if name in maps:
            picture, words = _over(canvas, maps[name])
            pictures.append(picture)
            head = student if name == 'student' else name
            lines.append([head, *captions.get(name, ()), *words])
    legends = [_EVIDENCE]
    if 'teacher' in maps:
        legends.append(_DIFFERENCE)
        gap = difference(maps['student'][None], maps['teacher'][None], canvas.shape[:2])
        if gap.isnan().any():
            pictures.append(np.full_like(canvas, 236))
            lines.append(['difference', 'none: a map says nothing'])
        else:
            pictures.append(colorize(gap, 'diverging')[0].numpy())
            lines.append(['difference', *captions.get('difference', ())])
    body = grid(pictures, lines, side=side)
    return joined([body, legend(body.shape[1], legends)])


def methods_panel(
    image: np.ndarray | Tensor,
    maps: Mapping[str, Tensor],
    captions: Mapping[str, Sequence[str]],
    side: int = 176,
) -> np.ndarray:
    """Draws an image, and the maps of any number of models over it, at most five in a row.

    Args:
        image (np.ndarray | Tensor): The RGB or grey image, see ``as_rgb``.
        maps (Mapping[str, Tensor]): Raw maps of shape (h, w) by the models' names, in their order.
        captions (Mapping[str, Sequence[str]]): Lines of text for each of these and for 'input', under
            their names.
        side (int): The size of each picture in pixels. Defaults to 176.
    """
    image = as_rgb(image)
    canvas = enlarged(image, side)
    pictures, lines = [image], [['input', *captions.get('input', ())]]
    for name, values in maps.items():
        picture, words = _over(canvas, values)
        pictures.append(picture)
        lines.append([name, *captions.get(name, ()), *words])
    rows = -(-len(pictures) // 5)
    body = grid(pictures, lines, -(-len(pictures) // rows), side)
    return joined([body, legend(body.shape[1], [_EVIDENCE])])


def pair_panel(
    image: np.ndarray | Tensor,
    maps: Mapping[str, Mapping[str, Tensor]],
    label: str | None = None,
) -> np.ndarray:
    """Draws what was distilled: an image and its maps, one row for each stage.

    Args:
        image (np.ndarray | Tensor): The RGB or grey image, see ``as_rgb``.
        maps (Mapping): For each stage the raw maps (h, w) of those of ``COLUMNS`` there are.
        label (str, optional): The name of its class. Defaults to None.
    """
    side = 168
    image = as_rgb(image)
    canvas = enlarged(image, side)
    pictures, lines = [], []
    for stage, values in maps.items():
        pictures.append(np.full_like(image, 255) if pictures else image)
        lines.append([''] if lines else ['input', *textwrap.wrap(label or '', 22)[:3]])
        for name in COLUMNS:
            if name in values:
                picture, words = _over(canvas, values[name])
                pictures.append(picture)
                lines.append([f'{name}, {stage}', *words])
    body = grid(pictures, lines, len(pictures) // len(maps), side)
    return joined([body, legend(body.shape[1], [_EVIDENCE])])


def as_rgb(image: np.ndarray | Tensor, from_bgr: bool = False) -> np.ndarray:
    """Turns the output of a pipeline into a picture.

    Args:
        image (np.ndarray | Tensor): An image with three channels, or a grey one with one channel, of
            shape (C, H, W), (H, W, C) or (H, W). Bytes are shown as they are, and floats from 0 to 255
            or from 0 to 1. Other floats were normalised by the pipeline with an unknown mean and
            standard deviation; they are scaled to their own range.
        from_bgr (bool): Whether its channels are in the order of OpenCV. Defaults to False.

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


def _over(canvas: np.ndarray, values: Tensor) -> tuple[np.ndarray, list[str]]:
    """A map (h, w) over an image, and its caption."""
    values = values[None].float()
    picture = overlay(torch.from_numpy(canvas)[None], values)[0].numpy()
    if not degenerate_maps(values.relu())[0]:
        return picture, []
    if not values.isfinite().all():
        return picture, ['no map: it is not finite']
    constant = degenerate_maps(values)[0]
    return picture, ['no map: it is constant' if constant else 'no positive evidence']
