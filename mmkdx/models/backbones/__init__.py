"""The CIFAR networks of the distillation literature, as mmpretrain's backbones.

Each is the network of that name in mdistiller (Zhao et al., "Decoupled Knowledge Distillation", CVPR
2022, https://github.com/megvii-research/mdistiller, commit a08d46f), with whose weights it yields the
same logits. What follows a backbone there is global average pooling and one linear layer; the last
element of a backbone's output is what enters the pooling. Their ResNet-50 is mmpretrain's
``ResNet_CIFAR``.
"""

from mmkdx.models.backbones.cifar_mobilenet_v2 import CIFARMobileNetV2
from mmkdx.models.backbones.cifar_resnet import CIFARResNet
from mmkdx.models.backbones.cifar_shufflenet_v1 import CIFARShuffleNetV1
from mmkdx.models.backbones.cifar_shufflenet_v2 import CIFARShuffleNetV2
from mmkdx.models.backbones.cifar_vgg import CIFARVGG
from mmkdx.models.backbones.cifar_wide_resnet import CIFARWideResNet

__all__ = [
    'CIFARMobileNetV2',
    'CIFARResNet',
    'CIFARShuffleNetV1',
    'CIFARShuffleNetV2',
    'CIFARVGG',
    'CIFARWideResNet',
]
