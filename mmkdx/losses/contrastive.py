"""CRD: contrastive representation distillation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmengine.dist import all_gather, all_reduce
from torch import Tensor, nn

from mmkdx.functional import full_precision
from mmkdx.registry import MODELS


@MODELS.register_module()
class CRDLoss(nn.Module):
    r"""Contrastive representation distillation: a sample's two embeddings are to find each other.

    Source: Tian et al., "Contrastive Representation Distillation", ICLR 2020, Sec. 3, with the noise
    contrastive estimate and the memory banks of the authors' code. Both embeddings are projected to
    ``feat_dim`` dimensions and divided by their norms. The student's is to be told from negatives by
    the teacher's, :math:`P = \exp(\langle s, t \rangle / \tau) / Z`, and the other way round:

    .. math:: L = -\log \frac{P_0}{P_0 + K / M} - \sum_{k=1}^{K} \log \frac{K / M}{P_k + K / M}

    for both, mean over samples, with K negatives and M samples in the data set. Negatives are drawn
    uniformly, with replacement, from the samples of other classes; a sample whose class was not seen
    yet counts as one of another.

    A bank holds each sample's last embedding (a moving average) for each network, ``num_samples ·
    feat_dim`` numbers; all ranks hold the same. Banks are not part of a checkpoint: a resumed run fills
    them anew, within an epoch. Z is estimated from the first batch, and is part of it. A step needs
    memory for 2 · N · (K + 1) · ``feat_dim`` numbers.

    Args:
        num_samples (int): M, the number of samples in the training data set.
        feat_dim (int): Dimensions of the projected embeddings. Defaults to 128.
        negatives (int): K. Defaults to 16384.
        tau (float): The temperature, above 0. Defaults to 0.07.
        momentum (float): The share of what the banks keep, in [0, 1). Defaults to 0.5.

    Raises:
        ValueError: If an argument is out of its range.
    """

    compares = 'anything'
    hard_labels = True
    sample_index = True

    def __init__(
        self,
        num_samples: int,
        feat_dim: int = 128,
        negatives: int = 16384,
        tau: float = 0.07,
        momentum: float = 0.5,
    ) -> None:
        super().__init__()
        for key, value in dict(
            num_samples=num_samples, feat_dim=feat_dim, negatives=negatives
        ).items():
            if value < 1:
                raise ValueError(f'{key} is {value}; it must be at least 1')
        if tau <= 0:
            raise ValueError(f'tau is {tau}; a temperature is above 0')
        if not 0 <= momentum < 1:
            raise ValueError(f'momentum is {momentum}; it must be in [0, 1)')
        self.num_samples = num_samples
        self.feat_dim = feat_dim
        self.negatives = negatives
        self.tau = tau
        self.momentum = momentum

    def connect(self, student: Tensor, teacher: Tensor) -> None:
        """Builds the projections and the banks for embeddings (N, D), which may be fake.

        Raises:
            ValueError: If these are not embeddings.
        """
        for owner, each in (('student', student), ('teacher', teacher)):
            if not isinstance(each, Tensor) or each.dim() != 2:
                shape = tuple(each.shape) if hasattr(each, 'shape') else type(each).__name__
                raise ValueError(
                    f"embeddings of shape (N, D) are needed, and the {owner}'s tap holds {shape}; use "
                    "the tap 'embedding'"
                )
        self.project_student = nn.Linear(student.shape[1], self.feat_dim)
        self.project_teacher = nn.Linear(teacher.shape[1], self.feat_dim)
        limit = (3 / self.feat_dim) ** 0.5
        for name in ('student', 'teacher'):
            bank = torch.empty(self.num_samples, self.feat_dim).uniform_(-limit, limit)
            self.register_buffer(f'{name}_bank', bank, persistent=False)
        labels = torch.full((self.num_samples,), -1)
        self.register_buffer('labels', labels, persistent=False)
        self.register_buffer('normalisers', torch.zeros(2))  # Z; 0 until the first batch
        self.to(student.device)

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        index: Tensor | None = None,
    ) -> Tensor:
        """Contrasts embeddings, and puts them into the banks when training.

        Args:
            student (Tensor): The student's embeddings, of shape (N, D).
            teacher (Tensor): The teacher's, of shape (N, E).
            target (Tensor): The classes, of shape (N, ).
            index (Tensor): The samples' positions in the data set, of shape (N, ).

        Returns:
            Tensor: A scalar.

        Raises:
            ValueError: If there are no classes, or a position is not below ``num_samples`` (on a CUDA
                device that is torch's own error).
        """
        if target is None:
            raise ValueError('CRDLoss needs the class of each sample as target, and there is none')
        if not index.is_cuda and index.max() >= self.num_samples:
            raise ValueError(
                f'num_samples is {self.num_samples}, and there is a sample at position '
                f'{int(index.max())}; set it to the size of the training data set'
            )
        student = F.normalize(self.project_student(full_precision(student)), dim=1)
        teacher = F.normalize(self.project_teacher(full_precision(teacher)), dim=1)
        if self.training:
            self.labels[_gather(index)] = _gather(target)
        chosen = torch.cat([index[:, None], self.draw(target)], 1)
        # Each network's embedding is contrasted with the other's bank
        pairs = (student, self.teacher_bank), (teacher, self.student_bank)
        scores = [
            torch.einsum('nd,nkd->nk', each, bank[chosen]).div(self.tau).exp()
            for each, bank in pairs
        ]
        self._estimate(scores)
        loss = sum(self._noise_contrast(*each) for each in zip(scores, self.normalisers.clone()))
        if self.training:
            self._remember(student, teacher, index)
        return loss

    def draw(self, target: Tensor) -> Tensor:
        """Draws the positions of negatives, of shape (N, K), for samples of classes (N, )."""
        order = self.labels.argsort()
        ordered = self.labels[order]
        start = torch.searchsorted(ordered, target)
        count = torch.searchsorted(ordered, target, right=True) - start
        others = (self.num_samples - count).clamp(min=1)[:, None]
        share = torch.rand(len(target), self.negatives, device=target.device, dtype=torch.float64)
        rank = (share * others).long()
        # The block of the own class is passed over
        rank = rank + torch.where(rank >= start[:, None], count[:, None], 0)
        return order[rank.clamp(max=self.num_samples - 1)]

    def _noise_contrast(self, scores: Tensor, normaliser: Tensor) -> Tensor:
        probability = scores / normaliser
        noise = self.negatives / self.num_samples
        found = (probability[:, 0] / (probability[:, 0] + noise + 1e-7)).log()
        told_apart = (noise / (probability[:, 1:] + noise + 1e-7)).log().sum(1)
        return -(found + told_apart).mean()

    @torch.no_grad()
    def _estimate(self, scores: list[Tensor]) -> None:
        batch = torch.stack([each.mean() for each in scores]) * self.num_samples
        all_reduce(batch, 'mean')
        self.normalisers.copy_(torch.where(self.normalisers == 0, batch, self.normalisers))

    @torch.no_grad()
    def _remember(self, student: Tensor, teacher: Tensor, index: Tensor) -> None:
        index = _gather(index)
        for bank, each in ((self.student_bank, student), (self.teacher_bank, teacher)):
            average = self.momentum * bank[index] + (1 - self.momentum) * _gather(each.detach())
            bank[index] = F.normalize(average, dim=1)


def _gather(values: Tensor) -> Tensor:
    """The values of all ranks, one after the other."""
    return torch.cat(all_gather(values.contiguous()))
