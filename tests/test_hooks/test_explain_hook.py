"""Explanations at every evaluation, in real runs."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from tiny import build, classifier

from mmkdx.datasets import Digits
from mmkdx.evaluation import images
from mmkdx.evaluation.writer import write_page
from mmkdx.explain import GradCAM
from mmkdx.hooks import ExplainHook, explain_hook
from mmkdx.metrics import ExplanationMetric
from mmkdx.registry import METRICS

PREPROCESSOR = dict(num_classes=10, mean=[78.0] * 3, std=[84.0] * 3)


@METRICS.register_module()
class MapMean(ExplanationMetric):
    """The mean of a map, which is easy to compute by hand; counts how often it is asked."""

    better = dict(mean='higher')
    has_floor = True
    asked: list = []

    def measure(self, batch, model):
        type(self).asked.append(len(batch.index))
        return dict(mean=model.maps.mean((1, 2)))


def loader(count=48, batch_size=20, **dataset):
    return dict(
        batch_size=batch_size,
        num_workers=0,
        persistent_workers=False,
        dataset=dict(
            type='Digits',
            split='test',
            indices=count,
            pipeline=[dict(type='PackInputs')],
            **dataset,
        ),
        sampler=dict(type='DefaultSampler', shuffle=False),
    )


def config(work_dir: Path, hook: dict | None = None, **changes) -> Config:
    """Two epochs of a tiny distillation on 48 digits."""
    student = dict(classifier(4, classes=10), data_preprocessor=PREPROCESSOR)
    teacher = dict(classifier(8, classes=10), data_preprocessor=PREPROCESSOR)
    torch.manual_seed(1)
    torch.save(build(teacher).state_dict(), work_dir / 'teacher.pth')
    settings = dict(
        default_scope='mmkdx',
        work_dir=str(work_dir),
        experiment_name=work_dir.name,  # or two runs within a second have one log
        custom_imports=dict(imports=['tiny']),
        model=dict(
            type='Distiller',
            student=student,
            input_size=32,
            teacher=dict(model=teacher, checkpoint=str(work_dir / 'teacher.pth')),
            terms=dict(kd=dict(type='KLDivLoss', at='logits')),
        ),
        train_dataloader=dict(
            loader(), sampler=dict(type='DefaultSampler', shuffle=True), drop_last=True
        ),
        train_cfg=dict(by_epoch=True, max_epochs=2, val_interval=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.05)),
        val_dataloader=loader(),
        val_cfg=dict(),
        val_evaluator=dict(type='Accuracy'),
        test_dataloader=loader(),
        test_cfg=dict(),
        test_evaluator=dict(type='Accuracy'),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
        visualizer=dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')]),
        custom_hooks=[
            dict(
                dict(
                    type='ExplainHook',
                    num_samples=30,
                    show_samples=2,
                    metrics=[dict(type='MapMean')],
                ),
                **(hook or {}),
            )
        ],
        randomness=dict(seed=0),
        log_level='INFO',
    )
    return Config({**settings, **changes})


def run(config: Config, what: str = 'train') -> Runner:
    MapMean.asked = []
    runner = Runner.from_cfg(config)
    runner.result = getattr(runner, what)()
    return runner


def hook_of(runner: Runner) -> ExplainHook:
    return next(hook for hook in runner.hooks if isinstance(hook, ExplainHook))


def rows_of(runner: Runner, mode: str = 'val') -> list[dict]:
    with (Path(runner.log_dir) / 'explain' / f'{mode}.csv').open(newline='') as file:
        return list(csv.DictReader(file))


def evaluations_of(runner: Runner, mode: str = 'val') -> list[dict]:
    path = Path(runner.log_dir) / 'explain' / f'{mode}.json'
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> Runner:
    """A run with the hook at its plainest."""
    return run(config(tmp_path_factory.mktemp('run')))


@pytest.fixture(scope='module')
def log(trained) -> str:
    return next(Path(trained.log_dir).glob('*.log')).read_text()


def by_hand(runner: Runner, indices: list[int], name: str) -> torch.Tensor:
    """The means of the maps for the teacher's predictions, without the hook."""
    distiller = runner.model
    teacher = distiller.teachers[0].model
    dataset = runner.val_loop.dataloader.dataset
    images = torch.stack([dataset[i]['inputs'] for i in indices])
    inputs = distiller.data_preprocessor(dict(inputs=images))['inputs']
    model = dict(student=distiller.student, teacher=teacher)[name].eval()
    with torch.no_grad():
        targets = teacher(inputs, mode='tensor').argmax(1)
    return GradCAM()(model, inputs, targets).mean((1, 2))


@pytest.mark.parametrize('name', ['student', 'teacher'])
def test_values_are_those_of_the_explainer_for_the_teachers_class(trained, name):
    rows = [row for row in rows_of(trained) if row['model'] == name and row['epoch'] == '2']
    assert len(rows) == 30
    values = torch.tensor([float(row['mean']) for row in rows])
    expected = by_hand(trained, [int(row['index']) for row in rows], name)
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-7)


def test_scores_are_means_with_an_interval(trained):
    last = evaluations_of(trained)[-1]
    values = [float(row['mean']) for row in rows_of(trained) if row['epoch'] == '2'][::2]
    assert last['scores']['mean']['value'] == pytest.approx(np.mean(values))
    assert last['scores']['mean']['low'] < np.mean(values) < last['scores']['mean']['high']
    assert last['scores']['mean']['n'] == 30
    assert last['scores']['degenerate'] == dict(value=0, low=None, high=None, n=30, better='lower')
    assert last['target'] == 'teacher' and last['epoch'] == 2
    assert last['metrics'] == [dict(type='MapMean')]


def test_scores_are_in_the_log_in_the_scalars_and_in_a_table(trained, log):
    value = evaluations_of(trained)[-1]['scores']['mean']['value']
    scalars = [
        json.loads(line)
        for line in (Path(trained.log_dir) / 'vis_data' / 'scalars.json').read_text().splitlines()
    ]
    assert [line['explain/mean'] for line in scalars if 'explain/mean' in line][-1] == value
    assert len([line for line in scalars if 'explain/teacher/mean' in line]) == 2
    assert not any('explain/floor/mean' in line for line in scalars), 'a validation has no floor'
    assert f'explain/mean: {value:.4f}' in log
    assert re.search(r'\| mean +\| higher +\| -?0\.\d{4} ± 0\.\d{4} +\| -?0\.\d{4} ±', log)
    assert re.search(r'Explained 30 images in \d+\.\d s', log)


def test_pictures_go_to_the_visualizer(trained):
    names = {p.name for p in (Path(trained.log_dir) / 'vis_data' / 'vis_image').iterdir()}
    shown = sorted(hook_of(trained).evaluator._shown)
    assert names == {f'explain_val_{i:05d}_{epoch}.png' for i in shown for epoch in (1, 2)}


def test_the_sample_is_the_same_at_every_evaluation_and_drawn_by_the_seed(trained):
    first, second = (
        {row['index'] for row in rows_of(trained) if row['epoch'] == epoch} for epoch in '12'
    )
    expected = np.random.RandomState(0).permutation(48)[:30]
    assert first == second == {str(i) for i in expected}


def test_a_fixed_teacher_is_measured_once(trained):
    # The trial's image, then 30 of the student twice and the teacher's once
    assert sum(MapMean.asked) <= 2 + 30 * 3 and sum(MapMean.asked) >= 30 * 3
    teacher = [row for row in rows_of(trained) if row['model'] == 'teacher']
    epochs = [[row['mean'] for row in teacher if row['epoch'] == epoch] for epoch in '12']
    assert epochs[0] == epochs[1] and len(epochs[0]) == 30


def test_the_best_checkpoint_can_be_chosen_by_a_score(tmp_path):
    hooks = dict(
        logger=dict(type='LoggerHook', interval=1),
        checkpoint=dict(
            type='CheckpointHook', interval=1, save_best='explain/mean', rule='greater'
        ),
    )
    runner = run(config(tmp_path, default_hooks=hooks))
    values = [each['scores']['mean']['value'] for each in evaluations_of(runner)]
    assert list(tmp_path.glob(f'best_explain_mean_epoch_{1 + int(np.argmax(values))}.pth'))


def test_a_resumed_run_goes_on_counting_evaluations(tmp_path):
    cfg = config(tmp_path, dict(interval=2))
    cfg.train_cfg.max_epochs = 1
    run(cfg)
    cfg.train_cfg.max_epochs = 3
    cfg.resume = True
    run(cfg)
    lines = (each.read_text().splitlines() for each in tmp_path.glob('*/explain/val.json'))
    assert sorted(json.loads(line)['epoch'] for each in lines for line in each) == [1, 3]


def test_an_interval_leaves_evaluations_out(tmp_path):
    runner = run(config(tmp_path, dict(interval=2)))
    assert [each['epoch'] for each in evaluations_of(runner)] == [1]
    path = Path(runner.log_dir) / 'vis_data' / 'scalars.json'
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    explained = {line['step']: 'explain/mean' in line for line in lines if 'accuracy/top1' in line}
    assert explained == {1: True, 2: False}, 'the second has no scores of the first'


def test_training_is_the_same_with_and_without(trained, tmp_path):
    losses = []
    without = run(config(tmp_path, dict(enable=False)))
    for runner in (trained, without):
        path = Path(runner.log_dir) / 'vis_data' / 'scalars.json'
        lines = map(json.loads, path.read_text().splitlines())
        losses.append([(line['loss']) for line in lines if 'loss' in line])
    assert losses[0] == losses[1] and len(losses[0]) == 4
    assert (Path(trained.log_dir) / 'explain').exists()
    assert not (Path(without.log_dir) / 'explain').exists()


def test_a_test_explains_a_plain_classifier_for_its_own_prediction(tmp_path):
    model = dict(classifier(4, classes=10), data_preprocessor=PREPROCESSOR)
    half = loader(30)['dataset']
    both = dict(loader(), dataset=dict(type='ConcatDataset', datasets=[half, half]))
    changes = dict(model=model, test_dataloader=both)
    runner = run(config(tmp_path, dict(num_samples=None), **changes), 'test')
    rows = rows_of(runner, 'test')
    assert [int(row['index']) for row in rows] == list(range(60)), 'of both parts'
    assert {row['model'] for row in rows} == {'student'}
    assert all(row['target'] == row['prediction'] for row in rows)
    assert (
        runner.result['explain/mean']
        == evaluations_of(runner, 'test')[0]['scores']['mean']['value']
    )
    log = next(Path(runner.log_dir).glob('*.log')).read_text()
    assert re.search(
        r'\| score +\| better +\| TinyBackbone +\| floor \(noise\) +\| above floor +\| n', log
    )
    floor = evaluations_of(runner, 'test')[0]['floors']['mean']
    assert runner.result['explain/floor/mean'] == floor['value']
    assert runner.result['explain/above_floor/mean'] == floor['difference']
    assert np.mean([float(row['floor_mean']) for row in rows]) == pytest.approx(floor['value'])
    # mmengine writes any other number as null
    assert all(type(value) is float for value in runner.result.values())
    assert runner.result['explain/degenerate'] == 0


def test_ema_weights_and_autocast_are_explained_as_they_evaluate(tmp_path):
    """Under EMAHook the averaged student is explained; autocast changes nothing but rounding."""
    changes = dict(
        custom_hooks=[
            *config(tmp_path).custom_hooks,
            dict(type='EMAHook', momentum=0.5),
        ],
        val_cfg=dict(fp16=True),
    )
    runner = run(config(tmp_path, **changes))
    rows = [r for r in rows_of(runner) if r['model'] == 'student' and r['epoch'] == '2']
    plain = by_hand(runner, [int(r['index']) for r in rows], 'student')
    hook = next(hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook')
    hook._swap_ema_parameters()
    averaged = by_hand(runner, [int(r['index']) for r in rows], 'student')
    values = torch.tensor([float(row['mean']) for row in rows])
    torch.testing.assert_close(values, averaged, rtol=1e-4, atol=1e-7)
    assert not torch.allclose(values, plain, rtol=1e-3)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(target='gt'), "target is 'gt'; it must be one of None, teacher, student, label, own"),
        (dict(num_samples=0), 'ExplainHook.num_samples is 0; it must be an integer of at least 1'),
        (dict(show_samples=-1), 'show_samples is -1; it must be an integer of at least 0'),
        (dict(interval=0), 'interval is 0; it must be an integer of at least 1'),
        (
            dict(explainer='GradCam'),
            "explainer: there is no explainer 'GradCam'; there are .*GradCAM",
        ),
        (dict(explainer=dict(type='GradCAM', lay='x')), 'explainer: .*lay'),
        (dict(explainer=dict(students='CAM')), 'explainer has no type and the keys students'),
        (dict(explainer=dict(type='GradCAM', layer=['a', 'b'])), 'explainer.layer is a list'),
        (dict(metrics=[dict(type='Accuracy')]), 'metrics: Accuracy is no metric of explanations'),
    ],
)
def test_wrong_arguments_are_refused_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        ExplainHook(**arguments)


@pytest.mark.parametrize(
    ('hook', 'message'),
    [
        (dict(explainer=dict(type='GradCAM', layer='backbone.bodi')), 'no module .*backbone.body'),
        (
            dict(
                explainer=dict(student='GradCAM', teacher=dict(type='CAM'), base='CAM'),
                base=dict(model=classifier(4, classes=7), checkpoint='none.pth'),
            ),
            'ExplainHook.base: .*none.pth.*; or evaluate without .* ExplainHook.enable=False',
        ),
        (dict(base=dict(model=classifier(4, classes=7))), 'ExplainHook.base: .*no weights'),
        (dict(teacher=3), 'ExplainHook.teacher is 3 and there are 1 teachers'),
        (dict(metrics=[dict(type='PointingGame')]), 'PointingGame'),
        (
            dict(metrics=[dict(type='MapMean'), dict(type='MapMean')]),
            "ExplainHook.metrics: two metrics yield the score 'mean'",
        ),
        (
            dict(out_dir='/dev/null/x'),
            "ExplainHook.out_dir is '/dev/null/x'; nothing can be written",
        ),
    ],
)
def test_mistakes_show_on_trial(trained, hook, message):
    options = {**trained.cfg.custom_hooks[0], **hook}
    del options['type']
    before = sorted(Path(trained.work_dir).rglob('*'))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ExplainHook(**options).before_train(trained)
    assert sorted(Path(trained.work_dir).rglob('*')) == before


def test_a_trial_goes_through_everything_and_leaves_no_trace(trained, tmp_path, monkeypatch):
    drawn = []
    panel = images.explanation_panel
    monkeypatch.setattr(
        images, 'explanation_panel', lambda *a, **k: drawn.append(panel(*a, **k)) or drawn[-1]
    )
    out = tmp_path / 'new' / 'folder'
    metrics = [dict(type='MapMean'), dict(type='ClassSimilarity')]
    hook = ExplainHook(metrics=metrics, num_samples=5, out_dir=str(out))
    hook.before_train(trained)
    assert len(drawn) == 1 and list(tmp_path.iterdir()) == []
    assert all(metric.results == [] for metric in hook.evaluator.metrics)
    assert all(metric.results == [] for metric in trained.val_loop.evaluator.metrics)
    out.mkdir(parents=True)
    (out / 'val.csv').write_text('epoch,index,model,other\n')
    with pytest.raises(
        ValueError, match='val.csv has no column .*mean.*; choose another .*out_dir'
    ):
        hook.before_train(trained)


@pytest.mark.parametrize(
    ('second', 'message'),
    [
        ('GroupAccuracy', "GroupAccuracy: the data samples have no 'group'"),
        ('Accuracy', 'same metric name accuracy/top1'),
    ],
)
def test_the_evaluators_metrics_are_tried_before_the_first_iteration(tmp_path, second, message):
    evaluator = [dict(type='Accuracy'), dict(type=second)]
    runner = Runner.from_cfg(config(tmp_path, val_evaluator=evaluator))
    with pytest.raises(ValueError, match=message):
        runner.train()
    assert runner.iter == 0


def test_a_teacher_is_found_under_test_time_augmentation(tmp_path):
    settings = config(tmp_path)
    settings.model = dict(type='mmpretrain.AverageClsScoreTTA', module=settings.model)
    views = [[dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)]]
    pipeline = [dict(type='TestTimeAug', transforms=[*views, [dict(type='PackInputs')]])]
    settings.test_dataloader.dataset.pipeline = pipeline
    settings.custom_hooks[0].metrics = [dict(type='MapMean'), dict(type='MapAgreement')]
    runner = run(settings, 'test')
    rows = rows_of(runner, 'test')
    assert len(rows) == 2 * 30 and {row['model'] for row in rows} == {'student', 'teacher'}
    distiller = runner.model.module
    image = runner.test_loop.dataloader.dataset[int(rows[0]['index'])]['inputs'][0]
    inputs = distiller.data_preprocessor(dict(inputs=[image]))['inputs']
    with torch.no_grad():
        target = distiller.teachers[0].model(inputs, mode='tensor').argmax(1)
    expected = GradCAM()(distiller.student, inputs, target).mean().item()
    assert float(rows[0]['mean']) == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_a_report_shows_this_run_and_those_it_is_compared_with(trained, tmp_path, monkeypatch):
    # Of one name are this run and another one
    compare = {'earlier': str(trained.work_dir), tmp_path.name: str(trained.work_dir)}
    runs = []
    monkeypatch.setattr(
        explain_hook, 'write_page', lambda *args: runs.append(args[4]) or write_page(*args)
    )
    settings = config(tmp_path, dict(report=compare, out_dir=str(tmp_path / 'report')))
    run(settings, 'test')
    assert runs == [{str(tmp_path): str(tmp_path), **compare}]
    page = (tmp_path / 'report' / 'report.html').read_text()
    for text in (
        'earlier',
        tmp_path.name,
        'what the teacher predicts',
        '30 of 48 (seed 0)',
        'data:image',
    ):
        assert text in page, text
    assert not (Path(trained.log_dir) / 'explain' / 'report.html').exists()


def test_a_checkpoint_names_classes_that_the_data_do_not(tmp_path, trained, monkeypatch):
    monkeypatch.setattr(Digits, 'METAINFO', {})
    names = [f'digit {i}' for i in range(10)]
    meta = dict(dataset_meta=dict(classes=names))
    torch.save(dict(meta=meta, state_dict=trained.model.state_dict()), tmp_path / 'run.pth')
    tested = run(config(tmp_path, load_from=str(tmp_path / 'run.pth')), 'test')
    rows = rows_of(tested, 'test')
    assert rows and all(row['target_class'] == names[int(row['target'])] for row in rows)
