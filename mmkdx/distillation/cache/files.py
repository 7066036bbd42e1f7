"""Files of a teacher's outputs, in a folder that is whole or says what is missing.

A cache is a folder of shards such as ``view-000/part-00000.safetensors``. Each shard holds
``shard_size`` samples of one view, in the order of their positions. Its safetensors metadata holds
the header of the cache and a checksum. ``cache.json`` lists the shards and is written last. A file
gets its name when it is on the disk, so finished shards remain if the process is killed.

All functions raise ``CacheError`` if the folder is missing, damaged, not whole or of another cache.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from mmkdx.files import write_file
from mmkdx.version import __version__

FORMAT = 1
INDEX = 'cache.json'
COMMAND = 'python tools/cache_teacher.py CONFIG'
#: The end of messages about a cache that is not whole.
AGAIN = f'write what is missing with: {COMMAND}'

#: The keys of a header, and their names in messages.
HEADER = {
    'format': 'the format',
    'teacher': "the teacher's weights, precision, normalize or resize",
    'data': 'the training images',
    'pipeline': 'the pipeline of the training images or the seed of SeededViews',
    'samples': 'the number of images',
    'views': 'views',
    'seed': 'the seed of SeededViews',
    'taps': 'the taps',
    'top_k': 'top_k',
    'resolution': 'resolution',
    'shard_size': 'the shard size',
}
#: Keys with hashes as values, which messages do not show.
HASHES = ('teacher', 'data', 'pipeline')
#: Keys that determine the number of shards.
SIZES = ('shard_size', 'samples', 'views')
SHARDS = 'view-*/part-*.safetensors'
Header = Mapping[str, Any]


class CacheError(ValueError):
    """A cache is missing, not whole, damaged, or of something else; the message says what to do."""


class Shard(NamedTuple):
    """A file with the samples ``start`` up to ``stop`` of a view; ``name`` is its path."""

    view: int
    start: int
    stop: int
    name: str


def shards(header: Header) -> list[Shard]:
    """All shards of a cache, view by view."""
    size, samples = header['shard_size'], header['samples']
    return [
        Shard(view, start, min(start + size, samples), f'view-{view:03d}/part-{i:05d}.safetensors')
        for view in range(header['views'])
        for i, start in enumerate(range(0, samples, size))
    ]


def compare(folder: Path, found: Header, wanted: Header) -> None:
    """Compares a cache's header with the wanted values of all or some keys."""
    differ = [
        words if key in HASHES else f'{words} ({found.get(key)}, not {wanted[key]})'
        for key, words in HEADER.items()
        if key in wanted and found.get(key) != wanted[key]
    ]
    if differ:
        raise CacheError(
            f'teacher.cache: {folder} holds outputs of something else; what differs: '
            f'{"; ".join(differ)}. Remove the folder, or give teacher.cache another name'
        )


def write_shard(folder: Path, header: Header, shard: Shard, tensors: dict[str, Tensor]) -> None:
    """Writes a shard, whole or not at all: CPU tensors with a row for each sample."""
    metadata = dict(header=header, sha256=checksum(header, shard, tensors))
    path = folder / shard.name
    # One entry, as safetensors writes several in any order and equal shards must be equal files
    write_file(path, save(tensors, {'mmkdx': json.dumps(metadata, sort_keys=True)}))


def is_whole(folder: Path, header: Header, shard: Shard) -> bool:
    """Whether a shard is there and undamaged; a shard of another cache is an error."""
    metadata = _metadata_of(folder / shard.name)
    if metadata is None:
        return False
    compare(folder, metadata['header'], header)
    return metadata['sha256'] == checksum(header, shard, load_file(folder / shard.name))


def prepare(folder: Path, header: Header) -> None:
    """Compares the cache in a folder, whole or not, with the one to be written."""
    present = _any_header(folder)
    if present is not None:
        compare(folder, present, header)


def finish(folder: Path, header: Header) -> None:
    """Checks that all shards are there, and writes the index of the cache."""
    entries = {}
    for shard in shards(header):
        path = folder / shard.name
        metadata = _metadata_of(path)
        if metadata is None:
            raise CacheError(f'teacher.cache: {path} was not written; {AGAIN}')
        entries[shard.name] = dict(sha256=metadata['sha256'], size=path.stat().st_size)
    content = dict(header=header, mmkdx=__version__, shards=entries)
    write_file(folder / INDEX, json.dumps(content, indent=1))


def checksum(header: Header, shard: Shard, tensors: dict[str, Tensor]) -> str:
    """The checksum of a shard's tensors with their names and types, the header and the place."""
    found = hashlib.sha256(json.dumps([header, shard.name], sort_keys=True).encode())
    for name in sorted(tensors):
        array = tensors[name].numpy()
        found.update(f'{name} {array.dtype} {array.shape}'.encode())
        found.update(np.ascontiguousarray(array))
    return found.hexdigest()


class CacheReader:
    """Reads a whole cache. A shard is mapped into memory when it is first read.

    ``header`` describes the outputs by the keys of ``HEADER``.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        content = _read_index(self.folder)
        if content is None:
            present = _any_header(self.folder)
            if present is None:
                raise CacheError(
                    f'teacher.cache: there is no cache {self.folder}; write it first: {COMMAND}'
                )
            there = sum(1 for _ in self.folder.glob(SHARDS))
            raise CacheError(
                f'teacher.cache: {self.folder} is not whole, {there} of {_count(present)} parts are '
                f'there; {AGAIN}'
            )
        self.header: dict[str, Any] = content['header']
        compare(self.folder, self.header, dict(format=FORMAT))
        self._entries: dict[str, dict] = content['shards']
        for name, entry in self._entries.items():
            path = self.folder / name
            size = path.stat().st_size if path.is_file() else None
            if size != entry['size']:
                what = 'is missing' if size is None else f'has {size} bytes, not {entry["size"]}'
                raise CacheError(f'teacher.cache: {path} {what}; {AGAIN}')
        self._plan = shards(self.header)
        self._opened: dict[int, dict[str, np.ndarray]] = {}

    def rows(
        self, views: list[int], positions: list[int], keys: Sequence[str], pin_memory: bool = False
    ) -> dict[str, Tensor]:
        """The stored tensors of each key, on the CPU, with a row for each sample in this order."""
        size, samples, present = (self.header[key] for key in SIZES)
        if max(views) >= present or max(positions) >= samples:
            raise CacheError(
                f'teacher.cache: {self.folder} holds {present} views of {samples} images, and view '
                f'{max(views)} and image {max(positions)} are asked for; let SeededViews have no more '
                'views than that, or write another cache'
            )
        part, row = np.divmod(positions, size)
        number = np.array(views) * -(-samples // size) + part
        # This order groups the samples of a shard
        order = number.argsort()
        groups = np.split(order, np.flatnonzero(np.diff(number[order])) + 1)
        found = [(self._open(int(number[places[0]])), places) for places in groups]
        out: dict[str, Tensor] = {}
        for key in keys:
            if any(key not in shard for shard, _ in found):
                raise CacheError(f'teacher.cache: {self.folder} has no {key} in a part; {AGAIN}')
            value = found[0][0][key]
            shape, dtype = (len(views), *value.shape[1:]), getattr(torch, value.dtype.name)
            out[key] = torch.empty(shape, dtype=dtype, pin_memory=pin_memory)
            for shard, places in found:
                out[key].numpy()[places] = shard[key][row[places]]
        return out

    def _open(self, number: int) -> dict[str, np.ndarray]:
        """The tensors of a shard; the checksum is compared when it is first opened."""
        if number not in self._opened:
            shard = self._plan[number]
            path, expected = self.folder / shard.name, self._entries[shard.name]['sha256']
            try:
                tensors = load_file(path)
                rows = {tensor.shape[:1] for tensor in tensors.values()}
                whole = checksum(self.header, shard, tensors) == expected
                whole &= rows == {(shard.stop - shard.start,)}
            except (SafetensorError, OSError):
                whole = False
            if not whole:
                raise CacheError(f'teacher.cache: {path} is damaged; {AGAIN}')
            self._opened[number] = {key: value.numpy() for key, value in tensors.items()}
        return self._opened[number]


def _metadata_of(path: Path) -> dict[str, Any] | None:
    """The metadata of a shard; None if it is missing, or its size or header is damaged."""
    try:
        with safe_open(path, 'pt') as file:
            metadata = json.loads(file.metadata()['mmkdx'])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError):
        return None
    known = isinstance(metadata, dict) and isinstance(metadata.get('sha256'), str)
    return metadata if known and _count(metadata.get('header')) else None


def _read_index(folder: Path) -> dict[str, Any] | None:
    """The content of ``cache.json``; None if there is no such file."""
    path = folder / INDEX
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
        header, entries = content['header'], content['shards']
        # The count comes before the list of shards, as a damaged header may claim any number
        whole = len(entries) == _count(header) and set(entries) == {s.name for s in shards(header)}
        whole &= all(
            isinstance(entry['size'], int) and entry['sha256'] for entry in entries.values()
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise CacheError(
            f'teacher.cache: {path} is damaged; remove this file and keep the rest with: {COMMAND}'
        )
    return content


def _count(header: Any) -> int:
    """The number of shards that a header claims; 0 if it is no header."""
    if not isinstance(header, dict) or not isinstance(header.get('taps'), dict):
        return 0
    size, samples, views = found = [header.get(key) for key in SIZES]
    if any(type(value) is not int or value < 1 for value in found):
        return 0
    return views * -(-samples // size)


def _any_header(folder: Path) -> dict[str, Any] | None:
    """The header of the cache in a folder, whole or not; None if there is no cache."""
    content = _read_index(folder)
    if content is not None:
        return content['header']
    found = map(_metadata_of, sorted(folder.glob(SHARDS)))
    return next((metadata['header'] for metadata in found if metadata), None)
