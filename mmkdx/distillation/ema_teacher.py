"""The average of the student itself as its teacher."""

from __future__ import annotations

from typing import Any

from mmengine.model import ExponentialMovingAverage
from torch import nn

from mmkdx.arguments import number
from mmkdx.distillation.teachers import BaseTeacher
from mmkdx.registry import MODELS


@MODELS.register_module()
class EMATeacher(BaseTeacher):
    """The exponential moving average of the student itself, for self-distillation.

    Source: Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017, Sec. 2.

    It is updated before each training step from the student as the step before left it (also between
    the steps of a gradient accumulation, as mmengine's ``EMAHook`` does), and checkpoints hold it
    under ``distill.``. Its buffers are the student's.

    Args:
        momentum (float): The share of the student in each update, above 0 and below 1: 0.001 stands
            for a decay of 0.999. Defaults to 0.001.
    """

    trained_along = True

    def __init__(self, momentum: float = 0.001) -> None:
        super().__init__()
        self.momentum = number('teacher.momentum', momentum, 0, 1, open_low=True, open_high=True)

    @property
    def model(self) -> nn.Module:
        """The averaged student."""
        return self.average.module

    def prepare(self, student: nn.Module) -> None:
        """Begins as a copy of the student."""
        self.average = ExponentialMovingAverage(student, momentum=self.momentum)
        self.train()

    def _apply(self, fn: Any, recurse: bool = True) -> EMATeacher:
        # mmengine's average looks at its number of updates each time, which would wait for a GPU
        steps = self.average.steps
        super()._apply(fn, recurse)
        self.average.steps = steps
        return self

    def update(self, student: nn.Module) -> None:
        """Moves the average towards the student."""
        self.average.update_parameters(student)
        self.train()  # some backbones prepare for eval mode by their weights
