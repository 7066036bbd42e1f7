"""A loss that teaches a model with its own explanations."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from mmengine.logging import MessageHub, print_log
from torch import Tensor, nn

from mmkdx.explain.layers import find_layers
from mmkdx.explain.layouts import Layout
from mmkdx.functional import ClassMaps, full_precision, no_autocast, tokens_to_map
from mmkdx.functional.class_maps import first_tensor
from mmkdx.functional.schedules import WeightSchedule, schedule
from mmkdx.functional.self_explanation import (
    EXPLAINERS,
    MODES,
    class_similarity,
    cosines,
    gradient_norms,
    gradient_products,
    gradient_similarity,
    soft_targets,
)
from mmkdx.losses.base import DistillLoss, flag, integer, number, one_of, positive
from mmkdx.models.families import describe
from mmkdx.models.intercept import evaluating, fake_forward
from mmkdx.models.taps import TapSet
from mmkdx.registry import MODELS

#: Explainers of the pixels, and their names with the pixels as features.
PIXEL_EXPLAINERS = dict(input_grad='weight', input_x_grad='grad_act')


@MODELS.register_module()
class IntrospectiveLoss(DistillLoss):
    r"""Soft targets from the model's own explanations: similarly explained classes share them.

    A reading of Gu, Wu and Tresp, "Introspective Learning by Distilling Knowledge from Online
    Self-explanation", ACCV 2020. We could read its abstract alone: the paper distils knowledge from
    explanations that the model gives while it trains. All else is our choice, and an argument here. For
    an image of class y, :math:`s_k` is the cosine between its explanations of y and of k
    (``class_similarity``), a target q is made of s (``soft_targets``), and

    .. math:: L = (1 - \lambda)\,CE(z, y) + \lambda T^2\,KL(q\,\|\,softmax(z / T)).

    The loss holds the labels' part, so a ``Distiller`` trains with it alone (``student_weight=0``). The
    tap is ``at='cam'`` for the closed forms, ``[layer, 'logits']`` for any other head or layer,
    ``'logits'`` for the pixels, or 'auto', which finds out. At 'cam' the logits are those without the
    head's dropout.

    Logged are the mean and spread of s over the other classes (``<term>.similarity``,
    ``<term>.spread``), the entropy of the target over them (``<term>.entropy``), the share of targets
    whose maximum is not the label (``<term>.other``), and the current λ (``<term>.lam``).

    Args:
        explainer (str): What an explanation of class k is: 'weight', the gradient of its logit by the
            features; 'cam', its class activation map; 'grad_act', gradient times activation;
            'input_grad' and 'input_x_grad', the same by the pixels, in a second forward, in eval
            mode. Defaults to 'cam'.
        mode (str): 'mass' gives the label 1 - eps and shares eps, 'softmax' takes similarities as a
            teacher's logits. Defaults to 'mass'.
        eps (float): What goes to the other classes, in [0, 1], in mode 'mass'. Defaults to 0.1.
        tau (float): How strongly targets follow similarities: small is more. Defaults to 0.25.
        lam (float): The share of the soft targets, in [0, 1]. Defaults to 1, which suits 'mass'; in mode
            'softmax' 0.5 to 0.9.
        temperature (float): T, above 0. Defaults to 1.
        soften_target (bool): Whether the target becomes :math:`q^{1/T}`, normalised, as in knowledge
            distillation. Defaults to False.
        center (bool): Whether a logit is explained less the mean of all. Defaults to True.
        relu (bool): Whether maps of 'cam' keep their positive part alone. Defaults to False.
        level (str): 'sample' takes each image's similarities, 'class' a moving average over the images
            of its class, of all ranks, which checkpoints hold. Defaults to 'sample'.
        momentum (float): The share of what the average keeps, in [0, 1). Defaults to 0.9.
        candidates (int, optional): How many classes are explained beside the label where that takes
            backward passes, those of the highest logits. Defaults to None (all).
        permute (bool): Whether each image's similarities are shuffled among the other classes: the
            ablation that keeps everything but their meaning. Defaults to False.
        detach (bool): Whether targets are constants. Else a model can also change its targets. Defaults
            to True.
        warmup (int | dict, optional): Epochs over which λ grows linearly from 0; or the arguments of
            ``WeightSchedule``. Defaults to None: 5 % of training, at least one epoch (or of the
            iterations, in a run that has no epochs).
        chunk (int): How many classes go through one backward pass together. Defaults to 16.
        probes (int, optional): With explainers by the pixels: takes one backward pass and one
            forward-mode derivative for all classes, and so many for their norms. It pays from some
            dozens of classes on. Defaults to None (a backward pass a class).
    """

    compares = 'anything'
    needs = ('class', 'inputs', 'model', 'gradients')
    activation = 'softmax'

    def __init__(
        self,
        explainer: str = 'cam',
        mode: str = 'mass',
        eps: float = 0.1,
        tau: float = 0.25,
        lam: float = 1.0,
        temperature: float = 1.0,
        soften_target: bool = False,
        center: bool = True,
        relu: bool = False,
        level: str = 'sample',
        momentum: float = 0.9,
        candidates: int | None = None,
        permute: bool = False,
        detach: bool = True,
        warmup: int | dict | None = None,
        chunk: int = 16,
        probes: int | None = None,
    ) -> None:
        super().__init__()
        choices = (*EXPLAINERS, *PIXEL_EXPLAINERS)
        self.explainer = one_of('explainer', explainer, choices)
        self.mode = one_of('mode', mode, MODES)
        self.eps = number('eps', eps, 0, 1)
        self.tau = positive('tau', tau)
        self.lam = number('lam', lam, 0, 1)
        self.temperature = positive('temperature', temperature)
        self.soften_target = flag('soften_target', soften_target)
        self.center = flag('center', center)
        self.relu = flag('relu', relu)
        self.level = one_of('level', level, ('sample', 'class'))
        self.momentum = number('momentum', momentum, 0, 1, open_high=True)
        self.candidates = None if candidates is None else integer('candidates', candidates, 1)
        self.permute = flag('permute', permute)
        self.detach = flag('detach', detach)
        self.chunk = integer('chunk', chunk, 1)
        self.probes = None if probes is None else integer('probes', probes, 1)
        if not isinstance(warmup, dict | None):
            integer('warmup', warmup, 0)
        self.warmup = warmup
        self._schedule = schedule('warmup', warmup) if isinstance(warmup, dict) else None
        if relu and explainer != 'cam':
            raise ValueError(f"relu is for the explainer 'cam', and it is {explainer!r}")
        if probes and (explainer not in PIXEL_EXPLAINERS or not detach or candidates):
            raise ValueError(
                "probes is for the explainers 'input_grad' and 'input_x_grad', with detach=True and "
                f'without candidates; they are {explainer!r}, {detach} and {candidates}'
            )
        if level == 'class' and not detach:
            raise ValueError("level 'class' keeps averages of past similarities; set detach=True")
        self._checked = False
        # The layout of the activations of a found layer
        self._layout: Layout | None = None

    def locate(self, model: nn.Module, size: Sequence[int]) -> str | tuple[str, ...]:
        """Where a model is explained: 'cam' if it can be, else a layer and 'logits'.

        For explainers by the pixels it is 'logits'.
        """
        if self.explainer in PIXEL_EXPLAINERS:
            return 'logits'
        anchor = next(model.parameters())
        images = torch.zeros(2, 3, *size, device=anchor.device)
        try:
            with no_autocast(anchor), fake_forward(model):
                taps = TapSet({'cam': 'at'}, 'model')
                taps.resolve(model, images)
            if taps.weights:
                return 'cam'
            reason = 'the model is not GAP + linear'
        except ValueError as error:
            reason = str(error).removeprefix('at: ')
        with torch.random.fork_rng(), torch.enable_grad():
            layer = find_layers(model, torch.randn_like(images), ['auto'])[0]
        self._layout = layer.layout
        print_log(
            f'IntrospectiveLoss: {reason}; layer {layer.name!r} is explained by gradients, with a '
            'backward pass from the logits for each class.',
            logger='current',
            level=logging.WARNING,
        )
        return (layer.name, 'logits')

    def connect(self, student: Any, model: nn.Module) -> None:
        """Builds the class averages, and refuses what cannot be explained.

        Raises:
            ValueError: If what is at the taps cannot be explained.
        """
        pixels = self.explainer in PIXEL_EXPLAINERS
        pair = isinstance(student, list) and len(student) == 2
        logits = student if pixels else student[1] if pair else None
        if isinstance(student, ClassMaps) and not pixels:
            if student.weight is None:
                raise ValueError(
                    "the student is not GAP + linear, so the explanations at 'cam' have no closed form; "
                    "use at='auto', or a layer and 'logits' as a list"
                )
            classes = student.num_classes
        elif isinstance(logits, Tensor) and logits.dim() == 2:
            classes = logits.shape[1]
        else:
            form = "'logits'" if pixels else "'cam', a layer and 'logits' as a list, or 'auto'"
            raise ValueError(f'with the explainer {self.explainer!r} the tap must be {form}')
        if classes == 2 and self.mode == 'mass':
            warnings.warn(
                "IntrospectiveLoss: with two classes mode 'mass' gives eps to the one other class, "
                "whatever the explanations are; use mode 'softmax'",
                stacklevel=2,
            )
        if self.level == 'class':
            #: Row y: the average similarities of images of class y.
            device = first_tensor(student).device
            self.register_buffer('averages', torch.eye(classes, device=device))

    def forward(
        self,
        student: ClassMaps | Tensor | Sequence[Tensor],
        target: Tensor,
        inputs: Tensor | None = None,
        model: nn.Module | None = None,
    ) -> Tensor:
        """Explains, makes targets of it and compares the prediction with them.

        Args:
            student (ClassMaps | Tensor | Sequence[Tensor]): The class maps; or the logits (N, K), for
                the explainers by the pixels; or a layer's activations, of shape (N, C, H, W) or tokens
                (N, L, C), and the logits.
            target (Tensor): Classes of shape (N, ).
            inputs (Tensor, optional): The images, for the explainers by the pixels and for tokens.
            model (nn.Module, optional): The model that took them, for the explainers by the pixels.

        Raises:
            ValueError: If images mix between the layer and the logits.
        """
        logits = student.logits() if isinstance(student, ClassMaps) else student
        logits = logits[1] if isinstance(logits, (list, tuple)) else logits
        with (
            no_autocast(logits),
            torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach),
        ):
            similarity = self.similarity(student, target, inputs, model)
            if self.level == 'class':
                similarity = self._average(similarity, target)[target]
            q = soft_targets(similarity, target, self.mode, self.eps, self.tau, self.permute)
            if self.soften_target:
                q = q.pow(1 / self.temperature)
                q = q / q.sum(1, keepdim=True)
        logits = full_precision(logits)
        lam = self.lam * self._ramp()
        prediction = F.log_softmax(logits / self.temperature, dim=1)
        soft = self.temperature**2 * F.kl_div(prediction, q, reduction='batchmean')
        self._log(similarity, q, target, lam)
        return (1 - lam) * F.cross_entropy(logits, target) + lam * soft

    def similarity(
        self,
        student: ClassMaps | Tensor | Sequence[Tensor],
        target: Tensor,
        inputs: Tensor | None = None,
        model: nn.Module | None = None,
    ) -> Tensor:
        """How alike the explanations of all classes and of the label are, (N, K); see ``forward``."""
        if isinstance(student, ClassMaps):
            return class_similarity(
                student.features, student.weight, target, self.explainer, self.center, self.relu
            )
        settings = dict(
            center=self.center,
            chunk=self.chunk,
            candidates=self.candidates,
            create_graph=not self.detach,
        )
        if self.explainer not in PIXEL_EXPLAINERS:
            features, logits = student
            if not self._checked and _mixes(logits, features):
                raise ValueError(
                    'IntrospectiveLoss: a batch norm in training mixes the images between the layer and '
                    'the logits, so that its gradients explain no single image; name a later layer '
                    '(at), or explain by the pixels'
                )
            self._checked = True

            def to_map(value: Tensor) -> Tensor:
                if self._layout:
                    return self._layout.to_map(value)
                return value if value.dim() != 3 else tokens_to_map(value, inputs.shape[2:])

            return gradient_similarity(
                logits, features, target, self.explainer, relu=self.relu, to_map=to_map, **settings
            )
        # Batch norm in training mixes images, and a second forward must not move its statistics
        with evaluating(model), torch.enable_grad():
            if self.probes:
                multiply = self.explainer == 'input_x_grad'
                images = full_precision(inputs.detach())

                def function(images: Tensor) -> Tensor:
                    return full_precision(describe(model).logits(images))

                products, own = gradient_products(function, images, target, multiply, self.center)
                squares = gradient_norms(function, images, self.probes, multiply, self.center)
                squares = squares.scatter(1, target[:, None], own[:, None])
                return cosines(products, squares, target).detach().clamp(-1, 1)
            images = inputs.detach().requires_grad_()
            return gradient_similarity(
                describe(model).logits(images),
                images,
                target,
                PIXEL_EXPLAINERS[self.explainer],
                **settings,
            )

    def _average(self, similarity: Tensor, target: Tensor) -> Tensor:
        """The class averages (K, K), when training with this batch of all ranks taken in."""
        if self.training:
            sums = torch.zeros_like(self.averages).index_add_(
                0, target, similarity.detach().to(self.averages)
            )
            # Not bincount, which waits for the device
            counts = F.one_hot(target, len(sums)).sum(0)[:, None].to(sums)
            both = torch.cat([sums, counts], 1)
            all_reduce(both)
            sums, counts = both[:, :-1], both[:, -1:]
            moved = self.averages.lerp(sums / counts.clamp_min(1), 1 - self.momentum)
            self.averages.copy_(torch.where(counts > 0, moved, self.averages))
        return self.averages

    def _ramp(self) -> float:
        """The factor on λ now; 1 without a runner."""
        if self._schedule is None and self.warmup != 0:
            hub = MessageHub.get_current_instance()
            epochs, iterations = hub.get_info('max_epochs'), hub.get_info('max_iters')
            by_epoch = bool(self.warmup or (epochs or 0) > 1)
            total = epochs if by_epoch else iterations
            if total is None:
                return 1.0
            length = self.warmup or max(1, round(0.05 * total))
            self._schedule = WeightSchedule('linear', end=length + 1, by_epoch=by_epoch)
        return 1.0 if self._schedule is None else self._schedule()

    @torch.no_grad()
    def _log(self, similarity: Tensor, q: Tensor, target: Tensor, lam: float) -> None:
        own = F.one_hot(target, q.shape[1]).bool()
        # Sums with a mask, since taking the others out waits for the device
        count = similarity.shape[1] - 1
        mean = similarity.masked_fill(own, 0).sum(1, keepdim=True) / count
        variance = (similarity - mean).masked_fill(own, 0).square().sum(1) / count
        share = q.masked_fill(own, 0)
        share = share / share.sum(1, keepdim=True).clamp_min(torch.finfo(share.dtype).tiny)
        self.logs = dict(
            similarity=mean.mean(),
            spread=variance.sqrt().mean(),
            entropy=torch.special.entr(share).sum(1).mean(),
            other=(q.argmax(1) != target).float().mean(),
            lam=torch.tensor(lam),
        )


def _mixes(logits: Tensor, features: Tensor) -> bool:
    """Whether a batch norm in training stands between features and logits."""
    seen, pending = set(), [logits.grad_fn]
    while pending:
        node = pending.pop()
        if node is None or node in seen or node is features.grad_fn:
            continue
        seen.add(node)
        if 'BatchNorm' in node.name() and getattr(node, '_saved_training', True):
            return True
        pending += [each for each, _ in node.next_functions]
    return False
