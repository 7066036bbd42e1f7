"""Options of a wrong kind are refused by their path, whoever reads them."""

import math
from pathlib import Path

import mmpretrain
import pytest
from mmengine.config import Config

from mmkdx.apis.config_types import check_types

NETWORK = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet_CIFAR', depth=18, base_channels=8, out_indices=(3,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=64, loss=dict(type='KLDivLoss')),
)
RIGHT = dict(
    model=dict(type='Distiller', student=NETWORK, teacher='resnet34_8xb32_in1k'),
    data_preprocessor=dict(num_classes=10, mean=[1, 2.0, 3], to_rgb=True),
    train_dataloader=dict(
        batch_size=4,
        dataset=dict(type='Digits', indices=9, pipeline=[dict(type='RandomCrop', crop_size=32)]),
        sampler=dict(type='DefaultSampler', shuffle=True),
    ),
    val_evaluator=[dict(type='Accuracy', topk=(1, 5))],
    optim_wrapper=dict(
        optimizer=dict(type='SGD', lr=0.1, momentum=0.9, nesterov=True),
        clip_grad=dict(max_norm=1.0, norm_type=math.inf),
    ),
    param_scheduler=[dict(type='MultiStepLR', milestones=[2, 3], gamma=0.1)],
    train_cfg=dict(by_epoch=True, max_epochs=3, val_interval=1),
    default_hooks=dict(logger=dict(type='LoggerHook', interval=1), timer=None),
    custom_hooks=[dict(type='ExplainHook', base=dict(model=NETWORK, checkpoint='base.pth'))],
    randomness=dict(seed=0),
)


@pytest.mark.parametrize(
    ('path', 'value', 'message'),
    [
        ('model.student.backbone', True, 'ImageClassifier takes a dict'),
        ('model.student.backbone', {}, 'it must be a dict with a type'),
        ('model.student.backbone', None, 'ImageClassifier takes a dict'),
        ('model.student.backbone.init_cfg', -3, 'ResNet_CIFAR takes a list or a dict'),
        ('model.student.neck', -3, 'ImageClassifier takes a dict'),
        ('model.student.backbone.base_channels', [], 'ResNet_CIFAR takes a number'),
        ('model.student.backbone.base_channels', True, 'ResNet_CIFAR takes a number'),
        ('model.student.head.num_classes', 'ten', 'LinearClsHead takes a number'),
        ('model.student.head.num_classes', {}, 'LinearClsHead takes a number'),
        ('model.student.head.loss', 'some text', 'LinearClsHead takes a dict'),
        ('model.student.head.init_cfg', -math.inf, 'an option must be finite'),
        ('custom_hooks.0.base.checkpoint', True, 'Teacher takes a text'),
        ('data_preprocessor.num_classes', False, 'ClsDataPreprocessor takes a number'),
        ('train_dataloader.dataset', -3, 'it must be a dict with a type'),
        ('train_dataloader.dataset.dataset', 'x', 'it must be a dict with a type'),
        ('train_dataloader.sampler', None, 'it must be a dict with a type'),
        ('val_evaluator.0.topk', 'five', 'Accuracy takes a number or a list'),
        ('optim_wrapper.optimizer', 'SGD', 'it must be a dict with a type'),
        (
            'optim_wrapper.optimizer',
            dict(type='SDG', lr=1),
            'there is no such optimizer; near names are SGD, ASGD',
        ),
        ('optim_wrapper.optimizer.weight_decay', None, 'SGD takes a number'),
        ('optim_wrapper.optimizer.lr', {}, 'SGD takes a number'),
        ('optim_wrapper.optimizer.nesterov', 'yes', 'SGD takes True or False'),
        ('param_scheduler.0.milestones', 2, 'MultiStepLR takes a list'),
        ('param_scheduler.0.gamma', True, 'MultiStepLR takes a number'),
        ('train_cfg.val_interval', True, 'EpochBasedTrainLoop takes a number'),
        ('data_preprocessor.mean.0', math.inf, 'an option must be finite'),
        ('val_evaluator.0', 3, 'it must be a dict with a type'),
        ('train_dataloader.dataset.pipeline.0', True, 'it must be a dict with a type'),
        ('default_hooks.timer', False, 'it must be a dict with a type'),
        ('default_hooks.logger', {}, 'it must be a dict with a type'),
        ('randomness.seed', [], 'set_random_seed takes a number'),
    ],
)
def test_it_is_named_with_what_is_taken(path, value, message):
    cfg = Config(RIGHT).to_dict()
    check_types(cfg)
    *keys, last = [int(key) if key.isdigit() else key for key in path.split('.')]
    holder = cfg
    for key in keys:
        holder = holder[key]
    holder[last] = value
    with pytest.raises(ValueError) as error:
        check_types(cfg)
    assert str(error.value) == f'{path} is {value!r}; {message}'


@pytest.mark.slow
def test_nothing_right_is_refused():
    """mmpretrain's configs hold more than annotations say, such as a list of dicts for a dict."""
    read = 0
    for path in Path(mmpretrain.__file__).parent.rglob('.mim/configs/*/*.py'):
        try:
            cfg = Config.fromfile(path)
        except (KeyError, ModuleNotFoundError, RuntimeError):  # it needs mmdet, or breaks by itself
            continue
        check_types(cfg.to_dict())
        read += path.parent.name != '_base_'
    assert read > 400
