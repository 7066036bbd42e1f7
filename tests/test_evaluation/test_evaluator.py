"""The evaluator by itself: no Runner and no config."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope
from mmpretrain.structures import DataSample
from tiny import build, classifier, distiller
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset

from mmkdx.evaluation import ExplanationEvaluator
from mmkdx.evaluation.images import read_batch
from mmkdx.evaluation.telling import telling_images
from mmkdx.metrics import ExplanationMetric
from mmkdx.registry import DATASETS, METRICS
from mmkdx.visualization.report import _verdicts

PREPROCESSOR = dict(num_classes=4, mean=[100.0] * 3, std=[50.0] * 3)


@METRICS.register_module()
class Brightness(ExplanationMetric):
    """The mean of an image's values, which tells images apart; and the map's."""

    better = dict(map='higher')

    def measure(self, batch, model):
        return dict(brightness=batch.inputs.mean((1, 2, 3)), map=model.maps.mean((1, 2)))


@METRICS.register_module()
class Asking(Brightness):
    """Counts the images that it is asked for."""

    asked = 0

    def measure(self, batch, model):
        Asking.asked += len(batch.index)
        return super().measure(batch, model)


def pictures(n=12, size=8, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 256, (n, channels, size, size), generator=generator)
    return TensorDataset(values.byte(), torch.arange(n) % 4)


def loader(dataset=None, **options):
    return DataLoader(pictures() if dataset is None else dataset, **{'batch_size': 5, **options})


def evaluate(model, data, telling=False, **options):
    options.setdefault('metrics', ['Brightness'])
    evaluator = ExplanationEvaluator(**options)
    evaluator.begin(model, data)
    start = 0
    for batch in data:
        count = len(batch[1]) if isinstance(batch, list) else 0
        evaluator.process(batch, range(start, start + count) if count else None)
        start += count
    return evaluator.finish(telling=telling)


@pytest.fixture(scope='module')
def model() -> nn.Module:
    torch.manual_seed(0)
    return distiller(
        student=dict(classifier(4), data_preprocessor=PREPROCESSOR),
        teacher=dict(model=build(dict(classifier(8), data_preprocessor=PREPROCESSOR))),
    )


def test_the_most_telling_images_are_drawn_wherever_they_are(model):
    metrics = ['MapAgreement']
    found = evaluate(model, loader(), True, metrics=metrics, show_samples=1)
    reasons = {item.index: item.reason for item in found.gallery}
    chosen = telling_images(found.rows)
    assert chosen and {i: r for i, r in reasons.items() if r} == chosen
    assert len(set(reasons) - set(chosen)) <= 1
    # They are what they would be if all images were drawn
    every = {item.index: item for item in evaluate(model, loader(), metrics=metrics).gallery}
    assert len(every) == 12 and not any(item.reason for item in every.values())
    for item in found.gallery:
        assert np.array_equal(item.picture, every[item.index].picture)
    none = evaluate(model, loader(), True, metrics=metrics, show_samples=0)
    assert none.gallery == []


def test_what_the_models_are(model):
    models = evaluate(model, loader()).models
    sizes = (
        sum(p.numel() for p in each.parameters())
        for each in (model.student, model.teachers[0].model)
    )
    assert list(models) == ['student', 'teacher']
    assert list(models.values()) == [
        f'{type(model.student.backbone).__name__}, {n / 1e3:.3g} k parameters' for n in sizes
    ]


# Models and classes


@pytest.mark.parametrize('target', ['teacher', 'student', 'label', 'own'])
def test_all_models_are_explained_for_the_class_of_the_policy(model, target):
    rows = evaluate(model, loader(), target=target).rows
    assert len(rows) == 12
    for index, row in rows.items():
        for name in ('', 'teacher/'):
            expected = dict(
                teacher=row['teacher/prediction'],
                student=row['prediction'],
                label=index % 4,
                own=row[f'{name}prediction'],
            )
            assert row[f'{name}target'] == expected[target]


def test_a_teacher_and_a_base_model_can_come_apart():
    torch.manual_seed(1)
    student, other = (build(dict(classifier(4), data_preprocessor=PREPROCESSOR)) for _ in 'ab')
    found = evaluate(
        student,
        loader(),
        teacher=other,
        base=other,
        unicam=False,
        metrics=['Brightness', 'MapAgreement'],
    )
    scores = {name: score.value for name, score in found.scores.items()}
    assert scores['teacher/map'] == scores['base/map'] != scores['map']
    # The base model is the teacher here, so its maps agree wholly.
    assert scores['base/pearson'] == pytest.approx(1, abs=1e-5)
    assert scores['pearson_gain'] == pytest.approx(scores['pearson'] - 1, abs=1e-5)
    assert found.student == 'student' and '| student' in str(found)


def test_two_metrics_of_one_kind_have_names(model):
    metrics = [dict(type='Brightness', name='first'), dict(type='Brightness', name='second')]
    found = evaluate(model, loader(), metrics=metrics)
    names = {'first_map', 'teacher/first_map', 'second_map', 'teacher/second_map'}
    assert names < set(found.scores) and 'map' not in found.scores
    assert [metric['name'] for metric in found.facts['metrics']] == ['first', 'second']
    assert names < set(found.rows[0])


def test_a_head_with_more_classes_than_the_data_set_names():
    torch.manual_seed(0)
    data = pictures(24)
    data.classes = ['a', 'b', 'c', 'd']
    found = evaluate(build(classifier(4, classes=60)), loader(data), show_samples=24)
    predicted = {item.predictions['TinyBackbone'] for item in found.gallery}
    assert len(found.gallery) == 24 and any(word.isdigit() for word in predicted)
    assert {item.label for item in found.gallery} == {'a (0)', 'b (1)', 'c (2)', 'd (3)'}
    verdicts = [_verdicts(item) for item in found.gallery]
    assert ['student-wrong'] in verdicts, 'also of a model that has its own name'


def test_a_fixed_teacher_is_measured_once_and_again_for_other_data(model):
    evaluator = ExplanationEvaluator(metrics=['Asking'])
    first, other = loader(), loader(pictures(6, seed=1))
    Asking.asked = 0
    for data in (first, first, other):
        evaluator.begin(model, data)
        for i, batch in enumerate(data):
            evaluator.process(batch, range(5 * i, 5 * i + len(batch[1])))
        found = evaluator.finish()
    # Student and teacher, then the student, then both
    assert Asking.asked == 24 + 12 + 12
    assert list(found.rows) == list(range(6))


def test_another_student_brings_its_own_teacher():
    torch.manual_seed(3)
    networks = [build(dict(classifier(4), data_preprocessor=PREPROCESSOR)) for _ in 'abcd']
    evaluator, data, found = ExplanationEvaluator(metrics=['Brightness']), loader(), []
    for student, teacher in (networks[:2], networks[2:]):
        evaluator.begin(distiller(student=student, teacher=dict(model=teacher)), data)
        for i, batch in enumerate(data):
            evaluator.process(batch, range(5 * i, 5 * i + len(batch[1])))
        found.append(evaluator.finish().scores['teacher/map'].value)
    assert found[0] != found[1]


@pytest.mark.parametrize('name', ['base', 'teacher'])
def test_models_beside_the_student_have_the_data_sets_classes(name):
    torch.manual_seed(0)
    student, other = (build(dict(classifier(4), data_preprocessor=PREPROCESSOR)) for _ in 'ab')
    data = pictures()
    data.classes = ['a', 'b', 'c', 'd']
    options = dict(unicam=False, target='own')
    if name == 'base':
        options['teacher'] = None
    plain = evaluate(student, loader(data), **{name: other}, **options)
    before = other.head.fc.weight.clone()
    spec = dict(model=other, classes=['b', 'a', 'c', 'd'])
    for _ in 'ab':  # the caller's module stays as it is
        found = evaluate(student, loader(data), **{name: spec}, **options)
        assert torch.equal(other.head.fc.weight, before)
        for index, row in found.rows.items():
            old = plain.rows[index][f'{name}/prediction']
            assert row[f'{name}/prediction'] == [1, 0, 2, 3][old]
    other._dataset_meta = dict(classes=['b', 'a', 'c', 'd'])
    with pytest.raises(ValueError, match=f'{name}: .* classes in another order'):
        evaluate(student, loader(data), **{name: other}, **options)


@pytest.mark.parametrize('owner', ['student', 'teacher'])
def test_names_of_classes_come_from_a_model_where_the_data_set_has_none(owner):
    torch.manual_seed(0)
    student, other = (build(dict(classifier(4), data_preprocessor=PREPROCESSOR)) for _ in 'ab')
    names = ('ant', 'bee', 'cat', 'dog')
    dict(student=student, teacher=other)[owner]._dataset_meta = dict(classes=names)
    found = evaluate(student, loader(), teacher=other)
    assert found.classes == names and found.gallery[1].label == 'bee (1)'
    data = pictures()
    data.classes = ['ape', 'cow', 'elk', 'fox']
    found = evaluate(student, loader(data), teacher=other)
    assert found.classes == tuple(data.classes) and found.gallery[1].label == 'cow (1)'


# Data sets


def digits_config(count, first=0):
    indices = list(range(first, first + count))
    pipeline = [dict(type='PackInputs')]
    return dict(type='Digits', split='test', indices=indices, pipeline=pipeline)


def digits(count, first=0):
    return wrapped(**digits_config(count, first))


def wrapped(type, **options):
    with DefaultScope.overwrite_default_scope('mmkdx'):
        return DATASETS.build(dict(type=type, **options))


@pytest.mark.parametrize(
    ('make', 'expected'),
    [
        (lambda: wrapped('ConcatDataset', datasets=[digits(30), digits(30, 30)]), range(60)),
        (lambda: wrapped('RepeatDataset', dataset=digits(8), times=3), range(8)),
        (lambda: Subset(digits(20), [3, 17, 5]), [3, 5, 17]),
        (lambda: Subset(ConcatDataset([digits(4), digits(4, 4)]), [1, 6]), [1, 6]),
        (
            lambda: wrapped('KFoldDataset', dataset=digits_config(9), fold=1, num_splits=3, seed=0),
            None,
        ),
    ],
    ids=['concat', 'repeat', 'subset', 'subset of two', 'fold'],
)
def test_each_image_of_a_wrapped_data_set_is_a_row(make, expected):
    data = make()
    torch.manual_seed(0)
    model = build(dict(classifier(4, classes=10), data_preprocessor=PREPROCESSOR))
    batches = loader(data, batch_size=7, collate_fn=pseudo_collate)
    rows = evaluate(model, batches, num_samples=None).rows
    truth = {}
    for i in range(len(data)):
        item = data[i]
        inputs = (item['inputs'].float() - 100) / 50
        truth[item['data_samples'].sample_idx] = inputs.mean().item()
    assert sorted(rows) == sorted(truth if expected is None else expected)
    assert len(set(truth.values())) == len(rows), 'no two images are alike'
    for index, row in rows.items():
        assert row['brightness'] == pytest.approx(truth[index], abs=1e-5)


def test_pairs_are_drawn_from_a_wrapped_data_set():
    torch.manual_seed(0)
    student, base = (
        build(dict(classifier(4, classes=10), data_preprocessor=PREPROCESSOR)) for _ in 'ab'
    )
    data = wrapped('ConcatDataset', datasets=[digits(20), digits(20, 20)])
    found = evaluate(
        student,
        loader(data, collate_fn=pseudo_collate),
        base=base,
        metrics=[dict(type='FeatureSimilarityScore', mask=None)],
        num_samples=None,
        context_size=20,
    )
    score = found.scores['base/fss_stage2']
    assert (score.n, score.batches) == (40, 2)
    (section,) = found.sections
    assert len(section.keys) == 16 and section.keys[0].startswith('distilled_{mode}_000')


# One logit


@pytest.fixture(scope='module')
def one_logit():
    torch.manual_seed(0)
    config = classifier(4, classes=1)
    config['head'] = dict(type='MultiLabelLinearClsHead', num_classes=1, in_channels=4)
    net = build(dict(config, data_preprocessor=dict(PREPROCESSOR, num_classes=1)))
    nn.init.constant_(net.head.fc.bias, -3)
    return net.eval()


def test_a_network_with_one_logit_has_the_sigmoids_confidence(one_logit):
    data = loader()
    metrics = ['Brightness', 'DeletionInsertion', 'AverageDrop', 'ROAD']
    found = evaluate(one_logit, data, metrics=metrics)
    inputs = torch.cat([(images.float() - 100) / 50 for images, _ in data])
    with torch.no_grad():
        expected = one_logit(inputs, mode='tensor').sigmoid()[:, 0]
    for index, row in found.rows.items():
        assert row['prediction'] == row['target'] == 0
        assert row['confidence'] == pytest.approx(expected[index].item(), rel=1e-5)
    for name in ('deletion', 'insertion', 'average_drop', 'road_morf'):
        values = [row[name] for row in found.rows.values()]
        assert np.std(values) > 1e-4, f'{name} is constant'
        assert 0 <= min(values) <= max(values) < 1


def test_the_bias_alone_is_a_confidence_of_a_twentieth(one_logit):
    weight = one_logit.head.fc.weight.detach().clone()
    with torch.no_grad():
        one_logit.head.fc.weight.mul_(1e-7)
    try:
        rows = evaluate(one_logit, loader()).rows
    finally:
        one_logit.head.fc.weight.data.copy_(weight)
    assert [row['confidence'] for row in rows.values()] == pytest.approx([0.0474259] * 12, rel=1e-5)


def test_what_counts_hits_refuses_one_logit(one_logit):
    with pytest.raises(
        ValueError, match='PerturbationAUC counts .* the model has one logit; use Del'
    ):
        evaluate(one_logit, loader(), metrics=['PerturbationAUC'])


# The trial


def test_grey_images_go_through_a_trial_and_are_drawn():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)
    ).eval()
    images = pictures(channels=1).tensors[0].float() / 255
    data = loader(TensorDataset(images, torch.arange(12) % 4))
    evaluator = ExplanationEvaluator(metrics=['Brightness'])
    trial = evaluator.try_out(net, data)
    assert len(trial.gallery) == 1 and list(trial.rows) == [0]
    found = evaluate(net, data, show_samples=3)
    assert len(found.gallery) == 3 and found.student == 'Sequential'


def test_a_trial_finds_what_an_evaluation_would(model):
    @METRICS.register_module()
    class Undrawable(Brightness):
        def report_sections(self):
            return ['no picture']

    for metrics, error, message in (
        (['Brightness', 'Brightness'], ValueError, "two metrics yield the score 'brightness'"),
        (['Undrawable'], TypeError, 'no picture of a str'),
    ):
        with pytest.raises(error, match=message):
            ExplanationEvaluator(metrics=metrics).try_out(model, loader())


def test_a_trial_says_nothing_of_its_one_image(model, caplog):
    ExplanationEvaluator(metrics=['ClassSimilarity']).try_out(model, loader())
    assert 'confusion' not in caplog.text


# Batches


def test_the_first_view_of_an_image_is_read(model):
    first, second = (torch.full((3, 8, 8), value, dtype=torch.uint8) for value in (100, 200))
    samples = [DataSample(metainfo=dict(sample_idx=7)) for _ in 'ab']
    data = dict(inputs=[[first], [second]], data_samples=[samples[:1], samples[1:]])
    batch = read_batch(data, model, 'me')
    assert batch.index == [7] and batch.inputs.abs().max() == 0
    assert (batch.picture(0) == 100).all()
    assert read_batch(data, model, 'me', chosen={3}) is None


def test_pictures_of_normalised_images():
    net = nn.Sequential(nn.Conv2d(3, 2, 3))
    inputs = torch.linspace(-2, 2, 48).view(1, 3, 4, 4)
    unknown = read_batch([inputs, [0]], net, 'me', [0])
    assert unknown.mean is None and unknown.picture(0).min() == 0
    picture = replace(unknown, mean=(100.0,) * 3, std=(50.0,) * 3).picture(0)
    assert picture.min() == 0 and picture.max() == 200


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (torch.zeros(2), 'me: the data loader yields a Tensor; it must yield'),
        (
            dict(inputs=[0], data_samples=[DataSample()]),
            "me: the data samples have no 'sample_idx'",
        ),
    ],
)
def test_batches_of_another_form(model, data, message):
    with pytest.raises(ValueError, match=message):
        read_batch(data, model, 'me')


def test_the_package_needs_no_hook():
    folder = Path(__file__).parents[2] / 'mmkdx' / 'evaluation'
    assert not any('mmkdx.hooks' in path.read_text() for path in folder.glob('*.py'))
