"""Frozen models that say what a student should do."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from mmengine.model import ExponentialMovingAverage
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from mmkdx.distillation.input_bridge import input_bridge
from mmkdx.distillation.models import ModelSpec, build_model, build_part, load_weights, zoo_entry
from mmkdx.functional import ClassMaps, no_autocast
from mmkdx.models.taps import TapSet, forward_tensor
from mmkdx.registry import MODELS


class BaseTeacher(nn.Module):
    """What all teachers share: always in eval mode, without gradients, and never part of a student.

    A ``Distiller`` keeps its teachers outside its module tree, so that they stay out of its state
    dict, its optimizer and DDP. A deep copy of a student (mmengine's ``EMAHook`` makes one) shares
    the teacher.
    """

    #: Whether the teacher changes while the student trains, so that a checkpoint must hold it.
    trained_along = False

    def bind(
        self,
        student: nn.Module,
        taps: Mapping[str, str],
        owner: str = 'teacher',
        explained: Collection[str] = (),
    ) -> None:
        """Tells the teacher, once, whose teacher it is and what will be read from it.

        Args:
            student (nn.Module): The student.
            taps (Mapping[str, str]): The taps, each with the config key that asks for it.
            owner (str): How error messages call the teacher. Defaults to 'teacher'.
            explained (Collection[str]): The taps by which gradients will be taken.
        """
        self.taps = TapSet(taps, owner, explained)

    def resolve(self, inputs: Tensor) -> dict[str, Any]:
        """Finds the taps in the teacher; see ``TapSet.resolve``."""
        return self.taps.resolve(self.model, inputs)

    def compile_model(self, **kwargs: Any) -> None:
        """Compiles what no tap stands in; see ``TapSet.compile``. After ``resolve``."""
        self.taps.compile(self.model, **kwargs)

    def load(self) -> None:
        """Loads the weights, once, before training."""

    def update(self, student: nn.Module) -> None:
        """Takes part in a training step, before it."""

    def convert(self, inputs: Tensor) -> Tensor:
        """Brings the student's preprocessed images of shape (N, 3, H, W) to the form ``model`` takes."""
        return inputs

    @torch.no_grad()
    def forward(self, inputs: Tensor, data_samples: list | None = None) -> dict[str, Any]:
        """Runs the teacher.

        Args:
            inputs (Tensor): Images as the student's data preprocessor yields them, (N, 3, H, W).
            data_samples (list, optional): Their data samples, for a teacher that knows the images by
                them. Defaults to None.

        Returns:
            dict[str, Any]: A tensor or class maps for each tap, without gradients but those by the
            explained taps.
        """
        # Inference mode saves what autograd notes of each tensor. Its tensors cannot be saved for a
        # backward pass, so those that are read are copied.
        with torch.inference_mode(not self.taps.explained), self.taps.record(self.model) as values:
            forward_tensor(self.model, inputs)
        return {name: _plain(value) for name, value in values.items()}

    def train(self, mode: bool = True) -> BaseTeacher:
        """Stays in eval mode, dropout and stochastic depth included."""
        return super().train(False)

    def __deepcopy__(self, memo: dict) -> BaseTeacher:
        return self


@MODELS.register_module()
class Teacher(BaseTeacher):
    """A trained, frozen model.

    Where its data preprocessor normalises images in another way than the student's, the student's
    images are converted. A model without a normalisation of its own takes the student's images.

    Args:
        model (dict | str | nn.Module): The model, in any form of ``build_model``. A module is taken
            over: it is frozen and put into eval mode.
        checkpoint (str, optional): A file or URL with its weights; that of a distillation run gives
            the student's. Defaults to None.
        pretrained (bool): Whether to download the weights that mmpretrain's zoo has for ``model``.
            Defaults to False.
        strict (bool): Whether the weights must fit exactly. Defaults to True.
        dtype (str, optional): 'float16' or 'bfloat16' holds and runs the teacher in half precision,
            'float32' runs it in full precision also under autocast. Defaults to None: fp32 weights,
            and autocast as for the student.

    Raises:
        ValueError: If an argument fits no other, names nothing, or the weights do not fit.
        FileNotFoundError: If the checkpoint file does not exist (from ``load``).
    """

    def __init__(
        self,
        model: ModelSpec,
        checkpoint: str | None = None,
        pretrained: bool = False,
        strict: bool = True,
        dtype: str | None = None,
    ) -> None:
        super().__init__()
        if dtype not in (None, 'float16', 'bfloat16', 'float32'):
            raise ValueError(
                f"teacher.dtype is {dtype!r}; it must be 'float16', 'bfloat16', 'float32' or None"
            )
        if pretrained and checkpoint:
            raise ValueError(
                'teacher.pretrained and teacher.checkpoint are two sources of weights; remove one'
            )
        if pretrained:
            if not isinstance(model, str):
                raise ValueError(
                    "teacher.pretrained=True needs a model name of mmpretrain's zoo as "
                    'teacher.model; else set teacher.checkpoint'
                )
            checkpoint = zoo_entry(model, 'teacher.model').weights
            if not checkpoint:
                raise ValueError(
                    f"teacher.pretrained: mmpretrain's zoo has no weights for {model!r}; "
                    'set teacher.checkpoint'
                )
        #: Whether the weights are those that the config names; a module comes with its own.
        self.loaded = isinstance(model, nn.Module) and checkpoint is None
        self.checkpoint = checkpoint
        #: After ``load``: the names of the classes it was trained on, where the checkpoint has them.
        self.classes: list[str] | None = None
        self.strict = strict
        self.dtype = dtype and getattr(torch, dtype)
        self.model = build_model(model, 'teacher.model')
        self.bridge: nn.Module = nn.Identity()
        self.requires_grad_(False).train()

    def bind(
        self,
        student: nn.Module,
        taps: Mapping[str, str],
        owner: str = 'teacher',
        explained: Collection[str] = (),
    ) -> None:
        """Prepares also for images in the student's normalisation; see ``BaseTeacher``."""
        super().bind(student, taps, owner, explained)
        self.bridge = input_bridge(student, self.model).eval()
        if self.dtype:
            self.model.to(self.dtype)

    def resolve(self, inputs: Tensor) -> dict[str, Any]:
        """Finds the taps in the teacher; see ``TapSet.resolve``."""
        return super().resolve(self.convert(inputs))

    def load(self) -> None:
        """Loads the weights from ``checkpoint``, unless that is done.

        Raises:
            ValueError: If no source of weights is known, or they do not fit.
            FileNotFoundError: If the file does not exist.
        """
        if self.loaded:
            return
        if self.checkpoint is None:
            raise ValueError(
                'the teacher has no weights: set teacher.checkpoint to a file or URL, or '
                "teacher.pretrained=True for a model of mmpretrain's zoo"
            )
        try:
            state = CheckpointLoader.load_checkpoint(self.checkpoint, map_location='cpu')
        except FileNotFoundError:
            raise FileNotFoundError(
                f'teacher.checkpoint: there is no file {self.checkpoint!r}; train the teacher first, '
                'or name its checkpoint'
            ) from None
        source = f'teacher.checkpoint {self.checkpoint}'
        load_weights(self.model, state, source, 'teacher.strict', self.strict)
        self.train()  # some backbones prepare for eval mode by their weights
        self.classes = (state.get('meta', {}).get('dataset_meta') or {}).get('classes')
        self.loaded = True

    @torch.no_grad()
    def forward(self, inputs: Tensor, data_samples: list | None = None) -> dict[str, Any]:
        """Runs the teacher in its own normalisation and precision; see ``BaseTeacher``."""
        if not self.loaded and self.checkpoint is not None:
            self.load()  # a distiller that is used without a Runner
        inputs = self.convert(inputs)
        if self.dtype is None:
            return super().forward(inputs)
        with no_autocast(inputs):
            return super().forward(inputs)

    def convert(self, inputs: Tensor) -> Tensor:
        """Brings images to the teacher's normalisation and precision; see ``BaseTeacher``."""
        inputs = self.bridge(inputs)
        return inputs.to(self.dtype) if self.dtype else inputs


@MODELS.register_module()
class EMATeacher(BaseTeacher):
    """The exponential moving average of the student itself, for self-distillation.

    Source: Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017, Sec. 2.

    It is updated before each training step from the student as the step before left it (also between
    the steps of a gradient accumulation, as mmengine's ``EMAHook`` does), and checkpoints hold it
    under ``distill.``. Its buffers are the student's.

    Args:
        momentum (float): The share of the student in each update, as in mmengine's
            ``ExponentialMovingAverage``: 0.001 stands for a decay of 0.999. Defaults to 0.001.
    """

    trained_along = True

    def __init__(self, momentum: float = 0.001) -> None:
        super().__init__()
        self.momentum = momentum

    @property
    def model(self) -> nn.Module:
        """The averaged student."""
        return self.average.module

    def bind(
        self,
        student: nn.Module,
        taps: Mapping[str, str],
        owner: str = 'teacher',
        explained: Collection[str] = (),
    ) -> None:
        """Begins as a copy of the student; see ``BaseTeacher``."""
        super().bind(student, taps, owner, explained)
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

    For ``logits`` that is the mean of the logits. Members may differ in architecture as long as every
    tap exists in each and has one shape.

    Args:
        teachers (list): The members, each in any form that ``Distiller`` takes for a teacher.

    Raises:
        ValueError: If a member is trained along with the student, or (from ``resolve``) the members'
            shapes differ at a tap.
    """

    def __init__(self, teachers: list) -> None:
        super().__init__()
        self.members = nn.ModuleList(build_teacher(member) for member in teachers)
        if any(member.trained_along for member in self.members):
            raise ValueError('teacher.teachers: an EMATeacher cannot be a member of an ensemble')

    def bind(
        self,
        student: nn.Module,
        taps: Mapping[str, str],
        owner: str = 'teacher',
        explained: Collection[str] = (),
    ) -> None:
        """Binds each member; see ``BaseTeacher``.

        Raises:
            ValueError: If gradients are to be taken, which the mean of several models does not have.
        """
        if explained:
            raise ValueError(
                f'{owner} is an ensemble, whose mean logits have no gradient by the mean of '
                f"{', '.join(sorted(explained))}; use the tap 'cam', or one teacher"
            )
        for i, member in enumerate(self.members):
            member.bind(student, taps, f'{owner}, member {i},', explained)

    def resolve(self, inputs: Tensor) -> dict[str, Any]:
        """Finds the taps in each member; see ``TapSet.resolve``."""
        values = [member.resolve(inputs) for member in self.members]
        for tap in values[0]:
            shapes = [tuple(value[tap].shape) for value in values]
            if len(set(shapes)) > 1:
                raise ValueError(
                    f'teacher.teachers: the members of the ensemble differ at tap {tap!r}: {shapes}'
                )
        return _mean(values)

    def compile_model(self, **kwargs: Any) -> None:
        """Compiles each member; see ``BaseTeacher``."""
        for member in self.members:
            member.compile_model(**kwargs)

    def load(self) -> None:
        """Loads the weights of each member."""
        for member in self.members:
            member.load()

    def forward(self, inputs: Tensor, data_samples: list | None = None) -> dict[str, Any]:
        """Runs the members; see ``BaseTeacher``."""
        return _mean([member(inputs, data_samples) for member in self.members])


def build_teacher(spec: Any) -> BaseTeacher:
    """Builds a teacher.

    Args:
        spec (dict | str | Path | nn.Module): The arguments of ``Teacher``; or a dict with the type of
            another teacher; or a model in any form of ``build_model``.

    Returns:
        BaseTeacher: The teacher, without its weights.

    Raises:
        ValueError: If ``Teacher`` has no such argument.
    """
    if isinstance(spec, BaseTeacher):
        return spec
    if isinstance(spec, dict) and 'type' in spec:
        kind = spec['type']
        kind = MODELS.get(kind) if isinstance(kind, str) else kind
        if isinstance(kind, type) and issubclass(kind, BaseTeacher):
            return build_part(spec)
    if not isinstance(spec, dict) or 'type' in spec:
        spec = dict(model=spec)
    unknown = set(spec) - {'model', 'checkpoint', 'pretrained', 'strict', 'dtype'}
    if unknown or 'model' not in spec:
        raise ValueError(
            f'teacher takes model, checkpoint, pretrained, strict and dtype, or a type; it has '
            f'{", ".join(spec)}'
        )
    return Teacher(**spec)


def _plain(value: Tensor | ClassMaps) -> Tensor | ClassMaps:
    """The value without a tensor of inference mode."""
    if isinstance(value, ClassMaps):
        return ClassMaps(_plain(value.features), value.weight, value.bias, keep=True)
    return value.clone() if value.is_inference() else value


def _mean(values: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of tensors or class maps over the members of an ensemble."""
    mean = {}
    for tap, first in values[0].items():
        maps = isinstance(first, ClassMaps)
        tensors = [value[tap].full() if maps else value[tap] for value in values]
        average = torch.stack(tensors).mean(0)
        mean[tap] = ClassMaps(average) if maps else average
    return mean
