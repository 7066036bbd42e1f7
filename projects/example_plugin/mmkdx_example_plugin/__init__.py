"""An example of a package that extends mmkdx: importing it registers its parts."""

from mmkdx_example_plugin.explainers import RandomCAM
from mmkdx_example_plugin.losses import CharbonnierLoss
from mmkdx_example_plugin.metrics import CentreDistance

__all__ = ['CentreDistance', 'CharbonnierLoss', 'RandomCAM']
