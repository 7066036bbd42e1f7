"""ONE and BYOT: branches and early exits that train with a student and are removed at the end."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from mmengine.model import initialize
from torch import Tensor, nn

from mmkdx.arguments import errors_named, text
from mmkdx.functional import full_precision
from mmkdx.functional.schedules import schedule
from mmkdx.losses.base import DistillLoss, integer, number
from mmkdx.losses.logit import KLDivLoss
from mmkdx.models.flow import find_flow
from mmkdx.models.intercept import fake_forward
from mmkdx.registry import MODELS

#: As in both authors' codes, and in most of mmpretrain's networks.
INIT = dict(type='Kaiming', layer='Conv2d')


@MODELS.register_module()
class ONELoss(DistillLoss):
    r"""On-the-fly native ensemble (ONE): copies of the last stage train along and teach each other.

    Source: Lan et al., "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018, with
    the gate of the authors' code. The student is branch 0. Each further branch is a copy of its
    last stage, pooling and classifier with own weights. A gate (a linear layer, batch norm, ReLU and
    softmax over branches) reads the pooled map that enters the branches, and weighs their logits to
    :math:`z_e = \sum_b g_b z_b`. Then

    .. math:: L = CE_e + \sum_{b > 0} CE_b + w\,\tau^2 \sum_b KL(p_{e,\tau} \,\|\, p_{b,\tau}),

    with the ensemble's probabilities as constants in KL. The student's own cross entropy is its
    head's loss, so the published method is ``weight=1`` beside ``student_weight=1``. The authors'
    code adds 1e-7 to the ensemble's probabilities; here logarithms come from logits and stay finite.

    The taps are what enters the stage, and the logits: ``at=['backbone.layer4:in', 'logits']``.
    The student's optimizer trains branches and gate; a checkpoint holds them under ``distill.``. Logged
    are the cross entropies ``<term>.ensemble.ce``, ``<term>.branch1.ce`` and so on, and ``<term>.kl``,
    the last part of the loss without w.

    Args:
        branch (str): The path of the student's last stage, such as 'backbone.layer4', which global
            average pooling and one linear layer follow.
        branches (int): How many branches there are beside the student. Defaults to 2.
        tau (float): The temperature, above 0. Defaults to 3.
        ramp (dict, optional): The arguments of ``WeightSchedule`` for w, ``dict(type='sigmoid',
            end=81)`` in the authors' code. Defaults to None (1 throughout, as in the paper).
    """

    compares = 'anything'
    needs = ('class', 'model')
    activation = 'softmax'

    def __init__(
        self, branch: str, branches: int = 2, tau: float = 3.0, ramp: dict | None = None
    ) -> None:
        super().__init__()
        self.branch = text('branch', branch, "the path of a module, such as 'backbone.layer4'")
        self.num_branches = integer('branches', branches, 1)
        self.divergence = KLDivLoss(tau)
        self.ramp = None if ramp is None else schedule('ramp', ramp)

    def connect(self, student: list[Tensor], model: nn.Module) -> None:
        """Builds branches and gate for what stands at the taps, which may be fake.

        Raises:
            ValueError: If these are no map and logits, or the student's last stage is another.
        """
        if not isinstance(student, list) or [each.dim() for each in student] != [4, 2]:
            raise ValueError(
                'two taps are needed, of a map (N, C, H, W) and of logits (N, K), as in '
                f"['{self.branch}:in', 'logits']"
            )
        stage, classifier = self._find(model, student[0])
        self.branches = nn.ModuleList(
            nn.Sequential(
                copy.deepcopy(stage),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                copy.deepcopy(classifier),
            )
            for _ in range(self.num_branches)
        )
        for module in self.branches.modules():
            if hasattr(module, 'reset_parameters'):
                module.reset_parameters()
        initialize(self.branches, INIT)
        # A frozen stage of the student's is not frozen in its copies
        self.branches.requires_grad_(True)
        count = self.num_branches + 1
        gate = [
            nn.Linear(student[0].shape[1], count),
            nn.BatchNorm1d(count),
            nn.ReLU(),
            nn.Softmax(1),
        ]
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *gate)
        self.gate.to(student[0].device)

    def forward(
        self, student: list[Tensor], target: Tensor, model: nn.Module | None = None
    ) -> Tensor:
        """Compares the student's logits (N, K) with those of branches, which maps (N, C, H, W) enter.

        Raises:
            ValueError: If there is one image alone, which the gate's batch norm cannot take.
        """
        shared, own = map(full_precision, student)
        if self.training and len(shared) == 1:
            raise ValueError(
                "the batch has one image, and ONELoss's gate has batch norm; use larger batches, "
                'or drop_last=True of the dataloader if it is the last one of an epoch'
            )
        others = [full_precision(branch(shared)) for branch in self.branches]
        logits = torch.stack([own, *others])
        # (N, branches) to (branches, N, 1)
        ensemble = (logits * self.gate(shared).T[..., None]).sum(0)
        labels = [F.cross_entropy(each, target) for each in (ensemble, *others)]
        goal = ensemble.detach()
        divergence = sum(self.divergence(each, goal) for each in logits)
        names = 'ensemble', *(f'branch{i}' for i in range(1, len(logits)))
        self.logs = {f'{name}.ce': each.detach() for name, each in zip(names, labels)}
        self.logs['kl'] = divergence.detach()
        return sum(labels) + divergence * (self.ramp() if self.ramp else 1.0)

    def _find(self, model: nn.Module, shared: Tensor) -> tuple[nn.Module, nn.Linear]:
        """The student's last stage and its linear classifier, with no other layers in between."""
        try:
            stage = model.get_submodule(self.branch)
        except AttributeError:
            raise ValueError(
                f'branch is {self.branch!r}, and the student has no such module'
            ) from None
        with errors_named('the student '):
            flow = find_flow(model)
            path = flow.pooling and flow.classifier
        layers = [name.rpartition('.')[0] for name, _ in model.named_parameters()]
        own = [i for i, layer in enumerate(layers) if f'{layer}.'.startswith(f'{self.branch}.')]
        after = dict.fromkeys(layers[own[-1] + 1 :] if own else layers)
        if list(after) != [path]:
            names = ', '.join(list(after)[:2])
            raise ValueError(
                f'branch is {self.branch!r}, which must be the last stage before the linear '
                f'classifier {path!r}; it is followed by {names or "no layer"}'
            )
        classifier = model.get_submodule(path)
        try:
            with fake_forward(stage):
                maps = stage(torch.empty(shared.shape, device=shared.device)).shape
        except (AttributeError, RuntimeError) as error:
            raise ValueError(
                f'branch {self.branch!r} cannot turn the map {tuple(shared.shape)} of the first '
                f"tap into another; let the tap be '{self.branch}:in', and the stage return one map"
            ) from error
        if maps[1] != classifier.in_features:
            raise ValueError(
                f'branch {self.branch!r} returns {maps[1]} channels, and the linear classifier '
                f'{path!r} takes {classifier.in_features}'
            )
        return stage, classifier


@MODELS.register_module()
class BYOTLoss(DistillLoss):
    r"""Be your own teacher (BYOT): exits after early stages learn from the student's output.

    Source: Zhang et al., "Be Your Own Teacher: Improve the Performance of Convolutional Neural
    Networks via Self Distillation", ICCV 2019, with layers, weights and normalisation of the
    authors' code. At each early stage an exit brings the map to channels and size of the last one by
    a bottleneck: convolutions of 1 × 1, of k × k with stride k (k is how much larger the map is) and of
    1 × 1, each with batch norm and ReLU, with a quarter of the channels inside. A linear layer
    classifies its pooled features f. With the student's pooled features F and its probabilities p,

    .. math:: L = \sum_i (1 - \alpha)\,CE_i + \alpha\,\tau^2\,KL(p_\tau \,\|\, p_{i,\tau})
        + \beta\,\overline{(f_i - F)^2},

    where p and F are constants, and the last part is the mean over samples and channels. The
    student's own cross entropy is its head's loss and has the factor 1 - alpha as well: the published
    method is ``weight=1`` beside ``student_weight=0.9``. The authors' code has cross entropies with p
    in place of KL, with the same gradient. It sums the squared differences and multiplies by 1e-6: for
    batches of 128 and the 512 channels of ResNet-18 that is the default, 1e-6 · 128 · 512; four times
    as much for ResNet-50.

    The taps are the early stages, what enters global average pooling and the logits:
    ``at=['backbone.layer1', 'backbone.layer2', 'backbone.layer3', 'features', 'logits']``. The
    student's optimizer trains the exits; a checkpoint holds them under ``distill.``. Logged are the
    cross entropies ``<term>.exit1.ce`` and so on, and the sums of the other two parts, without alpha
    and beta, ``<term>.kl`` and ``<term>.hint``.

    Args:
        alpha (float): The share of what the student's end teaches, in [0, 1]. Defaults to 0.1.
        beta (float): The weight of features, at least 0. Defaults to 0.065536.
        tau (float): The temperature, above 0. Defaults to 3.
    """

    compares = 'anything'
    needs = ('class',)
    activation = 'softmax'

    def __init__(self, alpha: float = 0.1, beta: float = 0.065536, tau: float = 3.0) -> None:
        super().__init__()
        self.alpha = number('alpha', alpha, 0, 1)
        self.beta = number('beta', beta, 0)
        self.divergence = KLDivLoss(tau)

    def connect(self, student: list[Tensor]) -> None:
        """Builds the exits for what stands at the taps, which may be fake.

        Raises:
            ValueError: If these are not one early map or more, the last map and the logits.
        """
        dims = [each.dim() for each in student] if isinstance(student, list) else []
        if len(dims) < 3 or dims != [4] * (len(dims) - 1) + [2]:
            raise ValueError(
                'taps of one early map (N, C, H, W) or more, of the last map and of the logits '
                "(N, K) are needed, as in ['backbone.layer2', 'features', 'logits']"
            )
        *early, last, logits = student
        self.exits = nn.ModuleList(_Exit(each, last, logits.shape[1]) for each in early)
        self.exits.to(last.device)

    def forward(self, student: list[Tensor], target: Tensor) -> Tensor:
        """Compares the exits of early maps with the last map, (N, C, H, W), and the logits (N, K)."""
        *early, last, logits = map(full_precision, student)
        features, predictions = zip(*(leave(each) for leave, each in zip(self.exits, early)))
        labels = [F.cross_entropy(each, target) for each in predictions]
        logits, last = logits.detach(), last.detach().mean((2, 3))
        divergence = sum(self.divergence(each, logits) for each in predictions)
        hint = sum(F.mse_loss(each, last) for each in features)
        self.logs = {f'exit{i}.ce': each.detach() for i, each in enumerate(labels, 1)}
        self.logs.update(kl=divergence.detach(), hint=hint.detach())
        return (1 - self.alpha) * sum(labels) + self.alpha * divergence + self.beta * hint


class _Exit(nn.Module):
    """A bottleneck from a map (N, C, H, W) to the last one's shape (N, D, h, w), and a classifier."""

    def __init__(self, early: Tensor, last: Tensor, classes: int) -> None:
        super().__init__()
        channels = last.shape[1]
        inner = max(channels // 4, 1)
        step = tuple(max(a // b, 1) for a, b in zip(early.shape[2:], last.shape[2:]))
        self.bottleneck = nn.Sequential(
            *_layer(early.shape[1], inner, 1),
            *_layer(inner, inner, step),
            *_layer(inner, channels, 1),
        )
        initialize(self, INIT)
        self.fc = nn.Linear(channels, classes)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """The pooled features, of shape (N, D), and the logits, of shape (N, K)."""
        features = self.bottleneck(maps).mean((2, 3))
        return features, self.fc(features)


def _layer(inputs: int, outputs: int, step: int | tuple[int, int]) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, step, step), nn.BatchNorm2d(outputs), nn.ReLU()]
