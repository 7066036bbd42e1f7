"""The picture of one image's explanations."""

import numpy as np
import pytest
import torch

from mmkdx.visualization.panel import as_rgb, explanation_panel, methods_panel
from mmkdx.visualization.rendering import color_table

IMAGE = np.random.RandomState(0).randint(0, 255, (32, 32, 3), np.uint8)
LEFT = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
RIGHT = torch.tensor([[0.0, 1.0], [0.0, 1.0]])


def tiles(panel: np.ndarray) -> list[np.ndarray]:
    """The pictures of 224 pixels in a row, with 12 between them."""
    count = (panel.shape[1] - 12) // 236
    return [panel[12:236, 12 + 236 * i : 236 + 236 * i] for i in range(count)]


def test_input_teacher_student_base_and_difference_in_this_order():
    maps = dict(student=LEFT, base=LEFT, teacher=RIGHT)
    first, teacher, student, base, gap = tiles(explanation_panel(IMAGE, maps))
    np.testing.assert_array_equal(first[3::7, 3::7], IMAGE)
    np.testing.assert_array_equal(student, base)
    # The brightest colour of the map is on the side of its evidence
    yellow = teacher[..., 0].astype(int) - teacher[..., 2]
    assert yellow[:, -40:].mean() > yellow[:, :40].mean() + 50
    table = color_table('diverging')
    assert gap[0, 0].tolist() == table[255].tolist(), 'the student has more on the left'
    assert gap[0, -1].tolist() == table[0].tolist(), 'the teacher has more on the right'


def test_without_a_teacher_there_is_no_difference():
    assert len(tiles(explanation_panel(IMAGE, dict(student=LEFT)))) == 2


@pytest.mark.parametrize('nothing', [torch.zeros(2, 2), -LEFT, torch.full((2, 2), torch.nan)])
def test_a_map_that_says_nothing_shows_no_colours_and_no_difference(nothing):
    maps = dict(student=nothing, teacher=RIGHT)
    _, teacher, student, gap = tiles(explanation_panel(IMAGE, maps))
    assert (student == student[..., :1]).all() and not (teacher == teacher[..., :1]).all()
    assert (gap == gap[0, 0]).all()


def test_captions_are_under_their_picture():
    maps = dict(student=LEFT, teacher=RIGHT)
    plain = explanation_panel(IMAGE, maps, {'student': [' ']})
    written = explanation_panel(IMAGE, maps, {'student': ['dog 0.93']})
    assert plain.shape == written.shape
    columns = np.flatnonzero((plain != written).any((0, 2)))
    assert columns[0] >= 12 + 2 * 236 and columns[-1] < 12 + 3 * 236


@pytest.mark.parametrize('count, columns, rows', [(1, 2, 1), (4, 5, 1), (5, 3, 2), (10, 4, 3)])
def test_any_number_of_models_in_even_rows(count, columns, rows):
    maps = {f'm{i}': RIGHT if i == count - 1 else LEFT for i in range(count)}
    captions = {name: ['a', 'b'] for name in maps}
    panel = methods_panel(IMAGE, maps, captions, side=96)
    step = 96 + 3 * 20 + 18  # with three lines of text
    assert panel.shape == (rows * step + 12 + 28, columns * 108 + 12, 3)
    at = [(12 + i // columns * step, 12 + i % columns * 108) for i in range(count + 1)]
    shown = [panel[y : y + 96, x : x + 96].astype(int) for y, x in at]
    np.testing.assert_array_equal(shown[0][1::3, 1::3], IMAGE)
    yellow = [each[..., 0] - each[..., 2] for each in shown[1:]]
    right = [each[:, -9:].mean() > each[:, :9].mean() + 50 for each in yellow]
    assert right == [False] * (count - 1) + [True]


@pytest.mark.parametrize('size', [(300, 400), (400, 100), (1, 1), (225, 224)])
def test_images_of_any_size(size):
    image = np.full((*size, 3), 128, np.uint8)
    panel = explanation_panel(image, dict(student=LEFT, teacher=RIGHT))
    assert panel.shape[1] == 4 * 236 + 12 and panel.dtype == np.uint8


def test_pipelines_images_become_pictures():
    image = torch.arange(12).view(3, 2, 2).byte()
    np.testing.assert_array_equal(as_rgb(image, False), image.permute(1, 2, 0))
    np.testing.assert_array_equal(as_rgb(image, True), image.permute(1, 2, 0).flip(2))
    np.testing.assert_array_equal(as_rgb(image / 255, False), image.permute(1, 2, 0))
    black = torch.zeros(3, 2, 2, dtype=torch.uint8)
    black[0, 0, 0] = 1
    assert as_rgb(black, False).max() == 1, 'a dark image of bytes is not taken for one from 0 to 1'


def test_grey_images_are_drawn():
    grey = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    expected = grey[0, ..., None].expand(-1, -1, 3)
    for image in (
        grey,
        grey.numpy(),
        grey[0],
        grey[0, ..., None].numpy(),
        grey / 255,
        grey.float(),
    ):
        picture = as_rgb(image, from_bgr=True)
        np.testing.assert_array_equal(picture, expected)
    panel = explanation_panel(grey, dict(student=LEFT, teacher=RIGHT))
    np.testing.assert_array_equal(tiles(panel)[0][7::14, 7::14], expected)


def test_images_of_unknown_normalisation_are_scaled_to_their_own_range():
    """So an image that the pipeline normalised is not nearly black."""
    image = torch.randint(0, 256, (3, 4, 4), generator=torch.Generator().manual_seed(0)).float()
    image[0, 0, 0], image[2, 1, 1] = 0, 255
    normalised = (image - 120) / 57
    assert np.abs(as_rgb(normalised, True).astype(int) - as_rgb(image, True)).max() <= 1
    assert (as_rgb(torch.full((3, 2, 2), -3.0)) == 0).all()


@pytest.mark.parametrize('shape', [(2, 8, 8), (8,), (1, 3, 8, 8)])
def test_what_is_no_image(shape):
    with pytest.raises(ValueError, match='cannot be drawn; it must have 1 or 3 channels'):
        as_rgb(torch.zeros(shape))


def test_a_model_without_a_teacher_has_its_own_name(monkeypatch):
    heads = []
    body = np.zeros((9, 800, 3), np.uint8)
    monkeypatch.setattr(
        'mmkdx.visualization.panel.grid',
        lambda pictures, lines, **options: heads.extend(each[0] for each in lines) or body,
    )
    explanation_panel(IMAGE, dict(student=LEFT), student='resnet18')
    explanation_panel(IMAGE, dict(student=LEFT, teacher=RIGHT))
    assert heads == ['input', 'resnet18', 'input', 'teacher', 'student', 'difference']
