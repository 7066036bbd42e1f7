"""mmpretrain's CIFAR-10 and CIFAR-100, with errors that tell where to get missing files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmpretrain import datasets
from mmpretrain.datasets.utils import check_md5

from mmkdx.arguments import flag, text
from mmkdx.registry import DATASETS


class _Named:
    """Names the missing or damaged file if a data set in CIFAR's format cannot be read."""

    def __init__(self, data_root: str = '', *args: Any, **kwargs: Any) -> None:
        owner = type(self).__name__
        for key, value in dict(
            data_root=data_root, data_prefix=kwargs.get('data_prefix', '')
        ).items():
            text(f'{owner}.{key}', value, 'the path of a folder')
        for key in {'download', 'test_mode'} & set(kwargs):
            flag(f'{owner}.{key}', kwargs[key])
        super().__init__(data_root, *args, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Reads images and labels."""
        try:
            return super().load_data_list()
        # mmpretrain's code raises two kinds of errors itself, and all errors of the download
        except (AssertionError, OSError, RuntimeError) as error:
            folder = Path(self.data_prefix['root'], self.base_folder).resolve()
            for name, md5 in self.train_list + self.test_list:
                path = folder / name
                state = 'is damaged or another file (its MD5 is not the public one)'
                if not path.is_file():
                    state = 'is missing'
                elif md5 is None or check_md5(path, md5):
                    continue
                failed = f'downloading it failed: {error}' if self.download else 'download=False'
                raise FileNotFoundError(
                    f'{path} {state} ({failed}); unpack {self.url} into {folder.parent}, the '
                    f'data_root of {type(self).__name__}'
                ) from error
            raise


@DATASETS.register_module()
class CIFAR10(_Named, datasets.CIFAR10):
    """mmpretrain's CIFAR-10, with a sentence instead of a traceback if a download fails.

    Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. As in
    mmpretrain ``img`` is uint8 of shape (32, 32, 3), RGB. Each split needs the files of both.

    Raises:
        FileNotFoundError: If files are missing or damaged and could not be downloaded.
    """


@DATASETS.register_module()
class CIFAR100(_Named, datasets.CIFAR100):
    """mmpretrain's CIFAR-100; see ``CIFAR10``."""
