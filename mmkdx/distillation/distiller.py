"""The model that trains a student from its teachers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from mmkdx.arguments import flag, number, size
from mmkdx.distillation import checks
from mmkdx.distillation.balance import Balance, measured_taps
from mmkdx.distillation.checkpoint import from_checkpoint, to_checkpoint
from mmkdx.distillation.finite_watch import FiniteWatch
from mmkdx.distillation.labels import index_of, labels_of
from mmkdx.distillation.models import ModelSpec, build_student
from mmkdx.distillation.places import Place, names_of
from mmkdx.distillation.teachers import BaseTeacher, build_teacher
from mmkdx.distillation.terms import Term, build_term
from mmkdx.functional import no_autocast
from mmkdx.models.families import describe
from mmkdx.models.flow import fake_images
from mmkdx.models.intercept import fake_forward
from mmkdx.models.path_tap import find_tap
from mmkdx.models.taps import TapSet
from mmkdx.registry import MODELS


@MODELS.register_module()
class Distiller(BaseModel):
    """Trains a student with its own loss and any number of terms, with or without teachers.

    In ``tensor`` and ``predict`` mode it *is* the student. Its state dict has the student's names,
    without a prefix. Other parts (adapters, an EMA teacher) have the prefix ``distill.``. So plain
    mmpretrain loads a checkpoint of a distillation, and ``load_from`` takes a plain student's file.

    All parts are built in the scope ``mmkdx``, whatever the config's ``default_scope``.

    Args:
        student (dict | str | nn.Module): A classifier: a model dict, a config path, ``pkg::path``, a
            model name of mmpretrain's zoo (without its weights), a network of another library
            (``timm::resnet18``), or a module. ``PlainClassifier`` wraps a network that lacks
            mmpretrain's interface.
        teacher (dict | str | nn.Module | list, optional): The arguments of ``Teacher``, another
            teacher's type and arguments, or a model as for the student; or a list of these. Defaults
            to None (no teacher).
        terms (dict[str, dict], optional): The arguments of ``Term`` for each term, by name. Defaults
            to None (the student's own loss alone).
        student_weight (float): The weight of the student's own losses. With 0 they are not computed
            and labels are not used. Defaults to 1.
        input_size (int | Sequence[int], optional): Height and width of the images, for finding the
            shapes at the taps. Defaults to None: the student's input size if it is known, else 224.
            The terms are checked again for a batch of another size.
        data_preprocessor (dict, optional): The preprocessor of a student whose config has none.
        channels_last (bool): Whether the student, the teachers and the images use channels-last memory,
            which convolutions on a GPU with tensor cores prefer. Defaults to False.
        compile (bool | dict): Whether ``torch.compile`` compiles the student and the teachers between
            the taps, or a dict of its arguments. Defaults to False.
        init_cfg (dict, optional): The initialisation, as for mmengine's ``BaseModule``.

    Raises:
        ValueError: If the parts do not fit together; the message names the config key.
    """

    def __init__(
        self,
        student: ModelSpec,
        teacher: Any = None,
        terms: dict[str, dict] | None = None,
        student_weight: float = 1.0,
        input_size: int | Sequence[int] | None = None,
        data_preprocessor: dict | None = None,
        channels_last: bool = False,
        compile: bool | dict = False,
        init_cfg: dict | None = None,
    ) -> None:
        built = build_student(student, data_preprocessor)
        super().__init__(data_preprocessor=built.data_preprocessor, init_cfg=init_cfg)
        self.student = built
        # A student that is given as a module keeps its weights.
        self.student.is_init = isinstance(student, nn.Module)
        teachers = teacher if isinstance(teacher, (list, tuple)) else [teacher]
        # A tuple is not a sub-module: teachers stay out of state dict, optimizer, DDP and train().
        self.teachers: tuple[BaseTeacher, ...] = tuple(
            build_teacher(each) for each in teachers if each is not None
        )
        self.student_weight = number('student_weight', student_weight, 0)
        checks.terms(terms, self.teachers, student_weight, built)
        built_terms = {name: build_term(name, config) for name, config in (terms or {}).items()}
        self.terms = nn.ModuleDict(built_terms)
        self._watch, self._balance = FiniteWatch(), Balance()
        #: The image sizes for which the terms are checked.
        self._probed: set[tuple[int, ...]] = set()
        if input_size is None:
            input_size = describe(built).images.size or 224
        sides = size('input_size', input_size)
        flag('channels_last', channels_last)
        self._format = torch.channels_last if channels_last else torch.preserve_format
        self._bind(sides)
        self.probe(sides)
        if channels_last:
            nn.Module.to(self, memory_format=self._format)  # BaseModel's `to` looks for a device
        if isinstance(compile, dict) or flag('compile', compile):
            arguments = compile if isinstance(compile, dict) else {}
            self._taps.compile(self.student, **arguments)
            for teacher in self._compared.values():
                teacher.compile_model(**arguments)
        #: The hook's handle; ``FullyShardedDistiller`` removes it and names the tensors itself.
        self.checkpoint_names = self.register_state_dict_post_hook(to_checkpoint)
        self.register_load_state_dict_pre_hook(from_checkpoint)

    def init_weights(self) -> None:
        """Initialises the student, as its config says, and loads the teachers' weights."""
        super().init_weights()
        for teacher in self.teachers:
            teacher.load()

    def forward(
        self, inputs: Tensor, data_samples: list | None = None, mode: str = 'tensor'
    ) -> Any:
        """The student's forward; see ``loss`` for the mode with the terms.

        Args:
            inputs (Tensor): Preprocessed images of shape (N, 3, H, W).
            data_samples (list, optional): The labels, as mmpretrain's ``DataSample``.
            mode (str): 'tensor', 'predict' or 'loss'. Defaults to 'tensor'.
        """
        inputs = inputs.to(memory_format=self._format)
        if mode != 'loss':
            return self.student(inputs, data_samples, mode)
        return self.loss(inputs, data_samples)

    def loss(self, inputs: Tensor, data_samples: list | None = None) -> dict[str, Tensor]:
        """The student's own losses, under ``student.<key>``, and each term under ``loss_<term>``."""
        if tuple(inputs.shape[2:]) not in self._probed:
            self.probe(inputs.shape[2:])
        labels, index = labels_of(data_samples), index_of(data_samples)
        if self.student_weight:
            checks.labels(labels, self._activation)
        truth = {}
        for i, teacher in self._compared.items():
            if self.training:
                teacher.update(self.student)
            truth[i] = teacher(inputs, data_samples)
        mode = 'loss' if self.student_weight else 'tensor'
        with self._taps.record(self.student) as student:
            output = self.student(inputs, data_samples, mode=mode)
        losses, terms = {}, {}
        if self.student_weight:
            for key, value in output.items():
                # Without the prefix, a head's key `loss` would hide mmengine's total of that name
                losses[f'student.{key}'] = value * self.student_weight if 'loss' in key else value
        for name, term in self.terms.items():
            given = dict(index=index, inputs=inputs, **self._models(term))
            terms[name] = term(*term.values(student, truth), labels, **given)
        terms, logs = self._balance(self.terms, terms, losses, student, self.training)
        named = {f'terms.{name}': value for name, value in terms.items()}
        self._watch({'images': inputs, **losses, **named})
        if not self.student_weight:
            # Every parameter gets a gradient, so that DDP need not look for unused ones.
            terms[name] = terms[name] + 0 * describe(self.student).logits_in(output).float().mean()
        return {**losses, **{f'loss_{name}': value for name, value in terms.items()}, **logs}

    def probe(self, size: Sequence[int]) -> dict[str, tuple[Any, Any]]:
        """Finds and checks, without computing, what each term compares for images (height, width).

        Returns:
            dict[str, tuple]: For each term, the student's and the teacher's fake values of two
                images.

        Raises:
            ValueError: If a tap is missing, or a term cannot compare the values at its taps.
        """
        # Autocast would keep fake copies of the weights for the next real forward.
        with no_autocast(next(self.student.parameters())), fake_forward(self.student):
            images = fake_images(self.student, size)
            student = self._taps.resolve(self.student, images)
            truth = {i: teacher.resolve(images) for i, teacher in self._compared.items()}
            places = {name: term.values(student, truth) for name, term in self.terms.items()}
            for name, term in self.terms.items():
                checks.maps(term, places[name][0], self.student, images)
        for name, term in self.terms.items():
            models = self._models(term)
            resized = getattr(models['teacher_model'], 'size', None)
            term.connect(*places[name], (size, resized or size), **models)
        self._probed.add(tuple(size))
        return places

    def _apply(self, fn: Any, recurse: bool = True) -> Distiller:
        # Teachers follow the student to another device.
        super()._apply(fn, recurse)
        for teacher in self.teachers:
            teacher._apply(fn)
        return self

    def _bind(self, size: Sequence[int]) -> None:
        #: What turns the student's logits into probabilities.
        self._activation = describe(self.student).activation
        for term in self.terms.values():
            term.locate(self.student, size)
            checks.head(term, 'student', self._activation)
            checks.teacher(term, len(self.teachers))
        terms = list(self.terms.values())
        taps, explained = _taps([(term, term.student_tap) for term in terms])
        measured = measured_taps(terms, self.student_weight)
        self._taps = TapSet({**measured, **taps}, 'student', explained, measured=measured)
        for i, teacher in enumerate(self.teachers):
            taught = [term for term in terms if term.taught and term.teacher == i]
            taps, explained = _taps([(term, term.teacher_tap) for term in taught])
            owner = f'teacher {i}' if len(self.teachers) > 1 else 'teacher'
            teacher.bind(self.student, taps, owner, explained)
            for term, activation in itertools.product(taught, teacher.activations()):
                checks.head(term, owner, activation)

    @property
    def weights_read(self) -> list[str]:
        """The paths of the student's modules whose weights terms read after the forward."""
        return self._taps.weights_read

    @property
    def _compared(self) -> dict[int, BaseTeacher]:
        """The teachers that a term reads."""
        return {t.teacher: self.teachers[t.teacher] for t in self.terms.values() if t.taught}

    def _models(self, term: Term) -> dict[str, nn.Module | None]:
        """The student, and the teacher that a term reads."""
        return dict(model=self.student, teacher_model=self._compared.get(term.teacher))


def _taps(places: list[tuple[Term, Place]]) -> tuple[dict[str, str], set[str]]:
    """The taps of places with their config keys, and the taps that gradients are taken for."""
    taps = {tap: f'{term.key}.at' for term, place in places for tap in names_of(place)}
    explains = {tap for term, place in places if term.explains for tap in names_of(place)}
    return taps, {tap for tap in explains if find_tap(tap).starts_graph}
