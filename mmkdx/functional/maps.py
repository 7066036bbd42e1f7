"""Normalises and resizes explanation maps, and finds maps without information."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmkdx.functional.precision import full_precision
from mmkdx.functional.spatial import resize_map


def degenerate_maps(maps: Tensor, tolerance: float = 1e-6) -> Tensor:
    """Finds maps (N, H, W) that are not finite, zero or constant; booleans of shape (N, ).

    A map is constant when its range is at most ``tolerance`` times its largest magnitude. Normalising
    it would turn rounding errors into a picture.
    """
    flat = full_precision(maps).flatten(1)
    low, high = flat.amin(1), flat.amax(1)
    # Written as a negation, so that NaN counts: no comparison with NaN is true
    return ~(high - low > tolerance * torch.maximum(high.abs(), low.abs()))


def normalize_maps(maps: Tensor, relu: bool = False) -> Tensor:
    """Scales each map (N, H, W) to [0, 1] by its own minimum and maximum.

    With ``relu``, negative values are set to 0 first. A degenerate map (see ``degenerate_maps``)
    becomes all 0.
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
    """Resizes maps (N, H, W) to a height and width; see ``resize_map``."""
    return resize_map(maps[:, None], size)[:, 0]
