"""Losses without a teacher between two images: of one class, or two views of one image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkdx.functional import full_precision
from mmkdx.losses.base import DistillLoss, number, positive
from mmkdx.losses.logit import KLDivLoss
from mmkdx.registry import MODELS


@MODELS.register_module()
class CSKDLoss(KLDivLoss):
    r"""Class-wise self-knowledge distillation (CS-KD): matches predictions of images of one class.

    Source: Yun et al., "Regularizing Class-wise Predictions via Self-knowledge Distillation", CVPR
    2020, after the authors' code. With the logits z of an image and z' of another image of its class,
    which get no gradient,

    .. math:: L = \tau^2\,KL(softmax(z' / \tau)\,\|\,softmax(z / \tau)),

    mean over pairs. The published lambda (1; 3 for CUB-200-2011) is the weight of the term.

    A batch holds pairs one after the other, x0, x0', x1, x1', ..., as ``PairSampler`` with
    ``same='class'`` arranges them. The authors' code runs the two halves one after the other. Here the
    student's own loss is the mean over both images of each pair, not over x alone, and batch norm sees
    both at once.

    Without a teacher. The classes of all pairs are checked on the CPU; on another device only those of
    the first batch, so that steps do not wait for it.

    Args:
        tau (float): The temperature, above 0. Defaults to 4.
    """

    needs = ('class',)

    def __init__(self, tau: float = 4.0) -> None:
        super().__init__(tau)
        self._looked = False

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        """Compares the logits (N, K) of pairs of images, of classes (N, ).

        Raises:
            ValueError: If N is odd, or the images of a pair are of two classes.
        """
        own, other = _pairs('CSKDLoss', 'class', student)
        if not self._looked or target.device.type == 'cpu':
            _require_equal('CSKDLoss', 'class', target)
            self._looked = True
        return super().forward(own, other.detach())


@MODELS.register_module()
class DDGSDLoss(DistillLoss):
    r"""Data-distortion guided self-distillation (DDGSD): matches two views of an image.

    Source: Xu and Liu, "Data-Distortion Guided Self-Distillation for Deep Neural Networks", AAAI 2019.
    Of two random views a and b of an image,

    .. math:: L = \tau^2 (KL(p_a\,\|\,p_b) + KL(p_b\,\|\,p_a)) + \mu\,D(a, b),

    mean over pairs, with gradients into both views. D is the mean squared difference of the logits
    (``at='logits'``), as in a public re-implementation; or of the features that stand first in
    ``at=['embedding', 'logits']``. The paper asks for equal *distributions* of global features over a
    batch, which is less than equal features of each pair; we could not read its formula. The parts,
    without their weights, are logged as ``<term>.kl`` and ``<term>.discrepancy``.

    A batch holds the two views one after the other, a0, b0, a1, b1, ..., as ``PairSampler`` with
    ``same='image'`` arranges them. The paper sums the cross entropies of both views, and the student's
    own loss is their mean: ``student_weight=2`` and ``weight=lambda``. The re-implementation's KL is a
    mean over the K classes, without tau²: its lambda and mu are ``weight=lambda / (K tau²)`` and
    ``mu=mu / weight``.

    Without a teacher and without labels.

    Args:
        tau (float): The temperature, above 0. Defaults to 1.
        mu (float): The weight of the discrepancy beside the divergences. Defaults to 5e-4.
    """

    compares = 'anything'
    needs = ('index',)
    activation = 'softmax'

    def __init__(self, tau: float = 1.0, mu: float = 5e-4) -> None:
        super().__init__()
        self.tau = positive('tau', tau)
        self.mu = number('mu', mu, 0)

    def forward(self, student: Tensor | list[Tensor], index: Tensor | None = None) -> Tensor:
        """Compares the two views of images.

        Args:
            student (Tensor | list[Tensor]): The logits (N, K); or features (N, ...) and the logits.
            index (Tensor, optional): The samples' positions in the data set, of shape (N, ), which tell
                whether the images are two views of one. Defaults to None.

        Raises:
            ValueError: If ``student`` is something else, N is odd, or a pair shows two images.
        """
        values = student if isinstance(student, list) else [student]
        if len(values) > 2 or not all(isinstance(each, Tensor) for each in values):
            raise ValueError(
                "DDGSDLoss compares logits, or tensors of features and logits: set at to 'logits' or "
                "to ['embedding', 'logits']"
            )
        if values[-1].dim() != 2:
            raise ValueError(
                'DDGSDLoss needs logits of shape (N, K), as the last of its taps (at), which holds '
                f'{tuple(values[-1].shape)}'
            )
        pairs = [_pairs('DDGSDLoss', 'image', full_precision(each)) for each in values]
        # A trial before training has made-up positions
        if index is not None and torch.is_grad_enabled():
            _require_equal('DDGSDLoss', 'image', index)
        a, b = (F.log_softmax(each / self.tau, dim=1) for each in pairs[-1])
        divergences = (
            F.kl_div(*views, reduction='batchmean', log_target=True) for views in ((a, b), (b, a))
        )
        kl = self.tau**2 * sum(divergences)
        discrepancy = F.mse_loss(*pairs[0])
        self.logs = dict(kl=kl.detach(), discrepancy=discrepancy.detach())
        return kl + self.mu * discrepancy


def _pairs(loss: str, same: str, values: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the second of each pair."""
    if len(values) % 2:
        raise ValueError(
            f'{loss} needs pairs of images, and the batch has {len(values)}; set an even '
            f"train_dataloader.batch_size and train_dataloader.sampler=dict(type='PairSampler', "
            f'same={same!r})'
        )
    return values[0::2], values[1::2]


def _require_equal(loss: str, same: str, keys: Tensor) -> None:
    """Refuses pairs whose two images are not what they are to be."""
    differ = (keys[0::2] != keys[1::2]).nonzero()
    if len(differ):
        first = 2 * int(differ[0])
        what = 'of the classes' if same == 'class' else 'at the positions'
        raise ValueError(
            f'{loss} needs pairs of the same {same} one after the other, and the images {first} and '
            f'{first + 1} of the batch are {what} {int(keys[first])} and {int(keys[first + 1])}; set '
            f"train_dataloader.sampler=dict(type='PairSampler', same={same!r})"
        )
