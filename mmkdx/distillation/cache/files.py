"""Files of a teacher's outputs: a folder that is whole, or says what is missing.

A cache is a folder of shards, ``view-000/part-00000.safetensors`` and so on, of ``shard_size`` samples
of one view each, in the order of their positions. Each shard carries, as safetensors' metadata, the
header of the cache, its place and a checksum. ``cache.json`` lists them; it is written last, so a
folder without it is not whole. All files appear under their names at once and on the disk, so a
process can be killed at any moment and all finished shards remain.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from mmkdx.version import __version__

FORMAT = 1
INDEX = 'cache.json'
COMMAND = 'python tools/cache_teacher.py CONFIG'
#: The end of messages about a cache that is not whole.
AGAIN = f'what is missing is written by: {COMMAND}'

#: The keys of a header, and how messages call them.
HEADER = {
    'format': 'the format',
    'teacher': "the teacher's weights or precision",
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
#: Keys whose values are hashes and say nothing.
HASHES = ('teacher', 'data', 'pipeline')


class CacheError(ValueError):
    """A cache is missing, not whole, damaged, or of something else; the message says what to do."""


@dataclass(frozen=True)
class Shard:
    """The place of a file in a cache.

    Args:
        view (int): The view.
        start (int): The position of its first sample.
        stop (int): One more than that of its last.
        name (str): Its path in the folder.
    """

    view: int
    start: int
    stop: int
    name: str


def shards(header: Mapping[str, Any]) -> list[Shard]:
    """All shards of a cache, view by view."""
    size, samples = header['shard_size'], header['samples']
    return [
        Shard(
            view,
            start,
            min(start + size, samples),
            f'view-{view:03d}/part-{start // size:05d}.safetensors',
        )
        for view in range(header['views'])
        for start in range(0, samples, size)
    ]


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What differs between two headers, in words; of ``wanted`` only the keys that it has."""
    differ = [key for key in HEADER if key in wanted and found.get(key) != wanted[key]]
    return [
        HEADER[key] if key in HASHES else f'{HEADER[key]} ({found.get(key)}, not {wanted[key]})'
        for key in differ
    ]


def write_shard(
    folder: Path, header: Mapping[str, Any], shard: Shard, tensors: dict[str, Tensor]
) -> None:
    """Writes a shard, whole or not at all.

    Args:
        folder (Path): The folder of the cache.
        header (Mapping): The header of the cache.
        shard (Shard): Which shard.
        tensors (dict[str, Tensor]): Tensors on the CPU with a row for each of its samples.
    """
    metadata = dict(header=header, sha256=checksum(header, shard, tensors))
    path = folder / shard.name
    path.parent.mkdir(parents=True, exist_ok=True)
    # One entry, since safetensors writes several in any order, and equal shards are to be equal files
    _write(path, save(tensors, {'mmkdx': json.dumps(metadata, sort_keys=True)}))


def is_whole(folder: Path, header: Mapping[str, Any], shard: Shard) -> bool:
    """Whether a shard is there and undamaged.

    Raises:
        CacheError: If the file is there and belongs to another cache.
    """
    path = folder / shard.name
    metadata = metadata_of(path)
    if metadata is None:
        return False
    differ = differences(metadata['header'], header)
    if differ:
        raise foreign(folder, differ)
    try:
        return metadata['sha256'] == checksum(header, shard, load_file(path))
    except SafetensorError:  # truncated
        return False


def foreign(folder: Path, differ: list[str]) -> CacheError:
    """The error of a folder with the cache of something else."""
    return CacheError(
        f'teacher.cache: {folder} holds outputs of something else; what differs: {"; ".join(differ)}. '
        'Remove the folder, or give teacher.cache another name'
    )


def prepare(folder: Path, header: Mapping[str, Any]) -> None:
    """Makes a folder ready for writing: removes what a killed process left half written.

    Raises:
        CacheError: If the folder holds another cache.
    """
    folder.mkdir(parents=True, exist_ok=True)
    present = any_header(folder)
    if present is not None and (differ := differences(present, header)):
        raise foreign(folder, differ)
    for path in folder.rglob('*.tmp'):
        path.unlink()


def finish(folder: Path, header: Mapping[str, Any]) -> None:
    """Declares a cache whole, when it is.

    Raises:
        CacheError: If a shard is missing.
    """
    entries = {}
    for shard in shards(header):
        metadata = metadata_of(folder / shard.name)
        if metadata is None:
            raise CacheError(f'teacher.cache: {folder / shard.name} was not written; {AGAIN}')
        size = (folder / shard.name).stat().st_size
        entries[shard.name] = dict(sha256=metadata['sha256'], size=size)
    content = dict(header=header, mmkdx=__version__, shards=entries)
    _write(folder / INDEX, json.dumps(content, indent=1).encode())


def checksum(header: Mapping[str, Any], shard: Shard, tensors: dict[str, Tensor]) -> str:
    """The checksum of tensors, of their names and types, and of the place to which they belong."""
    found = hashlib.sha256(json.dumps([header, shard.name], sort_keys=True).encode())
    for name in sorted(tensors):
        array = tensors[name].numpy()
        found.update(f'{name} {array.dtype} {array.shape}'.encode())
        found.update(np.ascontiguousarray(array))
    return found.hexdigest()


def metadata_of(path: Path) -> dict[str, Any] | None:
    """What a shard says of itself, also where its end is missing; None where it says nothing."""
    try:
        with path.open('rb') as file:
            length = int.from_bytes(file.read(8), 'little')
            if length > path.stat().st_size:
                return None
            return json.loads(json.loads(file.read(length))['__metadata__']['mmkdx'])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_index(folder: Path) -> dict[str, Any] | None:
    """The content of ``cache.json``, None where there is none.

    Raises:
        CacheError: If it is damaged.
    """
    path = folder / INDEX
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
        content['header'], content['shards']
    except (ValueError, KeyError, TypeError) as error:
        raise CacheError(
            f'teacher.cache: {path} is damaged; remove this file, and the rest is kept by: {COMMAND}'
        ) from error
    return content


def any_header(folder: Path) -> dict[str, Any] | None:
    """The header of the cache in a folder, whole or not; None where there is none."""
    content = read_index(folder)
    if content is not None:
        return content['header']
    found = map(metadata_of, sorted(folder.glob('view-*/part-*.safetensors')))
    return next((metadata['header'] for metadata in found if metadata), None)


def _write(path: Path, content: bytes) -> None:
    """Puts a file under its name at once, when it is on the disk."""
    # The process' number, since another may write the same file
    part = path.with_name(f'{path.name}.{os.getpid()}.tmp')
    with part.open('wb') as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
