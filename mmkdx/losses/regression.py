"""Losses of features with their own regressor or connector layers."""

from __future__ import annotations

import math
from abc import ABCMeta, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from torch import Tensor, nn

from mmkdx.functional import full_precision, resize_map
from mmkdx.losses.base import DistillLoss, flag, number, positive
from mmkdx.registry import MODELS


class ConnectedLoss(DistillLoss, metaclass=ABCMeta):
    """Base of the losses that map student features to teacher features with their own layers."""

    compares = 'anything'

    def connect(self, student: Tensor, teacher: Tensor) -> None:
        """Builds the layers for maps (N, C, H, W) and (N, D, H', W'), which may be fake.

        Raises:
            ValueError: If these are not two maps, or no layer leads from the one size to the other.
        """
        for owner, maps in (('student', student), ('teacher', teacher)):
            if not isinstance(maps, Tensor) or maps.dim() != 4:
                shape = tuple(maps.shape) if hasattr(maps, 'shape') else type(maps).__name__
                raise ValueError(
                    f"one map of shape (N, C, H, W) is needed, and the {owner}'s tap holds {shape}"
                )
        self.build(student.shape[1:], teacher.shape[1:])
        self.to(student.device)

    @abstractmethod
    def build(self, student: torch.Size, teacher: torch.Size) -> None:
        """Builds the layers between maps of (C, H, W) and (D, H', W')."""


def regressor(
    student: Sequence[int], teacher: Sequence[int], relu: bool = True, kernel: int = 1
) -> nn.Sequential:
    """A convolution, batch norm and ReLU from maps of (C, H, W) to maps of (D, H', W').

    Args:
        student (Sequence[int]): The shape of the student's map.
        teacher (Sequence[int]): The shape of the teacher's map.
        relu (bool): Whether there is a ReLU. Defaults to True.
        kernel (int): The side of the kernel where the sizes are the same. Defaults to 1.

    Raises:
        ValueError: If no convolution leads from the one size to the other.
    """
    channels, size, goal = (student[0], teacher[0]), student[1:], teacher[1:]
    ratio = [a / b for a, b in zip(size, goal)]
    if ratio == [2, 2]:
        layer: nn.Module = nn.Conv2d(*channels, 3, 2, 1)
    elif ratio == [0.5, 0.5]:
        layer = nn.ConvTranspose2d(*channels, 4, 2, 1)
    elif ratio == [1, 1]:
        layer = nn.Conv2d(*channels, kernel, padding=kernel // 2)
    elif min(ratio) >= 1:
        layer = nn.Conv2d(*channels, [1 + a - b for a, b in zip(size, goal)])
    else:
        raise ValueError(
            f"the student's map of {tuple(size)} is smaller than the teacher's of {tuple(goal)} and "
            'not half as large; choose other taps (at)'
        )
    last = [nn.ReLU(inplace=True)] if relu else []
    return nn.Sequential(layer, nn.BatchNorm2d(channels[1]), *last)


@MODELS.register_module()
class FitNetLoss(ConnectedLoss):
    """FitNets: regresses the teacher's features from the student's.

    Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, Sec. 2.2. As in the
    benchmarks of distillation (RepDistiller, mdistiller) the regressor is one convolution, batch norm
    and ReLU, trained along in one stage: 3 × 3 with stride 2 where the student's map is twice as
    large, a transposed convolution where it is half as large, else a convolution without padding whose
    kernel takes the larger map to the smaller. The loss is the mean squared error over all elements,
    without the paper's factor of one half. ``MSELoss`` with ``adapter='auto'`` has a 1 × 1 convolution
    and pooling instead, and neither where the shapes are the same.

    Args:
        relu (bool): Whether the regressor ends with a ReLU. Set False where the teacher's tap holds
            negative values. Defaults to True.
    """

    def __init__(self, relu: bool = True) -> None:
        super().__init__()
        self.relu = flag('relu', relu)

    def build(self, student: torch.Size, teacher: torch.Size) -> None:
        """See ``ConnectedLoss``."""
        self.regressor = regressor(student, teacher, self.relu)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compares maps (N, C, H, W) with maps (N, D, H', W').

        Raises:
            ValueError: If the maps have other sizes than those that the regressor leads between.
        """
        regressed = self.regressor(full_precision(student))
        if regressed.shape != teacher.shape:  # mse_loss would broadcast
            raise ValueError(
                f"the student's map of {tuple(student.shape[2:])} is regressed to "
                f"{tuple(regressed.shape[2:])}, and the teacher's is {tuple(teacher.shape[2:])}; the "
                'regressor was built for images of another size, so keep to one size'
            )
        return F.mse_loss(regressed, full_precision(teacher.detach()))


@MODELS.register_module()
class VIDLoss(ConnectedLoss):
    r"""Variational information distillation: predicts the teacher's features with a Gaussian.

    Source: Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019.
    The mean :math:`\mu` of the teacher's features is regressed by three 1 × 1 convolutions, and each
    channel has a learned variance :math:`\sigma_c^2 = softplus(a_c) + \epsilon`; the loss is the mean of

    .. math:: \frac{(t - \mu)^2}{2 \sigma_c^2} + \frac{1}{2} \log \sigma_c^2

    over all elements, without the constant; it falls below 0 where variances become small. Where sizes
    differ, the larger map is average-pooled to the smaller.

    Args:
        init_variance (float): The variance at the start, above ``eps``. Defaults to 5.
        eps (float): The least variance. Defaults to 1e-5.
    """

    def __init__(self, init_variance: float = 5.0, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = positive('eps', eps)
        self.init_variance = number('init_variance', init_variance, eps, open_low=True)

    def build(self, student: torch.Size, teacher: torch.Size) -> None:
        """See ``ConnectedLoss``."""
        channels = teacher[0]
        self.regressor = nn.Sequential(
            nn.Conv2d(student[0], channels, 1, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 1, bias=False),
        )
        start = math.log(math.expm1(self.init_variance - self.eps))
        self.log_scale = nn.Parameter(torch.full((channels,), start))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compares maps (N, C, H, W) with maps (N, D, H', W')."""
        size = [min(sides) for sides in zip(student.shape[2:], teacher.shape[2:])]
        maps = (student, teacher.detach())
        student, teacher = (resize_map(full_precision(each), size) for each in maps)
        variance = (F.softplus(self.log_scale) + self.eps)[:, None, None]
        error = (teacher - self.regressor(student)).square()
        return (error / variance + variance.log()).mean() / 2


@MODELS.register_module()
class OFDLoss(ConnectedLoss):
    r"""Overhaul of feature distillation: matches the informative features before the ReLU.

    Source: Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019, Sec. 3. The
    student's features pass a 1 × 1 convolution and batch norm; the teacher's pass the margin ReLU
    :math:`\max(t, m_c)`, with :math:`m_c` the mean of the channel's negative responses. Where the
    teacher's response is not positive and the student's lies below it, there is no error; the loss is
    the mean of the squares over all elements. The authors sum over the elements of a map.

    The taps hold features *before* a ReLU, such as ``backbone.layer2.1.relu@1:in`` (after the addition)
    or ``backbone.layer2.1.bn2`` of a ResNet. The margins are the mean over all negative responses since
    training began, of all ranks, in place of the authors' closed form from the teacher's batch norm; a
    checkpoint holds them. A channel without negative responses has the margin 0.
    """

    def build(self, student: torch.Size, teacher: torch.Size) -> None:
        """See ``ConnectedLoss``."""
        self.connector = nn.Sequential(
            nn.Conv2d(student[0], teacher[0], 1, bias=False), nn.BatchNorm2d(teacher[0])
        )
        nn.init.kaiming_normal_(self.connector[0].weight, mode='fan_out')
        # Sums in fp64: they grow over the whole training
        self.register_buffer('negative_sum', torch.zeros(teacher[0], dtype=torch.float64))
        self.register_buffer('negative_count', torch.zeros(teacher[0], dtype=torch.float64))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compares maps (N, C, H, W) with maps (N, D, H', W'), both before a ReLU."""
        student, teacher = full_precision(student), full_precision(teacher.detach())
        student = resize_map(self.connector(student), teacher.shape[-2:])
        # A trial without gradients leaves the margins alone, and other ranks need not take part
        if self.training and torch.is_grad_enabled():
            self._count(teacher)
        margin = (self.negative_sum / self.negative_count.clamp(min=1)).to(teacher.dtype)
        goal = torch.maximum(teacher, margin[:, None, None])
        counts = (student > goal) | (goal > 0)
        return ((student - goal).square() * counts).mean()

    @torch.no_grad()
    def _count(self, teacher: Tensor) -> None:
        negative = teacher.clamp(max=0)
        batch = torch.stack(
            [
                negative.sum((0, 2, 3), dtype=torch.float64),
                (negative < 0).sum((0, 2, 3), dtype=torch.float64),
            ]
        )
        all_reduce(batch)
        self.negative_sum += batch[0]
        self.negative_count += batch[1]
