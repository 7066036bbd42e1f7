"""Are the images that a list names there?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def check_images(root: Path, names: Sequence[str], listed_in: str, advice: str) -> None:
    """Looks for images with one listing of each folder, which is cheap on network drives as well.

    Args:
        root (Path): The folder of the images.
        names (Sequence[str]): Their paths below it, with forward slashes.
        listed_in (str): The name of the list.
        advice (str): Where the images come from.

    Raises:
        FileNotFoundError: If images are missing.
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
