#!/usr/bin/env python
"""Writes CUB-200-2011 or Stanford Cars as the folders that prototype networks are trained on.

  OUT/train_cropped/001.Black_footed_Albatross/*.jpg             to push prototypes
  OUT/test_cropped/001.Black_footed_Albatross/*.jpg              to test
  OUT/train_cropped_augmented/001.Black_footed_Albatross/*.jpg   to train

Without crops the folders are train, test and train_augmented, and the first two hold copies of the
files. Folders of classes sort in the order of the labels, and every split has all of them.

Four operations are applied N times to each training image: rotations by up to 15 degrees, skews of
magnitude 0.2, shears by up to 10 degrees, and distortions of a 5 x 5 grid by up to 5 pixels. Each
result is flipped with probability 0.5. This follows ProtoPNet's recipe (Chen et al., NeurIPS 2019)
with the distortions of Proto2Proto (Keswani et al., CVPR 2022). It uses OpenCV instead of their
library, so images are the same in kind, not in their pixels. As there, results are as large as
their sources, and enlarged just enough that nothing from outside shows.

A stopped run continues where it was: existing files are kept, whatever the options. Otherwise the
files depend only on the images and --seed.
"""

from __future__ import annotations

import argparse
import os
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from mmengine.utils import track_iter_progress

from mmkdx.bounds import TooLargeError, check_image
from mmkdx.datasets.cars import StanfordCars
from mmkdx.datasets.cub import CUB
from mmkdx.datasets.transforms import CropToBox
from mmkdx.files import write_file

READERS = dict(cub=CUB, cars=StanfordCars)
#: The number of images in each split of the public archives.
PUBLISHED = dict(cub=dict(train=5994, test=5794), cars=dict(train=8144, test=8041))
ROTATION = 15  # degrees
SKEW = 0.2  # of the longer side
SHEAR = 10  # degrees
GRID = 5  # cells in a row
DISTORTION = 5  # pixels


class Job(NamedTuple):
    """What to do with one image."""

    source: Path
    box: np.ndarray | None  # the crop, of shape (1, 4); None copies the file
    target: Path
    augmented: Path | None  # the folder of augmented images; None makes none
    passes: int  # how often each operation is applied
    seed: int  # random numbers depend on it and on the name of the new file


def _warp(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Warps by a projective matrix from input to output, whose origin is the corner of the image."""
    corner = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])  # OpenCV's is the middle of a pixel
    return cv2.warpPerspective(
        image,
        np.linalg.inv(corner) @ matrix @ corner,
        image.shape[1::-1],
        flags=cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REFLECT,
    )


def _warp_about_centre(image: np.ndarray, linear: np.ndarray) -> np.ndarray:
    """Warps by a linear map about the centre, enlarged until the result covers the frame."""
    half = np.array(image.shape[1::-1]) / 2
    # How far the frame's corners reach in the input
    reach = np.abs(np.linalg.inv(linear)) @ half
    matrix = np.eye(3)
    matrix[:2, :2] = linear * (reach / half).max()
    matrix[:2, 2] = half - matrix[:2, :2] @ half
    return _warp(image, matrix)


def rotate(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rotates by up to 15 degrees."""
    angle = np.radians(rng.uniform(-ROTATION, ROTATION))
    sine, cosine = np.sin(angle), np.cos(angle)
    return _warp_about_centre(image, np.array([[cosine, -sine], [sine, cosine]]))


def shear(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shears by up to 10 degrees, along the rows or the columns."""
    linear = np.eye(2)
    axis = rng.integers(2)
    linear[axis, 1 - axis] = np.tan(np.radians(rng.uniform(-SHEAR, SHEAR)))
    return _warp_about_centre(image, linear)


def skew(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Changes the perspective: a side of the image, or in one of four cases a corner, comes nearer.

    The side's ends, or the corner along one axis, move out by up to 0.2 of the longer side.
    """
    width, height = image.shape[1::-1]
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    outwards = np.sign(corners - corners[2] / 2)
    axis = rng.integers(2)
    if rng.random() < 0.75:
        moved = outwards[:, 1 - axis] == rng.choice([-1, 1])
    else:
        moved = np.arange(4) == rng.integers(4)
    nearer = corners.copy()
    nearer[moved, axis] += outwards[moved, axis] * rng.uniform(0, SKEW) * max(width, height)
    return _warp(image, cv2.getPerspectiveTransform(corners, nearer))


def distort(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Moves the inner nodes of a 5 x 5 grid by up to 5 pixels, and pixels between bilinearly."""
    nodes = rng.uniform(-DISTORTION, DISTORTION, (2, GRID + 1, GRID + 1))
    nodes[:, [0, -1]] = nodes[:, :, [0, -1]] = 0
    rows, columns = map(np.arange, image.shape[:2])

    def weights(pixels: np.ndarray) -> np.ndarray:
        cells = (pixels + 0.5) * GRID / len(pixels)
        return np.maximum(1 - np.abs(cells[:, None] - np.arange(GRID + 1)), 0)

    x, y = weights(rows) @ nodes @ weights(columns).T
    return cv2.remap(
        image,
        (x + columns).astype(np.float32),
        (y + rows[:, None]).astype(np.float32),
        cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REFLECT,
    )


OPERATIONS: dict[str, Callable] = dict(rotate=rotate, skew=skew, shear=shear, distort=distort)


def _jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode('.jpg', image)[1].tobytes()  # of quality 95


def write_images(job: Job) -> None:
    """Writes the new files of one image that do not exist yet.

    Raises:
        ValueError: If the image cannot be read.
        WriteError: If a file cannot be written.
    """
    augmented = {}
    if job.augmented is not None:
        for name in OPERATIONS:
            for number in range(job.passes):
                path = job.augmented / f'{job.target.stem}_{name}_{number}.jpg'
                if not path.exists():
                    augmented[path] = name
    if job.target.exists() and not augmented:
        return
    try:
        check_image(job.source)
    except TooLargeError as error:
        raise ValueError(f'{job.source}: {error}') from error
    content = np.fromfile(job.source, np.uint8)  # cv2.imread fails for names that are not UTF-8
    image = cv2.imdecode(content, cv2.IMREAD_COLOR) if len(content) else None
    if image is None:
        raise ValueError(f'{job.source} cannot be read as an image')
    if job.box is not None:
        image = CropToBox()(dict(img=image, gt_bboxes=job.box))['img']
    if not job.target.exists():
        write_file(job.target, job.source.read_bytes() if job.box is None else _jpeg(image))
    for path, name in augmented.items():
        # The folder of the class and the file: the same on every machine and in any order
        key = zlib.crc32(f'{path.parent.name}/{path.name}'.encode())
        rng = np.random.default_rng([job.seed, key])
        result = OPERATIONS[name](image, rng)
        write_file(path, _jpeg(result[:, ::-1] if rng.random() < 0.5 else result))


def convert(
    name: str,
    src: str,
    out: str,
    crop: bool,
    augment: int = 10,
    seed: int = 0,
    workers: int = 0,
    strict: bool = False,
) -> dict[str, int]:
    """Writes the folders; the arguments are those of the command line.

    Returns:
        dict[str, int]: The number of images in each new folder.

    Raises:
        FileNotFoundError: If the public folder is incomplete.
        ValueError: If an image cannot be read, or with ``strict`` if counts are wrong.
    """

    def report(message: str) -> None:
        if strict:
            raise ValueError(message)
        print(f'Warning: {message}', file=sys.stderr)

    jobs, expected = [], {}
    for split, published in PUBLISHED[name].items():
        data = READERS[name](data_root=src, split=split)
        if len(data) != published:
            report(f'{src} has {len(data):,} images in its split {split}, not {published:,}')
        target = Path(out, f'{split}_cropped' if crop else split)
        expected[target] = len(data)
        augmented = None
        if split == 'train' and augment:
            augmented = target.with_name(f'{target.name}_augmented')
            expected[augmented] = len(data) * len(OPERATIONS) * augment
        classes = [
            f'{number:03}.{label.replace("/", "-")}'
            for number, label in enumerate(data.metainfo['classes'], 1)
        ]
        for folder in classes:
            for parent in filter(None, (target, augmented)):
                (parent / folder).mkdir(parents=True, exist_ok=True)
        for info in map(data.get_data_info, range(len(data))):
            source, folder = Path(info['img_path']), classes[info['gt_label']]
            jobs.append(
                Job(
                    source,
                    info['gt_bboxes'] if crop else None,
                    target / folder / source.name,
                    augmented and augmented / folder,
                    augment,
                    seed,
                )
            )

    if workers:
        # OpenCV's threads would only compete with the other processes
        with ProcessPoolExecutor(workers, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
            results = pool.map(write_images, jobs, chunksize=4)
            for _ in track_iter_progress((results, len(jobs))):
                pass
    else:
        for job in track_iter_progress(jobs):
            write_images(job)

    counts = {folder: sum(1 for _ in folder.glob('*/*.jpg')) for folder in expected}
    for folder, count in counts.items():
        if count != expected[folder]:
            report(
                f'{folder} has {count:,} images, not {expected[folder]:,}: some are of another run'
            )
    return {str(folder): count for folder, count in counts.items()}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('name', choices=READERS, help='the data set')
    parser.add_argument('src', metavar='SRC', help='its public folder')
    parser.add_argument('out', metavar='OUT', help='the new folder')
    parser.add_argument(
        '--crop',
        action=argparse.BooleanOptionalAction,
        help='crop images to their boxes (default: for cub, not for cars)',
    )
    parser.add_argument(
        '--augment',
        type=int,
        default=10,
        metavar='N',
        help='how often each operation is applied (default: 10)',
    )
    parser.add_argument('--seed', type=int, default=0, help='random seed (default: 0)')
    parser.add_argument(
        '--workers',
        type=int,
        default=os.cpu_count(),
        help='number of processes that write (default: the number of cores); 0: only this one',
    )
    parser.add_argument('--strict', action='store_true', help='fail if a count is not as published')
    args = parser.parse_args(argv)
    for option in ('augment', 'seed', 'workers'):
        if getattr(args, option) < 0:
            parser.error(f'--{option} is {getattr(args, option)} and has to be 0 or more')
    if args.crop is None:
        args.crop = args.name == 'cub'
    return args


def main(argv: list[str] | None = None) -> None:
    """Runs the tool."""
    args = parse_args(argv)
    try:
        counts = convert(**vars(args))
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    for folder, count in counts.items():
        print(f'{folder}: {count:,} images')


if __name__ == '__main__':
    main()
