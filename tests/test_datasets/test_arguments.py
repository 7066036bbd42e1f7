"""Each number, flag and choice of a constructor is checked, by the signatures of what is registered."""

import inspect
import math

import pytest

from mmkdx.datasets import Digits
from mmkdx.registry import DATA_SAMPLERS, DATASETS, HOOKS, MODELS, TRANSFORMS

HEAD = dict(num_classes=3, in_channels=4)
#: What can be built, with the arguments that it needs.
BUILT = [
    (DATASETS, 'Parts', dict(num_samples=9)),
    (DATASETS, 'Digits', {}),
    (DATASETS, 'STL10', {}),
    (DATASETS, 'TinyImageNet', {}),
    (DATASETS, 'Waterbirds', {}),
    (DATASETS, 'CUB', {}),
    (DATASETS, 'StanfordCars', {}),
    (DATASETS, 'ImageNetSegmentation', {}),
    (DATASETS, 'ClassSubset', dict(dataset=dict(type='Digits'))),
    (DATA_SAMPLERS, 'PairSampler', dict(dataset=Digits(indices=10))),
    (TRANSFORMS, 'ChannelOrder', dict(order='rgb')),
    (TRANSFORMS, 'DisturbLabel', dict(num_classes=3)),
    (HOOKS, 'PrototypePushHook', dict(start=1)),
    (HOOKS, 'PrototypeStageHook', dict(stages=[dict(train=['add_on'])])),
    (MODELS, 'ProtoPNetHead', HEAD),
    (MODELS, 'ProtoTreeHead', dict(HEAD, depth=2)),
    (MODELS, 'CIFARResNet', dict(depth=8)),
    (MODELS, 'CIFARVGG', dict(depth=8)),
    (MODELS, 'CIFARWideResNet', dict(depth=10, widen_factor=1)),
    (MODELS, 'CIFARMobileNetV2', {}),
    (MODELS, 'CIFARShuffleNetV1', {}),
    (MODELS, 'CIFARShuffleNetV2', {}),
]
#: Texts that are no choice, and a seed that mmengine takes.
FREE = ('data_root', 'ann_file', 'seed of PairSampler')
BAD = {
    'int': (math.nan, math.inf, True, 'x', 1.5),
    'float': (math.nan, math.inf, True, 'x', -1.0),
    'bool': ('yes', 1, None),
    'str': ('x', 1, True),
}


def arguments():
    for registry, name, needed in BUILT:
        for key, parameter in inspect.signature(registry.get(name)).parameters.items():
            kind = str(parameter.annotation).removesuffix(' | None')
            if kind in BAD and not {key, f'{key} of {name}'} & set(FREE):
                yield pytest.param(registry, name, needed, key, kind, id=f'{name}.{key}')


@pytest.mark.parametrize('registry, name, needed, key, kind', arguments())
def test_bad_values_are_refused_by_name(registry, name, needed, key, kind):
    for value in BAD[kind]:
        with pytest.raises(ValueError, match=rf'\.{key} is {value!r}; it must be'):
            registry.get(name)(**{**needed, key: value})
