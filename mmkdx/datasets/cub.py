"""mmpretrain's CUB-200-2011 with the boxes of the birds and the places of their parts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from mmpretrain import datasets

from mmkdx.arguments import flag, one_of, text
from mmkdx.datasets.listing import check_images, existing
from mmkdx.registry import DATASETS

URL = 'https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz'


@DATASETS.register_module()
class CUB(datasets.CUB):
    """Birds of 200 species: 5,994 images to train on, 5,794 to test on.

    Source: C. Wah, S. Branson, P. Welinder, P. Perona and S. Belongie, "The Caltech-UCSD Birds-200-2011
    Dataset", CNS-TR-2011-001; the public folder as it is. In addition to mmpretrain's
    ``img_path`` and ``gt_label``, a sample has

    - ``gt_bboxes``: float32 of shape (1, 4), the bird's box x1, y1, x2, y2 in pixels. x2 is the
      file's x + width. A box may exceed its image by a pixel.
    - with ``parts=True``, ``gt_keypoints``: float32 of shape (1, 15, 2), x and y of each part in pixels,
      0 if it is not visible. ``gt_keypoints_visible`` is float32 of shape (1, 15), 0 or 1.

    The names of the parts are ``metainfo['parts']``. ``CropToBox`` and mmcv's ``Resize`` move boxes and
    parts with the image; ``PackInputs`` keeps them if its ``algorithm_keys`` name them.

    Args:
        data_root (str): The folder with 'images.txt'. Defaults to 'data/CUB_200_2011'.
        split (str): 'train' or 'test'. Defaults to 'train'.
        parts (bool): Whether to read the places of parts. Defaults to False.
        allow_outside (bool): Whether paths may leave the folder of images. Defaults to False.
        **kwargs: Other arguments of mmpretrain's ``CUB``. ``test_mode`` follows from the split unless it
            is given.

    Raises:
        FileNotFoundError: If text files or images are missing.
        ValueError: If the split is unknown, a text file is not as it should be, or a path leaves the
            folder.
    """

    def __init__(
        self,
        data_root: str = 'data/CUB_200_2011',
        split: str = 'train',
        parts: bool = False,
        allow_outside: bool = False,
        **kwargs: Any,
    ) -> None:
        text('CUB.data_root', data_root, 'the path of a folder')
        one_of('CUB.split', split, ('train', 'test'))
        self.parts = flag('CUB.parts', parts)
        self.allow_outside = flag('CUB.allow_outside', allow_outside)
        kwargs.setdefault('test_mode', split == 'test')
        super().__init__(data_root, split, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Reads the text files and checks that the images exist."""
        names = self._load_data_from_txt(self.ann_file)
        classes = {str(number + 1) for number in range(len(self.metainfo['classes']))}
        for file, values, meaning in (
            (self.image_class_labels_file, classes, f'classes are 1 to {len(classes)}'),
            (self.train_test_split_file, {'0', '1'}, '1 is training, 0 is test'),
        ):
            rows = self._load_data_from_txt(file)
            self._check_images(file, rows, names)
            for index, value in rows.items():
                if value not in values:
                    raise ValueError(f'{file}: image {index + 1} has {value!r}; {meaning}')
        boxes = self._boxes(names)
        points = self._points(names) if self.parts else {}

        samples = super().load_data_list()
        if not samples:
            raise ValueError(
                f'{self.train_test_split_file} lists no image of the split {self.split!r}'
            )
        indices = {
            self.backend.join_path(self.img_prefix, name): index for index, name in names.items()
        }
        for sample in samples:
            index = indices[sample['img_path']]
            sample['gt_bboxes'] = boxes[index]
            if self.parts:
                sample['gt_keypoints'] = points[index][None, :, :2]
                sample['gt_keypoints_visible'] = points[index][None, :, 2]
        listed = [names[indices[sample['img_path']]] for sample in samples]
        again = f'unpack {URL} again'
        check_images(Path(self.img_prefix), listed, 'images.txt', again, self.allow_outside)
        return samples

    def _load_data_from_txt(self, filepath: str) -> dict[int, str]:
        """Reads lines of a number and a text; the number counts from 1 in the file, from 0 here."""
        rows = {}
        for line in _existing(filepath).read_text().splitlines():
            number, *text = line.split(maxsplit=1) or ('', '')
            if text and number.isdigit():
                rows[int(number) - 1] = text[0].strip()
            elif number:
                raise ValueError(
                    f'{filepath}: a line is {line!r} and not a number and a text; unpack {URL} again'
                )
        return rows

    def _table(self, filepath: Path, columns: int) -> np.ndarray:
        """Reads lines of numbers, of shape (n, columns)."""
        try:
            table = np.loadtxt(_existing(filepath), ndmin=2)
        except ValueError as error:  # a line of another length, or text
            raise ValueError(f'{filepath} is damaged ({error}); unpack {URL} again') from error
        if table.shape[1] != columns:
            raise ValueError(
                f'{filepath} has {table.shape[1]} columns instead of {columns}; unpack {URL} again'
            )
        return table

    def _boxes(self, names: dict[int, str]) -> dict[int, np.ndarray]:
        """The box of each image, of shape (1, 4)."""
        file = Path(self.data_root, 'bounding_boxes.txt')
        table = self._table(file, 5)
        indices = (table[:, 0] - 1).astype(int).tolist()
        self._check_images(file, indices, names)
        corners = np.concatenate([table[:, 1:3], table[:, 1:3] + table[:, 3:5]], 1)
        return dict(zip(indices, corners.astype(np.float32)[:, None]))

    def _points(self, names: dict[int, str]) -> dict[int, np.ndarray]:
        """The x, y and visibility of each image's parts, of shape (parts, 3)."""
        folder = Path(self.data_root, 'parts')
        parts = self._load_data_from_txt(str(folder / 'parts.txt'))
        self._metainfo.setdefault('parts', tuple(parts[index] for index in sorted(parts)))
        file = folder / 'part_locs.txt'
        table = self._table(file, 5)
        table = table[np.lexsort((table[:, 1], table[:, 0]))]
        indices = np.unique(table[:, 0] - 1).astype(int).tolist()
        self._check_images(file, indices, names)
        expected = np.tile(np.array(sorted(parts)) + 1, len(indices))
        if len(table) != len(expected) or (table[:, 1] != expected).any():
            raise ValueError(
                f'{file} has {len(table):,} lines and not one for each of the {len(parts)} parts of '
                f'each of {len(indices):,} images; unpack {URL} again'
            )
        return dict(zip(indices, table[:, 2:].astype(np.float32).reshape(len(indices), -1, 3)))

    def _check_images(self, file: str | Path, indices: Iterable[int], names: dict) -> None:
        """Compares a file's images with those of images.txt."""
        if different := set(indices) ^ set(names):
            which = 'lacks' if min(different) in names else 'has'
            raise ValueError(
                f'{file} {which} image {min(different) + 1}, and {self.ann_file} '
                f'{"has" if which == "lacks" else "lacks"} it; unpack {URL} again'
            )


def _existing(path: str | Path) -> Path:
    return existing(path, 'below data_root of CUB', f'unpack {URL}')
