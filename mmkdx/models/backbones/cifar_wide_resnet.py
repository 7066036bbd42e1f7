"""Wide ResNets for CIFAR."""

from __future__ import annotations

from torch import Tensor, nn

from mmkdx.arguments import integer
from mmkdx.models.backbones.staged import FAN_OUT_NORMAL, StagedBackbone
from mmkdx.registry import MODELS


class PreActivationBlock(nn.Module):
    """Basic block whose norms and activations come before its convolutions.

    The identity is that of the raw input, while a projection, which has no norm, takes the
    activated one.

    Args:
        in_channels (int): Channels of the input.
        out_channels (int): Channels of the output.
        stride (int): Stride of the first convolution and of the projection.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = None
        if in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps features (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        activated = self.relu(self.bn1(x))
        identity = x if self.shortcut is None else self.shortcut(activated)
        return identity + self.conv2(self.relu(self.bn2(self.conv1(activated))))


@MODELS.register_module()
class CIFARWideResNet(StagedBackbone):
    """Wide ResNet WRN-depth-widen_factor (Zagoruyko and Komodakis, BMVC 2016), without dropout.

    A stem of 16 channels, three groups ``block1`` to ``block3`` of ``(depth - 4) / 6`` blocks, then
    batch norm and ReLU. What a group puts out is not activated, so it is signed; what leaves the
    backbone, at 8 × 8 for images of 32 × 32, is not.

    Args:
        depth (int): 6 n + 4, at least 10.
        widen_factor (int): Channels of the groups are 16, 32 and 64 times this.
        frozen_stages (int): 0 freezes the stem, 1 to 3 the groups up to this one too, 3 all; see
            ``StagedBackbone``. Defaults to -1: nothing.
        init_cfg (dict | list): Initialisation. Defaults to convolutions ~ N(0, 2 / fan-out).

    Raises:
        ValueError: If the depth or ``frozen_stages`` is out of range.
    """

    stages = (('conv1',), ('block1',), ('block2',), ('block3', 'bn1'))

    def __init__(
        self,
        depth: int,
        widen_factor: int,
        frozen_stages: int = -1,
        init_cfg: dict | list | None = FAN_OUT_NORMAL,
    ) -> None:
        super().__init__(frozen_stages, init_cfg)
        integer('backbone.widen_factor', widen_factor, 1)
        if integer('backbone.depth', depth, 10) % 6 != 4:
            raise ValueError(
                f'backbone.depth is {depth}; that of a wide ResNet is 10, 16, 22, … (6 n + 4)'
            )
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        channels = 16
        for i, stride in enumerate((1, 2, 2)):
            blocks = []
            for j in range((depth - 4) // 6):
                out = 16 * 2**i * widen_factor
                blocks.append(PreActivationBlock(channels, out, stride if j == 0 else 1))
                channels = out
            self.add_module(f'block{i + 1}', nn.Sequential(*blocks))
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self._freeze_stages()

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Maps images (N, 3, H, W) to what enters pooling, (N, C, H / 4, W / 4)."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return (self.relu(self.bn1(x)),)
