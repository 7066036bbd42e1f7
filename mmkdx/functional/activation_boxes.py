"""The region in which a map is high, as prototype networks crop it."""

from __future__ import annotations

import torch
from torch import Tensor

from mmkdx.functional.precision import full_precision


def high_activation_boxes(maps: Tensor, percentile: float = 95.0) -> Tensor:
    """The tightest box around all pixels that reach a percentile of their map.

    Each map has one box, also if the pixels lie apart. The box of a constant map is the whole map.
    Source: Chen et al., "This Looks Like That", NeurIPS 2019, as in the authors' public code. That
    code first enlarges maps to the image by cubic interpolation.

    Args:
        maps (Tensor): Maps of shape (N, H, W).
        percentile (float): The percentile of a map's pixels, in [0, 100]. Defaults to 95.

    Returns:
        Tensor: Integers of shape (N, 4): x0, y0, x1, y1; x1 and y1 are exclusive.
    """
    maps = full_precision(maps)
    threshold = torch.quantile(maps.flatten(1), percentile / 100, dim=1)
    high = maps >= threshold[:, None, None]
    boxes = []
    for axis in (1, 2):  # columns, then rows
        line = high.any(axis).int()
        boxes.append((line.argmax(1), line.shape[1] - line.flip(1).argmax(1)))
    (x0, x1), (y0, y1) = boxes
    return torch.stack([x0, y0, x1, y1], 1)
