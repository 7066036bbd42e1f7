"""Finds the patches of images that are nearest to prototypes, and projects prototypes onto them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from mmengine.dist import all_gather
from mmengine.model import BaseModel
from torch import Tensor

from mmkdx.functional import resize_maps
from mmkdx.functional.activation_boxes import high_activation_boxes
from mmkdx.models.heads.prototype_head import PrototypeHead
from mmkdx.models.intercept import evaluating
from mmkdx.models.receptive_field import cell_box, receptive_field


@dataclass
class NearestPatches:
    """The k nearest images of each of P prototypes, the nearest first.

    Args:
        distances (Tensor): The squared distances of their best patches, of shape (P, k). If there
            were fewer images, the others are infinite, and -1 in ``images`` and ``labels``.
        images (Tensor): Their ``sample_idx``, of shape (P, k).
        labels (Tensor): Their labels, of shape (P, k).
        maps (Tensor): The squared distances of all their patches, of shape (P, k, H, W).
        embedding (Tensor): The embeddings of the best patches, of shape (P, k, C).
        size (tuple[int, int]): Height and width of the images, as the network takes them.
    """

    distances: Tensor
    images: Tensor
    labels: Tensor
    maps: Tensor
    embedding: Tensor
    size: tuple[int, int]

    @property
    def cells(self) -> Tensor:
        """Row and column of the best patches, of shape (P, k, 2); the first of equal ones."""
        best = self.maps.flatten(2).argmin(2)
        width = self.maps.shape[-1]
        return torch.stack([best // width, best % width], 2)

    @property
    def values(self) -> list[Tensor]:
        """All but the size, each of shape (P, k, ...)."""
        return [self.distances, self.images, self.labels, self.maps, self.embedding]

    def merged(self, other: NearestPatches) -> NearestPatches:
        """The k nearest of both, each image once; if equally near, the first in the data set."""
        k = self.distances.shape[1]
        both = [torch.cat(pair, 1) for pair in zip(self.values, other.values)]
        both = _take(both, both[1].argsort(dim=1, stable=True))
        both = _take(both, both[0].argsort(dim=1, stable=True))
        # A sampler repeats images to fill up the last batch
        images = both[1]
        again = (images[:, :, None] == images[:, None]).tril(-1).any(2)
        both[0] = both[0].masked_fill(again, torch.inf)
        return NearestPatches(*_take(both, both[0].argsort(dim=1, stable=True)[:, :k]), self.size)


@torch.no_grad()
def find_nearest_patches(
    model: BaseModel, batches: Iterable[dict], k: int = 1, classes: Tensor | None = None
) -> NearestPatches:
    """Finds the patches of a data set that are nearest to a model's prototypes, over all ranks.

    Each image counts with its best patch. The model runs in eval mode.

    Args:
        model (BaseModel): A classifier of mmpretrain with a prototype head.
        batches (Iterable[dict]): A data loader; each rank has its share of the data set.
        k (int): The number of images for each prototype. Defaults to 1.
        classes (Tensor, optional): Booleans of shape (P, K): whether images of a class count for a
            prototype. Defaults to None (all).

    Returns:
        NearestPatches: The same on every rank.
    """
    nearest = None
    with evaluating(model):
        for batch in batches:
            data = model.data_preprocessor(batch, False)
            found = _of_batch(model, data['inputs'], data['data_samples'], k, classes)
            nearest = found if nearest is None else nearest.merged(found)
    gathered = zip(*(all_gather(values.contiguous()) for values in nearest.values))
    result, *others = (NearestPatches(*values, nearest.size) for values in gathered)
    for other in others:
        result = result.merged(other)
    # A masked entry is no image: it is another copy, or of a class that does not count
    for values in (result.images, result.labels):
        values[result.distances.isinf()] = -1
    return result


@torch.no_grad()
def push(model: BaseModel, batches: Iterable[dict]) -> NearestPatches:
    """Projects the prototypes of a model onto the nearest patches of a data set.

    A prototype that no image may replace stays as it is. The images must not be augmented. Arguments
    and result are those of ``find_nearest_patches``.
    """
    head: PrototypeHead = model.head
    nearest = find_nearest_patches(model, batches, classes=head.push_classes())
    found = nearest.distances[:, 0].isfinite() & head.alive
    if not found.any():  # a tree can be pruned to a leaf
        return nearest
    similarity = head.similarity(nearest.maps[found, 0])
    head.prototypes[found] = nearest.embedding[found, 0].to(head.prototypes)
    head.source_image[found] = nearest.images[found, 0]
    head.source_label[found] = nearest.labels[found, 0]
    head.source_cell[found] = nearest.cells[found, 0]
    # In parts, as there may be thousands of maps
    boxes = [
        high_activation_boxes(resize_maps(part, nearest.size)) for part in similarity.split(256)
    ]
    head.source_box[found] = torch.cat(boxes)
    height, width = nearest.size
    if height != width:
        return nearest
    try:
        field = receptive_field(model.backbone, height)
    except ValueError:  # of a transformer, or a backbone with branches
        return nearest
    fields = []
    for row, column in nearest.cells[found, 0].tolist():
        y0, y1, x0, x1 = cell_box(field, row * field.n + column, height)
        fields.append((x0, y0, x1, y1))
    head.source_field[found] = nearest.cells.new_tensor(fields)
    return nearest


def _of_batch(
    model: BaseModel, inputs: Tensor, samples: list, k: int, classes: Tensor | None
) -> NearestPatches:
    embedding = model.head.add_on(model.extract_feat(inputs)[-1])
    maps = model.head.prototype_layer(embedding).transpose(0, 1)
    labels = torch.cat([sample.gt_label for sample in samples]).to(maps.device)
    images = torch.tensor([int(sample.sample_idx) for sample in samples], device=maps.device)
    distances = maps.amin((2, 3))
    # A wrapper may show an image several times in a batch
    again = (images[:, None] == images).tril(-1).any(1)
    distances = distances.masked_fill(again, torch.inf)
    if classes is not None:
        distances = distances.masked_fill(~classes[:, labels], torch.inf)
    count = len(maps)
    chosen = distances.argsort(dim=1, stable=True)[:, :k]
    best = maps.flatten(2).argmin(2).gather(1, chosen)
    values = [
        distances.gather(1, chosen),
        images[chosen],
        labels[chosen],
        maps[torch.arange(count, device=maps.device)[:, None], chosen],
        embedding.flatten(2).transpose(1, 2)[chosen, best],
    ]
    missing = k - chosen.shape[1]
    if missing > 0:
        for i, fill in enumerate((torch.inf, -1, -1, torch.inf, 0)):
            shape = (count, missing, *values[i].shape[2:])
            values[i] = torch.cat([values[i], values[i].new_full(shape, fill)], 1)
    return NearestPatches(*values, tuple(inputs.shape[2:]))


def _take(values: list[Tensor], order: Tensor) -> list[Tensor]:
    """Takes the values at positions (P, m) from values of shape (P, n, ...)."""
    rows = torch.arange(len(order), device=order.device)[:, None]
    return [value[rows, order] for value in values]
