"""Bringing activations of different layouts to one layout."""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def tokens_to_map(tokens: Tensor) -> Tensor:
    """Lays transformer tokens out on their square grid.

    Class and distillation tokens come first and are left out. At most one of L, L - 1 and L - 2 is a
    square number, so their count (0, 1 or 2) follows from L.

    Args:
        tokens (Tensor): Tokens of shape (N, L, C).

    Returns:
        Tensor: A map of shape (N, C, h, h), h * h <= L.

    Raises:
        ValueError: If no square grid fits.
    """
    length = tokens.shape[1]
    for extra in (0, 1, 2):
        side = math.isqrt(length - extra)
        if side and side * side == length - extra:
            return tokens[:, extra:].transpose(1, 2).unflatten(2, (side, side))
    raise ValueError(
        f'{length} tokens do not fill a square grid with 0, 1 or 2 extra tokens in front'
    )


def resize_map(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resizes maps: average pooling where no side grows, else bilinear (half-pixel centres).

    Bilinear sampling without a low-pass filter skips most positions when it shrinks a map, pooling
    weighs every one.

    Args:
        maps (Tensor): Maps of shape (N, C, H, W).
        size (Sequence[int]): The wanted height and width.

    Returns:
        Tensor: Maps of shape (N, C, height, width).
    """
    size = tuple(size)
    if maps.shape[-2:] == size:
        return maps
    if maps.shape[-2] >= size[0] and maps.shape[-1] >= size[1]:
        return F.adaptive_avg_pool2d(maps, size)
    return F.interpolate(maps, size=size, mode='bilinear', align_corners=False)
