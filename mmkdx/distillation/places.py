"""Where a term reads, and whether its loss takes what is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from mmkdx.functional import ClassMaps

if TYPE_CHECKING:
    from mmkdx.distillation.terms import Term

#: One tap, or several whose values come as a list.
Place = str | tuple[str, ...]
#: What is read there; None where there is no teacher.
Value = Tensor | ClassMaps | list | None

#: The shapes of what a loss compares.
SHAPES = dict(logits='(N, K)', class_maps='(N, K, H, W)')


def places(at: Any, taught: bool, loss: str) -> tuple[Place, Place | None]:
    """The student's place and the teacher's, None without a teacher, that a term's ``at`` names."""
    pair = (at, None) if not taught else (at, at) if isinstance(at, str) else at
    is_pair = isinstance(pair, (list, tuple)) and len(pair) == 2
    if not is_pair or not all(map(_is_place, pair[: 1 + taught])):
        form = 'a tap, or the pair (student tap, teacher tap), each a tap or a list of taps'
        if not taught:
            form = f'a tap or a list of taps, as {loss} compares with no teacher'
        raise ValueError(f'at is {at!r}; it must be {form}')
    return tuple(tuple(place) if isinstance(place, list) else place for place in pair)


def _is_place(place: Any) -> bool:
    taps = [place] if isinstance(place, str) else place
    return isinstance(taps, (list, tuple)) and bool(taps) and all(isinstance(t, str) for t in taps)


def names_of(place: Place | None) -> tuple[str, ...]:
    """The taps of a place."""
    return (place,) if isinstance(place, str) else place or ()


def value_at(values: Mapping[str, Any], place: Place | None) -> Value:
    """The value at a place, or the list of several taps' values; None without a place."""
    if place is None:
        return None
    return values[place] if isinstance(place, str) else [values[tap] for tap in place]


def shape_text(value: Value) -> str:
    """The shape of what is at a place, as text."""
    shapes = value if isinstance(value, list) else [value]
    return ', '.join(str(tuple(each.shape)) for each in shapes)


def check_classes(term: Term, values: Sequence[Tensor | ClassMaps]) -> None:
    """Refuses values that are no logits or class maps, or have different numbers of classes."""
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


def check_head(term: Term, owner: str, activation: str) -> None:
    """Refuses a loss of softmax probabilities for a model of sigmoids, or the other way round."""
    taken = activation_of(term.loss)
    if taken not in (None, activation):
        advice = "type='KLDivLoss'" + (", activation='sigmoid'" if activation == 'sigmoid' else '')
        raise ValueError(
            f'{term.key}: {term.loss_name} takes the {taken} of logits, and the {owner} has a '
            f'{activation} head (of one logit or several labels, if it is sigmoid); use dict({advice})'
        )


def activation_of(loss: nn.Module) -> str | None:
    """What turns logits into probabilities in a loss; None where it makes none."""
    return getattr(loss, 'activation', 'softmax' if loss.compares == 'logits' else None)
