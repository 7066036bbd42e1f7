"""What all explanation maps share: which of them say nothing, and how they are normalised."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmkdx.functional.precision import full_precision
from mmkdx.functional.spatial import resize_map


def degenerate_maps(maps: Tensor, tolerance: float = 1e-6) -> Tensor:
    """Finds maps that say nothing: not finite, zero, or constant.

    Normalising such a map would turn rounding errors into a picture.

    Args:
        maps (Tensor): Maps of shape (N, H, W).
        tolerance (float): A map is constant when its range is at most this share of its largest
            magnitude. Defaults to 1e-6.

    Returns:
        Tensor: Booleans of shape (N, ).
    """
    flat = full_precision(maps).flatten(1)
    low, high = flat.amin(1), flat.amax(1)
    # Written as a negation, so that NaN, which is never larger, counts
    return ~(high - low > tolerance * torch.maximum(high.abs(), low.abs()))


def normalize_maps(maps: Tensor, relu: bool = False) -> Tensor:
    """Scales each map to [0, 1] by its own minimum and maximum.

    Args:
        maps (Tensor): Maps of shape (N, H, W).
        relu (bool): Whether negative evidence is set to 0 before. Defaults to False.

    Returns:
        Tensor: Maps of shape (N, H, W) in [0, 1]; a degenerate map (see ``degenerate_maps``) is all 0.
    """
    maps = full_precision(maps)
    if relu:
        maps = maps.relu()
    flat = maps.flatten(1)
    low, high = flat.amin(1)[:, None, None], flat.amax(1)[:, None, None]
    bad = degenerate_maps(maps)[:, None, None]
    span = torch.where(bad, 1.0, high - low)
    return torch.where(bad, 0.0, (maps - low) / span)


def resize_maps(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resizes maps without channels; see ``resize_map``.

    Args:
        maps (Tensor): Maps of shape (N, H, W).
        size (Sequence[int]): The wanted height and width.

    Returns:
        Tensor: Maps of shape (N, height, width).
    """
    return resize_map(maps[:, None], size)[:, 0]
