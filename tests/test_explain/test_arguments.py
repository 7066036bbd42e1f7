"""Explainers refuse options that are no number of their range, or no truth value."""

import inspect

import pytest

from mmkdx.registry import EXPLAINERS

EXPLAINERS.import_from_location()
OPTIONS = [
    (kind, option.name, option.annotation)
    for kind in EXPLAINERS.module_dict.values()
    for option in inspect.signature(kind).parameters.values()
    if kind.__module__.startswith('mmkdx.')
]


def wrong_values(name: str, annotation: str) -> list:
    if annotation == 'bool':
        return [float('nan'), 1, 0, 'yes', None]
    if annotation.startswith(('int', 'float')):
        negative = [] if name == 'baseline' else [-1]  # pixels are below 0, too
        return [float('nan'), float('inf'), float('-inf'), '3', True, False, [1], *negative]
    return [float('nan'), 3, True, []]  # names of layers


@pytest.mark.parametrize(
    ('kind', 'name', 'annotation'), OPTIONS, ids=lambda each: getattr(each, '__name__', each)
)
def test_each_option_has_its_kind_and_range(kind, name, annotation):
    for value in wrong_values(name, annotation):
        with pytest.raises(ValueError, match=rf'\b{name} is ') as error:
            kind(**{name: value})
        assert str(error.value).count('; it must ') == 1


@pytest.mark.parametrize('name', ['steps', 'samples', 'max_batch', 'channels', 'size'])
def test_counts_begin_at_one(name):
    owners = [kind for kind, option, _ in OPTIONS if option == name]
    assert owners
    for kind in owners:
        with pytest.raises(ValueError, match=f'{name} is 0; it must be an integer of at least 1'):
            kind(**{name: 0})
