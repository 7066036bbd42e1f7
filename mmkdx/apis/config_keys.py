"""Mistakes in a config that mmengine does not see: misspelt keys, NaN, options of a wrong kind."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from mmkdx.apis.config_types import check_types

#: What mmengine's Runner reads of a config, and what its ``Config``, mmpretrain and mmkdx read beside.
KNOWN = (
    *list(inspect.signature(Runner).parameters)[:-1],
    *('custom_imports', 'env_variables', 'find_unused_parameters', 'model_wrapper_cfg'),
    *('push_dataloader', 'runner_type', 'sync_buffers', 'tta_model', 'tta_pipeline'),
    # Names of variables that nearly all base configs have
    *('train_pipeline', 'val_pipeline', 'test_pipeline'),
)


def check_keys(cfg: Config) -> None:
    """Refuses misspelt keys at the top of a config, which mmengine would ignore, and wrong options.

    Wrong are numbers that are not finite, and values of another kind; see ``check_types``.

    A key is misspelt if it is nearly one of ``KNOWN``, unless that one is there, too, and the value
    stands in another place: a config may define variables of its own, such as ``train_dataset``.

    Raises:
        ValueError: If there is one; the message names it.
    """
    options = cfg.to_dict()
    check_types(options)
    for key in options:
        near = difflib.get_close_matches(key, KNOWN, 1, 0.8)
        if key not in KNOWN and near and not (near[0] in options and _used(options, key)):
            raise ValueError(
                f'{key} is no key that is read; do you mean {near[0]}? A variable of your own needs '
                'another name'
            )


def _used(options: dict, key: str) -> bool:
    """Whether a value at the top stands below another key, too."""

    def stands_in(whole: Any) -> bool:
        if whole == options[key]:
            return True
        if isinstance(whole, dict):
            return any(map(stands_in, whole.values()))
        return isinstance(whole, list | tuple) and any(map(stands_in, whole))

    return any(stands_in(value) for other, value in options.items() if other != key)
