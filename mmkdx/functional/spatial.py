"""Brings activations of different layouts to one layout."""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def tokens_to_map(tokens: Tensor, image: Sequence[int] = (1, 1)) -> Tensor:
    """Lays transformer tokens out on a grid that has exactly the proportions of the images.

    The 0 to 2 class and distillation tokens come first and are left out. Their number is known, as
    at most one number leaves such a grid.

    Args:
        tokens (Tensor): Tokens of shape (N, L, C).
        image (Sequence[int]): Height and width of the images. Defaults to a square.

    Returns:
        Tensor: A map of shape (N, C, h, w), h * w <= L.

    Raises:
        ValueError: If no such grid fits.
    """
    length, divisor = tokens.shape[1], math.gcd(*image)
    unit = [side // divisor for side in image]
    for extra in (0, 1, 2):
        scale = math.isqrt((length - extra) // math.prod(unit)) if length > extra else 0
        grid = [scale * side for side in unit]
        if scale and math.prod(grid) == length - extra:
            return tokens[:, extra:].transpose(1, 2).unflatten(2, grid)
    shape = 'square grid' if unit == [1, 1] else f'grid of {unit[0]} to {unit[1]}, as the images,'
    raise ValueError(f'{length} tokens do not fill a {shape} with 0, 1 or 2 extra tokens in front')


def resize_map(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resizes maps (N, C, H, W) to a height and width.

    If no side grows, it uses average pooling, as bilinear sampling would skip positions. Otherwise
    it is bilinear (half-pixel centres).
    """
    size = tuple(size)
    if maps.shape[-2:] == size:
        return maps
    if maps.shape[-2] >= size[0] and maps.shape[-1] >= size[1]:
        return F.adaptive_avg_pool2d(maps, size)
    return F.interpolate(maps, size=size, mode='bilinear', align_corners=False)
