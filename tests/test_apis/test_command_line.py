"""The options that mmkdx adds to mmpretrain's tools."""

import sys

import pytest
from mmengine.config import Config

from mmkdx.apis.command_line import _change_hooks, _own_options


def options(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['test.py', *arguments])
    return _own_options()


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
