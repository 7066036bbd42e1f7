#!/usr/bin/env python
"""Times explainers against their floor and against pytorch-grad-cam, torchcam and captum, in one run.

The floor of a map is a forward without a graph up to the layer and the gradient from the score down to
the layer, which no method of the CAM family can do without (but for the closed form, which needs no
gradient). All take turns, round by round, so that a busy machine hits them alike. Maps are scaled to
[0, 1] and resized to the images. Memory is the growth of the peak: of the CUDA allocator, or of the
process on a CPU.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.registry import DefaultScope
from mmpretrain import get_model
from terminaltables import AsciiTable
from torch import Tensor, nn

from mmkdx import explain
from mmkdx.functional import ClassMaps, normalize_maps, resize_maps
from mmkdx.registry import MODELS

#: The single-pass methods that are timed.
METHODS = (
    *('CAM', 'GradCAM', 'GradCAMPlusPlus', 'XGradCAM', 'HiResCAM', 'LayerCAM'),
    *('EigenCAM', 'EigenGradCAM', 'AblationCAM'),
)


class Logits(nn.Module):
    """A classifier of mmpretrain's interface as a function of images, as other libraries take it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Yields logits."""
        return self.model(images, mode='tensor')


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        '--model',
        default='resnet18_8xb32_in1k',
        help="a ResNet of mmpretrain's zoo, with random weights",
    )
    parser.add_argument('--batch', type=int, default=32, help='images in a batch')
    parser.add_argument('--size', type=int, default=224, help='height and width of the images')
    parser.add_argument('--rounds', type=int, default=8, help='how often all take their turn')
    parser.add_argument('--channels', type=int, help='channels of the exact Score-CAM (all)')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    return parser.parse_args()


def floor(model: nn.Module, images: Tensor, classes: Tensor) -> Callable[[], object]:
    """The floor: the backbone without a graph, the rest with one, the gradient to the layer."""

    def run() -> Tensor:
        with torch.no_grad():
            features = model.backbone(images)[-1]
        with torch.enable_grad():
            features = features.detach().requires_grad_()
            logits = model.head(model.neck((features,)))
            score = logits.gather(1, classes[:, None]).sum()
            return torch.autograd.grad(score, features)[0]

    return run


def ours(name: str, model: nn.Module, images: Tensor, classes: Tensor) -> Callable[[], object]:
    """A method of mmkdx, with scaling and resizing."""
    explainer = getattr(explain, name)()

    def run() -> Tensor:
        maps = explainer(model, images, classes)
        return resize_maps(normalize_maps(maps, relu=True), images.shape[2:])

    return run


def peers(model: nn.Module, images: Tensor, classes: Tensor) -> dict[str, Callable[[], object]]:
    """The same methods of other libraries, of those that are installed."""
    wrapped, layer = Logits(model), model.backbone.layer4
    found: dict[str, Callable[[], object]] = {}
    if importlib.util.find_spec('captum'):
        from captum.attr import LayerGradCam

        gradcam = LayerGradCam(wrapped, layer)

        def captum() -> Tensor:
            maps = gradcam.attribute(images, target=classes)[:, 0].detach()
            return resize_maps(normalize_maps(maps, relu=True), images.shape[2:])

        found['captum GradCAM'] = captum
    if importlib.util.find_spec('torchcam'):
        from torchcam import methods

        def torchcam(name: str) -> Callable[[], object]:
            def run() -> Tensor:
                with getattr(methods, name)(wrapped, layer) as extractor:
                    maps = extractor(classes.tolist(), wrapped(images.requires_grad_()))[0]
                images.requires_grad_(False)
                return resize_maps(maps.detach(), images.shape[2:])

            return run

        for name in ('GradCAM', 'XGradCAM', 'LayerCAM'):
            found[f'torchcam {name}'] = torchcam(name)
    if importlib.util.find_spec('pytorch_grad_cam'):
        import pytorch_grad_cam
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        goals = [ClassifierOutputTarget(index) for index in classes.tolist()]

        def grad_cam(name: str) -> Callable[[], object]:
            method = getattr(pytorch_grad_cam, name)

            def run() -> object:
                with method(wrapped, [layer]) as cam:
                    return cam(images, goals)

            return run

        for name in (
            *('GradCAM', 'GradCAMPlusPlus', 'XGradCAM', 'HiResCAM', 'LayerCAM'),
            *('EigenCAM', 'EigenGradCAM'),
        ):
            found[f'grad-cam {name}'] = grad_cam(name)
    return found


def measure(
    runs: dict[str, Callable[[], object]], rounds: int, device: str
) -> dict[str, tuple[list[float], float]]:
    """Times of each run, taking turns, and the growth of its peak memory in MB."""
    for run in runs.values():
        run()  # finds layers, warms up
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            synchronize(device)
            start = time.perf_counter()
            run()
            synchronize(device)
            times[name].append(time.perf_counter() - start)
    return {name: (times[name], peak_memory(run, device)) for name, run in runs.items()}


def synchronize(device: str) -> None:
    """Waits for the device."""
    if device.startswith('cuda'):
        torch.cuda.synchronize()


def peak_memory(run: Callable[[], object], device: str) -> float:
    """By how much a run raises the memory in use, in MB."""
    gc.collect()
    if device.startswith('cuda'):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    clear = Path('/proc/self/clear_refs')
    if not clear.exists():
        return float('nan')
    ctypes.CDLL(None).malloc_trim(0)
    clear.write_text('5')  # sets the peak to what is in use now
    before = status('VmRSS')
    run()
    return (status('VmHWM') - before) / 1e6


def status(key: str) -> float:
    """A number of bytes of this process that Linux tells."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def table(title: str, measured: dict[str, tuple[list[float], float]], base: str) -> str:
    """The measurements beside the first, which is what they are compared with."""
    rows = [['', 'median s', 'fastest s', f'ratio to {base}', 'peak MB']]
    reference = measured[base][0]
    for name, (times, memory) in measured.items():
        # Of each round, so that a slow minute counts for both
        ratio = statistics.median(a / b for a, b in zip(times, reference))
        median = statistics.median(times)
        rows.append([name, f'{median:.4f}', f'{min(times):.4f}', f'{ratio:.3f}', f'{memory:.0f}'])
    return AsciiTable(rows, title).table


def build(name: str, device: str, head: dict | None = None) -> nn.Module:
    """A model of the zoo with random weights, and another head if one is given."""
    torch.manual_seed(0)
    model = get_model(name)
    if head is not None:
        with DefaultScope.overwrite_default_scope('mmkdx'):
            model.head = MODELS.build(dict(head, in_channels=model.head.in_channels))
    return model.to(device).eval()


def score_cam(model: nn.Module, image: Tensor, channels: int | None, device: str) -> str:
    """Score-CAM of one image: its compute bound, exact, and the faster options with their fidelity."""
    count = channels or model.head.in_channels
    variants = {
        f'exact, {count} channels': dict(channels=channels),
        'the 64 channels of largest variance': dict(channels=64),
        'masked at half the size': dict(channels=channels, size=image.shape[-1] // 2),
        'both': dict(channels=64, size=image.shape[-1] // 2),
    }
    maps: dict[str, Tensor] = {}

    def forwards() -> None:
        with torch.no_grad():
            for part in torch.arange(count).split(32):
                model(image.expand(len(part), -1, -1, -1), mode='tensor')

    def variant(name: str, options: dict) -> Callable[[], None]:
        explainer = explain.ScoreCAM(**options)

        def run() -> None:
            maps[name] = explainer(model, image, 0)

        return run

    runs = {f'{count} forwards': forwards}
    runs.update({name: variant(name, options) for name, options in variants.items()})
    measured = measure(runs, 1, device)
    text = table('Score-CAM of one image', measured, f'{count} forwards')
    exact, *rest = maps
    for name in rest:
        pair = torch.stack([maps[exact].flatten(), maps[name].flatten()])
        text += f'\ncorrelation with the exact map, {name}: {torch.corrcoef(pair)[0, 1]:.4f}'
    return text


def pixels(model: nn.Module, image: Tensor) -> dict[str, Callable[[], object]]:
    """The pixel methods of one image, here and elsewhere, after a gradient of its pixels."""
    wrapped, classes = Logits(model), torch.zeros(1, dtype=torch.long, device=image.device)

    def gradient() -> Tensor:
        leaf = image.clone().requires_grad_()
        return torch.autograd.grad(wrapped(leaf)[0, 0], leaf)[0]

    runs: dict[str, Callable[[], object]] = {'gradient': gradient}
    for name in ('InputGradient', 'FullGrad', 'IntegratedGradients'):
        runs[f'mmkdx {name}'] = ours(name, model, image, classes)
    if importlib.util.find_spec('captum'):
        from captum.attr import IntegratedGradients

        integrated = IntegratedGradients(wrapped)
        runs['captum IntegratedGradients'] = lambda: integrated.attribute(image, target=0)
    if importlib.util.find_spec('pytorch_grad_cam'):
        from pytorch_grad_cam import FullGrad
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        def full() -> object:
            with FullGrad(wrapped, []) as cam:
                return cam(image, [ClassifierOutputTarget(0)])

        runs['grad-cam FullGrad'] = full
    return runs


def training(name: str, batch: int, size: int, device: str) -> dict[str, Callable[[], object]]:
    """A step of KD, and with a loss of explanations that shares its forward or runs one of its own."""
    student, teacher = build(name, device).train(), build(name, device)
    images = torch.randn(batch, 3, size, size, device=device)
    labels = torch.arange(batch, device=device)
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-4)
    gradcam = explain.GradCAM()
    separate = explain.GradCAM(differentiable=True)

    def step(kind: str) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad():
                deep = teacher.backbone(images)[-1]
                truth = teacher.head(teacher.neck((deep,)))
            features = student.backbone(images)[-1]
            logits = student.head(student.neck((features,)))
            loss = F.cross_entropy(logits, labels)
            loss = loss + F.kl_div(logits.log_softmax(1), truth.softmax(1), reduction='batchmean')
            if kind != 'KD':
                goal = truth.argmax(1)
                index = goal[:, None]
                wanted = ClassMaps(deep, teacher.head.fc.weight).classes(index)[:, 0].relu()
                if kind.startswith('+ closed form'):
                    maps = ClassMaps(features, student.head.fc.weight).classes(index)[:, 0]
                elif kind.startswith('+ gradient'):
                    maps = gradcam.from_forward(features, logits, goal)
                else:
                    maps = separate(student, images, goal)
                cosine = F.cosine_similarity(maps.relu().flatten(1), wanted.flatten(1))
                loss = loss + (1 - cosine).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return run

    kinds = ('KD', '+ closed form, shared forward', '+ gradient, shared forward', '+ own forward')
    return {kind: step(kind) for kind in kinds}


def main() -> None:
    """Measures and prints."""
    args = parse_args()
    torch.manual_seed(0)
    device = args.device
    name = torch.cuda.get_device_name() if device.startswith('cuda') else 'CPU'
    print(
        f'{args.model}, {args.batch} images of {args.size} x {args.size}, {args.rounds} rounds, {name}, '
        f'{torch.get_num_threads()} threads, torch {torch.__version__}'
    )
    images = torch.randn(args.batch, 3, args.size, args.size, device=device)
    classes = torch.arange(args.batch, device=device)
    model = build(args.model, device)
    runs = {'floor': floor(model, images, classes)}
    runs.update({f'mmkdx {each}': ours(each, model, images, classes) for each in METHODS})
    runs.update(peers(model, images, classes))
    print(table('Pooling and one linear layer', measure(runs, args.rounds, device), 'floor'))

    hidden = build(
        args.model,
        device,
        dict(
            type='StackedLinearClsHead',
            num_classes=1000,
            mid_channels=[512],
            act_cfg=dict(type='ReLU'),
        ),
    )
    runs = {'floor': floor(hidden, images, classes)}
    rest = [each for each in METHODS if each not in ('CAM', 'AblationCAM')]
    runs.update({f'mmkdx {each}': ours(each, hidden, images, classes) for each in rest})
    runs.update(peers(hidden, images, classes))
    print(table('A hidden layer after pooling', measure(runs, args.rounds, device), 'floor'))

    print(score_cam(model, images[:1], args.channels, device))
    print(table('One image', measure(pixels(model, images[:1]), args.rounds, device), 'gradient'))
    runs = training(args.model, max(args.batch // 2, 2), args.size, device)
    print(table('A training step', measure(runs, args.rounds, device), 'KD'))


if __name__ == '__main__':
    main()
