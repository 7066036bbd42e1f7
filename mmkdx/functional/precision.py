"""Losses are computed in fp32 (or more), whatever the models run in."""

import torch
from torch import Tensor


def full_precision(tensor: Tensor) -> Tensor:
    """Casts half-precision tensors to fp32 and leaves all others as they are.

    Squared differences of class maps are near 1e-8, below the smallest fp16 number, so distances are
    never taken in half precision.
    """
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def no_autocast(tensor: Tensor) -> torch.autocast:
    """A context without autocast on a tensor's device, which would take products in half precision."""
    return torch.autocast(tensor.device.type, enabled=False)
