"""Files that would run code, read files elsewhere or take all memory, if a loader let them.

``WEIGHTS``, ``ARCHIVES``, ``CONFIGS``, ``IMAGES``, ``ARRAYS``, ``MASKS``, ``CACHES`` and ``LISTS`` map
what a file tries to a function that makes it. The function gets a ``Trap``.
"""

from __future__ import annotations

import builtins
import ctypes
import functools
import importlib
import io
import json
import logging
import operator
import os
import pathlib
import pickle
import runpy
import shutil
import struct
import subprocess
import tarfile
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from PIL import Image


@dataclass
class Trap:
    """A folder for one hostile file, and what it must not touch."""

    folder: Path
    mark: Path  # is there if something ran
    secret: Path  # must not be read

    @property
    def code(self) -> str:
        """Python that leaves the mark."""
        return f'open({str(self.mark)!r}, "w").close()'

    @property
    def expression(self) -> str:
        """The same without quotes and blanks, for texts inside others."""
        return f'__import__("os").mkdir("{self.mark}")'


class Call:
    """Pickles to a call."""

    def __init__(self, function: Any, *args: Any, state: Any = None) -> None:
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> tuple:
        return self.reduced

    def __call__(self) -> None:
        """What it pickles to may be called; this is not."""


#: What a pickle calls when it is loaded.
WEIGHTS: dict[str, Callable[[Trap], Any]] = {
    'os.system': lambda t: Call(os.system, f'touch {t.mark}'),
    'os.mkdir': lambda t: Call(os.mkdir, str(t.mark)),
    'os.symlink': lambda t: Call(os.symlink, str(t.secret), str(t.mark)),
    'eval': lambda t: Call(eval, t.expression),
    'exec': lambda t: Call(exec, t.code),
    'open': lambda t: Call(builtins.open, str(t.mark), 'w'),
    'open to read': lambda t: Call(builtins.open, str(t.secret)),
    'subprocess': lambda t: Call(subprocess.check_call, ['touch', str(t.mark)]),
    'getattr chain': lambda t: Call(
        Call(getattr, Call(importlib.import_module, 'os'), 'mkdir'), str(t.mark)
    ),
    'getattr of a buffer': lambda t: Call(getattr, HistoryBuffer, '__init__'),
    'partial': lambda t: Call(Call(functools.partial, os.mkdir, str(t.mark))),
    'methodcaller': lambda t: Call(operator.methodcaller('touch'), pathlib.Path(t.mark)),
    'pathlib': lambda t: Call(pathlib.Path.touch, pathlib.Path(t.mark)),
    'copy': lambda t: Call(shutil.copy, str(t.secret), str(t.mark)),
    'run_path': lambda t: Call(runpy.run_path, str(t.folder / 'evil_module.py')),
    'import': lambda t: Call(importlib.import_module, 'evil_module'),
    'nested pickle': lambda t: Call(pickle.loads, pickle.dumps(Call(os.mkdir, str(t.mark)))),
    'nested torch file': lambda t: Call(
        torch.storage._load_from_bytes, _torch_bytes(Call(os.mkdir, str(t.mark)))
    ),
    'byte code': lambda t: Call(exec, Call(compile, t.code, 'x', 'exec')),
    'logging handler': lambda t: Call(logging.FileHandler, str(t.mark)),
    'library': lambda t: Call(ctypes.CDLL, str(t.mark)),
    'memmap': lambda t: Call(np.memmap, str(t.mark), 'u1', 'w+', 0, (4,)),
    'memmap to read': lambda t: Call(np.memmap, str(t.secret), 'u1', 'r'),
    'fromfile': lambda t: Call(np.fromfile, str(t.secret), 'u1'),
    'torch.hub': lambda t: Call(torch.hub.load, str(t.folder), 'x'),
    'torch.load': lambda t: Call(torch.load, str(t.secret)),
    'array of objects': lambda t: np.array([Call(os.mkdir, str(t.mark))], dtype=object),
    'state of a buffer': lambda t: Call(HistoryBuffer, state={'min': Call(os.mkdir, str(t.mark))}),
    'in a list of tensors': lambda t: [torch.ones(2), Call(os.mkdir, str(t.mark))],
    'key of a dict': lambda t: {Call(os.getcwd): torch.ones(2), 'x': Call(os.mkdir, str(t.mark))},
    'huge array': lambda t: Call(np.zeros(0).__reduce__()[0], np.ndarray, (1 << 40,), b'b'),
    'record in place of a dict': lambda t: np.zeros(1, [('config', 'U9'), ('epoch', 'i8')])[0],
}


def _torch_bytes(content: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def weights(trap: Trap, payload: Any, kind: str) -> Path:
    """A checkpoint that holds a payload, in one of the formats that ``torch.load`` knows."""
    path = trap.folder / 'evil.pth'
    content = dict(state_dict=OrderedDict(weight=payload), optimizer={}, meta={})
    if kind == 'pickle':
        path.write_bytes(pickle.dumps(content, protocol=2))
    elif kind == 'tar':
        with tarfile.open(path, 'w') as archive:
            for name in ('sys_info', 'pickle', 'storages', 'tensors'):
                raw = pickle.dumps(content if name == 'pickle' else 0, protocol=2)
                info = tarfile.TarInfo(name)
                info.size = len(raw)
                archive.addfile(info, io.BytesIO(raw))
    else:
        raw = _torch_bytes(content, _use_new_zipfile_serialization=kind == 'zip')
        path.write_bytes(raw)
    return path


def _script(trap: Trap) -> Path:
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), trap.folder / 'evil.pth')
    return trap.folder / 'evil.pth'


def _rewritten(trap: Trap, change: Callable[[str, bytes], tuple[str, bytes]], **options) -> Path:
    """A good file, each member of which is changed."""
    source = zipfile.ZipFile(io.BytesIO(_torch_bytes(dict(state_dict={'weight': torch.ones(64)}))))
    path = trap.folder / 'evil.pth'
    with zipfile.ZipFile(path, 'w', **options) as archive:
        for info in source.infolist():
            archive.writestr(*change(info.filename, source.read(info)))
    return path


def _traversing(trap: Trap) -> Path:
    path = _rewritten(trap, lambda name, raw: (name, raw))
    with zipfile.ZipFile(path, 'a') as archive:
        archive.writestr(f'archive/../../../../../..{trap.mark}', 'x')
    return path


def _bomb(trap: Trap) -> Path:
    def change(name: str, raw: bytes) -> tuple[str, bytes]:
        return name, bytes(1 << 24) if '/data/' in name else raw

    return _rewritten(trap, change, compression=zipfile.ZIP_DEFLATED)


def _short_storage(trap: Trap) -> Path:
    return _rewritten(trap, lambda name, raw: (name, raw[:4] if '/data/0' in name else raw))


#: Archives that are odd as such.
ARCHIVES: dict[str, Callable[[Trap], Path]] = {
    'TorchScript': _script,
    'compressed zeros': _bomb,
    'storage shorter than its tensor': _short_storage,
    'members outside': _traversing,
}


def texts(trap: Trap, place: str) -> Path:
    """A whole checkpoint with Python where mmengine takes the text of a config."""
    content = dict(
        state_dict=OrderedDict(weight=torch.ones(2)),
        optimizer={},
        meta=dict(epoch=1, iter=2),
        message_hub=dict(log_scalars={}, runtime_info=dict(epoch=1), resumed_keys={}),
    )
    owner, _, key = place.rpartition('.')
    found = content
    for part in owner.split('.'):
        found = found[part]
    found[key] = f'_base_ = []\n{trap.code}\n'
    torch.save(content, trap.folder / 'evil.pth')
    return trap.folder / 'evil.pth'


TEXTS = ('meta.config', 'meta.cfg', 'message_hub.runtime_info.cfg')

_MODEL = "model: {{type: '{}'}}\n"
#: The text of a config by its suffix and what it tries.
CONFIGS: dict[tuple[str, str], Callable[[Trap], str]] = {
    ('.yaml', 'apply'): lambda t: f'x: !!python/object/apply:os.mkdir ["{t.mark}"]\n',
    ('.yml', 'apply'): lambda t: f'x: !!python/object/apply:os.mkdir ["{t.mark}"]\n',
    ('.yaml', 'apply in a base'): lambda t: '_base_: base.yaml\n',
    ('.yaml', 'new'): lambda t: f'x: !!python/object/new:os.system ["touch {t.mark}"]\n',
    ('.yaml', 'name'): lambda t: 'x: !!python/name:os.system\n',
    ('.yaml', 'module'): lambda t: 'x: !!python/module:evil_module\n',
    ('.yaml', 'object'): lambda t: 'x: !!python/object:evil_module.X {}\n',
    ('.yaml', 'state'): lambda t: (
        'x: !!python/object/new:type {args: [z, [], {}], state: !!python/name:os.system}\n'
    ),
    ('.yaml', 'type is an import path'): lambda t: _MODEL.format('os.system'),
    ('.yaml', 'type is a module'): lambda t: _MODEL.format('evil_module'),
    ('.yaml', 'type in an unknown scope'): lambda t: _MODEL.format('evil_package.X'),
    ('.yaml', 'type behind a module of ours'): lambda t: _MODEL.format('mmkdx.compat.os.system'),
    ('.yaml', 'type from a default'): lambda t: _MODEL.format('{{$NO_SUCH:os.system}}'),
    ('.yaml', 'scope'): lambda t: 'model: {_scope_: evil_package, type: ReLU}\n',
    ('.yaml', 'default scope'): lambda t: 'default_scope: evil_package\nmodel: {type: ReLU}\n',
    ('.yaml', 'imports'): lambda t: 'custom_imports: {imports: [evil_module]}\n',
    ('.yaml', 'runner'): lambda t: 'runner_type: evil_module\n',
    ('.yaml', 'remote code'): lambda t: (
        'model: {type: HuggingFaceClassifier, trust_remote_code: true}\n'
    ),
    ('.yaml', 'evaluated hook'): lambda t: 'custom_hooks: [{type: mmcv.RFSearchHook}]\n',
    ('.yaml', 'Python base'): lambda t: '_base_: evil_module.py\n',
    ('.yaml', 'Python base by a package'): lambda t: '_base_: mmkdx::../../evil_module.py\n',
    ('.yaml', 'base of an unknown package'): lambda t: '_base_: evil_package::x.py\n',
    ('.yaml', 'a billion values'): lambda t: (
        'a0: &a0 [x, x]\n' + ''.join(f'a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n' for i in range(1, 40))
    ),
    ('.yaml', 'endless'): lambda t: 'x: &x [*x]\n',
    ('.yaml', 'deep'): lambda t: f'x: {"[" * 3000}{"]" * 3000}\n',
    ('.yaml', 'a list'): lambda t: '- 1\n- 2\n',
    ('.yaml', 'constructor'): lambda t: 'optim_wrapper: {constructor: evil_module}\n',
    ('.yaml', 'teacher in Python'): lambda t: f'teacher: {t.folder}/evil_module.py\n',
    ('.yaml', 'evaluated type'): lambda t: json.dumps(
        dict(
            step=dict(type='torchvision/ConvertImageDtype', dtype=f'int8 if {t.expression} else 0')
        )
    ),
    ('.json', 'type is an import path'): lambda t: '{"model": {"type": "subprocess.call"}}',
    ('.json', 'imports'): lambda t: '{"custom_imports": {"imports": ["evil_module"]}}',
    ('.json', 'Python base'): lambda t: '{"_base_": ["evil_module.py"]}',
    ('.json', 'deep'): lambda t: f'{{"x": {"[" * 100000}{"]" * 100000}}}',
    ('.json', 'broken'): lambda t: '{"x": ',
}


def config(trap: Trap, suffix: str, text: str) -> Path:
    """Writes a config, and beside it what it may want to run."""
    (trap.folder / 'base.yaml').write_text(CONFIGS['.yaml', 'apply'](trap))
    path = trap.folder / f'evil{suffix}'
    path.write_text(text)
    return path


def _png(width: int, height: int) -> bytes:
    def chunk(name: bytes, raw: bytes) -> bytes:
        return struct.pack('>I', len(raw)) + name + raw + struct.pack('>I', zlib.crc32(name + raw))

    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1 << 20))
    return (
        b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', rows) + chunk(b'IEND', b'')
    )


def _jpeg(width: int, height: int) -> bytes:
    raw = cv2.imencode('.jpg', np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    at = raw.index(b'\xff\xc0') + 5
    return raw[:at] + struct.pack('>HH', height, width) + raw[at + 4 :]


def _bmp(width: int, height: int) -> bytes:
    raw = cv2.imencode('.bmp', np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    return raw[:18] + struct.pack('<ii', width, height) + raw[26:]


def _gif() -> bytes:
    stream = io.BytesIO()
    Image.new('P', (8, 8)).save(stream, 'GIF')
    return stream.getvalue()[:6] + b'\xff' * 4 + stream.getvalue()[10:]


#: Images that claim more pixels than memory should be taken for.
IMAGES: dict[str, Callable[[Trap], bytes]] = {
    'PNG of 12,000 x 12,000': lambda t: _png(12_000, 12_000),
    'PNG of 30,000 x 30,000': lambda t: _png(30_000, 30_000),
    'PNG of one row': lambda t: _png(1_000_000_000, 1),
    'JPEG of 65,500 x 65,500': lambda t: _jpeg(65_500, 65_500),
    'BMP of 20,000 x 20,000': lambda t: _bmp(20_000, 20_000),
    'PPM of 50,000 x 50,000': lambda t: b'P6 50000 50000 255\n' + bytes(100),
    'GIF of 65,535 x 65,535': lambda t: _gif(),
}


def _npy(shape: str, raw: bytes = b'', kind: str = '<f8') -> bytes:
    header = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}"
    header = header.ljust(117).encode() + b'\n'
    return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(header)) + header + raw


def _npz(trap: Trap) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, a=np.ones((2, 2)))
    return stream.getvalue()


#: NumPy files.
ARRAYS: dict[str, Callable[[Trap], bytes]] = {
    'pickle': lambda t: pickle.dumps(Call(os.mkdir, str(t.mark))),
    'objects': lambda t: _npy('(1,)', pickle.dumps(Call(os.mkdir, str(t.mark))), '|O'),
    'huge': lambda t: _npy('(1000000000, 1000)'),
    'code in the header': lambda t: _npy(f'({t.expression},)'),
    'several': _npz,
    'short': lambda t: _npy('(4, 4)', bytes(8)),
    'negative': lambda t: _npy('(-4, 4)', bytes(128)),
}


def masks(path: Path, change: str, trap: Trap) -> None:
    """A file in the layout of ImageNet-Segmentation with one thing wrong."""
    reference = h5py.special_dtype(ref=h5py.Reference)
    with h5py.File(trap.folder / 'other.h5', 'w') as other:
        other['img'] = np.full((3, 4, 4), ord('S'), np.uint8)
    with h5py.File(path, 'w') as file:
        value = file.create_group('real' if change == 'link' else 'value')
        if change == 'link':
            file['value'] = h5py.SoftLink('/real')
        columns = {
            key: value.create_dataset(key, (1, 1), dtype=reference)
            for key in ('img', 'gt', 'id', 'target')
        }
        options, shape = {}, (3, 4, 4)
        if change == 'external storage':
            options = dict(external=[(str(trap.secret), 0, 48)])
        if change == '10 GiB':
            shape, options = (3, 60_000, 60_000), dict(chunks=(3, 100, 100))
        if change == 'a chunk of 3 GiB':
            options = dict(chunks=(3, 32_000, 32_000), maxshape=(None, None, None))
        if change == 'virtual':
            layout = h5py.VirtualLayout(shape, 'u1')
            layout[:] = h5py.VirtualSource(trap.folder / 'other.h5', 'img', shape=shape)
            image = file.create_virtual_dataset('image', layout)
        elif change == 'group':
            image = file.create_group('image')
        else:
            image = file.create_dataset('image', shape, 'u1', **options)
        mask = file.create_dataset('mask', data=np.ones((4, 4), np.uint8))
        cell = file.create_dataset('cell', (1, 1), dtype=reference)
        cell[0, 0] = mask.ref
        columns['gt'][0, 0] = cell.ref
        if change != 'no reference':
            columns['img'][0, 0] = image.ref
        if change == 'text of 8 GB':
            text = file.create_dataset('text', (1 << 32, 1), 'u2', chunks=(1000, 1))
        else:
            text = file.create_dataset('text', data=np.array([[110], [48]], np.uint16))
        columns['id'][0, 0] = columns['target'][0, 0] = text.ref
        if change == 'external link':
            del value['img']
            value['img'] = h5py.ExternalLink(str(trap.folder / 'other.h5'), '/img')
        if change == 'a billion images':
            del value['img']
            value.create_dataset('img', (1_000_000_000, 1), dtype=reference, chunks=(1000, 1))


MASKS = (
    *('external storage', '10 GiB', 'a chunk of 3 GiB', 'virtual', 'group', 'no reference'),
    *('text of 8 GB', 'external link', 'a billion images', 'link'),
)

#: What replaces or joins the header of a cache.
CACHES: dict[str, Any] = {
    'a billion views, as a float': dict(views=1e9),
    'many views': dict(views=10**12),
    'many images': dict(samples=10**15),
    'shards of nothing': dict(shard_size=0),
    'negative': dict(samples=-1),
    'a flag': dict(views=True),
    'text': dict(samples='10'),
    'taps as text': dict(taps='logits'),
    'NaN': dict(samples=float('nan')),
}


def cache(folder: Path, header: dict, change: Any, entries: dict | None = None) -> Path:
    """Writes ``cache.json``."""
    entry = dict(sha256='a', size=1)
    shards = {'view-000/part-00000.safetensors': entry} if entries is None else entries
    content = dict(header={**header, **change}, mmkdx='0', shards=shards)
    (folder / 'cache.json').write_text(json.dumps(content))
    return folder / 'cache.json'


def names(trap: Trap) -> dict[str, str]:
    """Paths that leave a folder."""
    return {
        'above': f'../{trap.secret.parent.name}/{trap.secret.name}',
        'absolute': str(trap.secret),
        'down and up': f'a/../../{trap.secret.parent.name}/{trap.secret.name}',
    }
