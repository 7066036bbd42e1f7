"""Changes a config so that it validates and tests on a part of its training data."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmkdx.datasets.folds import held_out_fold, training_folds
from mmkdx.datasets.wrappers import config_pipeline, leaf_configs, type_name


def fold_config(cfg: Config, fold: int, num_folds: int, caches: Path) -> Config:
    """Makes a config that holds out one fold of its training data to validate and test on.

    A fold's cached teachers see other data, so their caches get folders of their own.

    Args:
        cfg (Config): The config of a distillation.
        fold (int): The fold that is held out.
        num_folds (int): The number of folds.
        caches (Path): The folder for the caches of all folds.

    Raises:
        ValueError: If the config has no training data or no test transforms, or if another part of
            it reads the test data.
    """
    cfg = copy.deepcopy(cfg)
    loader = cfg.get('val_dataloader') or cfg.get('test_dataloader')
    if not cfg.get('train_dataloader') or not loader:
        raise ValueError(
            f'{cfg.filename}: a search needs train_dataloader for its images, and val_dataloader '
            'or test_dataloader for the transforms of the held-out images'
        )
    data, others = cfg.train_dataloader.dataset.to_dict(), []
    for key in ('val_dataloader', 'test_dataloader'):
        others += leaf_configs(cfg[key].dataset.to_dict()) if cfg.get(key) else []
    pipeline = config_pipeline(loader.dataset.to_dict())
    cfg.train_dataloader.dataset = training_folds(data, fold, num_folds)
    loader = {**loader.to_dict(), 'dataset': held_out_fold(data, fold, num_folds, pipeline)}
    evaluator = cfg.get('val_evaluator') or cfg.get('test_evaluator')
    for part in ('val', 'test'):
        cfg[f'{part}_dataloader'], cfg[f'{part}_evaluator'] = loader, evaluator
        cfg[f'{part}_cfg'] = cfg.get(f'{part}_cfg') or {}
    known = [_source(each) for each in leaf_configs(data)]
    forbidden = [each for each in map(_source, others) if each not in known]
    for key in ('model', 'custom_hooks', 'default_hooks', 'val_evaluator'):
        if any(_source(each) in forbidden for each in _dicts(cfg.get(key))):
            raise ValueError(
                f'{cfg.filename}: {key} reads the test data, which a search must not see; remove it '
                'by --cfg-options'
            )
    for i, teacher in enumerate(cached_teachers(cfg)):
        teacher['cache'] = str(caches / f'fold_{fold}_{i}')
    return cfg


def cached_teachers(cfg: Config) -> list[dict]:
    """The configs of the teachers with cached outputs."""
    return [each for each in _dicts(cfg.model) if type_name(each) == 'CachedTeacher']


def _dicts(part: Any) -> list[dict]:
    """All dicts in a part of a config."""
    inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    found = [part] if isinstance(part, dict) else []
    return found + [each for value in inner for each in _dicts(value)]


def _source(dataset: Mapping) -> dict:
    """The config of a data set without its transforms."""
    return {key: value for key, value in dataset.items() if key != 'pipeline'}
