"""Reading activations out of a model by name, for the length of one forward."""

from __future__ import annotations

import difflib
import inspect
import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.compiler import set_stance
from torch.nn.modules.dropout import _DropoutNd

from mmkdx.functional import ClassMaps
from mmkdx.models.classifier import (
    check_gap_linear,
    find_classifier,
    find_global_pooling,
    find_prototypes,
)
from mmkdx.models.families import describe

#: The taps that have a name of their own; everything else is a path in the model.
NAMED_TAPS = ('logits', 'features', 'embedding', 'cam', 'prototypes')

_SYNTAX = re.compile(
    r'(?P<path>\w[\w.]*)(?:@(?P<call>\d+))?(?::(?P<side>in|out))?(?:\[(?P<item>-?\d+)\])?'
)


@dataclass(frozen=True)
class Tap:
    """A point in a model: ``path[@call][:in|:out][[item]]``.

    Args:
        path (str): The dotted path of a module; '' is the model itself.
        call (int, optional): Which call of a module that one forward calls several times, counted
            from 0. Defaults to None (the last).
        side (str): 'in' for the first argument, 'out' for the result. Defaults to 'out'.
        item (int): Which element, where a tuple or list stands there. Defaults to -1.
    """

    path: str
    call: int | None = None
    side: str = 'out'
    item: int = -1

    @classmethod
    def parse(cls, text: str) -> Tap:
        """Reads a tap from its text.

        Raises:
            ValueError: If the text is not of the form above.
        """
        match = _SYNTAX.fullmatch(text)
        if not match:
            raise ValueError(
                f'cannot have a tap {text!r}; write a name ({", ".join(NAMED_TAPS)}) or '
                "path[@call][:in|:out][[item]], as in 'backbone.layer3' or 'head.fc:in'"
            )
        path, call, side, item = match.group('path', 'call', 'side', 'item')
        return cls(path, call and int(call), side or 'out', -1 if item is None else int(item))

    def __str__(self) -> str:
        call = '' if self.call is None else f'@{self.call}'
        side = ':in' if self.side == 'in' else ''
        return f'{self.path}{call}{side}' + ('' if self.item == -1 else f'[{self.item}]')


def forward_tensor(model: nn.Module, inputs: Tensor) -> Any:
    """The plain forward of a model: ``mode='tensor'`` for those of mmengine's interface."""
    return model(inputs, mode='tensor') if isinstance(model, BaseModel) else model(inputs)


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
    """A context in which forwards yield shapes and no numbers, and leave the model as it was.

    The model is in eval mode inside, where batch norm does not touch its statistics.
    """
    # torch would print a traceback of its own for a forward that fails, which becomes one sentence here.
    logger = logging.getLogger('torch._subclasses.fake_tensor')
    logger.disabled = True
    try:
        with evaluating(model), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            with set_stance('force_eager'):
                yield
    finally:
        logger.disabled = False


class TapSet:
    """The taps that are read from one model.

    It holds paths and no modules, so it can be copied beside its model. Hooks exist only inside
    ``record``, and the tensors belong to the caller.

    Args:
        names (Mapping[str, str]): The taps, by name or by path, each with the config key that asks for
            it, which error messages name.
        owner (str): How error messages call the model: 'student' or 'teacher'.
        explained (Collection[str]): The taps by which gradients of later ones can be taken, also where
            the model has none: from them on a graph is recorded.
    """

    def __init__(
        self, names: Mapping[str, str], owner: str, explained: Collection[str] = ()
    ) -> None:
        self.names = dict(names)
        self.owner = owner
        self.explained = frozenset(explained)
        self._taps: dict[str, Tap] = {}
        self._classifier = ''
        # Taps whose tensor a later in-place operation overwrites (batch norm before an in-place
        # ReLU): only these are copied.
        self._overwritten: set[Tap] = set()

    def resolve(self, model: nn.Module, inputs: Tensor) -> dict[str, Any]:
        """Finds every tap in the model and what stands there. To be called inside ``fake_forward``.

        Args:
            model (nn.Module): The model.
            inputs (Tensor): A fake image batch of shape (N, 3, H, W).

        Returns:
            dict[str, Any]: A fake tensor, or class maps of fake tensors, for each tap.

        Raises:
            ValueError: If a tap does not exist, is not reached, is ambiguous or holds no tensor.
        """
        self._taps = {name: self._locate(model, name) for name in self.names}
        structure = {}
        if 'cam' in self.names:
            self._classifier = find_classifier(model)
            structure = dict(
                pooled=Tap(find_global_pooling(model)),
                linear_in=Tap(self._classifier, side='in'),
                linear_out=Tap(self._classifier),
                logits=self._locate(model, 'logits'),
            )
        self._overwritten = set()
        taps = {*self._taps.values(), *structure.values()}
        with _readings(model, taps, self._overwritten) as readings:
            try:
                forward_tensor(model, inputs)
            except Exception as error:
                size, advice = describe(model).images.size, ''
                if self.owner != 'student':
                    fixed = ' x '.join(map(str, size)) if size else 'a size that it takes'
                    advice = f', or resize=... of the {self.owner} to {fixed}'
                raise ValueError(
                    f'the {self.owner} cannot take images of {tuple(inputs.shape[2:])} pixels '
                    f'({str(error).partition(chr(10))[0]}); set model.input_size to the size of the '
                    f'images{advice}'
                ) from error
        for name, tap in self._taps.items():
            self._check(name, readings[tap])
        if structure:
            try:
                check_gap_linear(
                    {
                        key: (readings[tap].value, readings[tap].version)
                        for key, tap in structure.items()
                    }
                )
            except ValueError as error:
                raise ValueError(f'{self.names["cam"]}: the {self.owner} {error}') from None
        # Dropout in place writes in training only, which a forward in eval mode does not show.
        drops = any(isinstance(m, _DropoutNd) and m.inplace for m in model.modules())
        self._overwritten = {
            tap
            for tap, reading in readings.items()
            if drops or reading.value._version != reading.version
        }
        return self._values(model, readings)

    @contextmanager
    def record(self, model: nn.Module) -> Iterator[dict[str, Any]]:
        """Reads the taps during the forwards of a ``with`` block.

        Args:
            model (nn.Module): The model that ``resolve`` was called with, or a copy.

        Yields:
            dict[str, Any]: Filled when the block ends: for each tap a tensor or class maps.
        """
        values: dict[str, Any] = {}
        taps, explained = set(self._taps.values()), {self._taps[name] for name in self.explained}
        with _readings(model, taps, self._overwritten, explained) as readings:
            yield values
        for name, tap in self._taps.items():
            if readings[tap].value is None:
                raise RuntimeError(
                    f"{self.names[name]}: the {self.owner}'s module {tap.path!r} was not called in this "
                    'forward'
                )
        values.update(self._values(model, readings))

    def compile(self, model: nn.Module, **kwargs: Any) -> None:
        """Compiles the largest parts of a model that hold no tap, in place; after ``resolve``.

        Taps are hooks of a step's own, which compiled code would not call.

        Args:
            model (nn.Module): The model.
            **kwargs: The arguments of ``torch.compile``.
        """
        if 'isolate_recompiles' in inspect.signature(torch.compile).parameters:
            # Else all parts share one small limit on versions, as they are called by the same code
            kwargs = {'isolate_recompiles': True, **kwargs}
        paths = [tap.path for tap in self._taps.values()]

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

    @property
    def taps(self) -> dict[str, Tap]:
        """After ``resolve``: where each tap is."""
        return dict(self._taps)

    @property
    def classifier(self) -> str:
        """After ``resolve`` with the tap 'cam': the path of the linear classifier."""
        return self._classifier

    def _locate(self, model: nn.Module, name: str) -> Tap:
        try:
            if name == 'logits':
                # mmpretrain's heads yield the logits when called, in every mode; TimmClassifier
                # keeps the whole network in `model`; any other module is the classifier itself.
                paths = [p for p in ('head', 'model') if hasattr(model, p)]
                return Tap(paths[0] if paths and isinstance(model, BaseModel) else '')
            if name in ('features', 'cam'):
                return Tap(find_global_pooling(model), side='in')
            if name == 'embedding':
                return Tap(find_classifier(model), side='in')
            if name == 'prototypes':
                return Tap(find_prototypes(model))
            tap = Tap.parse(name)
        except ValueError as error:
            raise ValueError(f'{self.names[name]}: the {self.owner} {error}') from None
        paths = [path for path, _ in model.named_modules(remove_duplicate=False) if path]
        if tap.path not in paths:
            near = difflib.get_close_matches(tap.path, paths, n=4, cutoff=0.4) or paths[:4]
            raise ValueError(
                f'{self.names[name]}: the {self.owner} has no module {tap.path!r}; near names are '
                f'{", ".join(near)}'
            )
        return tap

    def _check(self, name: str, reading: _Reading) -> None:
        tap, key = self._taps[name], self.names[name]
        if not reading.calls:
            raise ValueError(f"{key}: the {self.owner}'s forward does not call module {tap.path!r}")
        if tap.call is None and reading.calls > 1 and name not in NAMED_TAPS:
            raise ValueError(
                f'{key}: one forward of the {self.owner} calls module {tap.path!r} '
                f"{reading.calls} times; write '{tap.path}@0' to '{tap.path}@{reading.calls - 1}'"
            )
        if tap.call is not None and tap.call >= reading.calls:
            raise ValueError(
                f'{key}: one forward of the {self.owner} calls module {tap.path!r} '
                f'{reading.calls} times, so the last call is @{reading.calls - 1}'
            )
        if not isinstance(reading.value, Tensor):
            raise ValueError(
                f'{key}: {name!r} holds a {type(reading.value).__name__} in the {self.owner} and no '
                "tensor; where a tuple stands there, choose an element, as in 'backbone.stages.3[0]'"
            )

    def _values(self, model: nn.Module, readings: dict[Tap, _Reading]) -> dict[str, Any]:
        values = {name: readings[tap].value for name, tap in self._taps.items()}
        if 'cam' in values:
            linear = model.get_submodule(self._classifier)
            values['cam'] = ClassMaps(values['cam'], linear.weight, linear.bias, keep=True)
        if 'prototypes' in values:
            values['prototypes'] = model.get_submodule(self._taps['prototypes'].path).prototypes
        return values


@contextmanager
def intercept(
    model: nn.Module, functions: Mapping[Tap, Callable[[Any], Tensor | None]]
) -> Iterator[dict[Tap, int]]:
    """Calls functions with what passes the taps of a model during the forwards of a ``with`` block.

    Args:
        model (nn.Module): The model.
        functions (Mapping[Tap, Callable]): For each tap a function of the value there. A tensor that
            it returns takes the value's place in the rest of the forward.

    Yields:
        dict[Tap, int]: How often each tap was passed, counted as the block runs.
    """
    calls = dict.fromkeys(functions, 0)

    def pass_on(tap: Tap, value: Any) -> Any:
        call, calls[tap] = calls[tap], calls[tap] + 1
        if tap.call not in (None, call):
            return value
        items = value if isinstance(value, (tuple, list)) else None
        if items is None or not -len(items) <= tap.item < len(items):
            result = functions[tap](value)
            return value if result is None else result
        result = functions[tap](items[tap.item])
        if result is None:
            return value
        items = list(items)
        items[tap.item] = result
        return type(value)(*items) if hasattr(value, '_fields') else type(value)(items)

    def before(tap: Tap, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if args:
            return (pass_on(tap, args[0]), *args[1:]), kwargs
        first = next(iter(kwargs))
        return args, {**kwargs, first: pass_on(tap, kwargs[first])}

    def hook(tap: Tap) -> torch.utils.hooks.RemovableHandle:
        module = model.get_submodule(tap.path)
        if tap.side == 'in':
            return module.register_forward_pre_hook(
                lambda _, args, kwargs: before(tap, args, kwargs), with_kwargs=True
            )
        return module.register_forward_hook(lambda _, args, output: pass_on(tap, output))

    handles = [hook(tap) for tap in functions]
    try:
        with set_stance('force_eager') if _compiled(model, functions) else nullcontext():
            yield calls
    finally:
        for handle in handles:
            handle.remove()


def _compiled(model: nn.Module, taps: Collection[Tap]) -> bool:
    """Whether a tap lies in a part of the model that is compiled, where its hook would not be called."""
    for tap in taps:
        module = model
        for name in ['', *filter(None, tap.path.split('.'))]:
            module = getattr(module, name) if name else module
            if module._compiled_call_impl is not None:
                return True
    return False


@dataclass
class _Reading:
    """What was seen at one tap."""

    calls: int = 0
    value: Any = None
    version: int | None = None


@contextmanager
def _readings(
    model: nn.Module, taps: set[Tap], overwritten: set[Tap], explained: Collection[Tap] = ()
) -> Iterator[dict[Tap, _Reading]]:
    """Yields a reading for each tap; they are filled as the forward runs."""
    readings = {tap: _Reading() for tap in taps}

    def reader(tap: Tap) -> Callable[[Any], None]:
        def read(value: Any) -> None:
            if isinstance(value, Tensor):
                readings[tap].version = None if value.is_inference() else value._version
                if tap in overwritten:
                    value = value.clone()
            readings[tap].value = value

        def read_and_record(value: Tensor) -> Tensor:
            torch.set_grad_enabled(True)  # until the forward's end
            if not value.requires_grad:
                value = value.detach().requires_grad_()
            readings[tap].value = value
            return value.clone() if tap in overwritten else value

        return read_and_record if tap in explained else read

    with torch.set_grad_enabled(torch.is_grad_enabled()):
        with intercept(model, {tap: reader(tap) for tap in taps}) as calls:
            yield readings
    for tap, reading in readings.items():
        reading.calls = calls[tap]
