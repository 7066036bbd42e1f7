"""Fewer classes and fewer images of each."""

import numpy as np
import pytest
from mmengine.registry import DATASETS as ROOT
from mmengine.registry import DefaultScope
from mmpretrain.datasets import BaseDataset

from mmkdx.datasets import Digits, class_subset
from mmkdx.registry import DATASETS


@DATASETS.register_module()
class Numbered(BaseDataset):
    """Samples of given labels, numbered."""

    def __init__(self, labels, names=None, serialize_data=False):
        self.labels = labels
        metainfo = dict(classes=names) if names else None
        super().__init__(ann_file='', metainfo=metainfo, serialize_data=serialize_data)

    def load_data_list(self):
        return [dict(number=i, gt_label=label) for i, label in enumerate(self.labels)]


# 10 images of class 0, 7 of class 1, 3 of class 2, mixed
LABELS = [0, 1, 0, 2, 1, 0, 0, 1, 0, 1, 0, 2, 0, 1, 0, 1, 0, 2, 1, 0]


def numbered(labels=LABELS, **kwargs):
    return dict(type='Numbered', labels=labels, names=('a', 'b', 'c'), **kwargs)


def numbers(data):
    return [data.get_data_info(i)['number'] for i in range(len(data))]


def of_class(label):
    return [i for i, each in enumerate(LABELS) if each == label]


@pytest.mark.parametrize('serialize', [True, False])
@pytest.mark.parametrize(
    'arguments, expected',
    [
        (dict(), range(20)),
        (dict(num_classes=2), of_class(0) + of_class(1)),
        # int(0.5 * 7) = 3, int(0.5 * 3) = 1
        (dict(ratio=0.5), of_class(0)[:5] + of_class(1)[:3] + of_class(2)[:1]),
        (dict(ratio=0.3, num_classes=2), of_class(0)[:3] + of_class(1)[:2]),
        (dict(ratio=0.2), of_class(0)[:2] + of_class(1)[:1]),
        (dict(ratio=1.0), range(20)),
        (dict(per_class=2), of_class(0)[:2] + of_class(1)[:2] + of_class(2)[:2]),
        (dict(per_class=7, num_classes=2), of_class(0)[:7] + of_class(1)),
    ],
)
def test_which_images_stay(arguments, expected, serialize):
    data = class_subset(numbered(serialize_data=serialize), **arguments)
    # in the data set's own order
    assert numbers(data) == sorted(expected)
    assert [data.get_data_info(i)['sample_idx'] for i in range(len(data))] == [*range(len(data))]
    assert data.metainfo['classes'] == ('a', 'b', 'c')


@pytest.mark.parametrize('ratio, each', [(1.0, 500), (0.5, 250), (0.3, 150), (0.251, 125)])
def test_cat_kds_reduction_of_cifar100(ratio, each):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(100), 500)).tolist()
    data = class_subset(Numbered(labels), num_classes=99, ratio=ratio)
    counts = np.bincount(data.get_gt_labels(), minlength=100)
    assert counts.tolist() == [each] * 99 + [0]
    assert numbers(data)[:50] == numbers(class_subset(Numbered(labels), 99, ratio))[:50]


def test_drawn_images():
    # the same with the same seed, of which few are among many; not simply the first ones
    draw = {
        n: numbers(class_subset(numbered(), num_classes=2, per_class=n, seed=42)) for n in (3, 6, 7)
    }
    assert draw[3] == numbers(class_subset(numbered(), num_classes=2, per_class=3, seed=42))
    assert set(draw[3]) < set(draw[6]) and set(of_class(1)) < set(draw[7])
    for n, drawn in draw.items():
        assert np.bincount([LABELS[i] for i in drawn]).tolist() == [n, n] and drawn == sorted(drawn)
    others = [
        numbers(class_subset(numbered(), num_classes=2, per_class=3, seed=s)) for s in range(20)
    ]
    assert len({tuple(other) for other in others}) > 10
    # every image can be drawn
    assert set().union(*others) == {*of_class(0), *of_class(1)}
    # a class's images do not hang on the classes after it
    three = numbers(class_subset(numbered(), per_class=3, seed=42))
    assert [i for i in three if LABELS[i] < 2] == draw[3]


def test_seed_draws_with_ratio_too():
    data = class_subset(numbered(), ratio=0.5, seed=1)
    assert np.bincount(data.get_gt_labels()).tolist() == [5, 3, 1]
    assert numbers(data) != numbers(class_subset(numbered(), ratio=0.5))


def test_labels_of_no_class_go():
    assert numbers(class_subset(Numbered([-1, 0, 1, -1, 1]))) == [1, 2, 4]


def test_in_a_config_with_a_wrapper_around():
    config = dict(
        type='RepeatDataset',
        times=3,
        dataset=dict(
            type='ClassSubset',
            num_classes=4,
            per_class=5,
            dataset=dict(type='Digits', pipeline=[dict(type='PackInputs')]),
        ),
    )
    with DefaultScope.overwrite_default_scope('mmkdx'):
        data = ROOT.build(config)
        sample = data[25]
    assert len(data) == 60 and isinstance(data.dataset, Digits)
    assert len(data.metainfo['classes']) == 10
    # digits alternate, and so do the classes that stay
    assert [data.get_data_info(i)['gt_label'] for i in range(8)] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert sample['data_samples'].gt_label.item() == 1 and sample['inputs'].shape == (3, 32, 32)


def test_subset_of_a_subset():
    inner = dict(type='ClassSubset', dataset=numbered(), per_class=1)
    assert numbers(class_subset(inner, num_classes=2)) == [0, 1]


REPEATED = dict(type='RepeatDataset', times=2, dataset=numbered())


@pytest.mark.parametrize(
    'dataset, arguments, message',
    [
        (numbered(), dict(ratio=0.5, per_class=1), 'takes ratio or per_class, not both'),
        (
            numbered(),
            dict(ratio=0.0),
            'ClassSubset.ratio is 0.0; it must be a finite number above 0 and of at most 1',
        ),
        (numbered(), dict(ratio=1.5), 'ClassSubset.ratio is 1.5; it must be'),
        (
            numbered(),
            dict(num_classes=0),
            'ClassSubset.num_classes is 0; it must be an integer of at least 1',
        ),
        (
            numbered(),
            dict(per_class=-1),
            'ClassSubset.per_class is -1; it must be an integer of at least 1',
        ),
        (
            numbered(),
            dict(num_classes=4),
            'num_classes of ClassSubset is 4; Numbered has 3 classes',
        ),
        (
            numbered(),
            dict(per_class=4),
            r'per_class .* is 4; class c \(2\) of Numbered has only 3 images',
        ),
        (numbered(), dict(ratio=0.05), 'leaves no image of Numbered; set a larger ratio'),
        (numbered(labels=[0, [1, 2]]), dict(), 'needs labels: sample 1 of Numbered has the label'),
        (numbered(labels=[0, None]), dict(), 'needs labels: sample 1 of Numbered has the label'),
    ],
)
def test_wrong_arguments(dataset, arguments, message):
    with pytest.raises(ValueError, match=message):
        class_subset(dataset, **arguments)


def test_wrapper_inside():
    message = 'cannot cut down a RepeatDataset; put the RepeatDataset around ClassSubset'
    with DefaultScope.overwrite_default_scope('mmkdx'), pytest.raises(TypeError, match=message):
        class_subset(REPEATED)
