"""The number that multiplies a term's loss: constant, scheduled, or set by gradient norms."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.logging import MessageHub, print_log
from torch import Tensor, nn

from mmkdx.arguments import errors_named, flag, integer, number, one_of, positive, text
from mmkdx.distillation import checks
from mmkdx.distillation.balance import LossScale, gradient_ratio
from mmkdx.functional.schedules import schedule as build_schedule

#: What weights log, each as ``<term>.<key>``.
MEASURED = ('weight', 'cosine', 'conflict', 'grad_ratio')


class TermWeight(nn.Module):
    """A constant weight, whose schedule multiplies it.

    Args:
        schedule (dict, optional): The arguments of ``WeightSchedule``. Defaults to None (constant).
        value (float): The weight. Defaults to 1.
        at (str, optional): The student's tap where gradients are compared. Defaults to None: the tap of
            the term.
        cosine_interval (int): Every how many iterations the gradients of the term and of the student's
            own losses are compared. Defaults to 0 (never).
    """

    #: The options of its dict in a config.
    options: tuple[str, ...] = ('type', 'value', 'at', 'cosine_interval')

    def __init__(
        self,
        schedule: dict | None = None,
        value: float = 1.0,
        at: str | None = None,
        cosine_interval: int = 0,
    ) -> None:
        super().__init__()
        #: What multiplies the loss beside the schedule: a tensor while it is still being measured.
        self.number: float | Tensor = value
        self.at = at if at is None else text('weight.at', at, 'one tap of the student')
        self.cosine_interval = integer('weight.cosine_interval', cosine_interval, 0)
        self.schedule = None if schedule is None else build_schedule('schedule', schedule)
        self.scale = LossScale()
        #: Scalars that are logged as ``<term>.<key>``.
        self.logs: dict[str, Tensor] = {}

    def forward(self, loss: Tensor) -> Tensor:
        """The weighted loss."""
        factor = self.number.to(loss) if isinstance(self.number, Tensor) else self.number
        return loss * (factor * (self.schedule() if self.schedule else 1.0))

    @property
    def measures(self) -> bool:
        """Whether gradients are compared in some step."""
        return self.cosine_interval > 0

    @property
    def is_due(self) -> bool:
        """Whether gradients are compared in this step, by the runner's counter of iterations."""
        iteration = MessageHub.get_current_instance().get_info('iter', 0)
        return self.cosine_interval > 0 and iteration % self.cosine_interval == 0

    def skip(self) -> None:
        """Takes note of a training step in which no gradients are compared."""

    def take(self, key: str, sums: Tensor) -> None:
        """Takes what is measured in a step.

        Args:
            key (str): The term's key in the config, for messages.
            sums (Tensor): The squared norm of the gradient of the student's own losses, that of the
                term's gradient, their dot product, the number of rows in conflict and of all rows; fp64
                of shape (5, ). They are sums over all processes.
        """
        ratio = gradient_ratio(*sums[:2])
        cosine = sums[2] / (sums[0].sqrt() * sums[1].sqrt())
        found = dict(cosine=cosine.clamp(-1, 1), conflict=sums[3] / sums[4], grad_ratio=ratio)
        for name, value in found.items():
            # A step without a gradient says nothing; one NaN would hide the others of a mean
            last = self.logs.get(name, value)
            self.logs[name] = torch.where(ratio.isnan(), last, value)
        self.logs.setdefault('weight', torch.as_tensor(self.number))

    def __str__(self) -> str:
        return f'{self.number:g}'


class AutoWeight(TermWeight):
    """A weight that gives the term's gradient ``ratio`` times the norm of that of the label loss.

    Both norms are taken at one tap of the student, in one of every few training steps. The weight is
    ``ratio`` times the lower median of the measured ratios of norms. After some measurements it is
    frozen. It is the same in all processes. A checkpoint holds the ratios, so a resumed run continues
    exactly.

    Args:
        schedule (dict, optional): The arguments of ``WeightSchedule``, which multiplies the weight and
            does not change what is measured. Defaults to None (constant).
        ratio (float): The norm of the term's gradient, in norms of that of the student's own losses.
            Defaults to 1.
        steps (int): The number of training steps that are measured. Defaults to 20.
        interval (int): Every how many training steps one is measured, so that the mean step stays cheap.
            Defaults to 5.
        at (str, optional): See ``TermWeight``.
        cosine_interval (int): Every how many iterations gradients are compared afterwards. Defaults to
            0 (never).
    """

    options = ('type', 'ratio', 'steps', 'interval', 'at', 'cosine_interval')

    def __init__(
        self,
        schedule: dict | None = None,
        ratio: float = 1.0,
        steps: int = 20,
        interval: int = 5,
        at: str | None = None,
        cosine_interval: int = 0,
    ) -> None:
        super().__init__(schedule, at=at, cosine_interval=cosine_interval)
        self.number = self.ratio = positive('weight.ratio', ratio)
        self.steps = integer('weight.steps', steps, 1)
        self.interval = integer('weight.interval', interval, 1)
        # NaN is what is not measured yet, or has no value
        nothing = torch.full((self.steps,), torch.nan, dtype=torch.float64)
        self.register_buffer('ratios', nothing)
        for name in ('count', 'wait'):
            self.register_buffer(name, torch.zeros((), dtype=torch.long))
        self._done = self._wait = 0  # count and wait, without asking the device

    @property
    def frozen(self) -> bool:
        """Whether the weight changes no more."""
        return self._done == self.steps

    @property
    def measures(self) -> bool:
        """Whether gradients are compared in some step."""
        return True

    @property
    def is_due(self) -> bool:
        """Whether gradients are compared in this step."""
        # Its own count: a training loop without a runner has no other
        return super().is_due if self.frozen else self._wait == 0

    def skip(self) -> None:
        """Takes note of a training step in which no gradients are compared."""
        if not self.frozen:
            self._set(self._done, self._wait - 1)

    def take(self, key: str, sums: Tensor) -> None:
        """Takes what is measured in a step, and sets the weight; see ``TermWeight``."""
        if not self.frozen:
            self.ratios[self._done] = gradient_ratio(*sums[:2])
            self._set(self._done + 1, self.interval - 1)
            self._follow()
            if self.frozen:
                self._report(key)
        super().take(key, sums)
        if self.frozen and not self.cosine_interval:
            self.logs = {'weight': self.logs['weight']}

    def _set(self, done: int, wait: int) -> None:
        """Keeps how many steps are measured, and how many come before the next."""
        self._done, self._wait = done, wait
        self.count.fill_(done)
        self.wait.fill_(wait)

    def _follow(self) -> None:
        """Computes the weight from the measured ratios. Waits for the device only where it is frozen."""
        # nanmedian is the lower of the middle two
        self.number = self.ratio * self.ratios.nanmedian().nan_to_num(nan=1.0)
        if self.frozen:
            self.number = self.number.item()
        self.logs['weight'] = torch.as_tensor(self.number)

    def _report(self, key: str) -> None:
        """Says which number is frozen, or that there is none."""
        valid = int(self.ratios.isfinite().sum())
        if valid:
            print_log(
                f'{key}.weight: frozen at {self.number!r}. This is the ratio {self.ratio:g} times the '
                f'median of {valid} of {self.steps} steps at the tap {self.at!r}. Set '
                f'weight={self.number!r} for the same weight without measuring.',
                logger='current',
            )
            return
        print_log(
            f"{key}.weight: in {self.steps} steps the gradient of the term, or of the student's own "
            f'loss, at the tap {self.at!r} was 0 or not finite; the weight stays {self.number:g} and '
            'the measurement starts again',
            logger='current',
            level=logging.WARNING,
        )
        self._restart()

    def _restart(self) -> None:
        self._set(0, 0)
        self.ratios.fill_(torch.nan)

    def _load_from_state_dict(self, state: dict, prefix: str, *args: Any) -> None:
        key = prefix.rstrip('.')
        found = state.get(f'{prefix}ratios')
        if found is None:
            self._restart()
            state.update({f'{prefix}{name}': value for name, value in self.named_buffers()})
            print_log(
                f'{key}: the checkpoint has no measured ratios, so {self.steps} steps are measured',
                logger='current',
            )
        elif found.shape != self.ratios.shape:
            raise ValueError(
                f'{key}.steps is {self.steps}, and the checkpoint has distill.{prefix}ratios of '
                f'{len(found)} steps; set steps={len(found)}'
            )
        super()._load_from_state_dict(state, prefix, *args)
        self._done, self._wait = int(self.count), int(self.wait)
        self._follow()

    def __str__(self) -> str:
        number = f': {self.number:g}' if self.frozen else ''
        return f'auto at {self.at}, ratio {self.ratio:g}{number}'


def build_weight(weight: Any, schedule: dict | None, allow_negative: bool) -> TermWeight:
    """The weight of a term's options ``weight``, ``schedule`` and ``allow_negative``.

    Args:
        weight (float | str | dict): A number; 'auto'; or a dict with the type 'constant' or 'auto' and
            the arguments of ``TermWeight`` or ``AutoWeight``.
        schedule (dict, optional): The arguments of ``WeightSchedule``.
        allow_negative (bool): Whether a constant weight may be below 0.

    Raises:
        ValueError: If an option is missing, unknown or out of its range.
    """
    flag('allow_negative', allow_negative)
    key, advice = 'weight', " or 'auto'"
    if isinstance(weight, Mapping):
        key, advice, options = 'weight.value', '', dict(weight)
    elif isinstance(weight, str) and weight == 'auto':
        options = dict(type='auto')
    else:
        options = dict(type='constant', value=weight)
    types = dict(auto=AutoWeight, constant=TermWeight)
    kind = types[one_of('weight.type', options.get('type'), types)]
    checks.weight_options(options, kind.options)
    del options['type']
    if kind is TermWeight:
        with errors_named('', advice):
            options['value'] = number(key, options.get('value', 1.0))
        checks.weight(key, options['value'], allow_negative)
    return kind(schedule, **options)
