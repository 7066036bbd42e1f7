"""Cross entropy with the labels as a term of its own."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mmkdx.functional import full_precision
from mmkdx.losses.base import DistillLoss, number
from mmkdx.registry import MODELS


@MODELS.register_module()
class LabelLoss(DistillLoss):
    """Cross entropy with the labels of the logits at a tap, mean over samples; without a teacher.

    For a student with several classifiers whose own loss is not that of the one the labels are for. With
    DeiT's distillation token (Touvron et al., ICML 2021) the head's logits are the mean of two
    classifiers, and labels train the class token's alone: ``at='head.layers.head'`` beside
    ``student_weight=0``. Mixed labels, as of Mixup, are taken as probabilities.

    Args:
        label_smoothing (float): The share of the label that is spread over all classes, in [0, 1].
            Defaults to 0.
    """

    compares = 'logits'
    needs = ('target',)

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = number('label_smoothing', label_smoothing, 0, 1)

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        """Compares logits (N, K) with classes (N, ) or probabilities (N, K)."""
        student = full_precision(student)
        if target.is_floating_point():
            target = target.to(student)
        return F.cross_entropy(student, target, label_smoothing=self.label_smoothing)
