"""What is explained: classes, in any of the forms in which they are named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

#: See ``Explainer.__call__``.
Targets = int | str | Tensor | Sequence | None


def class_weights(targets: Targets, logits: Tensor) -> Tensor:
    """The weights (N, K) of the classes; one-hot for class indices.

    Args:
        targets (int | str | Tensor | Sequence, optional): See ``Explainer.__call__``; not 'all'.
        logits (Tensor): The logits of shape (N, K).

    Raises:
        ValueError: If a target is no class of the model, or there are more or fewer than images.
    """
    count, classes = logits.shape
    if targets is None or (isinstance(targets, str) and targets == 'pred'):
        targets = logits.argmax(1)
    elif isinstance(targets, str):
        raise ValueError(
            f"targets is {targets!r}; as a word it must be 'pred', or 'all' where the model is run"
        )
    elif isinstance(targets, Sequence) and len(targets) and hasattr(targets[0], 'get'):
        targets = _labels(targets)
    try:
        targets = torch.as_tensor(targets, device=logits.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f'targets must be class indices or weights, not {targets!r}') from error
    if targets.is_inference():
        targets = targets.clone()  # such a tensor cannot take part in a graph
    if not targets.dim():
        targets = targets.expand(count)
    if len(targets) != count:
        raise ValueError(f'there are {len(targets)} targets for {count} images')
    if targets.dim() == 2 and targets.shape[1] == classes:
        return targets.to(logits.dtype)
    if targets.dim() != 1 or targets.is_floating_point():
        raise ValueError(
            f'targets must be {count} class indices or weights of shape ({count}, {classes}), and are '
            f'{"numbers" if targets.is_floating_point() else "indices"} of shape {tuple(targets.shape)}'
        )
    # Compared on the device where it is free; indices outside would be an error there without a name
    bad = targets[(targets < 0) | (targets >= classes)]
    if len(bad):
        raise ValueError(f'target {int(bad[0])} is no class of the model, which has {classes}')
    return F.one_hot(targets.long(), classes).to(logits.dtype)


def _labels(data_samples: Sequence[Any]) -> Tensor:
    for key in ('gt_score', 'gt_label'):
        if all(sample.get(key) is not None for sample in data_samples):
            labels = [torch.as_tensor(sample.get(key)).reshape(-1) for sample in data_samples]
            if key == 'gt_label' and any(len(label) != 1 for label in labels):
                raise ValueError(
                    'targets are data samples with several labels; give weights of the classes, (N, K)'
                )
            return torch.stack(labels).squeeze(1)
    raise ValueError("targets are data samples without labels ('gt_label'); use 'pred'")
