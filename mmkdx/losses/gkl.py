"""The Kullback-Leibler divergence, decoupled into differences of logits and a cross entropy."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mmkdx.arguments import weights as checked_weights
from mmkdx.functional import full_precision
from mmkdx.losses.base import DistillLoss, number, one_of, positive
from mmkdx.losses.logit import need_classes
from mmkdx.models.teacher_statistics import check_classes, check_tau, read_statistics
from mmkdx.registry import MODELS


@MODELS.register_module()
class GKLLoss(DistillLoss):
    r"""Decoupled KL divergence (IKL and GKL): weighted differences of logits, and a cross entropy.

    Source: Cui et al., "Decoupled Kullback-Leibler Divergence Loss", NeurIPS 2024 (IKL), and
    "Generalized Kullback-Leibler Divergence Loss", TPAMI 2026 (GKL). With the differences of logits
    :math:`d = t - s` and weights :math:`w` of classes,

    .. math:: L = \beta \frac{1}{4} \sum_{j, k} w_j w_k (d_j - d_k)^2
        - \alpha \sum_k softmax(t / \tau)_k \log softmax(s / \tau)_k,

    mean over samples, without a factor :math:`\tau^2`. For weights of the sum 1 the first part is half
    the weighted variance of :math:`d`. It pulls the scale of the student's logits to the teacher's. The
    second part is not 0 for equal logits. As in the authors' code, :math:`\alpha` is the weight of the
    cross entropy; the paper has the two names the other way round. The parts, without their weights,
    are logged as ``<term>.mse`` and ``<term>.ce``.

    Args:
        tau (float): The temperature of the cross entropy, above 0. Defaults to 4, the authors' for
            CIFAR-100.
        alpha (float): The weight of the cross entropy, at least 0. Defaults to 1.
        beta (float): The weight of the differences, at least 0. Defaults to 8.
        gamma (float): The exponent of the weights of classes, at least 0; below 1 it makes them flatter.
            Defaults to 1 (IKL).
        weights (str): Where the weights of classes are from: 'sample' is the teacher's probabilities for
            the image, 'class' their mean over the training images of the label's class (``statistics``),
            'uniform' is one over the number of classes. Defaults to 'sample'.
        weight_tau (float): The temperature of these probabilities, above 0. Defaults to 1.
        statistics (str, optional): The file that ``tools/analysis_tools/teacher_statistics.py`` makes,
            at the temperature ``weight_tau``, for 'class'. The authors take the means of the epoch
            before instead. Defaults to None.
        normalize (str): What the weights are divided by after the exponent: 'none' (IKL), 'sample'
            divides each sample's by their sum, 'batch' all by the root of the mean of the squared sums
            in this process's batch. 'batch' is the authors' GKL, where a sample's loss depends on the
            others. Defaults to 'none'.

    Raises:
        ValueError: If an argument is out of range, or the file does not hold what is needed.
        FileNotFoundError: If there is no file of statistics.
    """

    compares = 'logits'
    needs = ('teacher', 'class')

    def __init__(
        self,
        tau: float = 4.0,
        alpha: float = 1.0,
        beta: float = 8.0,
        gamma: float = 1.0,
        weights: str = 'sample',
        weight_tau: float = 1.0,
        statistics: str | None = None,
        normalize: str = 'none',
    ) -> None:
        super().__init__()
        self.tau = positive('tau', tau)
        self.alpha, self.beta = checked_weights(alpha=alpha, beta=beta)
        self.gamma = number('gamma', gamma, 0)
        self.weights = one_of('weights', weights, ('sample', 'class', 'uniform'))
        self.weight_tau = positive('weight_tau', weight_tau)
        self.normalize = one_of('normalize', normalize, ('none', 'sample', 'batch'))
        if weights != 'class':
            self.needs = ('teacher',)
        if (weights == 'class') != (statistics is not None):
            raise ValueError("statistics goes with weights='class', and only with it")
        if weights == 'class':
            self._found = read_statistics('statistics', statistics)
            check_tau('statistics', statistics, self._found, 'weight_tau', weight_tau)
            # Neither trained nor part of a checkpoint, but on the model's device
            self.register_buffer('table', self._found['class_mean'], persistent=False)
        self.file = statistics

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Compares logits of shape (N, K), with labels' classes of shape (N, ) for 'class'.

        Raises:
            ValueError: If there is one class, or the statistics are of other classes.
        """
        classes = need_classes(self, student, 2)
        student, teacher = full_precision(student), full_precision(teacher.detach())
        weights = self._class_weights(teacher, target, classes)
        total = weights.sum(1, keepdim=True)
        difference = teacher - student
        # The sum over pairs without pairs, around the mean so that nothing cancels
        centred = difference - (weights * difference).sum(1, keepdim=True) / total
        mse = 0.5 * total[:, 0] * (weights * centred.square()).sum(1)
        if self.normalize == 'sample':
            mse = mse / total[:, 0].square()
        elif self.normalize == 'batch':
            mse = mse / total.square().mean()
        mse = mse.mean()
        own = F.log_softmax(student / self.tau, dim=1)
        ce = -(F.softmax(teacher / self.tau, dim=1) * own).sum(1).mean()
        self.logs = dict(mse=mse.detach(), ce=ce.detach())
        return self.beta * mse + self.alpha * ce

    def _class_weights(self, teacher: Tensor, target: Tensor | None, classes: int) -> Tensor:
        """The weights of classes (N, K) after the exponent."""
        if self.weights == 'sample':
            return (self.gamma * F.log_softmax(teacher / self.weight_tau, dim=1)).exp()
        if self.weights == 'uniform':
            return teacher.new_full(teacher.shape, classes**-self.gamma)
        check_classes('statistics', self.file, self._found, classes)
        return self.table.to(teacher)[target].pow(self.gamma)
