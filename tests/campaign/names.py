"""Strange names of files: through explain.py, image_list.py and the report.

Lost is what breaks down; wrong without a word is a missing picture, list entry or text, or a changed
image.
"""

from __future__ import annotations

import io
import os
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from html.parser import HTMLParser
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.datasets import LoadImageFromFile
from tiny import build, classifier, tool

from mmkdx.datasets import ImageList
from mmkdx.visualization.report import GalleryItem, write_report

#: Letters, and longer pieces that mean something to a shell, a page, a format or another system.
PIECES = [
    *'aAxX01 .-\'"`\\%#*?[]{}~;|&\n\r\t\v\x7f\x85\u2028\u202e\ufeff\ufffeéßİ猫🦜',
    *('x_1', '--', '%s', '%00', '{{ x }}', '$HOME', '\x1b[31m', 'e\u0301', 'a' * 60, '猫' * 40),
    *('&amp;', '<b>', '<title>', '<script>', '<!--', ']]>', '" onload="x'),
]
EXTENSIONS = ('.png', '.PNG', '.jpg', '.JPEG', '.bmp')


def random_name(rng: random.Random, extension: str = '') -> str:
    """A name that a file system of Linux allows; bytes that are no text are surrogates."""
    name = b''
    for _ in range(rng.randint(1, 6)):
        if rng.random() < 0.3:
            name += bytes(rng.choice([*range(1, 47), *range(48, 256)]) for _ in range(3))
        else:
            name += rng.choice(PIECES).encode()
    name = name[: 255 - len(extension)] + extension.encode()
    return 'dots' if name in (b'.', b'..') else os.fsdecode(name)


def add_images(rng: random.Random, folder: Path, count: int) -> dict[Path, bytes]:
    """Writes images with different pixels, whose names are random, and returns their contents."""
    folder.mkdir()
    found = {}
    for _ in range(count):
        extension = rng.choice(EXTENSIONS)
        path = folder / random_name(rng, extension)
        pixels = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (20, 24, 3), np.uint8)
        found[path] = cv2.imencode(extension.lower(), pixels)[1].tobytes()
        path.write_bytes(found[path])
    return found


def call(name: str, *arguments: object) -> tuple[str, object]:
    """What a tool writes to a terminal in UTF-8, and its exit status or its last words."""
    out = io.TextIOWrapper(io.BytesIO(), 'utf-8')
    status = 0
    words = [name, *map(str, arguments)]
    with (
        mock.patch.object(sys, 'argv', words),
        redirect_stdout(out),
        redirect_stderr(io.StringIO()),
    ):
        try:
            tool(name).main()
        except SystemExit as leave:
            status = leave.code
    out.flush()
    return out.buffer.getvalue().decode(), status


def explain(rng: random.Random, folder: Path, model: tuple[Path, Path]) -> None:
    """Each image gets a picture of its own, and stays as it is."""
    images = {}
    for i in range(rng.randint(1, 2)):
        images.update(add_images(rng, folder / f'{i}{random_name(rng)}'[:60], rng.randint(1, 3)))
    parents = list(dict.fromkeys(path.parent for path in images))
    out = rng.choice([*parents, folder / 'new' / f'{random_name(rng)[:60]}'])
    before = {*out.iterdir()} if out.exists() else set()
    text, status = call('explain', *model, *parents, '--out', out, '--target', '1')
    assert status == 0, status
    pictures = {*out.iterdir()} - before
    assert len(pictures) == len(images), f'{len(pictures)} pictures of {len(images)} images'
    for path in pictures:
        assert cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), 1) is not None, path
    for path, content in images.items():
        assert path.read_bytes() == content, f'{path} was changed'
    lines = [line for line in text.splitlines() if line.startswith('| ')]
    assert len(lines) == 1 + len(images), 'a line for each image'


def lists(rng: random.Random, folder: Path, _: object) -> None:
    """Each image is in the list, and can be loaded by it, or is rejected."""
    images = {}
    (folder / 'src').mkdir()
    for name in ('Cat', 'Dog'):
        images.update(add_images(rng, folder / 'src' / name, rng.randint(1, 3)))
        for i in range(2):
            path = folder / 'src' / name / f'{i}.png'
            path.write_bytes(cv2.imencode('.png', np.zeros((4, 4, 3), np.uint8))[1])
            images[path] = path.read_bytes()
    arguments = ('petimages', folder / 'src', folder, '--workers', 1, '--test', 0.5)
    with mock.patch('mmengine.utils.progressbar.sys.stdout', io.StringIO()):
        _, status = call('dataset_converters/image_list', *arguments)
    assert status == 0, status
    with DefaultScope.overwrite_default_scope('mmkdx'):
        data = ImageList('all.txt', 'here', data_root=str(folder))
    listed = {Path(data[i]['img_path']) for i in range(len(data))}
    expected = {path for path in images if len(path.name.splitlines()) == 1}
    assert listed == expected, f'{listed ^ expected} are in the list or not'
    for path in listed:
        assert LoadImageFromFile()(dict(img_path=str(path))) is not None, path
    rejected = (folder / 'rejected.txt').read_text().splitlines()
    assert len(rejected) == len(images) - len(expected), rejected


class Page(HTMLParser):
    """The tags of a page with their attributes' names, and its texts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags, self.texts = [], ['']
        self.feed(path.read_bytes().decode())

    def handle_starttag(self, tag: str, attrs: list[tuple]) -> None:
        self.tags.append((tag, [name for name, _ in attrs]))
        self.texts.append('')

    def handle_endtag(self, tag: str) -> None:
        self.texts.append('')

    def handle_data(self, data: str) -> None:
        self.texts[-1] += data


def report(rng: random.Random, folder: Path, _: object) -> None:
    """A name is a text of the page, and nothing else."""
    name = f'name {random_name(rng)}'  # which the page has nowhere else
    pages = []
    for i, each in enumerate((name, 'plain')):
        item = GalleryItem(
            np.zeros((4, 4, 3), np.uint8), 0, each, dict(student=each), dict(loss=1.0)
        )
        path = write_report(
            folder / f'{i}.html',
            title=each,
            facts=dict(config=each),
            curves={'loss': {each: [(1, 0.5), (2, 0.25)]}},
            gallery=[item],
        )
        pages.append(Page(path))
    assert pages[0].tags == pages[1].tags, 'the name makes tags'
    shown = name.encode(errors='replace').decode()
    assert pages[0].texts.count(shown) == pages[1].texts.count('plain') > 3, 'the name is not shown'


def attempt(check: Callable, rng: random.Random, model: tuple[Path, Path]) -> str:
    """How a check in a folder of its own ends."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            check(rng, Path(folder), model)
        except AssertionError:
            traceback.print_exc()
            return 'silent'
        except Exception:
            traceback.print_exc()
            return 'lost'
    return 'survived'


def drive(minutes: float, seed: int) -> list[dict]:
    """Tries random names until the time is over."""
    end = time.monotonic() + 60 * minutes
    rng = random.Random(seed)
    checks = {'explain.py': explain, 'image_list.py': lists, 'the report': report}
    rows = {
        name: dict(what=f'names in {name}', tried=0, survived=0, lost=0, silent=0)
        for name in checks
    }
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, 'config.py'), Path(folder, 'model.pth')
        steps = [
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=16),
            dict(type='PackInputs'),
        ]
        dataset = dict(type='CustomDataset', pipeline=steps)
        config = dict(
            default_scope='mmkdx',
            custom_imports=dict(imports=['tiny']),
            model=classifier(4),
            test_dataloader=dict(dataset=dataset),
        )
        Config(config).dump(model[0])
        torch.save(build(classifier(4)).state_dict(), model[1])
        while True:
            for name, check in checks.items():
                rows[name]['tried'] += 1
                rows[name][attempt(check, rng, model)] += 1
            if time.monotonic() >= end:
                return [*rows.values()]
