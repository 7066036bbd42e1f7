#!/usr/bin/env python
"""Times a training step with IntrospectiveLoss against the same step with cross entropy alone.

The model is a ResNet-18 for small images. A step is forward, backward and SGD.

'weight', 'cam' and 'grad_act' are closed forms that read class maps. 'cam, gradients' explains the
same layer by one vector-Jacobian product per class. Explainers of pixels need another forward and
one backward pass per class, unless there are candidates or probes.
"""

from __future__ import annotations

import argparse

import torch
from _timing import Run, Timings, machine, measure, parser
from mmengine.optim import OptimWrapper
from mmpretrain.structures import DataSample
from torch import nn

from mmkdx.distillation.models import build_part

CLOSED = ('weight', 'cam', 'grad_act')

#: The term of each explainer, and its backward passes through the network for K classes.
WAYS = {
    **{name: (dict(at='cam', explainer=name), lambda classes: 0) for name in CLOSED},
    'class averages': (dict(at='cam', level='class'), lambda classes: 0),
    'cam, gradients': (dict(at=['features', 'logits']), lambda classes: 0),
    'input_grad': (dict(at='logits', explainer='input_grad', chunk=1), lambda classes: classes),
    'input_grad, 8 candidates': (
        dict(at='logits', explainer='input_grad', chunk=1, candidates=8),
        lambda classes: min(9, classes),
    ),
    'input_grad, 8 probes': (dict(at='logits', explainer='input_grad', probes=8), lambda _: 10),
}


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    options = parser(__doc__)
    options.add_argument('--classes', type=int, nargs='+', default=[10, 100, 1000])
    options.add_argument('--ways', nargs='+', choices=WAYS, default=list(WAYS))
    options.add_argument('--batch-size', type=int, default=16)
    options.add_argument('--size', type=int, default=32, help='height and width of the images')
    options.add_argument('--channels', type=int, default=64, help="of the network's first stage")
    options.add_argument('--repeats', type=int, default=7)
    options.add_argument(
        '--passes', type=int, default=100, help='the most backward passes through the network'
    )
    return options.parse_args()


def build(classes: int, term: dict | None, args: argparse.Namespace) -> nn.Module:
    """The network, trained by cross entropy or by its own explanations."""
    width = args.channels
    model = dict(
        type='ImageClassifier',
        backbone=dict(type='ResNet_CIFAR', depth=18, stem_channels=width, base_channels=width),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=classes, in_channels=8 * width),
    )
    if term is not None:
        model = dict(type='Distiller', student=model, input_size=args.size, student_weight=0.0)
        model['terms'] = dict(il=dict(type='IntrospectiveLoss', **term))
    return build_part(model).to(args.device).train()


def step(model: nn.Module, data: dict) -> Run:
    """A training step with a batch."""
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), 1e-3, 0.9))
    return lambda: model.train_step(data, wrapper)


def time_ways(classes: int, args: argparse.Namespace) -> Timings:
    """The times of cross entropy and of all explainers."""
    torch.manual_seed(0)
    images = torch.randn(args.batch_size, 3, args.size, args.size, device=args.device)
    labels = torch.randint(classes, (args.batch_size,)).tolist()
    samples = [DataSample().set_gt_label(label).to(args.device) for label in labels]
    terms = {'cross entropy': None}
    terms |= {way: WAYS[way][0] for way in args.ways if WAYS[way][1](classes) <= args.passes}
    data = dict(inputs=images, data_samples=samples)
    steps = {way: step(build(classes, term, args), data) for way, term in terms.items()}
    return measure(steps, args.device, args.repeats)


def main() -> None:
    """Measures and prints."""
    args = parse_args()
    size = f'{args.batch_size} images of {args.size} x {args.size}'
    print(f'{machine(args.device)}, batches of {size}, {args.repeats} repeats', flush=True)
    for classes in args.classes:
        print(time_ways(classes, args).table(f'{classes} classes'), flush=True)


if __name__ == '__main__':
    main()
