"""Losses between relations: of the samples of a batch, or of the channels of a map."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from mmkdx.arguments import weights
from mmkdx.functional import full_precision, no_autocast, resize_map
from mmkdx.losses.base import DistillLoss
from mmkdx.registry import MODELS

#: How many angles `RKDLoss` has in memory at once, 16 MiB in fp32.
ANGLES_AT_ONCE = 2**22


class SampleRelationLoss(DistillLoss, metaclass=ABCMeta):
    """Base of the losses between the relations of samples.

    Student and teacher may have any shapes (N, ...) of the same N. The relations are those within this
    process's batch; ranks do not exchange samples. The loss and gradient of one sample alone are 0.
    """

    compares = 'anything'

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compares features (N, ...), flattened to (N, D).

        Raises:
            ValueError: If these are not two tensors, each with features of the same N samples.
        """
        name = type(self).__name__
        for owner, features in (('student', student), ('teacher', teacher)):
            if not isinstance(features, Tensor) or features.dim() < 2:
                raise ValueError(
                    f"{name} compares one tensor of shape (N, ...) with one, and the {owner}'s tap "
                    f'holds {_text(features)}'
                )
        if len(student) != len(teacher):
            raise ValueError(
                f'{name} compares the relations of the same samples, and there are {len(student)} of '
                f'the student and {len(teacher)} of the teacher'
            )
        student, teacher = (full_precision(each).flatten(1) for each in (student, teacher))
        if len(student) == 1:
            return student.sum() * 0
        with no_autocast(student):
            return self.relate(student, teacher)

    @abstractmethod
    def relate(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of features (N, D) and (N, E), in fp32 at least, of two or more samples."""


@MODELS.register_module()
class SPLoss(SampleRelationLoss):
    r"""Similarity-preserving distillation: matches the similarities between the samples of a batch.

    Source: Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019. The similarities
    of the batch are the inner products of features, :math:`G = F F^\top`, each row divided by its L2
    norm; the loss is :math:`\|G^S - G^T\|_F^2 / N^2`, the mean over the matrix. Relations are those
    within this process's batch. A sample whose features are 0 has similarities 0, without a gradient.
    Memory beyond the features: N × N.
    """

    def relate(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The mean squared difference of the similarities."""
        return F.mse_loss(*(unit_vectors(each @ each.T) for each in (student, teacher)))


@MODELS.register_module()
class PKTLoss(SampleRelationLoss):
    r"""Probabilistic knowledge transfer: matches each sample's distribution over neighbours.

    Source: Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer",
    ECCV 2018, with the cosine affinity :math:`K_{ij} = (\cos(f_i, f_j) + 1) / 2`. Each row divided by
    its sum is a distribution; the loss is :math:`KL(P^T \| P^S)`, summed over a row, mean over samples.
    As in the authors' code a sample counts among its own neighbours. 1e-7 is added to the affinities
    (theirs adds it to the probabilities), so that opposite features stay finite. Relations are those
    within this process's batch. A sample whose features are 0 has cosines 0, without a gradient.
    Memory beyond the features: N × N.
    """

    def relate(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The divergence of the distributions."""
        student, teacher = map(self._log_probabilities, (student, teacher))
        return F.kl_div(student, teacher, reduction='batchmean', log_target=True)

    @staticmethod
    def _log_probabilities(features: Tensor) -> Tensor:
        units = unit_vectors(features)
        # Rounding takes cosines a little below -1
        affinity = ((units @ units.T).clamp(min=-1) + 1) / 2 + 1e-7
        return affinity.log() - affinity.sum(1, keepdim=True).log()


@MODELS.register_module()
class RKDLoss(SampleRelationLoss):
    r"""Relational knowledge distillation: matches distances and angles between samples.

    Source: Park et al., "Relational Knowledge Distillation", CVPR 2019, Sec. 3.2. The Euclidean
    distances of a batch are divided by their mean; the angle of a triple is the cosine at its middle
    sample. Both are compared by the smooth L1 loss,

    .. math:: L = w_d \overline{\ell(\psi^S_{ij}, \psi^T_{ij})}
        + w_a \overline{\ell(\cos^S_{ijk}, \cos^T_{ijk})},

    with the means over all N² pairs and N³ triples, also those of a sample with itself, as in the
    authors' code. The mean distance is taken over pairs that are not 0 apart. Where a sample coincides
    with the one at the angle, the cosine is 0, without a gradient. The parts, without their weights,
    are logged as ``<term>.distance`` and ``<term>.angle``.

    Relations are those within this process's batch. Memory beyond the features: N × N, and a few blocks
    of ``ANGLES_AT_ONCE`` (or N × N, if that is more), as the backward pass computes angles again.

    Args:
        distance (float): The weight of distances, at least 0. Defaults to 1, as the authors.
        angle (float): The weight of angles, at least 0; with 0 they are not computed. Defaults to 2, as
            the authors.
    """

    def __init__(self, distance: float = 1.0, angle: float = 2.0) -> None:
        super().__init__()
        self.distance, self.angle = weights(distance=distance, angle=angle)

    def relate(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The weighted sum of both parts."""
        student, teacher = map(self._distances, (student, teacher))
        distance = F.smooth_l1_loss(student, teacher)
        self.logs = dict(distance=distance.detach())
        if not self.angle:
            return self.distance * distance
        n = len(student)
        step = max(1, ANGLES_AT_ONCE // n**2)
        angle = sum(
            checkpoint(
                self._angle_error,
                student,
                teacher,
                slice(start, start + step),
                use_reentrant=False,
                preserve_rng_state=False,
            )
            for start in range(0, n, step)
        )
        angle = angle / n**3
        self.logs['angle'] = angle.detach()
        return self.distance * distance + self.angle * angle

    @staticmethod
    def _distances(features: Tensor) -> Tensor:
        """Distances (N, N), whose mean, without zeros, is 1."""
        distances = _Distances.apply(features)
        mean = distances.sum() / distances.count_nonzero().clamp(min=1)
        return distances / mean.masked_fill(mean == 0, 1)

    @staticmethod
    def _angle_error(student: Tensor, teacher: Tensor, vertices: slice) -> Tensor:
        """The summed error of all angles at some vertices."""
        cosines = (angle_cosines(distances, vertices) for distances in (student, teacher))
        return F.smooth_l1_loss(*cosines, reduction='sum')


@MODELS.register_module()
class NSTLoss(DistillLoss):
    r"""Neuron selectivity transfer: matches the places where channels are active, in distribution.

    Source: Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer",
    2017. A channel's pattern is its map, flattened and divided by its L2 norm. The loss is the squared
    maximum mean discrepancy between the C patterns of the student and the C' of the teacher, with the
    kernel :math:`k(x, y) = (x^\top y)^2`, mean over samples. With patterns as rows of :math:`X` and
    :math:`Y` it is :math:`\|X^\top X / C - Y^\top Y / C'\|_F^2`.

    The numbers of channels may differ. A channel that is 0 has the pattern 0, without a gradient.
    Memory beyond the features: Gram matrices of N × HW × HW, or where HW exceeds the numbers of
    channels of N × C × C, N × C' × C' and N × C × C'.
    """

    compares = 'map_size'

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compares maps (N, C, H, W) with any channels; a student of another size is resized."""
        student, teacher = map(full_precision, (student, teacher))
        student = resize_map(student, teacher.shape[-2:])
        student, teacher = (unit_vectors(maps.flatten(2)) for maps in (student, teacher))
        channels = student.shape[1], teacher.shape[1]
        with no_autocast(student):
            if student.shape[2] <= max(channels):
                grams = (maps.mT @ maps / maps.shape[1] for maps in (student, teacher))
                return F.mse_loss(*grams, reduction='sum') / len(student)
            # The same squares summed by pairs of channels
            pairs = (student, student), (teacher, teacher), (student, teacher)
            within, fixed, between = ((x @ y.mT).square().mean() for x, y in pairs)
            return within + fixed - 2 * between


def unit_vectors(vectors: Tensor) -> Tensor:
    """Divides vectors (..., D) by their L2 norms; one of 1e-12 or less becomes 0, without a gradient."""
    norm = vectors.norm(dim=-1, keepdim=True)
    return vectors / norm.masked_fill(norm <= 1e-12, torch.inf)


def angle_cosines(distances: Tensor, vertices: slice) -> Tensor:
    """The cosines (V, N, N) of the angles at V vertices, by the law of cosines of distances (N, N).

    They are 0 where a side has no length.
    """
    sides = distances[vertices]
    square, inverse = sides.square(), sides.masked_fill(sides == 0, torch.inf).reciprocal()
    difference = square[:, :, None] + square[:, None] - distances.square()
    return difference * (inverse[:, :, None] * inverse[:, None]) / 2


class _Distances(torch.autograd.Function):
    """Euclidean distances (N, N) of features (N, D); where one is 0 it has no gradient.

    They are summed over differences, as matrix products of close features are all rounding. Torch's
    own backward of that form allocates N × N × D on an accelerator; this one is a matrix product.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        distances = torch.cdist(features, features, compute_mode='donot_use_mm_for_euclid_dist')
        ctx.save_for_backward(features, distances)
        return distances

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        features, distances = ctx.saved_tensors
        pull = (grad + grad.T) / distances.masked_fill(distances == 0, torch.inf)
        # Rows of this matrix sum to 0, so the mean can be taken away, and rounding with it
        laplacian = pull.sum(1).diag() - pull
        return laplacian @ (features - features.mean(0))


def _text(features: Any) -> str:
    if isinstance(features, list):
        return f'a list of {len(features)}'
    if isinstance(features, Tensor):
        return f'one of shape {tuple(features.shape)}'
    return type(features).__name__
