"""Parts that prototypes cover, and what is measured by them, beside loops."""

import math

import numpy as np
import pytest
import torch

from mmkdx.functional.prototype_parts import (
    consistency,
    covered_parts_from_label_map,
    covered_parts_from_points,
    purity,
    region_boxes,
    stability,
)


def booleans(seed, *shape, share=0.5):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator) < share


def scene(seed, images=9, prototypes=7, parts=4):
    """Which parts are covered and shown, whose images count, and distances."""
    shown = booleans(seed, images, parts, share=0.7)
    covered = booleans(seed + 1000, images, prototypes, parts) & shown[:, None]
    own = booleans(seed + 2000, images, prototypes)
    distances = torch.rand(images, prototypes, generator=torch.Generator().manual_seed(seed))
    return covered, shown, own, distances


# Regions


@pytest.mark.parametrize(
    'cell, side, box',
    [
        (0, 72, [0, 52, 0, 52]),  # the centre is at 16
        (24, 72, [76, 148, 76, 148]),
        (48, 72, [172, 224, 172, 224]),
        (8, 32, [32, 64, 32, 64]),
        (2, 72, [0, 52, 44, 116]),
        (24, 1, [111, 112, 111, 112]),
        (24, 1000, [0, 224, 0, 224]),
    ],
)
def test_boxes(cell, side, box):
    boxes = region_boxes(torch.tensor([[cell]]), (7, 7), (224, 224), side)
    assert boxes.tolist() == [[box]] and boxes.dtype == torch.int64


@pytest.mark.parametrize('side', [10, 15])
def test_boxes_of_grids_that_are_not_square(side):
    cells = torch.arange(15, dtype=torch.int16).view(3, 5)
    boxes = region_boxes(cells, (3, 5), (31, 100), side)
    for row in range(3):
        for column in range(5):
            y = math.floor((row + 0.5) * 31 / 3 - side / 2)
            x = math.floor((column + 0.5) * 100 / 5 - side / 2)
            expected = [max(y, 0), min(y + side, 31), max(x, 0), min(x + side, 100)]
            assert boxes[row, column].tolist() == expected


def test_boxes_have_72_pixels_by_default():
    assert region_boxes(torch.tensor([24]), (7, 7), (224, 224)).tolist() == [[76, 148, 76, 148]]


# Coverage


@pytest.mark.parametrize(
    'x, y, visible, covered, shown',
    [
        (20, 10, True, True, True),
        (39.9, 29.9, True, True, True),
        (40, 20, True, False, True),  # the box ends before its last number
        (30, 30, True, False, True),
        (19.9, 15, True, False, True),
        (30, 9.9, True, False, True),
        (15, 35, True, False, True),  # in the box if x were y
        (30, 20, False, False, False),
        (-1, 20, True, False, False),
        (30, -1, True, False, False),
        (60, 20, True, False, False),  # the image has 60 columns
        (30, 50, True, False, False),
        (59, 49, True, False, True),
    ],
)
def test_key_points(x, y, visible, covered, shown):
    boxes = torch.tensor([[[10, 30, 20, 40]]])
    found = covered_parts_from_points(
        torch.tensor([[[x, y]]], dtype=torch.float32), torch.tensor([[visible]]), boxes, (50, 60)
    )
    assert [each.tolist() for each in found] == [[[[covered]]], [[shown]]]


def test_key_points_out_of_the_image_are_never_covered():
    boxes = torch.tensor([[[-10, 30, -10, 30]]])  # not clipped
    points = torch.tensor([[[-5.0, 5.0], [5.0, 5.0]]])
    covered, shown = covered_parts_from_points(points, torch.ones(1, 2), boxes, (50, 50))
    assert covered.tolist() == [[[False, True]]] and shown.tolist() == [[False, True]]


@pytest.mark.parametrize('seed', range(5))
def test_key_points_of_batches(seed):
    rng = np.random.default_rng(seed)
    points = torch.tensor(rng.integers(0, 24, (5, 4, 2)))
    visible = booleans(seed, 5, 4)
    boxes = region_boxes(torch.tensor(rng.integers(0, 9, (5, 6))), (3, 3), (24, 24), 12)
    covered, shown = covered_parts_from_points(points, visible, boxes, (24, 24))
    assert torch.equal(shown, visible)
    for n in range(5):
        for p in range(6):
            y0, y1, x0, x1 = boxes[n, p].tolist()
            expected = [
                seen and y0 <= y < y1 and x0 <= x < x1
                for (x, y), seen in zip(points[n].tolist(), visible[n].tolist())
            ]
            assert covered[n, p].tolist() == expected


def test_half_of_a_part_is_enough():
    label_map = torch.zeros(1, 8, 8, dtype=torch.uint8)
    label_map[0, 2:4, :4] = 5  # 8 pixels
    label_map[0, 6, 6] = 7
    boxes = torch.tensor([[[0, 8, 0, 2], [0, 8, 0, 1], [0, 3, 0, 4], [2, 3, 1, 4], [6, 7, 6, 7]]])
    covered, shown = covered_parts_from_label_map(label_map, [7, 5, 3], boxes)
    assert covered[0].tolist() == [
        [False, True, False],
        [False, False, False],
        [False, True, False],
        [False, False, False],
        [True, False, False],
    ]
    assert shown.tolist() == [[True, True, False]]


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('dtype', [torch.uint8, torch.int64])
def test_label_maps_of_batches(seed, dtype):
    rng = np.random.default_rng(seed)
    maps = torch.tensor(rng.integers(0, 4, (3, 10, 14)).repeat(2, 1).repeat(2, 2)).to(dtype)
    maps[1][maps[1] == 2] = 0
    boxes = region_boxes(torch.tensor(rng.integers(0, 15, (3, 6))), (3, 5), (20, 28), 17)
    covered, shown = covered_parts_from_label_map(maps, [2, 3], boxes)
    assert shown.tolist() == [[True, True], [False, True], [True, True]]
    for n in range(3):
        for p in range(6):
            y0, y1, x0, x1 = boxes[n, p].tolist()
            for k, label in enumerate((2, 3)):
                mask = maps[n] == label
                expected = mask.any() and mask[y0:y1, x0:x1].sum() >= mask.sum() / 2
                assert covered[n, p, k] == expected


def test_a_mask_of_one_pixel_is_a_key_point():
    rng = np.random.default_rng(0)
    points = torch.tensor(rng.integers(0, 24, (20, 1, 2)))
    maps = torch.zeros(20, 24, 24, dtype=torch.uint8)
    maps[range(20), points[:, 0, 1], points[:, 0, 0]] = 1
    boxes = region_boxes(torch.tensor(rng.integers(0, 9, (20, 6))), (3, 3), (24, 24), 10)
    by_points = covered_parts_from_points(points, torch.ones(20, 1), boxes, (24, 24))
    by_map = covered_parts_from_label_map(maps, [1], boxes)
    assert all(torch.equal(a, b) for a, b in zip(by_points, by_map))
    assert 0 < by_map[0].float().mean() < 1


# Purity


def test_purity_by_hand():
    # two prototypes, two parts, four images; the last is the farthest and does not count
    distances = torch.tensor([[0.1, 0.3], [0.2, 0.2], [0.3, 0.1], [0.9, 0.9]])
    shown = torch.tensor([[1, 1], [1, 0], [1, 1], [1, 1]]).bool()
    covered = torch.zeros(4, 2, 2, dtype=torch.bool)
    covered[0, 0] = torch.tensor([True, True])
    covered[2, 0, 0] = True
    covered[2, 1, 1] = True
    covered[3] = True
    # first: 2 of 3 against 1 of 2; second: 0 of 3 against 1 of 2, as one image does not show it
    assert purity(distances, covered, shown, 3).tolist() == pytest.approx([2 / 3, 1 / 2])
    assert purity(distances, covered, shown, 1).tolist() == [1, 1]
    assert purity(distances, covered, shown).tolist() == pytest.approx([3 / 4, 2 / 3])


def test_purity_of_the_nearest_ten():
    shown = torch.ones(12, 1, dtype=torch.bool)
    covered = torch.arange(12)[:, None, None] < 5
    distances = torch.arange(12.0)[:, None]
    assert purity(distances, covered, shown).tolist() == [0.5]
    assert purity(-distances, covered, shown).tolist() == pytest.approx([0.3])


@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize('k', [1, 3, 9, 20])
def test_purity_of_random_scenes(seed, k):
    covered, shown, _, distances = scene(seed)
    expected = []
    for p in range(covered.shape[1]):
        nearest = distances[:, p].argsort()[:k].tolist()
        shares = [0]
        for part in range(covered.shape[2]):
            hits = [covered[i, p, part].item() for i in nearest if shown[i, part]]
            shares.append(np.mean(hits) if hits else 0)
        expected.append(max(shares))
    assert purity(distances, covered, shown, k).tolist() == pytest.approx(expected, abs=1e-6)


def test_purity_without_parts_is_0():
    values = purity(torch.rand(4, 3), torch.zeros(4, 3, 2).bool(), torch.zeros(4, 2).bool())
    assert values.tolist() == [0, 0, 0]


# Consistency and stability


@pytest.mark.parametrize('images', [5, 10, 15, 50])
def test_four_of_five_are_enough(images):
    shown = torch.ones(images, 1, dtype=torch.bool)
    own = torch.ones(images, 2, dtype=torch.bool)
    enough = images * 4 // 5
    covered = torch.arange(images)[:, None, None] < torch.tensor([[enough], [enough - 1]])
    assert consistency(covered, shown, own).tolist() == [1, 0]


@pytest.mark.parametrize('threshold', [0.1, 0.5, 0.8, 1])
@pytest.mark.parametrize('seed', range(6))
def test_consistency_of_random_scenes(seed, threshold):
    covered, shown, own, _ = scene(seed)
    own[:, 3] = False
    expected = []
    for p in range(7):
        shares = [0]
        for part in range(4):
            counted = own[:, p] & shown[:, part]
            if counted.any():
                shares.append(covered[counted, p, part].double().mean().item())
        expected.append(float(max(shares) >= threshold))
    expected[3] = math.nan
    values = consistency(covered, shown, own, threshold)
    assert values.tolist() == pytest.approx(expected, nan_ok=True)


def test_images_of_other_classes_do_not_count():
    covered, shown, own, _ = scene(0)
    expected = consistency(covered, shown, own), stability(covered, ~covered, own)
    flipped = torch.where(own[..., None], covered, ~covered & shown[:, None])
    noisy = torch.where(own[..., None], ~covered, covered)
    assert torch.equal(consistency(flipped, shown, own), expected[0])
    assert torch.equal(stability(covered, noisy, own), expected[1])
    assert 0 < expected[0].mean() < 1 and expected[1].tolist() == [0] * 7


def test_a_part_that_is_never_shown_does_not_make_consistent():
    covered = torch.zeros(4, 1, 2, dtype=torch.bool)
    shown = torch.tensor([[True, False]] * 4)
    own = torch.ones(4, 1, dtype=torch.bool)
    assert consistency(covered, shown, own).tolist() == [0]
    assert consistency(covered, shown & False, own).tolist() == [0]


def test_stability_by_hand():
    covered = torch.tensor([[[1, 0], [0, 0]], [[1, 1], [0, 0]], [[0, 0], [1, 0]]]).bool()
    noisy = torch.tensor([[[1, 0], [0, 1]], [[1, 0], [0, 0]], [[0, 0], [0, 1]]]).bool()
    own = torch.ones(3, 2, dtype=torch.bool)
    assert stability(covered, noisy, own).tolist() == pytest.approx([2 / 3, 1 / 3])
    assert stability(covered, covered, own).tolist() == [1, 1]
    own[1, 0] = own[:, 1] = False
    assert stability(covered, noisy, own).tolist() == pytest.approx([1, math.nan], nan_ok=True)


# Errors

COVERED, SHOWN, OWN, DISTANCES = scene(0)


@pytest.mark.parametrize(
    'function, message',
    [
        (lambda: region_boxes(torch.tensor([0]), (7, 7), (224, 224), 0), 'side is 0'),
        (
            lambda: region_boxes(torch.tensor([3, 49]), (7, 7), (224, 224)),
            'cells range from 3 to 49; a grid of 7x7 has 0 to 48',
        ),
        (
            lambda: region_boxes(torch.tensor([-1, 8]), (2, 7), (224, 224)),
            'cells range from -1 to 8; a grid of 2x7 has 0 to 13',
        ),
        (
            lambda: covered_parts_from_label_map(
                torch.zeros(1, 8, 8), [1], torch.tensor([[[0, 8, 0, 9]]])
            ),
            'boxes reach row 8 and column 9; label_maps have only 8x8 pixels',
        ),
        (
            lambda: covered_parts_from_label_map(
                torch.zeros(1, 8, 8), [1], torch.tensor([[[0, 9, 0, 8]]])
            ),
            'boxes reach row 9 and column 8',
        ),
        (
            lambda: covered_parts_from_label_map(
                torch.zeros(1, 8, 8), [], torch.zeros(1, 1, 4).long()
            ),
            'parts is empty',
        ),
        (
            lambda: purity(DISTANCES, COVERED, SHOWN, 0),
            'k is 0; it must be an integer of at least 1',
        ),
        (
            lambda: purity(DISTANCES[1:], COVERED, SHOWN),
            r'distances has the shape \(8, 7\); with covered of \(9, 7, 4\) it must be \(9, 7\)',
        ),
        (lambda: purity(DISTANCES, COVERED, SHOWN[:, 1:]), r'shown has .* must be \(9, 4\)'),
        (
            lambda: consistency(COVERED, SHOWN, OWN, 0),
            'threshold is 0; it must be a finite number above 0 and of at most 1',
        ),
        (lambda: consistency(COVERED, SHOWN, OWN, 1.5), 'threshold is 1.5'),
        (lambda: consistency(COVERED, SHOWN, OWN[:, 1:]), r'own has the shape \(9, 6\)'),
        (lambda: consistency(COVERED, SHOWN[1:], OWN), r'shown has the shape \(8, 4\)'),
        (lambda: stability(COVERED, COVERED[1:], OWN), r'noisy has .* must be \(9, 7, 4\)'),
        (lambda: stability(COVERED, COVERED, OWN[1:]), r'own has the shape \(8, 7\)'),
        (
            lambda: stability(COVERED[:0], COVERED[:0], OWN[:0]),
            r'covered has the shape \(0, 7, 4\); it must be \(images, prototypes, parts\)',
        ),
        (lambda: purity(DISTANCES, COVERED[..., 0], SHOWN), r'covered has the shape \(9, 7\)'),
    ],
)
def test_what_does_not_fit(function, message):
    with pytest.raises(ValueError, match=message):
        function()
