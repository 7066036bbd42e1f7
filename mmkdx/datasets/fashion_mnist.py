"""mmpretrain's Fashion-MNIST, with errors that tell where to get missing files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from mmpretrain import datasets

from mmkdx.arguments import flag, one_of, text
from mmkdx.datasets.listing import existing
from mmkdx.registry import DATASETS

#: The bytes before the first image, before the first label, and of one image.
IMAGE_HEADER, LABEL_HEADER, IMAGE_SIZE = 16, 8, 28 * 28


@DATASETS.register_module()
class FashionMNIST(datasets.FashionMNIST):
    """70,000 pictures of clothes in ten classes: 60,000 to train on and 10,000 to test on.

    Source: H. Xiao, K. Rasul and R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking
    Machine Learning Algorithms", arXiv:1708.07747, 2017. As in mmpretrain ``img`` is uint8 of shape
    (28, 28), one grey channel. Each split needs the files of both.

    Args:
        data_root (str): The folder with the four unpacked files, such as 'train-images-idx3-ubyte'.
            Defaults to 'data/fashion_mnist'.
        split (str): 'train' or 'test'. Defaults to 'train'.
        download (bool): Whether mmpretrain downloads missing files. Defaults to False.
        **kwargs: Other arguments of mmpretrain's ``FashionMNIST``, such as ``pipeline``.

    Raises:
        FileNotFoundError: If a file is missing and ``download`` is False.
        ValueError: If an argument is out of its range, or images and labels differ in number.
    """

    def __init__(
        self,
        data_root: str = 'data/fashion_mnist',
        split: str = 'train',
        *,
        download: bool = False,
        **kwargs: Any,
    ) -> None:
        text('FashionMNIST.data_root', data_root, 'the path of a folder')
        one_of('FashionMNIST.split', split, ('train', 'test'))
        flag('FashionMNIST.download', download)
        kwargs.setdefault('test_mode', split == 'test')
        super().__init__(data_root, split, download=download, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Reads the images and labels of the split."""
        root = Path(self.data_prefix['root'])
        files = [root / Path(name).stem for name, _ in self.train_list + self.test_list]
        advice = (
            "install Debian's package dataset-fashion-mnist and unpack its four files there: "
            f'mkdir -p {root}; for f in /usr/share/datasets/fashion-mnist/*.gz; do '
            f'gunzip -c $f > {root}/$(basename $f .gz); done'
        )
        if self.download and not self._check_exists():
            return super().load_data_list()
        for path in files:
            existing(path, 'in data_root of FashionMNIST', advice)
        images, labels = files[2:] if self.test_mode else files[:2]
        pixels = np.fromfile(images, np.uint8, offset=IMAGE_HEADER)
        classes = np.fromfile(labels, np.uint8, offset=LABEL_HEADER)
        if len(pixels) != IMAGE_SIZE * len(classes):
            raise ValueError(
                f'{images} has {len(pixels):,} pixels instead of {IMAGE_SIZE} for each of the '
                f'{len(classes):,} labels in {labels.name}, so one of them is incomplete; {advice}'
            )
        # mmpretrain's code makes a tensor of each label, which takes two seconds
        return [
            dict(img=img, gt_label=label)
            for img, label in zip(pixels.reshape(-1, 28, 28), classes.tolist())
        ]
