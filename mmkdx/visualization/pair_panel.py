"""The picture of what was distilled: each stage of teacher, base model and student in one image."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from mmkdx.visualization.panel import as_rgb, enlarged, legend, remark
from mmkdx.visualization.rendering import grid, overlay

#: The columns: each model's own explanation, then what only one of two models has learned.
COLUMNS = ('teacher', 'base', 'student', 'distilled', 'residual')

#: What the pictures show, for a report.
NOTE = (
    'Rows are stages. Teacher, base and student: where each sees the label. Distilled: where the '
    'student sees what tells the labels apart and the base model has not learned; residual: where the '
    'base model does and the student has not. Distilled and residual maps depend on the whole batch '
    'of images that was compared.'
)


def pair_panel(
    image: np.ndarray | Tensor,
    maps: Mapping[str, Mapping[str, Tensor]],
    label: str | None = None,
    side: int = 168,
) -> np.ndarray:
    """Draws an image and its maps, a row for each stage.

    Maps are drawn without negative evidence, each in its own range.

    Args:
        image (np.ndarray | Tensor): The RGB or grey image, see ``mmkdx.visualization.panel.as_rgb``.
        maps (Mapping): For each stage the raw maps (h, w) of those of ``COLUMNS`` there are.
        label (str, optional): The name of its class. Defaults to None.
        side (int): The size of each picture in pixels. Defaults to 168.

    Returns:
        np.ndarray: The RGB picture, uint8.
    """
    image = as_rgb(image)
    canvas = torch.from_numpy(enlarged(image, side))[None]
    pictures, lines = [], []
    for i, (stage, values) in enumerate(maps.items()):
        pictures.append(image if i == 0 else np.full_like(image, 255))
        words = textwrap.wrap(label, 22)[:3] if label is not None else []
        lines.append(['input', *words] if i == 0 else [''])
        for name in COLUMNS:
            if name in values:
                each = values[name][None].float()
                pictures.append(overlay(canvas, each)[0].numpy())
                lines.append([f'{name}, {stage}', *([note] if (note := remark(each)) else [])])
    columns = 1 + len(next(iter(maps.values())))
    body = grid(pictures, lines, columns, side)
    return np.concatenate([body, legend(body.shape[1], [('evidence', 'none', 'most', 'viridis')])])
