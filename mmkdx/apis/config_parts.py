"""Builds the parts of a new config, by the rules in the guide *Your own model and data*."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from mmkdx.apis.config_text import Reference, config_text
from mmkdx.apis.methods import Method
from mmkdx.apis.user_networks import Network
from mmkdx.datasets.survey import Survey
from mmkdx.distillation.models import weights_source
from mmkdx.models.libraries import names_network

#: Mean and std of ImageNet in RGB, for networks that do not state their own.
IMAGENET = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
#: The largest training batch, and the smallest one if there are enough images.
MAX_BATCH, MIN_BATCH = 64, 8
#: The least number of steps in an epoch; batches are made smaller to reach it.
MIN_STEPS = 8
#: The learning rate for ``MAX_BATCH`` images; it scales with the square root of the batch size.
LEARNING_RATE = 2e-3


@dataclass
class Plan:
    """The choices for the configs.

    Args:
        data (Survey): The images.
        out (Path): The folder of the configs.
        side (int): Height and width of the images in pixels.
        epochs (int): Epochs of the student.
        seed (int): The random seed of the training.
        sentences (list[str]): What the user should know.
    """

    data: Survey
    out: Path
    side: int
    epochs: int
    seed: int
    sentences: list[str] = field(default_factory=list)

    @property
    def batch_size(self) -> int:
        """Images in a batch, a power of two unless there are fewer images."""
        images = len(self.data.train)
        power = 2 ** int(math.log2(max(MIN_BATCH, images // MIN_STEPS)))
        return min(MAX_BATCH, power, images)

    @property
    def rate(self) -> float:
        """The student's learning rate."""
        return LEARNING_RATE * math.sqrt(self.batch_size / MAX_BATCH)

    @property
    def teacher_epochs(self) -> int:
        """Epochs of a teacher's training on the data."""
        return max(1, self.epochs // 5)


def student_text(plan: Plan, method: Method, student: Network, teacher: Network, spec: dict) -> str:
    """The text of the distillation's config, with ``spec`` as its teacher."""
    maps = all(each.has_maps(plan.side) for each in (student, teacher))
    hook = dict(
        type='ExplainHook',
        explainer=dict(type='CAM' if maps else 'GradCAM'),
        num_samples=64,
        show_samples=16,
        metrics=[
            dict(type='MapAgreement'),
            dict(type='DeletionInsertion', steps=8, cross=False),
        ],
    )
    named = names_network(student.spec)
    model = dict(
        type='Distiller',
        # A named network takes the number of classes from data_preprocessor
        student=student.spec if named else student.with_classes(len(plan.data.classes)),
        teacher=spec,
        input_size=plan.side,
        student_weight=method.student_weight,
        terms=method.terms,
    )
    base = dict(
        _base_=['mmpretrain::_base_/default_runtime.py'],
        default_scope='mmkdx',
        work_dir=str(plan.out / 'student'),
        randomness=dict(seed=plan.seed),
    )
    return config_text(
        [
            f'{method.title},',
            f'from {teacher.spec} to {student.spec}.',
            'Written by tools/new_config.py, and yours to change. Paths are absolute: correct them if',
            'you move the images or this folder. tools/misc/check_config.py checks a changed config.',
        ],
        [
            ('', base),
            (
                'Images. train.txt and val.txt list them, with paths below data_root.\n'
                'Remove RandomFlip where left and right differ, as in text.',
                dict(data_preprocessor=normalisation(plan, student), **images(plan)),
            ),
            (
                'The student starts with random weights; load_from = FILE starts it with others.',
                dict(model=model),
            ),
            (
                f'{plan.epochs} epochs, with a warm-up.',
                dict(**schedule(plan, plan.epochs, plan.rate), val_cfg=dict(), test_cfg=dict()),
            ),
            (
                'At each validation: does the student look where the teacher looks?\n'
                'More images make the intervals of the scores narrower, and take longer.',
                dict(custom_hooks=[dict(type='EpochSeedHook'), hook]),
            ),
        ],
    )


def teacher_text(plan: Plan, teacher: Network, checkpoint: str | None) -> str:
    """The text of the config that fine-tunes the teacher on the data."""
    count = len(plan.data.classes)
    spec = teacher.with_classes(count)
    if not names_network(teacher.spec):
        model = dict(spec)
        checkpoint = checkpoint or weights_source(teacher.spec, None, True)
    elif '::' in teacher.spec:
        model = dict(type='PlainClassifier', network=teacher.spec, num_classes=count)
        model.update({} if checkpoint else dict(pretrained=True))
    else:
        model = dict(type='PlainClassifier', network=teacher.spec)
    if checkpoint:
        model['init_cfg'] = dict(type='Pretrained', checkpoint=checkpoint)
    keys = dict(
        _base_=['student.py'],
        work_dir=str(plan.out / 'teacher'),
        data_preprocessor=normalisation(plan, teacher),
        model=dict(_delete_=True, **model),
    )
    return config_text(
        [
            f'{teacher.spec} learns the classes of the data before it teaches.',
            'Its classifier is new: the log warns that these tensors do not match.',
        ],
        [
            ('', keys),
            (
                'A fifth of the epochs, at a tenth of the learning rate.',
                schedule(plan, plan.teacher_epochs, plan.rate / 10),
            ),
            ('', dict(custom_hooks=[dict(type='EpochSeedHook')])),
        ],
    )


def normalisation(plan: Plan, network: Network) -> dict:
    """The config of a network's data preprocessor, for images in BGR."""
    known = network.facts.images
    mean, std, to_rgb = known.mean, known.std, known.order == 'rgb'
    if mean is None or std is None:
        mean, std, to_rgb = *IMAGENET, True
        plan.sentences.append(
            f'{network.key} does not say its normalisation, so the config has that of ImageNet: set '
            'mean and std of data_preprocessor if it needs another.'
        )
    mean, std = ([round(value, 4) for value in each] for each in (mean, std))
    return dict(num_classes=len(plan.data.classes), mean=mean, std=std, to_rgb=to_rgb)


def images(plan: Plan) -> dict:
    """The data loaders and evaluators."""
    scaled = dict(backend='pillow', interpolation='bicubic')
    pipelines = dict(
        train=[
            dict(type='RandomResizedCrop', scale=plan.side, crop_ratio_range=(0.35, 1.0), **scaled),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
        ],
        val=[
            dict(type='ResizeEdge', scale=plan.side * 8 // 7, edge='short', **scaled),
            dict(type='CenterCrop', crop_size=plan.side),
        ],
    )

    def loader(part: str, batch_size: int, options: dict, data_options: dict) -> dict:
        steps = [dict(type='LoadImageFromFile'), *pipelines[part], dict(type='PackInputs')]
        return dict(
            batch_size=batch_size,
            num_workers=2,
            **options,
            sampler=dict(type='DefaultSampler', shuffle=part == 'train'),
            dataset=dict(
                type='ImageList',
                data_root=str(plan.data.root),
                ann_file=str(plan.out / f'{part}.txt'),
                **data_options,
                pipeline=steps,
            ),
        )

    return dict(
        train_dataloader=loader('train', plan.batch_size, dict(drop_last=True), {}),
        val_dataloader=loader('val', MAX_BATCH, {}, dict(test_mode=True)),
        test_dataloader=Reference('val_dataloader'),
        val_evaluator=dict(type='Accuracy', topk=(1,)),
        test_evaluator=Reference('val_evaluator'),
    )


def schedule(plan: Plan, epochs: int, rate: float) -> dict:
    """The optimizer, the learning rate, and how often to validate, save and log."""
    warm_up, interval = max(1, epochs // 20), -(-epochs // 4)
    rates = [dict(type='LinearLR', start_factor=0.01, end=warm_up)]
    if epochs > warm_up:
        rates.append(dict(type='CosineAnnealingLR', begin=warm_up, end=epochs))
    steps = len(plan.data.train) // plan.batch_size
    return dict(
        optim_wrapper=dict(
            optimizer=dict(type='AdamW', lr=float(f'{rate:.1e}'), weight_decay=0.05),
            paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
        ),
        param_scheduler=[dict(each, convert_to_iter_based=True) for each in rates],
        train_cfg=dict(by_epoch=True, max_epochs=epochs, val_interval=interval),
        default_hooks=dict(
            logger=dict(interval=min(100, steps)),
            checkpoint=dict(interval=interval, max_keep_ckpts=2),
        ),
    )
