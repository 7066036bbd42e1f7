"""Locks a folder so that only one process writes into it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from mmkdx.files import WriteError

#: The name of the lock file in a folder.
NAME = '.mmkdx.lock'


class FolderInUseError(RuntimeError):
    """Another process writes into the folder; the message names it."""


class FolderLock:
    """Keeps other processes out of a folder until this one ends or calls ``release``.

    The operating system drops the lock when the process ends, even after a crash. If the file
    system has no locks, the text of the lock file tells whether its writer still runs.

    Args:
        folder (str | os.PathLike): The folder; it is created if it is missing.
        advice (str): The end of the error message: what the user can do instead.
        force (bool): Whether to go on even if another process holds the lock. Defaults to False.

    Raises:
        FolderInUseError: If another process holds the lock and ``force`` is False.
        WriteError: If the lock cannot be written.
    """

    def __init__(self, folder: str | os.PathLike, advice: str, force: bool = False) -> None:
        self.path = Path(folder, NAME)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open('a+')
        except OSError as error:
            raise WriteError(f'cannot write {self.path}: {error.strerror}') from error
        holder = self._holder()
        if holder is not None and not force:
            self._file.close()
            raise FolderInUseError(
                f'{folder} is in use by process {holder["process"]} on {holder["host"]}, started '
                f'{holder["start"]}; {advice}'
            )
        own = dict(
            host=socket.gethostname(),
            process=os.getpid(),
            start=time.strftime('%Y-%m-%d %H:%M:%S'),
            ticks=_ticks(os.getpid()),
        )
        try:
            self._file.seek(0)
            self._file.truncate()
            self._file.write(json.dumps(own))
            self._file.flush()
        except OSError as error:
            raise WriteError(f'cannot write {self.path}: {error.strerror}') from error

    def release(self) -> None:
        """Releases the lock."""
        self._file.truncate(0)
        self._file.close()

    def _holder(self) -> dict[str, Any] | None:
        """The process that holds the lock; None if this process has it now."""
        self._file.seek(0)
        try:
            found = json.loads(self._file.read())
            found = dict(dict(host='?', process='?', start='?', ticks=None), **found)
        except (ValueError, TypeError):
            found = None
        try:
            # Workers of a dataloader do not inherit this lock; they would inherit one of flock
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return found or dict(host='?', process='?', start='at an unknown time')
        except OSError:  # a file system without locks
            if found and found['host'] == socket.gethostname():
                gone = found['ticks'] is None or _ticks(found['process']) != found['ticks']
                return None if gone or found['process'] == os.getpid() else found
            return found
        return None


def _ticks(process: int) -> int | None:
    """When a process started, in ticks of the system's clock; None if there is none."""
    try:
        return int(Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
