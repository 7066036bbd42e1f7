"""Faithfulness metrics: models whose truth is known, published numbers, and other libraries."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from measuring import batch_of, explained, network, rand, scores, values
from mmpretrain.structures import DataSample
from scipy.ndimage import correlate, gaussian_filter
from torch import nn

from mmkdx.functional import normalize_maps, resize_maps
from mmkdx.functional.perturbation import pixel_ranks
from mmkdx.metrics import (
    ROAD,
    AverageDrop,
    DeletionInsertion,
    FFidelity,
    Infidelity,
    PerturbationAUC,
    SingleDeletion,
)
from mmkdx.registry import METRICS

SIZE = 12
METRIC_TYPES = (
    DeletionInsertion,
    PerturbationAUC,
    AverageDrop,
    ROAD,
    SingleDeletion,
    Infidelity,
    FFidelity,
)


class Linear(nn.Module):
    """Class 0 has the logit Σ w · x + bias, class 1 the logit 0."""

    def __init__(self, weight, bias=0.0):
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, images):
        logit = (images * self.weight).sum((1, 2, 3)) + self.bias
        return torch.stack([logit, torch.zeros_like(logit)], 1)

    def explain(self, images, targets):
        sign = 1 - 2 * targets[:, None, None]
        return (images * self.weight).sum(1) * sign


def linear_batch(maps):
    """Images of which a linear model finds class 0, their label, at the pixels where w · x is large."""
    weight = rand(3, SIZE, SIZE, seed=99)
    images = rand(6, 3, SIZE, SIZE) + 0.1 * weight
    student = explained(Linear(0.1 * weight), images, maps((images * weight).sum(1)), [0] * 6)
    return batch_of(images, labels=[0] * 6, student=student)


# What is known of a linear model


@pytest.mark.parametrize(
    'metric, names',
    [
        (
            DeletionInsertion(steps=12, insertion_baseline='zero'),
            dict(deletion=-1, insertion=1),
        ),
        (PerturbationAUC(), dict(positive_auc=-1, negative_auc=1, gap=1)),
        (ROAD(), dict(road=1, road_morf=-1, road_lerf=1)),
    ],
    ids=lambda m: type(m).__name__,
)
def test_the_true_map_is_best_and_its_opposite_worst(metric, names):
    maps = dict(
        true=lambda parts: parts,
        random=lambda parts: rand(*parts.shape, seed=5),
        opposite=lambda parts: -parts,
    )
    results = {name: scores(metric, linear_batch(kind)) for name, kind in maps.items()}
    for name, sign in names.items():
        best, middle, worst = (sign * results[kind][name].value for kind in maps)
        assert best > middle + 0.02 and middle > worst + 0.02, name
        assert results['true'][name].better == ('higher' if sign > 0 else 'lower')


def test_a_map_of_what_matters_drops_less_than_one_of_what_does_not():
    weight = torch.zeros(3, SIZE, SIZE)
    weight[:, :6] = 0.1
    images = rand(4, 3, SIZE, SIZE).abs()
    model = Linear(weight, bias=-2.0)
    upper = torch.zeros(4, SIZE, SIZE)
    upper[:, :6] = 1
    zero = [0] * 4
    right, wrong = (
        scores(AverageDrop(), batch_of(images, student=explained(model, images, maps, zero)))
        for maps in (upper, 1 - upper)
    )
    assert right['average_drop'].value == pytest.approx(0, abs=1e-6)
    p = model(images).softmax(1)[:, 0]
    bias = torch.tensor(-2.0).sigmoid()
    assert wrong['average_drop'].value == pytest.approx((1 - bias / p).mean().item(), rel=1e-5)
    assert right['adcc'].value > 0.6 > wrong['adcc'].value


# Deletion and insertion


def rise(model, image, order, finish, step):
    """The curve of the causal metric of RISE, pixel by pixel."""
    start, finish = image.numpy().copy(), finish.numpy()
    curve = []
    for first in range(0, len(order) + step, step):
        probabilities = model(torch.from_numpy(start)[None]).softmax(1)[0]
        curve.append(probabilities.numpy())
        for pixel in order[first : first + step]:
            y, x = divmod(pixel, start.shape[2])
            start[:, y, x] = finish[:, y, x]
    return np.array(curve)


def test_deletion_and_insertion_are_those_of_rise():
    net, images = network(), rand(3, 3, SIZE, SIZE)
    maps = rand(3, SIZE, SIZE, seed=1)
    batch = batch_of(images, student=explained(net, images, maps))
    rows = values(DeletionInsertion(steps=9), batch)
    impulse = np.zeros((11, 11))
    impulse[5, 5] = 1
    kernel = gaussian_filter(impulse, 5)
    for i, (image, values_) in enumerate(zip(images, maps)):
        blurred = np.stack([correlate(c, kernel, mode='constant') for c in image.numpy()])
        order = np.argsort(-values_.numpy().ravel(), kind='stable')
        target = net(image[None]).argmax().item()
        with torch.no_grad():
            deletion = rise(net, image, order, torch.zeros_like(image), 16)[:, target]
            insertion = rise(net, torch.from_numpy(blurred), order, image, 16)[:, target]
        for name, curve in (('deletion', deletion), ('insertion', insertion)):
            assert len(curve) == 10
            expected = (curve.sum() - curve[0] / 2 - curve[-1] / 2) / 9
            assert rows[i][name] == pytest.approx(expected, abs=1e-5)


class Fixed:
    """A torchcam extractor that yields given maps."""

    def __init__(self, model, maps):
        self.model, self.maps = model, maps

    def __call__(self, class_idx=None, scores=None, normalized=True, **kwargs):
        return [self.maps]

    def fuse_cams(self, cams):
        return cams[0]

    def _hooks_off(self):
        return nullcontext()


@pytest.mark.parametrize('steps', [1, 7, 20, 144, 1000])
@pytest.mark.parametrize('resolution', [4, SIZE])
def test_deletion_and_insertion_equal_those_of_torchcam(steps, resolution):
    torchcam = pytest.importorskip('torchcam.metrics')
    net, images = network(), rand(5, 3, SIZE, SIZE)
    # many ties
    maps = rand(5, resolution, resolution, seed=1).round()
    targets = [0, 1, 2, 3, 4]
    theirs = torchcam.DeletionInsertionMetric(
        Fixed(net, maps), lambda logits: logits.softmax(-1), steps=steps
    )
    theirs.update(images, targets)
    batch = batch_of(images, student=explained(net, images, maps, targets))
    ours = scores(DeletionInsertion(steps=steps, insertion_baseline='zero'), batch)
    for name in ('deletion', 'insertion'):
        assert ours[name].value == pytest.approx(theirs.summary()[f'{name}_auc'], abs=1e-5)


def test_areas_of_a_model_that_hears_one_pixel():
    # p is 0.9 with that pixel and 0.5 without
    weight = torch.zeros(3, 2, 5)
    weight[0, 1, 1] = np.log(9)
    images = torch.ones(1, 3, 2, 5)
    maps = torch.tensor([[[9.0, 8, 5, 4, 3], [7, 6, 2, 1, 0]]])  # it is the fourth
    batch = batch_of(images, student=explained(Linear(weight), images, maps))
    rows = values(DeletionInsertion(steps=10, insertion_baseline='zero'), batch)
    # 0.9 three times, the step, then 0.5 six times
    assert rows[0]['deletion'] == pytest.approx(0.3 * 0.9 + 0.1 * 0.7 + 0.6 * 0.5, rel=1e-5)
    assert rows[0]['insertion'] == pytest.approx(0.3 * 0.5 + 0.1 * 0.7 + 0.6 * 0.9, rel=1e-5)
    # of 10 pixels three steps take 4, 4 and 2
    rows = values(DeletionInsertion(steps=3, insertion_baseline='zero'), batch)
    assert rows[0]['deletion'] == pytest.approx(0.4 * 0.7 + 0.6 * 0.5, rel=1e-5)


@pytest.mark.parametrize('baseline', ['zero', 'black', 'blur'])
def test_baselines(baseline):
    # everything goes in one step, so that the area is the mean of both ends
    images, model = torch.ones(1, 3, 1, 2), Linear(torch.ones(3, 1, 2))
    impulse = np.zeros((11, 11))
    impulse[5, 5] = 1
    kernel = gaussian_filter(impulse, 5)
    logit = dict(
        zero=0,
        black=6 * -1.5,
        # each pixel sees itself and the other
        blur=6 * (kernel[5, 5] + kernel[5, 6]),
    )[baseline]
    clean, zero, expected = (1 / (1 + np.exp(-x)) for x in (6, 0, logit))
    batch = batch_of(
        images,
        mean=torch.full((3,), 15.0),
        std=torch.full((3,), 10.0),
        student=explained(model, images, rand(1, 1, 2)),
    )
    metric = DeletionInsertion(steps=1, deletion_baseline=baseline, insertion_baseline='zero')
    row = values(metric, batch)[0]
    assert row['deletion'] == pytest.approx((clean + expected) / 2, rel=1e-5)
    assert row['insertion'] == pytest.approx((clean + zero) / 2, rel=1e-5)
    metric = DeletionInsertion(steps=1, insertion_baseline=baseline)
    row = values(metric, batch)[0]
    assert row['deletion'] == pytest.approx((clean + zero) / 2, rel=1e-5)
    assert row['insertion'] == pytest.approx((clean + expected) / 2, rel=1e-5)


def test_cross_values_take_the_maps_and_classes_of_the_other():
    images = rand(4, 3, SIZE, SIZE)
    nets = [network(seed=s) for s in (0, 1)]
    maps = [rand(4, size, size, seed=size) for size in (SIZE, 4)]
    targets = [[0, 1, 2, 3], [3, 2, 1, 4]]
    student, teacher = (
        explained(*x, targets=t) for *x, t in zip(nets, [images] * 2, maps, targets)
    )
    metric = DeletionInsertion(steps=6)
    batch = batch_of(images, student=student, teacher=teacher, base=student)
    rows = values(metric, batch)
    crossed = [
        values(metric, batch_of(images, student=explained(nets[i], images, maps[j], targets[j])))
        for i, j in ((0, 1), (1, 0))
    ]
    own = [
        values(metric, batch_of(images, student=explained(nets[i], images, maps[i], targets[i])))
        for i in (0, 1)
    ]
    for i in range(4):
        for name in ('deletion', 'insertion'):
            assert rows[i][name] == own[0][i][name]
            assert rows[i][f'teacher/{name}'] == own[1][i][name]
            for prefix in ('', 'base/'):
                assert rows[i][f'{prefix}cross_{name}'] == crossed[0][i][name]
                assert rows[i][f'{prefix}reverse_cross_{name}'] == crossed[1][i][name]
    assert crossed[0] != own[0]
    metric = DeletionInsertion(steps=6, cross=False)
    assert set(values(metric, batch)[0]) == {
        prefix + name for prefix in ('', 'teacher/', 'base/') for name in ('deletion', 'insertion')
    }


# The perturbation test


def toy(invert=False, mean=None, std=None, label=0):
    """One channel of 2 × 5 pixels and a model of the image before normalisation."""
    image = torch.tensor([[1, 0.8, 0.6, 0.4, 0.2], [0.9, 0.7, 0.5, 0.3, 0.1]])[None, None]
    weight = torch.tensor([[3.0, 2, 1, 0, 0], [1, 0, 0, -1, -2]])
    mean, std = (None if v is None else torch.tensor([v]) for v in (mean, std))
    normalized = image - (0 if mean is None else mean)
    normalized = normalized / (1 if std is None else std)

    def model(images):
        pixels = images * (1 if std is None else std) + (0 if mean is None else mean)
        logit = (pixels * weight).sum((1, 2, 3))
        return torch.stack([logit, torch.full_like(logit, 2)], 1)

    maps = (weight * image[0]) * (-1 if invert else 1)
    return batch_of(
        normalized, labels=[label], mean=mean, std=std, student=explained(model, normalized, maps)
    )


@pytest.mark.parametrize('mean, std', [(None, None), (0.5, None), (None, 0.3), (0.45, 0.22)])
def test_perturbation_toy_with_black_before_normalisation(mean, std):
    row = values(PerturbationAUC(), toy(mean=mean, std=std))[0]
    assert row == pytest.approx(
        dict(positive_auc=0.15, negative_auc=0.9, gap=0.75, clean_accuracy=1.0), rel=1e-5
    )
    row = values(PerturbationAUC(), toy(invert=True, mean=mean, std=std))[0]
    assert row['positive_auc'] == pytest.approx(0.9) and row['gap'] == pytest.approx(-0.75)


def test_the_map_of_the_protocol():
    raw = torch.tensor([[[0.5, 1.5], [2.5, 2.0]]])
    normalized = normalize_maps(raw)
    assert normalized.tolist() == [[[0, 0.5], [1, 0.75]]]
    grown = resize_maps(normalized, (4, 4))
    assert grown[0].tolist() == [
        [0, 0.125, 0.375, 0.5],
        [0.25, 0.328125, 0.484375, 0.5625],
        [0.75, 0.734375, 0.703125, 0.6875],
        [1, 0.9375, 0.8125, 0.75],
    ]
    # ranks need no normalisation, neither before nor after
    assert torch.equal(pixel_ranks(resize_maps(raw, (4, 4))), pixel_ranks(normalize_maps(grown)))
    peak = F.pad(torch.ones(1, 1, 1), (3, 3, 3, 3))
    assert resize_maps(peak, (224, 224)).max().item() == pytest.approx(0.968994140625)


def test_hits_are_counted_against_the_label_and_not_the_prediction():
    row = values(PerturbationAUC(), toy(label=1))[0]
    # the complement: no hit on the clean image, and eight of nine when the best pixels are gone
    assert row['clean_accuracy'] == 0
    assert row['positive_auc'] == pytest.approx(0.75) and row['negative_auc'] == 0


def test_area_is_a_trapezoid_that_is_not_divided_by_its_width():
    accuracies = [0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0]
    # Sample i is a hit as long as the accuracy of 20 samples says so
    hits = torch.tensor([[i < round(20 * a) for a in accuracies] for i in range(20)])
    images = torch.ones(20, 2, 1, 10)
    images[:, 1, 0, 9] = torch.arange(20.0)  # the pixel that stays tells the sample's number
    maps = torch.arange(10.0, 0, -1).expand(20, 1, 10)

    def numbered(copies):
        gone = (copies[:, 0, 0] == 0).sum(1)
        hit = hits[copies[:, 1, 0, 9].long(), gone].float()
        return torch.stack([hit, 1 - hit], 1)

    batch = batch_of(images, labels=[0] * 20, student=explained(numbered, images, maps))
    result = scores(PerturbationAUC(), batch)
    assert result['positive_auc'].value == pytest.approx(0.325, abs=1e-6)
    assert result['positive_auc'].value != pytest.approx(0.31667, abs=1e-3)
    assert result['clean_accuracy'].value == pytest.approx(0.8)
    assert result['relative_positive_auc'].value == pytest.approx(0.325 / (0.9 * 0.8), abs=1e-6)


def test_all_hits_have_the_area_0_9():
    images = rand(2, 3, 8, 8)
    model = Linear(torch.zeros(3, 8, 8), bias=1.0)
    batch = batch_of(images, labels=[0, 0], student=explained(model, images, rand(2, 8, 8)))
    result = scores(PerturbationAUC(), batch)
    for name in ('positive_auc', 'negative_auc'):
        assert result[name].value == pytest.approx(0.9)
        assert result[f'relative_{name}'].value == pytest.approx(1)


@pytest.mark.parametrize(
    'size, counts',
    [
        (224, [5017, 10035, 15052, 20070, 25088, 30105, 35123, 40140, 45158]),
        (10, [10, 20, 30, 40, 50, 60, 70, 80, 90]),
    ],
)
def test_how_many_pixels_turn_black(size, counts):
    images = torch.ones(1, 3, size, size)
    seen = []

    def predict(copies):
        seen.extend((copies[:, 0] == 0).flatten(1).sum(1).tolist())
        return torch.zeros(len(copies), 2)

    student = explained(lambda x: torch.zeros(len(x), 2), images, rand(1, size, size))
    student.predict = predict
    scores(PerturbationAUC(max_batch=4), batch_of(images, labels=[0], student=student))
    assert seen == counts * 2


def test_relative_areas_are_ratios_of_means():
    images = rand(60, 3, SIZE, SIZE)
    net = network(classes=3)
    labels = net(images).argmax(1)
    labels[::3] = (labels[::3] + 1) % 3
    student = explained(net, images, rand(60, SIZE, SIZE, seed=1))
    student.maps[5] = 0  # not counted
    result = scores(
        PerturbationAUC(),
        batch_of(images, labels.tolist(), student=student, teacher=student),
    )
    for name in ('positive_auc', 'negative_auc'):
        ratio = result[f'relative_{name}']
        assert ratio.value == pytest.approx(
            result[name].value / (0.9 * result['clean_accuracy'].value)
        )
        assert ratio.n == 59 and ratio.better == PerturbationAUC.better[name]
        assert result[f'teacher/relative_{name}'] == ratio


def test_the_interval_of_a_ratio_holds_it_in_95_of_100_data_sets():
    random = np.random.default_rng(0)
    metric, inside, trials = PerturbationAUC(), 0, 400
    for _ in range(trials):
        accuracy = random.random(50) < 0.7
        area = np.where(accuracy, 0.3 + 0.2 * random.random(50), 0.05)
        rows = [dict(positive_auc=a, clean_accuracy=c) for a, c in zip(area, accuracy)]
        score = metric.summarize(rows)['relative_positive_auc']
        truth = (0.7 * 0.4 + 0.3 * 0.05) / (0.9 * 0.7)
        inside += score.low < truth < score.high
    assert 0.91 < inside / trials < 0.98


@pytest.mark.parametrize('rows, n', [([(0.2, 0)] * 3, 3), ([(np.nan, np.nan)], 0)])
def test_no_ratio_without_a_hit(rows, n):
    rows = [dict(positive_auc=a, clean_accuracy=c) for a, c in rows]
    score = PerturbationAUC().summarize(rows)['relative_positive_auc']
    assert np.isnan(score[:3]).all() and score.n == n


def test_one_sample_has_a_ratio_without_an_interval():
    rows = [dict(positive_auc=0.3, clean_accuracy=1.0)]
    score = PerturbationAUC().summarize(rows)['relative_positive_auc']
    assert score.value == pytest.approx(1 / 3) and np.isnan([score.low, score.high]).all()


@pytest.mark.parametrize('sample', [dict(gt_label=1), dict(gt_label=torch.tensor([1]))], ids=str)
def test_labels_of_dicts(sample):
    batch = toy()
    batch.data_samples = [sample]
    assert values(PerturbationAUC(), batch)[0]['clean_accuracy'] == 0


@pytest.mark.parametrize(
    'samples, number',
    [((), 0), ([DataSample()], 0), ([{}], 0), ([dict(gt_label=[1, 2])], 2)],
    ids=['no samples', 'empty sample', 'empty dict', 'two labels'],
)
def test_samples_without_one_label(samples, number):
    batch = toy()
    batch.data_samples, batch.index = samples, [41]
    with pytest.raises(
        ValueError, match=f"^PerturbationAUC .* sample 41 has {number} in 'gt_label'; leave"
    ):
        PerturbationAUC().process(batch)


# Average drop


def test_average_drop_by_hand():
    # p = 0.8; what the map leaves of the image has p' = 0.8, 0.5 and 0.9
    weight = torch.zeros(3, 1, 3)
    weight[0, 0] = torch.tensor([np.log(4), np.log(9 / 4), -np.log(9 / 4)])
    images = torch.ones(3, 3, 1, 3)
    maps = torch.tensor([[[4.0, 0, 0]], [[-1, 0, -2]], [[2, 2, 0]]])
    # without ReLU the second would show the middle, and half of the first
    again = torch.stack([maps[0], maps[1], -maps[2]])
    student = explained(
        Linear(weight), images, maps, targets=[0] * 3, explain=lambda x, t: again.clone()
    )
    rows = values(AverageDrop(), batch_of(images, student=student))
    assert [rows[i]['average_drop'] for i in range(3)] == pytest.approx([0, 0.3 / 0.8, 0], abs=1e-6)
    assert [rows[i]['average_gain'] for i in range(3)] == pytest.approx([0, 0, 0.5], abs=1e-6)
    assert rows[2]['increase_in_confidence'] == 1 and rows[1]['increase_in_confidence'] == 0
    assert [rows[i]['complexity'] for i in range(3)] == pytest.approx([1 / 3, 0, 2 / 3])
    # the opposite map is 0, 0, 0 after ReLU, which has no correlation
    assert [rows[i]['coherency'] for i in range(3)] == pytest.approx([1, 0, 0], abs=1e-6)
    assert [rows[i]['adcc'] for i in range(3)] == pytest.approx([3 / (1 + 1.5 + 1), 0, 0])
    rows = values(AverageDrop(relu=False), batch_of(images, student=student))
    # maps are now [1, 0, 0], [0.5, 1, 0] and [1, 1, 0]
    assert [rows[i]['complexity'] for i in range(3)] == pytest.approx([1 / 3, 1 / 2, 2 / 3])
    assert [rows[i]['coherency'] for i in range(3)] == pytest.approx([1, 1, 0], abs=1e-6)
    odds = 2 * 9 / 4
    assert rows[1]['average_gain'] == pytest.approx((odds / (1 + odds) - 0.8) / 0.2, rel=1e-4)


def test_an_equal_confidence_is_no_increase():
    images = rand(2, 3, 4, 4)
    model = Linear(torch.zeros(3, 4, 4))
    student = explained(model, images, rand(2, 4, 4))
    row = values(AverageDrop(), batch_of(images, student=student))[0]
    assert row['increase_in_confidence'] == row['average_drop'] == row['average_gain'] == 0


@pytest.mark.parametrize('bias', [-500.0, 500.0])
def test_probabilities_of_0_and_1_are_no_division_by_zero(bias):
    images = rand(2, 3, 4, 4)
    model = Linear(torch.full((3, 4, 4), 0.01), bias)
    student = explained(model, images, rand(2, 4, 4), targets=[0, 0])
    row = values(AverageDrop(), batch_of(images, student=student))[0]
    assert row['average_drop'] == row['average_gain'] == 0


def test_average_drop_equals_that_of_torchcam():
    torchcam = pytest.importorskip('torchcam.metrics')
    net, images = network(), rand(8, 3, SIZE, SIZE)
    maps = rand(8, 4, 4, seed=1)
    normalized = maps.relu() / maps.relu().amax((1, 2), keepdim=True)
    theirs = torchcam.ClassificationMetric(Fixed(net, normalized), lambda x: x.softmax(-1))
    targets = [0, 1, 2, 3] * 2
    theirs.update(images, targets)
    ours = scores(AverageDrop(), batch_of(images, student=explained(net, images, maps, targets)))
    summary = theirs.summary()
    assert ours['average_drop'].value == pytest.approx(summary['avg_drop'], rel=1e-4)
    assert ours['increase_in_confidence'].value == pytest.approx(summary['conf_increase'])
    assert 0 < ours['increase_in_confidence'].value < 1


def test_adcc_parts_equal_those_of_grad_cam():
    arcc = pytest.importorskip('pytorch_grad_cam.metrics.arcc')
    net, images = network(), rand(6, 3, SIZE, SIZE)
    maps = rand(6, SIZE, SIZE, seed=1).abs()
    again = rand(6, SIZE, SIZE, seed=2).abs() + maps
    student = explained(net, images, maps, explain=lambda x, t: again)
    rows = values(AverageDrop(), batch_of(images, student=student))
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    phi = ((maps - low) / (high - low)).numpy()
    coherency = arcc.Coherency()(images, phi, None, net, lambda **kwargs: again.numpy())
    complexity = arcc.Complexity()(phi)
    for i, row in rows.items():
        assert row['coherency'] == pytest.approx(coherency[i], abs=1e-5)
        assert row['complexity'] == pytest.approx(complexity[i], abs=1e-5)
        expected = 3 / (1 / coherency[i] + 1 / (1 - complexity[i]) + 1 / (1 - row['average_drop']))
        assert row['adcc'] == pytest.approx(expected, abs=1e-5)


def test_coherency_explains_the_masked_image_and_the_same_class():
    seen = []

    def explain(images, targets):
        seen.append((images, targets))
        return images.mean(1)

    net, images = network(), rand(2, 3, SIZE, SIZE)
    maps = torch.zeros(2, 2, 2)
    maps[:, 0, 1] = 3
    student = explained(net, images, maps, targets=[4, 1], explain=explain)
    values(AverageDrop(), batch_of(images, student=student))
    phi = F.interpolate(maps[:, None] / 3, size=(SIZE, SIZE), mode='bilinear')
    torch.testing.assert_close(seen[0][0], images * phi)
    assert seen[0][1].tolist() == [4, 1] and len(seen) == 1


# ROAD


@pytest.mark.parametrize('resolution', [5, 10])
def test_road_equals_that_of_grad_cam(resolution, monkeypatch):
    road = pytest.importorskip('pytorch_grad_cam.metrics.road')
    targets_of = pytest.importorskip('pytorch_grad_cam.utils.model_targets')
    monkeypatch.setattr(road.NoisyLinearImputer.__init__, '__defaults__', (0.0, None))
    net, images = network(), rand(3, 3, 10, 10)
    maps = rand(3, resolution, resolution, seed=1)
    classes = [2, 0, 4]
    targets = [targets_of.ClassifierOutputSoftmaxTarget(c) for c in classes]
    grown = F.interpolate(maps[:, None], size=(10, 10), mode='bilinear')[:, 0].numpy()
    rows = values(ROAD(noise=0), batch_of(images, student=explained(net, images, maps, classes)))
    combined = road.ROADCombined()(images, grown, targets, net)
    morf = road.ROADMostRelevantFirstAverage()(images, grown, targets, net)
    lerf = road.ROADLeastRelevantFirstAverage()(images, grown, targets, net)
    clean = net(images).softmax(1)[range(3), classes].detach().numpy()
    for i in range(3):
        assert rows[i]['road'] == pytest.approx(combined[i], abs=1e-4)
        assert rows[i]['road_morf'] == pytest.approx(clean[i] + morf[i], abs=1e-4)
        assert rows[i]['road_lerf'] == pytest.approx(clean[i] + lerf[i], abs=1e-4)


def test_road_of_one_share_by_hand():
    # A ramp is restored wherever it is interrupted inside; a bright pixel is not
    images = torch.zeros(1, 3, 5, 5)
    images[0, 0, 2, 2] = 1
    weight = torch.zeros(3, 5, 5)
    weight[0, 2, 2] = np.log(9)
    maps = rand(1, 5, 5) / 10
    maps[0, 2, 2] = 3
    batch = batch_of(images, student=explained(Linear(weight), images, maps))
    row = values(ROAD(fractions=(0.04,), noise=0), batch)[0]
    assert row == pytest.approx(dict(road=0.2, road_morf=0.5, road_lerf=0.9), abs=1e-5)


def test_noise_falls_on_filled_pixels_only_and_follows_the_seed():
    images = torch.zeros(2, 3, 10, 10)
    seen = []

    def predict(copies):
        seen.append(copies)
        return torch.zeros(len(copies), 2)

    student = explained(lambda x: torch.zeros(len(x), 2), images, rand(2, 10, 10))
    student.predict = predict
    batch = batch_of(images, student=student)
    for arguments in (dict(), dict(), dict(seed=1), dict(noise=0.5), dict(noise=0)):
        values(ROAD(fractions=(0.3,), **arguments), batch)
    morf = seen[::2]
    for copies in morf[:4]:
        assert ((copies != 0).flatten(2).sum(2) == 30).all()
    assert torch.equal(morf[0], morf[1])
    assert not torch.equal(morf[0], morf[2])
    assert not torch.equal(morf[0][0][morf[0][0] != 0], morf[0][1][morf[0][1] != 0])
    torch.testing.assert_close(morf[3], 50 * morf[0])
    assert morf[0][morf[0] != 0].std().item() == pytest.approx(0.01, rel=0.2)
    assert not morf[4].any()


# What holds for all


def full_batch(index, convert=lambda logits: logits):
    """Samples of a data set of 8, with student, teacher and base model."""
    images = rand(8, 3, SIZE, SIZE)
    labels = torch.arange(8) % 5
    models = {}
    for seed, name in enumerate(('student', 'teacher', 'base')):
        net = network(seed=seed)
        models[name] = explained(
            lambda x, net=net: convert(net(x)),
            images[index],
            rand(8, 6, 6, seed=seed + 5)[index],
            explain=lambda x, t: F.avg_pool2d(x.mean(1, keepdim=True), 2)[:, 0],
        )
    return batch_of(images[index], labels[index].tolist(), index=index, **models)


def quick(metric_type, **arguments):
    """A metric with few draws."""
    return metric_type(**arguments, **(dict(draws=2) if metric_type is FFidelity else {}))


@pytest.mark.parametrize('metric_type', METRIC_TYPES)
def test_values_do_not_depend_on_the_batches(metric_type):
    whole = values(quick(metric_type), full_batch(list(range(8))))
    split = quick(metric_type, **(dict(max_batch=3) if metric_type is not AverageDrop else {}))
    scores(split, full_batch([5]), full_batch([0, 7, 2]), full_batch([1, 3, 4, 6, 5]))
    assert sorted(split.rows) == sorted(whole) == list(range(8))
    for index, row in whole.items():
        assert split.rows[index] == pytest.approx(row, abs=1e-5)
        assert all(np.isfinite(list(row.values())))


@pytest.mark.parametrize('metric_type', METRIC_TYPES)
def test_nothing_is_left_behind(metric_type):
    batch = full_batch([0, 1, 2])
    state = torch.get_rng_state()
    before = [batch.inputs.clone(), *(m.maps.clone() for m in batch.models.values())]
    metric = quick(metric_type)
    first = values(metric, batch)
    assert values(metric, batch) == first
    after = [batch.inputs, *(m.maps for m in batch.models.values())]
    assert all(map(torch.equal, before, after))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('metric_type', METRIC_TYPES)
def test_half_precision_logits_are_scored_in_fp32(metric_type, dtype):
    half = values(quick(metric_type), full_batch([0, 1], lambda logits: logits.to(dtype)))
    full = values(quick(metric_type), full_batch([0, 1], lambda logits: logits.to(dtype).float()))
    for index, row in full.items():
        assert half[index] == pytest.approx(row, abs=1e-6)


@pytest.mark.parametrize('metric_type', METRIC_TYPES)
@pytest.mark.parametrize('value', [0.0, 3.0, float('nan')])
def test_maps_that_say_nothing_are_not_counted(metric_type, value):
    batch = full_batch([0, 1, 2])
    batch.models['student'].maps[1] = value
    result = scores(metric := quick(metric_type), batch)
    for name, score in result.items():
        assert score.n == (3 if '/' in name and 'cross' not in name else 3 - ('/' not in name)), (
            name
        )
    assert all(np.isnan(v) for k, v in metric.rows[1].items() if '/' not in k)
    assert all(np.isfinite(list(metric.rows[0].values())))


@pytest.mark.parametrize('metric_type', METRIC_TYPES)
def test_every_score_says_what_is_better(metric_type):
    result = scores(quick(metric_type), full_batch([0, 1]))
    assert {name.rpartition('/')[2] for name in result} == set(metric_type.better)
    for name, score in result.items():
        assert score.better == metric_type.better[name.rpartition('/')[2]]


@pytest.mark.parametrize('metric_type', METRIC_TYPES)
def test_configs_name_the_metrics(metric_type):
    assert METRICS.get(metric_type.__name__) is metric_type


@pytest.mark.parametrize(
    'metric_type, arguments, message',
    [
        (
            DeletionInsertion,
            dict(steps=0),
            '^DeletionInsertion.steps is 0; it must be an integer of at least 1',
        ),
        (
            DeletionInsertion,
            dict(deletion_baseline='mean'),
            "^DeletionInsertion.deletion_baseline is 'mean'; it must be one of zero, black, blur",
        ),
        (DeletionInsertion, dict(insertion_baseline=0), 'insertion_baseline is 0; it must be one'),
        (
            DeletionInsertion,
            dict(max_batch=0),
            'max_batch is 0; it must be an integer of at least 1',
        ),
        (PerturbationAUC, dict(max_batch=0), 'max_batch is 0; it must be an integer of at least 1'),
        (ROAD, dict(max_batch=-1), 'max_batch is -1; it must be an integer of at least 1'),
        (ROAD, dict(fractions=()), 'ROAD.fractions is .*; it must be a list of numbers'),
        (
            ROAD,
            dict(fractions=(0.5, 1)),
            'ROAD.fractions is .*; it must be a finite number above 0 and below 1',
        ),
        (
            ROAD,
            dict(fractions=(0, 0.5)),
            'ROAD.fractions is .*; it must be a finite number above 0 and below 1',
        ),
        (ROAD, dict(noise=-0.1), 'ROAD.noise is -0.1; it must be a finite number of at least 0'),
    ],
)
def test_arguments_out_of_range(metric_type, arguments, message):
    with pytest.raises(ValueError, match=message):
        metric_type(**arguments)
