"""CRD: contrastive representation distillation."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkdx.functional import full_precision
from mmkdx.losses.base import DistillLoss, integer, number, positive
from mmkdx.losses.samples import gather, positions_on
from mmkdx.registry import MODELS


@MODELS.register_module()
class CRDLoss(DistillLoss):
    r"""Contrastive representation distillation: matches the two embeddings of each sample.

    Source: Tian et al., "Contrastive Representation Distillation", ICLR 2020, Sec. 3, with the noise
    contrastive estimate and the memory banks of the authors' code. Both embeddings are projected to
    ``feat_dim`` dimensions and divided by their norms. The student's is to be told from negatives by
    the teacher's, :math:`P = \exp(\langle s, t \rangle / \tau) / Z`, and the other way round:

    .. math:: L = -\log \frac{P_0}{P_0 + K / M} - \sum_{k=1}^{K} \log \frac{K / M}{P_k + K / M}

    for both, mean over samples, with K negatives and M samples in the data set. Negatives are drawn
    uniformly, with replacement, from the samples of other classes; a sample whose class was not seen
    yet counts as one of another. Draws follow torch's seed.

    For each network a bank on every rank holds a moving average of each sample's embeddings,
    ``num_samples · feat_dim`` numbers. Banks are not part of a checkpoint: a resumed run starts them
    anew, always with the same numbers, and has filled them after an epoch. Z is estimated from the first
    batch of all ranks, and is part of the checkpoint.

    Embeddings are multiplied with the whole bank. A step needs memory for N · M scores and the former
    bank of each network: 38 MB for one network with 64 of CIFAR's 50,000 samples. The embeddings of the
    negatives, N · (K + 1) · ``feat_dim`` numbers, would need 537 MB.

    Args:
        num_samples (int): M, the number of samples in the training data set.
        feat_dim (int): Dimensions of the projected embeddings. Defaults to 128.
        negatives (int): K. Defaults to 16384.
        tau (float): The temperature, above 0. Defaults to 0.07.
        momentum (float): The share of what the banks keep, in [0, 1). Defaults to 0.5.
    """

    compares = 'anything'
    needs = ('teacher', 'class', 'index')

    def __init__(
        self,
        num_samples: int,
        feat_dim: int = 128,
        negatives: int = 16384,
        tau: float = 0.07,
        momentum: float = 0.5,
    ) -> None:
        super().__init__()
        self.num_samples = integer('num_samples', num_samples, 1)
        self.feat_dim = integer('feat_dim', feat_dim, 1)
        self.negatives = integer('negatives', negatives, 1)
        self.tau = positive('tau', tau)
        self.momentum = number('momentum', momentum, 0, 1, open_high=True)

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
        # Not torch's own seed, which ranks need not share
        generator = torch.Generator().manual_seed(0)
        for name in ('student_bank', 'teacher_bank'):
            bank = torch.empty(self.num_samples, self.feat_dim)
            bank.uniform_(-limit, limit, generator=generator)
            self.register_buffer(name, bank, persistent=False)
        labels = torch.full((self.num_samples,), -1)
        self.register_buffer('labels', labels, persistent=False)
        # The student's and the teacher's Z; 0, until the first batch
        self.register_buffer('log_z', torch.full((2,), -torch.inf))
        self.to(student.device)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor, index: Tensor) -> Tensor:
        """Contrasts embeddings (N, D) and (N, E), and puts them into the banks when training.

        Raises:
            ValueError: If a position is not below ``num_samples``.
        """
        index = positions_on(student.device, index, self.num_samples)
        student = F.normalize(self.project_student(full_precision(student)), dim=1)
        teacher = F.normalize(self.project_teacher(full_precision(teacher.detach())), dim=1)
        # A trial without gradients leaves the banks alone, and other ranks need not take part
        learning = self.training and torch.is_grad_enabled()
        if learning:
            seen, classes = gather(torch.stack([index, target]), -1).unbind()
            self.labels[seen] = classes
        chosen = torch.cat([index[:, None], self.draw(target)], 1)
        # Each network's embedding is contrasted with the other's bank
        pairs = (student, self.teacher_bank), (teacher, self.student_bank)
        scores = torch.stack([(each @ bank.T).gather(1, chosen) for each, bank in pairs]) / self.tau
        log_odds = scores - self._normaliser(scores.detach(), learning)[:, None, None]
        log_odds = log_odds - math.log(self.negatives / self.num_samples)
        found = F.softplus(-log_odds[..., 0])
        told_apart = F.softplus(log_odds[..., 1:]).sum(2)
        if learning:
            self._remember(seen, student.detach(), teacher.detach())
        return (found + told_apart).mean(1).sum()

    def draw(self, target: Tensor) -> Tensor:
        """Draws the positions of negatives, of shape (N, K), for samples of classes (N, )."""
        ordered, order = self.labels.sort(stable=True)
        start = torch.searchsorted(ordered, target)
        count = torch.searchsorted(ordered, target, right=True) - start
        others = (self.num_samples - count).clamp(min=1)[:, None]
        share = torch.rand(len(target), self.negatives, device=target.device, dtype=torch.float64)
        rank = (share * others).long()
        # The block of the own class is passed over
        rank = rank + torch.where(rank >= start[:, None], count[:, None], 0)
        return order[rank.clamp(max=self.num_samples - 1)]

    def _normaliser(self, scores: Tensor, learning: bool) -> Tensor:
        """The logarithms of Z, of shape (2, ): those of the first batch, M times the mean."""
        estimate = scores.flatten(1).logsumexp(1) - math.log(scores[0].numel() / self.num_samples)
        if learning:
            estimates = gather(estimate[:, None], -1)
            estimate = estimates.logsumexp(1) - math.log(estimates.shape[1])
        log_z = torch.where(self.log_z.isinf(), estimate, self.log_z)
        if learning:
            self.log_z.copy_(log_z)
        return log_z

    def _remember(self, seen: Tensor, student: Tensor, teacher: Tensor) -> None:
        embeddings = gather(torch.cat([student, teacher], 1)).chunk(2, 1)
        for name, each in zip(('student_bank', 'teacher_bank'), embeddings):
            bank = getattr(self, name)
            average = self.momentum * bank[seen] + (1 - self.momentum) * each
            # A new tensor, because the backward pass needs the former one
            setattr(self, name, bank.index_copy(0, seen, F.normalize(average, dim=1)))
