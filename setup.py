"""Packaging; the settings of the development tools are in pyproject.toml."""

import os
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()
# What a user may install beside mmkdx: each is a file of requirements/
EXTRAS = ('demo', 'tests', 'docs', 'optional', 'libraries', 'export')
# What mim and mmengine look for in the folder `.mim` of an installed package
MIM_FILES = ('tools', 'configs', 'model-index.yml')


def version() -> str:
    """Reads the version without importing the package, whose dependencies may be missing."""
    return re.search(r"__version__ = '(.+)'", (ROOT / 'mmkdx/version.py').read_text())[1]


def requirements(name: str) -> list[str]:
    """Reads requirements/NAME.txt."""
    lines = (ROOT / f'requirements/{name}.txt').read_text().splitlines()
    lines = [line.partition('#')[0].strip() for line in lines]
    return [line for line in lines if line]


class BuildWithMimFiles(build_py):
    """Puts mim's files into the package: copies in a wheel, links in an editable installation."""

    def run(self) -> None:
        """Builds the package."""
        super().run()
        folder = Path(ROOT if self.editable_mode else self.build_lib, 'mmkdx', '.mim')
        folder.mkdir(parents=True, exist_ok=True)
        for name in MIM_FILES:
            _remove(folder / name)
            if self.editable_mode:
                _link(ROOT / name, folder / name)
            else:
                _copy(ROOT / name, folder / name)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _link(source: Path, target: Path) -> None:
    try:
        # relative, so that the checkout can be moved
        target.symlink_to(os.path.relpath(source, target.parent), source.is_dir())
    except OSError:  # Windows allows links only to developers
        _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns('__pycache__'))
    else:
        shutil.copy2(source, target)


setup(
    name='mmkdx',
    version=version(),
    description='Explainable knowledge distillation on mmengine and mmpretrain',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author='The mmkdx contributors',
    license='Apache-2.0',
    keywords='knowledge distillation, explainable AI, class activation map, computer vision',
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Operating System :: OS Independent',
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    python_requires='>=3.10',
    packages=find_packages(include=['mmkdx', 'mmkdx.*']),
    package_data={'mmkdx.visualization': ['*.html']},
    install_requires=requirements('runtime'),
    # The two package families hold the same modules, so which one is installed is the user's choice
    extras_require={
        'openmmlab': requirements('mminstall'),
        'onedl': requirements('mminstall-onedl'),
        **{name: requirements(name) for name in EXTRAS},
    },
    cmdclass={'build_py': BuildWithMimFiles},
    zip_safe=False,
)
