"""What a config will do, without data."""

import pytest
import torch
from mmengine.config import Config
from tiny import build, classifier, distiller
from torch import nn

from mmkdx.apis import mmpretrain_tool
from mmkdx.apis.dry_run import (
    build_from_config,
    floor_factor,
    multiply_adds,
    one_step,
    synthetic_batch,
    term_rows,
)


def test_multiply_adds_of_a_tiny_network_by_hand():
    model = build(classifier(4))
    expected = 8 * 8 * 4 * 3 * 9 + 4 * 4 * 4 * 4 * 9 + 4 * 4
    assert multiply_adds(model, (8, 8)) == expected
    assert multiply_adds(nn.Conv2d(3, 2, 1), (5, 7)) == 5 * 7 * 2 * 3


def test_multiply_adds_of_resnet18_are_those_of_the_zoo():
    from mmkdx.distillation.models import build_model, zoo_entry

    metadata = zoo_entry('resnet18_8xb32_in1k', 'x').metadata
    found = multiply_adds(build_model('resnet18_8xb32_in1k', 'x'), (224, 224))
    assert found == pytest.approx(metadata.flops, rel=0.01)


def test_floor_factor_of_known_pairs():
    assert floor_factor(1820, [3680]) == pytest.approx(1.67, abs=0.01)  # ResNet-34 to ResNet-18
    assert floor_factor(319, [4120]) == pytest.approx(5.31, abs=0.01)  # ResNet-50 to MobileNet-V2
    assert floor_factor(1, []) == 1


def test_rows_say_what_is_compared():
    model = distiller(
        dict(
            kd=dict(type='KLDivLoss', at='logits', weight=0.5, schedule=dict(type='linear', end=5)),
            fit=dict(type='MSELoss', at=('features', 'backbone.stem'), teacher=1),
        ),
        teacher=[dict(model=classifier(8)), dict(model=classifier(6))],
    )
    assert term_rows(model, (16, 16)) == [
        [
            'kd',
            'KLDivLoss',
            'logits',
            '4',
            'logits',
            '4',
            '-',
            '0.5',
            'linear 0 to 1 over epochs 0 to 5',
        ],
        [
            'fit',
            'MSELoss',
            'features',
            '4 x 8 x 8',
            'backbone.stem of teacher 1',
            '6 x 16 x 16',
            '30',
            '1',
            'constant',
        ],
    ]


def test_a_batch_goes_through_the_training_pipeline_and_the_preprocessor():
    cfg = Config(
        dict(
            default_scope='mmkdx',
            model=classifier(4),
            data_preprocessor=dict(num_classes=4, mean=[100.0] * 3, std=[50.0] * 3, to_rgb=True),
            train_dataloader=dict(
                dataset=dict(
                    type='RepeatDataset',
                    times=2,
                    dataset=dict(
                        type='ImageNet',
                        pipeline=[
                            dict(type='LoadImageFromFile'),
                            dict(type='RandomResizedCrop', scale=12),
                            dict(type='PackInputs'),
                        ],
                    ),
                )
            ),
        )
    )
    batch = synthetic_batch(cfg, num_images=6)
    assert batch['inputs'].shape == (6, 3, 12, 12) and batch['inputs'].dtype == torch.uint8
    assert [int(s.gt_label) for s in batch['data_samples']] == [0, 1, 2, 3, 0, 1]
    model = build_from_config(cfg)
    assert model.data_preprocessor.mean.flatten().tolist() == [100.0] * 3
    logged, unused = one_step(model, batch)
    assert unused == [] and logged['loss'] > 0
    model.extra = nn.Linear(2, 2)
    assert one_step(model, synthetic_batch(cfg))[1] == ['extra.weight', 'extra.bias']


def grey(*sizes):
    """A config of grey images, joined of parts of which each has another random transform."""
    parts = [
        dict(
            type='CustomDataset',
            pipeline=[
                dict(type='LoadImageFromFile', color_type='grayscale'),
                dict(type='RandomResizedCrop' if i else 'Resize', scale=size),
                dict(type='PackInputs'),
            ],
        )
        for i, size in enumerate(sizes)
    ]
    joined = dict(type='ConcatDataset', datasets=[parts[0], dict(dataset=parts[1])])
    model = classifier(4)
    model['backbone'] = dict(
        type='ResNet_CIFAR', depth=18, in_channels=1, base_channels=4, stem_channels=4
    )
    model['head']['in_channels'] = 32
    return Config(
        dict(
            default_scope='mmkdx',
            model=model,
            train_dataloader=dict(dataset=joined),
        )
    )


def test_a_batch_of_joined_grey_images():
    cfg = grey((12, 12), 12)
    batch = synthetic_batch(cfg, num_images=4)
    assert batch['inputs'].shape == (4, 1, 12, 12)
    model = build_from_config(cfg)
    assert one_step(model, batch)[0]['loss'] > 0
    first = model.backbone.conv1
    assert multiply_adds(first, (12, 12), 1) == 12 * 12 * 4 * 9


def test_configs_without_training_data():
    cfg = grey((12, 12), 12)
    cfg.val_dataloader = cfg.pop('train_dataloader')
    assert synthetic_batch(cfg)['inputs'].shape == (2, 1, 12, 12)
    cfg.pop('val_dataloader')
    with pytest.raises(ValueError, match='has none of train_dataloader, val_dataloader, test_data'):
        synthetic_batch(cfg)


def test_tools_of_mmpretrain(monkeypatch, tmp_path):
    tool = mmpretrain_tool('train')
    assert {'parse_args', 'merge_args', 'main'} <= set(vars(tool))
    monkeypatch.setattr('mmpretrain.__file__', str(tmp_path / '__init__.py'))
    with pytest.raises(FileNotFoundError, match='mmpretrain is installed without its tools'):
        mmpretrain_tool('train')
