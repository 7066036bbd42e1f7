"""Teachers made of other models: the student's average, and the mean of several teachers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from mmengine.model import ExponentialMovingAverage
from torch import Tensor, nn

from mmkdx.arguments import number, numbers, one_of
from mmkdx.distillation.labels import labels_of
from mmkdx.distillation.teachers import BaseTeacher, build_teacher
from mmkdx.functional import ClassMaps
from mmkdx.functional.teacher_weights import agreement_weights, cross_entropy_weights
from mmkdx.models.families import describe
from mmkdx.models.flow import Flow
from mmkdx.models.path_tap import find_tap
from mmkdx.registry import MODELS

#: The tap that gives the members' weights, and the kind of weights that needs labels.
LOGITS, BY_LABELS = 'logits', 'cross_entropy'


@MODELS.register_module()
class EMATeacher(BaseTeacher):
    """The exponential moving average of the student itself, for self-distillation.

    Source: Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017, Sec. 2.

    It is updated with the student before each training step, also within a gradient accumulation,
    as mmengine's ``EMAHook`` does. Checkpoints hold it under ``distill.``. Its buffers are copies
    of the student's.

    Args:
        momentum (float): The share of the student in each update, above 0 and below 1: 0.001 means
            a decay of 0.999. Defaults to 0.001.
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
        """Starts the average as a copy of the student."""
        self.average = ExponentialMovingAverage(student, momentum=self.momentum)
        self.train()

    def _apply(self, fn: Any, recurse: bool = True) -> EMATeacher:
        # mmengine's average reads its number of updates each time; on a GPU it would wait for that
        steps = self.average.steps
        super()._apply(fn, recurse)
        self.average.steps = steps
        return self

    def update(self, student: nn.Module) -> None:
        """Moves the average towards the student."""
        self.average.update_parameters(student)
        self.train()  # in eval mode some backbones use values computed from their weights


@MODELS.register_module()
class TeacherEnsemble(BaseTeacher):
    """Combines several frozen teachers: each tap is the mean over the members.

    Members may differ in architecture if every tap exists in each member with the same shape. With
    ``weights`` the mean is weighted. At the tap 'logits' it is the mean of logits, not of
    probabilities. The weights by cross entropy come from CA-MKD, which weights the members' losses
    instead and has other weights for features. Here all taps use the weights of the logits.

    Args:
        teachers (list): The members, each in any form that ``Distiller`` takes for a teacher.
        weights (str | Sequence[float], optional): The weights of the members. 'cross_entropy': for
            each image, from the cross entropy with its label; for two members or more, see
            ``cross_entropy_weights``. 'agreement': for each image, from the agreement with the
            other members; for three members or more, see ``agreement_weights``. Or a number of at
            least 0 for each member; the numbers are divided by their sum. Defaults to None (equal
            weights).

    Raises:
        ValueError: If there is no member, or a member is trained along with the student. If heads
            are of different kinds, or (from ``resolve``) shapes differ at a tap. If weights do not
            fit the members, the taps or (from ``forward``) the labels.
    """

    def __init__(self, teachers: list, weights: str | Sequence[float] | None = None) -> None:
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
        self.weights = weights
        #: Whether each image has its own weights, and whether these depend on its label.
        self.adaptive, self.needs_labels = isinstance(weights, str), weights == BY_LABELS
        self.settings = '' if weights is None else f'weights {weights}'
        shares = None if weights is None else self._checked_shares()
        self.register_buffer('_shares', shares, persistent=False)

    def bind(
        self,
        student: nn.Module,
        taps: Mapping[str, str],
        owner: str = 'teacher',
        explained: Collection[str] = (),
    ) -> None:
        """Binds each member; ``explained`` taps are an error, as means have no such gradient."""
        if explained:
            raise ValueError(
                f'{owner} is an ensemble; its mean logits have no gradient with respect to the '
                f"mean of {', '.join(sorted(explained))}; use the tap 'cam', or one teacher"
            )
        self._asked, self._student = tuple(taps), (student,)  # a tuple is not a sub-module
        if self.adaptive and taps:
            for tap, key in taps.items():
                if find_tap(tap).of_weights:
                    raise ValueError(
                        f'{key}: {tap} are weights of the members, the same for all images, and '
                        f'{owner}.weights is {self.weights!r}, which depends on the image; use numbers'
                    )
            taps = {LOGITS: f'{owner}.weights', **taps}
        for i, member in enumerate(self.members):
            member.bind(student, taps, f'{owner}, member {i},')

    def resolve(self, inputs: Tensor) -> dict[str, Any]:
        """Finds the taps in each member, and checks that their shapes are the same."""
        values = [member.resolve(inputs) for member in self.members]
        for tap in values[0]:
            shapes = [tuple(value[tap].shape) for value in values]
            if len(set(shapes)) > 1:
                raise ValueError(
                    f'teacher.teachers: the members of the ensemble differ at tap {tap!r}: {shapes}'
                )
            if self.adaptive and shapes[0][:1] != (len(inputs),):
                raise ValueError(
                    f'teacher.weights is {self.weights!r}, which depends on the image, and tap {tap!r} '
                    f'has the shape {shapes[0]}, without a row for each image; use numbers'
                )
        if self.needs_labels and values[0]:
            wanted = Flow(describe(self._student[0]), inputs).logits.shape[1]
            if (count := values[0][LOGITS].shape[1]) != wanted:
                raise ValueError(
                    f'teacher.weights is {self.weights!r}, and the members have {count} classes where '
                    f"the student has {wanted}; set classes='match' in each member"
                )
        return _mean(values, self._asked)

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
        values = [member(inputs, data_samples) for member in self.members]
        if not self.adaptive:
            return _mean(values, self._asked, self._shares)
        logits = torch.stack([value[LOGITS] for value in values])
        if not self.needs_labels:
            return _mean(values, self._asked, agreement_weights(logits))
        labels = labels_of(data_samples)
        if not isinstance(labels, Tensor):
            found = 'the data samples have none' if labels is None else 'some images have several'
            raise ValueError(
                f"teacher.weights is {self.weights!r}, which needs each image's label, and {found}; use "
                "'agreement', or numbers"
            )
        return _mean(values, self._asked, cross_entropy_weights(logits, labels))

    def _checked_shares(self) -> Tensor | None:
        """Numeric weights, scaled to a sum of 1; None if the weights depend on the image."""
        weights, count = self.weights, len(self.members)
        if not self.adaptive:
            listed = numbers('teacher.weights', weights, 0)
            if len(listed) != count or not any(listed):
                raise ValueError(
                    f'teacher.weights is {weights!r}; there must be a number for each of the {count} '
                    'members, and one above 0'
                )
            return torch.tensor(listed) / sum(listed)
        one_of('teacher.weights', weights, (BY_LABELS, 'agreement'))
        if 'sigmoid' in self.activations():
            raise ValueError(
                f'teacher.weights is {weights!r}, which takes the softmax of logits, and the members '
                'have sigmoid heads; use numbers'
            )
        least = 2 if self.needs_labels else 3
        if count < least:
            raise ValueError(
                f'teacher.weights is {weights!r}, which needs {least} members or more, because '
                f'{"one has a fixed weight" if least == 2 else "two have fixed ones"}, and there '
                f'{"is 1" if count == 1 else f"are {count}"}; remove it'
            )
        return None


def _mean(
    values: list[dict[str, Any]], taps: Sequence[str], weights: Tensor | None = None
) -> dict[str, Any]:
    """The mean over the members of an ensemble of the tensors or class maps at each tap.

    ``weights`` have the shape (T, ), or (T, N) if each image has its own.
    """
    means = {}
    for tap in taps:
        maps = isinstance(values[0][tap], ClassMaps)
        every = [value[tap].full() if maps else value[tap] for value in values]
        if weights is None:
            mean = torch.stack(every).mean(0)
        else:
            ones = [1] * (every[0].dim() - weights[0].dim())
            parts = [w.view(*w.shape, *ones) * each for w, each in zip(weights, every)]
            mean = sum(parts).to(every[0].dtype)
        means[tap] = ClassMaps(mean) if maps else mean
    return means
