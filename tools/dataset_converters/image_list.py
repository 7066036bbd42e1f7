#!/usr/bin/env python
"""Lists the images of PetImages or PlantVillage that can be read, and splits them at random.

  OUT/all.txt                  all readable images: a path relative to OUT and a label in each line
  OUT/train.txt, OUT/test.txt  the same in two parts, with each class in the same proportion
  OUT/classes.txt              the names of the labels
  OUT/rejected.txt             the files that cannot be read, and why

Images stay as they are. An image is rejected if Pillow or OpenCV cannot decode it, whatever its
name or its first bytes say. Pillow notices truncated files, and OpenCV reads the images in
training. A list holds one name per line, so an image with a line break in its name is rejected,
too. Bytes of names that are no text stay as they are. The parts depend only on the images and
--seed.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from mmengine.utils import track_iter_progress
from sklearn.model_selection import train_test_split

from mmkdx.datasets.listing import UnreadableError, list_text, read_size, rejected_text
from mmkdx.files import printable, write_file

#: The suffixes of images in mmpretrain's CustomDataset.
EXTENSIONS = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif')


class Layout(NamedTuple):
    """What a public folder holds."""

    classes: tuple[str, ...]  # its folders, in the order of the labels
    images: tuple[int, int]  # the least and the largest number in its copies
    source: str  # where it comes from
    ignored: tuple[str, ...] = ()  # folders that are no classes


LAYOUTS = dict(
    petimages=Layout(
        ('Cat', 'Dog'),
        (25000, 25000),
        'https://www.microsoft.com/en-us/download/details.aspx?id=54765',
    ),
    # In the order of their code points, as folders are sorted
    plantvillage=Layout(
        (
            'Apple___Apple_scab',
            'Apple___Black_rot',
            'Apple___Cedar_apple_rust',
            'Apple___healthy',
            'Blueberry___healthy',
            'Cherry_(including_sour)___Powdery_mildew',
            'Cherry_(including_sour)___healthy',
            'Corn_(maize)___Cercospora_leaf_spot Gray_leaf_spot',
            'Corn_(maize)___Common_rust_',
            'Corn_(maize)___Northern_Leaf_Blight',
            'Corn_(maize)___healthy',
            'Grape___Black_rot',
            'Grape___Esca_(Black_Measles)',
            'Grape___Leaf_blight_(Isariopsis_Leaf_Spot)',
            'Grape___healthy',
            'Orange___Haunglongbing_(Citrus_greening)',
            'Peach___Bacterial_spot',
            'Peach___healthy',
            'Pepper,_bell___Bacterial_spot',
            'Pepper,_bell___healthy',
            'Potato___Early_blight',
            'Potato___Late_blight',
            'Potato___healthy',
            'Raspberry___healthy',
            'Soybean___healthy',
            'Squash___Powdery_mildew',
            'Strawberry___Leaf_scorch',
            'Strawberry___healthy',
            'Tomato___Bacterial_spot',
            'Tomato___Early_blight',
            'Tomato___Late_blight',
            'Tomato___Leaf_Mold',
            'Tomato___Septoria_leaf_spot',
            'Tomato___Spider_mites Two-spotted_spider_mite',
            'Tomato___Target_Spot',
            'Tomato___Tomato_Yellow_Leaf_Curl_Virus',
            'Tomato___Tomato_mosaic_virus',
            'Tomato___healthy',
        ),
        (54303, 54306),
        'https://github.com/spMohanty/PlantVillage-Dataset',
        ('Background_without_leaves',),
    ),
)


def _key(name: str) -> str:
    """A class's name without parts that copies omit: 'Corn_(maize)___Common_rust_' loses two."""
    return re.sub(r'_\([^)]*\)(?=___)', '', name).rstrip('_')


def _class_folders(folder: Path, layout: Layout) -> dict[str, Path]:
    """The folders in a folder that may be classes, by their key."""
    return {
        _key(path.name): path
        for path in folder.iterdir()
        if path.is_dir()
        and not path.name.startswith(('.', '__'))
        and path.name not in layout.ignored
    }


def find_classes(src: Path, layout: Layout) -> list[Path]:
    """Finds the folder of each class, in the order of the labels.

    Raises:
        FileNotFoundError: If the public folder is not there.
        ValueError: If its folders are not the classes.
    """
    if not src.is_dir():
        raise FileNotFoundError(f'there is no folder {src.resolve()}; unpack {layout.source}')
    keys = [_key(name) for name in layout.classes]
    found = _class_folders(src, layout)
    missing = [name for name, key in zip(layout.classes, keys) if key not in found]
    if missing:
        near = [src.resolve().parent, *sorted(src.glob('*/')), *sorted(src.glob('*/*/'))]
        meant = [
            path for path in near if path.is_dir() and set(keys) <= {*_class_folders(path, layout)}
        ]
        advice = f'did you mean {meant[0]}?' if meant else f'unpack {layout.source} again'
        raise ValueError(
            f'{src} lacks the folders of {len(missing)} of the {len(keys)} classes, among them '
            f'{missing[0]}; {advice}'
        )
    extra = sorted(found[key].name for key in set(found) - set(keys))
    if extra:
        raise ValueError(f'{src} has folders that are no class: {", ".join(extra)}; remove them')
    return [found[key] for key in keys]


def why_unreadable(path: Path) -> str | None:
    """Decodes a file, and returns the reason if that fails, else None."""
    try:
        read_size(path)
    except UnreadableError as error:
        return str(error)
    return None


def convert(
    name: str,
    src: str,
    out: str,
    test: float = 0.2,
    seed: int = 42,
    workers: int = 1,
    strict: bool = False,
) -> dict[str, int]:
    """Writes the lists; the arguments are those of the command line.

    Returns:
        dict[str, int]: The number of lines of each list.

    Raises:
        FileNotFoundError: If the public folder is not there.
        ValueError: If its folders are not the classes, there are too few images to split, or, with
            ``strict``, there are not as many as published.
    """
    layout = LAYOUTS[name]
    paths, labels = [], []
    for label, folder in enumerate(find_classes(Path(src), layout)):
        files = sorted(p for p in folder.iterdir() if p.name.lower().endswith(EXTENSIONS))
        paths += files
        labels += [label] * len(files)
    least, most = layout.images
    if not least <= len(paths) <= most:
        published = f'{least:,}' if least == most else f'{least:,} to {most:,}'
        message = f'{src} has {len(paths):,} images, not {published}'
        if strict:
            raise ValueError(message)
        print(f'Warning: {message}', file=sys.stderr)

    with ThreadPoolExecutor(workers) as pool:  # decoding happens outside of Python's lock
        reasons = list(track_iter_progress((pool.map(why_unreadable, paths), len(paths))))
    names = [os.path.relpath(path, out).replace(os.sep, '/') for path in paths]
    for i, name in enumerate(names):
        if len(name.splitlines()) > 1:
            reasons[i] = 'its name has a line break'
    rows = [(n, label) for n, label, reason in zip(names, labels, reasons) if reason is None]
    counts = Counter(label for _, label in rows)
    for label, folder in enumerate(layout.classes):
        if counts[label] < 2:
            raise ValueError(
                f'{src}: class {folder} has too few readable images: {counts[label]}; a split needs two'
            )
    try:
        train, held_out = train_test_split(
            rows, test_size=test, random_state=seed, stratify=[label for _, label in rows]
        )
    except ValueError as error:
        raise ValueError(
            f'{len(rows):,} images cannot be split by --test {test}: {error}'
        ) from error

    parts = (('all', rows), ('train', train), ('test', held_out))
    lists = {f'{part}.txt': list_text(listed) for part, listed in parts}
    lists['classes.txt'] = ''.join(f'{name}\n' for name in layout.classes).encode()
    rejected = dict((n, reason) for n, reason in zip(names, reasons) if reason)
    lists['rejected.txt'] = rejected_text(rejected).encode()
    Path(out).mkdir(parents=True, exist_ok=True)
    for file, content in lists.items():
        write_file(Path(out, file), content)
    return {file: content.count(b'\n') for file, content in lists.items()}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('name', choices=LAYOUTS, help='the data set')
    parser.add_argument('src', metavar='SRC', help='the public folder with its class folders')
    parser.add_argument('out', metavar='OUT', help='the folder for the lists')
    parser.add_argument(
        '--test', type=float, default=0.2, metavar='SHARE', help='share to test on (default: 0.2)'
    )
    parser.add_argument('--seed', type=int, default=42, help='random seed (default: 42)')
    parser.add_argument(
        '--workers',
        type=int,
        default=os.cpu_count(),
        help='number of threads that decode images (default: the number of cores)',
    )
    parser.add_argument('--strict', action='store_true', help='fail if a count is not as published')
    args = parser.parse_args(argv)
    if not 0 < args.test < 1:
        parser.error(f'--test is {args.test} and has to be between 0 and 1')
    for option, least in (('seed', 0), ('workers', 1)):
        if getattr(args, option) < least:
            parser.error(f'--{option} is {getattr(args, option)} and has to be {least} or more')
    return args


def main(argv: list[str] | None = None) -> None:
    """Runs the tool."""
    args = parse_args(argv)
    try:
        counts = convert(**vars(args))
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    for file, count in counts.items():
        print(f'{printable(Path(args.out, file))}: {count:,} lines')


if __name__ == '__main__':
    main()
