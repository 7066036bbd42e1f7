"""Reading a cache."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mmkdx.distillation.cache.files import (
    AGAIN,
    COMMAND,
    FORMAT,
    CacheError,
    Shard,
    any_header,
    checksum,
    differences,
    foreign,
    read_index,
    shards,
)


class CacheReader:
    """A whole cache, for reading. Shards are mapped into memory when they are read first.

    Args:
        folder (str | os.PathLike): The folder.

    Attributes:
        header (dict): What the outputs are of; its keys are those of ``HEADER``.

    Raises:
        CacheError: If there is no cache, or it is not whole.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        content = read_index(self.folder)
        if content is None:
            present = any_header(self.folder)
            if present is None:
                raise CacheError(
                    f'teacher.cache: there is no cache {self.folder}; write it first: {COMMAND}'
                )
            plan = shards(present)
            there = sum((self.folder / shard.name).is_file() for shard in plan)
            raise CacheError(
                f'teacher.cache: {self.folder} is not whole, {there} of {len(plan)} parts are there; '
                f'{AGAIN}'
            )
        self.header: dict[str, Any] = content['header']
        if self.header.get('format') != FORMAT:
            raise foreign(self.folder, differences(self.header, dict(format=FORMAT)))
        self._entries: dict[str, dict] = content['shards']
        for name, entry in self._entries.items():
            path = self.folder / name
            size = path.stat().st_size if path.is_file() else None
            if size != entry['size']:
                what = 'is missing' if size is None else f'has {size} bytes, not {entry["size"]}'
                raise CacheError(f'teacher.cache: {path} {what}; {AGAIN}')
        self._plan = shards(self.header)
        self._opened: list[dict[str, np.ndarray] | None] = [None] * len(self._plan)

    def rows(
        self,
        views: list[int],
        positions: list[int],
        keys: Collection[str],
        pin_memory: bool = False,
    ) -> dict[str, Tensor]:
        """The stored rows of samples, in their order.

        Args:
            views (list[int]): The view of each sample.
            positions (list[int]): Its position in the data set.
            keys (Collection[str]): Which tensors.
            pin_memory (bool): Whether they are made for a copy to a GPU in the background. Defaults to
                False.

        Returns:
            dict[str, Tensor]: Tensors on the CPU with a row for each sample, as they were written.

        Raises:
            CacheError: If a view or position is not in the cache, or a shard is damaged.
        """
        size, samples, present = (self.header[key] for key in ('shard_size', 'samples', 'views'))
        if max(views) >= present or max(positions) >= samples:
            raise CacheError(
                f'teacher.cache: {self.folder} holds {present} views of {samples} images, and view '
                f'{max(views)} and image {max(positions)} are asked for; let SeededViews have no more '
                'views than that, or write another cache'
            )
        part, row = np.divmod(positions, size)
        number = np.array(views) * -(-samples // size) + part
        # Samples of one shard stand together in this order
        order = number.argsort()
        ends = [*(np.flatnonzero(np.diff(number[order])) + 1).tolist(), len(order)]
        out: dict[str, Tensor] = {}
        start = 0
        for end in ends:
            places = order[start:end]
            start, rows = end, row[places]
            shard = int(number[places[0]])
            opened = self._opened[shard]
            if opened is None:
                opened = self._opened[shard] = self._open(self._plan[shard])
            for key in keys:
                value = opened[key]
                if key not in out:
                    shape, dtype = (len(views), *value.shape[1:]), getattr(torch, value.dtype.name)
                    out[key] = torch.empty(shape, dtype=dtype, pin_memory=pin_memory)
                out[key].numpy()[places] = value[rows]
        return out

    def _open(self, shard: Shard) -> dict[str, np.ndarray]:
        path = self.folder / shard.name
        try:
            tensors = load_file(path)
            whole = self._entries[shard.name]['sha256'] == checksum(self.header, shard, tensors)
        except (SafetensorError, OSError):
            whole = False
        if not whole:
            raise CacheError(f'teacher.cache: {path} is damaged; {AGAIN}')
        return {key: value.numpy() for key, value in tensors.items()}
