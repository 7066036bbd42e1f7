"""The statistics of an audit, against hand-computed numbers, SciPy's tests and simulations."""

import math

import numpy as np
import pytest
from scipy import stats

from mmkdx.functional import audit

# Numbers of negative and positive flips of five classes
NEGATIVE, POSITIVE = np.array([(10, 1), (3, 3), (0, 0), (0, 8), (1, 7)]).T


def test_p_of_classes_and_their_corrections():
    p = audit.mcnemar_exact(NEGATIVE, POSITIVE)
    assert p == pytest.approx([0.01171875, 1, 1, 0.0078125, 0.0703125])
    assert audit.holm(p) == pytest.approx([0.046875, 1, 1, 0.0390625, 0.2109375])
    bonferroni = np.minimum(1, 5 * p)
    assert bonferroni == pytest.approx([0.05859375, 1, 1, 0.0390625, 0.3515625])
    found = stats.false_discovery_control(p)
    assert found == pytest.approx([0.029296875, 1, 1, 0.029296875, 0.1171875])
    flipped = np.delete(p, 2)
    assert audit.holm(flipped) == pytest.approx([0.03515625, 1, 0.03125, 0.140625])
    mid = audit.mcnemar_exact(NEGATIVE, POSITIVE, mid=True)
    assert mid == pytest.approx([0.00634765625, 1, 1, 0.00390625, 0.0390625])
    assert audit.mcnemar_exact(14, 19) == pytest.approx(0.4868502417)
    assert audit.mcnemar_exact(40, 10) == pytest.approx(2.386133168e-5)


def test_mcnemar_is_scipys_binomial_test():
    for b in range(12):
        for g in range(12):
            expected = stats.binomtest(min(b, g), b + g, 0.5).pvalue if b + g else 1
            assert audit.mcnemar_exact(b, g) == pytest.approx(expected)
            assert audit.mcnemar_exact(b, g) == audit.mcnemar_exact(g, b)
    total = audit.mcnemar_exact(np.arange(11), 20 - np.arange(11))
    assert (np.diff(total) > 0).all()  # the more even, the larger


def test_holm_lies_between_raw_and_bonferroni():
    p = np.random.default_rng(0).random((50, 7))
    adjusted = audit.holm(p)
    assert (adjusted >= p).all() and (adjusted <= np.minimum(1, 7 * p) + 1e-12).all()
    order = p.argsort(1)
    assert (np.diff(np.take_along_axis(adjusted, order, 1), axis=1) >= 0).all()
    assert adjusted.min(1) == pytest.approx(np.minimum(1, 7 * p.min(1)))


@pytest.mark.parametrize('p', [[0.1, 1.1], [-0.1], [math.nan]])
def test_holm_refuses_what_is_no_p_value(p):
    with pytest.raises(ValueError, match=r'^holm: a p value is not in \[0, 1\]$'):
        audit.holm(p)


@pytest.mark.parametrize(('classes', 'flips'), [(1, 6), (10, 9), (100, 12), (200, 13), (1000, 16)])
def test_how_many_flips_a_class_needs(classes, flips):
    assert audit.minimum_flips(classes) == flips
    assert audit.mcnemar_exact(flips, 0) <= 0.05 / classes < audit.mcnemar_exact(flips - 1, 0)


@pytest.mark.parametrize('alpha', [0, 0.6, math.nan, True, '0.05'])
def test_a_level_out_of_range(alpha):
    with pytest.raises(ValueError, match='^alpha is .*a finite number above 0 and of at most 0.5$'):
        audit.minimum_flips(3, alpha)


def test_intervals_of_rates():
    assert audit.rate_interval(3, 12) == pytest.approx((0.0889416684, 0.5323053349))
    exact = audit.rate_interval(3, 12, 'exact')
    assert exact == pytest.approx((0.0548606445, 0.5718584619))
    assert audit.rate_interval(0, 12, 'exact') == pytest.approx((0, 0.2646484694))
    assert audit.rate_interval(0, 12)[1] == pytest.approx(0.2424940067)
    assert audit.rate_interval(10, 11, 'exact') == pytest.approx((0.5872200830, 0.9977010278))
    assert np.isnan(audit.rate_interval(0, 0)).all()


def test_intervals_of_paired_differences():
    found = audit.paired_difference(14, 19, 900)
    assert found == pytest.approx((0.0055555556, -0.0071217257, 0.0182082002))
    found = audit.paired_difference(40, 10, 900)
    assert found == pytest.approx((-0.0333333333, -0.0486245516, -0.0178942954))
    swapped = audit.paired_difference(10, 40, 900)
    assert swapped == pytest.approx((-found[0], -found[2], -found[1]))
    assert audit.paired_difference(1, 0, 1)[1] == -1  # it stays in the range


def test_the_bootstrap_has_the_spread_of_the_difference():
    columns = np.repeat([[-1], [1], [0]], [40, 10, 850], axis=0)
    drawn = []

    def difference(sums):
        drawn.append(sums[:, 0] / 900)
        return sums / 900

    low, high = audit.paired_bootstrap(difference, columns)
    values = np.concatenate(drawn)
    assert len(values) == 2000
    assert values.std() == pytest.approx(0.0077777778, rel=0.05)
    assert (low[0], high[0]) == pytest.approx(np.quantile(values, (0.025, 0.975)))
    again = audit.paired_bootstrap(lambda sums: sums / 900, columns)
    assert again == (low, high)
    cells = np.array([[450, 40, 10, 400]])
    low, high = audit.stratified_bootstrap(lambda c: (c[..., 2] - c[..., 1]) / 900, cells)
    assert (high - low)[0] == pytest.approx(2 * 1.96 * 0.0077777778, rel=0.05)


def test_the_stratified_bootstrap_keeps_the_sizes_of_groups():
    cells = np.array([[3, 2, 1, 0], [0, 0, 0, 5]])
    low, high = audit.stratified_bootstrap(lambda counts: counts.sum(-1), cells, draws=50)
    assert low.tolist() == high.tolist() == [6, 5]


def test_samples_without_a_value_do_not_count():
    low, high = audit.paired_bootstrap(
        lambda sums: np.where(sums > 0, 1.0, np.nan) * [1, np.nan], np.ones((3, 2)), draws=10
    )
    assert (low[0], high[0]) == (1, 1) and np.isnan([low[1], high[1]]).all()


@pytest.mark.parametrize(('bins', 'expected'), [(2, 7.0), (5, 39.0), (15, 41.0)])
def test_calibration_error(bins, expected):
    gaps = audit.calibration_gaps([0.95, 0.85, 0.65, 0.55, 0.35], [1, 0, 1, 1, 0], bins)
    assert audit.calibration_error(gaps.sum(0), 5) == pytest.approx(expected)


def test_bins_are_closed_above():
    gaps = audit.calibration_gaps([0.6, 0.7, 0.5, 0.9, 0.8], [1, 1, 0, 1, 0], 2)
    assert (gaps[:, 0] != 0).tolist() == [False, False, True, False, False]
    assert audit.calibration_error(gaps.sum(0), 5) == pytest.approx(10)
    single = float(np.float32(0.6))  # above 0.6 in double precision
    assert audit.calibration_gaps([single], [1], 5)[0, 2] != 0


@pytest.mark.parametrize('confidence', [1.1, -0.1, math.nan])
def test_a_confidence_that_is_no_probability(confidence):
    with pytest.raises(ValueError, match=r'needs confidences in \[0, 1\], and there are others'):
        audit.calibration_gaps([0.5, confidence], [1, 1])


def test_welch():
    first = (71.9, 72.3, 71.7, 72.0, 72.4)
    second = (71.2, 70.8, 71.5, 71.0, 70.9)
    found = audit.welch(first, second)
    assert found == pytest.approx((5.4783665449, 7.9887657981, 0.0005914485))
    with pytest.raises(
        ValueError, match='^a claim over seeds needs at least two runs in each arm$'
    ):
        audit.welch(first, [71.0])
    with pytest.raises(ValueError, match='^all runs of each arm have the same value, so nothing'):
        audit.welch([0.5, 0.5], [0.7, 0.7, 0.7])


def test_kappa():
    random = np.random.default_rng(0)
    first, second = random.random((2, 20_000)) < 0.7
    assert abs(audit.kappa(first, second)) < 0.02  # independent
    assert audit.kappa(first, first) == 1
    assert audit.kappa(first, ~first) < -0.5
    assert math.isnan(audit.kappa([True, True], [True, True]))
    rates = (first == second).mean(), first.mean(), second.mean()
    assert audit.error_consistency(*rates) == pytest.approx(audit.kappa(first, second))


# Simulations: what is promised of many audits


def flips(lost, won, images, repetitions, seed=0):
    """Numbers of negative and positive flips of classes, by their rates (K, ), each (R, K)."""
    p = np.stack([lost, won, 1 - lost - won], -1)
    drawn = np.random.default_rng(seed).multinomial(images, p, size=(repetitions, len(lost)))
    return drawn[..., 0], drawn[..., 1]


@pytest.mark.parametrize('rate', [0.02, 0.1, 0.3])
def test_nothing_is_found_where_nothing_changed(rate):
    rates = np.full(10, rate)
    p = audit.mcnemar_exact(*flips(rates, rates, 60, 1000))
    wrong = (audit.holm(p) <= 0.05).any(1).mean()
    assert wrong <= 0.05
    uncorrected = (p <= 0.05).any(1).mean()
    assert uncorrected > wrong and (rate < 0.1 or uncorrected > 0.1)


@pytest.mark.parametrize('classes', [1, 10, 100])
def test_a_planted_change_is_found_with_the_stated_power(classes):
    images = 60
    lost = np.zeros(classes)
    lost[0] = audit.detectable_loss(images, classes, power=0.8)
    b, g = flips(lost, np.zeros(classes), images, 1000)
    found = audit.holm(audit.mcnemar_exact(b, g)) <= 0.05
    assert found[:, 0].mean() == pytest.approx(0.8, abs=0.03)
    assert not found[:, 1:].any()


def test_a_class_that_is_too_small_can_lose_everything():
    assert math.isnan(audit.detectable_loss(8, 10))
    assert audit.detectable_loss(9, 10) == pytest.approx(0.8 ** (1 / 9))
