"""The precision of losses, and the second derivatives of attention."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


def full_precision(tensor: Tensor) -> Tensor:
    """Casts half-precision tensors to fp32 and leaves all others as they are.

    Squared differences of class maps are near 1e-8, below the smallest fp16 number, so distances are
    never taken in half precision.
    """
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def no_autocast(tensor: Tensor) -> torch.autocast:
    """A context without autocast, and so without half precision, on a tensor's device."""
    return torch.autocast(tensor.device.type, enabled=False)


def math_kernel(needed: bool = True) -> AbstractContextManager:
    """A context in which attention has second derivatives, if needed; fused kernels have none."""
    return sdpa_kernel(SDPBackend.MATH) if needed else nullcontext()
