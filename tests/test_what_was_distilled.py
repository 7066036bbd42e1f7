"""What only a teacher can have brought is found, on trained models: see configs/unicam/README.md."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmkdx.compat import load_checkpoint_file
from mmkdx.datasets import Parts
from mmkdx.distillation.models import build_model, load_weights
from mmkdx.distillation.pairs import context_batches
from mmkdx.explain import GradCAM, UniCAM
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


def shares(maps: Tensor, mask: Tensor) -> list[float]:
    """Which share of the positive evidence lies in a mask, for each map that has some."""
    positive = resize_maps(maps, mask.shape[1:]).relu()
    kept = ~degenerate_maps(positive)
    return ((positive * mask).sum((1, 2)) / positive.sum((1, 2)))[kept].tolist()


@pytest.mark.slow
@pytest.mark.parametrize('target', ['gt_correlation', 'row_max'])
def test_distilled_maps_lie_on_what_the_teacher_alone_brought(folder, target, capsys):
    """The mark tells the class to a student of a teacher that knows it, and not to the base model."""
    student, base = model_of(folder, STUDENT), model_of(folder, BASE)
    data = Parts(split='test', num_samples=900, mark='class')
    samples = [data[i] for i in range(len(data))]
    images = torch.stack([torch.from_numpy(each['img'].copy()) for each in samples])
    images = (images.permute(0, 3, 1, 2).flip(1).float() - 105) / 41
    labels = torch.tensor([each['gt_label'] for each in samples])
    regions = torch.from_numpy(np.stack([each['gt_seg_map'] for each in samples]))
    mark, bird = (regions == 8).float(), ((regions > 0) & (regions < 8)).float()
    found: dict[tuple[str, str], list[float]] = {}

    def add(name: str, maps: Tensor, batch: list[int]) -> None:
        found.setdefault((name, 'mark'), []).extend(shares(maps, mark[batch]))
        found.setdefault((name, 'bird'), []).extend(shares(maps, bird[batch]))

    unicam = UniCAM(target=target)
    models = dict(student=(student, images[:1]), base=(base, images[:1]))
    layers = unicam.find_layers(models)
    for batch in context_batches(labels.tolist(), 64):
        for stage, each in unicam(
            student, base, images[batch], labels[batch], layers=layers
        ).items():
            add(f'distilled {stage}', each.distilled, batch)
            add(f'residual {stage}', each.residual, batch)
        for name, model in (('student', student), ('base', base)):
            add(f'Grad-CAM of {name}', GradCAM()(model, images[batch], labels[batch]), batch)
    mean = {key: float(np.mean(values)) for key, values in found.items()}
    chance = dict(mark=mark.mean().item(), bird=bird.mean().item())
    with capsys.disabled():
        print(f'\n{target}: share of positive evidence (images with some)')
        print(f'{"":22} {"mark":>6} {"bird":>6}')
        print(f'{"area":22} {chance["mark"]:6.3f} {chance["bird"]:6.3f}')
        for name in dict.fromkeys(name for name, _ in mean):
            count = len(found[name, 'mark'])
            print(f'{name:22} {mean[name, "mark"]:6.3f} {mean[name, "bird"]:6.3f}  ({count})')
    assert mean['distilled stage4', 'mark'] > 3 * chance['mark']
    assert mean['residual stage4', 'mark'] < 1.2 * chance['mark']
