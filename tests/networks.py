"""Small networks of other libraries, by name, for the tests of students and exports."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

_SMALL = dict(hidden_sizes=[4, 8], depths=[1, 1], num_classes=4)
_VIT = dict(
    hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_classes=4
)


class OwnNetwork(nn.Module):
    """A network of the user's own, with a part called ``model``."""

    def __init__(self, num_classes: int = 4) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.fc = nn.Linear(6, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of images."""
        return self.fc(F.adaptive_avg_pool2d(self.model(images), 1).flatten(1))


def thin_vgg() -> nn.Module:
    """timm's VGG, whose first linear layer is a convolution of the whole map, with few channels."""
    vgg = pytest.importorskip('timm.models.vgg')
    layers = [8, 'M', 16, 'M', 16, 'M', 16, 'M', 16, 'M']
    return vgg.VGG(layers, num_classes=4, mlp_ratio=0.01)


#: For each network: the arguments beside its name, and the side of its images.
NETWORKS: dict[str, tuple[dict[str, Any], int]] = {
    'timm::test_resnet': (dict(num_classes=4), 32),
    'timm::test_efficientnet': (dict(num_classes=4, drop_rate=0.0), 32),
    'timm::test_convnext': (dict(num_classes=4), 64),
    'timm::test_vit': (dict(num_classes=4, img_size=32), 32),
    'torchvision::shufflenet_v2_x0_5': (dict(num_classes=4), 32),
    'torchvision::squeezenet1_1': (dict(num_classes=4, dropout=0.0), 32),
    'torchvision::mnasnet0_5': (dict(num_classes=4, dropout=0.0), 32),
    'hf::resnet': (dict(_SMALL, embedding_size=4, layer_type='basic'), 32),
    'hf::ConvNextForImageClassification': (dict(_SMALL, num_stages=2), 32),
    'hf::ViTConfig': (dict(_VIT, image_size=32), 32),
    'networks:OwnNetwork': ({}, 16),
}


#: Those of each library whose tests take a second; the others are marked as slow.
QUICK = 'timm::test_resnet', 'torchvision::squeezenet1_1', 'hf::resnet', 'networks:OwnNetwork'
PARAMETERS = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NETWORKS
]


def spec_of(name: str) -> tuple[dict, int]:
    """A network's model dict, and the side of its images; the test is left out without its library."""
    arguments, side = NETWORKS[name]
    library = {'timm': 'timm', 'hf': 'transformers'}.get(name.partition('::')[0])
    if library:
        pytest.importorskip(library)
    return dict(type=name, **arguments), side
