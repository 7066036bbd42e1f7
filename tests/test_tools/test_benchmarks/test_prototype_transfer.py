"""The benchmark of the prototype matching score runs, and both of its ways have one result."""

import re
import sys

import pytest
from tiny import tool

from mmkdx.functional.prototype_transfer import cell_agreement, prototype_matching_score


@pytest.fixture(scope='module')
def benchmark(path_of_a_script):
    return tool('benchmarks/prototype_transfer')


def test_cells_have_a_structure(benchmark):
    teacher, student = benchmark.random_cells(300, 40, 'cpu')
    assert 0 <= teacher.min() and teacher.max() == 48 and student.shape == (300, 40)
    agreement = cell_agreement(teacher, student) / 300
    assert agreement.max() > 0.5 and agreement.median() < 0.1  # by chance 1 / 49


def test_sets_are_another_way_to_the_same_score(benchmark):
    cells = benchmark.random_cells(57, 20, 'cpu')
    expected = prototype_matching_score(*cells)
    assert 0.3 < expected < 1
    assert benchmark.score_of_sets(*cells) == pytest.approx(expected, abs=1e-12)


def test_the_whole_benchmark(benchmark, monkeypatch, capsys):
    sizes = ('--images', '60', '--prototypes', '12', '--small-images', '30')
    options = ('--small-prototypes', '8', '--rounds', '2', '--device', 'cpu')
    monkeypatch.setattr(sys, 'argv', ['prototype_transfer.py', *sizes, *options])
    benchmark.main()
    output = capsys.readouterr().out
    assert '60 images, 12 x 12 prototypes' in output and '30 images, 8 x 8 prototypes' in output
    for row in ('matching score', 'of it, agreement', 'mmkdx', 'sets'):
        assert f'| {row} ' in output, row
    ours, sets = re.search(r'score ([\d.]+), by sets ([\d.]+)', output).groups()
    assert ours == sets
