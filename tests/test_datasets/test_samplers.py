"""PairSampler: who is paired with whom, order, epochs, ranks, wrappers, and what is refused."""

import math
from collections import Counter

import numpy as np
import pytest
from mmengine.dataset import ClassBalancedDataset, ConcatDataset, DefaultSampler, RepeatDataset
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.datasets import BaseDataset, KFoldDataset
from torch.utils.data import Dataset

from mmkdx.datasets import Digits, PairSampler

LABELS = [0, 1, 1, 2, 0, 1, 0, 3, 1, 2, 0]


class Listed(BaseDataset):
    """Samples of given labels, without images."""

    def __init__(self, labels=LABELS, **kwargs):
        self.labels = labels
        super().__init__(ann_file='', metainfo=dict(classes=list('abcd')), **kwargs)

    def load_data_list(self):
        return [dict(gt_label=label) if label is not None else {} for label in self.labels]


def pairs(sampler):
    indices = list(sampler)
    assert len(indices) == len(sampler) and all(type(index) is int for index in indices)
    return list(zip(indices[0::2], indices[1::2]))


def image(dataset, index):
    """What tells images apart, and the label, by other means than the sampler's."""
    part = 0
    while not isinstance(dataset, BaseDataset | KFoldDataset):
        found = dataset._get_ori_dataset_idx(index)
        if isinstance(found, tuple):
            part, index = found
            dataset = dataset.datasets[part]
        else:
            dataset, index = dataset.dataset, found
    return part, index, dataset.get_gt_labels()[index]


DATASETS = dict(
    plain=Listed,
    repeated=lambda: RepeatDataset(Listed(), 3),
    balanced=lambda: ClassBalancedDataset(Listed(), 0.5),
    joined=lambda: ConcatDataset([Listed(), Listed([1, 3, 0])]),
    joined_and_repeated=lambda: ConcatDataset(
        [dict(type=RepeatDataset, dataset=Listed(), times=2), Listed([3])]
    ),
    folds=lambda: KFoldDataset(dict(type=Listed), fold=1, num_splits=4),
    lazy=lambda: Listed(lazy_init=True),
    numpy=lambda: Listed([np.int64(label) for label in LABELS]),
)


@pytest.mark.parametrize('name', DATASETS)
def test_partners_are_other_images_of_the_class(name):
    dataset = DATASETS[name]()
    sampler = PairSampler(dataset, seed=3)
    images = [image(dataset, index) for index in range(len(dataset))]
    size = Counter(label for *_, label in set(images))
    found = []
    for epoch in range(60):
        sampler.set_epoch(epoch)
        found.append(pairs(sampler))
        assert sorted(own for own, _ in found[-1]) == list(range(len(dataset)))
    partners = {}
    for own, other in sum(found, []):
        assert images[own][2] == images[other][2]
        assert (images[own] != images[other]) or size[images[own][2]] == 1
        partners.setdefault(own, set()).add(images[other])
    # Each other image of the class becomes a partner
    for own, seen in partners.items():
        label = images[own][2]
        assert len(seen) == max(size[label] - 1, 1)


def test_partners_are_as_likely_as_each_other():
    sampler = PairSampler(Listed([0] * 5), shuffle=False, seed=1)
    counts = np.zeros((5, 5), int)
    for epoch in range(2000):
        sampler.set_epoch(epoch)
        for own, other in pairs(sampler):
            counts[own, other] += 1
    assert (counts.diagonal() == 0).all()
    off = counts[~np.eye(5, dtype=bool)]
    assert np.abs(off - 500).max() < 5 * math.sqrt(500 * 0.75)


def test_partners_do_not_follow_the_order():
    """Of two classes the images of one come first in half of the epochs, whatever their partners."""
    sampler = PairSampler(Listed([0] * 3), seed=0)
    seen = Counter()
    for epoch in range(1200):
        sampler.set_epoch(epoch)
        seen[tuple(sum(pairs(sampler), ()))] += 1
    assert len(seen) == 6 * 8 and max(seen.values()) < 60  # 25 each on average


@pytest.mark.parametrize('same', ['class', 'image'])
@pytest.mark.parametrize('shuffle', [True, False])
def test_first_images_are_those_of_the_default_sampler(same, shuffle):
    sampler = PairSampler(Listed(), same=same, shuffle=shuffle, seed=7)
    plain = DefaultSampler(Listed(), shuffle=shuffle, seed=7)
    epochs = []
    for epoch in (0, 1, 5):
        for each in (sampler, plain):
            each.set_epoch(epoch)
        epochs.append(pairs(sampler))
        assert [own for own, _ in epochs[-1]] == list(plain)
        assert epochs[-1] == pairs(sampler)  # the same again
    if same == 'image':
        assert all(own == other for epoch in epochs for own, other in epoch)
    else:
        assert dict(epochs[0]) != dict(epochs[1])
        assert dict(epochs[0]) != dict(pairs(PairSampler(Listed(), shuffle=shuffle, seed=8)))


@pytest.mark.parametrize('world', [2, 3, 8])
@pytest.mark.parametrize('same', ['class', 'image'])
def test_ranks_share_the_pairs(same, world, monkeypatch):
    whole = dict(pairs(PairSampler(Listed(), same=same, seed=4)))
    parts = []
    for rank in range(world):
        monkeypatch.setattr(
            'mmengine.dataset.sampler.get_dist_info', lambda rank=rank: (rank, world)
        )
        sampler = PairSampler(Listed(), same=same, seed=4)
        parts.append(pairs(sampler))
        assert len(sampler) == 2 * math.ceil(len(LABELS) / world)
        assert all(whole[own] == other for own, other in parts[-1])
    owns = [own for part in parts for own, _ in part]
    assert set(owns) == set(range(len(LABELS)))
    assert len(owns) - len(LABELS) < world


def test_seed_of_its_own(monkeypatch):
    monkeypatch.setattr('mmengine.dataset.sampler.sync_random_seed', lambda: 123)
    assert PairSampler(Listed()).seed == 123


@pytest.mark.parametrize('same', ['class', 'image'])
def test_in_a_dataloader(same):
    """Whole pairs, in as many steps as with half the batch size and without pairs."""
    with DefaultScope.overwrite_default_scope('mmkdx'):
        loader = Runner.build_dataloader(
            dict(
                batch_size=8,
                num_workers=0,
                dataset=Digits(indices=30, pipeline=[dict(type='PackInputs')]),
                sampler=dict(type='PairSampler', same=same),
            ),
            seed=2,
        )
    assert loader.sampler.seed == 2
    sizes, ids = [], []
    for data in loader:
        elements = data['data_samples']
        sizes.append(len(elements))
        for own, other in zip(elements[0::2], elements[1::2]):
            assert own.gt_label == other.gt_label
            assert (own.sample_idx == other.sample_idx) == (same == 'image')
            ids.append(own.sample_idx)
    assert sizes == [8] * 7 + [4] and sorted(ids) == list(range(30))
    assert len(loader) == math.ceil(30 / 4)


class NoInfo(Dataset):
    """A data set of torch."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return index


@pytest.mark.parametrize(
    'dataset, message',
    [
        (
            lambda: Listed([0, None, 1]),
            'needs labels, and sample 1 of Listed has the label None; .*; use',
        ),
        (lambda: Listed([[0, 1], [1]]), r'sample 0 of Listed has the label \[0, 1\]; .*; use'),
        (
            lambda: ConcatDataset([Listed([0]), Listed([None])]),
            'sample 1 of ConcatDataset has the label None',
        ),
        (
            NoInfo,
            "PairSampler with same='class' needs .*, and sample 0 of NoInfo has the label None",
        ),
    ],
)
def test_missing_labels(dataset, message):
    with pytest.raises(ValueError, match=message):
        PairSampler(dataset())
    found = pairs(PairSampler(dataset(), same='image'))
    assert found and all(own == other for own, other in found)


def test_unknown_same():
    with pytest.raises(
        ValueError, match="PairSampler.same is 'label'; it must be one of class, image"
    ):
        PairSampler(Listed(), same='label')
