"""Writes a cache: the teacher runs once over all views of all training images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from mmengine.dist import all_gather_object, barrier, get_dist_info, is_main_process
from torch.utils.data import DataLoader

from mmkdx.arguments import integer
from mmkdx.datasets.seeded_views import SeededViews
from mmkdx.datasets.wrappers import class_names
from mmkdx.distillation.cache.files import (
    FORMAT,
    INDEX,
    Shard,
    finish,
    is_whole,
    prepare,
    shards,
    write_shard,
)
from mmkdx.distillation.cache.teacher import CachedTeacher
from mmkdx.distillation.distiller import Distiller
from mmkdx.lock import FolderLock


class CacheWriter:
    """Writes what the terms of a distiller read from a teacher, for all views of all training images.

    With several processes, each writes a part of the files. Finished files are kept, so a killed
    run can be continued.

    ``files`` lists all files of the cache, ``missing`` the files to write, and ``own`` those that
    this process writes.

    Args:
        distiller (Distiller): The model, with its weights, on its device.
        teacher (CachedTeacher): One of its teachers.
        loader (DataLoader): The training data; its order is not used.
        shard_size (int): Images in a file. Defaults to 4096.

    Raises:
        ValueError: If ``shard_size`` is below 1, or the data set has no views.
        CacheError: If the folder holds another cache.
        FolderInUseError: If another process writes into the folder.
    """

    def __init__(
        self,
        distiller: Distiller,
        teacher: CachedTeacher,
        loader: DataLoader,
        shard_size: int = 4096,
    ) -> None:
        self.distiller, self.teacher, self.loader = distiller, teacher, loader
        self.folder = teacher.folder
        dataset = loader.dataset
        if not isinstance(dataset, SeededViews):
            raise ValueError(
                f'train_dataloader.dataset is a {type(dataset).__name__}, whose augmentations cannot '
                "be repeated; wrap it: dict(type='SeededViews', views=..., dataset=...)"
            )
        distiller.eval()
        first = distiller.data_preprocessor(loader.collate_fn([dataset[0]]), True)
        distiller.probe(first['inputs'].shape[2:])
        teacher.match_classes(class_names(dataset))
        teacher.teacher.load()
        data, _, pipeline = dataset.source.partition('.')
        self.header = dict(
            format=FORMAT,
            teacher=teacher.fingerprint(),
            data=data,
            pipeline=pipeline,
            samples=len(dataset),
            views=dataset.views,
            seed=dataset.seed,
            taps=teacher.layout,
            top_k=teacher.top_k,
            resolution=teacher.resolution,
            shard_size=integer('shard_size', shard_size, 1),
        )
        rank, world = get_dist_info()
        if rank == 0:
            advice = 'wait for it, or give teacher.cache another name'
            self._lock = FolderLock(self.folder, advice)  # until this writer or its process ends
            prepare(self.folder, self.header)
        self.files = shards(self.header)
        # Each process checks a part of the files, and none writes before all have checked
        own = self.files[rank::world]
        there = [each for each in own if is_whole(self.folder, self.header, each)]
        there = set().union(*all_gather_object(there))
        self.missing = [each for each in self.files if each not in there]
        self.own = self.missing[rank::world]

    @property
    def whole(self) -> bool:
        """Whether there is nothing to write."""
        return not self.missing and (self.folder / INDEX).is_file()

    @torch.no_grad()
    def write(self, progress: Callable[[int], None] = lambda count: None) -> None:
        """Writes the missing files, and tells ``progress`` the number of images of each batch."""
        if is_main_process():
            (self.folder / INDEX).unlink(missing_ok=True)
        plan = [(shard, self._batches(shard)) for shard in self.own]
        loader = DataLoader(
            self.loader.dataset,
            batch_sampler=[indices for _, batches in plan for indices in batches],
            num_workers=self.loader.num_workers,
            collate_fn=self.loader.collate_fn,
            pin_memory=next(self.distiller.parameters()).is_cuda,
        )
        images = iter(loader)
        for shard, batches in plan:
            rows = []
            for indices in batches:
                inputs = self.distiller.data_preprocessor(next(images), True)['inputs']
                rows.append(self.teacher.outputs(inputs))
                progress(len(indices))
            tensors = {key: torch.cat([row[key] for row in rows]) for key in rows[0]}
            write_shard(self.folder, self.header, shard, tensors)
        barrier()
        if is_main_process():
            finish(self.folder, self.header)
        barrier()

    def _batches(self, shard: Shard) -> list[range]:
        """The indices of each batch of a file; they do not depend on which files are missing."""
        first, size = shard.view * len(self.loader.dataset), self.loader.batch_size
        indices = range(first + shard.start, first + shard.stop)
        return [indices[i : i + size] for i in range(0, len(indices), size)]
