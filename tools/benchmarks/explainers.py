#!/usr/bin/env python
"""Times explainers against their floor and against pytorch-grad-cam, torchcam and captum, in one run.

The floor of a map is a forward without a graph up to the layer, and the gradient of the score at
the layer. In the CAM family only the closed form needs no gradient. Maps are scaled to [0, 1] and
resized to the images.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from functools import partial

import torch
import torch.nn.functional as F
from _timing import Run, machine, measure, parser
from mmpretrain import get_model
from torch import Tensor, nn

from mmkdx import explain
from mmkdx.distillation.models import build_part
from mmkdx.functional import ClassMaps, normalize_maps, resize_maps
from mmkdx.models.intercept import Tap, intercept

GRADIENTS = ('GradCAM', 'GradCAMPlusPlus', 'XGradCAM', 'HiResCAM', 'LayerCAM')
PROJECTIONS = ('EigenCAM', 'EigenGradCAM')

#: The single-pass methods that are timed.
METHODS = ('CAM', *GRADIENTS, *PROJECTIONS, 'AblationCAM')

#: The tables of a network.
TABLES = ('maps', 'score-cam', 'pixels', 'transformers', 'training')


def build(
    name: str, device: str, hidden: bool = False, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """A model of the zoo with random weights; with ``hidden`` its head has a hidden layer."""
    torch.manual_seed(0)
    model = get_model(name)
    if hidden:
        head = dict(type='StackedLinearClsHead', num_classes=1000, mid_channels=[512])
        model.head = build_part(dict(head, in_channels=model.head.in_channels))
    return model.to(device, dtype).eval()


def floor(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Runs the backbone without a graph and the rest with one, then the gradient to the layer."""
    with torch.no_grad():
        features = model.backbone(images)[-1]
    features.requires_grad_()
    score = model.head(model.neck((features,))).gather(1, classes[:, None]).sum()
    return torch.autograd.grad(score, features)[0]


def finish(maps: Tensor, images: Tensor) -> Tensor:
    """Maps scaled to [0, 1] and resized to the images."""
    return resize_maps(normalize_maps(maps, relu=True), images.shape[2:])


def ours(name: str, model: nn.Module, images: Tensor, classes: Tensor) -> Run:
    """A method of mmkdx."""
    explainer = getattr(explain, name)()
    return lambda: finish(explainer(model, images, classes), images)


def grad_cam(name: str, model: nn.Module, layers: list, images: Tensor, classes: Tensor) -> object:
    """A method of pytorch-grad-cam."""
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    with getattr(pytorch_grad_cam, name)(model, layers) as cam:
        return cam(images, [ClassifierOutputTarget(index) for index in classes.tolist()])


def peers(model: nn.Module, images: Tensor, classes: Tensor) -> dict[str, Run]:
    """The same methods of other libraries that are installed."""
    layer = getattr(model.backbone, 'layer4', None)
    found: dict[str, Run] = {}
    if layer is None or images.dtype == torch.bfloat16:  # they convert maps to NumPy
        return found
    if importlib.util.find_spec('captum'):
        from captum.attr import LayerGradCam

        captum = LayerGradCam(model, layer)
        found['captum GradCAM'] = lambda: finish(
            captum.attribute(images, target=classes)[:, 0].detach(), images
        )
    if importlib.util.find_spec('torchcam'):
        from torchcam import methods

        def torchcam(name: str) -> Tensor:
            with getattr(methods, name)(model, layer) as extractor:
                maps = extractor(classes.tolist(), model(images.requires_grad_()))[0]
            images.requires_grad_(False)
            return resize_maps(maps.detach(), images.shape[2:])

        for name in ('GradCAM', 'XGradCAM', 'LayerCAM'):
            found[f'torchcam {name}'] = partial(torchcam, name)
    if importlib.util.find_spec('pytorch_grad_cam'):
        for name in GRADIENTS + PROJECTIONS:
            found[f'grad-cam {name}'] = partial(grad_cam, name, model, [layer], images, classes)
    return found


def score_cam(model: nn.Module, image: Tensor, channels: int | None, device: str) -> str:
    """Times Score-CAM of one image: the bound, the exact form, and faster forms with fidelity."""
    count, half = channels or model.head.in_channels, image.shape[-1] // 2
    variants = {
        f'exact, {count} channels': dict(channels=channels),
        'the 64 channels of largest variance': dict(channels=64),
        'masked at half the size': dict(channels=channels, size=half),
        'both': dict(channels=64, size=half),
    }
    maps: dict[str, Tensor] = {}

    @torch.no_grad()
    def forwards() -> None:
        for part in torch.arange(count).split(32):
            model(image.expand(len(part), -1, -1, -1))

    def explain_image(name: str) -> None:
        maps[name] = explain.ScoreCAM(**variants[name])(model, image, 0)

    runs = {f'{count} forwards': forwards}
    runs |= {name: partial(explain_image, name) for name in variants}
    text = measure(runs, device).table('Score-CAM of one image')
    exact, *rest = variants
    for name in rest:
        pair = torch.stack([maps[exact].flatten(), maps[name].flatten()])
        text += f'\ncorrelation with the exact map, {name}: {torch.corrcoef(pair)[0, 1]:.4f}'
    return text


def pixels(model: nn.Module, image: Tensor) -> dict[str, Run]:
    """The gradient to the pixels of one image, then pixel methods of mmkdx and other libraries."""
    classes = torch.zeros(1, dtype=torch.long, device=image.device)

    def gradient() -> Tensor:
        leaf = image.clone().requires_grad_()
        return torch.autograd.grad(model(leaf)[0, 0], leaf)[0]

    runs: dict[str, Run] = {'gradient': gradient}
    for name in ('InputGradient', 'FullGrad', 'IntegratedGradients'):
        runs[f'mmkdx {name}'] = ours(name, model, image, classes)
    if importlib.util.find_spec('captum'):
        from captum.attr import IntegratedGradients

        integrated = IntegratedGradients(model)
        runs['captum IntegratedGradients'] = partial(integrated.attribute, image, target=0)
    if importlib.util.find_spec('pytorch_grad_cam'):
        runs['grad-cam FullGrad'] = partial(grad_cam, 'FullGrad', model, [], image, classes)
    return runs


def transformer(kind: str, batch: int, size: int, device: str) -> dict[str, Run]:
    """Attention maps of a small vision transformer, by mmkdx and torchcam.

    The floor is a forward whose graph starts at the first block, and the gradient down to there.

    Args:
        kind (str): 'mmpretrain' for DeiT-S, or 'torchvision' for a network of the same size.
        batch (int): The number of images.
        size (int): Their height and width.
        device (str): The device.
    """
    if kind == 'mmpretrain':
        model, first = build('deit-small_4xb256_in1k', device), 'backbone.layers.0'
    else:
        vision = importlib.import_module('torchvision.models').VisionTransformer
        model = vision(size, 16, 12, 6, 384, 1536).to(device).eval()
        nn.init.normal_(model.heads.head.weight, std=0.02)
        first = 'encoder.layers.encoder_layer_0'
    images = torch.randn(batch, 3, size, size, device=device)
    classes = torch.arange(batch, device=device)

    def floor() -> Tensor:
        leaves = []

        def leaf(value: Tensor) -> Tensor:
            torch.set_grad_enabled(True)
            leaves.append(value.detach().requires_grad_())
            return leaves[0]

        with torch.no_grad(), intercept(model, {Tap(first, side='in'): leaf}):
            score = model(images).gather(1, classes[:, None]).sum()
        return torch.autograd.grad(score, leaves)[0]

    runs: dict[str, Run] = {
        'forward and gradient': floor,
        'forward': lambda: forward(model, images),
    }
    for name in ('AttentionRollout', 'GradientRollout', 'LeGrad'):
        runs[f'mmkdx {name}'] = ours(name, model, images, classes)
    if kind == 'torchvision' and importlib.util.find_spec('torchcam'):
        from torchcam.methods import LeGrad

        def torchcam() -> Tensor:
            with LeGrad(model, list(model.encoder.layers)) as extractor:
                maps = extractor(classes.tolist(), model(images))
            return resize_maps(torch.stack(maps).mean(0), images.shape[2:])

        runs['torchcam LeGrad'] = torchcam
    return runs


@torch.no_grad()
def forward(model: nn.Module, images: Tensor) -> Tensor:
    """A forward alone."""
    return model(images)


def training(name: str, batch: int, size: int, device: str) -> dict[str, Run]:
    """A step of KD, also with a loss on explanations that shares its forward or runs its own."""
    student, teacher = build(name, device).train(), build(name, device)
    images = torch.randn(batch, 3, size, size, device=device)
    labels = torch.arange(batch, device=device)
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-4)
    gradcam, separate = explain.GradCAM(), explain.GradCAM(differentiable=True)

    def closed_form(features: Tensor, logits: Tensor, goal: Tensor) -> Tensor:
        return ClassMaps(features, student.head.fc.weight).classes(goal[:, None])[:, 0]

    kinds = {
        'KD': None,
        '+ closed form, shared forward': closed_form,
        '+ gradient, shared forward': gradcam.from_forward,
        '+ own forward': lambda features, logits, goal: separate(student, images, goal),
    }

    def step(kind: str) -> None:
        with torch.no_grad():
            deep = teacher.backbone(images)[-1]
            truth = teacher.head(teacher.neck((deep,)))
        features = student.backbone(images)[-1]
        logits = student.head(student.neck((features,)))
        loss = F.cross_entropy(logits, labels)
        loss = loss + F.kl_div(logits.log_softmax(1), truth.softmax(1), reduction='batchmean')
        if kinds[kind] is not None:
            goal = truth.argmax(1)
            maps = kinds[kind](features, logits, goal)
            wanted = ClassMaps(deep, teacher.head.fc.weight).classes(goal[:, None])[:, 0]
            pair = (each.relu().flatten(1) for each in (maps, wanted))
            loss = loss + (1 - F.cosine_similarity(*pair)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return {kind: partial(step, kind) for kind in kinds}


def main() -> None:
    """Measures and prints."""
    options = parser(__doc__)
    options.add_argument(
        '--model',
        nargs='+',
        default=['resnet18_8xb32_in1k'],
        help='ResNets or Swins of mmpretrain',
    )
    options.add_argument('--tables', nargs='+', choices=TABLES, default=TABLES, help='default: all')
    options.add_argument(
        '--dtype',
        choices=['float32', 'bfloat16'],
        default='float32',
        help="of model and images, in all tables but 'transformers' and 'training'",
    )
    options.add_argument('--batch', type=int, default=32, help='images in a batch')
    options.add_argument('--size', type=int, default=224, help='height and width of the images')
    options.add_argument('--rounds', type=int, default=8, help='number of rounds')
    options.add_argument('--channels', type=int, help='channels of exact Score-CAM (default: all)')
    args = options.parse_args()
    torch.manual_seed(0)
    print(machine(args.device))
    for name in args.model:
        print_tables(name, args)


def print_tables(name: str, args: argparse.Namespace) -> None:
    """Measures and prints the tables of one network."""
    device, size, dtype = args.device, args.size, getattr(torch, args.dtype)
    print(f'{name}, {args.batch} images of {size} x {size}, {args.rounds} rounds, {args.dtype}')
    images = torch.randn(args.batch, 3, size, size, device=device, dtype=dtype)
    classes = torch.arange(args.batch, device=device)
    model = build(name, device, dtype=dtype)

    def show(runs: dict[str, Run], title: str) -> None:
        print(measure(runs, device, args.rounds).table(title), flush=True)

    if 'maps' in args.tables:
        for title, each, methods in (
            ('Pooling and one linear layer', model, METHODS),
            (
                'A hidden layer after pooling',
                build(name, device, True, dtype),
                GRADIENTS + PROJECTIONS,
            ),
        ):
            runs = {'floor': partial(floor, each, images, classes)}
            runs |= {f'mmkdx {method}': ours(method, each, images, classes) for method in methods}
            show(runs | peers(each, images, classes), title)
    if 'score-cam' in args.tables:
        print(score_cam(model, images[:1], args.channels, device), flush=True)
    if 'pixels' in args.tables:
        show(pixels(model, images[:1]), 'One image')
    if 'transformers' in args.tables:
        for kind in ('mmpretrain', 'torchvision'):
            show(transformer(kind, max(args.batch // 8, 1), size, device), f'DeiT-S of {kind}')
    if 'training' in args.tables:
        show(training(name, max(args.batch // 2, 2), size, device), 'A training step')


if __name__ == '__main__':
    main()
