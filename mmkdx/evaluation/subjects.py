"""Explaining several models for the same images and the same class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmkdx.arguments import integer
from mmkdx.distillation.composed_teachers import TeacherEnsemble
from mmkdx.distillation.distiller import Distiller
from mmkdx.distillation.teachers import BaseTeacher, build_teacher
from mmkdx.explain import Explainer, build_explainer
from mmkdx.explain.base import undisturbed
from mmkdx.functional import full_precision
from mmkdx.metrics.base import Explained
from mmkdx.models.families import describe, unwrap

#: Which class all models are explained for: that which the teacher or the student predicts, the
#: label, or for each model that which it predicts itself.
TARGETS = ('teacher', 'student', 'label', 'own')


@dataclass
class Subject:
    """A model that is explained.

    Args:
        model (nn.Module): The classifier.
        explainer (Explainer): What explains it.
        convert (Callable, optional): Brings images in the student's normalisation to the model's.
            Defaults to None (they agree).
        fixed (bool): Whether the model is the same at every evaluation. Defaults to False.
    """

    model: nn.Module
    explainer: Explainer
    convert: Callable[[Tensor], Tensor] | None = None
    fixed: bool = False

    def __post_init__(self) -> None:
        #: What the model is; see ``describe``.
        self.facts = describe(self.model)

    def predict(self, inputs: Tensor) -> Tensor:
        """The logits (N, K) of images (N, C, H, W), in eval mode, in fp32, without a graph."""
        with undisturbed(self.model, inputs), torch.no_grad():
            inputs = self.converted(inputs).to(next(self.model.parameters(), inputs))
            return full_precision(self.facts.logits(inputs))

    def explain(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The raw maps (N, h, w) of images (N, 3, H, W) for classes (N, )."""
        return self.explainer(self.model, self.converted(inputs), targets)

    def explained(self, maps: Tensor, logits: Tensor, targets: Tensor, fixed: bool) -> Explained:
        """What metrics get of this model.

        Args:
            maps (Tensor): The model's raw maps, of shape (N, h, w).
            logits (Tensor): Its logits, of shape (N, K).
            targets (Tensor): The explained classes, of shape (N, ).
            fixed (bool): Whether all of this is the same at every evaluation.
        """
        return Explained(
            maps,
            targets,
            logits,
            self.predict,
            self.explain,
            fixed,
            self.model,
            self.facts.probabilities,
        )

    def converted(self, inputs: Tensor) -> Tensor:
        """Images in the student's normalisation as the model takes them."""
        return inputs if self.convert is None else self.convert(inputs)


def choose_targets(
    policy: str, logits: dict[str, Tensor], labels: Tensor | None
) -> dict[str, Tensor]:
    """The class that each model is explained for.

    Args:
        policy (str): One of ``TARGETS``.
        logits (dict[str, Tensor]): Each model's logits of shape (N, K).
        labels (Tensor, optional): The labels of shape (N, ).

    Returns:
        dict[str, Tensor]: For each model class indices of shape (N, ).

    Raises:
        ValueError: If the policy needs labels and there are none.
    """
    if policy == 'own':
        return {name: values.argmax(1) for name, values in logits.items()}
    if policy == 'label':
        if labels is None:
            raise ValueError(
                "target='label' explains the labels, and the data samples have none ('gt_label')"
            )
        return dict.fromkeys(logits, labels)
    return dict.fromkeys(logits, logits[policy].argmax(1))


def build_explainers(spec: dict | str | Explainer, owner: str) -> dict[str, Explainer]:
    """The explainer of each model.

    Args:
        spec (dict | str | Explainer): One for all models, in any form of ``build_explainer``, or a
            dict of one for each ('student', 'teacher', 'base'; GradCAM where one is missing).
        owner (str): Whose argument ``explainer`` it is, for messages.

    Returns:
        dict[str, Explainer]: The explainers of 'student', 'teacher' and 'base'.

    Raises:
        ValueError: If there is no such explainer, or one is of several layers.
    """
    names = ('student', 'teacher', 'base')
    several = isinstance(spec, dict) and 'type' not in spec
    if several and (unknown := set(spec) - set(names)):
        raise ValueError(
            f'{owner}.explainer has no type and the keys {", ".join(sorted(map(str, unknown)))}; give '
            f'a type, or an explainer for each of {", ".join(names)}'
        )
    explainers = {
        name: build_explainer(
            spec.get(name, 'GradCAM') if several else spec,
            f'{owner}.explainer.{name}' if several else f'{owner}.explainer',
        )
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
) -> dict[str, Subject]:
    """The models that are explained beside each other.

    Args:
        model (nn.Module): A distiller, or any classifier, which is the student then.
        explainers (dict[str, Explainer]): The explainers of ``build_explainers``.
        owner (str): Whose arguments ``teacher`` and ``base`` are, for messages.
        teacher (int | dict | str | None): Which of the distiller's teachers (members of an ensemble
            count each), or a teacher in any form that ``Distiller`` takes, or None for none. Defaults
            to 0, if there is one.
        base (dict | str, optional): Another model in such a form. Defaults to None.

    Returns:
        dict[str, Subject]: The models: 'student', and where there are such 'teacher' and 'base'.

    Raises:
        ValueError: If there is no such teacher, or a model cannot be built or loaded.
        FileNotFoundError: If a checkpoint file does not exist.
    """
    model = unwrap(model)
    student = model.student if isinstance(model, Distiller) else model
    others = {'base': _build(base, student, f'{owner}.base')}
    if isinstance(teacher, int):
        integer(f'{owner}.teacher', teacher, 0)
        teachers: list[BaseTeacher] = []
        for each in getattr(model, 'teachers', ()):
            teachers += each.members if isinstance(each, TeacherEnsemble) else [each]
        if teacher >= max(len(teachers), 1):
            raise ValueError(f'{owner}.teacher is {teacher} and there are {len(teachers)} teachers')
        others = {'teacher': teachers[teacher] if teachers else None, **others}
    else:
        others = {'teacher': _build(teacher, student, f'{owner}.teacher'), **others}
    subjects = {'student': Subject(student, explainers['student'])}
    for name, other in others.items():
        if other is not None:
            other.load()
            subjects[name] = Subject(
                other.model, explainers[name], other.convert, fixed=not other.trained_along
            )
    return subjects


def _build(spec: Any, student: nn.Module, key: str) -> BaseTeacher | None:
    """A model beside the student, on its device, with its weights."""
    if spec is None:
        return None
    try:
        # The weights that it begins with take random numbers, which are the training's
        with torch.random.fork_rng():
            model = build_teacher(spec)
        model.bind(student, {}, key)
        model.load()
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f'{key}: {error}') from error
    return model.to(next(student.parameters()).device)
