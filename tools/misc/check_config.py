#!/usr/bin/env python
"""Shows what each term of a config compares, and takes one training step on made-up images.

It needs neither data nor weights: teachers whose file is missing keep their random weights.
"""

import argparse
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config, DictAction
from terminaltables import AsciiTable
from torch import nn

from mmkdx.apis.config_keys import check_keys
from mmkdx.apis.dry_run import (
    build_from_config,
    build_rest,
    first_dataloader,
    floor_factor,
    multiply_adds,
    naming,
    one_step,
    synthetic_batch,
    term_rows,
)
from mmkdx.apis.heads import head_rows
from mmkdx.data_configs import DataConfigError
from mmkdx.datasets.wrappers import config_class_names
from mmkdx.distillation import Distiller, Teacher
from mmkdx.distillation.models import load_file
from mmkdx.models import describe
from mmkdx.plugins import loaded_plugins


def main() -> None:
    """Reads the config, checks it, and prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('config', help='a config file')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='settings to override, as key=value'
    )
    args = parser.parse_args()
    try:
        cfg = Config.fromfile(args.config)
    except (DataConfigError, FileNotFoundError) as error:
        raise SystemExit(f'{error}') from error
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    try:
        check(args.config, cfg)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f'{args.config}: {error}') from error


def settle_weights(teacher: Teacher, names: Sequence[str] | None) -> str:
    """Loads a teacher's file if it exists, compares its classes, and names its weights' source."""
    if teacher.loaded:
        teacher.match_classes(names)
        return 'as given'
    if teacher.checkpoint is None:
        teacher.keep_random_weights(names)
        return 'NONE: set teacher.checkpoint'
    source = teacher.checkpoint
    if isinstance(source, dict):  # a library has them
        teacher.keep_random_weights(names)
        return f'to be downloaded: {source["type"]}'
    local = '://' not in source
    where = source if local else source.rpartition('/')[2]
    if not local or not Path(where).is_file():
        teacher.keep_random_weights(names)
        return f'{"NOT FOUND" if local else "to be downloaded"}: {where}'
    if names:
        teacher.match_classes(names)
        return where
    # The config does not name the classes, so their order is compared once the data are loaded
    load_file(teacher.model, where, teacher.strict)
    teacher.train()
    teacher.loaded = True
    return where


def first_weights(cfg: Config, model: nn.Module) -> str:
    """Where the weights of the trained model come from: ``load_from``, or files of its ``init_cfg``."""
    if cfg.get('load_from'):
        return str(cfg.load_from)
    found = [getattr(module, 'init_cfg', None) or [] for module in model.modules()]
    each = [init for inits in found for init in (inits if isinstance(inits, list) else [inits])]
    files = [str(init['checkpoint']) for init in each if init.get('type') == 'Pretrained']
    return ', '.join(files) or 'random'


def check(name: str, cfg: Config) -> None:
    """Prints the terms and models of a config, and the losses of a step on made-up images."""
    check_keys(cfg)
    with naming('model'):
        model = build_from_config(cfg)
    logging.disable(logging.INFO)  # about the options of single parameters
    build_rest(cfg, model)
    logging.disable(logging.NOTSET)
    first_dataloader(cfg)
    with naming('the transforms of the data loader'):
        batch = synthetic_batch(cfg)
    channels, *size = batch['inputs'].shape[1:]
    of = '' if channels == 3 else f' and {channels} channel{"s" * (channels > 1)}'
    print(f'{name}: images of {size[0]} x {size[1]} pixels{of}')

    distills = isinstance(model, Distiller)
    if distills:
        header = ['term', 'loss', 'student tap', 'shape', 'teacher tap', 'shape']
        header += ['adapter', 'weight', 'schedule']
        print(AsciiTable([header, *term_rows(model, size)], 'Terms').table)

    student = model.student if distills else model
    rows = [['model', 'architecture', 'parameters', 'multiply-adds', 'weights']]

    def count(name: str, module, weights: str) -> int:
        cost = multiply_adds(module, size, channels)
        kind = describe(module).name
        parameters = sum(p.numel() for p in module.parameters())
        rows.append([name, kind, f'{parameters:,}', f'{cost / 1e9:.3f} G', weights])
        return cost

    cost = count('student' if distills else 'model', student, first_weights(cfg, student))
    names = config_class_names(first_dataloader(cfg).dataset)
    costs = []
    for i, teacher in enumerate(model.teachers if distills else ()):
        members = [m for m in teacher.modules() if isinstance(m, Teacher)]
        for member in members or [teacher]:
            weights = settle_weights(member, names) if members else "the student's average"
            costs.append(count(f'teacher {i}', member.model, weights))
    print(AsciiTable(rows, 'Models').table)
    if costs:
        print(f'Floor of a step: {floor_factor(cost, costs):.2f} times the student alone')

    heads = head_rows(model, model.data_preprocessor(batch, False)) if distills else []
    if heads:
        header = ['model', 'head', 'share of the logit in the map']
        print(AsciiTable([header, *heads], 'Class maps').table)
    plugins = loaded_plugins()
    print(f'Plugins: {", ".join(map(str, plugins)) or "none"}')
    start = time.perf_counter()
    losses, unused = one_step(model, batch)
    print(
        f'One step in {time.perf_counter() - start:.1f} s: '
        + ', '.join(f'{name} {value:.4g}' for name, value in losses.items())
    )
    if unused:
        print(
            f'{len(unused)} parameters get no gradient, which DDP refuses without '
            f'find_unused_parameters=True: {", ".join(unused[:6])}'
        )


if __name__ == '__main__':
    main()
