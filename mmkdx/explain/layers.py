"""Finds the layer of a model that a map is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from mmkdx.explain.layouts import Layout, extra_tokens, patch_grids
from mmkdx.explain.targets import Scores
from mmkdx.functional import no_autocast
from mmkdx.models.families import describe, forward_tensor
from mmkdx.models.flow import Flow
from mmkdx.models.head_trace import linear_head
from mmkdx.models.intercept import Tap, evaluating, intercept
from mmkdx.models.taps import TapSet

#: Modules that 'auto' does not take: parts of an attention, and projections within a block.
_NOT_CHOSEN = (nn.Linear, nn.Softmax, _DropoutNd)


@dataclass(frozen=True)
class Layer:
    """A layer to make maps of.

    Args:
        name (str): Its name for the user.
        tap (Tap): Where it is.
        layout (Layout): The arrangement of its activations in space.
        classifier (str, optional): The path of the linear layer that alone follows, after global
            average pooling; None for any other head.
    """

    name: str
    tap: Tap
    layout: Layout
    classifier: str | None = None


def find_layers(
    model: nn.Module, inputs: Tensor, names: Sequence[str], scores: Scores | None = None
) -> list[Layer]:
    """Finds layers by name; for the name 'auto', the last layer that a map can be made of.

    'auto' takes the last spatial layer whose gradient is non-zero at most positions, for one image. In
    a CNN this is the input of global average pooling. In a transformer that classifies by its class
    token it is the input of the last attention, since the other tokens have no influence after it.

    Args:
        model (nn.Module): The classifier.
        inputs (Tensor): Images of shape (N, 3, H, W).
        names (Sequence[str]): Names or paths as those of taps, or 'auto'.
        scores (Scores, optional): A function's scores, which need all images. Defaults to None (the
            logits).

    Raises:
        ValueError: If a layer does not exist, is not spatial or does not move the score, or
            'auto' finds none; the message names near or possible layers.
    """
    given = TapSet({name: 'layer' for name in names if name != 'auto'}, 'model')
    pooling = linear = None
    # With one image this takes less time than with fake tensors
    with no_autocast(inputs), evaluating(model), torch.no_grad():
        images = inputs[:1].clone()
        if scores is None or 'auto' in names:
            with suppress(Exception):  # `given` reports what is wrong with the images
                flow = Flow(describe(model), images)
                linear = linear_head(flow)
                pooling = flow.features if linear else None
        if given.names or pooling is None:
            given.resolve(model, images)
    taps = {*given.taps.values(), *([pooling] if pooling else [])}
    passings = _trace(model, inputs if scores else inputs[:1], taps, scores)
    if scores is None and not any(each.share for each in passings):
        zeros = _zero_layers(model)
        if zeros:
            passings = _trace(model, inputs[:1], taps, partial(_entering, model, zeros))
    pooled = next((each.state for each in reversed(passings) if each.tap == pooling), None)
    layers = []
    for name in names:
        if name == 'auto':
            chosen = _last_moving(passings)
        else:
            tap = given.taps[name]
            chosen = next((each for each in reversed(passings) if each.tap == tap), None)
            if chosen is None:
                raise ValueError(
                    f'layer {tap} does not move the score: no gradient flows through it'
                )
        if chosen.layout is None:
            raise ValueError(
                f'layer {name!r} is not spatial: its activations have the shape '
                f'{tuple(chosen.value.shape)} for an image of {tuple(inputs.shape[2:])} pixels; '
                f'possible layers are {_names(passings)}'
            )
        if not chosen.share:
            raise ValueError(
                f"layer {name!r} does not move the score: its activations' gradient is zero at all "
                'positions, as after the last attention of a transformer that classifies by its class '
                f'token; possible layers are {_names(passings)}'
            )
        classifier = linear if scores is None and chosen.state == pooled else None
        layers.append(Layer(str(chosen.tap), chosen.tap, chosen.layout, classifier))
    return layers


def find_stages(model: nn.Module, inputs: Tensor) -> list[Layer]:
    """Finds the last layer at each map size, such as the ends of a CNN's stages, in forward order.

    Args:
        model (nn.Module): The classifier.
        inputs (Tensor): Images of shape (N, 3, H, W).

    Raises:
        ValueError: If no spatial layer moves the score.
    """
    passings = _trace(model, inputs[:1], set())
    _last_moving(passings)
    image = (*inputs.shape[2:], inputs.shape[1])
    # Any share of positions that move the score is enough, as a narrow network may have dead units.
    # Left out are windows of an image, and what has its size and channels: the image itself.
    candidates = [
        each
        for each in _possible(passings, 0.0)
        if len(each.value) == 1
        and (*each.layout.size, each.layout.to_map(each.value).shape[1]) != image
    ]
    sizes = {each.tap.path: each.layout.size for each in passings if each.layout is not None}

    def depth(each: _Passing) -> int:
        """In how many modules it is whose outputs have another size."""
        parts = each.tap.path.split('.')
        parents = ('.'.join(parts[:n]) for n in range(1, len(parts)))
        return sum(sizes.get(parent, each.layout.size) != each.layout.size for parent in parents)

    ends: dict[tuple[int, int], _Passing] = {}
    for size in dict.fromkeys(each.layout.size for each in candidates):
        same = [each for each in candidates if each.layout.size == size]
        # The first layers of the next stage still have this one's size. A stage of Swin contains the
        # step to the next size, so that its blocks are within one such module.
        least = min(map(depth, same))
        ends[size] = [each for each in same if depth(each) <= least + 1][-1]
    return [Layer(str(each.tap), each.tap, each.layout) for each in ends.values()]


@dataclass
class _Passing:
    """The value at a tap in a forward pass."""

    tap: Tap
    value: Tensor
    #: Which memory in which state it was: equal for two taps with nothing in between
    state: tuple[int, int, torch.Size]
    layout: Layout | None
    #: Whether 'auto' may choose it
    eligible: bool
    #: The share of positions that move the score
    share: float = 0.0


def _zero_layers(model: nn.Module) -> list[Tap]:
    """Finds the inputs of linear layers of zeros, such as untrained classifiers."""
    layers = [(path, each) for path, each in model.named_modules() if isinstance(each, nn.Linear)]
    return [Tap(path, side='in') for path, each in layers if not each.weight.any()]


def _entering(model: nn.Module, taps: Sequence[Tap], images: Tensor) -> Tensor:
    """Returns a score (1, 1) that depends on the values at taps."""
    kept: list[Tensor] = []
    with intercept(model, dict.fromkeys(taps, kept.append)):
        forward_tensor(model, images.clone())
    # Unequal factors, because the plain sum behind a layer norm is constant
    return sum((each * torch.linspace(-1, 1, each.shape[-1]).to(each)).sum() for each in kept)[
        None, None
    ]


def _trace(
    model: nn.Module,
    images: Tensor,
    taps: set[Tap],
    scores: Callable[[Tensor], Tensor] | None = None,
) -> list[_Passing]:
    """Records the values at all modules and some taps for one image, in call order."""
    extra, grids = extra_tokens(model), patch_grids(model, images)
    norms = (module for module in model.modules() if isinstance(module, nn.LayerNorm))
    widths = {norm.normalized_shape[-1] for norm in norms}
    passings: list[_Passing] = []

    def record(tap: Tap, value: Any) -> None:
        if isinstance(value, Tensor) and value.requires_grad:
            last = _channels_last(value, widths)
            # Windows of an image, or the boxes of a detector, are no maps of the images
            kinds = (extra, None) if value.shape[:1] == images.shape[:1] else ()
            layouts = (Layout.of(value.shape, size, n, last, grids) for n in kinds)
            state = (value.untyped_storage()._cdata, value._version, value.shape)
            eligible = not isinstance(model.get_submodule(tap.path), _NOT_CHOSEN)
            passings.append(
                _Passing(tap, value, state, next(filter(None, layouts), None), eligible)
            )

    size = images.shape[2:]
    modules = {Tap(path) for path, _ in model.named_modules() if path}
    recorders = {tap: partial(record, tap) for tap in modules | taps}
    with evaluating(model), no_autocast(images), torch.enable_grad():
        images = images.detach().clone().requires_grad_()
        with intercept(model, recorders):
            values = (scores or Scores(model))(images)
        if not passings:  # of a network without modules
            return []
        gradients = torch.autograd.grad(
            values.amax(1).sum(), [each.value for each in passings], allow_unused=True
        )
    for each, gradient in zip(passings, gradients):
        if each.layout is not None and gradient is not None:
            each.share = float(each.layout.to_map(gradient).abs().amax(1).gt(0).float().mean())
    return passings


def _channels_last(value: Tensor, widths: Collection[int]) -> bool | None:
    """Whether (N, ?, ?) has its channels last, judged by the widths of the model's norms."""
    known = [size in widths for size in value.shape[1:]]
    if known == [False, True]:
        return True
    # Transposed after a norm, as Mixers do; else a hidden layer of as many positions as channels
    if known == [True, False] and value.stride(1) == 1:
        return False
    return None


def _possible(passings: list[_Passing], least: float = 0.5) -> list[_Passing]:
    """Returns the layers that maps can be made of, in forward order, each with its shortest path.

    The score must move at more than the share ``least`` of its positions.
    """
    states: dict[tuple, list[_Passing]] = {}
    for each in passings:
        if each.share > least and each.eligible:
            states.setdefault(each.state, []).append(each)
    # A module that is called twice in a forward pass needs a number behind its path
    calls = Counter(each.tap for each in passings)
    once = [[each for each in same if calls[each.tap] == 1] for same in states.values()]

    def length(each: _Passing) -> tuple[bool, bool, int]:
        return each.tap.side == 'in', each.tap.path == 'backbone', each.tap.path.count('.')

    return [min(same, key=length) for same in once if same]


def _last_moving(passings: list[_Passing]) -> _Passing:
    possible = _possible(passings)
    if not possible:
        paths = [each.tap.path for each in passings if each.layout is not None]
        raise ValueError(
            "layer 'auto' finds no spatial layer that moves the score; set layer; "
            f'the last spatial layers are {", ".join(dict.fromkeys(paths[-6:])) or "none"}'
        )
    return possible[-1]


def _names(passings: list[_Passing]) -> str:
    return ', '.join(str(each.tap) for each in _possible(passings)[-6:]) or 'none'
