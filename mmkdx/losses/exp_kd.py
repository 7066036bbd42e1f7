"""Exp-KD: the maps of classes as a distribution over classes at each position."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkdx.functional import ClassMaps, full_precision, resize_map
from mmkdx.losses.base import DistillLoss, flag, integer, one_of, positive
from mmkdx.registry import MODELS


@MODELS.register_module()
class ExpKDLoss(DistillLoss):
    r"""Exp-KD: matches the class maps at each position, as distributions over classes.

    A reading of Sun et al., "Explainability-based knowledge distillation", Pattern Recognition 2025,
    after the first version of its public code; we could not read the paper's formulas. With
    :math:`M_{c} = relu(\frac{1}{D} \sum_d W_{c,d} A_d)` and the softmax over classes at each position,

    .. math:: L = \frac{1}{B} \sum_{b,c,i,j} (softmax(M^s / \tau) - softmax(M^t / \tau))^2.

    Logged are the part of the squares in the mean over positions, ``<term>.label``, and the rest,
    ``<term>.structure``.

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
            keeps the scale of the logits. Where neither model ends in one linear layer it is always
            'sum'. Defaults to 'mean'.
        remainder (bool): Whether the bias, or what any other head has beside its maps, takes the place
            of the relu: it is added at each position, so that the mean of what the softmax takes is the
            logit. It goes with 'sum'. Defaults to False, as the authors do.
        reduction (str): 'batchmean', or 'sum' over the batch as well. Defaults to 'batchmean'.
    """

    compares = 'class_maps'
    activation = 'softmax'

    def __init__(
        self,
        tau: float = 1.0,
        topk: int | None = None,
        align: str = 'larger',
        channel_reduce: str = 'mean',
        reduction: str = 'batchmean',
        remainder: bool = False,
    ) -> None:
        super().__init__()
        self.remainder = flag('remainder', remainder)
        self.tau = positive('tau', tau)
        self.topk = None if topk is None else integer('topk', topk, 2)
        self.align = one_of('align', align, ('larger', 'student'))
        self.channel_reduce = one_of('channel_reduce', channel_reduce, ('mean', 'sum'))
        self.reduction = one_of('reduction', reduction, ('batchmean', 'sum'))
        if remainder and channel_reduce == 'mean':
            raise ValueError(
                "remainder=True goes with channel_reduce='sum', the scale of the logits"
            )

    def check(self, student: ClassMaps | Tensor, teacher: ClassMaps | Tensor) -> None:
        """Says, before training, where there are fewer classes than ``topk``.

        Raises:
            ValueError: If the maps would be divided on one side only.
        """
        known = [isinstance(e, ClassMaps) and e.weight is not None for e in (student, teacher)]
        if self.channel_reduce == 'mean' and known[0] != known[1]:
            raise ValueError(
                "channel_reduce='mean' divides by the number of channels, and the class maps of the "
                f'{"student" if known[1] else "teacher"} do not tell it (as with an ensemble, or a '
                "head of several layers); set channel_reduce='sum'"
            )
        if self.topk is not None and self.topk > teacher.shape[1]:
            warnings.warn(
                f'topk is {self.topk} and there are only {teacher.shape[1]} classes; all are compared',
                stacklevel=2,
            )

    def forward(self, student: ClassMaps | Tensor, teacher: ClassMaps | Tensor) -> Tensor:
        """Compares class maps (N, K, H, W); the teacher's H and W may differ."""
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
        if self.remainder:
            rest = maps.remainder()
            rest = raw.new_zeros(1) if rest is None else full_precision(rest)
            rest = rest.expand(raw.shape[0], maps.num_classes)
            return raw + (rest if index is None else rest.gather(1, index))[..., None, None]
        # Finished maps do not tell the number of channels behind them
        mean = self.channel_reduce == 'mean' and maps.weight is not None
        return (raw / maps.features.shape[1] if mean else raw).relu()
