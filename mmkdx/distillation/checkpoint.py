"""How the tensors of a distiller are named in a checkpoint: the student's as in plain mmpretrain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmengine.logging import print_log
from torch import Tensor

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
    for key in [key for key in state if key.startswith(prefix)]:
        rest = key.removeprefix(prefix)
        student = rest.startswith('student.')
        state[prefix + (rest.removeprefix('student.') if student else f'distill.{rest}')] = (
            state.pop(key)
        )
    for i, teacher in enumerate(distiller.teachers):
        if teacher.trained_along:
            for key, value in teacher.state_dict().items():
                state[f'{prefix}distill.teachers.{i}.{key}'] = value
    # The version numbers of the modules, which guide the conversion of old files.
    versions = getattr(state, '_metadata', {})
    for key in [key for key in versions if key.startswith(f'{prefix}student.')]:
        versions[prefix + key.removeprefix(f'{prefix}student.')] = versions.pop(key)


def from_checkpoint(
    distiller: Distiller, state: dict[str, Tensor], prefix: str, *args: Any
) -> None:
    """Takes a checkpoint of a distillation or a plain student's, and says how much of it fits."""
    for key in [key for key in state if key.startswith(prefix)]:
        rest = key.removeprefix(prefix)
        own = rest.startswith('distill.')
        state[prefix + (rest.removeprefix('distill.') if own else f'student.{rest}')] = state.pop(
            key
        )
    versions = getattr(state, '_metadata', None) or {}
    for key in list(versions):
        versions.setdefault(f'{prefix}student.{key.removeprefix(prefix)}', versions[key])
    for i, teacher in enumerate(distiller.teachers):
        start = f'{prefix}teachers.{i}.'
        along = {
            key.removeprefix(start): state.pop(key) for key in list(state) if key.startswith(start)
        }
        if along:
            teacher.load_state_dict(along)
    student = distiller.student.state_dict()
    matched = sum(
        f'{prefix}student.{key}' in state and state[f'{prefix}student.{key}'].shape == value.shape
        for key, value in student.items()
    )
    if not matched:
        first = next((key for key in state if key.startswith(f'{prefix}student.')), None)
        raise ValueError(
            f'load_from: the checkpoint holds none of the {len(student)} tensors of the student (its '
            f'first is {first and first.removeprefix(prefix + "student.")!r}); choose a checkpoint of '
            'this student'
        )
    print_log(
        f'student: {matched} of {len(student)} tensors match the checkpoint', logger='current'
    )
