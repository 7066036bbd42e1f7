#!/usr/bin/env python
"""Computes the outputs that a distillation reads from its CachedTeacher, once, into files.

Afterwards train CONFIG with tools/train.py. An interrupted run continues where it stopped. If the
folder is whole, the tool checks its files and writes nothing.
"""

import argparse
import copy
import sys
import time

from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.dist import init_dist, is_distributed, is_main_process, master_only
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.utils import ProgressBar
from mmengine.utils.dl_utils import set_multi_processing
from torch.utils.data import DataLoader

from mmkdx.apis.dry_run import build_from_config
from mmkdx.compat import finish_launch, prepare_cpu_launch
from mmkdx.distillation.cache import CachedTeacher, CacheWriter
from mmkdx.distillation.distiller import Distiller
from mmkdx.files import exit_on_write_error
from mmkdx.lock import FolderInUseError


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config of a distillation')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, help='key=value')
    parser.add_argument('--batch-size', type=int, help="default: train_dataloader's")
    parser.add_argument('--num-workers', type=int, help="default: train_dataloader's")
    parser.add_argument(
        '--shard-size', type=int, default=4096, help='images per file; default: 4096'
    )
    launchers = ['none', 'pytorch', 'slurm', 'mpi']
    parser.add_argument('--launcher', choices=launchers, default='none', help='as in train.py')
    parser.add_argument('--device', help='default: cuda, if there is a GPU')
    args = parser.parse_args()
    for option, value in (('batch', args.batch_size), ('shard', args.shard_size)):
        if value is not None and value < 1:
            parser.error(f'--{option}-size is {value}; it must be at least 1')
    return args


@exit_on_write_error()
def main() -> None:
    """Writes the caches of a config's teachers."""
    args = parse_args()
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options)
    env = cfg.get('env_cfg') or {}
    set_multi_processing(distributed=args.launcher != 'none', **env.get('mp_cfg') or {})
    prepare_cpu_launch(cfg, args.launcher)
    if args.launcher != 'none' and not is_distributed():
        init_dist(args.launcher, **env.get('dist_cfg') or {})
    distiller = build_from_config(cfg)
    parts = [part for each in getattr(distiller, 'teachers', ()) for part in each.modules()]
    found = [part for part in parts if isinstance(part, CachedTeacher) and part.layout]
    if not found:
        raise ValueError(
            f'{args.config}: model.teacher is no CachedTeacher that a term reads; write teacher='
            "dict(type='CachedTeacher', teacher=..., cache=...)"
        )
    if len({teacher.folder.resolve() for teacher in found}) < len(found):
        raise ValueError(f'{args.config}: two teachers have one folder; give each its own cache')
    settings = copy.deepcopy(cfg.train_dataloader)
    for key in ('batch_sampler', 'drop_last', 'persistent_workers'):
        settings.pop(key, None)
    settings.batch_size = args.batch_size or settings.get('batch_size', 64)
    if args.num_workers is not None:
        settings.num_workers = args.num_workers
    settings.sampler = dict(type='DefaultSampler', shuffle=False)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmkdx')):
        loader = Runner.build_dataloader(settings, seed=0)
    distiller = distiller.to(args.device or get_device())
    for teacher in found:
        try:
            write(distiller, teacher, loader, args.shard_size)
        except FolderInUseError as error:
            sys.exit(f'teacher.cache: {error}')
    finish_launch()


def write(
    distiller: Distiller, teacher: CachedTeacher, loader: DataLoader, shard_size: int
) -> None:
    """Writes the cache of one teacher, and prints its progress."""
    start = time.perf_counter()
    writer = CacheWriter(distiller, teacher, loader, shard_size)
    folder, count = writer.folder, len(writer.files)
    say = master_only(print)
    if writer.whole:
        say(f'{folder} is whole: {count} files with outputs of this teacher')
        return
    say(f'{folder}: {len(writer.missing)} of {count} files to write')
    if is_main_process():
        bar = ProgressBar(sum(file.stop - file.start for file in writer.own), file=sys.stderr)
        writer.write(bar.update)
    else:
        writer.write()
    images = sum(file.stop - file.start for file in writer.missing)
    seconds = time.perf_counter() - start
    size = sum((folder / file.name).stat().st_size for file in writer.files)
    speed = f'{images} images in {seconds:.0f} s, {images / seconds:.0f} a second'
    say(f'\n{folder}: {size / 2**20:.1f} MiB in {count} files; {speed}')


if __name__ == '__main__':
    main()
