"""The CIFAR networks: sizes, initialisation, freezing, class maps. Their logits: see the converter."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from public_networks import PUBLISHED
from tiny import build
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmkdx.functional import ClassMaps

MODELS = Path(__file__).parents[2] / 'configs/_base_/models'
# Of each family a network, with the modules that each value of frozen_stages adds
STAGES = {
    'resnet8x4': ['conv1 bn1', 'layer1', 'layer2', 'layer3'],
    'resnet50': ['conv1 bn1', 'layer1', 'layer2', 'layer3', 'layer4'],
    'wrn_16_2': ['conv1', 'block1', 'block2', 'block3 bn1'],
    'vgg8': ['block0', 'block1', 'block2', 'block3', 'block4'],
    'mobilenetv2': ['conv1', *(f'blocks.{i}' for i in range(6)), 'blocks.6 conv2'],
    'shufflenetv1': ['conv1 bn1', 'layer1', 'layer2', 'layer3'],
    'shufflenetv2': ['conv1 bn1', 'layer1', 'layer2', 'layer3 conv2 bn2'],
}
OURS = [name for name in STAGES if name != 'resnet50']


def network(name, **backbone):
    config = Config.fromfile(MODELS / f'{name}_cifar.py').model.to_dict()
    config['backbone'].update(backbone)
    torch.manual_seed(0)
    return build(config)


def images(n=1, height=32, width=32):
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('name', PUBLISHED)
def test_size_and_class_maps(name):
    model = network(name)
    _, _, parameters, features = PUBLISHED[name]
    assert sum(value.numel() for value in model.parameters()) == parameters
    with torch.no_grad():
        model.eval()
        (output,) = model.backbone(images())
        assert output.shape == (1, *features) and output.min() >= 0
        logits, fc = model(images()), model.head.fc
        maps = ClassMaps(output, fc.weight, fc.bias).full()
    assert maps.shape == (1, 100, *features[1:])
    # Untrained deep networks explode in evaluation mode, so what is small is relative
    distance = (maps.mean((2, 3)) + fc.bias - logits).abs().max()
    assert distance < 1e-5 * logits.abs().max()


@pytest.mark.parametrize(
    'name, height, width, expected',
    [
        ('resnet8x4', 64, 48, (256, 16, 12)),
        ('wrn_16_2', 64, 48, (128, 16, 12)),
        ('vgg8', 64, 64, (512, 4, 4)),
        ('vgg8', 64, 32, (512, 4, 2)),
        ('vgg8', 32, 64, (512, 4, 8)),
        ('vgg8', 96, 96, (512, 12, 12)),
        ('mobilenetv2', 64, 48, (1280, 4, 3)),
        ('shufflenetv1', 64, 48, (960, 8, 6)),
        ('shufflenetv2', 64, 48, (1024, 8, 6)),
        ('shufflenetv1', 37, 33, (960, 5, 5)),
    ],
)
def test_other_image_sizes(name, height, width, expected):
    model = network(name)
    with torch.no_grad():
        assert model.backbone(images(2, height, width))[-1].shape == (2, *expected)
        assert model(images(2, height, width)).shape == (2, 100)


# Initialisation


def check_normal(weight, std):
    """As from a normal distribution: its standard deviation, and tails."""
    z = weight.detach().flatten() / std
    assert abs(z.std() - 1) < 5 / (2 * len(z)) ** 0.5
    assert len(z) < 1000 or z.abs().max() > 2.5


def check_uniform(weight, bound):
    """As from a uniform distribution, within its bounds and up to them."""
    z = weight.detach().flatten() / bound
    assert z.abs().max() <= 1 + 1e-6
    assert abs(z.abs().mean() - 0.5) < 1.5 / len(z) ** 0.5


@pytest.mark.parametrize('name', STAGES)
def test_initialisation(name):
    model = network(name)
    model.init_weights()
    for module in model.backbone.modules():
        if isinstance(module, nn.Conv2d):
            out, channels, height, width = module.weight.shape
            if name.startswith('shufflenet'):
                check_uniform(module.weight, (channels * height * width) ** -0.5)
            else:
                check_normal(module.weight, (2 / (height * width * out)) ** 0.5)
            assert (module.bias is not None) == (name == 'vgg8')
            assert module.bias is None or not module.bias.any()
        if isinstance(module, _BatchNorm):
            assert (module.weight == 1).all() and not module.bias.any()

    fc = model.head.fc
    if name in ('vgg8', 'mobilenetv2'):
        check_normal(fc.weight, 0.01)
    else:
        check_uniform(fc.weight, fc.in_features**-0.5)
    if name in ('vgg8', 'mobilenetv2', 'wrn_16_2'):
        assert not fc.bias.any()
    else:
        check_uniform(fc.bias, fc.in_features**-0.5)


# Freezing


@pytest.mark.parametrize(
    'name, frozen',
    [(name, value) for name, stages in STAGES.items() for value in (-1, 0, 2, len(stages) - 1)],
)
def test_frozen_stages(name, frozen):
    stages = STAGES[name]
    model = network(name, frozen_stages=frozen)
    backbone = model.backbone
    modules = ' '.join(stages[: frozen + 1]).split()

    def is_frozen(path):
        return any(f'{path}.'.startswith(f'{module}.') for module in modules)

    def check():
        for path, value in backbone.named_parameters():
            assert value.requires_grad != is_frozen(path), path
        for path, module in backbone.named_modules():
            if isinstance(module, _BatchNorm):
                assert module.training != is_frozen(path), path

    model.train()
    check()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    model(images(2)).sum().backward()
    for key, value in backbone.state_dict().items():
        if key.endswith(('running_mean', 'running_var', 'num_batches_tracked')):
            assert torch.equal(value, before[key]) == is_frozen(key), key
    for path, value in backbone.named_parameters():
        assert (value.grad is None) == is_frozen(path), path
    assert len(modules) == len(' '.join(stages).split()) or frozen < len(stages) - 1

    model.eval()
    assert not any(module.training for module in backbone.modules())
    model.train()
    check()


@pytest.mark.parametrize('name', [name for name in OURS if name != 'resnet8x4'])
def test_train_can_be_chained(name):
    backbone = network(name).backbone
    assert backbone.train(False) is backbone and backbone.eval() is backbone


@pytest.mark.parametrize('name', OURS)
def test_stage_that_there_is_not(name):
    largest = len(STAGES[name]) - 1
    for value in (-2, largest + 1):
        message = f'frozen_stages is {value}; it must be an integer of at least -1 and of at most {largest}'
        with pytest.raises(ValueError, match=message):
            network(name, frozen_stages=value)


@pytest.mark.parametrize(
    'name, depth, error, message',
    [
        ('resnet20', 18, ValueError, 'depth is 18; it must be one of 8, 20, 32, 56, 110'),
        ('wrn_16_2', 20, ValueError, r'depth is 20; that of a wide ResNet is 10, 16, 22, … \(6 n'),
        ('wrn_16_2', 4, ValueError, 'depth is 4; '),
        ('vgg8', 16, ValueError, 'depth is 16; it must be one of 8, 13'),
    ],
)
def test_depth_that_there_is_not(name, depth, error, message):
    with pytest.raises(error, match=message):
        network(name, depth=depth)
