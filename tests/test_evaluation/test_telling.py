"""The images that a report shows first."""

import pytest

from mmkdx.evaluation.telling import telling_images
from mmkdx.visualization.report import REASONS

NAN = float('nan')


def row(label, student, teacher=None, pearson=None, **others):
    values = dict(prediction=student, confidence=0.5, degenerate=0, **others)
    values |= {} if label is None else dict(label=label)
    if teacher is not None:
        values |= {'teacher/prediction': teacher, 'teacher/confidence': 0.6}
    return values if pearson is None else values | dict(pearson=pearson)


ROWS = {
    1: row(0, 0, 0, 0.9),
    2: row(0, 0, 0, 0.8),
    3: row(0, 0, 0, -0.5),
    4: row(0, 1, 0, 0.7) | dict(confidence=0.8),
    5: row(0, 1, 0, 0.6) | dict(confidence=0.9),
    6: row(0, 0, 1, 0.2),
    7: row(0, 1, 0, NAN) | dict(confidence=0.7),
    8: row(0, 1, 1, 0.75),
    9: row(0, 0, 0, -0.9) | {'teacher/degenerate': 1},
}


def test_each_reason():
    found = telling_images(ROWS, 1)
    # The maps of image 9 are no maps; the median of the other agreements is 0.7
    assert found == {3: 'differ', 5: 'lost', 6: 'won', 8: 'typical'}
    assert list(found) == [3, 5, 6, 8] and set(found.values()) < set(REASONS)


def test_an_image_has_one_reason_and_the_next_moves_up():
    found = telling_images(ROWS, 2)
    assert found == {3: 'differ', 6: 'differ', 5: 'lost', 4: 'lost', 8: 'typical', 2: 'typical'}


def test_a_model_alone_has_mistakes():
    rows = {1: row(0, 0), 2: row(0, 1), 3: row(0, 2) | dict(confidence=0.75), 4: row(None, 1)}
    assert telling_images(rows) == {3: 'wrong', 2: 'wrong'}
    rows[2]['label_probability'], rows[3]['label_probability'] = 0.0, 0.5
    assert list(telling_images(rows)) == [2, 3]


@pytest.mark.parametrize('rows', [{}, {1: row(None, 0)}, {1: row(None, 0, 1)}])
def test_nothing_to_choose(rows):
    assert telling_images(rows) == {}


def test_the_first_measured_score_counts():
    rows = {1: row(None, 0, 0, cosine=0.9, ssim=0.1), 2: row(None, 0, 0, cosine=0.1, ssim=0.9)}
    assert telling_images(rows, 1) == {2: 'differ', 1: 'typical'}
