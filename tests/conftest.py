"""Settings of all tests."""

import functools
import os

import mmengine.config.utils
import pytest
import torch
from mmengine.visualization import Visualizer

# The models are so small that threads would only wait for one another, also those of processes that
# tests start.
os.environ.setdefault('OMP_NUM_THREADS', '1')
torch.set_num_threads(1)

# For each base of mmpretrain's that a config has, mmengine reads all 85 metafiles again.
mmengine.config.utils.load = functools.cache(mmengine.config.utils.load)


#: Files that take a minute or more. As a file's tests stay in one process, they begin first.
LONG = (
    'test_training.py',
    'test_tools/test_runs.py',
    'test_configs.py',
    'test_hooks/test_explain_hook.py',
    'test_hooks/test_pair_evaluation.py',
    'test_hooks/test_prototype_hooks.py',
    'test_distributed.py',
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Brings long files to the front, and measures coverage by the first case of each test alone.

    Tracing slows Python down by two thirds. Where coverage is not measured, pytest-cov fails on its
    own mark.
    """
    items.sort(key=lambda item: not item.nodeid.partition('::')[0].endswith(LONG))
    if config.getoption('no_cov', False):
        return
    seen = set()
    for item in items:
        name = item.nodeid.partition('[')[0]
        if name in seen:
            item.add_marker(pytest.mark.no_cover)
        seen.add(name)


@pytest.fixture(autouse=True)
def visualizers_of_its_own(monkeypatch):
    """Keeps the visualizers of other tests out.

    A runner asks for one by its name, which is the second in which it is built, and takes that of
    another run of the same second, with its folder.
    """
    monkeypatch.setattr(Visualizer, '_instance_dict', type(Visualizer._instance_dict)())
