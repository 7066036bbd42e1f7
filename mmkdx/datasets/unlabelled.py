"""Images of a folder, without labels."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mmpretrain.datasets import CustomDataset

from mmkdx.arguments import text
from mmkdx.registry import DATASETS


@DATASETS.register_module()
class UnlabelledImages(CustomDataset):
    """All images below a folder, without labels, for a distillation that needs none.

    Names of folders have no meaning. ``CustomDataset`` with ``with_label=False`` does the same,
    with other error messages.

    Args:
        data_root (str): The folder.
        **kwargs: Other arguments of mmpretrain's ``CustomDataset``, such as ``pipeline``.

    Raises:
        FileNotFoundError: If there is no such folder, or no image in it.
    """

    def __init__(self, data_root: str, **kwargs: Any) -> None:
        text('UnlabelledImages.data_root', data_root, 'the path of a folder')
        kwargs['with_label'] = False
        super().__init__(data_root=os.fspath(data_root), **kwargs)

    def load_data_list(self) -> list[dict]:
        """Lists the images."""
        root = Path(self.img_prefix)
        if not root.is_dir():
            raise FileNotFoundError(
                f'there is no folder {root.resolve()} (data_root of UnlabelledImages)'
            )
        paths = sorted(path for path in root.rglob('*') if self.is_valid_file(path.name))
        if not paths:
            raise FileNotFoundError(
                f'the folder {root.resolve()} (data_root of UnlabelledImages) holds no image '
                f'({", ".join(sorted(self.extensions))})'
            )
        return [dict(img_path=str(path)) for path in paths]
