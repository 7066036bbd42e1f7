"""Files that are whole whatever happens while they are written, and what is read of torn ones."""

import errno
import multiprocessing
import os
import signal
import tempfile
import time
from pathlib import Path

import pytest
from full_disk import full_disk
from mmengine.logging import MMLogger

from mmkdx.files import (
    WriteError,
    append_text,
    exit_on_write_error,
    read_json_lines,
    write_file,
    written_together,
)

OLD, NEW = b'what was there\n' * 9, b'what is new\n' * 5000


@pytest.fixture
def warnings(monkeypatch):
    """What is logged from now on."""
    found = []
    monkeypatch.setattr(MMLogger, 'log', lambda self, level, text: found.append(text))
    return found


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# Whole files


def test_content_and_folders(tmp_path):
    for path, content in (
        (tmp_path / 'a/b/c.txt', 'é\n'),
        (tmp_path / 'a/b/c.txt', memoryview(NEW)),
    ):
        write_file(path, content)
        assert path.read_bytes() == (content.encode() if isinstance(content, str) else NEW)
    assert names(tmp_path / 'a/b') == ['c.txt']
    # Not all names of files are text
    write_file(tmp_path / 'page', '<p>\udcff</p>')
    assert (tmp_path / 'page').read_bytes() == b'<p>?</p>'


@pytest.mark.parametrize('name', [b'\xff\n.png', b'x' * 255, '猫'.encode() * 85])
def test_all_names_that_a_file_system_allows(tmp_path, name):
    path = tmp_path / os.fsdecode(name)
    write_file(path, NEW)
    assert path.read_bytes() == NEW and len(names(tmp_path)) == 1


@pytest.mark.parametrize('size', [0, 1, 4096, len(NEW) - 1])
def test_a_full_disk_leaves_the_earlier_file(tmp_path, size):
    path = tmp_path / 'a.bin'
    path.write_bytes(OLD)
    with pytest.raises(WriteError, match=f'^cannot write {path}: File too large$'), full_disk(size):
        write_file(path, NEW)
    assert path.read_bytes() == OLD and names(tmp_path) == ['a.bin']
    with full_disk(len(NEW)):
        write_file(path, NEW)
    assert path.read_bytes() == NEW


@pytest.mark.parametrize('step', ['fsync', 'replace'])
def test_an_interrupt_leaves_the_earlier_file_alone(tmp_path, monkeypatch, step):
    path = tmp_path / 'a.bin'
    path.write_bytes(OLD)

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_file(path, NEW)
    assert path.read_bytes() == OLD and names(tmp_path) == ['a.bin']


def write_for_ever(path):
    while True:
        for content in (OLD * 2000, NEW * 20):
            write_file(path, content)


def test_a_killed_process_leaves_a_whole_file(tmp_path):
    path = tmp_path / 'a.bin'
    path.write_bytes(OLD * 2000)
    for delay in (0.05, 0.08, 0.11):
        process = multiprocessing.get_context('fork').Process(target=write_for_ever, args=(path,))
        process.start()
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert path.read_bytes() in (OLD * 2000, NEW * 20)
    # What the last one was about to write does not stay
    write_file(path, NEW)
    assert names(tmp_path) == ['a.bin'] and path.read_bytes() == NEW


def test_of_two_processes_that_write_a_file_one_says_so(tmp_path, monkeypatch):
    path, fsync = tmp_path / 'a.bin', os.fsync

    def other_process(number):
        monkeypatch.setattr(os, 'fsync', fsync)
        (tmp_path / 'a.bin.part').unlink()
        (tmp_path / 'a.bin.part').write_bytes(b'half')

    monkeypatch.setattr(os, 'fsync', other_process)
    with pytest.raises(WriteError, match='a.bin: another process is writing it'):
        write_file(path, NEW)
    assert names(tmp_path) == ['a.bin.part'] and (tmp_path / 'a.bin.part').read_bytes() == b'half'


def test_a_folder_of_that_name_is_named(tmp_path):
    (tmp_path / 'a').mkdir()
    with pytest.raises(WriteError, match=f'^cannot write {tmp_path}/a: Is a directory$'):
        write_file(tmp_path / 'a', NEW)
    (tmp_path / 'b').write_bytes(OLD)
    for write in (write_file, append_text):
        with pytest.raises(WriteError, match=f'^cannot write {tmp_path}/b/c: (Not a|File exists)'):
            write(tmp_path / 'b/c', 'text')
    with (
        pytest.raises(WriteError, match=f'^cannot write {tmp_path}/b: Not a'),
        written_together(tmp_path / 'b'),
    ):
        pass


def test_links_and_devices_stay(tmp_path):
    (tmp_path / 'real').write_bytes(OLD)
    (tmp_path / 'link').symlink_to('real')
    write_file(tmp_path / 'link', NEW)
    assert (tmp_path / 'link').is_symlink() and (tmp_path / 'real').read_bytes() == NEW
    write_file('/dev/null', NEW)
    assert not Path('/dev/null').is_file() and not os.path.exists('/dev/null.part')


# Files of one result


def test_files_of_one_result_appear_together(tmp_path):
    folder = tmp_path / 'new/out'
    with written_together(folder) as part:
        write_file(part / 'a', b'1')
        write_file(part / 'b', b'2')
        assert not any(path.is_file() for path in folder.iterdir())
    assert names(folder) == ['a', 'b']


@pytest.mark.parametrize('error', [WriteError('full'), FileNotFoundError('no image')])
def test_one_that_fails_leaves_all_earlier_ones(tmp_path, error):
    (tmp_path / 'a').write_bytes(OLD)
    (tmp_path / '.part').mkdir()  # of a process that was killed
    (tmp_path / '.part/c').write_bytes(OLD)
    with pytest.raises(type(error), match=str(error)), written_together(tmp_path) as part:
        write_file(part / 'a', b'1')
        raise error
    assert names(tmp_path) == ['a'] and (tmp_path / 'a').read_bytes() == OLD


def test_a_tool_ends_with_a_sentence(tmp_path):
    @exit_on_write_error()
    def main(size):
        with full_disk(size):
            write_file(tmp_path / 'a', b'abcd')

    with pytest.raises(SystemExit) as caught:
        main(3)
    assert caught.value.code == f'cannot write {tmp_path}/a: File too large' and not names(tmp_path)
    main(4)
    with pytest.raises(ValueError, match='other'), exit_on_write_error():
        raise ValueError('other')


@pytest.mark.parametrize(
    'number', [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO]
)
def test_a_full_disk_of_another_library_is_a_sentence(number):
    for name, words in (('/a/b', '/a/b'), (None, f'a file, perhaps in {tempfile.gettempdir()}')):
        with pytest.raises(SystemExit) as caught, exit_on_write_error():
            raise OSError(number, os.strerror(number), *filter(None, [name]))
        assert caught.value.code == f'cannot write {words}: {os.strerror(number)}'
    with pytest.raises(FileNotFoundError), exit_on_write_error():
        open('/no/such/file')


# Files that grow


def test_lines_are_appended(tmp_path, warnings):
    path = tmp_path / 'new/log.csv'
    append_text(path, 'a,b\r\n')
    append_text(path, '1,é\r\n2,3\r\n')
    assert path.read_bytes() == 'a,b\r\n1,é\r\n2,3\r\n'.encode()
    assert not warnings


def test_a_torn_last_line_is_cut_off(tmp_path, warnings):
    path = tmp_path / 'log.csv'
    path.write_text('a,b\n1,2\n3')
    append_text(path, '5,6\n')
    assert path.read_text() == 'a,b\n1,2\n5,6\n'
    assert warnings == [f'{path}: the incomplete last line is removed.']
    path.write_text('x' * 200_000)  # more than is read at once
    append_text(path, 'a\n')
    assert path.read_text() == 'a\n'


def test_a_whole_last_line_of_json_stays(tmp_path, warnings):
    path = tmp_path / 'log.json'
    path.write_text('{"a": 1}\n{"a": 2}')
    assert read_json_lines(path) == [dict(a=1), dict(a=2)]
    append_text(path, '{"a": 3}\n')
    assert path.read_text() == '{"a": 1}\n{"a": 2}\n{"a": 3}\n' and not warnings
    path.write_text('')
    assert read_json_lines(path) == [] and not warnings


@pytest.mark.parametrize('torn', ['{"a": ', '12', '{"a": 1}{"a', '\0\0\0', '[' * 100_000])
def test_torn_lines_of_json_are_left_out(tmp_path, warnings, torn):
    path = tmp_path / 'log.json'
    path.write_text(f'{{"a": 1}}\n{torn}')
    assert read_json_lines(path) == [dict(a=1)]
    append_text(path, '{"a": 2}\n')
    assert read_json_lines(path) == [dict(a=1), dict(a=2)]
    # As older versions glued it
    path.write_text(f'{{"a": 1}}\n{torn}\n{{"a": 3}}\n')
    assert read_json_lines(path) == [dict(a=1), dict(a=3)]
    assert warnings == [
        f'{path}: line 2 is no JSON object and is left out.',
        f'{path}: the incomplete last line is removed.',
        f'{path}: line 2 is no JSON object and is left out.',
    ]


@pytest.mark.parametrize('room', [0, 1, 7000, 59_999])
def test_a_full_disk_leaves_the_old_end(tmp_path, room):
    path = tmp_path / 'log.json'
    path.write_bytes(OLD)
    with (
        pytest.raises(WriteError, match=f'^cannot write {path}: File too large$'),
        full_disk(len(OLD) + room),
    ):
        append_text(path, NEW.decode())
    assert path.read_bytes() == OLD
