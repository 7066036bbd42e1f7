"""Draws images of six classes, shapes and textures, into folders.

Usage: python tests/drawn_images.py FOLDER [--train 20] [--val 10] [--side 96] [--seed 0]
writes FOLDER/train/CLASS/*.png and FOLDER/val/CLASS/*.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

CLASSES = ('checks', 'circle', 'cross', 'rings', 'stripes', 'triangle')


def draw(name: str, side: int, rng: np.random.Generator) -> np.ndarray:
    """An image (side, side, 3) of a class, in BGR, light on a dark and noisy background.

    Position, size, angle and colours are the same for all classes in distribution.
    """
    back, front = rng.uniform(10, 110, 3), rng.uniform(140, 245, 3)
    shade = np.linspace(-25, 25, side)
    image = back + (shade[:, None] if rng.random() < 0.5 else shade)[..., None] * np.ones(3)
    radius = side * rng.uniform(0.28, 0.4)
    center = rng.uniform(radius, side - radius, 2)
    angle = rng.uniform(-0.35, 0.35)
    y, x = np.mgrid[:side, :side] + 0.5
    dx, dy = x - center[0], y - center[1]
    u = (dx * np.cos(angle) + dy * np.sin(angle)) / radius
    v = (dy * np.cos(angle) - dx * np.sin(angle)) / radius
    distance = np.hypot(u, v)
    square = np.maximum(np.abs(u), np.abs(v)) < 0.9
    shapes = dict(
        checks=square & (np.sin(u * 8) * np.sin(v * 8) > 0),
        circle=distance < 0.9,
        cross=square & (np.minimum(np.abs(u), np.abs(v)) < 0.28),
        rings=(distance < 1) & (np.sin(distance * 15) > 0),
        stripes=square & (np.sin(u * 11) > 0),
        triangle=(v < 0.75) & (v > 2 * np.abs(u) - 0.95),
    )
    image = np.where(shapes[name][..., None], front, image)
    noisy = image + rng.normal(0, 8, image.shape)
    return cv2.GaussianBlur(noisy.clip(0, 255).astype(np.uint8), (0, 0), 0.6)


def write_folder(
    folder: str | Path, train: int = 20, val: int = 10, side: int = 96, seed: int = 0
) -> Path:
    """Writes images of all classes, of ``side`` pixels, and returns the folder.

    Args:
        folder (str | Path): The folder.
        train (int): How many images of each class go to ``train``. Defaults to 20.
        val (int): How many go to ``val``. Defaults to 10.
        side (int): Height and width in pixels. Defaults to 96.
        seed (int): The random seed. Defaults to 0.
    """
    rng = np.random.default_rng(seed)
    for part, count in (('train', train), ('val', val)):
        for name in CLASSES:
            path = Path(folder, part, name)
            path.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                _, data = cv2.imencode('.png', draw(name, side, rng))
                (path / f'{i:03}.png').write_bytes(data.tobytes())
    return Path(folder)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('folder', type=Path)
    for option, default in (('train', 20), ('val', 10), ('side', 96), ('seed', 0)):
        parser.add_argument(f'--{option}', type=int, default=default)
    print(write_folder(**vars(parser.parse_args())))
