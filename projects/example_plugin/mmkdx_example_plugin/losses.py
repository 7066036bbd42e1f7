"""The loss that this plugin brings."""

from torch import Tensor

from mmkdx.losses.base import DistillLoss, positive
from mmkdx.registry import MODELS


@MODELS.register_module()
class CharbonnierLoss(DistillLoss):
    """Smooth absolute distance: the mean of ``sqrt(d² + eps²) - eps`` over the differences d.

    Args:
        eps (float): Below it the distance is quadratic, above it linear. Defaults to 1e-3.
    """

    compares = 'shape'
    needs = ('teacher',)

    def __init__(self, eps: float = 1e-3) -> None:
        super().__init__()
        self.eps = positive('eps', eps)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compares two tensors of one shape, such as (N, C, H, W)."""
        square = (student.float() - teacher.float()).square()
        # The formula times its conjugate, so that small differences do not cancel out
        return (square / ((square + self.eps**2).sqrt() + self.eps)).mean()
