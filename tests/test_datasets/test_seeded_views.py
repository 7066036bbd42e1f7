"""SeededViews and ViewSampler: the same picture anywhere, other generators untouched, what data are."""

import copy
import itertools
import random

import numpy as np
import pytest
import torch
from mmengine.dataset import ConcatDataset, DefaultSampler, RepeatDataset, pseudo_collate
from mmengine.registry import DefaultScope
from mmpretrain.datasets import BaseDataset
from torch.utils.data import DataLoader

from mmkdx.datasets import Digits, SeededViews, ViewSampler
from mmkdx.registry import DATASETS

CROP = dict(type='RandomCrop', crop_size=32, padding=4)
PACK = dict(type='PackInputs')


def draw(results):
    """Writes a number of each generator into the image."""
    img = np.zeros((1, 3, 3))
    img[0, 0] = random.random(), np.random.rand(), torch.rand(()).item()
    return dict(results, img=img)


def digits(pipeline=(draw, PACK), count=6, **kwargs):
    # To serialise collects garbage, which takes longer than all else
    kwargs = dict(serialize_data=False, **kwargs)
    return Digits(indices=count, pipeline=list(pipeline), **kwargs)


def numbers(data):
    return data['inputs'].flatten()[::3].tolist()


def test_a_view_is_seeded_by_seed_sample_and_view():
    views = SeededViews(digits(), views=3, seed=5)
    words = np.random.SeedSequence((5, 2, 1)).generate_state(3).tolist()
    expected = [
        random.Random(words[0]).random(),
        np.random.RandomState(words[1]).rand(),
        torch.rand((), generator=torch.Generator().manual_seed(words[2])).item(),
    ]
    assert numbers(views[2 + 1 * 6]) == expected
    sample = views[2 + 1 * 6]['data_samples']
    assert (sample.position, sample.view, sample.source) == (2, 1, views.source)
    assert sample.sample_idx == 2 and sample.gt_label.item() == 2
    assert {'position', 'view', 'source'} <= set(sample.metainfo_keys())


def test_views_seeds_and_samples_differ():
    found = [
        tuple(numbers(SeededViews(digits(), views=3, seed=seed)[i + 6 * view]))
        for seed, i, view in itertools.product((0, 1), (0, 1), (0, 1, 2))
    ]
    for column in zip(*found):
        assert len(set(column)) == 12


@pytest.mark.parametrize('workers', [0, 2])
def test_views_do_not_depend_on_worker_order_or_other_random_numbers(workers):
    views = SeededViews(digits([CROP, draw, PACK]), views=2)
    expected = {i: numbers(views[i]) for i in range(12)}
    random.seed(workers), np.random.seed(workers), torch.manual_seed(workers + 99)
    order = [7, 0, 11, 3, 3, 8]
    loader = DataLoader(
        views, sampler=order, batch_size=4, num_workers=workers, collate_fn=pseudo_collate
    )
    found = [image.flatten()[::3].tolist() for batch in loader for image in batch['inputs']]
    assert found == [expected[i] for i in order]


def state():
    return (
        random.getstate(),
        [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()],
        torch.get_rng_state().tolist(),
    )


def test_generators_are_put_back():
    views = SeededViews(digits())
    before = state()
    views[3]
    assert state() == before

    def fail(results):
        raise OSError('broken image')

    views = SeededViews(digits([draw, fail]))
    with pytest.raises(OSError, match='broken'):
        views[3]
    assert state() == before


def test_it_is_built_from_a_config():
    with DefaultScope.overwrite_default_scope('mmkdx'):
        views = DATASETS.build(
            dict(
                type='SeededViews',
                views=2,
                dataset=dict(
                    type='RepeatDataset',
                    times=2,
                    dataset=dict(type='Digits', indices=5, pipeline=[CROP, PACK]),
                ),
            )
        )
    assert len(views) == 10 and views.metainfo['classes'] == [str(i) for i in range(10)]
    assert views.get_data_info(17)['gt_label'] == 2  # 17 = 10 + 7, which is sample 2
    first, second = views[1]['inputs'], views[6]['inputs']
    assert views[6]['data_samples'].sample_idx == 1 and not torch.equal(first, second)
    assert not torch.equal(views[1]['inputs'], views[11]['inputs'])
    assert len(list(views)) == 20


def test_lazy_data_are_loaded():
    views = SeededViews(digits(lazy_init=True))
    views.full_init()
    assert len(views) == 6 and views.dataset._fully_initialized


@pytest.mark.parametrize('index', [12, -1])
def test_there_is_no_such_view(index):
    with pytest.raises(IndexError, match=f'index {index} of SeededViews with 6 samples of 2 views'):
        SeededViews(digits(), views=2)[index]


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(views=0), 'SeededViews.views is 0; it must be an integer of at least 1'),
        (dict(views='2'), "SeededViews.views is '2'"),
        (dict(seed=-1), 'SeededViews.seed is -1; it must be an integer of at least 0'),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SeededViews(digits(), **arguments)


def test_a_pipeline_without_data_samples():
    with pytest.raises(ValueError, match="pipeline makes none; end it with .*PackInputs'"):
        SeededViews(digits([draw]))[0]


# What the data are


class Listed(BaseDataset):
    """Samples of given paths, labels and boxes, without images."""

    def __init__(self, infos, **kwargs):
        self.infos = infos
        super().__init__(ann_file='', serialize_data=False, **kwargs)

    def load_data_list(self):
        return [dict(info) for info in self.infos]


def listed(folder='/data', label=1, name='b', box=0.0, count=3, pipeline=(), **kwargs):
    infos = [dict(img_path=f'{folder}/{i}.png', gt_label=0, box=np.zeros(2)) for i in range(count)]
    infos[1] = dict(img_path=f'{folder}/{name}.png', gt_label=label, box=np.array([0, box]))
    return Listed(infos, pipeline=list(pipeline), **kwargs)


def test_equal_data_have_one_source_wherever_they_lie():
    assert SeededViews(listed()).source == SeededViews(listed(), views=7).source
    assert SeededViews(listed('/data')).source == SeededViews(listed('/mnt/x')).source
    assert SeededViews(digits()).source == SeededViews(digits()).source
    # A transform that prints its place in memory
    first, second = (SeededViews(listed(pipeline=[lambda x: x])) for _ in range(2))
    assert first.source == second.source


@pytest.mark.parametrize(
    'other',
    [
        dict(label=np.int64(2)),
        dict(name='c'),
        dict(box=1.0),
        dict(count=4),
        dict(indices=2),
    ],
    ids=str,
)
def test_other_data_have_another_source(other):
    data, pipeline = SeededViews(listed()).source.split('.')
    found = SeededViews(listed(**other)).source.split('.')
    assert found[0] != data and found[1] == pipeline


@pytest.mark.parametrize(
    'pipeline, seed',
    [([dict(CROP, padding=2), PACK], 0), ([PACK], 0), ([CROP, PACK], 1)],
)
def test_other_transforms_have_another_source(pipeline, seed):
    data, transforms = SeededViews(digits([CROP, PACK])).source.split('.')
    found = SeededViews(digits(pipeline), seed=seed).source.split('.')
    assert found[0] == data and found[1] != transforms


def test_images_in_memory_and_wrappers_count():
    base = digits([CROP, PACK])
    other = digits([CROP, PACK])
    other.data_list = copy.deepcopy(other.data_list)
    assert SeededViews(other).source == SeededViews(base).source
    other.data_list[5]['img'][3, 3] += 1
    found = {
        SeededViews(each).source
        for each in (
            base,
            other,
            RepeatDataset(base, times=1),
            RepeatDataset(base, times=2),
            ConcatDataset([base]),
            ConcatDataset([base, digits([PACK])]),
        )
    }
    assert len(found) == 6


def test_only_64_samples_are_looked_at():
    looked_at = []

    class Watched(Digits):
        def get_data_info(self, idx):
            looked_at.append(idx)
            return super().get_data_info(idx)

    SeededViews(Watched(indices=1000)).source  # noqa: B018
    assert len(looked_at) == 64 and (looked_at[0], looked_at[-1]) == (0, 999)
    assert set(np.diff(looked_at)) <= {15, 16}


# The sampler


@pytest.mark.parametrize('rank', [0, 1])
@pytest.mark.parametrize('arguments', [dict(shuffle=True, seed=4), dict(shuffle=False)])
def test_each_epoch_sees_another_view_in_the_usual_order(monkeypatch, rank, arguments):
    monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info', lambda: (rank, 2))
    views = SeededViews(digits(count=7), views=3)
    sampler, usual = ViewSampler(views, **arguments), DefaultSampler(views, **arguments)
    assert len(sampler) == 4
    for epoch in range(5):
        sampler.set_epoch(epoch), usual.set_epoch(epoch)
        assert [index - epoch % 3 * 7 for index in sampler] == list(usual)
    # A run that is resumed in epoch 4
    resumed = ViewSampler(views, **arguments)
    resumed.set_epoch(4)
    assert list(resumed) == list(sampler)


def test_a_sampler_needs_views():
    with pytest.raises(
        ValueError, match='a data set with views, and Digits has none; .*SeededViews'
    ):
        ViewSampler(digits())
