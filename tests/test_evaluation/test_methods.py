"""Methods with several seeds: intervals, tests, and the sentences that they allow."""

import math

import numpy as np
import pytest
from scipy import stats

from mmkdx.evaluation import methods
from mmkdx.evaluation.methods import Method, conclusions, pairwise
from mmkdx.functional.audit import welch

NAN = float('nan')


def method(*rates, maps=None, n=100):
    """Runs that get these shares of n images right, with all else as given."""
    maps = maps or [0.5] * len(rates)
    return Method(
        [
            dict(
                accuracy=(np.arange(n) < round(rate * n)).astype(float),
                predictions=np.ones(n),
                maps=np.array([value, value, NAN]),
            )
            for rate, value in zip(rates, maps)
        ]
    )


def texts(given, mapped=0, **options):
    return [str(each) for each in conclusions(given, 100, mapped, **options)]


def test_an_interval_over_seeds_is_of_the_runs_means():
    score = method(0.5, 0.6, 0.7).score('accuracy')
    half = 4.302652729911275 * 0.1 / math.sqrt(3)  # t of 2 degrees of freedom, and the deviation
    assert score[:4] == pytest.approx((0.6, 0.6 - half, 0.6 + half, 3))


def test_intervals_stay_in_the_range_of_possible_values():
    score = method(0.9, 1.0, maps=[-0.9, 0.9]).score('accuracy')
    assert (score.low, score.high) == (pytest.approx(0.95 - 12.7062047 * 0.05), 1.0)
    score = method(0.9, 1.0, maps=[-0.9, 0.9]).score('maps')
    assert (score.low, score.high, score.n) == (-1.0, 1.0, 2)


def test_an_interval_of_one_run_is_over_images():
    score = method(0.8, n=10).score('accuracy')
    # Wilson, by its formula
    z = 1.959963984540054
    centre = (0.8 + z * z / 20) / (1 + z * z / 10)
    half = z / (1 + z * z / 10) * math.sqrt(0.8 * 0.2 / 10 + z * z / 400)
    assert score[:4] == pytest.approx((0.8, centre - half, centre + half, 10))
    values = Method([dict(maps=np.array([0.2, 0.4, NAN, 0.6]))]).score('maps')
    half = 4.302652729911275 * 0.2 / math.sqrt(3)
    assert values[:4] == pytest.approx((0.4, 0.4 - half, 0.4 + half, 3))


def test_all_pairs_are_tested_and_corrected_together():
    rates = dict(a=[0.5, 0.52, 0.51], b=[0.6, 0.58, 0.62], c=[0.53, 0.55, 0.57, 0.55])
    found = pairwise(
        {k: method(*v) for k, v in rates.items()} | {'d': method(0.9, 0.1)}, 'accuracy'
    )

    def p(one, two):
        return stats.ttest_ind(rates[one], rates[two], equal_var=False).pvalue

    first, second, third = sorted([p('a', 'b'), p('a', 'c'), p('b', 'c')])
    adjusted = {
        first: 3 * first,
        second: max(3 * first, 2 * second),
        third: max(3 * first, 2 * second, third),
    }
    assert set(found) == {(x, y) for x in 'abc' for y in 'abc' if x != y}
    for (one, two), value in found.items():
        assert value == pytest.approx(adjusted[p(*sorted((one, two)))])


def test_runs_that_are_all_alike_have_no_test():
    same = {'a': method(0.5, 0.5, 0.5), 'b': method(0.6, 0.6, 0.6)}
    assert pairwise(same, 'accuracy') == {('a', 'b'): 1.0, ('b', 'a'): 1.0}


def test_equal_methods_are_rarely_told_apart(monkeypatch):
    """The family-wise error of the best against all others, which are chosen by the same numbers."""
    values = np.random.default_rng(0).normal(0.5, [[0.01], [0.02], [0.04]], (1000, 3, 3))
    pairs = [(0, 1), (0, 2), (1, 2)]
    # As welch, for all draws at once
    raw = stats.ttest_ind(*(values[:, list(side)] for side in zip(*pairs)), axis=2, equal_var=False)
    found = iter(raw.pvalue.ravel())
    assert welch(*values[0, :2])[2] == pytest.approx(raw.pvalue[0, 0])
    monkeypatch.setattr(methods, '_welch', lambda first, second: next(found))
    wrong = 0
    for draw in values:
        runs = {name: Method([dict(maps=v[None]) for v in row]) for name, row in zip('abc', draw)}
        wrong += min(pairwise(runs, 'maps').values()) <= 0.05
    assert 5 <= wrong <= 50


def test_one_run_says_nothing_about_its_method():
    assert texts({'KD': method(0.8)}) == [
        '1 run of 1 method (1 run each) was compared on 100 test images.',
        'The accuracy of KD is 80.0 % (n = 100 images, 95 % interval 71.1 to 86.7).',
        "The agreement with the teacher's predictions of KD is 100.0 % (n = 100 images, 95 % interval "
        '96.3 to 100.0).',
        'There is one run of KD, from which nothing follows about the training method.',
    ]


def test_single_runs_are_ranked_as_runs():
    found = conclusions({'a': method(0.8), 'b': method(0.9)}, 100, 3)
    assert [each.rule for each in found] == ['runs', 'accuracy', 'maps', 'one_run']
    assert str(found[1]) == (
        'Of 2 runs, b has the highest accuracy: 90.0 % (n = 100 images, 95 % interval 82.6 to 94.5).'
    )
    assert str(found[0]).endswith('test images, and their maps on 3 of these.')
    assert str(found[3]) == (
        'There is one run each of a and b, from which nothing follows about the training methods.'
    )


def test_two_seeds_have_an_interval_and_no_test():
    found = texts({'a': method(0.5, 0.51), 'b': method(0.9, 0.91)})
    assert found[1:3] == [
        'Of 2 methods with several seeds, b has the highest mean accuracy: 90.5 % (2 seeds, 95 % '
        'interval 84.1 to 96.9); its interval over seeds lies above that of a.',
        'There is no test, which needs 3 runs of this method and of another.',
    ]
    assert not any('nothing follows' in each for each in found)


def test_a_mean_of_seeds_beside_single_runs():
    found = texts({'a': method(0.5), 'b': method(0.9, 0.91)})
    assert found[1].startswith('Of 2 methods, b has the highest accuracy: 90.5 % (2 seeds, ')
    assert (
        found[-1] == 'There is one run of a, from which nothing follows about the training method.'
    )


def test_three_seeds_are_tested():
    given = {
        'far': method(0.5, 0.51, 0.52, maps=[0.1, 0.11, 0.12]),
        'near': method(0.88, 0.90, 0.93, maps=[0.60, 0.62, 0.64]),
        'best': method(0.90, 0.91, 0.92, maps=[0.61, 0.63, 0.65]),
        'two': method(0.3, 0.31),
    }
    found = conclusions(given, 100, 2)
    assert [each.rule for each in found] == [
        *('runs', 'accuracy', 'accuracy_test', 'accuracy_differences'),
        *('maps', 'maps_test', 'maps_differences'),
    ]
    assert str(found[0]).startswith('11 runs of 4 methods (2 to 3 runs each) were compared on 100')
    p = pairwise(given, 'accuracy')
    assert str(found[1]) == (
        'Of 4 methods with several seeds, best has the highest mean accuracy: 91.0 % (3 seeds, 95 % '
        'interval 88.5 to 93.5); its interval over seeds overlaps that of near and lies above those of '
        'far and two.'
    )
    assert p['best', 'far'] < 0.001 and p['best', 'near'] > 0.05
    assert str(found[2]) == (
        "Welch's tests over the seeds (family-wise level 5 %, Holm over 3 pairs) distinguish it from "
        f'far (p < 0.001) and do not distinguish it from near (p = {p["best", "near"]:.2g}).'
    )
    assert str(found[3]) == (
        'Mean accuracy of best, minus that of others: far 40.0 points (p < 0.001), near 0.7 points '
        f'(p = {p["best", "near"]:.2g}), two 60.5 points (too few runs for a test).'
    )
    assert found[2].numbers['p'] == {'far': p['best', 'far'], 'near': p['best', 'near']}
    assert found[1].numbers['overlap'] == ['near'] and found[1].numbers['above'] == ['far', 'two']
    assert 'maps (Pearson) of best, minus that of others: far 0.52 (p < 0.001), near 0.01' in str(
        found[6]
    )


def test_long_lists_of_methods_are_counted():
    given = {f'm{i}': method(*(0.1 * i + k for k in (0.1, 0.11, 0.12))) for i in range(6)}
    found = texts(given | {f's{i}': method(0.5) for i in range(4)})
    assert found[1].endswith('; its interval over seeds lies above those of 5 methods.')
    assert found[2].endswith('Holm over 15 pairs) distinguish it from 5 methods.')
    assert 'm0 50.0 points (p < 0.001), m1 40.0 points' in found[3]
    assert found[-1].startswith('There is one run each of 4 methods, from which nothing follows')


def test_a_level_that_no_test_reaches():
    given = {'a': method(0.5, 0.51, 0.52), 'b': method(0.8, 0.81, 0.82)}
    assert 'do not distinguish it from a' in texts(given, alpha=1e-9)[2]
    assert ' pair) distinguish it from a' in texts(given)[2]


def test_a_method_without_any_map_is_left_out():
    blind = Method([dict(accuracy=np.ones(5), maps=np.full(5, NAN))] * 3)
    found = texts({'a': method(0.5, 0.51, 0.52), 'blind': blind}, mapped=5)
    assert found[4].startswith(
        "The agreement with the teacher's maps (Pearson) of a is 0.50 (3 seeds, 95 % interval"
    )
    assert len(conclusions({'blind': blind}, 5, 5)) == 2
