"""The largest logits, and one number for all others."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def largest_logits(logits: Tensor, k: int) -> dict[str, Tensor]:
    """The k largest of logits (N, K > k); their probabilities at temperature 1 stay exact.

    Returns:
        dict[str, Tensor]: 'values' and 'index' of shape (N, k), and 'rest' of shape (N, 1), the
        logarithm of the other logits' mean exponential.
    """
    values, index = logits.topk(k, dim=1)
    others = logits.scatter(1, index, -math.inf)
    rest = others.logsumexp(1, keepdim=True) - math.log(logits.shape[1] - k)
    small = logits.shape[1] <= torch.iinfo(torch.int16).max
    return dict(values=values, index=index.to(torch.int16 if small else torch.int32), rest=rest)


def all_logits(largest: Mapping[str, Tensor], classes: int) -> Tensor:
    """Restores logits (N, classes) from ``largest_logits``; all but the largest are equal."""
    rest = largest['rest'].expand(-1, classes)
    return rest.scatter(1, largest['index'].long(), largest['values'])
