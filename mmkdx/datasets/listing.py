"""Are the files that a data set needs there?"""

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


def check_images(root: Path, names: Sequence[str], listed_in: str, advice: str) -> None:
    """Looks for images below a folder, by their paths with forward slashes.

    Each folder is listed once, which is cheap on network drives as well.
    """
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
