"""Reading activations out of a model by name, for the length of one forward."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from mmkdx.models.families import describe, forward_tensor
from mmkdx.models.flow import Flow, state_of
from mmkdx.models.intercept import Tap, evaluating, fake_forward, intercept
from mmkdx.models.named_taps import NAMED_TAPS, NamedTap, Place

__all__ = ['Tap', 'TapSet', 'evaluating', 'fake_forward', 'find_tap', 'forward_tensor', 'intercept']


def find_tap(name: str) -> NamedTap:
    """The tap of a name, or of a path."""
    return NAMED_TAPS.get(name) or PathTap(name)


class PathTap(NamedTap):
    """What stands at a path in a model, ``path[@call][:in|:out][[item]]``."""

    def __init__(self, text: str) -> None:
        self.text = text

    def locate(self, flow: Flow) -> Place:
        tap = Tap.parse(self.text)
        paths = [path for path, _ in flow.model.named_modules(remove_duplicate=False) if path]
        if tap.path not in paths:
            near = difflib.get_close_matches(tap.path, paths, n=4, cutoff=0.4) or paths[:4]
            raise ValueError(f'has no module {tap.path!r}; near names are {", ".join(near)}')
        return Place(tap)

    def check(self, flow: Flow, place: Place) -> None:
        """Refuses a module that is not called, or several times, and a value that is no tensor."""
        path, call = place.tap.path, place.tap.call
        calls, value, _ = flow.reading(place.tap)
        if not calls:
            raise ValueError(f'does not call module {path!r} in its forward')
        often = f'calls module {path!r} {calls} times in one forward'
        if call is None and calls > 1:
            raise ValueError(f"{often}; write '{path}@0' to '{path}@{calls - 1}'")
        if call is not None and call >= calls:
            raise ValueError(f'{often}, so the last call is @{calls - 1}')
        if not isinstance(value, Tensor):
            raise ValueError(
                f'holds a {type(value).__name__} and no tensor at {self.text!r}; where a tuple stands '
                "there, choose an element, as in 'backbone.stages.3[0]'"
            )


class TapSet:
    """The taps that are read from one model.

    It holds paths and no modules, so it can be copied beside its model. Hooks exist only inside
    ``record``, and the tensors belong to the caller.

    Args:
        names (Mapping[str, str]): The taps, by name or by path, each with the config key that asks for
            it, for error messages.
        owner (str): How error messages call the model: 'student' or 'teacher'.
        explained (Collection[str]): The taps by which gradients of later ones can be taken, also where
            the model has none: from them on a graph is recorded.
        size_key (str): The config key that sets the size of the model's images. Defaults to
            'model.input_size'.
    """

    def __init__(
        self,
        names: Mapping[str, str],
        owner: str,
        explained: Collection[str] = (),
        size_key: str = 'model.input_size',
    ) -> None:
        self.names = dict(names)
        self.owner = owner
        self.explained = frozenset(explained)
        self.size_key = size_key
        #: After ``resolve``: where each tap is.
        self.taps: dict[str, Tap] = {}
        #: After ``resolve``: the path of the module whose weights are a part of a tap's value.
        self.weights: dict[str, str] = {}
        # Taps whose tensor a later in-place operation overwrites (batch norm before an in-place
        # ReLU): only these are copied.
        self._overwritten: set[Tap] = set()

    def resolve(self, model: nn.Module, inputs: Tensor) -> dict[str, Any]:
        """Finds every tap in the model and what stands there. To be called inside ``fake_forward``.

        Args:
            model (nn.Module): The model; it may be wrapped (DDP, ``torch.compile``).
            inputs (Tensor): A fake image batch of shape (N, 3, H, W).

        Returns:
            dict[str, Any]: For each tap a fake tensor, or class maps of fake tensors.

        Raises:
            ValueError: If a tap does not exist, is not reached, is ambiguous or holds no tensor.
        """
        facts = describe(model)
        try:
            flow = Flow(facts, inputs)
        except Exception as error:
            raise ValueError(
                f'the {self.owner} cannot take images of {tuple(inputs.shape[2:])} pixels '
                f'({str(error).partition(chr(10))[0]}); set {self.size_key} to the size of its images'
            ) from error
        modules = model.named_modules()
        prefix = next(f'{path}.' for path, module in modules if module is facts.model).lstrip('.')
        # Dropout in place writes in training only, which a forward in eval mode does not show.
        drops = any(isinstance(m, _DropoutNd) and m.inplace for m in model.modules())
        self.taps, self.weights, self._overwritten, values = {}, {}, set(), {}
        for name, key in self.names.items():
            kind = find_tap(name)
            try:
                place = kind.locate(flow)
                kind.check(flow, place)
            except ValueError as error:
                raise ValueError(f'{key}: the {self.owner} {error}') from None
            reading = flow.reading(place.tap)
            tap = self.taps[name] = replace(place.tap, path=f'{prefix}{place.tap.path}'.rstrip('.'))
            if place.weights:
                self.weights[name] = prefix + place.weights
            if drops or state_of(reading.value) != reading.state:
                self._overwritten.add(tap)
            values[name] = kind.read(reading.value, self.module(model, name))
        return values

    @contextmanager
    def record(self, model: nn.Module) -> Iterator[dict[str, Any]]:
        """Reads the taps during the forwards of a ``with`` block.

        Args:
            model (nn.Module): The model that ``resolve`` was called with, or a copy.

        Yields:
            dict[str, Any]: Filled when the block ends: for each tap a tensor or class maps.
        """
        values: dict[str, Any] = {}
        seen: dict[Tap, Any] = {}
        explained = {self.taps[name] for name in self.explained}

        def reader(tap: Tap) -> Callable[[Any], Tensor | None]:
            overwritten = tap in self._overwritten

            def read(value: Any) -> None:
                seen[tap] = value.clone() if overwritten and isinstance(value, Tensor) else value

            def read_and_record(value: Tensor) -> Tensor:
                torch.set_grad_enabled(True)  # until the forward's end
                seen[tap] = value if value.requires_grad else value.detach().requires_grad_()
                return seen[tap].clone() if overwritten else seen[tap]

            return read_and_record if tap in explained else read

        readers = {tap: reader(tap) for tap in self.taps.values()}
        with torch.set_grad_enabled(torch.is_grad_enabled()), intercept(model, readers):
            yield values
        for name, tap in self.taps.items():
            if tap not in seen:
                raise RuntimeError(
                    f"{self.names[name]}: the {self.owner}'s module {tap.path!r} was not called in this "
                    'forward'
                )
            values[name] = find_tap(name).read(seen[tap], self.module(model, name))

    def module(self, model: nn.Module, name: str) -> nn.Module:
        """The module whose weights are a part of a tap's value; the model where there is none."""
        return model.get_submodule(self.weights.get(name, ''))

    def compile(self, model: nn.Module, **kwargs: Any) -> None:
        """Compiles the largest parts of a model that hold no tap, in place; after ``resolve``.

        Taps are hooks of a step's own, which compiled code would not call. The keyword arguments are
        those of ``torch.compile``.
        """
        if 'isolate_recompiles' in inspect.signature(torch.compile).parameters:
            # Else all parts share one small limit on versions, as they are called by the same code
            kwargs = {'isolate_recompiles': True, **kwargs}
        paths = [tap.path for tap in self.taps.values()]

        def compile_below(module: nn.Module, path: str) -> None:
            for name, child in module.named_children():
                below = f'{path}{name}'
                lists = isinstance(child, (nn.ModuleList, nn.ModuleDict))
                if lists or any(f'{tap}.'.startswith(f'{below}.') for tap in paths):
                    compile_below(child, f'{below}.')
                # A single layer has nothing to be fused with
                elif any(child.children()) and next(child.parameters(), None) is not None:
                    child.compile(**kwargs)

        compile_below(model, '')
