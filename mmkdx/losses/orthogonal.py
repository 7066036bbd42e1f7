"""A loss of features after a projection that keeps their lengths and angles."""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor

from mmkdx.functional import full_precision, resize_map, tokens_to_map
from mmkdx.losses.base import DistillLoss, flag, one_of, positive
from mmkdx.models.projection import OrthogonalProjection
from mmkdx.registry import MODELS


@MODELS.register_module()
class VkDLoss(DistillLoss):
    r"""VkD: matches orthogonally projected student features with normalised teacher features.

    Source: Miles et al., "VkD: Improving Knowledge Distillation using Orthogonal Projections", CVPR
    2024. With pooled features :math:`z`, a projection :math:`P` with orthonormal columns (rows, where
    the teacher has fewer channels) and a normalisation :math:`N`,

    .. math:: L = smooth_{L1}(P z^S, N(z^T)),

    mean over samples and channels. :math:`P` keeps all lengths and angles of the student's features, so
    the student itself must learn the teacher's. It is trained with the student, and weight decay leaves
    it orthogonal; see ``OrthogonalProjection``. Features are maps, tokens or vectors.

    Logged is ``<term>.norm_ratio``, the mean length of the projected features over that of the
    teacher's. The student's features must grow to the length :math:`\sqrt{D}` of the teacher's.

    Args:
        normalize (str): 'layer' normalises each of the teacher's features over its channels. 'batch'
            normalises each channel of teacher *and* student over the samples (and positions) of this
            process's batch. 'none' does neither. Defaults to 'layer'.
        criterion (str): 'smooth_l1' or 'mse'. Defaults to 'smooth_l1'.
        pool (bool): Whether maps and tokens are averaged over positions, without class and distillation
            tokens. With False positions are compared, and a student's map is resized. Defaults to True.
        train (bool): Whether :math:`P` is trained. Defaults to True.
        eps (float): What is added to the variance ('layer') or deviation ('batch'), above 0. Defaults to
            1e-5.
    """

    compares = 'anything'

    def __init__(
        self,
        normalize: str = 'layer',
        criterion: str = 'smooth_l1',
        pool: bool = True,
        train: bool = True,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.normalize = one_of('normalize', normalize, ('layer', 'batch', 'none'))
        self.criterion = one_of('criterion', criterion, ('smooth_l1', 'mse'))
        self.pool = flag('pool', pool)
        self.trained = flag('train', train)
        self.eps = positive('eps', eps)

    def connect(self, student: Tensor, teacher: Tensor) -> None:
        """Builds the projection for maps (N, C, H, W), tokens (N, L, C) or vectors (N, C).

        Raises:
            ValueError: If these are not two of them, or normalising leaves nothing.
        """
        for owner, value in (('student', student), ('teacher', teacher)):
            if not isinstance(value, Tensor) or value.dim() not in (2, 3, 4):
                shape = tuple(value.shape) if hasattr(value, 'shape') else type(value).__name__
                raise ValueError(
                    f'one map (N, C, H, W), tokens (N, L, C) or vectors (N, C) are needed, and the '
                    f"{owner}'s tap holds {shape}"
                )
        if not self.pool and (student.dim() == 2) != (teacher.dim() == 2):
            raise ValueError(
                'pool=False compares positions, and one side has vectors; set pool=True'
            )
        inputs, outputs = (
            value.shape[1 if value.dim() == 4 else -1] for value in (student, teacher)
        )
        if self.normalize == 'layer' and outputs == 1:
            raise ValueError(
                "normalize='layer' turns a single channel into 0; set normalize='batch' or 'none'"
            )
        if outputs < inputs:
            print_log(
                f"VkDLoss: the teacher's {outputs} channels are fewer than the student's {inputs}, so "
                f'the projection drops {inputs - outputs} directions.',
                logger='current',
                level=logging.WARNING,
            )
        self.projection = OrthogonalProjection(inputs, outputs, self.trained).to(student.device)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compares maps, tokens or vectors of the same samples; see ``connect``.

        Raises:
            ValueError: If tokens do not fill a grid, or 'batch' has one row alone.
        """
        student, teacher = full_precision(student), full_precision(teacher.detach())
        if student.dim() > 2 or teacher.dim() > 2:
            student, teacher = map(self._positions, (student, teacher))
        if student.shape[2:] != teacher.shape[2:]:
            student = resize_map(student, teacher.shape[2:])
        student = _rows(self.projection(student))
        teacher = _rows(teacher)
        if self.normalize == 'layer':
            teacher = F.layer_norm(teacher, teacher.shape[1:], eps=self.eps)
        elif self.normalize == 'batch':
            student, teacher = map(self._standardised, (student, teacher))
        lengths = [rows.detach().norm(dim=1).mean() for rows in (student, teacher)]
        self.logs = dict(norm_ratio=lengths[0] / lengths[1].clamp_min(1e-12))
        distance = F.smooth_l1_loss if self.criterion == 'smooth_l1' else F.mse_loss
        return distance(student, teacher)

    def _positions(self, value: Tensor) -> Tensor:
        """Tokens and maps as maps (N, C, H, W), or their means (N, C)."""
        maps = tokens_to_map(value) if value.dim() == 3 else value
        return maps.mean((2, 3)) if self.pool and maps.dim() == 4 else maps

    def _standardised(self, rows: Tensor) -> Tensor:
        if len(rows) < 2:
            raise ValueError(
                "normalize='batch' needs two samples or positions, and there is one; use a larger "
                "batch, or normalize='layer'"
            )
        std, mean = torch.std_mean(rows, dim=0)
        return (rows - mean) / (std + self.eps)


def _rows(values: Tensor) -> Tensor:
    """Vectors (N, C), or those at the positions of maps (N, C, H, W), as rows."""
    return values if values.dim() == 2 else values.movedim(1, -1).flatten(0, -2)
