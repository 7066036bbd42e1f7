#!/usr/bin/env python
"""Prints a config with all that it inherits."""

from __future__ import annotations

import argparse

from mmengine.config import Config, DictAction

from mmkdx.data_configs import DataConfigError


def main(argv: list[str] | None = None) -> None:
    """Runs the tool."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path of the config')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='settings to override, like optim_wrapper.optimizer.lr=0.01',
    )
    args = parser.parse_args(argv)
    try:
        cfg = Config.fromfile(args.config)
    except (FileNotFoundError, DataConfigError) as error:
        raise SystemExit(f'Config {args.config} cannot be read: {error}') from error
    cfg.merge_from_dict(args.cfg_options or {})
    print(cfg.pretty_text)


if __name__ == '__main__':
    main()
