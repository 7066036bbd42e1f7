"""Folds of the training data: a partition with the classes' shares, through any wrappers."""

import numpy as np
import pytest
from mmengine.registry import DefaultScope

from mmkdx.datasets.folds import StratifiedFold, held_out_fold, training_folds
from mmkdx.datasets.wrappers import images, labels, leaves, positions
from mmkdx.registry import DATASETS

DIGITS = dict(type='Digits', split='train', indices=103, pipeline=[dict(type='PackInputs')])


def build(config):
    with DefaultScope.overwrite_default_scope('mmkdx'):
        return DATASETS.build(config)


@pytest.fixture(scope='module')
def folds():
    """For each of five folds what is trained on and what is held out."""
    pair = [dict(DIGITS, type='Digits') for _ in range(2)]
    return [
        [
            build(dict(type='StratifiedFold', dataset=pair[h], fold=k, held_out=bool(h)))
            for h in (0, 1)
        ]
        for k in range(5)
    ]


def test_folds_are_a_partition_with_the_shares_of_the_classes(folds):
    all_labels = labels(build(DIGITS))
    held = []
    for rest, fold in folds:
        numbers = [positions(each).tolist() for each in (rest, fold)]
        assert sorted(sum(numbers, [])) == list(range(103))
        held += numbers[1]
        counts = np.bincount(labels(fold), minlength=10)
        assert np.abs(counts - np.bincount(all_labels) / 5).max() < 1
        sample = fold[3]['data_samples']
        assert sample.sample_idx == numbers[1][3]
        assert sample.gt_label.item() == all_labels[numbers[1][3]] == fold.get_cat_ids(3)[0]
        assert fold.get_data_info(3)['gt_label'] == all_labels[numbers[1][3]]
        assert fold.metainfo == leaves(fold)[0].metainfo
    assert sorted(held) == list(range(103))
    other = build(dict(type='StratifiedFold', dataset=DIGITS, seed=1)).indices
    assert (
        other != folds[0][0].indices == build(dict(type='StratifiedFold', dataset=DIGITS)).indices
    )


@pytest.mark.parametrize('outer', ['RepeatDataset', 'SeededViews', 'ConcatDataset', 'ClassSubset'])
def test_copies_of_held_out_images_are_not_trained_on(outer):
    """The fold stands below wrappers that repeat images, and around those that cut data down."""
    config = {
        'RepeatDataset': dict(times=3, dataset=DIGITS),
        'SeededViews': dict(views=2, dataset=dict(type='RepeatDataset', times=2, dataset=DIGITS)),
        'ConcatDataset': dict(datasets=[DIGITS, dict(DIGITS, indices=50)]),
        'ClassSubset': dict(num_classes=4, dataset=DIGITS),
    }[outer]
    config = dict(type=outer, **config)
    before = str(config)
    rest = build(training_folds(config, 1, 4))
    fold = build(held_out_fold(config, 1, 4, [dict(type='PackInputs', meta_keys=())]))
    assert str(config) == before
    trained, held = set(images(rest)), set(images(fold))
    assert not trained & held and len(fold) == len(held)  # each image once
    every = len(images(build(config)))
    assert len(trained | held) == every and abs(len(held) - every / 4) <= 8
    assert 'sample_idx' not in fold[0]['data_samples']


def test_without_one_label_an_image_classes_are_not_looked_at(monkeypatch):
    def unlabelled(dataset):
        raise ValueError('no label')

    monkeypatch.setattr('mmkdx.datasets.folds.labels', unlabelled)
    sizes = [
        len(build(dict(type='StratifiedFold', dataset=DIGITS, fold=k, held_out=True)))
        for k in range(5)
    ]
    assert sizes == [21, 21, 21, 20, 20]
    monkeypatch.setattr('mmkdx.datasets.folds.labels', lambda dataset: np.arange(len(dataset)))
    assert len(build(dict(type='StratifiedFold', dataset=DIGITS, held_out=True))) == 21


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(num_folds=1), 'StratifiedFold.num_folds is 1; it must be an integer of at least 2'),
        (dict(fold=5), 'StratifiedFold.fold is 5; .* of at most 4'),
        (dict(held_out=1), 'StratifiedFold.held_out is 1; it must be True or False'),
        (dict(seed=-1), 'StratifiedFold.seed is -1'),
        (dict(num_folds=200), 'Digits has 103 images, which cannot be divided into 200 folds'),
    ],
)
def test_wrong_folds_are_one_sentence(change, message):
    with DefaultScope.overwrite_default_scope('mmkdx'), pytest.raises(ValueError, match=message):
        StratifiedFold(DIGITS, **change)
