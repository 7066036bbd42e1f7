"""An explainer."""

from __future__ import annotations

import torch
from torch import Tensor

from mmkdx.explain import BaseCAM
from mmkdx.registry import EXPLAINERS


@EXPLAINERS.register_module()
class RandomCAM(BaseCAM):
    """``sum_c w_c A_c`` with random weights: what a map of a class must beat to mean something.

    Args:
        seed (int): The seed of the weights, which are uniform in [-1, 1]. Defaults to 0.
        layer (str | Sequence[str]): See ``mmkdx.explain.LayerExplainer``. Defaults to 'auto'.
    """

    needs_gradients = False
    class_specific = False

    def __init__(self, seed: int = 0, layer: str = 'auto') -> None:
        super().__init__(layer)
        self.seed = seed

    def combine(self, activations: Tensor, gradients: Tensor | None = None) -> Tensor:
        """Weights the channels of activations (N, C, h, w), all images alike."""
        generator = torch.Generator().manual_seed(self.seed)
        weights = torch.rand(activations.shape[1], generator=generator) * 2 - 1
        return torch.einsum('c,nchw->nhw', weights.to(activations), activations)
