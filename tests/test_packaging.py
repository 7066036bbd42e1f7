import re
import shutil
import subprocess
import sys
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

import pytest

from mmkdx.version import __version__

ROOT = Path(__file__).parents[1]


@pytest.fixture
def checkout(tmp_path):
    """A copy of what belongs to the package, because building leaves files behind."""
    copy = tmp_path / 'a checkout'
    ignore = shutil.ignore_patterns('__pycache__', '.mim')
    for name in ('configs', 'mmkdx', 'requirements', 'tools'):
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    for name in (
        'LICENSE',
        'MANIFEST.in',
        'README.md',
        'model-index.yml',
        'pyproject.toml',
        'setup.py',
    ):
        shutil.copy(ROOT / name, copy)
    return copy


def build(checkout, kind):
    """Builds as pip does, and returns the wheel."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}('dist'))"
    process = subprocess.run(
        [sys.executable, '-c', code], cwd=checkout, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    return ZipFile(checkout / 'dist' / process.stdout.splitlines()[-1])


def files(folder):
    """Lists the files below a folder, by their relative paths."""
    return {str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file()}


def test_wheel_holds_the_package_and_what_mim_looks_for(checkout):
    wheel = build(checkout, 'wheel')
    expected = {'mmkdx/.mim/model-index.yml'}
    for folder, target in (
        ('mmkdx', 'mmkdx'),
        ('tools', 'mmkdx/.mim/tools'),
        ('configs', 'mmkdx/.mim/configs'),
    ):
        expected |= {f'{target}/{name}' for name in files(checkout / folder)}
    held = {name for name in wheel.namelist() if '.dist-info/' not in name}
    assert held == expected


def test_wheel_leaves_the_choice_of_the_family(checkout):
    wheel = build(checkout, 'wheel')
    name = next(name for name in wheel.namelist() if name.endswith('.dist-info/METADATA'))
    metadata = message_from_bytes(wheel.read(name))
    assert (metadata['Name'], metadata['Version']) == ('mmkdx', __version__)
    needed = {
        re.split('[>=<]', line)[0]
        for line in metadata.get_all('Requires-Dist')
        if 'extra ==' not in line
    }
    assert 'torch' in needed and not any('mm' in name for name in needed)
    assert set(metadata.get_all('Provides-Extra')) == {
        'openmmlab',
        'onedl',
        'demo',
        'tests',
        'docs',
        'optional',
        'libraries',
        'export',
    }


def test_changelog_is_ordered_by_version():
    lines = re.findall('^## (.*)', (ROOT / 'CHANGELOG.md').read_text(), re.M)
    pattern = r'(\d+)\.(\d+)\.(\d+) \((?:\d{4}-\d\d-\d\d|unreleased)\)'
    versions = [tuple(map(int, re.fullmatch(pattern, line).groups())) for line in lines]
    assert versions == sorted(set(versions), reverse=True)
    assert '.'.join(map(str, versions[0])) == __version__


def test_editable_installation_links_what_mim_looks_for(checkout):
    mim = checkout / 'mmkdx/.mim'
    # from an older build, or from a system without links
    (mim / 'tools').mkdir(parents=True)
    (mim / 'tools/gone.py').touch()
    (mim / 'model-index.yml').touch()
    for _ in range(2):
        build(checkout, 'editable')
        for name in ('tools', 'configs', 'model-index.yml'):
            assert (mim / name).resolve() == checkout / name
    assert (checkout / 'tools/train.py').is_file()


@pytest.mark.parametrize(
    'name',
    [
        *('runtime', 'mminstall', 'mminstall-onedl', 'tests', 'docs', 'optional'),
        *('libraries', 'export'),
    ],
)
def test_every_requirement_has_a_tested_version(name):
    pins = {line.partition('==')[0] for line in (ROOT / 'requirements/constraints.txt').open()}
    for line in (ROOT / f'requirements/{name}.txt').read_text().splitlines():
        if line and not line.startswith('#'):
            assert re.split('[>=<]', line)[0] in pins
