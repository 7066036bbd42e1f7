"""The drawing of prototypes: what is where in the pictures."""

import cv2
import numpy as np
import pytest
import torch

from mmkdx.visualization import prototypes, rendering
from mmkdx.visualization.prototypes import (
    GAP,
    LINE,
    Patch,
    crop,
    draw_patch,
    global_sheet,
    heat_map,
    local_sheet,
    transfer_sheet,
)
from mmkdx.visualization.rendering import overlay

YELLOW, BLACK = (255, 255, 0), (0, 0, 0)
MAP = torch.arange(64.0).view(8, 8)


def image(seed=0, size=(64, 64)):
    return np.random.RandomState(seed).randint(10, 250, (*size, 3), np.uint8)


def enlarged(picture, factor):
    return np.kron(picture, np.ones((factor, factor, 1), np.uint8))


def framed(picture, box, width, dark):
    """The picture with a frame within a box, written by the distance from the box's edge."""
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]]
    x0, y0, x1, y1 = box
    inside = np.minimum.reduce([x - x0, x1 - 1 - x, y - y0, y1 - 1 - y])
    frame = (inside >= 0) & (inside < width + 2 * dark)
    picture = np.where(frame[..., None], np.uint8(BLACK), picture)
    yellow = frame & (inside >= dark) & (inside < width + dark)
    return np.where(yellow[..., None], np.uint8(YELLOW), picture)


def test_crop_is_the_region():
    picture = image(size=(20, 30))
    np.testing.assert_array_equal(crop(picture, (3, 5, 10, 20)), picture[5:20, 3:10])
    assert crop(picture, torch.tensor([0, 0, 30, 20])).shape == (20, 30, 3)


@pytest.mark.parametrize(
    'box', [(5, 5, 5, 9), (5, 5, 9, 5), (-1, 0, 5, 5), (0, -1, 5, 5), (0, 0, 31, 5), (0, 0, 5, 21)]
)
def test_box_that_is_none(box):
    picture = image(size=(20, 30))
    for draw in (lambda: crop(picture, box), lambda: draw_patch(Patch(picture, box))):
        with pytest.raises(ValueError, match='does not lie in the image of 30 x 20 pixels'):
            draw()


@pytest.mark.parametrize(
    'size, side, box, factor, width, dark',
    [
        ((64, 64), 192, (10, 20, 30, 50), 3, 3, 1),
        ((64, 64), 192, (0, 0, 64, 64), 3, 3, 1),
        ((64, 64), 128, (40, 0, 64, 12), 2, 2, 1),
        ((40, 64), 192, (3, 2, 5, 3), 3, 3, 1),
        ((640, 320), 192, (100, 200, 300, 500), 1, 10, 3),
    ],
)
def test_box_is_at_its_pixels(size, side, box, factor, width, dark):
    picture = image(size=size)
    before = picture.copy()
    drawn = draw_patch(Patch(picture, box), side)
    edges = [edge * factor for edge in box]
    np.testing.assert_array_equal(drawn, framed(enlarged(picture, factor), edges, width, dark))
    np.testing.assert_array_equal(picture, before)


def test_dot_is_at_the_centre_of_the_cell():
    picture = image()
    patch = Patch(picture, (0, 0, 64, 64), cell=(2, 5), grid=(8, 8))
    drawn = draw_patch(patch)
    plain = draw_patch(Patch(picture, patch.box))
    assert tuple(drawn[60, 132]) == YELLOW
    rows, columns = np.nonzero((drawn != plain).any(2))
    assert (rows.min() + rows.max()) / 2 == 60 and (columns.min() + columns.max()) / 2 == 132
    assert rows.max() - rows.min() <= 12


def test_jet_is_the_picture_of_papers():
    # 0.5 (.2, .4, .6) + 0.3 (.5, 0, 0), the colour of jet's end
    picture = np.full((8, 8, 3), (51, 102, 153), np.uint8)
    similarity = torch.zeros(8, 8)
    similarity[:, 4:] = 3
    drawn = heat_map(picture, similarity, 'jet', side=8)
    np.testing.assert_allclose(
        drawn[:, 4:] / 255, np.broadcast_to((0.25, 0.2, 0.3), (8, 4, 3)), atol=3e-3
    )
    np.testing.assert_allclose(
        drawn[:, :4] / 255, np.broadcast_to((0.1, 0.2, 0.45), (8, 4, 3)), atol=3e-3
    )


@pytest.mark.parametrize('similarity', [MAP, -MAP - 1])
def test_heat_map_is_the_overlay_in_its_own_range(similarity):
    picture = image()
    drawn = heat_map(picture, similarity)
    big = torch.nn.functional.interpolate(similarity[None, None], (192, 192), mode='bilinear')[0]
    expected = overlay(torch.from_numpy(enlarged(picture, 3))[None], big, relu=False)[0].numpy()
    np.testing.assert_array_equal(drawn, expected)
    assert drawn.std(2).min() >= 0 and len(np.unique(drawn.reshape(-1, 3), axis=0)) > 1000


# Sheets


def patch(seed, box=(0, 0, 32, 32), lines=('a', 'b')):
    return Patch(image(seed), box, MAP, (2, 5), (8, 8), list(lines))


def tile(sheet, top, column, side):
    left = GAP + column * (side + GAP)
    return sheet[top : top + side, left : left + side]


def test_local_sheet_says_this_looks_like_that():
    rows = [
        (patch(1), patch(2, (32, 0, 64, 32)), ['one', 'two']),
        (patch(3, (0, 32, 32, 64)), patch(4), ['one', 'two']),
    ]
    sheet = local_sheet(['title', 'more'], rows, ['the sum'])
    top = 2 * LINE + 10 + LINE + GAP
    for n, (here, source, _) in enumerate(rows):
        tiles = [tile(sheet, top + n * (128 + GAP + 6), column, 128) for column in range(5)]
        np.testing.assert_array_equal(tiles[0], draw_patch(here, 128))
        np.testing.assert_array_equal(tiles[1], heat_map(here.image, MAP, side=128))
        np.testing.assert_array_equal(tiles[2], enlarged(crop(here.image, here.box), 4))
        np.testing.assert_array_equal(tiles[3], enlarged(crop(source.image, source.box), 4))
        np.testing.assert_array_equal(tiles[4], draw_patch(source, 128))


def test_transfer_sheet_has_the_teacher_on_the_left():
    teacher, student = patch(1), patch(2, (32, 0, 64, 32))
    sheet = transfer_sheet(['title'], [(teacher, student, ['a', 'b'])])
    top = LINE + 10 + LINE + GAP
    tiles = [tile(sheet, top, column, 128) for column in range(4)]
    for i, each in enumerate((teacher, student)):
        np.testing.assert_array_equal(tiles[2 * i], enlarged(crop(each.image, each.box), 4))
        np.testing.assert_array_equal(tiles[2 * i + 1], draw_patch(each, 128))


def test_global_sheet_has_source_and_neighbours():
    near = [patch(seed) for seed in (1, 2, 3, 4, 5)]
    sheet = global_sheet(['title'], patch(0), {'training': near, 'test': near[:2], 'other': []})
    assert sheet.shape[1] == 5 * (192 + GAP) + GAP
    top = LINE + 10 + GAP
    np.testing.assert_array_equal(tile(sheet, top, 0, 192), draw_patch(patch(0)))
    np.testing.assert_array_equal(tile(sheet, top, 1, 192), heat_map(image(0), MAP))
    np.testing.assert_array_equal(tile(sheet, top, 2, 192), enlarged(image(0)[:32, :32], 6))
    # After the source: a heading, boxes, similarities, patches
    top += 192 + 6 + LINE + 10 + GAP
    for column, each in enumerate(near):
        np.testing.assert_array_equal(tile(sheet, top, column, 192), draw_patch(each))
        heat = tile(sheet, top + 192 + GAP + 6, column, 192)
        np.testing.assert_array_equal(heat, heat_map(each.image, MAP))
        part = tile(sheet, top + 2 * (192 + GAP + 6), column, 192)
        np.testing.assert_array_equal(part, enlarged(each.image[:32, :32], 6))


def test_images_of_any_shape_and_size():
    wide = Patch(image(size=(30, 400)), (10, 0, 60, 30), MAP, (0, 0), (8, 8), ['a'])
    tall = Patch(image(size=(300, 40)), (0, 100, 40, 120), MAP, (7, 7), (8, 8), ['a'])
    for sheet in (
        local_sheet(['t'], [(wide, tall, ['a']), (tall, wide, ['a'])], ['s']),
        transfer_sheet(['t'], [(wide, tall, ['a'])]),
        global_sheet(['t'], wide, {'x': [wide, tall]}),
    ):
        assert sheet.dtype == np.uint8 and sheet.shape[2] == 3 and (sheet[-1] == 255).all()


@pytest.mark.parametrize(
    'name',
    [
        'bobbled crest, spotted wing',
        'Chevrolet Silverado 1500 Hybrid Crew Cab 2012',
        '059.Black_throated_Blue_Warbler_of_the_North_American_West',
    ],
)
def test_no_name_is_cut(monkeypatch, name):
    written = []

    def record(picture, text, left, baseline, height=14, width=None, color=None):
        room = picture.shape[1] - left if width is None else width
        assert rendering._font(height).getlength(text) <= min(room, picture.shape[1] - left)
        assert baseline + height // 4 <= picture.shape[0], 'descenders are cut'
        written.append(text)

    monkeypatch.setattr(prototypes, 'put_text', record)
    monkeypatch.setattr(rendering, 'put_text', record)
    one = patch(1, lines=['similarity 3', name, 'image 123456'])
    local_sheet([name, name], [(one, one, ['prototype 1', name, '= 3'])], [name])
    transfer_sheet([name], [(one, one, ['prototype 1', name, '3'])])
    global_sheet([name], one, {'nearest': [one] * 5})
    assert ''.join(written).replace(' ', '').count(name.replace(' ', '')) == 4 + 2 + 7


def test_strings_stand_beside_their_row():
    sheets = [
        local_sheet(['t'], [(patch(1), patch(2), ['x']), (patch(1), patch(2), [text])], ['s'])
        for text in (' ', 'text')
    ]
    rows, columns = np.nonzero((sheets[0] != sheets[1]).any(2))
    assert columns.min() >= 5 * (128 + GAP)
    assert rows.min() >= LINE + 10 + LINE + GAP + 128 + GAP + 6
    assert rows.max() < LINE + 10 + LINE + 2 * (128 + GAP + 6)
    assert cv2.imencode('.png', sheets[1])[0]
