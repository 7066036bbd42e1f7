import subprocess
import sys
from pathlib import Path

import mmpretrain.registry
import pytest
from mmengine.logging import MMLogger
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope, Registry

import mmkdx.registry
from mmkdx.registry import EXPLAINERS, MODELS

ROOT = Path(__file__).parents[1]
PARENTS = {
    name: value
    for name, value in vars(mmpretrain.registry).items()
    if isinstance(value, Registry) and value.scope == 'mmpretrain'
}


@pytest.fixture
def part():
    """A part that is registered in mmkdx alone."""

    class Part:
        pass

    MODELS.register_module(name='PartOfATest', module=Part)
    yield Part
    del MODELS.module_dict['PartOfATest']


@pytest.fixture
def log(tmp_path, monkeypatch):
    """A function that reads what mmengine has logged since the test began."""
    monkeypatch.setattr(MMLogger, '_instance_dict', type(MMLogger._instance_dict)())
    path = tmp_path / 'log'
    MMLogger.get_instance('test', log_file=str(path))
    return path.read_text


def test_every_registry_of_mmpretrain_has_a_child():
    assert {'MODELS', 'BATCH_AUGMENTS', 'TOKENIZER', 'VISBACKENDS'} <= set(PARENTS)
    for name, parent in PARENTS.items():
        child = getattr(mmkdx.registry, name)
        assert child.parent is parent and child.scope == 'mmkdx', name


def test_no_scope_is_missing(log):
    with DefaultScope.overwrite_default_scope('mmkdx'):
        for name, parent in PARENTS.items():
            with parent.root.switch_scope_and_registry(None) as registry:
                assert registry is getattr(mmkdx.registry, name)
        with EXPLAINERS.switch_scope_and_registry(None) as registry:
            assert registry is EXPLAINERS
    assert log() == ''


@pytest.mark.parametrize('name', [*PARENTS, 'EXPLAINERS'])
def test_locations_can_be_imported_and_plugins_come_last(name):
    registry = getattr(mmkdx.registry, name)
    assert registry._locations[-1] == 'mmkdx.plugins'
    registry.import_from_location()
    assert set(registry._locations) <= set(sys.modules)


def test_one_scope_for_mmkdx_and_mmpretrain(part, log):
    with DefaultScope.overwrite_default_scope('mmkdx'):
        resnet = ROOT_MODELS.build(dict(type='ResNet', depth=18))
        assert type(resnet).__module__ == 'mmpretrain.models.backbones.resnet'
        assert type(ROOT_MODELS.build(dict(type='PartOfATest'))) is part
        assert type(ROOT_MODELS.build(dict(type='mmpretrain.ResNet', depth=18))) is type(resnet)
    assert 'WARNING' not in log()


def test_prefix_from_the_scope_of_mmpretrain(part, log):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        assert type(ROOT_MODELS.build(dict(type='mmkdx.PartOfATest'))) is part
        with pytest.raises(KeyError, match='PartOfATest is not in the mmpretrain::model registry'):
            ROOT_MODELS.build(dict(type='PartOfATest'))
    assert 'WARNING' not in log()


def test_no_default_scope(part, monkeypatch):
    monkeypatch.setattr(DefaultScope, '_instance_dict', type(DefaultScope._instance_dict)())
    assert type(MODELS.build(dict(type='PartOfATest'))) is part
    assert type(MODELS.build(dict(type='ResNet', depth=18))).__name__ == 'ResNet'


def test_importing_mmkdx_is_light():
    code = (
        'import sys, mmkdx; print(mmkdx.__version__, '
        "*[name for name in sys.modules if name.startswith(('mmpretrain', 'torchvision'))])"
    )
    command = [sys.executable, '-c', code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [mmkdx.__version__]
