"""A term of a distillation: what is compared, where, how, and how much."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmkdx.arguments import errors_named, integer, one_of
from mmkdx.distillation import checks
from mmkdx.distillation.adapters import Adapter
from mmkdx.distillation.labels import multi_hot
from mmkdx.distillation.models import build_part
from mmkdx.distillation.places import Labels, Value, places, shape_text, value_at
from mmkdx.distillation.teacher_target import TeacherTarget
from mmkdx.distillation.weights import build_weight
from mmkdx.functional import ClassMaps, full_precision, no_autocast
from mmkdx.functional.class_maps import first_tensor, map_tensors


class Term(nn.Module):
    """One loss between a student and a teacher, or of a student alone.

    The loss is a ``mmkdx.losses.base.DistillLoss``: it declares what it compares and what it needs, and
    gets exactly that.

    Args:
        name (str): The key in ``terms``; the logged loss is ``loss_<name>``.
        type (str): The loss, a name in the registry ``MODELS``.
        at (str | Sequence): The tap, or the pair of the student's and the teacher's taps. A loss that
            compares several places at once takes a list of taps for each. Without a teacher it is a tap
            or a list of taps.
        adapter (str, optional): 'auto', 'orthogonal', or None for no adapter. Defaults to 'auto'.
        weight (float | str | dict): The weight, 'auto', or the options of either; see
            ``mmkdx.distillation.weights``. Defaults to 1.
        allow_negative (bool): Whether the weight may be below 0, which trains the student away from what
            the loss asks for. Defaults to False, as that is nearly always a mistake.
        schedule (dict, optional): The arguments of ``WeightSchedule``. Defaults to None (constant).
        teacher (int): The index of the teacher, if there are several. Defaults to 0.
        teacher_target (dict, optional): The arguments of ``TeacherTarget``, which keeps a part of
            the teacher's information. Defaults to None (all of it).
        **loss_args: The arguments of the loss.

    Raises:
        ValueError: If an argument is missing, unknown or out of range, or the loss does not declare
            what it needs.
    """

    def __init__(
        self,
        name: str,
        *,
        type: str | type[nn.Module],
        at: str | Sequence[str | Sequence[str]],
        adapter: str | None = 'auto',
        weight: float | str | dict = 1.0,
        allow_negative: bool = False,
        schedule: dict | None = None,
        teacher: int = 0,
        teacher_target: dict | None = None,
        **loss_args: Any,
    ) -> None:
        super().__init__()
        self.weight = build_weight(weight, schedule, allow_negative)
        self.bridge = one_of('adapter', adapter, ('auto', 'orthogonal', None))
        self.teacher = integer('teacher', teacher, 0)
        self.key = f'terms.{name}'
        self.loss = build_part(dict(type=type, **loss_args))
        self.loss_name = self.loss.__class__.__name__
        checks.contract(self)
        self.compares = self.loss.compares
        self.needs = frozenset(self.loss.needs)
        #: Whether it compares with a teacher.
        self.taught = 'teacher' in self.needs
        #: Whether the loss takes gradients of the logits with respect to the other taps.
        self.explains = 'gradients' in self.needs
        #: What turns logits into probabilities in the loss; None if it computes none.
        default = 'softmax' if self.compares == 'logits' else None
        self.activation = getattr(self.loss, 'activation', default)
        self.student_tap, self.teacher_tap = places(at, self.taught, self.loss_name)
        checks.places(self)
        self.adapter: nn.Module | None = None
        self.teacher_target = None
        if teacher_target is not None:
            checks.teacher_target(self)
            tau = getattr(self.loss, 'tau', 1.0)
            self.teacher_target = TeacherTarget(**{'tau': tau, **teacher_target})
        self._connected = False

    def values(self, student: Mapping, teachers: Mapping[int, Mapping]) -> tuple[Value, Value]:
        """The values at the taps in the student and, if the loss needs it, in its teacher."""
        theirs = teachers.get(self.teacher)
        return value_at(student, self.student_tap), value_at(theirs, self.teacher_tap)

    def locate(self, model: nn.Module, size: Sequence[int]) -> None:
        """Lets the loss choose the student's place for ``at='auto'`` and images (height, width)."""
        if self.student_tap == 'auto':
            self.student_tap = self.loss.locate(model, size) or self.student_tap

    def connect(
        self,
        student: Value,
        teacher: Value,
        images: Sequence[Sequence[int] | None] = (None, None),
        **models: nn.Module | None,
    ) -> None:
        """Checks that the loss takes the values at the taps, and builds missing parts once.

        These are the adapter and the loss's own layers. Then a copy of the term runs on random
        values, so that mistakes show before training. A loss that needs the images or a model does
        not run. One that takes gradients of the logits does not run either, as random values have
        none.

        Args:
            student (Tensor | ClassMaps | list): What the student's tap holds, real or fake.
            teacher (Tensor | ClassMaps | list, optional): What the teacher's tap holds.
            images (Sequence, optional): Height and width of the student's images, and of the
                teacher's. Defaults to unknown.
            **models: The student as ``model`` and the teacher as ``teacher_model``, for a loss that
                needs them.

        Raises:
            ValueError: If no adapter fits the two, or the loss cannot take such values.
        """
        sides = (student, teacher)[: 1 + self.taught]
        if not self._connected:
            with errors_named(f'{self.key}.at: {self.loss_name}: '):
                self.loss.connect(*sides, **self._wanted(model=models.get('model')))
        self._connected = True
        checks.values(self, sides)
        if self.bridge and self.taught and self.compares in ('shape', 'map_size'):
            with errors_named(f'{self.key}.adapter: ', '; choose other taps (at)'):
                if self.adapter is None:
                    self.adapter = Adapter(student, teacher, self.compares == 'shape', self.bridge)
                self.adapter.check(student, teacher, images)
        verb, shapes = 'compare' if self.taught else 'take', ' and '.join(map(shape_text, sides))
        with errors_named(f'{self.key}: {self.loss_name} cannot {verb} {shapes}: ', '', Exception):
            checks.loss(self, sides, images[0], models)
            if not self.needs & {'inputs', 'model'}:
                if not self.explains or isinstance(student, ClassMaps):
                    self._try_out(student, teacher)

    def _wanted(self, **given: Any) -> dict[str, Any]:
        return {need: value for need, value in given.items() if need in self.needs}

    @torch.no_grad()
    def _try_out(self, student: Value, teacher: Value) -> None:
        """Runs a copy on random values."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # torch.manual_seed would seed CUDA as well
            values = [map_tensors(_random_like, value) for value in (student, teacher)]
            anchor = first_tensor(student)
            target = torch.zeros(len(anchor), dtype=torch.long, device=anchor.device)
            copy.deepcopy(self)(*values, target, index=torch.arange(len(anchor)))

    def forward(
        self, student: Value, teacher: Value = None, target: Labels | None = None, **given: Any
    ) -> Tensor:
        """The loss before its weight, a scalar, computed in fp32.

        Args:
            student (Tensor | ClassMaps | list): What the student's tap holds.
            teacher (Tensor | ClassMaps | list, optional): What the teacher's tap holds.
            target (Tensor | list[Tensor], optional): The labels; see ``labels_of``.
            **given: Other inputs of losses. ``index``: the samples' positions in the data set, of
                shape (N, ). ``inputs``: the preprocessed images (N, C, H, W). ``model``: the
                student. ``teacher_model``: the teacher.

        Raises:
            ValueError: If the batch lacks labels or positions that the loss needs, or the loss returns
                no scalar.
        """
        given = self._wanted(**given)
        if self.needs & {'target', 'class'}:
            checks.target(self, target)
            several = self.activation == 'sigmoid'
            given['target'] = multi_hot(target, student.shape[1]) if several else target
        checks.index(self, given.get('index'))
        if self.adapter is not None:
            student, teacher = self.adapter(student, teacher)
        with no_autocast(first_tensor(student)):
            if not self.explains:
                student, teacher = map(_full_precision, (student, teacher))
            if self.teacher_target is not None:
                teacher = self.teacher_target(teacher, target)
            loss = self.loss(*(student, teacher)[: 1 + self.taught], **given)
        checks.scalar(self, loss)
        return loss


def _full_precision(value: Value) -> Value:
    # Class maps compute in fp32 on their own, and terms share the results
    return value if isinstance(value, ClassMaps) else map_tensors(full_precision, value)


def _random_like(tensor: Tensor) -> Tensor:
    """Real random values with the shape, precision and device of a tensor that may be fake."""
    return torch.randn(tensor.shape).to(tensor.device, tensor.dtype)


def build_term(name: str, config: dict) -> Term:
    """Builds a term; errors name its key in ``terms``."""
    checks.term_config(name, config)
    with errors_named(f'terms.{name}: ', errors=(TypeError, ValueError, KeyError)):
        return Term(name, **config)
