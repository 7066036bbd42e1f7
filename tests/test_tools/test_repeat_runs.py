"""Repeated runs: what is run, what is not run again, and the table."""

import json
import math

import numpy as np
import pytest
from tiny import tool

from mmkdx.apis import runs
from mmkdx.apis.runs import metric_cells

repeat = tool('analysis_tools/repeat_runs')


@pytest.fixture
def start(tmp_path, monkeypatch, capsys):
    """A function that runs the tool on two configs with tools that only write, and what they got."""
    calls = []
    configs = [tmp_path / f'{name}.py' for name in ('alone', 'kd')]
    for config in configs:
        config.write_text('')

    def call(name, config, *arguments, log):
        arguments = list(map(str, arguments))
        seed = int(next(a for a in arguments if a.startswith('randomness')).partition('=')[2])
        calls.append((name, config.stem, seed, arguments))
        folder = log.parent
        if name == 'train.py':
            (folder / 'last_checkpoint').write_text('last.pth')
        else:
            score = {'accuracy/top1': 50.0 + 10 * seed, 'explain/pearson': 0.25}
            if config.stem == 'alone':
                del score['explain/pearson']
            (folder / 'test.part.json').write_text(json.dumps(score))

    monkeypatch.setattr(runs, 'call_tool', call)

    def start(*arguments):
        options = ['--work-dir', str(tmp_path / 'out'), *map(str, configs)]
        monkeypatch.setattr('sys.argv', ['repeat_runs.py', *options, *arguments])
        repeat.main()
        return capsys.readouterr().out.splitlines()

    start.calls, start.folder = calls, tmp_path
    return start


def test_a_collapsed_run_without_a_score_leaves_the_table_whole():
    """All maps of such a run are constant, so its agreement is NaN, and its loss may be infinite."""
    lost = dict(zip(('pearson', 'nll'), (math.nan, math.inf)))
    runs = [dict(pearson=0.5, nll=1.0), lost, dict(pearson=0.7, nll=2.0), dict(nll=3.0)]
    assert metric_cells(runs, ['pearson']) == ['0.600 ± 0.141 (n = 2)']
    with np.errstate(invalid='ignore'):
        assert metric_cells(runs, ['nll']) == ['inf ± nan']
    assert metric_cells([lost] * 2, ['pearson', 'other']) == ['', '']


def test_each_config_is_trained_and_tested_with_each_seed(start):
    metrics = ['--metrics', 'accuracy/top1', 'explain/pearson']
    lines = start('--seeds', '0', '2', *metrics, '--cfg-options', 'train_cfg.max_epochs=1')
    assert lines == [
        '|  | accuracy/top1 | explain/pearson |',
        '| --- | --- | --- |',
        '| alone | 60.00 ± 14.14 |  |',
        '| kd | 60.00 ± 14.14 | 0.250 ± 0.000 |',
    ]
    assert [each[:3] for each in start.calls] == [
        (name, config, seed)
        for config in ('alone', 'kd')
        for seed in (0, 2)
        for name in ('train.py', 'test.py')
    ]
    for name, _, seed, arguments in start.calls:
        assert arguments[-2:] == [f'randomness.seed={seed}', 'train_cfg.max_epochs=1']
        assert ('last.pth' in arguments) == (name == 'test.py')


def test_finished_runs_are_not_run_again(start):
    first = start('--seeds', '1', '--names', 'A', 'B')
    assert first[2] == '| A | 60.00 |'
    count = len(start.calls)
    (start.folder / 'out/kd/seed_1/test.json').unlink()
    assert start('--seeds', '1', '--names', 'A', 'B') == first
    assert [each[1] for each in start.calls[count:]] == ['kd', 'kd']


def test_mistakes(start, capsys):
    with pytest.raises(SystemExit):
        start('--names', 'A')
    assert 'there are 1 names for 2 configs' in capsys.readouterr().err
    (start.folder / 'more').mkdir()
    (start.folder / 'more/kd.py').touch()
    with pytest.raises(SystemExit):
        start(str(start.folder / 'more/kd.py'))
    assert 'two configs have the same file name' in capsys.readouterr().err
    (start.folder / 'kd.py').unlink()
    with pytest.raises(SystemExit):
        start()
    assert 'there is no config' in capsys.readouterr().err


def test_a_torn_result_is_done_again(start, capsys):
    start('--seeds', '0')
    path = start.folder / 'out/kd/seed_0/test.json'
    whole = path.read_text()
    path.write_text(whole[:9])
    del start.calls[:]
    assert start('--seeds', '0')[2:] == ['| alone | 50.00 |', '| kd | 50.00 |']
    assert [each[:2] for each in start.calls] == [('train.py', 'kd'), ('test.py', 'kd')]
    assert path.read_text() == whole and not path.with_name('test.part.json').exists()
