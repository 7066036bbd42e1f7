"""Small models and batches that the tests share."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch
from mmpretrain.structures import DataSample
from processes import run_ranks  # noqa: F401, for the tests that have it from here
from torch import nn

from mmkdx.registry import MODELS


@MODELS.register_module()
class TinyBackbone(nn.Module):
    """Two 3 x 3 convolutions, of which the second halves the size.

    Args:
        width (int): Channels.
        norm (bool): Whether batch norm follows each convolution. Defaults to True.
        drop (float): Dropout of the result. Defaults to 0.
    """

    def __init__(self, width: int, norm: bool = True, drop: float = 0.0) -> None:
        super().__init__()
        self.stem = self._layer(3, width, 1, norm)
        self.body = self._layer(width, width, 2, norm)
        self.drop = nn.Dropout(drop)

    @staticmethod
    def _layer(inputs: int, outputs: int, stride: int, norm: bool) -> nn.Sequential:
        layers = [nn.Conv2d(inputs, outputs, 3, stride, 1)]
        if norm:
            layers.append(nn.BatchNorm2d(outputs))
        return nn.Sequential(*layers, nn.ReLU(inplace=True))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        """Returns one feature map at half the size of the images."""
        return (self.drop(self.body(self.stem(images))),)


def classifier(width: int = 8, classes: int = 4, **backbone) -> dict:
    """The config of a GAP + linear classifier."""
    return dict(
        type='ImageClassifier',
        backbone=dict(type='TinyBackbone', width=width, **backbone),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='LinearClsHead',
            num_classes=classes,
            in_channels=width,
            loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        ),
    )


def stacked(width: int = 4, **head) -> dict:
    """The config of a classifier whose head has a hidden layer."""
    layers = dict(type='StackedLinearClsHead', num_classes=4, in_channels=width, mid_channels=[6])
    return {**classifier(width), 'head': {**layers, **head}}


class LayerNormed(nn.Module):
    """A plain classifier with layer norm between its pooling and its linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 8, 3, 2, 1), nn.AdaptiveAvgPool2d(1)
        self.norm, self.fc = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The logits."""
        return self.fc(self.norm(self.pool(self.conv(images)).flatten(1)))


def build(config: dict) -> nn.Module:
    """Builds a model in mmkdx's scope."""
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope('mmkdx'):
        return MODELS.build(config)


def distiller(terms: dict | None = None, **kwargs) -> nn.Module:
    """A distiller of tiny models with images of 8 x 8 pixels; its teacher is random."""
    config = dict(
        type='Distiller',
        student=classifier(4),
        teacher=dict(model=classifier(8)),
        input_size=8,
        terms=dict(kd=dict(type='KLDivLoss', at='logits')) if terms is None else terms,
    )
    return build({**config, **kwargs})


def batch(n: int = 6, size: int = 8, classes: int = 4, seed: int = 0) -> tuple[torch.Tensor, list]:
    """Random images and labels."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, 3, size, size, generator=generator)
    return images, [DataSample().set_gt_label(i % classes) for i in range(n)]


def total(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    """The sum that is trained."""
    return sum(value for key, value in losses.items() if 'loss' in key)


def import_numba_user(name: str) -> ModuleType:
    """A package as plain Python: to compile what numba can takes half a minute longer than to run it."""
    numba = pytest.importorskip('numba')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numba.config, 'DISABLE_JIT', 1)
        # This compiles even so, and finds that what it calls is not compiled
        patch.setattr(numba, 'guvectorize', lambda *_, **__: lambda function: function)
        return pytest.importorskip(name)


def tool(name: str) -> ModuleType:
    """A script of ``tools`` as a module."""
    path = Path(__file__).parents[1] / 'tools' / f'{name}.py'
    spec = spec_from_file_location(path.stem, path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
