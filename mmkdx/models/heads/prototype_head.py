"""The base of prototype networks: an embedding, prototypes, and the source of each prototype."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from mmpretrain.models.heads import ClsHead
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from mmkdx.arguments import integer
from mmkdx.functional import full_precision, no_autocast


class PrototypeLayer(nn.Module):
    """Squared L2 distances of every position's embedding to every prototype, in fp32.

    Near 0, where a logarithmic similarity is steepest, half precision would leave only rounding
    errors, and so would TF32. By default torch allows TF32 in convolutions but not in matrix
    products, so this layer uses a matrix product.

    Args:
        num_prototypes (int): The number of prototypes, P.
        channels (int): The size of a prototype, C.
    """

    def __init__(self, num_prototypes: int, channels: int) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.rand(num_prototypes, channels))

    def forward(self, embedding: Tensor) -> Tensor:
        """Distances of shape (N, P, H, W) of an embedding of shape (N, C, H, W)."""
        with no_autocast(embedding):
            embedding, prototypes = map(full_precision, (embedding, self.prototypes))
            products = torch.einsum('pc,nchw->nphw', prototypes, embedding)
            squares = embedding.square().sum(1, keepdim=True)
            distances = squares - 2 * products + prototypes.square().sum(1)[:, None, None]
            return distances.relu()  # rounding makes tiny ones negative


class PrototypeHead(ClsHead):
    """Base of prototype heads: ``add_on`` embeds, ``prototype_layer`` compares with P prototypes.

    Buffers hold the training patch that each prototype was projected onto, so every checkpoint has
    it:

    - ``source_image`` (P, ): the position of the image in the push data set; -1 before a push.
    - ``source_label`` (P, ): the label of that image.
    - ``source_cell`` (P, 2): row and column of the patch in the feature map.
    - ``source_box`` (P, 4): x0, y0, x1, y1 (exclusive) in pixels of the network's input. The
      prototype was highly activated in this region before it was moved (see
      ``high_activation_boxes``). Maps are enlarged bilinearly; ProtoPNet's public code does it
      cubically.
    - ``source_field`` (P, 4): the region that the patch's position can see, in the same form (see
      ``receptive_field``); -1 if it is not known for the backbone.
    - ``alive`` (P, ): False for a pruned prototype. Its place stays, so that checkpoints, optimizers
      and the pairing with a teacher's prototypes stay valid.

    Args:
        add_on (nn.Module): Maps the backbone's last feature map (N, in_channels, H, W) to the
            embedding (N, C, H, W).
        prototype_layer (PrototypeLayer): The prototypes.
        num_classes (int): The number of classes, K.
        **kwargs: The arguments of mmpretrain's ``ClsHead``.
    """

    def __init__(
        self, add_on: nn.Module, prototype_layer: PrototypeLayer, num_classes: int, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.add_on = add_on
        self.prototype_layer = prototype_layer
        count = len(prototype_layer.prototypes)
        for name, shape in dict(image=(), label=(), cell=(2,), box=(4,), field=(4,)).items():
            self.register_buffer(f'source_{name}', torch.full((count, *shape), -1))
        self.register_buffer('alive', torch.ones(count, dtype=torch.bool))

    @property
    def prototypes(self) -> nn.Parameter:
        """The prototypes, of shape (P, C)."""
        return self.prototype_layer.prototypes

    def distances(self, feats: Sequence[Tensor]) -> Tensor:
        """Squared distances of shape (N, P, H, W) of all positions to all prototypes."""
        feature = feats[-1]
        if feature.dim() != 4:
            raise ValueError(
                f'{type(self).__name__} takes feature maps of shape (N, C, H, W) and got '
                f'{tuple(feature.shape)}; leave out the neck, and for a transformer set '
                "backbone.out_type='featmap'"
            )
        return self.prototype_layer(self.add_on(feature))

    def labels(self, data_samples: Sequence[DataSample]) -> Tensor:
        """The class of each image, of shape (N, ).

        Raises:
            ValueError: If labels are mixed.
        """
        if 'gt_score' in data_samples[0]:
            raise ValueError(
                f'{type(self).__name__} needs one class an image and the batches have mixed or soft '
                'labels; remove train_cfg.augments'
            )
        return torch.cat([sample.gt_label for sample in data_samples]).to(self.alive.device)

    @abstractmethod
    def similarity(self, distances: Tensor) -> Tensor:
        """How alike patches and prototypes are, from their squared distances, of any shape."""

    @abstractmethod
    def push_classes(self) -> Tensor:
        """Whether a prototype may be projected onto patches of a class: booleans, (P, K)."""

    @abstractmethod
    def class_weights(self) -> Tensor:
        """How strongly a prototype's similarity supports a class, of shape (K, P)."""


def check_counts(**counts: int) -> None:
    """Refuses arguments of a head that are not integers of at least 1."""
    for name, value in counts.items():
        integer(f'head.{name}', value, 1)


def find_prototypes(model: nn.Module) -> str:
    """The path of the layer with a model's prototypes; raises a ValueError if it has none."""
    for path, module in model.named_modules():
        if isinstance(module, PrototypeLayer):
            return path
    raise ValueError('has no prototypes; use a prototype head, such as ProtoPNetHead')


def prototype_head(model: nn.Module, owner: str) -> PrototypeHead:
    """The prototype head of mmpretrain's classifier, which ``owner`` needs.

    Raises:
        ValueError: If the classifier has another head.
    """
    head = getattr(model, 'head', None)
    if not isinstance(head, PrototypeHead):
        raise ValueError(
            f'{owner} needs a prototype head, such as ProtoPNetHead, and the model has '
            f'{type(head).__name__}'
        )
    return head
