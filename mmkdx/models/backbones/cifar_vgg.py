"""VGG networks for CIFAR."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mmkdx.arguments import one_of
from mmkdx.models.backbones.staged import FAN_OUT_NORMAL, StagedBackbone
from mmkdx.registry import MODELS


@MODELS.register_module()
class CIFARVGG(StagedBackbone):
    """VGG-8 and VGG-13 (Simonyan and Zisserman, ICLR 2015) with batch norm, without hidden layers.

    Five blocks ``block0`` to ``block4`` of 3 × 3 convolutions, each with a bias, batch norm and ReLU.
    Max pooling follows the first three, and the fourth for images of height 64, so that images of
    32 × 32 and of 64 × 64 leave at 4 × 4.

    Args:
        depth (int): 8 or 13: one or two convolutions in each block.
        frozen_stages (int): 0 to 4 freezes the blocks up to this one; see ``StagedBackbone``.
            Defaults to -1: nothing.
        init_cfg (dict | list): Initialisation. Defaults to convolutions ~ N(0, 2 / fan-out), their
            bias 0.

    Raises:
        ValueError: If the depth or ``frozen_stages`` is out of range.
    """

    stages = (('block0',), ('block1',), ('block2',), ('block3',), ('block4',))

    def __init__(
        self,
        depth: int,
        frozen_stages: int = -1,
        init_cfg: dict | list | None = FAN_OUT_NORMAL,
    ) -> None:
        super().__init__(frozen_stages, init_cfg)
        one_of('backbone.depth', depth, (8, 13))
        channels = 3
        for i, out in enumerate((64, 128, 256, 512, 512)):
            layers: list[nn.Module] = []
            for _ in range(1 if depth == 8 else 2):
                layers += [
                    nn.Conv2d(channels, out, 3, padding=1),
                    nn.BatchNorm2d(out),
                    nn.ReLU(inplace=True),
                ]
                channels = out
            self.add_module(f'block{i}', nn.Sequential(*layers))
        self._freeze_stages()

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Maps images (N, 3, H, W) to what enters pooling, (N, 512, H / 8, W / 8) or half of that."""
        # The original decides by the height alone, which is that of Tiny-ImageNet's images
        pools = 4 if x.shape[2] == 64 else 3
        for i in range(5):
            x = getattr(self, f'block{i}')(x)
            if i < pools:
                x = F.max_pool2d(x, 2)
        return (x,)
