"""Reads configs in YAML and JSON, and pickled annotations, as data: they import and run nothing.

A Python config is a program. A config in YAML or JSON may name parts that the registries hold, but
no import paths.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import mmengine
import yaml
from mmengine.config import Config
from mmengine.dataset import base_dataset
from mmengine.fileio.handlers import PickleHandler, file_handlers, yaml_handler
from mmengine.registry import registry as mmengine_registry

from mmkdx.checkpoints import UNASKED, PlainUnpickler

SUFFIXES = ('.yml', '.yaml', '.json')
#: The scopes that a config in YAML or JSON may name, beside scopes that are already imported.
SCOPES = ('mmengine', 'mmcv', 'mmpretrain', 'mmkdx')
#: Keys that run code, so a config in YAML or JSON cannot have them, and what each one does.
REFUSED_KEYS = {
    'custom_imports': 'imports modules',
    'runner_type': 'names a class to import',
    'trust_remote_code': 'runs downloaded code',
}
#: Registered types that evaluate their arguments as Python.
EVALUATING = ('RFSearchHook',)
#: The largest number of values of a config. Aliases of YAML can multiply values.
MAX_VALUES = 100_000

PROGRAM = (
    'a program; configs in YAML and JSON may name YAML, JSON and the configs of installed packages, '
    "such as 'mmkdx::cifar/resnet20_cifar100.py'"
)

#: Texts of all configs in YAML and JSON that this process has read.
_texts: set[str] = set()


class DataConfigError(ValueError):
    """A config in YAML or JSON is damaged, or asks for code to run; the message names the file."""


class _Loader(getattr(yaml, 'CSafeLoader', yaml.SafeLoader)):
    """yaml's safe loader, which also knows the tuples that mmengine writes."""

    def construct_tuple(self, node: yaml.Node) -> tuple:
        return tuple(self.construct_sequence(node, deep=True))


_Loader.add_constructor('tag:yaml.org,2002:python/tuple', _Loader.construct_tuple)


def install() -> None:
    """Makes mmengine read YAML, JSON and pickles without running code; see ``mmkdx.compat``."""
    if yaml_handler.Loader is _Loader:
        return
    yaml_handler.Loader = _Loader
    file_handlers.update(pickle=_PickleHandler(), pkl=_PickleHandler())
    for module in (mmengine, mmengine.fileio, base_dataset):
        module.load = _named(mmengine.fileio.io.load)
    Config._get_base_files = staticmethod(_checked_bases(Config._get_base_files))
    Config._file2dict = staticmethod(_recorded(Config._file2dict))
    for name, is_refused in (
        ('import_module', _is_scope_of_data),
        ('get_object_from_string', _texts.__contains__),
    ):
        setattr(mmengine_registry, name, _unless(is_refused, getattr(mmengine_registry, name)))


def check_data(config: Any) -> None:
    """Refuses a config that was read as data if it would import or run code.

    The texts of the config are remembered, so that nothing imports them later.

    Raises:
        DataConfigError: If it would import or run code.
    """
    _check(config)
    _texts.update(value for _, value in _values(config) if isinstance(value, str))


def check_named_config(name: str, key: str) -> None:
    """Refuses a Python config that YAML or JSON names, unless an installed package has it.

    Raises:
        DataConfigError: If the named config is neither YAML, JSON nor one of an installed package.
    """
    path = name.endswith('.py') or ':' in name  # or a callable; else it names mmpretrain's zoo
    if name in _texts and path and _is_program(name):
        raise DataConfigError(f'{key} is {name!r}, {PROGRAM}')


def _recorded(read: Callable) -> Callable:
    """``Config._file2dict`` that names the file in errors and remembers texts of YAML and JSON."""

    @wraps(read)
    def file2dict(filename: str, *args: Any, **kwargs: Any) -> tuple:
        if not str(filename).endswith(SUFFIXES):
            return read(filename, *args, **kwargs)
        try:
            found = read(filename, *args, **kwargs)
            check_data(found[0])
        except DataConfigError as error:
            raise DataConfigError(f'{filename}: {error}') from error
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            where = getattr(error, 'problem_mark', None)
            line = f' in line {where.line + 1}' if where else ''
            raise DataConfigError(
                f'{filename} cannot be read as data{line}: {getattr(error, "problem", error)}'
            ) from error
        return found

    return file2dict


def _checked_bases(read: Callable) -> Callable:
    """``Config._get_base_files`` that checks the content of YAML and JSON."""

    @wraps(read)
    def get_base_files(filename: str) -> list:
        if not filename.endswith(SUFFIXES):
            return read(filename)
        config = mmengine.load(filename)
        _check(config)
        return read(filename)

    return get_base_files


def _check(config: Any) -> None:
    """Refuses a config that would import or run code."""
    if not isinstance(config, dict):
        raise DataConfigError(f'it holds a {type(config).__name__} and not keys with values')
    for key, value in _values(config):
        if key in REFUSED_KEYS:
            raise DataConfigError(
                f'{key} {REFUSED_KEYS[key]}, which YAML and JSON cannot ask for; write a Python config'
            )
        if not isinstance(value, str):
            continue
        scope, _, name = value.rpartition('.')
        if key == 'type' and (not _is_scope(scope) or name in EVALUATING):
            raise DataConfigError(
                f'type is {value!r}; YAML and JSON may name registered types alone, so register it in '
                'a plugin, or write a Python config'
            )
        if key in ('_scope_', 'default_scope') and not _is_scope(value):
            raise DataConfigError(
                f'{key} is {value!r}; in YAML and JSON it is one of {", ".join(SCOPES)}'
            )
    bases = config.get('_base_', [])
    for base in bases if isinstance(bases, list) else [bases]:
        if _is_program(str(base)):
            raise DataConfigError(f'_base_ is {base!r}, {PROGRAM}')


def _is_program(name: str) -> bool:
    """Whether a name stands for a Python config that is outside of the installed packages."""
    package, mark, path = name.rpartition('::')
    if mark:
        return package not in SCOPES or '..' in path or Path(path).is_absolute()
    return not name.endswith(SUFFIXES)


def _values(config: Any) -> Iterator[tuple[Any, Any]]:
    """All values of a nested config, each with its key; inside a list the key is None."""
    waiting, count = [(None, config)], 0
    while waiting:
        key, value = waiting.pop()
        count += 1
        if count > MAX_VALUES:
            raise DataConfigError(f'it has more than {MAX_VALUES:,} values')
        yield key, value
        if isinstance(value, dict):
            waiting.extend(value.items())
        elif isinstance(value, (list, tuple, set)):
            waiting.extend((None, each) for each in value)


def _is_scope(name: str) -> bool:
    """Whether a scope ('' is none) can be used without importing an unknown package."""
    return not name or name in SCOPES or name in mmengine.registry.MODELS._children


def _is_scope_of_data(module: str) -> bool:
    """Whether a module is the registry of a scope that only YAML or JSON has named."""
    scope, _, name = module.rpartition('.')
    return (
        name == 'registry'
        and not _is_scope(scope)
        and any(text == scope or text.startswith(f'{scope}.') for text in _texts)
    )


def _unless(is_refused: Callable, function: Callable) -> Callable:
    """An importing function of mmengine's registries that skips names from YAML and JSON."""

    @wraps(function)
    def looked_up(name: str) -> Any:
        return None if is_refused(name) else function(name)

    return looked_up


class _PickleHandler(PickleHandler):
    """mmengine's handler, limited to plain containers and numpy arrays."""

    def load_from_fileobj(self, file: Any, **kwargs: Any) -> Any:
        """Loads a pickle; other objects need ``MMKDX_UNSAFE_LOAD=1`` in the environment."""
        if os.environ.get('MMKDX_UNSAFE_LOAD') == '1':
            return super().load_from_fileobj(file, **kwargs)
        return PlainUnpickler(file, **kwargs).load()


def _named(load: Callable) -> Callable:
    """``mmengine.load`` that names the file in errors about pickles."""

    @wraps(load)
    def named(file: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return load(file, *args, **kwargs)
        except (pickle.UnpicklingError, EOFError) as error:
            _, refused, name = str(error).partition('GLOBAL ')
            reason = f'holds {name}, {UNASKED}' if refused else 'is damaged or no pickle'
            raise ValueError(f'{file} {reason}') from error

    return named
