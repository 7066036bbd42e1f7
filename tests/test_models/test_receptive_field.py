"""Receptive fields: those of public networks, and what a cell's output really depends on."""

import pytest
import torch
from mmpretrain.models.backbones import VGG, DenseNet, RegNet, RepVGG, ResNet, SEResNet
from torch import nn

from mmkdx.models import backbones
from mmkdx.models.intercept import fake_forward
from mmkdx.models.receptive_field import ReceptiveField, cell_box, receptive_field


@pytest.mark.parametrize(
    'build, field, channels',
    [
        (lambda: VGG(11), (7, 32, 150, 16), 512),
        (lambda: VGG(16), (7, 32, 212, 16), 512),
        (lambda: VGG(19), (7, 32, 268, 16), 512),
        (lambda: ResNet(18), (7, 32, 435, 0.5), 512),
        (lambda: ResNet(34), (7, 32, 899, 0.5), 512),
        (lambda: ResNet(50), (7, 32, 427, 0.5), 2048),
        (lambda: DenseNet('121'), (7, 32, 2071, 14.5), 1024),
        (lambda: DenseNet('161'), (7, 32, 2967, 14.5), 2208),
    ],
    ids='VGG11 VGG16 VGG19 ResNet18 ResNet34 ResNet50 DenseNet121 DenseNet161'.split(),
)
def test_public_networks(build, field, channels):
    backbone = build()
    assert receptive_field(backbone) == field
    with fake_forward(backbone):
        shape = backbone(torch.empty(1, 3, 224, 224))[-1].shape
    assert shape == (1, channels, 7, 7)


def test_vgg_without_its_last_pooling():
    assert receptive_field(VGG(11, with_last_pool=False)) == (14, 16, 134, 8)
    assert receptive_field(VGG(11), size=448).n == 14


@pytest.mark.parametrize(
    'layers',
    [
        [nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1)],
        [nn.Conv2d(3, 4, 5, 2, 2), nn.AvgPool2d(3, 2, 1), nn.Conv2d(4, 4, 1)],
        [nn.Conv2d(3, 4, 3, padding=2, dilation=2), nn.Conv2d(4, 4, 3, 2, 1)],
        [nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(3, 1, 1, dilation=2)],
        [nn.Conv2d(3, 4, 4, 4), nn.MaxPool2d(3, 1, 1)],
        [nn.Conv2d(3, 4, 2), nn.AvgPool2d(2)],
    ],
    ids=['vgg', 'odd', 'dilated', 'dilated pooling', 'patches', 'unpadded'],
)
def test_gradients_reach_as_far(layers):
    backbone = nn.Sequential(*layers)
    for parameter in backbone.parameters():
        nn.init.constant_(parameter, 0.1)
    images = torch.rand(1, 3, 32, 32, requires_grad=True)
    output = backbone(images)
    field = receptive_field(backbone, 32)
    assert field.n == output.shape[-1]
    middle = field.n // 2
    for cell in (0, middle * field.n + field.n - 1, field.n**2 - 1):
        # A maximum has a gradient at one position only, so all are let pass
        seen = torch.zeros(32, 32, dtype=torch.bool)
        for seed in range(200 if any(isinstance(m, nn.MaxPool2d) for m in layers) else 1):
            images = torch.rand(
                1, 3, 32, 32, generator=torch.Generator().manual_seed(seed)
            ).requires_grad_()
            value = backbone(images)[0].flatten(1)[:, cell].sum()
            seen |= torch.autograd.grad(value, images)[0][0].ne(0).any(0)
        rows, columns = seen.any(1).nonzero()[:, 0], seen.any(0).nonzero()[:, 0]
        box = (rows[0].item(), rows[-1].item() + 1, columns[0].item(), columns[-1].item() + 1)
        assert cell_box(field, cell, 32) == box


def test_boxes_of_cells():
    vgg = ReceptiveField(7, 32, 268, 16.0)
    assert cell_box(vgg, 0) == (0, 150, 0, 150)
    assert cell_box(vgg, 48) == (74, 224, 74, 224)
    assert cell_box(vgg, 6) == (0, 150, 74, 224)  # the first row's last cell
    resnet = ReceptiveField(7, 32, 899, 0.5)
    assert {cell_box(resnet, cell) for cell in range(49)} == {(0, 224, 0, 224)}
    assert cell_box(ReceptiveField(4, 8, 6, 4.0), 5, 32) == (9, 15, 9, 15)
    assert cell_box(ReceptiveField(4, 8, 5, 4.0), 5, 32) == (9, 14, 9, 14)


@pytest.mark.parametrize('cell', [-1, 49])
def test_no_such_cell(cell):
    with pytest.raises(ValueError, match=f'cell is {cell}; a map of 7x7 has cells 0 to 48'):
        cell_box(ReceptiveField(7, 32, 268, 16.0), cell)


def test_shortcuts_are_left_out():
    plain = ResNet(18, num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,))
    assert receptive_field(plain) == (56, 4, 43, 0.5)
    # Its shortcut has a pooling of stride 2, too
    assert receptive_field(ResNet(18, avg_down=True)) == (7, 32, 435, 0.5)
    wide = backbones.CIFARWideResNet(16, 2)
    # 3 + 4 convolutions at jumps of 1, then 1 + 3 for each of two more stages
    assert receptive_field(wide, 32) == (8, 4, 1 + 5 * 2 + (2 + 3 * 4) + (4 + 3 * 8), 0.5)


def test_grey_images():
    grey = ResNet(18, in_channels=1)
    assert receptive_field(grey) == receptive_field(ResNet(18)) == (7, 32, 435, 0.5)


def test_the_backbone_stays_as_it_was():
    backbone = ResNet(18)
    backbone.train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    receptive_field(backbone)
    assert backbone.training and not any(m._forward_hooks for m in backbone.modules())
    after = backbone.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x).mean((2, 3))


@pytest.mark.parametrize(
    'build, message',
    [
        (lambda: SEResNet(50), r'conv1.conv takes a map of 1 columns after layer1.0.conv3 gave'),
        (lambda: RepVGG('A0'), 'takes a map of 224 columns after .* gave one of 112'),
        (lambda: nn.Conv2d(3, 4, (3, 1)), 'no square receptive field'),
        (lambda: nn.Conv2d(3, 4, 3, padding='same'), 'not the same in both directions'),
        (lambda: nn.MaxPool2d(2, (2, 1)), 'not the same in both directions'),
        (Flat, r'yields \(1, 4\) after conv gave 222 columns; it must yield a square'),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(2)),
            r'yields \(1, 4, 2, 2\) after 0 gave 222 columns',
        ),
    ],
    ids=['attention', 'branches', 'kernel', 'padding', 'stride', 'flat', 'pooled'],
)
def test_no_receptive_field(build, message):
    backbone = build()
    with pytest.raises(ValueError, match=message):
        receptive_field(backbone)
    assert not any(m._forward_hooks for m in backbone.modules())


def test_grouped_convolutions_are_a_chain():
    assert receptive_field(RegNet('regnetx_400mf')).jump == 32


def test_a_transformer_has_none():
    from mmpretrain.models import VisionTransformer

    backbone = VisionTransformer('deit-tiny', out_type='featmap')
    with pytest.raises(
        ValueError, match='no chain of convolutions and poolings: .* a linear layer'
    ):
        receptive_field(backbone)
