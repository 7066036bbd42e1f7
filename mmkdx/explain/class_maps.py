"""Class activation maps in closed form."""

from __future__ import annotations

from torch import Tensor, nn

from mmkdx.explain.gradient import BaseCAM, weighted_sum
from mmkdx.explain.targets import Targets, class_weights
from mmkdx.functional import ClassMaps, full_precision
from mmkdx.registry import EXPLAINERS


@EXPLAINERS.register_module()
class CAM(BaseCAM):
    """``sum_c W_kc A_c``, W being the classifier's weight: the maps whose mean is the logit.

    Needs a classifier of global average pooling and one linear layer; ``GradCAM`` is the same there,
    divided by the number of positions, and takes any other head.

    Source: Zhou et al., "Learning deep features for discriminative localization", CVPR 2016, Eq. 2.

    Args:
        differentiable (bool): See ``Explainer``.
    """

    def __init__(self, differentiable: bool = False) -> None:
        super().__init__('auto', differentiable)

    def explain(self, model: nn.Module, inputs: Tensor, targets: Targets) -> Tensor:
        """See ``Explainer``."""
        evidence = self.observe(model, inputs)
        if evidence.heads is None:
            raise ValueError(
                f'CAM needs a classifier of global average pooling and one linear layer, and '
                f'{type(model).__name__} is none (or drops out in between); use GradCAM'
            )
        (activations,), (head,) = evidence.activations, evidence.heads
        if isinstance(targets, str) and targets == 'all':
            return ClassMaps(activations, head.weight).full()
        weights = class_weights(targets, evidence.logits)
        return weighted_sum(weights @ full_precision(head.weight), activations)

    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """See ``BaseCAM``: of gradients that are equal at all positions."""
        return weighted_sum(gradients.sum((2, 3)), activations)
