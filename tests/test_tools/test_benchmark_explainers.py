"""The benchmark of explainers runs, and its tables are what was measured."""

import sys

import pytest
import torch
from tiny import tool

benchmark = tool('analysis_tools/benchmark_explainers')


def test_ratios_are_medians_of_rounds_and_to_the_first():
    measured = {'floor': ([1.0, 2.0, 4.0], 10.0), 'slow': ([3.0, 2.0, 8.0], 20.0)}
    lines = benchmark.table('title', measured, 'floor').splitlines()
    cells = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines if '|' in line]
    assert cells[1:] == [
        ['floor', '2.0000', '1.0000', '1.000', '10'],
        ['slow', '3.0000', '2.0000', '2.000', '20'],
    ]


def test_runs_take_turns():
    order = []
    runs = {name: lambda name=name: order.append(name) for name in 'ab'}
    times = benchmark.measure(runs, 3, 'cpu')
    assert ''.join(order[2:8]) == 'ababab' and len(times['a'][0]) == 3


def test_memory_is_the_growth_of_the_peak():
    def run():
        torch.ones(25_000_000)  # 100 MB, given back at once

    memory = benchmark.peak_memory(run, 'cpu')
    assert memory != memory or 80 < memory < 130


@pytest.mark.slow
def test_the_whole_benchmark(monkeypatch, capsys):
    pytest.importorskip('captum')
    arguments = [
        '--batch',
        '2',
        '--size',
        '64',
        '--rounds',
        '1',
        '--channels',
        '4',
        '--device',
        'cpu',
    ]
    monkeypatch.setattr(sys, 'argv', ['benchmark_explainers.py', *arguments])
    benchmark.main()
    output = capsys.readouterr().out
    for row in (
        *('mmkdx CAM', 'mmkdx EigenCAM', 'captum GradCAM', '4 forwards', '+ own forward'),
        *('mmkdx FullGrad', 'captum IntegratedGradients'),
    ):
        assert f'| {row}' in output, row
