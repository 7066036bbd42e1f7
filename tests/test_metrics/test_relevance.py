"""FSS and RS: against correlations computed apart, over batches, and what is left out."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import tensor

from mmkdx.explain import PairExplanation
from mmkdx.functional.distance_correlation import (
    bias_corrected_dcor,
    biased_correlation,
    pairwise_distances,
    part_dcor,
    partial_dcor,
)
from mmkdx.functional.perturbation import keep_relevant
from mmkdx.metrics import (
    FeatureSimilarityScore,
    PairedBatch,
    PairedModel,
    RelevanceScore,
)
from mmkdx.metrics.scores import batch_score

LAYERS = ('a', 'b')
N = 8


def features(images, seed, layer):
    """Some function of images, another one for each model and layer, as a network's layer is."""
    torch.manual_seed(100 * seed + LAYERS.index(layer))
    weights = torch.randn(images[0].numel(), 7).double()
    return (images.double().flatten(1) @ weights).tanh() * 3


def mask(seed, layer):
    torch.manual_seed(7 * seed + LAYERS.index(layer))
    return torch.randn(N, 4, 4)


def model(images, seed, calls=None):
    def distances(images, names, normalize):
        if calls is not None:
            calls.append(list(names))
        found = {name: features(images, seed, name) for name in names}
        if normalize:
            found = {k: v / v.norm(dim=1, keepdim=True) for k, v in found.items()}
        return {name: pairwise_distances(value) for name, value in found.items()}

    return PairedModel(lambda spec: {name: mask(seed, name) for name in LAYERS}, distances)


def batch(number=0, teacher=True, calls=None, labels=(0, 1) * (N // 2), index=None):
    torch.manual_seed(number)
    images = torch.randn(N, 3, 8, 8) + tensor(labels)[:, None, None, None]
    names = ('student', 'base', 'teacher') if teacher else ('student', 'base')
    return PairedBatch(
        images,
        list(range(number * N, number * N + N)) if index is None else index,
        {name: model(images, seed, calls) for seed, name in enumerate(names)},
        number=number,
        label_features=torch.eye(3)[list(labels)],
        unique={name: PairExplanation(mask(3, name), mask(4, name), {}) for name in LAYERS},
    )


def seen(images, seed, layer):
    """The features of what is left of images by the model's own map."""
    return features(keep_relevant(images, mask(seed, layer), 0.5), seed, layer)


def scores(metric, *batches):
    for each in batches:
        metric.process(each)
    return metric.evaluate()


# One batch


@pytest.mark.parametrize('layer', LAYERS)
def test_similarity_of_what_each_model_sees(layer):
    one = batch()
    found = scores(FeatureSimilarityScore(), one)
    assert set(found) == {f'{m}/fss_{each}' for m in ('base', 'teacher') for each in LAYERS}
    own = seen(one.inputs, 0, layer)
    for seed, name in ((1, 'base'), (2, 'teacher')):
        expected = bias_corrected_dcor(own, seen(one.inputs, seed, layer)).item()
        assert found[f'{name}/fss_{layer}'].value == pytest.approx(expected, abs=1e-12)
        assert found[f'{name}/fss_{layer}'].better is None


@pytest.mark.parametrize('normalize', [False, True])
def test_biased_similarity(normalize):
    one = batch(teacher=False)
    metric = FeatureSimilarityScore(mask=None, estimator='biased', normalize=normalize)
    pair = [features(one.inputs, seed, 'a') for seed in (0, 1)]
    if normalize:
        pair = [each / each.norm(dim=1, keepdim=True) for each in pair]
    found = scores(metric, one)
    biased = biased_correlation(*map(pairwise_distances, pair)).item()
    assert found['base/fss_a'].value == pytest.approx(biased, abs=1e-12)


@pytest.mark.parametrize('layer', LAYERS)
def test_relevance_of_what_each_model_sees(layer):
    one = batch()
    found = scores(RelevanceScore(), one)
    labels = one.label_features
    views = [seen(one.inputs, seed, layer) for seed in range(3)]
    for prefix, view in zip(('', 'base/', 'teacher/'), views):
        expected = bias_corrected_dcor(view, labels).item()
        assert found[f'{prefix}rs_{layer}'].value == pytest.approx(expected, abs=1e-12)
    for prefix, seed, maps in (('', 0, 3), ('base/', 1, 4)):
        own, other = views[seed], views[1 - seed]
        unique = features(keep_relevant(one.inputs, mask(maps, layer), 0.5), seed, layer)
        for name, value in dict(
            rs_unique=bias_corrected_dcor(unique, labels),
            part=part_dcor(own, labels, given=other),
            partial=partial_dcor(own, labels, other),
        ).items():
            score = found[f'{prefix}{name}_{layer}']
            assert score.value == pytest.approx(value.item(), abs=1e-12), name
            assert score.better == 'higher'
    rho = 1 - bias_corrected_dcor(*views[:2]).item() ** 2
    assert found[f'rho_{layer}'].value == pytest.approx(rho, abs=1e-12)
    assert found[f'rho_{layer}'].better is None
    assert len(found) == (3 + 2 * 3 + 1) * len(LAYERS)


def test_images_as_they_are():
    one = batch()
    found = scores(RelevanceScore(mask=None), one)
    expected = bias_corrected_dcor(features(one.inputs, 0, 'a'), one.label_features).item()
    assert found['rs_a'].value == pytest.approx(expected, abs=1e-12)
    assert not any('unique' in name for name in found)


def test_images_as_the_pair_sees_them():
    one = batch()
    found = scores(RelevanceScore(mask='UniCAM'), one)
    view = features(keep_relevant(one.inputs, mask(4, 'b'), 0.5), 1, 'b')
    expected = bias_corrected_dcor(view, one.label_features).item()
    assert found['base/rs_b'].value == pytest.approx(expected, abs=1e-12)
    assert not any('teacher' in name or 'unique' in name for name in found)
    assert set(scores(FeatureSimilarityScore(mask='UniCAM'), batch())) == {
        'base/fss_a',
        'base/fss_b',
    }


def test_multiplied_images():
    one = batch(teacher=False)
    one.mean, one.std = tensor([10.0, 20.0, 30.0]), tensor([2.0, 4.0, 5.0])
    black = -(one.mean / one.std)[:, None, None]
    shown = torch.nn.functional.interpolate(
        mask(0, 'a')[:, None], (8, 8), mode='bilinear', align_corners=False
    )[:, 0].relu()
    shown = (shown - shown.amin((1, 2), True)) / (
        shown.amax((1, 2), True) - shown.amin((1, 2), True)
    )
    view = features(black + (one.inputs - black) * shown[:, None], 0, 'a')
    found = scores(RelevanceScore(perturbation='multiply'), one)
    expected = bias_corrected_dcor(view, one.label_features).item()
    assert found['rs_a'].value == pytest.approx(expected, abs=1e-6)


def test_metrics_with_one_mask_share_their_forwards():
    calls = []
    one = batch(teacher=False, calls=calls)
    for metric in (FeatureSimilarityScore(), RelevanceScore()):
        metric.process(one)
    # two layers of two models by their own maps, and by those of the pair
    assert len(calls) == 8


# Over batches


def test_the_mean_over_batches_and_its_error():
    batches = [batch(number, teacher=False) for number in range(4)]
    found = scores(RelevanceScore(), *batches)
    values = [
        bias_corrected_dcor(seen(each.inputs, 0, 'a'), each.label_features).item()
        for each in batches
    ]
    score = found['rs_a']
    assert score.value == pytest.approx(np.mean(values), abs=1e-12)
    assert score.error == pytest.approx(stats.sem(values), abs=1e-12)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (score.low, score.high) == (pytest.approx(low), pytest.approx(high))
    assert (score.n, score.batches) == (32, 4)
    # A mean of batches is not the score of all at once
    whole = bias_corrected_dcor(
        torch.cat([seen(each.inputs, 0, 'a') for each in batches]),
        torch.cat([each.label_features for each in batches]),
    )
    assert abs(whole.item() - score.value) > 1e-3


def test_one_batch_has_the_error_of_independent_features():
    score = batch_score([0.25], [32])
    assert score.error == pytest.approx(math.sqrt(2 / (32 * 29)))
    assert score.high - score.value == pytest.approx(1.959964 * score.error)
    assert (score.n, score.batches) == (32, 1)


@pytest.mark.parametrize(
    'labels', [(0,) * N, (0,) * (N - 1) + (1,)], ids=['one class', 'one image of another']
)
def test_batches_that_say_nothing_do_not_count(labels):
    found = scores(RelevanceScore(), batch(0), batch(1, labels=labels), batch(2))
    values = [scores(RelevanceScore(), batch(i))['rs_a'].value for i in (0, 2)]
    assert found['rs_a'].value == pytest.approx(np.mean(values), abs=1e-12)
    assert (found['rs_a'].n, found['rs_a'].batches) == (2 * N, 2)
    # what needs no labels counts all
    assert found['rho_a'].batches == 3


def test_features_that_are_not_finite_do_not_count():
    spoiled = batch(1)
    spoiled.inputs[2, 0, 0, 0] = torch.nan
    metric = FeatureSimilarityScore(mask=None)
    found = scores(metric, batch(0), spoiled)
    assert found['base/fss_a'].batches == 1 and math.isfinite(found['base/fss_a'].value)
    only = scores(FeatureSimilarityScore(mask=None), spoiled)['base/fss_a']
    assert math.isnan(only.value) and (only.n, only.batches) == (0, 0)


def test_a_student_that_is_the_base_has_no_part():
    one = batch(teacher=False)
    one.models['base'] = one.models['student']
    found = scores(RelevanceScore(), one)
    assert found['rho_a'].value == pytest.approx(0, abs=1e-12)
    for name in ('part_a', 'partial_a', 'base/part_a'):
        assert math.isnan(found[name].value) and found[name].batches == 0


def test_a_batch_that_two_ranks_hold_counts_once():
    one = scores(RelevanceScore(), batch(0), batch(0))
    assert one['rs_a'].batches == 1


def test_a_name_in_front():
    metric = RelevanceScore()
    metric.name = 'raw'
    found = scores(metric, batch())
    assert {'raw_rs_a', 'base/raw_rs_a', 'teacher/raw_rs_a'} <= set(found)


# What is refused


def test_an_image_twice_in_a_batch():
    twice = batch(3, index=[0, 1, 2, 3, 4, 5, 6, 0])
    with pytest.raises(ValueError, match='RelevanceScore: an image is twice in batch 3'):
        RelevanceScore().process(twice)


@pytest.mark.parametrize(
    'kind, settings, message',
    [
        (
            RelevanceScore,
            dict(perturbation='none'),
            "RelevanceScore.perturbation is 'none'; it must",
        ),
        (
            RelevanceScore,
            dict(keep=0),
            'RelevanceScore.keep is 0; it must be a finite number above 0',
        ),
        (FeatureSimilarityScore, dict(keep=1.5), 'FeatureSimilarityScore.keep is 1.5'),
        (
            FeatureSimilarityScore,
            dict(estimator='v'),
            "FeatureSimilarityScore.estimator is 'v'; it must be one of unbiased, biased",
        ),
    ],
)
def test_bad_settings(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(**settings)
