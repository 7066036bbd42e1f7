"""The benchmarks find what they share, as when they are run as scripts."""

from pathlib import Path

import pytest


@pytest.fixture(scope='package', autouse=True)
def path_of_a_script():
    """Puts the folder of the benchmarks first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[3] / 'tools/benchmarks'))
        yield
