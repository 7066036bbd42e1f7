"""Losses between logits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mmkdx.functional import full_precision
from mmkdx.registry import MODELS


@MODELS.register_module()
class KLDivLoss(nn.Module):
    r"""Knowledge distillation: :math:`\tau^2\,KL(softmax(t/\tau)\,\|\,softmax(s/\tau))`.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, Sec. 2. Summed over
    classes, mean over samples. Both sides are log-probabilities, so saturated logits stay finite.

    Args:
        tau (float): The temperature, above 0. Defaults to 1.

    Raises:
        ValueError: If ``tau`` is not above 0.
    """

    compares = 'logits'

    def __init__(self, tau: float = 1.0) -> None:
        super().__init__()
        if tau <= 0:
            raise ValueError(f'tau is {tau}; a temperature is above 0')
        self.tau = tau

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Compares logits of shape (N, K); labels are not used."""
        student, teacher = (
            F.log_softmax(full_precision(logits) / self.tau, dim=1) for logits in (student, teacher)
        )
        return self.tau**2 * F.kl_div(student, teacher, reduction='batchmean', log_target=True)
