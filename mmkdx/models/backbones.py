"""The CIFAR networks of the distillation literature, as mmpretrain's backbones.

With mdistiller's weights they give the same logits as its networks of these names (Zhao et al.,
"Decoupled Knowledge Distillation", CVPR 2022, https://github.com/megvii-research/mdistiller, commit
a08d46f). Global average pooling and one linear layer follow a backbone there. The last element of a
backbone's output enters the pooling. mdistiller's ResNet-50 is mmpretrain's ``ResNet_CIFAR``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmpretrain.models.backbones import ResNet_CIFAR, mobilenet_v2, shufflenet_v2
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from mmpretrain.models.backbones.resnet import BasicBlock
from mmpretrain.models.utils import channel_shuffle
from torch import Tensor, nn

from mmkdx.arguments import flag, integer, one_of
from mmkdx.registry import MODELS

#: Convolutions ~ N(0, 2 / fan-out) and a bias of 0 (He et al., ICCV 2015).
FAN_OUT_NORMAL = dict(type='Kaiming', layer='Conv2d')
# PyTorch's initialisation of a convolution, U(±1 / sqrt(fan-in)); ConvModule in mmpretrain's units
# replaces it.
PYTORCH_INIT = dict(
    type='Kaiming',
    layer='Conv2d',
    a=5**0.5,
    mode='fan_in',
    nonlinearity='leaky_relu',
    distribution='uniform',
)


class StagedBackbone(BaseBackbone):
    """Base of backbones that are a sequence of stages.

    A subclass lists its modules in ``stages`` and calls ``_freeze_stages`` when it has made them.

    Args:
        frozen_stages (int): Stages up to this one get no gradient and stay in eval mode, so that their
            batch norm statistics do not move. 0 is the stem (in ``CIFARVGG`` the first block); the
            last stage includes what follows it. Defaults to -1: none.
        init_cfg (dict | list, optional): mmengine's initialisation. Defaults to None: PyTorch's own.

    Raises:
        ValueError: If there is no such stage.
    """

    #: For the stem and each stage the names of its modules.
    stages: tuple[tuple[str, ...], ...] = ()

    def __init__(self, frozen_stages: int = -1, init_cfg: dict | list | None = None) -> None:
        super().__init__(init_cfg)
        last = len(self.stages) - 1
        self.frozen_stages = integer('backbone.frozen_stages', frozen_stages, -1, last)

    def train(self, mode: bool = True) -> StagedBackbone:
        """Sets the mode of all but the frozen stages."""
        super().train(mode)
        self._freeze_stages()
        return self

    def _freeze_stages(self) -> None:
        for names in self.stages[: self.frozen_stages + 1]:
            for name in names:
                self.get_submodule(name).requires_grad_(False).eval()


@MODELS.register_module()
class CIFARMobileNetV2(StagedBackbone):
    """MobileNetV2 (Sandler et al., CVPR 2018) at half width, with ReLU in place of ReLU6.

    A stem of stride 2, the stages ``blocks.0`` to ``blocks.6`` of mmpretrain's inverted residuals, and
    a 1 × 1 convolution to 1,280 channels. The second stage has stride 1. In the first stage, too, a
    1 × 1 convolution is before the depthwise one. Images of 32 × 32 give maps of 2 × 2.

    Args:
        init_cfg (dict | list): Initialisation. Defaults to convolutions ~ N(0, 2 / fan-out).
        **kwargs: ``frozen_stages`` of ``StagedBackbone``, -1 to 7 (``blocks.6``).
    """

    stages = (('conv1',), *((f'blocks.{i}',) for i in range(6)), ('blocks.6', 'conv2'))
    #: For each stage: expansion, channels, units, stride of the first unit. Half of the paper's
    #: channels, not rounded to multiples of 8.
    settings = (
        (1, 8, 1, 1),
        (6, 12, 2, 1),
        (6, 16, 3, 2),
        (6, 32, 4, 2),
        (6, 48, 3, 1),
        (6, 80, 3, 2),
        (6, 160, 1, 1),
    )

    def __init__(self, init_cfg: dict | list | None = FAN_OUT_NORMAL, **kwargs: Any) -> None:
        super().__init__(init_cfg=init_cfg, **kwargs)
        parts = dict(norm_cfg=dict(type='BN'), act_cfg=dict(type='ReLU'))
        self.conv1 = ConvModule(3, 16, 3, stride=2, padding=1, **parts)
        self.blocks = nn.Sequential()
        channels = 16
        for expansion, out, units, stride in self.settings:
            # mmpretrain's unit leaves out an expansion that does not expand
            layers = [ConvModule(channels, channels, 1, **parts)] if expansion == 1 else []
            for i in range(units):
                layers.append(
                    mobilenet_v2.InvertedResidual(
                        channels, out, stride if i == 0 else 1, expansion, **parts
                    )
                )
                channels = out
            self.blocks.append(nn.Sequential(*layers))
        self.conv2 = ConvModule(channels, 1280, 1, **parts)
        self._freeze_stages()

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Maps images (N, 3, H, W) to what enters pooling, (N, 1280, H / 16, W / 16)."""
        return (self.conv2(self.blocks(self.conv1(x))),)


@MODELS.register_module()
class CIFARResNet(ResNet_CIFAR):
    """ResNet-20, 32, 56, 110, and ResNet-8 x4 and 32 x4.

    A stem and three stages ``layer1`` to ``layer3`` of ``(depth - 2) / 6`` basic blocks (He et al.,
    CVPR 2016, section 4.2). A stage begins with a projection instead of the paper's zero padding,
    in the "x4" networks also the first stage. Images of 32 × 32 give maps of 8 × 8.

    Args:
        depth (int): 8, 20, 32, 56 or 110.
        stem_channels (int): Channels of the stem; the "x4" networks have 32. Defaults to 16.
        base_channels (int): Channels of the first stage, which double with each further one; the
            "x4" networks have 64. Defaults to 16.
        frozen_stages (int): -1 to 3, as in mmpretrain's ``ResNet``: the stem and so many stages get no
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


class _ShuffleUnit(nn.Module):
    """Unit of ShuffleNet with three groups.

    Channels are shuffled before the depthwise convolution. ReLU follows it, unlike in the paper.
    With stride 1 the input is added. With stride 2 the pooled input is concatenated, and the branch
    yields the rest of ``out_channels``. ``first_groups`` is the number of groups of the first
    convolution and the shuffle.
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

    A 1 × 1 stem and the stages ``layer1`` to ``layer3`` of 4, 8 and 4 units. Each stage halves the
    size. Images of 32 × 32 give maps of 4 × 4 with 960 channels.

    Args:
        **kwargs: The arguments of ``StagedBackbone``.
    """

    stages = (('conv1', 'bn1'), ('layer1',), ('layer2',), ('layer3',))

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        channels = 24
        self.conv1 = nn.Conv2d(3, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        for i, (out, units) in enumerate(((240, 4), (480, 8), (960, 4))):
            # 24 channels are too few for groups (section 3.2 of the paper)
            layers = [_ShuffleUnit(channels, out, 2, first_groups=1 if i == 0 else 3)]
            layers += [_ShuffleUnit(out, out, 1, first_groups=3) for _ in range(units - 1)]
            self.add_module(f'layer{i + 1}', nn.Sequential(*layers))
            channels = out
        self._freeze_stages()

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Maps images (N, 3, H, W) to what enters pooling, (N, 960, H / 8, W / 8)."""
        x = self.relu(self.bn1(self.conv1(x)))
        return (self.layer3(self.layer2(self.layer1(x))),)


@MODELS.register_module()
class CIFARShuffleNetV2(StagedBackbone):
    """ShuffleNetV2 1x (Ma et al., ECCV 2018).

    A 1 × 1 stem, the stages ``layer1`` to ``layer3`` of 4, 8 and 4 of mmpretrain's units, and a
    1 × 1 convolution to 1,024 channels. Each stage halves the size. Images of 32 × 32 end at 4 × 4.

    Args:
        init_cfg (dict | list): Initialisation. Defaults to PyTorch's own.
        **kwargs: ``frozen_stages`` of ``StagedBackbone``, -1 to 3.
    """

    stages = (('conv1', 'bn1'), ('layer1',), ('layer2',), ('layer3', 'conv2', 'bn2'))

    def __init__(self, init_cfg: dict | list | None = PYTORCH_INIT, **kwargs: Any) -> None:
        super().__init__(init_cfg=init_cfg, **kwargs)
        channels = 24
        self.conv1 = nn.Conv2d(3, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        for i, (out, units) in enumerate(((116, 4), (232, 8), (464, 4))):
            layers = [shufflenet_v2.InvertedResidual(channels, out, stride=2)]
            layers += [shufflenet_v2.InvertedResidual(out, out) for _ in range(units - 1)]
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


@MODELS.register_module()
class CIFARVGG(StagedBackbone):
    """VGG-8 and VGG-13 (Simonyan and Zisserman, ICLR 2015) with batch norm, without hidden layers.

    Five blocks ``block0`` to ``block4`` of 3 × 3 convolutions, each with a bias, batch norm and ReLU.
    Max pooling follows the first three, and for images of height 64 also the fourth. So images of
    32 × 32 and of 64 × 64 give maps of 4 × 4.

    Args:
        depth (int): 8 or 13: one or two convolutions in each block.
        init_cfg (dict | list): Initialisation. Defaults to convolutions ~ N(0, 2 / fan-out).
        **kwargs: ``frozen_stages`` of ``StagedBackbone``, -1 to 4.

    Raises:
        ValueError: If the depth is neither 8 nor 13.
    """

    stages = (('block0',), ('block1',), ('block2',), ('block3',), ('block4',))

    def __init__(
        self, depth: int, init_cfg: dict | list | None = FAN_OUT_NORMAL, **kwargs: Any
    ) -> None:
        super().__init__(init_cfg=init_cfg, **kwargs)
        one_of('backbone.depth', depth, (8, 13))
        channels = 3
        for i, out in enumerate((64, 128, 256, 512, 512)):
            layers: list[nn.Module] = []
            for _ in range(1 if depth == 8 else 2):
                layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out)]
                layers.append(nn.ReLU(inplace=True))
                channels = out
            self.add_module(f'block{i}', nn.Sequential(*layers))
        self._freeze_stages()

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Maps images (N, 3, H, W) to what enters pooling, (N, 512, H / 8, W / 8) or half of that."""
        # As in the original, only the height counts; 64 is the height of Tiny-ImageNet's images
        pools = 4 if x.shape[2] == 64 else 3
        for i in range(5):
            x = getattr(self, f'block{i}')(x)
            if i < pools:
                x = F.max_pool2d(x, 2)
        return (x,)


class _PreActivationBlock(nn.Module):
    """Basic block whose norms and activations come before its convolutions.

    The identity is the raw input. A projection has no norm and takes the activated input. Both the
    first convolution and the projection have the stride.
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
    batch norm and ReLU. No ReLU follows a single group, so its output is signed; the backbone's
    output is not. Images of 32 × 32 give maps of 8 × 8.

    Args:
        depth (int): 6 n + 4, at least 10.
        widen_factor (int): Channels of the groups are 16, 32 and 64 times this.
        init_cfg (dict | list): Initialisation. Defaults to convolutions ~ N(0, 2 / fan-out).
        **kwargs: ``frozen_stages`` of ``StagedBackbone``, -1 to 3.

    Raises:
        ValueError: If an argument is out of range.
    """

    stages = (('conv1',), ('block1',), ('block2',), ('block3', 'bn1'))

    def __init__(
        self,
        depth: int,
        widen_factor: int,
        init_cfg: dict | list | None = FAN_OUT_NORMAL,
        **kwargs: Any,
    ) -> None:
        super().__init__(init_cfg=init_cfg, **kwargs)
        integer('backbone.widen_factor', widen_factor, 1, 1000)
        if integer('backbone.depth', depth, 10, 10_000) % 6 != 4:
            raise ValueError(
                f'backbone.depth is {depth}; that of a wide ResNet is 10, 16, 22, … (6 n + 4)'
            )
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        channels = 16
        for i, stride in enumerate((1, 2, 2)):
            blocks = []
            for j in range((depth - 4) // 6):
                out = 16 * 2**i * widen_factor
                blocks.append(_PreActivationBlock(channels, out, stride if j == 0 else 1))
                channels = out
            self.add_module(f'block{i + 1}', nn.Sequential(*blocks))
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self._freeze_stages()

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Maps images (N, 3, H, W) to what enters pooling, (N, C, H / 4, W / 4)."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return (self.relu(self.bn1(x)),)
