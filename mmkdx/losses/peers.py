"""DML: networks train together and teach each other."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch.nn.functional as F
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmpretrain.models.classifiers import BaseClassifier
from torch import Tensor, nn

from mmkdx.arguments import errors_named
from mmkdx.functional import full_precision
from mmkdx.losses.base import DistillLoss
from mmkdx.losses.logit import KLDivLoss
from mmkdx.models.flow import find_flow
from mmkdx.registry import MODELS


@MODELS.register_module()
class DMLLoss(DistillLoss):
    r"""Deep mutual learning: the student and its peers learn from each other's predictions.

    Source: Zhang et al., "Deep Mutual Learning", CVPR 2018, Sec. 3. Network i of K, of which the
    student is one and the others are its peers, is trained with

    .. math:: L_i = CE_i + \frac{1}{K - 1} \sum_{j \ne i} KL(p_j \,\|\, p_i)

    without a temperature, where the other networks' probabilities are constants. This loss is the
    sum of all of these but the student's own cross entropy, which is its head's loss. So the
    published method is ``weight=1`` beside ``student_weight=1``: the peers' cross entropies are
    part of the term, and scale with its weight and schedule.

    The authors' code sums over the other networks where the paper has the mean, which is the same for
    one peer. It adds 1e-8 to probabilities; here saturated logits are finite without it. It updates
    the networks one after the other; here all take one step together.

    Peers take the student's preprocessed images; their own ``data_preprocessor`` is not used. The
    student's optimizer trains them; a checkpoint holds them under ``distill.``. Logged are the peers'
    cross entropies ``<term>.peer0.ce`` and so on, and the student's part of this loss, ``<term>.kl``.

    Args:
        peers (Sequence[dict]): A model dict of mmpretrain's classifiers for each peer. They are
            initialised as their configs say, each from random numbers of its own.
    """

    compares = 'logits'
    needs = ('target', 'inputs')

    def __init__(self, peers: Sequence[dict]) -> None:
        super().__init__()
        if not isinstance(peers, (list, tuple)) or not peers:
            raise ValueError(f'peers is {peers!r}; it must be a list of one model dict or more')
        self.peers = nn.ModuleList(_build(peer, f'peers[{i}]') for i, peer in enumerate(peers))
        self.divergence = KLDivLoss()

    def check(self, student: Tensor) -> None:
        """Refuses, before training, peers of other classes than the student's.

        Raises:
            ValueError: If a peer has other classes, or no linear classifier to tell.
        """
        for i, peer in enumerate(self.peers):
            with errors_named(f'peers[{i}] '):
                classes = peer.get_submodule(find_flow(peer).classifier).out_features
            if classes != student.shape[1]:
                raise ValueError(
                    f'peers[{i}] has {classes} classes and the student {student.shape[1]}; set '
                    f'peers[{i}].head.num_classes={student.shape[1]}'
                )

    def forward(self, student: Tensor, target: Tensor, inputs: Tensor) -> Tensor:
        """Compares the student's logits (N, K) with those of the peers of the same images."""
        logits = [
            full_precision(each) for each in (student, *(peer(inputs) for peer in self.peers))
        ]
        divergences = [
            sum(self.divergence(own, other.detach()) for other in logits if other is not own)
            / len(self.peers)
            for own in logits
        ]
        labels = [F.cross_entropy(each, target) for each in logits[1:]]
        self.logs = {f'peer{i}.ce': each.detach() for i, each in enumerate(labels)}
        self.logs['kl'] = divergences[0].detach()
        return sum(divergences) + sum(labels)


def _build(peer: dict, key: str) -> BaseClassifier:
    """Builds a peer in mmkdx's scope, and initialises it, as mmengine finds no models in losses."""
    if not isinstance(peer, dict) or 'type' not in peer:
        raise ValueError(
            f'{key} is {peer!r}; a peer is a model dict with a type, such as {{{{_base_.model}}}}'
        )
    peer = copy.deepcopy(peer)
    # Left by a base config of another package; mmkdx's scope finds those parts, and its own.
    peer.pop('_scope_', None)
    with DefaultScope.overwrite_default_scope('mmkdx'):
        built = MODELS.build(peer)
    if not isinstance(built, BaseClassifier):
        raise ValueError(
            f"{key} is a {type(built).__name__}; a peer is a classifier of mmpretrain's, such as "
            'ImageClassifier'
        )
    # Where no log file is open, mmengine would print a paragraph for each parameter
    logger = MMLogger.get_current_instance()
    disabled, logger.disabled = logger.disabled, True
    try:
        built.init_weights()
    finally:
        logger.disabled = disabled
    return built
