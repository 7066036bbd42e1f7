"""Explainable knowledge distillation on mmengine and mmpretrain."""

from mmkdx.compat import install
from mmkdx.version import __version__

__all__ = ['__version__']

install()
