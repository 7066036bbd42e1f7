"""Are the files that a data set needs there, and below its folder?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def existing(path: str | Path, option: str, advice: str) -> Path:
    """The path of a file that is there, else an error that names the option and gives advice."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'there is no file {path.resolve()} ({option}); {advice}')
    return path


def leaves(name: str) -> bool:
    """Whether a path, read below a folder, leads out of it: an absolute one, or by '..'."""
    name = name.replace('\\', '/')
    return os.path.isabs(name) or os.path.normpath(name).split('/')[0] == '..'


def check_images(
    root: Path, names: Sequence[str], listed_in: str, advice: str, allow_outside: bool = False
) -> None:
    """Looks for images below a folder, by their paths with forward slashes.

    Each folder is listed once, which is cheap on network drives as well. A symbolic link may lead
    anywhere, as whoever made the folder made the link.

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
