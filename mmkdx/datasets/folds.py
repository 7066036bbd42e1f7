"""Holds out a part of the training data in a config."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmkdx.arguments import flag, integer
from mmkdx.datasets.wrappers import labels, type_name, with_pipeline
from mmkdx.registry import DATASETS

#: Wrappers that take only a data set without wrappers, so a fold is put around them.
INNER = ('ClassSubset', 'KFoldDataset')


@DATASETS.register_module()
class StratifiedFold:
    """All folds of a data set except one, to train on, or only this one, to validate on.

    The images are shuffled and each fold has about the same share of each class (scikit-learn's
    ``StratifiedKFold``). Classes are ignored (``KFold``) if images have no label or several, or if
    no class has ``num_folds`` images. Unlike mmpretrain's ``KFoldDataset`` it takes any data set.

    Args:
        dataset (dict): The config of the data set.
        fold (int): Which fold is held out, from 0. Defaults to 0.
        num_folds (int): The number of folds, at least 2. Defaults to 5.
        held_out (bool): Whether to show the held-out fold instead of the rest. Defaults to False.
        seed (int): The random seed of the shuffling. Defaults to 0.

    Raises:
        ValueError: If an argument is out of range, or there are fewer images than folds.
    """

    def __init__(
        self,
        dataset: dict,
        fold: int = 0,
        num_folds: int = 5,
        held_out: bool = False,
        seed: int = 0,
    ) -> None:
        from sklearn.model_selection import KFold, StratifiedKFold

        integer('StratifiedFold.num_folds', num_folds, 2)
        integer('StratifiedFold.fold', fold, 0, num_folds - 1)
        flag('StratifiedFold.held_out', held_out)
        integer('StratifiedFold.seed', seed, 0)
        self.dataset = DATASETS.build(dataset)
        count = len(self.dataset)
        if count < num_folds:
            raise ValueError(
                f'StratifiedFold: {type(self.dataset).__name__} has {count} images, which cannot be '
                f'divided into {num_folds} folds'
            )
        try:
            known = labels(self.dataset)
        except ValueError:
            known = np.zeros(count, int)
        enough = np.unique(known, return_counts=True)[1].max() >= num_folds
        kind = StratifiedKFold if enough else KFold
        folds = kind(num_folds, shuffle=True, random_state=seed).split(known, known)
        #: For each image its index in ``dataset``; wrappers.py reads it.
        self.indices = list(folds)[fold][int(held_out)].tolist()

    @property
    def metainfo(self) -> dict:
        """The meta information of the wrapped data set."""
        return self.dataset.metainfo

    def full_init(self) -> None:
        """Does nothing, as the annotations are already loaded."""

    def get_data_info(self, index: int) -> dict:
        """The annotation of a sample."""
        return self.dataset.get_data_info(self.indices[index])

    def get_cat_ids(self, index: int) -> list[int]:
        """The classes of a sample."""
        return self.dataset.get_cat_ids(self.indices[index])

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[self.indices[index]]


def training_folds(dataset: dict, fold: int, num_folds: int) -> dict:
    """The config of training data without one fold, also without wrappers' copies of its images."""
    inner = dataset.get('datasets') or dataset.get('dataset')
    if inner is None or type_name(dataset) in INNER:
        return dict(type='StratifiedFold', dataset=dataset, fold=fold, num_folds=num_folds)
    if isinstance(inner, list | tuple):
        return {**dataset, 'datasets': [training_folds(each, fold, num_folds) for each in inner]}
    return {**dataset, 'dataset': training_folds(inner, fold, num_folds)}


def held_out_fold(dataset: dict, fold: int, num_folds: int, pipeline: list[dict]) -> dict:
    """The config of the fold that ``training_folds`` leaves out: images once, other transforms."""
    folds = [
        {**each, 'held_out': True} for each in _folds(training_folds(dataset, fold, num_folds))
    ]
    found = folds[0] if len(folds) == 1 else dict(type='ConcatDataset', datasets=folds)
    return with_pipeline(found, pipeline)


def _folds(dataset: dict) -> list[dict]:
    """The folds in a config of ``training_folds``, without the wrappers around them."""
    if dataset['type'] == 'StratifiedFold':
        return [dataset]
    inner = dataset.get('datasets') or [dataset['dataset']]
    return [each for part in inner for each in _folds(part)]
