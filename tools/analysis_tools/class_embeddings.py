#!/usr/bin/env python
"""Writes an embedding of each class: the mean direction of a network's embeddings of training images.

Pass the file as `UniCAM(embedding=...)`. Then classes that look alike are nearer to each other.
"""

import argparse
import io

import numpy as np
import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.utils import track_iter_progress

from mmkdx.compat import load_checkpoint_file
from mmkdx.datasets.push_set import push_dataloader
from mmkdx.distillation.models import build_model, load_weights
from mmkdx.files import exit_on_write_error, write_file
from mmkdx.functional.distance_correlation import class_prototypes
from mmkdx.models.families import forward_tensor
from mmkdx.models.intercept import evaluating
from mmkdx.models.taps import TapSet


@torch.no_grad()
@exit_on_write_error()
def main() -> None:
    """Embeds the training images and writes the classes' embeddings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of a training; its training images are embedded')
    parser.add_argument('checkpoint', help='its checkpoint')
    parser.add_argument('out', help='the file to write (.npy), of shape (classes, width)')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, help='key=value')
    args = parser.parse_args()
    if not args.out.endswith('.npy'):
        raise SystemExit(f'{args.out} does not end in .npy')
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options)
    model = build_model(cfg.model, 'model', cfg.get('data_preprocessor'))
    load_weights(model, load_checkpoint_file(args.checkpoint), args.checkpoint)
    model.to(get_device())
    with DefaultScope.overwrite_default_scope('mmkdx'):
        loader = Runner.build_dataloader(push_dataloader(cfg))
    taps = TapSet({'embedding': 'class_embeddings.py'}, 'model')
    features, labels = [], []
    with evaluating(model):
        for batch in track_iter_progress((loader, len(loader))):
            data = model.data_preprocessor(batch, False)
            if not features:
                taps.resolve(model, data['inputs'][:1])
            with taps.record(model) as values:
                forward_tensor(model, data['inputs'])
            features.append(values['embedding'].cpu())
            labels += [int(sample.gt_label) for sample in data['data_samples']]
    classes = len(loader.dataset.metainfo['classes'])
    table = class_prototypes(torch.cat(features), torch.tensor(labels), classes)
    content = io.BytesIO()
    np.save(content, table.numpy())
    write_file(args.out, content.getbuffer())
    size = f'{classes} classes, {table.shape[1]} numbers each'
    print(f'\n{args.out}: {size}, of {len(labels)} images')


if __name__ == '__main__':
    main()
