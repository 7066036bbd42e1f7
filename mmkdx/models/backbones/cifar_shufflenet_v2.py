"""ShuffleNetV2 for CIFAR."""

from __future__ import annotations

from mmpretrain.models.backbones.shufflenet_v2 import InvertedResidual
from torch import Tensor, nn

from mmkdx.models.backbones.staged import StagedBackbone
from mmkdx.registry import MODELS

# How PyTorch initialises a convolution, U(±1 / sqrt(fan-in)), which ConvModule in mmpretrain's units
# does not keep.
PYTORCH_INIT = dict(
    type='Kaiming',
    layer='Conv2d',
    a=5**0.5,
    mode='fan_in',
    nonlinearity='leaky_relu',
    distribution='uniform',
)


@MODELS.register_module()
class CIFARShuffleNetV2(StagedBackbone):
    """ShuffleNetV2 1x (Ma et al., ECCV 2018).

    A 1 × 1 stem, the stages ``layer1`` to ``layer3`` of 4, 8 and 4 of mmpretrain's units, each of
    which halves the size, and a 1 × 1 convolution to 1,024 channels. Images of 32 × 32 leave at 4 × 4.

    Args:
        frozen_stages (int): 0 freezes the stem, 1 to 3 the stages up to this one too, 3 all; see
            ``StagedBackbone``. Defaults to -1: nothing.
        init_cfg (dict | list): Initialisation. Defaults to PyTorch's own.

    Raises:
        ValueError: If ``frozen_stages`` is out of range.
    """

    stages = (('conv1', 'bn1'), ('layer1',), ('layer2',), ('layer3', 'conv2', 'bn2'))

    def __init__(
        self, frozen_stages: int = -1, init_cfg: dict | list | None = PYTORCH_INIT
    ) -> None:
        super().__init__(frozen_stages, init_cfg)
        channels = 24
        self.conv1 = nn.Conv2d(3, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        for i, (out, units) in enumerate(((116, 4), (232, 8), (464, 4))):
            layers = [InvertedResidual(channels, out, stride=2)]
            layers += [InvertedResidual(out, out) for _ in range(units - 1)]
            self.add_module(f'layer{i + 1}', nn.Sequential(*layers))
            channels = out
        self.conv2 = nn.Conv2d(channels, 1024, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(1024)
        self._freeze_stages()

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Maps images (N, 3, H, W) to what enters pooling, (N, 1024, H / 8, W / 8)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return (self.relu(self.bn2(self.conv2(x))),)
