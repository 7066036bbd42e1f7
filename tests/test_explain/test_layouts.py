"""The grid of a stage's tokens, from the grid of the patches."""

import pytest

from mmkdx.explain.layouts import Layout


@pytest.mark.parametrize(
    'length, grids, size',
    [
        (49, {(56, 56)}, (7, 7)),
        (32, {(8, 16)}, (4, 8)),
        (8, {(7, 15)}, (2, 4)),  # odd sides are padded
        (12, {(12, 4), (13, 4)}, (6, 2)),
        (14, {(12, 4), (13, 4)}, (7, 2)),
        (16, {(4, 4)}, (4, 4)),
        (36, {(56, 56)}, None),
        (64, {(4, 4)}, None),
        (1, {(4, 4)}, None),
        (16, set(), None),
    ],
)
def test_the_grid_of_a_stage(length, grids, size):
    layout = Layout.of_stage(length, grids)
    assert layout == (size and Layout(size, 'tokens'))
