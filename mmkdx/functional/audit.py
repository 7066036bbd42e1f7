"""Statistics that compare two classifiers on the same images, with NumPy and SciPy only.

``b`` is the number of negative flips: images that only the old model gets right. ``g`` is the
number of positive flips: images that only the new model gets right. Intervals have 95 %.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from mmkdx.arguments import integer, number

#: The names of the cells: right or wrong by the old and by the new model.
CELLS = ('RR', 'RW', 'WR', 'WW')


def flip_table(label: np.ndarray, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Each image's index in ``CELLS``, from labels and two models' predictions, each (n, )."""
    label, old, new = (np.asarray(each) for each in (label, old, new))
    return 2 * (old != label) + (new != label)


def mcnemar_exact(b: np.ndarray | int, g: np.ndarray | int, mid: bool = False) -> np.ndarray:
    """The two-sided p value of McNemar's exact test that both kinds of flips are equally likely.

    It equals that of ``scipy.stats.binomtest(min(b, g), b + g)``, for arrays. No flips give 1.

    Args:
        b (np.ndarray | int): Numbers of negative flips.
        g (np.ndarray | int): Numbers of positive flips, of the same shape.
        mid (bool): Whether to count only half of the probability of the observed split. Such a p
            value is less conservative, and the level does not bound its error rate. Defaults to
            False.
    """
    b, g = np.asarray(b), np.asarray(g)
    least = np.minimum(b, g)
    p = np.minimum(1, 2 * stats.binom.cdf(least, b + g, 0.5))
    if mid:
        p = np.where(b == g, 1, p - stats.binom.pmf(least, b + g, 0.5))
    return p


def holm(p: np.ndarray | Sequence[float]) -> np.ndarray:
    """Holm's adjusted p values of families (..., K), which bound the family-wise error.

    Raises:
        ValueError: If a p value is not in [0, 1].
    """
    p = np.asarray(p, dtype=float)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError('holm: a p value is not in [0, 1]')
    order = p.argsort(axis=-1, kind='stable')
    factors = np.arange(p.shape[-1], 0, -1)
    scaled = np.minimum(1, factors * np.take_along_axis(p, order, -1))
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.maximum.accumulate(scaled, -1), -1)
    return adjusted


def minimum_flips(classes: int, alpha: float = 0.05) -> int:
    """The number of flips, all in one direction, that makes one of ``classes`` significant."""
    integer('classes', classes, 1)
    return int(np.ceil(1 - np.log2(check_alpha(alpha) / classes)))


def detectable_loss(n: int, classes: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest loss of a class that is found with this power, as a share of its images.

    It assumes that no image is gained.

    Args:
        n (int): Images of the class.
        classes (int): Number of classes in the family.
        alpha (float): The family-wise level. Defaults to 0.05.
        power (float): The probability of finding the loss. Defaults to 0.8.

    Returns:
        float: The share in [0, 1]; NaN if the images are too few to find any loss.
    """
    flips = minimum_flips(classes, alpha)
    # P(Binomial(n, q) >= d) is the beta distribution's cdf at q
    return float(stats.beta.ppf(power, flips, n - flips + 1)) if n >= flips else float('nan')


def rate_interval(k: int, n: int, method: str = 'wilson') -> tuple[float, float]:
    """The interval of a rate ``k / n``: Wilson's, or Clopper and Pearson's if 'exact'.

    Without images it is (NaN, NaN).
    """
    if not n:
        return float('nan'), float('nan')
    found = stats.binomtest(int(k), int(n)).proportion_ci(method=method)
    return float(found.low), float(found.high)


def paired_difference(b: int, g: int, n: int) -> tuple[float, float, float]:
    """The difference of two accuracies on the same ``n`` images, new minus old, in [-1, 1].

    Returns:
        tuple[float, float, float]: The difference and its interval by the adjusted method of Agresti
        and Min, Statistics in Medicine 2005.
    """
    centre = (g - b) / (n + 2)
    error = np.sqrt((b + g + 1) - (g - b) ** 2 / (n + 2)) / (n + 2)
    half = float(stats.norm.ppf(0.975) * error)
    return (g - b) / n, max(centre - half, -1.0), min(centre + half, 1.0)


def kappa(first: np.ndarray, second: np.ndarray) -> float:
    """Cohen's kappa of two raters (n, ): their agreement beyond chance.

    It is NaN if both raters always give the same single value.
    """
    first, second = np.asarray(first), np.asarray(second)
    values = np.union1d(first, second)
    expected = sum((first == value).mean() * (second == value).mean() for value in values)
    return float(_kappa((first == second).mean(), expected))


def error_consistency(observed: np.ndarray, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Cohen's kappa of two models' errors, after Geirhos et al., "Beyond accuracy", NeurIPS 2020.

    Args:
        observed (np.ndarray): Share of images that both models get right or both get wrong.
        old (np.ndarray): Accuracy of one model, in [0, 1].
        new (np.ndarray): Accuracy of the other model.

    Returns:
        np.ndarray: In [-1, 1]; NaN where both are always right, or always wrong.
    """
    return _kappa(observed, old * new + (1 - old) * (1 - new))


def _kappa(observed: np.ndarray, expected: np.ndarray) -> np.ndarray:
    room = 1 - np.asarray(expected, float)
    certain = room < 1e-12
    return np.where(certain, np.nan, (observed - expected) / np.where(certain, 1, room))


def calibration_gaps(confidence: np.ndarray, hits: np.ndarray, bins: int = 15) -> np.ndarray:
    """Each image's part of the calibration error: hit minus confidence, in the column of its bin.

    Bins have equal widths and include their upper edges. The expected calibration error is the sum
    of the absolute column means; see ``calibration_error``.

    Args:
        confidence (np.ndarray): Probabilities of the predicted classes, (n, ).
        hits (np.ndarray): Whether each prediction is right, (n, ).
        bins (int): Number of bins. Defaults to 15.

    Returns:
        np.ndarray: Shape (n, bins).

    Raises:
        ValueError: If a confidence is not in [0, 1].
    """
    confidence = np.asarray(confidence, dtype=float)
    if not ((confidence >= 0) & (confidence <= 1 + 1e-5)).all():
        raise ValueError('the calibration error needs confidences in [0, 1], and there are others')
    # In the precision of the models' probabilities, so that 0.6 is in the bin that ends with 0.6
    edges = np.linspace(0, 1, bins + 1, dtype=np.float32)[1:-1]
    column = np.digitize(confidence.astype(np.float32), edges, right=True)
    gaps = np.zeros((len(confidence), bins))
    gaps[np.arange(len(confidence)), column] = np.asarray(hits) - confidence
    return gaps


def calibration_error(sums: np.ndarray, n: int) -> np.ndarray:
    """The expected calibration error in percent, from the sums (..., bins) of ``calibration_gaps``."""
    return 100 * np.abs(sums).sum(-1) / n


def paired_bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray],
    columns: np.ndarray,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap intervals over images, for statistics of sums over images.

    All columns of an image are drawn together, so comparisons of models are paired.

    Args:
        statistic (Callable): Computes statistics (..., k) from sums (..., m) of the columns.
        columns (np.ndarray): Values of images, (n, m).
        draws (int): Number of samples. Defaults to 2000.
        seed (int): The random seed. Defaults to 0.

    Returns:
        tuple[np.ndarray, np.ndarray]: The ends of the intervals, (k, ) each. Samples in which a
        statistic is NaN do not count for this statistic.
    """
    columns = np.asarray(columns, dtype=float)
    n, random = len(columns), np.random.default_rng(seed)
    found = []
    step = max(1, 4_000_000 // n)  # bounds the memory
    for start in range(0, draws, step):
        count = min(step, draws - start)
        drawn = random.integers(n, size=(count, n)) + n * np.arange(count)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n)
        found.append(statistic(weights @ columns))
    return _percentiles(np.concatenate(found))


def stratified_bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray],
    cells: np.ndarray,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """As ``paired_bootstrap``, but each sample keeps the number of images of each group.

    Args:
        statistic (Callable): Computes statistics (..., k) from counts (..., G, 4).
        cells (np.ndarray): Number of images of each of G groups in each of ``CELLS``, (G, 4).
        draws (int): Number of samples. Defaults to 2000.
        seed (int): The random seed. Defaults to 0.
    """
    cells = np.asarray(cells)
    sizes = cells.sum(1)
    # Drawing the images of a group is the same as drawing the counts of its cells
    drawn = np.random.default_rng(seed).multinomial(
        sizes, cells / sizes[:, None], size=(draws, len(cells))
    )
    return _percentiles(statistic(drawn))


def _percentiles(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ends of 95 % intervals of samples (draws, k), without NaN."""
    known = [column[~np.isnan(column)] for column in values.reshape(len(values), -1).T]
    ends = [np.quantile(each, (0.025, 0.975)) if len(each) else (np.nan,) * 2 for each in known]
    low, high = np.array(ends).T
    return low, high


def welch(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """Welch's t test of two arms of training runs, one value for each seed.

    Returns:
        tuple[float, float, float]: t of the first minus the second arm, the degrees of freedom, and p.

    Raises:
        ValueError: If an arm has only one seed, or the values within each arm are all equal.
    """
    if min(len(first), len(second)) < 2:
        raise ValueError('a claim over seeds needs at least two runs in each arm')
    if not np.ptp(first) and not np.ptp(second):
        raise ValueError(
            'all runs of each arm have the same value, so nothing is known of their spread; the runs '
            'need different seeds'
        )
    found = stats.ttest_ind(first, second, equal_var=False)
    return float(found.statistic), float(found.df), float(found.pvalue)


def check_alpha(alpha: float) -> float:
    """Checks a significance level, in (0, 0.5]."""
    return number('alpha', alpha, 0, 0.5, open_low=True)
