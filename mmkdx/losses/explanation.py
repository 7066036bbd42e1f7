"""Losses between the explanations of student and teacher."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import set_stance

from mmkdx import arguments
from mmkdx.explain.base import Explainer, build_explainer
from mmkdx.explain.gradient import BaseCAM, GradCAM
from mmkdx.functional import ClassMaps, degenerate_maps, full_precision, resize_maps
from mmkdx.losses.base import DistillLoss
from mmkdx.models.intercept import evaluating
from mmkdx.registry import EXPLAINERS, MODELS

#: Below this length a map counts as zero; maps of deep networks are small, and no smaller than this.
EPS = 1e-12


@MODELS.register_module()
class ExplanationMapLoss(DistillLoss):
    r"""Matches the explanations of a class, with any explainer of each model.

    An explainer says where a model sees a class: Grad-CAM of a convolutional network, attention of a
    transformer. Both maps explain the same class, are resized to one size and scaled to length 1, so
    that models of different families can be compared::

        dict(type='ExplanationMapLoss', at='logits', explainer='GradientRollout',
             teacher_explainer='GradCAM', distance='cosine', weight=5.0)

    With 'cosine', :math:`L = 1 - \cos(M^s, M^t)`, the loss of e²KD (see ``E2KDLoss``). The squared
    distance of the maps would be twice that. With 'l1', :math:`L = \sum_{ij} |M^s_{ij} / \|M^s\| -
    M^t_{ij} / \|M^t\||`, of Dhar et al., "Learning without memorizing", CVPR 2019. Both are means over
    the batch. A zero map has similarity 0 and no gradient; the shares of zero and constant maps are
    logged as ``<term>.dead`` and ``<term>.teacher_dead``.

    The student is explained in a second forward, in eval mode and full precision, with gradients to all
    its parameters. In training mode dropout would leave attention unknown, and batch norm would mix the
    images and count them twice. So the maps are those that the explainer shows after training. The
    teacher is explained in each step, also with ``CachedTeacher``, which has its logits alone.

    Args:
        explainer (dict | str): The student's explainer, one that takes ``differentiable``, such as
            'GradCAM', 'GradientRollout' or 'LeGrad'. Defaults to 'GradCAM'.
        teacher_explainer (dict | str, optional): The teacher's, any explainer. Defaults to None: the
            student's.
        distance (str): 'cosine' or 'l1'. Defaults to 'cosine'.
        size (int | Sequence[int], optional): Height and width to which maps are resized. Defaults to
            None: the larger of both maps, so that no map loses detail.
        target (str): The class that is explained: 'pred', the teacher's prediction, or 'label', the
            label, also one of several with weights. Defaults to 'pred'.
        relu (bool): Whether negative evidence is left out. Set False for methods whose sign matters,
            such as ``InputGradient`` with ``multiply``. Defaults to True.
    """

    compares = 'logits'
    needs: tuple[str, ...] = ('teacher', 'target', 'inputs', 'model', 'teacher_model')
    activation = None

    def __init__(
        self,
        explainer: dict | str = 'GradCAM',
        teacher_explainer: dict | str | None = None,
        distance: str = 'cosine',
        size: int | Sequence[int] | None = None,
        target: str = 'pred',
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.explainer = _build(explainer, 'explainer', True)
        given = explainer if teacher_explainer is None else teacher_explainer
        self.teacher_explainer = _build(given, 'teacher_explainer', False)
        self.distance = arguments.one_of('distance', distance, ('cosine', 'l1'))
        self.size = None if size is None else arguments.size('size', size)
        self.relu = arguments.flag('relu', relu)
        if arguments.one_of('target', target, ('pred', 'label')) == 'pred':
            self.needs = tuple(need for need in self.needs if need != 'target')
        elif not (self.explainer.class_specific and self.teacher_explainer.class_specific):
            raise ValueError(
                "target is 'label', and an explainer makes the same map for all classes; remove target, "
                'or choose an explainer of classes'
            )

    def check(
        self,
        student: Tensor,
        teacher: Tensor,
        inputs: Tensor | None = None,
        model: nn.Module | None = None,
        teacher_model: nn.Module | None = None,
    ) -> None:
        """Explains an image by both models, so that what they refuse shows before training.

        Raises:
            ValueError: If a model cannot be explained by its explainer, or the teacher is none.
        """
        if inputs is None:
            return
        if not isinstance(getattr(teacher_model, 'model', None), nn.Module):
            raise ValueError(
                f'the teacher is a {type(teacher_model).__name__}, and only a single model can be '
                'explained; use one teacher'
            )
        self.explain(inputs, model, teacher_model, torch.zeros(1, dtype=int, device=inputs.device))

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        inputs: Tensor | None = None,
        model: nn.Module | None = None,
        teacher_model: nn.Module | None = None,
    ) -> Tensor:
        """Compares the explanations of a class; 'cosine' lies in [0, 2], with ``relu`` in [0, 1].

        Args:
            student (Tensor): The student's logits (N, K).
            teacher (Tensor): The teacher's logits (N, K).
            target (Tensor, optional): Classes (N, ) or their weights (N, K), for ``target='label'``.
            inputs (Tensor): The student's images (N, C, H, W).
            model (nn.Module): The student.
            teacher_model (nn.Module): The teacher, see ``DistillLoss``.
        """
        classes = teacher.argmax(1) if target is None else target
        if classes.dim() == 1:
            # Explainers read the values of indices, and the step would wait for them
            classes = F.one_hot(classes, student.shape[1]).to(student)
        return self.distance_between(*self.explain(inputs, model, teacher_model, classes))

    def explain(
        self, inputs: Tensor, model: nn.Module, teacher_model: nn.Module, classes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The maps (N, h, w) of the student, with gradients where they are switched on, and the teacher.

        Args:
            inputs (Tensor): The student's images (N, C, H, W).
            model (nn.Module): The student.
            teacher_model (nn.Module): The teacher, see ``DistillLoss``.
            classes (Tensor): The classes (N, ), or their weights (N, K).
        """
        trains = torch.is_grad_enabled()
        # Compiled code has no second derivative
        with set_stance('force_eager'):
            with arguments.errors_named('teacher_explainer: '):
                images = teacher_model.convert(inputs)
                teacher = self.teacher_explainer(teacher_model.model, images, classes)
            with arguments.errors_named('explainer: '), evaluating(model), torch.enable_grad():
                student = self.explainer(model, inputs, classes)
        return student if trains else student.detach(), teacher

    def distance_between(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The mean distance of maps (N, h, w), whose sizes may differ."""
        if self.relu:
            student, teacher = student.relu(), teacher.relu()
        self.logs = {
            key: degenerate_maps(maps.detach()).float().mean()
            for key, maps in (('dead', student), ('teacher_dead', teacher))
        }
        sides = zip(student.shape[1:], teacher.shape[1:])
        size = self.size or [max(each) for each in sides]
        student, teacher = (resize_maps(maps, size).flatten(1) for maps in (student, teacher))
        if self.distance == 'cosine':
            return 1 - F.cosine_similarity(student, teacher, dim=1, eps=EPS).mean()
        student, teacher = (F.normalize(maps, dim=1, eps=EPS) for maps in (student, teacher))
        return (student - teacher).abs().sum(1).mean()


@MODELS.register_module()
class E2KDLoss(ExplanationMapLoss):
    r"""e²KD: matches the explanations of the class that the teacher predicts.

    Source: Parchami-Araghi et al., "Good Teachers Explain: Explanation-Enhanced Knowledge
    Distillation", ECCV 2024, a reading of its public code. For the class that the teacher predicts,
    :math:`L = 1 - \cos(relu(M^s), relu(M^t))`, with the maps resized to the images; mean over the batch.
    The paper adds it, weighted, to the KL divergence of the logits (``KLDivLoss``), and uses no labels
    (``student_weight=0``).

    At ``at='cam'`` the Grad-CAM maps cost no backward pass through the network. Behind a head with a
    norm (layer norm, cosine) its divisor is taken as a number, as else half of each map would be
    negative whatever the class. For any other layer, name the layer and the logits,
    ``at=(['backbone.layer4', 'logits'], ['backbone.layer4', 'logits'])``: the explainer then takes its
    gradients in the step's own forwards. At ``at='logits'`` any explainer explains the models in
    forwards of its own, as in ``ExplanationMapLoss``. Gradients reach the student through its
    activations and their weights. A zero map has similarity 0 and no gradient; the shares of zero and
    constant maps are logged as ``<term>.dead`` and ``<term>.teacher_dead``.

    Args:
        size (int | Sequence[int]): Height and width of the images, to which maps are resized. The
            similarity of small maps depends on it.
        explainer (dict | str): The student's explainer. Defaults to 'GradCAM', the paper's.
        teacher_explainer (dict | str, optional): The teacher's. Defaults to None: the student's.
    """

    compares = 'anything'
    needs = ('teacher', 'inputs', 'model', 'teacher_model', 'gradients')

    def __init__(
        self,
        size: int | Sequence[int],
        explainer: dict | str = 'GradCAM',
        teacher_explainer: dict | str | None = None,
    ) -> None:
        super().__init__(explainer, teacher_explainer, size=arguments.size('size', size))

    def check(
        self,
        student: Any,
        teacher: Any,
        inputs: Tensor | None = None,
        model: nn.Module | None = None,
        teacher_model: nn.Module | None = None,
    ) -> None:
        """Refuses what cannot be explained.

        Raises:
            ValueError: If the taps are neither 'cam', nor a layer and the logits, nor both the logits,
                the explainer has no closed form, or the classes differ.
        """
        whole = [isinstance(value, Tensor) and value.dim() == 2 for value in (student, teacher)]
        classes = []
        explainers = self.explainer, self.teacher_explainer
        for owner, value, explainer in zip(('student', 'teacher'), (student, teacher), explainers):
            kind = type(explainer).__name__
            if all(whole):
                classes.append(value.shape[1])
            elif isinstance(value, ClassMaps):
                if type(explainer) is not GradCAM:
                    raise ValueError(
                        f"at 'cam' the explainer is GradCAM, and it is {kind}; name a layer and "
                        "'logits' in place of 'cam'"
                    )
                classes.append(value.num_classes)
            elif isinstance(value, list) and len(value) == 2 and value[1].dim() == 2:
                if not isinstance(explainer, BaseCAM):
                    raise ValueError(
                        f"at a layer and 'logits' the explainer is of the CAM family, and it is {kind}, "
                        "which explains whole models; set at='logits'"
                    )
                if value[0].dim() not in (3, 4):
                    raise ValueError(
                        f"the {owner}'s layer holds {tuple(value[0].shape)}; maps are made of "
                        '(N, C, H, W) or of tokens (N, L, C)'
                    )
                classes.append(value[1].shape[1])
            else:
                raise ValueError(
                    f"the {owner}'s taps must be 'cam', or a layer and 'logits' as in "
                    "['backbone.layer4', 'logits'], or both models' 'logits'"
                )
        if len(set(classes)) > 1:
            raise ValueError(
                f'the student has {classes[0]} classes and the teacher {classes[1]}; the same class is '
                'explained, so set student.head.num_classes or choose another teacher'
            )
        if all(whole):
            super().check(student, teacher, inputs, model, teacher_model)

    def forward(
        self,
        student: Any,
        teacher: Any,
        inputs: Tensor | None = None,
        model: nn.Module | None = None,
        teacher_model: nn.Module | None = None,
    ) -> Tensor:
        """Compares the explanations of the class that the teacher predicts; the loss lies in [0, 1].

        Args:
            student (Tensor | ClassMaps | list[Tensor]): Class maps; or activations, of shape
                (N, C, H, W) or tokens (N, L, C), and logits (N, K); or the logits alone.
            teacher (Tensor | ClassMaps | list[Tensor]): The teacher's.
            inputs (Tensor, optional): The student's images, as far as there are logits alone.
            model (nn.Module, optional): The student, likewise.
            teacher_model (nn.Module, optional): The teacher, likewise.
        """
        if isinstance(student, Tensor):
            return super().forward(student, teacher, None, inputs, model, teacher_model)
        logits = teacher.logits() if isinstance(teacher, ClassMaps) else teacher[1]
        classes = logits.argmax(1)
        # The teacher's gradients are taken also where training takes none
        with torch.enable_grad():
            teacher = self._map(self.teacher_explainer, teacher, classes).detach()
        return self.distance_between(self._map(self.explainer, student, classes), teacher)

    def _map(self, explainer: BaseCAM, value: ClassMaps | list[Tensor], classes: Tensor) -> Tensor:
        """The map of a class, of shape (N, h, w)."""
        if isinstance(value, ClassMaps):
            return value.classes(classes[:, None])[:, 0]
        features, logits = value
        return explainer.from_forward(features, full_precision(logits), classes, self.size)


def _build(spec: dict | str, key: str, differentiable: bool) -> Explainer:
    """An explainer of a model that a loss trains, or of one that it does not."""
    spec = dict(type=spec) if isinstance(spec, str) else spec
    if not isinstance(spec, dict):
        raise ValueError(f'{key} is {spec!r}; it must be the type of an explainer, or a dict')
    spec = dict(spec)
    if spec.pop('differentiable', True) is not True:
        raise ValueError(f'{key}.differentiable is False, and a loss needs gradients; remove it')
    kind = spec.get('type')
    kind = EXPLAINERS.get(kind) if isinstance(kind, str) else kind
    if differentiable and kind and 'differentiable' in inspect.signature(kind).parameters:
        spec['differentiable'] = True
    found = build_explainer(spec, key)
    if found.differentiable != differentiable:
        raise ValueError(
            f'{key} is {type(found).__name__}, whose maps have no gradients to train with; use one that '
            "takes differentiable, such as 'GradCAM', 'GradientRollout' or 'LeGrad'"
        )
    return found
