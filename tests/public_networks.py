"""mdistiller's CIFAR networks, written a second time as plain functions of their public weights.

``PublicNetwork(name).run(images)`` makes weights of its own where a key is asked for the first time,
so that a forward also yields the public layout of keys and shapes.
"""

from __future__ import annotations

import hashlib
import json

import torch
import torch.nn.functional as F
from torch import Tensor

#: Of each network: state-dict entries, beginning of the SHA-256 of its sorted keys and shapes in the
#: released files, parameters, and the shape of what enters pooling.
PUBLISHED = {
    'resnet20': (128, 'aafbd1e3ed5cc968', 278324, (64, 8, 8)),
    'resnet32': (200, '4cd2f97c31eb9aef', 472756, (64, 8, 8)),
    'resnet56': (344, '13c8dfd9a02c614c', 861620, (64, 8, 8)),
    'resnet110': (668, 'cd051e607243a65d', 1736564, (64, 8, 8)),
    'resnet8x4': (62, 'ce371862c7aac1ab', 1233540, (256, 8, 8)),
    'resnet32x4': (206, '25d0ba152b29bdd8', 7433860, (256, 8, 8)),
    'resnet50': (320, '068ca06b2b0a7270', 23705252, (2048, 4, 4)),
    'wrn_16_2': (83, 'acb2e562b3b64a33', 703284, (128, 8, 8)),
    'wrn_40_1': (226, 'b86b3bb550dfeb20', 569780, (64, 8, 8)),
    'wrn_40_2': (227, '1d5fd3e2b78896e2', 2255156, (128, 8, 8)),
    'vgg8': (37, '5c622ce8424f012d', 3965028, (512, 4, 4)),
    'vgg13': (72, '95189e924eb4d30d', 9462180, (512, 4, 4)),
    'mobilenetv2': (320, '36772ea082891b20', 812836, (1280, 2, 2)),
    'shufflenetv1': (296, '9bf563996acdc6de', 949258, (960, 4, 4)),
    'shufflenetv2': (338, '4eab41c7c215fdf7', 1355528, (1024, 4, 4)),
}


def layout(weights: dict[str, Tensor]) -> tuple[int, str]:
    """The number of tensors, and the beginning of the hash of their sorted keys and shapes."""
    rows = sorted([key, list(value.shape)] for key, value in weights.items())
    return len(rows), hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


class PublicNetwork:
    """A network in evaluation mode, in float64.

    Args:
        name (str): One of ``PUBLISHED``.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.weights: dict[str, Tensor] = {}
        self.stages: dict[str, Tensor] = {}
        self.generator = torch.Generator().manual_seed(0)

    def run(self, images: Tensor) -> Tensor:
        """Computes the logits; ``stages`` has each stage's output and 'features'."""
        family = self.name.split('_')[0].rstrip('0123456789x')
        if self.name in ('resnet50', 'shufflenetv1', 'shufflenetv2', 'mobilenetv2'):
            family = self.name
        return getattr(self, family)(images)

    # Layers

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def get(self, key: str, value: Tensor) -> Tensor:
        return self.weights.setdefault(key, value)

    def conv(self, x, key, out, size, stride=1, groups=1, bias=False):
        fan_in = x.shape[1] // groups * size * size
        weight = self.weights.get(f'{key}.weight')
        if weight is None:
            weight = self.random(out, x.shape[1] // groups, size, size) * (2 / fan_in) ** 0.5
            self.weights[f'{key}.weight'] = weight
        bias = self.get(f'{key}.bias', 0.2 * self.random(out)) if bias else None
        return F.conv2d(x, weight, bias, stride, padding=size // 2, groups=groups)

    def norm(self, x, key):
        channels = x.shape[1]
        if f'{key}.weight' not in self.weights:
            # Near the statistics of the images, so that no signal dies or explodes in a deep network
            var, mean = torch.var_mean(x, (0, 2, 3))
            new = dict(
                weight=0.7 + 0.6 * self.random(channels).sigmoid(),
                bias=0.3 * self.random(channels),
                running_mean=mean + 0.3 * var.sqrt() * self.random(channels),
                running_var=(var + 0.1 * var.mean()) * (0.5 * self.random(channels)).exp(),
                num_batches_tracked=torch.tensor(7),
            )
            self.weights.update({f'{key}.{name}': value for name, value in new.items()})
        weight, bias, mean, var = (
            self.weights[f'{key}.{name}'][:, None, None]
            for name in ('weight', 'bias', 'running_mean', 'running_var')
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def conv_norm(self, x, conv, norm, *args, **kwargs):
        return self.norm(self.conv(x, conv, *args, **kwargs), norm)

    def linear(self, features, key, window):
        assert features.shape[2:] == (window, window)
        self.stages['features'] = features
        pooled = F.avg_pool2d(features, window).flatten(1)
        weight = self.weights.get(f'{key}.weight')
        if weight is None:
            weight = self.weights[f'{key}.weight'] = self.random(100, pooled.shape[1])
        return pooled @ weight.T + self.get(f'{key}.bias', self.random(100))

    @staticmethod
    def shuffle(x, groups):
        channels = x.shape[1]
        old = [j % groups * (channels // groups) + j // groups for j in range(channels)]
        return x[:, old]

    # Networks

    def resnet(self, x):
        wide = self.name.endswith('x4')
        depth = int(self.name.removeprefix('resnet').removesuffix('x4'))
        x = self.conv_norm(x, 'conv1', 'bn1', 32 if wide else 16, 3).relu()
        for s, width in enumerate((64, 128, 256) if wide else (16, 32, 64), 1):
            for b in range((depth - 2) // 6):
                key = f'layer{s}.{b}'
                stride = 2 if b == 0 and s > 1 else 1
                out = self.conv_norm(x, f'{key}.conv1', f'{key}.bn1', width, 3, stride).relu()
                out = self.conv_norm(out, f'{key}.conv2', f'{key}.bn2', width, 3)
                if stride != 1 or x.shape[1] != width:
                    down = f'{key}.downsample'
                    x = self.conv_norm(x, f'{down}.0', f'{down}.1', width, 1, stride)
                x = (out + x).relu()
            self.stages[f'layer{s}'] = x
        return self.linear(x, 'fc', 8)

    def resnet50(self, x):
        x = self.conv_norm(x, 'conv1', 'bn1', 64, 3).relu()
        for s, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), 1):
            for b in range(blocks):
                key = f'layer{s}.{b}'
                stride = 2 if b == 0 and s > 1 else 1
                out = self.conv_norm(x, f'{key}.conv1', f'{key}.bn1', width, 1).relu()
                out = self.conv_norm(out, f'{key}.conv2', f'{key}.bn2', width, 3, stride).relu()
                out = self.conv_norm(out, f'{key}.conv3', f'{key}.bn3', 4 * width, 1)
                if b == 0:
                    down = f'{key}.shortcut'
                    x = self.conv_norm(x, f'{down}.0', f'{down}.1', 4 * width, 1, stride)
                x = (out + x).relu()
            self.stages[f'layer{s}'] = x
        return self.linear(x, 'linear', 4)

    def wrn(self, x):
        _, depth, widening = self.name.split('_')
        x = self.conv(x, 'conv1', 16, 3)
        for g, width in enumerate((16, 32, 64), 1):
            width *= int(widening)
            for u in range((int(depth) - 4) // 6):
                key = f'block{g}.layer.{u}'
                stride = 2 if u == 0 and g > 1 else 1
                active = self.norm(x, f'{key}.bn1').relu()
                out = self.conv(active, f'{key}.conv1', width, 3, stride)
                out = self.conv(self.norm(out, f'{key}.bn2').relu(), f'{key}.conv2', width, 3)
                if x.shape[1] != width:
                    x = self.conv(active, f'{key}.convShortcut', width, 1, stride)
                x = x + out
            self.stages[f'block{g}'] = x
        return self.linear(self.norm(x, 'bn1').relu(), 'fc', 8)

    def vgg(self, x):
        for i, width in enumerate((64, 128, 256, 512, 512)):
            for j in (0, 3)[: 1 if self.name == 'vgg8' else 2]:
                key = f'block{i}.{j}', f'block{i}.{j + 1}'
                x = self.conv_norm(x, *key, width, 3, bias=True).relu()
            self.stages[f'block{i}'] = x
            if i < 3:
                x = F.max_pool2d(x, 2)
        return self.linear(x, 'classifier', 4)

    def mobilenetv2(self, x):
        x = self.conv_norm(x, 'conv1.0', 'conv1.1', 16, 3, 2).relu()
        widths, units, strides = (8, 12, 16, 32, 48, 80, 160), (1, 2, 3, 4, 3, 3, 1), '1122121'
        for i, (width, count) in enumerate(zip(widths, units)):
            for u in range(count):
                key = f'blocks.{i}.{u}.conv'
                stride = int(strides[i]) if u == 0 else 1
                hidden = x.shape[1] * (1 if i == 0 else 6)
                out = self.conv_norm(x, f'{key}.0', f'{key}.1', hidden, 1).relu()
                out = self.conv_norm(
                    out, f'{key}.3', f'{key}.4', hidden, 3, stride, groups=hidden
                ).relu()
                out = self.conv_norm(out, f'{key}.6', f'{key}.7', width, 1)
                x = x + out if stride == 1 and x.shape[1] == width else out
            self.stages[f'blocks.{i}'] = x
        return self.linear(
            self.conv_norm(x, 'conv2.0', 'conv2.1', 1280, 1).relu(), 'classifier.0', 2
        )

    def shufflenetv1(self, x):
        x = self.conv_norm(x, 'conv1', 'bn1', 24, 1).relu()
        for s, (width, units) in enumerate(((240, 4), (480, 8), (960, 4)), 1):
            for u in range(units):
                key = f'layer{s}.{u}'
                stride, groups = 2 if u == 0 else 1, 1 if x.shape[1] == 24 else 3
                branch = width - x.shape[1] if u == 0 else width
                middle = branch // 4
                out = self.conv_norm(x, f'{key}.conv1', f'{key}.bn1', middle, 1, groups=groups)
                out = self.shuffle(out.relu(), groups)
                out = self.conv_norm(
                    out, f'{key}.conv2', f'{key}.bn2', middle, 3, stride, groups=middle
                ).relu()
                out = self.conv_norm(out, f'{key}.conv3', f'{key}.bn3', branch, 1, groups=3)
                if u == 0:
                    # Padded zeros count: always a ninth of the sum
                    pooled = F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2)
                    x = torch.cat((out, pooled), 1).relu()
                else:
                    x = (out + x).relu()
            self.stages[f'layer{s}'] = x
        return self.linear(x, 'linear', 4)

    def shufflenetv2(self, x):
        x = self.conv_norm(x, 'conv1', 'bn1', 24, 1).relu()
        for s, (width, units) in enumerate(((116, 4), (232, 8), (464, 4)), 1):
            half = width // 2
            for u in range(units):

                def layer(x, i, size, stride=1, key=f'layer{s}.{u}', half=half):
                    groups, out = (x.shape[1], x.shape[1]) if size == 3 else (1, half)
                    names = f'{key}.conv{i}', f'{key}.bn{i}'
                    return self.conv_norm(x, *names, out, size, stride, groups=groups)

                if u == 0:
                    left = layer(layer(x, 1, 3, 2), 2, 1).relu()
                    right = layer(layer(layer(x, 3, 1).relu(), 4, 3, 2), 5, 1).relu()
                else:
                    left, right = x[:, :half], x[:, half:]
                    right = layer(layer(layer(right, 1, 1).relu(), 2, 3), 3, 1).relu()
                x = self.shuffle(torch.cat((left, right), 1), 2)
            self.stages[f'layer{s}'] = x
        return self.linear(self.conv_norm(x, 'conv2', 'bn2', 1024, 1).relu(), 'linear', 4)
