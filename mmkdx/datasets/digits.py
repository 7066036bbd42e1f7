"""The handwritten digits that come with scikit-learn."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from mmpretrain.datasets import BaseDataset

from mmkdx.arguments import one_of
from mmkdx.registry import DATASETS


@DATASETS.register_module()
class Digits(BaseDataset):
    """1,797 real handwritten digits, which need no download.

    Source: the test part of E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits",
    UCI, 1998, as ``sklearn.datasets.load_digits`` has it (8 × 8 pixels, grey levels 0 to 16). Here they
    are enlarged to 32 × 32 with bilinear interpolation, 8 bits, in three equal channels.

    The split is fixed and stratified: the last 60 images of each class in scikit-learn's order are
    the test split (600 images), the others the training split (1,197). Classes alternate, so the
    first n samples (``indices=n``) hold equal numbers of them until the smallest class ends.

    A sample has ``img``, uint8 of shape (32, 32, 3), and ``gt_label``; it needs no loading transform.

    Args:
        split (str): 'train' or 'test'. Defaults to 'train'.
        **kwargs: Other arguments of mmpretrain's ``BaseDataset``, such as ``pipeline``.

    Raises:
        ValueError: If the split is unknown.
    """

    METAINFO = {'classes': [str(digit) for digit in range(10)]}

    def __init__(self, split: str = 'train', **kwargs: Any) -> None:
        self.split = one_of('Digits.split', split, ('train', 'test'))
        super().__init__(ann_file='', test_mode=split == 'test', **kwargs)

    def load_data_list(self) -> list[dict]:
        """Reads the images of the split."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)
        by_class = [np.flatnonzero(digits.target == label) for label in range(10)]
        # About a third of the rarest class
        part = slice(-60, None) if self.split == 'test' else slice(None, -60)
        # The i-th image of every class, then the next: classes alternate.
        order = sorted(
            (rank, label, index)
            for label, indices in enumerate(by_class)
            for rank, index in enumerate(indices[part])
        )
        return [
            dict(
                img=cv2.cvtColor(cv2.resize(images[index], (32, 32)), cv2.COLOR_GRAY2BGR),
                gt_label=label,
            )
            for _, label, index in order
        ]
