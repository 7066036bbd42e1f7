"""Losses between features."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mmkdx.functional import full_precision, resize_map
from mmkdx.losses.base import DistillLoss, positive
from mmkdx.losses.relation import unit_vectors
from mmkdx.registry import MODELS


@MODELS.register_module()
class MSELoss(DistillLoss):
    """Mean squared error between tensors of one shape, the mean over all elements."""

    compares = 'shape'

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compares tensors of one shape.

        Raises:
            ValueError: If the shapes differ.
        """
        _check_shapes(student, teacher)
        return F.mse_loss(full_precision(student), full_precision(teacher))


@MODELS.register_module()
class CosineLoss(DistillLoss):
    """One minus the cosine of the student's vector with the teacher's; lengths do not matter.

    A vector is an embedding, a token, or a position of a map. The loss is the mean over all vectors. A
    vector of length 1e-12 or less has the cosine 0, without a gradient.
    """

    compares = 'shape'

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compares tensors of one shape: (N, D), (N, L, D) or (N, D, H, W).

        Raises:
            ValueError: If the shapes differ.
        """
        _check_shapes(student, teacher)
        axis = 1 if student.dim() == 4 else -1
        student, teacher = (
            unit_vectors(full_precision(each).movedim(axis, -1)) for each in (student, teacher)
        )
        return 1 - (student * teacher).sum(-1).mean()


@MODELS.register_module()
class ATLoss(DistillLoss):
    r"""Activation-based attention transfer.

    Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, Sec. 3.1. The
    attention map is the mean over channels of :math:`|F|^p`, flattened and divided by its L2 norm; the
    loss is the mean over samples *and positions* of the squared difference, as in the authors' code.
    The paper's Eq. 2 has half the norm of the difference in place of its square.

    Args:
        p (float): The exponent, above 0. Defaults to 2.
    """

    compares = 'map_size'

    def __init__(self, p: float = 2.0) -> None:
        super().__init__()
        self.p = positive('p', p)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compares maps (N, C, H, W) with any channels; a student of another size is resized."""
        student = resize_map(full_precision(student), teacher.shape[-2:])
        return F.mse_loss(self.attention(student), self.attention(full_precision(teacher)))

    def attention(self, maps: Tensor) -> Tensor:
        """The normalised attention map of maps (N, C, H, W), of shape (N, H · W)."""
        return F.normalize(maps.abs().pow(self.p).mean(1).flatten(1), dim=1)


def _check_shapes(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"shapes {tuple(student.shape)} and {tuple(teacher.shape)} differ; use adapter='auto'"
        )
