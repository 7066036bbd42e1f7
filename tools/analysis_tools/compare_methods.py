#!/usr/bin/env python
"""Compares methods of distillation on the pair of one config: trains and tests each with several seeds.

CONFIG is a distillation. Each method replaces its terms, with published settings, and is a row of the
table. Data, schedule, teacher and student stay the same. Where CONFIG has a cached teacher, the outputs
that the methods need are computed once, before the first run.
"""

import argparse
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmkdx.apis import runs
from mmkdx.apis.config_text import config_text
from mmkdx.apis.held_out import cached_teachers
from mmkdx.apis.methods import Method, methods
from mmkdx.apis.new_config import METHODS
from mmkdx.arguments import size
from mmkdx.files import exit_on_write_error, write_file
from mmkdx.registry import DATASETS

#: What the weights of the terms may be.
WEIGHTS = ('published', 'auto')


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = runs.experiment_parser(__doc__, [0, 1, 2], 'work_dirs/methods')
    parser.add_argument('config', type=Path)
    add = parser.add_argument
    add('--methods', nargs='+', choices=METHODS, default=METHODS, help='default: all')
    weights = "auto makes each term's gradient as large as that of the labels' loss"
    add('--weights', nargs='+', choices=WEIGHTS, default=WEIGHTS[:1], help=weights)
    args = parser.parse_args()
    if not args.config.is_file():
        parser.error(f'there is no config {args.config}')
    return args


def shelf(cfg: Config) -> dict[str, Method]:
    """The methods for the data and the schedule of a config.

    Raises:
        ValueError: If the config is no distillation, or has no epochs or no ``input_size``.
    """
    model, epochs = cfg.get('model', {}), cfg.get('train_cfg', {}).get('max_epochs')
    if not model.get('terms') or not model.get('teacher'):
        raise ValueError(f'{cfg.filename}: model.terms and model.teacher: this is no distillation')
    if epochs is None or 'input_size' not in model:
        raise ValueError(f'{cfg.filename}: train_cfg.max_epochs and model.input_size must be set')
    loader = cfg.train_dataloader
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmkdx')):
        images = len(DATASETS.build(loader.dataset))
    return methods(max(size('input_size', model.input_size)), loader.batch_size, images, epochs)


def with_weights(method: Method, weights: str) -> Method:
    """The method with automatic weights, beside the whole loss of the labels, or as it is."""
    if weights == 'published':
        return method
    terms = {name: {**term, 'weight': 'auto'} for name, term in method.terms.items()}
    return Method(method.title, terms)


def write_config(path: Path, base: Path, method: Method) -> None:
    """Writes a config that differs from another one in its terms alone."""
    model = dict(student_weight=method.student_weight, terms=dict(_delete_=True, **method.terms))
    parts = [('', dict(_base_=[str(base.absolute())])), ('', dict(model=model))]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, config_text([method.title], parts))


@exit_on_write_error()
def main() -> None:
    """Runs everything and prints the table, in Markdown."""
    args = parse_args()
    cfg = Config.fromfile(args.config)
    found = shelf(cfg)
    folder = args.work_dir / 'configs'
    chosen = {
        name if weights == 'published' else f'{name}-{weights}': with_weights(found[name], weights)
        for name in args.methods
        for weights in args.weights
    }
    for name, method in chosen.items():
        write_config(folder / f'{name}.py', args.config, method)
    if cached_teachers(cfg):
        terms = {f'{name}_{t}': term for name, m in chosen.items() for t, term in m.terms.items()}
        everything = folder / 'cache' / 'all.py'
        write_config(everything, args.config, Method('What all methods read', terms))
        options = ['--cfg-options', *args.cfg_options] if args.cfg_options else []
        runs.call_tool('cache_teacher.py', everything, *options, log=everything.with_suffix('.txt'))
    configs = {name: (folder / f'{name}.py', args.cfg_options) for name in chosen}
    results = runs.run_seeds(configs, args.seeds, args.work_dir, args.jobs)
    rows = [[name, *runs.metric_cells(each, args.metrics)] for name, each in results.items()]
    print(runs.markdown(['method', *args.metrics], rows))


if __name__ == '__main__':
    main()
