"""A student beside a base model at every evaluation, in real runs."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.runner import Runner
from processes import launch
from tiny import build, classifier

from mmkdx.evaluation import Evaluation, ExplanationEvaluator
from mmkdx.evaluation.pairs import context_batches
from mmkdx.explain import GradCAM, UniCAM
from mmkdx.functional.distance_correlation import (
    bias_corrected_dcor,
    dcor_standard_error,
    part_dcor,
    partial_dcor,
)
from mmkdx.functional.perturbation import keep_relevant
from mmkdx.hooks import ExplainHook

ROOT = Path(__file__).parents[2]
PREPROCESSOR = dict(num_classes=10, mean=[78.0] * 3, std=[84.0] * 3)
COUNT, SIZE = 48, 12
STAGES = {'stage1': 'stem', 'stage2': 'body'}

#: What takes no time: keeping relevant pixels does.
CHEAP = [
    dict(type='FeatureSimilarityScore', mask=None),
    dict(type='RelevanceScore', mask='UniCAM', perturbation='multiply'),
]

pytestmark = pytest.mark.filterwarnings('ignore:UniCAM. .* images are few')


def loader(count=COUNT):
    return dict(
        batch_size=20,
        num_workers=0,
        persistent_workers=False,
        dataset=dict(
            type='Digits', split='test', indices=count, pipeline=[dict(type='PackInputs')]
        ),
        sampler=dict(type='DefaultSampler', shuffle=False),
    )


def weights(path: Path, model: dict, seed: int) -> str:
    torch.manual_seed(seed)
    torch.save(build(model).state_dict(), path)
    return str(path)


def config(work_dir: Path, hook: dict | None = None, **changes) -> Config:
    """Two epochs of a tiny distillation on 48 digits, beside a base model."""
    work_dir.mkdir(exist_ok=True)
    student = dict(classifier(4, classes=10, drop=0.3), data_preprocessor=PREPROCESSOR)
    teacher = dict(classifier(8, classes=10), data_preprocessor=PREPROCESSOR)
    base = dict(
        classifier(4, classes=10),
        data_preprocessor=dict(num_classes=10, mean=[60.0] * 3, std=[90.0] * 3),
    )
    settings = dict(
        default_scope='mmkdx',
        work_dir=str(work_dir),
        experiment_name=work_dir.name,  # or two runs within a second have one log
        custom_imports=dict(imports=['tiny']),
        model=dict(
            type='Distiller',
            student=student,
            input_size=32,
            teacher=dict(model=teacher, checkpoint=weights(work_dir / 'teacher.pth', teacher, 1)),
            terms=dict(kd=dict(type='KLDivLoss', at='logits')),
        ),
        train_dataloader=dict(
            loader(40), sampler=dict(type='DefaultSampler', shuffle=True), drop_last=True
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
                    num_samples=None,
                    show_samples=2,
                    context_size=SIZE,
                    base=dict(model=base, checkpoint=weights(work_dir / 'base.pth', base, 2)),
                ),
                **(hook or {}),
            )
        ],
        randomness=dict(seed=0),
        log_level='INFO',
    )
    return Config({**settings, **changes})


def run(settings: Config, what: str = 'train') -> Runner:
    runner = Runner.from_cfg(settings)
    runner.result = getattr(runner, what)()
    return runner


def hook_of(runner: Runner) -> ExplainHook:
    return next(hook for hook in runner.hooks if isinstance(hook, ExplainHook))


def evaluations_of(runner: Runner, mode: str = 'val') -> list[dict]:
    path = Path(runner.log_dir) / 'explain' / f'{mode}.json'
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> Runner:
    """A run with the hook at its plainest."""
    return run(config(tmp_path_factory.mktemp('run')))


@pytest.fixture(scope='module')
def last(trained) -> dict:
    return evaluations_of(trained)[-1]


@pytest.fixture(scope='module')
def log(trained) -> str:
    return next(Path(trained.log_dir).glob('*.log')).read_text()


@pytest.fixture(scope='module')
def by_hand(trained) -> dict[str, list[float]]:
    """The scores of each batch of the last evaluation, without hook, metrics and analysis."""
    dataset = trained.val_loop.dataloader.dataset
    samples = [dataset[i] for i in range(COUNT)]
    labels = [int(sample['data_samples'].gt_label) for sample in samples]
    pixels = torch.stack([sample['inputs'] for sample in samples]).float()
    inputs = (pixels - 78) / 84
    subjects = hook_of(trained).evaluator.subjects
    models = {name: subjects[name].model.eval() for name in ('student', 'base', 'teacher')}
    units = dict(student=(78, 84), base=(60, 90), teacher=(78, 84))

    def convert(images, name):
        mean, std = units[name]
        return (images * 84 + 78 - mean) / std

    def features(images, name, stage):
        with torch.no_grad():
            backbone = models[name].backbone
            first = backbone.stem(convert(images, name))
            return (first if stage == 'stage1' else backbone.body(first)).flatten(1)

    values: dict[str, list[float]] = {}
    for members in context_batches(labels, SIZE, 0):
        images, targets = inputs[members], torch.tensor([labels[i] for i in members])
        one_hot = torch.eye(10)[targets]
        unique = UniCAM(layers=[f'backbone.{path}' for path in STAGES.values()])(
            models['student'], models['base'], convert(images, 'student'), targets,
            convert(images, 'base'),
        )  # fmt: skip
        for stage, path in STAGES.items():
            seen, alone = {}, {}
            for name, model in models.items():
                explainer = GradCAM(f'backbone.{path}')
                maps = explainer(model, convert(images, name), targets)
                seen[name] = features(keep_relevant(images, maps, 0.5), name, stage)
            for name, side in (('student', 'distilled'), ('base', 'residual')):
                maps = getattr(unique[stage], side)
                alone[name] = features(keep_relevant(images, maps, 0.5), name, stage)
            student, base, teacher = seen['student'], seen['base'], seen['teacher']
            for key, value in {
                'base/fss': bias_corrected_dcor(student, base),
                'teacher/fss': bias_corrected_dcor(student, teacher),
                'rs': bias_corrected_dcor(student, one_hot),
                'base/rs': bias_corrected_dcor(base, one_hot),
                'teacher/rs': bias_corrected_dcor(teacher, one_hot),
                'rs_unique': bias_corrected_dcor(alone['student'], one_hot),
                'base/rs_unique': bias_corrected_dcor(alone['base'], one_hot),
                'part': part_dcor(student, one_hot, given=base),
                'base/part': part_dcor(base, one_hot, given=student),
                'partial': partial_dcor(student, one_hot, base),
                'base/partial': partial_dcor(base, one_hot, student),
                'rho': 1 - bias_corrected_dcor(student, base) ** 2,
            }.items():
                values.setdefault(f'{key}_{stage}', []).append(value.item())
    return values


NAMES = [
    f'{name}_{stage}'
    for name in (
        'base/fss', 'teacher/fss', 'rs', 'base/rs', 'teacher/rs', 'rs_unique', 'base/rs_unique',
        'part', 'base/part', 'partial', 'base/partial', 'rho',
    )
    for stage in STAGES
]  # fmt: skip


# What comes out


def test_scores_of_pairs_are_these(last):
    assert {name for name, each in last['scores'].items() if 'batches' in each} == set(NAMES)


@pytest.mark.parametrize('name', NAMES)
def test_scores_equal_those_by_hand(last, by_hand, name):
    score, values = last['scores'][name], by_hand[name]
    assert len(values) == 3
    assert score['value'] == pytest.approx(np.mean(values), abs=1e-3)
    assert score['error'] == pytest.approx(np.std(values, ddof=1) / 3**0.5, abs=1e-3)
    # Of two degrees of freedom
    assert score['high'] - score['value'] == pytest.approx(4.30265 * score['error'], rel=1e-4)
    assert score['value'] - score['low'] == pytest.approx(4.30265 * score['error'], rel=1e-4)
    assert (score['n'], score['batches']) == (36, 3)


def test_what_was_compared_and_how(last):
    assert last['context_size'] == SIZE
    assert last['unicam'] == dict(type='UniCAM', target='gt_correlation', max_batch=64)
    paths = {stage: f'backbone.{path}' for stage, path in STAGES.items()}
    assert last['layers'] == dict(student=paths, teacher=paths, base=paths)
    masked = dict(mask='GradCAM', perturbation='road', keep=0.5)
    assert last['metrics'] == [
        dict(
            type='FeatureSimilarityScore',
            **masked,
            estimator='unbiased',
            normalize=False,
        ),
        dict(type='RelevanceScore', **masked),
    ]


def test_scores_are_in_the_log_in_the_scalars_and_in_a_table(trained, last, log):
    path = Path(trained.log_dir) / 'vis_data' / 'scalars.json'
    scalars = [json.loads(line) for line in path.read_text().splitlines()]
    for name in NAMES:
        lines = [line[f'explain/{name}'] for line in scalars if f'explain/{name}' in line]
        assert len(lines) == 2 and lines[-1] == last['scores'][name]['value']
    assert f'explain/part_stage1: {last["scores"]["part_stage1"]["value"]:.4f}' in log
    cell = r' +-?\d\.\d{4} ± \d\.\d{4} +\|'
    assert re.search(rf'\| rs_stage2 +\| higher +\|{cell}{cell}{cell} +36 in 3 +\|', log)
    assert re.search(rf'\| fss_stage1 +\| +\| +\|{cell}{cell} +36 in 3 +\|', log)
    assert re.search(rf'\| part_stage1 +\| higher +\|{cell} +\|{cell} +36 in 3 +\|', log)
    assert 'with teacher' not in log


def test_values_of_single_images_stay_as_they_were(trained):
    path = Path(trained.log_dir) / 'explain' / 'val.csv'
    with path.open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert {row['model'] for row in rows} == {'student', 'teacher', 'base'}
    assert len(rows) == 2 * 3 * COUNT and not any('fss' in name for name in rows[0])


def test_pictures_go_to_the_visualizer(trained):
    folder = Path(trained.log_dir) / 'vis_data' / 'vis_image'
    names = {path.name for path in folder.iterdir() if path.name.startswith('distilled')}
    labels = [
        trained.val_loop.dataloader.dataset.get_data_info(i)['gt_label'] for i in range(COUNT)
    ]
    first = context_batches(labels, SIZE, 0)[0][:2]
    assert names == {f'distilled_val_{i:05d}_{epoch}.png' for i in first for epoch in (1, 2)}


def test_the_evaluation_leaves_batches_to_their_loader_and_no_results(trained):
    for metric in hook_of(trained).evaluator.pair_metrics:
        assert metric.results == []
    assert trained.result is hook_of(trained).evaluator._model


# Options


def test_scores_are_among_the_metrics_and_choose_the_best_checkpoint(tmp_path):
    hooks = dict(
        checkpoint=dict(
            type='CheckpointHook', interval=1, save_best='explain/part_stage1', rule='greater'
        )
    )
    metrics = [
        dict(type='RelevanceScore', mask=None, name='raw'),
        dict(type='RelevanceScore', perturbation='multiply'),
    ]
    runner = run(config(tmp_path, dict(metrics=metrics), default_hooks=hooks))
    lines = evaluations_of(runner)
    values = [each['scores']['part_stage1']['value'] for each in lines]
    assert values[0] != values[1]
    best = 1 + int(np.argmax(values))
    assert [path.name for path in tmp_path.glob('best_*.pth')] == [
        f'best_explain_part_stage1_epoch_{best}.pth'
    ]
    # Of given metrics there are no others, and one without a mask knows no features of its own
    names = set(lines[0]['scores'])
    assert {'raw_rs_stage1', 'base/raw_part_stage2', 'rs_unique_stage1'} < names
    assert not any('fss' in name or 'raw_rs_unique' in name for name in names)
    assert [each.get('name') for each in lines[0]['metrics']] == ['raw', None]


def test_a_test_writes_a_report_of_what_was_distilled(tmp_path):
    settings = config(tmp_path, dict(report=True, show_samples=3, num_samples=30, metrics=CHEAP))
    runner = run(settings, 'test')
    page = (Path(runner.log_dir) / 'explain' / 'report.html').read_text()
    (section,) = re.findall(
        r'<section[^>]*>\s*<h2[^>]*>What was distilled</h2>.*?</section>', page, re.S
    )
    assert section.count('data:image') == 3
    assert 'depend on the whole batch' in section
    (line,) = evaluations_of(runner, 'test')
    assert line['scores']['rs_stage1']['batches'] == 2 and line['scores']['rs_stage1']['n'] == 24
    for name, score in line['scores'].items():
        assert runner.result[f'explain/{name}'] == score['value']
    assert all(type(value) is float for value in runner.result.values())
    assert '24 in 2' in page
    pictures = (Path(runner.log_dir) / 'vis_data' / 'vis_image').glob('distilled_test_*.png')
    shown = re.findall(r'image (\d+)', section)
    assert {f'{int(i):05d}' for i in shown} == {path.name.split('_')[2] for path in pictures}


@pytest.fixture(scope='module')
def evaluate(trained):
    """Evaluates the trained models on the digits, without a Runner."""
    loader = trained.val_loop.dataloader

    def run(**options) -> Evaluation:
        settings = {**trained.cfg.custom_hooks[0], 'metrics': CHEAP, 'show_samples': 0, **options}
        del settings['type']
        evaluator = ExplanationEvaluator(**settings)
        evaluator.begin(trained.model, loader)
        for batch in loader:
            evaluator.process(batch)
        return evaluator.finish()

    return run


def test_a_sample_that_fills_no_batch_is_one(evaluate):
    found = evaluate(num_samples=40, context_size=64)
    score = found.scores['rs_stage1']
    labels = [i % 10 for i in np.random.RandomState(0).permutation(COUNT)[:40]]
    n = sum(2 * (labels.count(label) // 2) for label in range(10))
    assert (score.n, score.batches) == (n, 1)
    assert score.error == pytest.approx(dcor_standard_error(n))
    assert found.sections == []


def test_settings_of_unicam_arrive(evaluate):
    layers = dict(early=('backbone.stem', 'backbone.stem'), late=['backbone.body', 'backbone.body'])
    found = evaluate(unicam=dict(layers=layers, target='row_max', max_batch=5))
    assert {'rs_early', 'base/part_late'} < set(found.scores)
    assert 'teacher' not in found.facts['layers'] and 'teacher/rs_early' not in found.scores
    assert found.facts['unicam']['target'] == 'row_max' and found.facts['unicam']['max_batch'] == 5
    assert list(found.facts['unicam']['layers']['late']) == ['backbone.body', 'backbone.body']


def test_without_unicam_the_base_model_is_explained_alone(evaluate):
    found = evaluate(unicam=False, metrics=[], show_samples=2)
    assert set(found.scores) == {'degenerate', 'teacher/degenerate', 'base/degenerate'}
    assert not {'unicam', 'layers', 'context_size'} & set(found.facts)
    assert found.sections == [] and len(found.gallery) == 2


def test_batches_are_drawn_by_the_seed(evaluate):
    one, again, other = (evaluate(seed=seed).scores['rs_stage2'].value for seed in (3, 3, 4))
    assert one == again != other


@pytest.fixture(scope='module')
def with_base(tmp_path_factory) -> Runner:
    return run(config(tmp_path_factory.mktemp('base'), dict(metrics=CHEAP)))


@pytest.mark.parametrize(
    'without',
    [
        dict(unicam=False),
        pytest.param(dict(base=None), marks=pytest.mark.slow),
    ],
    ids=['but no UniCAM', 'without'],
)
def test_training_is_the_same_with_a_base_model_and(with_base, tmp_path, without):
    """With dropout, whose random numbers the evaluation must not take."""
    losses = []
    other = run(config(tmp_path, dict(without, metrics=[])))
    for runner in (with_base, other):
        path = Path(runner.log_dir) / 'vis_data' / 'scalars.json'
        lines = map(json.loads, path.read_text().splitlines())
        losses.append([line['loss'] for line in lines if 'loss' in line])
    assert losses[0] == losses[1] and len(losses[0]) == 4
    for name, value in other.model.state_dict().items():
        assert torch.equal(value, with_base.model.state_dict()[name]), name


# Mistakes


@pytest.mark.parametrize('size', [4, 7, 0])
def test_a_context_of_no_such_size(size):
    message = f'ExplainHook.context_size is {size}; it must be an even number from 6 on'
    with pytest.raises(ValueError, match=message):
        ExplainHook(base='some', context_size=size)


def test_a_metric_of_pairs_without_a_pair():
    message = 'metrics: RelevanceScore compares a student with a base model; set ExplainHook.base'
    for more in (dict(), dict(base='some', unicam=False)):
        with pytest.raises(ValueError, match=message):
            ExplainHook(metrics=[dict(type='RelevanceScore')], **more)


def test_wrong_arguments_of_unicam():
    with pytest.raises(ValueError, match="UniCAM.target is 'gt'"):
        ExplainHook(base='some', unicam=dict(target='gt'))


@pytest.mark.parametrize(
    ('hook', 'labels', 'message'),
    [
        (
            dict(unicam=dict(layers=['backbone.bodi'])),
            None,
            "UniCAM.layers: student: .*'backbone.bodi'; near names are .*backbone.body",
        ),
        (
            dict(unicam=dict(layers=[('backbone.body', 'backbone.bodi')])),
            None,
            "UniCAM.layers: base: .*'backbone.bodi'",
        ),
        (
            dict(metrics=[dict(type='RelevanceScore', mask='GradCam')]),
            None,
            "mask: there is no explainer 'GradCam'; there are",
        ),
        (
            dict(metrics=[dict(type='RelevanceScore', mask='CAM')]),
            None,
            'mask: CAM does not explain any layer',
        ),
        (
            {},
            [None],
            'ExplainHook.base is compared by classes: sample 0 of .* label .*None.*; each sample must',
        ),
        ({}, [0, 1, -1], 'compared by classes, and an image has no label'),
        ({}, [[0, 1], [2]], 'compared by classes: sample 0 .* each sample must have one class'),
        (
            {},
            [3],
            'ExplainHook.base: the 48 images of the sample make no batch; a batch needs four images of '
            'each of two classes, or two of each of three, so raise ExplainHook.num_samples',
        ),
        (dict(num_samples=5), None, 'ExplainHook.base: the 5 images of the sample make no batch'),
    ],
)
def test_mistakes_show_on_trial(trained, monkeypatch, hook, labels, message):
    if labels is not None:
        info = BaseDataset.get_data_info

        def changed(dataset, i):
            row = dict(info(dataset, i), gt_label=labels[i % len(labels)])
            return {key: value for key, value in row.items() if value is not None}

        monkeypatch.setattr(BaseDataset, 'get_data_info', changed)
    settings = dict(trained.cfg.custom_hooks[0], **hook)
    del settings['type']
    with pytest.raises(ValueError, match=message):
        ExplainHook(**settings).before_train(trained)


def test_two_metrics_of_one_name(evaluate):
    metrics = [dict(type='RelevanceScore', mask=None), dict(type='RelevanceScore', mask='UniCAM')]
    with pytest.raises(ValueError, match="two metrics yield the score 'rs_stage1'; remove one, or"):
        evaluate(metrics=metrics)


# Two processes

LAUNCHED = """
import json
import os
import sys
from pathlib import Path
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.dist import barrier
from mmengine.runner import Runner
from mmkdx.compat import prepare_cpu_launch
sys.path.append(sys.argv[2])
from test_pair_evaluation import results

cfg = Config.fromfile(sys.argv[1])
prepare_cpu_launch(cfg, cfg.launcher)
runner = Runner.from_cfg(cfg)
Path(cfg.work_dir, f'{runner.rank}.json').write_text(json.dumps(results(runner)))
barrier()
os._exit(0)
"""


def results(runner: Runner) -> list[dict]:
    """Scores of three batches, of which one process has two, and of one, of which it has none."""
    found = []
    for size in (SIZE, 64):
        hook_of(runner).evaluator.pairs.size = size
        found.append(dict(runner.test()))
        del found[-1]['explain/seconds']
    return found


def test_two_processes_compare_as_one(tmp_path):
    student = config(tmp_path / 'some').model.student.to_dict()
    student['init_cfg'] = dict(
        type='Pretrained', checkpoint=weights(tmp_path / 'student.pth', student, 5)
    )
    one, two = (
        config(tmp_path / launcher, dict(metrics=CHEAP, report=True), launcher=launcher)
        for launcher in ('none', 'pytorch')
    )
    for settings in (one, two):
        settings.model.student = student
    expected = results(Runner.from_cfg(one))
    script, path = tmp_path / 'launched.py', tmp_path / 'config.py'
    script.write_text(LAUNCHED)
    two.dump(path)
    launch(script, path, Path(__file__).parent, cwd=tmp_path, env={'CUDA_VISIBLE_DEVICES': ''})
    found = [json.loads((tmp_path / 'pytorch' / f'{rank}.json').read_text()) for rank in (0, 1)]
    assert found[0] == found[1]
    for values, others in zip(found[0], expected, strict=True):
        assert values == pytest.approx(others, rel=1e-4, abs=1e-5)
        assert 'explain/base/part_stage1' in others
    (scores,) = (tmp_path / 'pytorch').glob('*/explain/test.json')
    lines = [json.loads(line)['scores']['rs_stage1'] for line in scores.read_text().splitlines()]
    assert [(line['n'], line['batches']) for line in lines] == [(36, 3), (40, 1)]
    (page,) = (tmp_path / 'pytorch').glob('*/explain/report.html')
    assert 'What was distilled' in page.read_text()
