"""Taps that are named by their path in a model."""

from __future__ import annotations

import difflib
import re

from torch import Tensor

from mmkdx.models.flow import Flow
from mmkdx.models.intercept import Tap
from mmkdx.models.named_taps import NAMED_TAPS, NamedTap, Place

__all__ = ['find_tap', 'parse_tap']

_SYNTAX = re.compile(
    r'(?P<path>\w[\w.]*)(?:@(?P<call>\d+))?(?::(?P<side>in|out))?(?:\[(?P<item>-?\d+)\])?'
)


def find_tap(name: str) -> NamedTap:
    """The tap of a name, or of a path."""
    return NAMED_TAPS.get(name) or PathTap(name)


class PathTap(NamedTap):
    """The value at a path in a model, ``path[@call][:in|:out][[item]]``."""

    def __init__(self, text: str) -> None:
        self.text = text

    def locate(self, flow: Flow) -> Place:
        tap = parse_tap(self.text)
        paths = [path for path, _ in flow.model.named_modules(remove_duplicate=False) if path]
        if tap.path not in paths:
            near = difflib.get_close_matches(tap.path, paths, n=4, cutoff=0.4) or paths[:4]
            raise ValueError(f'has no module {tap.path!r}; near names are {", ".join(near)}')
        return Place(tap)

    def check(self, flow: Flow, place: Place) -> None:
        """Refuses a call that does not exist or is ambiguous, and a value that is no tensor."""
        path, call = place.tap.path, place.tap.call
        calls, value, _ = flow.reading(place.tap)
        if not calls:
            raise ValueError(f'does not call module {path!r} in its forward')
        often = f'calls module {path!r} {calls} times in one forward'
        if call is None and calls > 1:
            raise ValueError(f"{often}; write '{path}@0' to '{path}@{calls - 1}'")
        if call is not None and call >= calls:
            raise ValueError(f'{often}, so the last call is @{calls - 1}')
        if not isinstance(value, Tensor):
            raise ValueError(
                f'holds a {type(value).__name__} and no tensor at {self.text!r}; choose an '
                "element of a tuple, as in 'backbone.stages.3[0]'"
            )


def parse_tap(text: str) -> Tap:
    """Parses the text of a tap; raises a ValueError if it does not have the form of ``Tap``."""
    match = _SYNTAX.fullmatch(text)
    if not match:
        raise ValueError(
            f"cannot have a tap {text!r}; write the name of a tap, such as 'logits', or "
            "path[@call][:in|:out][[item]], as in 'backbone.layer3' or 'head.fc:in'"
        )
    path, call, side, item = match.group('path', 'call', 'side', 'item')
    return Tap(path, call and int(call), side or 'out', -1 if item is None else int(item))
