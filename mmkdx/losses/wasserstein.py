"""Losses by the Wasserstein distance, between classes of logits and Gaussians of features."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkdx.arguments import weights
from mmkdx.functional import ClassMaps, full_precision, no_autocast
from mmkdx.losses.base import DistillLoss, flag, integer, number, one_of, positive
from mmkdx.losses.logit import label_entropies, need_classes
from mmkdx.losses.regression import ConnectedLoss, regressor
from mmkdx.losses.relation import unit_vectors
from mmkdx.models.teacher_statistics import read_statistics
from mmkdx.registry import MODELS

#: The largest cost over ``reg`` at which the kernel keeps its precision in fp32.
LARGEST_RATIO = 80


def transport_cost(similarity: Tensor, kappa: float) -> Tensor:
    r"""The cost (K, K) of moving probability between classes of a similarity (K, K).

    It is :math:`1 - \exp(-\kappa (1 - similarity))`, or with kappa 0 one minus the similarity.
    Negative costs become 0, and the diagonal is 0.
    """
    cost = 1 - similarity
    cost = -torch.expm1(-kappa * cost) if kappa else cost
    return cost.clamp(min=0).fill_diagonal_(0)


def sinkhorn(
    student: Tensor, teacher: Tensor, cost: Tensor, reg: float, iterations: int
) -> tuple[Tensor, Tensor]:
    """The cost (N, ) of moving distributions to others by the plans of some Sinkhorn iterations.

    With few iterations the rows of the plan sum to the student's probabilities, and the columns nearly
    to the teacher's. So the value may lie below the least cost.

    Args:
        student (Tensor): Probabilities (N, K); classes of probability 0 in both do not take part.
        teacher (Tensor): Probabilities (N, K).
        cost (Tensor): The cost (K, K), at most ``LARGEST_RATIO`` times ``reg``.
        reg (float): The weight of the plan's entropy, above 0.
        iterations (int): The number of iterations, at least 1.

    Returns:
        tuple[Tensor, Tensor]: The cost of each sample, and the largest difference of a column's sum
        from the teacher's probability.
    """
    kernel = (-cost / reg).exp()
    # A scale of the start cancels, and classes that do not take part have no mass from the first half on
    rows = (student + teacher > 0).to(student)
    for _ in range(iterations):
        reached = rows @ kernel
        columns = teacher / reached
        rows = student / (columns @ kernel.T)
    moved = (rows @ (kernel * cost) * columns).sum(1)
    error = ((rows @ kernel) * columns - teacher).detach().abs().max()
    return moved, error


@MODELS.register_module()
class WKDLogitLoss(DistillLoss):
    r"""WKD-L: moves the student's probabilities to the teacher's, at a cost of how unlike classes are.

    Source: Lv et al., "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge
    Distillation", NeurIPS 2024. With the distributions :math:`a` and :math:`b` of student and teacher
    over the classes other than the label at temperature :math:`\tau`, and a cost :math:`C` of classes,

    .. math:: L = - w_y\,p_y^T \log p_y^S + w\,\langle P, C \rangle, \quad
        P \approx \arg\min_{P 1 = a,\ P^\top 1 = b} \langle P, C \rangle + \epsilon \sum P (\log P - 1),

    mean over samples, without a factor :math:`\tau^2`; the first part has no temperature. The cost is
    :math:`1 - \exp(-\kappa (1 - sim))` with the similarity of two classes to the teacher.

    The plan comes from a few Sinkhorn iterations, through which gradients flow. After ten, rows sum to
    :math:`a` and columns only nearly to :math:`b`, so the value is no distance: it can lie below the
    least cost, and it is above 0, with a gradient, for equal logits. Memory is N × K an iteration.

    Logged are ``<term>.target`` and ``<term>.transport``, the parts without their weights, and
    ``<term>.column_error``, the largest difference of a column's sum from :math:`b`. The authors'
    schedule concerns the transport alone: use two terms, one with ``transport_weight=0`` and one with
    ``target_weight=0``.

    Args:
        tau (float): The temperature of the other classes, above 0. Defaults to 2, the authors' for
            ImageNet.
        reg (float): :math:`\epsilon`, above 0, and at least 1/80 of the largest cost. Defaults to 0.05.
        iterations (int): The number of Sinkhorn iterations, at least 1. Defaults to 10.
        similarity (str): 'weight' is the cosine of the weights of the teacher's linear classifier, not
            centred; the tap is 'cam'. 'cka' is the linear CKA of the teacher's logits of the training
            images of two classes, from ``statistics``; the tap is 'logits'. Defaults to 'weight'.
        kappa (float): :math:`\kappa`, at least 0; with 0 the cost is one minus the similarity. Defaults
            to 1.
        statistics (str, optional): The file that ``tools/analysis_tools/teacher_statistics.py --cka``
            makes, for 'cka'. Defaults to None.
        target_weight (float): :math:`w_y`, at least 0. Defaults to 1.
        transport_weight (float): :math:`w`, at least 0. Defaults to 1.
        separate (bool): Whether the label is apart from the other classes. With False all classes are
            moved, there is no first part, and no labels are needed. Defaults to True.

    Raises:
        ValueError: If an argument is out of range, or the file does not hold what is needed.
        FileNotFoundError: If there is no file of statistics.
    """

    compares = 'class_maps'
    activation = 'softmax'
    needs = ('teacher', 'class')

    def __init__(
        self,
        tau: float = 2.0,
        reg: float = 0.05,
        iterations: int = 10,
        similarity: str = 'weight',
        kappa: float = 1.0,
        statistics: str | None = None,
        target_weight: float = 1.0,
        transport_weight: float = 1.0,
        separate: bool = True,
    ) -> None:
        super().__init__()
        self.tau, self.reg = positive('tau', tau), positive('reg', reg)
        self.iterations = integer('iterations', iterations, 1)
        self.similarity = one_of('similarity', similarity, ('weight', 'cka'))
        self.kappa = number('kappa', kappa, 0)
        self.target_weight, self.transport_weight = weights(
            target_weight=target_weight, transport_weight=transport_weight
        )
        if not flag('separate', separate):
            self.needs = ('teacher',)
        self.separate = separate
        if (similarity == 'cka') != (statistics is not None):
            raise ValueError("statistics goes with similarity='cka', and only with it")
        if similarity == 'cka':
            self.compares = 'logits'
            found = read_statistics('statistics', statistics).get('class_cka')
            cost = self._checked(found, statistics)
            # Neither trained nor part of a checkpoint, but on the model's device
            self.register_buffer('cost', cost, persistent=False)

    def _checked(self, similarity: Tensor | None, file: str) -> Tensor:
        """The cost of a file's similarity."""
        if similarity is None:
            raise ValueError(
                f'statistics: {file} has no class_cka; make it with '
                'tools/analysis_tools/teacher_statistics.py --cka'
            )
        cost = 1 - similarity
        good = cost.dim() == 2 and cost.shape[0] == cost.shape[1] and bool(cost.isfinite().all())
        if not good or not torch.allclose(cost, cost.T, atol=1e-5):
            raise ValueError(
                f'statistics: class_cka of {file} is no symmetric K x K matrix of numbers'
            )
        if cost.diagonal().abs().max() > 1e-6:
            raise ValueError(f'statistics: class_cka of {file} is not 1 between a class and itself')
        cost = transport_cost(similarity, self.kappa)
        self._check_ratio(cost.max().item())
        return cost

    def _check_ratio(self, largest: float) -> None:
        if self.reg * LARGEST_RATIO < largest:
            raise ValueError(
                f'reg is {self.reg:g} and the largest cost of a pair of classes {largest:.3g}; set reg '
                f'to at least {largest / LARGEST_RATIO:.2g}, since fp32 loses precision below it'
            )

    def check(self, student: ClassMaps | Tensor, teacher: ClassMaps | Tensor) -> None:
        """Refuses, before training, a teacher without a linear classifier.

        Raises:
            ValueError: If there are no weights to compare, or ``reg`` is too small for their cost.
        """
        if self.similarity == 'weight':
            if getattr(teacher, 'weight', None) is None:
                raise ValueError(
                    "similarity='weight' needs the teacher's tap 'cam' and one linear classifier; set "
                    "similarity='cka' and statistics, at the tap 'logits'"
                )
            # The largest cost of any cosine, since weights may be fake
            self._check_ratio(-math.expm1(-2 * self.kappa) if self.kappa else 2)

    def forward(
        self,
        student: ClassMaps | Tensor,
        teacher: ClassMaps | Tensor,
        target: Tensor | None = None,
    ) -> Tensor:
        """Compares class maps, or with 'cka' logits (N, K), with labels' classes of shape (N, ).

        Raises:
            ValueError: If there are fewer than three classes (two without ``separate``), or the
                statistics are of other classes.
        """
        if self.similarity == 'weight':
            self.check(student, teacher)
            cost = self._weight_cost(teacher)
            student, teacher = (ClassMaps.of(maps).logits() for maps in (student, teacher))
        else:
            cost = self.cost
        classes = need_classes(self, student, 3 if self.separate else 2)
        if len(cost) != classes:
            raise ValueError(
                f'statistics are of {len(cost)} classes, and the teacher has {classes} classes'
            )
        student, teacher = full_precision(student), full_precision(teacher.detach())
        self.logs, parts = {}, []
        if self.separate and self.target_weight:
            part = label_entropies(student, teacher, target).mean()
            self.logs['target'] = part.detach()
            parts.append(self.target_weight * part)
        if self.transport_weight or not self.separate:
            own, theirs = (self._others(logits, target) for logits in (student, teacher))
            with no_autocast(student):
                values, error = sinkhorn(own, theirs, cost.to(own), self.reg, self.iterations)
            part = values.mean()
            self.logs |= dict(transport=part.detach(), column_error=error)
            parts.append(self.transport_weight * part)
        return sum(parts)

    @torch.no_grad()
    def _weight_cost(self, teacher: ClassMaps) -> Tensor:
        units = unit_vectors(full_precision(teacher.weight))
        with no_autocast(units):
            return transport_cost(units @ units.T, self.kappa)

    def _others(self, logits: Tensor, target: Tensor | None) -> Tensor:
        """Probabilities (N, K), of which the label has none if it is separate."""
        logits = logits / self.tau
        if self.separate:
            logits = logits.scatter(1, target[:, None], -torch.inf)
        return F.softmax(logits, dim=1)


@MODELS.register_module()
class WKDFeatureLoss(ConnectedLoss):
    r"""WKD-F: the Wasserstein distance of Gaussians that describe the features in each cell.

    Source: Lv et al., "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge
    Distillation", NeurIPS 2024. The student's map is projected to the teacher's channels and size. In
    each of g × g cells a channel has a mean :math:`\mu` and a standard deviation :math:`\sigma` over the
    positions; the loss is

    .. math:: L = \gamma \sum_c (\mu^S_c - \mu^T_c)^2 + \sum_c (\sigma^S_c - \sigma^T_c)^2,

    mean over cells and samples, and with ``reduction='mean'`` over channels. With :math:`\gamma = 1` the
    sum is the squared 2-Wasserstein distance of two Gaussians with diagonal covariances. Logged are the
    parts, without :math:`\gamma`, as ``<term>.mean`` and ``<term>.std``.

    Args:
        mean_ratio (float): :math:`\gamma`, at least 0. Defaults to 2.
        grid (int): g; cells are those of adaptive pooling. Defaults to 1.
        eps (float): What is added to the variance, above 0. Defaults to 1e-5.
        projector (str): 'conv' is the regressor of ``FitNetLoss``: a convolution, batch norm and ReLU.
            'bottleneck' has three convolutions, 1 × 1, 3 × 3 and 1 × 1, over 256 channels, each with
            batch norm and ReLU. Defaults to 'conv'.
        reduction (str): 'mean' over channels, or their 'sum' as the authors. Defaults to 'mean'.
    """

    def __init__(
        self,
        mean_ratio: float = 2.0,
        grid: int = 1,
        eps: float = 1e-5,
        projector: str = 'conv',
        reduction: str = 'mean',
    ) -> None:
        super().__init__()
        self.mean_ratio = number('mean_ratio', mean_ratio, 0)
        self.grid = integer('grid', grid, 1)
        self.eps = positive('eps', eps)
        self.kind = one_of('projector', projector, ('conv', 'bottleneck'))
        self.reduction = one_of('reduction', reduction, ('mean', 'sum'))

    def build(self, student: torch.Size, teacher: torch.Size) -> None:
        """See ``ConnectedLoss``."""
        if self.kind == 'conv':
            self.projector: nn.Module = regressor(student, teacher)
            return
        hidden, size, goal = 256, student[1:], teacher[1:]
        self.projector = nn.Sequential(
            regressor((student[0], *size), (hidden, *size)),
            regressor((hidden, *size), (hidden, *goal), kernel=3),
            regressor((hidden, *goal), (teacher[0], *goal)),
        )

    def check(self, student: Tensor, teacher: Tensor) -> None:
        """Refuses, before training, cells of fewer than two positions.

        Raises:
            ValueError: If a cell of the teacher's map has no standard deviation.
        """
        height, width = teacher.shape[2:]
        sizes = [
            len(range(*rows)) * len(range(*columns))
            for rows in windows(height, self.grid)
            for columns in windows(width, self.grid)
        ]
        if min(height, width) < self.grid or min(sizes) < 2:
            raise ValueError(
                f'grid is {self.grid} and the map of the teacher has {height}x{width} positions, so '
                'that a cell has fewer than two; set a smaller grid or choose other taps (at)'
            )

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compares maps (N, C, H, W) with maps (N, D, H', W').

        Raises:
            ValueError: If a cell has fewer than two positions, or the projected map another size.
        """
        self.check(student, teacher)
        student, teacher = self.projector(full_precision(student)), full_precision(teacher.detach())
        if student.shape != teacher.shape:
            raise ValueError(
                f"the student's map is projected to {tuple(student.shape[1:])}, and the teacher's is "
                f'{tuple(teacher.shape[1:])}; the projector was built for images of another size'
            )
        (own_std, own_mean), (std, mean) = map(self._moments, (student, teacher))
        scale = teacher.shape[1] if self.reduction == 'sum' else 1
        mean, std = scale * F.mse_loss(own_mean, mean), scale * F.mse_loss(own_std, std)
        self.logs = dict(mean=mean.detach(), std=std.detach())
        return self.mean_ratio * mean + std

    def _moments(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """The standard deviations and means (N, C, cells) of maps."""
        cells = [
            maps[:, :, slice(*rows), slice(*columns)]
            for rows in windows(maps.shape[2], self.grid)
            for columns in windows(maps.shape[3], self.grid)
        ]
        moments = (torch.var_mean(cell, dim=(2, 3)) for cell in cells)
        variance, mean = (torch.stack(each, 2) for each in zip(*moments))
        return (variance + self.eps).sqrt(), mean


def windows(side: int, cells: int) -> list[tuple[int, int]]:
    """The first position and the one after the last of each cell of adaptive pooling."""
    return [(i * side // cells, -(-(i + 1) * side // cells)) for i in range(cells)]
