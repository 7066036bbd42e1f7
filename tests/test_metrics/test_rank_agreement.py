"""Agreement between metrics: numbers by hand, noise, and what is refused."""

import itertools
import math

import numpy as np
import pytest

from mmkdx.metrics.rank_agreement import (
    bootstrap_ranks,
    kendall_tau,
    kendall_w,
    mean_image_tau,
    rank_agreement,
    turned,
)

VALUES = dict(
    deletion=(0.30, 0.25, 0.40, 0.35, 0.50),
    insertion=(0.60, 0.62, 0.55, 0.58, 0.40),
    single=(0.20, 0.50, 0.30, 0.10, 0.00),
)
BETTER = dict(deletion='lower', insertion='higher', single='higher')


def test_agreement_by_hand():
    found = rank_agreement(VALUES, BETTER)
    first, second = ('deletion', 'insertion'), ('deletion', 'single')
    assert list(found.taus) == [first, second, ('insertion', 'single')]
    assert [tau.value for tau in found.taus.values()] == pytest.approx([1, 0.6, 0.6])
    assert found.taus[first].p == pytest.approx(0.0166666667)
    assert found.taus[second].p == pytest.approx(0.2333333333) and found.taus[second].n == 5
    assert found.w == pytest.approx(0.8666666667)


def test_the_direction_matters():
    assert kendall_tau(VALUES['deletion'], VALUES['insertion']).value == pytest.approx(-1)
    assert kendall_tau(VALUES['deletion'], VALUES['single']).value == pytest.approx(-0.6)
    assert (turned(VALUES, BETTER)['deletion'] == -np.array(VALUES['deletion'])).all()


def test_four_fifths_of_five_explainers_prove_nothing():
    tau = kendall_tau([1, 2, 3, 4, 5], [1, 2, 3, 5, 4])
    assert tau.value == pytest.approx(0.8) and tau.p == pytest.approx(0.0833333333)


def test_tau_counts_pairs_without_nan_and_ties():
    tau = kendall_tau([1, 2, math.nan, 3, 4, 9], [1, 1, 5, 2, 3, math.nan])
    # Of six pairs five are concordant and one is tied: 5 / sqrt(6 * 5)
    assert tau.value == pytest.approx(5 / 30**0.5) and tau.n == 4
    assert math.isnan(kendall_tau([1, 2, 3], [1, 1, 1]).value)
    assert kendall_tau([1], [2])[2] == 1 and math.isnan(kendall_tau([1], [2]).p)
    assert math.isnan(kendall_tau([math.nan, 1], [1, 1]).value)


def test_w_is_one_for_equal_ranks_also_with_ties():
    assert kendall_w([[1, 2, 2, 4], [3, 5, 5, 9]]) == pytest.approx(1)
    assert kendall_w([[1, 2, 3], [3, 2, 1]]) == pytest.approx(0)
    assert math.isnan(kendall_w([[1, 1, 1], [2, 2, 2]]))
    assert math.isnan(kendall_w([[1, 2, math.nan], [2, 2, 2]]))
    # W is linear in the mean of Spearman's correlations over pairs of metrics
    rows = np.random.default_rng(0).normal(size=(4, 6)).argsort(1).argsort(1)
    rhos = [np.corrcoef(one, other)[0, 1] for one, other in itertools.combinations(rows, 2)]
    assert kendall_w(rows) == pytest.approx((3 * np.mean(rhos) + 1) / 4)


def test_tau_over_images_of_noise():
    """The standard deviation of 16 explainers is that of the theory."""
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 500, 16))
    score = mean_image_tau(one, other)
    deviation = math.sqrt(2 * (2 * 16 + 5) / (9 * 16 * 15))
    assert deviation == pytest.approx(0.1850925694)
    assert abs(score.value) < 4 * deviation / 500**0.5 and score.n == 500
    half = 1.96 * deviation / 500**0.5
    assert (score.high - score.low) / 2 == pytest.approx(half, rel=0.1)


def test_means_can_agree_where_no_image_does():
    one = np.array([[0, 10, 1.0], [10, 20, 0]])
    other = np.array([[10, 1, 0.0], [0, 40, 5]])
    assert kendall_tau(one.mean(0), other.mean(0)).value == pytest.approx(1)
    score = mean_image_tau(one, other)
    assert score.value == pytest.approx((-1 / 3 + 1 / 3) / 2)
    assert mean_image_tau(np.vstack([one, [1, 1, 1]]), np.vstack([other, [1, 2, 3]])).n == 2


def test_what_cannot_be_ranked_is_refused():
    two = {name: each[:2] for name, each in VALUES.items()}
    message = '^metrics agree on the ranks of at least 3 explainers, and there are'
    with pytest.raises(ValueError, match=f'{message} 2$'):
        rank_agreement(two, BETTER)
    with pytest.raises(ValueError, match=f'{message} 0$'):
        rank_agreement({}, BETTER)
    with pytest.raises(ValueError, match=f'{message} 2$'):
        mean_image_tau(np.zeros((4, 2)), np.zeros((4, 2)))
    for better in ({}, dict(BETTER, single=None)):
        with pytest.raises(
            ValueError, match='^(deletion|single) has no direction .neither higher nor'
        ):
            rank_agreement(VALUES, better)


def test_bootstrap_ranks():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=40)
    clear = np.stack([noise, noise + 5, noise - 5])
    tied = np.stack([noise, noise + 1e-9, noise - 1])
    ranks, mean = bootstrap_ranks(dict(clear=clear, tied=tied))
    assert ranks['clear'] == [(2, 2, 2), (1, 1, 1), (3, 3, 3)]
    assert ranks['tied'] == [(1.5, 1.5, 1.5), (1.5, 1.5, 1.5), (3, 3, 3)]
    assert mean == [(1.75, 1.75, 1.75), (1.25, 1.25, 1.25), (3, 3, 3)]


def test_intervals_of_ranks_hold_what_other_images_say():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(3, 60)) + np.array([[0.1], [0], [-2]])
    (first, second, last), _ = (
        found['a'] if isinstance(found, dict) else found
        for found in bootstrap_ranks(dict(a=values))
    )
    assert (first.low, first.high) == (second.low, second.high) == (1, 2)
    assert last == (3, 3, 3)
    # By the definition, image by image
    means = [values[:, rng.integers(60, size=60)].mean(1) for _ in range(2000)]
    share = np.mean([each[0] > each[1] for each in means])
    assert 0.025 < share < 0.975
    assert bootstrap_ranks(dict(a=values), 3) == bootstrap_ranks(dict(a=values), 3)


def test_explainers_are_ranked_on_the_images_that_count_for_all():
    values = np.array([[1, 9, 1, 1.0], [2, math.nan, 2, 2]])
    ranks, _ = bootstrap_ranks(dict(a=values))
    assert [rank.value for rank in ranks['a']] == [2, 1]
    nothing = np.array([[1, math.nan], [math.nan, 2]])
    ranks, mean = bootstrap_ranks(dict(a=nothing, b=nothing + 1))
    assert all(map(math.isnan, (*ranks['a'][0], *ranks['b'][1], *mean[0])))
