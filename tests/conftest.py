"""Settings of all tests."""

import functools
import os

import mmengine.config.utils
import pytest
import torch

# The models are so small that threads would only wait for one another, also those of processes that
# tests start.
os.environ.setdefault('OMP_NUM_THREADS', '1')
torch.set_num_threads(1)

# For dcor and hyppo: to compile them takes half a minute longer than to run them as Python.
os.environ.setdefault('NUMBA_DISABLE_JIT', '1')

# For each base of mmpretrain's that a config has, mmengine reads all 85 metafiles again.
mmengine.config.utils.load = functools.cache(mmengine.config.utils.load)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Measures coverage by the first case of each test alone: it slows Python down by two thirds."""
    seen = set()
    for item in items:
        name = item.nodeid.partition('[')[0]
        if name in seen:
            item.add_marker(pytest.mark.no_cover)
        seen.add(name)
