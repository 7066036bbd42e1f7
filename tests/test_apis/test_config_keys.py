"""Misspelt keys at the top of a config, and NaN."""

import math
from pathlib import Path

import pytest
from mmengine.config import Config

from mmkdx.apis.config_keys import KNOWN, check_keys

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ('wrong', 'right'),
    [
        ('modle', 'model'),
        ('custom_hook', 'custom_hooks'),
        ('traincfg', 'train_cfg'),
        ('train_config', 'train_cfg'),
        ('train_loader', 'train_dataloader'),
        ('optim_wraper', 'optim_wrapper'),
        ('load_form', 'load_from'),
        ('default_scop', 'default_scope'),
        ('pus_dataloader', 'push_dataloader'),
    ],
)
def test_a_misspelt_key_is_named_with_the_one_that_is_meant(wrong, right):
    with pytest.raises(ValueError) as error:
        check_keys(Config({'model': {}, wrong: dict(type='x')}))
    assert str(error.value) == (
        f'{wrong} is an unknown key; do you mean {right}? A variable of your own needs another name'
    )


def test_a_misspelt_key_may_have_the_value_of_another():
    evaluator = dict(type='Accuracy')
    with pytest.raises(ValueError, match='^val_evlauator is an unknown key; do you mean val_ev'):
        check_keys(Config(dict(val_evlauator=evaluator, test_evaluator=evaluator)))


def test_variables_are_left_alone():
    check_keys(Config(dict.fromkeys(set(KNOWN) - {'env_variables'})))  # which Config takes itself
    # Names that are not near, and a near one whose value is used
    loader = dict(batch_size=3)
    check_keys(
        Config(
            dict(
                num_epochs=3,
                dataset_type='Digits',
                train_dataset=dict(type='Digits'),
                optimizer=dict(type='SGD'),
                teacher=dict(model='x'),
                terms=dict(),
                train_loader=loader,
                train_dataloader=loader,
                models=[3, 4],
                model=dict(students=[[3, 4]]),
            )
        )
    )


@pytest.mark.parametrize(
    ('options', 'path'),
    [
        (dict(optim_wrapper=dict(optimizer=dict(lr=math.nan))), 'optim_wrapper.optimizer.lr'),
        (
            dict(param_scheduler=[dict(type='LinearLR'), dict(gamma=math.nan)]),
            'param_scheduler.1.gamma',
        ),
        (dict(model=dict(std=(1.0, math.nan))), 'model.std.1'),
        (dict(custom_hooks=math.nan), 'custom_hooks'),
    ],
)
def test_nan_is_named_by_its_path(options, path):
    with pytest.raises(ValueError, match=f'^{path} is nan; an option must be finite$'):
        check_keys(Config(options))
    check_keys(Config(dict(optim_wrapper=dict(clip_grad=dict(norm_type=math.inf)))))


def test_shipped_configs_have_no_misspelt_keys():
    for name in ('cifar/resnet20_cifar100', 'kd/kd_swin-base_swin-tiny_16xb64_in1k'):
        check_keys(Config.fromfile(ROOT / f'configs/{name}.py'))
