"""The configs of prototype networks hold the published values."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from tiny import build

from mmkdx.datasets.push_set import push_dataloader
from mmkdx.hooks import PrototypePushHook, PrototypeStageHook
from mmkdx.registry import HOOKS, PARAM_SCHEDULERS

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / 'configs/proto2proto'
NAMES = sorted(path.stem for path in CONFIGS.glob('*.py'))


def hooks_of(cfg):
    with DefaultScope.overwrite_default_scope('mmkdx'):
        hooks = [HOOKS.build(hook) for hook in cfg.custom_hooks if 'Prototype' in hook.type]
    stages, push = hooks
    assert isinstance(stages, PrototypeStageHook) and isinstance(push, PrototypePushHook)
    return stages, push


def optimizer_of(cfg):
    """The optimizer of a small network, and the part to which each of its groups belongs."""
    model = build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='TinyBackbone', width=4),
            head=dict(type='ProtoPNetHead', num_classes=2, in_channels=4, prototype_channels=3),
        )
    )
    with DefaultScope.overwrite_default_scope('mmkdx'):
        optim = build_optim_wrapper(model, cfg.optim_wrapper)
    parts = ('backbone', 'add_on', 'prototype_layer', 'last_layer')
    names = {id(value): name for name, value in model.named_parameters()}
    groups = {}
    for group in optim.optimizer.param_groups:
        name = names[id(group['params'][0])]
        groups[next(part for part in parts if part in name)] = group
    return optim, groups


@pytest.mark.parametrize(
    ('name', 'warm', 'pushes', 'tune', 'rates', 'multipliers'),
    [
        (
            'protopnet_vgg19_cub', 5, [11, 21, 31], 20, (1e-4, 3e-3, 3e-3, 1e-4),
            {5: 1, 8: 1, 9: 0.1, 13: 0.1, 14: 0.01, 18: 0.01, 19: 1e-3, 23: 1e-3},
        ),
        (
            'proto2proto_resnet50_resnet18_cars', 6, [12, 22, 32], 10, (2e-4, 3e-3, 3e-3, 1e-4),
            # epochs counted from 0: 1-based 7 to 19, 20 to 23, ...
            {6: 1, 18: 1, 19: 0.1, 22: 0.1, 23: 0.01, 26: 0.01, 27: 1e-3, 30: 1e-3, 31: 1e-4},
        ),
    ],
)  # fmt: skip
def test_schedules(name, warm, pushes, tune, rates, multipliers):
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    stages, push = hooks_of(cfg)
    epochs = cfg.train_cfg.max_epochs
    assert [stages.stage_at(e)[0] for e in (warm - 1, warm)] == [0, 1]
    assert [e for e in range(1, epochs + 1) if push.pushes_after(e, epochs)] == pushes
    assert (push.tune_epochs, push.tune_lr) == (tune, 1e-4)
    optim, groups = optimizer_of(cfg)
    assert type(optim.optimizer) is torch.optim.Adam
    for (part, group), rate, decay in zip(groups.items(), rates, (1e-3, 1e-3, 0, 0)):
        assert (group['lr'], group['weight_decay']) == pytest.approx((rate, decay)), part
    (config,) = cfg.param_scheduler
    with DefaultScope.overwrite_default_scope('mmkdx'):
        scheduler = PARAM_SCHEDULERS.build(dict(config, optimizer=optim))
    seen = {}
    for epoch in range(epochs):
        seen[epoch] = groups['backbone']['lr'] / rates[0]
        scheduler.step()
    assert {epoch: seen[epoch] for epoch in multipliers} == pytest.approx(multipliers)


@pytest.mark.parametrize('name', [name for name in NAMES if name.startswith('proto2proto')])
def test_distillation(name):
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    terms = cfg.model.terms
    assert terms.prototypes.weight == terms.patches.weight == 10
    legacy = name.startswith('proto2proto-repo')
    loss = build({k: v for k, v in terms.patches.items() if k not in ('at', 'weight')})
    assert (loss.tau, loss.mask_source) == (100, 'student' if legacy else 'teacher')
    stages, push = hooks_of(cfg)
    assert [stage.get('student_weight') for stage in stages.stages] == [0, None]
    assert stages.norm_eval == push.norm_eval == (not legacy)
    tree = 'prototree' in name
    assert stages.copy_last_layer == (not tree)
    # the teacher's config yields the checkpoint that the student looks for
    teacher = Config.fromfile(CONFIGS.parent / cfg.model.teacher.model.removeprefix('mmkdx::'))
    stem = Path(cfg.model.teacher.model).stem
    epoch = teacher.train_cfg.max_epochs
    assert cfg.model.teacher.checkpoint == f'work_dirs/{stem}/epoch_{epoch}.pth'
    heads = [model.head.copy() for model in (cfg.model.student, teacher.model)]
    for head in heads:
        head.pop('in_channels')
    assert heads[0] == heads[1]


@pytest.mark.parametrize('name', [name for name in NAMES if 'parts' not in name])
def test_data(name):
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    model = cfg.model.get('student', cfg.model)
    assert model.head.num_classes == dict(cub=200, cars=196)[name.rpartition('_')[2]]
    if model.head.type == 'ProtoPNetHead':
        narrow = any(each in name for each in ('vgg', 'densenet', 'resnet34_cub', 'resnet152'))
        assert model.head.prototype_channels == (128 if narrow else 256)
    push = push_dataloader(cfg, hooks_of(cfg)[1].dataloader)
    # images as they are, and not those that were augmented beforehand
    assert 'augmented' in cfg.train_dataloader.dataset.data_prefix
    assert 'augmented' not in push.dataset.data_prefix
    assert cfg.find_unused_parameters
    assert model.backbone.init_cfg.prefix == 'backbone.'
