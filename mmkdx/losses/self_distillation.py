"""Losses of a student that teaches itself by its logits, and what they are compared with."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmengine.dist import all_gather
from mmengine.logging import MessageHub
from torch import Tensor, nn

from mmkdx.functional import full_precision
from mmkdx.losses.logit import KLDivLoss
from mmkdx.registry import MODELS


@MODELS.register_module()
class ConfidencePenaltyLoss(nn.Module):
    r"""Confidence penalty: the negative entropy of the prediction, :math:`-H(p) = \sum_k p_k \log p_k`.

    Source: Pereyra et al., "Regularizing Neural Networks by Penalizing Confident Output
    Distributions", 2017. Mean over samples; it lies in [-log K, 0]. Without a teacher and
    without labels. The published beta (0.1 for images) is the weight of the term.
    """

    compares = 'logits'
    needs_teacher = False

    def forward(
        self, student: Tensor, teacher: Tensor | None = None, target: Tensor | None = None
    ) -> Tensor:
        """Takes logits of shape (N, K); the others are not used."""
        log_p = F.log_softmax(full_precision(student), dim=1)
        return (log_p.exp() * log_p).sum(1).mean()


@MODELS.register_module()
class OnlineLabelSmoothingLoss(nn.Module):
    r"""Online label smoothing (OLS): labels are smoothed by what was predicted one epoch before.

    Source: Zhang et al., "Delving Deep into Label Smoothing", TIP 2021, with the details of the
    authors' code. The cross entropy to the soft label :math:`S_y`, the mean of the softmax over the
    images of class y that were classified correctly in the epoch before, as they were trained on;
    uniform for a class without one, and zero, so that there is no loss, in the first epoch. The
    published objective is 0.5 times the cross entropy to the label plus 0.5 times this:
    ``student_weight=0.5`` and a weight of 0.5.

    Without a teacher. The sums of an epoch are those of all ranks after each step, so that a
    checkpoint of one rank holds all, and a resumed run goes on as if it had not stopped. An epoch ends
    when the runner's counter moves on; a run that counts iterations is one epoch.
    """

    compares = 'logits'
    needs_teacher = False
    hard_labels = True

    def __init__(self) -> None:
        super().__init__()
        # The buffer `epoch` as a number, so that the device is asked once an epoch; None, if not yet
        self._epoch: int | None = None

    def connect(self, student: Tensor, teacher: Tensor | None = None) -> None:
        """Makes the tables for logits of shape (N, K), which may be fake."""
        classes = student.shape[1]
        self.register_buffer('soft_labels', torch.zeros(classes, classes))
        self.register_buffer('sums', torch.zeros(classes, classes))
        self.register_buffer('counts', torch.zeros(classes))
        # The epoch that the sums are of; -1 before the first step
        self.register_buffer('epoch', torch.tensor(-1))
        self.to(student.device)

    def forward(
        self, student: Tensor, teacher: Tensor | None = None, target: Tensor | None = None
    ) -> Tensor:
        """The cross entropy to the soft labels; when training, the predictions are added up.

        Args:
            student (Tensor): The logits, of shape (N, K).
            teacher (Tensor, optional): Not used.
            target (Tensor): The classes, of shape (N, ).

        Returns:
            Tensor: A scalar.

        Raises:
            ValueError: If there are no classes.
        """
        _require('OnlineLabelSmoothingLoss', target=target)
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
        predicted, target = _gather(student.softmax(1).float()), _gather(target)
        right = (predicted.argmax(1) == target)[:, None]
        # A product, which adds up in the same order each time, also on CUDA
        right = F.one_hot(target, len(self.counts)) * right
        self.sums += right.T.to(predicted.dtype) @ predicted
        self.counts += right.sum(0)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._epoch = None


@MODELS.register_module()
class TfKDRegLoss(nn.Module):
    r"""Teacher-free distillation by regularisation (Tf-KD): the teacher is made up from the label.

    Source: Yuan et al., "Revisiting Knowledge Distillation via Label Smoothing Regularization", CVPR
    2020, Sec. 5. The made-up teacher u gives the label ``correct`` and all other classes the same. Paper
    and code soften it in two ways:

    - 'code': :math:`KL(softmax(u / \tau)\,\|\,softmax(z))`. The authors' code takes the softmax of
      probabilities, so that the teacher is nearly uniform (with 100 classes and tau = 20 it gives the
      label 0.0105), and does not soften the student. The published values belong to it.
    - 'paper': :math:`\tau^2\,KL(softmax(\log u / \tau)\,\|\,softmax(z / \tau))`, distillation from a
      teacher whose probabilities are u.

    Summed over classes, mean over samples. The authors' code divides by K as well, which its
    ``multiplier`` (100 for ResNet-18 on CIFAR-100) makes up for: its objective ``(1 - alpha) CE +
    alpha · multiplier · KL / K`` is ``student_weight=1 - alpha`` and ``weight=alpha · multiplier / K``.

    Args:
        tau (float): The temperature, above 0. Defaults to 20.
        correct (float): The made-up probability of the label, in (1 / K, 1). Defaults to 0.99.
        version (str): 'code' or 'paper'. Defaults to 'code'.

    Raises:
        ValueError: If an argument is out of its range.
    """

    compares = 'logits'
    needs_teacher = False
    hard_labels = True

    def __init__(self, tau: float = 20.0, correct: float = 0.99, version: str = 'code') -> None:
        super().__init__()
        if tau <= 0:
            raise ValueError(f'tau is {tau}; a temperature is above 0')
        if not 0 < correct < 1:
            raise ValueError(f'correct is {correct}; it must be between 0 and 1')
        if version not in ('code', 'paper'):
            raise ValueError(f'version is {version!r}; it must be one of code, paper')
        self.tau = tau
        self.correct = correct
        self.version = version

    def check(self, student: Tensor, teacher: Tensor | None = None) -> None:
        """Refuses, before training, a teacher that prefers another class to the label.

        Raises:
            ValueError: If ``correct`` is no more than one class's share.
        """
        if self.correct * student.shape[1] <= 1:
            raise ValueError(
                f'correct is {self.correct}; with {student.shape[1]} classes it must be above '
                f'1 / {student.shape[1]}'
            )

    def forward(
        self, student: Tensor, teacher: Tensor | None = None, target: Tensor | None = None
    ) -> Tensor:
        """Compares logits of shape (N, K) with the teacher that is made of classes (N, ).

        Raises:
            ValueError: If there are no classes.
        """
        _require('TfKDRegLoss', target=target)
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
class PSKDLoss(nn.Module):
    r"""Progressive self-knowledge distillation (PS-KD): labels are softened by one's past prediction.

    Source: Kim et al., "Self-Knowledge Distillation with Progressive Refinement of Targets", ICCV 2021,
    with the details of the authors' code. The cross entropy to

    .. math:: (1 - \alpha_t)\,onehot(y) + \alpha_t\,p_{t-1}(x), \qquad
        \alpha_t = \alpha\,\frac{t + 1}{T},

    with epochs t counted from 0, and the softmax :math:`p_{t-1}` of the image as it was trained on one
    epoch before. An image that was not seen yet has its label instead. Where an image comes more than
    once in an epoch (``RepeatDataset``), it is the softmax of the last time.

    This is the whole classification loss, so that it goes with ``student_weight=0``. Without a teacher.

    All ranks hold the predictions of all samples, ``num_samples · K`` numbers on the device (20 MB for
    CIFAR-100, 5 GB for ImageNet). They are part of the checkpoint. Positions are those in one data
    set: where data sets are joined (``ConcatDataset``), samples of two of them have the same.

    Args:
        num_samples (int): The number of samples in the training data set, without repetitions.
        alpha (float): What past predictions weigh in the last epoch, in [0, 1]. Defaults to 0.8.
        max_epochs (int, optional): T. Defaults to None: the number of epochs of the run, which is 1
            where a run counts iterations.

    Raises:
        ValueError: If an argument is out of its range.
    """

    compares = 'logits'
    needs_teacher = False
    hard_labels = True
    sample_index = True

    def __init__(self, num_samples: int, alpha: float = 0.8, max_epochs: int | None = None) -> None:
        super().__init__()
        for key, value in dict(num_samples=num_samples, max_epochs=max_epochs).items():
            if value is not None and value < 1:
                raise ValueError(f'{key} is {value}; it must be at least 1')
        if not 0 <= alpha <= 1:
            raise ValueError(f'alpha is {alpha}; it must be between 0 and 1')
        self.num_samples = num_samples
        self.alpha = alpha
        self.max_epochs = max_epochs

    def connect(self, student: Tensor, teacher: Tensor | None = None) -> None:
        """Makes the table of predictions for logits of shape (N, K), which may be fake."""
        # A row of zeros belongs to an image that was not seen yet
        self.register_buffer('predictions', torch.zeros(self.num_samples, student.shape[1]))
        self.to(student.device)

    def forward(
        self,
        student: Tensor,
        teacher: Tensor | None = None,
        target: Tensor | None = None,
        index: Tensor | None = None,
    ) -> Tensor:
        """The cross entropy to the softened labels; when training, predictions are remembered.

        Args:
            student (Tensor): The logits, of shape (N, K).
            teacher (Tensor, optional): Not used.
            target (Tensor): The classes, of shape (N, ).
            index (Tensor): The samples' positions in the data set, of shape (N, ). On the CPU it is
                looked at without waiting for the device.

        Returns:
            Tensor: A scalar.

        Raises:
            ValueError: If there are no classes or positions, or a position is not below
                ``num_samples``.
        """
        _require('PSKDLoss', target=target, index=index)
        last = int(index.max())
        if last >= self.num_samples:
            raise ValueError(
                f'num_samples is {self.num_samples}, and there is a sample at position {last}; set it '
                'to the size of the training data set'
            )
        index = index.to(student.device, non_blocking=True)
        student = full_precision(student)
        label = F.one_hot(target, student.shape[1]).to(student.dtype)
        past = self.predictions[index].to(student.dtype)
        past = torch.where(past.sum(1, keepdim=True) > 0, past, label)
        # A trial without gradients leaves the table alone, and other ranks need not take part
        if self.training and torch.is_grad_enabled():
            self._remember(index, student.detach().softmax(1).to(self.predictions.dtype))
        return F.cross_entropy(student, label.lerp(past, self.share()))

    def _remember(self, index: Tensor, predicted: Tensor) -> None:
        index, predicted = _gather(index), _gather(predicted)
        # Where an image comes twice in a batch, the last one counts, on each rank and device alike
        order = index.argsort(stable=True)
        last = order[torch.searchsorted(index[order], index, right=True) - 1]
        self.predictions[index] = predicted[last]

    def share(self) -> float:
        """What past predictions weigh now, by the runner's counters (epoch 0 of 1 without a runner)."""
        hub = MessageHub.get_current_instance()
        epochs = self.max_epochs or hub.get_info('max_epochs', 1)
        return self.alpha * min((hub.get_info('epoch', 0) + 1) / epochs, 1.0)


@MODELS.register_module()
class CSKDLoss(KLDivLoss):
    r"""Class-wise self-knowledge distillation (CS-KD): images of a class are to be seen alike.

    Source: Yun et al., "Regularizing Class-wise Predictions via Self-knowledge Distillation", CVPR
    2020, after the authors' code. With the logits z of an image and z' of another image of its class,
    which get no gradient,

    .. math:: L = \tau^2\,KL(softmax(z' / \tau)\,\|\,softmax(z / \tau)),

    mean over pairs. The published lambda (1; 3 for CUB-200-2011) is the weight of the term.

    A batch holds pairs one after the other, x0, x0', x1, x1', ..., as the sampler ``PairSampler`` with
    ``same='class'`` arranges them. Two things are not as in the authors' code, which runs the two halves
    one after the other: the student's own loss is the mean over both images of each pair, not over x
    alone, and batch norm sees both at once.

    Without a teacher. On the CPU the classes of all pairs are looked at, on another device those of the
    first batch, so that steps do not wait for it.

    Args:
        tau (float): The temperature, above 0. Defaults to 4.

    Raises:
        ValueError: If ``tau`` is not above 0.
    """

    needs_teacher = False
    hard_labels = True

    def __init__(self, tau: float = 4.0) -> None:
        super().__init__(tau)
        self._looked = False

    def forward(
        self, student: Tensor, teacher: Tensor | None = None, target: Tensor | None = None
    ) -> Tensor:
        """Compares the logits (N, K) of pairs of images, of classes (N, ).

        Raises:
            ValueError: If there are no classes, or N is odd, or the images of a pair are of two
                classes.
        """
        _require('CSKDLoss', target=target)
        own, other = _pairs('CSKDLoss', 'class', student)
        if not self._looked or target.device.type == 'cpu':
            _require_equal('CSKDLoss', 'class', target)
            self._looked = True
        return super().forward(own, other.detach())


@MODELS.register_module()
class DDGSDLoss(nn.Module):
    r"""Data-distortion guided self-distillation (DDGSD): two views of an image are to be seen alike.

    Source: Xu and Liu, "Data-Distortion Guided Self-Distillation for Deep Neural Networks", AAAI 2019.
    Of two random views a and b of an image,

    .. math:: L = \tau^2 (KL(p_a\,\|\,p_b) + KL(p_b\,\|\,p_a)) + \mu\,D(a, b),

    mean over pairs, with gradients into both views. D is the mean squared difference of the logits
    (``at='logits'``), as in a public re-implementation, whose code was read; or of the features or
    embeddings that stand first in ``at=['embedding', 'logits']``. The paper asks for equal
    *distributions* of global features over a batch, which is less than equal features of each pair; its
    formula could not be read. The parts, without their weights, are logged as ``<term>.kl`` and
    ``<term>.discrepancy``.

    A batch holds the two views one after the other, a0, b0, a1, b1, ..., as the sampler ``PairSampler``
    with ``same='image'`` arranges them. The paper's objective sums the cross entropies of both views,
    and the student's own loss is their mean: ``student_weight=2`` and ``weight=lambda``. The
    re-implementation's KL is a mean over the K classes, without tau²: its lambda and mu are
    ``weight=lambda / (K tau²)`` and ``mu=mu / weight``.

    Without a teacher and without labels.

    Args:
        tau (float): The temperature, above 0. Defaults to 1.
        mu (float): The weight of the discrepancy beside the divergences. Defaults to 5e-4.

    Raises:
        ValueError: If an argument is out of its range.
    """

    compares = 'anything'
    needs_teacher = False
    sample_index = True

    def __init__(self, tau: float = 1.0, mu: float = 5e-4) -> None:
        super().__init__()
        if tau <= 0:
            raise ValueError(f'tau is {tau}; a temperature is above 0')
        if mu < 0:
            raise ValueError(f'mu is {mu}; it must not be negative')
        self.tau = tau
        self.mu = mu
        self.logs: dict[str, Tensor] = {}

    def forward(
        self,
        student: Tensor | list[Tensor],
        teacher: Tensor | None = None,
        target: Tensor | None = None,
        index: Tensor | None = None,
    ) -> Tensor:
        """Compares the two views of images; labels are not used.

        Args:
            student (Tensor | list[Tensor]): The logits, of shape (N, K); or features of shape
                (N, ...) and the logits.
            teacher (Tensor, optional): Not used.
            target (Tensor, optional): Not used.
            index (Tensor, optional): The samples' positions in the data set, of shape (N, ), to tell
                whether there are two views of each image. Defaults to None.

        Returns:
            Tensor: A scalar.

        Raises:
            ValueError: If ``student`` is something else, N is odd, or the views of a pair are of two
                images.
        """
        values = student if isinstance(student, list) else [student]
        if len(values) > 2 or not all(isinstance(each, Tensor) for each in values):
            raise ValueError(
                "DDGSDLoss compares logits, or tensors of features and logits: set at to 'logits' or "
                "to ['embedding', 'logits']"
            )
        if values[-1].dim() != 2:
            raise ValueError(
                'DDGSDLoss needs logits of shape (N, K), as the last of its taps (at), which holds '
                f'{tuple(values[-1].shape)}'
            )
        pairs = [_pairs('DDGSDLoss', 'image', full_precision(each)) for each in values]
        # A trial before training has made-up positions
        if index is not None and torch.is_grad_enabled():
            _require_equal('DDGSDLoss', 'image', index)
        a, b = (F.log_softmax(each / self.tau, dim=1) for each in pairs[-1])
        divergences = (
            F.kl_div(*views, reduction='batchmean', log_target=True) for views in ((a, b), (b, a))
        )
        kl = self.tau**2 * sum(divergences)
        discrepancy = F.mse_loss(*pairs[0])
        self.logs = dict(kl=kl.detach(), discrepancy=discrepancy.detach())
        return kl + self.mu * discrepancy


def _require(loss: str, **inputs: Tensor | None) -> None:
    """Refuses a missing input of a loss."""
    words = dict(
        target='the class of each sample as target',
        index='the position of each sample in the data set as index',
    )
    for key, value in inputs.items():
        if value is None:
            raise ValueError(f'{loss} needs {words[key]}, and there is none')


def _pairs(loss: str, same: str, values: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the second of each pair."""
    if len(values) % 2:
        raise ValueError(
            f'{loss} needs pairs of images, and the batch has {len(values)}; set an even '
            f"train_dataloader.batch_size and train_dataloader.sampler=dict(type='PairSampler', "
            f'same={same!r})'
        )
    return values[0::2], values[1::2]


def _require_equal(loss: str, same: str, keys: Tensor) -> None:
    """Refuses pairs whose two images are not what they are to be."""
    differ = (keys[0::2] != keys[1::2]).nonzero()
    if len(differ):
        first = 2 * int(differ[0])
        what = 'of the classes' if same == 'class' else 'at the positions'
        raise ValueError(
            f'{loss} needs pairs of the same {same} one after the other, and the images {first} and '
            f'{first + 1} of the batch are {what} {int(keys[first])} and {int(keys[first + 1])}; set '
            f"train_dataloader.sampler=dict(type='PairSampler', same={same!r})"
        )


def _gather(values: Tensor) -> Tensor:
    """What all ranks have, along the first axis."""
    return torch.cat(all_gather(values.contiguous()))
