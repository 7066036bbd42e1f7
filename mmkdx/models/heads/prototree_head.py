"""ProtoTree: a decision tree that asks at each node whether the image has a prototype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from mmkdx.arguments import integer, number, one_of
from mmkdx.functional import full_precision, no_autocast
from mmkdx.models.heads.prototype_head import PrototypeHead, PrototypeLayer, check_counts
from mmkdx.registry import MODELS


@MODELS.register_module()
class ProtoTreeHead(PrototypeHead):
    r"""The head of ProtoTree: a soft binary decision tree with a prototype in each inner node.

    Let d be the smallest squared distance of a node's prototype to a patch of the image. The image
    goes to the right with probability ``exp(-sqrt(d + 1e-14))``: right means that the prototype is
    present. Each leaf has a distribution over classes, ``softmax(c)``. The image's distribution is
    their mean, weighted by the probabilities of the paths to the leaves. The logits are the
    logarithms of this distribution, so the cross-entropy is its negative log-likelihood.

    Nodes are in the order of a heap: node i has the children 2 i + 1 (left) and 2 i + 2 (right), and
    prototype i. Leaves are numbered from left to right.

    The leaves are not learnt by gradients. They begin uniform, c = 0. Each training batch of ``loss``
    updates them from the samples b of all processes with their labels y:

    .. math:: c \leftarrow relu(c - c_{start} / n)
              + \sum_b p(leaf | b) \; softmax(c) \odot onehot(y_b) / p(y_b | b),

    where :math:`c_{start}` are the leaves at the start of the epoch and n is its number of batches; see
    ``begin_epoch``. Without a call of it, nothing is subtracted.

    Source: Nauta et al., "Neural Prototype Trees for Interpretable Fine-grained Image Recognition",
    CVPR 2021, and the authors' public code.

    Args:
        num_classes (int): The number of classes, K.
        in_channels (int): The channels of the backbone's last feature map.
        depth (int): The number of levels of inner nodes; there are ``2**depth - 1`` prototypes and
            ``2**depth`` leaves. Defaults to 9.
        prototype_channels (int): The size of a prototype, C. Defaults to 256.
        routing (str): The distribution of an image in eval mode. 'distributed' is the mean over all
            leaves, as in training. 'max_path' takes the leaf with the most probable path. 'greedy'
            takes the more probable turn at each node (left if equal). Defaults to 'distributed'.
        **kwargs: The arguments of mmpretrain's ``ClsHead``.

    Raises:
        ValueError: If an argument is out of range; in training, if labels are mixed.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        depth: int = 9,
        prototype_channels: int = 256,
        routing: str = 'distributed',
        **kwargs,
    ) -> None:
        one_of('head.routing', routing, ('distributed', 'max_path', 'greedy'))
        check_counts(
            num_classes=num_classes,
            in_channels=in_channels,
            depth=depth,
            prototype_channels=prototype_channels,
        )
        integer('head.depth', depth, 1, 20)  # there are 2**depth leaves
        convolution = nn.Conv2d(in_channels, prototype_channels, 1, bias=False)
        nn.init.xavier_normal_(convolution.weight, gain=nn.init.calculate_gain('sigmoid'))
        super().__init__(
            nn.Sequential(convolution, nn.Sigmoid()),
            PrototypeLayer(2**depth - 1, prototype_channels),
            num_classes,
            **kwargs,
        )
        nn.init.normal_(self.prototypes, mean=0.5, std=0.1)
        self.depth = depth
        self.routing = routing
        #: The parameters c of the leaves, of shape (2**depth, K).
        self.register_buffer('leaves', torch.zeros(2**depth, num_classes))
        self.register_buffer('epoch_start', torch.zeros(2**depth, num_classes))
        self.register_buffer('batches_per_epoch', torch.tensor(1))
        #: Whether the left and the right child of a node are still there, of shape (P, 2).
        self.register_buffer('kept_children', torch.ones(2**depth - 1, 2, dtype=torch.bool))

    def begin_epoch(self, num_batches: int) -> None:
        """Stores the leaves, which fade over the epoch's ``num_batches`` batches of one process."""
        self.batches_per_epoch.fill_(integer('num_batches', num_batches, 1))
        self.epoch_start.copy_(self.leaves)

    def similarity(self, distances: Tensor) -> Tensor:
        """The probability of the right turn, ``exp(-sqrt(|d| + 1e-14))`` in (0, 1]."""
        return (-_root(distances)).exp()

    def pre_logits(self, feats: Sequence[Tensor]) -> Tensor:
        """The similarities of the images to the prototypes, of shape (N, P)."""
        return self.similarity(self.distances(feats).amin((2, 3))) * self.alive

    def forward(
        self, feats: Sequence[Tensor], with_paths: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The logarithms of the distributions over classes, in fp32, of shape (N, K).

        With ``with_paths`` the log-probabilities of the paths to the leaves, of shape (N,
        2**depth), come before them. They are -inf for a pruned leaf.
        """
        nearest = self.distances(feats).amin((2, 3))
        turns = self._turns(nearest)
        paths = turns.new_zeros(len(turns), 1)
        for level in range(self.depth):
            nodes = slice(2**level - 1, 2 ** (level + 1) - 1)
            paths = (paths[:, :, None] + turns[:, nodes]).flatten(1)
        logits = self._logits(turns, paths)
        # The logits come last: the tap 'logits' reads the last element of a tuple
        return (paths, logits) if with_paths else logits

    def loss(
        self, feats: Sequence[Tensor], data_samples: list[DataSample], **kwargs
    ) -> dict[str, Tensor]:
        """The negative log-likelihood, with ``kwargs``; in training it also updates the leaves."""
        label = self.labels(data_samples)
        paths, logits = self(feats, with_paths=True)
        losses = self._get_loss(logits, data_samples, **kwargs)
        # Without gradients the step is a trial, perhaps in this process only
        if self.training and torch.is_grad_enabled():
            self._update_leaves(paths, logits, label)
        return losses

    def push_classes(self) -> Tensor:
        """The most probable classes of the leaves below a node, without pruned leaves."""
        likeliest = F.one_hot(self.leaves.argmax(1), self.num_classes)
        return self._halves(likeliest * self._leaf_alive()[:, None]).sum(1) > 0

    def class_weights(self) -> Tensor:
        """The mean class probabilities of the leaves right of a node minus those left of it.

        This value in [-1, 1] tells how strongly a found prototype supports a class for an image at
        the node. Pruned leaves do not count; a pruned prototype has 0.
        """
        alive = self._leaf_alive()[:, None]
        probabilities = full_precision(self.leaves).softmax(1) * alive
        means = self._halves(probabilities) / self._halves(alive).clamp(min=1)
        return (means[:, 1] - means[:, 0]).T * self.alive

    @torch.no_grad()
    def prune(self, threshold: float = 0.01) -> int:
        """Drops each subtree in which no leaf has a class probability above a threshold.

        The subtree's sibling replaces their parent: all images there turn to the side that is kept.
        This holds for the root as well, which the authors' code does not replace.

        Args:
            threshold (float): A leaf counts if its largest probability is above this. Defaults to
                0.01.

        Returns:
            int: The number of prototypes that this call has pruned, replaced nodes included.

        Raises:
            ValueError: If the threshold is out of range, or no leaf would be left.
        """
        number('threshold', threshold, 0, 1, open_high=True)
        surest = full_precision(self.leaves).softmax(1).amax(1)
        keep = self._leaf_alive() & (surest > threshold)
        if not keep.any():
            raise ValueError(
                f'threshold is {threshold} and no leaf of the tree has a class of a higher probability '
                f'(the highest is {surest.max():.4g}); train longer or set a lower threshold'
            )
        before = int(self.alive.sum())
        self.kept_children.copy_(self._halves(keep) > 0)
        self.alive.copy_(self.kept_children.all(1))
        return before - int(self.alive.sum())

    def _turns(self, nearest: Tensor) -> Tensor:
        """Log-probabilities of the turns to the left and to the right, of shape (N, P, 2)."""
        right = -_root(nearest)
        turns = torch.stack(((-right.expm1()).log(), right), dim=2)
        forced = torch.zeros_like(turns).masked_fill(~self.kept_children, -torch.inf)
        return turns.where(self.kept_children.all(1, keepdim=True), forced)

    def _logits(self, turns: Tensor, paths: Tensor) -> Tensor:
        """Computes log-probabilities of classes from those of turns and paths."""
        leaves = full_precision(self.leaves).log_softmax(1)
        if not self.training and self.routing == 'max_path':
            return leaves[paths.argmax(1)]
        if not self.training and self.routing == 'greedy':
            rightwards = (turns[:, :, 1] > turns[:, :, 0]).long()
            node = rightwards.new_zeros(len(turns), 1)
            for _ in range(self.depth):
                node = 2 * node + 1 + rightwards.gather(1, node)
            return leaves[node[:, 0] - len(self.prototypes)]
        # A logsumexp over (N, leaves, K) as a matrix product, relative to each class's best leaf.
        # In the range of float64, paths of exp(-690) still count. Autocast does not change float64.
        leaves = leaves.double().masked_fill(~self._leaf_alive()[:, None], -torch.inf)
        best = leaves.amax(0)
        mixed = paths.double().exp() @ (leaves - best).exp()
        return (mixed.clamp(min=1e-300).log() + best).to(paths.dtype)

    @torch.no_grad()
    def _update_leaves(self, paths: Tensor, logits: Tensor, label: Tensor) -> None:
        with no_autocast(paths):
            own = self.leaves.log_softmax(1).T[label]
            # How likely each leaf is given the image and its label, of shape (N, leaves)
            share = (paths + own - logits.gather(1, label[:, None])).exp()
            update = share.T @ F.one_hot(label, self.num_classes).to(share)
        all_reduce(update)
        kept = (self.leaves - self.epoch_start / self.batches_per_epoch).relu()
        self.leaves.copy_(kept + update)

    def _leaf_alive(self) -> Tensor:
        """Whether each leaf is kept, of shape (2**depth, )."""
        return self.kept_children[len(self.prototypes) // 2 :].flatten()

    def _halves(self, values: Tensor) -> Tensor:
        """Sums over the leaves (2**depth, ...) left and right of each node, of shape (P, 2, ...)."""
        levels = [values.unflatten(0, (2**level, 2, -1)).sum(2) for level in range(self.depth)]
        return torch.cat(levels)


def _root(distances: Tensor) -> Tensor:
    """Distances from squared ones, with a finite gradient at 0; resized ones may be below 0."""
    return (distances.abs() + 1e-14).sqrt()
