"""Checks the type, finiteness and range of arguments; a ``ValueError`` names the option."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from os import PathLike
from typing import Any


def number(
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    """Checks that a value is a finite number, not a boolean, and returns it.

    Args:
        name (str): The option's name in error messages, such as 'tau'.
        value (Any): The option's value.
        low (float): The least value. Defaults to -inf (no bound).
        high (float): The greatest value. Defaults to inf (no bound).
        open_low (bool): Whether ``low`` itself is refused. Defaults to False.
        open_high (bool): Whether ``high`` itself is refused. Defaults to False.
    """
    return _checked(name, value, Real, 'a finite number', low, high, open_low, open_high)


def positive(name: str, value: Any) -> float:
    """Checks a finite number above 0; see ``number``."""
    return number(name, value, 0, open_low=True)


def integer(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> int:
    """Checks an integer; see ``number``."""
    return _checked(name, value, Integral, 'an integer', low, high)


def weights(**values: Any) -> list[float]:
    """Checks the weights of the parts of a loss: none is below 0, and not all are 0."""
    checked = [number(name, value, 0) for name, value in values.items()]
    if not any(checked):
        raise ValueError(f'{" and ".join(values)} are 0, so nothing is compared')
    return checked


def text(name: str, value: Any, what: str = 'a text') -> str | PathLike:
    """Checks a text or a path; the error message calls it ``what``."""
    if not isinstance(value, (str, PathLike)):
        raise ValueError(f'{name} is {value!r}; it must be {what}')
    return value


def options(name: str, value: Any) -> dict:
    """Checks a dict of options."""
    if not isinstance(value, dict):
        raise ValueError(f'{name} is {value!r}; it must be a dict of options')
    return value


def integers(name: str, value: Any) -> Sequence[int]:
    """Checks a list of integers."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f'{name} is {value!r}; it must be a list of integers')
    return [integer(name, each) for each in value]


def numbers(
    name: str, value: Any, low: float = -math.inf, high: float = math.inf, **bounds: bool
) -> list[float]:
    """Checks a non-empty list of numbers; see ``number``."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise ValueError(f'{name} is {value!r}; it must be a list of numbers')
    return [number(name, each, low, high, **bounds) for each in value]


def flag(name: str, value: Any) -> bool:
    """Checks a boolean."""
    if not isinstance(value, bool):
        raise ValueError(f'{name} is {value!r}; it must be True or False')
    return value


def one_of(name: str, value: Any, choices: Collection[Any]) -> Any:
    """Checks one of several values."""
    # By type as well, since True == 1
    if not any(value is each or (type(value) is type(each) and value == each) for each in choices):
        raise ValueError(f'{name} is {value!r}; it must be one of {", ".join(map(str, choices))}')
    return value


def size(name: str, value: Any, low: int = 1) -> tuple[int, int]:
    """Checks a height and width, or one side of a square, and returns both."""
    sides = [value, value] if isinstance(value, Integral) else value
    if (
        not isinstance(sides, Sequence)
        or len(sides) != 2
        or not all(_is_a(side, Integral) and side >= low for side in sides)
    ):
        raise ValueError(
            f'{name} is {value!r}; it must be an integer of at least {low}, or two of them (height, '
            'width)'
        )
    return int(sides[0]), int(sides[1])


@contextmanager
def errors_named(
    before: str, after: str = '', errors: type[Exception] | tuple = ValueError
) -> Iterator[None]:
    """A context that raises a ``ValueError`` with an error's first line and text around it."""
    try:
        yield
    except errors as error:
        # Not str(error), which puts quotes around the text of a KeyError
        text = str(error.args[0] if error.args else error).partition('\n')[0]
        raise ValueError(f'{before}{text}{after}') from error


def _checked(
    name: str,
    value: Any,
    kind: type,
    word: str,
    low: float,
    high: float,
    open_low: bool = False,
    open_high: bool = False,
) -> Any:
    good = (
        _is_a(value, kind)
        and math.isfinite(value)
        and (low < value or (low == value and not open_low))
        and (value < high or (value == high and not open_high))
    )
    if not good:
        bounds = []
        if low > -math.inf:
            bounds.append(f'{"above" if open_low else "of at least"} {low:g}')
        if high < math.inf:
            bounds.append(f'{"below" if open_high else "of at most"} {high:g}')
        text = ' and '.join(bounds)
        raise ValueError(f'{name} is {value!r}; it must be {word}{text and " " + text}')
    return value


def _is_a(value: Any, kind: type) -> bool:
    # Python takes a boolean for an integer; in a config it is a mistake
    return isinstance(value, kind) and not isinstance(value, bool)
