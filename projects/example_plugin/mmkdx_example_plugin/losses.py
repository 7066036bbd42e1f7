"""The loss that this plugin brings."""

import torch
from torch import nn

from mmkdx.registry import MODELS


@MODELS.register_module()
class CharbonnierLoss(nn.Module):
    r"""Smooth absolute distance between features of student and teacher.

    With :math:`d` the difference of two elements, the loss is the mean over all elements of
    :math:`\sqrt{d^2 + \epsilon^2} - \epsilon`: quadratic for :math:`|d| \ll \epsilon`, linear for
    :math:`|d| \gg \epsilon`, and 0 where student and teacher agree.

    Args:
        eps (float): Where the quadratic part ends. Defaults to 1e-3.
    """

    def __init__(self, eps: float = 1e-3) -> None:
        super().__init__()
        if eps <= 0:
            raise ValueError(f'CharbonnierLoss needs eps > 0, but eps={eps}.')
        self.eps = eps

    def forward(
        self, student: torch.Tensor, teacher: torch.Tensor, target: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Compares two tensors of one shape.

        Args:
            student (torch.Tensor): Features of the student, of any shape, such as (N, C, H, W).
            teacher (torch.Tensor): Features of the teacher, of the same shape.
            target (torch.Tensor | None): Not used; mmkdx hands the labels to every loss.

        Returns:
            torch.Tensor: The loss, a float32 scalar.
        """
        square = (student.float() - teacher.float()).square()
        # the formula above times its conjugate, so that small differences do not cancel out
        return (square / (torch.sqrt(square + self.eps**2) + self.eps)).mean()
