"""Data sets and transforms; all others of mmpretrain can be used as well."""

from mmkdx.datasets.cars import StanfordCars
from mmkdx.datasets.cifar import CIFAR10, CIFAR100
from mmkdx.datasets.class_subset import class_subset
from mmkdx.datasets.cub import CUB
from mmkdx.datasets.digits import Digits
from mmkdx.datasets.fashion_mnist import FashionMNIST
from mmkdx.datasets.folds import StratifiedFold
from mmkdx.datasets.image_list import ImageList
from mmkdx.datasets.imagenet_segmentation import ImageNetSegmentation
from mmkdx.datasets.parts import Parts
from mmkdx.datasets.samplers import PairSampler
from mmkdx.datasets.seeded_views import SeededViews, ViewSampler
from mmkdx.datasets.stl10 import STL10
from mmkdx.datasets.tiny_imagenet import TinyImageNet
from mmkdx.datasets.transforms import (
    ChannelOrder,
    CropToBox,
    DeleteCell,
    DisturbLabel,
    KeypointRegions,
    RandomPixelRemoval,
)
from mmkdx.datasets.unlabelled import UnlabelledImages
from mmkdx.datasets.waterbirds import Waterbirds

__all__ = [
    'CIFAR10',
    'CIFAR100',
    'CUB',
    'STL10',
    'ChannelOrder',
    'CropToBox',
    'DeleteCell',
    'Digits',
    'DisturbLabel',
    'FashionMNIST',
    'ImageList',
    'ImageNetSegmentation',
    'KeypointRegions',
    'PairSampler',
    'Parts',
    'RandomPixelRemoval',
    'SeededViews',
    'StanfordCars',
    'StratifiedFold',
    'TinyImageNet',
    'UnlabelledImages',
    'ViewSampler',
    'Waterbirds',
    'class_subset',
]
