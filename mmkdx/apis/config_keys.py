"""Finds mistakes in a config that mmengine misses: misspelt keys, NaN, options of a wrong type."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from mmkdx.apis.config_types import check_types

#: The top-level keys that mmengine's Runner and ``Config``, mmpretrain and mmkdx read.
KNOWN = (
    *list(inspect.signature(Runner).parameters)[:-1],
    *('custom_imports', 'env_variables', 'find_unused_parameters', 'model_wrapper_cfg'),
    *('push_dataloader', 'runner_type', 'sync_buffers', 'tta_model', 'tta_pipeline'),
    # Variables that nearly all base configs define
    *('train_pipeline', 'val_pipeline', 'test_pipeline'),
)


def check_keys(cfg: Config) -> None:
    """Refuses misspelt top-level keys, which mmengine would ignore, and wrong options.

    Wrong options are numbers that are not finite, and values of another type; see ``check_types``.

    A key is misspelt if it is nearly a key of ``KNOWN``. But a config may define variables of its
    own, such as ``train_dataset``. So the key is accepted if the config has the known key, too, and
    the key's value also occurs elsewhere.

    Raises:
        ValueError: If there is a misspelt key or a wrong option; the message names it.
    """
    options = cfg.to_dict()
    check_types(options)
    for key in options:
        near = difflib.get_close_matches(key, KNOWN, 1, 0.8)
        if key not in KNOWN and near and not (near[0] in options and _used(options, key)):
            raise ValueError(
                f'{key} is an unknown key; do you mean {near[0]}? A variable of your own needs '
                'another name'
            )


def _used(options: dict, key: str) -> bool:
    """Whether the value of a top-level key also occurs below another key."""

    def stands_in(whole: Any) -> bool:
        if whole == options[key]:
            return True
        if isinstance(whole, dict):
            return any(map(stands_in, whole.values()))
        return isinstance(whole, list | tuple) and any(map(stands_in, whole))

    return any(stands_in(value) for other, value in options.items() if other != key)
