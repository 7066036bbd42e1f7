"""The picture of what was distilled: what is where."""

import numpy as np
import pytest
import torch

from mmkdx.visualization import panel as module
from mmkdx.visualization.panel import COLUMNS, pair_panel
from mmkdx.visualization.rendering import enlarged, overlay

SIDE, GAP = 168, 12
IMAGE = np.random.RandomState(0).randint(0, 255, (42, 42, 3), np.uint8)


def a_map(seed: int, size: int = 4) -> torch.Tensor:
    return torch.randn(size, size, generator=torch.Generator().manual_seed(seed))


def maps_of(*names: str, seed: int = 0) -> dict[str, torch.Tensor]:
    return {name: a_map(seed + i) for i, name in enumerate(names)}


def tiles(picture: np.ndarray, rows: int) -> list[list[np.ndarray]]:
    """The pictures of each row, found by where they are in a grid whose rows are of one height."""
    columns = (picture.shape[1] - GAP) // (SIDE + GAP)
    height = (picture.shape[0] - 28 - GAP) // rows
    return [
        [
            picture[GAP + r * height :, GAP + c * (SIDE + GAP) :][:SIDE, :SIDE]
            for c in range(columns)
        ]
        for r in range(rows)
    ]


@pytest.fixture
def written(monkeypatch) -> list[list[list[str]]]:
    """The lines under the pictures of each call."""
    calls, grid = [], module.grid

    def record(pictures, lines, columns, side):
        calls.append((columns, lines))
        return grid(pictures, lines, columns, side)

    monkeypatch.setattr(module, 'grid', record)
    return calls


def test_a_row_for_each_stage_and_the_models_in_their_order():
    # In another order than that of the columns
    stages = dict(stage1=maps_of(*reversed(COLUMNS)), stage2=maps_of(*reversed(COLUMNS), seed=10))
    picture = pair_panel(IMAGE, stages)
    first, second = tiles(picture, 2)
    assert len(first) == 6 and picture.dtype == np.uint8
    canvas = torch.from_numpy(IMAGE.repeat(4, 0).repeat(4, 1))[None]
    np.testing.assert_array_equal(first[0], canvas[0])
    assert (second[0] == 255).all()
    for row, maps in zip((first, second), stages.values()):
        for tile, name in zip(row[1:], COLUMNS):
            np.testing.assert_array_equal(tile, overlay(canvas, maps[name][None])[0], name)


def test_names_stages_and_the_label(written):
    stages = dict(stage1=maps_of(*COLUMNS), late=maps_of(*COLUMNS))
    pair_panel(IMAGE, stages, 'spiked crest, fanned tail')
    ((columns, lines),) = written
    assert columns == 6
    assert lines[:2] == [['input', 'spiked crest, fanned', 'tail'], ['teacher, stage1']]
    assert lines[5:8] == [['residual, stage1'], [''], ['teacher, late']]
    pair_panel(IMAGE, stages)
    assert written[1][1][0] == ['input']


def test_without_a_teacher_there_is_no_column_of_it(written):
    names = ('base', 'student', 'distilled', 'residual')
    picture = pair_panel(IMAGE, dict(stage1=maps_of(*names)))
    ((columns, lines),) = written
    assert columns == 5 and picture.shape[1] == GAP + 5 * (SIDE + GAP)
    assert [words for words, *_ in lines[1:]] == [f'{name}, stage1' for name in names]


@pytest.mark.parametrize(
    'nothing, words',
    [
        (torch.zeros(4, 4), 'no map: it is constant'),
        (torch.full((4, 4), 3.0), 'no map: it is constant'),
        (-a_map(3).abs(), 'no positive evidence'),
        (torch.full((4, 4), torch.nan), 'no map: it is not finite'),
    ],
    ids=['zero', 'constant', 'negative', 'not finite'],
)
def test_a_map_that_says_nothing_has_no_colours_and_says_so(written, nothing, words):
    maps = dict(student=a_map(1), distilled=nothing)
    picture = pair_panel(IMAGE, dict(stage1=maps))
    ((_, lines),) = written
    assert lines[1:] == [['student, stage1'], ['distilled, stage1', words]]
    _, student, distilled = tiles(picture, 1)[0]
    assert (distilled == distilled[..., :1]).all() and not (student == student[..., :1]).all()


def test_the_legend_is_below():
    picture = pair_panel(IMAGE, dict(stage1=maps_of('student', 'base')))
    ground = torch.full((1, 1, 128, 3), 160, dtype=torch.uint8)
    bar = overlay(ground, torch.linspace(0, 1, 128)[None, None])[0, 0].numpy()
    strip = picture[-28:]
    places = [
        x for x in range(strip.shape[1] - len(bar)) if (strip[12, x : x + len(bar)] == bar).all()
    ]
    assert len(places) == 1
    # Words to its left and right
    assert (strip[:, : places[0]] < 128).any()
    assert (strip[:, places[0] + len(bar) :] < 128).any()
    assert (picture[:-28] == bar[60]).all(2).sum() < (strip == bar[60]).all(2).sum() + 1000


@pytest.mark.parametrize('size', [(300, 400), (60, 40), (1, 1), (167, 169)])
def test_images_and_maps_of_any_size(size):
    image = np.full((*size, 3), 100, np.uint8)
    stages = dict(stage1=dict(student=a_map(1, 7)), stage2=dict(student=a_map(2, 2)))
    picture = pair_panel(image, stages)
    assert picture.shape[1] == GAP + 2 * (SIDE + GAP)
    assert picture.dtype == np.uint8


@pytest.mark.parametrize(
    'size, factor', [((42, 42), 4), ((42, 30), 4), ((100, 20), 1), ((168, 168), 1), ((400, 9), 1)]
)
def test_images_grow_by_whole_factors(size, factor):
    image = np.random.RandomState(1).randint(0, 255, (*size, 3), np.uint8)
    large = enlarged(image, SIDE)
    assert large.shape == (size[0] * factor, size[1] * factor, 3)
    np.testing.assert_array_equal(large[::factor, ::factor], image)
    np.testing.assert_array_equal(large[factor - 1 :: factor, factor - 1 :: factor], image)
