"""Checks that the files of a data set exist, are below its folder, and are readable images."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from mmkdx.bounds import TooLargeError, check_image
from mmkdx.files import printable


class UnreadableError(ValueError):
    """A file is no image that can be read; the message says why."""


def existing(path: str | Path, option: str, advice: str) -> Path:
    """Returns the path of a file; if it is missing, an error names the option and gives advice."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'there is no file {path.resolve()} ({option}); {advice}')
    return path


def leaves(name: str) -> bool:
    """Whether a path below a folder leads out of it: because it is absolute, or by '..'."""
    name = name.replace('\\', '/')
    return os.path.isabs(name) or os.path.normpath(name).split('/')[0] == '..'


def check_images(
    root: Path, names: Sequence[str], listed_in: str, advice: str, allow_outside: bool = False
) -> None:
    """Checks that images exist below a folder, by their paths with forward slashes.

    Each folder is listed once, which is fast on network drives, too. A symbolic link may lead
    anywhere, since the link was made by whoever made the folder.

    Raises:
        FileNotFoundError: If images are missing.
        ValueError: If a path leaves the folder, unless ``allow_outside``.
    """
    for name in names if not allow_outside else ():
        if leaves(name):
            raise ValueError(
                f'{listed_in} lists {name!r}, which is outside of {root.resolve()}; pass '
                'allow_outside=True if you trust the list'
            )
    folders = {name: name.rpartition('/')[0] for name in names}
    there = {
        folder: set(os.listdir(root / folder)) if (root / folder).is_dir() else set()
        for folder in set(folders.values())
    }
    missing = [name for name in names if name.rpartition('/')[2] not in there[folders[name]]]
    if missing:
        raise FileNotFoundError(
            f'{root.resolve()} lacks {len(missing):,} of the {len(names):,} images that {listed_in} '
            f'lists, among them {missing[0]}; {advice}'
        )


def read_size(path: Path) -> tuple[int, int, str]:
    """Decodes an image file with Pillow and with OpenCV.

    Pillow notices truncated files, and OpenCV reads the file in training.

    Returns:
        tuple[int, int, str]: Height and width in pixels, and Pillow's mode, such as 'RGB' or 'L'.

    Raises:
        UnreadableError: If one of them cannot decode it.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UnreadableError(error.strerror) from error
    try:
        check_image(io.BytesIO(content))
        with Image.open(io.BytesIO(content)) as image:
            image.load()  # a header does not tell that a file is truncated
            width, height, mode = *image.size, image.mode
    except UnidentifiedImageError as error:
        raise UnreadableError('no image' if content else 'empty') from error
    except TooLargeError as error:
        raise UnreadableError(f'{error}') from error
    except Exception as error:  # Pillow's readers raise many kinds
        raise UnreadableError(f'Pillow: {error}') from error
    # cv2.imread fails for names that are not UTF-8
    if cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) is None:
        raise UnreadableError('OpenCV cannot decode it')
    return height, width, mode


def list_text(rows: Sequence[tuple[str, int]]) -> bytes:
    """The content of a list: a path and a label in each line, in the order of labels and paths.

    Bytes of a path that are no text stay as they are.
    """
    lines = (f'{name} {label}\n' for name, label in sorted(rows, key=lambda row: row[::-1]))
    return ''.join(lines).encode(errors='surrogateescape')


def rejected_text(reasons: Mapping[str, str]) -> str:
    """The content of a list of files that cannot be read: a path and the reason in each line."""
    return ''.join(f'{printable(n)}\t{printable(reason)}\n' for n, reason in reasons.items())
