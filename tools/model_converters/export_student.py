#!/usr/bin/env python
"""Writes a student for use without mmkdx, from a distillation's config and checkpoint.

--format mmpretrain writes OUT_DIR/NAME.py and OUT_DIR/NAME.pth, without teacher, terms and
adapters. Data loaders stay if mmpretrain has their data set. Otherwise only the test pipeline
stays, which mmpretrain's inferencers need. If the student itself has parts of mmkdx, such as a
prototype head, the config imports mmkdx, which must then be installed.

--format library, safetensors, onnx and torch.export write one file. First its content is read back
and compared with the student. The file holds the classes' names and the normalisation.
"""

import argparse
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import CheckpointLoader
from mmpretrain.registry import DATASETS, MODELS
from torch import Tensor, nn

import mmkdx.registry as mmkdx
from mmkdx.apis.dry_run import synthetic_batch
from mmkdx.apis.export import FORMATS, export_model
from mmkdx.checkpoints import save_checkpoint_file
from mmkdx.distillation.class_order import classes_in
from mmkdx.distillation.models import build_model, load_weights, model_config
from mmkdx.files import exit_on_write_error, write_file, written_together


def is_foreign(dataset: dict) -> bool:
    """Whether plain mmpretrain lacks a data set, or one that it wraps."""
    inner = 'dataset' in dataset and is_foreign(dataset['dataset'])
    return inner or DATASETS.get(dataset['type']) is None


def name_parts(config: Any) -> bool:
    """Adds 'mmkdx.' to the types that mmpretrain does not know, and tells if there are any."""
    if isinstance(config, (list, tuple)):
        return any([name_parts(each) for each in config])
    if not isinstance(config, dict):
        return False
    kind = config.get('type')
    ours = isinstance(kind, str) and MODELS.get(kind) is None and mmkdx.MODELS.get(kind) is not None
    if ours:
        config['type'] = f'mmkdx.{kind}'
    return any([ours, *(name_parts(each) for each in config.values())])


def student_config(cfg: Config) -> Config:
    """The config of the student alone."""
    model = model_config(cfg.model.to_dict(), 'model', cfg.get('data_preprocessor'))
    plain = dict(default_scope='mmpretrain', model=model)
    if model['type'] == 'PlainClassifier':  # the checkpoint has the weights
        for key in ('pretrained', 'weights'):
            model.pop(key, None)
    if name_parts(model):
        plain['custom_imports'] = dict(imports=['mmkdx'])
    for part in ('train', 'val', 'test'):
        loader = cfg.get(f'{part}_dataloader')
        if loader and not is_foreign(loader['dataset']):
            keys = (f'{part}_{key}' for key in ('dataloader', 'cfg', 'evaluator'))
            plain.update((key, cfg[key]) for key in keys if key in cfg)
        elif loader and part == 'test':
            plain['test_dataloader'] = dict(dataset=dict(pipeline=loader['dataset']['pipeline']))
    if 'train_dataloader' in plain:
        plain.update((key, cfg[key]) for key in ('optim_wrapper', 'param_scheduler') if key in cfg)
    return Config(plain)


def example_images(cfg: Config, student: nn.Module) -> Tensor:
    """Made-up images, as the config's test pipeline and the student's preprocessor make them."""
    loaders = [f'{part}_dataloader' for part in ('test', 'val', 'train')]
    first = next((key for key in loaders if cfg.get(key)), None)
    batch = synthetic_batch(Config({'test_dataloader': cfg[first]} if first else {}))
    return student.data_preprocessor(batch, False)['inputs']


@exit_on_write_error()
def main() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('config', help='the config of the distillation')
    parser.add_argument('checkpoint', help='its checkpoint')
    parser.add_argument('out_dir', type=Path, help='the folder for the files')
    parser.add_argument('--name', help="name of the files (default: the config's name)")
    parser.add_argument(
        '--format',
        choices=['mmpretrain', *FORMATS],
        default='mmpretrain',
        help='what will load the student (default: mmpretrain)',
    )
    args = parser.parse_args()
    cfg = Config.fromfile(args.config)
    checkpoint = CheckpointLoader.load_checkpoint(args.checkpoint, map_location='cpu')
    plain = student_config(cfg)
    student = build_model(plain.model.to_dict(), 'model')
    load_weights(student, checkpoint, args.checkpoint)

    meta = checkpoint.get('meta', {})
    meta = {key: meta[key] for key in ('dataset_meta',) if key in meta}
    name = args.out_dir / (args.name or Path(args.config).stem)
    if args.format != 'mmpretrain':
        args.out_dir.mkdir(parents=True, exist_ok=True)
        images = example_images(cfg, student.eval())
        print(f'Wrote {export_model(student, name, args.format, images, classes_in(checkpoint))}')
        return
    with written_together(args.out_dir) as folder:
        write_file(folder / f'{name.name}.py', plain.pretty_text)
        save_checkpoint_file(
            dict(meta=meta, state_dict=student.state_dict()), folder / f'{name.name}.pth'
        )
    print(
        f'Wrote {name}.py and {name}.pth: mmpretrain.get_model({f"{name}.py"!r}, '
        f'pretrained={f"{name}.pth"!r})' + ('; needs mmkdx' if 'custom_imports' in plain else '')
    )


if __name__ == '__main__':
    main()
