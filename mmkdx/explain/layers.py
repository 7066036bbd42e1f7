"""Which layer of a model a map is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from mmkdx.explain.layouts import Layout, extra_tokens, patch_grids
from mmkdx.functional import no_autocast
from mmkdx.models.families import describe
from mmkdx.models.taps import Tap, TapSet, evaluating, intercept

#: Whose results 'auto' does not take: parts of an attention, and projections within a block.
_NOT_CHOSEN = (nn.Linear, nn.Softmax, _DropoutNd)


@dataclass(frozen=True)
class Layer:
    """A layer to make maps of.

    Args:
        name (str): What the user or the search called it.
        tap (Tap): Where it is.
        layout (Layout): How its activations lie in space.
        classifier (str, optional): The path of the linear layer that alone follows, after global
            average pooling; None for any other head.
    """

    name: str
    tap: Tap
    layout: Layout
    classifier: str | None = None


def find_layers(model: nn.Module, inputs: Tensor, names: Sequence[str]) -> list[Layer]:
    """Finds layers by name, or, for the name 'auto', the last that a map can be made of.

    'auto' takes the last activations with an extent in space by most of whose positions the score
    moves, found with the gradient for one image: what enters global average pooling in a CNN; in a
    transformer that classifies by its class token what enters the last attention, since the other
    tokens have no influence after it.

    Args:
        model (nn.Module): The classifier.
        inputs (Tensor): Images of shape (N, 3, H, W).
        names (Sequence[str]): Names or paths as those of taps, or 'auto'.

    Returns:
        list[Layer]: The layers.

    Raises:
        ValueError: If a layer does not exist, has no extent in space or does not move the score, or
            'auto' finds none; the message names near or possible layers.
    """
    given = TapSet({name: 'layer' for name in names if name != 'auto'}, 'model')
    gap_linear = TapSet({'cam': 'layer', 'features': 'layer'}, 'model')
    # With one image this takes less time than with fake tensors
    with no_autocast(inputs), evaluating(model), torch.no_grad():
        images = inputs[:1].clone()
        try:
            gap_linear.resolve(model, images)
            pooling = gap_linear.taps['features']
        except ValueError:
            pooling = None
        if given.names or pooling is None:
            given.resolve(model, images)
    passings = _trace(model, inputs[:1], {*given.taps.values(), *([pooling] if pooling else [])})
    pooled = next((each.state for each in reversed(passings) if each.tap == pooling), None)
    layers = []
    for name in names:
        chosen = _last_moving(passings) if name == 'auto' else _passing(passings, given.taps[name])
        if chosen.layout is None:
            raise ValueError(
                f'layer {name!r} has no extent in space: its activations have the shape '
                f'{tuple(chosen.value.shape)} for an image of {tuple(inputs.shape[2:])} pixels; '
                f'possible layers are {_names(passings)}'
            )
        if not chosen.share:
            raise ValueError(
                f"layer {name!r} does not move the score: its activations' gradient is zero at all "
                'positions, as after the last attention of a transformer that classifies by its class '
                f'token; possible layers are {_names(passings)}'
            )
        classifier = gap_linear.weights['cam'] if chosen.state == pooled else None
        layers.append(Layer(str(chosen.tap), chosen.tap, chosen.layout, classifier))
    return layers


def find_stages(model: nn.Module, inputs: Tensor) -> list[Layer]:
    """Finds the last layer at each size of map, as the ends of a CNN's stages.

    A transformer whose maps are of one size has one.

    Args:
        model (nn.Module): The classifier.
        inputs (Tensor): Images of shape (N, 3, H, W).

    Returns:
        list[Layer]: The layers, in the order of the forward.

    Raises:
        ValueError: If no layer moves the score and has an extent in space.
    """
    with no_autocast(inputs), evaluating(model):
        passings = _trace(model, inputs[:1], set())
    _last_moving(passings)
    image = (*inputs.shape[2:], inputs.shape[1])
    # Any share of positions that move the score will do, as a narrow network may have dead units.
    # Windows of an image are no map of it, and what has its size and channels is the image itself.
    candidates = [
        each
        for each in _possible(passings, 0.0)
        if len(each.value) == 1
        and (*each.layout.size, each.layout.to_map(each.value).shape[1]) != image
    ]
    sizes = {each.tap.path: each.layout.size for each in passings if each.layout is not None}

    def depth(each: _Passing) -> int:
        """Within how many modules it is that yield another size."""
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
    """What passed a tap in a forward."""

    tap: Tap
    value: Tensor
    #: Which memory in which state it was: equal for two taps with nothing in between
    state: tuple[int, int, torch.Size]
    layout: Layout | None
    #: Whether 'auto' may choose it
    eligible: bool
    #: At which share of its positions the score moves with it
    share: float = 0.0


def _trace(model: nn.Module, image: Tensor, taps: set[Tap]) -> list[_Passing]:
    """What passes all modules, and some taps, for one image, in the order of their calls."""
    extra, grids = extra_tokens(model), patch_grids(model, image)
    norms = (module for module in model.modules() if isinstance(module, nn.LayerNorm))
    widths = {norm.normalized_shape[-1] for norm in norms}
    passings: list[_Passing] = []

    def recorder(tap: Tap, module: nn.Module) -> Callable[[Any], None]:
        def record(value: Any) -> None:
            if isinstance(value, Tensor) and value.requires_grad:
                size = image.shape[2:]
                last = _channels_last(value, widths)
                layout = Layout.of(value.shape, size, extra, last, grids) or Layout.of(
                    value.shape, size, None, last, grids
                )
                state = (value.untyped_storage()._cdata, value._version, value.shape)
                passings.append(
                    _Passing(tap, value, state, layout, not isinstance(module, _NOT_CHOSEN))
                )

        return record

    modules = {Tap(path): module for path, module in model.named_modules() if path}
    recorders = {tap: recorder(tap, module) for tap, module in modules.items()}
    for tap in taps - modules.keys():
        recorders[tap] = recorder(tap, model.get_submodule(tap.path))
    with evaluating(model), no_autocast(image), torch.enable_grad():
        image = image.detach().clone().requires_grad_()
        with intercept(model, recorders):
            logits = describe(model).logits(image)
        gradients = torch.autograd.grad(
            logits.amax(), [each.value for each in passings], allow_unused=True
        )
    for each, gradient in zip(passings, gradients):
        if each.layout is not None and gradient is not None:
            each.share = float(each.layout.to_map(gradient).abs().amax(1).gt(0).float().mean())
    return passings


def _channels_last(value: Tensor, widths: Collection[int]) -> bool | None:
    """Whether (N, ?, ?) has its channels last, as far as the widths of the model's norms tell."""
    known = [size in widths for size in value.shape[1:]]
    if known == [False, True]:
        return True
    # Transposed after a norm, as Mixers do; else a hidden layer of as many positions as channels
    if known == [True, False] and value.stride(1) == 1:
        return False
    return None


def _passing(passings: list[_Passing], tap: Tap) -> _Passing:
    """What passed a tap that was asked for."""
    for each in reversed(passings):
        if each.tap == tap:
            return each
    raise ValueError(f'layer {tap} does not move the score: no gradient flows through it')


def _possible(passings: list[_Passing], least: float = 0.5) -> list[_Passing]:
    """What maps can be made of, from the first to the last, each under its shortest path.

    Args:
        passings (list[_Passing]): What passed all modules.
        least (float): Above which share of positions the score must move. Defaults to 0.5.
    """
    states: dict[tuple, list[_Passing]] = {}
    for each in passings:
        if each.share > least and each.eligible:
            states.setdefault(each.state, []).append(each)
    # Modules that a forward calls twice need a number behind their path
    calls = Counter(each.tap for each in passings)
    possible = []
    for same in states.values():
        once = [each for each in same if calls[each.tap] == 1]
        if once:
            possible.append(
                min(
                    once,
                    key=lambda each: (
                        each.tap.side == 'in',
                        each.tap.path == 'backbone',
                        each.tap.path.count('.'),
                    ),
                )
            )
    return possible


def _last_moving(passings: list[_Passing]) -> _Passing:
    possible = _possible(passings)
    if not possible:
        paths = [each.tap.path for each in passings if each.layout is not None]
        raise ValueError(
            "layer 'auto' finds no layer that moves the score and has an extent in space; set layer, "
            f'the last with an extent in space are {", ".join(dict.fromkeys(paths[-6:])) or "none"}'
        )
    return possible[-1]


def _names(passings: list[_Passing]) -> str:
    return ', '.join(str(each.tap) for each in _possible(passings)[-6:]) or 'none'
