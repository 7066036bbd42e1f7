"""Ranks pixels by an explanation, and replaces pixels of images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from mmkdx.functional.maps import degenerate_maps, resize_maps
from mmkdx.functional.precision import full_precision, no_autocast


def pixel_ranks(maps: Tensor) -> Tensor:
    """Ranks the pixels of each map (N, H, W) from 0, the most relevant, to H * W - 1.

    Pixels of equal value keep their reading order (row by row), so that ranks are the same on every
    device and in every batch.
    """
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    # The inverse of a permutation is its own argsort
    return order.argsort(dim=1).view_as(maps)


def cell_numbers(size: Sequence[int], grid: int, owner: str) -> Tensor:
    """The number of the cell that each pixel belongs to, of shape (H, W), counted row by row from 0.

    The pixel in row r belongs to row r · grid // H of the cells, and likewise for columns. So every
    pixel belongs to a cell, and cells differ by one pixel at most in height and width.

    Args:
        size (Sequence[int]): H and W.
        grid (int): The number of cells in each direction.
        owner (str): The name of ``grid`` in error messages.

    Raises:
        ValueError: If there are fewer pixels than cells in a direction.
    """
    if grid > min(size):
        raise ValueError(
            f'{owner} is {grid} and the image has {size[0]}x{size[1]} pixels; it must be at most the '
            'shorter side'
        )
    rows, columns = (torch.arange(length) * grid // length for length in size)
    return rows[:, None] * grid + columns


def keep_relevant(images: Tensor, maps: Tensor, share: float) -> Tensor:
    """Keeps the most relevant pixels of images and fills the others from their neighbours.

    An image whose map has no positive evidence is left as it is.

    Source: Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution Methods", ICML
    2022, without its noise. Ranks break ties between pixels, so that exactly the share is kept.

    Args:
        images (Tensor): Images of shape (N, C, H, W).
        maps (Tensor): Raw maps of shape (N, h, w), which are resized to the images.
        share (float): The share of pixels that is kept, above 0 and up to 1.

    Returns:
        Tensor: Images of shape (N, C, H, W).
    """
    maps = resize_maps(maps, images.shape[2:])
    kept = max(1, round(share * maps[0].numel()))
    missing = (pixel_ranks(maps) >= kept) & ~degenerate_maps(maps.relu())[:, None, None]
    # Mean errors are then a fiftieth of the noise that the source adds
    return linear_imputation(images, missing, tolerance=1e-4)


def blur(images: Tensor) -> Tensor:
    """Blurs normalised images (N, C, H, W) as RISE does: 11 × 11 kernel, sigma 5, zero padding.

    Source: Petsiuk et al., "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC
    2018. The kernel of github.com/eclique/RISE is scipy's filter of an impulse in the middle of
    11 × 11 pixels. Its tails are reflected at the border, so it is flatter than a truncated
    Gaussian.
    """
    row = images.new_tensor(_rise_kernel())
    kernel = (row * row[:, None]).expand(images.shape[1], 1, -1, -1)
    with no_autocast(images):
        return F.conv2d(images, kernel, padding=len(row) // 2, groups=images.shape[1])


@cache
def _rise_kernel() -> tuple[float, ...]:
    return tuple(gaussian_filter1d(np.eye(11)[5], 5.0).tolist())


def linear_imputation(
    images: Tensor, missing: Tensor, tolerance: float = 1e-5, max_iterations: int = 2000
) -> Tensor:
    """Fills missing pixels so that each is the weighted mean of its neighbours.

    The four direct neighbours have weight 1/6 each, and the four diagonal ones 1/12. At the border
    of the image the remaining weights are scaled to sum to 1. Conjugate gradients solve these
    equations for all images and channels at once; each channel stops on its own.

    Source: Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution Methods", ICML
    2022 (noisy linear imputation, here without the noise).

    Args:
        images (Tensor): Images of shape (N, C, H, W).
        missing (Tensor): Which pixels are missing, booleans of shape (N, H, W).
        tolerance (float): The share of the initial residual norm at which a channel is done. At the
            start the missing pixels are the mean of the others. Defaults to 1e-5.
        max_iterations (int): The maximum number of iterations. Defaults to 2000.

    Returns:
        Tensor: Images of the same shape; pixels that are not missing are unchanged.

    Raises:
        ValueError: If all pixels of an image are missing.
    """
    if missing.flatten(1).all(1).any():
        raise ValueError(
            'all pixels of an image are missing, so that there is nothing to fill them from'
        )
    given = images
    images, hole = full_precision(images), missing[:, None]
    inside = hole.to(images)
    weights = _smooth(images.new_ones(1, 1, *images.shape[2:]))

    def total(values: Tensor) -> Tensor:
        return values.sum((2, 3), keepdim=True)

    mean = total(images * (1 - inside)) / total(1 - inside)
    filled = torch.where(hole, mean, images)
    residual = inside * (_smooth(filled) - weights * filled)
    conditioned = residual / weights
    direction = conditioned
    energy = total(residual * conditioned)
    limit = tolerance**2 * energy
    for iteration in range(max_iterations):
        active = energy > limit
        # This check waits for the device, so it is not made in each iteration
        if iteration % 16 == 0 and not active.any():
            break
        change = inside * (weights * direction - _smooth(direction))
        step = torch.where(active, energy / total(direction * change), 0.0)
        filled = filled + step * direction
        residual = residual - step * change
        conditioned = residual / weights
        last, energy = energy, total(residual * conditioned)
        direction = conditioned + torch.where(active, energy / last, 0.0) * direction
    return filled.to(given)


def _smooth(images: Tensor) -> Tensor:
    """The sum of 3 × 3 pixels with weights 1 2 1, 2 4 2, 1 2 1 (times 1/16) and zero padding.

    These are the neighbours' weights up to a factor that all equations share. The pixel itself is
    on both sides of its equation. A convolution would do the same, but some devices round its
    factors (TF32), and then conjugate gradients do not converge.
    """
    return F.avg_pool2d(F.avg_pool2d(F.pad(images, (1, 1, 1, 1)), 2, 1), 2, 1)


def sample_generators(
    index: Sequence[int], seed: int, device: torch.device
) -> list[torch.Generator]:
    """One generator for each position of the data set, independent of any global state."""
    return [torch.Generator(device).manual_seed(seed + int(i)) for i in index]
