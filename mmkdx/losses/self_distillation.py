"""Losses without a teacher network: the target is the student's past or a hand-made teacher."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmengine.logging import MessageHub
from torch import Tensor

from mmkdx.functional import full_precision
from mmkdx.losses.base import DistillLoss, integer, number, one_of, positive
from mmkdx.losses.samples import gather, positions_on
from mmkdx.registry import MODELS


@MODELS.register_module()
class ConfidencePenaltyLoss(DistillLoss):
    r"""Confidence penalty: the negative entropy of the prediction, :math:`-H(p) = \sum_k p_k \log p_k`.

    Source: Pereyra et al., "Regularizing Neural Networks by Penalizing Confident Output
    Distributions", 2017. Mean over samples; it lies in [-log K, 0]. Without a teacher and
    without labels. The published beta (0.1 for images) is the weight of the term.
    """

    compares = 'logits'
    needs = ()

    def forward(self, student: Tensor) -> Tensor:
        """Takes logits of shape (N, K)."""
        log_p = F.log_softmax(full_precision(student), dim=1)
        return (log_p.exp() * log_p).sum(1).mean()


@MODELS.register_module()
class OnlineLabelSmoothingLoss(DistillLoss):
    r"""Online label smoothing (OLS): smooths labels with the predictions of the epoch before.

    Source: Zhang et al., "Delving Deep into Label Smoothing", TIP 2021, with the details of the
    authors' code. The cross entropy to the soft label :math:`S_y`: the mean softmax of the images of
    class y that were classified correctly in the epoch before. It is uniform for a class without one,
    and zero, so that there is no loss, in the first epoch. The published objective is
    ``student_weight=0.5`` and a weight of 0.5.

    Without a teacher. All ranks hold the sums of all after each step, so that a resumed run goes on as
    if it had not stopped. An epoch ends when the runner's counter moves on; a run that counts
    iterations is one epoch.
    """

    compares = 'logits'
    needs = ('class',)

    def __init__(self) -> None:
        super().__init__()
        # The buffer `epoch` as a number, so that the device is asked once an epoch; None, if not yet
        self._epoch: int | None = None

    def connect(self, student: Tensor) -> None:
        """Makes the tables for logits of shape (N, K), which may be fake."""
        classes = student.shape[1]
        self.register_buffer('soft_labels', torch.zeros(classes, classes))
        self.register_buffer('sums', torch.zeros(classes, classes))
        self.register_buffer('counts', torch.zeros(classes))
        # The epoch that the sums are of; -1 before the first step
        self.register_buffer('epoch', torch.tensor(-1))
        self.to(student.device)

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        """Compares logits (N, K) with the soft labels; when training, adds up the predictions."""
        student = full_precision(student)
        # A trial without gradients leaves the tables alone, and other ranks need not take part
        if self.training and torch.is_grad_enabled():
            self._count(student.detach(), target)
        return F.cross_entropy(student, self.soft_labels[target].to(student.dtype))

    @torch.no_grad()
    def _count(self, student: Tensor, target: Tensor) -> None:
        now = MessageHub.get_current_instance().get_info('epoch', 0)
        if now != self._epoch:
            if 0 <= int(self.epoch) != now:
                uniform = torch.full_like(self.sums, 1 / len(self.counts))
                counts = self.counts[:, None]
                self.soft_labels.copy_(torch.where(counts > 0, self.sums / counts, uniform))
                self.sums.zero_()
                self.counts.zero_()
            self.epoch.fill_(now)
            self._epoch = now
        predicted, target = gather(student.softmax(1).float()), gather(target)
        right = (predicted.argmax(1) == target)[:, None]
        # A product, which adds up in the same order each time, also on CUDA
        right = F.one_hot(target, len(self.counts)) * right
        self.sums += right.T.to(predicted.dtype) @ predicted
        self.counts += right.sum(0)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._epoch = None


@MODELS.register_module()
class TfKDRegLoss(DistillLoss):
    r"""Teacher-free distillation by regularisation (Tf-KD): makes the teacher from the label.

    Source: Yuan et al., "Revisiting Knowledge Distillation via Label Smoothing Regularization", CVPR
    2020, Sec. 5. The made-up teacher u gives the label ``correct`` and all other classes the same. Paper
    and code soften it in two ways:

    - 'code': :math:`KL(softmax(u / \tau)\,\|\,softmax(z))`, to which the published values belong. The
      softmax of probabilities is nearly uniform: with 100 classes and tau = 20 the label has 0.0105.
    - 'paper': :math:`\tau^2\,KL(softmax(\log u / \tau)\,\|\,softmax(z / \tau))`, distillation from a
      teacher whose probabilities are u.

    Summed over classes, mean over samples. The authors' code divides by K as well, which its
    ``multiplier`` (100 for ResNet-18 on CIFAR-100) makes up for: its objective ``(1 - alpha) CE +
    alpha · multiplier · KL / K`` is ``student_weight=1 - alpha`` and ``weight=alpha · multiplier / K``.

    Args:
        tau (float): The temperature, above 0. Defaults to 20.
        correct (float): The made-up probability of the label, in (1 / K, 1). Defaults to 0.99.
        version (str): 'code' or 'paper'. Defaults to 'code'.
    """

    compares = 'logits'
    needs = ('class',)

    def __init__(self, tau: float = 20.0, correct: float = 0.99, version: str = 'code') -> None:
        super().__init__()
        self.tau = positive('tau', tau)
        self.correct = number('correct', correct, 0, 1, open_low=True, open_high=True)
        self.version = one_of('version', version, ('code', 'paper'))

    def check(self, student: Tensor) -> None:
        """Refuses, before training, a teacher that prefers another class to the label.

        Raises:
            ValueError: If ``correct`` is no more than one class's share.
        """
        if self.correct * student.shape[1] <= 1:
            raise ValueError(
                f'correct is {self.correct}; with {student.shape[1]} classes it must be above '
                f'1 / {student.shape[1]}'
            )

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        """Compares logits of shape (N, K) with the teacher that is made of classes (N, )."""
        student = full_precision(student)
        made_up = torch.full_like(student, (1 - self.correct) / (student.shape[1] - 1))
        made_up.scatter_(1, target[:, None], self.correct)
        if self.version == 'code':
            teacher, tau = made_up, 1.0
        else:
            teacher, tau = made_up.log(), self.tau
        student, teacher = F.log_softmax(student / tau, 1), F.log_softmax(teacher / self.tau, 1)
        return tau**2 * F.kl_div(student, teacher, reduction='batchmean', log_target=True)


@MODELS.register_module()
class PSKDLoss(DistillLoss):
    r"""Progressive self-knowledge distillation (PS-KD): softens labels with past predictions.

    Source: Kim et al., "Self-Knowledge Distillation with Progressive Refinement of Targets", ICCV 2021,
    with the details of the authors' code. The cross entropy to

    .. math:: (1 - \alpha_t)\,onehot(y) + \alpha_t\,p_{t-1}(x), \qquad
        \alpha_t = \alpha\,\frac{t + 1}{T},

    with epochs t counted from 0, and the softmax :math:`p_{t-1}` of the image as it was trained on last,
    one epoch before. An image that was not seen yet has its label instead.

    This is the whole classification loss, so that it goes with ``student_weight=0``. Without a teacher.
    All ranks and the checkpoint hold the predictions of all samples, ``num_samples · K`` numbers on the
    device (20 MB for CIFAR-100, 5 GB for ImageNet).

    Args:
        num_samples (int): The number of samples in the training data set, without repetitions.
        alpha (float): What past predictions weigh in the last epoch, in [0, 1]. Defaults to 0.8.
        max_epochs (int, optional): T. Defaults to None: the number of epochs of the run, which is 1
            where a run counts iterations.
    """

    compares = 'logits'
    needs = ('class', 'index')

    def __init__(self, num_samples: int, alpha: float = 0.8, max_epochs: int | None = None) -> None:
        super().__init__()
        self.num_samples = integer('num_samples', num_samples, 1)
        self.alpha = number('alpha', alpha, 0, 1)
        self.max_epochs = None if max_epochs is None else integer('max_epochs', max_epochs, 1)

    def connect(self, student: Tensor) -> None:
        """Makes the table of predictions for logits of shape (N, K), which may be fake."""
        # A row of zeros belongs to an image that was not seen yet
        self.register_buffer('predictions', torch.zeros(self.num_samples, student.shape[1]))
        self.to(student.device)

    def forward(self, student: Tensor, target: Tensor, index: Tensor) -> Tensor:
        """Compares logits (N, K) with softened labels; when training, remembers the predictions.

        Raises:
            ValueError: If a position is not below ``num_samples``.
        """
        index = positions_on(student.device, index, self.num_samples)
        student = full_precision(student)
        label = F.one_hot(target, student.shape[1]).to(student.dtype)
        past = self.predictions[index].to(student.dtype)
        past = torch.where(past.sum(1, keepdim=True) > 0, past, label)
        # A trial without gradients leaves the table alone, and other ranks need not take part
        if self.training and torch.is_grad_enabled():
            self._remember(index, student.detach().softmax(1).to(self.predictions.dtype))
        return F.cross_entropy(student, label.lerp(past, self.share()))

    def _remember(self, index: Tensor, predicted: Tensor) -> None:
        index, predicted = gather(index), gather(predicted)
        # If an image is twice in a batch, the last one counts, on each rank and device
        order = index.argsort(stable=True)
        last = order[torch.searchsorted(index[order], index, right=True) - 1]
        self.predictions[index] = predicted[last]

    def share(self) -> float:
        """What past predictions weigh now, by the runner's counters (epoch 0 of 1 without a runner)."""
        hub = MessageHub.get_current_instance()
        epochs = self.max_epochs or hub.get_info('max_epochs', 1)
        return self.alpha * min((hub.get_info('epoch', 0) + 1) / epochs, 1.0)
