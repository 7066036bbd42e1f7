"""Images with one changed part, drawn again by the data set or filled from around the part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmkdx.datasets.seeded_views import seeded
from mmkdx.datasets.wrappers import item_of, leaf_of
from mmkdx.functional.perturbation import linear_imputation
from mmkdx.metrics.base import ExplainedBatch

#: A part with fewer pixels than this in the image has no measured effect.
LEAST_PIXELS = 4
#: Regions that are no part: the background, and pixels without a label.
NO_PARTS = (0, 255, -1)
#: Bytes of drawn images that are kept for the next evaluation.
KEPT_BYTES = 2**28


@dataclass
class ChangedImages:
    """M images, each an image of a batch with one part changed.

    Args:
        image (Tensor): The number of each one's original in the batch, of shape (M, ).
        part (Tensor): The region that was changed, an id of the label map, of shape (M, ).
        label (Tensor): The class afterwards, of shape (M, ); -1: unknown.
        make (Callable): Yields images (m, C, H, W) from their numbers (m, ), prepared as the batch.
    """

    image: Tensor
    part: Tensor
    label: Tensor
    make: Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        #: The ids of all R parts, in order, of shape (R, ).
        self.parts = self.part.unique() if len(self.part) else torch.ones(1, dtype=torch.long)
        #: Each one's place in ``parts``, of shape (M, ).
        self.column = torch.searchsorted(self.parts, self.part)


class Redrawing:
    """Lets a data set draw the images of batches again, with changes.

    The data set has two methods. ``interventions(index, kind)`` returns for each part that can be
    changed a list of variants, and ``intervene(index, part, variant)`` the changed sample. ``metainfo``
    has 'regions', the parts' names by region. See ``Parts``.

    Args:
        kind (str): 'remove' or 'swap'.
        owner (str): What messages call the reader.
    """

    def __init__(self, kind: str, owner: str) -> None:
        self.kind, self.owner = kind, owner
        self._kept: dict[int, list[tuple[int, int, Any]]] = {}
        self._bytes = 0

    def forget(self) -> None:
        """Drops the images that are kept, for another data set."""
        self._kept.clear()
        self._bytes = 0

    def __call__(self, batch: ExplainedBatch, labels: Tensor) -> ChangedImages:
        """Draws the changed images of a batch with label maps (N, H, W).

        Raises:
            ValueError: If the data set cannot draw its images again, has fewer than three parts, or
                the image without a change is not the one in the batch.
        """
        if batch.dataset is None or batch.prepare is None:
            raise ValueError(
                f'{self.owner}.kind is {self.kind!r}, so the data set must draw images again, and '
                'the batch does not name its data set'
            )
        found = [
            (i, *change) for i, n in enumerate(batch.index) for change in self._of(batch, i, n)
        ]
        found = [each for each in found if _visible(labels[each[0]], each[1])]
        numbers = torch.tensor([each[:3] for each in found], dtype=torch.long).reshape(-1, 3)
        return ChangedImages(
            *numbers.T.contiguous(),
            lambda chosen: batch.prepare([found[c][3] for c in chosen.tolist()]),
        )

    def _of(self, batch: ExplainedBatch, i: int, number: int) -> list[tuple[int, int, Any]]:
        """The changes of an image: region, class afterwards, and the item that a loader would get."""
        if number in self._kept:
            return self._kept[number]
        leaf, index = leaf_of(batch.dataset, int(number))
        name = type(leaf).__name__
        if not hasattr(leaf, 'intervene') or not hasattr(leaf, 'interventions'):
            raise ValueError(
                f'{self.owner}.kind is {self.kind!r}, so the data set must draw images again, and '
                f"{name} has no method 'intervene'; use kind='inpaint', which fills the regions of "
                "'gt_seg_map'"
            )
        regions = leaf.metainfo['regions']
        if len(regions) < 4:
            raise ValueError(
                f'{self.owner} compares the effects of parts, and {name} has the regions '
                f'{", ".join(regions)}; it needs three parts or more beside the background'
            )

        def item(sample: dict) -> Any:
            # Random transforms draw the same numbers for an image and its changes
            with seeded(int(number)):
                return item_of(leaf, sample)

        self._check(batch, i, item(leaf.intervene(index)))
        changes, size = [], 0
        for part, variants in leaf.interventions(index, self.kind).items():
            for variant in variants:
                sample = leaf.intervene(index, part, variant)
                size += sum(getattr(value, 'nbytes', 0) for value in sample.values())
                label = int(sample.get('gt_label', -1))
                changes.append((regions.index(part), label, item(sample)))
        if self._bytes + size <= KEPT_BYTES:
            self._bytes += size
            self._kept[number] = changes
        return changes

    def _check(self, batch: ExplainedBatch, i: int, item: Any) -> None:
        """Compares an image that was drawn again without a change."""
        again, seen = batch.prepare([item])[0], batch.inputs[i]
        if again.shape == seen.shape:
            gap = (again.to(seen) - seen).abs().max().item()
            if gap <= 1e-4:
                return
            found = f'differs by up to {gap:.3g}'
        else:
            found = f'has the shape {tuple(again.shape)} instead of {tuple(seen.shape)}'
        raise ValueError(
            f'{self.owner}: sample {int(batch.index[i])}, drawn again without a change, {found} from '
            'the image that the models saw; use a pipeline without random transforms, and the data set '
            'that the batch comes from'
        )


def inpainted(batch: ExplainedBatch, labels: Tensor) -> ChangedImages:
    """The images of a batch with one region each filled from around it, by ``linear_imputation``.

    Args:
        batch (ExplainedBatch): The batch.
        labels (Tensor): Its label maps of shape (N, H, W).
    """
    pairs = [
        (i, part)
        for i, labelled in enumerate(labels)
        for part in labelled.unique().tolist()
        if part not in NO_PARTS and _visible(labelled, part) and (labelled != part).any()
    ]
    image, part = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T.contiguous()

    def make(chosen: Tensor) -> Tensor:
        originals = image[chosen].to(labels.device)
        missing = labels[originals] == part[chosen].to(labels)[:, None, None]
        return linear_imputation(batch.inputs[originals], missing, tolerance=1e-4)

    return ChangedImages(image, part, torch.full_like(part, -1), make)


def _visible(labels: Tensor, part: int) -> bool:
    return int((labels == part).sum()) >= LEAST_PIXELS
