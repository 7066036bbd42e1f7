"""Arguments of all metrics: type, finiteness and range."""

import inspect
import math

import pytest

from mmkdx import metrics
from mmkdx.hooks import ExplainHook
from mmkdx.metrics import ScoreMetric

KINDS = [kind for kind in vars(metrics).values() if inspect.isclass(kind)]
KINDS = [kind for kind in KINDS if issubclass(kind, ScoreMetric) and not inspect.isabstract(kind)]
CASES = [
    (kind, name, parameter.default)
    for kind in [*KINDS, metrics.CalibrationError, ExplainHook]
    for name, parameter in inspect.signature(kind).parameters.items()
    if isinstance(parameter.default, (int, float))
]
#: Of these other types have a meaning, or the models decide.
FREE = ('unicam', 'teacher', 'report', 'context_size')
CASES = [each for each in CASES if each[1] not in FREE]


@pytest.mark.parametrize(('kind', 'name', 'default'), CASES, ids=lambda each: str(each))
def test_no_number_and_no_flag_is_anything_else(kind, name, default):
    wrong = [math.nan, math.inf, -math.inf, '3', [1], -1]
    wrong += [1, None, 'yes'] if isinstance(default, bool) else [True]
    for value in wrong:
        with pytest.raises(ValueError, match=f'{name} is '):
            kind(**{name: value})


def test_arguments_of_the_hook_that_take_several_types():
    for name in ('unicam', 'report'):
        for value in (1, math.nan, 'yes'):
            with pytest.raises(ValueError, match=f'ExplainHook.{name} is '):
                ExplainHook(**{name: value})
    for value in (True, '8', math.nan, 8.0):
        with pytest.raises(ValueError, match='ExplainHook.context_size is '):
            ExplainHook(base='some', context_size=value)


@pytest.mark.parametrize(
    ('kind', 'arguments'),
    [
        ('ROAD', dict(fractions=[math.nan])),
        ('ROAD', dict(fractions=0.5)),
        ('ROAD', dict(fractions='0.5')),
        ('ROAD', dict(fractions=[True])),
        ('PrototypeTransfer', dict(taus=[math.inf])),
        ('PrototypeTransfer', dict(taus=[True])),
        ('PrototypeTransfer', dict(taus='1')),
        ('PrototypeParts', dict(parts=[1.5])),
        ('PointingGame', dict(labels=[True])),
        ('PointingGame', dict(labels=3)),
        ('PointingGame', dict(average=True)),
        ('GroupAccuracy', dict(unions=dict(id=['a']))),
        ('DeletionInsertion', dict(deletion_baseline=None)),
        ('FeatureSimilarityScore', dict(estimator=1)),
    ],
)
def test_lists_and_words(kind, arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f'{kind}.{name}'):
        getattr(metrics, kind)(**arguments)
