"""STL-10: the labelled images of ten classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmpretrain.datasets import BaseDataset

from mmkdx.arguments import integer, one_of, text
from mmkdx.datasets.listing import existing
from mmkdx.registry import DATASETS

URL = 'http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz'
#: Bytes of an image: three planes of 96 × 96.
IMAGE_SIZE = 3 * 96 * 96


@DATASETS.register_module()
class STL10(BaseDataset):
    """The labelled images of STL-10, 5,000 to train on and 8,000 to test on.

    Source: A. Coates, H. Lee and A. Y. Ng, "An Analysis of Single-Layer Networks in Unsupervised Feature
    Learning", AISTATS 2011; the binary files as they are, without the unlabelled images (2.7 GB).

    A sample has ``img``, uint8 of shape (96, 96, 3), RGB as in mmpretrain's CIFAR, and
    ``gt_label``. It needs no loading transform: each image is read when it is asked for.

    Args:
        data_root (str): The folder with 'train_X.bin' and 'train_y.bin', or with 'test_X.bin' and
            'test_y.bin' for the test split. Defaults to 'data/stl10_binary'.
        split (str): 'train' or 'test'. Defaults to 'train'.
        fold (int, optional): One of the ten public folds, 0 to 9, of 1,000 training images each; it
            needs 'fold_indices.txt'. Defaults to None (all images).
        **kwargs: Other arguments of mmpretrain's ``BaseDataset``, such as ``pipeline``.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If an argument is out of its range, or files are incomplete or do not fit
            together.
    """

    #: The order of the channels of ``img``.
    channel_order = 'rgb'
    METAINFO = {'classes': 'airplane bird car cat deer dog horse monkey ship truck'.split()}

    def __init__(
        self,
        data_root: str = 'data/stl10_binary',
        split: str = 'train',
        fold: int | None = None,
        **kwargs: Any,
    ) -> None:
        text('STL10.data_root', data_root, 'the path of a folder')
        self.split = one_of('STL10.split', split, ('train', 'test'))
        if fold is not None and split != 'train':
            raise ValueError(f"fold goes with split 'train'; it is {fold} with {split!r}")
        self.fold = None if fold is None else integer('STL10.fold', fold, 0, 9)
        super().__init__(ann_file='', data_root=data_root, test_mode=split == 'test', **kwargs)

    def load_data_list(self) -> list[dict]:
        """Reads labels and the fold; images are read by ``get_data_info``."""
        path = self._file(f'{self.split}_y.bin')
        labels = np.fromfile(path, np.uint8)
        wrong = np.setdiff1d(labels, range(1, 11))
        if len(wrong):
            raise ValueError(f'{path} has the labels {wrong.tolist()}; those of STL-10 are 1 to 10')
        images = self._file(f'{self.split}_X.bin')
        size = images.stat().st_size
        if size != len(labels) * IMAGE_SIZE:
            raise ValueError(
                f'{images} has {size:,} bytes instead of {IMAGE_SIZE:,} for each of the {len(labels):,} '
                f'labels in {path.name}: one of them is incomplete; unpack {URL} again'
            )
        indices: Sequence[int] = range(len(labels))
        if self.fold is not None:
            path = self._file('fold_indices.txt')
            lines = path.read_text().splitlines()
            indices = [int(word) for word in lines[self.fold].split()] if len(lines) == 10 else []
            if not indices or not 0 <= min(indices) <= max(indices) < len(labels):
                raise ValueError(
                    f'{path} does not have ten lines of indices of the {len(labels):,} training images; '
                    f'unpack {URL} again'
                )
        return [dict(index=index, gt_label=int(labels[index]) - 1) for index in indices]

    def get_data_info(self, idx: int) -> dict:
        """Reads a sample, with the fields that the class describes."""
        info = super().get_data_info(idx)
        file, offset = self._file(f'{self.split}_X.bin'), info.pop('index') * IMAGE_SIZE
        planes = np.fromfile(file, np.uint8, count=IMAGE_SIZE, offset=offset)
        # Each plane is stored column by column
        info['img'] = np.ascontiguousarray(planes.reshape(3, 96, 96).transpose(2, 1, 0))
        return info

    def _file(self, name: str) -> Path:
        return existing(Path(self.data_root, name), 'below data_root of STL10', f'unpack {URL}')
