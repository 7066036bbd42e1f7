"""mmpretrain's Stanford Cars with the boxes of the cars, for the folder layouts of its copies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from mmpretrain import datasets
from scipy.io import loadmat

from mmkdx.arguments import flag, one_of, text
from mmkdx.datasets.listing import check_images
from mmkdx.registry import DATASETS

SOURCE = 'the original page is gone; for copies see https://github.com/pytorch/vision/issues/7545'
CORNERS = ('bbox_x1', 'bbox_y1', 'bbox_x2', 'bbox_y2')


@DATASETS.register_module()
class StanfordCars(datasets.StanfordCars):
    """Cars of 196 models: 8,144 images to train on, 8,041 to test on.

    Source: J. Krause, M. Stark, J. Deng and L. Fei-Fei, "3D Object Representations for Fine-Grained
    Categorization", 3dRR-13; the public folder as it is. It has

    - 'car_ims' and 'cars_annos.mat', or
    - 'cars_train', 'cars_test' and 'devkit', and for the test split the separate file
      'cars_test_annos_withlabels.mat', in 'devkit' or beside it. Images may be in a second folder of
      the same name ('cars_train/cars_train'). A 'cars_annos.mat' without 'car_ims' is not read.

    In addition to mmpretrain's ``img_path`` and ``gt_label``, a sample has ``gt_bboxes``, float32
    of
    shape (1, 4): x1, y1, x2, y2 in pixels, as in the file.

    Args:
        data_root (str): The folder. Defaults to 'data/stanford_cars'.
        split (str): 'train' or 'test'. Defaults to 'train'.
        allow_outside (bool): Whether paths may leave the folder of images. Defaults to False.
        **kwargs: Other arguments of mmpretrain's ``BaseDataset``. ``test_mode`` follows from the split
            unless it is given.

    Raises:
        FileNotFoundError: If labels or images are missing.
        ValueError: If the split is unknown, a file of labels is damaged or no such file, or a path
            leaves the folder.
    """

    def __init__(
        self,
        data_root: str = 'data/stanford_cars',
        split: str = 'train',
        allow_outside: bool = False,
        **kwargs: Any,
    ) -> None:
        self.allow_outside = flag('StanfordCars.allow_outside', allow_outside)
        text('StanfordCars.data_root', data_root, 'the path of a folder')
        self.split = one_of('StanfordCars.split', split, ('train', 'test'))
        kwargs.setdefault('test_mode', split == 'test')
        ann_file, data_prefix = _find(Path(data_root), split)
        # Skips mmpretrain's __init__, which takes any cars_annos.mat for the layout with car_ims
        super(datasets.StanfordCars, self).__init__(
            ann_file=ann_file, data_root=data_root, data_prefix=data_prefix, **kwargs
        )

    def load_data_list(self) -> list[dict]:
        """Reads the labels and checks that the images exist."""
        file, root = Path(self.ann_file), Path(self.img_prefix)
        try:
            # A single record is squeezed to a scalar
            records = np.atleast_1d(loadmat(file, squeeze_me=True)['annotations'])
            fields = records.dtype.names or ()
        except Exception as error:  # SciPy raises many kinds for damaged bytes
            raise ValueError(
                f'{file} is no complete copy of {file.name} ({error}); {SOURCE}'
            ) from error
        name = 'relative_im_path' if file.name == 'cars_annos.mat' else 'fname'
        needed = (*CORNERS, 'class', name, *(['test'] if name == 'relative_im_path' else []))
        if lacking := [field for field in needed if field not in fields]:
            raise ValueError(
                f'{file} has no field {", ".join(lacking)}, so it is no copy of {file.name}; {SOURCE}'
            )
        if 'test' in needed:
            records = records[records['test'].astype(bool) == (self.split == 'test')]
        if not len(records):
            raise ValueError(f'{file} lists no image of the split {self.split!r}')

        labels = records['class'].astype(int) - 1
        classes = len(self.metainfo['classes'])
        for label, image in zip(labels, records[name]):
            if not 0 <= label < classes:
                raise ValueError(f'{file}: {image} has class {label + 1}; they are 1 to {classes}')
        check_images(root, records[name].tolist(), file.name, SOURCE, self.allow_outside)
        boxes = np.stack([records[corner].astype(np.float32) for corner in CORNERS], 1)
        return [
            dict(img_path=str(root / image), gt_label=int(label), gt_bboxes=box[None])
            for image, label, box in zip(records[name], labels, boxes)
        ]


def _find(root: Path, split: str) -> tuple[str, str]:
    """The file of labels and the folder of images, both below the root."""
    where = f'{root.resolve()} (data_root of StanfordCars)'
    if not root.is_dir():
        raise FileNotFoundError(f'there is no folder {where}; {SOURCE}')
    one_folder = [(root / 'car_ims').is_dir(), (root / 'cars_annos.mat').is_file()]
    if all(one_folder):
        return 'cars_annos.mat', ''

    name = dict(train='cars_train_annos.mat', test='cars_test_annos_withlabels.mat')[split]
    places = f'devkit/{name}', name
    labels = next((place for place in places if (root / place).is_file()), None)
    if labels is None:
        reason = ''
        if any(one_folder):
            pair = 'car_ims', 'cars_annos.mat'
            reason = '; {} is of no use without {}'.format(*(pair if one_folder[0] else pair[::-1]))
        elif split == 'test' and (root / 'devkit/cars_test_annos.mat').is_file():
            reason = '; devkit/cars_test_annos.mat has no classes'
        raise FileNotFoundError(
            f'there is neither {places[0]} nor {places[1]} in {where}{reason}; {SOURCE}'
        )
    folder = f'cars_{split}'
    images = next((f for f in (f'{folder}/{folder}', folder) if (root / f).is_dir()), None)
    if images is None:
        raise FileNotFoundError(f'there is no folder {folder} in {where}; {SOURCE}')
    return labels, images
