"""A full disk, while each kind of file is written.

A file may not grow beyond a random size, from nothing to what it needs. Lost is an earlier file that is
gone or changed, or half a file under its name. Wrong without a word is a file that is missing although
nothing was said, or an error that is no sentence.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import torch
from full_disk import full_disk
from mmengine.config import Config
from tiny import build, classifier, tool
from torch.utils.data import DataLoader, TensorDataset

from mmkdx import lock
from mmkdx.apis import PrototypeAnalysis, evaluate_explanations
from mmkdx.apis.prototypes import _loader
from mmkdx.datasets.push_set import push_dataloader
from mmkdx.evaluation.writer import write_files
from mmkdx.files import WriteError
from mmkdx.models.heads.push import push
from mmkdx.visualization.vis_backend import LocalVisBackend

SIZES = 20
PREPROCESSOR = dict(num_classes=10, mean=[78.0] * 3, std=[84.0] * 3)
Write = Callable[[Path], object]


def drive(minutes: float, seed: int) -> list[dict]:
    """Writes each kind of file with ``SIZES`` sizes of the disk, or with fewer when the time is over."""
    end = time.monotonic() + 60 * minutes
    rng = random.Random(seed)
    rows = []
    # Pages name the minute in which they were made
    with (
        tempfile.TemporaryDirectory() as place,
        mock.patch('time.strftime', lambda *_: 'now'),
        mock.patch.object(sys, 'argv', list(sys.argv)),
    ):
        home = Path(place)
        kinds = dict(_kinds(home))
        tries = {
            what: _tries(home / f'{i}', what, kinds[what], rng) for i, what in enumerate(kinds)
        }
        found = {what: [] for what in kinds}
        # In turn, so that each kind has its tries when the time is short
        while tries and (time.monotonic() < end or not all(found.values())):
            for what in list(tries):
                result = next(tries[what], None)
                if result is None:
                    del tries[what]
                else:
                    found[what].append(result)
    for what, results in found.items():
        counts = {each: results.count(each) for each in ('survived', 'lost', 'silent')}
        rows.append(dict(what=f'disk full: {what}', tried=len(results), **counts))
    return rows


def _tries(home: Path, what: str, write: Write, rng: random.Random) -> Iterator[str]:
    """What comes of each try: 'survived', 'lost' or 'silent'."""
    earlier, whole = home / 'earlier', home / 'whole'
    earlier.mkdir(parents=True)
    _quiet(write, earlier)
    shutil.copytree(earlier, whole)
    _quiet(write, whole)
    old, new = _content(earlier), _content(whole)
    top = max(map(len, new.values()))
    # Half of the sizes are below the smallest file, where most files begin
    low = min(map(len, new.values()))
    sizes = [rng.randrange(top if i % 2 else max(low, 1)) for i in range(SIZES - 2)]
    for size in (0, *sizes, top):
        out = home / 'out'
        shutil.copytree(earlier, out)
        said = error = None
        try:
            with full_disk(size):
                write(out)
        except SystemExit as leave:  # of a tool, with a sentence
            said, error = isinstance(leave.code, str), leave
        except WriteError as raised:
            said, error = 'File too large' in str(raised), raised
        except Exception as raised:
            said, error = False, raised
        now = _content(out)
        shutil.rmtree(out)
        torn = [
            name for name in {*old, *now} if now.get(name) not in (old.get(name), new.get(name))
        ]
        result = 'survived'
        if torn or not set(old) <= set(now):
            result = 'lost'
        elif now != new and not said:
            result = 'silent'
        if result != 'survived':
            print(f'{what}, {size} bytes: {result}: {torn} {error!r}')
        yield result


def _quiet(write: Write, out: Path) -> None:
    """Writes with room for all."""
    with full_disk(1 << 40):
        write(out)


def _content(folder: Path) -> dict[str, bytes]:
    """The files under their final names, without the lock, which is no result."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob('*')
        if path.is_file() and not path.name.endswith('.part') and path.name != lock.NAME
    }


def _kinds(home: Path) -> Iterator[tuple[str, Write]]:
    """Every kind of file, with a function that writes it into a folder."""
    config, weights = _distillation(home)

    def call(name: str, *words: object) -> None:
        sys.argv[:] = [name, *map(str, words)]
        tool(name).main()

    export = 'model_converters/export_student'
    yield 'export', lambda out: call(export, config, weights, out)
    publish = 'model_converters/publish_model'
    yield 'published model', lambda out: _main(publish, weights, out / 'model')
    yield 'converted weights', lambda out: _convert(home, out)
    embeddings = 'analysis_tools/class_embeddings'
    yield 'class embeddings', lambda out: call(embeddings, config, weights, out / 'a.npy')
    statistics = 'analysis_tools/teacher_statistics'
    yield 'teacher statistics', lambda out: call(statistics, config, '--out', out / 'a.pth')
    yield 'cache', lambda out: _cache(call, config, out)
    yield from _evaluations()
    yield 'prototypes', _prototypes(home)
    yield 'augmented images', lambda out: _augment(home, out)


def _main(name: str, *words: object) -> None:
    """A tool that takes its command line as an argument."""
    tool(name).main(list(map(str, words)))


def _loader_of_digits(**settings: object) -> dict:
    return dict(
        batch_size=20,
        num_workers=0,
        persistent_workers=False,
        dataset=dict(type='Digits', indices=60, pipeline=[dict(type='PackInputs')], **settings),
        sampler=dict(type='DefaultSampler', shuffle=False),
    )


def _distillation(home: Path) -> tuple[Path, Path]:
    """A config of a small distillation on digits, and a checkpoint of it."""
    torch.manual_seed(0)
    teacher = classifier(6, classes=10)
    torch.save(build(teacher).state_dict(), home / 'teacher.pth')
    model = dict(
        type='Distiller',
        student=classifier(8, classes=10),
        teacher=dict(model=teacher, checkpoint=str(home / 'teacher.pth')),
        input_size=32,
        terms=dict(kd=dict(type='KLDivLoss', at='logits')),
    )
    Config(
        dict(
            default_scope='mmkdx',
            custom_imports=dict(imports=['tiny']),
            model=model,
            data_preprocessor=PREPROCESSOR,
            train_dataloader=_loader_of_digits(),
            val_dataloader=_loader_of_digits(split='test'),
            test_dataloader=_loader_of_digits(split='test'),
        )
    ).dump(home / 'kd.py')
    state = build(dict(model, data_preprocessor=PREPROCESSOR)).state_dict()
    torch.save(dict(state_dict=state, meta={}), home / 'kd.pth')
    return home / 'kd.py', home / 'kd.pth'


def _convert(home: Path, out: Path) -> None:
    """Converts weights of mdistiller's ResNet-20, whose names differ from ours at their beginnings."""
    name, public = 'resnet20', home / 'public.pth'
    if not public.exists():
        configs = Path(__file__).parents[2] / 'configs/_base_/models'
        state = build(Config.fromfile(configs / f'{name}_cifar.py').model.to_dict()).state_dict()
        weights = {
            key.removeprefix('backbone.').replace('head.fc.', 'fc.'): value
            for key, value in state.items()
        }
        torch.save(dict(model=weights), public)
    _main('model_converters/convert_mdistiller', name, public, out / 'net.pth')


def _cache(call: Callable, config: Path, out: Path) -> None:
    """Writes the cache of a teacher, at first half of it."""
    again = (out / 'cache').exists()
    cached = Config.fromfile(config)
    teacher = dict(type='CachedTeacher', teacher=cached.model.teacher, cache=str(out / 'cache'))
    data = dict(type='SeededViews', views=2, dataset=cached.train_dataloader.dataset)
    cached.merge_from_dict(dict(model=dict(teacher=None), train_dataloader=dict(dataset=None)))
    cached.model.teacher, cached.train_dataloader.dataset = teacher, data
    with mock.patch.object(Config, 'fromfile', lambda *_, **__: cached):
        call('cache_teacher', config, '--shard-size', 30)
    if not again:
        for name in ('cache.json', 'view-000/part-00001.safetensors'):
            (out / 'cache' / name).unlink()


def _evaluations() -> Iterator[tuple[str, Write]]:
    """Files of an evaluation without a run, and of one in a run."""
    torch.manual_seed(0)
    student, teacher = (
        torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), *last
        )
        for last in 2 * [(torch.nn.Flatten(), torch.nn.Linear(4, 3))]
    )
    images = TensorDataset(torch.randn(4, 3, 16, 16), torch.arange(4) % 3)
    options = dict(explainer=dict(type='GradCAM', layer='1'), metrics=['MapComplexity'])

    def evaluate(out: Path | None) -> object:
        data = DataLoader(images, batch_size=4)
        return evaluate_explanations(student, data, teacher, out_dir=out, **options)

    yield 'report, CSV, JSON and text of an evaluation', evaluate
    found = evaluate(None)

    def log(out: Path) -> None:
        epoch = 1 + (out / 'val.json').exists()
        write_files(out, 'val', found, epoch=epoch)

    yield 'CSV and JSON in a run', log

    def show(out: Path) -> None:
        shown = LocalVisBackend(str(out))
        shown.add_config(Config(dict(model=dict(type='Net', width=len(_content(out))))))
        for item in found.gallery:
            shown.add_image(f'explain_val_{item.index}', item.picture, 1)
        shown.add_scalars({'accuracy/top1': 50.0}, 1)

    yield 'pictures, config and scalars of a run', show


def _prototypes(home: Path) -> Write:
    """Pictures, numbers and page of a prototype network."""
    data = dict(type='Parts', num_samples=18, pipeline=[dict(type='PackInputs')])
    loader = dict(
        batch_size=9,
        num_workers=0,
        dataset=data,
        sampler=dict(type='DefaultSampler', shuffle=False),
    )
    head = dict(
        type='ProtoPNetHead',
        num_classes=9,
        in_channels=8,
        prototypes_per_class=1,
        prototype_channels=8,
    )
    model = dict(
        type='ImageClassifier',
        data_preprocessor=dict(num_classes=9, mean=[105.0] * 3, std=[41.0] * 3),
        backbone=dict(type='TinyBackbone', width=8),
        head=head,
    )
    config = Config(
        dict(
            default_scope='mmkdx',
            model=model,
            train_dataloader=loader,
            val_dataloader=loader,
            test_dataloader=loader,
            custom_hooks=[dict(type='PrototypePushHook', start=1)],
        )
    )
    torch.manual_seed(0)
    network = build(model).eval()
    push(network, _loader(push_dataloader(config)))
    torch.save(dict(state_dict=network.state_dict(), meta={}), home / 'pushed.pth')
    analysis = PrototypeAnalysis(config, home / 'pushed.pth')
    return lambda out: analysis.write(out, images=[0], prototypes=[1])


def _augment(home: Path, out: Path) -> None:
    """A cropped image and its augmented ones; earlier ones stay as they are."""
    source = home / 'bird.png'
    if not source.exists():
        noise = np.random.RandomState(0).randint(0, 256, (40, 60, 3), dtype=np.uint8)
        cv2.imwrite(str(source), noise)
    module = tool('dataset_converters/prototype_folders')
    folder = out / 'birds'
    folder.mkdir(exist_ok=True)
    name = f'{len(list(folder.glob("?.jpg")))}.jpg'
    box = np.array([[5.0, 5, 50, 35]])
    module.write_images(module.Job(source, box, folder / name, folder, 1, 0))
