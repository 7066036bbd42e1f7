"""print_config.py, collect_env.py and check_config.py."""

import runpy
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import mmcv
import mmpretrain
import pytest
import torch
from mmengine.config import Config
from tiny import build, classifier

import mmkdx
from mmkdx import plugins

TOOLS = Path(__file__).parents[2] / 'tools/misc'


#: Grey images of two joined data sets, none of which is there.
CHECKED = """
default_scope = 'mmkdx'
model = dict(
    type='ImageClassifier',
    backbone=dict(type='LeNet5', num_classes=-1),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=120),
)
part = dict(type='FashionMNIST', pipeline=[dict(type='Resize', scale=32), dict(type='PackInputs')])
train_dataloader = dict(dataset=dict(type='ConcatDataset', datasets=[part, part]))
"""


def tool(name):
    """The functions of a tool."""
    return runpy.run_path(str(TOOLS / f'{name}.py'))


def test_print_config(tmp_path, capsys):
    path = tmp_path / 'config.py'
    path.write_text("_base_ = ['mmpretrain::_base_/default_runtime.py']\nwidth = [1, 2]\n")
    tool('print_config')['main']([str(path), '--cfg-options', 'width=[3]', 'a.b=tiny'])
    printed = Config.fromstring(capsys.readouterr().out, '.py')
    assert printed.width == [3] and printed.a == dict(b='tiny')
    assert printed.default_scope == 'mmpretrain' and printed.default_hooks.logger.interval == 100


def test_print_config_names_what_is_missing(tmp_path):
    with pytest.raises(SystemExit) as error:
        tool('print_config')['main']([f'{tmp_path}/config.py'])
    assert str(error.value).startswith(f'Config {tmp_path}/config.py cannot be read: ')

    path = tmp_path / 'config.py'
    path.write_text("_base_ = ['base.py']\n")
    with pytest.raises(SystemExit) as error:
        tool('print_config')['main']([str(path)])
    assert 'base.py' in str(error.value)


def test_tools_run_as_scripts(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['print_config.py', '--help'])
    with pytest.raises(SystemExit, match='0'):
        runpy.run_path(str(TOOLS / 'print_config.py'), run_name='__main__')
    assert 'usage: print_config.py' in capsys.readouterr().out

    runpy.run_path(str(TOOLS / 'collect_env.py'), run_name='__main__')
    assert f'\nmmkdx: {mmkdx.__version__}\n' in capsys.readouterr().out


def test_check_config(tmp_path, monkeypatch, capsys):
    path = tmp_path / 'config.py'
    path.write_text(CHECKED)
    monkeypatch.setattr(sys, 'argv', ['check_config.py', str(path)])
    tool('check_config')['main']()
    printed = capsys.readouterr().out
    assert f'{path}: images of 32 x 32 pixels and 1 channel\n' in printed
    # Of 5 x 5 convolutions to 6, 16 and 120 channels, and a linear layer
    parameters = 6 * 26 + 16 * (6 * 25 + 1) + 120 * (16 * 25 + 1) + 3 * 121
    assert f'| model | LeNet5       | {parameters:,} ' in printed
    assert ' G | random ' in ' '.join(printed.split())
    assert 'One step in ' in printed and 'loss ' in printed

    init = "model.update(init_cfg=[dict(type='Pretrained', checkpoint='lenet.pth')])"
    path.write_text(f'{CHECKED}{init}\n')
    tool('check_config')['main']()
    assert ' G | lenet.pth ' in ' '.join(capsys.readouterr().out.split())

    path.write_text(CHECKED.partition('train_dataloader')[0])
    with pytest.raises(SystemExit) as error:
        tool('check_config')['main']()
    assert str(error.value) == (
        f'{path}: the config has none of train_dataloader, val_dataloader, test_dataloader; one '
        'of them must give the transforms'
    )


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ("modle = dict(type='x')", 'modle is an unknown key; do you mean model?'),
        (
            "optim_wrapper = dict(optimizer=dict(type='SGD', lrr=1))",
            r"optim_wrapper: .*argument 'lrr'",
        ),
        (
            "optim_wrapper = dict(optimizer=dict(type='SGD', lr=1))\n"
            "param_scheduler = [dict(type='CosineAnnealingLR', T_max=2, tmax=1)]",
            r"param_scheduler\[0\]: .*argument 'tmax'",
        ),
        ("val_evaluator = dict(type='Accuracy', top=1)", "val_evaluator: .*argument 'top'"),
        (
            "custom_hooks = [dict(type='EMAHok')]",
            r'custom_hooks\[0\]: EMAHok is not in the mmkdx::hook',
        ),
        ("model['backbone'].update(tpye=1)", "model: .*argument 'tpye'"),
        (
            "part['pipeline'][0].update(scal=1)",
            "the transforms of the data loader: .*argument 'scal'",
        ),
    ],
)
def test_check_config_names_the_part_that_cannot_be_built(tmp_path, monkeypatch, changes, message):
    path = tmp_path / 'config.py'
    path.write_text(f'{CHECKED}\n{changes}\n')
    monkeypatch.setattr(sys, 'argv', ['check_config.py', str(path)])
    with pytest.raises(SystemExit, match=f'^{path}: {message}') as error:
        tool('check_config')['main']()
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('text', 'message'),
    [('custom_imports: {imports: [os]}', 'custom_imports'), (None, 'config.yml')],
)
def test_check_config_of_what_is_no_config(tmp_path, monkeypatch, text, message):
    path = tmp_path / 'config.yml'
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(sys, 'argv', ['check_config.py', str(path)])
    with pytest.raises(SystemExit, match=f'config.yml.*{message}|{message}.*exist'):
        tool('check_config')['main']()


def test_check_config_compares_the_classes_of_a_teacher(tmp_path, monkeypatch, capsys):
    path, file = tmp_path / 'config.py', tmp_path / 'teacher.pth'
    names = ['ant', 'bee', 'cow', 'dog']
    teacher = build(classifier(8))
    meta = dict(dataset_meta=dict(classes=names[::-1]))
    torch.save(dict(meta=meta, state_dict=teacher.state_dict()), file)

    def check(metainfo=None, **changes):
        dataset = dict(type='BaseDataset', ann_file='', pipeline=[dict(type='Resize', scale=16)])
        dataset['pipeline'].append(dict(type='PackInputs'))
        model = dict(
            type='Distiller',
            student=classifier(4),
            teacher=dict(model=classifier(8), checkpoint=str(file), **changes),
            terms=dict(kd=dict(type='KLDivLoss', at='logits')),
        )
        config = dict(
            default_scope='mmkdx',
            model=model,
            train_dataloader=dict(dataset=dict(dataset, metainfo=metainfo)),
        )
        Config(config).dump(path)
        monkeypatch.setattr(sys, 'argv', ['check_config.py', str(path)])
        tool('check_config')['main']()
        return capsys.readouterr().out

    with pytest.raises(
        SystemExit, match="'ant' is class 0 of the data set and class 3 of the teac"
    ):
        check(dict(classes=names))
    assert 'One step in ' in check(dict(classes=names), classes='match')
    # The names are not in the config, so they are known with the data
    assert str(file) in check(classes='match') and 'One step in ' in check()


def test_collect_env(monkeypatch):
    monkeypatch.setattr(plugins, '_plugins', [])
    env = tool('collect_env')['collect_env']()
    assert env['mmkdx'] == mmkdx.__version__
    assert env['mmkdx plugins'] == 'none'
    assert 'PyTorch' in env and 'Python' in env and 'MMEngine' not in env
    for module in (mmcv, mmpretrain):
        # names the distribution, by which the two families differ
        name, version = env[module.__name__].split()
        assert name in packages_distributions()[module.__name__]
        assert version == module.__version__


def test_collect_env_tells_of_plugins_and_mixed_families(monkeypatch):
    monkeypatch.setattr(
        plugins,
        '_plugins',
        [
            plugins.Plugin('good', 'good-package 1.2', None),
            plugins.Plugin('bad', 'bad-package 0.1', 'OSError: the disk is full'),
        ],
    )
    collect_env = tool('collect_env')['collect_env']
    # distributions that are surely there
    found = dict(mmengine=['numpy', 'torch', 'numpy'], mmcv=[])
    monkeypatch.setitem(collect_env.__globals__, 'packages_distributions', lambda: found)
    env = collect_env()
    assert env['mmkdx plugins'] == (
        'good of good-package 1.2, bad of bad-package 0.1 (OSError: the disk is full)'
    )
    first, second = env['mmengine'].split(', ')
    assert first.startswith('numpy ') and second.startswith('torch ')
    assert env['mmcv'] == env['mmpretrain'] == 'no distribution'
