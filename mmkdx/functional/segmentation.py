"""Compares maps with regions of images, in batches and in fp32 or more."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkdx.functional.precision import full_precision


def dilate(regions: Tensor, radius: float) -> Tensor:
    """Adds to regions, booleans (N, H, W), all positions nearer than a radius in pixels."""
    reach = math.ceil(radius) - 1
    if reach < 1:
        return regions
    offset = torch.arange(-reach, reach + 1, device=regions.device)
    disc = offset[:, None] ** 2 + offset**2 < radius**2
    counts = F.conv2d(regions[:, None].float(), disc[None, None].float(), padding=reach)
    # Counts are whole numbers, up to the errors of fast convolutions
    return counts[:, 0] > 0.5


def rank_accuracy(maps: Tensor, regions: Tensor, kept: Tensor) -> Tensor:
    """The share of the k highest positions that lie in a region of k positions.

    Source: Arras et al., "CLEVR-XAI: A benchmark dataset for the ground truth evaluation of neural
    network explanations", Information Fusion 2022. If positions tie for the last places, it is the
    mean over all ways to choose among them.

    Args:
        maps (Tensor): Maps of shape (N, H, W).
        regions (Tensor): Booleans of the same shape, true only where ``kept`` is.
        kept (Tensor): Booleans of the same shape; all other positions are ignored.

    Returns:
        Tensor: Values of shape (N, ) in [0, 1]; NaN where the region is empty.
    """
    values = full_precision(maps).masked_fill(~kept, -math.inf).flatten(1)
    inside = regions.flatten(1)
    size = inside.sum(1, keepdim=True)
    ordered = values.sort(1, descending=True).values
    level = ordered.gather(1, (size - 1).clamp(min=0))
    above, tied = values > level, values == level
    places = size - above.sum(1, keepdim=True)
    share = (tied & inside).sum(1, keepdim=True) / tied.sum(1, keepdim=True)
    return (((above & inside).sum(1, keepdim=True) + places * share) / size)[:, 0]


def average_precision(scores: Tensor, labels: Tensor, kept: Tensor) -> Tensor:
    """The average precision of each row, as scikit-learn's ``average_precision_score``.

    It is the sum of (R_n - R_(n-1)) · P_n over the distinct scores, highest first, with precision P and
    recall R, without interpolation.

    Args:
        scores (Tensor): Scores of shape (N, L).
        labels (Tensor): Booleans of the same shape, true only where ``kept`` is.
        kept (Tensor): Booleans of the same shape; all other elements are ignored.

    Returns:
        Tensor: Values of shape (N, ) in [0, 1]; NaN where no label is true.
    """
    ordered, order = full_precision(scores).sort(1, descending=True)
    labels = labels.gather(1, order)
    hits, seen = labels.cumsum(1), kept.gather(1, order).cumsum(1)
    # Equal scores share one threshold, so each has the precision after the last of them
    place = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    change = ordered[:, 1:] != ordered[:, :-1]
    last = torch.cat([change, torch.ones_like(ordered[:, :1], dtype=torch.bool)], 1)
    last = place.where(last, scores.shape[1]).flip(1).cummin(1).values.flip(1)
    precision = hits.gather(1, last).to(ordered.dtype) / seen.gather(1, last)
    return (precision * labels).nansum(1) / hits[:, -1]
