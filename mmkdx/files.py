"""Writing files so that a crash leaves the old or the new one whole, and reading what a crash left."""

from __future__ import annotations

import json
import os
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any


class WriteError(OSError):
    """A file cannot be written; the message names the file and the reason."""


def write_file(path: str | os.PathLike, content: bytes | str) -> None:
    """Writes a file under another name, flushes it to the disk and renames it.

    After a crash or on a full disk, an earlier file of this name is still whole.

    Args:
        path (str | os.PathLike): The file, in a folder that exists.
        content (bytes | str): Its content; text is written as UTF-8.

    Raises:
        WriteError: If the file cannot be written, for instance since the disk is full.
    """
    path = Path(path)
    # Always the same name, so that the next write replaces what a killed process left
    part = path.with_name(f'{path.name}.part')
    try:
        with part.open('wb') as file:
            # A report may show a file name that is not UTF-8
            file.write(content.encode(errors='replace') if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise WriteError(f'cannot write {path}: {error.strerror or error}') from error
    with suppress(OSError):  # not every file system can flush a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def printable(name: str | os.PathLike) -> str:
    """A name as one line of text, with escapes for control characters and bytes that are no text."""
    return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in os.fspath(name))


def append_text(path: str | os.PathLike, text: str) -> None:
    """Appends whole lines to a text file, after it has cut off a last line that a crash tore.

    Raises:
        WriteError: If the file cannot be written; what was there before is still whole.
    """
    path = Path(path)
    try:
        with path.open('a+b') as file:
            file.seek(0)
            whole = file.read().rfind(b'\n') + 1
            if whole < file.tell():
                warnings.warn(f'{path}: the torn last line is cut off', stacklevel=2)
                file.truncate(whole)
            try:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                file.truncate(whole)
                raise
    except OSError as error:
        raise WriteError(f'cannot write {path}: {error.strerror or error}') from error


def read_lines(path: str | os.PathLike) -> list[str]:
    """Reads the lines of a text file, without a last line that a crash tore."""
    *lines, torn = Path(path).read_text(encoding='utf-8', errors='replace').split('\n')
    if torn:
        warnings.warn(f'{path}: the torn last line is left out', stacklevel=2)
    return lines


def read_json_lines(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads a file of JSON lines, without a last line that a crash tore.

    Raises:
        ValueError: If another line is no JSON; it names the file and the line.
    """
    found = []
    for number, line in enumerate(read_lines(path), 1):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f'{path}: line {number} is no JSON: {error}') from error
    return found
