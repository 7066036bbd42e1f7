"""Similarity of maps: from batches (N, H, W) of one size to values (N, ), in fp32 or more."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkdx.functional.precision import full_precision

#: The side of the window of ``structural_similarity``.
SSIM_WINDOW = 7


def cosine_similarity(first: Tensor, second: Tensor) -> Tensor:
    """The cosine of the angle between maps, in [-1, 1]; NaN where a map is all 0."""
    # torch bounds norms from below, which would affect maps with values near 1e-8
    scaled = (_flat(maps) / _flat(maps).abs().amax(1, keepdim=True) for maps in (first, second))
    return F.cosine_similarity(*scaled, dim=1)


def pearson_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation over the positions of maps that are not constant, in [-1, 1]."""
    centred = (_flat(maps) - _flat(maps).mean(1, keepdim=True) for maps in (first, second))
    return cosine_similarity(*centred)


def average_ranks(values: Tensor) -> Tensor:
    """Ranks from 1 within rows (N, L) that have no NaN; equal values get their mean rank.

    As ``scipy.stats.rankdata``, on any device.
    """
    ordered, order = full_precision(values).sort(1)
    place = torch.arange(1, values.shape[1] + 1, device=values.device).expand_as(order)
    change = ordered[:, 1:] != ordered[:, :-1]
    edge = torch.ones_like(ordered[:, :1], dtype=torch.bool)
    # The first and the last place of each value's run of equal values
    first = place.where(torch.cat([edge, change], 1), 0).cummax(1).values
    last = place.where(torch.cat([change, edge], 1), values.shape[1]).flip(1).cummin(1).values
    ranks = (first + last.flip(1)).to(ordered.dtype) / 2
    return torch.empty_like(ordered).scatter_(1, order, ranks)


def spearman_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's rank correlation of maps that are not constant, with average ranks for ties."""
    return pearson_correlation(average_ranks(_flat(first)), average_ranks(_flat(second)))


def structural_similarity(first: Tensor, second: Tensor) -> Tensor:
    """The structural similarity index (SSIM) of maps in [0, 1].

    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE
    TIP 2004, Eq. 13, in the conventions of scikit-image's defaults with ``data_range=1``: a uniform
    window of 7 × 7, unbiased variances, K1 = 0.01, K2 = 0.03, the mean over all windows that lie in
    the map. It lies in [-1, 1].

    Raises:
        ValueError: If the window is larger than the maps.
    """
    height, width = first.shape[1:]
    if min(height, width) < SSIM_WINDOW:
        raise ValueError(
            f'structural similarity compares windows of {SSIM_WINDOW}x{SSIM_WINDOW} and the maps have '
            f'only {height}x{width} positions'
        )
    x, y = full_precision(first), full_precision(second)
    moments = torch.stack([x, y, x * x, y * y, x * y], 1)
    # Rows, then columns: each takes a seventh of the work of whole windows
    rows = F.avg_pool2d(moments, (1, SSIM_WINDOW), stride=1)
    mx, my, xx, yy, xy = F.avg_pool2d(rows, (SSIM_WINDOW, 1), stride=1).unbind(1)
    unbiased = SSIM_WINDOW**2 / (SSIM_WINDOW**2 - 1)
    vx, vy, cov = (unbiased * m for m in (xx - mx * mx, yy - my * my, xy - mx * my))
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mx * my + c1) / (mx * mx + my * my + c1)
    structure = (2 * cov + c2) / (vx + vy + c2)
    return (luminance * structure).mean((1, 2))


def jensen_shannon_divergence(first: Tensor, second: Tensor) -> Tensor:
    """The Jensen-Shannon divergence of maps as distributions over positions, in nats.

    Source: Lin, "Divergence measures based on the Shannon entropy", IEEE TIT 1991. It is the square of
    SciPy's ``jensenshannon``, in [0, ln 2]; NaN where a map is all 0. Maps must not be negative, and
    need not sum to 1.
    """
    p, q = (_flat(maps) / _flat(maps).sum(1, keepdim=True) for maps in (first, second))
    middle = (p + q) / 2
    # Both terms of a position are added first: their sum is never negative, so nothing cancels
    terms = sum(torch.xlogy(x, torch.where(x == 0, 1, x / middle)) for x in (p, q))
    return terms.sum(1) / 2


def top_iou(first: Tensor, second: Tensor) -> Tensor:
    """The intersection over union of the highest tenths of maps, in [0, 1].

    A map's set is the highest tenth of its positions, rounded up, and all others that tie with the
    lowest of them. Ties broken by position would make unlike maps look alike.
    """
    k = math.ceil(first[0].numel() / 10)
    one, two = (
        flat >= flat.topk(k, dim=1).values[:, -1:] for flat in (_flat(first), _flat(second))
    )
    return (one & two).sum(1) / (one | two).sum(1)


def _flat(maps: Tensor) -> Tensor:
    return full_precision(maps).flatten(1)
