"""Samples of all ranks, and of the whole data set."""

from __future__ import annotations

import torch
from mmengine.dist import all_gather
from torch import Tensor


def gather(values: Tensor, dim: int = 0) -> Tensor:
    """What all ranks have, along an axis."""
    return torch.cat(all_gather(values.contiguous()), dim)


def positions_on(device: torch.device, index: Tensor, num_samples: int) -> Tensor:
    """Brings positions in the data set (N, ) to a device; on the CPU they are checked without a wait.

    Raises:
        ValueError: If a position is not below ``num_samples``.
    """
    if (last := int(index.max())) >= num_samples:
        raise ValueError(
            f'num_samples is {num_samples}, and there is a sample at position {last}; set it to the '
            'size of the training data set'
        )
    return index.to(device, non_blocking=True)
