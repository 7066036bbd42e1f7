"""Reduces any data set to fewer classes, or to fewer images of each class."""

from __future__ import annotations

import numpy as np
from mmengine.dataset import BaseDataset

from mmkdx.arguments import errors_named, integer, number
from mmkdx.datasets.wrappers import class_names, class_text, labels
from mmkdx.registry import DATASETS


# mmengine's data sets have a method that reduces them, so no wrapper class is needed.
@DATASETS.register_module('ClassSubset')
def class_subset(
    dataset: dict | BaseDataset,
    num_classes: int | None = None,
    ratio: float | None = None,
    per_class: int | None = None,
    seed: int | None = None,
) -> BaseDataset:
    """Keeps some classes of a data set, and some images of each; in configs it is ``ClassSubset``.

    The result is the data set itself, in its own order. It has the names of all its classes, so
    models keep the size of their heads. Samples without a class (with a label of -1) are removed.

    Source: Guo et al., "Class Attention Transfer Based Knowledge Distillation", CVPR 2023, for
    ``num_classes`` and ``ratio``, after the authors' code. ``per_class`` and ``seed`` are from
    Parchami-Araghi et al., "Good Teachers Explain: Explanation-Enhanced Knowledge Distillation",
    ECCV 2024.

    Args:
        dataset (dict | BaseDataset): The data set, with one ``gt_label`` a sample. A built one is
            changed in place.
        num_classes (int, optional): Keeps this many classes, the first ones. Defaults to None
            (all).
        ratio (float, optional): The share of the images of each class to keep, in (0, 1]. Of n
            images int(ratio · n) stay. Defaults to None (all).
        per_class (int, optional): The number of images of each class to keep, instead of ``ratio``.
            Defaults to None (all).
        seed (int, optional): The seed that draws the images. With the same seed, a larger number
            keeps all images of a smaller one. Defaults to None: the first images of each class
            stay.

    Returns:
        BaseDataset: The data set.

    Raises:
        TypeError: If ``dataset`` is a wrapper such as ``RepeatDataset``; put ``ClassSubset`` inside
            it.
        ValueError: If an argument is out of range, or classes, images or labels are missing.
    """
    if ratio is not None and per_class is not None:
        raise ValueError('ClassSubset takes ratio or per_class, not both')
    if ratio is not None:
        number('ClassSubset.ratio', ratio, 0, 1, open_low=True)
    for key, value in dict(num_classes=num_classes, per_class=per_class, seed=seed).items():
        if value is not None:
            integer(f'ClassSubset.{key}', value, 0 if key == 'seed' else 1)
    if isinstance(dataset, dict):
        dataset = DATASETS.build(dataset)
    name = type(dataset).__name__
    if not isinstance(dataset, BaseDataset):
        raise TypeError(f'ClassSubset cannot cut down a {name}; put the {name} around ClassSubset')

    with errors_named('ClassSubset needs labels: '):
        label_of = labels(dataset)
    names = class_names(dataset)
    existing = len(names or range(label_of.max() + 1))
    if num_classes is not None and num_classes > existing:
        raise ValueError(
            f'num_classes of ClassSubset is {num_classes}; {name} has {existing} classes'
        )

    generator = np.random.default_rng(seed)
    kept: list[int] = []
    for label in range(num_classes or existing):
        members = np.flatnonzero(label_of == label)
        count = len(members) if ratio is None else int(len(members) * ratio)
        if per_class is not None:
            count = per_class
        if count > len(members):
            raise ValueError(
                f'per_class of ClassSubset is {per_class}; class {class_text(label, names)} of '
                f'{name} has only {len(members)} images'
            )
        if seed is not None:
            members = generator.permutation(members)
        kept.extend(members[:count].tolist())
    if not kept:
        raise ValueError(f'ClassSubset leaves no image of {name}; set a larger ratio')
    dataset.get_subset_(sorted(kept))
    return dataset
