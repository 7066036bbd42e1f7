"""Losses between the maps of classes."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkdx.functional import ClassMaps, full_precision, resize_map
from mmkdx.registry import MODELS


def class_attention_distance(
    student: Tensor,
    teacher: Tensor,
    normalize: bool = True,
    reduction: str = 'code',
    eps: float = 1e-6,
) -> Tensor:
    """The distance of CAT-KD between class maps of one resolution R × R.

    Args:
        student (Tensor): Maps of shape (N, K, R, R).
        teacher (Tensor): Maps of the same shape.
        normalize (bool): Whether each map is divided by its L2 norm. Defaults to True.
        reduction (str): 'code', the mean over all N · K · R² elements, or 'paper', that times R².
            Defaults to 'code'.
        eps (float): The least norm that a map is divided by. Defaults to 1e-6.

    Returns:
        Tensor: A scalar; normalised, it lies in [0, 4 / R²] ('code') or [0, 4] ('paper').
    """
    student, teacher = (full_precision(maps).flatten(2) for maps in (student, teacher))
    positions = student.shape[2]
    if normalize:
        student, teacher = (F.normalize(maps, dim=2, eps=eps) for maps in (student, teacher))
    return F.mse_loss(student, teacher) * (positions if reduction == 'paper' else 1)


@MODELS.register_module()
class CATLoss(nn.Module):
    """Class attention transfer (CAT-KD): the student's class maps are to look like the teacher's.

    Source: Guo et al., "Class Attention Transfer Based Knowledge Distillation", CVPR 2023, Sec. 3. The
    maps of all classes are average-pooled to R × R and, with ``normalize``, divided by their L2 norms;
    the loss is their mean squared difference. The paper's training loss is the classification loss
    plus this, without a temperature; without the classification loss (the paper's label-free CAT) is
    ``student_weight=0`` of the ``Distiller``.

    The paper's published weights belong to ``reduction='code'``, and to raw maps or normalised ones
    as its configs say.

    Args:
        resolution (int): R, the side of the pooled maps. Defaults to 2.
        normalize (bool): Whether each map is divided by its L2 norm. Defaults to True.
        cam_bias (str): 'drop' takes maps without the classifier's bias, as the authors do; 'keep' adds
            it at each position. Defaults to 'drop'.
        reduction (str): 'code' is the mean over all elements, 'paper' sums over the R² positions (R²
            times as much). Defaults to 'code'.
        binarize (bool): Whether the teacher's maps are binarised, at full resolution before pooling.
            Defaults to False.
        binarize_threshold (str): A position is 1 where the map exceeds its 'mean_abs', the mean of the
            absolute values (the authors' code), or its 'mean'. Defaults to 'mean_abs'.
        class_select (str): Which classes are compared in each sample: 'all', or by the teacher's
            logits the 'topk' or the 'bottomk'. Defaults to 'all'.
        num_classes_selected (int, optional): How many for 'topk' and 'bottomk'. Defaults to None.
        legacy (bool): Whether as many classes are taken as the authors' code takes, which is off by
            one: one fewer for 'topk', one more for 'bottomk' (with 100 classes). Defaults to False.
        selection_logits (str): Whether classes are ranked by the 'bias_free' logits (the means of the
            maps; the authors' code) or those of the 'model'. Defaults to 'bias_free'.
        eps (float): The least norm that a map is divided by. Defaults to 1e-6.

    Raises:
        ValueError: If an argument is out of its range, or normalisation would leave nothing to learn.
    """

    compares = 'class_maps'

    def __init__(
        self,
        resolution: int = 2,
        normalize: bool = True,
        cam_bias: str = 'drop',
        reduction: str = 'code',
        binarize: bool = False,
        binarize_threshold: str = 'mean_abs',
        class_select: str = 'all',
        num_classes_selected: int | None = None,
        legacy: bool = False,
        selection_logits: str = 'bias_free',
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        for key, value, choices in (
            ('cam_bias', cam_bias, ('drop', 'keep')),
            ('reduction', reduction, ('code', 'paper')),
            ('binarize_threshold', binarize_threshold, ('mean_abs', 'mean')),
            ('class_select', class_select, ('all', 'topk', 'bottomk')),
            ('selection_logits', selection_logits, ('bias_free', 'model')),
        ):
            if value not in choices:
                raise ValueError(f'{key} is {value!r}; it must be one of {", ".join(choices)}')
        if resolution < 1:
            raise ValueError(f'resolution is {resolution}; it must be at least 1')
        if resolution == 1 and normalize:
            raise ValueError(
                'resolution is 1 with normalize=True, which turns each map into its sign and leaves no '
                'gradient; set normalize=False or a resolution of 2 or more'
            )
        if (class_select == 'all') != (num_classes_selected is None):
            raise ValueError(
                "num_classes_selected goes with class_select 'topk' or 'bottomk'; it is "
                f'{num_classes_selected} with {class_select!r}'
            )
        if num_classes_selected is not None and num_classes_selected < 1:
            raise ValueError(
                f'num_classes_selected is {num_classes_selected}; it must be at least 1'
            )
        if legacy and class_select == 'all':
            raise ValueError("legacy goes with class_select 'topk' or 'bottomk'")
        if legacy and (class_select, num_classes_selected) == ('topk', 1):
            raise ValueError('legacy with the one top class selects none; set legacy=False')
        self.resolution = resolution
        self.normalize = normalize
        self.cam_bias = cam_bias
        self.reduction = reduction
        self.binarize = binarize
        self.binarize_threshold = binarize_threshold
        self.class_select = class_select
        self.num_classes_selected = num_classes_selected
        self.legacy = legacy
        self.selection_logits = selection_logits
        self.eps = eps

    def check(self, student: ClassMaps | Tensor, teacher: ClassMaps | Tensor) -> None:
        """Refuses, before training, a resolution above that of the maps.

        Raises:
            ValueError: If pooling would only repeat positions.
        """
        for owner, maps in (('student', student), ('teacher', teacher)):
            if self.resolution > min(maps.shape[2:]):
                raise ValueError(
                    f'resolution is {self.resolution} and the class maps of the {owner} have only '
                    f'{maps.shape[2]}x{maps.shape[3]} positions; set a smaller resolution'
                )

    def forward(
        self,
        student: ClassMaps | Tensor,
        teacher: ClassMaps | Tensor,
        target: Tensor | None = None,
    ) -> Tensor:
        """Compares class maps; labels are not used.

        Args:
            student (ClassMaps | Tensor): The student's class maps, of shape (N, K, H, W).
            teacher (ClassMaps | Tensor): The teacher's, which may have another H × W.
            target (Tensor, optional): Not used.

        Returns:
            Tensor: A scalar.

        Raises:
            ValueError: If the shapes are not of class maps of the same classes, or fewer classes exist
                than are to be selected.
        """
        student, teacher = ClassMaps.of(student), ClassMaps.of(teacher)
        if student.shape[:2] != teacher.shape[:2]:
            raise ValueError(
                f'class maps of {student.num_classes} classes in the student and '
                f'{teacher.num_classes} in the teacher ({tuple(student.shape)} and '
                f'{tuple(teacher.shape)}) cannot be compared'
            )
        if self.resolution > min(*student.shape[2:], *teacher.shape[2:]):
            warnings.warn(
                f'resolution {self.resolution} is larger than the class maps, so that pooling repeats '
                'positions',
                stacklevel=2,
            )
        maps = [self._pool(student), self._pool(teacher, self.binarize)]
        if self.class_select != 'all':
            index = self._select(teacher)[..., None, None].expand(-1, -1, *maps[0].shape[2:])
            maps = [m.gather(1, index) for m in maps]
        return class_attention_distance(*maps, self.normalize, self.reduction, self.eps)

    def _pool(self, maps: ClassMaps, binarize: bool = False) -> Tensor:
        keep = self.cam_bias == 'keep' and maps.bias is not None
        bias = full_precision(maps.bias)[:, None, None] if keep else 0
        if not binarize:
            return maps.pooled(self.resolution) + bias
        full = maps.full() + bias
        level = full.abs() if self.binarize_threshold == 'mean_abs' else full
        binary = (full > level.mean((2, 3), keepdim=True)).to(full.dtype)
        return F.adaptive_avg_pool2d(binary, self.resolution)

    def _select(self, teacher: ClassMaps) -> Tensor:
        top = self.class_select == 'topk'
        n = self.num_classes_selected + (0 if not self.legacy else -1 if top else 1)
        if n > teacher.num_classes:
            raise ValueError(
                f'num_classes_selected is {self.num_classes_selected}'
                f'{" (one more with legacy=True)" if self.legacy else ""} and there are only '
                f'{teacher.num_classes} classes'
            )
        logits = teacher.logits(bias=self.selection_logits == 'model')
        return logits.topk(n, dim=1, largest=top).indices


@MODELS.register_module()
class ExpKDLoss(nn.Module):
    r"""Exp-KD: at each position the class maps, as a distribution over classes, are to agree.

    A reading of Sun et al., "Explainability-based knowledge distillation", Pattern Recognition 2025,
    after the first version of its public code; the paper's own formulas could not be read. With
    :math:`M_{c} = relu(\frac{1}{D} \sum_d W_{c,d} A_d)` and the softmax over classes at each position,

    .. math:: L = \frac{1}{B} \sum_{b,c,i,j} (softmax(M^s / \tau) - softmax(M^t / \tau))^2.

    The squares split exactly into what concerns the *label*, their part in the mean over positions,
    and the *structure*, the rest; both are logged as ``<term>.label`` and ``<term>.structure``.

    The weight of a published pair is 100 times its ``FEAT_WEIGHT``, with ``reduction='sum'`` as it
    stands and with 'batchmean' times the batch size. Later versions of the public code take the
    softmax over the batch, which leaves the student no gradient.

    Args:
        tau (float): The temperature, above 0. Defaults to 1.
        topk (int, optional): How many classes are compared, those of the teacher's highest logits in
            each sample; where there are fewer classes, all. Defaults to None (all).
        align (str): Maps of two sizes are compared at the 'larger' size, or at the 'student's.
            Defaults to 'larger'.
        channel_reduce (str): 'mean' divides by D, the number of channels, as the authors do; 'sum'
            keeps the scale of the logits. Defaults to 'mean'.
        reduction (str): 'batchmean', or 'sum' over the batch as well. Defaults to 'batchmean'.

    Raises:
        ValueError: If an argument is out of its range.
    """

    compares = 'class_maps'

    def __init__(
        self,
        tau: float = 1.0,
        topk: int | None = None,
        align: str = 'larger',
        channel_reduce: str = 'mean',
        reduction: str = 'batchmean',
    ) -> None:
        super().__init__()
        for key, value, choices in (
            ('align', align, ('larger', 'student')),
            ('channel_reduce', channel_reduce, ('mean', 'sum')),
            ('reduction', reduction, ('batchmean', 'sum')),
        ):
            if value not in choices:
                raise ValueError(f'{key} is {value!r}; it must be one of {", ".join(choices)}')
        if tau <= 0:
            raise ValueError(f'tau is {tau}; a temperature is above 0')
        if topk is not None and topk < 2:
            raise ValueError(f'topk is {topk}; a distribution needs at least 2 classes')
        self.tau = tau
        self.topk = topk
        self.align = align
        self.channel_reduce = channel_reduce
        self.reduction = reduction
        self.logs: dict[str, Tensor] = {}

    def check(self, student: ClassMaps | Tensor, teacher: ClassMaps | Tensor) -> None:
        """Says, before training, where there are fewer classes than ``topk``.

        Raises:
            ValueError: If the maps would be divided on one side only.
        """
        known = [isinstance(e, ClassMaps) and e.weight is not None for e in (student, teacher)]
        if self.channel_reduce == 'mean' and known[0] != known[1]:
            raise ValueError(
                "channel_reduce='mean' divides by the number of channels that maps are made of, which "
                f'the finished maps of the {"student" if known[1] else "teacher"} do not tell (an '
                "ensemble has such maps); set channel_reduce='sum'"
            )
        if self.topk is not None and self.topk > teacher.shape[1]:
            warnings.warn(
                f'topk is {self.topk} and there are only {teacher.shape[1]} classes; all are compared',
                stacklevel=2,
            )

    def forward(
        self,
        student: ClassMaps | Tensor,
        teacher: ClassMaps | Tensor,
        target: Tensor | None = None,
    ) -> Tensor:
        """Compares class maps; labels are not used.

        Args:
            student (ClassMaps | Tensor): The student's class maps, of shape (N, K, H, W).
            teacher (ClassMaps | Tensor): The teacher's, which may have another H × W.
            target (Tensor, optional): Not used.

        Returns:
            Tensor: A scalar.
        """
        student, teacher = ClassMaps.of(student), ClassMaps.of(teacher)
        index = None
        if self.topk is not None and self.topk < teacher.num_classes:
            index = teacher.logits().topk(self.topk, dim=1).indices
        maps = [self._maps(each, index) for each in (student, teacher)]
        sizes = [student.shape[2:]] + ([teacher.shape[2:]] if self.align == 'larger' else [])
        size = [max(sides) for sides in zip(*sizes)]
        student, teacher = (F.softmax(resize_map(m, size) / self.tau, dim=1) for m in maps)
        error = student - teacher.detach()
        share = 1 if self.reduction == 'sum' else 1 / len(error)
        loss = error.square().sum() * share
        with torch.no_grad():
            label = error.mean((2, 3)).square().sum() * error[0, 0].numel() * share
            self.logs = dict(label=label, structure=loss - label)
        return loss

    def _maps(self, maps: ClassMaps, index: Tensor | None) -> Tensor:
        raw = maps.full() if index is None else maps.classes(index)
        # Finished maps do not tell how many channels they were made of
        mean = self.channel_reduce == 'mean' and maps.weight is not None
        return (raw / maps.features.shape[1] if mean else raw).relu()
