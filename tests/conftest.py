"""Settings of all tests."""

import pytest
import torch

# The models are so small that threads would only wait for one another.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Measures coverage by the first case of each test alone: it slows Python down by two thirds."""
    seen = set()
    for item in items:
        name = item.nodeid.partition('[')[0]
        if name in seen:
            item.add_marker(pytest.mark.no_cover)
        seen.add(name)
