"""Configs in YAML and JSON, and pickled annotations, are read without running anything."""

import gc
import os
import pickle
import sys
from collections import OrderedDict

import mmengine
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DefaultScope
from tiny import tool

from mmkdx import data_configs
from mmkdx.data_configs import DataConfigError
from mmkdx.distillation.models import read_config
from mmkdx.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS, TRANSFORMS


@pytest.fixture(autouse=True)
def own_texts(monkeypatch):
    """Keeps what this file's configs name away from other tests."""
    before = set(data_configs._texts)
    yield
    data_configs._texts.clear()
    data_configs._texts.update(before)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder on the path of imports, whose modules leave a mark."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    code = f'open({str(tmp_path / "mark")!r}, "w")\n'
    (tmp_path / 'evil_module.py').write_text(code)
    (tmp_path / 'evil_package').mkdir()
    for name in ('__init__', 'registry'):
        (tmp_path / f'evil_package/{name}.py').write_text(code)
    yield tmp_path
    assert not (tmp_path / 'mark').exists()
    assert not [name for name in sys.modules if name.startswith('evil_')]


def write(folder, text, name='config.yaml'):
    (folder / name).write_text(text)
    return str(folder / name)


REGISTERED = 'YAML and JSON may name registered types alone, so register it in a plugin'
PROGRAM = 'a program; configs in YAML and JSON may name YAML, JSON and the configs of installed'


@pytest.mark.parametrize(
    ('text', 'sentence'),
    [
        (
            'x: !!python/object/apply:os.getcwd []',
            r'as data in line 1: could not determine a const',
        ),
        ('a: 1\nx: !!python/name:os.system', r'as data in line 2: could not determine a const'),
        ('model: {type: os.system}', rf": type is 'os.system'; {REGISTERED}"),
        ('a: [{b: {type: mmkdx.compat.os.system}}]', rf"'mmkdx.compat.os.system'; {REGISTERED}"),
        ("model: {type: '{{$NO_SUCH:os.system}}'}", rf": type is 'os.system'; {REGISTERED}"),
        ('custom_hooks: [{type: RFSearchHook}]', rf": type is 'RFSearchHook'; {REGISTERED}"),
        (
            'default_scope: evil_package',
            "default_scope is 'evil_package'; in YAML and JSON it is one",
        ),
        ('m: {_scope_: evil_package}', "_scope_ is 'evil_package'; in YAML and JSON it is one"),
        ('custom_imports: {imports: [evil_module]}', 'custom_imports imports modules, which YAML'),
        ('runner_type: evil_module', 'runner_type names a class to import, which YAML'),
        ('m: {trust_remote_code: true}', 'trust_remote_code runs downloaded code, which YAML'),
        ('_base_: evil_module.py', f"_base_ is 'evil_module.py', {PROGRAM}"),
        ('_base_: [mmkdx::../evil_module.py]', f"_base_ is 'mmkdx::../evil_module.py', {PROGRAM}"),
        ('_base_: evil_package::x.yaml', f"_base_ is 'evil_package::x.yaml', {PROGRAM}"),
        ('- 1', 'it holds a list and not keys with values'),
        ('', 'it holds a NoneType and not keys with values'),
        ('x: &x [*x]', 'it has more than 100,000 values'),
        ('x: [', 'cannot be read as data in line 2: did not find expected node content'),
        ('[' * 3000, 'cannot be read as data'),
    ],
)
def test_what_a_config_cannot_ask_for(folder, text, sentence):
    path = write(folder, text)
    with pytest.raises(DataConfigError, match=sentence) as caught:
        Config.fromfile(path)
    assert str(caught.value).startswith(f'{path}')
    with pytest.raises(SystemExit, match=f'Config {path} cannot be read: {path}'):
        tool('misc/print_config').main([path])


@pytest.mark.parametrize(
    ('text', 'sentence'),
    [
        ('{"model": {"type": "subprocess.call"}}', f"type is 'subprocess.call'; {REGISTERED}"),
        ('{"a": ', 'cannot be read as data: Expecting value'),
        (f'{{"a": {"[" * 100000}', 'cannot be read as data: maximum recursion'),
    ],
)
def test_json(folder, text, sentence):
    gc.collect()  # else what has a finalizer may be collected, and fail, at the end of the stack
    with pytest.raises(DataConfigError, match=sentence):
        Config.fromfile(write(folder, text, 'config.json'))


def test_the_error_of_a_base_names_both_files(folder):
    base = write(folder, 'runner_type: x', 'base.yaml')
    path = write(folder, '_base_: base.yaml')
    with pytest.raises(DataConfigError, match=f'^{path}: {base}: runner_type names a class'):
        Config.fromfile(path)


def test_what_is_not_registered_is_not_imported(folder):
    """A name without a dot may be that of a module, and each registry would import it."""
    path = write(folder, 'model: {type: evil_module}\noptim: {constructor: evil_module.X}')
    config = Config.fromfile(path)
    with DefaultScope.overwrite_default_scope('mmkdx'):
        with pytest.raises(KeyError, match='evil_module is not in the mmkdx::model registry'):
            MODELS.build(config.model)
        with pytest.raises(KeyError, match='evil_module.X is not in the mmkdx::optim'):
            OPTIM_WRAPPER_CONSTRUCTORS.build(dict(type=config.optim.constructor))


def test_a_python_config_imports_as_before(folder):
    write(folder, 'model: {type: ReLU}')
    Config.fromfile(folder / 'config.yaml')
    assert MODELS.build(dict(type='torch.nn.modules.activation.Softmin')).dim is None


def test_evaluated_type_of_a_transform(folder):
    step = dict(type='torchvision/ConvertImageDtype', dtype='float16')
    assert TRANSFORMS.build(step).t.dtype is torch.float16
    step['dtype'] = 'int8 if __import__("os").mkdir("mark") else 0'
    with pytest.raises(
        ValueError, match='dtype is .int8 if .* it must be the name of a type of to'
    ):
        TRANSFORMS.build(step)


def test_a_teacher_in_python_is_a_program(folder):
    Config.fromfile(write(folder, 'teacher: {model: evil_module.py, other: mmkdx::../x.py}'))
    for name in ('evil_module.py', 'mmkdx::../x.py'):
        with pytest.raises(DataConfigError, match=f"teacher.model is '{name}', {PROGRAM}"):
            read_config(name, 'teacher.model')


def test_a_whole_config_reads_as_before(folder):
    write(folder, 'optim_wrapper: {optimizer: {lr: 0.1, betas: [0.9, 0.95]}}\n', 'base.json.yaml')
    config = Config.fromfile(
        write(
            folder,
            '_base_: [base.json.yaml, "mmpretrain::_base_/default_runtime.py"]\n'
            'defaults: &d {type: mmpretrain.LeNet5, kernel: !!python/tuple [3, 3]}\n'
            'model: {backbone: *d}\nlr: {{ _base_.optim_wrapper.optimizer.lr }}\n'
            'name: "{{ fileBasenameNoExtension }}"\n',
        )
    )
    assert config.model.backbone.to_dict() == dict(type='mmpretrain.LeNet5', kernel=(3, 3))
    assert config.default_scope == 'mmpretrain' and config.lr == 0.1 and config.name == 'config'
    config.dump(folder / 'again.yaml')
    assert Config.fromfile(folder / 'again.yaml').model == config.model


class Touch:
    """Pickles to a call that leaves a mark."""

    def __reduce__(self):
        return os.mkdir, ('mark',)


def test_pickled_annotations(folder, monkeypatch):
    content = dict(
        metainfo=OrderedDict(classes=['a'], weights={1, 2}),
        data_list=[dict(gt_label=0, box=np.ones((1, 4), np.float32), name=np.str_('x'))],
    )
    for protocol in (2, 5):
        mmengine.dump(content, 'good.pkl', protocol=protocol)
        data = BaseDataset(ann_file='good.pkl', data_prefix={})
        assert data.metainfo['weights'] == {1, 2} and data[0]['box'].tolist() == [[1] * 4]
    mmengine.dump([Touch()], 'evil.pkl')
    sentence = (
        f'^evil.pkl holds {os.name}.mkdir, which can run code and is not loaded by default: if you '
        'trust the file, set MMKDX_UNSAFE_LOAD=1 in the environment$'
    )
    for load in (mmengine.load, lambda path: BaseDataset(ann_file=path)):
        with pytest.raises(ValueError, match=sentence):
            load('evil.pkl')
    (folder / 'cut.pkl').write_bytes(pickle.dumps(content)[:20])
    with pytest.raises(ValueError, match='cut.pkl is damaged or no pickle'):
        mmengine.load('cut.pkl')
    mmengine.dump(range(3), 'range.pkl')
    with pytest.raises(ValueError, match='range.pkl holds __builtin__.xrange'):
        mmengine.load('range.pkl')
    monkeypatch.setenv('MMKDX_UNSAFE_LOAD', '1')
    assert mmengine.load('range.pkl') == range(3)


def test_installing_again_changes_nothing():
    before = Config._file2dict
    data_configs.install()
    assert Config._file2dict is before
