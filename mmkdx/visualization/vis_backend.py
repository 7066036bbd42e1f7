"""The files of a run's visualizer: its pictures and ``scalars.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mmengine.visualization
import numpy as np
from mmengine.fileio import dump
from mmengine.visualization.vis_backend import force_init_env

from mmkdx.arguments import text
from mmkdx.files import append_text
from mmkdx.registry import VISBACKENDS
from mmkdx.visualization.rendering import write_picture


@VISBACKENDS.register_module()
class LocalVisBackend(mmengine.visualization.LocalVisBackend):
    """mmengine's ``LocalVisBackend``, with an error for each file that cannot be written.

    mmengine leaves out a picture without a word when the disk is full. A config with
    ``default_scope = 'mmkdx'`` gets this class under mmengine's name.

    Args:
        save_dir (str): The folder of the files. mmengine's Runner sets it.
        **names: mmengine's ``img_save_dir``, ``config_save_file`` and ``scalar_save_file``.

    Raises:
        ValueError: If one of them is no text.
    """

    def __init__(self, save_dir: str, **names: str) -> None:
        for name, value in dict(save_dir=save_dir, **names).items():
            text(f'LocalVisBackend.{name}', value)
        super().__init__(save_dir, **names)

    @force_init_env
    def add_image(self, name: str, image: np.ndarray, step: int = 0, **kwargs: Any) -> None:
        """Writes a picture, RGB, uint8 of shape (H, W, 3)."""
        write_picture(Path(self._img_save_dir, f'{name}_{step}.png'), image)

    def _dump(self, value_dict: dict[str, Any], file_path: str, file_format: str) -> None:
        append_text(file_path, f'{dump(value_dict, file_format=file_format)}\n')
