"""Losses between the maps of classes."""

from __future__ import annotations

import warnings

import torch.nn.functional as F
from torch import Tensor, nn

from mmkdx.functional import ClassMaps, full_precision
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
        self.resolution = resolution
        self.normalize = normalize
        self.cam_bias = cam_bias
        self.reduction = reduction
        self.binarize = binarize
        self.binarize_threshold = binarize_threshold
        self.class_select = class_select
        self.num_classes_selected = num_classes_selected
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
        n = self.num_classes_selected
        if n > teacher.num_classes:
            raise ValueError(
                f'num_classes_selected is {n} and there are only {teacher.num_classes} classes'
            )
        logits = teacher.logits(bias=self.selection_logits == 'model')
        return logits.topk(n, dim=1, largest=self.class_select == 'topk').indices
