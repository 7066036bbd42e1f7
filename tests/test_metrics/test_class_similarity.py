"""How alike explanations of classes are: cosines, matrices, correlations, and what they rest on."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from explainable import images, model_for
from mmengine.logging import MMLogger
from mmpretrain.structures import DataSample
from processes import launch
from scipy import stats
from torch import nn

from mmkdx.evaluation.subjects import Subject
from mmkdx.explain import build_explainer
from mmkdx.metrics import ClassSimilarity, Explained, ExplainedBatch
from mmkdx.metrics import class_similarity as module

NAN = float('nan')
# Two channels of 2 x 2 positions and three classes, whose cosines are known
FEATURES = torch.tensor([[[1.0, 0], [0, 2]], [[0, 3], [1, 0]]])
WEIGHT = torch.tensor([[1.0, 0], [0, 1], [1, 1]])


def gap_linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> nn.Sequential:
    """A classifier whose features are its input."""
    linear = nn.Linear(*weight.T.shape, bias=bias is not None)
    linear.weight.data.copy_(weight)
    if bias is not None:
        linear.bias.data.copy_(bias)
    return nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)


def explained(net: nn.Module, inputs, explainer='GradCAM', closed=True, fixed=False) -> Explained:
    subject = Subject(net, build_explainer(explainer), fixed=fixed)
    logits = subject.predict(inputs)
    targets = logits.argmax(1)
    result = subject.explained(subject.explain(inputs, targets), logits, targets, fixed)
    if not closed:
        result.model = None
    return result


def made_of(maps: torch.Tensor, logits: torch.Tensor) -> Explained:
    """A model whose maps (N, K, h, w) are given, for images whose first value is their number."""
    return Explained(
        maps[:, 0],
        logits.argmax(1),
        logits,
        predict=None,
        explain=lambda inputs, targets: maps[inputs[:, 0, 0, 0].long(), targets],
    )


def batch_of(inputs, labels, index=None, **models) -> ExplainedBatch:
    samples = [DataSample().set_gt_label(label) for label in labels]
    return ExplainedBatch(inputs, index or list(range(len(inputs))), models, samples)


def numbered(count: int) -> torch.Tensor:
    return torch.arange(count).float()[:, None, None, None].expand(-1, 3, 4, 4)


def evaluate(metric: ClassSimilarity, *batches: ExplainedBatch) -> dict[str, float]:
    for batch in batches:
        metric.process(batch)
    return {name: score.value for name, score in metric.evaluate().items()}


def with_matrix(similarity: np.ndarray, confusion: np.ndarray, count: int = 4) -> ExplainedBatch:
    """Images of each class with given cosines and, of ``count``, given numbers of predictions."""
    classes = len(similarity)
    labels = np.arange(classes).repeat(count)
    # Two positions: a map at the angle whose cosine with the label's map, (1, 0), it shall have
    cosines = torch.tensor(similarity[labels])
    maps = torch.stack([cosines, (1 - cosines.square()).clamp_min(0).sqrt()], 2)[:, :, None]
    taken = np.concatenate([np.arange(classes).repeat(row) for row in confusion])
    logits = 3 * torch.eye(classes)[taken]
    return batch_of(numbered(len(labels)), labels.tolist(), student=made_of(maps, logits))


# Cosines

CASES = [
    ('cam', False, 0, (1, 0, 0.577350)),
    ('cam', False, 1, (0, 1, 0.816497)),
    ('cam', True, 0, (1, -0.816497, -0.577350)),
    ('grad_act', False, 0, (1, 0, 0.577350)),
    ('grad_act', True, 0, (1, -0.816497, -0.577350)),
    ('weight', False, 0, (1, 0, 0.707107)),
]


@pytest.mark.parametrize(('explainer', 'center', 'label', 'expected'), CASES)
def test_known_cosines(explainer, center, label, expected):
    net = gap_linear(WEIGHT, torch.tensor([0.1, 0.2, 0.3]))
    inputs = FEATURES[None]
    metric = ClassSimilarity(explainer, center)
    batch = batch_of(inputs, [label], student=explained(net, inputs))
    result = evaluate(metric, batch)
    others = [value for k, value in enumerate(expected) if k != label]
    assert result['class_similarity'] == pytest.approx(np.mean(others), abs=1e-6)
    assert result['class_similarity_std'] == pytest.approx(np.std(others), abs=1e-6)
    matrix = metric.matrices['student'].similarity
    np.testing.assert_allclose(matrix[label], expected, atol=1e-6)
    assert np.isnan(np.delete(matrix, label, 0)).all(), 'classes without images'


@pytest.mark.parametrize('center', [False, True])
@pytest.mark.parametrize('explainer', ['CAM', 'GradCAM'])
def test_the_closed_form_is_the_explainers_maps(explainer, center):
    net, inputs = model_for('CAM', seed=3).train(), images(5)
    metrics = [ClassSimilarity(center=center) for _ in range(2)]
    for metric, closed in zip(metrics, (True, False)):
        model = explained(net, inputs, explainer, closed)
        if closed:  # no map is made
            model.explain = None
        metric.process(batch_of(inputs, [0, 1, 2, 3, 3], student=model))
        metric.evaluate()
    first, second = (metric.matrices['student'] for metric in metrics)
    np.testing.assert_allclose(first.similarity, second.similarity, atol=2e-5)
    np.testing.assert_array_equal(first.confusion, second.confusion)
    off = first.similarity[~np.eye(4, dtype=bool)]
    assert np.ptp(off) > 0.1
    assert all(part.training for part in net.modules())


def test_features_are_those_of_a_prediction():
    # A teacher with a preprocessing of its own: what it sees are other images
    net = gap_linear(WEIGHT)
    inputs = FEATURES[None] - 1
    model = explained(net, inputs)
    model.predict = lambda given: net(given + 1)
    metric = ClassSimilarity()
    evaluate(metric, batch_of(inputs, [0], student=model))
    found = metric.matrices['student'].similarity[0]
    np.testing.assert_allclose(found, (1, -0.816497, -0.577350), atol=1e-6)


@pytest.mark.parametrize('center', [False, True])
@pytest.mark.parametrize('limit', [1, 2 * 4 * 5 * 4 * 4, 2**28])
def test_other_models_are_explained_for_each_class(monkeypatch, center, limit):
    monkeypatch.setattr(module, 'MAPS_BYTES', limit)
    generator = torch.Generator().manual_seed(0)
    maps = 1e-22 * torch.randn(7, 5, 4, 4, generator=generator)
    labels = [0, 1, 2, 3, 4, 0, 1]
    metric = ClassSimilarity(center=center)
    model = made_of(maps, torch.randn(7, 5, generator=generator))
    sizes = []
    explain = model.explain
    model.explain = lambda inputs, targets: (sizes.append(len(inputs)), explain(inputs, targets))[1]
    evaluate(metric, batch_of(numbered(7), labels, student=model))
    flat = maps.double().flatten(2).numpy()
    if center:
        flat = flat - flat.mean(1, keepdims=True)
    for label in range(5):
        rows = []
        for each in (i for i, one in enumerate(labels) if one == label):
            own = flat[each, label]
            rows.append([own @ k / np.sqrt((own @ own) * (k @ k)) for k in flat[each]])
        found = metric.matrices['student'].similarity[label]
        np.testing.assert_allclose(found, np.mean(rows, 0), atol=1e-6)
    most = {1: 1, 2 * 4 * 5 * 4 * 4: 2, 2**28: 7}[limit]
    assert max(sizes) == most and sum(sizes) == 7 * 5


def test_a_head_with_a_hidden_layer():
    net, inputs = model_for('GradCAM', 'hidden', seed=1), images(4)
    model = explained(net, inputs, 'HiResCAM')
    metric = ClassSimilarity()
    evaluate(metric, batch_of(inputs, [0, 1, 2, 3], student=model))
    maps = build_explainer('HiResCAM')(net, inputs, 'all').double().flatten(2)
    maps = maps - maps.mean(1, keepdim=True)
    expected = [
        [torch.cosine_similarity(maps[i, i], maps[i, k], 0).item() for k in range(4)]
        for i in range(4)
    ]
    np.testing.assert_allclose(metric.matrices['student'].similarity, expected, atol=1e-5)


# What does not count


def test_an_image_whose_explanation_says_nothing():
    net = gap_linear(WEIGHT)
    inputs = torch.stack([FEATURES, 0 * FEATURES, FEATURES * torch.nan, FEATURES * torch.inf])
    metric = ClassSimilarity()
    model = explained(net, FEATURES.expand(4, -1, -1, -1))
    model.logits = torch.eye(3)[[2, 0, 0, 1]]
    result = evaluate(metric, batch_of(inputs, [0, 0, 0, 0], student=model))
    assert result['class_similarity'] == pytest.approx((-0.816497 - 0.577350) / 2)
    assert metric.matrices['student'].n == 1
    assert [np.isnan(metric.rows[i]['class_similarity']) for i in range(4)] == [0, 1, 1, 1]
    # Predictions count all the same
    assert metric.matrices['student'].confusion[0].tolist() == [0.5, 0.25, 0.25]


@pytest.mark.parametrize('broken', [0, 1])
@pytest.mark.parametrize('center', [False, True])
def test_a_map_that_is_not_finite(center, broken):
    maps = torch.randn(2, 3, 4, 4)
    maps[1, broken, 2, 2] = [torch.nan, torch.inf][broken]
    metric = ClassSimilarity(center=center)
    evaluate(metric, batch_of(numbered(2), [2, 2], student=made_of(maps, torch.eye(3)[:2])))
    assert metric.matrices['student'].n == 1
    assert np.isfinite(metric.matrices['student'].similarity[2]).all()


def test_an_explainer_that_knows_no_classes_tells_none_apart():
    maps = torch.randn(6, 1, 4, 4).expand(-1, 3, -1, -1)
    metric = ClassSimilarity()
    batch = batch_of(numbered(6), [0, 1, 2] * 2, student=made_of(maps, torch.randn(6, 3)))
    metric.process(batch)
    score = metric.evaluate()['class_similarity']
    assert np.isnan(score.value) and score.n == 0


def test_a_zero_map_of_another_class_is_like_none():
    maps = torch.randn(1, 3, 4, 4)
    maps[0, 1] = 0
    metric = ClassSimilarity(center=False)
    evaluate(metric, batch_of(numbered(1), [0], student=made_of(maps, torch.eye(3)[:1])))
    found = metric.matrices['student'].similarity[0]
    assert found[1] == 0 and found[0] == 1 and found[2] != 0


# Correlations

SIMILARITY = np.array([[1, 0.5, -0.25], [0.75, 1, 0.25], [-0.5, 0, 1]])


def test_correlation_with_confusions_by_hand():
    # Of 8 images each: off the diagonal 3 2 | 4 1 | 0 0, and ranks of cosines 5 2 | 6 4 | 1 3
    confusion = np.array([[3, 3, 2], [4, 3, 1], [0, 0, 8]])
    metric = ClassSimilarity(center=False)
    result = evaluate(metric, with_matrix(SIMILARITY, confusion, 8))
    x, y = np.array([5, 2, 6, 4, 1, 3]), np.array([5, 4, 6, 3, 1.5, 1.5])
    expected = ((x - 3.5) @ (y - 3.5)) / np.sqrt(17.5 * 17)
    assert result['confusion_correlation'] == pytest.approx(expected)
    matrices = metric.matrices['student']
    assert matrices.correlation == pytest.approx(expected) and matrices.n == 24
    np.testing.assert_allclose(matrices.similarity, SIMILARITY, atol=1e-6)
    np.testing.assert_allclose(matrices.confusion, confusion / 8)
    # softmax of 3 is monotonous in the shares here, so that ranks are the same
    assert result['probability_correlation'] == pytest.approx(expected)


def test_correlation_with_probabilities_of_a_model_without_mistakes():
    similarity = torch.tensor(SIMILARITY).repeat(2, 1)
    maps = torch.stack([similarity, (1 - similarity**2).sqrt()], 2)[:, :, None]
    logits = 5 * torch.eye(3).repeat(2, 1) + 0.5 * torch.randn(6, 3)
    metric = ClassSimilarity(center=False)
    batch = batch_of(numbered(6), [0, 1, 2] * 2, student=made_of(maps, logits))
    result = evaluate(metric, batch)
    off = ~np.eye(3, dtype=bool)
    mean = logits.softmax(1).view(2, 3, 3).mean(0).numpy()
    expected = stats.spearmanr(SIMILARITY[off], mean[off]).statistic
    assert result['probability_correlation'] == pytest.approx(expected)
    assert np.isnan(result['confusion_correlation'])


@pytest.fixture
def warned(caplog):
    logger = MMLogger.get_instance('class_similarity')
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.mark.parametrize(
    ('batch', 'message'),
    [
        (
            lambda: with_matrix(SIMILARITY, np.diag([4, 4, 4])),
            'the student takes no image of the sample for another class, so its '
            'confusion_correlation is NaN',
        ),
        (
            lambda: with_matrix(np.array([[1, -1.0], [-1, 1]]), np.array([[3, 1], [0, 4]])),
            'the student has explanations, or confusions, that are the same for all pairs',
        ),
        (
            lambda: with_matrix(
                0.5 + 0.5 * np.eye(3) + 2e-8 * np.arange(9).reshape(3, 3) * (1 - np.eye(3)),
                np.array([[2, 1, 1], [1, 3, 0], [4, 0, 0]]),
            ),
            'that are the same for all pairs of classes',
        ),
        (
            lambda: with_matrix(SIMILARITY, np.array([[2, 1, 1], [1, 2, 1], [1, 1, 2]])),
            'that are the same for all pairs of classes',
        ),
        (
            lambda: batch_of(
                numbered(2), [0, 1], student=made_of(torch.zeros(2, 2, 4, 4), torch.eye(2))
            ),
            'the student has no explanation of a label that is finite and not zero',
        ),
    ],
    ids=['no confusion', 'two classes', 'rounding errors', 'all alike', 'no explanation'],
)
def test_where_there_is_no_correlation_a_warning_says_why(warned, batch, message):
    result = evaluate(ClassSimilarity(center=False), batch())
    assert np.isnan(result['confusion_correlation'])
    (record,) = warned.records
    assert record.levelno == logging.WARNING and message in record.getMessage()


def test_classes_without_images_do_not_count(warned):
    wide = np.pad(SIMILARITY, (0, 1), constant_values=0.1) + np.diag([0, 0, 0, 0.9])
    confusion = np.array([[1, 1, 1, 1], [0, 3, 1, 0], [2, 0, 1, 1]])
    metric = ClassSimilarity(center=False)
    # Of the fourth class there is no image, but others are taken for it
    batch = with_matrix(wide, np.vstack([confusion, [0, 0, 0, 4]]))
    kept = slice(0, 12)
    model = batch.models['student']
    model.maps, model.logits = model.maps[kept], model.logits[kept]
    batch = ExplainedBatch(
        batch.inputs[kept], batch.index[kept], batch.models, batch.data_samples[kept]
    )
    result = evaluate(metric, batch)
    known = ~np.eye(4, dtype=bool)[:3]
    expected = stats.spearmanr(wide[:3][known], confusion[known]).statistic
    assert result['confusion_correlation'] == pytest.approx(expected)
    matrices = metric.matrices['student']
    assert np.isnan(matrices.similarity[3]).all() and np.isnan(matrices.confusion[3]).all()
    assert not warned.records


# Several models


def several(fixed=False):
    inputs = images(12)
    nets = {name: model_for('CAM', seed=i) for i, name in enumerate(('student', 'teacher', 'base'))}
    return inputs, {name: explained(net, inputs, fixed=fixed) for name, net in nets.items()}


def test_agreement_with_the_teacher():
    inputs, models = several()
    metric = ClassSimilarity()
    metric.process(batch_of(inputs, [0, 1, 2, 3] * 3, **models))
    scores = metric.evaluate()
    off = ~np.eye(4, dtype=bool)
    matrices = {name: each.similarity for name, each in metric.matrices.items()}
    assert set(matrices) == {'student', 'teacher', 'base'}
    for name, prefix in (('student', ''), ('base', 'base/')):
        expected = stats.spearmanr(matrices[name][off], matrices['teacher'][off]).statistic
        score = scores[f'{prefix}class_similarity_agreement']
        assert score[0] == pytest.approx(expected) and score.better == 'higher' and score.n == 12
    plain = {'class_similarity', 'class_similarity_std'}
    plain |= {'confusion_correlation', 'probability_correlation'}
    names = {f'{prefix}{name}' for prefix in ('', 'teacher/', 'base/') for name in plain}
    agreement = {'class_similarity_agreement', 'base/class_similarity_agreement'}
    assert set(scores) == names | agreement
    assert all(score.better is None for name, score in scores.items() if name not in agreement)
    assert metric.rows[0].keys() == {n for n in names if 'class_similarity' in n}


def test_a_model_agrees_with_itself():
    inputs, models = several()
    batch = batch_of(inputs, [0, 1, 2, 3] * 3, student=models['base'], teacher=models['base'])
    result = evaluate(ClassSimilarity(), batch)
    assert result['class_similarity_agreement'] == pytest.approx(1)


def test_a_fixed_model_is_measured_once():
    inputs, models = several(fixed=True)
    metric = ClassSimilarity()
    batch = batch_of(inputs, [0, 1, 2, 3] * 3, **models)
    first = evaluate(metric, batch)
    for model in models.values():
        model.predict = None
    assert evaluate(metric, batch) == first


def test_a_name_stands_in_front():
    inputs, models = several()
    metric = ClassSimilarity()
    metric.name = 'raw'
    result = evaluate(metric, batch_of(inputs, [0, 1, 2, 3] * 3, **models))
    assert {'raw_class_similarity', 'teacher/raw_confusion_correlation'} < set(result)


# Several processes


def found_by(rank: int, ranks: int) -> str:
    """What a rank finds; with two of them the second has sample 0, too, to fill up its last batch."""
    inputs, labels = images(11), [0, 1, 2, 3, 3, 2, 1, 0, 0, 1, 2]
    metric = ClassSimilarity()
    own = [*range(rank, 11, ranks), *([0] if rank else [])]
    nets = {name: model_for('CAM', seed=i) for i, name in enumerate(('student', 'teacher'))}
    for part in (own[:3], own[3:]):
        models = {name: explained(net, inputs[part]) for name, net in nets.items()}
        metric.process(batch_of(inputs[part], [labels[i] for i in part], part, **models))
    scores = metric.evaluate()
    line = ' '.join(f'{name}={s.value:.5f}/{s.n}' for name, s in sorted(scores.items()))
    return f'[{line}] with {len(metric.matrices)} matrices'


RANKS = """
import sys

import torch.distributed as dist

sys.path.append(sys.argv[1])
from test_class_similarity import found_by

dist.init_process_group('gloo')
print(f'rank {dist.get_rank()}: {found_by(dist.get_rank(), 2)}', flush=True)
dist.barrier()
dist.destroy_process_group()
"""


def test_two_processes_find_what_one_finds(tmp_path):
    script = tmp_path / 'ranks.py'
    script.write_text(RANKS)
    written = launch(script, Path(__file__).parent)
    one = found_by(0, 1)
    assert 'class_similarity=' in one and '/11' in one and 'with 2 matrices' in one
    assert f'rank 0: {one}' in written
    assert f'rank 1: {one.replace("with 2", "with 0")}' in written


# Mistakes


@pytest.mark.parametrize(
    ('sample', 'message'),
    [
        (DataSample(), 'needs one label for each image, and sample 4 has 0 .*gt_label'),
        (DataSample().set_gt_label([0, 1]), 'sample 4 has 2'),
        (DataSample().set_gt_label(-1), 'sample 4 has 0'),
        (DataSample().set_gt_label(3), 'sample 4 has the label 3, .* no class of a model of 3'),
        ({}, 'sample 4 has 0'),
    ],
)
def test_images_without_one_label(sample, message):
    inputs = FEATURES[None]
    batch = ExplainedBatch(inputs, [4], dict(student=explained(gap_linear(WEIGHT), inputs)))
    with pytest.raises(ValueError, match='has 0'):
        ClassSimilarity().process(batch)
    batch.data_samples = [sample]
    with pytest.raises(ValueError, match=message):
        ClassSimilarity().process(batch)


def test_a_dict_may_have_the_label():
    inputs = FEATURES[None]
    batch = ExplainedBatch(inputs, [4], dict(student=explained(gap_linear(WEIGHT), inputs)))
    batch.data_samples = [dict(gt_label=0)]
    metric = ClassSimilarity()
    evaluate(metric, batch)
    assert metric.matrices['student'].similarity[0, 1] == pytest.approx(-0.816497)


def test_an_explainer_there_is_not():
    message = "ClassSimilarity.explainer is 'CAM'; it must be one of weight, cam, grad_act"
    with pytest.raises(ValueError, match=message):
        ClassSimilarity('CAM')


@pytest.mark.parametrize('explainer', ['weight', 'grad_act'])
def test_a_head_without_a_closed_form(explainer):
    inputs = images(2)
    model = explained(model_for('GradCAM', 'hidden'), inputs)
    message = (
        f"ClassSimilarity.explainer is '{explainer}', which needs .* one linear layer, and the teacher "
        r"\(ImageClassifier\) has another head; use 'cam' for any classifier"
    )
    with pytest.raises(ValueError, match=message):
        ClassSimilarity(explainer).process(batch_of(inputs, [0, 1], teacher=model))
