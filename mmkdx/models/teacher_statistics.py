"""Reads and checks the file of a teacher's statistics, which a tool makes for losses."""

from __future__ import annotations

import math
from pathlib import Path

from mmkdx.arguments import text
from mmkdx.checkpoints import load_checkpoint_file

TOOL = 'tools/analysis_tools/teacher_statistics.py'

#: The keys that each file has.
KEYS = {'mass', 'class_mean', 'weight_similarity', 'tau'}


def read_statistics(option: str, file: str) -> dict:
    """Reads a file that ``TOOL`` made.

    Args:
        option (str): The option that names the file, for messages.
        file (str): Its path.

    Raises:
        ValueError: If the option is no path, or the file holds something else.
        FileNotFoundError: If there is no file.
    """
    text(option, file, 'the path of a file')
    if not Path(file).is_file():
        raise FileNotFoundError(f'{option}: there is no file {str(file)!r}; make it with {TOOL}')
    found = load_checkpoint_file(file)
    if not isinstance(found, dict) or not KEYS <= set(found):
        raise ValueError(f'{option}: {file} holds no statistics of a teacher; make it with {TOOL}')
    return found


def check_tau(option: str, file: str, found: dict, name: str, tau: float) -> None:
    """Refuses statistics that were made at another temperature than the option ``name``.

    Raises:
        ValueError: If the two differ.
    """
    if not math.isclose(found['tau'], tau, rel_tol=1e-6):
        raise ValueError(
            f'{option}: {file} has tau {found["tau"]:g}, and {name} is {tau:g}; make it again '
            f'with {TOOL}'
        )


def check_classes(option: str, file: str, found: dict, classes: int) -> None:
    """Refuses statistics that have another number of classes than the teacher.

    Raises:
        ValueError: If the two differ.
    """
    if len(found['class_mean']) != classes:
        raise ValueError(
            f'{option}: {file} has {len(found["class_mean"])} classes, and the teacher has '
            f'{classes}; make it again with {TOOL}'
        )
