"""Stops training when a loss is no longer finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmkdx.functional import full_precision

#: The advice of the message, by the first part of a value's name.
ADVICE = dict(
    images='look at data_preprocessor (a std of 0) and at the data',
    student='lower the learning rate, or look at the labels and the student',
    terms='lower its weight or the learning rate, or look at what its taps hold',
)


class FiniteWatch:
    """Stops training with the name of the first value that is not finite.

    On an accelerator the flags are copied in the background. They are read a step or two later, so
    the check never waits for the device.
    """

    def __init__(self) -> None:
        self._pending: tuple[tuple[str, ...], Tensor, torch.cuda.Event | None] | None = None

    def __call__(self, values: Mapping[str, Any]) -> None:
        """Checks the values of a step.

        Args:
            values (Mapping[str, Any]): Tensors on one device, by their names in messages: 'images',
                'student.<key>' and 'terms.<name>'. A value must come after the values that it is
                computed from. What is not a tensor is ignored.

        Raises:
            FloatingPointError: If a value is NaN or infinite, or was a step or two ago.
        """
        self._report()
        if self._pending is None and values:
            # A sum is one pass over the images, and keeps NaN and infinity
            values = {name: each for name, each in values.items() if isinstance(each, Tensor)}
            flags = [full_precision(each.detach()).sum().isfinite() for each in values.values()]
            flags, event = torch.stack(flags), None
            if flags.is_cuda:
                flags = flags.to('cpu', non_blocking=True)
                event = torch.cuda.Event()
                event.record()
            self._pending = tuple(values), flags, event
        self._report()

    def _report(self) -> None:
        if self._pending is None:
            return
        names, flags, event = self._pending
        if event is not None and not event.query():
            return
        self._pending = None
        bad = next((name for name, finite in zip(names, flags.tolist()) if not finite), None)
        if bad:
            advice = ADVICE[bad.partition('.')[0]]
            raise FloatingPointError(f'{bad} became NaN or infinite; {advice}')

    def __deepcopy__(self, memo: dict) -> FiniteWatch:
        return FiniteWatch()  # CUDA events cannot be copied
