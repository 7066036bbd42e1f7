"""The digits of scikit-learn."""

import numpy as np
import pytest
from mmengine.registry import DefaultScope
from sklearn.datasets import load_digits

from mmkdx.datasets import Digits
from mmkdx.registry import DATASETS


@pytest.fixture(scope='module')
def splits():
    return Digits('train'), Digits('test')


def test_split_is_stratified_complete_and_disjoint(splits):
    train, test = splits
    assert (len(train), len(test)) == (1197, 600)
    counts = np.bincount(test.get_gt_labels())
    assert counts.tolist() == [60] * 10
    assert (np.bincount(train.get_gt_labels()) == np.bincount(load_digits().target) - 60).all()
    # every image of scikit-learn appears once (its digits are pairwise different)
    images = {train.get_data_info(i)['img'].tobytes() for i in range(1197)}
    images |= {test.get_data_info(i)['img'].tobytes() for i in range(600)}
    assert len(images) == 1797


def test_images_are_those_of_scikit_learn(splits):
    info = splits[0].get_data_info(0)
    image = info['img']
    assert image.shape == (32, 32, 3) and image.dtype == np.uint8 and info['gt_label'] == 0
    assert (image == image[..., :1]).all()
    digits = load_digits()
    source = np.round(digits.images[np.flatnonzero(digits.target == 0)[0]] * 255 / 16)
    # half-pixel bilinear enlargement by 4: the mean of the inner four pixels is the pixel but for
    # the blend with its neighbours, and corners are exact
    assert image[0, 0, 0] == source[0, 0] and image[-1, -1, 0] == source[-1, -1]
    assert abs(image[..., 0].mean() - source.mean()) < 1.0


def test_any_prefix_is_balanced_and_the_split_is_fixed(splits):
    for n in (10, 100, 200):
        few = Digits('train', indices=n)
        assert np.bincount(few.get_gt_labels(), minlength=10).tolist() == [n // 10] * 10
        assert (few.get_data_info(n - 1)['img'] == splits[0].get_data_info(n - 1)['img']).all()
    assert splits[0].metainfo['classes'] == tuple('0123456789') or splits[0].metainfo[
        'classes'
    ] == list('0123456789')


def test_mmpretrains_pipeline_follows():
    with DefaultScope.overwrite_default_scope('mmkdx'):
        data = DATASETS.build(
            dict(
                type='Digits',
                split='test',
                pipeline=[dict(type='Resize', scale=48), dict(type='PackInputs')],
            )
        )
        sample = data[7]
    assert sample['inputs'].shape == (3, 48, 48)
    assert sample['data_samples'].gt_label.tolist() == [7]
    assert sample['data_samples'].sample_idx == 7


def test_unknown_split():
    with pytest.raises(ValueError, match="Digits.split is 'val'; it must be one of train, test"):
        Digits('val')
