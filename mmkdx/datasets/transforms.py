"""Transforms that mmcv and mmpretrain lack."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmpretrain.datasets.transforms import processing

from mmkdx.arguments import integer, number, numbers, one_of, positive
from mmkdx.functional.perturbation import cell_numbers
from mmkdx.registry import TRANSFORMS


def _torch_dtype(name: str) -> torch.dtype:
    """mmpretrain's ``_str_to_torch_dtype``, but it does not evaluate the text of a config."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f'dtype is {name!r}; it must be the name of a type of torch')
    return dtype


processing._str_to_torch_dtype = _torch_dtype


@TRANSFORMS.register_module()
class ChannelOrder(BaseTransform):
    """Puts the channels of a loaded image into another order than OpenCV's.

    Args:
        order (str): 'rgb', or 'gray' for one channel of shape (H, W).

    Raises:
        ValueError: If the order is neither.
    """

    def __init__(self, order: str) -> None:
        self.order = one_of('ChannelOrder.order', order, ('rgb', 'gray'))

    def transform(self, results: dict) -> dict:
        """Changes ``img``, BGR of shape (H, W, 3)."""
        code = cv2.COLOR_BGR2RGB if self.order == 'rgb' else cv2.COLOR_BGR2GRAY
        results['img'] = cv2.cvtColor(results['img'], code)
        return results


@TRANSFORMS.register_module()
class CropToBox(BaseTransform):
    """Crops an image to the first of its boxes, as prototype networks do with birds.

    Source: C. Chen et al., "This Looks Like That: Deep Learning for Interpretable Image Recognition",
    NeurIPS 2019. It crops images of CUB-200-2011 to x, y, x + width, y + height.

    The box is rounded to pixels and clipped to the image; at least one pixel is left.
    ``gt_seg_map``, ``gt_keypoints`` (N, K, 2) and ``gt_bboxes`` move with the image; boxes are
    clipped to the crop. ``gt_keypoints_visible`` (N, K) becomes 0 outside of the crop.
    ``img_shape`` is the size of the crop, ``ori_shape`` stays.
    """

    def transform(self, results: dict) -> dict:
        """Crops ``img`` (H, W[, C]) to the first of ``gt_bboxes`` (N, 4).

        Boxes are x1, y1, x2, y2 in pixels, x2 and y2 exclusive.

        Raises:
            ValueError: If there is no box.
        """
        boxes = results.get('gt_bboxes')
        if boxes is None or not len(boxes):
            raise ValueError(
                "CropToBox finds no box in 'gt_bboxes', which a data set such as CUB has to yield"
            )
        height, width = results['img'].shape[:2]
        x1, y1, x2, y2 = np.rint(boxes[0]).astype(int)
        left, top = np.clip((x1, y1), 0, (width - 1, height - 1))
        right, bottom = np.clip((x2, y2), (left + 1, top + 1), (width, height))
        for key in ('img', 'gt_seg_map'):
            if results.get(key) is not None:
                results[key] = np.ascontiguousarray(results[key][top:bottom, left:right])
        size = np.array([right - left, bottom - top])
        results['img_shape'] = results['img'].shape[:2]

        offset = np.array([left, top], np.float32)
        results['gt_bboxes'] = np.clip(boxes - np.tile(offset, 2), 0, np.tile(size, 2)).astype(
            np.float32
        )
        if results.get('gt_keypoints') is not None:
            points = results['gt_keypoints'] - offset
            inside = ((points >= 0) & (points < size)).all(-1)
            results['gt_keypoints'] = points
            results['gt_keypoints_visible'] = results['gt_keypoints_visible'] * inside
        return results


class FillPixels(BaseTransform):
    """Base of the transforms that give some pixels one colour."""

    def __init__(self, fill: Sequence[float]) -> None:
        self.fill = numbers(f'{type(self).__name__}.fill', fill, 0, 255)

    def filled(self, image: np.ndarray, pixels: np.ndarray) -> np.ndarray:
        """A copy of an image (H, W[, C]) in which the pixels (H, W) of a mask have the colour."""
        whole = np.issubdtype(image.dtype, np.integer)
        # The data set may keep the image for other epochs
        image = image.copy()
        image[pixels] = np.rint(self.fill) if whole else np.array(self.fill)
        return image

    def check_channels(self, image: np.ndarray) -> None:
        """Raises a ``ValueError`` if the colour does not fit the image's channels (H, W[, C])."""
        channels = image.shape[2] if image.ndim == 3 else 1
        if len(self.fill) != channels:
            raise ValueError(
                f'{type(self).__name__}.fill has {len(self.fill)} values and the image has {channels} '
                'channels; give one value for each channel'
            )


@TRANSFORMS.register_module()
class KeypointRegions(BaseTransform):
    """Makes a label map of key points: a disc around each, for metrics that need regions.

    ``gt_seg_map`` becomes uint8 of shape (H, W). A pixel has k + 1 if key point k is the nearest
    visible one and not farther than the radius, else 0. Use it after all transforms that move
    pixels, before ``PackInputs``, which has to pack it.

    Args:
        radius (float): The radius as a share of the image's shorter side, above 0. Defaults to 0.1.

    Raises:
        ValueError: If the radius is out of range, or an image has no key points.
    """

    def __init__(self, radius: float = 0.1) -> None:
        self.radius = positive('KeypointRegions.radius', radius)

    def transform(self, results: dict) -> dict:
        """Adds ``gt_seg_map``, from the first of ``gt_keypoints`` (N, K, 2), x and y in pixels."""
        points = results.get('gt_keypoints')
        if points is None or not len(points):
            raise ValueError(
                "KeypointRegions finds no 'gt_keypoints', which a data set such as CUB(parts=True) has "
                'to yield'
            )
        height, width = results['img'].shape[:2]
        visible = np.asarray(results['gt_keypoints_visible'][0]) > 0
        # The middle of pixel 0 is at 0.5
        x, y = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
        gaps = np.stack([np.hypot(x - px, y - py) for px, py in points[0]])
        gaps[~visible] = np.inf
        near = gaps.min(0) <= self.radius * min(height, width)
        results['gt_seg_map'] = np.where(near, gaps.argmin(0) + 1, 0).astype(np.uint8)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(radius={self.radius})'


@TRANSFORMS.register_module()
class DeleteCell(FillPixels):
    """Deletes a random cell of some images, so that ``SingleDeletion`` measures a model in domain.

    The image is cut into ``grid`` · ``grid`` cells as in ``SingleDeletion``, and a random one of
    them gets one colour. Use it after all transforms that move pixels, before ``PackInputs``. With
    ``prob=1`` in a test pipeline, the accuracy is measured on images with a deleted cell.

    Source: Hesse et al., "Benchmarking the Attribution Quality of Vision Models", NeurIPS 2024. The
    paper fine-tunes for 30 epochs and changes one image in two.

    Args:
        grid (int): The number of cells in each direction, at least 2. Defaults to 4.
        prob (float): The probability to delete a cell, in [0, 1]. Defaults to 0.5, as in the paper.
        fill (Sequence[float]): The colour, one value from 0 to 255 for each channel, in the order of the
            image's channels (BGR unless the pipeline changes it). Give the mean that the
            ``data_preprocessor`` subtracts, so that the cell is 0 after normalisation, as for
            ``SingleDeletion(baseline='zero')``. It is rounded for images of integers.

    Raises:
        ValueError: If an argument is out of range, or an image has another number of channels or
            fewer pixels than cells in a direction.
    """

    def __init__(self, grid: int = 4, prob: float = 0.5, *, fill: Sequence[float]) -> None:
        super().__init__(fill)
        self.grid = integer('DeleteCell.grid', grid, 2)
        self.prob = number('DeleteCell.prob', prob, 0, 1)

    def transform(self, results: dict) -> dict:
        """Replaces ``img`` (H, W[, C]) by a changed copy."""
        image = results['img']
        self.check_channels(image)
        cells = cell_numbers(image.shape[:2], self.grid, 'DeleteCell.grid').numpy()
        if np.random.rand() < self.prob:
            results['img'] = self.filled(image, cells == np.random.randint(self.grid**2))
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(grid={self.grid}, prob={self.prob}, fill={self.fill})'


@TRANSFORMS.register_module()
class RandomPixelRemoval(FillPixels):
    """Removes random pixels of each image, so that ``FFidelity`` measures a model in domain.

    Exactly round(share · H · W) pixels get one colour in all channels. Use it after all transforms that
    move pixels, before ``PackInputs``.

    Source: Zheng et al., "F-Fidelity: A Robust Framework for Faithfulness Evaluation of Explainable AI",
    ICLR 2025. Its public code removes values of the first channel only.

    Args:
        share (float): The share of pixels that is removed, above 0 and up to 1. Give ``beta`` of
            ``FFidelity``. Defaults to 0.1.
        fill (Sequence[float]): The colour; see ``DeleteCell``.

    Raises:
        ValueError: If an argument is out of range, or an image has another number of channels.
    """

    def __init__(self, share: float = 0.1, *, fill: Sequence[float]) -> None:
        super().__init__(fill)
        self.share = number('RandomPixelRemoval.share', share, 0, 1, open_low=True)

    def transform(self, results: dict) -> dict:
        """Replaces ``img`` (H, W[, C]) by a changed copy."""
        image = results['img']
        self.check_channels(image)
        height, width = image.shape[:2]
        order = np.random.permutation(height * width).reshape(height, width)
        results['img'] = self.filled(image, order < round(self.share * order.size))
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(share={self.share}, fill={self.fill})'


@TRANSFORMS.register_module()
class DisturbLabel(BaseTransform):
    """Replaces some labels by random ones.

    Source: Xie et al., "DisturbLabel: Regularizing CNN on the Loss Layer", CVPR 2016. The new label is
    uniform over all classes, so a label changes with probability ``prob`` · (K - 1) / K. Use it in
    training only, before ``PackInputs``.

    Args:
        num_classes (int): K, the number of classes, at least 2.
        prob (float): The probability to draw a new label, in [0, 1]. Defaults to 0.1, as in the
            paper for most data sets.

    Raises:
        ValueError: If an argument, or the label of a sample, is out of range.
    """

    def __init__(self, num_classes: int, prob: float = 0.1) -> None:
        self.num_classes = integer('DisturbLabel.num_classes', num_classes, 2)
        self.prob = number('DisturbLabel.prob', prob, 0, 1)

    def transform(self, results: dict) -> dict:
        """Replaces ``gt_label``, which must be one class."""
        label = results.get('gt_label')
        if not isinstance(label, int | np.integer) or not 0 <= label < self.num_classes:
            raise ValueError(
                f'DisturbLabel needs one gt_label below num_classes ({self.num_classes}) in each '
                f'sample, and there is {label!r}'
            )
        if np.random.rand() < self.prob:
            label = np.random.randint(self.num_classes)
        results['gt_label'] = int(label)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(num_classes={self.num_classes}, prob={self.prob})'
