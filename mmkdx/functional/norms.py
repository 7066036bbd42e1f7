"""Norms as elementary operations, so that their divisors can be kept and differentiated."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only


class WrittenNorms(TorchFunctionMode):
    """Computes norms by elementary operations, records or reuses divisors, and skips dropout.

    torch's own layer norm has a wrong gradient if reverse mode follows forward mode.

    Args:
        kept (Iterable[Tensor], optional): The divisors to reuse, in the order of the calls.
            Defaults to None (computed from the values).
        detach (bool): Whether parameters are treated as constants. Defaults to False.
    """

    def __init__(self, kept: Iterable[Tensor] | None = None, detach: bool = False) -> None:
        super().__init__()
        self.divisors: list[Tensor] = []
        self.degenerate: list[Tensor] = []
        self._kept = None if kept is None else iter(kept)
        self._detach = detach

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._detach:
            args, kwargs = tree_map_only(nn.Parameter, Tensor.detach, (args, kwargs))
        if func in _DROPOUTS:
            return args[0] if args else kwargs['input']
        if func in _DIVISORS:
            return self.divisor(func(*args, **kwargs), 0.0)
        if func in _WRITTEN_OUT:
            return _WRITTEN_OUT[func](self.divisor, *args, **kwargs)
        return func(*args, **kwargs)

    def divisor(self, value: Tensor, least: float) -> Tensor:
        """Records a divisor, or returns the kept one; ``least`` is its smallest possible value."""
        if self._kept is not None:
            return next(self._kept)
        self.divisors.append(value)
        self.degenerate.append(value <= least * 1.001)
        return value


def _layer_norm(
    divisor: Callable,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    dims = tuple(range(-len(normalized_shape), 0))
    centred = input - input.mean(dims, keepdim=True)
    size = (centred.square().mean(dims, keepdim=True) + eps).sqrt()
    return _affine(centred / divisor(size, eps**0.5), weight, bias)


def _group_norm(
    divisor: Callable,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    groups = input.reshape(len(input), num_groups, -1)
    groups = _layer_norm(divisor, groups, groups.shape[2:], eps=eps)
    shape = (-1, *[1] * (input.dim() - 2))
    weight, bias = (None if each is None else each.reshape(shape) for each in (weight, bias))
    return _affine(groups.reshape(input.shape), weight, bias)


def _rms_norm(
    divisor: Callable,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    dims = tuple(range(-len(normalized_shape), 0))
    size = (input.square().mean(dims, keepdim=True) + eps).sqrt()
    return _affine(input / divisor(size, eps**0.5), weight, None)


def _normalize(
    divisor: Callable,
    input: Tensor,
    p: float = 2.0,
    dim: int = 1,
    eps: float = 1e-12,
    out: Any = None,
) -> Tensor:
    size = torch.linalg.vector_norm(input, p, dim, keepdim=True).clamp_min(eps)
    return input / divisor(size, eps)


def _cosine_similarity(
    divisor: Callable, x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8
) -> Tensor:
    unit = [_normalize(divisor, each, dim=dim, eps=eps) for each in (x1, x2)]
    return (unit[0] * unit[1]).sum(dim)


def _affine(value: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    value = value if weight is None else value * weight
    return value if bias is None else value + bias


_WRITTEN_OUT = {
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    torch.group_norm: _group_norm,
    F.rms_norm: _rms_norm,
    torch.rms_norm: _rms_norm,
    F.normalize: _normalize,
    F.cosine_similarity: _cosine_similarity,
}
#: Roots are included, as norms that a model computes on its own divide by them.
_DIVISORS = {
    *(torch.norm, Tensor.norm, torch.linalg.norm, torch.linalg.vector_norm),
    *(torch.sqrt, Tensor.sqrt, torch.rsqrt, Tensor.rsqrt, torch.std, Tensor.std),
}
_DROPOUTS = {F.dropout, F.dropout1d, F.dropout2d, F.alpha_dropout, torch.dropout}
