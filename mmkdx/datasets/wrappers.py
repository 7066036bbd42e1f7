"""What a data set is, through any nesting of wrappers: positions, pipeline, labels, class names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def locate(dataset: Any, index: int) -> tuple[Any, int]:
    """The data set without wrappers that holds a sample, and the sample's index in it."""
    raise NotImplementedError


def positions(dataset: Any) -> np.ndarray:
    """For each index of a data set the ``sample_idx`` that its data sample has, of shape (len, ).

    ``sample_idx`` says which image it is, the same for all copies that a wrapper makes, and different
    for different images.
    """
    raise NotImplementedError


def labels(dataset: Any) -> np.ndarray:
    """The class of each index, of shape (len, ).

    Raises:
        ValueError: If a sample has no label, or several.
    """
    raise NotImplementedError


def class_names(dataset: Any) -> tuple[str, ...] | None:
    """The names of the classes; None where the data set has none."""
    raise NotImplementedError


def pipeline(dataset: Any) -> Any:
    """The transforms (a ``Compose``) of a data set.

    Raises:
        ValueError: If it has none, or its parts have different ones.
    """
    raise NotImplementedError


def item(dataset: Any, index: int, transforms: Sequence | None = None) -> Any:
    """A sample, through other transforms than the data set's own where they are given."""
    raise NotImplementedError
