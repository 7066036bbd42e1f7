"""Networks of other libraries by name, and what is said of names that are not there."""

import sys
import types

import pytest
import torch
from mmengine.config import Config
from tiny import build, distiller
from torch import nn

from mmkdx.distillation.models import build_model, model_config
from mmkdx.distillation.teachers import Teacher
from mmkdx.models import describe, libraries
from mmkdx.models.libraries import find_network, has_own_weights, names_network


class Net(nn.Sequential):
    """A module that returns logits."""

    def __init__(self, num_classes=4):
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))


@pytest.fixture(autouse=True)
def own_module(monkeypatch):
    """A module of the user's, with functions that build networks."""
    module = types.ModuleType('my_networks')
    module.build, module.number, module.count = Net, lambda: 3, 3
    monkeypatch.setitem(sys.modules, 'my_networks', module)


@pytest.mark.parametrize(
    'spec, expected',
    [
        ('timm::resnet18', True),
        ('torchvision::resnet18', True),
        ('hf::microsoft/resnet-50', True),
        ('my_package.my_module:build', True),
        ('my_networks:build', True),
        ('mmpretrain::resnet/resnet18_8xb32_in1k.py', False),
        ('resnet18_8xb32_in1k', False),
        ('configs/a.py', False),
        ('C:\\configs\\a.py', False),
        ('https://example.org/a.pth', False),
        ('cuda:0', False),
        (dict(type='timm::resnet18'), False),
        (None, False),
    ],
)
def test_names(spec, expected):
    assert names_network(spec) == expected


@pytest.mark.parametrize(
    'name, message',
    [
        (
            'timm::mobilenetv3_smal_100',
            'timm has no such model; near names are .*mobilenetv3_small_100',
        ),
        ('torchvision::resnet81', 'torchvision has no such classifier; near names are .*resnet18'),
        # torchvision has it, and it returns no logits
        ('torchvision::fcn_resnet50', 'torchvision has no such classifier'),
        (
            'hf::resnett',
            'transformers has no such model, config or class, .*near names are .*resnet',
        ),
        ('hf::ResNetForImageClasification', 'near names are ResNetForImageClassification'),
        (
            'tim::resnet18',
            "no library 'tim' of networks .* timm, torchvision, hf; near names are timm",
        ),
        ('my_networks:biuld', "module 'my_networks' has no callable 'biuld'; near names are build"),
        ('my_networks:count', "module 'my_networks' has no callable 'count'"),
        ('no_such_package.x:build', 'the module cannot be imported: No module named'),
    ],
)
def test_what_is_not_there_is_refused_with_near_names(name, message):
    library = {'timm': 'timm', 'hf': 'transformers'}.get(name.partition('::')[0])
    if library:
        pytest.importorskip(library)
    for spec in (name, *([dict(type=name)] if names_network(name) else [])):
        with pytest.raises(ValueError, match=f'student: .*{message}'):
            model_config(spec, 'student')


def test_yaml_and_json_name_no_callables(tmp_path):
    """Which would run what they name; a network of a library runs the library alone."""
    (tmp_path / 'a.json').write_text('{"student": "os:getcwd", "other": "torchvision::resnet18"}')
    cfg = Config.fromfile(tmp_path / 'a.json')
    for spec in (cfg.student, dict(type='PlainClassifier', network=cfg.student)):
        with pytest.raises(ValueError, match="is 'os:getcwd', a program; configs in YAML and JSON"):
            build_model(spec, 'student')
    assert model_config(cfg.other, 'student')['network'] == 'torchvision::resnet18'


@pytest.mark.parametrize('name', ['timm::resnet18', 'hf::resnet', 'torchvision::resnet18'])
def test_a_missing_library_is_said(name, monkeypatch):
    def missing(module):
        raise ImportError(f'No module named {module!r}')

    monkeypatch.setattr(libraries, 'import_module', missing)
    message = rf"teacher.model: '{name}' needs (\w+), which is not installed: pip install \1, or"
    with pytest.raises(ValueError, match=message):
        Teacher(name)


@pytest.mark.parametrize(
    'name, arguments, message',
    [
        (
            'torchvision::resnet18',
            dict(depth=3),
            r"'torchvision::resnet18' cannot be built with {'depth'",
        ),
        ('torchvision::resnet18', dict(weights='V9'), "built with {'weights': 'V9'}: 'V9'"),
        (
            'my_networks:build',
            dict(width=3),
            "'my_networks:build' cannot be built with {'width': 3}: .*width",
        ),
        (
            'my_networks:number',
            {},
            "'my_networks:number' returns a int; it must return an nn.Module",
        ),
    ],
)
def test_arguments_that_do_not_fit(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        find_network(name, 'network')(**arguments)


def test_hugging_face_without_a_classifier():
    pytest.importorskip('transformers')
    with pytest.raises(
        ValueError, match="network: 'hf::bert' cannot be built with {}: Unrecognized"
    ):
        find_network('hf::bert', 'network')()


SMALL = dict(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type='basic')


def test_hugging_faces_forms_are_one_network(tmp_path):
    transformers = pytest.importorskip('transformers')
    config = transformers.ResNetConfig(**SMALL, num_labels=3)
    network = transformers.ResNetForImageClassification(config).eval()
    network.save_pretrained(tmp_path)
    transformers.ViTImageProcessor(image_mean=[0.1] * 3, image_std=[0.2] * 3).save_pretrained(
        tmp_path
    )
    for name in ('resnet', 'ResNetConfig', 'ResNetForImageClassification'):
        built = find_network(f'hf::{name}', 'x')(**SMALL, num_classes=3)
        assert type(built) is type(network)
        built.load_state_dict(network.state_dict())
    images = torch.randn(2, 3, 16, 16)
    folder = find_network(f'hf::{tmp_path}', 'x')
    loaded = folder(pretrained=True).eval()
    assert torch.equal(loaded(images).logits, network(images).logits)
    assert describe(loaded).images.mean == pytest.approx((25.5,) * 3)
    assert folder(pretrained=True, num_classes=5)(images).logits.shape == (2, 5)
    for name in ('resnet', 'ResNetConfig', 'ResNetForImageClassification'):
        with pytest.raises(
            ValueError, match=f"x: 'hf::{name}' .*: a class or type has no weights of"
        ):
            find_network(f'hf::{name}', 'x')(pretrained=True)
    fresh = find_network(f'hf::{tmp_path / "config.json"}', 'x')()
    assert not torch.equal(fresh.classifier[1].weight, network.classifier[1].weight)


def test_torchvisions_weights(monkeypatch):
    """With weights as if they had been downloaded, and a new classifier where classes are others."""
    from torchvision.models import ResNet18_Weights, resnet18
    from torchvision.models._api import WeightsEnum

    source = resnet18()
    monkeypatch.setattr(WeightsEnum, 'get_state_dict', lambda *args, **kwargs: source.state_dict())
    build = find_network('torchvision::resnet18', 'x')
    for arguments in (dict(pretrained=True), dict(weights='IMAGENET1K_V1')):
        network = build(**arguments)
        assert torch.equal(network.fc.weight, source.fc.weight)
        assert describe(network).classes[281] == 'tabby'
    network = build(weights=ResNet18_Weights.DEFAULT, num_classes=5)
    assert torch.equal(network.conv1.weight, source.conv1.weight)
    assert network.fc.weight.shape == (5, 512)
    facts = describe(network)
    assert (facts.num_classes, facts.classes) == (5, None) and facts.images.mean is not None
    squeezed = 'its classifier is no linear layer, so num_classes cannot change'
    source = __import__('torchvision').models.squeezenet1_0()
    with pytest.raises(ValueError, match=squeezed):
        find_network('torchvision::squeezenet1_0', 'x')(pretrained=True, num_classes=5)


def test_timms_weights_of_imagenet_name_its_classes(monkeypatch):
    """With loading left out; weights of other files may be of other classes."""
    timm = pytest.importorskip('timm')
    monkeypatch.setattr(timm.models._builder, 'load_pretrained', lambda *args, **kwargs: None)
    build = find_network('timm::test_resnet', 'x')
    network = build(pretrained=True)
    assert describe(network).classes[560] == 'football helmet'
    assert describe(build_model(dict(type='timm::test_resnet', pretrained=True), 'x')).classes
    network.reset_classifier(7)
    overlay = dict(pretrained=True, pretrained_cfg_overlay=dict(file='own.pth'))
    unknown = network, build(), build(pretrained=True, num_classes=5), build(**overlay)
    assert [describe(each).classes for each in unknown] == [None] * 4
    assert [describe(each).num_classes for each in unknown] == [7, 1000, 5, 1000]


def test_a_second_classifier_is_left_out():
    for name in ('inception_v3', 'googlenet'):
        with torch.device('meta'):
            network = find_network(f'torchvision::{name}', 'x')(num_classes=4)
            assert network.train()(torch.empty(2, 3, 299, 299)).shape == (2, 4)


def test_which_models_bring_their_weights():
    assert has_own_weights('my_networks:build')
    assert has_own_weights(dict(type='timm::resnet18', pretrained=True))
    assert has_own_weights(dict(type='torchvision::resnet18', weights='DEFAULT'))
    assert not has_own_weights('timm::resnet18')
    assert not has_own_weights(dict(type='timm::resnet18', num_classes=3))
    assert not has_own_weights(dict(type='ImageClassifier', pretrained='a.pth'))


def test_teachers_take_the_same_names(tmp_path):
    images = torch.randn(2, 3, 8, 8)
    model = distiller(teacher='my_networks:build')
    teacher = model.teachers[0]
    model.init_weights()  # its weights are as it was built with
    assert torch.equal(teacher(images)['logits'], teacher.model.model(images))
    torch.save(Net().state_dict(), tmp_path / 'net.pth')
    named = dict(
        model=dict(type='my_networks:build', num_classes=4), checkpoint=f'{tmp_path}/net.pth'
    )
    teacher = distiller(teacher=named).teachers[0]
    assert not teacher.loaded
    teacher.load()
    source = torch.load(tmp_path / 'net.pth')['2.weight']
    assert torch.equal(teacher.model.model[2].weight, source)
    with pytest.raises(ValueError, match='teacher has no weights: .* or of another library'):
        distiller(teacher=dict(type='torchvision::resnet18', num_classes=4)).init_weights()


def test_a_library_brings_its_own_weights(monkeypatch):
    from torchvision.models import shufflenet_v2_x0_5
    from torchvision.models._api import WeightsEnum

    source = shufflenet_v2_x0_5()
    monkeypatch.setattr(WeightsEnum, 'get_state_dict', lambda *args, **kwargs: source.state_dict())
    teacher = Teacher('torchvision::shufflenet_v2_x0_5', pretrained=True)
    assert not teacher.loaded  # a config can be looked at without weights
    teacher.load()
    assert teacher.loaded and torch.equal(teacher.model.model.fc.weight, source.fc.weight)
    assert teacher.classes[281] == 'tabby'
    with pytest.raises(ValueError, match='two sources of weights'):
        Teacher('torchvision::resnet18', 'a.pth', pretrained=True)


def test_the_zoo_and_configs_are_still_found():
    spec = 'mmkdx::cifar/resnet20_cifar100.py'
    assert model_config(spec, 'x')['backbone']['type'] == 'CIFARResNet'
    module = build_model(build(dict(type='PlainClassifier', network=Net())), 'x')
    assert type(module).__name__ == 'PlainClassifier'
