"""The rules by which a new config is made."""

from pathlib import Path

import pytest

from mmkdx.apis.config_parts import Plan, normalisation, schedule
from mmkdx.apis.user_networks import user_network
from mmkdx.datasets.survey import Survey


def plan_of(images=100, epochs=20):
    """The plan of a config for a number of images to train on."""
    rows = [(f'{i}.png', i % 2) for i in range(images)]
    data = Survey(Path('/data'), ('a', 'b'), rows, rows[:1], {}, [(9, 9)], {'RGB': images}, True)
    return Plan(data, Path('/out'), side=128, epochs=epochs, seed=3)


@pytest.mark.parametrize(
    ('images', 'batch_size'),
    [(2, 2), (7, 7), (9, 8), (100, 8), (128, 16), (300, 32), (511, 32), (512, 64), (10**6, 64)],
)
def test_the_batch_leaves_eight_steps_an_epoch(images, batch_size):
    assert plan_of(images).batch_size == batch_size


def test_the_learning_rate_grows_with_the_root_of_the_batch():
    assert plan_of(512).rate == 2e-3 and plan_of(128).rate == 1e-3


@pytest.mark.parametrize(
    ('epochs', 'warm_up', 'interval'), [(1, 1, 1), (2, 1, 1), (20, 1, 5), (30, 1, 8), (100, 5, 25)]
)
def test_the_schedule_ends_with_the_training(epochs, warm_up, interval):
    found = schedule(plan_of(3), epochs, 0.000123456)
    rates = found['param_scheduler']
    assert rates[0]['end'] == warm_up and rates[-1]['end'] == epochs
    assert len(rates) == 1 + (epochs > 1) and rates[-1].get('begin', 0) in (0, warm_up)
    assert found['train_cfg'] == dict(by_epoch=True, max_epochs=epochs, val_interval=interval)
    assert found['default_hooks']['checkpoint']['interval'] == interval
    assert found['default_hooks']['logger']['interval'] == 1
    assert found['optim_wrapper']['optimizer']['lr'] == 0.00012
    assert schedule(plan_of(10**6), 1, 1.0)['default_hooks']['logger']['interval'] == 100


def test_the_normalisation_is_the_library_s():
    pytest.importorskip('timm')
    plan = plan_of()
    lite = user_network('timm::tf_efficientnet_lite0', '--teacher')
    assert normalisation(plan, lite) == dict(
        num_classes=2, mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True
    )
    assert not plan.sentences


def test_an_unknown_normalisation_is_asked_for():
    plan = plan_of()
    found = normalisation(plan, user_network('networks:OwnNetwork', '--student'))
    assert found['mean'] == [123.675, 116.28, 103.53] and found['to_rgb']
    assert plan.sentences == [
        '--student does not say its normalisation, so the config has that of ImageNet: set mean and '
        'std of data_preprocessor if it needs another.'
    ]


def test_a_network_of_mmpretrain_may_take_bgr(tmp_path):
    path = tmp_path / 'own.py'
    path.write_text(
        "model = dict(type='PlainClassifier', network='networks:OwnNetwork')\n"
        'data_preprocessor = dict(mean=[1, 2, 3], std=[4, 5, 6], to_rgb=False)\n'
    )
    found = normalisation(plan_of(), user_network(str(path), '--student'))
    assert found == dict(num_classes=2, mean=[1, 2, 3], std=[4, 5, 6], to_rgb=False)
