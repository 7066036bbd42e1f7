"""Waterbirds: birds on backgrounds that mostly tell the class in training."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmpretrain.datasets import BaseDataset

from mmkdx.arguments import one_of
from mmkdx.registry import DATASETS

URL = 'https://nlp.stanford.edu/data/dro/waterbird_complete95_forest2water2.tar.gz'
#: The numbers of the splits in the column 'split'.
SPLITS = ('train', 'val', 'test')


@DATASETS.register_module()
class Waterbirds(BaseDataset):
    """Landbirds and waterbirds on land and on water.

    Source: S. Sagawa, P. W. Koh, T. B. Hashimoto and P. Liang, "Distributionally Robust Neural Networks
    for Group Shifts", ICLR 2020; the public folder, read as it is, or another one of the same
    layout. In training 95 % of the birds are on the background of their class; in the other splits
    half of each class are. Some species have a wrong class (those with "tern" in a longer word); as
    in the published results, they keep it.

    A sample has

    - ``img_path``;
    - ``gt_label``: 0 landbird, 1 waterbird;
    - ``place``: the background, 0 land, 1 water;
    - ``group``: 2 · gt_label + place, so 0 and 3 are birds where they belong.

    ``PackInputs`` keeps the last two for ``GroupAccuracy`` if its ``meta_keys`` name them.

    Args:
        data_root (str): The folder with 'metadata.csv'. Defaults to
            'data/waterbird_complete95_forest2water2'.
        split (str): 'train', 'val' or 'test'. Defaults to 'train'.
        pipeline (Sequence): The transforms. Defaults to ().
        **kwargs: Other arguments of mmpretrain's ``BaseDataset``.

    Raises:
        FileNotFoundError: If the table or images are missing.
        ValueError: If the split is unknown or the table is not as it should be.
    """

    METAINFO = {'classes': ('landbird', 'waterbird'), 'places': ('land', 'water')}

    def __init__(
        self,
        data_root: str = 'data/waterbird_complete95_forest2water2',
        split: str = 'train',
        pipeline: Sequence = (),
        **kwargs: Any,
    ) -> None:
        self.split = one_of('Waterbirds.split', split, SPLITS)
        super().__init__(
            ann_file='metadata.csv',
            data_root=data_root,
            pipeline=pipeline,
            test_mode=split != 'train',
            **kwargs,
        )

    def load_data_list(self) -> list[dict]:
        """Reads the table."""
        table, root = Path(self.ann_file), Path(self.data_root)
        if not table.is_file():
            raise FileNotFoundError(
                f'there is no file {table.resolve()} (below data_root of Waterbirds); unpack {URL}'
            )
        samples = []
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
                    samples.append(
                        dict(
                            img_path=str(root / row['img_filename']),
                            gt_label=int(y),
                            place=int(place),
                            group=2 * int(y) + int(place),
                        )
                    )
        if not samples:
            raise ValueError(f'{table} lists no image of the split {self.split!r}')
        missing = [s['img_path'] for s in samples if not Path(s['img_path']).is_file()]
        if missing:
            raise FileNotFoundError(
                f'{root.resolve()} lacks {len(missing):,} of the {len(samples):,} images that '
                f'{table.name} lists, among them {missing[0]}; unpack {URL} again'
            )
        return samples
