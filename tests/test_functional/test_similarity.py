"""Similarities of maps: SciPy and scikit-image as references, and what must hold for any maps."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial.distance import cosine, jensenshannon

from mmkdx.functional.similarity import (
    average_ranks,
    cosine_similarity,
    jensen_shannon_divergence,
    pearson_correlation,
    spearman_correlation,
    structural_similarity,
    top_iou,
)

ALL = [
    cosine_similarity,
    pearson_correlation,
    spearman_correlation,
    structural_similarity,
    jensen_shannon_divergence,
    top_iou,
]


def maps(*shape, seed=0, ties=False, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(shape, generator=generator, dtype=torch.float64)
    if ties:  # like maps after ReLU: many zeros, and few distinct values
        values = ((values - 0.5).relu() * 8).round() / 4
    return values.to(dtype)


def references():
    def ssim(x, y):
        metrics = pytest.importorskip('skimage.metrics')
        return metrics.structural_similarity(x, y, data_range=1)

    return [
        (cosine_similarity, lambda x, y: 1 - cosine(x.ravel(), y.ravel())),
        (pearson_correlation, lambda x, y: stats.pearsonr(x.ravel(), y.ravel())[0]),
        (spearman_correlation, lambda x, y: stats.spearmanr(x.ravel(), y.ravel())[0]),
        (structural_similarity, ssim),
        (jensen_shannon_divergence, lambda x, y: jensenshannon(x.ravel(), y.ravel()) ** 2),
    ]


@pytest.mark.parametrize('ties', [False, True])
@pytest.mark.parametrize('shape', [(7, 7), (9, 14), (20, 8)])
@pytest.mark.parametrize('function, reference', references(), ids=lambda f: f.__name__)
def test_references(function, reference, shape, ties):
    first, second = maps(5, *shape, ties=ties), maps(5, *shape, seed=1, ties=ties)
    second = 0.6 * first + 0.4 * second if function is not spearman_correlation else second
    expected = [reference(x, y) for x, y in zip(first.numpy(), second.numpy())]
    values = function(first, second)
    assert values.shape == (5,)
    np.testing.assert_allclose(values.numpy(), expected, rtol=0, atol=1e-12)
    # and in fp32 to the precision that scores are read with
    values = function(first.float(), second.float())
    np.testing.assert_allclose(values.numpy(), expected, rtol=0, atol=2e-5)


def test_average_ranks():
    values = torch.tensor([[3.0, 1, 3, 2, 3, -1], [0, -0.0, 0, 0, 0, 0], [5, 4, 3, 2, 1, 0]])
    expected = [[5, 2, 5, 3, 5, 1], [3.5] * 6, [6, 5, 4, 3, 2, 1]]
    assert average_ranks(values).tolist() == expected
    large = maps(3, 5000, ties=True)
    assert (average_ranks(large).numpy() == stats.rankdata(large.numpy(), axis=1)).all()
    assert average_ranks(torch.tensor([[7.0]])).tolist() == [[1]]


def test_top_iou_by_hand():
    first = torch.arange(20.0).view(1, 4, 5)  # the top are 19 and 18
    assert top_iou(first, first).tolist() == [1]
    assert top_iou(first, -first).tolist() == [0]
    second = first.clone()
    second[0, 0, 0] = 30  # the top is now 0 and 19: one of three
    assert top_iou(first, second).item() == pytest.approx(1 / 3)
    # a tenth is rounded up: 3 of 21 positions, and 1 of 9
    first = torch.arange(21.0).view(1, 3, 7)
    second = first.clone()
    second[0, 0, 0] = 30
    assert top_iou(first, second).item() == pytest.approx(2 / 4)
    assert top_iou(*[torch.arange(9.0).view(1, 3, 3)] * 2).tolist() == [1]


def test_ties_at_the_lowest_of_the_top_all_belong():
    first = torch.zeros(2, 10, 10)
    first[0, 3, :6] = 1  # fewer than 10 positive positions: zeros tie, all 100 belong
    first[1, 3, :] = first[1, 4, :] = 1  # twenty tie
    second = torch.zeros(2, 10, 10)
    second[:, 4, :] = torch.arange(1.0, 11)
    assert top_iou(first, second).tolist() == [pytest.approx(0.1), 0.5]
    flipped = [maps.flip(1, 2) for maps in (first, second)]
    assert top_iou(*flipped).tolist() == [pytest.approx(0.1), 0.5]


@pytest.mark.parametrize('function', ALL)
def test_pairs_do_not_meet_and_either_order_is_the_same(function):
    first, second = maps(4, 9, 11, ties=True), maps(4, 9, 11, seed=1, ties=True)
    values = function(first, second)
    assert len(set(values.tolist())) > 1
    alone = torch.cat([function(first[i : i + 1], second[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(alone, values, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(function(second, first), values, rtol=1e-12, atol=1e-14)
    flipped = function(first.flip(1, 2), second.flip(1, 2))
    torch.testing.assert_close(flipped, values, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize('function', ALL)
def test_a_map_is_most_like_itself(function):
    first = maps(3, 16, 16, dtype=torch.float32)
    best = 0 if function is jensen_shannon_divergence else 1
    torch.testing.assert_close(function(first, first), torch.full((3,), float(best)))


def test_extremes():
    first = torch.zeros(1, 8, 8)
    second = torch.zeros(1, 8, 8)
    first[0, 1, 1], second[0, 6, 6] = 3, 5
    assert cosine_similarity(first, second).item() == 0
    assert jensen_shannon_divergence(first, second).item() == pytest.approx(math.log(2))
    ramp = torch.arange(64.0).view(1, 8, 8)
    for function in (cosine_similarity, pearson_correlation, spearman_correlation):
        assert function(ramp, -ramp).item() == pytest.approx(-1)
    # a monotone change leaves ranks alone
    assert spearman_correlation(ramp, ramp.square()).item() == pytest.approx(1)
    assert pearson_correlation(ramp, ramp.square()).item() < 0.98


@pytest.mark.parametrize('scale', [1e-12, 1e12])
@pytest.mark.parametrize('function', [f for f in ALL if f is not structural_similarity])
def test_scale_does_not_matter(function, scale):
    first, second = (maps(3, 9, 9, seed=seed, dtype=torch.float32) for seed in (0, 1))
    expected = function(first, second)
    torch.testing.assert_close(function(first * scale, second), expected, rtol=1e-5, atol=1e-6)


def test_nearby_distributions_do_not_cancel_in_fp32():
    first = maps(1, 224, 224) + 1
    second = first * (1 + 1e-3 * (maps(1, 224, 224, seed=1) - 0.5))
    expected = jensen_shannon_divergence(first, second).item()
    assert 0 < expected < 1e-7
    value = jensen_shannon_divergence(first.float(), second.float()).item()
    assert value == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize('function', [cosine_similarity, jensen_shannon_divergence])
def test_a_zero_map_has_no_value(function):
    first, second = maps(2, 7, 7), maps(2, 7, 7, seed=1)
    first[0] = 0
    values = function(first, second)
    assert values.isnan().tolist() == [True, False]
    assert function(second, first).isnan().tolist() == [True, False]


@pytest.mark.parametrize('function', ALL)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_fp32(function, dtype):
    first, second = maps(2, 32, 32, dtype=dtype), maps(2, 32, 32, seed=1, dtype=dtype)
    values = function(first, second)
    assert values.dtype == torch.float32
    expected = function(first.double(), second.double()).float()
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5)


def test_structural_similarity_of_small_maps():
    with pytest.raises(ValueError, match='windows of 7x7 and the maps have only 9x6 positions'):
        structural_similarity(torch.rand(2, 9, 6), torch.rand(2, 9, 6))
