"""Explaining several models for the same images and the same class."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mmkdx.arguments import integer
from mmkdx.distillation.distiller import Distiller
from mmkdx.distillation.teachers import BaseTeacher, build_teacher
from mmkdx.explain import Explainer, build_explainer
from mmkdx.explain.base import undisturbed
from mmkdx.explain.targets import Targets
from mmkdx.functional import full_precision
from mmkdx.metrics.base import Explained
from mmkdx.models.families import describe, unwrap

#: The class that all models are explained for, and how a report calls it.
TARGETS = {
    'teacher': 'what the teacher predicts',
    'student': 'what the student predicts',
    'label': 'the label',
    'own': 'what each model predicts itself',
}


@dataclass
class Subject:
    """A model that is explained.

    Args:
        model (nn.Module): The classifier.
        explainer (Explainer): Its explainer.
        convert (Callable): From the student's normalisation to the model's. Defaults to the identity.
        fixed (bool): Whether the model is the same at every evaluation. Defaults to False.
        classes (Sequence[str], optional): The names of its classes. Defaults to None: those that the
            model knows.
    """

    model: nn.Module
    explainer: Explainer
    convert: Callable[[Tensor], Tensor] = nn.Identity()
    fixed: bool = False
    classes: Sequence[str] | None = None

    def __post_init__(self) -> None:
        #: See ``describe``.
        self.facts = describe(self.model)
        self.classes = self.classes or self.facts.classes

    def __str__(self) -> str:
        count = sum(parameter.numel() for parameter in self.model.parameters())
        size = f'{count / 1e6:.3g} M' if count >= 1e6 else f'{count / 1e3:.3g} k'
        return f'{self.facts.name}, {size} parameters'

    def predict(self, inputs: Tensor) -> Tensor:
        """The logits (N, K) of images (N, C, H, W), in eval mode, in fp32, without a graph."""
        with undisturbed(self.model, inputs), torch.no_grad():
            inputs = self.convert(inputs).to(next(self.model.parameters(), inputs))
            return full_precision(self.facts.logits(inputs))

    def explain(self, inputs: Tensor, targets: Targets) -> Tensor:
        """The raw maps (N, h, w) of images (N, 3, H, W) for classes (N, ), or a function's score."""
        return self.explainer(self.model, self.convert(inputs), targets)

    def explained(self, maps: Tensor, logits: Tensor, targets: Tensor, fixed: bool) -> Explained:
        """Adds the model to its maps (N, h, w), logits (N, K) and targets (N, ), for metrics."""

        def like(other: nn.Module) -> Explained:
            return replace(self, model=other).explained(maps, logits, targets, fixed)

        predict, explain, probabilities = self.predict, self.explain, self.facts.probabilities
        return Explained(
            maps, targets, logits, predict, explain, fixed, self.model, probabilities, like
        )


def choose_targets(
    policy: str, logits: dict[str, Tensor], labels: Sequence[int] | None
) -> dict[str, Tensor]:
    """The class indices (N, ) that each model is explained for, by one of ``TARGETS``.

    They come from the models' logits (N, K) or from the N labels, where these are known.

    Raises:
        ValueError: If the policy needs labels and there are none.
    """
    if policy == 'own':
        return {name: values.argmax(1) for name, values in logits.items()}
    if policy != 'label':
        return dict.fromkeys(logits, logits[policy].argmax(1))
    if labels is None:
        raise ValueError(
            "target='label' explains the labels, and the data samples have none ('gt_label')"
        )
    return dict.fromkeys(logits, torch.tensor(labels, device=logits['student'].device))


def build_explainers(spec: dict | str | Explainer, owner: str) -> dict[str, Explainer]:
    """The explainers of 'student', 'teacher' and 'base'.

    Args:
        spec (dict | str | Explainer): One for all models, in any form of ``build_explainer``, or a
            dict of one for each (GradCAM where one is missing).
        owner (str): The owner of the argument ``explainer``, for messages.

    Raises:
        ValueError: If there is no such explainer, or one explains several layers.
    """
    names = ('student', 'teacher', 'base')
    if not isinstance(spec, dict) or 'type' in spec:
        explainers = dict.fromkeys(names, build_explainer(spec, f'{owner}.explainer'))
    elif unknown := set(spec) - set(names):
        raise ValueError(
            f'{owner}.explainer has no type and the keys {", ".join(sorted(map(str, unknown)))}; give '
            f'a type, or an explainer for each of {", ".join(names)}'
        )
    else:
        explainers = {
            name: build_explainer(spec.get(name, 'GradCAM'), f'{owner}.explainer.{name}')
            for name in names
        }
    if any(not isinstance(getattr(each, 'layer', ''), str) for each in explainers.values()):
        raise ValueError(f'{owner}.explainer.layer is a list; it takes one layer')
    return explainers


def find_subjects(
    model: nn.Module,
    explainers: dict[str, Explainer],
    owner: str,
    teacher: Any = 0,
    base: Any = None,
    classes: Sequence[str] | None = None,
) -> dict[str, Subject]:
    """The explained models: 'student', and 'teacher' and 'base' if they are given.

    Args:
        model (nn.Module): A distiller, or any classifier, which is the student then.
        explainers (dict[str, Explainer]): The explainers of ``build_explainers``.
        owner (str): The owner of the arguments ``teacher`` and ``base``, for messages.
        teacher (int | dict | str | None): See ``ExplanationEvaluator``. Defaults to 0.
        base (dict | str, optional): See ``ExplanationEvaluator``. Defaults to None.
        classes (Sequence[str], optional): The names of the data set's classes, with which those of a
            given teacher and base model are compared. Defaults to None (unknown).

    Raises:
        ValueError: If there is no such teacher, a model cannot be built or loaded, or its classes have
            another order, or it has none.
        FileNotFoundError: If a checkpoint file does not exist.
    """
    model = unwrap(model)
    student = model.student if isinstance(model, Distiller) else model
    if isinstance(teacher, int):
        integer(f'{owner}.teacher', teacher, 0)
        teachers: list[BaseTeacher] = []
        for each in getattr(model, 'teachers', ()):
            teachers += getattr(each, 'members', [each])  # those of an ensemble
        if teacher >= max(len(teachers), 1):
            raise ValueError(f'{owner}.teacher is {teacher} and there are {len(teachers)} teachers')
        chosen = teachers[teacher] if teachers else None
    else:
        chosen = _build(teacher, student, f'{owner}.teacher', classes)
    subjects = {'student': Subject(student, explainers['student'])}
    others = dict(teacher=chosen, base=_build(base, student, f'{owner}.base', classes))
    for name, other in others.items():
        if other is not None:
            other.load()
            subjects[name] = Subject(
                other.model,
                explainers[name],
                other.convert,
                fixed=not other.trained_along,
                classes=getattr(other, 'classes', None),
            )
    for name, subject in subjects.items():
        if subject.facts.num_classes == 0:
            raise ValueError(
                f'{owner}: the {name} returns an embedding and has no class to explain; an explainer '
                'by itself takes a function as target, such as mmkdx.explain.CosineTarget'
            )
    return subjects


def _build(
    spec: Any, student: nn.Module, key: str, classes: Sequence[str] | None
) -> BaseTeacher | None:
    """A model beside the student, on its device, with its weights."""
    if spec is None:
        return None
    if isinstance(spec, dict) and spec.get('classes') and isinstance(spec.get('model'), nn.Module):
        # The caller's module keeps the order of its classes
        spec = {**spec, 'model': copy.deepcopy(spec['model'])}
    try:
        # The weights that it begins with take random numbers, which are the training's
        with torch.random.fork_rng():
            model = build_teacher(spec)
        model.bind(student, {}, key)
        model.match_classes(classes)
        model.load()
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f'{key}: {error}') from error
    return model.to(next(student.parameters()).device)
