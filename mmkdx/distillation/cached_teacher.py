"""A teacher whose outputs are computed once, into files, and read while the student trains."""

from __future__ import annotations

import hashlib
import math
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dist import all_gather_object, barrier, get_dist_info
from mmengine.utils import ProgressBar
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmkdx.datasets.seeded_views import SeededViews
from mmkdx.distillation.distiller import Distiller
from mmkdx.distillation.teacher_cache import (
    COMMAND,
    FORMAT,
    CacheError,
    TeacherCache,
    differences,
    finish,
    foreign,
    is_whole,
    prepare,
    shards,
    write_shard,
)
from mmkdx.distillation.teachers import BaseTeacher, build_teacher
from mmkdx.functional import ClassMaps, full_precision
from mmkdx.registry import MODELS

#: How many batches of a run are compared with the images that the teacher saw.
COMPARED_BATCHES = 3
#: By how much two signatures of one image may differ, relative to their length: rounding of other
#: devices is below 1e-5, an image that is moved by a pixel differs by some 1e-2.
TOLERANCE = 1e-3
#: Side of the image and length of the vector that make a signature.
SIGNATURE_SIDE, SIGNATURE_LENGTH = 8, 4


@MODELS.register_module()
class CachedTeacher(BaseTeacher):
    """A frozen teacher whose outputs are read from files that ``tools/cache_teacher.py`` wrote.

    The training images must be those that the teacher saw: a data set in ``SeededViews``. They are
    checked, by what the data set says of itself in each batch and by the images of the first three.

    Outputs are stored in half precision, those of the taps that terms read. Before ``load``, as in a
    dry run, the teacher itself runs. Its model stays beside the cache for what needs a model, like
    explanations.

    Storing logits beside the augmentations' seeds follows Shen and Xing, "A Fast Knowledge
    Distillation Framework for Visual Recognition", ECCV 2022, and Wu et al., "TinyViT", ECCV 2022.

    Args:
        teacher (dict | str | nn.Module): The teacher, in any form that ``Distiller`` takes.
        cache (str): The folder.
        top_k (int, optional): Of the logits only so many are stored, the largest, and for all others
            together the logarithm of their mean exponential: at temperature 1 the probabilities of
            the largest ones are exact. Defaults to None (all).
        resolution (int, optional): Of class maps (the tap 'cam') the features are stored, which the
            classifier's weights turn into maps when they are read; with this average-pooled to
            resolution × resolution, which is exact for ``CATLoss`` of that resolution. Defaults to None
            (not pooled).

    Raises:
        ValueError: If an argument is out of range, or the teacher is trained along with the student.
    """

    def __init__(
        self, teacher: Any, cache: str, top_k: int | None = None, resolution: int | None = None
    ) -> None:
        super().__init__()
        for key, value in (('top_k', top_k), ('resolution', resolution)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f'teacher.{key} is {value!r}; it must be at least 1, or None')
        self.teacher = build_teacher(teacher)
        if self.teacher.trained_along:
            raise ValueError(
                f'teacher.teacher: a {type(self.teacher).__name__} changes while the student trains, '
                'so its outputs cannot be stored'
            )
        self.folder = Path(cache)
        self.top_k = top_k
        self.resolution = resolution
        #: After ``resolve``: what one image's outputs are, for each tap its kind and shape.
        self.layout: dict[str, list] = {}
        self._cache: TeacherCache | None = None
        self._compared = 0

    @property
    def model(self) -> nn.Module:
        """The teacher's model."""
        return self.teacher.model

    def bind(
        self,
        student: nn.Module,
        taps: Mapping[str, str],
        owner: str = 'teacher',
        explained: Collection[str] = (),
    ) -> None:
        """Binds the teacher; see ``BaseTeacher``.

        Raises:
            ValueError: If something is asked for that cannot be stored.
        """
        if explained:
            raise ValueError(
                f'{taps[sorted(explained)[0]]}: gradients of the {owner} by '
                f'{", ".join(sorted(explained))} are asked for, which a cache cannot have; use the tap '
                "'cam', or the teacher without CachedTeacher"
            )
        if 'prototypes' in taps:
            raise ValueError(
                f'{taps["prototypes"]}: prototypes are weights of the {owner} and no output; use it '
                'without CachedTeacher'
            )
        if taps and getattr(student.data_preprocessor, 'batch_augments', None) is not None:
            raise ValueError(
                f'batch_augments mix images anew in each batch, so the outputs of the {owner} cannot be '
                'stored; remove them (train_cfg.augments of the student, or data_preprocessor), or '
                'use it without CachedTeacher'
            )
        self.teacher.bind(student, taps, owner, explained)

    def resolve(self, inputs: Tensor) -> dict[str, Any]:
        """Finds the taps in the teacher, in the form that is stored; see ``TapSet.resolve``.

        Raises:
            ValueError: If ``top_k`` or ``resolution`` would leave nothing out.
        """
        values = self.teacher.resolve(inputs)
        classes = values['logits'].shape[1] if 'logits' in values else math.inf
        if self.top_k is not None and self.top_k >= classes:
            raise ValueError(
                f'teacher.top_k is {self.top_k} and there are {classes} classes; leave top_k out'
            )
        side = min(values['cam'].shape[2:]) if 'cam' in values else math.inf
        if self.resolution is not None and self.resolution > side:
            raise ValueError(
                f'teacher.resolution is {self.resolution} and the class maps have {side} positions a '
                'side; leave resolution out'
            )
        values = self._reduce(values)
        self.layout = {
            tap: [
                'maps' if isinstance(value, ClassMaps) else 'tensor',
                *map(int, _features(value).shape[1:]),
            ]
            for tap, value in values.items()
        }
        return values

    def compile_model(self, **kwargs: Any) -> None:
        """Does nothing, as the model does not run in training."""

    def load(self) -> None:
        """Loads the weights, which are compared with those of the cache, and opens the cache, once.

        Raises:
            CacheError: If there is no cache, or it is not whole, or of something else.
        """
        self.teacher.load()
        if self._cache is not None or not self.layout:
            return
        cache = TeacherCache(self.folder)
        wanted = dict(
            teacher=fingerprint(self.teacher), top_k=self.top_k, resolution=self.resolution
        )
        differ = differences(cache.header, wanted)
        if differ:
            raise foreign(self.folder, differ)
        missing = sorted(set(self.layout) - set(cache.header['taps']))
        if missing:
            raise CacheError(
                f'teacher.cache: {self.folder} has no {", ".join(missing)}, which a term reads; it has '
                f'{", ".join(cache.header["taps"])}. Remove the folder, or give teacher.cache another '
                f'name, and write it: {COMMAND}'
            )
        self._cache = cache

    def convert(self, inputs: Tensor) -> Tensor:
        """Brings images to the form that the model takes; see ``BaseTeacher``."""
        return self.teacher.convert(inputs)

    @torch.no_grad()
    def forward(self, inputs: Tensor, data_samples: list | None = None) -> dict[str, Any]:
        """Reads what the teacher said of a batch.

        Args:
            inputs (Tensor): Images as the student's data preprocessor yields them, (N, 3, H, W).
            data_samples (list, optional): Their data samples, which name sample and view.

        Returns:
            dict[str, Any]: For each tap an fp32 tensor on the images' device, or class maps.

        Raises:
            CacheError: If the images are not those of the cache.
        """
        if self._cache is None:
            return self._reduce(self.teacher(inputs, data_samples))
        views, positions = self._places(data_samples)
        if self._compared < COMPARED_BATCHES:
            self._compare(inputs, views, positions)
            self._compared += 1
        keys = {tap: [f'{tap}.{key}' for key in self._keys(tap)] for tap in self.layout}
        rows = self._cache.rows(views, positions, sum(keys.values(), []), inputs.is_cuda)
        values = {}
        for tap, (kind, *shape) in self.layout.items():
            stored = {
                key.rpartition('.')[2]: rows[key].to(inputs.device, non_blocking=True)
                for key in keys[tap]
            }
            values[tap] = decode(stored, shape[0])
            if kind == 'maps':
                values[tap] = ClassMaps(values[tap], *self._classifier(), keep=True)
        return values

    def outputs(self, inputs: Tensor) -> dict[str, Tensor]:
        """Runs the teacher on images and brings what it says to the form that is stored.

        Args:
            inputs (Tensor): Images as the student's data preprocessor yields them, (N, 3, H, W).

        Returns:
            dict[str, Tensor]: Tensors with a row for each image, on the CPU.

        Raises:
            ValueError: If a value is not finite in half precision.
        """
        values = self._reduce(self.teacher(inputs))
        stored = {'signature': signature(inputs).cpu()}
        for tap, value in values.items():
            value = full_precision(_features(value))
            for key, part in encode(value, self.top_k if tap == 'logits' else None).items():
                part = part.cpu().contiguous()
                if not part.isfinite().all():
                    raise ValueError(
                        f'teacher.cache: what the teacher has at tap {tap!r} is not finite, or beyond '
                        'the 65504 of half precision, and cannot be stored; use it without '
                        'CachedTeacher'
                    )
                stored[f'{tap}.{key}'] = part
        return stored

    def _reduce(self, values: dict[str, Any]) -> dict[str, Any]:
        """Pools the features of class maps, if that is asked for."""
        if 'cam' not in values or self.resolution is None:
            return values
        maps = values['cam']
        features = F.adaptive_avg_pool2d(full_precision(maps.features), self.resolution)
        return {**values, 'cam': ClassMaps(features, maps.weight, maps.bias)}

    def _classifier(self) -> tuple[Tensor | None, Tensor | None]:
        """The weights that make maps of features; none where these are maps, as of an ensemble."""
        if not hasattr(self.teacher, 'taps'):
            return None, None
        linear = self.teacher.taps.module(self.teacher.model, 'cam')
        return linear.weight, linear.bias

    def _keys(self, tap: str) -> tuple[str, ...]:
        return ('values', 'index', 'rest') if tap == 'logits' and self.top_k else ('values',)

    def _places(self, data_samples: list | None) -> tuple[list[int], list[int]]:
        """The views and positions of a batch, which must be of the cache's data."""
        header = self._cache.header
        try:
            sources = {sample.source for sample in data_samples}
            views = [sample.view for sample in data_samples]
            positions = [sample.position for sample in data_samples]
        except (AttributeError, TypeError):
            raise CacheError(
                'teacher.cache: the data samples do not say which view of which image they are; let '
                'train_dataloader.dataset be of type SeededViews, around the data set'
            ) from None
        other = sources - {f'{header["data"]}.{header["pipeline"]}'}
        if other:
            data, _, pipeline = other.pop().partition('.')
            raise foreign(self.folder, differences(header, dict(data=data, pipeline=pipeline)))
        taps = {tap: header['taps'][tap] for tap in self.layout}
        if taps != self.layout:
            raise foreign(self.folder, differences(dict(taps=taps), dict(taps=self.layout)))
        return views, positions

    def _compare(self, inputs: Tensor, views: list[int], positions: list[int]) -> None:
        """Refuses images that the teacher did not see."""
        found = signature(inputs).cpu()
        stored = self._cache.rows(views, positions, ['signature'])['signature']
        scale = stored.abs().amax(1).clamp(min=1e-6)
        far = ((found - stored).abs().amax(1) > TOLERANCE * scale).nonzero().flatten().tolist()
        if far:
            raise CacheError(
                f'teacher.cache: image {positions[far[0]]} in view {views[far[0]]} is not what the '
                f'teacher saw ({len(far)} of the {len(positions)} of this batch). The pipeline, its '
                'random numbers, the normalisation (data_preprocessor) or the image decoder may '
                f'differ, or batch_augments mix images. Remove {self.folder}, or give teacher.cache '
                f'another name, and write it: {COMMAND}'
            )


def encode(values: Tensor, top_k: int | None = None) -> dict[str, Tensor]:
    """Brings an output to the form in which it is stored.

    Args:
        values (Tensor): An output of shape (N, ...); with ``top_k`` logits of shape (N, K).
        top_k (int, optional): k, how many logits are stored. Defaults to None (all).

    Returns:
        dict[str, Tensor]: 'values' in fp16. With ``top_k`` these are the largest ones, of shape
        (N, k), with their 'index' and the 'rest' of shape (N, 1), the logarithm of the others' mean
        exponential.
    """
    if top_k is None:
        return dict(values=values.half())
    top, index = values.topk(top_k, dim=1)
    others = values.scatter(1, index, -math.inf)
    rest = others.logsumexp(1, keepdim=True) - math.log(values.shape[1] - top_k)
    small = torch.int16 if values.shape[1] <= torch.iinfo(torch.int16).max else torch.int32
    return dict(values=top.half(), index=index.to(small), rest=rest.half())


def decode(stored: Mapping[str, Tensor], classes: int) -> Tensor:
    """The inverse of ``encode``, in fp32.

    Args:
        stored (Mapping): What ``encode`` returned, or rows of it.
        classes (int): K, where only some logits were stored.
    """
    values = stored['values'].float()
    if 'index' in stored:
        rest = stored['rest'].float().expand(-1, classes)
        values = rest.scatter(1, stored['index'].long(), values)
    return values


def _features(value: Tensor | ClassMaps) -> Tensor:
    """What is stored: of class maps what the classifier makes them of."""
    return value.features if isinstance(value, ClassMaps) else value


def signature(inputs: Tensor) -> Tensor:
    """A few numbers by which images are known again, up to rounding.

    Args:
        inputs (Tensor): Images of shape (N, C, H, W).

    Returns:
        Tensor: Of shape (N, 4): products of the images, average-pooled to 8 × 8, with fixed random
        vectors whose expected length is 1.
    """
    pooled = F.adaptive_avg_pool2d(inputs.detach().float(), SIGNATURE_SIDE).flatten(1)
    # numpy's older generator makes the same numbers in all its versions
    vectors = np.random.RandomState(0).standard_normal((pooled.shape[1], SIGNATURE_LENGTH))
    vectors = torch.from_numpy(vectors / math.sqrt(pooled.shape[1])).to(pooled)
    # Not a matrix product, which a GPU may compute with 10 bits
    return (pooled[:, :, None] * vectors).sum(1)


def fingerprint(teacher: BaseTeacher) -> str:
    """A hash of all weights and buffers of a teacher's models, and of the precision they run in."""
    models = [
        (member.model, getattr(member, 'dtype', None))
        for member in teacher.modules()
        if isinstance(member, BaseTeacher) and isinstance(getattr(member, 'model', None), nn.Module)
    ]
    found = hashlib.sha256()
    for model, dtype in models:
        found.update(f'{type(model).__name__} {dtype}'.encode())
        # Buffers that no checkpoint has are the normalisation
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            found.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}'.encode())
            content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            found.update(content.numpy())
    return found.hexdigest()


@torch.no_grad()
def write_cache(
    distiller: Distiller,
    teacher: CachedTeacher,
    loader: DataLoader,
    shard_size: int = 4096,
) -> None:
    """Runs a teacher over all views of all training images and writes what its terms read.

    With several processes each writes a part of the shards. Shards that are there are kept, so a
    killed run goes on where it was.

    Args:
        distiller (Distiller): The model, with its weights, on its device.
        teacher (CachedTeacher): One of its teachers.
        loader (DataLoader): The training data; all but its order is used.
        shard_size (int): Images in a file. Defaults to 4096.

    Raises:
        ValueError: If the data set has no views, or an output cannot be stored.
        CacheError: If the folder holds another cache, or shards are missing in the end.
    """
    dataset = loader.dataset
    if not isinstance(dataset, SeededViews):
        raise ValueError(
            f'train_dataloader.dataset is a {type(dataset).__name__}, whose augmentations cannot be '
            "repeated; wrap it: dict(type='SeededViews', views=..., dataset=...)"
        )
    rank, world = get_dist_info()
    distiller.eval()
    size = loader.batch_size
    first = distiller.data_preprocessor(loader.collate_fn([dataset[0]]), True)
    distiller.probe(first['inputs'].shape[2:])
    teacher.teacher.load()
    data, _, pipeline = dataset.source.partition('.')
    header = dict(
        format=FORMAT,
        teacher=fingerprint(teacher.teacher),
        data=data,
        pipeline=pipeline,
        samples=len(dataset),
        views=dataset.views,
        seed=dataset.seed,
        taps=teacher.layout,
        top_k=teacher.top_k,
        resolution=teacher.resolution,
        shard_size=shard_size,
    )
    folder, plan, start = teacher.folder, shards(header), time.perf_counter()
    if rank == 0:
        prepare(folder, header)
    # Each looks at a part of the files, and none writes before all have looked
    there = {shard for shard in plan[rank::world] if is_whole(folder, header, shard)}
    there = set().union(*all_gather_object(there))
    missing = [shard for shard in plan if shard not in there]
    if not missing and (folder / 'cache.json').is_file():
        if rank == 0:
            print(f'{folder} is whole: {len(plan)} files with outputs of this teacher')
        return
    if rank == 0:
        (folder / 'cache.json').unlink(missing_ok=True)
        print(f'{folder}: {len(missing)} of {len(plan)} files to write')
    own = missing[rank::world]
    # Batches do not depend on what is missing, nor do the rounding errors
    batches = [
        (shard, [shard.view * len(dataset) + i for i in range(at, min(at + size, shard.stop))])
        for shard in own
        for at in range(shard.start, shard.stop, size)
    ]
    images = DataLoader(
        dataset,
        batch_sampler=[indices for _, indices in batches],
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=first['inputs'].is_cuda,
    )
    bar = None
    if rank == 0:
        bar = ProgressBar(sum(len(indices) for _, indices in batches), file=sys.stderr)
    rows: list[dict[str, Tensor]] = []
    for (shard, indices), batch in zip(batches, images):
        inputs = distiller.data_preprocessor(batch, True)['inputs']
        rows.append(teacher.outputs(inputs))
        if indices[-1] == shard.view * len(dataset) + shard.stop - 1:
            write_shard(
                folder, header, shard, {k: torch.cat([row[k] for row in rows]) for k in rows[0]}
            )
            rows = []
        if bar is not None:
            bar.update(len(indices))
    barrier()
    if rank == 0:
        total, seconds = finish(folder, header), time.perf_counter() - start
        count = sum(shard.stop - shard.start for shard in missing)
        print(
            f'\n{folder}: {total / 2**20:.1f} MiB in {len(plan)} files; {count} images in '
            f'{seconds:.0f} s, {count / seconds:.0f} a second'
        )
    barrier()
