"""A data set whose random augmentations can be repeated."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from functools import cached_property
from os.path import basename
from typing import Any

import numpy as np
import torch
from mmengine.dataset import BaseDataset, DefaultSampler

from mmkdx.arguments import integer
from mmkdx.datasets.wrappers import locate
from mmkdx.registry import DATA_SAMPLERS, DATASETS
from mmkdx.sample_numbers import parts


@DATASETS.register_module()
class SeededViews:
    """Shows each sample in a fixed number of views, so that results of a view can be stored.

    A view is the sample after the random transforms of the pipeline. ``dataset[i]`` is sample i in
    view 0, and ``dataset[i + v * len(dataset)]`` is the same sample in view v. The generators of
    Python, numpy and torch (on the CPU) are seeded by seed, sample and view before the transforms
    run, and restored afterwards. So a view is the same in any process, worker and order. Transforms
    with a generator of their own are not seeded.

    Each data sample gets three fields of meta information: ``position`` (i), ``view`` (v) and
    ``source``. A cache finds its rows by them. Seeds of augmentations are stored as in Wu et al.,
    "TinyViT", ECCV 2022.

    Args:
        dataset (dict | BaseDataset): The data set, or a wrapper of data sets.
        views (int): The number of views of each sample, at least 1. ``ViewSampler`` shows another one in
            each epoch; other samplers show only view 0. Defaults to 1.
        seed (int): The seed of the transforms, at least 0. Defaults to 0.

    Raises:
        ValueError: If an argument is out of range, or, when an item is read, the pipeline makes no
            data sample.
    """

    def __init__(self, dataset: dict | BaseDataset, views: int = 1, seed: int = 0) -> None:
        config = isinstance(dataset, dict) and 'type' in dataset
        self.dataset = DATASETS.build(dataset) if config else dataset
        if isinstance(self.dataset, str | dict) or not isinstance(self.dataset, Sized):
            raise ValueError(f'SeededViews.dataset is {dataset!r}; it must be a data set')
        self.views = integer('SeededViews.views', views, 1)
        self.seed = integer('SeededViews.seed', seed, 0)

    @property
    def metainfo(self) -> dict:
        """The meta information of the wrapped data set."""
        return self.dataset.metainfo

    def full_init(self) -> None:
        """Loads the annotations, and computes ``source`` before workers are started."""
        self.dataset.full_init()
        self.source  # noqa: B018

    def get_data_info(self, index: int) -> dict:
        """The annotation of a sample, the same in all views."""
        return self.dataset.get_data_info(index % len(self))

    def get_cat_ids(self, index: int) -> list[int]:
        """The classes of a sample, the same in all views."""
        return self.dataset.get_cat_ids(index % len(self))

    def __len__(self) -> int:
        """The number of samples; each has ``views`` views."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        view, position = divmod(index, len(self))
        if not 0 <= view < self.views:
            raise IndexError(
                f'index {index} of SeededViews with {len(self)} samples of {self.views} views'
            )
        with seeded(self.seed, position, view):
            data = self.dataset[position]
        if not isinstance(data, dict) or 'data_samples' not in data:
            raise ValueError(
                'SeededViews writes into the data sample of each image, and the pipeline makes none; '
                "end it with dict(type='PackInputs')"
            )
        data['data_samples'].set_metainfo(dict(position=position, view=view, source=self.source))
        return data

    @cached_property
    def source(self) -> str:
        """Two hashes of the samples and their augmentations, ``<data>.<pipeline>``.

        The first covers the wrappers' types, the number of samples, and the annotations of 64
        evenly spaced samples without folders. The second covers the transforms' texts and the seed.
        """
        all_parts, count = list(_all_parts(self.dataset)), len(self)
        looked_at = np.unique(np.linspace(0, count - 1, 64).astype(int)) if count else ()
        data = [[type(part).__name__ for part in all_parts], count]
        for leaf, index in (locate(self.dataset, int(index)) for index in looked_at):
            if hasattr(leaf, 'get_data_info'):
                data.append(_say(leaf.get_data_info(index)))
        pipelines = [repr(part.pipeline) for part in all_parts if hasattr(part, 'pipeline')]
        pipelines = [re.sub(r' at 0x[0-9a-fA-F]+', '', text) for text in pipelines]
        hashes = (hashlib.sha256(repr(each).encode()) for each in (data, [*pipelines, self.seed]))
        return '.'.join(each.hexdigest()[:16] for each in hashes)


@DATA_SAMPLERS.register_module()
class ViewSampler(DefaultSampler):
    """mmengine's ``DefaultSampler`` that shows view e mod ``views`` of ``SeededViews`` in epoch e.

    The keyword arguments are those of ``DefaultSampler``: shuffle, seed and round_up.
    """

    def __init__(self, dataset: Sized, **kwargs: Any) -> None:
        if not isinstance(dataset, SeededViews):
            raise ValueError(
                f'ViewSampler needs a data set with views, and {type(dataset).__name__} has none; let '
                'train_dataloader.dataset be of type SeededViews'
            )
        super().__init__(dataset, **kwargs)

    def __iter__(self) -> Iterator[int]:
        """Yields this rank's indices."""
        first = self.epoch % self.dataset.views * len(self.dataset)
        return (first + index for index in super().__iter__())


@contextmanager
def seeded(*seed: int) -> Iterator[None]:
    """A context in which the generators of Python, numpy and torch are seeded; it restores them."""
    words = np.random.SeedSequence(seed).generate_state(3).tolist()
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=()):
        # Not torch.manual_seed, which would seed devices as well
        torch.default_generator.manual_seed(words[2])
        try:
            random.seed(words[0])
            np.random.seed(words[1])
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _all_parts(dataset: Any) -> Iterator[Any]:
    """A data set and all that it wraps."""
    yield dataset
    for part in parts(dataset):
        yield from _all_parts(part)


def _say(value: Any) -> Any:
    """A form of an annotation's value whose text shows all of it except the folders of files."""
    if isinstance(value, dict):
        return [(key, _say(value[key])) for key in sorted(value)]
    if isinstance(value, list | tuple):
        return [_say(each) for each in value]
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        content = hashlib.sha256(np.ascontiguousarray(value)).hexdigest()
        return [str(value.dtype), value.shape, content]
    if isinstance(value, np.generic):
        return value.item()
    return basename(value) if isinstance(value, str) else value
