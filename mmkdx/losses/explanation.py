"""Losses between the explanations of the decisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkdx import arguments
from mmkdx.explain.base import build_explainer
from mmkdx.explain.gradient import BaseCAM, GradCAM
from mmkdx.functional import ClassMaps, degenerate_maps, full_precision
from mmkdx.losses.base import DistillLoss
from mmkdx.registry import MODELS


@MODELS.register_module()
class E2KDLoss(DistillLoss):
    r"""e²KD: the student's explanation of the teacher's prediction is to be the teacher's.

    Source: Parchami-Araghi et al., "Good Teachers Explain: Explanation-Enhanced Knowledge
    Distillation", ECCV 2024, a reading of its public code. For the class that the teacher predicts,
    :math:`L = 1 - \cos(relu(M^s), relu(M^t))`, with the maps resized to the images; mean over the batch.
    The paper adds it, weighted, to the KL divergence of the logits (``KLDivLoss``), and uses no labels
    (``student_weight=0``).

    At ``at='cam'`` the Grad-CAM maps cost no backward pass through the network. Behind a head with a
    norm (layer norm, cosine) its divisor is taken as a number, as else half of each map would be
    negative whatever the class. For any other layer, name the layer and the logits,
    ``at=(['backbone.layer4', 'logits'], ['backbone.layer4', 'logits'])``: the explainer then takes its
    gradients in the step's own forwards. Gradients reach the student through its activations and their
    weights. A zero map has similarity 0 and no gradient; the shares of zero and constant maps are
    logged as ``<term>.dead`` and ``<term>.teacher_dead``.

    Args:
        size (int | Sequence[int]): Height and width of the images, to which maps are resized. The
            similarity of small maps depends on it.
        explainer (dict | str): A method of the CAM family. Defaults to 'GradCAM', the paper's.
    """

    compares = 'anything'
    needs = ('teacher', 'gradients')

    def __init__(self, size: int | Sequence[int], explainer: dict | str = 'GradCAM') -> None:
        super().__init__()
        self.size = arguments.size('size', size)
        self.explainer = build_explainer(explainer, 'explainer')
        if not isinstance(self.explainer, BaseCAM):
            raise ValueError(
                f'explainer is {type(self.explainer).__name__}; it must be of the CAM family, whose '
                'maps are made of one layer'
            )

    def check(self, student: Any, teacher: Any) -> None:
        """Refuses what cannot be explained.

        Raises:
            ValueError: If the taps are neither 'cam' nor a layer and the logits, the explainer has no
                closed form, or the classes differ.
        """
        classes = []
        for owner, value in (('student', student), ('teacher', teacher)):
            if isinstance(value, ClassMaps):
                if type(self.explainer) is not GradCAM:
                    raise ValueError(
                        f"at 'cam' the explainer is GradCAM, and it is {type(self.explainer).__name__}; "
                        "name a layer and 'logits' in place of 'cam'"
                    )
                classes.append(value.num_classes)
            elif isinstance(value, list) and len(value) == 2 and value[1].dim() == 2:
                if value[0].dim() not in (3, 4):
                    raise ValueError(
                        f"the {owner}'s layer holds {tuple(value[0].shape)}; maps are made of "
                        '(N, C, H, W) or of tokens (N, L, C)'
                    )
                classes.append(value[1].shape[1])
            else:
                raise ValueError(
                    f"the {owner}'s taps must be 'cam', or a layer and 'logits' as in "
                    "['backbone.layer4', 'logits']"
                )
        if len(set(classes)) > 1:
            raise ValueError(
                f'the student has {classes[0]} classes and the teacher {classes[1]}; the same class is '
                'explained, so set student.head.num_classes or choose another teacher'
            )

    def forward(self, student: Any, teacher: Any) -> Tensor:
        """Compares the explanations of the class that the teacher predicts; the loss lies in [0, 1].

        Args:
            student (ClassMaps | list[Tensor]): Class maps; or activations, of shape (N, C, H, W) or
                tokens (N, L, C), and logits (N, K).
            teacher (ClassMaps | list[Tensor]): The teacher's.
        """
        logits = teacher.logits() if isinstance(teacher, ClassMaps) else teacher[1]
        classes = logits.argmax(1)
        # The teacher's gradients are taken also where training takes none
        with torch.enable_grad():
            teacher = self._map(teacher, classes).detach()
        student = self._map(student, classes)
        self.logs = {
            key: degenerate_maps(maps.detach()).float().mean()
            for key, maps in (('dead', student), ('teacher_dead', teacher))
        }
        student, teacher = (
            F.interpolate(maps[:, None], self.size, mode='bilinear').flatten(1)
            for maps in (student, teacher)
        )
        return 1 - F.cosine_similarity(student, teacher, dim=1).mean()

    def _map(self, value: ClassMaps | list[Tensor], classes: Tensor) -> Tensor:
        """The positive part of the map of a class, of shape (N, h, w)."""
        if isinstance(value, ClassMaps):
            return value.classes(classes[:, None])[:, 0].relu()
        features, logits = value
        return self.explainer.from_forward(
            features, full_precision(logits), classes, self.size
        ).relu()
