"""Losses between the maps of classes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mmkdx.functional import ClassMaps, full_precision
from mmkdx.losses.base import DistillLoss, flag, integer, one_of
from mmkdx.registry import MODELS


def class_attention_distance(
    student: Tensor, teacher: Tensor, normalize: bool = True, reduction: str = 'code'
) -> Tensor:
    """The distance of CAT-KD between class maps (N, K, R, R); see ``CATLoss``.

    Normalised, it lies in [0, 4 / R²] ('code') or [0, 4] ('paper').
    """
    student, teacher = (full_precision(maps).flatten(2) for maps in (student, teacher))
    positions = student.shape[2]
    if normalize:
        student, teacher = (F.normalize(maps, dim=2, eps=1e-6) for maps in (student, teacher))
    return F.mse_loss(student, teacher) * (positions if reduction == 'paper' else 1)


@MODELS.register_module()
class CATLoss(DistillLoss):
    """Class attention transfer (CAT-KD): the student's class maps are to look like the teacher's.

    Source: Guo et al., "Class Attention Transfer Based Knowledge Distillation", CVPR 2023, Sec. 3. The
    maps of all classes are average-pooled to R × R and, with ``normalize``, divided by their L2 norms;
    the loss is their mean squared difference. The paper adds it to the classification loss, without a
    temperature; its label-free CAT is ``student_weight=0`` of the ``Distiller``. The published weights
    belong to ``reduction='code'``, and to raw or normalised maps as the paper's configs say.

    Args:
        resolution (int): R, the side of the pooled maps. Defaults to 2.
        normalize (bool): Whether each map is divided by its L2 norm (1e-6 if that is less). Defaults
            to True.
        cam_bias (str): 'drop' takes maps without the classifier's bias, as the authors do; 'keep' adds
            it, or the remainder of any other head, at each position. Defaults to 'drop'.
        reduction (str): 'code' is the mean over all elements, 'paper' sums over the R² positions (R²
            times as much). Defaults to 'code'.
        binarize (bool): Whether the teacher's maps are binarised, at full resolution before pooling: 1
            where a map exceeds the mean of its absolute values, as in the authors' code. Defaults to
            False.
        class_select (str): Which classes are compared in each sample: 'all', or those of the highest
            ('topk') or lowest ('bottomk') means of the teacher's maps. Defaults to 'all'.
        num_classes_selected (int, optional): How many for 'topk' and 'bottomk'. Defaults to None.
        legacy (bool): Whether as many classes are taken as the authors' code takes, which is off by
            one: one fewer for 'topk', one more for 'bottomk' (with 100 classes). Defaults to False.
    """

    compares = 'class_maps'

    def __init__(
        self,
        resolution: int = 2,
        normalize: bool = True,
        cam_bias: str = 'drop',
        reduction: str = 'code',
        binarize: bool = False,
        class_select: str = 'all',
        num_classes_selected: int | None = None,
        legacy: bool = False,
    ) -> None:
        super().__init__()
        self.resolution = integer('resolution', resolution, 1)
        self.normalize = flag('normalize', normalize)
        self.cam_bias = one_of('cam_bias', cam_bias, ('drop', 'keep'))
        self.reduction = one_of('reduction', reduction, ('code', 'paper'))
        self.binarize = flag('binarize', binarize)
        self.class_select = one_of('class_select', class_select, ('all', 'topk', 'bottomk'))
        self.legacy = flag('legacy', legacy)
        if resolution == 1 and normalize:
            raise ValueError(
                'resolution is 1 with normalize=True, which turns each map into its sign and leaves no '
                'gradient; set normalize=False or a resolution of 2 or more'
            )
        if (class_select == 'all') != (num_classes_selected is None):
            raise ValueError(
                "num_classes_selected goes with class_select 'topk' or 'bottomk', and only with these"
            )
        if legacy and (class_select, num_classes_selected) in (('all', None), ('topk', 1)):
            raise ValueError(
                "legacy goes with class_select 'bottomk', or 'topk' with 2 classes or more"
            )
        if num_classes_selected is not None:
            integer('num_classes_selected', num_classes_selected, 1)
        self.num_classes_selected = num_classes_selected

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

    def forward(self, student: ClassMaps | Tensor, teacher: ClassMaps | Tensor) -> Tensor:
        """Compares class maps (N, K, H, W); the teacher's H and W may differ.

        Raises:
            ValueError: If images or classes differ, or fewer classes exist than are to be selected.
        """
        student, teacher = ClassMaps.of(student), ClassMaps.of(teacher)
        if student.shape[:2] != teacher.shape[:2]:
            raise ValueError(
                f'class maps of shapes {tuple(student.shape)} and {tuple(teacher.shape)} cannot be '
                'compared; images and classes must be the same'
            )
        maps = [self._pool(student), self._pool(teacher, self.binarize)]
        if self.class_select != 'all':
            index = self._select(teacher)[..., None, None].expand(-1, -1, *maps[0].shape[2:])
            maps = [m.gather(1, index) for m in maps]
        return class_attention_distance(*maps, self.normalize, self.reduction)

    def _pool(self, maps: ClassMaps, binarize: bool = False) -> Tensor:
        bias = maps.remainder() if self.cam_bias == 'keep' else None
        bias = 0 if bias is None else full_precision(bias)[..., None, None]
        if not binarize:
            return maps.pooled(self.resolution) + bias
        full = maps.full() + bias
        binary = (full > full.abs().mean((2, 3), keepdim=True)).to(full.dtype)
        return F.adaptive_avg_pool2d(binary, self.resolution)

    def _select(self, teacher: ClassMaps) -> Tensor:
        top = self.class_select == 'topk'
        n = self.num_classes_selected + (0 if not self.legacy else -1 if top else 1)
        if n > teacher.num_classes:
            raise ValueError(f'{n} classes are to be selected, and there are {teacher.num_classes}')
        return teacher.logits(bias=False).topk(n, dim=1, largest=top).indices
