"""Tiny-ImageNet: 200 classes of ImageNet at 64 × 64."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmpretrain.datasets import BaseDataset

from mmkdx.arguments import one_of
from mmkdx.registry import DATASETS

URL = 'http://cs231n.stanford.edu/tiny-imagenet-200.zip'


@DATASETS.register_module()
class TinyImageNet(BaseDataset):
    """Tiny-ImageNet: 100,000 images of 200 classes to train on, 10,000 to validate on.

    Source: Stanford's course CS231n. The public folder is read as it is: 'train' has a folder for each
    WordNet id, 'val' has its images in one folder and their ids in 'val_annotations.txt'. Copies in
    which the validation images lie in folders too, as ``val/<id>/`` or ``val/<id>/images/``, are read
    as well.

    Classes are the WordNet ids in ascending order, in both splits. That is not the order of
    'wnids.txt', which only tells which ids there are (without it there are to be 200).

    A sample has ``img_path`` and ``gt_label``; the test split has no public labels.

    Args:
        data_root (str): The folder. Defaults to 'data/tiny-imagenet-200'.
        split (str): 'train' or 'val'. Defaults to 'train'.
        pipeline (Sequence): The transforms. Defaults to ().
        **kwargs: Other arguments of mmpretrain's ``BaseDataset``.

    Raises:
        FileNotFoundError: If the folder or images are missing.
        ValueError: If the split is unknown, or has images of other classes than it should.
    """

    def __init__(
        self,
        data_root: str = 'data/tiny-imagenet-200',
        split: str = 'train',
        pipeline: Sequence = (),
        **kwargs: Any,
    ) -> None:
        self.split = one_of('TinyImageNet.split', split, ('train', 'val'))
        super().__init__(
            ann_file='',
            data_root=data_root,
            data_prefix=split,
            pipeline=pipeline,
            test_mode=split == 'val',
            **kwargs,
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
                (path, folder.name) for folder in folders for path in sorted(folder.rglob('*.JPEG'))
            ]
        elif annotations.is_file():
            rows = [
                line.split('\t') for line in annotations.read_text().split('\n') if line.strip()
            ]
            samples = [(root / 'images' / name, wordnet_id) for name, wordnet_id, *_ in rows]
            missing = [path.name for path, _ in samples if not path.is_file()]
            if missing:
                raise FileNotFoundError(
                    f'{root.resolve() / "images"} lacks {len(missing):,} of the {len(samples):,} images '
                    f'in val_annotations.txt, among them {missing[0]}; {again}'
                )
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
