"""ShuffleNet for CIFAR."""

from __future__ import annotations

import torch
from mmpretrain.models.utils import channel_shuffle
from torch import Tensor, nn

from mmkdx.models.backbones.staged import StagedBackbone
from mmkdx.registry import MODELS


class ShuffleUnit(nn.Module):
    """Unit of ShuffleNet with three groups, which adds its input or puts it, pooled, beside.

    Channels are shuffled before the depthwise convolution, which ReLU follows; the paper has none
    there. In a unit of stride 2 the branch yields what the pooled input lacks of ``out_channels``.

    Args:
        in_channels (int): Channels of the input.
        out_channels (int): Channels of the output.
        stride (int): 1 adds, 2 concatenates.
        first_groups (int): Groups of the first convolution and of the shuffle.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, first_groups: int) -> None:
        super().__init__()
        branch = out_channels - in_channels if stride == 2 else out_channels
        middle = branch // 4
        self.first_groups = first_groups
        self.conv1 = nn.Conv2d(in_channels, middle, 1, groups=first_groups, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, 1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, branch, 1, groups=3, bias=False)
        self.bn3 = nn.BatchNorm2d(branch)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AvgPool2d(3, 2, 1) if stride == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        """Maps features (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = channel_shuffle(out, self.first_groups)
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + x if self.pool is None else torch.cat((out, self.pool(x)), 1))


@MODELS.register_module()
class CIFARShuffleNetV1(StagedBackbone):
    """ShuffleNet (Zhang et al., CVPR 2018) with three groups.

    A 1 × 1 stem and the stages ``layer1`` to ``layer3`` of 4, 8 and 4 units, each of which halves the
    size. Images of 32 × 32 leave at 4 × 4 with 960 channels.

    Args:
        frozen_stages (int): 0 freezes the stem, 1 to 3 the stages up to this one too; see
            ``StagedBackbone``. Defaults to -1: nothing.
        init_cfg (dict | list, optional): Initialisation. Defaults to None: PyTorch's own.

    Raises:
        ValueError: If ``frozen_stages`` is out of range.
    """

    stages = (('conv1', 'bn1'), ('layer1',), ('layer2',), ('layer3',))

    def __init__(self, frozen_stages: int = -1, init_cfg: dict | list | None = None) -> None:
        super().__init__(frozen_stages, init_cfg)
        channels = 24
        self.conv1 = nn.Conv2d(3, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        for i, (out, units) in enumerate(((240, 4), (480, 8), (960, 4))):
            # 24 channels are too few for groups (section 3.2 of the paper)
            layers = [ShuffleUnit(channels, out, 2, first_groups=1 if i == 0 else 3)]
            layers += [ShuffleUnit(out, out, 1, first_groups=3) for _ in range(units - 1)]
            self.add_module(f'layer{i + 1}', nn.Sequential(*layers))
            channels = out
        self._freeze_stages()

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Maps images (N, 3, H, W) to what enters pooling, (N, 960, H / 8, W / 8)."""
        x = self.relu(self.bn1(self.conv1(x)))
        return (self.layer3(self.layer2(self.layer1(x))),)
