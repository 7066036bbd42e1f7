"""Writes files so that a crash leaves the old or the new one whole; reads files after a crash."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from mmengine.logging import print_log


class WriteError(OSError):
    """A file cannot be written; the message names the file and the reason."""


def write_file(path: str | os.PathLike, content: bytes | memoryview | str) -> None:
    """Writes a file under a temporary name, flushes it to the disk and renames it.

    After a crash or on a full disk, an earlier file of this name is still whole.

    Args:
        path (str | os.PathLike): The file; its folder is made if there is none.
        content (bytes | memoryview | str): Its content; text is written as UTF-8.

    Raises:
        WriteError: If the file cannot be written, for instance because the disk is full.
    """
    # A report may show a file name that is not UTF-8
    data = content.encode(errors='replace') if isinstance(content, str) else content
    target = Path(os.path.realpath(path))  # replaces the target of a link, not the link
    # Always the same name, so that the next write replaces what a killed process left. Names have at
    # most 255 bytes.
    part = target.with_name(os.fsdecode(os.fsencode(target.name)[:250] + b'.part'))
    own = None
    try:
        with _named(path):
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists() and not target.is_file():  # a device like /dev/stdout
                target.write_bytes(data)
                return
            part.unlink(missing_ok=True)
            with part.open('xb') as file:
                own = os.fstat(file.fileno())
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if not os.path.samestat(own, part.stat()):
                raise OSError('another process is writing it')
            os.replace(part, target)
    finally:
        with suppress(OSError):
            if own is not None and os.path.samestat(own, part.stat()):
                part.unlink()
    with suppress(OSError):  # not every file system can flush a folder
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def written_together(folder: str | os.PathLike) -> Iterator[Path]:
    """Yields an empty folder for the files of one result, and moves them to ``folder`` at the end.

    If one of them cannot be written, all earlier files stay.

    Args:
        folder (str | os.PathLike): The folder; it is made if there is none.

    Raises:
        WriteError: If the folder cannot be written to.
    """
    part = Path(folder, '.part')
    shutil.rmtree(part, ignore_errors=True)  # what a killed process left
    try:
        with _named(folder):
            part.mkdir(parents=True)
        yield part
        with _named(folder):
            for path in sorted(part.iterdir()):
                os.replace(path, Path(folder, path.name))
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def exit_on_write_error() -> Iterator[None]:
    """Ends a command-line tool with one sentence and status 1 if a file cannot be written.

    It also works as a decorator. It covers files that other libraries write, such as copies of
    configs.
    """
    try:
        yield
    except WriteError as error:
        raise SystemExit(str(error)) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO):
            raise
        where = error.filename or f'a file, perhaps in {tempfile.gettempdir()}'
        raise SystemExit(f'cannot write {where}: {error.strerror}') from error


def printable(name: str | os.PathLike) -> str:
    """A name as one line of text; control characters and bytes that are no text are escaped."""
    return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in os.fspath(name))


def append_text(path: str | os.PathLike, text: str) -> None:
    """Appends whole lines to a text file, after removing a last line that a crash left incomplete.

    Args:
        path (str | os.PathLike): The file; its folder is made if there is none.
        text (str): The lines; the last one ends with a line break, too.

    Raises:
        WriteError: If the file cannot be written; it keeps the lines that it had.
    """
    path, data = Path(path), text.encode(errors='replace')
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open('a+b', buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            tail = _last_line(file, end)
            if _record(tail) is not None:
                data = b'\n' + data
            elif tail:
                _warn(f'{path}: the incomplete last line is removed.')
                end = file.truncate(end - len(tail))
            try:
                while data:
                    data = data[file.write(data) :]
            except BaseException:
                file.truncate(end)
                raise


def read_json_lines(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads a file with a JSON object in each line; other lines are left out with a warning."""
    lines = Path(path).read_text(encoding='utf-8', errors='replace').removesuffix('\n').split('\n')
    found = []
    for number, line in enumerate(lines, 1):
        record = _record(line)
        if record is not None:
            found.append(record)
        elif lines != ['']:
            _warn(f'{path}: line {number} is no JSON object and is left out.')
    return found


@contextmanager
def _named(path: str | os.PathLike) -> Iterator[None]:
    """Names the path in errors about writing."""
    try:
        yield
    except OSError as error:
        raise WriteError(f'cannot write {path}: {error.strerror or error}') from error


def _last_line(file: BinaryIO, end: int) -> bytes:
    """The bytes after the last line break of a file that has ``end`` bytes."""
    tail = b''
    while end and b'\n' not in tail:
        size = min(end, 4096)
        end -= size
        file.seek(end)
        tail = file.read(size) + tail
    return tail[tail.rfind(b'\n') + 1 :]


def _record(line: bytes | str) -> dict[str, Any] | None:
    """The JSON object of a line; None if the line holds no whole one."""
    with suppress(ValueError, RecursionError):
        record = json.loads(line)
        if isinstance(record, dict):
            return record
    return None


def _warn(text: str) -> None:
    print_log(text, logger='current', level=logging.WARNING)
