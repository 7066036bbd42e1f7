import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command, folder, **environment):
    """Runs Python with `folder` on its path, and returns the finished process."""
    path = os.pathsep.join([str(folder), str(ROOT)])
    environment = {**os.environ, 'PYTHONPATH': path, 'PYTHONDONTWRITEBYTECODE': '1', **environment}
    command = [sys.executable, *command]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    """A folder with two installed plugins, of which one fails."""
    folder = tmp_path_factory.mktemp('site')
    plugins = dict(
        broken="raise OSError('the disk is full')\n",
        # builds upon mmpretrain while it is being loaded, which leads back into mmkdx.plugins
        curious='from mmkdx.plugins import loaded_plugins\n'
        'from mmkdx.registry import MODELS\n'
        "MODELS.register_module(name='CuriousPart', module=type('CuriousPart', (), {}))\n"
        "assert MODELS.get('ResNet') and [p.name for p in loaded_plugins()] == ['broken']\n"
        "print('curious was imported')\n",
    )
    for name, code in plugins.items():
        folder.joinpath(f'{name}_module.py').write_text(code)
        info = folder / f'{name}_package-1.2.dist-info'
        info.mkdir()
        info.joinpath('METADATA').write_text(f'Name: {name}-package\nVersion: 1.2\n')
        info.joinpath('entry_points.txt').write_text(f'[mmkdx.plugins]\n{name} = {name}_module\n')
    return folder


SENTENCE = "Plugin 'broken' of broken-package 1.2 cannot be loaded: OSError: the disk is full"

LOOK_UP = """
from mmkdx.registry import HOOKS, MODELS
print('CuriousPart' in MODELS)
HOOKS.get('EMAHook')
from mmkdx.plugins import loaded_plugins
for plugin in loaded_plugins():
    print(*plugin, sep=' | ')
"""


# the only location of this registry are the plugins
QUICK_LOOK_UP = """
from mmkdx.registry import EXPLAINERS
print('CuriousPart' in EXPLAINERS)
from mmkdx.plugins import loaded_plugins
print(loaded_plugins())
"""


def test_plugins_load_once_and_a_failing_one_is_skipped(site):
    done = run('-c', LOOK_UP, folder=site)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('curious was imported') == 1
    assert (done.stdout + done.stderr).count(f'{SENTENCE}; it is skipped.') == 1
    lines = done.stdout.splitlines()
    assert 'True' in lines
    assert 'broken | broken-package 1.2 | OSError: the disk is full' in lines
    assert 'curious | curious-package 1.2 | None' in lines


def test_strict(site):
    done = run('-c', QUICK_LOOK_UP, folder=site, MMKDX_STRICT_PLUGINS='1')
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f'RuntimeError: {SENTENCE}'


def test_off(site):
    done = run('-c', QUICK_LOOK_UP, folder=site, MMKDX_NO_PLUGINS='1')
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ['False', '[]']


def test_example_plugin(tmp_path):
    # installing builds inside the folder, so a copy of it is installed
    project = shutil.copytree(ROOT / 'projects/example_plugin', tmp_path / 'project')
    site = tmp_path / 'site'
    options = ['--no-deps', '--no-build-isolation', '--no-index', '--target', str(site)]
    done = run('-m', 'pip', 'install', *options, str(project), folder=site)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(project / 'mmkdx_example_plugin')  # only the installed package is left
    done = run('-m', 'pytest', '-q', '-p', 'no:cacheprovider', str(project / 'tests'), folder=site)
    assert done.returncode == 0, done.stdout
    assert '11 passed' in done.stdout
