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
    (DATASETS, 'CIFAR10', {}),
    (DATASETS, 'ImageList', dict(ann_file='x', source='x')),
    (DATASETS, 'UnlabelledImages', dict(data_root='x')),
    (DATASETS, 'Digits', {}),
    (DATASETS, 'STL10', {}),
    (DATASETS, 'FashionMNIST', {}),
    (DATASETS, 'TinyImageNet', {}),
    (DATASETS, 'Waterbirds', {}),
    (DATASETS, 'CUB', {}),
    (DATASETS, 'StanfordCars', {}),
    (DATASETS, 'ImageNetSegmentation', {}),
    (DATASETS, 'ClassSubset', dict(dataset=dict(type='Digits'))),
    (DATA_SAMPLERS, 'PairSampler', dict(dataset=Digits(indices=10))),
    (TRANSFORMS, 'ChannelOrder', dict(order='rgb')),
    (TRANSFORMS, 'DeleteCell', dict(fill=[0])),
    (TRANSFORMS, 'KeypointRegions', {}),
    (TRANSFORMS, 'DisturbLabel', dict(num_classes=3)),
    (TRANSFORMS, 'RandomPixelRemoval', dict(fill=[0])),
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
#: A text that is no choice.
FREE = ('source',)
#: Texts too, but any text will do.
PATHS = ('data_root', 'ann_file', 'data_prefix')
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
    for value in BAD[kind][key in PATHS :]:
        with pytest.raises(ValueError, match=rf'\.{key} is {value!r}; it must be'):
            registry.get(name)(**{**needed, key: value})


@pytest.mark.parametrize(
    'registry, name, given, message',
    [
        (
            DATASETS,
            'CIFAR100',
            dict(download=1),
            'CIFAR100.download is 1; it must be True or False',
        ),
        (
            DATASETS,
            'CIFAR10',
            dict(test_mode='x'),
            "CIFAR10.test_mode is 'x'; it must be True or Fa",
        ),
        (DATASETS, 'CIFAR10', dict(data_prefix=3), 'CIFAR10.data_prefix is 3; it must be the path'),
        (
            DATASETS,
            'ImageList',
            dict(ann_file='x', source=3),
            'ImageList.source is 3; it must be a t',
        ),
        (
            DATASETS,
            'SeededViews',
            dict(dataset=3),
            'SeededViews.dataset is 3; it must be a data set',
        ),
        (
            HOOKS,
            'PrototypePushHook',
            dict(start=1, dataloader=[]),
            'PrototypePushHook.dataloader is',
        ),
        (
            HOOKS,
            'ExplainHook',
            dict(out_dir=3),
            'ExplainHook.out_dir is 3; it must be the path of a f',
        ),
        (
            DATASETS,
            'SeededViews',
            dict(dataset={}),
            'SeededViews.dataset is {}; it must be a data set',
        ),
        (
            DATASETS,
            'SeededViews',
            dict(dataset='x'),
            "SeededViews.dataset is 'x'; it must be a data",
        ),
        (
            DATASETS,
            'Parts',
            dict(num_samples=10**9),
            'Parts.num_samples is 1000000000; it must be an',
        ),
        (
            MODELS,
            'CIFARWideResNet',
            dict(depth=10**9, widen_factor=1),
            'backbone.depth is 1000000000',
        ),
        (
            MODELS,
            'CIFARWideResNet',
            dict(depth=10, widen_factor=10**4),
            'backbone.widen_factor is 10000',
        ),
        (
            MODELS,
            'ProtoTreeHead',
            dict(HEAD, depth=21),
            'head.depth is 21; it must be .* of at most 20',
        ),
    ],
)
def test_arguments_of_several_kinds(registry, name, given, message):
    with pytest.raises(ValueError, match=f'^{message}'):
        registry.get(name)(**given)
