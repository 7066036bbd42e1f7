"""The Jacobian of a classifier's head, and class maps from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import jvp, vjp, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from mmkdx.arguments import one_of
from mmkdx.functional.norms import WrittenNorms
from mmkdx.functional.precision import full_precision, no_autocast

#: Computes logits (n, K) from pooled features (n, C), or from (n, C, H, W) if the head pools
#: itself.
Head = Callable[[Tensor], Tensor]


def head_jacobian(
    head: Head, pooled: Tensor, index: Tensor | None = None, norm: str = 'frozen'
) -> Tensor:
    """The derivatives of the logits with respect to the head's input, for each image.

    Args:
        head (Callable): The head. The logits of an image must depend on this image alone. Dropout
            is skipped.
        pooled (Tensor): The head's input (N, C), or (N, C, H, W) if the head pools itself.
        index (Tensor, optional): The classes, of shape (N, n). Defaults to None (all K).
        norm (str): 'frozen' treats the divisors of layer norm, group norm, RMS norm and vector
            norms as constants; 'full' differentiates them. Defaults to 'frozen'.

    Returns:
        Tensor: Of shape (N, n, C), or (N, n, C, H, W). It can be differentiated again.

    Raises:
        ValueError: If ``pooled`` is not finite, a class does not exist, or a batch norm is in training.
    """
    one_of('norm', norm, ('frozen', 'full'))
    check_head(head)
    if not pooled.isfinite().all():
        raise ValueError('the pooled features are not finite, so the head has no derivative there')
    classes = head_logits(head, pooled[:1].detach()).shape[1]
    if index is None:
        index = torch.arange(classes, device=pooled.device).expand(len(pooled), -1)
    elif bool(((index < 0) | (index >= classes)).any()):
        raise ValueError(f'index holds classes outside 0 to {classes - 1}')
    return pullback(head, pooled, F.one_hot(index, classes).to(pooled.dtype), norm)


def pullback(
    head: Head, points: Tensor, weights: Tensor, norm: str = 'frozen', detach: bool = False
) -> Tensor:
    """The derivatives (N, n, C) of n weighted sums of logits, for weights (N, n, K)."""

    def one(point: Tensor, weights: Tensor) -> Tensor:
        _, back = vjp(_at(head, point, norm, detach), point)
        return vmap(lambda each: back(each)[0])(weights)

    return vmap(one)(points, weights)


def directional(
    head: Head, points: Tensor, directions: Tensor, norm: str = 'frozen', detach: bool = False
) -> Tensor:
    """The derivatives (N, P, K) of all logits at points (N, C) in directions (N, P, C)."""

    def one(point: Tensor, directions: Tensor) -> Tensor:
        function = _at(head, point, norm, detach)
        return vmap(lambda each: jvp(function, (point,), (each,))[1])(directions)

    return vmap(one)(points, directions)


def head_logits(head: Head, points: Tensor) -> Tensor:
    """The logits (N, K) of points (N, C), without dropout."""
    return vmap(lambda point: _run(head, point, WrittenNorms()))(points)


def degenerate_points(head: Head, points: Tensor) -> Tensor:
    """Whether a norm of the head divides by (almost) only its eps, of shape (N, ).

    This happens for a zero vector, or for a constant one before a layer norm. The maps are then far
    too large.
    """

    def one(point: Tensor) -> Tensor:
        norms = WrittenNorms()
        _run(head, point, norms)
        flags = [each.any() for each in norms.degenerate]
        return torch.stack(flags).any() if flags else point.new_zeros((), dtype=torch.bool)

    return vmap(one)(points)


class HeadKind(NamedTuple):
    """A head's form ('affine', 'piecewise linear', 'neither'), and whether it ignores the scale."""

    form: str
    scale_free: bool


@torch.no_grad()
def head_kind(head: Head, points: Tensor, norm: str = 'frozen') -> HeadKind:
    """Tests on a few values what kind of function a head is.

    Args:
        head (Callable): See ``head_jacobian``.
        points (Tensor): The head's input for some images, of shape (N, C).
        norm (str): 'frozen' treats the divisors of norms at each point as constants. Defaults to
            'frozen'.
    """
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(points.shape, generator=random).to(points)
    steps = points.abs().amax() * noise - 2 * points
    here = head_logits(head, points)
    doubled, other = (head_logits(head, each) - here for each in (2 * points, points + steps))
    scale_free = bool(doubled.abs().amax() <= 1e-3 * other.abs().amax())
    # An untrained network may have features that are far too small for its activations
    unit = steps / steps.abs().amax().clamp_min(torch.finfo(steps.dtype).tiny)
    forms = [_form(head, points, each, norm) for each in (steps, 3 * unit, 100 * unit)]
    return HeadKind(max(forms, key=_FORMS.index), scale_free)


_FORMS = ['affine', 'piecewise linear', 'neither']


def _form(head: Head, points: Tensor, steps: Tensor, norm: str) -> str:
    """The form of the head between ``points`` and ``points + steps``."""

    def one(point: Tensor, step: Tensor) -> tuple[Tensor, ...]:
        function = _at(head, point, norm, False)

        def slope(at: Tensor) -> Tensor:
            return jvp(function, (at,), (step,))[1]

        start, end = point + step / 2, point + step
        first, second = jvp(slope, (start,), (step,))
        return function(point), function(end), slope(point), first, second

    here, there, begin, first, second = vmap(one)(points, steps)
    size = begin.abs().amax() + first.abs().amax() + here.abs().amax()
    if second.abs().amax() > 1e-4 * size:
        return 'neither'
    return 'affine' if (there - here - begin).abs().amax() <= 1e-4 * size else 'piecewise linear'


def check_head(head: Head) -> None:
    """Refuses a head with a batch norm in training mode, where images depend on each other."""
    modules = head.modules() if isinstance(head, nn.Module) else ()
    if any(isinstance(each, _BatchNorm) and each.training for each in modules):
        raise ValueError(
            'the head has a batch norm in training mode, which mixes the images, so that no image has '
            'class maps of its own; call head.eval()'
        )


class LinearisedHead:
    """Class maps from the derivatives J of any head: ``sum_c J[k, c] A[c]``.

    The logits ``f(p)`` are the mean of the maps over space plus the remainder ``r = f(p) - J · p``.
    If the head pools itself (flattened, GeM, max), J depends on the position. Then the maps are
    multiplied by H · W, so that this holds, too.

    Maps take one derivative for each position (forward mode) or for each requested class (reverse
    mode), whichever are fewer.

    Args:
        head (Callable): See ``head_jacobian``.
        norm (str): See ``head_jacobian``.
        detach (str): What a loss of the maps does not train. 'none': nothing is detached.
            'jacobian': J, with respect to the head and its input. 'features': A as a factor.
            Defaults to 'none'.
        pooled (bool): Whether the head takes the mean of A over space, else A. Defaults to True.

    Raises:
        ValueError: If an argument has no such value, or a batch norm of the head is in training
            mode.
    """

    def __init__(
        self, head: Head, norm: str = 'frozen', detach: str = 'none', pooled: bool = True
    ) -> None:
        check_head(head)
        self.head, self.mean_pooled = head, pooled
        self.norm = one_of('norm', norm, ('frozen', 'full'))
        one_of('detach', detach, ('none', 'jacobian', 'features'))
        #: Whether a loss trains J, and A as its factor.
        self._trains = dict(none=(True, True), jacobian=(False, True), features=(True, False))[
            detach
        ]

    def num_classes(self, features: Tensor) -> int:
        """K, the number of classes."""
        known = getattr(self.head, 'num_classes', None)
        return known or self.logits(features[:1].detach()).shape[1]

    def logits(self, features: Tensor) -> Tensor:
        """The logits (N, K) of features A (N, C, H, W)."""
        with no_autocast(features):
            return head_logits(self.head, self._points(features))

    def maps(self, features: Tensor, resolution: int | None = None) -> Tensor:
        """The maps of all classes (N, K, H, W), or average-pooled to (N, K, resolution, resolution).

        Raises:
            ValueError: If the resolution is 1 and all maps would be zero (``norm='full'``).
        """
        size = features.shape[2:] if resolution is None else (resolution, resolution)
        classes = self.num_classes(features)
        if resolution == 1 and self.norm == 'full':
            self._check_scale(features)
        if classes < math.prod(size):
            weights = torch.eye(classes, device=features.device).expand(len(features), -1, -1)
            maps = self.weighted(features, weights)
            return maps if resolution is None else F.adaptive_avg_pool2d(maps, resolution)
        with no_autocast(features):
            point, values = self._both(features)
            if self.mean_pooled:
                values = values if resolution is None else F.adaptive_avg_pool2d(values, resolution)
                directions = values.flatten(2).mT
            else:
                cells = _cells(values, resolution)
                directions = values[:, None] * cells[None, :, None]
            slopes = directional(self.head, point, directions, self.norm, not self._trains[0])
        return slopes.mT.unflatten(2, size)

    def weighted(self, features: Tensor, weights: Tensor) -> Tensor:
        """The maps (N, n, H, W) of n weighted sums of logits, for weights (N, n, K)."""
        with no_autocast(features):
            point, values = self._both(features)
            rows = pullback(self.head, point, weights.to(point), self.norm, not self._trains[0])
            if self.mean_pooled:
                return torch.einsum('nchw,nkc->nkhw', values, rows)
            return (rows * values[:, None]).sum(2) * values[0, 0].numel()

    def classes(self, features: Tensor, index: Tensor) -> Tensor:
        """The maps (N, n, H, W) of each sample's chosen classes (N, n)."""
        classes = self.num_classes(features)
        if index.shape[1] < features[0, 0].numel():
            return self.weighted(features, F.one_hot(index, classes))
        index = index[..., None, None].expand(-1, -1, *features.shape[2:])
        return self.maps(features).gather(1, index)

    def degenerate(self, features: Tensor) -> Tensor:
        """Whether a norm divides by (almost) nothing, of shape (N, ); see ``degenerate_points``."""
        with no_autocast(features):
            return degenerate_points(self.head, self._points(features))

    def kind(self, features: Tensor) -> HeadKind:
        """What kind of function the head is near some features (N, C, H, W); see ``head_kind``."""
        return head_kind(self.head, self._points(features.detach()), self.norm)

    def _points(self, features: Tensor) -> Tensor:
        features = full_precision(features)
        return features.mean((2, 3)) if self.mean_pooled else features

    def _both(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The head's input, and A as the factor of J."""
        point, values = self._points(features), full_precision(features)
        parts = zip((point, values), self._trains)
        return tuple(each if trained else each.detach() for each, trained in parts)

    def _check_scale(self, features: Tensor) -> None:
        if head_kind(self.head, self._points(features.detach()), 'full').scale_free:
            raise ValueError(
                "the head ignores the scale of its input (layer norm or cosine), so with norm='full' "
                "the mean of each class map is zero whatever the logit is; use norm='frozen'"
            )


def _run(head: Head, point: Tensor, norms: WrittenNorms) -> Tensor:
    with norms:
        return head(point.clone()[None])[0]  # a head may overwrite its input


def _at(head: Head, point: Tensor, norm: str, detach: bool) -> Head:
    """The head as a function of one image's input (C, ); frozen norms have the point's divisors."""
    kept = None
    if norm == 'frozen':
        norms = WrittenNorms(detach=detach)
        _run(head, point, norms)
        kept = norms.divisors
    return lambda value: _run(head, value, WrittenNorms(kept, detach))


def _cells(features: Tensor, resolution: int | None) -> Tensor:
    """The share of each position in each cell of pooled maps, times H · W, of shape (P, H, W)."""
    size = features.shape[2:]
    positions = math.prod(size)
    each = torch.eye(positions, dtype=features.dtype, device=features.device).unflatten(1, size)
    if resolution is None:
        return each * positions
    shares = F.adaptive_avg_pool2d(each[:, None], resolution).flatten(1)  # (H · W, P)
    return shares.T.unflatten(1, size) * positions
