"""Losses between the logits of parts of an image: class maps, averaged over cells."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor

from mmkdx.arguments import errors_named, integers, options
from mmkdx.functional import ClassMaps, full_precision, no_autocast
from mmkdx.losses.base import DistillLoss, flag, number, one_of, positive
from mmkdx.losses.logit import DKDLoss, KLDivLoss, NKDLoss, divergences
from mmkdx.losses.relation import unit_vectors
from mmkdx.registry import MODELS

#: The losses that ``SDDLoss`` applies to each cell.
INNER = {kind.__name__: kind for kind in (KLDivLoss, DKDLoss, NKDLoss)}


class CellLoss(DistillLoss):
    """Base of the losses between the logits of cells.

    Class maps are cut into r × r cells for each scale r. The logits of a cell are the means of the maps
    in it plus the classifier's bias: the classifier applied to the features pooled there. The cells of
    student and teacher are paired by their place, so the maps may differ in size.

    Args:
        scales (Sequence[int]): The different r.
        cells (str): 'adaptive' pools each scale from the whole map. 'nested' pools to 4 × 4 first and
            takes the scales 1 and 2 from these 16 cells, as the authors of SDD. The two are the same for
            maps whose sides are multiples of 4.
        repeat (bool): Whether a scale may be above the side of a map, so that cells share positions.
    """

    compares = 'class_maps'
    activation = 'softmax'

    def __init__(self, scales: Sequence[int], cells: str, repeat: bool) -> None:
        super().__init__()
        scales = tuple(integers('scales', scales))
        if not scales or len(set(scales)) < len(scales) or min(scales) < 1:
            raise ValueError(
                f'scales is {list(scales)}; it must be a list of different integers of at least 1'
            )
        self.scales = scales
        self.cells = one_of('cells', cells, ('adaptive', 'nested'))
        if cells == 'nested' and not {*scales} <= {1, 2, 4}:
            raise ValueError(
                f"scales is {list(scales)}, and cells='nested' has the scales 1, 2 and 4; use "
                "cells='adaptive'"
            )
        self.repeat = flag('repeat', repeat)
        self._warned = False

    def check(self, student: ClassMaps | Tensor, teacher: ClassMaps | Tensor) -> None:
        """Refuses, before training, scales above the side of a map.

        Raises:
            ValueError: If cells would share positions without ``repeat``.
        """
        largest = max(self.scales)
        if self.repeat or largest <= min(*student.shape[2:], *teacher.shape[2:]):
            return
        sizes = ' and '.join(f'{each.shape[2]}x{each.shape[3]}' for each in (student, teacher))
        raise ValueError(
            f'scales has {largest}, and the class maps of student and teacher have {sizes} positions; '
            'leave the scale out, or set repeat=True'
        )

    def cell_logits(self, maps: ClassMaps, scale: int) -> Tensor:
        """The logits (N, scale², K) of the cells of a scale, row by row."""
        finest = 4 if self.cells == 'nested' else self._finest(maps, scale)
        pooled = maps.pooled(finest)
        if finest != scale:
            pooled = F.adaptive_avg_pool2d(pooled, scale)
        pooled = pooled.flatten(2).mT
        bias = maps.remainder()  # of each class, or of each sample and class
        return pooled if bias is None else pooled + full_precision(bias).unsqueeze(-2)

    def _finest(self, maps: ClassMaps, scale: int) -> int:
        """The largest scale where the means of its cells give those of all scales, else this one."""
        largest = max(self.scales)
        # The map is pooled once, as training keeps what class maps have computed
        even = not any(side % largest for side in maps.shape[2:])
        return largest if even and not any(largest % r for r in self.scales) else scale

    def pair(
        self, student: ClassMaps | Tensor, teacher: ClassMaps | Tensor
    ) -> tuple[ClassMaps, ClassMaps]:
        """Both sides as class maps; warns once if one side's have no bias and the other's have.

        Raises:
            ValueError: If images or classes differ.
        """
        student, teacher = ClassMaps.of(student), ClassMaps.of(teacher)
        if student.shape[:2] != teacher.shape[:2]:
            raise ValueError(
                f'class maps of shapes {tuple(student.shape)} and {tuple(teacher.shape)} cannot be '
                'compared; images and classes must be the same'
            )
        lacking = [
            owner
            for owner, maps in (('student', student), ('teacher', teacher))
            if maps.weight is None and maps.bias is None and not maps.head
        ]
        if len(lacking) == 1 and not self._warned:
            self._warned = True
            print_log(
                f'{type(self).__name__}: the class maps of the {lacking[0]} have no bias and the others '
                "may have one, which the softmax of a cell's logits depends on.",
                logger='current',
                level=logging.WARNING,
            )
        return student, teacher


@MODELS.register_module()
class SDDLoss(CellLoss):
    r"""Scale-decoupled distillation: a loss of logits in each cell of the image, by scales.

    Source: Wei et al., "Scaled Decoupled Distillation", CVPR 2024. Class maps are cut into r × r cells
    for each scale r. The inner loss compares each cell's logits, which are the means of the maps in the
    cell plus the classifier's bias. The loss is the mean over all cells and samples. Complementary cells
    count ``complementary`` times; the teacher decides which cells these are.

    The global logits are the scale 1. With ``scales=(1, )`` the loss is the inner loss. The network has
    no part more than without the loss. Logged are ``<term>.consistent`` and ``<term>.complementary``,
    which add up to the loss, ``<term>.complementary_share``, the fraction of such cells, and
    ``<term>.scale_<r>``, the mean of the inner loss in the cells of a scale.

    Args:
        scales (Sequence[int]): The different r. Defaults to (1, 2), the paper's for similar networks; it
            has (1, 2, 4) for others.
        inner (dict, optional): The loss of a cell: ``KLDivLoss``, ``DKDLoss`` or ``NKDLoss`` with its
            arguments. Defaults to None, which is ``KLDivLoss`` with tau 4.
        complementary (float): The weight of complementary cells, at least 0. Defaults to 2.
        split (str): Which cells are complementary. 'correctness': those where the teacher is right and
            globally wrong, or the other way round, as in the authors' code. 'class': those of another
            class than the global one, as the paper says; no labels are needed. Defaults to
            'correctness'.
        cells (str): How maps of odd sizes are cut: 'adaptive' pools each scale from the whole map,
            'nested' pools the scales 1 and 2 from 4 × 4 cells as the authors' code, where the scale 1 is
            not the model's logits. They are the same for sides that are multiples of 4. Defaults to
            'adaptive'.
        reduction (str): 'mean' over cells, to which the published weights belong, or their 'sum', as the
            paper writes. Defaults to 'mean'.
        repeat (bool): Whether a scale may be above the side of a map, so that cells share positions, as
            in published runs with 2 × 2 maps. Defaults to False.
    """

    needs = ('teacher', 'class')

    def __init__(
        self,
        scales: Sequence[int] = (1, 2),
        inner: dict[str, Any] | None = None,
        complementary: float = 2.0,
        split: str = 'correctness',
        cells: str = 'adaptive',
        reduction: str = 'mean',
        repeat: bool = False,
    ) -> None:
        super().__init__(scales, cells, repeat)
        arguments = dict(
            options('inner', dict(type='KLDivLoss', tau=4.0) if inner is None else inner)
        )
        kind = INNER[one_of('inner.type', arguments.pop('type', None), tuple(INNER))]
        with errors_named('inner: ', errors=(TypeError, ValueError)):
            self.inner = kind(**arguments)
        if getattr(self.inner, 'activation', 'softmax') != 'softmax':
            raise ValueError("inner.activation is 'sigmoid'; SDDLoss compares by softmax alone")
        self.complementary = number('complementary', complementary, 0)
        self.split = one_of('split', split, ('correctness', 'class'))
        self.reduction = one_of('reduction', reduction, ('mean', 'sum'))
        self.labelled = 'class' in self.inner.needs
        if split == 'class' and not self.labelled:
            self.needs = ('teacher',)

    def forward(
        self,
        student: ClassMaps | Tensor,
        teacher: ClassMaps | Tensor,
        target: Tensor | None = None,
    ) -> Tensor:
        """Compares class maps (N, K, H, W), with labels' classes (N, ); the teacher's size may differ.

        Raises:
            ValueError: If images or classes differ, or the inner loss needs more classes.
        """
        student, teacher = self.pair(student, teacher)
        cells = [
            torch.cat([self.cell_logits(m, r) for r in self.scales], 1) for m in (student, teacher)
        ]
        count = cells[0].shape[1]
        labels = (target.repeat_interleave(count),) if self.labelled else ()
        values = self.inner.per_sample(*(each.flatten(0, 1) for each in cells), *labels)
        values = values.unflatten(0, (-1, count))
        apart = self._complementary(cells[1], teacher, target)
        scale = count if self.reduction == 'sum' else 1
        weighted = scale * torch.where(apart, self.complementary * values, values)
        self._log(values.detach(), weighted.detach(), apart)
        return weighted.mean()

    @torch.no_grad()
    def _complementary(self, cells: Tensor, teacher: ClassMaps, target: Tensor | None) -> Tensor:
        """Which cells (N, n) are complementary; the global one never is."""
        # Not a cell's logits: the first scale need not be 1
        whole, local = teacher.logits().argmax(1), cells.argmax(2)
        if self.split == 'class':
            apart = local != whole[:, None]
        else:
            apart = (local == target[:, None]) != (whole == target)[:, None]
        if 1 in self.scales:
            apart[:, sum(r**2 for r in self.scales[: self.scales.index(1)])] = False
        return apart

    def _log(self, values: Tensor, weighted: Tensor, apart: Tensor) -> None:
        whole, share = weighted.mean(), (weighted * apart).mean()
        parts = zip(self.scales, values.split([r**2 for r in self.scales], 1))
        self.logs = dict(
            consistent=whole - share,
            complementary=share,
            complementary_share=apart.float().mean(),
            **{f'scale_{r}': each.mean() for r, each in parts},
        )


@MODELS.register_module()
class CellGramLoss(CellLoss):
    r"""Matches the similarities between the cells of an image: Gram matrices of the cells' logits.

    Source: Xue et al., "iCD: An Implicit Clustering Distillation Method for Structural Information
    Mining", AAAI 2026. For each scale r there are the cosines :math:`G` between the logits of all pairs
    of the r × r cells, and

    .. math:: L_r = \sum_i KL(softmax(G^T_i / \tau) \,\|\, softmax(G^S_i / \tau)),

    mean over samples, without a factor of :math:`\tau^2`. The loss is the weighted sum over scales. The
    scale 1 has one cell and adds nothing. Classes need not correspond, so the models may differ in their
    order. A cell whose logits are 0 has the cosines 0, without a gradient. Each other :math:`L_r` is
    logged as ``<term>.scale_<r>``.

    Args:
        scales (Sequence[int]): The different r, one of them at least 2. Defaults to (2, 4).
        tau (float): The temperature of the cosines, above 0. Defaults to 2.
        center (bool): Whether the mean over classes is taken from a cell's logits first, so that a
            constant added to all classes, which softmax does not see, does not count. Defaults to False.
        reduction (str): 'sum' over the cells in the rows of :math:`G`, as the authors, or their 'mean'.
            Defaults to 'sum'.
        weights (Sequence[float], optional): The weight of each scale, at least 0. Defaults to None: in
            proportion to r among the scales of at least 2, with the sum 1. The authors have 1/6, 2/6 and
            3/6 for (1, 2, 4).
        cells (str): See ``SDDLoss``. Defaults to 'adaptive'.
        repeat (bool): See ``SDDLoss``. Defaults to False.
    """

    activation = None

    def __init__(
        self,
        scales: Sequence[int] = (2, 4),
        tau: float = 2.0,
        center: bool = False,
        reduction: str = 'sum',
        weights: Sequence[float] | None = None,
        cells: str = 'adaptive',
        repeat: bool = False,
    ) -> None:
        super().__init__(scales, cells, repeat)
        if max(self.scales) < 2:
            raise ValueError(
                'scales is [1], which has one cell and no pairs; add a scale of 2 or more'
            )
        self.tau = positive('tau', tau)
        self.center = flag('center', center)
        self.reduction = one_of('reduction', reduction, ('sum', 'mean'))
        self.weights = self._weights(weights)

    def _weights(self, weights: Any) -> list[float]:
        if weights is None:
            own = [r if r > 1 else 0 for r in self.scales]
            return [each / sum(own) for each in own]
        several = isinstance(weights, Sequence) and not isinstance(weights, str)
        if not several or len(weights) != len(self.scales):
            raise ValueError(
                f'weights is {weights!r}; it must be a list of {len(self.scales)} numbers, one for each '
                'of scales'
            )
        weights = [number('weights', each, 0) for each in weights]
        if not any(each for r, each in zip(self.scales, weights) if r > 1):
            raise ValueError('weights of the scales above 1 are 0, so nothing is compared')
        return weights

    def forward(self, student: ClassMaps | Tensor, teacher: ClassMaps | Tensor) -> Tensor:
        """Compares class maps (N, K, H, W); the teacher's H and W may differ.

        Raises:
            ValueError: If images or classes differ.
        """
        student, teacher = self.pair(student, teacher)
        total, self.logs = 0.0, {}
        for r, weight in zip(self.scales, self.weights):
            if r == 1:  # one cell has no pairs
                continue
            own, theirs = (self._log_rows(self.cell_logits(maps, r)) for maps in (student, teacher))
            part = divergences(own.flatten(0, 1), theirs.flatten(0, 1)).mean()
            part = part * r**2 if self.reduction == 'sum' else part
            self.logs[f'scale_{r}'] = part.detach()
            total = total + weight * part
        return total

    def _log_rows(self, logits: Tensor) -> Tensor:
        """The log-softmax (N, g, g) of the cosines between the logits (N, g, K) of cells."""
        if self.center:
            logits = logits - logits.mean(2, keepdim=True)
        units = unit_vectors(logits)
        with no_autocast(units):
            return F.log_softmax(units @ units.mT / self.tau, dim=2)
