"""Frozen models that a student learns from."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mmkdx import arguments
from mmkdx.distillation import checks
from mmkdx.distillation.class_order import ClassNames, classes_in
from mmkdx.distillation.input_bridge import checked_normalization, input_bridge
from mmkdx.distillation.models import ModelSpec, build_model, build_part, load_file, weights_source
from mmkdx.functional import map_tensors, no_autocast
from mmkdx.models.families import describe, forward_tensor, unwrap
from mmkdx.models.libraries import has_own_weights, names_network
from mmkdx.models.taps import TapSet
from mmkdx.registry import MODELS


class BaseTeacher(nn.Module):
    """Base class of teachers: always in eval mode, without gradients, never part of a student.

    A deep copy of a distiller (mmengine's ``EMAHook`` makes one) shares the teacher.
    """

    #: Whether the teacher changes while the student trains, so that a checkpoint must hold it.
    trained_along = False
    #: Whether its outputs depend on the labels, which a cache does not hold.
    needs_labels = False
    #: What its outputs depend on beside its models, as text that a cache compares.
    settings = ''

    def bind(
        self,
        student: nn.Module,
        taps: Mapping[str, str],
        owner: str = 'teacher',
        explained: Collection[str] = (),
    ) -> None:
        """Gives the teacher, once, its student and the taps that will be read.

        Args:
            student (nn.Module): The student.
            taps (Mapping[str, str]): The taps, each with the config key that asks for it.
            owner (str): The teacher's name in error messages. Defaults to 'teacher'.
            explained (Collection[str]): The taps for which gradients of the logits will be taken.
        """
        self.taps = TapSet(taps, owner, explained, f'resize of the {owner}, or model.input_size,')
        self.prepare(student)

    def prepare(self, student: nn.Module) -> None:
        """Does what depends on the student; called at the end of ``bind``."""

    def activations(self) -> set[str]:
        """What turns the logits of its models into probabilities: 'softmax', 'sigmoid' or both."""
        parts = [each for each in self.modules() if isinstance(each, BaseTeacher)]
        return {describe(each.model).activation for each in parts if hasattr(each, 'model')}

    def resolve(self, inputs: Tensor) -> dict[str, Any]:
        """Finds the taps in the teacher; see ``TapSet.resolve``."""
        return self.taps.resolve(self.model, self.convert(inputs))

    def compile_model(self, **kwargs: Any) -> None:
        """Compiles the parts between taps, after ``resolve``; see ``TapSet.compile``."""
        self.taps.compile(self.model, **kwargs)

    def load(self) -> None:
        """Loads the weights, once, before training."""

    def match_classes(self, names: Sequence[str] | None) -> None:
        """Compares the names of the teacher's classes, if it has any, with the data set's."""

    def update(self, student: nn.Module) -> None:
        """Updates the teacher before a training step, if it changes with the student."""

    def convert(self, inputs: Tensor) -> Tensor:
        """Brings the student's preprocessed images (N, 3, H, W) to the form that ``model`` takes."""
        return inputs

    @torch.no_grad()
    def forward(self, inputs: Tensor, data_samples: list | None = None) -> dict[str, Any]:
        """Runs the teacher on the student's preprocessed images (N, 3, H, W).

        Returns:
            dict[str, Any]: A tensor or class maps for each tap. They have no gradients, except with
            respect to the explained taps.
        """
        inputs = self.convert(inputs)
        # Inference mode avoids autograd's bookkeeping. Its tensors cannot be saved for a backward
        # pass, so the tensors that terms read are copied.
        with torch.inference_mode(not self.taps.explained), self.taps.record(self.model) as values:
            forward_tensor(self.model, inputs)
        return {name: map_tensors(_plain, value) for name, value in values.items()}

    def train(self, mode: bool = True) -> BaseTeacher:
        """Stays in eval mode, dropout and stochastic depth included."""
        return super().train(False)

    def __deepcopy__(self, memo: dict) -> BaseTeacher:
        return self


@MODELS.register_module()
class Teacher(BaseTeacher):
    """A trained, frozen model.

    The student's images are converted to the teacher's normalisation if ``describe`` knows it.
    The classes of the teacher and of the data set are compared by name before training.

    Args:
        model (dict | str | nn.Module): The model, in the forms of ``Distiller.student``. A module is
            taken over: it is frozen and put into eval mode.
        checkpoint (str, optional): A file or URL with its weights. The student's weights are taken
            from a checkpoint of a distillation run. Defaults to None.
        pretrained (bool): Whether to download the weights that mmpretrain's zoo, or the library that
            ``model`` names, has for it. Defaults to False.
        strict (bool): Whether the weights must fit exactly. Defaults to True.
        dtype (str, optional): 'float16' or 'bfloat16' holds and runs the teacher in half precision,
            'float32' runs it in full precision also under autocast. Defaults to None: fp32 weights,
            and autocast as for the student.
        normalize (dict | str, optional): The teacher's normalisation, ``dict(mean=..., std=...,
            to_rgb=...)`` as in a data preprocessor, or 'same' for the student's. Defaults to None:
            the model's own; a warning names this key if it is unknown.
        resize (int | Sequence[int], optional): Height and width to which the student's images are
            resized for the teacher. Defaults to None (not resized).
        classes (str | Sequence[str] | dict, optional): 'match' selects the data set's classes among
            the teacher's by the names in the checkpoint. A list gives the teacher's names. A dict
            maps classes of the data set to the teacher's, by name or index. A list of these sums
            their probabilities: ``dict(cat=['tabby', 'tiger cat'], dog=range(151, 269))``. Defaults
            to None: another order is an error.

    Raises:
        ValueError: If arguments do not fit together, a name does not exist, or the weights do not
            fit.
        FileNotFoundError: If the checkpoint file does not exist (from ``load``).
    """

    def __init__(
        self,
        model: ModelSpec,
        checkpoint: str | None = None,
        pretrained: bool = False,
        strict: bool = True,
        dtype: str | None = None,
        normalize: dict | str | None = None,
        resize: int | Sequence[int] | None = None,
        classes: str | Sequence[str] | Mapping | None = None,
    ) -> None:
        super().__init__()
        arguments.one_of('teacher.dtype', dtype, (None, 'float16', 'bfloat16', 'float32'))
        self.strict = arguments.flag('teacher.strict', strict)
        self.normalize = checked_normalization('teacher.normalize', normalize)
        self.size = None if resize is None else arguments.size('teacher.resize', resize)
        self.checkpoint = weights_source(model, checkpoint, pretrained)
        has_weights = isinstance(model, nn.Module) or has_own_weights(model)
        self._own_weights = has_weights and self.checkpoint is None
        #: Whether the config's weights are loaded and its order of classes is applied.
        self.loaded = self._own_weights and classes is None
        self.dtype = dtype and getattr(torch, dtype)
        self.model = unwrap(build_model(model, 'teacher.model'))
        self.bridge: nn.Module = nn.Identity()
        self._names = ClassNames(classes)
        #: The names of its classes; those of the checkpoint are known after ``load``.
        self.classes = self._names.given or describe(self.model).classes
        self.requires_grad_(False).train()

    def prepare(self, student: nn.Module) -> None:
        """Prepares the conversion of the student's images and the comparison of its classes."""
        owner = self.taps.owner
        self.bridge = input_bridge(student, self.model, self.normalize, self.size, owner).eval()
        self._names.meet(student)
        if self.dtype:
            self.model.to(self.dtype)

    def resolve(self, inputs: Tensor) -> dict[str, Any]:
        """Finds the taps in the teacher, with as many classes as the student; see ``BaseTeacher``."""
        with self._names.foreseen(self.model, inputs):
            return super().resolve(inputs)

    def load(self) -> None:
        """Loads the weights if they are not loaded yet, and compares the names of classes."""
        if not self.loaded and not self._own_weights:
            state = load_file(self.model, self.checkpoint, self.strict)
            self.train()  # in eval mode some backbones use values computed from their weights
            self.classes = self._names.given or classes_in(state) or self.classes
        self.classes = self._names.settle(self.model, self.classes, getattr(self, 'taps', None))
        self.loaded = True

    def match_classes(self, names: Sequence[str] | None) -> None:
        """Compares the names of the teacher's classes with a data set's, and matches them if asked.

        Raises:
            ValueError: If the order differs and ``classes`` is None, or names do not correspond.
        """
        self._names.wanted = names
        self.load()

    def keep_random_weights(self, names: Sequence[str] | None) -> None:
        """Keeps random weights, for a dry run, and maps the classes as far as names are known."""
        self.loaded = True
        if names and self._names.by_name:
            self._names.settle_without_weights(self.model, names, self.classes)

    def forward(self, inputs: Tensor, data_samples: list | None = None) -> dict[str, Any]:
        """Runs the teacher in its own normalisation and precision."""
        if not self.loaded and (self._own_weights or self.checkpoint is not None):
            self.load()  # a distiller that is used without a Runner
        with no_autocast(inputs) if self.dtype else nullcontext():
            return super().forward(inputs)

    def convert(self, inputs: Tensor) -> Tensor:
        """Brings images to the teacher's normalisation, size and precision."""
        inputs = self.bridge(inputs)
        return inputs.to(self.dtype) if self.dtype else inputs


def build_teacher(spec: Any) -> BaseTeacher:
    """Builds a teacher, without its weights, from any form of ``Distiller.teacher``."""
    if isinstance(spec, BaseTeacher):
        return spec
    kind = spec.get('type') if isinstance(spec, dict) else None
    if names_network(kind):
        spec, kind = dict(model=spec), None
    found = MODELS.get(kind) if isinstance(kind, str) else kind
    if isinstance(found, type) and issubclass(found, BaseTeacher):
        return build_part(spec)
    if kind or not isinstance(spec, dict):
        spec = dict(model=spec)
    checks.teacher_config(spec, Teacher)
    return Teacher(**spec)


def _plain(value: Tensor) -> Tensor:
    return value.clone() if value.is_inference() else value
