"""Settings of all tests."""

import gc
import os
from pathlib import Path

import pytest
import quick  # noqa: F401
import torch
from family_tests import touches
from mmengine.visualization import Visualizer

# The models are so small that threads would only wait for one another, also those of processes that
# tests start.
os.environ.setdefault('OMP_NUM_THREADS', '1')
torch.set_num_threads(1)


#: Files that take a minute or more. As a file's tests stay in one process, they begin first.
LONG = (
    'test_training.py',
    'test_tools/test_runs.py',
    'test_configs.py',
    'test_hooks/test_explain_hook.py',
    'test_hooks/test_pair_evaluation.py',
    'test_hooks/test_prototype_hooks.py',
    'test_distributed.py',
    'campaign/test_campaign.py',
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds what the second family of packages and the campaign run with."""
    parser.addoption(
        '--first-cases',
        action='store_true',
        help='run the first case of each test alone, and of configs the first of each folder',
    )
    parser.addoption('--minutes', type=float, default=10, help='how long the campaign runs')
    parser.addoption('--seed', type=int, default=0, help="the campaign's random seed")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Shows what the campaign found, also where other processes ran it."""
    rows = [
        row
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, 'when', None) == 'call'
        for name, row in report.user_properties
        if name == 'campaign'
    ]
    if rows:
        from campaign import table  # it imports mmkdx, whose coverage is not measured at the start

        terminalreporter.section('campaign')
        terminalreporter.write_line(table(rows))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips GPU tests without a GPU, brings long files to the front, and limits what coverage traces.

    Coverage is measured by the first case of each test, since tracing slows Python down by two thirds.
    Where coverage is not measured, pytest-cov fails on its own mark.
    """
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker('gpu'):
                item.add_marker(pytest.mark.skip(reason='needs a GPU'))
    items.sort(key=lambda item: not item.nodeid.partition('::')[0].endswith(LONG))
    if 'families' in config.getoption('markexpr'):
        for item in items:
            if touches(item.path, item.originalname):
                item.add_marker(pytest.mark.families)
    first, seen = [], set()
    for item in items:
        name, _, case = item.nodeid.partition('[')
        folder = Path(case).parent if case.startswith('configs/') else None
        if (name, folder) not in seen and not item.get_closest_marker('slow'):
            first.append(item)
            seen.add((name, folder))
    if config.getoption('first_cases'):
        config.hook.pytest_deselected(items=list(set(items).difference(first)))
        items[:] = first
    elif not config.getoption('no_cov', False):
        for item in set(items).difference(first):
            item.add_marker(pytest.mark.no_cover)


def pytest_collection_finish():
    """Leaves what is imported and collected out of garbage collections, which mmengine asks for."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def visualizers_of_its_own(monkeypatch):
    """Keeps the visualizers of other tests out.

    A runner asks for one by its name, which is the second in which it is built, and takes that of
    another run of the same second, with its folder.
    """
    monkeypatch.setattr(Visualizer, '_instance_dict', type(Visualizer._instance_dict)())
