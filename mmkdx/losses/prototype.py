"""Proto2Proto: matches the prototypes, and the patches next to them, with the teacher's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmkdx.losses.base import DistillLoss, number, one_of, positive
from mmkdx.registry import MODELS


@MODELS.register_module()
class GlobalExplanationLoss(DistillLoss):
    """The mean L2 distance between prototypes of the same index.

    ``mean_j ||p_j^S - p_j^T + eps||``, not squared. It also puts the student's prototypes in the order
    of the teacher's.

    Source: Keswani et al., "Proto2Proto", CVPR 2022; a reading of the authors' public code. Weight
    there: 10.

    Args:
        eps (float): Added to each difference, as torch's ``PairwiseDistance`` does, so that equal
            prototypes have a gradient. 0 gives them none. Defaults to 1e-6.
    """

    compares = 'anything'

    def __init__(self, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = number('eps', eps, 0)

    def connect(self, student: Tensor, teacher: Tensor) -> None:
        """Refuses prototypes that have no counterpart.

        Raises:
            ValueError: If they differ in number or size.
        """
        check_counterparts(student.shape, teacher.shape)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compares prototypes of shape (P, C) or (P, C, 1, 1)."""
        difference = student.flatten(1) - teacher.detach().flatten(1) + self.eps
        return torch.linalg.vector_norm(difference, dim=1).mean()


@MODELS.register_module()
class PatchPrototypeLoss(DistillLoss):
    """The squared distance between student's and teacher's embeddings of active patches.

    With M the mask of active positions (see ``active_mask``) and n their number in the batch, it is
    ``sum M ||w^T - w^S||²`` divided by

    - 'repo': 2 n + 1, as in the public code;
    - 'per_image': the number of images;
    - 'mean_active': n, or 1 where there is none.

    The taps are two of each model: ``at=['head.add_on', 'head.prototype_layer']``.

    Source: Keswani et al., "Proto2Proto", CVPR 2022; a reading of its figure and of the authors' public
    code. The figure takes the teacher's mask; the public code the student's, apparently by a slip.
    Weight there: 10.

    Args:
        tau (float): The largest squared distance of an active patch. Defaults to 100.
        mask_source (str): Whose active positions count, 'teacher' (paper) or 'student' (public code).
            Defaults to 'teacher'.
        reduction (str): See above. Defaults to 'repo'.
    """

    compares = 'anything'

    def __init__(
        self, tau: float = 100.0, mask_source: str = 'teacher', reduction: str = 'repo'
    ) -> None:
        super().__init__()
        self.tau = positive('tau', tau)
        self.mask_source = one_of('mask_source', mask_source, ('teacher', 'student'))
        choices = ('repo', 'per_image', 'mean_active')
        self.reduction = one_of('reduction', reduction, choices)

    def connect(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
        """Refuses what has no counterpart.

        Raises:
            ValueError: If embeddings or distances are missing, or differ in grid, size or number.
        """
        for name, values in (('student', student), ('teacher', teacher)):
            if not isinstance(values, list) or len(values) != 2:
                raise ValueError(
                    "it takes the embedding and the distances; write at=['head.add_on', "
                    "'head.prototype_layer']"
                )
            if any(value.dim() != 4 for value in values):
                raise ValueError(f'the taps of the {name} must hold maps')
        if student[0].shape[2:] != teacher[0].shape[2:]:
            raise ValueError(
                f"the student's grid is {_size(student[0])} and the teacher's {_size(teacher[0])}; "
                'patches are paired by position, so choose backbones, or their strides, that give the '
                'same grid'
            )
        check_counterparts(
            *(
                (distances.shape[1], embedding.shape[1])
                for embedding, distances in (student, teacher)
            )
        )

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Compares pairs of an embedding (N, C, H, W) and squared distances (N, P, H, W).

        The loss is 0 where no position is active.
        """
        mask = active_mask(dict(teacher=teacher, student=student)[self.mask_source][1], self.tau)
        squares = (student[0] - teacher[0].detach()).square().sum(1)
        active = mask.sum()
        divisor = dict(repo=2 * active + 1, per_image=len(mask), mean_active=active.clamp(min=1))[
            self.reduction
        ]
        return (squares * mask).sum() / divisor


@torch.no_grad()
def active_mask(distances: Tensor, tau: float) -> Tensor:
    """The positions (N, H, W) that are the image's nearest to any prototype, and nearer than tau.

    Distances (N, P, H, W) and tau are squared. All of several equally near positions count.
    """
    nearest = distances == distances.amin((2, 3), keepdim=True)
    return (nearest & (distances < tau)).any(1)


def check_counterparts(student: Sequence[int], teacher: Sequence[int]) -> None:
    """Refuses prototypes that differ in number or channels, which both arguments begin with."""
    if student[0] != teacher[0]:
        raise ValueError(
            f'the student has {student[0]} prototypes and the teacher {teacher[0]}, which '
            'are paired by index; set student.head.prototypes_per_class (for a tree: depth) to the '
            "teacher's"
        )
    if student[1] != teacher[1]:
        raise ValueError(
            f'the prototypes of the student have {student[1]} channels and those of the teacher '
            f"{teacher[1]}; set student.head.prototype_channels to the teacher's"
        )


def _size(maps: Tensor) -> str:
    return f'{maps.shape[2]} x {maps.shape[3]}'
