"""Numbers the images of a data set that has several parts.

A data sample of mmengine has the number of its image, ``sample_idx``. In a ``ConcatDataset`` each
part counts from 0, so two images can have the same number. ``number_concatenated_samples`` adds the
number of images before the part. It changes the class itself, so it works whoever builds the data
set.
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from mmengine.dataset import BaseDataset, ConcatDataset
from torch.utils.data import ConcatDataset as TorchConcatDataset


def parts(dataset: Any) -> Sequence[Any]:
    """The data sets that a wrapper holds: several, one, or none if it is no wrapper."""
    if isinstance(dataset, BaseDataset):
        return ()
    several = getattr(dataset, 'datasets', None)
    if several is not None:
        return several
    one = getattr(dataset, 'dataset', None)
    return () if one is None else (one,)


def extent(dataset: Any) -> int:
    """The number of images in all data sets that the wrappers hold, together."""
    inner = parts(dataset)
    return sum(map(extent, inner)) if inner else len(dataset)


def number_concatenated_samples() -> None:
    """Makes ``sample_idx`` count through all parts of torch's and mmengine's ``ConcatDataset``.

    Unnecessary once mmengine's own does.
    """
    if TorchConcatDataset.__reduce_ex__ is _reduce:
        return
    TorchConcatDataset.__reduce_ex__ = _reduce
    TorchConcatDataset.__getitem__ = _counting(TorchConcatDataset.__getitem__)
    # mmengine's subclass reads items by its own code
    ConcatDataset.__getitem__ = _counting(ConcatDataset.__getitem__)
    ConcatDataset.get_data_info = _counting(ConcatDataset.get_data_info)


def _counting(method: Callable) -> Callable:
    @wraps(method)
    def call(self: Any, index: int) -> Any:
        item = method(self, index)
        index = index + len(self) if index < 0 else index
        before = sum(map(extent, self.datasets[: bisect_right(self.cumulative_sizes, index)]))
        return _moved(item, before) if before else item

    return call


def _moved(item: Any, by: int) -> Any:
    """Adds to ``sample_idx`` in a copy of an annotation, item or sample; data sets keep items."""
    if isinstance(item, list):
        return [_moved(each, by) for each in item]
    if isinstance(item, dict):
        item = dict(item)
        if 'sample_idx' in item:
            item['sample_idx'] += by
        if 'data_samples' in item:
            item['data_samples'] = _moved(item['data_samples'], by)
    elif 'sample_idx' in getattr(item, 'metainfo_keys', lambda: ())():
        item = copy.copy(item)
        item.set_metainfo(dict(sample_idx=item.sample_idx + by))
    return item


def _reduce(dataset: Any, protocol: int) -> tuple:
    """Pickles a data set so that loading it imports mmkdx, which changes the class there, too."""
    return _new, (type(dataset),), dataset.__dict__


def _new(kind: type) -> Any:
    return kind.__new__(kind)
