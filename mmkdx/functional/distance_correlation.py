r"""Distance correlation between the features of two models, or between features and labels.

Sources: Székely and Rizzo, "The distance correlation t-test of independence in high dimension",
Journal of Multivariate Analysis 2013 (the bias-corrected estimate and its test), and "Partial distance
correlation with methods for dissimilarities", Annals of Statistics 2014 (U-centring, projection, partial
correlation). Zhen et al., "On the versatile uses of partial distance correlation in deep learning", ECCV
2022, compare networks with it. Adhane et al., "On explaining knowledge distillation: measuring and
visualising the knowledge transfer process", WACV 2025, Eq. 1-4, compare a student with its base
model.

Features of n samples are compared only by their (n, n) distance matrices, so their widths may
differ. Let :math:`P` and :math:`Q` be U-centred distances and :math:`\langle P, Q \rangle` their
inner product. The correlation is :math:`R^* = \langle P, Q \rangle / \sqrt{\langle P, P \rangle
\langle Q, Q \rangle}`, the bias-corrected estimate of the *squared* distance correlation. For
independent features it is 0 on average, and thus negative half of the time. It is neither clamped
nor square-rooted.

No epsilon is added, so undefined values are NaN. Examples are the correlation with labels that are
all the same, and with a residual of 0. A residual is 0 if another model has the same features.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkdx.functional.distances import pairwise_distances
from mmkdx.functional.precision import full_precision

#: Up to this share of the mean squared distance, U-centred distances are only rounding errors.
_VANISHED = 1e-12
#: Below this share of the energy, a residual is only a rounding error.
_REMOVED = 1e-6


def u_center(distances: Tensor) -> Tensor:
    """U-centring of distances (n, n) in fp64: all rows and columns sum to 0, and the diagonal is 0.

    Source: Székely and Rizzo 2014; Adhane et al., Eq. 2. It removes every part of the form
    ``u[i] + u[j]``. So it removes the distances between one-hot labels that are all the same, all
    different, or all the same but one. If only rounding errors remain, the result is exactly 0.

    Raises:
        ValueError: If n is below 5.
    """
    n = _check_number(len(distances))
    rows, columns = (distances.sum(axis, keepdim=True) / (n - 2) for axis in (1, 0))
    centred = distances - rows - columns + distances.sum() / ((n - 1) * (n - 2))
    with torch.no_grad():
        vanished = u_inner(centred, centred) <= _VANISHED * distances.square().mean()
        diagonal = torch.eye(n, dtype=torch.bool, device=distances.device)
    return centred.masked_fill(diagonal | vanished, 0)


def u_inner(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of U-centred matrices (n, n): the sum off the diagonal over n (n - 3).

    Source: Székely and Rizzo 2014; Adhane et al., Eq. 4. A matrix's energy is its product
    with itself.
    """
    product = a * b
    return (product.sum() - product.trace()) / (len(a) * (len(a) - 3))


def u_correlation(a: Tensor, b: Tensor) -> Tensor:
    """R* in [-1, 1], the cosine between U-centred matrices (n, n); NaN if one of them is 0."""
    return u_inner(a, b) / (u_inner(a, a) * u_inner(b, b)).sqrt()


def remove(p: Tensor, given: Tensor) -> Tensor:
    """The residual of a U-centred matrix after its projection on another one.

    Source: Székely and Rizzo 2014; Adhane et al., Eq. 3. A residual whose share (``residual_share``) is
    below 1e-6 is rounding and becomes exactly 0. If ``given`` is 0, nothing is removed.
    """
    rest = _residual(p, given)
    with torch.no_grad():
        vanished = u_inner(rest, rest) < _REMOVED * u_inner(p, p)
    return rest.masked_fill(vanished, 0)


def residual_share(p: Tensor, given: Tensor) -> Tensor:
    """The share of a U-centred matrix's energy in its residual, 1 - R*²; NaN if p is 0."""
    rest = _residual(p, given)
    return u_inner(rest, rest) / u_inner(p, p)


def bias_corrected_dcor(x: Tensor, y: Tensor) -> Tensor:
    """R*, the bias-corrected estimate of the squared distance correlation.

    Source: Székely and Rizzo 2013 and 2014. It does not change when features are shifted, rotated or
    scaled. Labels are given as features, too: one-hot, or an embedding of the classes.

    Args:
        x (Tensor): Features of shape (n, ...).
        y (Tensor): Features of the same samples, of any width.

    Returns:
        Tensor: A scalar in fp64 in [-1, 1], differentiable; NaN if it is undefined (see ``u_center``),
            nothing of a feature is left (see ``remove``), or a feature is not finite.

    Raises:
        ValueError: If n is below 5, or not the same for both.
    """
    return u_correlation(*_centred(x=x, y=y))


def part_dcor(x: Tensor, y: Tensor, given: Tensor) -> Tensor:
    """The part (semi-partial) correlation: R* of y and the residual of x beyond ``given``.

    The public code of both papers on networks calls it partial correlation. It becomes strongly
    *negative* if ``given`` has information on y that x lacks. Values and errors are as in
    ``bias_corrected_dcor``.
    """
    p, q, z = _centred(x=x, y=y, given=given)
    return u_correlation(remove(p, z), q)


def partial_dcor(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """The partial distance correlation: R* of the residuals of x and y beyond z.

    Source: Székely and Rizzo 2014. Values and errors are as in ``bias_corrected_dcor``.
    """
    p, q, given = _centred(x=x, y=y, z=z)
    return u_correlation(remove(p, given), remove(q, given))


def biased_correlation(a: Tensor, b: Tensor) -> Tensor:
    """The biased squared distance correlation (V-statistic), only to compare with other work.

    Source: Székely, Rizzo and Bakirov, "Measuring and testing dependence by correlation of distances",
    Annals of Statistics 2007. It says nothing about features of networks, as it tends to 1 in high
    dimension for any features. For 32 samples of 1024 independent normal features it is 0.99.

    Args:
        a (Tensor): Distances in fp64 of shape (n, n).
        b (Tensor): Distances of the same samples.

    Returns:
        Tensor: A scalar in fp64 in [0, 1]; NaN if all distances of one are 0.
    """

    def centred(distances: Tensor) -> Tensor:
        rows, columns = (distances.mean(axis, keepdim=True) for axis in (1, 0))
        return distances - rows - columns + distances.mean()

    a, b = centred(a), centred(b)
    return (a * b).mean() / (a.square().mean() * b.square().mean()).sqrt()


def pair_correlations(
    student: Tensor, base: Tensor, labels: Tensor | None = None
) -> dict[str, Tensor]:
    """All correlations between the features of two models and the labels.

    Args:
        student (Tensor): The student's features as U-centred distances of shape (n, n).
        base (Tensor): The U-centred distances of a base model.
        labels (Tensor, optional): The U-centred distances of the labels. Defaults to None (only
            values that need no labels).

    Returns:
        dict[str, Tensor]: Scalars: ``similarity`` of both models, and ``rho``, their
            ``residual_share``. With labels also the student's ``relevance``, and its
            ``part`` (see ``part_dcor``) and ``partial`` (see ``partial_dcor``) given the other
            model. The base model's values have ``base_`` in front.
    """
    values = dict(similarity=u_correlation(student, base), rho=residual_share(student, base))
    for prefix, own, other in (('', student, base), ('base_', base, student)):
        if labels is not None:
            unique = remove(own, other)
            values[f'{prefix}relevance'] = u_correlation(own, labels)
            values[f'{prefix}part'] = u_correlation(unique, labels)
            values[f'{prefix}partial'] = u_correlation(unique, remove(labels, other))
    return values


def dcor_standard_error(n: int) -> float:
    """The standard error of R* of independent features in high dimension.

    Source: the variance of the limit distribution of Székely and Rizzo 2013, with n samples in a
    batch. It is 0.046 for n = 32. It does not hold for dependent features.

    Raises:
        ValueError: If n is below 5.
    """
    return math.sqrt(2 / (_check_number(n) * (n - 3)))


def class_prototypes(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """An embedding (C, d) of classes from features (N, d) and their labels (N, ), in fp32 or more.

    Features are scaled to length 1 and averaged by class. The averages are then scaled to length 1.

    Raises:
        ValueError: If a class has no samples, or a label is no class.
    """
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f'labels range from {int(labels.min())} to {int(labels.max())}; {num_classes} classes count '
            f'from 0 to {num_classes - 1}'
        )
    counts = labels.bincount(minlength=num_classes)
    if missing := (counts == 0).nonzero().flatten().tolist():
        raise ValueError(f'class {missing[0]} has no samples to average into a prototype')
    directions = F.normalize(full_precision(features), dim=1)
    # No division by the number of samples, as the second scaling would undo it
    sums = directions.new_zeros(num_classes, features.shape[1]).index_add_(
        0, labels.long(), directions
    )
    return F.normalize(sums, dim=1)


def _residual(p: Tensor, given: Tensor) -> Tensor:
    energy = u_inner(given, given)
    return p - u_inner(p, given) / energy.masked_fill(energy == 0, 1) * given


def _centred(**features: Tensor) -> list[Tensor]:
    """U-centred distances of features, after a check that they have the same number of samples."""
    sizes = {name: len(each) for name, each in features.items()}
    if len(set(sizes.values())) > 1:
        text = ', '.join(f'{name} has {size}' for name, size in sizes.items())
        raise ValueError(f'features are not of the same samples: {text}')
    _check_number(next(iter(sizes.values())))
    return [u_center(pairwise_distances(each)) for each in features.values()]


def _check_number(n: int) -> int:
    if n < 5:
        raise ValueError(
            f'{n} samples are too few for a distance correlation: it takes at least 5, as with 4 every '
            'partial correlation is 1 or -1'
        )
    return n
