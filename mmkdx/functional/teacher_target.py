"""Removes parts of the information in a teacher's probabilities, to see which part helps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkdx.arguments import one_of

#: What can be kept of a teacher's probabilities; see ``component_target``.
KINDS = ('onehot', 'meanmass', 'uniform', 'permute', 'weightsim', 'classmean')
KINDS += ('classmean_instmass', 'full')

#: The class that keeps its probability.
ANCHORS = ('label', 'argmax')

#: The statistic of the teacher that a kind needs.
NEEDS = dict(
    meanmass='mass',
    weightsim='weight_similarity',
    classmean='class_mean',
    classmean_instmass='class_mean',
)


def component_target(
    target_probabilities: Tensor,
    labels: Tensor | None,
    kind: str,
    statistics: Mapping[str, Tensor] | None = None,
    anchor: str = 'label',
    similarity_tau: float = 0.25,
) -> Tensor:
    """Keeps only a part of the information in a teacher's probabilities t.

    With y the label, each kind keeps:

    - 'onehot': nothing; y has probability 1.
    - 'meanmass': the teacher's average confidence: y has the mean of t_y over the training images, the
      others share the rest equally. That is label smoothing as strong as the teacher's.
    - 'uniform': its confidence in this image: y has t_y, the others share the rest equally.
    - 'permute': t_y, and the other values permuted for each image with torch's global generator. So
      the values stay, but not their meaning.
    - 'weightsim': t_y; the others share the rest by a softmax of cosines, the same for all images.
      The cosines are between the teacher's classifier weights of y and of the other classes.
    - 'classmean': the mean of t over the training images of class y.
    - 'classmean_instmass': t_y; the others share the rest in the proportions of 'classmean'.
    - 'full': t itself.

    Sources: Furlanello et al., "Born-Again Neural Networks", ICML 2018, permute predictions around the
    teacher's own (``anchor='argmax'``). The other kinds separate what Tang et al., "Understanding
    and Improving Knowledge Distillation", 2020, call universe, class-relation and instance
    knowledge.

    Args:
        target_probabilities (Tensor): The teacher's probabilities t of shape (N, K), at the temperature
            of the loss.
        labels (Tensor, optional): Classes of shape (N, ). Not used with ``anchor='argmax'``, nor for
            'full'.
        kind (str): One of ``KINDS``.
        statistics (Mapping[str, Tensor], optional): The teacher's statistics that the kind needs
            (``NEEDS``): 'mass', the mean of t_y; 'class_mean', of shape (K, K) with row y of class y;
            'weight_similarity', the cosines (K, K). Defaults to None.
        anchor (str): What y is: the 'label', or 'argmax', the class of the teacher's largest
            probability. Defaults to 'label'.
        similarity_tau (float): The temperature of the softmax of 'weightsim'. Defaults to 0.25.

    Returns:
        Tensor: Probabilities of shape (N, K), whose rows sum to 1 as in t.

    Raises:
        ValueError: If there is no such kind or anchor.
    """
    one_of('kind', kind, KINDS)
    one_of('anchor', anchor, ANCHORS)
    if kind == 'full':
        return target_probabilities
    classes = target_probabilities.shape[1]
    labels = target_probabilities.argmax(1) if anchor == 'argmax' else labels
    if kind == 'permute':
        return shuffle_others(target_probabilities, labels)
    own = F.one_hot(labels, classes).bool()
    if kind == 'onehot':
        return own.to(target_probabilities)
    given = (statistics or {}).get(NEEDS.get(kind))
    given = None if given is None else given.to(target_probabilities)
    if kind == 'classmean':
        return given[labels]
    if kind == 'meanmass':
        return torch.where(own, given, (1 - given) / (classes - 1))
    # The sum and not 1 - t_y, which rounds to 0 if the teacher is sure
    rest = target_probabilities.masked_fill(own, 0).sum(1, keepdim=True)
    if kind == 'uniform':
        shares = target_probabilities.new_tensor(1 / (classes - 1))
    elif kind == 'weightsim':
        shares = (given[labels] / similarity_tau).masked_fill(own, -torch.inf).softmax(1)
    else:
        shares = given[labels].masked_fill(own, 0)
        shares = shares / shares.sum(1, keepdim=True).clamp_min(torch.finfo(shares.dtype).tiny)
    return torch.where(own, target_probabilities, rest * shares)


def other_classes(labels: Tensor, classes: int) -> Tensor:
    """All classes but the label, in their order: (N, K - 1) for labels (N, )."""
    others = torch.arange(classes - 1, device=labels.device)
    return others + (others >= labels[:, None])


def shuffle_others(values: Tensor, labels: Tensor) -> Tensor:
    """Permutes in each row (N, K) all entries but the label's, with torch's global generator."""
    others = other_classes(labels, values.shape[1])
    order = torch.rand(others.shape, device=values.device).argsort(1)
    return values.scatter(1, others, values.gather(1, others.gather(1, order)))


def cwtm_weights(confidences: Tensor) -> Tensor:
    """Per-sample weights of mean 1: the teacher's largest probability (N, ) over the batch's mean.

    Source: Furlanello et al., "Born-Again Neural Networks", ICML 2018, "confidence weighted by teacher
    max".
    """
    return confidences / confidences.mean()
