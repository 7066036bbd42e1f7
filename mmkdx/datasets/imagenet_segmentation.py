"""ImageNet-Segmentation: images of ImageNet with masks of their objects."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from mmengine.logging import print_log
from mmpretrain.datasets import BaseDataset
from mmpretrain.datasets.categories import IMAGENET_CATEGORIES

from mmkdx.arguments import flag, text
from mmkdx.bounds import TooLargeError, check_bytes
from mmkdx.datasets.imagenet_wordnet_ids import WORDNET_IDS
from mmkdx.datasets.listing import existing
from mmkdx.registry import DATASETS

URL = 'http://calvin-vision.net/bigstuff/proj-imagenet/data/gtsegs_ijcv.mat'


@DATASETS.register_module()
class ImageNetSegmentation(BaseDataset):
    """4,276 images of ImageNet with masks of their objects, to evaluate maps with.

    Source: M. Guillaumin, D. Küttel and V. Ferrari, "ImageNet Auto-Annotation with Segmentation
    Propagation", IJCV 2014; the file ``gtsegs_ijcv.mat`` as it is. Published evaluations of maps resize
    images and masks to 224 × 224, without keeping the aspect (H. Chefer, S. Gur and L. Wolf,
    "Transformer Interpretability Beyond Attention Visualization", CVPR 2021).

    A sample has

    - ``img``: uint8 of shape (H, W, 3), BGR like that of ``LoadImageFromFile``;
    - ``gt_seg_map``: uint8 of shape (H, W), 1 at the object, else 0. If an image has several masks,
      it is the first one;
    - ``gt_label``: its class among the 1,000 of ILSVRC 2012, found by the WordNet id. Other ids
      have -1 (an error for ``Accuracy``), and the log tells how many there are;
    - ``img_id`` and ``wordnet_id``: str, as in the file;
    - ``img_shape`` and ``ori_shape``: (H, W).

    It needs no loading transform. The file is opened again for each sample, so worker processes share
    no handle.

    Args:
        ann_file (str): The file, below ``data_root``. Defaults to 'gtsegs_ijcv.mat'.
        data_root (str): Its folder. Defaults to 'data/imagenet_segmentation'.
        test_mode (bool): Whether a sample that cannot be read is an error instead of being replaced by
            another one. Defaults to True.
        **kwargs: Other arguments of mmpretrain's ``BaseDataset``, such as ``pipeline``.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If h5py is not installed.
        ValueError: If the file is damaged or another one.
    """

    METAINFO = {'classes': IMAGENET_CATEGORIES, 'regions': ('background', 'object')}

    def __init__(
        self,
        ann_file: str = 'gtsegs_ijcv.mat',
        data_root: str = 'data/imagenet_segmentation',
        test_mode: bool = True,
        **kwargs: Any,
    ) -> None:
        text('ImageNetSegmentation.ann_file', ann_file, 'the path of a file')
        text('ImageNetSegmentation.data_root', data_root, 'the path of a folder')
        flag('ImageNetSegmentation.test_mode', test_mode)
        super().__init__(ann_file=ann_file, data_root=data_root, test_mode=test_mode, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Reads ids and classes; images and masks are read by ``get_data_info``."""
        labels = {wordnet_id: label for label, wordnet_id in enumerate(WORDNET_IDS)}
        with self._open() as file:
            columns = [_column(file, name) for name in ('img', 'gt', 'id', 'target')]
            lengths = [len(column) for column in columns]
            if len(set(lengths)) > 1:
                raise DamagedError(f'it has {"/".join(map(str, lengths))} images/masks/ids/classes')
            samples, other_size = [], []
            for index in range(lengths[0]):
                image, mask = _image_and_mask(file, index)
                if image.ndim != 3 or image.shape[0] != 3 or mask.ndim != 2:
                    raise DamagedError(
                        f'image {index} has shape {image.shape} and its mask '
                        f'{mask.shape} instead of (3, W, H) and (W, H)'
                    )
                if mask.shape != image.shape[1:]:
                    other_size.append(index)
                name, wordnet_id = (_text(file, column[index, 0]) for column in columns[2:])
                label = labels.get(wordnet_id, -1)
                samples.append(
                    dict(index=index, img_id=name, wordnet_id=wordnet_id, gt_label=label)
                )
        if other_size:
            self._warn(f'masks of another size than their images: {other_size}')
        if unknown := sum(sample['gt_label'] < 0 for sample in samples):
            self._warn(
                f'{unknown} of {len(samples)} images are of none of the 1,000 classes of ILSVRC 2012; '
                'their gt_label is -1'
            )
        return samples

    def _warn(self, text: str) -> None:
        print_log(f'{self.ann_file}: {text}', 'current', logging.WARNING)

    def get_data_info(self, idx: int) -> dict:
        """Reads a sample, with the fields that the class describes."""
        info = super().get_data_info(idx)
        with self._open() as file:
            # MATLAB stores columns first, so the axes are reversed
            image, mask = (part[()].T for part in _image_and_mask(file, info.pop('index')))
        info['img'] = np.ascontiguousarray(image[..., ::-1])
        info['gt_seg_map'] = np.ascontiguousarray(mask > 0).astype(np.uint8)
        info['img_shape'] = info['ori_shape'] = info['img'].shape[:2]
        return info

    @contextmanager
    def _open(self) -> Iterator[Any]:
        """Yields the open file; an error about its content names the file."""
        try:
            import h5py
        except ImportError as error:
            raise ImportError(
                'ImageNetSegmentation reads a MATLAB v7.3 file with h5py, which is not installed; '
                'run "pip install h5py"'
            ) from error
        source = f'it can be downloaded from {URL}'
        path = existing(self.ann_file, 'data_root and ann_file of ImageNetSegmentation', source)
        try:
            with h5py.File(path) as file:
                yield file
        except (DamagedError, TooLargeError) as error:
            raise ValueError(f'{self.ann_file}: {error}') from error
        except (OSError, KeyError, TypeError, RuntimeError, AttributeError, ValueError) as error:
            raise ValueError(
                f'{self.ann_file} is no complete copy of gtsegs_ijcv.mat ({error}); {source}'
            ) from error


class DamagedError(ValueError):
    """An HDF5 file is not as it should be."""


def _image_and_mask(file: Any, index: int) -> tuple[Any, Any]:
    """The HDF5 datasets of an image, of shape (3, W, H), and of its first mask, (W, H)."""
    masks = _content(file, _column(file, 'gt')[index, 0])
    return _content(file, _column(file, 'img')[index, 0]), _content(file, masks[0, 0])


def _column(file: Any, name: str) -> Any:
    """The HDF5 dataset with a reference for each image; links are refused."""
    for group, key in ((file, 'value'), (file['value'], name)):
        if type(link := group.get(key, getlink=True)).__name__ != 'HardLink':
            raise DamagedError(f'{key!r} is a link ({type(link).__name__}), which is not followed')
    return _inside(file['value'][name], name)


def _content(file: Any, reference: Any) -> Any:
    """The HDF5 dataset that a reference leads to."""
    if not reference:
        raise DamagedError('a reference leads nowhere')
    return _inside(file[reference], 'what a reference leads to')


def _inside(part: Any, name: str) -> Any:
    """Returns an HDF5 dataset if it is small enough and in the file itself."""
    if not hasattr(part, 'chunks'):
        raise DamagedError(f'{name} is no array')
    if part.external or part.is_virtual:
        raise DamagedError(f'{name} has its content in another file, which is not read')
    # A chunk is read as a whole
    check_bytes(part.dtype.itemsize * max(part.size, math.prod(part.chunks or (0,))))
    return part


def _text(file: Any, reference: Any) -> str:
    """MATLAB's text: UTF-16 units along one axis."""
    return ''.join(map(chr, _content(file, reference)[()].ravel()))
