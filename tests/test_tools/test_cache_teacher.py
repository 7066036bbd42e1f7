"""cache_teacher.py: writes what train.py reads, whatever kills it, alone and with other processes."""

import os
import re
import runpy
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from tiny import build, classifier

from mmkdx.distillation.cache import CacheError, CacheReader

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools/cache_teacher.py'
FILES = 8

# A transform that takes as long as it is told, so that there is time to kill
SLOW = """
import os
import time
from mmkdx.registry import TRANSFORMS


@TRANSFORMS.register_module()
class Slow:
    def __call__(self, results):
        time.sleep(float(os.environ.get('PAUSE', 0)))
        return results
"""


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    """The config of a small distillation from a cache on 40 digits, in eight files."""
    folder = tmp_path_factory.mktemp('config')
    (folder / 'slow_transform.py').write_text(SLOW)
    torch.manual_seed(2)
    torch.save(build(classifier(6, classes=10)).state_dict(), folder / 'teacher.pth')
    teacher = dict(model=classifier(6, classes=10), checkpoint=str(folder / 'teacher.pth'))
    digits = dict(
        type='Digits',
        indices=40,
        pipeline=[
            dict(type='RandomCrop', crop_size=32, padding=4),
            dict(type='Slow'),
            dict(type='PackInputs'),
        ],
    )
    Config(
        dict(
            default_scope='mmkdx',
            custom_imports=dict(imports=['tiny', 'slow_transform']),
            model=dict(
                type='Distiller',
                student=classifier(4, classes=10),
                teacher=dict(type='CachedTeacher', teacher=teacher, cache='nowhere'),
                input_size=32,
                terms=dict(
                    kd=dict(type='KLDivLoss', at='logits'), cat=dict(type='CATLoss', at='cam')
                ),
            ),
            data_preprocessor=dict(num_classes=10, mean=[78.0] * 3, std=[84.0] * 3),
            train_dataloader=dict(
                batch_size=5,
                num_workers=0,
                persistent_workers=False,
                drop_last=True,
                dataset=dict(type='SeededViews', views=2, dataset=digits),
                sampler=dict(type='ViewSampler', shuffle=True),
            ),
            train_cfg=dict(by_epoch=True, max_epochs=2),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.05)),
            default_hooks=dict(checkpoint=None),
        )
    ).dump(folder / 'config.py')
    return folder / 'config.py'


def arguments(config, folder, *more):
    options = ['--cfg-options', f'model.teacher.cache={folder}']
    return [str(TOOL), str(config), *options, '--shard-size', '10', *map(str, more)]


@pytest.fixture
def call(config, monkeypatch):
    """Runs the tool in this process."""
    monkeypatch.syspath_prepend(str(config.parent))

    def run(*argv):
        monkeypatch.setattr(sys, 'argv', list(argv))
        runpy.run_path(str(TOOL), run_name='__main__')

    return run


@pytest.fixture
def run(config, call):
    return lambda folder, *more: call(*arguments(config, folder, *more))


class Process:
    """The tool in a process of its own, which is a fork of this one, as imports take long.

    Args:
        config (Path): The config.
        folder (Path): The cache.
        pause (float): Seconds that an image takes.
    """

    def __init__(self, config, folder, pause=0.0, rank=0, world=1, port=0):
        self.log = folder.with_name(f'log{rank}.txt')
        self.status = None
        self.pid = os.fork()
        if self.pid:
            return
        try:
            file = os.open(self.log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            os.dup2(file, 1), os.dup2(file, 2)
            sys.stdout = sys.stderr = os.fdopen(1, 'w', buffering=1, closefd=False)
            ranks = dict(
                RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=world, MASTER_PORT=port, PAUSE=pause
            )
            os.environ.update({key: str(value) for key, value in ranks.items()})
            os.environ['MASTER_ADDR'] = '127.0.0.1'
            sys.path.insert(0, str(config.parent))
            more = ['--launcher', 'pytorch'] if world > 1 else []
            sys.argv = arguments(config, folder, '--device', 'cpu', *more)
            runpy.run_path(str(TOOL), run_name='__main__')
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)

    def poll(self):
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status

    def wait(self, seconds=60):
        end = time.monotonic() + seconds
        while self.poll() is None:
            assert time.monotonic() < end, self.log.read_text()[-2000:]
            time.sleep(0.01)
        return self.status

    def kill(self):
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            assert self.wait() == -signal.SIGKILL


def free_port():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


def parts(folder):
    return sorted(folder.rglob('*.safetensors'))


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in parts(folder)}


def wait_for(folder, count, processes):
    """Waits until there are so many files."""
    end = time.monotonic() + 60
    while len(parts(folder)) < count:
        assert time.monotonic() < end
        for process in processes:
            assert process.poll() is None, process.log.read_text()[-2000:]
        time.sleep(0.005)


def identities(folder):
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in parts(folder)}


@pytest.fixture(scope='module')
def whole(config, tmp_path_factory):
    """The files of a run that nothing interrupts."""
    folder = tmp_path_factory.mktemp('whole') / 'cache'
    process = Process(config, folder)
    assert process.wait() == 0, process.log.read_text()[-2000:]
    out = process.log.read_text()
    assert '8 of 8 files to write' in out
    assert re.search(r'cache: 0.2 MiB in 8 files; 80 images in \d+ s, \d+ a second', out)
    return folder


def test_the_files_are_a_whole_cache(whole):
    cache = CacheReader(whole)
    assert cache.header['taps'] == {'logits': ['tensor', 10], 'cam': ['maps', 6, 16, 16]}
    assert (cache.header['samples'], cache.header['views']) == (40, 2)
    names = [f'view-00{view}/part-0000{part}.safetensors' for view in (0, 1) for part in range(4)]
    assert list(contents(whole)) == names
    assert not list(whole.rglob('*.part'))


@pytest.mark.parametrize('count', [0, 1, 5])
def test_a_killed_run_loses_nothing(config, run, whole, tmp_path, count):
    folder = tmp_path / 'cache'
    process = Process(config, folder, 0.02)
    wait_for(folder, count, [process])
    process.kill()
    before = identities(folder)
    assert count <= len(before) < FILES
    with pytest.raises(CacheError, match='there is no cache|is not whole, . of 8 parts are there'):
        CacheReader(folder)
    run(folder)
    after = identities(folder)
    assert {path: after[path] for path in before} == before
    assert contents(folder) == contents(whole)
    assert CacheReader(folder).header == CacheReader(whole).header


def test_a_rank_that_is_killed_loses_nothing_and_two_write_what_one_writes(config, whole, tmp_path):
    folder, port = tmp_path / 'cache', free_port()
    ranks = [Process(config, folder, 0.03, rank, 2, port) for rank in range(2)]
    try:
        wait_for(folder, 2, ranks)
        ranks[1].kill()
        # The other one finishes its part, and fails as it misses its fellow
        assert ranks[0].wait() != 0
    finally:
        for rank in ranks:
            rank.kill()
    before = identities(folder)
    assert 2 <= len(before) < FILES
    with pytest.raises(CacheError, match='is not whole, . of 8 parts are there'):
        CacheReader(folder)
    port = free_port()
    ranks = [Process(config, folder, 0, rank, 2, port) for rank in range(2)]
    for rank in ranks:
        assert rank.wait() == 0, rank.log.read_text()[-2000:]
    after = identities(folder)
    assert {path: after[path] for path in before} == before
    assert contents(folder) == contents(whole)
    CacheReader(folder)


def test_a_second_writer_is_refused(config, run, tmp_path):
    folder = tmp_path / 'cache'
    process = Process(config, folder, 0.05)
    try:
        wait_for(folder, 1, [process])
        said = rf'teacher.cache: {folder} is in use by process {process.pid} on .*; wait for it, or'
        with pytest.raises(SystemExit, match=said):
            run(folder)
        assert process.poll() is None
    finally:
        process.kill()


def test_a_whole_cache_is_left_alone(run, whole, capsys):
    before = identities(whole)
    run(whole)
    assert 'is whole: 8 files with outputs of this teacher' in capsys.readouterr().out
    assert identities(whole) == before


def test_workers_and_batches_change_nothing_but_rounding(run, whole, tmp_path):
    run(tmp_path, '--num-workers', 2)
    assert contents(tmp_path) == contents(whole)


def test_the_config_trains_from_the_cache(config, whole, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(config.parent))
    cfg = Config.fromfile(config)
    cfg.work_dir = str(tmp_path)
    cfg.model.teacher.cache = str(whole)
    runner = Runner.from_cfg(cfg)
    teacher = runner.model.teachers[0]
    monkeypatch.setattr(teacher.teacher, 'forward', None)  # it does not run
    seen, rows = [], CacheReader.rows

    def watch(cache, views, positions, keys, *more):
        if keys != ['signature']:
            seen.extend(zip(views, positions))
        return rows(cache, views, positions, keys, *more)

    monkeypatch.setattr(CacheReader, 'rows', watch)
    runner.train()
    assert sorted(seen) == [(view, position) for view in (0, 1) for position in range(40)]
    assert [view for view, _ in seen] == [0] * 40 + [1] * 40


def no_cache(cfg):
    cfg.model.teacher = cfg.model.teacher.teacher


def unread(cfg):
    cfg.model.teacher = [cfg.model.teacher.teacher, cfg.model.teacher]


def two_in_one(cfg):
    cfg.model.teacher = [cfg.model.teacher] * 2
    cfg.model.terms.cat.teacher = 1


@pytest.mark.parametrize(
    'change, message',
    [
        (
            no_cache,
            'config.py: model.teacher is no CachedTeacher that a term reads; write teacher=',
        ),
        (two_in_one, 'two teachers have one folder; give each its own cache'),
        (unread, 'is no CachedTeacher that a term reads'),
        (
            lambda cfg: cfg.model.teacher.teacher.update(checkpoint='none.pth'),
            "teacher.checkpoint: there is no file 'none.pth'",
        ),
        (
            lambda cfg: cfg.data_preprocessor.update(batch_augments=dict(augments='Mixup')),
            'batch_augments mix images anew in each batch',
        ),
    ],
)
def test_bad_configs(call, config, tmp_path, change, message):
    cfg = Config.fromfile(config)
    cfg.model.teacher.cache = str(tmp_path / 'cache')
    change(cfg)
    cfg.dump(tmp_path / 'config.py')
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        call(str(TOOL), str(tmp_path / 'config.py'))
    assert not (tmp_path / 'cache').exists()


@pytest.mark.parametrize('option', ['--batch-size', '--shard-size'])
def test_bad_options(run, tmp_path, capsys, option):
    with pytest.raises(SystemExit):
        run(tmp_path, option, 0)
    assert f'{option} is 0; it must be at least 1' in capsys.readouterr().err
