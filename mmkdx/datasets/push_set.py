"""The images that prototypes are projected onto."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from torch.utils.data import DataLoader

from mmkdx.datasets import wrappers


def push_dataloader(cfg: Config, dataloader: dict | None = None) -> dict:
    """The config of the images that prototypes are projected onto.

    Args:
        cfg (Config): The config of a run.
        dataloader (dict, optional): ``PrototypePushHook.dataloader``. Defaults to None: the config's
            ``push_dataloader``, else the training data with the pipeline of the validation.

    Returns:
        dict: The config of a data loader, a copy.

    Raises:
        ValueError: If the config has none of these.
    """
    dataloader = cfg.get('push_dataloader') if dataloader is None else dataloader
    if dataloader is not None:
        return copy.deepcopy(dataloader)
    if not cfg.get('train_dataloader') or not cfg.get('val_dataloader'):
        raise ValueError(
            'PrototypePushHook.dataloader is missing, and it cannot be made without train_dataloader '
            'and val_dataloader in the config'
        )
    config = copy.deepcopy(cfg.train_dataloader)
    config.dataset = wrappers.with_pipeline(
        config.dataset, wrappers.config_pipeline(cfg.val_dataloader.dataset)
    )
    for key in ('batch_sampler', 'drop_last'):
        config.pop(key, None)
    config.sampler = dict(type='DefaultSampler', shuffle=False)
    return config


def check_push_set(dataloader: DataLoader, num_classes: int) -> None:
    """Checks the images to project onto, for a network of ``num_classes`` classes.

    Raises:
        ValueError: If images are augmented, a class has no image, or an image has no class or
            several.
    """
    dataset = dataloader.dataset
    random = ('random', 'augment', 'jitter', 'erasing', 'mixup', 'cutmix')
    names = [
        type(each).__name__
        for pipeline in wrappers.pipelines(dataset)
        for each in pipeline.transforms
    ]
    named = [name for name in names if any(word in name.lower() for word in random)]
    if named or _differs(dataset):
        what = f'is augmented by {named[0]}' if named else 'yields another image at each reading'
        raise ValueError(
            f'PrototypePushHook.dataloader {what}; prototypes are projected onto images as they are, '
            'so leave random transforms out of its pipeline'
        )
    if missing := np.flatnonzero(images_of_classes(dataset, num_classes) == 0).tolist():
        which = listed(missing, wrappers.class_names(dataset))
        raise ValueError(
            f'PrototypePushHook.dataloader has no image of {len(missing)} of the {num_classes} classes '
            f'({which}), so their prototypes could not be projected'
        )


def images_of_classes(dataset: Any, num_classes: int) -> np.ndarray:
    """The number of images of each class, of shape (num_classes, ); copies of an image count once."""
    classes = wrappers.labels(dataset)[list(wrappers.images(dataset).values())]
    return np.bincount(classes, minlength=num_classes)


def listed(classes: Sequence[int], names: Sequence[str] | None, most: int = 5) -> str:
    """Classes in words, by name and index: ``cat (0), dog (1)``."""
    words = ', '.join(wrappers.class_text(each, names) for each in classes[:most])
    return words + (', ...' if len(classes) > most else '')


def _differs(dataset: Any) -> bool:
    """Whether one of eight images, spread over the data set, differs when it is read again."""
    return any(
        not torch.equal(
            torch.as_tensor(dataset[i]['inputs']), torch.as_tensor(dataset[i]['inputs'])
        )
        for i in np.unique(np.linspace(0, len(dataset) - 1, 8).astype(int)).tolist()
    )
