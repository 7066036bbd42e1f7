"""A config that validates and tests on a part of its training data, and reads no other."""

import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope
from tuning import ROOT, write_config

from mmkdx.apis.held_out import fold_config
from mmkdx.datasets.wrappers import images
from mmkdx.registry import DATASETS


@pytest.fixture(scope='module')
def path(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp('held_out'))


def test_train_validation_and_test_are_folds_of_the_training_data(path, tmp_path):
    cfg = Config.fromfile(path)
    found = fold_config(cfg, 1, 3, tmp_path)
    assert 'StratifiedFold' not in cfg.pretty_text
    with DefaultScope.overwrite_default_scope('mmkdx'):
        train, val, test = (
            DATASETS.build(found[f'{part}_dataloader'].dataset) for part in ('train', 'val', 'test')
        )
    held = set(images(val))
    assert held == set(images(test)) and len(val) == len(held) == 20
    assert held | set(images(train)) == set(range(60)) and not held & set(images(train))
    assert found.val_dataloader.dataset.dataset.pipeline == [dict(type='PackInputs')]
    assert found.val_dataloader.batch_size == cfg.val_dataloader.batch_size
    # What a run writes down is a config again
    (tmp_path / 'fold.py').write_text(found.pretty_text)
    assert Config.fromfile(tmp_path / 'fold.py').to_dict() == found.to_dict()


def test_caches_of_folds_have_folders_of_their_own(tmp_path):
    cfg = Config.fromfile(ROOT / 'configs/digits/kd-cached_resnet18_resnet18-tiny_digits100.py')
    found = fold_config(cfg, 2, 5, tmp_path)
    assert found.model.teacher.cache == str(tmp_path / 'fold_2_0') != cfg.model.teacher.cache
    assert found.train_dataloader.dataset.type == 'SeededViews'
    assert found.train_dataloader.dataset.dataset.dataset.type == 'StratifiedFold'


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(train_dataloader=None), 'a search needs train_dataloader for .* and val_dataloader'),
        (dict(val_dataloader=None, test_dataloader=None), 'a search needs train_dataloader for'),
        (
            dict(custom_hooks=[dict(type='Hook', data=[dict(type='NoSuchDataSet')])]),
            'custom_hooks reads the test data, which a search must not see; remove it',
        ),
        (
            dict(val_evaluator=dict(type='Metric', data=dict(type='NoSuchDataSet', pipeline=[]))),
            'val_evaluator reads the test data',
        ),
    ],
)
def test_what_cannot_be_held_out_is_one_sentence(path, tmp_path, change, message):
    cfg = Config.fromfile(path)
    for key, value in change.items():
        cfg[key] = value
    with pytest.raises(ValueError, match=f'kd.py: {message}'):
        fold_config(cfg, 0, 5, tmp_path)


def test_test_data_alone_give_the_transforms(path, tmp_path):
    cfg = Config.fromfile(path)
    cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None
    found = fold_config(cfg, 0, 5, tmp_path)
    assert found.val_dataloader == found.test_dataloader and found.val_cfg == {}
    assert found.val_evaluator == cfg.test_evaluator
