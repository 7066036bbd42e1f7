#!/usr/bin/env python
"""Times distillation steps against their floor, and against the loops of other toolkits, in one run.

The floor is the student's own training step and the teacher's forward. The overhead over it has two
parts. Framework: the same step with all terms replaced by zero. Loss: what the terms then add. Cached:
a step that reads the teacher's outputs from files, over the student's own step. Models have random
weights, the learning rate is 0 and images are in memory, so that steps alone are timed.

Other loops train the same models on the same batches: torchdistill's DistillationBox (where it is
installed; KD only), a loop as in mdistiller's trainer (its meters wait for the device at each step), and
the shortest loop one can write.
"""

from __future__ import annotations

import argparse
import atexit
import copy
import importlib.util
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _timing import Run, machine, measure, parser
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from terminaltables import AsciiTable
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmkdx.apis.dry_run import build_from_config, synthetic_batch
from mmkdx.datasets import SeededViews
from mmkdx.distillation.cache import CacheWriter
from mmkdx.distillation.models import build_part
from mmkdx.files import exit_on_write_error, write_file
from mmkdx.functional.class_maps import first_tensor
from mmkdx.models.families import forward_tensor
from mmkdx.models.taps import TapSet

ROOT = Path(__file__).parents[2]
PAIR = 'resnet32x4_resnet8x4_cifar100'

#: What --quick measures: images in a batch, and seconds for the rounds of a config.
QUICK_BATCH, QUICK_SECONDS = 8, 13

#: What --heads measures, on ImageNet's ResNet-34 and 18 with a hidden layer before their classifiers:
#: number of classes, and a loss of class maps, which then are made by the derivatives of the head.
HEADS = {
    'CAT-KD, K = 100': (100, dict(type='CATLoss', resolution=2)),
    'Exp-KD, K = 100': (100, dict(type='ExpKDLoss', channel_reduce='sum')),
    'CAT-KD, top 10 of 1,000': (
        1000,
        dict(type='CATLoss', resolution=2, class_select='topk', num_classes_selected=10),
    ),
    'Exp-KD, top 10 of 1,000': (1000, dict(type='ExpKDLoss', channel_reduce='sum', topk=10)),
}

#: What --losses measures on the pair, beside KD: losses since 2022 with the options of their configs.
LOSSES = {
    'KD': dict(type='KLDivLoss', at='logits', tau=4),
    'NKD': dict(type='NKDLoss', at='logits'),
    'WTTM': dict(type='WTTMLoss', at='logits', gamma=0.2),
    'SDD-KD': dict(type='SDDLoss', at='cam', scales=(1, 2), inner=dict(type='KLDivLoss', tau=4)),
    'CellGram': dict(
        type='CellGramLoss', at='cam', scales=(1, 2, 4), weights=(1 / 6, 2 / 6, 3 / 6)
    ),
    'RLD': dict(type='RLDLoss', at='logits', tau=4, confidence_tau=1),
    'GKL': dict(type='GKLLoss', at='logits', tau=4, weights='sample', weight_tau=100),
    # Its transport is found by Sinkhorn's iterations
    'WKD-L': dict(type='WKDLogitLoss', at='cam', tau=8),
    'WKD-F': dict(type='WKDFeatureLoss', at='features', mean_ratio=4),
    'VkD': dict(type='VkDLoss', at='embedding'),
}

#: Steps from one measured step to the next: the default of automatic weights.
CYCLE = 5
#: What --weights measures: a config of the pair, and the tap where gradients are compared.
WEIGHTS = {
    "KD, at 'logits'": ('kd/kd', 'logits'),
    "KD, at 'features'": ('kd/kd', 'features'),
    "CAT-KD, at 'features'": ('cat_kd/cat', 'features'),
    "FitNet, at 'backbone.layer1'": ('kd/fitnet', 'backbone.layer1'),
}

#: The runs that make up the floor, and those that a step is compared with.
FLOOR = ('student', 'teacher')
PEERS = ('minimal loop', 'mdistiller-style loop', 'torchdistill')


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    options = parser(__doc__)
    options.add_argument('configs', nargs='*', help=f'default: all shipped configs of {PAIR}')
    options.add_argument('--quick', action='store_true', help='KD and CAT-KD only, for 45 seconds')
    options.add_argument('--heads', action='store_true', help='class maps behind a hidden layer')
    options.add_argument('--losses', action='store_true', help='losses since 2022 beside KD')
    options.add_argument(
        '--weights', action='store_true', help='a weight that sets itself, over a constant one'
    )
    options.add_argument('--against', type=Path, help='a checkout; --quick of both, in turn')
    options.add_argument('--turns', type=int, default=3, help='number of turns of --against')
    options.add_argument('--batch-size', type=int, help="default: the config's")
    options.add_argument('--seconds', type=float, default=40, help='for the rounds of a config')
    options.add_argument('--dtype', choices=['float32', 'float16', 'bfloat16'], default='float32')
    options.add_argument('--channels-last', action='store_true')
    options.add_argument('--compile', action='store_true')
    options.add_argument('--json', type=Path, help='writes the numbers into a file')
    options.add_argument('--plot', type=Path, help='draws the steps into a picture')
    args = options.parse_args()
    kinds = 'quick', 'heads', 'losses', 'weights', 'configs'
    given = [key for key in kinds if getattr(args, key)]
    if len(given) > 1:
        options.error(f'--{given[0]} has configs of its own; leave either out')
    if args.dtype != 'float32' and not args.device.startswith('cuda'):
        options.error(f'--dtype {args.dtype} is for a GPU')
    return args


class Case:
    """A distillation config with random weights, and all ways to make a step of it.

    Args:
        file (Path): The config.
        args (argparse.Namespace): The command line.
        changes (dict, optional): What is different from the file. Defaults to None.
    """

    def __init__(self, file: Path, args: argparse.Namespace, changes: dict | None = None) -> None:
        self.config = Config.fromfile(file)
        self.config.merge_from_dict(changes or {})
        self.device, self.dtype = args.device, getattr(torch, args.dtype)
        self.half = self.dtype != torch.float32
        kind = torch.device(self.device).type
        self._autocast = torch.autocast(kind, self.dtype, enabled=self.half)
        self.quick = args.quick
        self.batch_size = args.batch_size or self.config.train_dataloader.batch_size
        model = self.config.model
        if model.get('type') != 'Distiller' or 'model' not in (model.get('teacher') or {}):
            raise ValueError(f'{file} is not the config of a Distiller with a teacher')
        model.teacher.update(checkpoint=None, pretrained=False)
        if self.half:
            model.teacher.dtype = args.dtype
        model.update(channels_last=args.channels_last, compile=args.compile)
        torch.manual_seed(0)
        self.distiller = build_from_config(self.config).to(self.device).train()
        self.distiller.teachers[0].loaded = True  # random weights are meant
        prepare = self.distiller.data_preprocessor
        # On the device, as for the other loops
        self.data = prepare.cast_data(synthetic_batch(self.config, self.batch_size))
        self.images = prepare(copy.deepcopy(self.data), training=True)['inputs']
        self.labels = torch.cat([sample.gt_label for sample in self.data['data_samples']])

    def runs(self) -> dict[str, Run]:
        """What is timed: the two parts of the floor, and whole steps."""
        teacher = self.distiller.teachers[0]
        images = teacher.convert(self.images)

        @torch.no_grad()
        def teach() -> None:
            with self._autocast:
                forward_tensor(teacher.model, images)

        empty = copy.deepcopy(self.distiller)
        for term in empty.terms.values():
            term.forward = nothing
        plain = copy.deepcopy(self.distiller.student)
        if self.config.model.compile:  # copies are not compiled
            empty._taps.compile(empty.student)
            TapSet({}, 'student').compile(plain)
        runs = {
            'student': self._step(plain),
            'teacher': teach,
            'framework': self._step(empty),
            'step': self._step(self.distiller),
        }
        term, *others = self.distiller.terms.values()
        by_hand = ('KLDivLoss',) if self.quick else ('KLDivLoss', 'CATLoss')
        linear = isinstance(getattr(self.distiller.student.head, 'fc', None), nn.Linear)
        if not others and term.loss_name in by_hand and linear:
            runs |= self._loops(term)
        if self.quick:  # fewer runs leave time for more rounds
            runs.pop('minimal loop', None)
            return runs
        return runs | self._cached()

    def _cached(self) -> dict[str, Run]:
        """The step with the teacher's outputs read from files, where the terms allow that."""
        folder = tempfile.mkdtemp(prefix='benchmark_step_')
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        term = next(iter(self.distiller.terms.values()))
        model = copy.deepcopy(self.config.model)
        model.teacher = dict(type='CachedTeacher', teacher=self.distiller.teachers[0], cache=folder)
        if term.compares == 'class_maps':
            model.teacher.resolution = getattr(term.loss, 'resolution', None)
        model.student = copy.deepcopy(self.distiller.student)
        model.setdefault('data_preprocessor', self.config.get('data_preprocessor'))
        try:
            distiller = build_part(model).to(self.device).train()
        except ValueError:
            return {}
        items = [dict(inputs=i, data_samples=s) for i, s in zip(*self.data.values())]
        loader = DataLoader(SeededViews(items), self.batch_size, collate_fn=pseudo_collate)
        CacheWriter(distiller, distiller.teachers[0], loader).write()
        distiller.teachers[0].load()
        (data,) = loader
        return {'cached': self._step(distiller.train(), data)}

    def _step(self, model: nn.Module, data: dict | None = None) -> Run:
        """A step as mmengine's training loop makes it."""
        data = data or self.data
        config = copy.deepcopy(self.config.optim_wrapper)
        config.optimizer.lr = 0.0
        if self.half:
            config.update(type='AmpOptimWrapper', dtype=str(self.dtype).removeprefix('torch.'))
        with DefaultScope.overwrite_default_scope('mmkdx'):
            wrapper = build_optim_wrapper(model, config)
        return lambda: model.train_step(data, wrapper)

    def _loops(self, term: nn.Module) -> dict[str, Run]:
        """The same step in the loops of others."""
        kd = term.loss_name == 'KLDivLoss'
        optimizer = dict(self.config.optim_wrapper.optimizer, lr=0.0)
        optimizer.pop('_scope_', None)
        kind = getattr(torch.optim, optimizer.pop('type'))
        teacher = self.distiller.teachers[0].model

        def outputs(model: nn.Module) -> tuple[Tensor, Tensor]:
            """The logits, and what is compared: the logits at the temperature or pooled class maps."""
            (features,) = model.backbone(self.images)[-1:]
            linear = model.head.fc
            logits = linear(features.mean((2, 3)))
            if kd:
                return logits, logits / term.loss.tau
            maps = F.conv2d(features, linear.weight[:, :, None, None])
            return logits, F.adaptive_avg_pool2d(maps, term.loss.resolution)

        def losses(student: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
            """The student's logits, its loss and the distillation loss, by hand."""
            with torch.no_grad():
                _, truth = outputs(teacher)
            logits, own = outputs(student)
            if kd:
                pair = F.log_softmax(own, 1), F.softmax(truth, 1)
                loss = F.kl_div(*pair, reduction='batchmean') * term.loss.tau**2
            else:
                loss = F.mse_loss(own, truth)
            alone = F.cross_entropy(logits, self.labels)
            return logits, self.distiller.student_weight * alone, term.weight.number * loss

        def loop(meters: bool) -> Run:
            student = copy.deepcopy(self.distiller.student)
            optim = kind(student.parameters(), **optimizer)
            seen: list = []

            def run() -> None:
                optim.zero_grad()
                with self._autocast:
                    logits, *parts = losses(student)
                sum(parts).backward()
                optim.step()
                if meters:
                    best = logits.topk(5, 1)[1].eq(self.labels[:, None])
                    right = [best[:, :k].float().sum().item() for k in (1, 5)]
                    seen.append((sum(parts).detach().cpu().numpy().mean(), *right))

            return run

        found = {'minimal loop': loop(False), 'mdistiller-style loop': loop(True)}
        if kd and not self.half and importlib.util.find_spec('torchdistill'):
            found['torchdistill'] = self._torchdistill(kind.__name__, optimizer, term)
        return found

    def _torchdistill(self, kind: str, optimizer: dict, term: nn.Module) -> Run:
        """A step of torchdistill's box, as in its example for image classification."""
        from torchdistill.core.distillation import get_distillation_box

        loss = dict(
            temperature=term.loss.tau, alpha=self.distiller.student_weight, beta=term.weight.number
        )
        for side in ('student', 'teacher'):
            loss |= {f'{side}_module_path': '.', f'{side}_module_io': 'output'}
        process = dict(forward_proc='forward_batch_only', wrapper=None)
        criterion = dict(kd=dict(criterion=dict(key='KDLoss', kwargs=loss), weight=1.0))
        config = dict(
            num_epochs=1,
            teacher=dict(process, requires_grad=False),
            student=process,
            optimizer=dict(key=kind, kwargs=optimizer),
            criterion=dict(key='WeightedSumLoss', kwargs=dict(sub_terms=criterion)),
        )
        box = get_distillation_box(
            # It freezes the teacher and undoes that at the end, so it gets a copy
            copy.deepcopy(self.distiller.teachers[0].model),
            copy.deepcopy(self.distiller.student),
            *(dict(), config, torch.device(self.device), None, False, 1.0),
        )
        box.teacher_model.eval()
        seen: list = []

        def run() -> None:
            loss = box.forward_process(self.images, self.labels, None)
            box.post_forward_process(loss=loss)
            seen.append(loss.item())

        return run


def stacked(classes: int, loss: dict) -> dict:
    """The changes of a config that give teacher and student a hidden layer, and another loss."""

    def network(depth: int) -> dict:
        return dict(
            _delete_=True,
            type='ImageClassifier',
            backbone=dict(type='ResNet', depth=depth),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(
                type='StackedLinearClsHead',
                num_classes=classes,
                in_channels=512,
                mid_channels=[512],
                loss=dict(type='CrossEntropyLoss'),
            ),
        )

    return {
        'model.student': network(18),
        'model.teacher': dict(model=network(34), normalize='same'),
        'model.terms': dict(_delete_=True, maps=dict(loss, at='cam')),
        'data_preprocessor.num_classes': classes,
    }


def time_weights(file: Path, at: str, args: argparse.Namespace) -> list[str]:
    """A row: a step in ms, and by how much it is longer while a weight is measured, and afterwards."""
    (name,) = Config.fromfile(file).model.terms
    runs, automatic = {}, dict(type='auto', at=at, interval=CYCLE, _delete_=True)
    for kind, steps in (('constant', None), ('before', 100), ('after', 1)):
        changes = steps and {f'model.terms.{name}.weight': dict(automatic, steps=steps)}
        case = Case(file, args, changes)
        weight = case.distiller.terms[name].weight if kind == 'before' else None
        runs[kind] = cycle(case._step(case.distiller), weight)
    found = measure(runs, args.device, 5, args.seconds, block=2)
    row = [f'{1e3 * found.median("constant") / CYCLE:.1f}']
    for kind in ('before', 'after'):
        share, error = found.share(kind, ['constant'], ['constant'])
        row.append(f'{100 * share:+.2f} ± {100 * error:.2f} %')
    return row


def cycle(run: Run, weight: nn.Module | None) -> Run:
    """The steps from one measured step to the next; ``weight`` stays in its measurement."""

    def steps() -> None:
        if weight is not None:
            weight._set(weight.steps // 2, 0)
        for _ in range(CYCLE):
            run()

    return steps


def nothing(student: Any, *args: Any, **kwargs: Any) -> Tensor:
    """A term that compares nothing, with a gradient for all that its tap holds."""
    values = student if isinstance(student, list) else [student]
    return sum(0.0 * first_tensor(value).sum() for value in values)


def time_case(case: Case, budget: float) -> dict[str, Any]:
    """Medians over rounds for ``budget`` seconds; overheads are fractions of the floor."""
    found = measure(case.runs(), case.device, 5, budget, block=10)
    framework, framework_error = found.share('framework', FLOOR, FLOOR)
    loss, loss_error = found.share('step', ['framework'], FLOOR)
    cached = 'cached' in found.seconds
    return dict(
        batch_size=case.batch_size,
        rounds=found.rounds,
        seconds={name: found.median(name) for name in found.seconds},
        floor=found.median(*FLOOR),
        framework_overhead=framework,
        framework_error=framework_error,
        loss_overhead=loss,
        loss_error=loss_error,
        step_over={peer: found.ratio('step', peer) for peer in PEERS if peer in found.seconds},
        cached_overhead=found.ratio('cached', 'student') - 1 if cached else None,
        memory=found.memory,
    )


def table(found: dict[str, dict[str, Any]]) -> str:
    """All configs, in ms and in % of the floor, and the ratios to other loops."""
    rows = [['', *FLOOR, 'step', 'framework', 'loss', 'cached', 'peak MB', 'of student']]
    peers = [['', *PEERS]]
    for name, each in found.items():
        row = [name, *(f'{1e3 * each["seconds"][key]:.1f}' for key in (*FLOOR, 'step'))]
        for part in ('framework', 'loss'):
            row.append(
                f'{100 * each[f"{part}_overhead"]:+.1f} ± {100 * each[f"{part}_error"]:.1f} %'
            )
        cached, ratios = each['cached_overhead'], each['step_over']
        row.append('' if cached is None else f'{100 * cached:+.1f} %')
        rows.append([*row, *(f'{each["memory"][key]:.0f}' for key in ('step', 'student'))])
        if ratios:
            peers.append([name, *(f'{ratios[p]:.3f}' if p in ratios else '' for p in PEERS)])
    text = AsciiTable(rows, 'A step in ms, and its overhead over the floor').table
    if len(peers) > 1:
        text += '\n' + AsciiTable(peers, "Step over another loop's (below 1: faster)").table
    return text


def draw(found: dict[str, dict[str, Any]], title: str, file: Path) -> None:
    """A bar for each config: the parts of a step, in % of the floor."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    names, left = list(found)[::-1], np.zeros(len(found))
    cases = [found[name] for name in names]
    figure, axes = pyplot.subplots(figsize=(8, 1.2 + 0.32 * len(names)), layout='constrained')
    for part in (*FLOOR, 'framework', 'loss'):
        if part in FLOOR:
            shares = [each['seconds'][part] / each['floor'] for each in cases]
        else:
            shares = [max(each[f'{part}_overhead'], 0) for each in cases]
        widths = 100 * np.array(shares)
        axes.barh(names, widths, left=left, label=part)
        left = left + widths
    axes.axvline(100, color='black', linewidth=0.8, linestyle=':')
    for i, each in enumerate(cases):
        over = 100 * (each['framework_overhead'] + each['loss_overhead'])
        axes.text(left[i], i, f' {over:+.1f} %', va='center', size='small')
    axes.set(xlabel='% of the floor', xlim=(0, 1.1 * max(left)))
    axes.set_title(title, size='small')
    figure.legend(loc='outside lower center', ncols=4, frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format=file.suffix[1:], dpi=150)
    write_file(file, picture.getbuffer())
    pyplot.close(figure)


def quick(checkout: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What --quick of a checkout writes, by its own script and its own mmkdx."""
    scripts = ('tools/benchmarks/step.py', 'tools/analysis_tools/benchmark_step.py')
    script = next(each for each in scripts if (checkout / each).is_file())
    env = dict(os.environ, PYTHONPATH=str(checkout))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, 'found.json')
        words = ['--quick', '--seconds', args.seconds, '--device', args.device, '--json', file]
        command = [sys.executable, script, *map(str, words)]
        subprocess.run(command, cwd=checkout, env=env, stdout=subprocess.DEVNULL, check=True)
        return json.loads(file.read_text())['configs']


def compare(args: argparse.Namespace) -> str:
    """A table of --quick of this checkout and of another one, measured in turn."""
    found: dict[Path, list[dict]] = {ROOT: [], args.against.resolve(): []}
    for turn in range(args.turns):
        for checkout in list(found)[:: -1 if turn % 2 else 1]:
            found[checkout].append(quick(checkout, args))
    rows = [['% of the floor', 'this checkout', 'the other', 'difference']]
    for name in found[ROOT][0]:
        for part in ('framework', 'loss'):
            here, there = (
                [100 * each[name][f'{part}_overhead'] for each in runs] for runs in found.values()
            )
            columns = here, there, [a - b for a, b in zip(here, there)]
            cells = (f'{statistics.mean(c):+.2f} ({min(c):+.2f} to {max(c):+.2f})' for c in columns)
            rows.append([f'{name}, {part}', *cells])
    return AsciiTable(rows, f'Mean and range over {args.turns} turns').table


@exit_on_write_error()
def main() -> None:
    """Measures, prints and writes."""
    args = parse_args()
    if args.against:
        print(compare(args))
        return
    if args.weights:
        rows = [['', 'constant weight, ms', 'while it is measured', 'after the freeze']]
        for name, (file, at) in WEIGHTS.items():
            row = time_weights(ROOT / f'configs/{file}_{PAIR}.py', at, args)
            rows.append([name, *row])
            print(*rows[-1], sep='  ', flush=True)
        title = f'A weight that sets itself, over a constant one; {machine(args.device)}'
        print(AsciiTable(rows, title).table)
        return
    files = [Path(file) for file in args.configs]
    if args.quick:
        files = [ROOT / f'configs/{folder}_{PAIR}.py' for folder in ('kd/kd', 'cat_kd/cat')]
        args.batch_size = args.batch_size or QUICK_BATCH
        args.seconds = min(args.seconds, QUICK_SECONDS)
    cases = {}
    if args.heads:
        files = [ROOT / 'configs/cat_kd/cat_resnet34_resnet18_8xb32_in1k.py']
        cases = {name: (files[0], stacked(*each)) for name, each in HEADS.items()}
    if args.losses:
        files = [ROOT / f'configs/kd/kd_{PAIR}.py']
        changes = {'model.student_weight': 1.0}
        for name, loss in LOSSES.items():
            term = dict(_delete_=True, term=loss)
            cases[name] = files[0], {**changes, 'model.terms': term}
    files = files or sorted(ROOT.glob(f'configs/*/*_{PAIR}.py'))
    one_pair = len({file.stem.partition('_')[2] for file in files}) == 1
    options = [key for key in ('channels_last', 'compile') if getattr(args, key)]
    title = ', '.join([machine(args.device), args.dtype, *options])
    print(title, flush=True)
    found = {}
    for file in [] if cases else files:
        cases[file.stem.partition('_')[0] if one_pair else file.stem] = file, None
    for name, (file, changes) in cases.items():
        found[name] = time_case(Case(file, args, changes), args.seconds)
        print(table({name: found[name]}), flush=True)
    if len(found) > 1:
        print(table(found))
    if args.plot:
        draw(found, title, args.plot)
    if args.json:
        keys = ('framework_overhead', 'loss_overhead')
        result = {key: {name: each[key] for name, each in found.items()} for key in keys}
        ratios = (each['step_over'].get('torchdistill') for each in found.values())
        # Below 1 mmkdx is faster
        result['vs_torchdistill'] = next((each for each in ratios if each is not None), None)
        content = dict(machine=title, **result, configs=found)
        write_file(args.json, json.dumps(content, indent=2))


if __name__ == '__main__':
    main()
