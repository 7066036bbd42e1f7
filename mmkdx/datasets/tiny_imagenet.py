"""Tiny-ImageNet: 200 classes of ImageNet at 64 × 64."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mmpretrain.datasets import BaseDataset

from mmkdx.arguments import flag, one_of, text
from mmkdx.datasets.listing import check_images
from mmkdx.registry import DATASETS

URL = 'http://cs231n.stanford.edu/tiny-imagenet-200.zip'


@DATASETS.register_module()
class TinyImageNet(BaseDataset):
    """Tiny-ImageNet: 100,000 images of 200 classes to train on, 10,000 to validate on.

    Source: Stanford's course CS231n; the public folder as it is. Copies with validation images in
    ``val/<id>/`` or ``val/<id>/images/`` are read as well.

    Classes are the WordNet ids in ascending order, which is not the order of 'wnids.txt'. That file
    only tells which ids there are; without it there must be 200.

    A sample has ``img_path`` and ``gt_label``; the test split has no public labels.

    Args:
        data_root (str): The folder. Defaults to 'data/tiny-imagenet-200'.
        split (str): 'train' or 'val'. Defaults to 'train'.
        allow_outside (bool): Whether paths may leave the folder of images. Defaults to False.
        **kwargs: Other arguments of mmpretrain's ``BaseDataset``, such as ``pipeline``.

    Raises:
        FileNotFoundError: If the folder or images are missing.
        ValueError: If the split is unknown, has images of other classes than it should, or a path
            leaves the folder.
    """

    def __init__(
        self,
        data_root: str = 'data/tiny-imagenet-200',
        split: str = 'train',
        allow_outside: bool = False,
        **kwargs: Any,
    ) -> None:
        self.allow_outside = flag('TinyImageNet.allow_outside', allow_outside)
        text('TinyImageNet.data_root', data_root, 'the path of a folder')
        self.split = one_of('TinyImageNet.split', split, ('train', 'val'))
        super().__init__(
            ann_file='', data_root=data_root, data_prefix=split, test_mode=split == 'val', **kwargs
        )

    def load_data_list(self) -> list[dict]:
        """Finds the images and their classes."""
        root = Path(self.img_prefix)
        again = f'unpack {URL} again'
        annotations = root / 'val_annotations.txt'
        # Other folders, such as an emptied val/images, are no classes
        folders = sorted(path for path in root.glob('n*') if re.fullmatch(r'n\d{8}', path.name))
        if folders:
            samples = [
                (path, each.name) for each in folders for path in sorted(each.rglob('*.JPEG'))
            ]
        elif annotations.is_file():
            rows = [
                line.split('\t') for line in annotations.read_text().split('\n') if line.strip()
            ]
            samples = [(root / 'images' / name, wordnet_id) for name, wordnet_id, *_ in rows]
            names = [name for name, *_ in rows]
            check_images(root / 'images', names, annotations.name, again, self.allow_outside)
        else:
            raise FileNotFoundError(
                'there are neither folders named by WordNet ids nor val_annotations.txt in '
                f'{root.resolve()} (data_root and split of TinyImageNet); unpack {URL}'
            )

        ids = sorted({wordnet_id for _, wordnet_id in samples})
        listed = Path(self.data_root, 'wnids.txt')
        public = listed.read_text().split() if listed.is_file() else None
        if set(ids) != set(public) if public else len(ids) != 200:
            raise ValueError(
                f'{root.resolve()} has images of {len(ids)} classes, and not of the '
                f'{f"{len(public)} of {listed.name}" if public else "200 of Tiny-ImageNet"}; {again}'
            )
        self._metainfo.setdefault('classes', tuple(ids))
        labels = {wordnet_id: label for label, wordnet_id in enumerate(ids)}
        return [
            dict(img_path=str(path), gt_label=labels[wordnet_id]) for path, wordnet_id in samples
        ]
