"""Measures whether a student's prototypes look at the same places as its teacher's.

Source: Keswani et al., "Proto2Proto: Can you recognize the car, the way I do?", CVPR 2022, and its
public code, which settles the details. For each image and prototype it takes the smallest distance
over the cells of a grid. The cell with that distance is the prototype's *patch*.

Cells are flat indices ``row * width + column``. Two models that are compared must have the same
grid. For N images and P prototypes, distances and cells have the shape (N, P). Other values raise a
``ValueError``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mmkdx.arguments import integer

#: How many numbers a block of one-hot cells may hold (32 MB).
_BLOCK = 2**23


def active_patches(distances: Tensor, cells: Tensor, tau: float | None = None) -> Tensor:
    """The number of different cells that are the patch of an active prototype, for each image.

    The mean over images is AAP, the average number of active patches. It describes one model; a
    student's AAP should be near its teacher's. A prototype is active if its distance is at most
    ``tau``; by default it always is. The result (N, ) has whole numbers in fp32.
    """
    _check(cells=cells)
    return _active_cells(distances, cells, tau, _count(cells)).sum(1).float()


def patch_similarity(
    teacher_distances: Tensor,
    teacher_cells: Tensor,
    student_distances: Tensor,
    student_cells: Tensor,
    tau: float | None = None,
) -> Tensor:
    """The Jaccard index of the sets of active cells of two models, for each image.

    The mean over images is AJS, the average Jaccard similarity. With a large ``tau`` (see
    ``active_patches``) nearly all cells are active, so any two models look alike. A small one is
    more informative. As in the authors' code, the index is 0, not 1, if neither model has an active
    cell. The numbers of prototypes may differ.
    """
    _check(teacher_cells=teacher_cells, student_cells=student_cells)
    count = _count(teacher_cells, student_cells)
    teacher = _active_cells(teacher_distances, teacher_cells, tau, count, 'teacher_')
    student = _active_cells(student_distances, student_cells, tau, count, 'student_')
    return (teacher & student).sum(1) / (teacher | student).sum(1).clamp(min=1)


def cell_agreement(teacher_cells: Tensor, student_cells: Tensor) -> Tensor:
    """The number of images in which two models' prototypes share a patch: int64 of shape (P, P').

    It is the product of one-hot cells, summed over blocks of images. So memory does not grow with
    the number of images.
    """
    _check(teacher_cells=teacher_cells, student_cells=student_cells)
    count = _count(teacher_cells, student_cells)
    size = max(1, _BLOCK // (count * max(teacher_cells.shape[1], student_cells.shape[1])))
    grid = torch.arange(count, dtype=torch.int32, device=teacher_cells.device)[:, None]
    # Whole numbers are exact in fp32 up to 2^24 images; zeros and ones are exact also in TF32
    total = torch.zeros(teacher_cells.shape[1], student_cells.shape[1], device=teacher_cells.device)
    for block in zip(teacher_cells.split(size), student_cells.split(size)):
        teacher, student = (
            (cells.int()[:, None] == grid).flatten(0, 1).to(total.dtype) for cells in block
        )
        total.addmm_(teacher.T, student)  # autocast does not change operations in place
    return total.long()


def matching_caps(num_images: int, caps: int = 10, legacy: bool = False) -> range:
    """The caps of ``prototype_matching_score``: multiples of a share of the images.

    They are 1, 2, … ``caps`` times the step ⌊N / caps⌋. With fewer images than ``caps``, the step
    is 1 and they are 1 … N. With ``legacy``, as in the authors' code, they are all multiples of the
    step below N. For 10 caps these are 9 if 10 divides N and 10 if not. With fewer than 90
    images they are up to 18.

    Raises:
        ValueError: If ``caps`` is below 1, or there are too few images for any.
    """
    step = max(1, num_images // integer('caps', caps, 1))
    stop = num_images if legacy else min(step * caps, num_images) + 1
    if stop <= step:
        raise ValueError(f'{num_images} images are too few for a cap')
    return range(step, stop, step)


def prototype_matching_score(
    teacher_cells: Tensor, student_cells: Tensor, caps: int | Sequence[int] = 10
) -> float:
    r"""PMS, how well the prototypes of two models match, whatever their order.

    A prototype's signature is the set of its patches :math:`(i, a_{ij})` in all N images. Two
    signatures are compared by a Jaccard index with a cap c on the union, which is 1 once c patches
    agree. As each has N elements, the union has at least :math:`N \geq c`, and the index is exactly

    .. math:: J_c(j, k) = \min(1, I_{jk} / c), \quad I_{jk} = |\{i : a^t_{ij} = a^s_{ik}\}|.

    For each cap, prototypes are assigned one to one so that the sum is largest, on the CPU. The
    score is the mean over pairs and caps. The paper has the caps 0.1 N, 0.2 N, … N. Its code has
    slightly different ones, ``matching_caps(N, legacy=True)``. Prototypes at random cells do not
    score 0: 200 of them on 49 cells reach about 0.1.

    Args:
        teacher_cells (Tensor): The teacher's cells, integers of shape (N, P).
        student_cells (Tensor): The student's, of the same shape.
        caps (int | Sequence[int]): The number of caps (see ``matching_caps``), or the caps
            themselves as numbers of images, from 1 to N. Defaults to 10.

    Returns:
        float: The score in [0, 1]; 1 for the same prototypes in any order.
    """
    agreement = _square_agreement(teacher_cells, student_cells)
    num_images, num_prototypes = teacher_cells.shape
    caps = matching_caps(num_images, caps) if isinstance(caps, int) else caps
    if not caps or min(caps) < 1 or max(caps) > num_images:
        raise ValueError(f'caps is {caps}; for {num_images} images caps are 1 to {num_images}')
    scores = []
    for cap in caps:
        capped = np.minimum(agreement, cap)
        pairs = linear_sum_assignment(capped, maximize=True)
        scores.append(capped[pairs].sum() / (cap * num_prototypes))
    return float(np.mean(scores))


def match_prototypes(teacher_cells: Tensor, student_cells: Tensor) -> Tensor:
    """Pairs prototypes of the teacher and the student one to one, to show them side by side.

    The pairs share as many patches as possible. There is no cap, as it would make different pairs
    equal.

    Returns:
        Tensor: The index of the student's prototype for each of the teacher's, int64 (P, ).
    """
    agreement = _square_agreement(teacher_cells, student_cells)
    columns = linear_sum_assignment(agreement, maximize=True)[1]
    return torch.as_tensor(columns, dtype=torch.long, device=teacher_cells.device)


def _square_agreement(teacher_cells: Tensor, student_cells: Tensor) -> np.ndarray:
    _check(teacher_cells=teacher_cells, student_cells=student_cells)
    teacher, student = teacher_cells.shape[1], student_cells.shape[1]
    if teacher != student:
        raise ValueError(
            f'teacher_cells are of {teacher} prototypes and student_cells of {student}; prototypes are '
            'matched one to one'
        )
    return cell_agreement(teacher_cells, student_cells).cpu().numpy()


def _active_cells(
    distances: Tensor, cells: Tensor, tau: float | None, count: int, owner: str = ''
) -> Tensor:
    """Booleans of shape (N, count): the set of active cells of each image."""
    if distances.shape != cells.shape:
        raise ValueError(
            f'{owner}distances have the shape {tuple(distances.shape)} and {owner}cells '
            f'{tuple(cells.shape)}; they must be the same'
        )
    active = distances <= (math.inf if tau is None else tau)
    # Prototypes that are not active mark an extra column, which is dropped
    index = torch.where(active, cells.long(), count)
    marks = torch.zeros(len(cells), count + 1, dtype=torch.bool, device=cells.device)
    return marks.scatter_(1, index, True)[:, :count]


def _count(*cells: Tensor) -> int:
    return max(int(each.max()) for each in cells) + 1


def _check(**arguments: Tensor) -> None:
    """Refuses values that are not cells, and cells of different numbers of images."""
    for name, cells in arguments.items():
        if cells.ndim != 2 or not cells.numel():
            raise ValueError(
                f'{name} has the shape {tuple(cells.shape)}; it must be (images, prototypes), with at '
                'least one of each'
            )
        if cells.dtype.is_floating_point or cells.dtype == torch.bool:
            raise ValueError(f'{name} is of {cells.dtype}; cells are integers')
        if (low := int(cells.min())) < 0:
            raise ValueError(f'{name} holds {low}; cells count from 0')
    sizes = {name: len(cells) for name, cells in arguments.items()}
    if len(set(sizes.values())) > 1:
        text = ' and '.join(f'{name} of {size} images' for name, size in sizes.items())
        raise ValueError(f'{text} cannot be compared')
