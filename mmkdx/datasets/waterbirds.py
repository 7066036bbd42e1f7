"""Waterbirds: birds on backgrounds that mostly agree with the class in training."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from mmpretrain.datasets import BaseDataset

from mmkdx.arguments import flag, one_of, text
from mmkdx.datasets.listing import check_images, existing
from mmkdx.registry import DATASETS

URL = 'https://nlp.stanford.edu/data/dro/waterbird_complete95_forest2water2.tar.gz'
#: The numbers of the splits in the column 'split'.
SPLITS = ('train', 'val', 'test')


@DATASETS.register_module()
class Waterbirds(BaseDataset):
    """Landbirds and waterbirds on land and on water.

    Source: S. Sagawa, P. W. Koh, T. B. Hashimoto and P. Liang, "Distributionally Robust Neural Networks
    for Group Shifts", ICLR 2020; the public folder as it is, or another one of the same layout. In
    training 95 % of the birds are on the background of their class, in the other splits half of them.
    Some species (names with "tern" in a longer word) have a wrong class. It is kept, as in the
    published results.

    A sample has ``img_path``, ``gt_label`` (0 landbird, 1 waterbird), ``place`` (the background: 0 land,
    1 water) and ``group`` (2 · gt_label + place). In groups 0 and 3 the background fits the bird.
    ``PackInputs`` keeps the last two for ``GroupAccuracy`` if its ``meta_keys`` name them.

    Args:
        data_root (str): The folder with 'metadata.csv'. Defaults to
            'data/waterbird_complete95_forest2water2'.
        split (str): 'train', 'val' or 'test'. Defaults to 'train'.
        allow_outside (bool): Whether paths may leave the folder. Defaults to False.
        **kwargs: Other arguments of mmpretrain's ``BaseDataset``, such as ``pipeline``.

    Raises:
        FileNotFoundError: If the table or images are missing.
        ValueError: If the split is unknown, the table is not as it should be, or a path leaves the
            folder.
    """

    METAINFO = {'classes': ('landbird', 'waterbird'), 'places': ('land', 'water')}

    def __init__(
        self,
        data_root: str = 'data/waterbird_complete95_forest2water2',
        split: str = 'train',
        allow_outside: bool = False,
        **kwargs: Any,
    ) -> None:
        text('Waterbirds.data_root', data_root, 'the path of a folder')
        self.split = one_of('Waterbirds.split', split, SPLITS)
        self.allow_outside = flag('Waterbirds.allow_outside', allow_outside)
        super().__init__(
            ann_file='metadata.csv', data_root=data_root, test_mode=split != 'train', **kwargs
        )

    def load_data_list(self) -> list[dict]:
        """Reads the table."""
        root = Path(self.data_root)
        table = existing(self.ann_file, 'below data_root of Waterbirds', f'unpack {URL}')
        samples, names = [], []
        with table.open(newline='') as file:
            reader = csv.DictReader(file)
            lacking = {'img_filename', 'y', 'split', 'place'} - set(reader.fieldnames or ())
            if lacking:
                raise ValueError(f'{table} has no column {", ".join(sorted(lacking))}')
            for row in reader:
                y, place, split = row['y'], row['place'], row['split']
                if y not in ('0', '1') or place not in ('0', '1') or split not in ('0', '1', '2'):
                    raise ValueError(
                        f'{table}, line {reader.line_num}: y {y}, place {place}, split {split}; y and '
                        'place are 0 or 1, split is 0, 1 or 2'
                    )
                if SPLITS[int(split)] == self.split:
                    y, place = int(y), int(place)
                    names.append(row['img_filename'])
                    path = str(root / names[-1])
                    samples.append(
                        dict(img_path=path, gt_label=y, place=place, group=2 * y + place)
                    )
        if not samples:
            raise ValueError(f'{table} lists no image of the split {self.split!r}')
        check_images(root, names, table.name, f'unpack {URL} again', self.allow_outside)
        return samples
