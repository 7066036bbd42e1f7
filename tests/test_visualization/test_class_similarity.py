"""The picture of class similarity and confusion: what stands where."""

import numpy as np
import pytest

from mmkdx.metrics import ClassMatrices, ClassSimilarity
from mmkdx.metrics.class_similarity import Similarities
from mmkdx.visualization import class_similarity as module
from mmkdx.visualization.class_similarity import (
    MOST_CLASSES,
    NOTHING,
    similarity_panel,
)
from mmkdx.visualization.rendering import color_table
from mmkdx.visualization.sections import draw

TABLE = color_table('diverging')


def matrices(classes: int, seed: int = 0, scale: float = 1.0) -> ClassMatrices:
    rng = np.random.RandomState(seed)
    similarity = scale * rng.uniform(-0.9, 0.9, (classes, classes))
    np.fill_diagonal(similarity, 1)
    confusion = rng.dirichlet([0.3] * classes, classes)
    return ClassMatrices(similarity, confusion, 7 * classes, 0.25)


@pytest.fixture
def drawn(monkeypatch) -> list[tuple[str, np.ndarray]]:
    """The pieces with matrices, each with its colour map."""
    pieces, original = [], module._matrix

    def record(matrix, peak, cmap, *rest):
        piece = original(matrix, peak, cmap, *rest)
        margin = rest[2] or module.LEFT
        side = rest[0] * len(matrix)
        top = module.EDGE + 1
        pieces.append((cmap, piece[top : top + side, margin + 1 : margin + 1 + side]))
        return piece

    monkeypatch.setattr(module, '_matrix', record)
    return pieces


@pytest.fixture
def written(monkeypatch) -> list[str]:
    """All texts, in the order in which they are drawn."""
    texts, original = [], module.put_text

    def record(picture, text, *rest):
        texts.append(text)
        return original(picture, text, *rest)

    monkeypatch.setattr(module, 'put_text', record)
    return texts


def centers(body: np.ndarray, classes: int) -> np.ndarray:
    """A colour of each cell, at a place with neither grid nor number."""
    cell = len(body) // classes
    places = np.arange(classes) * cell + min(2, cell - 1)
    return body[places][:, places]


@pytest.mark.parametrize('classes', [3, 10, 45, 100])
def test_cells_have_the_colours_of_their_values(drawn, classes):
    given = matrices(classes)
    picture = similarity_panel(dict(student=given))
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    (first, left), (second, right) = drawn
    assert (first, second) == ('diverging', 'share')
    off = ~np.eye(classes, dtype=bool)
    peak = np.abs(given.similarity[off]).max()
    index = (255 * (given.similarity / peak + 1) / 2).clip(0, 255).round().astype(int)
    np.testing.assert_array_equal(centers(left, classes)[off], TABLE[index][off])
    index = (127 * given.confusion / given.confusion[off].max()).clip(0, 127).round().astype(int)
    np.testing.assert_array_equal(centers(right, classes)[off], TABLE[128:][index][off])
    for body in (left, right):
        assert (centers(body, classes)[~off] == NOTHING).all()


def test_all_models_have_one_scale_and_stand_in_order(drawn, written):
    small, large = matrices(4, 0, 0.1), matrices(4, 1)
    similarity_panel(dict(base=large, student=small, teacher=large))
    heads = [text for text in written if 'images' in text and ',' in text]
    assert heads[:3] == ['teacher, 28 images', 'student, 28 images', 'base, 28 images']
    np.testing.assert_array_equal(drawn[0][1], drawn[4][1])
    off = ~np.eye(4, dtype=bool)
    peak = np.abs(large.similarity[off]).max()
    index = (255 * (small.similarity / peak + 1) / 2).clip(0, 255).round().astype(int)
    np.testing.assert_array_equal(centers(drawn[2][1], 4)[off], TABLE[index][off])
    assert f'{peak:.2f}' in written and f'−{peak:.2f}' in written


def test_classes_without_images_are_grey(drawn):
    given = matrices(12)
    given.similarity[5] = given.confusion[5] = np.nan
    similarity_panel(dict(student=given))
    for _, body in drawn:
        row = centers(body, 12)[5]
        assert (row == NOTHING).all() and not (centers(body, 12)[6] == NOTHING).all()


def test_numbers_pairs_and_names(written):
    similarity = np.array([[1, 0.5, -0.253], [0.7, 1, -0.001], [-0.5, 0, 1]])
    confusion = np.array([[0.75, 0.25, 0], [0.1, 0.9, 0], [0, 0, 1]])
    names = ['cat', 'dog', 'crane']
    similarity_panel(dict(student=ClassMatrices(similarity, confusion, 30, 0.434)), names)
    for text in ('.50', '−.25', '.70', '.00', '−.50', '75%', '25%', '10%', '90%', '100%'):
        assert text in written, text
    assert '−.00' not in written and '0%' not in written and '1.00' not in written
    assert written.count('cat (0)') == written.count('dog (1)') == 1  # drawn once, pasted thrice
    assert [t for t in written if '–' in t] == ['0.60  cat (0) – dog (1)']
    confused = ['25 %  cat (0) → dog (1)', '10 %  dog (1) → cat (0)']
    assert [t for t in written if '→' in t] == confused
    assert '   ρ = 0.43' in written and '25 %' in written


def test_classes_that_are_alike_one_way_only_are_not_the_most_alike(written):
    similarity = np.array([[1, 0.9, 0.4], [-0.8, 1, np.nan], [0.3, 0.1, 1]])
    similarity_panel(dict(student=ClassMatrices(similarity, np.eye(3), 3, 0.1)))
    assert [t for t in written if '–' in t] == ['0.35  0 – 2', '0.10  1 – 2', '0.05  0 – 1']


def test_nothing_to_name(written):
    given = ClassMatrices(np.full((2, 2), -1.0), np.eye(2), 4, float('nan'))
    similarity_panel(dict(student=given))
    assert {'most alike: none', 'most confused: none', '   ρ = none'} <= set(written)


def test_no_explanation_counts():
    nothing = np.full((3, 3), np.nan)
    similarity_panel(dict(student=ClassMatrices(nothing, np.eye(3), 0, float('nan'))))


@pytest.mark.parametrize(('classes', 'step'), [(29, 1), (30, 1), (60, 2), (100, 5), (1000, 20)])
def test_of_many_classes_every_nth_is_named(written, classes, step):
    names = [f'class {i}!' for i in range(classes)]
    similarity_panel(dict(student=matrices(classes)), names)
    found = [text for text in written if text.startswith('class') and '→' not in text]
    assert found == [f'{names[i]} ({i})' for i in range(0, classes, step)]


@pytest.mark.parametrize('classes', [1, 2, 13, 55, 56, 63, 111, 220, 221, 439, 440, 441, 700])
@pytest.mark.parametrize('words', [None, 'W', ''])
def test_any_number_of_classes_and_any_names(classes, words):
    names = None if words is None else [words * (i % 40) for i in range(classes)]
    picture = similarity_panel(dict(student=matrices(classes)), names)
    assert max(picture.shape) < 2100
    edges = picture[:8], picture[-8:], picture[:, :8], picture[:, -8:]
    assert all((edge == 255).all() for edge in edges), 'nothing is cut off'


def test_a_single_confusion_among_many_classes_can_be_seen(drawn):
    confusion = np.eye(600)
    confusion[100, 300] = 1.0
    similarity_panel(dict(student=ClassMatrices(np.eye(600), confusion, 600, 0.1)))
    body = drawn[1][1]
    assert (body == TABLE[255]).all(2).sum() == 9 and (body[99:102, 299:302] == TABLE[255]).all()


def test_the_section_of_a_report():
    both = Similarities(dict(student=matrices(3), teacher=matrices(3)), '')
    section = draw(both, ['a', 'b', 'c'])
    assert section.keys == ['class_similarity_{mode}']
    assert section.heading == 'Class similarity' and 'rank correlation' in section.note
    ((caption, picture),) = section.pictures
    assert caption.endswith('teacher, student') and picture.dtype == np.uint8
    raw = draw(Similarities(dict(student=matrices(3)), 'raw'))
    assert raw.heading.endswith('(raw)') and raw.keys == ['raw_class_similarity_{mode}']
    assert draw(raw) is raw
    with pytest.raises(TypeError, match='no picture of a int; register one by draw'):
        draw(3)


def test_no_section_of_nothing_or_of_too_many_classes():
    assert ClassSimilarity().report_sections() == []
    wide = np.zeros((MOST_CLASSES + 1, MOST_CLASSES + 1))
    assert draw(Similarities(dict(student=ClassMatrices(wide, wide, 1, 0)), '')) is None
