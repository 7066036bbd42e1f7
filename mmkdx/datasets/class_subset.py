"""Fewer classes, or fewer images of each, of any data set."""

from __future__ import annotations

import numpy as np
from mmengine.dataset import BaseDataset

from mmkdx.arguments import errors_named, integer, number
from mmkdx.datasets.wrappers import class_names, class_text, labels
from mmkdx.registry import DATASETS


# mmengine cuts a data set down by itself, so no class is wrapped around it.
@DATASETS.register_module('ClassSubset')
def class_subset(
    dataset: dict | BaseDataset,
    num_classes: int | None = None,
    ratio: float | None = None,
    per_class: int | None = None,
    seed: int | None = None,
) -> BaseDataset:
    """Keeps some classes of a data set, and some images of each; in configs it is ``ClassSubset``.

    The result is the data set itself, in its own order and with the names of all its classes, so that
    models keep the size of their heads. Samples of no class (with a label of -1) go.

    Source: Guo et al., "Class Attention Transfer Based Knowledge Distillation", CVPR 2023
    (``num_classes`` and ``ratio``, after the authors' code), and Parchami-Araghi et al., "Good Teachers
    Explain: Explanation-Enhanced Knowledge Distillation", ECCV 2024 (``per_class`` and ``seed``).

    Args:
        dataset (dict | BaseDataset): The data set, with one ``gt_label`` a sample. A built one is
            changed in place.
        num_classes (int, optional): How many classes stay, the first ones. Defaults to None (all).
        ratio (float, optional): Which share of the images of each class stays, in (0, 1]; of n
            images int(ratio · n). Defaults to None (all).
        per_class (int, optional): How many images of each class stay, instead of ``ratio``. Defaults to
            None (all).
        seed (int, optional): Draws the images. With the same seed those of a smaller number are among
            those of a larger one. Defaults to None: the first images of each class stay.

    Returns:
        BaseDataset: The data set.

    Raises:
        TypeError: If ``dataset`` is a wrapper, such as ``RepeatDataset``, which goes around it.
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
