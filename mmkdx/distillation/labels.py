"""The labels and positions of a batch, as terms get them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmkdx.distillation.declared import activation_of
from mmkdx.distillation.places import Value

#: The classes of each image (N, ), its class probabilities (N, K), or for each image the indices of its
#: classes where they are not exactly one.
Labels = Tensor | list[Tensor]


def labels_of(data_samples: list | None) -> Labels | None:
    """The labels of a batch as mmpretrain's heads read them: mixed ones first.

    Args:
        data_samples (list, optional): mmpretrain's ``DataSample`` of each image.

    Returns:
        Tensor | list[Tensor] | None: Classes (N, ); class scores (N, K); the indices of
        the classes of each image, where an image has not exactly one; None without labels.
    """
    if not data_samples:
        return None
    if 'gt_score' in data_samples[0]:
        return torch.stack([sample.gt_score for sample in data_samples])
    if 'gt_label' in data_samples[0]:
        labels = [sample.gt_label for sample in data_samples]
        return torch.cat(labels) if all(len(each) == 1 for each in labels) else labels
    return None


def multi_hot(labels: Labels, classes: int) -> Tensor:
    """Labels as a target of sigmoids: 1 for each class of an image, of shape (N, classes)."""
    if isinstance(labels, Tensor) and labels.dim() > 1:
        return labels
    rows = [torch.zeros(classes, device=each.device).index_fill_(0, each, 1) for each in labels]
    return torch.stack(rows)


def check_labels(labels: Labels | None, losses: Mapping[str, nn.Module], activation: str) -> None:
    """Refuses images of several labels, or none, where one label an image is meant.

    mmpretrain's softmax heads would join the labels, and so give them to other images.

    Args:
        labels (Tensor | list[Tensor], optional): The labels; see ``labels_of``.
        losses (Mapping[str, nn.Module]): The loss of each term, by its config key.
        activation (str): What turns the student's logits into probabilities; 'sigmoid' also where its
            own losses do not count.

    Raises:
        ValueError: If an image has not exactly one label and a loss, or the student, takes one.
    """
    if not isinstance(labels, list):
        return
    for key, loss in losses.items():
        if {'target', 'class'} & {*loss.needs} and activation_of(loss) != 'sigmoid':
            target_for(labels, loss, key, None)
    if activation == 'softmax':
        raise ValueError(
            f'student: its softmax head takes one label an image, and {_counts(labels)}; use a head for '
            'several labels, such as MultiLabelLinearClsHead'
        )


def target_for(labels: Labels | None, loss: nn.Module, key: str, student: Value) -> Tensor:
    """The labels as a loss takes them.

    Args:
        labels (Tensor | list[Tensor], optional): The labels; see ``labels_of``.
        loss (nn.Module): A loss that needs a target.
        key (str): The config key of the term.
        student (Tensor | ClassMaps | list): What the loss compares, which tells how many classes there
            are.

    Returns:
        Tensor: Classes of shape (N, ), or numbers for each class of shape (N, K).

    Raises:
        ValueError: If the loss cannot take such labels, or there are none.
    """
    need = f'{key}: {type(loss).__name__} needs'
    if labels is None:
        raise ValueError(f'{need} the labels of the images, and the data samples have none')
    if activation_of(loss) == 'sigmoid':
        return multi_hot(labels, student.shape[1])
    if isinstance(labels, list):
        raise ValueError(
            f"{need} one label an image, and {_counts(labels)}; use dict(type='KLDivLoss', "
            "activation='sigmoid')"
        )
    if 'class' in loss.needs and labels.dim() > 1:
        raise ValueError(
            f'{need} one class an image and the batches have mixed or soft labels; remove '
            'batch_augments (train_cfg.augments of the student, or data_preprocessor) or the term'
        )
    return labels


def index_of(data_samples: list | None) -> Tensor | None:
    """The positions of a batch's samples in the data set, on the CPU, where the samples know them."""
    if not data_samples or any('sample_idx' not in sample for sample in data_samples):
        return None
    return torch.tensor([int(sample.sample_idx) for sample in data_samples])


def _counts(labels: list[Tensor]) -> str:
    return f'the images of the batch have {", ".join(str(len(each)) for each in labels[:8])} labels'
