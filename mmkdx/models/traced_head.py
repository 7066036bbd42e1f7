"""A model's head as a function: the calls that compute logits from its last features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.func import vmap
from torch.utils._pytree import tree_leaves

from mmkdx.functional import ClassMaps, full_precision, tokens_to_map
from mmkdx.models.families import describe
from mmkdx.models.intercept import Tap

_CASTS = Tensor.to, Tensor.float, Tensor.half, Tensor.bfloat16, Tensor.type, Tensor.type_as


class Slot(NamedTuple):
    """A tensor of a forward, by its number."""

    number: int


class Weight(NamedTuple):
    """A parameter or buffer, by its path."""

    path: str


class Call(NamedTuple):
    """A call of a function of torch, with slots and weights in place of tensors."""

    func: Callable
    args: tuple
    kwargs: dict
    outputs: tuple[Slot, ...]

    def needs(self) -> list[Slot]:
        """The slots that it reads."""
        leaves = tree_leaves((self.args, self.kwargs), is_leaf=is_reference)
        return [each for each in leaves if isinstance(each, Slot)]


class Program:
    """Calls that compute one tensor from another and from weights, for one image.

    It holds no tensor and no module, so that copies of it and of the model work.
    """

    def __init__(
        self, calls: list[Call], source: Slot, target: Slot, shape: tuple[int, ...]
    ) -> None:
        self.calls, self.source, self.target, self.shape = calls, source, target, shape

    def run(self, model: nn.Module, value: Tensor) -> Tensor:
        """Computes the target from a source (1, ...), with the weights that the model has now."""
        values = {self.source: value.reshape(self.shape) if self.shape else value}

        def known(reference: Any) -> Any:
            if isinstance(reference, Slot):
                return values[reference]
            owner, _, name = reference.path.rpartition('.')
            weight = getattr(model.get_submodule(owner), name)
            return full_precision(weight) if weight.is_floating_point() else weight

        for call in self.calls:
            args, kwargs = _map_references(known, (call.args, call.kwargs))
            # Heads run in full precision, whatever the precision of the trace was
            output = args[0] if call.func in _CASTS else call.func(*args, **kwargs)
            values.update(
                zip(call.outputs, output if isinstance(output, (tuple, list)) else [output])
            )
        return values[self.target]

    @property
    def weights(self) -> set[str]:
        """The paths of all weights."""
        leaves = tree_leaves([each[1:3] for each in self.calls], is_leaf=is_reference)
        return {each.path for each in leaves if isinstance(each, Weight)}


@dataclass(frozen=True)
class TracedHead:
    """A model's head, and the place of its features.

    Args:
        tap (Tap): The tap that is read in a forward.
        features (Program): Computes the features of one image from the tap's value.
        layout (str): The layout of the features: 'nchw', 'nhwc', 'tokens' or 'ncl'.
        head (Program): Computes logits from pooled features, or from features if not ``pooled``.
        pooled (bool): Whether the head takes the mean of the features over space.
        image (tuple[int, int]): Height and width of the image.
        classes (int): The number of classes.
        size (tuple[int, ...]): The number of positions of the features in each direction.
    """

    tap: Tap
    features: Program
    layout: str
    head: Program
    pooled: bool
    image: tuple[int, int]
    classes: int
    size: tuple[int, ...]

    def __deepcopy__(self, memo: dict) -> TracedHead:
        return self

    @property
    def modules(self) -> list[str]:
        """The paths of the modules whose weights it reads."""
        paths = sorted(self.head.weights | self.features.weights)
        return list(dict.fromkeys(path.rpartition('.')[0] for path in paths))

    def read(self, value: Tensor, model: nn.Module) -> ClassMaps:
        """The class maps of a model's forward, from the value at the tap."""
        model = describe(model).model
        if self.features.calls:
            value = vmap(lambda each: self.features.run(model, each[None])[0])(value)
        return ClassMaps.linearised(
            self._to_map(value), BoundHead(self, model), pooled=self.pooled, keep=True
        )

    def _to_map(self, value: Tensor) -> Tensor:
        if self.layout == 'nchw':
            return value
        if self.layout == 'nhwc':
            return value.permute(0, 3, 1, 2)
        return tokens_to_map(value if self.layout == 'tokens' else value.mT, self.image)


class BoundHead:
    """A traced head with the weights of a model; maps its inputs to logits (n, K)."""

    def __init__(self, traced: TracedHead, model: nn.Module) -> None:
        self.run = partial(traced.head.run, model)
        self.num_classes = traced.classes

    def __call__(self, points: Tensor) -> Tensor:
        """The logits."""
        return self.run(points)


def is_reference(value: Any) -> bool:
    """Whether a value stands for a tensor."""
    return isinstance(value, (Slot, Weight))


def _map_references(function: Callable, value: Any) -> Any:
    if is_reference(value):
        return function(value)
    if isinstance(value, dict):
        return {key: _map_references(function, each) for key, each in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_map_references(function, each) for each in value)
    return value
