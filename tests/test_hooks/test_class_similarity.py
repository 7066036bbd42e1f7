"""Class similarity and calibration in real runs."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from tiny import build, classifier

from mmkdx.hooks import ExplainHook
from mmkdx.metrics import ClassSimilarity

PREPROCESSOR = dict(num_classes=10, mean=[78.0] * 3, std=[84.0] * 3)


def model(width: int) -> dict:
    return dict(classifier(width, classes=10), data_preprocessor=PREPROCESSOR)


def config(work_dir: Path, metrics: list[dict], hook: dict | None = None, **changes) -> Config:
    """An epoch of a tiny distillation on 40 digits."""
    torch.manual_seed(1)
    torch.save(build(model(8)).state_dict(), work_dir / 'teacher.pth')
    loader = dict(
        batch_size=20,
        num_workers=0,
        persistent_workers=False,
        dataset=dict(type='Digits', split='test', indices=40, pipeline=[dict(type='PackInputs')]),
        sampler=dict(type='DefaultSampler', shuffle=False),
    )
    evaluator = [dict(type='Accuracy'), dict(type='CalibrationError')]
    hook = dict(type='ExplainHook', num_samples=30, show_samples=1, metrics=metrics, **(hook or {}))
    settings = dict(
        default_scope='mmkdx',
        work_dir=str(work_dir),
        custom_imports=dict(imports=['tiny']),
        model=dict(
            type='Distiller',
            student=model(4),
            input_size=32,
            teacher=dict(model=model(8), checkpoint=str(work_dir / 'teacher.pth')),
            terms=dict(kd=dict(type='KLDivLoss', at='logits')),
        ),
        train_dataloader=dict(loader, sampler=dict(type='DefaultSampler', shuffle=True)),
        train_cfg=dict(by_epoch=True, max_epochs=1, val_interval=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.05)),
        val_dataloader=loader,
        val_cfg=dict(),
        val_evaluator=evaluator,
        test_dataloader=loader,
        test_cfg=dict(),
        test_evaluator=evaluator,
        visualizer=dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')]),
        custom_hooks=[hook],
        randomness=dict(seed=0),
        log_level='INFO',
    )
    return Config({**settings, **changes})


def run(config: Config, what: str) -> Runner:
    runner = Runner.from_cfg(config)
    runner.result = getattr(runner, what)()
    return runner


def pictures(runner: Runner) -> dict[str, np.ndarray]:
    folder = Path(runner.log_dir) / 'vis_data' / 'vis_image'
    return {path.name: cv2.imread(str(path)) for path in folder.glob('*class_similarity*')}


def metric_of(runner: Runner) -> ClassSimilarity:
    hook = next(hook for hook in runner.hooks if isinstance(hook, ExplainHook))
    return next(metric for metric in hook.evaluator.metrics if isinstance(metric, ClassSimilarity))


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> Runner:
    return run(config(tmp_path_factory.mktemp('run'), [dict(type='ClassSimilarity')]), 'train')


def test_scores_stand_in_the_log_beside_accuracy_and_calibration(trained):
    path = Path(trained.log_dir) / 'vis_data' / 'scalars.json'
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    (last,) = (line for line in lines if 'accuracy/top1' in line)
    for name in ('class_similarity', 'class_similarity_std', 'confusion_correlation'):
        assert f'explain/{name}' in last and f'explain/teacher/{name}' in last
    assert -1 <= last['explain/class_similarity_agreement'] <= 1
    assert 0 < last['calibration/ece'] < 100 and last['calibration/nll'] > 0


def test_the_matrices_are_those_of_the_sample(trained):
    metric = metric_of(trained)
    assert set(metric.matrices) == {'student', 'teacher'}
    student = metric.matrices['student']
    assert student.n == 30 and student.similarity.shape == (10, 10)
    np.testing.assert_allclose(np.diag(student.similarity), 1)
    np.testing.assert_allclose(student.confusion.sum(1), 1)


def test_a_picture_of_both_models_goes_to_the_visualizer(trained):
    ((name, picture),) = pictures(trained).items()
    assert name == 'class_similarity_val_1.png'
    assert picture.shape[0] > 1000 and picture.shape[1] > 900, 'a row for each model'


def test_the_report_has_a_section(tmp_path):
    metrics = [dict(type='ClassSimilarity'), dict(type='ClassSimilarity', name='raw', center=False)]
    runner = run(config(tmp_path, metrics, dict(report=True)), 'test')
    names = {'class_similarity_test_0.png', 'raw_class_similarity_test_0.png'}
    assert set(pictures(runner)) == names
    page = (Path(runner.log_dir) / 'explain' / 'report.html').read_text()
    headings = re.findall('<h2[^>]*>(Class similarity[^<]*)<', page)
    assert headings == ['Class similarity', 'Class similarity (raw)']
    assert page.count('alt="similarity and confusion of classes, teacher, student"') == 2
    assert 'explain/raw_confusion_correlation' in runner.result


def test_a_plain_classifier_with_another_explainer(tmp_path):
    hidden = model(4)
    hidden['head'] = dict(
        type='StackedLinearClsHead', num_classes=10, in_channels=4, mid_channels=[5]
    )
    runner = run(config(tmp_path, [dict(type='ClassSimilarity')], model=hidden), 'test')
    assert set(metric_of(runner).matrices) == {'student'}
    assert np.isfinite(runner.result['explain/class_similarity'])
    ((_, picture),) = pictures(runner).items()
    assert picture.shape[0] < 1000


def test_a_mistake_shows_before_the_first_iteration(tmp_path):
    hidden = model(4)
    hidden['head'] = dict(
        type='StackedLinearClsHead', num_classes=10, in_channels=4, mid_channels=[5]
    )
    metrics = [dict(type='ClassSimilarity', explainer='weight')]
    runner = Runner.from_cfg(config(tmp_path, metrics, model=hidden))
    with pytest.raises(
        ValueError, match="the student .ImageClassifier. has another head; use 'cam'"
    ):
        runner.train()
    assert runner.iter == 0
