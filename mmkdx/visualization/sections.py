"""Sections of a report that show further pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import numpy as np


@dataclass
class PictureSection:
    """A section of further pictures.

    Args:
        heading (str): Its headline.
        note (str): What the pictures show.
        pictures (Sequence[tuple[str, np.ndarray]]): What each shows, and the picture, RGB, uint8 of
            shape (H, W, 3).
        keys (Sequence[str]): Names under which a run's visualizer gets the first pictures, with
            '{mode}' for 'val' or 'test'. Defaults to (): none.
    """

    heading: str
    note: str
    pictures: Sequence[tuple[str, np.ndarray]]
    keys: Sequence[str] = ()


@singledispatch
def draw(content: Any, classes: Sequence[str] | None = None) -> PictureSection | None:
    """Draws the content of a metric's ``report_sections``.

    Register a function for a type of content by ``draw.register``. It returns None where there is
    nothing to draw.

    Args:
        content (Any): A ``PictureSection``, or content of a registered type.
        classes (Sequence[str], optional): The names of the classes. Defaults to None (unknown).
    """
    raise TypeError(f'there is no picture of a {type(content).__name__}; register one by draw')


@draw.register
def _(content: PictureSection, classes: Sequence[str] | None = None) -> PictureSection:
    return content
