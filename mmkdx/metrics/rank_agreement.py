"""Do metrics rank explainers, or images, alike?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy import stats

from mmkdx.metrics.scores import Score, mean_score

#: The meaning of disagreement, for a report.
DISAGREEMENT = (
    'Metrics that disagree measure different things, or noise, so a ranking holds only for the metric '
    'that it comes from.'
)


class Tau(NamedTuple):
    """Kendall's rank correlation of two metrics.

    Args:
        value (float): tau-b in [-1, 1]; NaN where a metric is constant.
        p (float): The two-sided p-value of no correlation. It is exact where no values are equal and
            there are at most 33, else that of a normal distribution.
        n (int): Number of pairs of values.
    """

    value: float
    p: float
    n: int


@dataclass
class RankAgreement:
    """How far metrics agree on the ranks of explainers.

    Args:
        taus (dict[tuple[str, str], Tau]): Kendall's tau of each pair of metrics. A positive one says
            that both find the same explainers better.
        w (float): Kendall's W of all metrics, from 0 (none) to 1 (all rank alike); NaN where a metric
            is not finite for an explainer.
    """

    taus: dict[tuple[str, str], Tau]
    w: float


class Rank(NamedTuple):
    """An explainer's rank among others, 1 for the best, or the mean of several ranks.

    Args:
        value (float): The rank; NaN where no image counts for all explainers.
        low (float): The lower end of the 95 % bootstrap interval over images.
        high (float): The upper end.
    """

    value: float
    low: float
    high: float


def kendall_tau(one: Sequence[float], other: Sequence[float]) -> Tau:
    """Kendall's tau-b of two lists of values; pairs with a NaN are left out."""
    pairs = np.array([one, other], float)
    pairs = pairs[:, ~np.isnan(pairs).any(0)]
    if pairs.shape[1] < 2:
        return Tau(math.nan, math.nan, pairs.shape[1])
    found = stats.kendalltau(*pairs)
    return Tau(float(found.statistic), float(found.pvalue), pairs.shape[1])


def kendall_w(values: Sequence[Sequence[float]]) -> float:
    """Kendall's W of M metrics' values of E explainers, (M, E); equal values share ranks."""
    values = np.asarray(values, float)
    metrics, explainers = values.shape
    if not np.isfinite(values).all():
        return math.nan
    sums = stats.rankdata(values, axis=1).sum(0)
    counts = [np.unique(row, return_counts=True)[1] for row in values]
    ties = sum(float((count**3 - count).sum()) for count in counts)
    most = metrics**2 * (explainers**3 - explainers) - metrics * ties
    spread = 12 * float(((sums - sums.mean()) ** 2).sum())
    return spread / most if most else math.nan


def turned(
    values: Mapping[str, Sequence[float]], better: Mapping[str, str | None]
) -> dict[str, np.ndarray]:
    """Each metric's values, with the sign turned where lower is better.

    Raises:
        ValueError: If it is not known what is better for a metric.
    """
    for name in values:
        if better.get(name) not in ('higher', 'lower'):
            raise ValueError(
                f'{name} has no direction (neither higher nor lower is better), so it cannot rank; '
                'leave it out'
            )
    return {
        name: np.asarray(each, float) * (1 if better[name] == 'higher' else -1)
        for name, each in values.items()
    }


def rank_agreement(
    values: Mapping[str, Sequence[float]], better: Mapping[str, str | None]
) -> RankAgreement:
    """How far metrics agree on the ranks of explainers.

    With five explainers a tau of 0.8 has p = 0.083, so five cannot establish that two metrics agree.

    Args:
        values (Mapping[str, Sequence[float]]): Each metric's values of the same E explainers.
        better (Mapping[str, str]): 'higher' or 'lower', by the metric's name.

    Raises:
        ValueError: If there are fewer than three explainers, or it is not known what is better.
    """
    values = turned(values, better)
    _check_count(min((len(each) for each in values.values()), default=0))
    taus = {pair: kendall_tau(*map(values.get, pair)) for pair in combinations(values, 2)}
    return RankAgreement(taus, kendall_w(list(values.values())))


def mean_image_tau(one: np.ndarray, other: np.ndarray) -> Score:
    """The mean over images of Kendall's tau of two metrics' values (N, E) of E explainers.

    It tells whether the metrics agree on single images; means over images can agree where no image
    does. Images on which one metric is constant do not count. For noise tau is 0 with a standard
    deviation of sqrt(2 (2 E + 5) / (9 E (E - 1))) an image.

    Args:
        one (np.ndarray): The one metric's values, the sign turned so that higher is better.
        other (np.ndarray): The other's.

    Raises:
        ValueError: If there are fewer than three explainers.
    """
    one, other = np.asarray(one, float), np.asarray(other, float)
    _check_count(one.shape[1])
    return mean_score([kendall_tau(*rows).value for rows in zip(one, other)])


def bootstrap_ranks(
    values: Mapping[str, np.ndarray], seed: int = 0
) -> tuple[dict[str, list[Rank]], list[Rank]]:
    """The ranks of E explainers by each metric, and their means over metrics, with 95 % intervals.

    Explainers are ranked by their means over the images that count for all of them. Images are drawn
    1,000 times, the same for all metrics.

    Args:
        values (Mapping[str, np.ndarray]): Each metric's values (E, N) of the same N images, the sign
            turned so that higher is better; NaN where an image does not count.
        seed (int): The seed. Defaults to 0.
    """
    count = next(iter(values.values())).shape[1]
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=1000)
    weights = np.vstack([np.ones(count), drawn])  # first the images as they are
    ranks = {}
    for name, each in values.items():
        counted = np.isfinite(each).all(0)
        total = weights[:, counted].sum(1)
        sums = each[:, counted] @ weights[:, counted].T
        means = np.where(total > 0, sums / np.maximum(total, 1), np.nan)
        # Maps that are equal but for rounding share a rank
        ranks[name] = stats.rankdata(-means.round(6), axis=0, nan_policy='propagate')
    mean = np.mean(list(ranks.values()), axis=0)
    return {name: _intervals(each) for name, each in ranks.items()}, _intervals(mean)


def _intervals(ranks: np.ndarray) -> list[Rank]:
    """The first of each row's values, and the interval of all others that are finite."""
    found = []
    for value, *drawn in ranks:
        drawn = np.array(drawn)[np.isfinite(drawn)]
        ends = np.percentile(drawn, (2.5, 97.5)) if len(drawn) else (math.nan, math.nan)
        found.append(Rank(float(value), *map(float, ends)))
    return found


def _check_count(explainers: int) -> None:
    if explainers < 3:
        raise ValueError(
            f'metrics agree on the ranks of at least 3 explainers, and there are {explainers}'
        )
