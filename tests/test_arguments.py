"""Checks of arguments: what is refused, and what the sentence says."""

import math
from pathlib import Path

import numpy as np
import pytest

from mmkdx.arguments import (
    errors_named,
    flag,
    integer,
    integers,
    number,
    one_of,
    options,
    positive,
    size,
    text,
    weights,
)


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf, True, False, '1', None, [1], 1j])
@pytest.mark.parametrize('check', [number, positive, integer])
def test_what_is_no_finite_number(check, value):
    with pytest.raises(ValueError, match='^Loss.tau is .*; it must be '):
        check('Loss.tau', value)


@pytest.mark.parametrize(
    ('call', 'sentence'),
    [
        (
            lambda: number('a', 3, 0, 2),
            'a is 3; it must be a finite number of at least 0 and of at most 2',
        ),
        (lambda: number('a', -0.5, 0), 'a is -0.5; it must be a finite number of at least 0'),
        (
            lambda: number('a', 1, 0, 1, open_low=True, open_high=True),
            'a is 1; it must be a finite number above 0 and below 1',
        ),
        (lambda: positive('a', 0), 'a is 0; it must be a finite number above 0'),
        (lambda: integer('a', 2.0), 'a is 2.0; it must be an integer'),
        (lambda: integer('a', 0, 1), 'a is 0; it must be an integer of at least 1'),
        (lambda: integers('a', 3), 'a is 3; it must be a list of integers'),
        (lambda: integers('a', '12'), "a is '12'; it must be a list of integers"),
        (lambda: integers('a', [1, True]), 'a is True; it must be an integer'),
        (lambda: weights(a=0, b=-1), 'b is -1; it must be a finite number of at least 0'),
        (lambda: weights(a=0, b=0), 'a and b are 0, so nothing is compared'),
        (lambda: text('a', None), 'a is None; it must be a text'),
        (lambda: text('a', 3, 'the path of a file'), 'a is 3; it must be the path of a file'),
        (lambda: options('a', []), 'a is []; it must be a dict of options'),
        (lambda: flag('a', 1), 'a is 1; it must be True or False'),
        (lambda: flag('a', 'yes'), "a is 'yes'; it must be True or False"),
        (lambda: one_of('a', 'x', ['y', 'z']), "a is 'x'; it must be one of y, z"),
        (lambda: one_of('a', True, [1, 2]), 'a is True; it must be one of 1, 2'),
        (
            lambda: size('a', 0),
            'a is 0; it must be an integer of at least 1, or two of them (height, width)',
        ),
    ],
)
def test_sentences(call, sentence):
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == sentence


@pytest.mark.parametrize('value', [True, 2.0, math.nan, '32', (1, 2, 3), (1,), [1, 0], [True, 4]])
def test_what_is_no_size(value):
    with pytest.raises(ValueError, match='^input_size is '):
        size('input_size', value)


def test_what_is_right_comes_back():
    assert number('a', 2, 2, 2) == 2 and number('a', np.float32(0.5), 0, 1) == 0.5
    assert positive('a', 1e-9) == 1e-9 and integer('a', np.int64(3), 1) == 3
    assert integers('a', (1, 2)) == [1, 2] and weights(a=0, b=2) == [0, 2]
    assert text('a', Path('x')) == Path('x') and options('a', {}) == {}
    assert flag('a', False) is False and one_of('a', None, [None, 'x']) is None
    assert size('a', 3) == (3, 3) and size('a', [3, 4]) == (3, 4) and size('a', 0, low=0) == (0, 0)


def test_errors_are_named_and_cut_to_one_line():
    with pytest.raises(ValueError, match=r"^terms\.kd: no loss 'KD'; set type$") as caught:
        with errors_named('terms.kd: ', '; set type', KeyError):
            raise KeyError("no loss 'KD'\nlook in the registry")
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(ValueError, match=r'^at: $'), errors_named('at: '):
        raise ValueError
    with pytest.raises(TypeError, match=r'^other$'), errors_named('at: '):
        raise TypeError('other')
