"""Checks that losses, models and values fit together.

Call a check as ``checks.head(term, ...)``. Each function returns None, or raises a ``ValueError``
with one sentence that names the config key.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmkdx.distillation.places import Labels, names_of
from mmkdx.functional import ClassMaps
from mmkdx.models.families import describe, image_channels
from mmkdx.models.flow import Flow
from mmkdx.models.path_tap import find_tap

if TYPE_CHECKING:
    from mmkdx.distillation.terms import Term

#: The attributes of a loss that a term reads; see ``mmkdx.losses.base.DistillLoss``.
CONTRACT = ('compares', 'needs', 'connect', 'check', 'locate', 'logs')

#: The shapes that a loss takes if it compares classes one by one.
SHAPES = dict(logits='(N, K)', class_maps='(N, K, H, W)')


def terms(
    terms: Any, teachers: Sequence[nn.Module], student_weight: float, student: nn.Module
) -> None:
    """Refuses wrong or missing terms, and a student that cannot have a loss of its own."""
    if not isinstance(terms, dict | None) or (teachers and not terms):
        raise ValueError(
            f'terms is {terms!r}; it must be a dict of terms'
            + ('; a model with a teacher needs at least one' if teachers else '')
        )
    if not terms and not student_weight:
        raise ValueError('student_weight is 0 and there are no terms, so nothing is trained')
    if student_weight and describe(student).num_classes == 0:
        raise ValueError(
            'student has no classifier, so it has no loss of its own: set student_weight=0, or '
            "the number of classes in the student's config"
        )


def teacher_config(config: Mapping, kind: type) -> None:
    """Refuses a teacher's config that has no model, or arguments that ``kind`` does not take."""
    known = list(inspect.signature(kind).parameters)
    if set(config) - set(known) or 'model' not in config:
        raise ValueError(
            f'teacher takes {", ".join(known)}, or a type; it has {", ".join(map(str, config))}'
        )


def term_config(name: str, config: Any) -> None:
    """Refuses a term's config that is not a dict, lacks a key, or has a name with 'loss'."""
    if not isinstance(config, dict):
        raise ValueError(
            f'terms.{name} is {config!r}; it must be a dict of the arguments of a term'
        )
    for key in ('type', 'at'):
        if key not in config:
            raise ValueError(
                f'terms.{name} has no {key!r}; a term needs a loss (type) and a tap (at)'
            )
    for key in ('schedule', 'teacher_target'):
        if not isinstance(config.get(key), dict | None):
            raise ValueError(
                f'terms.{name}: {key} is {config[key]!r}; it must be a dict of arguments'
            )
    if 'loss' in name:
        raise ValueError(
            f"terms.{name}: a term's name must not contain 'loss', because mmengine adds up "
            "all values with 'loss' in their names"
        )


def weight(key: str, value: float, allow_negative: bool) -> None:
    """Refuses a weight below 0 unless ``allow_negative`` is True."""
    if value < 0 and not allow_negative:
        raise ValueError(
            f'{key} is {value:g}, which trains the student away from what the loss asks for; set '
            'allow_negative=True in the term if you mean it'
        )


def weight_options(given: Mapping, known: Sequence[str]) -> None:
    """Refuses options that a kind of weight does not have."""
    if unknown := sorted(set(map(str, given)) - set(known)):
        raise ValueError(f'weight has {", ".join(unknown)}; it takes {", ".join(known)}')


def measured_tap(term: Term, student_weight: float) -> None:
    """Refuses a weight whose gradients cannot be compared at its tap."""
    own_loss(term, student_weight > 0)
    tap = term.weight.at
    if not isinstance(tap, str) or find_tap(tap).of_weights:
        what = 'weights of the student' if isinstance(tap, str) else 'no single tensor'
        raise ValueError(
            f'{term.key}.weight.at: gradients are compared at one tap, and {tap!r} holds {what}; set at '
            "in the weight's options, such as at='features'"
        )


def own_loss(term: Term, there: bool) -> None:
    """Refuses to compare a term's gradient with the student's own loss if there is none."""
    if not there:
        raise ValueError(
            f"{term.key}.weight compares the term's gradient with that of the student's own loss, and "
            'student_weight is 0; set a number as weight, or student_weight above 0'
        )


def measured(term: Term, value: Tensor) -> None:
    """Refuses a tap that has no gradient."""
    if not value.requires_grad:
        raise ValueError(
            f'{term.key}.weight: the value at tap {term.weight.at!r} is made of frozen parameters, so '
            'there is no gradient to compare'
        )


def reached(term: Term, own: bool, distilled: bool) -> None:
    """Refuses a tap on which one of the two losses does not depend."""
    if not (own and distilled):
        what = f'{term.loss_name} of the term' if own else "the student's own loss"
        raise ValueError(
            f'{term.key}.weight: {what} does not depend on what is at tap {term.weight.at!r}; set at in '
            "the weight's options to a tap before both losses, such as 'features' or a module's path"
        )


def places(term: Term) -> None:
    """Refuses lists of taps for a loss of single taps, and projections that a loss cannot use."""
    taps = (term.student_tap, term.teacher_tap)
    if term.compares != 'anything' and any(isinstance(tap, tuple) for tap in taps):
        raise ValueError(f'at is {taps!r}, and {term.loss_name} takes single taps, not lists')
    if term.bridge == 'orthogonal' and not (term.taught and term.compares == 'shape'):
        raise ValueError(
            "adapter is 'orthogonal', which projects the student's features to the teacher's, and "
            f'{term.loss_name} does not compare features of one shape; remove it'
        )


def contract(term: Term) -> None:
    """Refuses a loss that does not declare what it compares and needs."""
    if not all(hasattr(term.loss, each) for each in CONTRACT):
        taken = tuple(inspect.signature(term.loss.forward).parameters)[1:]
        raise ValueError(
            f'{term.loss_name} does not declare what it needs; derive it from '
            f"mmkdx.losses.base.DistillLoss, set compares (such as 'shape') and needs={taken}, and "
            'let its forward take exactly that after student'
        )


def teacher_target(term: Term) -> None:
    """Refuses a ``teacher_target`` for a loss without the softmax of a teacher's logits."""
    if not term.taught or term.compares != 'logits' or term.activation != 'softmax':
        raise ValueError(
            "teacher_target needs a loss that takes the softmax of a teacher's logits, and "
            f'{term.loss_name} does not'
        )


def head(term: Term, owner: str, activation: str) -> None:
    """Refuses a softmax loss for a model with a sigmoid head, and the reverse."""
    if term.activation not in (None, activation):
        advice = "type='KLDivLoss'" + (", activation='sigmoid'" if activation == 'sigmoid' else '')
        raise ValueError(
            f'{term.key}: {term.loss_name} takes the {term.activation} of logits, and the {owner} has '
            f'a {activation} head (one logit or several labels mean sigmoid); use dict({advice})'
        )


def teacher(term: Term, teachers: int) -> None:
    """Refuses a term whose teacher does not exist."""
    if term.taught and not teachers:
        raise ValueError(f'{term.key} compares with a teacher and there is none: set teacher')
    if term.taught and term.teacher >= teachers:
        raise ValueError(
            f'{term.key}.teacher is {term.teacher} and the last of the {teachers} teachers is '
            f'{teachers - 1}'
        )


def values(term: Term, values: Sequence[Any]) -> None:
    """Refuses values of another kind or shape than a loss compares, or with different classes."""
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
            f'{term.loss_name} needs the same classes, so set student.head.num_classes (num_classes '
            'of a network of another library), map classes by teacher.classes, or choose another teacher'
        )


def loss(term: Term, values: Sequence[Any], size: Sequence[int] | None, models: Mapping) -> None:
    """Lets a loss refuse what it cannot compare; one that needs the teacher gets a test image."""
    given = {}
    if 'teacher_model' in term.needs and size is not None:
        # Random, as a constant image may change no logit; the global random state stays as it is
        channels = image_channels(models['model'], 3)
        image = torch.randn(1, channels, *size, generator=torch.Generator().manual_seed(0))
        given = dict(models, inputs=image.to(next(models['model'].parameters())))
        given = {need: value for need, value in given.items() if need in term.needs}
    term.loss.check(*values, **given)


def maps(term: Term, maps: Any, student: nn.Module, images: Tensor) -> None:
    """Refuses features (N, C, H, W) for a loss of class maps if C is not the number of classes."""
    if term.compares != 'class_maps' or not isinstance(maps, Tensor) or maps.dim() != 4:
        return
    classes = Flow(describe(student), images).logits.shape[1]
    if maps.shape[1] != classes:
        raise ValueError(
            f'{term.key}.at: {term.loss_name} compares class maps, and tap {term.student_tap!r} holds '
            f"{maps.shape[1]} channels for the student's {classes} classes; use the tap 'cam'"
        )


def labels(labels: Labels | None, activation: str) -> None:
    """Refuses a student's own loss without labels, or softmax with several labels for an image.

    mmpretrain's heads would concatenate several labels, and so assign them to other images.
    """
    if labels is None:
        raise ValueError(
            'student: its own loss needs the labels of the images, and the data samples have none; set '
            'student_weight=0 to train by the terms alone'
        )
    if isinstance(labels, list) and activation == 'softmax':
        raise ValueError(
            f'student: its softmax head takes one label an image, and {_counts(labels)}; use a '
            'head for several labels, such as MultiLabelLinearClsHead'
        )


def target(term: Term, labels: Labels | None) -> None:
    """Refuses labels that a loss cannot take, and a batch without labels."""
    need = f'{term.key}: {term.loss_name} needs'
    if labels is None:
        raise ValueError(f'{need} the labels of the images, and the data samples have none')
    if term.activation == 'sigmoid':
        return
    if isinstance(labels, list):
        raise ValueError(
            f"{need} one label an image, and {_counts(labels)}; use dict(type='KLDivLoss', "
            "activation='sigmoid')"
        )
    if 'class' in term.loss.needs and labels.dim() > 1:
        raise ValueError(
            f'{need} one class an image and the batches have mixed or soft labels; remove '
            'batch_augments (train_cfg.augments of the student, or data_preprocessor) or the term'
        )


def index(term: Term, positions: Tensor | None) -> None:
    """Refuses a batch without positions in the data set if a loss needs them."""
    if 'index' in term.needs and positions is None:
        raise ValueError(
            f'{term.key}: {term.loss_name} needs the position of each sample in the data set, and the '
            "data samples have no 'sample_idx'; let the dataset's PackInputs keep it (meta_keys)"
        )


def scalar(term: Term, loss: Any) -> None:
    """Refuses a loss that is not a scalar tensor."""
    if not isinstance(loss, Tensor) or loss.dim():
        tensor = isinstance(loss, Tensor)
        kind = f'tensor of shape {tuple(loss.shape)}' if tensor else type(loss).__name__
        raise ValueError(f'{term.loss_name} returns a {kind}; a loss returns a scalar tensor')


def gradients(term: Term, student: Mapping[str, Any], loss: Tensor) -> None:
    """Refuses a term that trains nothing, for example with frozen layers or detached values."""
    taps = names_of(term.student_tap)
    dead = all(not getattr(student[tap], 'requires_grad', True) for tap in taps)
    if dead or not loss.requires_grad:
        what = f'the value at tap {", ".join(map(repr, taps))}' if dead else 'its loss'
        raise ValueError(
            f'{term.key}: no gradient flows from it into the student, so it would train nothing; {what} '
            'is detached or made of frozen parameters'
        )


def _counts(labels: list[Tensor]) -> str:
    return f'the images of the batch have {", ".join(str(len(each)) for each in labels[:8])} labels'
