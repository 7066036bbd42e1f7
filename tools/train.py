#!/usr/bin/env python
"""Trains a model from a config; the options are those of mmpretrain's tools/train.py."""

import argparse

from mmengine.config import Config

from mmkdx.apis import mmpretrain_tool
from mmkdx.compat import last_whole_checkpoint, prepare_cpu_launch


def main() -> None:
    """Runs mmpretrain's tool on a config that is made ready for this machine."""
    tool = mmpretrain_tool('train')
    merge_args = tool.merge_args

    def merge(cfg: Config, args: argparse.Namespace) -> Config:
        cfg = merge_args(cfg, args)
        if args.resume == 'auto':
            cfg.load_from = last_whole_checkpoint(cfg.work_dir)
        prepare_cpu_launch(cfg, args.launcher)
        return cfg

    tool.merge_args = merge
    tool.main()


if __name__ == '__main__':
    main()
