"""Runs take turns, and ratios, shares and tables are of what was measured."""

import statistics

import pytest
import torch
from tiny import tool


@pytest.fixture(scope='module')
def timing(path_of_a_script):
    return tool('benchmarks/_timing')


def cells(table):
    """The cells of a table below its head."""
    lines = [line for line in table.splitlines() if '|' in line]
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in lines][1:]


def test_runs_take_turns_after_a_warm_up(timing):
    order = []
    runs = {name: lambda name=name: order.append(name) for name in 'abc'}
    found = timing.measure(runs, 'cpu', rounds=3)
    assert ''.join(order) == 'abcabcbcacab'
    assert found.rounds == 3 and all(len(times) == 3 for times in found.seconds.values())
    order.clear()
    assert timing.measure(runs, 'cpu', warm_up=False).rounds == 1
    assert ''.join(order) == 'abc'


def test_rounds_go_on_for_the_budget(timing, monkeypatch):
    """A run takes 2 of 7 seconds, as the clock of the test says."""
    now = [0.0]

    def run():
        now[0] += 2

    monkeypatch.setattr(timing.time, 'perf_counter', lambda: now[0])
    found = timing.measure({'run': run}, 'cpu', budget=7)
    assert found.seconds == {'run': [2.0] * 4}


def test_medians_ratios_and_shares(timing):
    seconds = {
        'floor': [1.0, 2.0, 4.0],
        'slow': [3.0, 2.0, 8.0],
        'more': [3.5, 2.4, 10.0],
    }
    found = timing.Timings(seconds, dict.fromkeys(seconds, 10.0))
    assert found.median('slow') == 3 and found.median('floor', 'slow') == 4
    assert found.ratio('slow', 'floor') == 2  # of 3, 1 and 2
    assert found.ratio('more', 'floor', 'slow') == pytest.approx(10 / 12)  # of .875, .6 and .833
    # 0.5, 0.4 and 2 more than slow; 0.5, 0.2 and 0.5 of the floor
    middle, error = found.share('more', ['slow'], ['floor'])
    assert middle == 0.5
    assert error == pytest.approx(1.2533 * 1.4826 * statistics.median([0, 0.3, 0]) / 3**0.5)


def test_a_table(timing):
    seconds = {'floor': [1.0, 2.0, 4.0], 'slow': [3.0, 2.0, 8.0]}
    table = timing.Timings(seconds, {'floor': 10.0, 'slow': 20.0}).table('title')
    assert 'title' in table and 'ratio to floor' in table
    assert cells(table) == [
        ['floor', '2.0000', '1.0000', '1.000', '10'],
        ['slow', '3.0000', '2.0000', '2.000', '20'],
    ]


def test_memory_is_the_growth_of_the_peak(timing):
    def run():
        torch.ones(25_000_000)  # 100 MB, given back at once

    memory = timing.peak_memory(run, 'cpu')
    assert memory != memory or 80 < memory < 130
