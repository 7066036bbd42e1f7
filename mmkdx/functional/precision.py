"""Losses are computed in fp32 (or more), whatever the models run in."""

import torch
from torch import Tensor


def full_precision(tensor: Tensor) -> Tensor:
    """Casts half-precision tensors to fp32 and leaves all others as they are.

    Squared differences of class maps are near 1e-8, below the smallest fp16 number, so distances are
    never taken in half precision.

    Args:
        tensor (Tensor): Any tensor.

    Returns:
        Tensor: The tensor in fp32, or unchanged when it is no fp16 or bf16 tensor.
    """
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def no_autocast(tensor: Tensor) -> torch.autocast:
    """A context in which autocast does not turn matrix products back into half precision.

    Args:
        tensor (Tensor): A tensor on the device of the computation.

    Returns:
        torch.autocast: The context manager.
    """
    return torch.autocast(tensor.device.type, enabled=False)
