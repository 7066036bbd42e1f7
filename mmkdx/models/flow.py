"""How values flow through a model in one forward, and where its classifier and its pooling are."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode

from mmkdx.functional import no_autocast
from mmkdx.models.families import ModelFacts, describe, forward_tensor
from mmkdx.models.intercept import Tap, fake_forward, intercept

#: Functions that may average a map over all its positions.
_POOLINGS = F.adaptive_avg_pool2d, F.avg_pool2d, torch.mean, Tensor.mean


class State(NamedTuple):
    """A tensor's memory and its version: equal for two tensors if no operation stands between them.

    Flattening is a view, and dropout in eval mode is the identity.
    """

    memory: int
    version: int | None

    @classmethod
    def of(cls, value: Any) -> State | None:
        """The present state of a tensor; None for anything else."""
        if not isinstance(value, Tensor):
            return None
        version = None if value.is_inference() else value._version
        return cls(value.untyped_storage()._cdata, version)


class Passing(NamedTuple):
    """A value that passed one side of a module, and the state of each of its elements at that time."""

    path: str
    module: nn.Module
    side: str
    value: Any
    states: list[State | None]


class Reading(NamedTuple):
    """What a tap reads in a forward: how often it was passed, the value, and its state at that time."""

    calls: int
    value: Any = None
    state: State | None = None


class Pooling(NamedTuple):
    """A global average pooling: after how many passings, and the states of its input and output."""

    order: int
    entering: State | None
    leaving: State | None


class Flow:
    """One forward of a model, with all that passed its modules and its global poolings.

    It computes nothing inside ``fake_forward``.

    Args:
        facts (ModelFacts): The model, which must be in eval mode.
        inputs (Tensor): Preprocessed images of shape (N, C, H, W).
    """

    def __init__(self, facts: ModelFacts, inputs: Tensor) -> None:
        self.facts = facts
        self.model = facts.model
        self.passings: list[Passing] = []
        readers = {
            Tap(path, side=side, item=None): self._reader(path, module, side)
            for path, module in self.model.named_modules()
            for side in ('in', 'out')
        }
        with intercept(self.model, readers), _GlobalPoolings(self.passings) as poolings:
            forward_tensor(self.model, inputs)
        self.poolings = poolings.found

    def reading(self, tap: Tap) -> Reading:
        """What a tap reads."""
        calls = self._calls(self.model.get_submodule(tap.path), tap.side)
        call = len(calls) - 1 if tap.call is None else tap.call
        if not 0 <= call < len(calls):
            return Reading(len(calls))
        value, index = calls[call].value, tap.element(calls[call].value)
        if index is None:
            return Reading(len(calls), value, calls[call].states[-1])
        return Reading(len(calls), value[index], calls[call].states[index])

    @cached_property
    def logits(self) -> Tensor:
        """The logits, of shape (N, K).

        Raises:
            ValueError: If the model returns none.
        """
        output = self.reading(Tap(self.facts.logits_path, item=None)).value
        try:
            return self.facts.logits_in(output)
        except ValueError as error:
            raise ValueError(f'has no logits: {error}') from None

    @cached_property
    def classifier(self) -> str:
        """The path of the linear layer whose output is the logits.

        Where an operation follows it, the path of the last linear layer with outputs of their shape.

        Raises:
            ValueError: If there is none, as where a convolution yields the logits.
        """
        state = State.of(self.logits)
        left = [each for each in self.passings if each.side == 'out']
        source = next((each for each in left if each.states[-1] == state), None)
        weight = getattr(source and source.module, 'weight', None)
        if isinstance(weight, Tensor) and weight.dim() > 1:
            left = [source]
        linears = [
            each.path
            for each in left
            if isinstance(each.module, nn.Linear) and each.value.shape == self.logits.shape
        ]
        if not linears:
            where = f': its logits come out of {source.path!r}, a {type(source.module).__name__}'
            where = where if source and source.path else ''
            raise ValueError(f'has no linear classifier (an nn.Linear){where}')
        return linears[-1]

    @cached_property
    def pooling(self) -> Pooling:
        """The global average pooling whose output enters the classifier, else the last one before it.

        Raises:
            ValueError: If the model has none.
        """
        order, entering = len(self.passings), None
        try:
            linear = self.model.get_submodule(self.classifier)
            entry = self._calls(linear, 'in')[-1]
            order, entering = self.passings.index(entry), entry.states[-1]
        except ValueError:
            pass
        before = [each for each in self.poolings if each.order <= order]
        if not before:
            raise ValueError(
                'has no global average pooling over the positions of a map (N, C, H, W), so that its '
                "features before pooling cannot be found; name a module, as in 'backbone.layer4'"
            )
        return next((each for each in before if each.leaving == entering), before[-1])

    @cached_property
    def features(self) -> Tap:
        """Where the features stand that enter global average pooling.

        Raises:
            ValueError: If there is no such pooling, or no module takes or returns them.
        """
        before = self.passings[: self.pooling.order]
        for each in reversed(before):
            if each.states[-1] == self.pooling.entering:
                calls = self._calls(each.module, each.side)
                last = calls[-1] is each
                return Tap(each.path, None if last else calls.index(each), each.side)
        raise ValueError(
            'pools by a function what no module returns, so that its features before pooling cannot be '
            "read; name a module, as in 'backbone.layer4'"
        )

    def _calls(self, module: nn.Module, side: str) -> list[Passing]:
        return [each for each in self.passings if each.module is module and each.side == side]

    def _reader(self, path: str, module: nn.Module, side: str) -> Callable[[Any], None]:
        def read(value: Any) -> None:
            elements = value if isinstance(value, (tuple, list)) and value else (value,)
            states = [State.of(each) for each in elements]
            self.passings.append(Passing(path, module, side, value, states))

        return read


class _GlobalPoolings(TorchFunctionMode):
    """Notes the global average poolings of a forward, those of modules and of functions."""

    def __init__(self, passings: list[Passing]) -> None:
        super().__init__()
        self.passings = passings
        self.found: list[Pooling] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        value = args[0] if args else kwargs.get('input')
        if func not in _POOLINGS or not isinstance(value, Tensor) or value.dim() != 4:
            return func(*args, **kwargs)
        entering = State.of(value)
        output = func(*args, **kwargs)
        whole = output.shape[:2] == value.shape[:2] and output.numel() == value[:, :, 0, 0].numel()
        if func is F.avg_pool2d:
            kernel = args[1] if len(args) > 1 else kwargs['kernel_size']
            whole = whole and tuple(_pair(kernel)) == tuple(value.shape[2:])
        if whole:
            self.found.append(Pooling(len(self.passings), entering, State.of(output)))
        return output


def find_flow(model: nn.Module, size: tuple[int, int] | None = None) -> Flow:
    """The flow of a model for fake images.

    Args:
        model (nn.Module): The model; it comes out as it was.
        size (tuple[int, int], optional): Height and width. Defaults to the model's own, else 224.
    """
    facts = describe(model)
    with no_autocast(next(model.parameters())), fake_forward(model):
        return Flow(facts, fake_images(model, size or facts.images.size or (224, 224)))


def fake_images(model: nn.Module, size: tuple[int, int]) -> Tensor:
    """Two images without content of as many channels as the model takes, on its device."""
    convolutions = (each for each in model.modules() if isinstance(each, nn.Conv2d))
    channels = next((each.in_channels for each in convolutions), 3)
    return torch.empty(2, channels, *size, device=next(model.parameters()).device)
