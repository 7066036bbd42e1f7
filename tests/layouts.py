"""Small data sets in the layouts of the public ones."""

from __future__ import annotations

import csv
import pickle
import struct
from pathlib import Path

import numpy as np
from PIL import Image

IDS = ('n01443537', 'n02231487', 'n09999999')


class Python2Pickler(pickle._Pickler):
    """Writes text as Python 2 did, with which CIFAR's files were written."""

    dispatch = dict(pickle._Pickler.dispatch)

    def text(self, value: str) -> None:
        """Writes a byte string."""
        raw = value.encode('latin1')
        if len(raw) < 256:
            self.write(b'U' + bytes([len(raw)]) + raw)
        else:
            self.write(b'T' + struct.pack('<i', len(raw)) + raw)
        self.memoize(value)

    dispatch[str] = text


def images(n: int, *shape: int, seed: int = 0) -> np.ndarray:
    """Random RGB images (n, H, W, 3), none of which is symmetric."""
    return np.random.default_rng(seed).integers(0, 256, (n, *shape, 3), dtype=np.uint8)


def write_cifar(root: Path, name: str, per_file: int = 12) -> dict[str, tuple]:
    """Writes CIFAR-10 or CIFAR-100 below root; yields images and labels of each split."""
    classes = 10 if name == 'CIFAR10' else 100
    folder = root / ('cifar-10-batches-py' if classes == 10 else 'cifar-100-python')
    folder.mkdir(parents=True)
    parts = dict(train=['train'], test=['test'])
    if classes == 10:
        parts = dict(train=[f'data_batch_{i}' for i in range(1, 6)], test=['test_batch'])
    splits = {}
    for split, files in parts.items():
        count = per_file * len(files)
        pixels = images(count, 32, 32, seed=len(split))
        labels = [(7 * i + 3) % classes for i in range(count)]
        splits[split] = pixels, labels
        for i, file in enumerate(files):
            part = slice(i * per_file, (i + 1) * per_file)
            rows = pixels[part].transpose(0, 3, 1, 2).reshape(per_file, 3072)
            entry = dict(
                batch_label=f'training batch {i + 1} of {len(files)}',
                filenames=[f'image_s_{j:06}.png' for j in range(per_file)],
                data=rows,
            )
            if classes == 10:
                entry['labels'] = labels[part]
            else:
                entry['fine_labels'] = labels[part]
                entry['coarse_labels'] = [label % 20 for label in labels[part]]
            with open(folder / file, 'wb') as stream:
                Python2Pickler(stream, protocol=2).dump(entry)
    return splits


def accept_cifar(monkeypatch, cls: type) -> None:
    """Lets a class of CIFAR read files that are not the public ones."""
    for files in ('train_list', 'test_list'):
        unchecked = [[name, None] for name, _ in getattr(cls, files)]
        monkeypatch.setattr(cls, files, unchecked)


def write_stl10(folder: Path, labels=(1, 2, 10, 4, 5, 6)) -> np.ndarray:
    """Writes STL-10, without unlabelled images; yields the images of each split."""
    folder.mkdir(parents=True)
    pixels = images(len(labels), 96, 96)
    for split in ('train', 'test'):
        # number, channel, column, row
        pixels.transpose(0, 3, 2, 1).tofile(folder / f'{split}_X.bin')
        np.array(labels, np.uint8).tofile(folder / f'{split}_y.bin')
    folds = [f'{fold % 6} 3 5' for fold in range(10)]
    (folder / 'fold_indices.txt').write_text('\n'.join(folds) + '\n')
    return pixels


def write_tiny_imagenet(root: Path, ids=IDS, per_class: int = 2, val: str = 'public') -> None:
    """Writes Tiny-ImageNet, with validation images as the public archive or copies have them."""
    pixels = images(2, 64, 64)
    for number, wordnet_id in enumerate(ids):
        folder = root / 'train' / wordnet_id / 'images'
        folder.mkdir(parents=True)
        boxes = root / 'train' / wordnet_id / f'{wordnet_id}_boxes.txt'
        boxes.write_text(f'{wordnet_id}_0.JPEG\t0\t10\t63\t58\n')
        for i in range(per_class):
            # The second image of a class is a grey one
            image = Image.fromarray(pixels[(number + i) % 2]).convert('L' if i == 1 else 'RGB')
            image.save(folder / f'{wordnet_id}_{i}.JPEG', format='JPEG')
    # Not in alphabetical order
    (root / 'wnids.txt').write_text('\n'.join(reversed(ids)) + '\n')
    rows = []
    for i in range(2 * len(ids)):
        wordnet_id = ids[-1 - i % len(ids)]
        folder = (
            root / 'val' / dict(public='images', ids=wordnet_id).get(val, f'{wordnet_id}/images')
        )
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[i % 2]).save(folder / f'val_{i}.JPEG', format='JPEG')
        rows.append(f'val_{i}.JPEG\t{wordnet_id}\t0\t8\t56\t41\n')
    (root / 'val/val_annotations.txt').write_text(''.join(rows))


def write_waterbirds(root: Path, size: tuple[int, int] = (40, 30)) -> list[dict]:
    """Writes Waterbirds with one image for each split, class and place; yields the table."""
    combinations = [(s, y, p) for s in (2, 0, 1) for y in (0, 1) for p in (1, 0)]
    rows = [
        dict(
            img_id=i + 1,
            img_filename=f'{i + 1:03}.Some_Bird/Some_Bird_{i:04}.jpg',
            y=y,
            split=split,
            place=place,
            place_filename=f'/b/bamboo_forest/{i:08}.jpg',
        )
        for i, (split, y, place) in enumerate(combinations)
    ]
    for row, pixels in zip(rows, images(len(rows), *size)):
        path = root / row['img_filename']
        path.parent.mkdir(parents=True)
        Image.fromarray(pixels).save(path)
    with open(root / 'metadata.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return rows


def write_fashion_mnist(root: Path, n: int = 20) -> dict[str, np.ndarray]:
    """Writes Fashion-MNIST's four unpacked files with labels 0 to 9; yields the images of each split."""
    root.mkdir(parents=True, exist_ok=True)
    pixels = {}
    for seed, (split, name) in enumerate(dict(train='train', test='t10k').items()):
        pixels[split] = images(n, 28, 28, seed=seed)[..., 0]
        header = struct.pack('>4i', 2051, n, 28, 28)
        (root / f'{name}-images-idx3-ubyte').write_bytes(header + pixels[split].tobytes())
        labels = bytes(i % 10 for i in range(n))
        (root / f'{name}-labels-idx1-ubyte').write_bytes(struct.pack('>2i', 2049, n) + labels)
    return pixels
