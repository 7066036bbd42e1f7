"""MapAgreement: conventions by hand and by SciPy, subsets, gains, and what must hold for any maps."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmpretrain.structures import DataSample
from scipy import stats
from scipy.spatial.distance import jensenshannon

from mmkdx.metrics.agreement import MapAgreement
from mmkdx.metrics.base import Explained, ExplainedBatch
from mmkdx.registry import METRICS

NAMES = ['cosine', 'pearson', 'spearman', 'ssim', 'js_divergence', 'topk_iou']


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def model_of(maps, predictions=None, classes=3):
    n = len(maps)
    predictions = torch.zeros(n).long() if predictions is None else torch.tensor(predictions)
    logits = F.one_hot(predictions, classes).float()
    return Explained(maps, predictions, logits, None, None)


def batch_of(student, teacher, labels=None, size=32, **models):
    n = len(student.maps)
    samples = [{}] * n if labels is None else [dict(gt_label=label) for label in labels]
    models = dict(student=student, teacher=teacher, **models)
    return ExplainedBatch(torch.zeros(n, 3, size, size), range(n), models, samples)


def compare(student, teacher, *args, **kwargs):
    batch = batch_of(student, teacher, *args, **kwargs)
    return MapAgreement().compare(batch, student, teacher)


def evaluate(*batches):
    metric = METRICS.build(dict(type='MapAgreement'))
    for batch in batches:
        metric.process(batch)
    return metric.evaluate(sum(len(batch.index) for batch in batches))


def test_conventions():
    # Maps of two sizes with negative parts; the input has a third size
    student, teacher = random(4, 7, 7), random(4, 14, 14, seed=1)
    values = compare(model_of(student), model_of(teacher), size=28)

    def enlarged(maps):
        return F.interpolate(maps[:, None], (28, 28), mode='bilinear')[:, 0].double().numpy()

    for i, (s, t) in enumerate(zip(enlarged(student), enlarged(teacher))):
        assert values['pearson'][i] == pytest.approx(
            stats.pearsonr(s.ravel(), t.ravel())[0], abs=1e-5
        )
        assert values['spearman'][i] == pytest.approx(
            stats.spearmanr(s.ravel(), t.ravel())[0], abs=1e-5
        )
        top = [x >= np.sort(x.ravel())[-79] for x in (s, t)]  # 10 % of 784 pixels, rounded up
        assert values['topk_iou'][i] == pytest.approx(
            (top[0] & top[1]).sum() / (top[0] | top[1]).sum()
        )
    # ReLU comes before the resizing
    for i, (s, t) in enumerate(zip(enlarged(student.relu()), enlarged(teacher.relu()))):
        cosine = (s * t).sum() / np.sqrt((s * s).sum() * (t * t).sum())
        assert values['cosine'][i] == pytest.approx(cosine, abs=1e-5)
        divergence = jensenshannon(s.ravel(), t.ravel()) ** 2
        assert values['js_divergence'][i] == pytest.approx(divergence, abs=1e-5)
    skimage = pytest.importorskip('skimage.metrics')
    for i, pair in enumerate(zip(enlarged(student), enlarged(teacher))):
        s, t = ((x - x.min()) / (x.max() - x.min()) for x in pair)
        expected = skimage.structural_similarity(s, t, data_range=1)
        assert values['ssim'][i] == pytest.approx(expected, abs=1e-5)


def test_cosine_is_that_of_the_explanation_loss():
    # Teacher map [1, 0, 0, 1.5] and student map [0, 0.5, 0, 0.75] with negative evidence besides
    teacher = torch.tensor([[[1, -2], [-1, 1.5]]])
    student = torch.tensor([[[-3, 0.5], [-1, 0.75]]])
    model = model_of(student), model_of(teacher)
    value = MapAgreement().compare(batch_of(*model, size=8), *model)['cosine'].item()
    pair = [
        F.interpolate(maps.relu()[:, None], (8, 8), mode='bilinear') for maps in (student, teacher)
    ]
    assert value == pytest.approx(F.cosine_similarity(*(x.flatten() for x in pair), dim=0).item())
    # The signed maps would give another value
    pair = [F.interpolate(maps[:, None], (8, 8), mode='bilinear') for maps in (student, teacher)]
    assert abs(value - F.cosine_similarity(*(x.flatten() for x in pair), dim=0).item()) > 0.01


@pytest.mark.parametrize('scale', [1, 1e-7, 1e5])
def test_equal_maps_agree_best_at_any_scale(scale):
    maps = random(3, 7, 7)
    values = compare(model_of(maps * scale), model_of(maps))
    for name in NAMES:
        best = 0 if name == 'js_divergence' else 1
        assert values[name].tolist() == pytest.approx([best] * 3, abs=2e-5)


def test_maps_that_move_apart_agree_less_and_opposite_ones_least():
    teacher, noise = random(1, 7, 7), random(1, 7, 7, seed=1)
    steps = torch.cat([(1 - a) * teacher + a * noise for a in (0, 0.3, 0.6, 0.8)] + [-teacher])
    values = compare(model_of(steps), model_of(teacher.expand(5, 7, 7)))
    for name in NAMES:
        sign = 1 if name == 'js_divergence' else -1
        assert (sign * values[name].diff() > 0).all(), name
    assert values['pearson'][4].item() == pytest.approx(-1)
    assert values['spearman'][4].item() == pytest.approx(-1)
    assert values['topk_iou'][4] == 0 and values['ssim'][4] < 0
    # Positive evidence of opposite maps meets only where the enlargement blends neighbours
    assert values['cosine'][4] < 0.3 and values['js_divergence'][4] > math.log(2) / 2


def test_random_maps_agree_at_chance():
    n = 200
    values = compare(model_of(random(n, 32, 32)), model_of(random(n, 32, 32, seed=1)))
    for name in ('pearson', 'spearman'):
        assert abs(values[name].mean()) < 4 * values[name].std() / math.sqrt(n), name
    assert values['ssim'].mean() < 0.05
    assert values['topk_iou'].mean() == pytest.approx(0.1 / 1.9, abs=0.005)
    # the cosine of half-normal parts: E[x⁺]² / E[(x⁺)²] = (1 / 2π) / (1 / 2)
    assert values['cosine'].mean() == pytest.approx(1 / math.pi, abs=0.005)


def test_subsets():
    maps, others = random(5, 7, 7), random(5, 7, 7, seed=1)
    student, teacher = model_of(maps, [0, 1, 2, 0, 1]), model_of(others, [0, 1, 1, 0, 2])
    labels = [torch.tensor([0]), torch.tensor([2]), 1, torch.tensor([-1]), torch.tensor([0, 1])]
    values = compare(student, teacher, labels)
    assert values['prediction_agreement'].tolist() == [1, 1, 0, 1, 0]
    for name in NAMES:
        assert not values[name].isnan().any()
        for subset, members in (
            ('same_prediction', [True, True, False, True, False]),
            # The fourth has no label, a negative one; the fifth has two labels
            ('teacher_wrong', [False, True, False, False, True]),
        ):
            part = values[f'{name}_{subset}']
            assert (~part.isnan()).tolist() == members
            assert (part[members] == values[name][members]).all()


@pytest.mark.parametrize('labels', [None, [-1, torch.tensor([-1])]])
def test_without_labels_nothing_is_wrong(labels):
    values = compare(model_of(random(2, 7, 7)), model_of(random(2, 7, 7, seed=1)), labels)
    assert set(values) == {*NAMES, 'prediction_agreement', *(f'{n}_same_prediction' for n in NAMES)}


def test_labels_of_mmpretrain():
    model = model_of(random(2, 7, 7), [1, 1])
    batch = batch_of(model, model)
    batch.data_samples = [DataSample().set_gt_label(1), DataSample().set_gt_label(0)]
    wrong = MapAgreement().compare(batch, model, model)['cosine_teacher_wrong']
    assert wrong.isnan().tolist() == [True, False]


def test_degenerate_maps_have_no_scores_but_predictions():
    maps, others = random(5, 7, 7), random(5, 7, 7, seed=1)
    maps[0], maps[1], others[2] = 0, 4, float('nan')
    maps[3] = -maps[3].abs() - 0.1  # nothing positive
    values = compare(model_of(maps), model_of(others))
    for name in NAMES:
        relu = name in ('cosine', 'js_divergence')
        assert values[name].isnan().tolist() == [True, True, True, relu, False], name
    assert values['prediction_agreement'].tolist() == [1] * 5
    scores = evaluate(batch_of(model_of(maps), model_of(others)))
    assert scores['pearson'].n == 2 and scores['cosine'].n == 1
    assert scores['prediction_agreement'].n == 5


def three_models(n=12, degenerate=False):
    teacher = random(n, 7, 7)
    near = teacher + 0.5 * random(n, 7, 7, seed=1)
    far = 0.3 * teacher + random(n, 7, 7, seed=2)
    if degenerate:
        near[0], far[1] = 0, 0
    predictions = [i % 3 for i in range(n)]
    return (
        model_of(near, predictions),
        model_of(teacher, predictions),
        model_of(far, [0] * n),
    )


def test_gain_over_the_base_is_paired_and_positive_is_better():
    student, teacher, base = three_models(degenerate=True)
    scores = evaluate(batch_of(student, teacher, [0] * 12, base=base))
    values = compare(student, teacher)
    alone = compare(base, teacher)
    for name in NAMES:
        gains = (values[name] - alone[name])[2:].double().numpy()
        if name == 'js_divergence':
            gains = -gains
        gain = scores[f'{name}_gain']
        half = stats.t.ppf(0.975, 9) * gains.std(ddof=1) / math.sqrt(10)
        expected = gains.mean(), gains.mean() - half, gains.mean() + half
        assert gain[:3] == pytest.approx(expected, rel=1e-5)
        assert gain.value > 0 and gain.n == 10 and gain.better == 'higher'
        assert scores[name].n == scores[f'base/{name}'].n == 11
        assert {n for n in scores if n.endswith('_gain')} == {
            f'{n}_gain' for n in (*NAMES, 'prediction_agreement')
        }
    assert scores['prediction_agreement_gain'].value == pytest.approx(1 - 1 / 3)
    assert not any(name.startswith('teacher/') for name in scores)


def test_directions():
    student, teacher, base = three_models()
    scores = evaluate(batch_of(student, teacher, [0] * 12, base=base))
    assert len(scores) == 2 * (6 * 3 + 1) + 7
    for name, score in scores.items():
        lower = 'js_divergence' in name and not name.endswith('_gain')
        assert score.better == ('lower' if lower else 'higher'), name


def test_no_base_no_gain():
    student, teacher, _ = three_models()
    scores = evaluate(batch_of(student, teacher))
    assert not any('gain' in name or '/' in name for name in scores)


def test_scores_do_not_depend_on_batches():
    student, teacher, base = three_models()
    labels = [i % 2 for i in range(12)]
    whole = evaluate(batch_of(student, teacher, labels, base=base))

    def part(where):
        models = [
            Explained(m.maps[where], m.targets[where], m.logits[where], None, None)
            for m in (student, teacher, base)
        ]
        batch = batch_of(*models[:2], labels[where], base=models[2])
        batch.index = range(12)[where]
        return batch

    # The last samples come twice, as samplers repeat them
    parts = evaluate(part(slice(5)), part(slice(5, 6)), part(slice(6, 12)), part(slice(9, 12)))
    assert list(parts) == list(whole)
    for name, score in whole.items():
        assert parts[name][:4] == pytest.approx(score[:4], rel=1e-5, abs=1e-6), name


def test_half_precision_and_autocast():
    student, teacher = random(3, 7, 7).half(), random(3, 7, 7, seed=1).half()
    expected = compare(model_of(student.float()), model_of(teacher.float()))
    with torch.autocast('cpu', torch.bfloat16):
        values = compare(model_of(student), model_of(teacher))
    for name in NAMES:
        torch.testing.assert_close(values[name], expected[name], rtol=1e-5, atol=1e-6)
