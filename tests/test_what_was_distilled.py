"""What only a teacher can have brought is found, on trained models: see configs/unicam/README.md."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkdx.compat import load_checkpoint_file
from mmkdx.datasets.bird_drawing import MARK
from mmkdx.datasets.parts import Parts
from mmkdx.distillation.models import build_model, load_weights
from mmkdx.evaluation.pairs import context_batches
from mmkdx.explain import GradCAM, UniCAM
from mmkdx.explain.unicam import TARGETS
from mmkdx.functional import degenerate_maps, resize_maps

ROOT = Path(__file__).parents[1]
TEACHER = 'resnet18-tiny_parts-biased'
BASE = 'resnet18-tiny_parts-random-mark'
STUDENT = f'kd_resnet18-tiny-biased_{BASE}'


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """Work directories of all three runs: MMKDX_RUNS, or those that are trained here in minutes."""
    if 'MMKDX_RUNS' in os.environ:
        return Path(os.environ['MMKDX_RUNS'])
    folder = tmp_path_factory.mktemp('runs')
    (folder / 'configs').symlink_to(ROOT / 'configs')
    env = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    for name, options in (
        (f'parts/{TEACHER}', ['custom_hooks.1.enable=False']),
        (f'unicam/{BASE}', []),
        (f'unicam/{STUDENT}', ['custom_hooks.1.enable=False']),
    ):
        command = [sys.executable, ROOT / 'tools/train.py', f'configs/{name}.py']
        options = [*options, 'train_cfg.val_interval=8']
        done = subprocess.run(
            [*command, '--cfg-options', *options],
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    return folder


def model_of(folder: Path, name: str) -> nn.Module:
    model = build_model(str(ROOT / f'configs/unicam/{name}.py'), 'model')
    load_weights(model, load_checkpoint_file(folder / f'work_dirs/{name}/epoch_8.pth'), name)
    return model.eval()


#: How far from the mark a peak may lie, in pixels, as the pointing game has it: 15 of 224.
TOLERANCE = 4


def shares(maps: Tensor, mask: Tensor) -> list[float]:
    """Which share of the positive evidence lies in a mask, for each map that has some."""
    positive = resize_maps(maps, mask.shape[1:]).relu()
    kept = ~degenerate_maps(positive)
    return ((positive * mask).sum((1, 2)) / positive.sum((1, 2)))[kept].tolist()


def peaks(maps: Tensor, mask: Tensor) -> list[float]:
    """Whether the highest point lies in a mask, for each map that has positive evidence."""
    positive = resize_maps(maps, mask.shape[1:]).relu()
    kept = ~degenerate_maps(positive)
    return mask.flatten(1).gather(1, positive.flatten(1).argmax(1)[:, None])[kept, 0].tolist()


@pytest.mark.slow
def test_distilled_maps_lie_on_what_the_teacher_alone_brought(folder, capsys):
    """The mark tells the class to a student of a teacher that knows it, and not to the base model."""
    student, base = model_of(folder, STUDENT), model_of(folder, BASE)
    data = Parts(split='test', num_samples=900, mark='class')
    samples = [data[i] for i in range(len(data))]
    images = torch.stack([torch.from_numpy(each['img'].copy()) for each in samples])
    images = (images.permute(0, 3, 1, 2).flip(1).float() - 105) / 41
    labels = torch.tensor([each['gt_label'] for each in samples])
    regions = torch.from_numpy(np.stack([each['gt_seg_map'] for each in samples]))
    mark = (regions == MARK).float()
    bird = ((regions > 0) & (regions != MARK)).float()
    near = F.max_pool2d(mark, 2 * TOLERANCE + 1, 1, TOLERANCE)
    columns = (('mark', shares, mark), ('peak', peaks, near), ('bird', shares, bird))
    found: dict[str, dict[str, list[float]]] = {}

    def add(name: str, maps: Tensor, batch: list[int]) -> None:
        row = found.setdefault(name, {})
        for column, measure, mask in columns:
            row.setdefault(column, []).extend(measure(maps, mask[batch]))

    models = dict(student=(student, images[:1]), base=(base, images[:1]))
    for target in TARGETS:
        unicam = UniCAM(target=target)
        layers = unicam.find_layers(models)
        for batch in context_batches(labels.tolist(), 64):
            for stage, each in unicam(
                student, base, images[batch], labels[batch], layers=layers
            ).items():
                add(f'{target} distilled {stage}', each.distilled, batch)
                add(f'{target} residual {stage}', each.residual, batch)
    for batch in context_batches(labels.tolist(), 64):
        for name, model in (('student', student), ('base', base)):
            add(f'Grad-CAM of {name}', GradCAM()(model, images[batch], labels[batch]), batch)
    chance = {column: mask.mean().item() for column, _, mask in columns}
    mean = {
        name: {column: float(np.mean(values)) for column, values in row.items()}
        for name, row in found.items()
    }
    with capsys.disabled():
        print(f'\n{"":32} {"mark":>6} {"peak":>6} {"bird":>6}  maps')
        for name, row in (('chance', chance), *mean.items()):
            count = len(found[name]['mark']) if name in found else ''
            print(f'{name:32}', *(f'{row[column]:6.3f}' for column in chance), '', count)
    for stage in ('stage3', 'stage4'):
        distilled, residual = (
            mean[f'gt_correlation {side} {stage}'] for side in ('distilled', 'residual')
        )
        assert distilled['mark'] > 2 * chance['mark'] and distilled['mark'] > 2 * residual['mark']
        assert distilled['peak'] > 2 * chance['peak'] and distilled['peak'] > 2 * residual['peak']
        assert residual['bird'] > chance['bird']
    last = mean['gt_correlation residual stage4']
    assert last['mark'] < chance['mark'] and last['peak'] < chance['peak']
