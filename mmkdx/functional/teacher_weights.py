"""Per-sample weights of several teachers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkdx.functional.precision import full_precision


def cross_entropy_weights(logits: Tensor, target: Tensor) -> Tensor:
    """Weights by the teachers' cross entropy with the labels; a low one means a high weight.

    w_k = (1 - softmax over the teachers of CE_k) / (T - 1), at temperature 1. No weight is above
    1 / (T - 1), so a single bad teacher of three loses its weight and two good ones share it.

    Source: Zhang, Chen and Wang, "Confidence-Aware Multi-Teacher Knowledge Distillation" (CA-MKD),
    ICASSP 2022.

    Args:
        logits (Tensor): The logits of T >= 2 teachers, of shape (T, N, K).
        target (Tensor): The classes (N, ), or class probabilities (N, K).

    Returns:
        Tensor: Weights of shape (T, N), in [0, 1 / (T - 1)], which sum to 1 over the teachers.
    """
    target = target.to(logits.device)
    if target.is_floating_point():
        target = full_precision(target)
    losses = [F.cross_entropy(full_precision(each), target, reduction='none') for each in logits]
    return (1 - torch.stack(losses).softmax(0)) / (len(logits) - 1)


def agreement_weights(logits: Tensor) -> Tensor:
    """Weights by how well each teacher agrees with the others on an image, without labels.

    a_k is the cosine similarity between teacher k's probabilities and the mean probabilities of the
    other teachers. The weights are w_k = a_k / sum of all a. This is a simple rule of mmkdx, not a
    published method. Du et al., "Agree to Disagree" (AE-KD), NeurIPS 2020, find weights without
    labels from the gradients of the losses.

    Args:
        logits (Tensor): The logits of T >= 2 teachers, of shape (T, N, K). With T = 2 both weights are
            always 1 / 2.

    Returns:
        Tensor: Weights of shape (T, N), in [0, 1], which sum to 1 over the teachers. They are equal
        where no two teachers share any probability.
    """
    probabilities = full_precision(logits).softmax(-1)
    others = (probabilities.sum(0) - probabilities) / (len(logits) - 1)
    similarity = F.cosine_similarity(probabilities, others, dim=-1)
    # One-hot teachers of different classes have similarity 0, and the division needs more
    similarity = similarity.clamp_min(torch.finfo(similarity.dtype).eps)
    return similarity / similarity.sum(0)
