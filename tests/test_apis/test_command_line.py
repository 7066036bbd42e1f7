"""The options that mmkdx adds to mmpretrain's tools."""

import errno
import logging
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import mmengine.hooks
import pytest
import torch.distributed as dist
from mmengine.config import Config
from mmengine.registry import HOOKS, DefaultScope
from resumable import run_config, with_a_teacher

from mmkdx.apis import command_line, run_tool
from mmkdx.apis.command_line import _add_hooks, _change_hooks, _own_options
from mmkdx.checkpoints import CheckpointError
from mmkdx.data_configs import DataConfigError
from mmkdx.files import WriteError
from mmkdx.hooks import CheckpointHook, InterruptionHook
from mmkdx.lock import NAME, FolderInUseError

ROOT = Path(__file__).parents[2]


def options(monkeypatch, *arguments, name='test'):
    monkeypatch.setattr(sys, 'argv', [f'{name}.py', *arguments])
    return _own_options(name)


def test_options_of_reports_are_taken_out_of_the_command_line(monkeypatch):
    own = options(
        monkeypatch,
        'c.py',
        '--report',
        'k.pth',
        '--compare',
        'a=x',
        '--out',
        'o',
        '--compare',
        'b b=y=z',
    )
    assert own.report and own.compare == ['a=x', 'b b=y=z']
    assert sys.argv == ['test.py', 'c.py', 'k.pth', '--out', 'o']


def test_without_them_nothing_changes(monkeypatch):
    assert not options(monkeypatch, 'c.py', 'k.pth', '--tta').report
    assert sys.argv == ['test.py', 'c.py', 'k.pth', '--tta']


def test_help_tells_of_them(monkeypatch, capsys):
    options(monkeypatch, '--help')
    assert '--compare NAME=WORK_DIR' in capsys.readouterr().out
    assert sys.argv == ['test.py', '--help'], "mmpretrain's parser prints the rest"


def test_a_comparison_needs_a_name(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        options(monkeypatch, '--report', '--compare', 'work_dirs/x')
    assert '--compare work_dirs/x: write NAME=WORK_DIR' in capsys.readouterr().err


def test_runs_that_are_compared_have_different_names(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        options(monkeypatch, '--report', '--compare', 'a=x', '--compare', 'a=y')
    assert '--compare gives the name a to two runs' in capsys.readouterr().err


def test_the_hook_is_told(monkeypatch):
    cfg = Config(dict(custom_hooks=[dict(type='EpochSeedHook'), dict(type='ExplainHook')]))
    untouched = cfg.to_dict()
    _change_hooks(cfg, options(monkeypatch, 'c.py', 'k.pth'))
    assert cfg.to_dict() == untouched
    _change_hooks(
        cfg, options(monkeypatch, '--report', '--compare', 'KD=work_dirs/kd', '--compare', 'a=b=c')
    )
    assert cfg.custom_hooks[1].report == dict(KD='work_dirs/kd', a='b=c')
    assert 'report' not in cfg.custom_hooks[0] and 'base' not in cfg.custom_hooks[1]
    _change_hooks(cfg, options(monkeypatch, '--report', '--base', 'alone.py', 'alone.pth'))
    assert cfg.custom_hooks[1].report is True
    assert cfg.custom_hooks[1].base == dict(model='alone.py', checkpoint='alone.pth')


def test_a_report_needs_the_hook(monkeypatch):
    with pytest.raises(ValueError, match='--report needs an ExplainHook, and custom_hooks'):
        _change_hooks(Config(dict(custom_hooks=[])), options(monkeypatch, '--report'))


def test_a_base_brings_the_hook(monkeypatch):
    cfg = Config(dict(custom_hooks=[dict(type='EMAHook')]))
    _change_hooks(cfg, options(monkeypatch, '--report', '--base', 'alone.py', 'alone.pth'))
    base = dict(model='alone.py', checkpoint='alone.pth')
    assert cfg.custom_hooks == [
        dict(type='EMAHook'),
        dict(type='ExplainHook', target='label', show_samples=16, report=True, base=base),
    ]


def test_a_base_is_a_folder_or_two_files(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        options(monkeypatch, '--base', 'a', 'b', 'c')
    assert '--base: write WORK_DIR, or CONFIG CHECKPOINT' in capsys.readouterr().err


# Training


def test_force_is_taken_out_of_the_command_line(monkeypatch):
    assert options(monkeypatch, 'c.py', '--force', '--amp', name='train').force
    assert sys.argv == ['train.py', 'c.py', '--amp']
    assert not options(monkeypatch, 'c.py', name='train').force


def test_help_of_a_training_tells_of_signals(monkeypatch, capsys):
    options(monkeypatch, '--help', name='train')
    out = capsys.readouterr().out
    assert '--force' in out and '--signal=B:TERM@120' in out and '143 or 130' in out
    assert '--report' not in out


@pytest.mark.parametrize('scope', ['mmkdx', 'mmpretrain'])
@pytest.mark.parametrize(
    'hooks',
    [
        None,
        dict(logger=dict(type='LoggerHook')),
        dict(checkpoint=dict(type='CheckpointHook', interval=1)),
        dict(checkpoint=dict(type='mmengine.CheckpointHook', interval=1)),
        dict(checkpoint=dict(type=mmengine.hooks.CheckpointHook, interval=1)),
    ],
)
def test_each_scope_trains_with_our_checkpoints(scope, hooks):
    cfg = Config(dict(default_scope=scope, default_hooks=hooks))
    _add_hooks(cfg)
    _add_hooks(cfg)  # as for the config that a run has written
    with DefaultScope.overwrite_default_scope(scope):
        built = {name: HOOKS.build(hook) for name, hook in cfg.default_hooks.items()}
    assert type(built['checkpoint']) is CheckpointHook and built['checkpoint'].interval == 1
    assert type(built['interruption']) is InterruptionHook


def test_scope_of_mmkdx_finds_our_hook():
    with DefaultScope.overwrite_default_scope('mmkdx'):
        assert type(HOOKS.build(dict(type='CheckpointHook'))) is CheckpointHook


def test_scopes_that_cannot_name_our_hooks_train_as_before():
    cfg = Config(dict(default_scope='mmdet'))
    _add_hooks(cfg)
    assert cfg.get('default_hooks') is None


def test_who_wants_no_checkpoints_gets_none():
    cfg = Config(dict(default_scope='mmkdx', default_hooks=dict(checkpoint=None)))
    _add_hooks(cfg)
    assert cfg.default_hooks.checkpoint is None


@pytest.fixture
def fail(monkeypatch, tmp_path):
    """Runs a tool whose training ends, by an error or not, and returns what it leaves with."""

    def run(error, name='train', **env):
        args = SimpleNamespace(launcher=env.pop('launcher', 'none'), resume=None)
        for key, value in env.items():
            monkeypatch.setenv(key, value)

        def main():
            tool.merge_args(Config(dict(work_dir=str(tmp_path / 'work'))), args)
            if error is None:  # as a run that is done leaves it
                dist.init_process_group('gloo', f'file://{tmp_path}/store', rank=0, world_size=1)
            else:
                raise error

        tool = SimpleNamespace(merge_args=lambda cfg, args: cfg, main=main)
        monkeypatch.setattr(command_line, 'mmpretrain_tool', lambda name: tool)
        monkeypatch.setattr(command_line, 'prepare_cpu_launch', lambda *_: None)
        monkeypatch.setattr(sys, 'argv', [f'{name}.py', 'c.py'])
        if error is None:
            return run_tool(name)
        with pytest.raises(BaseException) as left:
            run_tool(name)
        return left.value

    return run


@pytest.mark.parametrize(
    ('error', 'sentence'),
    [
        (WriteError('cannot write a.pth: disk full'), 'cannot write a.pth: disk full'),
        (CheckpointError('a.pth is torn'), 'a.pth is torn'),
        (FolderInUseError('a is in use'), 'a is in use'),
        (DataConfigError('a.yml imports'), 'a.yml imports'),
        (OSError(errno.ENOSPC, 'disk full', 'a.json'), 'cannot write a.json: disk full'),
        (OSError(errno.ENOSPC, 'disk full'), 'cannot write a file, perhaps in .*: disk full'),
    ],
)
def test_what_cannot_go_on_is_a_sentence(fail, error, sentence):
    # Python prints it and exits with status 1
    assert re.fullmatch(sentence, fail(error).code)


def test_a_log_that_cannot_be_written_is_a_sentence(fail, monkeypatch):
    before = logging.FileHandler.handleError
    fail(SystemExit(0))
    assert logging.FileHandler.handleError is before
    monkeypatch.setattr(logging.FileHandler, 'handleError', command_line._cannot_log)
    handler = logging.FileHandler('/dev/full')
    record = logging.LogRecord('a', logging.INFO, 'file', 1, 'text', (), None)
    with pytest.raises(WriteError, match='cannot write /dev/full: No space left on device'):
        handler.handle(record)
    handler.stream = None


def test_other_errors_stay(fail):
    error = FileNotFoundError(errno.ENOENT, 'no such file', 'a')
    assert fail(error) is error


def test_a_run_that_is_done_leaves_no_processes_connected(fail):
    fail(None)
    assert not dist.is_initialized()


def test_a_signal_ends_the_process_at_once(fail, monkeypatch):
    class Left(BaseException):
        pass

    def leave(status):
        raise Left(status)

    monkeypatch.setattr(command_line.os, '_exit', leave)
    assert fail(SystemExit(143)).args == (143,)
    assert fail(SystemExit(2)).code == 2


@pytest.mark.parametrize(
    ('name', 'env', 'locks'),
    [
        ('train', {}, True),
        ('train', dict(launcher='pytorch', RANK='0'), True),
        ('train', dict(launcher='pytorch', RANK='1'), False),
        ('train', dict(launcher='slurm', SLURM_PROCID='3'), False),
        ('test', {}, False),
    ],
)
def test_the_first_process_of_a_training_locks_its_folder(fail, tmp_path, name, env, locks):
    fail(SystemExit(1), name, **env)
    assert (tmp_path / 'work' / NAME).exists() == locks


@pytest.fixture
def train(monkeypatch, tmp_path):
    """Trains with the command line in this process."""
    run_config(with_a_teacher(tmp_path), train_cfg=dict(by_epoch=True, max_epochs=1)).dump(
        tmp_path / 'run.py'
    )

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['train.py', str(tmp_path / 'run.py'), *arguments])
        runpy.run_path(str(ROOT / 'tools/train.py'), run_name='__main__')

    return run


@pytest.mark.parametrize('arguments', [['--resume'], ['--cfg-options', 'resume=True']])
def test_resuming_where_nothing_is_whole_begins_anew(train, tmp_path, arguments, capfd):
    (tmp_path / 'epoch_1.pth').write_bytes(b'torn')
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_7.pth'))
    train(*arguments)
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert f'There is no checkpoint file {tmp_path}/epoch_7.pth. It is skipped.' in log
    assert f'Checkpoint {tmp_path}/epoch_1.pth (4 bytes) is empty, truncated' in log
    assert f'No checkpoint in {tmp_path} can be resumed from.' in log
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'epoch_1.pth')


def test_resuming_from_a_torn_file_by_name_is_a_sentence(train, tmp_path):
    (tmp_path / 'torn.pth').write_bytes(b'torn')
    with pytest.raises(SystemExit, match=r'torn\.pth \(4 bytes\) is empty, truncated'):
        train('--resume', str(tmp_path / 'torn.pth'))
