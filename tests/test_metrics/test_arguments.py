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
            ExplainHook(context_size=value)
    for value in (True, None, 'MapAgreement', math.nan):
        with pytest.raises(ValueError, match='ExplainHook.metrics is .*; it must be a list of met'):
            ExplainHook(metrics=value)
    for metric, message in (
        (3, ' has 3; a metric is a dict with a type, or a type'),
        (dict(type='MapAgreement', name=3), ': name is 3; it must be a text'),
        (dict(type='ROAD', nosie=0.1), ".*unexpected keyword argument 'nosie'"),
        ('RAOD', ': RAOD is not in the mmkdx::metric registry'),
    ):
        with pytest.raises(ValueError, match=f'^ExplainHook.metrics{message}'):
            ExplainHook(metrics=[metric])
    # Also where no base model is given and so nothing is compared
    with pytest.raises(ValueError, match=r"^ExplainHook.unicam: .* argument 'layrs'"):
        ExplainHook(unicam=dict(layrs=['backbone']))


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
        ('GroupAccuracy', dict(unions=dict(id=3))),
        ('GroupAccuracy', dict(unions=3)),
        ('GroupAccuracy', dict(collect_device=True)),
        ('GroupAccuracy', dict(prefix=3)),
        ('CalibrationError', dict(collect_device=None)),
        ('CalibrationError', dict(prefix=math.nan)),
        ('MapAgreement', dict(collect_device='tpu')),
        ('MapAgreement', dict(prefix=False)),
        ('PrototypeParts', dict(parts=3)),
        ('FeatureSimilarityScore', dict(mask=3)),
        ('RelevanceScore', dict(mask='GradCam')),
        ('DeletionInsertion', dict(deletion_baseline=None)),
        ('SingleDeletion', dict(baseline='mean')),
        ('SingleDeletion', dict(grid=1)),
        ('Infidelity', dict(grid=1)),
        ('Infidelity', dict(subsets=0)),
        ('Infidelity', dict(size=4)),
        ('Infidelity', dict(size=[1, 2.5])),
        ('FeatureSimilarityScore', dict(estimator=1)),
        ('FFidelity', dict(fractions=[0.5, 0])),
        ('FFidelity', dict(fractions=[1.1])),
        ('FFidelity', dict(fractions=[])),
        ('FFidelity', dict(alpha=0)),
        ('FFidelity', dict(alpha=1.5)),
        ('FFidelity', dict(beta=0)),
        ('FFidelity', dict(beta=math.nan)),
        ('FFidelity', dict(draws=0)),
        ('FFidelity', dict(kind='hits')),
        ('FFidelity', dict(seed=-1)),
    ],
)
def test_lists_and_words(kind, arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f'{kind}.{name}'):
        getattr(metrics, kind)(**arguments)
