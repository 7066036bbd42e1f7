#!/usr/bin/env python
"""Prints what a bug report should say about the machine and the installed packages."""

from __future__ import annotations

from importlib.metadata import packages_distributions, version

from mmengine.utils.dl_utils import collect_env as collect_base_env

import mmkdx
from mmkdx.plugins import loaded_plugins


def collect_env() -> dict[str, str]:
    """Adds packages and plugins to what mmengine collects."""
    env = collect_base_env()
    env.pop('MMEngine', None)  # named below with its distribution
    # Two package families have the same modules, and overwrite each other in one environment
    installed = packages_distributions()
    for module in ('mmengine', 'mmcv', 'mmpretrain'):
        names = sorted(set(installed.get(module, ())))
        env[module] = ', '.join(f'{name} {version(name)}' for name in names) or 'no distribution'
    env['mmkdx'] = mmkdx.__version__
    plugins = [
        f'{plugin.name} of {plugin.distribution}' + (f' ({plugin.error})' if plugin.error else '')
        for plugin in loaded_plugins()
    ]
    env['mmkdx plugins'] = ', '.join(plugins) or 'none'
    return env


def main() -> None:
    """Runs the tool."""
    for name, value in collect_env().items():
        print(f'{name}: {value}')


if __name__ == '__main__':
    main()
