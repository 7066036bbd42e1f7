"""The benchmark of distance correlations runs, and all of its ways have one result."""

import re
import sys
from subprocess import CompletedProcess
from types import SimpleNamespace

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
    values = dict(seconds=0.5, memory=20.0, score=0.25)
    found = {'mmkdx': values, 'naive': dict(values, seconds=1.0), 'dcor': '> 60 s'}
    lines = benchmark.table(100, 300, found).splitlines()
    cells = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines if '|' in line]
    assert cells[1:] == [
        ['mmkdx', '0.5000', '20', '1.00', '1.00', '0.250000', '166666.67', '500.0'],
        ['naive', '1.0000', '20', '2.00', '1.00', '0.250000', '333333.33', '500.0'],
        ['dcor', '> 60 s', *[''] * 6],
    ]
    assert '2.00' not in benchmark.table(100, 300, {'mmkdx': '9 GB', 'naive': values})


def arguments(**given):
    return SimpleNamespace(**dict(dict(device='cpu', memory=1, seconds=1e-3), **given))


def test_cases_that_are_left_out(benchmark):
    assert benchmark.case('naive', 1000, 10000, arguments()) == '160.1 GB'
    assert benchmark.case('dcor', 5, 10, arguments()) == '> 0.001 s'


def test_cases_that_fail(benchmark, monkeypatch, capsys):
    def run(command, **kwargs):
        assert command[-4:] == ['--case', 'naive', '4', '10']
        with pytest.raises(ValueError) as error:
            benchmark.measure('naive', 4, 10, 'cpu')
        return CompletedProcess(command, 1, '', str(error.value))

    monkeypatch.setattr(benchmark.subprocess, 'run', run)
    assert benchmark.case('naive', 4, 10, arguments(seconds=60)) == 'exit 1'
    assert '4 samples are too few' in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_benchmark(benchmark, monkeypatch, capfd):
    options = ('--n', '8', '16', '--d', '490', '--methods', 'mmkdx', 'naive', '--device', 'cpu')
    monkeypatch.setattr(sys, 'argv', ['unicam.py', *options, '--memory', '0.0003'])
    benchmark.main()
    output = capfd.readouterr().out
    assert 'n = 8, d = 490' in output and 'n = 16, d = 490' in output
    assert len(re.findall(r'\| mmkdx +\| \d+\.\d{4} ', output)) == 2
    assert len(re.findall(r'\| naive +\| 0.0 GB ', output)) == 2
    assert f'torch {torch.__version__}' in output
