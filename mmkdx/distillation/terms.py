"""A term of a distillation: what is compared, where, how, and how much."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmkdx.distillation.adapters import Adapter
from mmkdx.distillation.models import build_part
from mmkdx.distillation.teacher_target import TeacherTarget
from mmkdx.functional import ClassMaps, full_precision, no_autocast
from mmkdx.functional.schedules import WeightSchedule

#: Where a term reads: one tap, or several whose values come as a list.
Place = str | tuple[str, ...]
#: What is read there; None where there is no teacher.
Value = Tensor | ClassMaps | list | None

#: What a loss may say of its two inputs in its attribute `compares`.
COMPARES = ('shape', 'map_size', 'logits', 'class_maps', 'anything')


class Term(nn.Module):
    """One loss between a student and a teacher, with its place, adapter, weight and schedule.

    Or one of a student alone, which teaches itself. The loss is any module with
    ``forward(student, teacher, target=None)`` that returns a scalar. Its attribute ``compares`` says
    which inputs it takes, and so what ``adapter='auto'`` does:

    - 'shape' (also without the attribute): tensors of one shape; channels, sizes and layouts are
      bridged.
    - 'map_size': maps of shape (N, C, H, W) of one size; sizes and layouts are bridged.
    - 'logits': tensors of shape (N, K) with the same classes; never bridged.
    - 'class_maps': ``ClassMaps``, or tensors of shape (N, K, H, W) with the same classes; never
      bridged.
    - 'anything': never bridged.

    Further attributes and methods, where a loss has them:

    - ``needs_teacher`` is false when it compares with no teacher: ``teacher`` is None then, and
      ``at`` is one place.
    - ``sees_model`` is true when its ``forward`` also takes ``inputs``, the preprocessed images, and
      ``model``, the student, which its ``connect`` takes, too. It is not tried before training.
    - ``hard_labels`` is true when it needs one class index an image as target, so that mixed labels
      are refused.
    - ``sample_index`` is true when its ``forward`` also takes ``index``, the positions of the samples
      in the data set, of shape (N, ), on the CPU.
    - ``explains`` is true when it takes gradients of the logits by what is at its other taps. Then
      the teacher records a graph from these taps on, and tensors come in the precision they have.
    - ``connect(student, teacher)`` is called once, with what stands at the taps (it may be fake),
      before the optimizer is built, so that the loss can build layers of its own.
    - ``check(student, teacher)`` is called for each image size, to refuse what would go wrong.
    - ``locate(model, size)`` says what ``at='auto'`` stands for.
    - ``logs`` is a dict of scalars of the last forward, which are logged as ``<term>.<key>``.

    Args:
        name (str): The key in ``terms``; the logged loss is ``loss_<name>``.
        type (str): The loss, a name in the registry ``MODELS``.
        at (str | Sequence): The tap, or the pair of the student's and the teacher's taps. Each of the
            pair can be a list of taps, where a loss compares several places at once. Without a teacher
            the tap, or a list of taps.
        adapter (str, optional): 'auto', or None for no adapter. Defaults to 'auto'.
        weight (float): The weight. Defaults to 1.
        schedule (dict, optional): The arguments of ``WeightSchedule``. Defaults to None (constant).
        teacher (int): Which teacher, where there are several. Defaults to 0.
        teacher_target (dict, optional): The arguments of ``TeacherTarget``, which leaves a part of what
            the teacher says. Defaults to None (all of it).
        **loss_args: The arguments of the loss.

    Raises:
        ValueError: If an argument is missing, unknown or out of range.
    """

    def __init__(
        self,
        name: str,
        *,
        type: str | type[nn.Module],
        at: str | Sequence[str | Sequence[str]],
        adapter: str | None = 'auto',
        weight: float = 1.0,
        schedule: dict | None = None,
        teacher: int = 0,
        teacher_target: dict | None = None,
        **loss_args: Any,
    ) -> None:
        super().__init__()
        if not isinstance(weight, (int, float)):
            raise ValueError(f'weight is {weight!r}; it must be a number')
        if adapter not in ('auto', None):
            raise ValueError(f"adapter is {adapter!r}; it must be 'auto' or None")
        self.key = f'terms.{name}'
        self.loss = build_part(dict(type=type, **loss_args))
        #: Whether it compares with a teacher.
        self.taught = getattr(self.loss, 'needs_teacher', True)
        self.student_tap, self.teacher_tap = _places(at, self.taught, self.loss_name)
        self.teacher = teacher
        self.weight = weight
        self.schedule = None if schedule is None else WeightSchedule(**schedule)
        self.auto = adapter == 'auto'
        self.adapter: nn.Module | None = None
        self.compares = getattr(self.loss, 'compares', 'shape')
        if self.compares not in COMPARES:
            raise ValueError(
                f'{self.loss_name}.compares is {self.compares!r}; it must be one of '
                f'{", ".join(COMPARES)}'
            )
        if self.compares != 'anything' and not (
            isinstance(self.student_tap, str) and isinstance(self.teacher_tap, str | None)
        ):
            raise ValueError(f'at is {at!r}, and {self.loss_name} compares one place with one')
        self.teacher_target = None
        if teacher_target is not None:
            if not self.taught or self.compares != 'logits':
                raise ValueError(
                    f'teacher_target is for the logits of a teacher, and {self.loss_name} reads none'
                )
            tau = getattr(self.loss, 'tau', 1.0)
            self.teacher_target = TeacherTarget(**{'tau': tau, **teacher_target})
        self._connected = False

    @property
    def explains(self) -> bool:
        """Whether the loss takes gradients of the logits by what is at the other taps."""
        return getattr(self.loss, 'explains', False)

    @property
    def sees_model(self) -> bool:
        """Whether the loss takes the student and its images, beside what is at the taps."""
        return getattr(self.loss, 'sees_model', False)

    def locate(self, model: nn.Module, size: Sequence[int]) -> None:
        """Finds the place that 'auto' stands for, where the loss can choose one.

        Args:
            model (nn.Module): The student.
            size (Sequence[int]): Height and width of the images.
        """
        if self.student_tap == 'auto' and hasattr(self.loss, 'locate'):
            self.student_tap = self.loss.locate(model, size)

    def connect(self, student: Value, teacher: Value, model: nn.Module | None = None) -> None:
        """Checks that the loss takes what is at the taps and, the first time, builds what is missing.

        That is the adapter, and the layers of the loss's own.

        Args:
            student (Tensor | ClassMaps | list): What the student's tap holds, real or fake.
            teacher (Tensor | ClassMaps | list, optional): What the teacher's tap holds.
            model (nn.Module, optional): The student, for a loss that sees it. Defaults to None.

        Raises:
            ValueError: If the two cannot be bridged, or are not of the kind that the loss compares.
        """
        if hasattr(self.loss, 'connect') and not self._connected:
            try:
                self.loss.connect(
                    student, teacher, **(dict(model=model) if self.sees_model else {})
                )
            except ValueError as error:
                raise ValueError(f'{self.key}.at: {self.loss_name}: {error}') from error
        self._connected = True
        if self.compares in ('logits', 'class_maps'):
            self._check_classes(student, teacher)
        elif self.compares == 'anything':
            return
        elif isinstance(student, ClassMaps) or isinstance(teacher, ClassMaps):
            raise ValueError(
                f"{self.key}.at: {self.loss_name} compares tensors, and tap 'cam' holds class maps"
            )
        elif self.auto and self.taught and self.adapter is None:
            try:
                self.adapter = Adapter(student, teacher, channels=self.compares == 'shape')
            except ValueError as error:
                raise ValueError(f'{self.key}.adapter: {error}; choose other taps (at)') from error

    @torch.no_grad()
    def check(self, student: Value, teacher: Value) -> None:
        """Runs a copy of the term on random values, so that mistakes show before training.

        A loss that takes gradients of the logits is not run, as random values have none, and neither is
        one that sees the model.

        Args:
            student (Tensor | ClassMaps | list): A value with the shape of what the student's tap
                holds; it may be fake.
            teacher (Tensor | ClassMaps | list, optional): The same of the teacher.

        Raises:
            ValueError: If the loss cannot take such values.
        """
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # torch.manual_seed would seed CUDA as well
            values = [_random_like(value) for value in (student, teacher)]
            anchor = _tensor(student)
            target = torch.zeros(len(anchor), dtype=torch.long, device=anchor.device)
            try:
                if hasattr(self.loss, 'check'):
                    self.loss.check(student, teacher)
                if not self.sees_model and (not self.explains or isinstance(student, ClassMaps)):
                    copy.deepcopy(self)(*values, target, torch.arange(len(anchor)))
            except Exception as error:
                shapes = ' and '.join(map(shape_text, (student, teacher)[: 1 + self.taught]))
                verb = 'compare' if self.taught else 'take'
                raise ValueError(
                    f'{self.key}: {self.loss_name} cannot {verb} {shapes}: '
                    f'{str(error).partition(chr(10))[0]}'
                ) from error

    def forward(
        self,
        student: Value,
        teacher: Value,
        target: Tensor | None = None,
        index: Tensor | None = None,
        **seen: Any,
    ) -> Tensor:
        """The weighted loss, computed in fp32.

        Args:
            student (Tensor | ClassMaps | list): What the student's tap holds.
            teacher (Tensor | ClassMaps | list, optional): What the teacher's tap holds.
            target (Tensor, optional): Class indices of shape (N, ), or class probabilities of shape
                (N, K) where images or labels are mixed. Defaults to None.
            index (Tensor, optional): The positions of the samples in the data set, of shape (N, ).
                Defaults to None.
            **seen: ``inputs`` and ``model``, for a loss that sees them.

        Returns:
            Tensor: A scalar.

        Raises:
            ValueError: If the loss needs class indices and the labels are mixed, or positions and the
                samples have none, or it returns no scalar.
        """
        if getattr(self.loss, 'hard_labels', False) and target is not None and target.dim() > 1:
            raise ValueError(
                f'{self.key}: {self.loss_name} needs one class an image and the batches have '
                'mixed or soft labels; remove batch_augments (train_cfg.augments of the student, or '
                'data_preprocessor) or the term'
            )
        extra = seen if self.sees_model else {}
        if getattr(self.loss, 'sample_index', False):
            if index is None:
                raise ValueError(
                    f'{self.key}: {self.loss_name} needs the position of each sample in the data set, '
                    "and the data samples have no 'sample_idx'; let the dataset's PackInputs keep it "
                    '(meta_keys)'
                )
            extra = {**extra, 'index': index}
        if self.adapter is not None:
            student, teacher = self.adapter(student, teacher)
        with no_autocast(_tensor(student)):
            values = student, teacher
            if not self.explains:
                values = (_each(_full_precision, value) for value in values)
            if self.teacher_target is not None:
                student, teacher = values
                values = student, self.teacher_target(teacher, target)
            loss = self.loss(*values, target, **extra)
        if not isinstance(loss, Tensor) or loss.dim():
            tensor = isinstance(loss, Tensor)
            kind = f'tensor of shape {tuple(loss.shape)}' if tensor else type(loss).__name__
            raise ValueError(f'{self.loss_name} returns a {kind}; a loss returns a scalar tensor')
        return loss * (self.weight * (self.schedule() if self.schedule else 1.0))

    @property
    def loss_name(self) -> str:
        """The class name of the loss."""
        return type(self.loss).__name__

    def _check_classes(self, student: Tensor | ClassMaps, teacher: Tensor | ClassMaps) -> None:
        axes = dict(logits=('N', 'K'), class_maps=('N', 'K', 'H', 'W'))[self.compares]
        places = ((self.student_tap, student), (self.teacher_tap, teacher))
        for tap, value in places[: 1 + self.taught]:
            if len(value.shape) != len(axes):
                raise ValueError(
                    f'{self.key}.at: {self.loss_name} compares {self.compares.replace("_", " ")} of '
                    f'shape ({", ".join(axes)}), and tap {tap!r} holds {tuple(value.shape)}'
                )
        if self.taught and student.shape[1] != teacher.shape[1]:
            raise ValueError(
                f'{self.key}.at: the student has {student.shape[1]} classes and the teacher '
                f'{teacher.shape[1]}; {self.loss_name} needs the same classes, so set '
                'student.head.num_classes or choose another teacher'
            )


def _is_place(place: Any) -> bool:
    taps = [place] if isinstance(place, str) else place
    return (
        isinstance(taps, (list, tuple)) and bool(taps) and all(isinstance(tap, str) for tap in taps)
    )


def _places(at: Any, taught: bool, loss: str) -> tuple[Place, Place | None]:
    """The student's place and the teacher's, None without one.

    Raises:
        ValueError: If ``at`` is of another form.
    """
    pair = (at, None) if not taught else (at, at) if isinstance(at, str) else at
    if not (
        isinstance(pair, (list, tuple))
        and len(pair) == 2
        and all(_is_place(place) for place in pair[: 1 + taught])
    ):
        form = 'a tap, or the pair (student tap, teacher tap), each a tap or a list of taps'
        if not taught:
            form = f'a tap or a list of taps, as {loss} compares with no teacher'
        raise ValueError(f'at is {at!r}; it must be {form}')
    return tuple(tuple(place) if isinstance(place, list) else place for place in pair)


def names_of(place: Place | None) -> tuple[str, ...]:
    """The taps of a place."""
    return (place,) if isinstance(place, str) else place or ()


def value_at(values: Mapping[str, Any], place: Place | None) -> Value:
    """What is at a place: the tap's value, or a list of several taps' values; None without a place."""
    if place is None:
        return None
    return values[place] if isinstance(place, str) else [values[tap] for tap in place]


def shape_text(value: Value) -> str:
    """The shape of what is at a place, to be read."""
    shapes = value if isinstance(value, list) else [value]
    return ', '.join(str(tuple(each.shape)) for each in shapes)


def _each(function: Callable, value: Value) -> Value:
    return list(map(function, value)) if isinstance(value, list) else function(value)


def _full_precision(value: Tensor | ClassMaps | None) -> Tensor | ClassMaps | None:
    return full_precision(value) if isinstance(value, Tensor) else value


def _tensor(value: Value) -> Tensor:
    if isinstance(value, list):
        value = value[0]
    return value.features if isinstance(value, ClassMaps) else value


def _random_like(value: Any) -> Any:
    """Real random values with the shapes, precision and device of what may be fake ones."""
    if isinstance(value, list):
        return list(map(_random_like, value))
    if isinstance(value, ClassMaps):
        return ClassMaps(*map(_random_like, (value.features, value.weight, value.bias)))
    return None if value is None else torch.randn(value.shape).to(value.device, value.dtype)


def build_term(name: str, config: dict) -> Term:
    """Builds a term from its config.

    Args:
        name (str): The key in ``terms``.
        config (dict): The arguments of ``Term`` and of the loss.

    Returns:
        Term: The term, not yet connected.

    Raises:
        ValueError: If a key is missing or unknown, a value is out of range, or the name would be taken
            for a loss.
    """
    for key in ('type', 'at'):
        if key not in config:
            raise ValueError(
                f'terms.{name} has no {key!r}; a term needs a loss (type) and a tap (at)'
            )
    if 'loss' in name:
        raise ValueError(
            f"terms.{name}: a term's name must not contain 'loss', by which mmengine knows what it "
            'sums up'
        )
    try:
        return Term(name, **config)
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f'terms.{name}: {error.args[0]}') from error


class FiniteWatch:
    """Stops training with a term's name when its loss is not finite.

    On an accelerator the flags are copied in the background and read when they have arrived, a step
    or two later, so that the check never waits for the device.
    """

    def __init__(self) -> None:
        self._pending: tuple[tuple[str, ...], Tensor, torch.cuda.Event | None] | None = None

    def __call__(self, losses: dict[str, Tensor]) -> None:
        """Looks at a step's losses.

        Raises:
            FloatingPointError: If one is NaN or infinite, or was a step or two ago.
        """
        self._report()
        if self._pending is None and losses:
            flags = torch.stack([loss.detach().isfinite() for loss in losses.values()])
            event = None
            if flags.is_cuda:
                flags = flags.to('cpu', non_blocking=True)
                event = torch.cuda.Event()
                event.record()
            self._pending = tuple(losses), flags, event
        self._report()

    def _report(self) -> None:
        if self._pending is None:
            return
        names, flags, event = self._pending
        if event is not None and not event.query():
            return
        self._pending = None
        bad = [name for name, finite in zip(names, flags.tolist()) if not finite]
        if bad:
            raise FloatingPointError(
                f'{", ".join(bad)} became NaN or infinite; lower its weight or the learning rate, or '
                'look at what its taps hold'
            )

    def __deepcopy__(self, memo: dict) -> FiniteWatch:
        return FiniteWatch()  # CUDA events cannot be copied
