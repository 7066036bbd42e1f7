"""The factor on a term's weight over the course of training."""

from __future__ import annotations

import logging
import math

from mmengine.logging import MessageHub, print_log

from mmkdx.arguments import errors_named, flag, integer, number, one_of, options


class WeightSchedule:
    """Moves a factor from one value to another between two points of training.

    The arguments are those of mmengine's parameter schedulers. The warm-up ``min(epoch / W, 1)`` of many
    papers, with epochs counted from 1, is ``dict(type='linear', start_factor=1 / W, end=W)``. The state
    is the runner's own epoch and iteration, so a resumed run continues where it stopped.

    Args:
        type (str): The curve: 'linear', 'cosine' (half a period) or 'sigmoid'. 'sigmoid' is
            exp(-5 (1 - t)^2) of the progress t, as in the code of ONE (Lan et al., NeurIPS 2018).
            It begins at 0.0067.
        begin (int): The epoch or iteration, counted from 0, where the change begins. With -1 the
            first one is already changed. Defaults to 0.
        end (int): The epoch or iteration before which the change is complete.
        start_factor (float): The factor up to ``begin``. Defaults to 0.
        end_factor (float): The factor from ``end - 1`` on. Defaults to 1.
        by_epoch (bool): Whether ``begin`` and ``end`` count epochs, else iterations. Defaults to True.

    Raises:
        ValueError: If an argument is out of its range or no step lies between ``begin`` and ``end``.
    """

    def __init__(
        self,
        type: str,
        *,
        end: int,
        begin: int = 0,
        start_factor: float = 0.0,
        end_factor: float = 1.0,
        by_epoch: bool = True,
    ) -> None:
        self.type = one_of('schedule.type', type, ('linear', 'cosine', 'sigmoid'))
        self.begin = integer('schedule.begin', begin, -1)
        self.end = integer('schedule.end', end)
        if end <= begin + 1:
            raise ValueError(
                f'schedule.end ({end}) must be at least schedule.begin + 2 ({begin + 2})'
            )
        self.start_factor = number('schedule.start_factor', start_factor)
        self.end_factor = number('schedule.end_factor', end_factor)
        self.by_epoch = flag('schedule.by_epoch', by_epoch)
        self._warned = False

    def at(self, step: int) -> float:
        """The factor at an epoch or iteration, counted from 0."""
        last = self.end - 1
        progress = 1.0 if step >= last else max(step - self.begin, 0) / (last - self.begin)
        if self.type == 'cosine':
            progress = (1 - math.cos(math.pi * progress)) / 2
        elif self.type == 'sigmoid' and step >= self.begin:
            progress = math.exp(-5 * (1 - progress) ** 2)
        return self.start_factor + (self.end_factor - self.start_factor) * progress

    def __call__(self) -> float:
        """The current factor by the runner's counters; without a runner, the one at the start."""
        hub = MessageHub.get_current_instance()
        if self.by_epoch and hub.get_info('max_epochs') == 1 and not self._warned:
            self._warned = True
            print_log(
                'A schedule of a term counts epochs in a run of one epoch, so that its factor stays '
                f'{self.at(0):g}: set schedule.by_epoch=False to count iterations.',
                logger='current',
                level=logging.WARNING,
            )
        return self.at(hub.get_info('epoch' if self.by_epoch else 'iter', 0))

    def __repr__(self) -> str:
        unit = 'epochs' if self.by_epoch else 'iterations'
        return (
            f'{self.type} {self.start_factor:g} to {self.end_factor:g} over '
            f'{unit} {self.begin} to {self.end}'
        )


def schedule(name: str, arguments: dict) -> WeightSchedule:
    """Builds a schedule from its arguments; errors name the option that holds them.

    Raises:
        ValueError: If an argument is missing, unknown or out of its range.
    """
    try:
        with errors_named(f'{name}: ', errors=TypeError):
            return WeightSchedule(**options(name, arguments))
    except ValueError as error:
        raise ValueError(str(error).replace('schedule.', f'{name}.')) from error
