"""A search of weights: what is read from the command line, and what the numbers support."""

import importlib
import re

import pytest
from mmengine.config import Config

from mmkdx.apis import tuning
from mmkdx.apis.tuning import check_seeds, conclusion, own_weights, read_ranges, spread


def test_ranges():
    found = read_ranges(['terms.kd.weight=0.1..100', 'model.terms.cat.weight=1e-2..5'])
    assert found == {'terms.kd.weight': (0.1, 100.0), 'terms.cat.weight': (0.01, 5.0)}


@pytest.mark.parametrize(
    'texts, message',
    [
        (['terms.kd.weight'], r'--weights terms.kd.weight: write KEY=LOW..HIGH'),
        (['a=1..b'], r'--weights a=1..b: write KEY=LOW..HIGH'),
        (['a=0..1'], 'LOW must be above 0 and HIGH above LOW'),
        (['a=2..1'], 'LOW must be above 0 and HIGH above LOW'),
        (['a=1..inf'], 'LOW must be above 0'),
        (['a=1..2', 'model.a=1..3'], 'gives two ranges for a'),
    ],
)
def test_wrong_ranges(texts, message):
    with pytest.raises(ValueError, match=message):
        read_ranges(texts)


def test_the_first_points_cover_the_ranges():
    found = spread(dict(a=(0.01, 100), b=(1, 27)))
    assert [point['a'] for point in found] == pytest.approx([1, 0.1, 10, 10**-1.5])
    assert [point['b'] for point in found] == pytest.approx([3, 9, 27 ** (1 / 9), 27 ** (4 / 9)])


def config(**terms):
    cfg = Config(dict(model=dict(student_weight=2, terms=terms)))
    object.__setattr__(cfg, '_filename', 'kd.py')
    return cfg


def test_the_configs_own_weights():
    cfg = config(kd=dict(type='KLDivLoss'), dkd=dict(weight=3, beta=8.0))
    ranges = {
        key: (0.5, 10)
        for key in ('terms.kd.weight', 'terms.dkd.weight', 'terms.dkd.beta', 'student_weight')
    }
    assert list(own_weights(cfg, ranges).values()) == [1, 3, 8, 2]


@pytest.mark.parametrize(
    'key, message',
    [
        ('terms.at.weight', 'kd.py has no number at model.terms.at.weight; .* terms.kd.weight'),
        ('terms.kd.type', 'has no number at model.terms.kd.type'),
        ('terms.kd.weight.more', 'has no number'),
        ('weight', "the config's own 1 is not in 2..10, so the search could not find it; widen"),
        ('terms.kd.flag', 'has no number'),
    ],
)
def test_what_is_no_weight(key, message):
    with pytest.raises(ValueError, match=f'--weights {key}: .*{message}'):
        own_weights(config(kd=dict(type='KLDivLoss', weight=1, flag=True)), {key: (2, 10)})


@pytest.mark.parametrize('weight', ['auto', dict(type='auto', steps=9)])
def test_weights_that_set_themselves_are_not_searched(weight):
    cfg = config(kd=dict(weight=1), cat=dict(weight=weight))
    with pytest.raises(ValueError, match="model.terms.cat.weight is 'auto', which sets itself"):
        own_weights(cfg, {'terms.kd.weight': (0.1, 10)})


@pytest.mark.parametrize('seeds', [[0, 1], [1, 1]])
def test_seeds_of_the_comparison(seeds):
    with pytest.raises(
        ValueError, match='--seeds .*: give each seed once, and not 0, the seed of the'
    ):
        check_seeds(seeds)


def test_optuna_is_optional(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(tuning, 'import_module', missing)
    with pytest.raises(
        ValueError, match='a search of weights needs optuna, .*: pip install optuna'
    ):
        tuning.WeightSearch(config(), {}, None)
    assert importlib.import_module('optuna')


@pytest.mark.parametrize(
    'found, text, ends',
    [
        # Differences 1, 2, 3: mean 2, standard error 1 / sqrt(3), t of 0.975 with 2 degrees 4.3027
        ([51, 62, 73], 'The runs do not tell the two apart', (2 - 2.4841, 2 + 2.4841)),
        (
            [59, 70, 81],
            'The found weights are better on held-out training images',
            (7.5159, 12.4841),
        ),
        ([39, 50, 61], 'The found weights are worse; keep', (-12.4841, -7.5159)),
        (
            [55, 65, 75],
            r'own: 5.000 for each of 3 seeds, so nothing is known of its spread',
            (5, 5),
        ),
        ([51, 62], 'n = 2 seeds are too few for a statement; use 3 or more', None),
    ],
)
def test_what_the_differences_support(found, text, ends):
    arms = dict(
        found=[dict(acc=each) for each in found], own=[dict(acc=each) for each in (50, 60, 70)]
    )
    arms['own'] = arms['own'][: len(found)]
    sentence, score = conclusion(arms, 'acc')
    assert pytest.approx(sum(found) / len(found) - (60 if len(found) == 3 else 55)) == score.value
    if ends:
        assert (score.low, score.high) == pytest.approx(ends, abs=1e-4)
    assert re.search(text, sentence)


def test_a_seed_without_a_score_does_not_count():
    arms = dict(
        found=[dict(acc=each) for each in (51, float('nan'), 62)],
        own=[dict(acc=each) for each in (50, 55, 60)],
    )
    sentence, score = conclusion(arms, 'acc')
    assert score.value == 1.5
    assert sentence.endswith('1.500. n = 2 seeds are too few for a statement; use 3 or more.')


def test_nothing_found():
    sentence, score = conclusion(dict(own=[dict(acc=1)]), 'acc')
    assert score is None and sentence.startswith(
        "No trial was better than the config's own weights"
    )
