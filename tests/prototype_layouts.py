"""Small CUB-200-2011 and Stanford Cars in the layouts of the public archives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from layouts import images
from PIL import Image
from scipy.io import savemat

PARTS = (
    *('back', 'beak', 'belly', 'breast', 'crown', 'forehead', 'left eye', 'left leg'),
    *('left wing', 'nape', 'right eye', 'right leg', 'right wing', 'tail', 'throat'),
)
CUB_FOLDERS = ('001.Black_footed_Albatross', '002.Laysan_Albatross', '200.Common_Yellowthroat')
CAR_FIELDS = ('bbox_x1', 'bbox_y1', 'bbox_x2', 'bbox_y2', 'class')


def write_cub(root: Path, size: tuple[int, int] = (60, 80)) -> list[dict]:
    """Writes CUB-200-2011 with three images of each of three classes; yields what it says of each.

    Boxes and parts differ from image to image; of the parts, every third is not visible.
    """
    rows = []
    for index, pixels in enumerate(images(9, *size)):
        label = index // 3
        folder = CUB_FOLDERS[label]
        # the names of files differ from those of folders in capital letters
        name = f'{folder}/{folder[4:].title()}_{index + 1:04}_{7000 + index}.jpg'
        path = root / 'images' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = 'L' if index == 4 else 'RGB'
        Image.fromarray(pixels).convert(mode).save(path, quality=95)
        points = [
            (0.0, 0.0, 0) if (index + part) % 3 == 0 else (20.0 + index + part, 12.0 + 2 * part, 1)
            for part in range(15)
        ]
        rows.append(
            dict(
                name=name,
                label=(0, 1, 199)[label],
                train=index % 3 != 1,
                box=(10.0 + index, 5.0, 40.0, 30.0 + index),
                points=points,
            )
        )

    def write(file: str, lines: list[str]) -> None:
        (root / file).parent.mkdir(exist_ok=True)
        (root / file).write_text('\n'.join(lines) + '\n')

    numbered = list(enumerate(rows, 1))
    write('images.txt', [f'{i} {row["name"]}' for i, row in numbered])
    write('image_class_labels.txt', [f'{i} {row["label"] + 1}' for i, row in numbered])
    write('train_test_split.txt', [f'{i} {row["train"]:d}' for i, row in numbered])
    write('bounding_boxes.txt', [f'{i} {" ".join(map(str, row["box"]))}' for i, row in numbered])
    write('classes.txt', [f'{folder[:3].lstrip("0")} {folder}' for folder in CUB_FOLDERS])
    write('parts/parts.txt', [f'{i} {name}' for i, name in enumerate(PARTS, 1)])
    write(
        'parts/part_locs.txt',
        [
            f'{i} {part} {x} {y} {visible}'
            for i, row in numbered
            for part, (x, y, visible) in enumerate(row['points'], 1)
        ],
    )
    return rows


def write_records(path: Path, rows: list[dict], **others: np.ndarray) -> None:
    """Writes MATLAB's struct array 'annotations', numbers in the smallest type as MATLAB does."""
    records = np.empty((1, len(rows)), dtype=[(field, object) for field in rows[0]])
    for record, row in zip(records[0], rows):
        for field, value in row.items():
            kind = np.uint8 if not isinstance(value, str) and value < 256 else np.uint16
            record[field] = value if isinstance(value, str) else np.array([[value]], kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {'annotations': records, **others})


def write_cars(
    root: Path, layout: str = 'devkit', count: int = 4, size: tuple[int, int] = (60, 300)
) -> dict[str, list[dict]]:
    """Writes Stanford Cars; yields the records of each split.

    Args:
        root (Path): Its folder.
        layout (str): 'devkit', 'doubled' (as copies have it), or 'all' (one folder for all images).
        count (int): How many images each split has.
        size (tuple): Of the images.
    """
    names = np.empty((1, 196), object)
    names[0] = [f'Car {number}' for number in range(196)]
    splits, every = {}, []
    for split in ('train', 'test'):
        rows = []
        for index, pixels in enumerate(images(count, *size, seed=len(split))):
            # Class 174 has a slash in its name
            label = (196, 174, 1, 14)[(index + (split == 'test')) % 4]
            name = f'{index + 1:05}.jpg'
            folder = root / f'cars_{split}'
            if layout == 'doubled':
                folder = folder / f'cars_{split}'
            elif layout == 'all':
                name = f'{len(every) + 1:06}.jpg'
                folder = root / 'car_ims'
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / name, quality=95)
            box = dict(zip(CAR_FIELDS, (5 + index, 6, 260 + index, 40 + index, label)))
            rows.append(dict(box, fname=name))
            every.append(dict(relative_im_path=f'car_ims/{name}', **box, test=int(split == 'test')))
        splits[split] = rows
        if layout != 'all':
            labels = f'cars_{split}_annos' + ('_withlabels' if split == 'test' else '')
            write_records(root / f'devkit/{labels}.mat', rows)
    if layout == 'all':
        write_records(root / 'cars_annos.mat', every, class_names=names)
    else:
        unlabelled = [{k: v for k, v in row.items() if k != 'class'} for row in splits['test']]
        write_records(root / 'devkit/cars_test_annos.mat', unlabelled)
        savemat(root / 'devkit/cars_meta.mat', {'class_names': names})
    return splits
