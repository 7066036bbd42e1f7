"""Colours, overlays, differences and grids."""

import matplotlib
import numpy as np
import pytest
import torch

from mmkdx.visualization.rendering import (
    COLORMAPS,
    color_table,
    colorize,
    difference,
    grid,
    joined,
    label_text,
    legend,
    overlay,
    put_text,
)


def lightness(cmap: str) -> np.ndarray:
    """CIELAB L* of a colour map's colours, from 0 to 100."""
    color = pytest.importorskip('skimage.color')
    return color.rgb2lab(color_table(cmap)[None] / 255)[0, :, 0]


@pytest.mark.parametrize('cmap', ['viridis', 'cividis', 'inferno', 'magma'])
def test_sequential_maps_are_ordered_by_lightness(cmap):
    """So they read in grey print and for colour-blind people; jet does not."""
    steps = np.diff(lightness(cmap))
    assert steps.min() > -0.7 and lightness(cmap)[-1] - lightness(cmap)[0] > 55
    assert np.diff(lightness('jet')).min() < -1


@pytest.mark.parametrize('cmap', ['viridis', 'cividis', 'inferno', 'magma'])
def test_sequential_maps_are_matplotlibs(cmap):
    expected = matplotlib.colormaps[cmap](np.arange(256), bytes=True)[:, :3].astype(int)
    assert np.abs(color_table(cmap) - expected).max() <= 4


def test_the_diverging_map_is_lightest_in_the_middle_and_even_to_both_sides():
    values = lightness('diverging')
    assert 126 <= values.argmax() <= 129 and values.max() > 95
    assert (np.diff(values[:128]) >= -0.3).all() and (np.diff(values[128:]) <= 0.3).all()
    assert np.abs(values - values[::-1]).max() < 25
    expected = matplotlib.colormaps['PuOr_r'](np.arange(256), bytes=True)[:, :3].astype(int)
    assert np.abs(color_table('diverging') - expected).max() <= 4


@pytest.mark.parametrize('cmap', [*COLORMAPS, 'diverging'])
def test_values_go_to_their_colours(cmap):
    low, high = (-1.0, 1.0) if cmap == 'diverging' else (0.0, 1.0)
    maps = torch.tensor([[[low, (low + high) / 2, high], [low - 5, high, high + 5]]])
    colors = colorize(maps, cmap)
    assert colors.shape == (1, 2, 3, 3) and colors.dtype == torch.uint8
    table = color_table(cmap)
    for place, index in (((0, 0), 0), ((0, 1), 128), ((0, 2), 255), ((1, 0), 0), ((1, 2), 255)):
        assert colors[0][place].tolist() == table[index].tolist()


def test_an_overlay_mixes_the_grey_image_with_the_colours():
    image = torch.tensor([[[[200, 100, 50], [10, 20, 30]]]], dtype=torch.uint8)
    picture = overlay(image, torch.tensor([[[-3.0, 5.0]]]), alpha=0.25)
    for i, (pixel, index) in enumerate((((200, 100, 50), 0), ((10, 20, 30), 255))):
        grey = np.dot(pixel, (0.299, 0.587, 0.114))
        opacity = 0.25 * (index / 255) ** 0.5  # the image stays where the map is low
        expected = (1 - opacity) * grey + opacity * color_table('viridis')[index]
        np.testing.assert_allclose(picture[0, 0, i], expected, atol=0.51)


def test_negative_evidence_is_left_out_unless_asked_for():
    image = torch.full((1, 1, 3, 3), 128, dtype=torch.uint8)
    maps = torch.tensor([[[-1.0, 0.0, 1.0]]])
    without, with_it = (overlay(image, maps, 1.0, relu=relu)[0, 0] for relu in (True, False))
    table = color_table('viridis')
    assert without.tolist() == [[128] * 3, [128] * 3, table[255].tolist()]
    middle = (1 - 0.5**0.5) * 128 + 0.5**0.5 * table[128]
    assert with_it.tolist() == [[128] * 3, middle.round().tolist(), table[255].tolist()]


@pytest.mark.parametrize(
    'values',
    [torch.zeros(4, 4), torch.full((4, 4), 7.0), torch.full((4, 4), torch.nan), -torch.rand(4, 4)],
)
def test_a_map_that_says_nothing_leaves_the_image_grey(values):
    image = torch.randint(0, 255, (2, 8, 8, 3), dtype=torch.uint8)
    good = torch.arange(16.0).view(4, 4)
    picture = overlay(image, torch.stack([values, good]))
    assert (picture[0] == picture[0, ..., :1]).all()
    assert not (picture[1] == picture[1, ..., :1]).all()


def test_a_few_pixels_of_a_gradient_leave_the_others_their_colours():
    """The highest 1 % of a large map count as its highest value; a small map stays exact."""
    image = torch.full((1, 100, 100, 3), 90, dtype=torch.uint8)
    maps = torch.zeros(1, 100, 100)
    maps[0, 20:40, 20:40] = 1  # 400 pixels
    plain = overlay(image, maps)
    maps[0, 60, :99] = 1000  # the 99 highest of 10,000, of which 100 share a colour
    picture = overlay(image, maps)
    assert (picture[0, 20:40, 20:40] == plain[0, 30, 30]).all() and (plain[0, 30, 30] != 90).any()
    assert (picture[0, 60, :99] == plain[0, 30, 30]).all()
    assert (picture[0, 70:] == 90).all()
    small = maps[:, 10:74, :64]
    assert (overlay(image, small)[0, 15:40, 35:50].int() - 90).abs().max() <= 2


def test_each_map_has_its_own_range():
    image = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    ramp = torch.arange(16.0).view(4, 4)
    picture = overlay(image, torch.stack([ramp, 1000 * ramp]))
    assert torch.equal(picture[0], picture[1])


def test_the_difference_is_of_scaled_maps_and_the_students_side_is_positive():
    student = torch.tensor([[[0.0, 10.0], [5.0, -20.0]]])
    teacher = torch.tensor([[[0.1, 0.0], [0.0, 0.0]]])
    gap = difference(student, teacher, (2, 2))
    torch.testing.assert_close(gap, torch.tensor([[[-1.0, 1.0], [0.5, 0.0]]]))
    assert difference(student, teacher, (6, 4)).shape == (1, 6, 4)
    empty = difference(
        student.repeat(2, 1, 1), torch.stack([teacher[0], torch.zeros(2, 2)]), (2, 2)
    )
    assert empty[0].isfinite().all() and empty[1].isnan().all()


def test_small_pictures_are_enlarged_without_smoothing_and_large_ones_reduced():
    small = np.random.RandomState(0).randint(0, 200, (4, 8, 3), np.uint8)
    large = np.full((300, 600, 3), 90, np.uint8)
    picture = grid([small, large], side=64, gap=10)
    assert picture.shape[1] == 2 * 64 + 3 * 10
    np.testing.assert_array_equal(picture[10:42:8, 10:74:8], small)
    assert (picture[10:42, 84:148] == 90).all() and (picture[:10] == 255).all()


def test_grids_have_rows_columns_and_captions():
    pictures = [np.full((10, 10, 3), i, np.uint8) for i in range(5)]
    plain, lined = (
        grid(pictures, captions, columns=2, side=20) for captions in (None, [['a', 'b']] * 5)
    )
    assert plain.shape[1] == lined.shape[1] == 2 * 20 + 3 * 12
    assert lined.shape[0] - plain.shape[0] == 3 * 2 * 20
    tops = [np.flatnonzero((plain[:, 12] < 5).all(1))[i * 20] for i in range(3)]
    assert [int(plain[top, 12, 0]) for top in tops] == [0, 2, 4]


@pytest.mark.parametrize('width', [25, 64, 100, 140, 181, 260, 520])
def test_a_legend_fits_into_any_width(width):
    """With both ends of the bar and a word behind it, from 100 pixels on."""
    scales = [('none', 'most', 'cividis', 42), ('less', 'more', 'diverging', 42)]
    strip = legend(width, scales)
    assert strip.shape == (28 if width == 520 else 56, width, 3)
    if width < 520:
        assert (strip == joined([legend(width, [scale]) for scale in scales])).all()
    if width >= 100:
        row = legend(width, scales[1:])[12]
        ends = [(row == color_table('diverging')[i]).all(1).nonzero()[0] for i in (0, -1)]
        assert ends[0].min() > 12 + 20 and 16 < ends[1].max() - ends[0].min() < 128
        assert (legend(width, scales[1:])[:, ends[1].max() + 9 :] < 100).any()


def test_text_is_drawn_in_its_colour_and_stays_in_its_width():
    picture = np.full((30, 200, 3), 255, np.uint8)
    put_text(picture, 'a very long class name, indeed: Straßenbahn', 10, 20, 14, 80, (200, 0, 0))
    columns = np.flatnonzero((picture < 255).any((0, 2)))
    assert 10 <= columns[0] <= 12 and 70 <= columns[-1] < 92
    assert picture.reshape(-1, 3).min(0).tolist() == [200, 0, 0] or picture[..., 0].min() >= 200
    short = np.full((30, 200, 3), 255, np.uint8)
    put_text(short, 'a', 10, 20, 14, 80)
    assert np.flatnonzero((short < 255).any((0, 2)))[-1] < 22


def test_a_class_has_its_name_and_number_where_the_font_has_its_letters():
    classes = ['ant', 'Straßenbahn', '猫', '犬', 'chat 猫', '']
    words = [label_text(label, classes) for label in range(7)]
    assert words == ['ant (0)', 'Straßenbahn (1)', '2', '3', '4', '5', '6']
    assert label_text(560, None) == '560'


def written(text: str, width: int | None = None) -> np.ndarray:
    picture = np.full((30, 400, 3), 255, np.uint8)
    put_text(picture, text, 10, 20, 14, width)
    return picture


def test_no_two_texts_look_alike():
    """Neither where the font has no glyphs, nor where the room is short and only the ends differ."""
    assert (written('猫') != written('犬')).any()
    np.testing.assert_array_equal(written('猫'), written('\\u732b'))
    long = [written(f'a very long name of a class ({i}) 0.931', 120) for i in (24, 25)]
    assert (long[0] != long[1]).any()
    for picture in long:
        assert np.flatnonzero((picture < 255).any((0, 2)))[-1] < 131


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (
            lambda: colorize(torch.zeros(1, 2, 2), 'rainbow'),
            "no colour map 'rainbow'; there are viridis",
        ),
        (
            lambda: overlay(torch.zeros(1, 2, 2, 3, dtype=torch.uint8), torch.zeros(1, 2, 2), 1.5),
            'alpha is 1.5; it must be a finite number of at least 0 and of at most 1',
        ),
        (lambda: grid([]), 'a grid needs pictures .* there are 0 and 0'),
        (lambda: grid([np.zeros((2, 2, 3), np.uint8)], [[], []]), 'there are 1 and 2'),
    ],
)
def test_mistakes_are_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
