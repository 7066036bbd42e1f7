"""Projecting prototypes onto the nearest patches of images."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from mmkdx.functional import resize_maps
from mmkdx.functional.activation_boxes import high_activation_boxes
from mmkdx.models.heads.nearest_patches import NearestPatches, find_nearest_patches
from mmkdx.models.heads.prototype_head import PrototypeHead
from mmkdx.models.receptive_field import cell_box, receptive_field


@torch.no_grad()
def push(model: nn.Module, batches: Iterable[dict]) -> NearestPatches:
    """Projects the prototypes of a model onto the nearest patches of a data set.

    A prototype without an image to come from stays as it is.

    Args:
        model (nn.Module): A classifier of mmpretrain with a prototype head.
        batches (Iterable[dict]): A data loader of the images, without augmentation; each rank has its
            share.

    Returns:
        NearestPatches: What was found.
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
    try:
        field = receptive_field(model.backbone, height) if height == width else None
    except ValueError:  # of a transformer, or a backbone with branches
        field = None
    if field is None:
        return nearest
    cells = [row * field.n + column for row, column in nearest.cells[found, 0].tolist()]
    fields = [cell_box(field, cell, height) for cell in cells]
    head.source_field[found] = nearest.cells.new_tensor(
        [(x0, y0, x1, y1) for y0, y1, x0, x1 in fields]
    )
    return nearest
