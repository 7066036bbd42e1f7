"""Samplers that mmengine and mmpretrain lack."""

from __future__ import annotations

from collections.abc import Iterator, Sized

import numpy as np
from mmengine.dataset import DefaultSampler

from mmkdx.arguments import flag, integer, one_of
from mmkdx.datasets.wrappers import labels, positions
from mmkdx.registry import DATA_SAMPLERS


@DATA_SAMPLERS.register_module()
class PairSampler(DefaultSampler):
    """Yields pairs one after the other: x0, x0', x1, x1', ..., for losses that compare two images.

    mmengine's ``DefaultSampler`` yields the images x. There are twice as many indices as images.
    With twice the ``batch_size``, which must be even, an epoch has as many steps as without pairs.
    Partners are drawn by seed and epoch. Copies of an image that a wrapper such as
    ``RepeatDataset`` makes count as one image.

    Args:
        dataset (Sized): The data set, or a wrapper of data sets. With ``same='class'`` each sample
            must have one class.
        same (str): What the images of a pair have in common. With 'class' the partner is another
            image of the class, drawn uniformly, or the image itself if it is the only one. With
            'image' it is the image itself, and random transforms make two views of it. Defaults to
            'class'.
        shuffle (bool): Whether the order of x is random. Defaults to True.
        seed (int, optional): The seed, the same on all ranks. Defaults to None: mmengine's.

    Raises:
        ValueError: If ``same`` is unknown, or the labels that it needs are missing.
    """

    def __init__(
        self, dataset: Sized, same: str = 'class', shuffle: bool = True, seed: int | None = None
    ) -> None:
        if seed is not None:
            integer('PairSampler.seed', seed, 0)
        super().__init__(dataset, shuffle=flag('PairSampler.shuffle', shuffle), seed=seed)
        self.same = one_of('PairSampler.same', same, ('class', 'image'))
        if same == 'image':
            return
        try:
            label_of = labels(dataset)
        except ValueError as error:
            raise ValueError(
                f"PairSampler with same='class' needs labels, and {error}; use same='image' or another "
                'data set'
            ) from None
        # The first index of each image, and for each index the number of its image
        _, first, image = np.unique(positions(dataset), return_index=True, return_inverse=True)
        order = label_of[first].argsort(kind='stable')
        #: The first indices of the images, class by class.
        self._members = first[order]
        _, label, count = np.unique(label_of[first], return_inverse=True, return_counts=True)
        start = (count.cumsum() - count)[label]
        place = order.argsort() - start
        #: For each index: where its class starts among the members, the class's size, its own place.
        self._start, self._count, self._place = start[image], count[label][image], place[image]

    def __iter__(self) -> Iterator[int]:
        """Yields this rank's indices."""
        own = np.array(list(super().__iter__()))
        other = own if self.same == 'image' else self._partners()[own]
        return iter(np.stack([own, other], 1).flatten().tolist())

    def __len__(self) -> int:
        """The number of indices, two for each pair."""
        return 2 * super().__len__()

    def _partners(self) -> np.ndarray:
        """For each index of the data set, the index of its partner in this epoch."""
        # Not torch's generator with this seed, since it draws the order
        random = np.random.default_rng([self.seed, self.epoch])
        drawn = random.integers(np.maximum(self._count - 1, 1))
        # Skips the image's own place
        drawn += (drawn >= self._place) & (self._count > 1)
        return self._members[self._start + drawn]
