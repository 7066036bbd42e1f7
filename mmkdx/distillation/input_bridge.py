"""Converts a student's images for a teacher: normalisation, channel order, size."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from mmkdx.arguments import errors_named, flag, one_of
from mmkdx.models.families import ImageFormat, describe, preprocessed

_ADVICE = "set teacher=dict(normalize=dict(mean=..., std=..., to_rgb=...)), or normalize='same'"


class InputBridge(nn.Module):
    """Flips the channels of images, computes ``x · scale + shift`` for each channel, and resizes.

    Args:
        scale (Sequence[float]): The factor of each channel. Defaults to (1,).
        shift (Sequence[float]): What is added to each channel. Defaults to (0,).
        flip (bool): Whether RGB becomes BGR, or BGR becomes RGB. Defaults to False.
        size (tuple[int, int], optional): Height and width of the result. Defaults to None (as it is).
        raw (str): The teacher's name in messages, if images must have values of 0..255. Batches are
            checked until one is not black. Defaults to '' (no check).
    """

    def __init__(
        self,
        scale: Sequence[float] = (1.0,),
        shift: Sequence[float] = (0.0,),
        flip: bool = False,
        size: tuple[int, int] | None = None,
        raw: str = '',
    ) -> None:
        super().__init__()
        self.register_buffer('scale', torch.tensor(scale)[:, None, None])
        self.register_buffer('shift', torch.tensor(shift)[:, None, None])
        self.flip, self.size, self.raw = flip, size, raw

    def forward(self, images: Tensor) -> Tensor:
        """Converts images of shape (N, C, H, W).

        Raises:
            ValueError: If the images must have values of 0..255 and the batch has others.
        """
        if self.raw and not isinstance(images, FakeTensor):
            self._check(images)
        images = images.flip(1) if self.flip else images
        images = images * self.scale + self.shift
        if self.size is None or self.size == tuple(images.shape[2:]):
            return images
        return F.interpolate(images, self.size, mode='bilinear', antialias=True)

    def _check(self, images: Tensor) -> None:
        low, high = (float(each) for each in images.aminmax())
        if low < 0 or high > 256 or 0 < high <= 10:
            raise ValueError(
                f'{self.raw} needs images with values of 0..255, since the student has no '
                f'data_preprocessor.mean, and a batch has values from {low:.3g} to {high:.3g}: set mean '
                'and std in data_preprocessor and not in the pipeline, or, for a teacher that takes the '
                "same images, teacher=dict(normalize='same')"
            )
        self.raw = self.raw if high == 0 else ''  # a black batch shows nothing

    def extra_repr(self) -> str:
        """The conversion as text; a cache of teacher outputs compares it."""
        scale, shift = (each.flatten().tolist() for each in (self.scale, self.shift))
        return f'scale={scale}, shift={shift}, flip={self.flip}, size={self.size}'


def input_bridge(
    student: nn.Module,
    teacher: nn.Module,
    normalize: dict | str | None = None,
    size: tuple[int, int] | None = None,
    owner: str = 'teacher',
) -> nn.Module:
    """Builds the conversion of the student's preprocessed images to the teacher's.

    It is the identity if both are the same. If the student's preprocessor has no mean, its images
    are the pipeline's. For a teacher with a known normalisation they count as values of 0..255, and
    the first batch is checked.

    Args:
        student (nn.Module): The student.
        teacher (nn.Module): The teacher's model.
        normalize (dict | str, optional): As for ``Teacher``. Defaults to None.
        size (tuple[int, int], optional): Height and width of the result. Defaults to None (as it is).
        owner (str): The teacher's name in messages. Defaults to 'teacher'.

    Raises:
        ValueError: If ``normalize`` is a dict, and the student's normalisation is unknown.
    """
    source, goal = describe(student), describe(teacher)
    # mmpretrain loads images as BGR, which a preprocessor without to_rgb passes on
    ours, theirs = (isinstance(each.model, BaseModel) for each in (source, goal))
    given = preprocessed(source.model) if ours else source.images
    given = replace(given, order=given.order or ('bgr' if ours else None))
    wanted = replace(goal.images, order=goal.images.order or ('bgr' if theirs else None))
    raw = ours and given.mean is None
    if raw:
        given = replace(given, mean=(0.0,), std=(1.0,))
        if theirs and wanted.mean is None:  # both take what the pipeline makes
            wanted, raw = replace(wanted, mean=(0.0,), std=(1.0,)), False
    if isinstance(normalize, dict):
        rgb = normalize.get('to_rgb', given.order == 'rgb')
        wanted = ImageFormat(tuple(normalize['mean']), tuple(normalize['std']), ('bgr', 'rgb')[rgb])
        if given.mean is None:
            raise ValueError(
                f"{owner}: normalize needs the normalisation of the student's images, and that of "
                f'{type(source.model).__name__} is unknown'
            )
    if normalize == 'same' or given.mean is None or wanted.mean is None:
        if normalize is None and (given.mean or wanted.mean):
            unknown = (source if given.mean is None else goal).model
            _warn(
                f'{owner}: the normalisation of {type(unknown).__name__} is unknown, so the teacher '
                f"takes the student's images as they are; if it needs others, {_ADVICE}"
            )
        return nn.Identity() if size is None else InputBridge(size=size)
    flip = None not in (given.order, wanted.order) and given.order != wanted.order
    if flip and ours != theirs and normalize is None:
        _warn(
            f'{owner}: images of a data_preprocessor without to_rgb count as BGR, as mmpretrain loads '
            f'them, and their channels are flipped for the teacher; if they are RGB, {_ADVICE}'
        )
    if not flip and size is None and (given.mean, given.std) == (wanted.mean, wanted.std):
        return nn.Identity()
    mean, std = (np.array(each[:: -1 if flip else 1]) for each in (given.mean, given.std))
    scale = std / wanted.std
    shift = (mean - wanted.mean) / wanted.std
    return InputBridge(scale.tolist(), shift.tolist(), flip, size, owner if raw else '')


def checked_normalization(key: str, value: dict | str | None) -> dict | str | None:
    """Checks ``normalize``: None, 'same', or a dict with mean, std and perhaps to_rgb."""
    if not isinstance(value, dict):
        return one_of(key, value, (None, 'same'))
    if not {'mean', 'std'} <= set(value) <= {'mean', 'std', 'to_rgb'}:
        raise ValueError(f'{key} has {", ".join(value)}; it takes mean, std and to_rgb')
    flag(f'{key}.to_rgb', value.get('to_rgb', False))
    if not len(value['mean']) == len(value['std']) > 0:
        raise ValueError(f'{key}: mean and std must have one number for each channel')
    with errors_named(f'{key}.'):
        ImageFormat(tuple(value['mean']), tuple(value['std']))
    return value


def _warn(text: str) -> None:
    print_log(text, logger='current', level=logging.WARNING)
