"""The taps that a term reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmkdx.functional import ClassMaps

#: One tap, or several whose values come as a list.
Place = str | tuple[str, ...]
#: Classes (N, ); class probabilities (N, K); or a list of each image's class indices, if an image
#: does not have exactly one.
Labels = Tensor | list[Tensor]

#: The value at a place; None if there is no teacher.
Value = Tensor | ClassMaps | list | None


def places(at: Any, taught: bool, loss: str) -> tuple[Place, Place | None]:
    """The student's and the teacher's place in a term's ``at``; None without a teacher."""
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
    """The shape, or shapes, of a place's value as text."""
    shapes = value if isinstance(value, list) else [value]
    return ', '.join(str(tuple(each.shape)) for each in shapes)
