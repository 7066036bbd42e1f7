"""Tokens on their grid and maps of other sizes, against values that can be checked by hand."""

import pytest
import torch
import torch.nn.functional as F

from mmkdx.functional import resize_map, tokens_to_map


@pytest.mark.parametrize('extra', [0, 1, 2])
@pytest.mark.parametrize('side', [1, 2, 3, 4, 7, 14])
def test_tokens_lie_row_by_row_behind_the_extra_ones(side, extra):
    positions = torch.arange(side * side).view(1, -1, 1)
    tokens = torch.cat([torch.full((1, extra, 1), -1), positions], dim=1) + torch.tensor([0, 1000])
    expected = torch.arange(side * side).view(side, side)
    assert torch.equal(tokens_to_map(tokens), torch.stack([expected, expected + 1000])[None])


@pytest.mark.parametrize('length', [7, 8, 12, 48, 52])
def test_tokens_that_fill_no_grid(length):
    with pytest.raises(
        ValueError, match=f'^{length} tokens do not fill a square grid with 0, 1 or 2'
    ):
        tokens_to_map(torch.zeros(2, length, 3))


def test_tokens_of_images_that_are_not_square():
    """37 tokens are 1 + 6 x 6 of a square image only, and 2 x 6 are 3 x 4 of another image."""
    tokens = torch.arange(37.0).view(1, 37, 1)
    assert tokens_to_map(tokens, (96, 96)).shape == (1, 1, 6, 6)
    for image in [(96, 192), (192, 96), (97, 192)]:
        with pytest.raises(
            ValueError, match='37 tokens do not fill a grid of .* as the images, with'
        ):
            tokens_to_map(tokens, image)
    rows = tokens_to_map(tokens[:, :14], (60, 80))[0, 0]
    assert torch.equal(rows, torch.arange(2.0, 14).view(3, 4))
    assert tokens_to_map(tokens[:, :9], (64, 128)).flatten().tolist() == [*range(1, 9)]


@pytest.mark.parametrize('size', [(4, 5), [4, 5], torch.Size([4, 5])])
def test_maps_of_the_right_size_stay_what_they_are(size):
    maps = torch.randn(2, 3, 4, 5)
    assert resize_map(maps, size) is maps


def test_up_is_bilinear_between_half_pixel_centres():
    maps = torch.tensor([[[[0.0, 4.0], [8.0, 12.0]]]])
    row = torch.tensor([0.0, 1.0, 3.0, 4.0])
    expected = row + 2 * row[:, None]
    torch.testing.assert_close(resize_map(maps, (4, 4))[0, 0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize('size', [(4, 7), (7, 4), (9, 11)])
def test_up_is_that_of_torch(size):
    maps = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(maps, size, mode='bilinear', align_corners=False)
    assert torch.equal(resize_map(maps, size), expected)


@pytest.mark.parametrize('size', [(4, 2), (2, 8), (1, 1), (8, 4)])
def test_down_is_the_mean_of_blocks(size):
    maps = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    h, w = size
    blocks = maps.view(2, 3, h, 8 // h, w, 8 // w).mean((3, 5))
    torch.testing.assert_close(resize_map(maps, size), blocks, rtol=1e-12, atol=1e-12)
    means = resize_map(maps, size).mean((2, 3))
    torch.testing.assert_close(means, maps.mean((2, 3)), rtol=1e-12, atol=1e-12)


def test_down_has_overlapping_windows_where_sizes_do_not_divide():
    maps = torch.arange(49, dtype=torch.float64).view(1, 1, 7, 7)
    expected = torch.tensor([[12, 15], [33, 36]], dtype=torch.float64)
    torch.testing.assert_close(resize_map(maps, (2, 2))[0, 0], expected, rtol=1e-12, atol=0)
