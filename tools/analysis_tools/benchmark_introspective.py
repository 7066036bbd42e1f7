#!/usr/bin/env python
"""Times a training step with IntrospectiveLoss, beside the same step with cross entropy alone.

The model is a ResNet-18 for small images, the floor its step with cross entropy: forward, backward and
SGD. Steps of all ways are interleaved, and the overhead is the median over repeats of how much longer a
step took than the floor's in the same round.

The closed forms read class maps. 'cam, gradients' explains the same layer by one vector-Jacobian product
a class; explainers by the pixels need another forward and a backward pass a class, unless there are
candidates or probes. Ways that take more backward passes through the network than --passes are left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from mmengine.registry import DefaultScope
from mmpretrain.structures import DataSample
from terminaltables import AsciiTable
from torch import nn

from mmkdx.registry import MODELS

CLOSED = ('weight', 'cam', 'grad_act')

#: The term of each way, and how many backward passes through the network it takes of K classes.
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--classes', type=int, nargs='+', default=[10, 100, 1000])
    parser.add_argument('--ways', nargs='+', choices=WAYS, default=list(WAYS))
    parser.add_argument('--batch-size', type=int, default=16)
    parser.add_argument('--size', type=int, default=32, help='height and width of the images')
    parser.add_argument('--channels', type=int, default=64, help="of the network's first stage")
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--passes', type=int, default=100)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--json', type=Path, help='writes the numbers into a file')
    return parser.parse_args()


def build(classes: int, term: dict | None, args: argparse.Namespace) -> nn.Module:
    """The network, with a head's cross entropy or taught by itself."""
    model = dict(
        type='ImageClassifier',
        backbone=dict(
            type='ResNet_CIFAR',
            depth=18,
            stem_channels=args.channels,
            base_channels=args.channels,
        ),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=classes, in_channels=8 * args.channels),
    )
    if term is not None:
        terms = dict(il=dict(type='IntrospectiveLoss', **term))
        model = dict(
            type='Distiller', student=model, input_size=args.size, student_weight=0.0, terms=terms
        )
    with DefaultScope.overwrite_default_scope('mmkdx'):
        return MODELS.build(model).to(args.device).train()


class Step:
    """A training step that can be timed.

    Args:
        model (nn.Module): What is trained.
        images (Tensor): A batch.
        samples (list): Its labels.
    """

    def __init__(self, model: nn.Module, images: torch.Tensor, samples: list) -> None:
        self.model, self.images, self.samples = model, images, samples
        self.optimizer = torch.optim.SGD(model.parameters(), 1e-3, 0.9)

    def __call__(self) -> float:
        """The seconds of a step."""
        from benchmark_explainers import synchronize

        synchronize(self.images.device.type)
        start = time.perf_counter()
        self.optimizer.zero_grad()
        losses = self.model(self.images, self.samples, mode='loss')
        sum(value for key, value in losses.items() if 'loss' in key).backward()
        self.optimizer.step()
        synchronize(self.images.device.type)
        return time.perf_counter() - start


def measure(classes: int, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """For each way its median seconds and its overhead over the floor."""
    from benchmark_explainers import peak_memory

    torch.manual_seed(0)
    images = torch.randn(args.batch_size, 3, args.size, args.size, device=args.device)
    labels = torch.randint(classes, (args.batch_size,)).tolist()
    samples = [DataSample().set_gt_label(label).to(args.device) for label in labels]
    ways = {'cross entropy': None}
    ways |= {way: WAYS[way][0] for way in args.ways if WAYS[way][1](classes) <= args.passes}
    steps, memory = {}, {}
    for way, term in ways.items():
        steps[way] = Step(build(classes, term, args), images, samples)
        steps[way]()  # warms up
        memory[way] = peak_memory(steps[way], args.device)
    rounds = [{way: step() for way, step in steps.items()} for _ in range(args.repeats)]
    return {
        way: dict(
            seconds=statistics.median(each[way] for each in rounds),
            overhead=statistics.median(each[way] / each['cross entropy'] - 1 for each in rounds),
            memory=memory[way],
        )
        for way in ways
    }


def table(classes: int, found: dict[str, dict[str, float]]) -> str:
    """The ways of a number of classes."""
    rows = [['', 'ms a step', 'over cross entropy', 'peak MB']]
    for way, values in found.items():
        overhead = '' if way == 'cross entropy' else f'{100 * values["overhead"]:+.1f} %'
        rows.append([way, f'{1e3 * values["seconds"]:.1f}', overhead, f'{values["memory"]:.0f}'])
    return AsciiTable(rows, f'{classes} classes').table


def main() -> None:
    """Measures and prints."""
    args = parse_args()
    name = torch.cuda.get_device_name() if args.device.startswith('cuda') else 'CPU'
    print(
        f'{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, batches of '
        f'{args.batch_size} images of {args.size} x {args.size}, {args.repeats} repeats',
        flush=True,
    )
    results = {}
    for classes in args.classes:
        results[classes] = measure(classes, args)
        print(table(classes, results[classes]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2))


if __name__ == '__main__':
    main()
