"""MobileNetV2 at half width for CIFAR."""

from __future__ import annotations

from mmcv.cnn import ConvModule
from mmpretrain.models.backbones.mobilenet_v2 import InvertedResidual
from torch import Tensor, nn

from mmkdx.models.backbones.staged import FAN_OUT_NORMAL, StagedBackbone
from mmkdx.registry import MODELS

#: Of each stage: expansion, channels, units, stride of the first unit. Half of the paper's channels,
#: not rounded to multiples of 8.
STAGES = (
    (1, 8, 1, 1),
    (6, 12, 2, 1),
    (6, 16, 3, 2),
    (6, 32, 4, 2),
    (6, 48, 3, 1),
    (6, 80, 3, 2),
    (6, 160, 1, 1),
)


@MODELS.register_module()
class CIFARMobileNetV2(StagedBackbone):
    """MobileNetV2 (Sandler et al., CVPR 2018) at half width, with ReLU in place of ReLU6.

    A stem of stride 2, the stages ``blocks.0`` to ``blocks.6`` of mmpretrain's inverted residuals, and
    a 1 × 1 convolution to 1,280 channels. The second stage has stride 1, and a 1 × 1 convolution
    stands before the depthwise one in the first stage too. Images of 32 × 32 leave at 2 × 2.

    Args:
        frozen_stages (int): 0 freezes the stem, 1 to 7 the stages up to this one too (7 is
            ``blocks.6``), 7 all; see ``StagedBackbone``. Defaults to -1: nothing.
        init_cfg (dict | list): Initialisation. Defaults to convolutions ~ N(0, 2 / fan-out).

    Raises:
        ValueError: If ``frozen_stages`` is out of range.
    """

    stages = (('conv1',), *((f'blocks.{i}',) for i in range(6)), ('blocks.6', 'conv2'))

    def __init__(
        self,
        frozen_stages: int = -1,
        init_cfg: dict | list | None = FAN_OUT_NORMAL,
    ) -> None:
        super().__init__(frozen_stages, init_cfg)
        parts = dict(norm_cfg=dict(type='BN'), act_cfg=dict(type='ReLU'))
        self.conv1 = ConvModule(3, 16, 3, stride=2, padding=1, **parts)
        self.blocks = nn.Sequential()
        channels = 16
        for expansion, out, units, stride in STAGES:
            # mmpretrain's unit leaves out an expansion that does not expand
            layers = [ConvModule(channels, channels, 1, **parts)] if expansion == 1 else []
            for i in range(units):
                unit = InvertedResidual(channels, out, stride if i == 0 else 1, expansion, **parts)
                layers.append(unit)
                channels = out
            self.blocks.append(nn.Sequential(*layers))
        self.conv2 = ConvModule(channels, 1280, 1, **parts)
        self._freeze_stages()

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Maps images (N, 3, H, W) to what enters pooling, (N, 1280, H / 16, W / 16)."""
        return (self.conv2(self.blocks(self.conv1(x))),)
