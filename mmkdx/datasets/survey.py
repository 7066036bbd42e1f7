"""Surveys a user's images in a folder or CSV: classes, sizes, and files that cannot be read."""

from __future__ import annotations

import csv
import os
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from mmkdx.datasets.listing import UnreadableError, read_size
from mmkdx.files import printable

#: Possible names of the folder with the images to validate on; the first that exists counts.
VALIDATION = ('val', 'valid', 'validation', 'test')
#: The names of the two columns of a CSV.
COLUMNS = (
    ('path', 'file', 'filename', 'image'),
    ('label', 'class', 'category', 'target'),
)
#: The share of the images of each class that is held out if the data have no such folder.
HELD_OUT = 0.2

#: A path below the root, with forward slashes, and a label.
Row = tuple[str, int]


@dataclass(frozen=True)
class Survey:
    """What a survey found.

    Args:
        root (Path): The folder that the paths of images are relative to.
        classes (tuple[str, ...]): The names of the classes, sorted.
        train (list[Row]): The images to train on that can be read.
        val (list[Row]): The images to validate on that can be read.
        unreadable (dict[str, str]): For each file that cannot be read, the reason.
        sizes (list[tuple[int, int]]): Height and width of each image that can be read, in pixels.
        modes (dict[str, int]): The number of images by Pillow's mode.
        split (bool): Whether the images to validate on were drawn from one folder or CSV.
    """

    root: Path
    classes: tuple[str, ...]
    train: list[Row]
    val: list[Row]
    unreadable: dict[str, str]
    sizes: list[tuple[int, int]]
    modes: dict[str, int]
    split: bool

    @property
    def short_side(self) -> float:
        """The median of the images' shorter sides, in pixels."""
        return statistics.median(min(size) for size in self.sizes)

    def sentences(self) -> list[str]:
        """What a user should know about the data."""
        low, high = ([f(each) for each in zip(*self.sizes)] for f in (min, max))
        sizes = ' to '.join(dict.fromkeys(f'{height} x {width}' for height, width in (low, high)))
        found = [
            f'{len(self.classes)} classes, {len(self.train):,} images to train on and '
            f'{len(self.val):,} to validate on, of {sizes} pixels (height x width).'
        ]
        if self.split:
            found.append(f'{HELD_OUT:.0%} of the images of each class are held out for validation.')
        if self.unreadable:
            shown = [f'{printable(n)} ({printable(r)})' for n, r in self.unreadable.items()][:3]
            more = ', and others' if len(self.unreadable) > 3 else ''
            found.append(
                f'Files that cannot be read are left out, {len(self.unreadable):,} in all: '
                f'{", ".join(shown)}{more}.'
            )
        counts = Counter(label for _, label in self.train)
        few, most = min(counts.values()), max(counts.values())
        if most > 10 * few:
            rare = self.classes[min(counts, key=counts.get)]
            found.append(f'Classes have {few:,} ({rare}) to {most:,} images to train on.')
        if absent := [c for i, c in enumerate(self.classes) if all(i != k for _, k in self.val)]:
            found.append(f'No image to validate on is of class {", ".join(absent)}.')
        gray = sum(count for mode, count in self.modes.items() if mode in ('1', 'L', 'I;16', 'I'))
        if gray:
            found.append(f'Grey images, which get three equal channels: {gray:,}.')
        if alpha := sum(
            count for mode, count in self.modes.items() if mode in ('RGBA', 'LA', 'PA')
        ):
            found.append(f'Images with an alpha channel, which is dropped: {alpha:,}.')
        return found


def survey(data: str | Path, seed: int = 0) -> Survey:
    """Finds a user's images, decodes each of them, and splits them if they are not split.

    Args:
        data (str | Path): A folder with ``train/CLASS/*`` and ``val/CLASS/*``, a folder with
            ``CLASS/*``, or a CSV. The CSV has a column of paths, relative to its folder, and one of
            labels. Folders of classes are searched with their sub-folders. Hidden files are left
            out.
        seed (int): The random seed of the split. Defaults to 0.

    Raises:
        FileNotFoundError: If there is no such folder or file, or it holds no images.
        ValueError: If there are fewer than two classes, a class has too few readable images, or the
            CSV lacks a column.
    """
    path = Path(os.path.abspath(data))
    if path.is_dir():
        root, split, parts = path, *_parts_of_folder(path)
    elif path.is_file():
        root, split, parts = path.parent, True, [_rows_of_csv(path)]
    else:
        raise FileNotFoundError(f'--data: there is no folder or CSV {path}')
    outside = [p for part in parts for p, _ in part if not p.is_relative_to(root)]
    if outside:
        root = Path(os.path.commonpath([root, *outside]))
    classes = tuple(sorted({name for part in parts for _, name in part}))
    _check_classes(path, classes, parts)

    files = [file for part in parts for file, _ in part]
    # Decoding happens outside of Python's lock
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        looks = dict(zip(files, pool.map(_look, files)))
    relative = {file: file.relative_to(root).as_posix() for file in files}
    for file, name in relative.items():
        if len(name.splitlines()) > 1:
            looks[file] = 'its name has a line break, which a list cannot hold'
    good = {file: found for file, found in looks.items() if not isinstance(found, str)}
    label = {name: i for i, name in enumerate(classes)}
    rows = [[(relative[f], label[name]) for f, name in part if f in good] for part in parts]
    counts = Counter(label for _, label in rows[0])
    for i, name in enumerate(classes):
        if counts[i] < 1 + split:
            needed = 'two, since one is held out' if split else 'one'
            raise ValueError(
                f'--data: class {name!r} has too few readable images to train on: {counts[i]}; it '
                f'needs at least {needed}'
            )
    train, val = _split(rows[0], seed) if split else rows
    if not val:
        raise FileNotFoundError(f'--data: {path} has no image to validate on that can be read')
    return Survey(
        root=root,
        classes=classes,
        train=train,
        val=val,
        unreadable={relative[f]: why for f, why in looks.items() if isinstance(why, str)},
        sizes=[found[:2] for found in good.values()],
        modes=Counter(found[2] for found in good.values()),
        split=split,
    )


def _look(path: Path) -> tuple[int, int, str] | str:
    """Height, width and mode of an image, or why it cannot be read."""
    try:
        return read_size(path)
    except UnreadableError as error:
        return str(error)


def _parts_of_folder(folder: Path) -> tuple[bool, list[list[tuple[Path, str]]]]:
    """Whether the images are to be split, and the files of each part with their classes."""
    train = folder / 'train'
    val = next((folder / name for name in VALIDATION if (folder / name).is_dir()), None)
    # 'train' may be a class, too
    if not train.is_dir() or not any(each.is_dir() for each in _visible(train)):
        return True, [_images(folder)]
    if val is None:
        return True, [_images(train)]
    return False, [_images(train), _images(val)]


def _images(folder: Path) -> list[tuple[Path, str]]:
    """The images in the folders of classes, with the classes' names."""
    found = [
        (file, each.name) for each in _visible(folder) if each.is_dir() for file in _walk(each)
    ]
    if found:
        empty = [each.name for each in _visible(folder) if each.is_dir()]
        empty = sorted(set(empty) - {name for _, name in found})
        if empty:
            raise ValueError(
                f'--data: the class {empty[0]!r} in {folder} has no image; add images or remove its '
                'folder'
            )
        return found
    if any(map(_is_image, _visible(folder))):
        raise ValueError(
            f'--data: images lie in {folder} itself; put those of each class into a folder of its own, '
            'or pass a CSV with the columns path and label'
        )
    raise FileNotFoundError(
        f'--data: {folder} holds no images; it needs a folder for each class, with files that end in '
        f'{", ".join(IMG_EXTENSIONS)}'
    )


def _visible(folder: Path) -> list[Path]:
    """The content of a folder, sorted, without the files of systems (.DS_Store, __MACOSX)."""
    return sorted(each for each in folder.iterdir() if not each.name.startswith(('.', '__')))


def _walk(folder: Path) -> Iterable[Path]:
    """The images in a folder and in the folders below."""
    for each in _visible(folder):
        if _is_image(each):
            yield each
        elif each.is_dir() and not each.is_symlink():
            yield from _walk(each)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMG_EXTENSIONS


def _rows_of_csv(path: Path) -> list[tuple[Path, str]]:
    """The files that a CSV names, with their classes."""
    try:
        text = path.read_text(encoding='utf-8-sig', errors='surrogateescape')
        head = text.partition('\n')[0]
        lines = csv.reader(text.splitlines(), delimiter=max(',;\t', key=head.count), strict=True)
        header, *rows = [(lines.line_num, row) for row in lines if row]
    except (ValueError, csv.Error) as error:
        raise ValueError(f'--data: {path} is no CSV with a header and rows ({error})') from error
    names = [each.strip().lower() for each in header[1]]
    places = []
    for choices in COLUMNS:
        found = [i for i, name in enumerate(names) if name in choices]
        if len(found) != 1:
            raise ValueError(
                f'--data: {path} has the columns {", ".join(header[1])}; call one {choices[0]!r} (or '
                f'{", ".join(choices[1:])})'
            )
        places += found
    result: dict[Path, str] = {}
    for line, row in rows:
        cells = [row[i].strip() if i < len(row) else '' for i in places]
        if not all(cells):
            raise ValueError(f'--data: {path}, line {line}: the path or the label is missing')
        # Not resolved, as a link may lead anywhere
        file = Path(os.path.abspath(path.parent / cells[0]))
        if result.setdefault(file, cells[1]) != cells[1]:
            raise ValueError(
                f'--data: {path}, line {line}: {cells[0]} is of class {cells[1]!r} and, in a line '
                f'before, of class {result[file]!r}; an image has one class'
            )
    return list(result.items())


def _check_classes(
    data: Path, classes: Sequence[str], parts: Sequence[Sequence[tuple[Path, str]]]
) -> None:
    """Refuses names that no list can hold, a single class, and classes without training images."""
    for name in classes:
        if printable(name) != name:
            raise ValueError(
                f'--data: the class {printable(name)!r} has control characters or bytes that are no '
                'UTF-8 text in its name; rename it'
            )
    if len(classes) < 2:
        raise ValueError(
            f'--data: {data} has one class, {classes[0]!r}, and two are needed; are the folders of '
            'the classes one level below?'
        )
    if strange := sorted(set(classes) - {name for _, name in parts[0]}):
        raise ValueError(
            f'--data: the class {strange[0]!r} is among the images to validate on and not among those '
            'to train on'
        )


def _split(rows: Sequence[Row], seed: int) -> tuple[list[Row], list[Row]]:
    """Holds out a share of each class, at least one image."""
    # scikit-learn's split refuses to hold out fewer images than there are classes
    random = np.random.default_rng(seed)
    train, val = [], []
    for label in sorted({label for _, label in rows}):
        own = sorted(row for row in rows if row[1] == label)
        own = [own[i] for i in random.permutation(len(own))]
        held = max(1, round(HELD_OUT * len(own)))
        val += own[:held]
        train += own[held:]
    return sorted(train), sorted(val)
