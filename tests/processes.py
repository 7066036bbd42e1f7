"""Scripts in processes of their own, without the seconds that each takes to import torch and mmpretrain.

They are copies of one process that has imported both and has done nothing else.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path

import torch

TESTS = Path(__file__).parent
CONTEXT = multiprocessing.get_context('forkserver')
CONTEXT.set_forkserver_preload(
    [
        'quick',
        *('mmpretrain.datasets', 'mmpretrain.evaluation', 'mmpretrain.models'),
        *('mmkdx.apis', 'mmkdx.datasets', 'mmkdx.explain', 'mmkdx.hooks', 'mmkdx.losses'),
        *('mmkdx.metrics', 'mmkdx.models.backbones', 'mmkdx.models.heads'),
    ]
)


class Script:
    """A running script, and what it writes.

    Args:
        path (str | Path): The script.
        *arguments: Its arguments.
        cwd (str | Path, optional): Its working directory. Defaults to None (this one).
        env (Mapping, optional): Variables of its environment, beside those of this process.
    """

    def __init__(
        self,
        path: str | Path,
        *arguments: object,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.args = [str(path), *map(str, arguments)]
        self._folder = tempfile.TemporaryDirectory()
        self._files = [Path(self._folder.name, name) for name in ('stdout', 'stderr')]
        self.process = CONTEXT.Process(
            target=_run,
            args=(self.args, cwd or os.getcwd(), {**os.environ, **(env or {})}, self._files),
        )
        self.process.start()

    def wait(self, timeout: float = 240) -> subprocess.CompletedProcess:
        """Its exit status and what it wrote; after some seconds it is killed."""
        self.process.join(timeout)
        self.process.kill()
        self.process.join()
        texts = [path.read_text(errors='replace') for path in self._files]
        self._folder.cleanup()
        return subprocess.CompletedProcess(self.args, self.process.exitcode, *texts)


def _run(args: list[str], cwd: str | Path, env: Mapping[str, str], files: list[Path]) -> None:
    """What the process does."""
    for target, path in enumerate(files, 1):
        with path.open('w') as file:
            os.dup2(file.fileno(), target)
    sys.stdout, sys.stderr = (open(i, 'w', buffering=1, closefd=False) for i in (1, 2))
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    torch.set_num_threads(1)
    sys.argv = args
    sys.path[:0] = map(str, (Path(args[0]).resolve().parent, TESTS, TESTS / 'test_losses'))
    try:
        runpy.run_path(args[0], run_name='__main__')
        code = 0
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
        if isinstance(leave.code, str):
            print(leave.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)  # a thread of gloo may outlive the interpreter, which then aborts with all done


def run_script(path: str | Path, *arguments: object, **options) -> subprocess.CompletedProcess:
    """Runs a script as ``subprocess.run`` would with ``capture_output`` and ``text``."""
    return Script(path, *arguments, **options).wait()


def launch(
    path: str | Path,
    *arguments: object,
    world: int = 2,
    env: Mapping[str, str] | None = None,
    **options,
) -> str:
    """Runs a script in several processes that find each other, as ``torchrun`` does.

    Returns:
        str: What they wrote to stdout.
    """
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    common = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), WORLD_SIZE=str(world))
    done = _succeed(
        [
            Script(
                path,
                *arguments,
                env={**(env or {}), **common, 'RANK': str(rank), 'LOCAL_RANK': str(rank)},
                **options,
            )
            for rank in range(world)
        ]
    )
    return ''.join(each.stdout for each in done)


def run_ranks(script: str, out: Path, world: int) -> list:
    """What each rank saves: a script is run in processes of its own, with ``out``, rank and world.

    Rank r saves a file ``<out>.<r>``. The script finds the package and the tests' modules.
    """
    file = out.with_suffix('.py')
    file.write_text(script)
    _succeed([Script(file, out, rank, world) for rank in range(world)])
    return [torch.load(f'{out}.{rank}') for rank in range(world)]


def _succeed(ranks: list[Script]) -> list[subprocess.CompletedProcess]:
    done = [rank.wait() for rank in ranks]
    for each in done:
        assert each.returncode == 0, each.stderr[-3000:]
    return done


def is_formatted(*paths: str | Path) -> bool:
    """Whether ruff, with the settings of this project, would leave files as they are."""
    command = [sys.executable, '-m', 'ruff', 'format', '--check', '--config']
    command += [str(TESTS.parent / 'pyproject.toml'), *map(str, paths)]
    return subprocess.run(command, capture_output=True).returncode == 0
