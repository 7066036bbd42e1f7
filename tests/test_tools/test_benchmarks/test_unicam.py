"""The benchmark of distance correlations runs, and all of its ways have one result."""

import re
import sys

import pytest
import torch
from tiny import import_numba_user, tool


@pytest.fixture(scope='module')
def benchmark(path_of_a_script):
    return tool('benchmarks/unicam')


@pytest.mark.parametrize('method', ['closed form', 'naive', 'dcor'])
def test_all_methods_have_one_result(benchmark, method):
    if method == 'dcor':
        import_numba_user('dcor')
    pairs = [benchmark.features(12, 98, 'cpu') for _ in range(2)]
    expected = benchmark.ours(*pairs[0])
    run, _ = benchmark.METHODS[method]
    assert run(*pairs[1]) == pytest.approx(expected, abs=1e-6) and 0.1 < expected < 0.9
    if method == 'naive':
        assert (pairs[0][0].grad - pairs[1][0].grad).abs().max() < 1e-6


def test_the_closed_form_takes_the_gradient_of_averages(benchmark, monkeypatch):
    found = []

    def spy(weights, distances, pooled):
        found.append(gradient(weights, distances, pooled))

    gradient = benchmark.distance_gradient
    monkeypatch.setattr(benchmark, 'distance_gradient', spy)
    x, y = benchmark.features(12, 98, 'cpu')
    benchmark.closed_form(x, y)
    benchmark.ours(x, y)
    assert (found[0] - x.grad.view(12, 2, 49).mean(2)).abs().max() < 1e-7


def test_a_table(benchmark):
    found = sys.modules['_timing'].Timings(dict(mmkdx=[0.5], naive=[1.0]), dict(mmkdx=20, naive=30))
    lines = benchmark.table(100, 300, found, dict(mmkdx=0.25, naive=0.25)).splitlines()
    cells = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines if '|' in line]
    assert cells[1:] == [
        ['mmkdx', '0.5000', '20', '1.00', '1.00', '0.250000', '166666.67', '500.0'],
        ['naive', '1.0000', '30', '2.00', '1.50', '0.250000', '333333.33', '750.0'],
    ]


@pytest.mark.slow
def test_the_whole_benchmark(benchmark, monkeypatch, capsys):
    options = ('--n', '8', '16', '--d', '490', '--methods', 'mmkdx', 'naive', '--device', 'cpu')
    monkeypatch.setattr(sys, 'argv', ['unicam.py', *options, '--memory', '0.0003'])
    benchmark.main()
    output = capsys.readouterr().out
    assert 'n = 8, d = 490' in output and 'n = 16, d = 490' in output
    assert len(re.findall(r'\| mmkdx +\| \d+\.\d{4} ', output)) == 2
    assert re.findall(r'naive needs (\d\.\d) GB', output) == ['0.0', '0.0']
    assert f'torch {torch.__version__}' in output
