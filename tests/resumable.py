"""A small training with every kind of state, for tests that break it off."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from mmengine.config import Config
from tiny import build, classifier

EPOCHS = 4


def run_config(work_dir: Path, **changes) -> Config:
    """Four epochs of a tiny distillation with every kind of state on 48 digits."""
    student = dict(
        classifier(4, classes=10),
        data_preprocessor=dict(num_classes=10, mean=[78.0] * 3, std=[84.0] * 3),
    )
    student['backbone']['drop'] = 0.2
    loader = dict(
        batch_size=12,
        num_workers=0,
        persistent_workers=False,
        dataset=dict(
            type='Digits',
            indices=48,
            pipeline=[dict(type='RandomCrop', crop_size=32, padding=4), dict(type='PackInputs')],
        ),
        sampler=dict(type='DefaultSampler', shuffle=True),
    )
    held_out = dict(
        batch_size=50,
        num_workers=0,
        persistent_workers=False,
        dataset=dict(type='Digits', split='test', indices=50, pipeline=[dict(type='PackInputs')]),
        sampler=dict(type='DefaultSampler', shuffle=False),
    )
    return Config(
        {
            **dict(
                default_scope='mmkdx',
                work_dir=str(work_dir),
                experiment_name=work_dir.name,  # or two runs within a second have one log
                custom_imports=dict(imports=['tiny']),
                model=dict(
                    type='Distiller',
                    student=student,
                    input_size=32,
                    teacher=[
                        dict(
                            model=classifier(8, classes=10),
                            checkpoint=str(work_dir / 'teacher.pth'),
                        ),
                        dict(type='EMATeacher', momentum=0.1),
                    ],
                    terms=dict(
                        kd=dict(
                            type='KLDivLoss',
                            at='logits',
                            tau=2,
                            weight=dict(type='auto', steps=EPOCHS + 1, interval=2, at='features'),
                            schedule=dict(type='linear', end=EPOCHS),
                        ),
                        fit=dict(type='MSELoss', at='features'),
                        ema=dict(
                            type='KLDivLoss',
                            at='logits',
                            teacher=1,
                            schedule=dict(type='cosine', end=4 * EPOCHS, by_epoch=False),
                        ),
                    ),
                ),
                train_dataloader=loader,
                val_dataloader=held_out,
                val_evaluator=dict(type='Accuracy'),
                train_cfg=dict(by_epoch=True, max_epochs=EPOCHS, val_interval=2),
                val_cfg=dict(),
                optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
                param_scheduler=dict(type='CosineAnnealingLR', T_max=4 * EPOCHS, by_epoch=False),
                default_hooks=dict(
                    logger=dict(type='LoggerHook', interval=1),
                    checkpoint=dict(type='CheckpointHook', interval=1),
                ),
                custom_hooks=[dict(type='EpochSeedHook'), dict(type='EMAHook')],
                randomness=dict(seed=1),
            ),
            **changes,
        }
    )


def with_a_teacher(folder: Path) -> Path:
    """The folder, with the teacher's file in it."""
    torch.manual_seed(0)
    torch.save(build(classifier(8, classes=10)).state_dict(), folder / 'teacher.pth')
    return folder


def losses(work_dir: Path) -> dict[int, dict]:
    """The losses of each step, of all parts of a run."""
    found = {}
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            if 'loss' in record:
                found[record['iter']] = {k: v for k, v in record.items() if 'loss' in k}
    return found


def same(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Whether tensors are equal to the last bit; what an automatic weight has not measured is NaN."""
    return torch.allclose(one, two, rtol=0, atol=0, equal_nan=True)
