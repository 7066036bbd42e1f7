"""The short form of the campaign of wrong options, and what it counts."""

import random

import pytest

from campaign import fuzz


def test_no_wrong_option_passes_without_a_word():
    found = list(fuzz.trials(5, seed=0, configs=1, calls=60))
    assert len(found) == 61
    own = [each for each in found if each.what == 'constructors']
    assert [str(each) for each in own if each.outcome != 'survived'] == []


def test_rows():
    trials = [fuzz.Trial('a', 'f()', 'NaN', each) for each in ('lost', 'silent', 'silent')]
    trials += [fuzz.Trial('b', 'f()', 'NaN', 'survived')]
    assert fuzz.count(trials) == [
        dict(what='a', tried=3, survived=0, lost=1, silent=2),
        dict(what='b', tried=1, survived=1, lost=0, silent=0),
    ]


@pytest.mark.parametrize(
    ('attempt', 'right', 'outcome'),
    [
        (lambda: None, True, 'survived'),
        (lambda: None, False, 'silent'),
        (lambda: int('tau is no number'), False, 'survived'),
        (lambda: int('x'), False, 'lost'),
        (lambda: [][0], True, 'lost'),
        (lambda: exec('raise ValueError("tau is wrong\\nand more")'), False, 'lost'),
        (lambda: exec('raise RuntimeError("no data")'), False, 'silent'),
        (lambda: exec('raise RuntimeError("no data")'), True, 'survived'),
    ],
)
def test_outcomes(attempt, right, outcome):
    trial = fuzz.tried('x', 'f(tau=3)', 'text', ('tau',), attempt, right, anyway='no data')
    assert trial.outcome == outcome and 'f(tau=3)' in str(trial)


def test_a_hang_is_ended(monkeypatch):
    monkeypatch.setattr(fuzz, 'SECONDS', 0.2)
    with fuzz.confined():
        trial = fuzz.tried('x', 'f()', 'huge', ('tau',), lambda: [0 for _ in iter(int, 1)], True)
    assert (trial.outcome, trial.said) == ('lost', 'hangs')


def test_the_seed_decides():
    first, second = ([fuzz.call(random.Random(3)).where for _ in range(2)] for _ in range(2))
    assert first == second
    assert fuzz.misspelt('custom_hooks') != 'custom_hooks' and fuzz.misspelt('oo') == 'o'
