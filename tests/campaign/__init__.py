"""The campaign: drivers that kill, fill the disk, and hand in hostile or strange files.

A driver is a module of this folder with a function ``drive(minutes, seed)``. It tries until its
minutes are over, with random numbers of the seed, and prints each try that goes wrong. It returns
rows with the keys of ``COLUMNS``: how many tries of a kind (``what``) there were, and how many of
them survived, lost something, or were wrong without a word. Each try counts once.

The drivers run one after the other, in a process of their own. If one hangs, breaks down or tries
nothing, it counts as lost, and the next one goes on.
"""

from __future__ import annotations

import ast
import os
import signal
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from processes import Script
from terminaltables import AsciiTable

from mmkdx.files import read_json_lines

FOLDER = Path(__file__).parent
COLUMNS = ('what', 'tried', 'survived', 'lost', 'silent')
#: Seconds that a driver may take beyond its share, as its last try may begin at the share's end.
GRACE = 120.0


def drivers(folder: Path = FOLDER) -> list[str]:
    """The names of a folder's drivers."""
    return sorted(
        path.stem
        for path in folder.glob('*.py')
        if 'drive' in {getattr(node, 'name', None) for node in ast.parse(path.read_text()).body}
    )


def run(
    out: Path,
    minutes: float,
    seed: int,
    folder: Path = FOLDER,
    grace: float = GRACE,
    left_out: Collection[str] = (),
) -> list[dict]:
    """Runs a folder's drivers, each for its share of the time.

    Args:
        out (Path): An empty folder for what drivers write. It is their folder for temporary files.
        minutes (float): The time of all drivers together.
        seed (int): The seed of each driver.
        folder (Path): The folder of the drivers. Defaults to this one.
        grace (float): Seconds beyond its share after which a driver is stopped. Defaults to ``GRACE``.
        left_out (Collection[str]): Drivers that do not run. Defaults to none.

    Returns:
        list[dict]: The rows of all drivers. What drivers wrote is printed.
    """
    found = out / 'found.jsonl'
    found.touch()
    rows, left = [], [name for name in drivers(folder) if name not in left_out]
    share = minutes / max(len(left), 1)
    while left:
        arguments = (found, share, seed, 60 * share + grace, folder, *left)
        script = Script(FOLDER / '__main__.py', *arguments, env=dict(TMPDIR=str(out)))
        try:
            # A driver that is late stops the process itself; this is for one that prevents that
            done = script.wait((60 * share + grace) * len(left) + grace)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(script.process.pid, signal.SIGKILL)  # and what the drivers have started
        print(done.stdout, done.stderr, sep='')
        ended = [each['rows'] for each in read_json_lines(found)]
        found.write_text('')
        if len(ended) < len(left):
            ended.append([])
        for name, own in zip(left, ended):
            if not any(row['tried'] for row in own):
                print(f'{name} hung, broke down or tried nothing')
                own = [dict(what=name, tried=1, survived=0, lost=1, silent=0)]
            rows += own
        left = left[len(ended) :]
    return rows


def faults(rows: Sequence[dict]) -> list[dict]:
    """Rows with tries that did not survive."""
    return [row for row in rows if row['lost'] or row['silent'] or row['tried'] != row['survived']]


def table(rows: Sequence[dict]) -> str:
    """The rows as text."""
    return AsciiTable([COLUMNS, *([row[key] for key in COLUMNS] for row in rows)]).table
