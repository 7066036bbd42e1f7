"""Data sets; all others of mmpretrain can be used as well."""

from mmkdx.datasets.digits import Digits

__all__ = ['Digits']
