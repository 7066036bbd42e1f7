"""The forms in which a model may be named."""

import copy

import pytest
import torch
from tiny import build, classifier
from torch import nn

from mmkdx.distillation.models import load_weights, model_config, zoo_entry


def test_a_config_is_not_changed_by_building_from_it():
    spec = classifier(4)
    before = copy.deepcopy(spec)
    built = model_config(spec, 'student', dict(mean=[1.0] * 3, std=[1.0] * 3))
    built['backbone']['width'] = 99
    build(model_config(spec, 'student'))
    assert spec == before


def test_own_preprocessor_goes_first():
    spec = dict(classifier(4), data_preprocessor=dict(mean=[5.0] * 3, std=[1.0] * 3))
    assert model_config(spec, 'x', dict(mean=[1.0] * 3))['data_preprocessor']['mean'] == [5.0] * 3
    assert model_config(classifier(4), 'x', dict(mean=[1.0] * 3))['data_preprocessor'] == dict(
        mean=[1.0] * 3
    )


def test_a_distillation_stands_for_its_student():
    spec = dict(
        type='Distiller', student=classifier(4), terms={}, data_preprocessor=dict(mean=[2.0] * 3)
    )
    config = model_config(spec, 'teacher.model')
    assert config['backbone']['width'] == 4 and config['data_preprocessor'] == dict(mean=[2.0] * 3)


def test_the_scope_of_a_base_config_is_dropped():
    assert '_scope_' not in model_config(dict(classifier(4), _scope_='mmpretrain'), 'student')


def test_the_zoo_is_asked_by_name_and_by_path():
    assert (
        zoo_entry('resnet18_8xb32_in1k', 'x').weights
        == zoo_entry('mmpretrain::resnet/resnet18_8xb32_in1k.py', 'x').weights
    )
    with pytest.raises(ValueError, match="x: 'resnet-none' is no model of mmpretrain's zoo"):
        zoo_entry('resnet-none', 'x')


@pytest.mark.parametrize(
    'prefix', ['module.', '_orig_mod.', 'module._orig_mod.', '_orig_mod.module.', 'module.module.']
)
def test_prefixes_of_wrappers_come_off(prefix):
    source, model = build(classifier(4)), build(classifier(4))
    state = {prefix + key: value for key, value in source.state_dict().items()}
    load_weights(model, dict(state_dict=state), 'file')
    for key, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)


@pytest.mark.parametrize('compiled', [False, True])
def test_a_compiled_part_has_the_same_tensors(compiled):
    source, model = build(classifier(4)), build(classifier(4))
    (model if compiled else source).backbone = torch.compile(build(classifier(4)).backbone)
    load_weights(model, source.state_dict(), 'file')
    for value, other in zip(source.state_dict().values(), model.state_dict().values()):
        assert torch.equal(value, other)


def test_a_models_own_part_may_be_called_module():
    source, model = nn.Module(), nn.Module()
    source.module, model.module = nn.Linear(2, 3), nn.Linear(2, 3)
    load_weights(model, source.state_dict(), 'file')
    assert torch.equal(model.module.weight, source.module.weight)
