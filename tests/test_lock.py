"""One writer for each folder."""

import errno
import fcntl
import json
import os
import re
import signal
import socket

import pytest
from full_disk import full_disk

from mmkdx.files import WriteError
from mmkdx.lock import NAME, FolderInUseError, FolderLock

ADVICE = 'wait for it'


@pytest.fixture
def other():
    """Runs a function in another process, which holds what it has until the test ends."""
    children = []

    def hold(function):
        read, write = os.pipe()
        child = os.fork()
        if not child:
            try:
                function()
                os.write(write, b'1')
            except FolderInUseError:
                os.write(write, b'0')
            signal.pause()
        children.append(child)
        assert os.read(read, 1) == b'1'
        return child

    yield hold
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def kept():
    """Locks that stay alive."""
    return kept.__dict__.setdefault('locks', [])


def test_a_second_process_is_refused_and_told_of_the_first(tmp_path, other):
    folder = tmp_path / 'runs' / 'a'
    child = other(lambda: kept().append(FolderLock(folder, ADVICE)))
    said = (
        f'{folder} is in use by process {child} on {socket.gethostname()}, started '
        r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d; wait for it$'
    )
    with pytest.raises(FolderInUseError, match=said):
        FolderLock(folder, ADVICE)
    FolderLock(folder, ADVICE, force=True)


def test_a_killed_process_keeps_nobody_out(tmp_path, other):
    child = other(lambda: kept().append(FolderLock(tmp_path, ADVICE)))
    os.kill(child, signal.SIGSTOP)
    with pytest.raises(FolderInUseError):
        FolderLock(tmp_path, ADVICE)
    os.kill(child, signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    FolderLock(tmp_path, ADVICE)


def test_a_fork_does_not_keep_the_lock(tmp_path, other):
    lock = FolderLock(tmp_path, ADVICE)
    other(lambda: None)  # has all files of this process
    lock.release()
    other(lambda: kept().append(FolderLock(tmp_path, ADVICE)))


def test_released(tmp_path, other):
    FolderLock(tmp_path, ADVICE).release()
    assert (tmp_path / NAME).read_text() == ''
    other(lambda: kept().append(FolderLock(tmp_path, ADVICE)))


@pytest.fixture
def without_locks(monkeypatch):
    """A file system that has no locks."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(fcntl, 'lockf', refuse)


def test_without_locks_the_text_tells(tmp_path, other, without_locks):
    child = other(lambda: kept().append(FolderLock(tmp_path, ADVICE)))
    with pytest.raises(FolderInUseError, match=f'process {child} on'):
        FolderLock(tmp_path, ADVICE)
    text = (tmp_path / NAME).read_text()
    for changes in (dict(process=2**22 + 1), dict(ticks=1)):  # no such process; an earlier one
        (tmp_path / NAME).write_text(json.dumps({**json.loads(text), **changes}))
        FolderLock(tmp_path, ADVICE)
    (tmp_path / NAME).write_text(json.dumps({**json.loads(text), 'host': 'elsewhere'}))
    with pytest.raises(FolderInUseError, match='on elsewhere'):
        FolderLock(tmp_path, ADVICE)


@pytest.mark.parametrize('text', ['', 'torn {', '[1]', '{}'])
def test_a_torn_text_does_not_matter(tmp_path, text):
    (tmp_path / NAME).write_text(text)
    FolderLock(tmp_path, ADVICE)


def test_a_holder_without_text(tmp_path, other):
    other(lambda: kept().append(FolderLock(tmp_path, ADVICE)))
    (tmp_path / NAME).write_text('')
    with pytest.raises(FolderInUseError, match=r'process \? on \?, started at an unknown time'):
        FolderLock(tmp_path, ADVICE)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(WriteError, match=re.escape(f'cannot write {tmp_path}/file/{NAME}: ')):
        FolderLock(tmp_path / 'file', ADVICE)


def test_a_full_disk(tmp_path):
    with (
        full_disk(0),
        pytest.raises(WriteError, match=f'^cannot write .*{NAME}: File too large$'),
    ):
        FolderLock(tmp_path, 'wait')
