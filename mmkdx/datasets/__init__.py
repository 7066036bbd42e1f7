"""Data sets; all others of mmpretrain can be used as well."""

from mmkdx.datasets.digits import Digits
from mmkdx.datasets.imagenet_segmentation import ImageNetSegmentation
from mmkdx.datasets.parts import Parts

__all__ = ['Digits', 'ImageNetSegmentation', 'Parts']
