"""Reads data sets through nested wrappers, built ones (first half) or configs (second half).

A wrapper has an attribute ``datasets`` or ``dataset``. It also has ``indices`` if it shows only
some images or another order.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine import list_from_file
from mmengine.dataset import BaseDataset, Compose
from mmengine.registry import DefaultScope
from mmpretrain.datasets import CIFAR10, MNIST, KFoldDataset

from mmkdx.registry import DATASETS, TRANSFORMS
from mmkdx.sample_numbers import extent, parts


def positions(dataset: Any) -> np.ndarray:
    """The ``sample_idx`` of the data sample at each index of a data set, of shape (len, ).

    All copies of an image that a wrapper makes have one ``sample_idx``. If there are several parts,
    images are counted one part after the other.

    Raises:
        ValueError: If a wrapper does not say which images it shows.
    """
    return _positions(dataset, np.arange(len(dataset)))


def images(dataset: Any) -> dict[int, int]:
    """The first index that shows each image, by ``sample_idx`` in ascending order."""
    numbers, first = np.unique(positions(dataset), return_index=True)
    return dict(zip(numbers.tolist(), first.tolist()))


def leaves(dataset: Any) -> list[Any]:
    """The data sets without wrappers, in order; the data set itself if it is no wrapper."""
    inner = parts(dataset)
    return [leaf for part in inner for leaf in leaves(part)] if inner else [dataset]


def locate(dataset: Any, index: int) -> tuple[Any, int]:
    """The data set without wrappers that holds a sample, and the sample's index in it."""
    return leaf_of(dataset, int(_positions(dataset, np.array([index]))[0]))


def leaf_of(dataset: Any, number: int) -> tuple[Any, int]:
    """The data set without wrappers that holds the image ``sample_idx``, and its index there."""
    position = number
    for leaf in leaves(dataset):
        if position < len(leaf):
            break
        position -= len(leaf)
    return leaf, position


def pipelines(dataset: Any) -> list[Compose]:
    """The transforms of each data set without wrappers that has some."""
    return [leaf.pipeline for leaf in leaves(dataset) if hasattr(leaf, 'pipeline')]


def item_of(leaf: Any, sample: Any) -> Any:
    """The item of a sample from a data set without wrappers, after its transforms if it has any."""
    return leaf.pipeline(sample) if hasattr(leaf, 'pipeline') else sample


def labels(dataset: Any) -> np.ndarray:
    """The class of each index, of shape (len, ), from annotations or else from the items.

    Raises:
        ValueError: If a sample has no label, or several.
    """
    known = [_annotated_labels(leaf) for leaf in leaves(dataset)]
    if all(each is not None for each in known):
        flat = [label for each in known for label in each]
        found = (flat[position] for position in positions(dataset))
    else:
        found = (_label_of(dataset[index]) for index in range(len(dataset)))
    result = []
    for index, label in enumerate(found):
        if np.ndim(label) or not np.issubdtype(np.asarray(label).dtype, np.integer):
            raise ValueError(
                f'sample {index} of {type(dataset).__name__} has the label {label!r}; each sample must '
                'have one class'
            )
        result.append(int(label))
    return np.array(result, int)


def class_names(dataset: Any) -> tuple[str, ...] | None:
    """The names of the classes; None if the data set has none.

    Raises:
        ValueError: If its parts have different names.
    """
    found = [
        (getattr(leaf, 'metainfo', None) or {}).get('classes', getattr(leaf, 'classes', None))
        for leaf in leaves(dataset)
    ]
    return _one_of_all(found, type(dataset).__name__)


def class_text(label: int, classes: Sequence[str] | None) -> str:
    """A class by name and index, like 'football helmet (560)'; or by index alone."""
    name = classes[label] if classes is not None and 0 <= label < len(classes) else ''
    return f'{name} ({label})' if name not in ('', f'{label}') else f'{label}'


def leaf_configs(dataset: dict) -> list[dict]:
    """The configs of the data sets without wrappers that a config names, in order."""
    inner = dataset.get('datasets') or dataset.get('dataset')
    if inner is None:
        return [dataset]
    inner = inner if isinstance(inner, list | tuple) else [inner]
    return [leaf for part in inner for leaf in leaf_configs(part)]


def config_pipeline(dataset: dict) -> list[dict]:
    """The transforms in the config of a data set, through wrappers.

    Raises:
        ValueError: If its parts have different ones.
    """
    found = [list(leaf.get('pipeline') or ()) for leaf in leaf_configs(dataset)]
    if any(each != found[0] for each in found):
        name = type_name(dataset)
        raise ValueError(
            f'the parts of {name} have different pipelines; use a data set of one pipeline'
        )
    return found[0]


def with_pipeline(dataset: dict, transforms: Sequence[dict]) -> dict:
    """A copy of the config of a data set with other transforms."""
    dataset = copy.deepcopy(dataset)
    for leaf in leaf_configs(dataset):
        leaf['pipeline'] = copy.deepcopy(list(transforms))
    return dataset


def config_class_names(dataset: dict) -> tuple[str, ...] | None:
    """The names of the classes of a data set of this config; None if the config does not name them.

    Raises:
        ValueError: If its parts have different names.
    """
    found = []
    for leaf in leaf_configs(dataset):
        classes = leaf.get('classes')
        # As mmpretrain takes them: a list, or a file with one in each line
        classes = list_from_file(classes) if isinstance(classes, str) else classes
        found.append(
            (leaf.get('metainfo') or {}).get('classes')
            or classes
            or getattr(_class(leaf), 'METAINFO', {}).get('classes')
        )
    return _one_of_all(found, type_name(dataset))


def file_pipeline(dataset: dict, loaded: bool = False) -> list[dict]:
    """The configs of transforms that prepare an image file as this data set prepares its images.

    The pipeline's own ``LoadImageFromFile``, with its options, reads the file. A data set without
    one holds arrays; then the channels of the file get the order of these arrays.

    Args:
        dataset (dict): The config of the data set.
        loaded (bool): Whether the first transform takes an array ``img`` of shape (H, W, 3) in BGR
            instead of ``img_path``. Defaults to False.

    Raises:
        ValueError: If its parts have different pipelines or orders of channels.
    """
    steps = config_pipeline(dataset)
    loader = next((step for step in steps if type_name(step).startswith('LoadImage')), None)
    if loader is None:
        orders = {_order(_class(leaf)) for leaf in leaf_configs(dataset)}
        if len(orders) > 1:
            raise ValueError(f'the parts of {type_name(dataset)} have different orders of channels')
        order = orders.pop()
        loader = dict(type='LoadImageFromFile')
    else:
        steps = [step for step in steps if step is not loader]
        gray = loaded and str(loader.get('color_type')).startswith('gray')
        order = 'gray' if gray else 'bgr'
    change = [] if order == 'bgr' else [dict(type='ChannelOrder', order=order)]
    return [*([] if loaded else [loader]), *change, *steps]


def type_name(config: dict) -> str:
    """The name of the type in a config of a data set or transform, without a scope."""
    kind = config.get('type')
    return getattr(kind, '__name__', None) or str(kind).rpartition('.')[2]


def compose(transforms: Sequence) -> Compose:
    """Builds transforms by the names that mmkdx and mmpretrain know."""
    with DefaultScope.overwrite_default_scope('mmkdx'):
        return Compose(
            [TRANSFORMS.build(each) if isinstance(each, dict) else each for each in transforms]
        )


def _positions(dataset: Any, index: np.ndarray) -> np.ndarray:
    """The numbers of the images that some indices show."""
    inner, count = parts(dataset), len(dataset)
    index = index % max(count, 1)
    if not inner:
        return index
    if not hasattr(dataset, 'datasets'):
        return _positions(inner[0], _inner_indices(dataset, inner[0], index))
    lengths = np.cumsum([len(part) for part in inner])
    if lengths[-1] != count:
        raise ValueError(f'{type(dataset).__name__} does not show its parts one after the other')
    part_of = np.searchsorted(lengths, index, 'right')
    result, before = np.empty_like(index), 0
    for number, part in enumerate(inner):
        here = part_of == number
        start = lengths[number] - len(part)
        result[here] = before + _positions(part, index[here] - start)
        before += extent(part)
    return result


def _inner_indices(dataset: Any, inner: Any, index: np.ndarray) -> np.ndarray:
    """The indices of a wrapped data set that given indices of its wrapper show."""
    if (chosen := getattr(dataset, 'indices', None)) is not None:
        return np.array([chosen[i] for i in index.tolist()], int)
    find = getattr(dataset, '_get_ori_dataset_idx', None)
    # A KFoldDataset finds the indices in the data set that it was made of, and holds a part of it
    if find is not None and not isinstance(dataset, KFoldDataset):
        return np.array([find(i) for i in index.tolist()], int)
    if len(inner) != len(dataset):
        raise ValueError(
            f'{type(dataset).__name__} shows {len(dataset)} of the {len(inner)} images of '
            f'{type(inner).__name__} and does not say which; give it an attribute indices'
        )
    return index


def _annotated_labels(leaf: Any) -> list | None:
    """The labels of a data set without wrappers; None if only the images tell them."""
    if isinstance(leaf, BaseDataset):
        # Not the data set's own method, which may read an image
        read = BaseDataset.get_data_info
        if len(leaf) and 'gt_label' not in read(leaf, 0):
            read = type(leaf).get_data_info
        return [read(leaf, index).get('gt_label') for index in range(len(leaf))]
    targets = getattr(leaf, 'targets', None)
    if targets is None or getattr(leaf, 'target_transform', None) is not None:
        return None
    return np.asarray(targets).tolist()


def _label_of(sample: Any) -> Any:
    """The label in an item: a data sample's, or the second of (image, label)."""
    if isinstance(sample, dict):
        sample = sample.get('data_samples', sample)
        label = sample.get('gt_label', sample.get('label'))
    else:
        label = sample[1] if isinstance(sample, tuple | list) and len(sample) > 1 else None
    # A data sample holds even one label as a tensor of shape (1, )
    return label[0] if getattr(label, 'shape', None) == (1,) else label


def _one_of_all(found: list, name: str) -> tuple[str, ...] | None:
    """The class names that all parts share; parts without names do not count."""
    found = [tuple(map(str, each)) for each in found if each is not None]
    if any(each != found[0] for each in found):
        raise ValueError(f'the parts of {name} have different names of classes')
    return found[0] if found else None


def _class(config: dict) -> Any:
    """The class that a config names."""
    kind = config['type']
    if isinstance(kind, str):
        with DefaultScope.overwrite_default_scope('mmkdx'):
            kind = DATASETS.get(kind)
    return kind


def _order(kind: type | None) -> str:
    """The order of the channels of a data set's arrays: 'rgb', 'bgr' or 'gray'.

    A class names another order than OpenCV's 'bgr' by ``channel_order``; mmpretrain's classes do
    not.
    """
    known = {CIFAR10: 'rgb', MNIST: 'gray'}
    default = next((known[base] for base in known if kind and issubclass(kind, base)), 'bgr')
    return getattr(kind, 'channel_order', default)
