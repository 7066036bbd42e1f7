"""ResNets of three stages for CIFAR."""

from __future__ import annotations

from typing import Any

from mmpretrain.models.backbones import ResNet_CIFAR
from mmpretrain.models.backbones.resnet import BasicBlock

from mmkdx.arguments import flag, integer, one_of
from mmkdx.registry import MODELS


@MODELS.register_module()
class CIFARResNet(ResNet_CIFAR):
    """ResNet-20, 32, 56, 110, and ResNet-8 x4 and 32 x4.

    A stem and three stages of ``(depth - 2) / 6`` basic blocks (He et al., CVPR 2016, section 4.2),
    but with projections where a stage begins, also in the "x4" networks' first stage, and not the
    paper's zero padding. Stages are ``layer1`` to ``layer3``; images of 32 × 32 leave at 8 × 8.

    Args:
        depth (int): 8, 20, 32, 56 or 110.
        stem_channels (int): Channels of the stem; the "x4" networks have 32. Defaults to 16.
        base_channels (int): Channels of the first stage, which double with each further one; the
            "x4" networks have 64. Defaults to 16.
        frozen_stages (int): As in mmpretrain's ``ResNet``: the stem and so many stages get no
            gradient and stay in eval mode. Defaults to -1: nothing.
        zero_init_residual (bool): Whether residual branches begin at zero. Defaults to False.
        **kwargs: Other arguments of mmpretrain's ``ResNet_CIFAR``.

    Raises:
        ValueError: If an argument is out of range.
    """

    arch_settings = {
        8: (BasicBlock, (1, 1, 1)),
        20: (BasicBlock, (3, 3, 3)),
        32: (BasicBlock, (5, 5, 5)),
        56: (BasicBlock, (9, 9, 9)),
        110: (BasicBlock, (18, 18, 18)),
    }

    def __init__(
        self,
        depth: int,
        stem_channels: int = 16,
        base_channels: int = 16,
        frozen_stages: int = -1,
        zero_init_residual: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            one_of('backbone.depth', depth, tuple(self.arch_settings)),
            stem_channels=integer('backbone.stem_channels', stem_channels, 1),
            base_channels=integer('backbone.base_channels', base_channels, 1),
            num_stages=3,
            strides=(1, 2, 2),
            dilations=(1, 1, 1),
            out_indices=(2,),
            frozen_stages=integer('backbone.frozen_stages', frozen_stages, -1, 3),
            zero_init_residual=flag('backbone.zero_init_residual', zero_init_residual),
            **kwargs,
        )
