"""What is refused: losses, models and values that do not belong together."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mmkdx.distillation.labels import Labels, label_counts
from mmkdx.distillation.places import names_of
from mmkdx.functional import ClassMaps

if TYPE_CHECKING:
    from mmkdx.distillation.terms import Term

#: What a term reads of a loss; see ``mmkdx.losses.base.DistillLoss``.
CONTRACT = ('compares', 'needs', 'connect', 'check', 'locate', 'logs')

#: The shapes of what a loss compares, where classes are compared one by one.
SHAPES = dict(logits='(N, K)', class_maps='(N, K, H, W)')


def check_contract(term: Term) -> None:
    """Refuses a loss that does not declare what it compares and needs."""
    if not all(hasattr(term.loss, each) for each in CONTRACT):
        taken = tuple(inspect.signature(term.loss.forward).parameters)[1:]
        raise ValueError(
            f'{term.loss_name} does not declare what it needs; derive it from '
            f"mmkdx.losses.base.DistillLoss, set compares (such as 'shape') and needs={taken}, and "
            'let its forward take exactly that after student'
        )


def check_teacher_target(term: Term) -> None:
    """Refuses a ``teacher_target`` beside a loss that takes no softmax of a teacher's logits."""
    if not term.taught or term.compares != 'logits' or term.activation != 'softmax':
        raise ValueError(
            'teacher_target is for the logits of a teacher, of which the loss takes the softmax, and '
            f'{term.loss_name} takes none'
        )


def check_head(term: Term, owner: str, activation: str) -> None:
    """Refuses a loss of softmax probabilities for a model of sigmoids, or the other way round."""
    if term.activation not in (None, activation):
        advice = "type='KLDivLoss'" + (", activation='sigmoid'" if activation == 'sigmoid' else '')
        raise ValueError(
            f'{term.key}: {term.loss_name} takes the {term.activation} of logits, and the {owner} has '
            f'a {activation} head (of one logit or several labels, if it is sigmoid); use dict({advice})'
        )


def check_teacher(term: Term, teachers: int) -> None:
    """Refuses a term that compares with a teacher that is not there."""
    if term.taught and not teachers:
        raise ValueError(f'{term.key} compares with a teacher and there is none: set teacher')
    if term.taught and term.teacher >= teachers:
        raise ValueError(
            f'{term.key}.teacher is {term.teacher} and the last of the {teachers} teachers is '
            f'{teachers - 1}'
        )


def check_values(term: Term, values: Sequence[Any]) -> None:
    """Refuses values that are not of the kind that a loss compares, or of other classes."""
    if term.compares in ('shape', 'map_size') and any(isinstance(v, ClassMaps) for v in values):
        raise ValueError(
            f"{term.key}.at: {term.loss_name} compares tensors, and tap 'cam' holds class maps"
        )
    if term.compares not in SHAPES:
        return
    shape = SHAPES[term.compares]
    for tap, value in zip((term.student_tap, term.teacher_tap), values):
        if len(value.shape) != len(shape.split(',')):
            raise ValueError(
                f'{term.key}.at: {term.loss_name} compares {term.compares.replace("_", " ")} of shape '
                f'{shape}, and tap {tap!r} holds {tuple(value.shape)}'
            )
    classes = [value.shape[1] for value in values]
    if len(set(classes)) > 1:
        raise ValueError(
            f'{term.key}.at: the student has {classes[0]} classes and the teacher {classes[1]}; '
            f'{term.loss_name} needs the same classes, so set student.head.num_classes or choose '
            'another teacher'
        )


def check_maps(term: Term, maps: Tensor, classes: int) -> None:
    """Refuses a student's features (N, C, H, W) where the maps of its classes should be."""
    if maps.dim() == 4 and maps.shape[1] != classes:
        raise ValueError(
            f'{term.key}.at: {term.loss_name} compares class maps, and tap {term.student_tap!r} holds '
            f"{maps.shape[1]} channels for the student's {classes} classes; use the tap 'cam'"
        )


def check_labels(labels: Labels | None, activation: str) -> None:
    """Refuses images of several labels, or none, for a student's own softmax head.

    mmpretrain's heads would join the labels, and so give them to other images.
    """
    if isinstance(labels, list) and activation == 'softmax':
        raise ValueError(
            f'student: its softmax head takes one label an image, and {label_counts(labels)}; use a '
            'head for several labels, such as MultiLabelLinearClsHead'
        )


def check_gradients(term: Term, student: Mapping[str, Any], loss: Tensor) -> None:
    """Refuses a term that would train nothing, as with frozen layers or a detached explanation."""
    taps = names_of(term.student_tap)
    dead = all(not getattr(student[tap], 'requires_grad', True) for tap in taps)
    if dead or not loss.requires_grad:
        what = f'what stands at tap {", ".join(map(repr, taps))}' if dead else 'its loss'
        raise ValueError(
            f'{term.key}: no gradient flows from it into the student, so it would train nothing; {what} '
            'is detached or made of frozen parameters'
        )
