"""Samplers that mmengine and mmpretrain lack."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

import numpy as np
from mmengine.dataset import DefaultSampler

from mmkdx.registry import DATA_SAMPLERS


@DATA_SAMPLERS.register_module()
class PairSampler(DefaultSampler):
    """Yields pairs one after the other: x0, x0', x1, x1', ..., for losses that compare two images.

    The images x are those of mmengine's ``DefaultSampler``, in its order: each image once in an epoch,
    on several ranks so many that all have the same number. So there are twice as many indices as
    images, and with twice the ``batch_size`` as many steps in an epoch as without pairs. With an even
    ``batch_size`` no pair is torn apart.

    Partners are drawn anew for each epoch, by seed and epoch. Copies of an image that a wrapper such as
    ``RepeatDataset`` makes are one image.

    Args:
        dataset (Sized): The data set. For ``same='class'`` it is one of mmengine's or a wrapper of
            such, with one ``gt_label`` in each sample.
        same (str): What the two of a pair have in common. With 'class' the partner is another image of
            the same class, each of them as likely; itself, where it is the only one. With 'image' it is
            the image itself, which the random transforms turn into two views. Defaults to 'class'.
        shuffle (bool): Whether x come in random order. Partners are drawn in any case. Defaults to
            True.
        seed (int, optional): The seed, the same on all ranks. Defaults to None: mmengine's.

    Raises:
        ValueError: If ``same`` is unknown, or the labels that it needs are missing.
    """

    def __init__(
        self, dataset: Sized, same: str = 'class', shuffle: bool = True, seed: int | None = None
    ) -> None:
        super().__init__(dataset, shuffle=shuffle, seed=seed)
        if same not in ('class', 'image'):
            raise ValueError(f'same is {same!r}; it must be one of class, image')
        self.same = same
        if same == 'image':
            return
        samples = _samples(dataset)
        images = {image: i for i, image in enumerate(dict.fromkeys(image for image, _ in samples))}
        #: For each index the number of its image.
        self._image = np.array([images[image] for image, _ in samples])
        # For each image its first index and its class
        first = np.unique(self._image, return_index=True)[1]
        labels = np.array([samples[index][1] for index in first])
        order = labels.argsort(kind='stable')
        #: The first indices of the images, class by class.
        self._members = first[order]
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        _, label, count = np.unique(labels, return_inverse=True, return_counts=True)
        start = count.cumsum() - count
        #: For each image, where its class starts among these, how many it has, and its own place.
        self._start, self._count = start[label], count[label]
        self._place = place - self._start

    def __iter__(self) -> Iterator[int]:
        """Yields this rank's indices."""
        own = np.array(list(super().__iter__()))
        other = own if self.same == 'image' else self._partners()[own]
        return iter(np.stack([own, other], 1).flatten().tolist())

    def __len__(self) -> int:
        """The number of indices, two for each pair."""
        return 2 * super().__len__()

    def _partners(self) -> np.ndarray:
        """For each index of the data set that of its partner in this epoch."""
        # Not torch's generator with this seed, by which the order is drawn
        random = np.random.default_rng([self.seed, self.epoch])
        image = self._image
        count = self._count[image]
        drawn = random.integers(np.maximum(count - 1, 1))
        # The own place is passed over
        drawn = drawn + ((drawn >= self._place[image]) & (count > 1))
        return self._members[self._start[image] + drawn]


def _samples(dataset: Any) -> list[tuple[tuple[int, ...], int]]:
    """For each index what tells images apart, and the label."""
    if hasattr(dataset, 'datasets'):  # a ConcatDataset, whose parts count positions of their own
        return [
            ((part, *image), label)
            for part, each in enumerate(dataset.datasets)
            for image, label in _samples(each)
        ]
    samples = []
    for index in range(len(dataset)):
        info = dataset.get_data_info(index) if hasattr(dataset, 'get_data_info') else {}
        label = info.get('gt_label')
        if not isinstance(label, int | np.integer):
            raise ValueError(
                "PairSampler with same='class' needs one gt_label in each sample of the data set, and "
                f"sample {index} of {type(dataset).__name__} has {label!r}; use same='image' or "
                'another data set'
            )
        samples.append(((info.get('sample_idx', index),), int(label)))
    return samples
