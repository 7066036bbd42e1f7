"""Loads the packages that extend mmkdx, found by the entry point group ``mmkdx.plugins``.

This module is the last location of every registry. So the first look-up in a process imports it and
loads the plugins; a config needs no line for them. An entry point names a module that registers its
parts when it is imported.

``MMKDX_NO_PLUGINS=1`` in the environment loads none; with ``MMKDX_STRICT_PLUGINS=1`` a plugin that
fails is an error, not a warning.
"""

from __future__ import annotations

import logging
import os
from importlib.metadata import entry_points
from typing import NamedTuple

from mmengine.logging import print_log


class Plugin(NamedTuple):
    """One entry point of the group ``mmkdx.plugins``, and whether it works."""

    name: str
    distribution: str
    error: str | None
    """Why it was skipped, or None if it works."""


_plugins: list[Plugin] = []


def loaded_plugins() -> list[Plugin]:
    """Lists the plugins that were found in this process, the failed ones too."""
    return list(_plugins)


def _load() -> None:
    """Loads every plugin that is installed."""
    if os.environ.get('MMKDX_NO_PLUGINS') == '1':
        return
    for entry in sorted(entry_points(group='mmkdx.plugins'), key=lambda entry: entry.name):
        distribution = f'{entry.dist.name} {entry.dist.version}'
        error = None
        try:
            entry.load()
        except Exception as reason:
            error = f'{type(reason).__name__}: {reason}'
            sentence = f'Plugin {entry.name!r} of {distribution} cannot be loaded: {error}'
            if os.environ.get('MMKDX_STRICT_PLUGINS') == '1':
                raise RuntimeError(sentence) from reason
            print_log(f'{sentence}; it is skipped.', logger='current', level=logging.WARNING)
        _plugins.append(Plugin(entry.name, distribution, error))


# Last, because a plugin that looks something up while it is being loaded imports this module again.
_load()
