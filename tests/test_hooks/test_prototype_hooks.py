"""Stages and pushes: T5 and T12 to T14 of Proto2Proto's tests, real runs, resume and two processes."""

import copy
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.structures import DataSample
from processes import launch
from tiny import build
from torch import nn, tensor

from mmkdx.datasets.push_set import check_push_set, listed, push_dataloader
from mmkdx.datasets.wrappers import images, labels
from mmkdx.hooks import PrototypePushHook, PrototypeStageHook
from mmkdx.models.heads import PrototypeHead, PrototypeLayer
from mmkdx.models.heads.push import find_nearest_patches, push
from mmkdx.visualization.prototype_sheets import PrototypeSheets

ROOT = Path(__file__).parents[2]


# Projection


class Plain(nn.Module):
    """A network whose embedding is the image, with two prototypes of one channel."""

    def __init__(self, classes=((1, 0), (0, 1))):
        super().__init__()

        class Head(PrototypeHead):
            def similarity(self, distances):
                return -distances

            def push_classes(self):
                return tensor(classes).bool()

            def class_weights(self):
                return tensor(classes).T.float()

        self.head = Head(nn.Identity(), PrototypeLayer(2, 1), 2)
        self.head.prototypes.data = tensor([[0.3], [0.55]])
        self.backbone = nn.Identity()

    def data_preprocessor(self, data, training):
        return data

    def extract_feat(self, inputs):
        return (inputs,)


def loader(size=3, order=(0, 1, 2)):
    images = tensor([[0.1, 0.8], [0.35, 0.9], [0.30, 0.6]])[:, None, None]
    for begin in range(0, len(order), size):
        part = list(order[begin : begin + size])
        samples = [DataSample(metainfo=dict(sample_idx=i)).set_gt_label(int(i == 2)) for i in part]
        yield dict(inputs=images[part], data_samples=samples)


@pytest.mark.parametrize('size', [1, 2, 3])
def test_each_prototype_takes_the_nearest_patch_of_its_class(size):
    model = Plain()
    nearest = push(model, list(loader(size)))
    assert model.head.prototypes.flatten().tolist() == pytest.approx([0.35, 0.6])
    torch.testing.assert_close(nearest.distances, tensor([[0.0025], [0.0025]]), rtol=0, atol=1e-7)
    assert model.head.source_image.tolist() == [1, 2]
    assert model.head.source_label.tolist() == [0, 1]
    assert model.head.source_cell.tolist() == [[0, 0], [0, 1]]
    again = push(model, list(loader(size)))
    assert model.head.prototypes.flatten().tolist() == pytest.approx([0.35, 0.6])
    assert not again.distances.any()


def test_projection_onto_patches_of_any_class():
    model = Plain(classes=((1, 1), (1, 1)))
    push(model, list(loader()))
    assert model.head.prototypes[0].item() == pytest.approx(0.30)
    assert model.head.source_image[0] == 2


def test_a_prototype_without_images_stays():
    model = Plain(classes=((1, 0), (0, 0)))
    push(model, list(loader()))
    assert model.head.prototypes.flatten().tolist() == pytest.approx([0.35, 0.55])
    assert model.head.source_image.tolist() == [1, -1]


def test_a_pruned_prototype_stays():
    model = Plain()
    model.head.alive[1] = False
    push(model, list(loader()))
    assert model.head.prototypes.flatten().tolist() == pytest.approx([0.35, 0.55])


def test_nothing_is_left_to_project():
    model = Plain()
    model.head.alive[:] = False
    push(model, list(loader()))
    assert model.head.source_image.tolist() == [-1, -1]


def test_ties_go_to_the_first_image_and_cell():
    model = Plain(classes=((1, 1), (1, 1)))
    images = tensor([[0.9, 0.2], [0.2, 0.2], [0.2, 0.9]])[:, None, None]

    def batches(order):
        for i in order:
            sample = DataSample(metainfo=dict(sample_idx=i)).set_gt_label(0)
            yield dict(inputs=images[[i]], data_samples=[sample])

    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        nearest = find_nearest_patches(model, batches(order), k=2)
        assert nearest.images[0].tolist() == [0, 1]
        assert nearest.cells[0].tolist() == [[0, 1], [0, 0]]


def test_an_image_that_comes_twice_counts_once():
    nearest = find_nearest_patches(Plain(), loader(2, (0, 1, 2, 0, 1)), k=3)
    assert nearest.images[0].tolist() == [2, 1, 0]
    torch.testing.assert_close(nearest.distances[0], tensor([0, 0.0025, 0.04]), rtol=0, atol=1e-7)


def test_fewer_images_than_asked_for():
    nearest = find_nearest_patches(Plain(), loader(2), k=5)
    assert nearest.images[0].tolist() == [2, 1, 0, -1, -1]
    assert nearest.distances[0, 3:].isinf().all()


def parts_of_birds(**changes):
    """Two parts of a data set of birds, 14 and 22 images, in the splits of a run."""
    data = config('', []).train_dataloader.dataset
    return [
        {**data, 'split': 'train', 'indices': list(range(14)), **changes},
        {**data, 'split': 'val', 'indices': list(range(14, 36)), **changes},
    ]


WRAPPED = dict(
    joined=lambda: dict(type='ConcatDataset', datasets=parts_of_birds()),
    repeated=lambda: dict(
        type='RepeatDataset', times=3, dataset=config('', []).train_dataloader.dataset
    ),
    # Classes 5 to 8 are rarer, so that their images come twice
    balanced=lambda: dict(
        type='ClassBalancedDataset',
        oversample_thr=0.3,
        dataset={**config('', []).train_dataloader.dataset, 'indices': list(range(5, 32))},
    ),
    folds=lambda: dict(
        type='KFoldDataset',
        fold=1,
        num_splits=4,
        dataset=config('', []).train_dataloader.dataset,
    ),
    repeated_parts=lambda: dict(
        type='ConcatDataset',
        datasets=[dict(type='RepeatDataset', times=2, dataset=d) for d in parts_of_birds()],
    ),
)


@pytest.mark.parametrize('name', WRAPPED)
def test_sources_through_wrappers(tmp_path, name):
    """Each prototype is the patch of an image of its class that it names, whatever wraps the images."""
    cfg = config(tmp_path, [])
    cfg.train_dataloader.dataset = WRAPPED[name]()
    with DefaultScope.overwrite_default_scope('mmkdx'):
        data = Runner.build_dataloader(push_dataloader(cfg), seed=0)
    check_push_set(data, 9)
    torch.manual_seed(0)
    model = build(proto_classifier()).eval()
    nearest = push(model, data)
    head = model.head
    assert head.source_label.tolist() == [j // 2 for j in range(18)]
    shown, label_of = images(data.dataset), labels(data.dataset)
    sheets = PrototypeSheets(model, data.dataset)
    for j, image in enumerate(head.source_image.tolist()):
        assert label_of[shown[image]] == j // 2
        # The prototype lies at a cell of the very image
        item = data.dataset[shown[image]]
        assert item['data_samples'].sample_idx == image
        inputs = model.data_preprocessor(pseudo_collate([item]), False)['inputs']
        row, column = head.source_cell[j].tolist()
        assert sheets.distances(inputs)[0, j, row, column] < 1e-5
        assert sheets.source(j)[1]['source_image'] == image
    # An image counts once among the nearest, however often it is shown
    several = find_nearest_patches(model, data, 5)
    assert all(len(set(each)) == 5 for each in several.images.tolist())
    assert several.distances.isfinite().all() and nearest.distances.isfinite().all()


def test_copies_are_no_further_images():
    nearest = find_nearest_patches(Plain(), loader(6, (0, 0, 1, 1, 2, 2)), k=4)
    assert nearest.images[0].tolist() == [2, 1, 0, -1]
    assert nearest.labels[0].tolist() == [1, 0, 0, -1]


# Stages

STAGES = [
    dict(epochs=2, train=['add_on', 'prototypes']),
    dict(epochs=3, train=['backbone', 'add_on', 'prototypes']),
    dict(train=['last_layer']),
]


def test_stage_of_each_epoch():
    hook = PrototypeStageHook(STAGES)
    stages = [hook.stage_at(epoch) for epoch in range(7)]
    assert [stage for stage, _ in stages] == [0, 0, 1, 1, 1, 2, 2]
    assert [first for _, first in stages] == [True, False, True, False, False, True, False]


@pytest.mark.parametrize(
    ('start', 'interval', 'end', 'epochs'),
    [(12, 10, 35, [12, 22, 32, 35]), (10, 10, 30, [10, 20, 30]), (8, 8, 4, [4])],
)
def test_epochs_of_a_push(start, interval, end, epochs):
    hook = PrototypePushHook(start, interval)
    assert [e for e in range(1, end + 1) if hook.pushes_after(e, end)] == epochs


def proto_classifier(width=6, **kwargs):
    head = dict(num_classes=9, in_channels=width, prototypes_per_class=2, prototype_channels=5)
    return dict(
        type='ImageClassifier',
        backbone=dict(type='TinyBackbone', width=width),
        head=dict(type='ProtoPNetHead', **{**head, **kwargs}),
        data_preprocessor=dict(num_classes=9, mean=[105.0] * 3, std=[41.0] * 3, to_rgb=True),
    )


def config(work_dir, hooks, epochs=3, model=None, **changes):
    """A run on 36 birds at 64 x 64 pixels, four a class."""
    loaders = {
        key: dict(
            batch_size=9,
            num_workers=0,
            persistent_workers=False,
            dataset=dict(
                type='Parts',
                split=split,
                num_samples=36,
                pipeline=[
                    *([dict(type='RandomFlip', prob=0.5)] if split == 'train' else []),
                    dict(type='PackInputs'),
                ],
            ),
            sampler=dict(type='DefaultSampler', shuffle=split == 'train'),
        )
        for key, split in (('train_dataloader', 'train'), ('val_dataloader', 'val'))
    }
    return Config(
        {
            **dict(
                default_scope='mmkdx',
                work_dir=str(work_dir),
                custom_imports=dict(imports=['tiny']),
                model=model or proto_classifier(),
                val_evaluator=dict(type='Accuracy', topk=(1,)),
                optim_wrapper=dict(
                    optimizer=dict(type='Adam', lr=0.01, weight_decay=1e-3),
                    paramwise_cfg=dict(custom_keys={'prototype_layer': dict(decay_mult=0)}),
                ),
                train_cfg=dict(by_epoch=True, max_epochs=epochs, val_interval=1),
                val_cfg=dict(),
                default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
                custom_hooks=[dict(type='EpochSeedHook'), *hooks],
                randomness=dict(seed=0),
                log_level='WARNING',
                visualizer=dict(
                    type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')]
                ),
            ),
            **loaders,
            **changes,
        }
    )


PUSH = dict(type='PrototypePushHook', start=2, interval=1, tune_epochs=1)


def state_of(work_dir, epoch):
    path = work_dir / f'epoch_{epoch}.pth'
    return torch.load(path, weights_only=False)['state_dict']


def parts_of(state, *parts):
    return {k: v for k, v in state.items() if any(part in k for part in parts)}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Three epochs: two of warming, one of the last layer, with a push after the second and third."""
    work_dir = tmp_path_factory.mktemp('stages')
    stages = dict(type='PrototypeStageHook', stages=[STAGES[0], STAGES[2]])
    runner = Runner.from_cfg(config(work_dir, [stages, PUSH]))
    runner.model.init_weights()
    first = copy.deepcopy(runner.model.state_dict())
    runner.train()
    return work_dir, runner, first


def test_what_a_stage_does_not_train_stays_bit_for_bit(run):
    work_dir, _, first = run
    warm = state_of(work_dir, 1)
    for key in parts_of(first, 'backbone', 'last_layer'):
        assert torch.equal(first[key], warm[key]), key  # statistics of batch norm included
    for key in parts_of(first, 'add_on', 'prototype_layer'):
        assert not torch.equal(first[key], warm[key]), key
    pushed, last = state_of(work_dir, 2), state_of(work_dir, 3)
    for key in parts_of(first, 'backbone', 'add_on'):
        assert torch.equal(pushed[key], last[key]), key
    assert not torch.equal(pushed['head.last_layer.weight'], last['head.last_layer.weight'])


def test_after_a_push_prototypes_are_patches(run):
    work_dir, runner, _ = run
    model = build(proto_classifier())
    model.load_state_dict(state_of(work_dir, 3))
    model.eval()
    hook = next(hook for hook in runner.hooks if isinstance(hook, PrototypePushHook))
    dataset = hook.dataloader.dataset
    head = model.head
    for j in range(len(head.prototypes)):
        data = dataset[int(head.source_image[j])]
        batch = model.data_preprocessor(
            dict(inputs=[data['inputs']], data_samples=[data['data_samples']]), False
        )
        maps = head.distances(model.extract_feat(batch['inputs']))[0, j].detach()
        row, column = head.source_cell[j].tolist()
        assert maps[row, column] == pytest.approx(0, abs=1e-5)
        assert data['data_samples'].gt_label == j // 2 == head.source_label[j]
        x0, y0, x1, y1 = head.source_box[j].tolist()
        # a cell is two pixels wide; cubic enlargement may move the peak within it
        assert 0 <= x0 <= 2 * column + 2 and 2 * column - 1 <= x1 <= 64
        assert 0 <= y0 <= 2 * row + 2 and 2 * row - 1 <= y1 <= 64
        # two 3 x 3 convolutions, of which the second halves the size: five pixels round 2 * cell
        field = [2 * column - 2, 2 * row - 2, 2 * column + 3, 2 * row + 3]
        assert head.source_field[j].tolist() == [min(max(each, 0), 64) for each in field]


def test_scores_before_and_after_are_logged(run):
    work_dir, runner, _ = run
    lines = (work_dir / runner.timestamp / 'vis_data' / 'scalars.json').read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    pushes = [line for line in logged if 'prototypes/pushed/accuracy/top1' in line]
    steps = [line['step'] for line in pushes if 'accuracy/top1' not in line]
    assert steps == [2, 3]
    states = ['pre_push', 'pushed', 'tuned']
    assert all(f'prototypes/{s}/accuracy/top1' in line for s in states for line in pushes)
    scores = {line['step']: line['accuracy/top1'] for line in logged if 'accuracy/top1' in line}
    for line in pushes:
        assert line['prototypes/tuned/accuracy/top1'] == scores[line['step']]


def test_the_optimizer_forgets_at_the_start_of_a_stage(run):
    _, runner, _ = run
    state = runner.optim_wrapper.optimizer.state
    assert [tuple(each.shape) for each in state] == [(9, 18)]  # of the last layer alone


def test_a_resumed_run_repeats_an_uninterrupted_one(run, tmp_path):
    work_dir = run[0]
    stages = dict(type='PrototypeStageHook', stages=[STAGES[0], STAGES[2]])
    resumed = config(tmp_path, [stages, PUSH], resume=True, load_from=str(work_dir / 'epoch_2.pth'))
    Runner.from_cfg(resumed).train()
    expected, result = state_of(work_dir, 3), state_of(tmp_path, 3)
    assert all(torch.equal(expected[key], result[key]) for key in expected)


def test_statistics_move_in_parity_with_the_public_code(tmp_path):
    stages = dict(type='PrototypeStageHook', stages=[STAGES[0], STAGES[2]], norm_eval=False)
    runner = Runner.from_cfg(config(tmp_path, [stages], epochs=1))
    runner.train()
    assert runner.model.backbone.stem[1].running_mean.abs().max() > 0
    tuned = PrototypePushHook(1, tune_epochs=1, norm_eval=False)
    before = runner.model.backbone.stem[1].running_mean.clone()
    weight = runner.model.backbone.stem[0].weight.detach().clone()
    tuned._tune(runner, runner.model, 1)
    assert not torch.equal(runner.model.backbone.stem[1].running_mean, before)
    assert torch.equal(runner.model.backbone.stem[0].weight, weight)


def test_pruning_at_the_last_push(tmp_path):
    hook = dict(PUSH, prune=dict(k=4, min_same_class=4, tune_epochs=1))
    runner = Runner.from_cfg(config(tmp_path, [hook], epochs=2))
    runner.train()
    alive = runner.model.head.alive
    assert 0 < alive.sum() < len(alive) or not alive.any()
    assert torch.equal(state_of(tmp_path, 2)['head.alive'], alive)


def test_classes_that_pruning_empties_are_named(tmp_path):
    """Of the last class two images are left, so that no three of the nearest can be of it."""
    hook = dict(PUSH, start=1, tune_epochs=0, prune=dict(k=4, tune_epochs=0))
    cfg = config(tmp_path, [hook], epochs=1, val_dataloader=None, val_cfg=None, val_evaluator=None)
    cfg.train_dataloader.dataset.indices = [i for i in range(36) if i not in (8, 17)]
    cfg.push_dataloader = copy.deepcopy(cfg.train_dataloader)
    cfg.push_dataloader.dataset.pipeline = [dict(type='PackInputs')]
    runner = Runner.from_cfg(cfg)
    warnings, lines = [], []
    runner.logger.warning, runner.logger.info = warnings.append, lines.append
    runner.train()
    name = 'plumed crest, spooned beak (8)'
    before, after = (w for w in warnings if 'PrototypePushHook' in w)
    assert before == (
        f'PrototypePushHook.prune will drop all prototypes of {name}, because there are fewer than '
        'min_same_class=3 images to project onto; set prune.min_same_class to at most 2, or leave prune '
        'out'
    )
    head = runner.model.head
    kept = head.alive.view(9, 2).any(1)
    empty = head.classes_without_prototypes()
    assert empty == (~kept).nonzero()[:, 0].tolist() and 8 in empty
    assert after.startswith(f'PrototypePushHook.prune left {len(empty)} of 9 classes without a ')
    dropped = int((~head.alive).sum())
    assert any(
        line.startswith(f'Pruned {dropped} of 18 prototypes, of the classes ') for line in lines
    )
    assert listed([1, 8], ['a', 'b', *'cdefgh', 'i']) == 'b (1), i (8)'


@pytest.mark.parametrize(
    'prune, message',
    [
        (dict(k=0), 'prune.k is 0; it must be an integer of at least 1'),
        (dict(k=2, min_same_class=3), 'prune.min_same_class is 3; .* of at most 2'),
        (dict(tune_epochs=1.5), 'prune.tune_epochs is 1.5'),
        (dict(threshold=math.nan), 'prune.threshold is nan'),
        ('yes', "prune is 'yes'; it must be a dict"),
    ],
)
def test_bad_prune(prune, message):
    with pytest.raises(ValueError, match=f'PrototypePushHook.{message}'):
        PrototypePushHook(1, prune=prune)


def tree():
    model = proto_classifier()
    model['head'] = dict(
        type='ProtoTreeHead', num_classes=9, in_channels=6, depth=3, prototype_channels=5
    )
    return model


def test_a_tree_is_pruned_and_pushed(tmp_path):
    stages = dict(
        type='PrototypeStageHook', stages=[dict(train=['backbone', 'add_on', 'prototypes'])]
    )
    hook = dict(PUSH, start=5, tune_epochs=0, prune=dict(threshold=0.13))
    runner = Runner.from_cfg(config(tmp_path, [stages, hook], epochs=2, model=tree()))
    runner.train()
    head = runner.model.head
    assert head.batches_per_epoch == 4 and head.leaves.abs().sum() > 0
    best = head.leaves.softmax(1).amax(1)
    # a node of two leaves that know nothing is pruned, and no other prototype is moved elsewhere
    for node in range(3, 7):
        known = (best[2 * node - 6 : 2 * node - 4] > 0.13).all()
        assert bool(head.alive[node]) == bool(known)
    pushed = head.source_image >= 0
    assert pushed.any() and torch.equal(pushed, head.alive)
    allowed = head.push_classes()
    assert all(allowed[j, head.source_label[j]] for j in pushed.nonzero()[:, 0])


def test_a_tree_that_knows_nothing_is_not_pruned(tmp_path):
    hook = dict(PUSH, start=5, tune_epochs=0, prune=dict(threshold=0.9))
    runner = Runner.from_cfg(config(tmp_path, [hook], epochs=1, model=tree()))
    warnings = []
    runner.logger.warning = warnings.append
    runner.train()
    assert any(
        'PrototypePushHook.prune: nothing is pruned: threshold is 0.9' in w for w in warnings
    )
    assert runner.model.head.alive.all() and (tmp_path / 'epoch_1.pth').is_file()


def test_a_tree_has_no_last_layer(tmp_path):
    with pytest.raises(
        ValueError, match='tune_epochs is 1 and ProtoTreeHead has no last layer; set'
    ):
        begin(tmp_path, PUSH, model=tree())
    stages = dict(type='PrototypeStageHook', stages=[dict(train=['last_layer'])])
    with pytest.raises(ValueError, match='stages: ProtoTreeHead has no last_layer to train'):
        begin(tmp_path, stages, model=tree())


# Distillation


def distillation(tmp_path, **stage_hook):
    teacher = build(proto_classifier(8))
    torch.manual_seed(3)
    for parameter in teacher.parameters():
        nn.init.normal_(parameter, std=0.5)
    torch.save(dict(state_dict=teacher.state_dict()), tmp_path / 'teacher.pth')
    model = dict(
        type='Distiller',
        student=proto_classifier(),
        teacher=dict(model=proto_classifier(8), checkpoint=str(tmp_path / 'teacher.pth')),
        input_size=64,
        terms=dict(
            prototypes=dict(type='GlobalExplanationLoss', at='prototypes', weight=10),
            patches=dict(
                type='PatchPrototypeLoss',
                at=[['head.add_on', 'head.prototype_layer']] * 2,
                weight=10,
            ),
        ),
    )
    hook = dict(
        type='PrototypeStageHook',
        copy_last_layer=True,
        stages=[
            dict(epochs=1, train=['add_on', 'prototypes'], student_weight=0),
            dict(train=['backbone', 'add_on', 'prototypes', 'last_layer']),
        ],
    )
    return config(tmp_path, [{**hook, **stage_hook}], epochs=2, model=model)


def test_proto2proto_in_two_stages(tmp_path):
    runner = Runner.from_cfg(distillation(tmp_path))
    teacher = runner.model.teachers[0]
    teacher.load()
    before = copy.deepcopy(teacher.model.state_dict())
    runner.train()
    after = teacher.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(each.grad is None for each in teacher.parameters())
    warm, last = state_of(tmp_path, 1), state_of(tmp_path, 2)
    weight = teacher.model.head.last_layer.weight
    assert torch.equal(warm['head.last_layer.weight'], weight)
    assert not torch.equal(last['head.last_layer.weight'], weight)
    assert runner.model.student_weight == 1
    weights = [key for key in parts_of(warm, 'backbone') if key.endswith('weight')]
    assert not any(torch.equal(warm[key], last[key]) for key in weights)


def test_identical_student_and_teacher_have_nothing_to_learn(tmp_path):
    runner = Runner.from_cfg(distillation(tmp_path))
    model = runner.model
    model.teachers[0].load()
    model.student = copy.deepcopy(model.teachers[0].model)
    model.eval()
    images = torch.randn(2, 3, 64, 64)
    losses = model(images, [DataSample().set_gt_label(i) for i in range(2)], mode='loss')
    assert losses['loss_patches'] == 0
    assert losses['loss_prototypes'] / 10 <= 2e-5


# Two processes

LAUNCHED = """
import os
import sys
import torch
from mmengine.config import Config
from mmengine.dist import barrier
from mmengine.runner import Runner
from mmkdx.compat import prepare_cpu_launch

cfg = Config.fromfile(sys.argv[1])
prepare_cpu_launch(cfg, cfg.launcher)
Runner.from_cfg(cfg).train()
barrier()
os._exit(0)
"""


def test_two_processes_push_as_one(tmp_path):
    """From the same weights, which pushes alone change, as the last layer is not pushed."""
    initial = tmp_path / 'initial.pth'
    torch.manual_seed(0)
    torch.save(dict(state_dict=build(proto_classifier()).state_dict()), initial)
    stages = dict(type='PrototypeStageHook', stages=[dict(train=['last_layer'])])
    configs = [
        config(
            tmp_path / launcher,
            [stages, dict(PUSH, start=1, tune_epochs=0)],
            epochs=1,
            load_from=str(initial),
            find_unused_parameters=True,
            launcher=launcher,
        )
        for launcher in ('none', 'pytorch')
    ]
    Runner.from_cfg(configs[0]).train()
    script, path = tmp_path / 'launched.py', tmp_path / 'config.py'
    script.write_text(LAUNCHED)
    configs[1].dump(path)
    launch(script, path, env={'CUDA_VISIBLE_DEVICES': ''})
    one, two = (state_of(Path(cfg.work_dir), 1) for cfg in configs)
    for key in parts_of(one, 'source', 'alive'):
        assert torch.equal(one[key], two[key]), key
    torch.testing.assert_close(
        one['head.prototype_layer.prototypes'], two['head.prototype_layer.prototypes']
    )
    assert (one['head.source_image'] >= 0).all()


# Errors


@pytest.mark.parametrize(
    ('stages', 'sentence'),
    [
        ([], 'PrototypeStageHook.stages is empty'),
        (
            [dict(train=['trunk'])],
            r"stages\[0\].train is \['trunk'\]; it must list some of backbone",
        ),
        ([dict(epochs=2)], r'stages\[0\].train is None'),
        ([dict(train=['add_on'], lr=1)], r"stages\[0\] has the unknown key 'lr'"),
        ([dict(train=['add_on'])] * 2, r'stages\[0\].epochs is missing; only the last'),
    ],
)
def test_bad_stages(stages, sentence):
    with pytest.raises(ValueError, match=sentence):
        PrototypeStageHook(stages)


@pytest.mark.parametrize('name', ['start', 'interval'])
def test_bad_push_epochs(name):
    with pytest.raises(
        ValueError, match=f'PrototypePushHook.{name} is 0; it must be an integer of at least 1'
    ):
        PrototypePushHook(**{'start': 1, name: 0})


def begin(tmp_path, *hooks, **changes):
    runner = Runner.from_cfg(config(tmp_path, hooks, **changes))
    runner.model.init_weights()
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    for hook in runner.hooks:
        if isinstance(hook, (PrototypeStageHook, PrototypePushHook)):
            hook.before_train(runner)


def linear():
    model = proto_classifier()
    model['neck'] = dict(type='GlobalAveragePooling')
    model['head'] = dict(type='LinearClsHead', num_classes=9, in_channels=6)
    return model


@pytest.mark.parametrize('hook', [dict(type='PrototypeStageHook', stages=STAGES), PUSH])
def test_a_head_without_prototypes(tmp_path, hook):
    with pytest.raises(
        ValueError, match=f'{hook["type"]} needs a prototype head, .* has LinearClsHead'
    ):
        begin(tmp_path, hook, model=linear())


def test_student_weight_needs_a_distiller(tmp_path):
    stages = [dict(train=['add_on'], student_weight=0)]
    with pytest.raises(
        ValueError, match='student_weight needs a Distiller, and the model is a Image'
    ):
        begin(tmp_path, dict(type='PrototypeStageHook', stages=stages))


def test_the_last_layer_needs_a_teacher(tmp_path):
    hook = dict(type='PrototypeStageHook', stages=STAGES, copy_last_layer=True)
    with pytest.raises(
        ValueError, match='copy_last_layer: student and teacher must both have a Proto'
    ):
        begin(tmp_path, hook)


def test_prototypes_of_other_classes(tmp_path):
    cfg = distillation(tmp_path)
    cfg.model.teacher.model.head.update(num_classes=6, prototypes_per_class=3)
    runner = Runner.from_cfg(cfg)
    hook = next(hook for hook in runner.hooks if isinstance(hook, PrototypeStageHook))
    with pytest.raises(ValueError, match="the student's prototypes belong to other classes"):
        hook.before_train(runner)


@pytest.mark.parametrize(
    ('change', 'first'),
    [
        (lambda names: names[::-1], 0),
        pytest.param(lambda names: names[:8], 8, marks=pytest.mark.slow),
        pytest.param(lambda names: names, None, marks=pytest.mark.slow),
    ],
)
def test_another_order_of_classes(tmp_path, change, first):
    cfg = distillation(tmp_path)
    runner = Runner.from_cfg(cfg)
    names = list(runner.build_dataloader(cfg.train_dataloader).dataset.metainfo['classes'])
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.model.teachers[0].classes = change(names)
    hook = next(hook for hook in runner.hooks if isinstance(hook, PrototypeStageHook))
    if first is None:
        hook.before_train(runner)
        return
    with pytest.raises(
        ValueError, match=rf'another order .* than the .* first at class {names[first]} \({first}\)'
    ):
        hook.before_train(runner)


def test_a_teacher_knows_its_classes(tmp_path):
    model = build(distillation(tmp_path).model)
    path = tmp_path / 'teacher.pth'
    state = torch.load(path)
    torch.save(dict(state, meta=dict(dataset_meta=dict(classes=['a', 'b']))), path)
    model.teachers[0].load()
    assert model.teachers[0].classes == ('a', 'b')


def test_distributed_training_needs_unused_parameters(tmp_path, monkeypatch):
    monkeypatch.setattr('mmkdx.hooks.prototype_stage_hook.is_model_wrapper', lambda model: True)
    runner = Runner.from_cfg(config(tmp_path, [dict(type='PrototypeStageHook', stages=STAGES)]))
    runner.model = SimpleNamespace(module=runner.model)
    hook = next(hook for hook in runner.hooks if isinstance(hook, PrototypeStageHook))
    with pytest.raises(
        ValueError, match='trains only some parts, .* find_unused_parameters = True'
    ):
        hook.before_train(runner)


@pytest.mark.parametrize(
    ('pipeline', 'sentence'),
    [
        ([dict(type='RandomFlip', prob=0.0)], 'dataloader is augmented by RandomFlip'),
        (
            [
                dict(
                    type='Lighting',
                    eigval=[50.0] * 3,
                    eigvec=[[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]],
                )
            ],
            'dataloader yields another image at each reading',
        ),
    ],
)
def test_augmented_push_images(tmp_path, pipeline, sentence):
    data = config(tmp_path, []).val_dataloader
    data.dataset.pipeline = [*pipeline, dict(type='PackInputs')]
    with pytest.raises(ValueError, match=sentence):
        begin(tmp_path, dict(PUSH, dataloader=data))


def test_a_class_without_images(tmp_path):
    data = config(tmp_path, []).val_dataloader
    data.dataset.indices = 4
    with pytest.raises(
        ValueError, match=r'has no image of 5 of the 9 classes \(bobbled crest, barred wing \(4\), '
    ):
        begin(tmp_path, dict(PUSH, dataloader=data))
    dataset = [dict(inputs=torch.zeros(1), data_samples=DataSample().set_gt_label(3))]
    with pytest.raises(
        ValueError, match=r'no image of 19 of the 20 classes \(0, 1, 2, 4, 5, ...\)'
    ):
        check_push_set(SimpleNamespace(dataset=dataset), 20)


def test_push_data_of_the_config(tmp_path):
    data = config(tmp_path, []).val_dataloader
    data.dataset.update(split='test', num_samples=45)
    runner = Runner.from_cfg(config(tmp_path, [PUSH], push_dataloader=data))
    hook = next(hook for hook in runner.hooks if isinstance(hook, PrototypePushHook))
    hook.before_train(runner)
    assert hook.dataloader.dataset.split == 'test' and len(hook.dataloader.dataset) == 45


def test_push_data_that_cannot_be_guessed(tmp_path):
    changes = dict(val_dataloader=None, val_cfg=None, val_evaluator=None)
    with pytest.raises(ValueError, match='PrototypePushHook.dataloader is missing'):
        begin(tmp_path, PUSH, **changes)


def test_unknown_keys_of_prune(tmp_path):
    with pytest.raises(ValueError, match="PrototypePushHook.prune has the unknown key 'threshold'"):
        begin(tmp_path, dict(PUSH, prune=dict(threshold=0.1)))
