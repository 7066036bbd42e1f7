#!/usr/bin/env python
"""Tests a checkpoint; the arguments are those of mmpretrain's tools/test.py."""

import argparse

from mmengine.config import Config

from mmkdx.apis import mmpretrain_tool
from mmkdx.compat import prepare_cpu_launch


def main() -> None:
    """Runs mmpretrain's tool on a config that is made ready for this machine."""
    tool = mmpretrain_tool('test')
    merge_args = tool.merge_args

    def merge(cfg: Config, args: argparse.Namespace) -> Config:
        cfg = merge_args(cfg, args)
        prepare_cpu_launch(cfg, args.launcher)
        return cfg

    tool.merge_args = merge
    tool.main()


if __name__ == '__main__':
    main()
