"""Hands hostile files to everything that loads weights, configs or data."""

from __future__ import annotations

import contextlib
import functools
import http.server
import io
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import layouts
import mmengine
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader, load_checkpoint
from mmpretrain.datasets import CustomDataset
from safetensors.torch import save
from scipy.io import savemat
from tiny import tool

from campaign import hostile_files as files
from campaign.hostile_files import Trap
from mmkdx import data_configs
from mmkdx.apis.runs import find_run
from mmkdx.compat import CheckpointError, last_whole_checkpoint, load_checkpoint_file
from mmkdx.datasets import (
    CUB,
    ImageList,
    ImageNetSegmentation,
    StanfordCars,
    TinyImageNet,
    Waterbirds,
)
from mmkdx.distillation.cache import CacheReader
from mmkdx.distillation.cache.files import prepare
from mmkdx.distillation.models import load_file, read_config
from mmkdx.distillation.teacher_target import TeacherTarget
from mmkdx.explain.unicam import _read_embedding
from mmkdx.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS, TRANSFORMS

#: What is raised with a sentence.
SENTENCES = (ValueError, CheckpointError, FileNotFoundError, SystemExit, KeyError)
#: Bytes by which a file may raise the peak of memory, and seconds that it may take.
MEMORY, SECONDS = 1 << 30, 60
#: The header of a cache.
HEADER = dict(
    format=1,
    teacher='a',
    data='b',
    pipeline='c',
    samples=1,
    views=1,
    seed=0,
    taps={'logits': ['tensor', 3]},
    top_k=None,
    resolution=None,
    shard_size=1,
)


class Case(NamedTuple):
    """A file, and one way to load it."""

    kind: str  # its row
    name: str
    run: Callable[[Trap], Any]
    loads: bool | None = (
        False  # whether it is loaded, without what is hostile in it; None if either
    )


# ------------------------------------------------------------------------------------------------
# Ways in
# ------------------------------------------------------------------------------------------------


script = functools.cache(tool)


def _resume(path: Path) -> Any:
    (path.parent / 'last_checkpoint').write_text(str(path))
    found = last_whole_checkpoint(path.parent)
    if found is None:
        raise CheckpointError(f'{path} is skipped')  # as the log says
    return found


def _base(path: Path) -> Any:
    folder = path.parent / 'run'
    folder.mkdir()
    (folder / 'run.py').touch()
    shutil.copy(path, folder / 'epoch_1.pth')
    return find_run(str(folder))


def _download(path: Path) -> Any:
    with server(path.parent) as url:
        return CheckpointLoader.load_checkpoint(f'{url}/{path.name}')


def _convert(path: Path) -> Any:
    return script('model_converters/convert_mdistiller').convert(
        'resnet20', str(path), str(path.with_name('out.pth'))
    )


def _publish(path: Path) -> Any:
    publish = script('model_converters/publish_model').publish
    return load_checkpoint_file(publish(str(path), str(path.with_name('out'))))


WAYS: dict[str, Callable[[Path], Any]] = {
    'file': load_checkpoint_file,
    'mmengine': lambda path: CheckpointLoader.load_checkpoint(str(path), map_location='cpu'),
    'model': lambda path: load_checkpoint(torch.nn.Linear(2, 2), str(path)),
    'teacher': lambda path: load_file(torch.nn.Linear(2, 2), str(path)),
    'resume': _resume,
    'base': _base,
    'download': _download,
    'publish': _publish,
    'convert': _convert,
    'statistics': lambda path: TeacherTarget('classmean', str(path)),
}


@contextlib.contextmanager
def server(folder: Path) -> Iterator[str]:
    """The address of a server of a folder's files."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as found:
        threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True).start()
        yield f'http://127.0.0.1:{found.server_port}'
        found.shutdown()


def _as_mmengine_does(trap: Trap, place: str, way: str) -> None:
    """Loads a checkpoint, and evaluates what mmengine's runner and inferencer evaluate in it."""
    found = WAYS[way](files.texts(trap, place))
    if isinstance(found, str):  # the path to resume from
        found = CheckpointLoader.load_checkpoint(found, map_location='cpu')
    meta, hub = found['meta'], found.get('message_hub', {})
    for text in (meta.get('config'), meta.get('cfg'), hub.get('runtime_info', {}).get('cfg')):
        if text is not None:
            Config.fromstring(text, file_format='.py')


def _use(config: Config) -> None:
    """Builds what a config names."""
    with DefaultScope.overwrite_default_scope(config.get('default_scope', 'mmkdx')):
        if 'model' in config:
            MODELS.build(config.model)
        if 'step' in config:
            TRANSFORMS.build(config.step)
        if 'optim_wrapper' in config:
            OPTIM_WRAPPER_CONSTRUCTORS.build(dict(type=config.optim_wrapper.constructor))
        if 'teacher' in config:
            read_config(config.teacher, 'teacher.model')


def _print_config(path: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        script('misc/print_config').main([str(path)])
    _use(Config.fromfile(path))


READERS: dict[str, Callable[[Path], Any]] = {
    'config': lambda path: _use(Config.fromfile(path)),
    'teacher': lambda path: _use(read_config(str(path), 'teacher.model')),
    'print_config': _print_config,
}


def _config(trap: Trap, key: tuple[str, str], reader: str) -> None:
    READERS[reader](files.config(trap, key[0], files.CONFIGS[key](trap)))


def _annotations(trap: Trap, make: Callable[[Trap], Any], through_data_set: bool) -> Any:
    path = trap.folder / 'evil.pkl'
    mmengine.dump(make(trap), str(path))
    if not through_data_set:
        return mmengine.load(str(path))
    return mmengine.dataset.BaseDataset(ann_file=str(path)).full_init()


def _image(trap: Trap, make: Callable[[Trap], bytes], backend: str) -> Any:
    path = trap.folder / 'evil.png'
    path.write_bytes(make(trap))
    return LoadImageFromFile(imdecode_backend=backend)(dict(img_path=str(path)))


def _array(trap: Trap, make: Callable[[Trap], bytes]) -> Any:
    path = trap.folder / 'evil.npy'
    path.write_bytes(make(trap))
    return _read_embedding(str(path))


def _masks(trap: Trap, change: str) -> Any:
    files.masks(trap.folder / 'evil.mat', change, trap)
    data = ImageNetSegmentation(ann_file='evil.mat', data_root=str(trap.folder))
    return data[0]['img'].tobytes()


def _cache(trap: Trap, change: Any, through: Callable, entries: dict | None = None) -> Any:
    files.cache(trap.folder, HEADER, change, entries)
    return through(trap.folder)


def _shard(trap: Trap, raw: bytes) -> Any:
    (trap.folder / 'view-000').mkdir()
    (trap.folder / 'view-000/part-00000.safetensors').write_bytes(raw)
    return CacheReader(trap.folder)


def _list(trap: Trap, data_set: type, name: str) -> Any:
    """A data set one of whose paths leaves its folder."""
    root = trap.folder / 'data'
    root.mkdir()
    if data_set in (ImageList, CustomDataset):
        (root / 'list.txt').write_text(f'{name} 0\n')
        (root / 'classes.txt').write_text('a\nb\n')
        return ImageList(data_root=str(root), ann_file='list.txt', source='x')
    if data_set is Waterbirds:
        row = layouts.write_waterbirds(root)[0]['img_filename']
        table = root / 'metadata.csv'
        table.write_text(table.read_text().replace(row, name))
        return Waterbirds(data_root=str(root), split='test')
    if data_set is TinyImageNet:
        layouts.write_tiny_imagenet(root)
        table = root / 'val/val_annotations.txt'
        table.write_text(table.read_text().replace('val_0.JPEG', name))
        return TinyImageNet(data_root=str(root), split='val')
    if data_set is StanfordCars:
        (root / 'car_ims').mkdir()
        fields = dict.fromkeys(('bbox_x1', 'bbox_y1', 'bbox_x2', 'bbox_y2', 'class'), 1)
        savemat(
            root / 'cars_annos.mat', dict(annotations=dict(fields, test=0, relative_im_path=name))
        )
        return StanfordCars(data_root=str(root))
    (root / 'images').mkdir()
    lines = {
        'images': name,
        'image_class_labels': '1',
        'train_test_split': '1',
        'bounding_boxes': '0 0 1 1',
    }
    for file, line in lines.items():
        (root / f'{file}.txt').write_text(f'1 {line}\n')
    return CUB(data_root=str(root))


# ------------------------------------------------------------------------------------------------
# Trying
# ------------------------------------------------------------------------------------------------


def cases() -> list[Case]:
    """All files through all ways that take their kind."""
    found = []

    def add(kind: str, name: str, run: Callable, *args: Any, loads: bool | None = False) -> None:
        found.append(Case(kind, name, lambda trap: run(trap, *args), loads))

    def weights(trap: Trap, payload: str, kind: str, way: str) -> Any:
        return WAYS[way](files.weights(trap, files.WEIGHTS[payload](trap), kind))

    for payload in files.WEIGHTS:
        for way in WAYS:
            add('pickles in weights', f'{payload}, {way}', weights, payload, 'zip', way)
        for kind in ('legacy', 'tar', 'pickle'):
            add('pickles in old formats', f'{payload}, {kind}', weights, payload, kind, 'file')
    for name, make in files.ARCHIVES.items():
        for way in WAYS:
            # Members outside are never unpacked
            good = None if name == 'members outside' else False
            run = lambda trap, make, way: WAYS[way](make(trap))  # noqa: E731
            add('archives', f'{name}, {way}', run, make, way, loads=good)
    for place in files.TEXTS:
        for way in ('file', 'mmengine', 'model', 'resume', 'download', 'publish'):
            add('texts of configs', f'{place}, {way}', _as_mmengine_does, place, way, loads=True)
    for key in files.CONFIGS:
        for reader in READERS:
            add('YAML and JSON', f'{key[1]}, {reader}', _config, key, reader)
    for payload, make in files.WEIGHTS.items():
        for through in (False, True):
            add('pickled annotations', f'{payload}, {through}', _annotations, make, through)
    for name, make in files.IMAGES.items():
        for backend in ('cv2', 'pillow'):
            add('images', f'{name}, {backend}', _image, make, backend)
    for name, make in files.ARRAYS.items():
        add('NumPy files', name, _array, make)
    for change in files.MASKS:
        add('HDF5', change, _masks, change)
    for name, change in files.CACHES.items():
        for through in (CacheReader, lambda folder: prepare(folder, HEADER)):
            add('caches', name, _cache, change, through)
        metadata = json.dumps(dict(header={**HEADER, **change}, sha256='a'))
        shard = save({'x': torch.ones(1)}, dict(mmkdx=metadata))
        add('caches', f'{name}, a shard', _shard, shard)
    elsewhere = {'../../../etc/hostname': dict(sha256='a', size=1)}
    add('caches', 'shard elsewhere', _cache, {}, CacheReader, elsewhere)
    for name, raw in dict(long=b'\xff' * 8, cut=b'\x10' + bytes(7) + b'{"a": ').items():
        add('caches', f'{name} header', _shard, raw)
    for data_set in (ImageList, CUB, Waterbirds, TinyImageNet, StanfordCars):
        for place in ('above', 'absolute', 'down and up'):
            run = lambda trap, cls, place: _list(trap, cls, files.names(trap)[place])  # noqa: E731
            add('lists', f'{data_set.__name__}, {place}', run, data_set, place)
    return found


_opened: set[str] = set()


def _watch(event: str, args: tuple) -> None:
    if event == 'open' and isinstance(args[0], (str, bytes, os.PathLike)):
        _opened.add(os.fspath(args[0]))


@functools.cache
def _start_watching() -> None:
    sys.addaudithook(_watch)  # which cannot be taken away


def attempt(case: Case) -> tuple[str, str]:
    """Tries a case.

    Returns:
        tuple[str, str]: 'survived', 'lost' or 'silent', and what happened.
    """
    _start_watching()
    before = set(data_configs._texts)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as undo:
        trap = Trap(Path(name, 'in'), Path(name, 'mark'), Path(name, 'out/secret.jpg'))
        trap.folder.mkdir()
        trap.secret.parent.mkdir()
        trap.secret.write_bytes(b'S' * 48)
        (trap.folder / 'evil_module.py').write_text(f'{trap.code}\n')
        (trap.folder / 'evil_package').mkdir()
        for file in ('__init__', 'registry', 'x'):
            (trap.folder / f'evil_package/{file}.py').write_text(f'{trap.code}\n')
        sys.path.insert(0, str(trap.folder))
        undo.callback(sys.path.remove, str(trap.folder))
        undo.enter_context(_environment(TORCH_HOME=f'{name}/cache', no_proxy='*', NO_SUCH=None))
        _opened.clear()
        peak, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        try:
            found = case.run(trap)
        except SENTENCES as error:
            text = f'{error}'
            plain = name in text or '127.0.0.1' in text or 'registry' in text or 'dtype is' in text
            outcome = 'survived' if plain and not case.loads else 'silent'
        except BaseException:
            outcome, text = 'silent', traceback.format_exc()
        else:
            outcome, text = 'silent' if case.loads is False else 'survived', f'{found!r}'[:300]
            if isinstance(found, bytes) and b'SSSS' in found:
                outcome = 'lost'
        used = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak)
        seconds = time.monotonic() - start
        if os.path.lexists(trap.mark) or str(trap.secret) in _opened:
            outcome, text = 'lost', f'ran or read: {text}'
        elif used > MEMORY or seconds > SECONDS:
            outcome, text = 'lost', f'{used:,} bytes, {seconds:.0f} s: {text}'
        for module in [each for each in sys.modules if each.startswith('evil_')]:
            del sys.modules[module]
    data_configs._texts.clear()
    data_configs._texts.update(before)
    return outcome, text


@contextlib.contextmanager
def _environment(**changes: str | None) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in changes}
    _set(changes)
    try:
        yield
    finally:
        _set(before)


def _set(values: dict[str, str | None]) -> None:
    for key, value in values.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value


def drive(minutes: float, seed: int) -> list[dict]:
    """Tries all files through all ways, at least one of each kind, and then those that are left.

    Args:
        minutes (float): When to stop.
        seed (int): The seed of the order.

    Returns:
        list[dict]: A row for each kind of file, with the keys ``campaign.COLUMNS``.
    """
    end = time.monotonic() + 60 * minutes
    left = cases()
    random.Random(seed).shuffle(left)
    kinds = {case.kind: case for case in left}
    firsts = list(kinds.values())
    count = dict(tried=0, survived=0, lost=0, silent=0)
    rows = {kind: dict(what=f'hostile files: {kind}', **count) for kind in kinds}
    for case in firsts + [case for case in left if case not in firsts]:
        if time.monotonic() > end and case not in firsts:
            break
        outcome, text = attempt(case)
        rows[case.kind]['tried'] += 1
        rows[case.kind][outcome] += 1
        if outcome != 'survived':
            print(f'{case.kind}: {case.name}: {outcome}: {text}', flush=True)
    return list(rows.values())
