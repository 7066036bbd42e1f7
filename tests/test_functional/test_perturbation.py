"""Ranks, RISE's blur and linear imputation, against exact solutions and the public definitions."""

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate, gaussian_filter

from mmkdx.functional.perturbation import (
    blur,
    keep_relevant,
    linear_imputation,
    pixel_ranks,
    sample_generators,
)


def images(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def holes(*shape, seed=0, share=0.5):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


# Ranks


def test_the_largest_value_has_rank_0_and_ties_are_in_reading_order():
    maps = torch.tensor([[[1.0, 5.0], [5.0, -2.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert pixel_ranks(maps).tolist() == [[[2, 0], [1, 3]], [[0, 1], [2, 3]]]


def test_ranks_of_many_ties_are_stable():
    maps = torch.randint(0, 5, (3, 40, 30), generator=torch.Generator().manual_seed(0))
    expected = [np.argsort(np.argsort(-m.ravel(), kind='stable')) for m in maps.numpy()]
    assert (pixel_ranks(maps.float()).flatten(1).numpy() == expected).all()


# RISE's blur


@pytest.mark.parametrize('size', [(16, 20), (5, 7)], ids=str)
def test_blur_is_the_kernel_of_rise_with_zeros_around(size):
    given = images(2, 3, *size)
    impulse = np.zeros((11, 11))
    impulse[5, 5] = 1
    kernel = gaussian_filter(impulse, 5)
    expected = [[correlate(c.numpy(), kernel, mode='constant') for c in image] for image in given]
    np.testing.assert_allclose(blur(given).numpy(), expected, atol=1e-6)


def test_blur_keeps_a_plain_image_but_for_its_border():
    plain = blur(torch.ones(1, 3, 21, 21))
    torch.testing.assert_close(plain[..., 5:-5, 5:-5], torch.ones(1, 3, 11, 11))
    assert plain[0, 0, 0, 0] < 0.5


def test_blur_is_not_rounded_under_autocast():
    given = images(1, 3, 12, 12)
    with torch.autocast('cpu', torch.bfloat16):
        result = blur(given)
    assert result.dtype == torch.float32
    assert torch.equal(result, blur(given))


# Linear imputation


def test_a_single_pixel_is_the_weighted_mean_of_its_neighbours():
    values = torch.tensor([[1.0, 2.0, 4.0], [8.0, 100.0, 16.0], [32.0, 64.0, 128.0]])
    missing = torch.zeros(1, 3, 3, dtype=torch.bool)
    missing[0, 1, 1] = True
    filled = linear_imputation(values[None, None], missing)[0, 0]
    direct, diagonal = 2 + 8 + 16 + 64, 1 + 4 + 32 + 128
    assert filled[1, 1].item() == pytest.approx(direct / 6 + diagonal / 12, rel=1e-5)
    filled[1, 1] = values[1, 1]
    assert torch.equal(filled, values)


def test_weights_at_the_corner_are_scaled_to_sum_to_one():
    values = torch.tensor([[9.0, 1.0], [2.0, 4.0]])
    missing = torch.tensor([[[True, False], [False, False]]])
    filled = linear_imputation(values[None, None], missing)
    # two direct neighbours and a diagonal one: 2/12, 2/12, 1/12
    assert filled[0, 0, 0, 0].item() == pytest.approx((2 * 1 + 2 * 2 + 1 * 4) / 5, rel=1e-5)


def exact(image, missing):
    """The equations of each missing pixel, solved as a dense system in numpy."""
    height, width = missing.shape
    number = {tuple(p): i for i, p in enumerate(np.argwhere(missing))}
    matrix, right = np.zeros((len(number),) * 2), np.zeros((len(number), len(image)))
    for (y, x), i in number.items():
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                if (dy, dx) == (0, 0) or not (0 <= y + dy < height and 0 <= x + dx < width):
                    continue
                weight = 1 / 6 if 0 in (dy, dx) else 1 / 12
                matrix[i, i] += weight
                if (y + dy, x + dx) in number:
                    matrix[i, number[y + dy, x + dx]] -= weight
                else:
                    right[i] += weight * image[:, y + dy, x + dx]
    filled = image.copy()
    for (y, x), value in zip(number, np.linalg.solve(matrix, right)):
        filled[:, y, x] = value
    return filled


@pytest.mark.parametrize('share', [0.1, 0.5, 0.9])
def test_imputation_solves_its_equations(share):
    given, missing = images(3, 2, 12, 9).double(), holes(3, 12, 9, share=share)
    missing[0, 2:9, 2:9] = True  # and a large hole
    filled = linear_imputation(given, missing, tolerance=1e-10)
    expected = [exact(i, m) for i, m in zip(given.numpy(), missing.numpy())]
    np.testing.assert_allclose(filled.numpy(), expected, atol=1e-8)
    default = linear_imputation(given.float(), missing)
    np.testing.assert_allclose(default.numpy(), expected, atol=1e-3)


@pytest.mark.parametrize('share', [0.1, 0.6, 0.9])
def test_imputation_equals_that_of_grad_cam(share):
    road = pytest.importorskip('pytorch_grad_cam.metrics.road')
    given = images(1, 3, 32, 40)
    ramp = torch.linspace(0, 1, 40).expand(1, 32, 40)
    for missing in (holes(1, 32, 40, share=share), ramp < share):
        expected = road.NoisyLinearImputer(noise=0)(given[0], (~missing[0]).float())
        filled = linear_imputation(given, missing)[0]
        torch.testing.assert_close(filled, expected, rtol=0, atol=1e-3)


def test_a_linear_ramp_is_restored_inside_the_image():
    ramp = (torch.arange(20.0) + 3 * torch.arange(20.0)[:, None])[None, None]
    missing = torch.zeros(1, 20, 20, dtype=torch.bool)
    missing[0, 5:15, 4:16] = True
    torch.testing.assert_close(linear_imputation(ramp, missing), ramp, rtol=0, atol=1e-2)


def test_imputation_commutes_with_normalisation_and_stays_within_the_known_values():
    given, missing = images(2, 3, 16, 16).double(), holes(2, 16, 16, share=0.7)
    filled = linear_imputation(given, missing, tolerance=1e-10)
    shifted = linear_imputation(5 * given - 100, missing, tolerance=1e-10)
    torch.testing.assert_close(shifted, 5 * filled - 100, rtol=0, atol=1e-7)
    for image, hole, result in zip(given, missing, filled):
        known = image[:, ~hole]
        assert (result.amax((1, 2)) <= known.amax(1) + 1e-6).all()
        assert (result.amin((1, 2)) >= known.amin(1) - 1e-6).all()


@pytest.mark.parametrize('scale', [1e-5, 255.0])
def test_the_scale_of_an_image_does_not_matter(scale):
    given, missing = images(1, 3, 20, 20), holes(1, 20, 20, share=0.9)
    expected = scale * linear_imputation(given, missing)
    filled = linear_imputation(scale * given, missing)
    torch.testing.assert_close(filled, expected, rtol=0, atol=1e-4 * scale)


def test_each_image_is_filled_as_if_it_were_alone():
    given, missing = images(4, 3, 24, 24), holes(4, 24, 24, share=0.4)
    missing[1] = False  # done at once
    missing[2, 3:21, 3:21] = True  # takes the longest
    together = linear_imputation(given, missing)
    alone = [linear_imputation(given[i : i + 1], missing[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-6)
    assert torch.equal(together[1], given[1])


def test_a_plain_image_stays_plain():
    given = torch.full((1, 3, 8, 8), 0.3)
    filled = linear_imputation(given, holes(1, 8, 8))
    torch.testing.assert_close(filled, given, rtol=0, atol=1e-6)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_images_are_filled_in_fp32(dtype):
    given, missing = images(1, 3, 20, 20).to(dtype), holes(1, 20, 20, share=0.8)
    expected = linear_imputation(given.float(), missing).to(dtype)
    filled = linear_imputation(given, missing)
    assert filled.dtype == dtype and torch.equal(filled, expected)


def test_an_image_without_a_known_pixel():
    missing = torch.tensor([False, True])[:, None, None].expand(2, 4, 4)
    with pytest.raises(ValueError, match='^all pixels of an image are missing'):
        linear_imputation(torch.zeros(2, 3, 4, 4), missing)


# What is relevant is kept


def below(size, *places):
    """A map that finds all pixels relevant but those at some places."""
    relevance = torch.arange(1.0, 1 + size * size).view(size, size)
    for place in places:
        relevance[place] = -1
    return relevance[None]


@pytest.mark.parametrize(
    'places, expected', [([(1, 1)], [5]), ([(0, 0)], [3]), ([(1, 1), (1, 2)], [5, 6])], ids=str
)
def test_what_is_not_relevant_comes_from_the_neighbours(places, expected):
    ramp = torch.arange(16.0).view(1, 1, 4, 4)
    filled = keep_relevant(ramp, below(4, *places), 1 - len(places) / 16)[0, 0]
    assert [filled[place].item() for place in places] == pytest.approx(expected, abs=1e-2)
    for place in places:
        filled[place] = ramp[0, 0][place]
    assert torch.equal(filled, ramp[0, 0])


@pytest.mark.parametrize('share', [0.05, 0.2, 0.5, 0.8])
@pytest.mark.parametrize(
    'relevance',
    [
        images(2, 5, 5),
        images(2, 24, 24, seed=1),
        (images(2, 24, 24, seed=2) - 1.2).relu(),  # zero at nine of ten positions
        torch.eye(24).expand(2, 24, 24),
        images(2, 6, 6).half(),
    ],
    ids=['coarse', 'fine', 'mostly zero', 'two values', 'half precision'],
)
def test_a_share_is_kept_and_the_rest_solves_the_equations(share, relevance):
    given = images(2, 3, 24, 24)
    result = keep_relevant(given, relevance, share)
    # No pixel's neighbours happen to have its own value as their mean
    changed = (result != given).any(1)
    assert changed.sum((1, 2)).tolist() == [24 * 24 - round(share * 24 * 24)] * 2
    assert ((result != given).all(1) == changed).all()
    full = torch.nn.functional.interpolate(
        relevance[:, None].float(), (24, 24), mode='bilinear', align_corners=False
    )[:, 0]
    for hole, values in zip(changed, full):
        assert values[~hole].min() >= values[hole].max()
    expected = [exact(i.double().numpy(), m) for i, m in zip(given, changed.numpy())]
    np.testing.assert_allclose(result.numpy(), expected, atol=5e-3)


def test_of_equal_pixels_the_first_are_kept():
    relevance = torch.zeros(1, 4, 4)
    relevance[0, 3, 3] = 1
    given = images(1, 1, 4, 4)
    kept = (keep_relevant(given, relevance, 0.5) == given)[0, 0].flatten().tolist()
    assert kept == [True] * 7 + [False] * 8 + [True]


def test_the_most_relevant_pixel_is_kept_of_the_smallest_share():
    given, relevance = images(1, 1, 4, 4), images(1, 4, 4, seed=3)
    kept = keep_relevant(given, relevance, 0.01) == given
    assert kept.flatten().nonzero().item() == relevance.argmax()


@pytest.mark.parametrize(
    'relevance',
    [
        torch.zeros(4, 4),
        -images(4, 4).abs(),
        torch.full((4, 4), 2.0),
        torch.full((4, 4), torch.nan),
    ],
    ids=['zero', 'no positive evidence', 'constant', 'not finite'],
)
def test_a_map_that_says_nothing_leaves_its_image(relevance):
    given = images(2, 3, 8, 8)
    result = keep_relevant(given, torch.stack([relevance, images(4, 4, seed=4)]), 0.25)
    assert torch.equal(result[0], given[0])
    assert (result[1] != given[1]).all(0).sum() == 48


def test_all_is_kept():
    given = images(2, 3, 8, 8)
    assert torch.equal(keep_relevant(given, images(2, 4, 4), 1), given)


# Random numbers


def test_random_numbers_belong_to_the_sample_and_the_seed():
    def draw(index, seed):
        return [torch.rand(3, generator=g) for g in sample_generators(index, seed, 'cpu')]

    state = torch.get_rng_state()
    first, second = draw([4, 7], 0)
    assert torch.equal(draw([7], 0)[0], second)
    assert not torch.equal(first, second)
    assert not torch.equal(draw([4], 1)[0], first)
    assert torch.equal(torch.get_rng_state(), state)
