"""Distillation of logits that leaves out what the teacher gets wrong."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkdx.arguments import weights
from mmkdx.functional import full_precision
from mmkdx.functional.teacher_target import other_classes
from mmkdx.losses.base import DistillLoss, positive
from mmkdx.losses.logit import binary, divergences
from mmkdx.registry import MODELS


@MODELS.register_module()
class RLDLoss(DistillLoss):
    r"""Refined logit distillation: the label gets the teacher's confidence, and errors are left out.

    Source: Sun et al., "Knowledge Distillation with Refined Logits", ICCV 2025. The first part compares
    two confidences at temperature :math:`\tau_c`: the teacher's in its own prediction and the student's
    in the label. The second part compares the distributions at temperature :math:`\tau` over the classes
    :math:`R` that the teacher ranks below the label:

    .. math:: L = \alpha \tau_c^2\,KL((P, 1 - P)^T \| (p_y, 1 - p_y)^S)
        + \beta \tau^2\,KL(\hat p_R^T \| \hat p_R^S),

    mean over samples. A class with the label's logit is not in :math:`R`. Where :math:`R` has fewer than
    two classes, the second part is 0, without a gradient. With a teacher that is right on every sample
    and one temperature the loss is ``DKDLoss``.

    Logged are the parts without their weights, ``<term>.confidence`` and ``<term>.correlation``,
    ``<term>.kept``, the mean share of the other classes that are in :math:`R`, and
    ``<term>.teacher_wrong``, the share of samples that the teacher gets wrong. A ``teacher_target`` that
    floors logits makes ties, so it changes :math:`R`.

    Args:
        tau (float): The temperature of the classes below the label, above 0. Defaults to 4, the authors'
            for CIFAR-100.
        confidence_tau (float): The temperature of the confidences, above 0. Defaults to 1.
        alpha (float): The weight of the confidences, at least 0. Defaults to 1.
        beta (float): The weight of the classes below the label, at least 0. Defaults to 8, the authors'
            for CIFAR-100.
    """

    compares = 'logits'
    needs = ('teacher', 'class')

    def __init__(
        self,
        tau: float = 4.0,
        confidence_tau: float = 1.0,
        alpha: float = 1.0,
        beta: float = 8.0,
    ) -> None:
        super().__init__()
        self.tau = positive('tau', tau)
        self.confidence_tau = positive('confidence_tau', confidence_tau)
        self.alpha, self.beta = weights(alpha=alpha, beta=beta)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Compares logits of shape (N, K), with labels' classes of shape (N, ).

        Raises:
            ValueError: If there are fewer than three classes, or two with ``beta=0``.
        """
        classes = student.shape[1]
        if classes < (3 if self.beta else 2):
            raise ValueError(
                f'RLDLoss needs two classes beside the label, and there are {classes} classes in all; '
                'use KLDivLoss, or beta=0 with two classes'
            )
        student, teacher = full_precision(student), full_precision(teacher.detach())
        confidence, wrong = self._confidence(student, teacher, target)
        kept = teacher < teacher.gather(1, target[:, None])
        correlation = self._correlation(student, teacher, kept)
        self.logs = dict(
            confidence=confidence.detach(),
            correlation=correlation.detach(),
            kept=kept.float().mean() * classes / (classes - 1),
            teacher_wrong=wrong.float().mean(),
        )
        return self.alpha * confidence + self.beta * correlation

    def _confidence(
        self, student: Tensor, teacher: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The first part, and which samples the teacher gets wrong."""
        prediction = teacher.argmax(1)
        sides = []
        for logits, which in ((student, target), (teacher, prediction)):
            logits = logits / self.confidence_tau
            rest = logits.gather(1, other_classes(which, logits.shape[1]))
            sides.append(binary(logits.gather(1, which[:, None]), rest))
        return self.confidence_tau**2 * divergences(*sides).mean(), prediction != target

    def _correlation(self, student: Tensor, teacher: Tensor, kept: Tensor) -> Tensor:
        """The second part over the classes that are kept."""
        # A row of -inf alone would be NaN; its entries are replaced below
        out = ~kept & kept.any(1, keepdim=True)
        sides = (
            F.log_softmax((logits / self.tau).masked_fill(out, -torch.inf), 1).masked_fill(~kept, 0)
            for logits in (student, teacher)
        )
        return self.tau**2 * divergences(*sides).mean()
