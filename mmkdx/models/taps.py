"""Reads activations of a model by name during one forward."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from mmkdx.arguments import errors_named
from mmkdx.functional import math_kernel
from mmkdx.models.compiling import compile_between
from mmkdx.models.families import describe
from mmkdx.models.flow import Flow, state_of
from mmkdx.models.intercept import Tap, intercept
from mmkdx.models.path_tap import find_tap
from mmkdx.models.traced_head import TracedHead


class TapSet:
    """The taps that are read from one model.

    It holds paths and no modules, so it can be copied with its model. Hooks exist only inside
    ``record``, and the tensors belong to the caller.

    Args:
        names (Mapping[str, str]): The taps, by name or by path, each with its config key, which
            error messages name.
        owner (str): The model's name in error messages: 'student' or 'teacher'.
        explained (Collection[str]): The taps at which gradients of later taps can be taken. From
            them on a graph is recorded, even if no parameter needs one.
        size_key (str): The config key of the size of its images. Defaults to 'model.input_size'.
        measured (Collection[str]): The taps at which gradients of the model's own loss are taken.
    """

    def __init__(
        self,
        names: Mapping[str, str],
        owner: str,
        explained: Collection[str] = (),
        size_key: str = 'model.input_size',
        measured: Collection[str] = (),
    ) -> None:
        self.names = dict(names)
        self.owner = owner
        self.explained, self.measured = frozenset(explained), frozenset(measured)
        self.size_key = size_key
        # After ``resolve``: each tap's place, and the module whose weights are a part of its value
        self.taps: dict[str, Tap] = {}
        self.weights: dict[str, str] = {}
        self.heads: dict[str, TracedHead] = {}
        # Only these values are copied, because an in-place operation such as ReLU follows
        self._overwritten: set[Tap] = set()

    def resolve(self, model: nn.Module, inputs: Tensor) -> dict[str, Any]:
        """Finds every tap in a model, and its value for images (N, C, H, W).

        Call it inside ``fake_forward``. The model may be wrapped (DDP, ``torch.compile``).

        Returns:
            dict[str, Any]: For each tap a fake tensor, or class maps of fake tensors.

        Raises:
            ValueError: If a tap does not exist, is not reached, is ambiguous or holds no tensor.
        """
        facts = describe(model)
        refused = f'the {self.owner} cannot take images of {tuple(inputs.shape[2:])} pixels ('
        advice = f'); set {self.size_key} to the size of its images'
        with errors_named(refused, advice, Exception):
            flow = Flow(facts, inputs)
        modules = model.named_modules()
        prefix = next(f'{path}.' for path, module in modules if module is facts.model).lstrip('.')
        # In-place dropout writes in training only, so a forward in eval mode does not show it
        drops = any(isinstance(m, _DropoutNd) and m.inplace for m in model.modules())
        self.taps, self.weights, self.heads, self._overwritten, values = {}, {}, {}, set(), {}
        for name, key in self.names.items():
            kind = find_tap(name)
            with errors_named(f'{key}: the {self.owner} '):
                place = kind.locate(flow)
                kind.check(flow, place)
            reading = flow.reading(place.tap)
            tap = self.taps[name] = replace(place.tap, path=f'{prefix}{place.tap.path}'.rstrip('.'))
            if place.weights:
                self.weights[name] = prefix + place.weights
            if place.head:
                self.heads[name] = place.head
            if drops or state_of(reading.value) != reading.state:
                self._overwritten.add(tap)
            values[name] = self._value(model, name, reading.value)
        return values

    @contextmanager
    def record(self, model: nn.Module) -> Iterator[dict[str, Any]]:
        """Reads the taps of a resolved model, or its copy, during the forwards of a ``with`` block.

        Yields:
            dict[str, Any]: For each tap a tensor or class maps. It is filled when the block ends.
        """
        values: dict[str, Any] = {}
        seen: dict[Tap, Any] = {}
        explained = {self.taps[name] for name in self.explained}
        kept = explained | {self.taps[name] for name in self.measured}

        def read(tap: Tap, value: Any) -> Tensor | None:
            if tap in explained:
                torch.set_grad_enabled(True)  # until the forward's end
                value = value if value.requires_grad else value.detach().requires_grad_()
            overwritten = tap in self._overwritten and isinstance(value, Tensor)
            copied = value.clone() if overwritten else value
            # Gradients are taken at the value that is read, so the forward goes on with the copy
            seen[tap] = value if tap in kept else copied
            return copied if tap in kept else None

        readers = {tap: partial(read, tap) for tap in self.taps.values()}
        kernel = math_kernel(bool(explained))  # a loss on gradients is differentiated twice
        with torch.set_grad_enabled(torch.is_grad_enabled()), intercept(model, readers), kernel:
            yield values
        for name, tap in self.taps.items():
            if tap not in seen:
                raise RuntimeError(
                    f"{self.names[name]}: the {self.owner}'s module {tap.path!r} was not called in this "
                    'forward'
                )
            values[name] = self._value(model, name, seen[tap])

    def module(self, model: nn.Module, name: str) -> nn.Module:
        """The module whose weights are a part of a tap's value, or the model if there is none."""
        return model.get_submodule(self.weights.get(name, ''))

    @property
    def weights_read(self) -> list[str]:
        """The paths of the modules whose weights are read for the values after the forward."""
        heads = [path for head in self.heads.values() for path in head.modules]
        return [*self.weights.values(), *heads]

    def _value(self, model: nn.Module, name: str, read: Any) -> Any:
        if name in self.heads:
            return self.heads[name].read(read, model)
        return find_tap(name).read(read, self.module(model, name))

    def compile(self, model: nn.Module, **kwargs: Any) -> None:
        """Compiles the parts that contain no tap, after ``resolve``; see ``compile_between``."""
        compile_between(model, [tap.path for tap in self.taps.values()], **kwargs)
