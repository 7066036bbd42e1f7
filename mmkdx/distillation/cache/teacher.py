"""A teacher whose outputs are stored in files once, and read while the student trains."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkdx.arguments import integer
from mmkdx.distillation.cache.files import COMMAND, CacheError, CacheReader, compare
from mmkdx.distillation.input_bridge import input_bridge
from mmkdx.distillation.teachers import BaseTeacher, Teacher, build_teacher
from mmkdx.functional import ClassMaps
from mmkdx.functional.class_maps import first_tensor
from mmkdx.models.families import describe, preprocessed
from mmkdx.models.path_tap import find_tap
from mmkdx.registry import MODELS

#: The number of batches of a run that are compared with the images that the teacher saw.
COMPARED_BATCHES = 3
#: The tolerance for two signatures of one image, relative to their length. Rounding of other
#: devices is below 1e-5; an image that is moved by a pixel differs by some 1e-2.
TOLERANCE = 1e-3


@MODELS.register_module()
class CachedTeacher(BaseTeacher):
    """A frozen teacher whose outputs are read from files that ``tools/cache_teacher.py`` wrote.

    The training images must be the images that the teacher saw, so the data set must be in
    ``SeededViews``. Each batch is checked by its data samples, and the first three by their images.

    The outputs at the taps that terms read are stored in half precision, as in Shen and Xing, "A Fast
    Knowledge Distillation Framework for Visual Recognition", ECCV 2022. The teacher itself runs
    only before ``load``, as in a dry run, and for explanations.

    Args:
        teacher (dict | str | nn.Module): The teacher, in any form that ``Distiller`` takes.
        cache (str): The folder.
        top_k (int, optional): The number of largest logits to store. All others become one number,
            the logarithm of their mean exponential. So the probabilities of the largest
            logits are exact at temperature 1. Defaults to None (all).
        resolution (int, optional): The side to which the features of class maps (the tap 'cam') are
            average-pooled. This is exact for ``CATLoss`` of that resolution. Defaults to None (not
            pooled).

    Raises:
        ValueError: If an argument is out of range, or the teacher is trained along with the student.
    """

    def __init__(
        self, teacher: Any, cache: str, top_k: int | None = None, resolution: int | None = None
    ) -> None:
        super().__init__()
        for key, value in (('top_k', top_k), ('resolution', resolution)):
            if value is not None:
                integer(f'teacher.{key}', value, 1)
        if not isinstance(cache, (str, os.PathLike)):
            raise ValueError(f'teacher.cache is {cache!r}; it must be the path of a folder')
        self.teacher = build_teacher(teacher)
        if self.teacher.trained_along:
            raise ValueError(
                f'teacher.teacher: a {type(self.teacher).__name__} changes while the student trains, '
                'so its outputs cannot be stored'
            )
        if any(each.needs_labels for each in self._parts):
            raise ValueError(
                "teacher.teacher: the weights 'cross_entropy' of a TeacherEnsemble depend on labels, "
                "and a cache holds none; make each member a CachedTeacher, or use 'agreement'"
            )
        self.folder = Path(cache)
        self.top_k = top_k
        self.resolution = resolution
        #: After ``resolve``: for each tap, the kind and shape of one image's output.
        self.layout: dict[str, list] = {}
        self._names: list[str] = []  # of the tensors that are stored for them
        self._conversions = ''
        self._cache: CacheReader | None = None
        self._compared = 0

    @property
    def model(self) -> nn.Module:
        """The teacher's model."""
        return self.teacher.model

    def prepare(self, student: nn.Module) -> None:
        """Binds the teacher, and refuses what cannot be stored; see ``BaseTeacher``."""
        taps, owner, explained = self.taps.names, self.taps.owner, sorted(self.taps.explained)
        if explained:
            raise ValueError(
                f'{taps[explained[0]]}: gradients of the {owner} by {", ".join(explained)} are asked '
                "for, and a cache has none; use the tap 'cam', or the teacher without CachedTeacher"
            )
        for tap, key in taps.items():
            if find_tap(tap).of_weights:
                raise ValueError(
                    f'{key}: {tap} are weights of the {owner} and no output; use it without '
                    'CachedTeacher'
                )
        if taps and getattr(student.data_preprocessor, 'batch_augments', None) is not None:
            raise ValueError(
                f'batch_augments mix images anew in each batch, so the outputs of the {owner} cannot be '
                'stored; remove them (train_cfg.augments of the student, or data_preprocessor), or use '
                'it without CachedTeacher'
            )
        self.teacher.bind(student, taps, owner)
        self._conversions = _conversions(self.teacher, student)

    def resolve(self, inputs: Tensor) -> dict[str, Any]:
        """Finds the taps in the teacher, in the form that is stored; see ``TapSet.resolve``."""
        values = self.teacher.resolve(inputs)
        self._names = list(self._encode(values))
        values, self.layout = self._as_stored(values), {}
        for tap, value in values.items():
            kind = 'maps' if isinstance(value, ClassMaps) else 'tensor'
            self.layout[tap] = [kind, *map(int, first_tensor(value).shape[1:])]
        return values

    def compile_model(self, **kwargs: Any) -> None:
        """Does nothing, as the model does not run in training."""

    def match_classes(self, names: Sequence[str] | None) -> None:
        """Compares the names of the teacher's classes with the data set's; see ``Teacher``."""
        self.teacher.match_classes(names)

    @property
    def _parts(self) -> list[BaseTeacher]:
        """The teacher, and the members of an ensemble."""
        return [each for each in self.teacher.modules() if isinstance(each, BaseTeacher)]

    def fingerprint(self) -> str:
        """A hash of all that the outputs depend on, beside the images."""
        found = hashlib.sha256(self._conversions.encode())
        for member in self._parts:
            found.update(member.settings.encode())
            model = getattr(member, 'model', None)
            if not isinstance(model, nn.Module):
                continue
            found.update(f'{type(model).__name__} {getattr(member, "dtype", None)}'.encode())
            # Also buffers outside of checkpoints, such as the normalisation
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
                found.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}'.encode())
                content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
                found.update(content.numpy())
        return found.hexdigest()

    def load(self) -> None:
        """Loads the weights and, once, opens the cache, which must be whole and of this teacher."""
        self.teacher.load()
        if self._cache is not None or not self.layout:
            return
        cache = CacheReader(self.folder)
        wanted = dict(teacher=self.fingerprint(), top_k=self.top_k, resolution=self.resolution)
        compare(self.folder, cache.header, wanted)
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
        """Reads the teacher's outputs for a batch of the cache's data; see ``BaseTeacher``."""
        if self._cache is None:
            return self._as_stored(self.teacher(inputs, data_samples))
        views, positions = self._places(data_samples)
        if self._compared < COMPARED_BATCHES:
            self._compare(inputs, views, positions)
            self._compared += 1
        rows = self._cache.rows(views, positions, self._names, inputs.is_cuda)
        for name, row in rows.items():
            row = row.to(inputs.device, non_blocking=True)
            rows[name] = row.float() if row.is_floating_point() else row
        return self._decode(rows, {tap: shape for tap, (_, *shape) in self.layout.items()})

    def outputs(self, inputs: Tensor) -> dict[str, Tensor]:
        """The CPU tensors to store for the student's preprocessed images, with a row for each."""
        found = {'signature': signature(inputs).cpu()}
        for name, part in self._encode(self.teacher(inputs)).items():
            part = part.half() if part.is_floating_point() else part
            found[name] = part.cpu().contiguous()
            if not part.isfinite().all():
                raise ValueError(
                    f"teacher.cache: the teacher's output at tap {name.rpartition('.')[0]!r} is not "
                    'finite or exceeds 65504, the limit of half precision, so it cannot be stored; '
                    'use the teacher without CachedTeacher'
                )
        return found

    def _as_stored(self, values: dict[str, Any]) -> dict[str, Any]:
        """Values in the form that the cache returns, without its rounding."""
        shapes = {tap: first_tensor(value).shape[1:] for tap, value in values.items()}
        return self._decode(self._encode(values), shapes)

    def _encode(self, values: dict[str, Any]) -> dict[str, Tensor]:
        return {
            f'{tap}.{key}': part
            for tap, value in values.items()
            for key, part in find_tap(tap).encode(value, self.top_k, self.resolution).items()
        }

    def _decode(
        self, stored: dict[str, Tensor], shapes: Mapping[str, Sequence[int]]
    ) -> dict[str, Any]:
        parts: dict[str, dict[str, Tensor]] = {tap: {} for tap in shapes}
        for name, part in stored.items():
            tap, _, key = name.rpartition('.')
            parts[tap][key] = part
        taps = getattr(self.teacher, 'taps', None)  # an ensemble has none of its own
        modules = {tap: taps.module(self.model, tap) for tap in taps.weights} if taps else {}
        return {
            tap: find_tap(tap).decode(parts[tap], shape, modules.get(tap))
            for tap, shape in shapes.items()
        }

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
        for source in sources:
            data, _, pipeline = source.partition('.')
            compare(self.folder, header, dict(data=data, pipeline=pipeline))
        taps = {tap: header['taps'][tap] for tap in self.layout}
        compare(self.folder, dict(taps=taps), dict(taps=self.layout))
        return views, positions

    def _compare(self, inputs: Tensor, views: list[int], positions: list[int]) -> None:
        """Refuses images that the teacher did not see."""
        stored = self._cache.rows(views, positions, ['signature'])['signature']
        change = (signature(inputs).cpu() - stored).abs().amax(1)
        allowed = TOLERANCE * stored.abs().amax(1).clamp(min=1e-6)
        far = (change > allowed).nonzero().flatten().tolist()
        if far:
            raise CacheError(
                f'teacher.cache: image {positions[far[0]]} in view {views[far[0]]} is not what the '
                f'teacher saw ({len(far)} of the {len(positions)} of this batch). The pipeline, its '
                'random numbers, the normalisation (data_preprocessor) or the image decoder may '
                f'differ, or batch_augments mix images. Remove {self.folder}, or give teacher.cache '
                f'another name, and write it: {COMMAND}'
            )


def signature(inputs: Tensor) -> Tensor:
    """Four numbers that identify each of the images (N, C, H, W), up to rounding.

    They are inner products of the image, average-pooled to 8 × 8, with random vectors of expected
    length 1.
    """
    pooled = F.adaptive_avg_pool2d(inputs.detach().float(), 8).flatten(1)
    # numpy's older generator yields the same numbers in all versions
    vectors = np.random.RandomState(0).standard_normal((pooled.shape[1], 4))
    vectors = torch.from_numpy(vectors / pooled.shape[1] ** 0.5).to(pooled)
    # No matrix product, as a GPU may compute it with 10 bits (TF32)
    return (pooled[:, :, None] * vectors).sum(1)


def _conversions(teacher: BaseTeacher, student: nn.Module) -> str:
    """How a teacher's models convert the student's images; '' if both preprocessors determine it.

    They do if both have a mean and ``normalize`` and ``resize`` are not used. The first version of
    caches knew only this case, so its caches stay valid.
    """
    found, given = [], preprocessed(describe(student).model)
    for member in teacher.modules():
        if isinstance(member, Teacher):
            known = given.mean is not None and preprocessed(member.model).mean is not None
            usual = input_bridge(student, member.model) if known else nn.Identity()
            found.append('' if repr(usual) == repr(member.bridge) else repr(member.bridge))
    return repr(found) if any(found) else ''
