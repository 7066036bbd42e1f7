"""The campaign, and the frame that its drivers run in."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from campaign import COLUMNS, FOLDER, drivers, faults, run, table

FAKES = {
    'a_good': """
def drive(minutes, seed):
    print('a word of mine')
    return [dict(what=f'{minutes:.2f} minutes, seed {seed}', tried=2, survived=2, lost=0, silent=0)]
""",
    'b_hangs': """
import os, pathlib, subprocess, tempfile, time

def drive(minutes, seed):
    child = subprocess.Popen(['sleep', '1000'])
    pathlib.Path(tempfile.gettempdir(), 'child').write_text(str(child.pid))
    time.sleep(1000)
""",
    'c_dies': """
import os

def drive(minutes, seed):
    os.abort()
""",
    'd_fails': """
def drive(minutes, seed):
    raise RuntimeError('a mistake of the driver')
""",
    'e_loses': """
def drive(minutes, seed):
    return [
        dict(what='one', tried=3, survived=2, lost=1, silent=0),
        dict(what='two', tried=1, survived=0, lost=0, silent=1),
    ]
""",
    'f_tries_nothing': """
def drive(minutes, seed):
    return [dict(what='three', tried=0, survived=0, lost=0, silent=0)]
""",
    'helper': 'def drives(): pass\n',
}


def measure(rows: list[dict], record_property) -> None:
    """Hands the rows to the table of the end, and fails where there are faults."""
    for row in rows:
        record_property('campaign', row)
    assert not faults(rows), f'\n{table(faults(rows))}'


@pytest.mark.campaign
def test_campaign(tmp_path, request, record_property):
    minutes, seed = (request.config.getoption(name) for name in ('minutes', 'seed'))
    measure(run(tmp_path, minutes, seed), record_property)


def test_short_campaign(tmp_path, record_property):
    # These two train a whole run first; test_checkpoint_hook.py has their cases
    left_out = ('checkpoint_disk_full', 'kill')
    measure(run(tmp_path, minutes=0.1, seed=0, left_out=left_out), record_property)


def test_drivers_are_found():
    assert 'names' in drivers() and not {'__init__', '__main__', 'test_campaign'} & {*drivers()}


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended may wait for its parent."""
    stat = Path(f'/proc/{pid}/stat')
    return stat.exists() and stat.read_text().rpartition(')')[2].split()[0] != 'Z'


def test_a_driver_that_fails_is_lost_and_the_rest_goes_on(tmp_path, capsys):
    folder, out = tmp_path / 'fakes', tmp_path / 'out'
    folder.mkdir(), out.mkdir()
    for name, code in FAKES.items():
        (folder / f'{name}.py').write_text(code)
    rows = run(out, minutes=0.06, seed=7, folder=folder, grace=2)
    lost = dict(tried=1, survived=0, lost=1, silent=0)
    assert rows == [
        dict(what='0.01 minutes, seed 7', tried=2, survived=2, lost=0, silent=0),
        *(dict(what=name, **lost) for name in ('b_hangs', 'c_dies', 'd_fails')),
        dict(what='one', tried=3, survived=2, lost=1, silent=0),
        dict(what='two', tried=1, survived=0, lost=0, silent=1),
        dict(what='f_tries_nothing', **lost),
    ]
    output = capsys.readouterr().out
    for text in ('a word of mine', 'RuntimeError: a mistake of the driver'):
        assert text in output
    assert 'b_hangs.py", line 7 in drive' in output, 'where it hangs'
    child = int((out / 'child').read_text())
    end = time.monotonic() + 10
    while alive(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(child), 'what the driver has started'


@pytest.mark.parametrize(
    ('tried', 'survived', 'lost', 'silent', 'fault'),
    [
        (5, 5, 0, 0, False),
        (5, 4, 1, 0, True),
        (5, 4, 0, 1, True),
        (5, 4, 0, 0, True),  # one try is missing
        (0, 0, 0, 0, False),  # a short campaign leaves some kinds out
    ],
)
def test_faults(tried, survived, lost, silent, fault):
    row = dict(what='x', tried=tried, survived=survived, lost=lost, silent=silent)
    assert faults([row]) == [row] * fault


def test_the_table_of_the_end_has_the_rows_of_all_processes(pytestconfig):
    """Each report of a test has its properties; the one of the call counts."""
    row = dict(what='kills', tried=5, survived=4, lost=1, silent=0)
    properties = [('campaign', row), ('other', 3)]
    reports = [
        SimpleNamespace(when=when, user_properties=properties)
        for when in ('setup', 'call', 'teardown')
    ]
    lines = []
    reporter = SimpleNamespace(
        stats={'': [reports[0], reports[2]], 'failed': [reports[1]], 'warnings': [object()]},
        section=lines.append,
        write_line=lines.append,
    )
    (hook,) = (
        plugin.pytest_terminal_summary
        for plugin in pytestconfig.pluginmanager.get_plugins()
        if getattr(plugin, '__file__', None) == str(FOLDER.parent / 'conftest.py')
    )
    hook(reporter)
    assert lines == ['campaign', table([row])]
    cells = [[each.strip() for each in line.split('|')[1:-1]] for line in lines[1].splitlines()]
    assert cells[1::2] == [[*COLUMNS], ['kills', '5', '4', '1', '0']]
    reporter.stats = {}
    hook(reporter)
    assert len(lines) == 2, 'no table without a campaign'
