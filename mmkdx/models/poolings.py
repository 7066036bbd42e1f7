"""Finds global average poolings, made by modules or by functions."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode

_MEANS = torch.mean, Tensor.mean
#: The layout of pooled features, by their number of dimensions and the pooled dimensions.
_LAYOUTS = {(4, (2, 3)): 'nchw', (4, (1, 2)): 'nhwc', (3, (1,)): 'tokens', (3, (2,)): 'ncl'}

#: A tensor's memory and version; None for any other value.
State = tuple[int, int | None] | None


def state_of(value: Any) -> State:
    """The state of a tensor; two tensors have an equal state if no operation is between them.

    Flattening is a view, and dropout in eval mode is the identity.
    """
    if not isinstance(value, Tensor):
        return None
    return value.untyped_storage()._cdata, None if value.is_inference() else value._version


class Pooling(NamedTuple):
    """A global average pooling: the number of passings before, the states of input and output."""

    order: int
    entering: State
    leaving: State


class GlobalPoolings(TorchFunctionMode):
    """Records the global average poolings of maps (N, C, H, W) in a forward."""

    def __init__(self, passings: Sized) -> None:
        super().__init__()
        self.passings = passings
        self.found: list[Pooling] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        value = args[0] if args else kwargs.get('input')
        entering = state_of(value) if isinstance(value, Tensor) and value.dim() == 4 else None
        output = func(*args, **kwargs)
        if mean_layout(func, args, kwargs, output) == 'nchw':
            self.found.append(Pooling(len(self.passings), entering, state_of(output)))
        return output


def mean_layout(func: Any, args: tuple, kwargs: dict, output: Any) -> str | None:
    """The layout of the input if a call is its mean over all positions, else None."""
    value = args[0] if args else kwargs.get('input')
    if not isinstance(value, Tensor) or not isinstance(output, Tensor):
        return None
    if func in _MEANS:
        dims = args[1] if len(args) > 1 else kwargs.get('dim', kwargs.get('axis'))
        dims = [dims] if isinstance(dims, int) else dims or ()
        dims = tuple(sorted(dim % value.dim() for dim in dims))
    elif func is F.adaptive_avg_pool2d and max(output.shape[2:]) == 1:
        dims = (2, 3)
    elif func is F.adaptive_avg_pool1d and output.shape[2] == 1:
        dims = (2,)
    elif func is F.avg_pool2d:
        kernel = args[1] if len(args) > 1 else kwargs['kernel_size']
        dims = (2, 3) if tuple(_pair(kernel)) == tuple(value.shape[2:]) else ()
    else:
        return None
    return _LAYOUTS.get((value.dim(), dims))
