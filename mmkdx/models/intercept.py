"""Points in a model, and functions that are called with the values at these points."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.compiler import set_stance

from mmkdx.models.compiling import eager_where_compiled


@dataclass(frozen=True)
class Tap:
    """A point in a model: ``path[@call][:in|:out][[item]]``.

    Args:
        path (str): The dotted path of a module; '' is the model itself.
        call (int, optional): Which of the module's calls in one forward, counted from 0. Defaults to
            None (the last).
        side (str): 'in' for the first argument, 'out' for the result. Defaults to 'out'.
        item (int, optional): Which element of a tuple or list; None is all of it. Defaults to -1.
    """

    path: str
    call: int | None = None
    side: str = 'out'
    item: int | None = -1

    def __str__(self) -> str:
        call = '' if self.call is None else f'@{self.call}'
        side = ':in' if self.side == 'in' else ''
        return f'{self.path}{call}{side}' + ('' if self.item in (-1, None) else f'[{self.item}]')

    def element(self, value: Any) -> int | None:
        """The index of the tap's element in a value; None if the tap reads the whole value."""
        if self.item is None or not isinstance(value, (tuple, list)):
            return None
        return self.item if -len(value) <= self.item < len(value) else None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A context in which a model is in eval mode; afterwards each module has its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        model.train(modes[0][1])  # some backbones prepare something in it
        for module, training in modes:
            module.training = training


@contextmanager
def fake_forward(model: nn.Module) -> Iterator[None]:
    """A context in which a model runs in eval mode, computes only shapes and does not change."""
    # If a forward fails, torch would print a traceback, while TapSet raises one sentence
    logger = logging.getLogger('torch._subclasses.fake_tensor')
    logger.disabled = True
    try:
        with evaluating(model), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            with set_stance('force_eager'):
                yield
    finally:
        logger.disabled = False


@contextmanager
def intercept(
    model: nn.Module, functions: Mapping[Tap, Callable[[Any], Tensor | None]]
) -> Iterator[dict[Tap, int]]:
    """Calls functions with the values at a model's taps in the forwards of a ``with`` block.

    A tensor that a function returns replaces the value in the rest of the forward.

    Yields:
        dict[Tap, int]: How often each tap was passed, counted while the block runs.
    """
    calls = dict.fromkeys(functions, 0)

    def pass_on(tap: Tap, value: Any) -> Any:
        call, calls[tap] = calls[tap], calls[tap] + 1
        if tap.call not in (None, call):
            return value
        index = tap.element(value)
        result = functions[tap](value if index is None else value[index])
        if result is None or index is None:
            return value if result is None else result
        items = list(value)
        items[index] = result
        return type(value)(*items) if hasattr(value, '_fields') else type(value)(items)

    def before(tap: Tap, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if args:
            return (pass_on(tap, args[0]), *args[1:]), kwargs
        # The first argument may be a keyword argument, or there may be no arguments
        return args, kwargs | {name: pass_on(tap, kwargs[name]) for name in [*kwargs][:1]}

    def hook(tap: Tap) -> torch.utils.hooks.RemovableHandle:
        module = model.get_submodule(tap.path)
        if tap.side == 'in':
            return module.register_forward_pre_hook(
                lambda _, args, kwargs: before(tap, args, kwargs), with_kwargs=True
            )
        return module.register_forward_hook(lambda _, args, output: pass_on(tap, output))

    handles = [hook(tap) for tap in functions]
    try:
        with eager_where_compiled(model, [tap.path for tap in functions]):
            yield calls
    finally:
        for handle in handles:
            handle.remove()
