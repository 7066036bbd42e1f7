"""Checks a config's options against the signatures of the parts that they build."""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from numbers import Number
from os import PathLike
from typing import Any, Union

from mmengine.registry import OPTIMIZERS, Registry
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, set_random_seed
from torch import Tensor

from mmkdx import registry
from mmkdx.distillation.teachers import Teacher
from mmkdx.models.libraries import near_names

#: The types of values, in words for messages.
WORDS = dict(
    boolean='True or False', number='a number', text='a text', list='a list', dict='a dict'
)
#: Options that may be infinite.
INFINITE = ('norm_type',)
#: Parts that are dicts with a type, in lists and in sections, each by the end of its path.
LISTS = ('pipeline', '_evaluator', 'custom_hooks', 'param_scheduler')
SECTIONS = dict(
    dataset=('_dataloader', '.dataset'), sampler='_dataloader', optimizer='optim_wrapper'
)
PARTS = ('backbone', 'neck', 'head', 'loss', *SECTIONS)


def check_types(options: dict) -> None:
    """Refuses options of a wrong type, such as a text for a number, in any part of a config.

    The annotation and the default in the part's signature give the types. Without them, any value
    is accepted. NaN is refused, and so is infinity, except for the options in ``INFINITE``.

    Args:
        options (dict): A config.

    Raises:
        ValueError: If there is such an option; the message names its path.
    """
    for path, value in _dicts(options):
        reader = _reader(path, value)
        for key, each in value.items():
            if wrong := _mistake(path, key, each, reader):
                raise ValueError(f'{f"{path}.{key}".lstrip(".")} is {each!r}; {wrong}')


def _mistake(path: str, key: str, value: Any, reader: Callable | None) -> str:
    """Says what a wrong option must be; '' for a right one."""
    if isinstance(value, float) and not (
        math.isfinite(value) or math.isinf(value) and key in INFINITE
    ):
        return 'an option must be finite'
    part = path.endswith(SECTIONS.get(key, LISTS if isinstance(key, int) else 'default_hooks'))
    if (value == {} and (part or key in PARTS)) or (
        part and not isinstance(value, dict | None if path == 'default_hooks' else dict)
    ):
        return 'it must be a dict with a type'
    if part and key == 'optimizer' and isinstance(kind := value.get('type'), str):
        if registry.OPTIMIZERS.get(kind) is None:
            return f'there is no such optimizer{near_names(kind, OPTIMIZERS.module_dict)}'
    takes = _takes(reader, key) if reader else None
    if takes is None or _fits(value, takes):
        return ''
    return f'{reader.__name__} takes {" or ".join(WORDS[kind] for kind in WORDS if kind in takes)}'


def _dicts(value: Any, path: str = '') -> Iterator[tuple[str, dict]]:
    """Yields the path and the content of each dict of a config, and of each list as a dict."""
    if isinstance(value, dict | list | tuple):
        value = value if isinstance(value, dict) else dict(enumerate(value))
        yield path, value
        for key, each in value.items():
            yield from _dicts(each, f'{path}.{key}'.lstrip('.'))


def _reader(path: str, value: dict) -> Callable | None:
    """The class or function that reads a dict of options; None if it is unknown."""
    kind = value.get('type')
    if isinstance(kind, str):
        return _registered(kind)
    if callable(kind):
        return kind
    if path == 'train_cfg':
        return EpochBasedTrainLoop if value.get('by_epoch') else IterBasedTrainLoop
    if path.rpartition('.')[2] == 'data_preprocessor':
        return _registered('ClsDataPreprocessor')
    if path == 'optim_wrapper':
        return _registered('OptimWrapper')
    if {'model', 'checkpoint'} <= set(value):
        return Teacher
    return set_random_seed if path == 'randomness' else None


@cache
def _registered(name: str) -> Callable | None:
    """The object with this name in the registries, if there is exactly one."""
    registries = [each for each in vars(registry).values() if isinstance(each, Registry)]
    found = {id(kind): kind for each in registries if (kind := each.get(name)) is not None}
    return next(iter(found.values())) if len(found) == 1 else None


@cache
def _takes(reader: Callable, name: str) -> set[str] | None:
    """The types that an option takes; None if it takes any type, or this is unknown."""
    # Arguments that a class passes on are in a base class's signature
    for owner in inspect.getmro(reader) if inspect.isclass(reader) else (reader,):
        function = vars(owner).get('__init__') if inspect.isclass(owner) else owner
        if function is None:
            continue
        try:
            parameters = inspect.signature(function).parameters
        except (TypeError, ValueError):  # written in C
            return None
        if name in parameters:
            return _kinds(function, parameters[name])
        if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
            return None
    return None


def _kinds(function: Callable, parameter: inspect.Parameter) -> set[str] | None:
    try:
        hint = typing.get_type_hints(function).get(parameter.name)
    except Exception:  # the hint may be a name imported for type checkers only
        hint = None
    default = None if parameter.default is parameter.empty else _kind(parameter.default)
    kinds = _hinted(hint)
    if kinds is None:
        # Without an annotation, 1 may stand for True, and a dict for a list of dicts
        also = dict(number=(), boolean=('number',), list=('dict', 'None'), dict=('list', 'None'))
        return {default, *also[default]} if default in also else None
    # If the default is a dict, None often means no dict
    more = {None: set(), 'dict': {'dict', 'None'}}.get(default, {default})
    return kinds | more


def _hinted(hint: Any) -> set[str] | None:
    if typing.get_origin(hint) in (Union, types.UnionType):
        each = [_hinted(member) for member in typing.get_args(hint)]
        return None if None in each else set().union(*each)
    kind = typing.get_origin(hint) or hint
    if kind is type(None):
        return {'None'}
    if not isinstance(kind, type):
        return None
    if issubclass(kind, Tensor):  # no config holds one
        return set()
    for word, classes in (
        ('boolean', bool),
        ('number', Number),
        ('text', (str, PathLike)),
        ('dict', Mapping),
        ('list', Iterable),
    ):
        if issubclass(kind, classes):
            return {word}
    return None


def _kind(value: Any) -> str | None:
    """The type of a value: 'None' or a key of ``WORDS``; None for other types."""
    if value is None or isinstance(value, bool):
        return 'None' if value is None else 'boolean'
    kinds = dict(number=Number, text=(str, PathLike), dict=Mapping, list=(list, tuple, set, range))
    return next((word for word, classes in kinds.items() if isinstance(value, classes)), None)


def _fits(value: Any, takes: set[str]) -> bool:
    kind = _kind(value)
    # Annotations are narrower than what mmengine and mmpretrain take: (3, 3) for 3, a list of dicts for
    # a dict, 512.0 for 'dynamic'
    wider = dict(list={'number', 'dict'} if value else set(), number={'text'})
    return kind is None or bool(takes & ({kind} | wider.get(kind, set())))
