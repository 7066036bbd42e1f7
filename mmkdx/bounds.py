"""Checks the sizes that files claim before memory is allocated.

An image may have as many pixels as Pillow allows: 89,478,485. They take 0.25 GiB as 8-bit RGB and
1 GiB as float32. ``MMKDX_MAX_IMAGE_PIXELS`` in the environment sets another limit.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import mmcv
import mmcv.image.io as mmcv_io
import numpy as np
from mmcv.transforms import LoadImageFromFile
from PIL import Image

RAISE = 'set MMKDX_MAX_IMAGE_PIXELS in the environment to raise the limit'


class TooLargeError(ValueError):
    """A file claims a size beyond the limit; the message says how to raise the limit."""


def install() -> None:
    """Makes mmcv check the size of an image before it decodes the image; see ``mmkdx.compat``."""
    if hasattr(mmcv_io.imfrombytes, '__wrapped__'):
        return
    if limit := os.environ.get('MMKDX_MAX_IMAGE_PIXELS'):
        if not limit.isdecimal():
            raise ValueError(f'MMKDX_MAX_IMAGE_PIXELS is {limit!r}; it must be a number of pixels')
        Image.MAX_IMAGE_PIXELS = int(limit)
    checked = _checked(mmcv_io.imfrombytes)
    for module in (mmcv_io, mmcv.image, mmcv):
        module.imfrombytes = checked
    LoadImageFromFile.transform = _named(LoadImageFromFile.transform)


def check_image(file: str | os.PathLike | io.BytesIO) -> None:
    """Refuses an image that is too large to decode. Formats unknown to Pillow are not checked.

    Raises:
        TooLargeError: If the image has more pixels than the limit.
    """
    limit, size = Image.MAX_IMAGE_PIXELS, ''
    try:
        with Image.open(file) as image:
            width, height = image.size
        if limit is None or width * height <= limit:
            return
        size = f' of {width:,} x {height:,} pixels'
    except Image.DecompressionBombError:  # from twice the limit on
        pass
    except Exception:
        return
    raise TooLargeError(f'an image{size} is beyond the limit of {limit:,} pixels; {RAISE}')


def check_bytes(count: int) -> None:
    """Refuses an array in a file that is larger than the largest image as 8-bit RGB.

    Raises:
        TooLargeError: If the array has more bytes.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and count > 3 * limit:
        raise TooLargeError(
            f'an array of {count:,} bytes is beyond the limit of {3 * limit:,} bytes; {RAISE}'
        )


def read_array(path: str | os.PathLike) -> np.ndarray:
    """Reads a NumPy file (.npy) without running code or allocating memory that it does not fill.

    Raises:
        ValueError: If it is no such file, or is shorter than its header says.
    """
    # numpy compares the header with the size of the file only if it maps the file
    array = np.load(path, mmap_mode='r', allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise ValueError('it holds several arrays')
    return np.array(array)


def _checked(decode: Callable) -> Callable:
    """``mmcv.imfrombytes`` with a check of the size first."""

    @wraps(decode)
    def imfrombytes(content: bytes, *args: Any, **kwargs: Any) -> np.ndarray:
        check_image(io.BytesIO(content))
        return decode(content, *args, **kwargs)

    return imfrombytes


def _named(transform: Callable) -> Callable:
    """``LoadImageFromFile.transform`` that names the file in errors about sizes."""

    @wraps(transform)
    def named(self: LoadImageFromFile, results: dict) -> dict | None:
        try:
            return transform(self, results)
        except TooLargeError as error:
            raise TooLargeError(f'{Path(results["img_path"])}: {error}') from error

    return named
