"""Teachers that are made of other models: the student's average, and the mean of several teachers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from mmengine.model import ExponentialMovingAverage
from torch import Tensor, nn

from mmkdx.arguments import number
from mmkdx.distillation.teachers import BaseTeacher, build_teacher
from mmkdx.functional import ClassMaps
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


@MODELS.register_module()
class TeacherEnsemble(BaseTeacher):
    """Several frozen teachers as one: each tap is the mean over the members.

    Members may differ in architecture as long as every tap exists in each and has one shape.

    Args:
        teachers (list): The members, each in any form that ``Distiller`` takes for a teacher.

    Raises:
        ValueError: If there is no member, a member is trained along with the student, or members have
            heads of different kinds or (from ``resolve``) different shapes at a tap.
    """

    def __init__(self, teachers: list) -> None:
        super().__init__()
        if not isinstance(teachers, (list, tuple)) or not teachers:
            raise ValueError(f'teacher.teachers is {teachers!r}; it must be a list of teachers')
        self.members = nn.ModuleList(build_teacher(member) for member in teachers)
        if any(member.trained_along for member in self.members):
            raise ValueError('teacher.teachers: an EMATeacher cannot be a member of an ensemble')
        if len(self.activations()) > 1:
            raise ValueError(
                'teacher.teachers: some members have softmax and some sigmoid heads, whose logits have '
                'no mean; use members of one kind'
            )

    def bind(
        self,
        student: nn.Module,
        taps: Mapping[str, str],
        owner: str = 'teacher',
        explained: Collection[str] = (),
    ) -> None:
        """Binds each member; ``explained`` taps are an error, as a mean has no gradient by a mean."""
        if explained:
            raise ValueError(
                f'{owner} is an ensemble, whose mean logits have no gradient by the mean of '
                f"{', '.join(sorted(explained))}; use the tap 'cam', or one teacher"
            )
        for i, member in enumerate(self.members):
            member.bind(student, taps, f'{owner}, member {i},')

    def resolve(self, inputs: Tensor) -> dict[str, Any]:
        """Finds the taps in each member, where they must have one shape."""
        values = [member.resolve(inputs) for member in self.members]
        for tap in values[0]:
            shapes = [tuple(value[tap].shape) for value in values]
            if len(set(shapes)) > 1:
                raise ValueError(
                    f'teacher.teachers: the members of the ensemble differ at tap {tap!r}: {shapes}'
                )
        return _mean(values)

    def compile_model(self, **kwargs: Any) -> None:
        """Compiles each member."""
        for member in self.members:
            member.compile_model(**kwargs)

    def load(self) -> None:
        """Loads the weights of each member."""
        for member in self.members:
            member.load()

    def match_classes(self, names: Sequence[str] | None) -> None:
        """Compares each member's classes with the data set's."""
        for member in self.members:
            member.match_classes(names)

    def forward(self, inputs: Tensor, data_samples: list | None = None) -> dict[str, Any]:
        """Runs the members."""
        return _mean([member(inputs, data_samples) for member in self.members])


def _mean(values: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of each tap's tensors or class maps over the members of an ensemble."""
    means = {}
    for tap, first in values[0].items():
        maps = isinstance(first, ClassMaps)
        every = [value[tap].full() if maps else value[tap] for value in values]
        mean = torch.stack(every).mean(0)
        means[tap] = ClassMaps(mean) if maps else mean
    return means
