"""Maps and regions: SciPy, scikit-learn and brute force as references."""

import itertools

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.metrics import average_precision_score

from mmkdx.functional.segmentation import average_precision, dilate, rank_accuracy


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize('radius', [0, 0.7, 1, 1.01, 1.5, 2, 2.24, 4.29, 15, 40])
def test_dilation_by_distance(radius):
    regions = random(3, 40, 33) > 0.995
    regions[2] = False
    regions[2, 0, 0] = True
    grown = dilate(regions, radius)
    for region, result in zip(regions.numpy(), grown.numpy()):
        distance = ndimage.distance_transform_edt(~region)
        assert (result == ((distance < radius) | region)).all()
    assert dilate(torch.zeros(1, 5, 5, dtype=torch.bool), radius).sum() == 0


def test_the_disc_is_open():
    region = torch.zeros(1, 40, 40, dtype=torch.bool)
    region[0, 20, 20] = True
    grown = dilate(region, 15)
    assert grown[0, 20, 34] and not grown[0, 20, 35]
    assert not grown[0, 20 + 9, 20 + 12]  # 9² + 12² = 15²


@pytest.mark.parametrize('ignored', [False, True])
@pytest.mark.parametrize('levels', [None, 2, 7])
def test_average_precision(levels, ignored):
    scores = random(6, 300)
    if levels is not None:
        scores = (scores * levels).round()
    labels = random(6, 300, seed=1) > torch.linspace(0.1, 0.95, 6)[:, None]
    kept = random(6, 300, seed=2) > (0.3 if ignored else -1)
    labels &= kept
    expected = [
        average_precision_score(label[keep], score[keep])
        for score, label, keep in zip(scores.numpy(), labels.numpy(), kept.numpy())
    ]
    np.testing.assert_allclose(
        average_precision(scores, labels, kept).numpy(), expected, atol=1e-12
    )
    values = average_precision(scores.float(), labels, kept)
    np.testing.assert_allclose(values.numpy(), expected, atol=1e-5)


def test_ignored_first_scores_do_no_harm():
    scores, kept = torch.tensor([[9.0, 3, 2, 1]]), torch.tensor([[False, True, True, True]])
    labels = torch.tensor([[False, False, True, False]])
    assert average_precision(scores, labels, kept).item() == 0.5


def test_average_precision_without_positives():
    nothing = torch.zeros(1, 4, dtype=torch.bool)
    assert average_precision(torch.rand(1, 4), nothing, ~nothing).isnan().all()
    assert average_precision(torch.rand(1, 1), ~nothing[:, :1], ~nothing[:, :1]).item() == 1


def test_rank_accuracy_by_hand():
    maps = torch.tensor([[[9.0, 8, 7], [6, 5, 4], [3, 2, 1]]])
    region = torch.tensor([[[1, 0, 1], [0, 1, 0], [0, 0, 0]]]).bool()
    kept = torch.ones_like(region)
    assert rank_accuracy(maps, region, kept).item() == pytest.approx(2 / 3)
    assert rank_accuracy(-maps, region, kept).item() == 0
    kept[0, 0, 1] = False  # now 9, 7 and 6 are the highest
    assert rank_accuracy(maps, region, kept).item() == pytest.approx(2 / 3)
    kept[0, 1, 0] = False
    assert rank_accuracy(maps, region, kept).item() == 1
    assert rank_accuracy(maps - 10, region, kept).item() == 1
    assert rank_accuracy(maps, region & False, kept).isnan().all()


def test_rank_accuracy_averages_over_ties():
    values = torch.tensor([3.0, 2, 2, 2, 1, 2])
    region = torch.tensor([True, True, False, True, True, False])
    # 3 is in, and three of the four twos fill the places
    sets = [{0, *rest} for rest in itertools.combinations([1, 2, 3, 5], 3)]
    expected = np.mean([len(chosen & {0, 1, 3, 4}) / 4 for chosen in sets])
    kept = torch.ones(1, 2, 3, dtype=torch.bool)
    result = rank_accuracy(values.view(1, 2, 3), region.view(1, 2, 3), kept)
    assert result.item() == pytest.approx(expected)


def test_a_constant_map_has_the_rank_accuracy_of_chance():
    region, kept = random(4, 9, 9) > 0.7, random(4, 9, 9, seed=1) > 0.2
    region &= kept
    chance = region.sum((1, 2)) / kept.sum((1, 2))
    torch.testing.assert_close(rank_accuracy(torch.ones(4, 9, 9), region, kept), chance)


def test_half_precision():
    maps = random(2, 9, 9).half()
    region = random(2, 9, 9, seed=1) > 0.5
    kept = torch.ones_like(region)
    expected = rank_accuracy(maps.double(), region, kept)
    torch.testing.assert_close(rank_accuracy(maps, region, kept), expected)
    arguments = region.flatten(1), kept.flatten(1)
    values = average_precision(maps.flatten(1), *arguments)
    assert values.dtype == torch.float32
    expected = average_precision(maps.double().flatten(1), *arguments)
    torch.testing.assert_close(values.double(), expected, rtol=1e-5, atol=0)
