"""An example of a package that extends mmkdx: importing it registers its parts."""

from mmkdx_example_plugin.losses import CharbonnierLoss

__all__ = ['CharbonnierLoss']
