"""Scores of a data set with their 95 % confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from mmkdx.functional.distance_correlation import dcor_standard_error


class Score(NamedTuple):
    """A score of a data set.

    Args:
        value (float): The score.
        low (float): The lower end of its 95 % confidence interval.
        high (float): The upper end.
        n (int): Number of samples that count.
        better (str, optional): 'higher' or 'lower'; None where neither is.
        batches (int, optional): Number of batches that hold them, for a mean over batches.
        error (float, optional): The standard error of such a mean.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    better: str | None = None
    batches: int | None = None
    error: float | None = None


class Floor(NamedTuple):
    """The score of ``RandomMap`` on the same images, at the resolution of the model's maps.

    Args:
        value (float): Its score.
        difference (float): How far the maps' score is above it; the sign is turned where lower is
            better, so noise has 0 and better maps have more.
        low (float): The lower end of the difference's paired 95 % interval; NaN where there is none.
        high (float): The upper end.
        n (int): Number of images that count for both.
    """

    value: float
    difference: float
    low: float
    high: float
    n: int


def mean_score(values: Sequence[float], better: str | None = None) -> Score:
    """The mean of values with the 95 % confidence interval of Student's t distribution.

    Args:
        values (Sequence[float]): The samples' values; NaN is left out. With fewer than two values the
            ends of the interval are NaN.
        better (str, optional): 'higher' or 'lower'.
    """
    array = np.asarray(values, dtype=float)
    array = array[~np.isnan(array)]
    return _t_score(float(array.mean()) if len(array) else math.nan, array, better)


def mean_ratio_score(
    numerators: Sequence[float], denominators: Sequence[float], better: str | None = None
) -> Score:
    """The ratio of two means over the same samples, with its interval by linearisation.

    Args:
        numerators (Sequence[float]): The samples' numerators; NaN where a sample does not count.
        denominators (Sequence[float]): The samples' denominators; NaN for the same samples.
        better (str, optional): 'higher' or 'lower'.
    """
    top, bottom = (np.asarray(each, dtype=float) for each in (numerators, denominators))
    counted = ~np.isnan(bottom)
    top, bottom = top[counted], bottom[counted]
    if not bottom.any():
        return Score(math.nan, n=len(top), better=better)
    mean = float(bottom.mean())
    ratio = float(top.mean()) / mean
    return _t_score(ratio, (top - ratio * bottom) / mean, better)


def batch_score(values: Sequence[float], images: Sequence[int], better: str | None = None) -> Score:
    """The mean of batches' values with its standard error and 95 % confidence interval.

    With two batches or more the error is that of their mean, by Student's t distribution; with one it is
    that of independent features (see ``dcor_standard_error``), which the score has to exceed.

    Args:
        values (Sequence[float]): The batches' values; NaN is left out.
        images (Sequence[int]): The sizes of the batches.
        better (str, optional): 'higher' or 'lower'.
    """
    array = np.asarray(values, dtype=float)
    counted = np.isfinite(array)
    n, array = int(np.asarray(images)[counted].sum()), array[counted]
    k = len(array)
    if k == 0:
        return Score(math.nan, better=better, batches=0, error=math.nan)
    error = dcor_standard_error(n) if k == 1 else float(stats.sem(array))
    half = error * float(stats.norm.ppf(0.975) if k == 1 else stats.t.ppf(0.975, k - 1))
    value = float(array.mean())
    return Score(value, value - half, value + half, n, better, k, error)


def pooled_score(
    statistic: Callable[[np.ndarray], np.ndarray], n: int, better: str | None = None
) -> Score:
    """A score that is no mean over samples, with its 95 % percentile bootstrap interval.

    Samples are drawn 1,000 times with a fixed seed.

    Args:
        statistic (Callable): Yields the score of samples, or of each row of samples, from their
            positions, integers of shape (..., n).
        n (int): Number of samples. With fewer than two the ends of the interval are NaN.
        better (str, optional): 'higher' or 'lower'.
    """
    index = np.arange(n)
    value = float(statistic(index)) if n else math.nan
    if n < 2:
        return Score(value, n=n, better=better)
    interval = stats.bootstrap(
        (index,),
        lambda drawn, axis: statistic(drawn),
        n_resamples=1000,
        batch=max(1, 1_000_000 // n),  # bounds the memory
        vectorized=True,
        method='percentile',
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return Score(value, float(interval.low), float(interval.high), n, better)


def class_mean_score(pairs: Sequence[tuple[float, float]], better: str | None = None) -> Score:
    """The mean over classes of the means of their samples' values; see ``pooled_score``.

    Args:
        pairs (Sequence[tuple]): The class and the value of each sample; NaN is left out.
        better (str, optional): 'higher' or 'lower'.
    """
    array = np.array(pairs, dtype=float).reshape(-1, 2)
    array = array[~np.isnan(array).any(1)]
    known, classes = np.unique(array[:, 0], return_inverse=True)

    def statistic(index: np.ndarray) -> np.ndarray:
        drawn = index.reshape(-1, index.shape[-1])
        # One histogram for all rows: each has its own bins
        bins = (classes[drawn] + len(known) * np.arange(len(drawn))[:, None]).ravel()
        count, total = (
            np.bincount(bins, weights, len(drawn) * len(known)).reshape(len(drawn), -1)
            for weights in (None, array[drawn.ravel(), 1])
        )
        means = (total / np.maximum(count, 1)).sum(1) / (count > 0).sum(1)
        return means.reshape(index.shape[:-1])

    return pooled_score(statistic, len(array), better)


def _t_score(value: float, residuals: np.ndarray, better: str | None) -> Score:
    """A value with the interval that its samples' residuals give it."""
    n = len(residuals)
    if n < 2:
        return Score(value, n=n, better=better)
    half = float(stats.t.ppf(0.975, n - 1) * stats.sem(residuals))
    return Score(value, value - half, value + half, n, better)


def gain_score(rows: Sequence[dict[str, Any]], name: str, better: str | None) -> Score:
    """How much better the student is than the base model, by the mean of the differences of a value."""
    sign = -1 if better == 'lower' else 1
    return mean_score([sign * (row[name] - row[f'base/{name}']) for row in rows], 'higher')
