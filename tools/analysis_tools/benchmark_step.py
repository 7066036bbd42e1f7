#!/usr/bin/env python
"""Times distillation steps against their floor, and against the loops of other toolkits, in one run.

The floor is what no distillation can do without: the student's own training step and the teacher's
forward. What a step takes beyond it is split in two. Framework: the same step with all terms replaced by
zero, so what reading the taps, joining the losses and the teacher's side cost. Loss: what the terms then
add. Cached: how much longer than the student's own step one takes that reads the teacher's outputs from
files. Models have random weights and a learning rate of 0, and images are in memory, so that steps
alone are timed; what the data pipeline takes for a batch in one process is timed apart.

The loops of others train the same models on the same batches: torchdistill's DistillationBox (where it
is installed; KD only), a loop as mdistiller's trainer has it (with its meters, which wait for the device
at each step), and the shortest loop one can write.

On a CPU all ways take turns, step by step, and medians over the rounds are shown; on a GPU they take
turns in blocks of steps, timed by CUDA events.
"""

from __future__ import annotations

import argparse
import atexit
import copy
import gc
import importlib.util
import io
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from benchmark_explainers import peak_memory
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import DefaultScope
from mmpretrain.structures import DataSample
from terminaltables import AsciiTable
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmkdx.datasets import SeededViews
from mmkdx.distillation.cached_teacher import write_cache
from mmkdx.distillation.distiller import Distiller
from mmkdx.distillation.models import build_part
from mmkdx.models.taps import TapSet, forward_tensor

ROOT = Path(__file__).parents[2]
PAIR = 'resnet32x4_resnet8x4_cifar100'

#: What --quick measures: images in a batch, and seconds for the rounds of a config.
QUICK_BATCH, QUICK_SECONDS = 8, 13

#: The ways that make up the floor, and those that are measured against it.
FLOOR = ('student', 'teacher')
PEERS = ('minimal loop', 'mdistiller-style loop', 'torchdistill')


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        'configs', nargs='*', help=f'distillation configs (all shipped ones of {PAIR})'
    )
    parser.add_argument(
        '--quick', action='store_true', help='KD and CAT-KD only, and fewer ways, for 45 seconds'
    )
    parser.add_argument(
        '--batch-size', type=int, help=f'that of the config; with --quick {QUICK_BATCH}'
    )
    parser.add_argument('--seconds', type=float, default=40, help='for the rounds of a config')
    parser.add_argument('--dtype', choices=['float32', 'float16', 'bfloat16'], default='float32')
    parser.add_argument('--channels-last', action='store_true')
    parser.add_argument('--compile', action='store_true')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--json', type=Path, help='writes the numbers into a file')
    parser.add_argument('--plot', type=Path, help='draws the steps into a picture')
    args = parser.parse_args()
    if args.quick and args.configs:
        parser.error('--quick has configs of its own; leave either out')
    if args.dtype != 'float32' and not args.device.startswith('cuda'):
        parser.error(f'--dtype {args.dtype} is for a GPU')
    return args


class Case:
    """A distillation config with random weights, and all ways to make a step of it.

    Args:
        file (Path): The config.
        args (argparse.Namespace): The command line.
    """

    def __init__(self, file: Path, args: argparse.Namespace) -> None:
        self.config = Config.fromfile(file)
        self.device, self.dtype = args.device, getattr(torch, args.dtype)
        self.quick = args.quick
        self.batch_size = args.batch_size or self.config.train_dataloader.batch_size
        model = self.config.model
        if model.get('type') != 'Distiller' or 'model' not in (model.get('teacher') or {}):
            raise ValueError(f'{file} is not the config of a Distiller with a teacher')
        model.teacher.update(checkpoint=None, pretrained=False)
        if args.dtype != 'float32':
            model.teacher.dtype = args.dtype
        model.update(channels_last=args.channels_last, compile=args.compile)
        torch.manual_seed(0)
        model.setdefault('data_preprocessor', self.config.get('data_preprocessor'))
        self.distiller: Distiller = build_part(model).to(args.device).train()
        self.distiller.teachers[0].loaded = True  # random weights are meant
        size = next(iter(self.distiller._probed))
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch_size, 3, *size)
        images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        classes = self.config.data_preprocessor.num_classes
        labels = torch.randint(classes, (self.batch_size,), generator=generator)
        samples = [DataSample().set_gt_label(label).to(args.device) for label in labels.tolist()]
        for i, sample in enumerate(samples):
            sample.set_field(i, 'sample_idx', field_type='metainfo')
        # As a loader yields them, but on the device, as for the other loops
        self.data = dict(inputs=list(images.to(args.device)), data_samples=samples)
        ready = self.distiller.data_preprocessor(copy.deepcopy(self.data), training=True)
        self.images, self.labels = ready['inputs'], labels.to(args.device)

    def ways(self) -> dict[str, Callable[[], Any]]:
        """What is timed: the two parts of the floor, and whole steps."""
        teacher = self.distiller.teachers[0]
        images = teacher.convert(self.images)

        @torch.no_grad()
        def teach() -> None:
            with self._autocast():
                forward_tensor(teacher.model, images)

        empty = copy.deepcopy(self.distiller)
        for term in empty.terms.values():
            term.forward = nothing
        plain = copy.deepcopy(self.distiller.student)
        if self.config.model.compile:  # which copies are not
            empty._taps.compile(empty.student)
            TapSet({}, 'student').compile(plain)
        ways = {
            'student': self._step(plain),
            'teacher': teach,
            'framework': self._step(empty),
            'step': self._step(self.distiller),
        }
        terms = list(self.distiller.terms.values())
        by_hand = ('KLDivLoss',) if self.quick else ('KLDivLoss', 'CATLoss')
        if len(terms) == 1 and terms[0].loss_name in by_hand:
            ways |= self._loops(terms[0])
        if self.quick:  # fewer ways leave time for more rounds
            ways.pop('minimal loop', None)
            return ways
        return ways | self._cached()

    def _cached(self) -> dict[str, Callable[[], Any]]:
        """The step with the teacher's outputs read from files, where the terms allow that."""
        folder = tempfile.mkdtemp(prefix='benchmark_step_')
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        term = next(iter(self.distiller.terms.values()))
        model = copy.deepcopy(self.config.model)
        model.teacher = dict(
            type='CachedTeacher',
            teacher=self.distiller.teachers[0],
            cache=folder,
            resolution=getattr(term.loss, 'resolution', None)
            if term.compares == 'class_maps'
            else None,
        )
        model.student = copy.deepcopy(self.distiller.student)
        try:
            distiller = build_part(model).to(self.device).train()
        except ValueError:
            return {}
        items = [dict(inputs=i, data_samples=s) for i, s in zip(*self.data.values())]
        loader = DataLoader(
            SeededViews(items), batch_size=self.batch_size, collate_fn=pseudo_collate
        )
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            write_cache(distiller, distiller.teachers[0], loader)
        distiller.teachers[0].load()
        (data,) = loader
        return {'cached': self._step(distiller.train(), data)}

    def data_seconds(self) -> float:
        """How long one process takes to load, transform and collate a batch."""
        pipeline = list(self.config.train_dataloader.dataset.pipeline)
        with tempfile.TemporaryDirectory() as folder, DefaultScope.overwrite_default_scope('mmkdx'):
            image = np.random.default_rng(0).integers(256, size=(375, 500, 3), dtype=np.uint8)
            file = f'{folder}/image.jpg'
            cv2.imwrite(file, cv2.GaussianBlur(image, None, 3))
            first = dict(img_path=file, gt_label=0, sample_idx=0)
            if pipeline[0]['type'] != 'LoadImageFromFile':
                small = image[: self.images.shape[2], : self.images.shape[3]].copy()
                first.update(img=small, img_shape=small.shape[:2], ori_shape=small.shape[:2])
            transform = Compose(pipeline)
            transform(dict(first))
            start = time.perf_counter()
            for _ in range(self.batch_size):
                transform(dict(first))
            return time.perf_counter() - start

    def _autocast(self) -> Any:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast('cuda', self.dtype)

    def _step(self, model: nn.Module, data: dict | None = None) -> Callable[[], Any]:
        """A step as mmengine's training loop makes it."""
        data = data or self.data
        config = copy.deepcopy(self.config.optim_wrapper)
        config.optimizer.lr = 0.0
        if self.dtype != torch.float32:
            config.update(type='AmpOptimWrapper', dtype=str(self.dtype).split('.')[1])
        with DefaultScope.overwrite_default_scope('mmkdx'):
            wrapper: OptimWrapper = build_optim_wrapper(model, config)
        return lambda: model.train_step(data, wrapper)

    def _loops(self, term: nn.Module) -> dict[str, Callable[[], Any]]:
        """The same step in the loops of others."""
        kd = term.loss_name == 'KLDivLoss'
        optimizer = dict(self.config.optim_wrapper.optimizer, lr=0.0)
        optimizer.pop('_scope_', None)
        kind = getattr(torch.optim, optimizer.pop('type'))
        teacher = self.distiller.teachers[0].model
        labels, images = self.labels, self.images
        own, weight = self.distiller.student_weight, term.weight

        def losses(student: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
            """The student's logits, its loss and the distillation loss, by hand."""
            with torch.no_grad():
                (truth,) = teacher.backbone(images)[-1:]
                target = F.linear(truth.mean((2, 3)), *head(teacher))
            (maps,) = student.backbone(images)[-1:]
            logits = F.linear(maps.mean((2, 3)), *head(student))
            if kd:
                tau = term.loss.tau
                soft = F.log_softmax(logits / tau, 1), F.softmax(target / tau, 1)
                loss = F.kl_div(*soft, reduction='batchmean') * tau**2
            else:
                both = ((maps, head(student)[0]), (truth, head(teacher)[0]))
                r = term.loss.resolution
                small = [
                    F.adaptive_avg_pool2d(F.conv2d(a, w[:, :, None, None]), r) for a, w in both
                ]
                loss = F.mse_loss(*small)
            return logits, own * F.cross_entropy(logits, labels), weight * loss

        def loop(meters: bool) -> Callable[[], None]:
            student = copy.deepcopy(self.distiller.student)
            optim = kind(student.parameters(), **optimizer)
            seen: list = []

            def run() -> None:
                optim.zero_grad()
                with self._autocast():
                    logits, *parts = losses(student)
                sum(parts).backward()
                optim.step()
                if meters:
                    best = logits.topk(5, 1)[1].eq(labels[:, None])
                    right = [best[:, :k].float().sum().item() for k in (1, 5)]
                    seen.append((sum(parts).detach().cpu().numpy().mean(), *right))

            return run

        found = {'minimal loop': loop(False), 'mdistiller-style loop': loop(True)}
        plain = self.dtype == torch.float32
        if kd and plain and importlib.util.find_spec('torchdistill'):
            found['torchdistill'] = self._torchdistill(kind.__name__, optimizer, own, term)
        return found

    def _torchdistill(
        self, kind: str, optimizer: dict, own: float, term: nn.Module
    ) -> Callable[[], None]:
        """A step of torchdistill's box, as its example for image classification has it."""
        from torchdistill.core.distillation import get_distillation_box

        paths = dict(student_module_path='.', student_module_io='output')
        paths |= dict(teacher_module_path='.', teacher_module_io='output')
        loss = dict(paths, temperature=term.loss.tau, alpha=own, beta=term.weight)
        process = dict(forward_proc='forward_batch_only')
        config = dict(
            num_epochs=1,
            teacher=dict(process, requires_grad=False, wrapper=None),
            student=dict(process, wrapper=None),
            optimizer=dict(key=kind, kwargs=optimizer),
            criterion=dict(
                key='WeightedSumLoss',
                kwargs=dict(
                    sub_terms=dict(kd=dict(criterion=dict(key='KDLoss', kwargs=loss), weight=1.0))
                ),
            ),
        )
        box = get_distillation_box(
            # Its freezing of the teacher is taken back at the end; the copy is its own
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


def head(model: nn.Module) -> tuple[Tensor, Tensor]:
    """The weight and the bias of a classifier of mmpretrain."""
    linear = model.head.fc
    return linear.weight, linear.bias


def nothing(student: Any, *args: Any, **kwargs: Any) -> Tensor:
    """A term that compares nothing, with a gradient for all that its tap holds."""
    values = student if isinstance(student, list) else [student]
    return sum(0.0 * getattr(value, 'features', value).sum() for value in values)


def seconds(way: Callable[[], Any], device: str, block: int) -> float:
    """The seconds of a step."""
    if not device.startswith('cuda'):
        start = time.perf_counter()
        way()
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(block):
        way()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / block


def measure(case: Case, budget: float) -> dict[str, Any]:
    """Medians over rounds, as many as a number of seconds has room for, and the peaks of memory."""
    ways, block = case.ways(), 10
    for way in ways.values():
        way()  # warms up
    memory = {name: peak_memory(way, case.device) for name, way in ways.items()}
    rounds: list[dict[str, float]] = []
    names, stop = list(ways), time.perf_counter() + budget
    gc.disable()
    while len(rounds) < 5 or time.perf_counter() < stop:
        rounds.append({name: seconds(ways[name], case.device, block) for name in names})
        names.append(names.pop(0))  # none is always the first
    gc.enable()
    median = {name: statistics.median(each[name] for each in rounds) for name in ways}

    def over(name: str, *less: str) -> tuple[float, float]:
        """How much of the floor a way takes more than others, and the median's standard error."""
        shares = [
            (each[name] - sum(each[key] for key in less)) / sum(each[key] for key in FLOOR)
            for each in rounds
        ]
        middle = statistics.median(shares)
        spread = 1.4826 * statistics.median(abs(share - middle) for share in shares)
        return middle, 1.2533 * spread / len(shares) ** 0.5

    framework, framework_error = over('framework', *FLOOR)
    loss, loss_error = over('step', 'framework')
    return dict(
        batch_size=case.batch_size,
        rounds=len(rounds),
        seconds=median,
        floor=statistics.median(sum(each[key] for key in FLOOR) for each in rounds),
        framework_overhead=framework,
        framework_error=framework_error,
        loss_overhead=loss,
        loss_error=loss_error,
        # Of each round, so that a slow moment counts for both
        step_over={
            peer: statistics.median(each['step'] / each[peer] for each in rounds)
            for peer in PEERS
            if peer in ways
        },
        # Of the student's step
        cached_overhead=statistics.median(each['cached'] / each['student'] - 1 for each in rounds)
        if 'cached' in ways
        else None,
        data=case.data_seconds(),
        memory=memory,
    )


def table(found: dict[str, dict[str, Any]]) -> str:
    """All configs, in ms and in % of the floor."""
    rows = [
        [
            *('', 'student', 'teacher', 'step', 'framework', 'loss', 'cached', 'data'),
            *('peak MB', 'of student'),
        ]
    ]
    for name, each in found.items():
        times = each['seconds']
        rows.append(
            [
                name,
                *(f'{1e3 * times[key]:.1f}' for key in ('student', 'teacher', 'step')),
                *(
                    f'{100 * each[f"{part}_overhead"]:+.1f} ± {100 * each[f"{part}_error"]:.1f} %'
                    for part in ('framework', 'loss')
                ),
                ''
                if each['cached_overhead'] is None
                else f'{100 * each["cached_overhead"]:+.1f} %',
                f'{1e3 * each["data"]:.1f}',
                *(f'{each["memory"][key]:.0f}' for key in ('step', 'student')),
            ]
        )
    text = AsciiTable(rows, 'A step in ms, what is over the floor, a batch of data').table
    rows = [['', *PEERS]]
    for name, each in found.items():
        if each['step_over']:
            ratios = (each['step_over'].get(peer) for peer in PEERS)
            rows.append([name, *('' if ratio is None else f'{ratio:.3f}' for ratio in ratios)])
    if len(rows) > 1:
        text += '\n' + AsciiTable(rows, "mmkdx's step over another loop's (below 1: faster)").table
    return text


def draw(found: dict[str, dict[str, Any]], title: str, file: Path) -> None:
    """A bar for each config: the parts of a step, in % of the floor."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    names = list(found)[::-1]
    left = np.zeros(len(names))
    figure, axes = pyplot.subplots(figsize=(8, 1.2 + 0.32 * len(names)), layout='constrained')
    floors = [sum(found[name]['seconds'][part] for part in FLOOR) for name in names]
    parts = {
        part: [100 * found[name]['seconds'][part] / floor for name, floor in zip(names, floors)]
        for part in FLOOR
    }
    parts['framework'] = [max(100 * found[name]['framework_overhead'], 0) for name in names]
    parts['loss'] = [max(100 * found[name]['loss_overhead'], 0) for name in names]
    for (part, shares), color in zip(parts.items(), ('#4477aa', '#88aacc', '#222222', '#cc6644')):
        axes.barh(names, shares, left=left, label=part, color=color)
        left += shares
    axes.axvline(100, color='black', linewidth=0.8, linestyle=':')
    for i, name in enumerate(names):
        over = sum(100 * found[name][f'{part}_overhead'] for part in ('framework', 'loss'))
        axes.text(left[i], i, f' {over:+.1f} %', va='center', size='small')
    axes.set_xlim(0, 1.1 * max(left))
    axes.set(xlabel='% of the floor', title=title)
    axes.title.set_size('small')
    axes.spines[['top', 'right']].set_visible(False)
    figure.legend(loc='outside lower center', ncols=len(parts), frameon=False)
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


def main() -> None:
    """Measures, prints and writes."""
    args = parse_args()
    files = [Path(file) for file in args.configs]
    if args.quick:
        folders = dict(kd='kd', cat='cat_kd')
        files = [ROOT / 'configs' / folders[key] / f'{key}_{PAIR}.py' for key in folders]
        args.batch_size = args.batch_size or QUICK_BATCH
        args.seconds = min(args.seconds, QUICK_SECONDS)
    files = files or sorted(ROOT.glob(f'configs/*/*_{PAIR}.py'))
    one_pair = len({file.stem.partition('_')[2] for file in files}) == 1
    cuda = args.device.startswith('cuda')
    machine = dict(
        device=torch.cuda.get_device_name() if cuda else 'CPU',
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        dtype=args.dtype,
        channels_last=args.channels_last,
        compile=args.compile,
    )
    options = [key.replace('_', ' ') for key in ('channels_last', 'compile') if machine[key]]
    words = [machine['device'], f'{machine["threads"]} threads', f'torch {torch.__version__}']
    title = ', '.join([*words, args.dtype, *options])
    print(title, flush=True)
    found = {}
    for file in files:
        name = file.stem.partition('_')[0] if one_pair else file.stem
        found[name] = measure(Case(file, args), args.seconds)
        print(table({name: found[name]}), flush=True)
    if len(found) > 1:
        print(table(found))
    if args.plot:
        draw(found, title, args.plot)
    if args.json:
        result = dict(
            machine=machine,
            # Fractions of the floor
            **{
                key: {name: each[key] for name, each in found.items()}
                for key in ('framework_overhead', 'loss_overhead')
            },
            # mmkdx's seconds over the other's, so below 1 mmkdx is faster
            vs_torchdistill=next(
                (
                    each['step_over']['torchdistill']
                    for each in found.values()
                    if 'torchdistill' in each['step_over']
                ),
                None,
            ),
            configs=found,
        )
        args.json.write_text(json.dumps(result, indent=2))


if __name__ == '__main__':
    main()
