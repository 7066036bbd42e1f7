"""ProtoPNet: this looks like that."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from mmkdx.arguments import flag, number, one_of
from mmkdx.models.heads.prototype_head import PrototypeHead, PrototypeLayer, check_counts
from mmkdx.registry import MODELS


@MODELS.register_module()
class ProtoPNetHead(PrototypeHead):
    """The head of ProtoPNet: the logits are a linear function of the similarities to prototypes.

    Let d be the smallest squared distance of a prototype to a patch of the image. Then
    ``logits = W s(d)``, with s either ``log((d + 1) / (d + 1e-4))`` or ``-d``. W begins with 1 from
    a prototype to its own class and -0.5 to the others. The losses are the cross-entropy and these,
    each times its weight; distances are means over the batch:

    - ``loss_cluster``: the distance of the nearest prototype of the image's class,
    - ``loss_separation``: minus the distance of the nearest prototype of another class,
    - ``loss_l1``: the sum of the magnitudes of W between prototypes and other classes.

    The public code takes maxima of C - d instead of minima of d. This is the same unless a distance
    is above C. ``average_separation``, the mean distance of other classes' prototypes, is only
    logged.

    Source: Chen et al., "This Looks Like That", NeurIPS 2019, section 2, and the authors' public code.
    Without ``class_specific`` there is no separation, and ``loss_l1`` sums over all of W.

    Args:
        num_classes (int): The number of classes, K.
        in_channels (int): The channels of the backbone's last feature map.
        prototypes_per_class (int): The number of prototypes of each class. Defaults to 10.
        prototype_channels (int): The size of a prototype, C. Defaults to 128.
        add_on (str): 'regular' for two 1 x 1 convolutions; 'bottleneck' for pairs that halve the
            channels until there are C. A sigmoid follows the last one. Defaults to 'regular'.
        similarity (str): The form of s, 'log' or 'linear' (-d). Defaults to 'log'.
        class_specific (bool): Whether prototypes belong to classes. Defaults to True.
        cluster_weight (float): The weight of ``loss_cluster``. Defaults to 0.8.
        separation_weight (float): The weight of ``loss_separation``. Defaults to 0.08.
        l1_weight (float): The weight of ``loss_l1``. Defaults to 1e-4.
        **kwargs: The arguments of mmpretrain's ``ClsHead``.

    Raises:
        ValueError: If an argument is out of range; in training, if labels are mixed.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        prototypes_per_class: int = 10,
        prototype_channels: int = 128,
        add_on: str = 'regular',
        similarity: str = 'log',
        class_specific: bool = True,
        cluster_weight: float = 0.8,
        separation_weight: float = 0.08,
        l1_weight: float = 1e-4,
        **kwargs,
    ) -> None:
        one_of('head.add_on', add_on, ('regular', 'bottleneck'))
        check_counts(
            num_classes=num_classes,
            in_channels=in_channels,
            prototypes_per_class=prototypes_per_class,
            prototype_channels=prototype_channels,
        )
        super().__init__(
            _add_on(add_on, in_channels, prototype_channels),
            PrototypeLayer(num_classes * prototypes_per_class, prototype_channels),
            num_classes,
            **kwargs,
        )
        self.similarity_kind = one_of('head.similarity', similarity, ('log', 'linear'))
        self.class_specific = flag('head.class_specific', class_specific)
        self.cluster_weight = number('head.cluster_weight', cluster_weight, 0)
        self.separation_weight = number('head.separation_weight', separation_weight, 0)
        self.l1_weight = number('head.l1_weight', l1_weight, 0)
        own = torch.arange(num_classes).repeat_interleave(prototypes_per_class)
        identity = own[:, None] == torch.arange(num_classes)
        #: Whether a prototype belongs to a class, of shape (P, K).
        self.register_buffer('class_identity', identity)
        self.last_layer = nn.Linear(len(own), num_classes, bias=False)
        with torch.no_grad():
            self.last_layer.weight.copy_(identity.T * 1.5 - 0.5)

    def similarity(self, distances: Tensor) -> Tensor:
        """``log((d + 1) / (d + 1e-4))``, in (0, 9.21], or -d; of the shape of the distances."""
        if self.similarity_kind == 'linear':
            return -distances
        return ((distances + 1) / (distances + 1e-4)).log()

    def push_classes(self) -> Tensor:
        """Only a prototype's own class, or all classes if it has none."""
        return self.class_identity if self.class_specific else torch.ones_like(self.class_identity)

    def class_weights(self) -> Tensor:
        """W, without the pruned prototypes."""
        return self.last_layer.weight * self.alive

    def prune(self, labels: Tensor, min_same_class: int = 3) -> int:
        """Drops the prototypes whose nearest images are of other classes, as in the public code.

        Args:
            labels (Tensor): The labels of the k training images nearest to each prototype, (P, k).
            min_same_class (int): The least number that must be of the prototype's class. Defaults
                to 3.

        Returns:
            int: The number of dropped prototypes.
        """
        own = self.class_identity.long().argmax(1, keepdim=True).to(labels.device)
        before = int(self.alive.sum())
        self.alive &= ((labels == own).sum(1) >= min_same_class).to(self.alive.device)
        return before - int(self.alive.sum())

    def classes_without_prototypes(self) -> list[int]:
        """The classes that have no prototype left after pruning."""
        kept = self.class_identity[self.alive].any(0)
        return (~kept).nonzero()[:, 0].tolist()

    def pre_logits(self, feats: Sequence[Tensor]) -> Tensor:
        """The similarities of the images to the prototypes, of shape (N, P)."""
        return self.similarity(self.distances(feats).amin((2, 3))) * self.alive

    def forward(
        self, feats: Sequence[Tensor], with_distances: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The logits (N, K); ``with_distances`` puts the smallest distances (N, P) before them."""
        nearest = self.distances(feats).amin((2, 3))
        # If the whole model is in half precision, so is its last layer
        scores = self.similarity(nearest) * self.alive
        logits = self.last_layer(scores.to(self.last_layer.weight))
        # The logits come last: the tap 'logits' reads the last element of a tuple
        return (nearest, logits) if with_distances else logits

    def loss(
        self, feats: Sequence[Tensor], data_samples: list[DataSample], **kwargs
    ) -> dict[str, Tensor]:
        """The losses that the class describes; ``kwargs`` go to the cross-entropy."""
        label = self.labels(data_samples)
        nearest, logits = self(feats, with_distances=True)
        losses = self._get_loss(logits, data_samples, **kwargs)
        own = self.push_classes().T[label]
        losses['loss_cluster'] = self.cluster_weight * self._nearest(nearest, own)
        weight = self.class_weights()
        if self.class_specific:
            separation = self._nearest(nearest, ~own)
            losses['loss_separation'] = -self.separation_weight * separation
            others = ~own & self.alive
            mean = (nearest * others).sum(1) / others.sum(1).clamp(min=1)
            losses['average_separation'] = mean.mean().detach()
            weight = weight * ~self.class_identity.T
        losses['loss_l1'] = self.l1_weight * weight.abs().sum()
        return losses

    def _nearest(self, distances: Tensor, chosen: Tensor) -> Tensor:
        """The mean of the smallest distance to a chosen prototype, over images that have one."""
        smallest = distances.masked_fill(~(chosen & self.alive), torch.inf).amin(1)
        found = smallest.isfinite()
        return smallest.where(found, 0).sum() / found.sum().clamp(min=1)


def _add_on(kind: str, in_channels: int, channels: int) -> nn.Sequential:
    """1 x 1 convolutions from the backbone's channels to a prototype's, with a sigmoid at the end."""
    widths = [in_channels, channels, channels]
    if kind == 'bottleneck':
        widths, width = [in_channels], in_channels
        while width > channels or len(widths) == 1:
            widths += [max(channels, width // 2)] * 2
            width //= 2
    layers: list[nn.Module] = []
    for before, after in zip(widths, widths[1:]):
        convolution = nn.Conv2d(before, after, 1)
        nn.init.kaiming_normal_(convolution.weight, mode='fan_out', nonlinearity='relu')
        nn.init.zeros_(convolution.bias)
        layers += [convolution, nn.ReLU()]
    return nn.Sequential(*layers[:-1], nn.Sigmoid())
