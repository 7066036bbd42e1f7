"""Losses between logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkdx.arguments import weights
from mmkdx.functional import full_precision
from mmkdx.functional.teacher_target import cwtm_weights, other_classes
from mmkdx.losses.base import DistillLoss, flag, number, one_of, positive
from mmkdx.registry import MODELS


@MODELS.register_module()
class KLDivLoss(DistillLoss):
    r"""Knowledge distillation: :math:`\tau^2\,KL(softmax(t/\tau)\,\|\,softmax(s/\tau))`.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, Sec. 2. Summed over
    classes, mean over samples. Both sides are log-probabilities, so saturated logits stay finite.

    With ``activation='sigmoid'`` each class has a probability of its own, as with several labels an
    image or a single logit, and the divergence is

    .. math:: \tau^2 \sum_k KL(Bernoulli(\sigma(t_k/\tau))\,\|\,Bernoulli(\sigma(s_k/\tau))).

    Args:
        tau (float): The temperature, above 0. Defaults to 1.
        activation (str): What turns the logits into probabilities, 'softmax' or 'sigmoid'. Defaults to
            'softmax'.
    """

    compares = 'logits'

    def __init__(self, tau: float = 1.0, activation: str = 'softmax') -> None:
        super().__init__()
        self.tau = positive('tau', tau)
        self.activation = one_of('activation', activation, ('softmax', 'sigmoid'))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compares logits of shape (N, K)."""
        return self.per_sample(student, teacher).mean()

    def per_sample(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of each sample, of shape (N, )."""
        return self.tau**2 * divergences(*map(self._log_probabilities, (student, teacher)))

    def _log_probabilities(self, logits: Tensor) -> Tensor:
        logits = full_precision(logits) / self.tau
        if self.activation == 'sigmoid':
            return F.logsigmoid(torch.cat([logits, -logits], 1))
        return F.log_softmax(logits, dim=1)


@MODELS.register_module()
class DKDLoss(DistillLoss):
    r"""Decoupled knowledge distillation: separate weights for the label and for the other classes.

    Source: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, Sec. 3. With :math:`p_t` the
    probability of the label's class at temperature :math:`\tau` and :math:`\hat p` the distribution over
    the other classes alone,

    .. math:: L = \tau^2 (\alpha\,KL((p_t, 1 - p_t)^T \| (p_t, 1 - p_t)^S)
        + \beta\,KL(\hat p^T \| \hat p^S)),

    mean over samples. With :math:`\alpha = 1` and :math:`\beta = 1 - p_t^T` for each sample this is
    ``KLDivLoss``. Both parts are made of log-probabilities, so saturated logits stay finite. The parts,
    without their weights, are logged as ``<term>.label`` and ``<term>.others``.

    Args:
        tau (float): The temperature, above 0. Defaults to 4, the paper's for CIFAR-100.
        alpha (float): The weight of the label's class against the rest, at least 0. Defaults to 1.
        beta (float): The weight of the other classes among themselves, at least 0. Defaults to 8, the
            paper's for CIFAR-100 but for a few pairs.
    """

    compares = 'logits'
    needs = ('teacher', 'class')

    def __init__(self, tau: float = 4.0, alpha: float = 1.0, beta: float = 8.0) -> None:
        super().__init__()
        self.tau = positive('tau', tau)
        self.alpha, self.beta = weights(alpha=alpha, beta=beta)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Compares logits of shape (N, K), with labels' classes of shape (N, ).

        Raises:
            ValueError: If there are fewer than three classes.
        """
        return self.per_sample(student, teacher, target).mean()

    def per_sample(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """The loss of each sample, of shape (N, ); see ``forward``."""
        others = other_classes(target, need_others(self, student))
        pairs = zip(*(self._split(logits, target, others) for logits in (student, teacher)))
        label, rest = (self.tau**2 * divergences(*pair) for pair in pairs)
        self.logs = dict(label=label.detach().mean(), others=rest.detach().mean())
        return self.alpha * label + self.beta * rest

    def _split(self, logits: Tensor, target: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """The log-probabilities of label and rest, (N, 2), and of the others, (N, K - 1)."""
        logits = full_precision(logits) / self.tau
        rest = logits.gather(1, others)
        return binary(logits.gather(1, target[:, None]), rest), F.log_softmax(rest, dim=1)


@MODELS.register_module()
class NKDLoss(DistillLoss):
    r"""Normalised knowledge distillation: cross entropies of the label's class and of the others.

    Source: Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach
    with Normalized Loss and Customized Soft Labels", ICCV 2023. With :math:`p_y` the probability of the
    label's class without a temperature and :math:`\hat p` the distribution over the other classes alone
    at temperature :math:`\tau`,

    .. math:: L = - p_y^T \log p_y^S - \gamma \tau^2 \sum_{k \ne y} \hat p_k^T \log \hat p_k^S,

    mean over samples. Both parts are cross entropies. So the loss of equal logits is not 0, and its
    first part still raises the student's :math:`p_y` there. The parts, without :math:`\gamma`, are
    logged as ``<term>.label`` and ``<term>.others``.

    Args:
        tau (float): The temperature of the other classes, above 0. Defaults to 1, the paper's for
            ImageNet.
        gamma (float): The weight of the other classes among themselves, at least 0. Defaults to 1.5, the
            paper's for ImageNet.
    """

    compares = 'logits'
    needs = ('teacher', 'class')

    def __init__(self, tau: float = 1.0, gamma: float = 1.5) -> None:
        super().__init__()
        self.tau = positive('tau', tau)
        self.gamma = number('gamma', gamma, 0)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Compares logits of shape (N, K), with labels' classes of shape (N, ).

        Raises:
            ValueError: If there are fewer than three classes.
        """
        return self.per_sample(student, teacher, target).mean()

    def per_sample(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """The loss of each sample, of shape (N, ); see ``forward``."""
        others = other_classes(target, need_others(self, student))
        student, teacher = map(full_precision, (student, teacher))
        label = label_entropies(student, teacher, target)
        own, theirs = (
            F.log_softmax(logits.gather(1, others) / self.tau, dim=1)
            for logits in (student, teacher)
        )
        rest = -(self.tau**2) * (theirs.exp() * own).sum(1)
        self.logs = dict(label=label.detach().mean(), others=rest.detach().mean())
        return label + self.gamma * rest


@MODELS.register_module()
class DISTLoss(DistillLoss):
    r"""DIST: maximises the correlation of the student's probabilities with the teacher's.

    Source: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022. With
    Pearson's correlation :math:`\rho` and probabilities :math:`Y` at temperature :math:`\tau`,

    .. math:: L = \tau^2 (\beta\,(1 - \overline{\rho(Y^S_{n,:}, Y^T_{n,:})})
        + \gamma\,(1 - \overline{\rho(Y^S_{:,k}, Y^T_{:,k})})),

    the first a mean over samples (between classes), the second over classes (within a class, over the
    samples of this process's batch). As in the authors' code, 1e-8 is added to the product of the two
    norms: a class of tiny probabilities hardly counts, and the loss of equal logits is that little
    above 0. The correlation of a constant row or column, such as every column of one sample alone, is
    0, without a gradient. The parts, without their weights, are logged as ``<term>.between`` and
    ``<term>.within``.

    Args:
        tau (float): The temperature, above 0. Defaults to 1.
        beta (float): The weight of the relation between classes, at least 0. Defaults to 1.
        gamma (float): The weight of the relation within classes, at least 0. Defaults to 1.
    """

    compares = 'logits'

    def __init__(self, tau: float = 1.0, beta: float = 1.0, gamma: float = 1.0) -> None:
        super().__init__()
        self.tau = positive('tau', tau)
        self.beta, self.gamma = weights(beta=beta, gamma=gamma)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compares logits of shape (N, K)."""
        student, teacher = (
            F.softmax(full_precision(logits) / self.tau, dim=1) for logits in (student, teacher)
        )
        between = self.tau**2 * (1 - correlation(student, teacher).mean())
        within = self.tau**2 * (1 - correlation(student.T, teacher.T).mean())
        self.logs = dict(between=between.detach(), within=within.detach())
        return self.beta * between + self.gamma * within


@MODELS.register_module()
class LogitStdLoss(KLDivLoss):
    """Knowledge distillation of standardised logits, which have no shift and no scale.

    Source: Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024. From the logits of
    each sample their mean is subtracted, and they are divided by their standard deviation (that with
    K - 1, plus 1e-7, as in the authors' code); then ``KLDivLoss``. Constant logits become 0 and have no
    gradient.

    Args:
        tau (float): The temperature, above 0, in units of the standard deviation. Defaults to 2, the
            authors' for most pairs.
    """

    def __init__(self, tau: float = 2.0) -> None:
        super().__init__(tau)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compares logits of shape (N, K).

        Raises:
            ValueError: If there are fewer than three classes.
        """
        classes = student.shape[1]
        if classes < 3:
            raise ValueError(
                f'LogitStdLoss standardises the logits of a sample, and with {classes} classes this '
                'keeps only their order; use KLDivLoss'
            )
        return super().forward(*map(standardize, (student, teacher)))


def divergences(student: Tensor, teacher: Tensor) -> Tensor:
    """The KL divergence (N, ) of each row of log-probabilities (N, K) from the teacher's."""
    return F.kl_div(student, teacher, reduction='none', log_target=True).sum(1)


def binary(own: Tensor, rest: Tensor) -> Tensor:
    """The log-probabilities (N, 2) of a class with logits (N, 1) and of all others, of (N, K - 1)."""
    margin = own - rest.logsumexp(1, keepdim=True)
    return F.logsigmoid(torch.cat([margin, -margin], 1))


def label_entropies(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """The cross entropy (N, ) with the labels, each times the teacher's probability of the label."""
    own, theirs = (
        F.log_softmax(logits, 1).gather(1, target[:, None])[:, 0] for logits in (student, teacher)
    )
    return -theirs.exp() * own


def need_others(loss: DistillLoss, logits: Tensor) -> int:
    """The number of classes of logits (N, K), with two or more beside the label.

    Raises:
        ValueError: If there are fewer than three.
    """
    if (classes := logits.shape[1]) < 3:
        raise ValueError(
            f'{type(loss).__name__} needs two classes beside the label, and there are {classes} '
            'classes in all; use KLDivLoss'
        )
    return classes


def need_classes(loss: DistillLoss, logits: Tensor, least: int) -> int:
    """The number of classes of logits (N, K).

    Raises:
        ValueError: If there are fewer than ``least``.
    """
    if (classes := logits.shape[1]) < least:
        raise ValueError(
            f'{type(loss).__name__} compares {least} classes or more, and there '
            f'{"is" if classes == 1 else "are"} {classes}'
        )
    return classes


def standardize(logits: Tensor) -> Tensor:
    """The z-scores of each row of logits (N, K); those of a constant row are 0."""
    deviations = _deviations(full_precision(logits))
    deviation = deviations.norm(dim=1, keepdim=True) / (logits.shape[1] - 1) ** 0.5
    return deviations / (deviation + 1e-7)


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation of each row of (M, L) with that of another, of shape (M, ).

    With 1e-8 added to the product of the norms, as in the code of DIST; 0 where a row is constant.
    """
    first, second = _deviations(first), _deviations(second)
    return (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1) + 1e-8)


def _deviations(values: Tensor) -> Tensor:
    """What is left of rows (M, L) without their means: exactly 0 where a row is constant."""
    low, high = values.detach().aminmax(dim=1, keepdim=True)
    # Rounding gives a constant row a deviation that scaling would blow up
    constant = high - low <= 1e-6 * torch.maximum(high.abs(), low.abs())
    return (values - values.mean(1, keepdim=True)).masked_fill(constant, 0)


@MODELS.register_module()
class CWTMLoss(DistillLoss):
    r"""Cross entropy with the labels, weighted per sample by the teacher's confidence.

    Source: Furlanello et al., "Born-Again Neural Networks", ICML 2018, "confidence weighted by teacher
    max":

    .. math:: L = \frac{\sum_n w_n\,CE(y_n, s_n)}{\sum_n w_n}, \quad w_n = \max_k softmax(t_n/\tau)_k,

    with the samples of this process's batch. The student's logits have no temperature.

    Args:
        tau (float): The temperature of the teacher's probabilities, above 0. Defaults to 1.
    """

    compares = 'logits'
    needs = ('teacher', 'class')

    def __init__(self, tau: float = 1.0) -> None:
        super().__init__()
        self.tau = positive('tau', tau)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Compares the student's logits (N, K) with labels' classes (N, )."""
        student, teacher = map(full_precision, (student, teacher))
        weights = cwtm_weights((teacher / self.tau).softmax(1).amax(1))
        return (weights * F.cross_entropy(student, target, reduction='none')).mean()


@MODELS.register_module()
class WTTMLoss(DistillLoss):
    r"""Transformed teacher matching: only the teacher has a temperature, and flat samples weigh more.

    Source: Zheng and Yang, "Knowledge Distillation Based on Transformed Teacher Matching", ICLR 2024.
    With the teacher's probabilities :math:`p`,

    .. math:: L = U\,KL(q \,\|\, softmax(s)), \quad q = softmax(\gamma t), \quad U = \sum_k p_k^\gamma,

    mean over samples. :math:`U` lies between 1, for a teacher that is sure, and
    :math:`K^{1 - \gamma}`, for one that knows nothing; it has no gradient. There is no factor
    :math:`\tau^2`. With :math:`\gamma = 1` this is ``KLDivLoss``. Logged are ``<term>.flatness``, the
    mean of :math:`U`, and ``<term>.kl``, the mean divergence.

    Args:
        gamma (float): The exponent, above 0 and at most 1: one over the teacher's temperature. Defaults
            to 0.2.
        weighted (bool): Whether samples are weighted by :math:`U` (WTTM) or not (TTM). Defaults to True.
    """

    compares = 'logits'

    def __init__(self, gamma: float = 0.2, weighted: bool = True) -> None:
        super().__init__()
        self.gamma = number('gamma', gamma, 0, 1, open_low=True)
        self.weighted = flag('weighted', weighted)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compares logits of shape (N, K).

        Raises:
            ValueError: If there is one class.
        """
        need_classes(self, student, 2)
        student, teacher = full_precision(student), full_precision(teacher.detach())
        theirs = F.log_softmax(self.gamma * teacher, dim=1)
        values = divergences(F.log_softmax(student, dim=1), theirs)
        # Not a power of probabilities, which are exactly 0 for large logits
        flatness = (self.gamma * F.log_softmax(teacher, dim=1)).logsumexp(1).exp()
        self.logs = dict(flatness=flatness.mean(), kl=values.detach().mean())
        return (flatness * values if self.weighted else values).mean()
