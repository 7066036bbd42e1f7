"""What a loss declares, against what it gets: refusals before training."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from torch import Tensor, nn

from mmkdx.functional import ClassMaps

#: What a term reads of a loss; see ``mmkdx.losses.base.DistillLoss``.
CONTRACT = ('compares', 'needs', 'connect', 'check', 'locate', 'logs')

AXES = dict(logits=('N', 'K'), class_maps=('N', 'K', 'H', 'W'))


def check_declared(loss: nn.Module) -> None:
    """Refuses a loss that does not declare what it takes.

    Raises:
        ValueError: If it lacks a name of the contract.
    """
    if not all(hasattr(loss, name) for name in CONTRACT):
        names = tuple(inspect.signature(loss.forward).parameters)[1:]
        raise ValueError(
            f'{type(loss).__name__} does not declare what it needs; derive it from '
            f"mmkdx.losses.base.DistillLoss, set compares (such as 'shape') and needs={names}, and let "
            'its forward take exactly that after student'
        )


def check_classes(
    key: str, loss: nn.Module, taps: Sequence[str], values: Sequence[Tensor | ClassMaps]
) -> None:
    """Refuses values that are no logits or class maps, or have other classes than each other.

    Args:
        key (str): The config key of the term.
        loss (nn.Module): A loss that compares logits or class maps.
        taps (Sequence[str]): The student's tap and the teacher's.
        values (Sequence[Tensor | ClassMaps]): What the student's tap holds, and the teacher's if there
            is one.

    Raises:
        ValueError: If it cannot compare these.
    """
    name, axes = type(loss).__name__, AXES[loss.compares]
    for tap, value in zip(taps, values):
        if len(value.shape) != len(axes):
            raise ValueError(
                f'{key}.at: {name} compares {loss.compares.replace("_", " ")} of shape '
                f'({", ".join(axes)}), and tap {tap!r} holds {tuple(value.shape)}'
            )
    classes = [value.shape[1] for value in values]
    if len(set(classes)) > 1:
        raise ValueError(
            f'{key}.at: the student has {classes[0]} classes and the teacher {classes[1]}; {name} needs '
            'the same classes, so set student.head.num_classes or choose another teacher'
        )


def check_maps(key: str, loss: nn.Module, tap: str, maps: Tensor, classes: int) -> None:
    """Refuses features where class maps are to be: they have another number of channels.

    Args:
        key (str): The config key of the term.
        loss (nn.Module): A loss that compares class maps.
        tap (str): The student's tap.
        maps (Tensor): What it holds.
        classes (int): How many classes the student has.

    Raises:
        ValueError: If the loss compares class maps and these are none.
    """
    if maps.dim() == 4 and maps.shape[1] != classes:
        raise ValueError(
            f'{key}.at: {type(loss).__name__} compares class maps, and tap {tap!r} holds '
            f"{maps.shape[1]} channels for the student's {classes} classes; use the tap 'cam'"
        )


def check_head(key: str, loss: nn.Module, model: str, activation: str) -> None:
    """Refuses a loss of softmax probabilities for a model of sigmoids, or the other way round.

    Args:
        key (str): The config key of the term.
        loss (nn.Module): The loss.
        model (str): How the message calls the model: 'student' or 'teacher'.
        activation (str): What turns the model's logits into probabilities.

    Raises:
        ValueError: If the loss takes other probabilities.
    """
    taken = activation_of(loss)
    if taken not in (None, activation):
        advice = "type='KLDivLoss'" + (", activation='sigmoid'" if activation == 'sigmoid' else '')
        raise ValueError(
            f'{key}: {type(loss).__name__} takes the {taken} of logits, and the {model} has a '
            f'{activation} head (of one logit or several labels, if it is sigmoid); use dict({advice})'
        )


def activation_of(loss: nn.Module) -> str | None:
    """What turns logits into probabilities in a loss; None where it makes none."""
    return getattr(loss, 'activation', 'softmax' if loss.compares == 'logits' else None)
