"""The labels and positions of a batch, as terms get them."""

from __future__ import annotations

import torch
from torch import Tensor

from mmkdx.distillation.places import Labels


def labels_of(data_samples: list | None) -> Labels | None:
    """The labels of mmpretrain's data samples; as in its heads, mixed labels come first."""
    if not data_samples:
        return None
    if 'gt_score' in data_samples[0]:
        return torch.stack([sample.gt_score for sample in data_samples])
    if all('gt_label' in sample for sample in data_samples):
        labels = [sample.gt_label for sample in data_samples]
        return torch.cat(labels) if all(len(each) == 1 for each in labels) else labels
    return None


def index_of(data_samples: list | None) -> Tensor | None:
    """The positions (N, ) of the samples in the data set, on the CPU; None if one is unknown."""
    if not data_samples or any('sample_idx' not in sample for sample in data_samples):
        return None
    return torch.tensor([int(sample.sample_idx) for sample in data_samples])


def multi_hot(labels: Labels, classes: int) -> Tensor:
    """Labels as sigmoid targets of shape (N, classes), with 1 for each class of an image."""
    if isinstance(labels, Tensor) and labels.dim() > 1:
        return labels
    rows = [torch.zeros(classes, device=each.device).index_fill_(0, each, 1) for each in labels]
    return torch.stack(rows)
