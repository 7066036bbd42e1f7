"""Names of a distiller's tensors in a checkpoint; the student's are as in plain mmpretrain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmengine.logging import print_log
from torch import Tensor

from mmkdx.models.plain_classifier import PlainClassifier

if TYPE_CHECKING:
    from mmkdx.distillation.distiller import Distiller


def to_checkpoint(
    distiller: Distiller, state: dict[str, Tensor], prefix: str, metadata: dict
) -> None:
    """Names the student's tensors as plain mmpretrain does and puts all others under `distill.`."""
    if prefix.endswith('_fsdp_wrapped_module.'):
        raise ValueError(
            'strategy.model_wrapper: FSDP cannot name the tensors of a Distiller; set '
            "model_wrapper=dict(type='FullyShardedDistiller')"
        )
    _rename(state, prefix, 'student.', 'distill.')
    for i, teacher in enumerate(distiller.teachers):
        if teacher.trained_along:
            teacher.state_dict(destination=state, prefix=f'{prefix}distill.teachers.{i}.')
    # The modules' version numbers, which guide the conversion of old files.
    versions = getattr(state, '_metadata', {})
    inner = f'{prefix}student.'
    taken = {key: versions.pop(key) for key in list(versions) if f'{key}.'.startswith(inner)}
    for key, value in taken.items():
        versions[f'{prefix}{key[len(inner) :]}'.rstrip('.')] = value


def from_checkpoint(
    distiller: Distiller, state: dict[str, Tensor], prefix: str, *args: Any
) -> None:
    """Adapts a checkpoint of a distillation or of a plain student, and logs how much of it fits."""
    _rename(state, prefix, 'distill.', 'student.')
    versions = getattr(state, '_metadata', None) or {}
    # Inside another model, the hook of a PlainClassifier does not get these versions
    inner = getattr(distiller.student, '_fsdp_wrapped_module', distiller.student)
    plain = isinstance(inner, PlainClassifier)
    owner = 'student.model' if plain else 'student'
    for key, value in list(versions.items()):
        versions[f'{prefix}{owner}.{key.removeprefix(prefix)}'.rstrip('.')] = value
    for i, teacher in enumerate(distiller.teachers):
        start = f'{prefix}teachers.{i}.'
        keys = [key for key in state if key.startswith(start)]
        if along := {key.removeprefix(start): state.pop(key) for key in keys}:
            teacher.load_state_dict(along)
    student = (inner.model if plain else distiller.student).state_dict(prefix=f'{prefix}student.')
    matched = sum(
        key in state and state[key].shape == value.shape for key, value in student.items()
    )
    if not matched:
        start = f'{prefix}student.'
        first = next((key.removeprefix(start) for key in state if key.startswith(start)), None)
        raise ValueError(
            f'load_from: the checkpoint holds none of the {len(student)} tensors of the student (its '
            f'first is {first!r}); choose a checkpoint of this student'
        )
    print_log(
        f'student: {matched} of {len(student)} tensors match the checkpoint', logger='current'
    )


def _rename(state: dict[str, Tensor], prefix: str, off: str, on: str) -> None:
    """Removes the prefix ``off`` from the names that have it, and adds ``on`` to all others."""
    # All are taken out first, as a part of the student may be called `student`, too
    taken = {key: state.pop(key) for key in list(state) if key.startswith(prefix)}
    for key, value in taken.items():
        name = key.removeprefix(prefix)
        state[prefix + (name.removeprefix(off) if name.startswith(off) else on + name)] = value
