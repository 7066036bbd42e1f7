"""The labels and positions of a batch, as terms get them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmkdx.distillation.places import Value

if TYPE_CHECKING:
    from mmkdx.distillation.terms import Term

#: Classes (N, ); class probabilities (N, K); or the indices of each image's classes, where an image
#: has not exactly one.
Labels = Tensor | list[Tensor]


def labels_of(data_samples: list | None) -> Labels | None:
    """The labels of mmpretrain's data samples as its heads read them: mixed ones first."""
    if not data_samples:
        return None
    if 'gt_score' in data_samples[0]:
        return torch.stack([sample.gt_score for sample in data_samples])
    if 'gt_label' in data_samples[0]:
        labels = [sample.gt_label for sample in data_samples]
        return torch.cat(labels) if all(len(each) == 1 for each in labels) else labels
    return None


def index_of(data_samples: list | None) -> Tensor | None:
    """The positions (N, ) of the samples in the data set, on the CPU; None if one is unknown."""
    if not data_samples or any('sample_idx' not in sample for sample in data_samples):
        return None
    return torch.tensor([int(sample.sample_idx) for sample in data_samples])


def multi_hot(labels: Labels, classes: int) -> Tensor:
    """Labels as a target of sigmoids: 1 for each class of an image, of shape (N, classes)."""
    if isinstance(labels, Tensor) and labels.dim() > 1:
        return labels
    rows = [torch.zeros(classes, device=each.device).index_fill_(0, each, 1) for each in labels]
    return torch.stack(rows)


def label_counts(labels: list[Tensor]) -> str:
    """How many labels the images of a batch have, for messages."""
    return f'the images of the batch have {", ".join(str(len(each)) for each in labels[:8])} labels'


def target_of(term: Term, labels: Labels | None, student: Value) -> Tensor:
    """The labels as a term's loss takes them: classes (N, ), or numbers for each class (N, K).

    Raises:
        ValueError: If the loss cannot take such labels, or there are none.
    """
    need = f'{term.key}: {term.loss_name} needs'
    if labels is None:
        raise ValueError(f'{need} the labels of the images, and the data samples have none')
    if term.activation == 'sigmoid':
        return multi_hot(labels, student.shape[1])
    if isinstance(labels, list):
        raise ValueError(
            f"{need} one label an image, and {label_counts(labels)}; use dict(type='KLDivLoss', "
            "activation='sigmoid')"
        )
    if 'class' in term.loss.needs and labels.dim() > 1:
        raise ValueError(
            f'{need} one class an image and the batches have mixed or soft labels; remove '
            'batch_augments (train_cfg.augments of the student, or data_preprocessor) or the term'
        )
    return labels
