"""The maps of all classes of a GAP + linear classifier, in closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkdx.functional.linearised import Head, LinearisedHead
from mmkdx.functional.precision import full_precision, no_autocast


class ClassMaps:
    """Lazy class activation maps (CAM; Zhou et al., CVPR 2016, Eq. 2).

    If the logits are ``W · GAP(A) + b``, the map of class k is ``sum_c W[k, c] A[c]``. Its mean
    over space is the logit without the bias. The projection acts on channels and pooling acts on
    space, so they commute: pooled maps are projected *after* pooling. Maps of a few classes use
    only their rows of ``W``. Results are computed on demand, without a backward pass. They are
    differentiable in A, W and b, and in fp32 at least, also under autocast.

    Args:
        features (Tensor): A, the input of global average pooling, of shape (N, C, H, W).
        weight (Tensor, optional): W, the weight of the linear classifier, of shape (K, C). Defaults to
            None: ``features`` are the class maps themselves, of shape (N, K, H, W).
        bias (Tensor, optional): b, of shape (K, ). Defaults to None (zero).
        keep (bool): Whether to keep the maps of all classes, so that all losses of a training step
            share them. Defaults to False.
        head (LinearisedHead, optional): Any other head in place of W and b; see ``linearised``.
    """

    def __init__(
        self,
        features: Tensor,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        keep: bool = False,
        head: LinearisedHead | None = None,
    ) -> None:
        self.features, self.weight, self.bias = features, weight, bias
        self.keep, self.head = keep, head
        # The keys are the resolution, and whether the maps have a graph
        self._kept: dict[tuple[int | None, bool], Tensor] = {}

    @classmethod
    def of(cls, maps: ClassMaps | Tensor) -> ClassMaps:
        """Returns class maps as they are; wraps a tensor (N, K, H, W) as finished maps."""
        return cls(maps) if isinstance(maps, Tensor) else maps

    @classmethod
    def linearised(
        cls, features: Tensor, head: Head, norm: str = 'frozen', detach: str = 'none', **kwargs: Any
    ) -> ClassMaps:
        """The class maps of any head after pooling, from its derivatives; see ``LinearisedHead``.

        Args:
            features (Tensor): A, the input of global average pooling, of shape (N, C, H, W).
            head (Callable): The part after pooling: computes logits (n, K) from features (n, C).
            norm (str): See ``LinearisedHead``. Defaults to 'frozen'.
            detach (str): See ``LinearisedHead``. Defaults to 'none'.
            **kwargs: ``pooled`` of ``LinearisedHead``; ``keep`` of this class.
        """
        if features.dim() != 4:
            raise ValueError(f'features have the shape {tuple(features.shape)}, not (N, C, H, W)')
        keep = kwargs.pop('keep', False)
        return cls(features, keep=keep, head=LinearisedHead(head, norm, detach, **kwargs))

    def map(self, function: Callable[[Tensor], Tensor]) -> ClassMaps:
        """Returns class maps with a function applied to each of their tensors."""
        tensors = (map_tensors(function, e) for e in (self.features, self.weight, self.bias))
        return ClassMaps(*tensors, keep=self.keep, head=self.head)

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        if self.head:
            return self.head.num_classes(self.features)
        return self.features.shape[1] if self.weight is None else self.weight.shape[0]

    @property
    def shape(self) -> torch.Size:
        """The shape of ``full()``: (N, K, H, W)."""
        return torch.Size((self.features.shape[0], self.num_classes, *self.features.shape[2:]))

    def full(self) -> Tensor:
        """The maps of all classes at full resolution, of shape (N, K, H, W), without the bias."""
        return self.pooled(None)

    def pooled(self, resolution: int | None) -> Tensor:
        """The maps of all classes, average-pooled to (N, K, resolution, resolution), without the bias.

        The projection then costs resolution² positions per class instead of H · W. None means full
        resolution.
        """
        maps = self._kept.get((resolution, torch.is_grad_enabled()))
        if maps is None:
            maps = full_precision(self.features)
            if self.head:
                maps = self.head.maps(maps, resolution)
            elif resolution is not None:
                maps = F.adaptive_avg_pool2d(maps, resolution)
            if self.weight is not None:
                with no_autocast(maps):
                    maps = torch.einsum('nchw,kc->nkhw', maps, full_precision(self.weight))
            if self.keep:
                self._kept[resolution, torch.is_grad_enabled()] = maps
        return maps

    def classes(self, index: Tensor) -> Tensor:
        """The maps (N, n, H, W), without the bias, of each sample's chosen classes (N, n)."""
        features = full_precision(self.features)
        if self.head:
            return self.head.classes(features, index)
        if self.weight is None:
            return features.gather(1, index[..., None, None].expand(-1, -1, *features.shape[2:]))
        with no_autocast(features):
            return torch.einsum('nchw,nkc->nkhw', features, full_precision(self.weight)[index])

    def logits(self, bias: bool = True) -> Tensor:
        """The logits, of shape (N, K), with or without the classifier's bias."""
        if self.head and bias:
            return self.head.logits(self.features)
        logits = self.pooled(1).flatten(1)
        return logits if self.bias is None or not bias else logits + full_precision(self.bias)

    def remainder(self) -> Tensor | None:
        """The logits minus the means of the maps: the bias (K, ), or (N, K) for any other head."""
        return self.logits() - self.pooled(1).flatten(1) if self.head else self.bias


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Applies a function to each tensor of a tap's value: a tensor, ``ClassMaps``, a list, or None."""
    if isinstance(value, list):
        return [map_tensors(function, each) for each in value]
    if value is None or isinstance(value, Tensor):
        return None if value is None else function(value)
    return value.map(function)


def first_tensor(value: Any) -> Tensor:
    """The first tensor of a tap's value, for its device, precision and batch size."""
    value = value[0] if isinstance(value, list) else value
    return getattr(value, 'features', value)
