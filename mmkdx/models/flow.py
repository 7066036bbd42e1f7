"""Follows values through one forward of a model, and finds its classifier and its pooling."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmkdx.arguments import errors_named
from mmkdx.functional import no_autocast
from mmkdx.models.families import ModelFacts, describe, forward_tensor, image_channels
from mmkdx.models.intercept import Tap, fake_forward, intercept
from mmkdx.models.poolings import GlobalPoolings, Pooling, State, state_of


class Passing(NamedTuple):
    """A value that entered or left a module, and the state of each of its elements at that time."""

    path: str
    module: nn.Module
    side: str
    value: Any
    states: list[State]


class Reading(NamedTuple):
    """What a tap reads in a forward: the number of calls, the value, and its state at that time."""

    calls: int
    value: Any = None
    state: State = None


class Flow:
    """One forward of a model, with all values that passed its modules and its global poolings.

    A part that the model lacks raises a ValueError, which continues a sentence about the model.

    Args:
        facts (ModelFacts): The model, which must be in eval mode.
        inputs (Tensor): Preprocessed images (N, C, H, W); in ``fake_forward`` they have no content.
    """

    def __init__(self, facts: ModelFacts, inputs: Tensor) -> None:
        self.facts, self.model, self.inputs = facts, facts.model, inputs
        self.passings: list[Passing] = []
        readers = {
            Tap(path, side=side, item=None): partial(self._note, path, module, side)
            for path, module in self.model.named_modules()
            for side in ('in', 'out')
        }
        with intercept(self.model, readers), GlobalPoolings(self.passings) as poolings:
            forward_tensor(self.model, inputs)
        self.poolings = poolings.found

    def reading(self, tap: Tap) -> Reading:
        """Returns what a tap reads."""
        calls = self._calls(self.model.get_submodule(tap.path), tap.side)
        call = len(calls) - 1 if tap.call is None else tap.call
        if not 0 <= call < len(calls):
            return Reading(len(calls))
        value, states = calls[call].value, calls[call].states
        index = tap.element(value)
        whole = index is None
        return Reading(len(calls), value if whole else value[index], states[-1 if whole else index])

    @cached_property
    def logits(self) -> Tensor:
        """The logits, of shape (N, K)."""
        output = self.reading(Tap(self.facts.logits_path, item=None)).value
        with errors_named('has no logits: '):
            return self.facts.logits_in(output)

    @cached_property
    def classifier(self) -> str:
        """The path of the linear layer that yields the logits, else the last one with their shape."""
        state = state_of(self.logits)
        left = [each for each in self.passings if each.side == 'out']
        source = next((each for each in left if each.states[-1] == state), None)
        weight = getattr(source and source.module, 'weight', None)
        if isinstance(weight, Tensor) and weight.dim() > 1:
            left = [source]
        for each in reversed(left):
            if isinstance(each.module, nn.Linear) and each.value.shape == self.logits.shape:
                return each.path
        where = ''
        if source and source.path:
            where = f': its logits come out of {source.path!r}, a {type(source.module).__name__}'
        raise ValueError(f'has no linear classifier (an nn.Linear){where}')

    @cached_property
    def pooling(self) -> Pooling:
        """The global average pooling whose output enters the classifier, else the last one before it."""
        try:
            entry = self._calls(self.model.get_submodule(self.classifier), 'in')[-1]
            order, entering = _place(self.passings, entry), entry.states[-1]
        except ValueError:  # the model has no linear classifier
            order, entering = len(self.passings), None
        before = [each for each in self.poolings if each.order <= order]
        if not before:
            raise ValueError(
                'has no global average pooling over the positions of a map (N, C, H, W), so that its '
                "features before pooling cannot be found; name a module, as in 'backbone.layer4'"
            )
        return next((each for each in before if each.leaving == entering), before[-1])

    @cached_property
    def features(self) -> Tap:
        """The tap of the features that enter the pooling, if a module takes or returns them."""
        for each in reversed(self.passings[: self.pooling.order]):
            if each.states[-1] == self.pooling.entering:
                calls = self._calls(each.module, each.side)
                call = None if calls[-1] is each else _place(calls, each)
                return Tap(each.path, call, each.side)
        raise ValueError(
            'pools features that no module takes or returns, so that a tap cannot read them before '
            "pooling; name a module, as in 'backbone.layer4'"
        )

    def _calls(self, module: nn.Module, side: str) -> list[Passing]:
        return [each for each in self.passings if each.module is module and each.side == side]

    def _note(self, path: str, module: nn.Module, side: str, value: Any) -> None:
        elements = value if isinstance(value, (tuple, list)) and value else (value,)
        self.passings.append(Passing(path, module, side, value, list(map(state_of, elements))))


def _place(passings: list[Passing], passing: Passing) -> int:
    """The position of a passing in a list; ``index`` would compare tensors."""
    return next(i for i, each in enumerate(passings) if each is passing)


def find_flow(model: nn.Module) -> Flow:
    """The flow of a model for fake images of its own size, else 224; the model does not change."""
    facts = describe(model)
    with no_autocast(next(model.parameters())), fake_forward(model):
        return Flow(facts, fake_images(model, facts.images.size or (224, 224)))


def fake_images(model: nn.Module, size: tuple[int, int]) -> Tensor:
    """Two images without content, on the model's device and with as many channels as it takes."""
    device = next(model.parameters()).device
    return torch.empty(2, image_channels(model, 3), *size, device=device)
