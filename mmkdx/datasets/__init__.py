"""Data sets; all others of mmpretrain can be used as well."""

from mmkdx.datasets.cifar import CIFAR10, CIFAR100
from mmkdx.datasets.class_subset import class_subset
from mmkdx.datasets.digits import Digits
from mmkdx.datasets.imagenet_segmentation import ImageNetSegmentation
from mmkdx.datasets.parts import Parts
from mmkdx.datasets.stl10 import STL10
from mmkdx.datasets.tiny_imagenet import TinyImageNet
from mmkdx.datasets.waterbirds import Waterbirds

__all__ = [
    'CIFAR10',
    'CIFAR100',
    'STL10',
    'Digits',
    'ImageNetSegmentation',
    'Parts',
    'TinyImageNet',
    'Waterbirds',
    'class_subset',
]
