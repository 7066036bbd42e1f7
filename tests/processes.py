"""Scripts in processes of their own, which start as copies of this one.

A new interpreter imports torch, mmengine and mmpretrain for several seconds; a copy has them already.
"""

from __future__ import annotations

import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

from mmkdx.registry import DATASETS, EXPLAINERS, HOOKS, METRICS, MODELS

TESTS = Path(__file__).parent
# Here, and not in each copy
for registry in (DATASETS, EXPLAINERS, HOOKS, METRICS, MODELS):
    registry.import_from_location()


class Script:
    """A running script, with what it writes.

    Args:
        path (str | Path): The script.
        *arguments: Its arguments.
        cwd (str | Path, optional): Its working directory. Defaults to None (this one).
        env (Mapping, optional): Variables that its environment has beside those of this process.
    """

    def __init__(
        self,
        path: str | Path,
        *arguments: object,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.args = [str(path), *map(str, arguments)]
        self._files = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        sys.stdout.flush(), sys.stderr.flush()
        with warnings.catch_warnings():
            # Python 3.12 warns of threads, of which those of this process hold no lock for long
            warnings.simplefilter('ignore', DeprecationWarning)
            self.pid = os.fork()
        if not self.pid:
            os._exit(self._run(cwd, env or {}))

    def _run(self, cwd: str | Path | None, env: Mapping[str, str]) -> int:
        """What the copy does; returns its exit status."""
        code = 1
        try:
            sys.settrace(None)  # coverage
            for target, file in enumerate(self._files, 1):
                os.dup2(file.fileno(), target)
            sys.stdin = open(os.devnull)
            sys.stdout, sys.stderr = (open(i, 'w', buffering=1, closefd=False) for i in (1, 2))
            os.environ.update(env)
            os.chdir(cwd or os.getcwd())
            sys.argv = self.args
            sys.path[:0] = [
                str(Path(self.args[0]).resolve().parent),
                str(TESTS),
                str(TESTS / 'test_losses'),
            ]
            torch.manual_seed(0)
            for manager in (DefaultScope, MessageHub, MMLogger, Visualizer):
                manager._instance_dict.clear()
            warnings.resetwarnings()
            runpy.run_path(self.args[0], run_name='__main__')
            code = 0
        except SystemExit as leave:
            code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
            if isinstance(leave.code, str):
                print(leave.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
        return code

    def wait(self, timeout: float = 240) -> subprocess.CompletedProcess:
        """Its exit status and what it wrote; it is killed after some seconds."""
        end, done = time.monotonic() + timeout, 0
        while not done and time.monotonic() < end:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            time.sleep(0.01)
        if not done:
            os.kill(self.pid, signal.SIGKILL)
            status = os.waitpid(self.pid, 0)[1]
        texts = []
        for file in self._files:
            file.seek(0)
            texts.append(file.read().decode(errors='replace'))
            file.close()
        return subprocess.CompletedProcess(self.args, os.waitstatus_to_exitcode(status), *texts)


def run_script(path: str | Path, *arguments: object, **options) -> subprocess.CompletedProcess:
    """Runs a script as ``subprocess.run`` would with ``capture_output`` and ``text``."""
    return Script(path, *arguments, **options).wait()


def launch(path: str | Path, *arguments: object, world: int = 2, **options) -> None:
    """Runs a script in several processes that find each other, as ``torchrun`` does."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    common = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), WORLD_SIZE=str(world))
    ranks = [
        Script(
            path,
            *arguments,
            env=dict(common, RANK=str(rank), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world)),
            **options,
        )
        for rank in range(world)
    ]
    for done in [rank.wait() for rank in ranks]:
        assert done.returncode == 0, done.stderr[-3000:]


def run_ranks(script: str, out: Path, world: int) -> list:
    """What each rank saves: a script is run in processes of its own, with ``out``, rank and world.

    Rank r saves a file ``<out>.<r>``. The script finds the package and the tests' modules.
    """
    file = out.with_suffix('.py')
    file.write_text(script)
    ranks = [Script(file, out, rank, world) for rank in range(world)]
    for done in [rank.wait() for rank in ranks]:
        assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(f'{out}.{rank}') for rank in range(world)]
