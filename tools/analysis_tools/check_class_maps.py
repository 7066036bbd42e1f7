#!/usr/bin/env python
"""Checks on the test images that class maps are the logits, and how they agree with the teacher's.

For a GAP + linear classifier the mean of a class's map is its logit without the classifier's bias.
Prints the top-1 accuracy with the bias and without, and the largest difference between the two; for a
distiller also the teacher's accuracy and the mean cosine of student's and teacher's maps, pooled to
R x R and in full.
"""

import argparse

import torch
import torch.nn.functional as F
from mmengine.config import Config, DictAction
from mmengine.runner import Runner
from terminaltables import AsciiTable
from torch import Tensor

from mmkdx.distillation import Distiller
from mmkdx.functional import ClassMaps, full_precision
from mmkdx.models.taps import TapSet, fake_forward, forward_tensor


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('--resolution', type=int, default=2, help='R, 2 unless it is given')
    parser.add_argument('--work-dir', default='work_dirs/check_class_maps')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={})
    return parser.parse_args()


class Statistics:
    """Sums over images of what is told of a model."""

    def __init__(self) -> None:
        self.images = self.right = self.right_without_bias = 0
        self.difference = 0.0

    def add(self, maps: ClassMaps, logits: Tensor, labels: Tensor) -> None:
        """Counts a batch: class maps, the model's own logits (N, K), and labels (N, )."""
        without_bias = maps.full().mean((2, 3))
        self.images += len(labels)
        self.right += (logits.argmax(1) == labels).sum().item()
        self.right_without_bias += (without_bias.argmax(1) == labels).sum().item()
        bias = 0 if maps.bias is None else full_precision(maps.bias)
        largest = logits.abs().max().clamp(min=1e-30)
        self.difference = max(
            self.difference, ((without_bias + bias - logits).abs().max() / largest).item()
        )

    def row(self, name: str) -> list[str]:
        """A row of the table."""
        shares = (100 * each / self.images for each in (self.right, self.right_without_bias))
        return [name, *(f'{share:.2f}' for share in shares), f'{self.difference:.1e}']


def cosines(student: ClassMaps, teacher: ClassMaps, resolution: int) -> list[Tensor]:
    """Cosines of two models' maps, of shape (N, K) each: pooled to R x R, and in full."""
    size = [max(sides) for sides in zip(student.shape[2:], teacher.shape[2:])]
    full = [F.interpolate(maps.full(), size, mode='bilinear') for maps in (student, teacher)]
    pairs = [maps.pooled(resolution) for maps in (student, teacher)], full
    return [F.cosine_similarity(a.flatten(2), b.flatten(2), dim=2) for a, b in pairs]


@torch.no_grad()
def main() -> None:
    """Runs the model over the test images and prints the tables."""
    args = parse_args()
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options)
    cfg.work_dir, cfg.load_from, cfg.custom_hooks = args.work_dir, args.checkpoint, []
    runner = Runner.from_cfg(cfg)
    runner.load_or_resume()
    model = runner.model.eval()
    models = {'student' if isinstance(model, Distiller) else 'model': model}
    convert = {}
    if isinstance(model, Distiller):
        models['student'] = model.student
        if model.teachers:
            teacher = model.teachers[0]
            teacher.load()
            models['teacher'], convert['teacher'] = teacher.model, teacher.convert
    taps, told = {}, {name: Statistics() for name in models}
    sums: list[list[Tensor]] = []
    for data in runner.build_dataloader(cfg.test_dataloader):
        data = model.data_preprocessor(data, False)
        inputs = data['inputs']
        labels = torch.cat([sample.gt_label for sample in data['data_samples']]).to(inputs.device)
        maps = {}
        for name, each in models.items():
            images = convert[name](inputs) if name in convert else inputs
            if name not in taps:
                taps[name] = TapSet(dict.fromkeys(('cam', 'logits'), args.config), name)
                with fake_forward(each):
                    taps[name].resolve(each, torch.empty(images.shape, device=images.device))
            with taps[name].record(each) as values:
                forward_tensor(each, images)
            maps[name] = values['cam']
            told[name].add(values['cam'], values['logits'].float(), labels)
        if len(maps) > 1:
            found = cosines(maps['student'], maps['teacher'], args.resolution)
            predicted = maps['teacher'].logits().argmax(1)[:, None]
            sums.append([each for c in found for each in (c.mean(1), c.gather(1, predicted)[:, 0])])
    header = ['', 'top-1', 'top-1 without bias', 'largest relative difference of logits']
    print(AsciiTable([header, *(each.row(name) for name, each in told.items())]).table)
    if sums:
        means = [f'{torch.cat(column).mean():.4f}' for column in zip(*sums)]
        size = f'pooled to {args.resolution} x {args.resolution}'
        rows = [['cosine with the teacher', 'all classes', "the teacher's prediction"]]
        print(AsciiTable([*rows, [size, *means[:2]], ['in full', *means[2:]]]).table)


if __name__ == '__main__':
    main()
