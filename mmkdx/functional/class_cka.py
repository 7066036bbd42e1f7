"""The similarity of classes to a network, from the outputs for their images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def class_cka(outputs: Tensor) -> Tensor:
    """The linear CKA between the outputs of classes.

    Source: Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019. The
    i-th image of one class is paired with the i-th of another, so the order of the images counts.
    Memory holds K · n² numbers.

    Args:
        outputs (Tensor): The outputs for n images of each class, of shape (K, n, D).

    Returns:
        Tensor: Similarities (K, K) in [0, 1], with 1 on the diagonal. A class whose outputs are all
            equal has 0 with the others.
    """
    centred = outputs - outputs.mean(1, keepdim=True)
    # Inner products of Gram matrices are the squared norms of products of features
    units = F.normalize((centred @ centred.mT).flatten(1), eps=1e-30)
    return (units @ units.T).clamp(0, 1).fill_diagonal_(1)
