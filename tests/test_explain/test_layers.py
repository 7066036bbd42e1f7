"""Finding the layer that maps are made of: in each backbone family, and what is refused."""

import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES, family, images, randomize
from mmpretrain.models import backbones
from torch import nn

from mmkdx.explain import GradCAM
from mmkdx.explain.layers import find_layers, find_stages
from mmkdx.explain.layouts import Layout
from mmkdx.functional import degenerate_maps

# What 'auto' finds: the layer, its layout, and the classifier where one has global average pooling
# and nothing else before it. Read off the networks' definitions: what enters the last pooling, or, with
# a class token, the last attention.
FOUND = {
    'AlexNet': ('backbone.features', Layout((6, 6), 'nchw'), None),
    'VGG': ('backbone.features.11', Layout((4, 4), 'nchw'), 'head.fc'),
    'RegNet': ('backbone.layer4', Layout((2, 2), 'nchw'), 'head.fc'),
    'ResNet': ('backbone.layer4', Layout((2, 2), 'nchw'), 'head.fc'),
    'ResNeXt': ('backbone.layer4', Layout((2, 2), 'nchw'), 'head.fc'),
    'ResNetV1c': ('backbone.layer4', Layout((2, 2), 'nchw'), 'head.fc'),
    'ResNetV1d': ('backbone.layer4', Layout((2, 2), 'nchw'), 'head.fc'),
    'ResNeSt': ('backbone.layer4', Layout((2, 2), 'nchw'), 'head.fc'),
    'ResNet_CIFAR': ('backbone.layer4', Layout((4, 4), 'nchw'), 'head.fc'),
    'SEResNet': ('backbone.layer4', Layout((2, 2), 'nchw'), 'head.fc'),
    'SEResNeXt': ('backbone.layer4', Layout((2, 2), 'nchw'), 'head.fc'),
    'ShuffleNetV1': ('backbone.layers.2', Layout((2, 2), 'nchw'), 'head.fc'),
    'ShuffleNetV2': ('backbone.layers.3', Layout((2, 2), 'nchw'), 'head.fc'),
    'MobileNetV2': ('backbone.conv2', Layout((2, 2), 'nchw'), 'head.fc'),
    'MobileNetV3': ('backbone.layer12', Layout((2, 2), 'nchw'), None),
    'VisionTransformer': ('backbone.layers.1.ln1', Layout((3, 3), 'tokens', 1), None),
    'SwinTransformer': ('backbone', Layout((8, 8), 'nchw'), 'head.fc'),
    'SwinTransformerV2': ('backbone', Layout((8, 8), 'nchw'), 'head.fc'),
    'TNT': ('backbone.layers.1.outer_block.norm_attn', Layout((3, 3), 'tokens', 1), None),
    'T2T_ViT': ('backbone.encoder.1.ln1', Layout((4, 4), 'tokens', 1), None),
    'Res2Net': ('backbone.layer4', Layout((2, 2), 'nchw'), 'head.fc'),
    'RepVGG': ('backbone.stage_4', Layout((2, 2), 'nchw'), 'head.fc'),
    'Conformer': ('backbone.conv_trans_12.fusion_block', Layout((2, 2), 'nchw'), None),
    'MlpMixer': ('backbone', Layout((3, 3), 'ncl'), None),
    'DistilledVisionTransformer': ('backbone.layers.1.ln1', Layout((3, 3), 'tokens', 2), None),
    'PCPVT': ('backbone', Layout((2, 2), 'nchw'), 'head.fc'),
    'SVT': ('backbone', Layout((2, 2), 'nchw'), 'head.fc'),
    'EfficientNet': ('backbone.layers.6', Layout((2, 2), 'nchw'), 'head.fc'),
    'EfficientNetV2': ('backbone.layers.7', Layout((2, 2), 'nchw'), 'head.fc'),
    # A norm follows the pooling
    'ConvNeXt': ('backbone.stages.3', Layout((2, 2), 'nchw'), None),
    'HRNet': ('neck.0', Layout((2, 2), 'nchw'), 'head.fc'),
    'ConvMixer': ('backbone.stages.1', Layout((8, 8), 'nchw'), 'head.fc'),
    'EdgeNeXt': ('backbone.stages.3', Layout((2, 2), 'nchw'), None),
    'CSPDarkNet': ('backbone.stages.4', Layout((2, 2), 'nchw'), 'head.fc'),
    'CSPResNet': ('backbone.stages.3', Layout((2, 2), 'nchw'), 'head.fc'),
    'CSPResNeXt': ('backbone.stages.3', Layout((2, 2), 'nchw'), 'head.fc'),
    'RepLKNet': ('backbone.stages.3.norm', Layout((2, 2), 'nchw'), 'head.fc'),
    'RepMLPNet': ('backbone.final_norm', Layout((2, 2), 'nchw'), 'head.fc'),
    'PoolFormer': ('backbone.norm6', Layout((2, 2), 'nchw'), 'head.fc'),
    'RIFormer': ('backbone.norm6', Layout((2, 2), 'nchw'), 'head.fc'),
    'DenseNet': ('backbone.transitions.3', Layout((2, 2), 'nchw'), 'head.fc'),
    'VAN': ('backbone', Layout((2, 2), 'nchw'), 'head.fc'),
    'InceptionV3': ('backbone.Mixed_7c', Layout((2, 2), 'nchw'), 'backbone.fc'),
    'MobileOne': ('backbone.stage4', Layout((2, 2), 'nchw'), 'head.fc'),
    'EfficientFormer': ('backbone', Layout((7, 7), 'ncl'), None),
    'MViT': ('backbone', Layout((4, 4), 'nchw'), 'head.fc'),
    # Its blocks call one norm twice, so the block before stands for what enters the attention
    'DeiT3': ('backbone.layers.0', Layout((3, 3), 'tokens', 1), None),
    'HorNet': ('backbone.stages.3', Layout((2, 2), 'nchw'), None),
    'MobileViT': ('backbone.conv_1x1_exp', Layout((2, 2), 'nchw'), 'head.fc'),
    'DaViT': ('backbone', Layout((2, 2), 'nchw'), 'head.fc'),
    # Averages the patches' tokens and leaves the class token out
    'BEiTViT': ('backbone.layers.1', Layout((3, 3), 'tokens', 1), None),
    'RevVisionTransformer': ('backbone.fusion_layer', Layout((3, 3), 'tokens'), None),
    'MixMIMTransformer': ('backbone.norm', Layout((2, 2), 'tokens'), None),
    'TinyViT': ('backbone.stages.3', Layout((2, 2), 'tokens'), None),
    'LeViT': ('backbone', Layout((2, 2), 'nchw'), None),
    'Vig': ('backbone.blocks.11', Layout((14, 14), 'nchw'), None),
    'PyramidVig': ('backbone.stages.3', Layout((7, 7), 'nchw'), None),
    'XCiT': ('backbone.ca_layers.1.norm1', Layout((4, 4), 'tokens', 1), None),
    'ViTSAM': ('backbone.channel_reduction', Layout((4, 4), 'nchw'), 'head.fc'),
    'ViTEVA02': ('backbone.layers.1.norm1', Layout((4, 4), 'tokens', 1), None),
    'HiViT': ('backbone', Layout((4, 4), 'nchw'), 'head.fc'),
}

# One image becomes a vector in LeNet5; CSPNet is a base; the sparse ones are for pretraining; the last
# wraps those of timm
LEFT_OUT = {'LeNet5', 'CSPNet', 'SparseResNet', 'SparseConvNeXt', 'TIMMBackbone'}


def test_every_family_of_mmpretrain_is_here():
    assert set(FOUND) == set(backbones.__all__) - LEFT_OUT


@pytest.mark.parametrize('name', FOUND)
def test_auto_finds_the_last_layer_of_each_family(name):
    model, inputs = family(name), images(FAMILIES[name][0], seed=2)
    explainer = GradCAM()
    maps = explainer(model, inputs, [0, 3])
    (layer,) = explainer.layers(model, inputs)
    assert (layer.name, layer.layout, layer.classifier) == FOUND[name]
    assert maps.shape == (2, *layer.layout.size)
    # Far above what rounding makes of a constant map
    assert maps.isfinite().all() and not degenerate_maps(maps, 1e-4).any()


def test_a_model_that_squeezes_one_image_is_refused():
    with pytest.raises(ValueError, match=r'ImageClassifier returns a Tensor of shape \(4,\)'):
        GradCAM()(family('LeNet5'), images(32, channels=1))


# Other sizes


@pytest.mark.parametrize(
    'name, trained, size, grid',
    [
        ('ResNet', None, (96, 160), (3, 5)),
        ('ResNet', None, (100, 70), (4, 3)),
        ('ConvNeXt', None, (64, 128), (2, 4)),
        ('VisionTransformer', None, (48, 80), (3, 5)),
        ('VisionTransformer', None, (96, 32), (6, 2)),
        ('VisionTransformer', (32, 192), (32, 192), (2, 12)),
        ('DistilledVisionTransformer', None, (48, 80), (3, 5)),
        # No whole patches: 14 tokens could be 8 and 2 x 3, had the model not said that 2 are extra
        ('DistilledVisionTransformer', None, (40, 60), (3, 4)),
        ('SwinTransformer', None, (64, 96), (8, 12)),
        ('SwinTransformer', None, (80, 32), (10, 4)),
        ('BEiTViT', (48, 80), (48, 80), (3, 5)),
        ('MlpMixer', (48, 80), (48, 80), (3, 5)),
    ],
)
def test_images_that_are_not_square(name, trained, size, grid):
    model, inputs = family(name, trained), images(size)
    explainer = GradCAM()
    maps = explainer(model, inputs, 1)
    (layer,) = explainer.layers(model, inputs)
    assert layer.layout.size == grid and maps.shape == (2, *grid)
    assert layer.name == FOUND[name][0] and not degenerate_maps(maps, 1e-4).any()


def test_each_size_has_its_own_layout():
    model, explainer = family('VisionTransformer'), GradCAM()
    shapes = [explainer(model, images(size), 0).shape for size in (48, (64, 48), 48)]
    assert shapes == [(2, 3, 3), (2, 4, 3), (2, 3, 3)]


@pytest.mark.parametrize(
    'shape, image, layout',
    [
        ((1, 8, 7, 7), (224, 224), Layout((7, 7), 'nchw')),
        ((1, 7, 7, 96), (224, 224), Layout((7, 7), 'nhwc')),
        ((1, 8, 2, 3), (64, 96), Layout((2, 3), 'nchw')),
        ((1, 2, 3, 8), (64, 96), Layout((2, 3), 'nhwc')),
        ((1, 8, 3, 2), (64, 96), None),
        ((1, 49, 96), (224, 224), Layout((7, 7), 'tokens')),
        ((1, 50, 96), (224, 224), Layout((7, 7), 'tokens', 1)),
        ((1, 51, 96), (224, 224), Layout((7, 7), 'tokens', 2)),
        ((1, 54, 96), (224, 224), Layout((7, 7), 'tokens', 5)),
        ((1, 96, 49), (224, 224), Layout((7, 7), 'ncl')),
        ((1, 197, 1024), (224, 224), Layout((14, 14), 'tokens', 1)),
        ((1, 16, 96), (32, 128), Layout((2, 8), 'tokens')),
        # A single position is none, and neither are vectors, single channels, or long sequences
        ((1, 96, 1, 1), (224, 224), None),
        ((1, 1, 96), (224, 224), None),
        ((1, 49, 1), (224, 224), None),
        ((1, 96), (224, 224), None),
        ((1, 60, 96), (224, 224), None),
        ((1, 8, 32, 32), (16, 16), None),
    ],
)
def test_layout_of_a_shape(shape, image, layout):
    assert Layout.of(shape, image) == layout


def test_the_model_says_how_many_tokens_are_extra():
    # 50 = 1 + 49 = 14 + 36
    shape, image = (1, 50, 96), (224, 224)
    assert Layout.of(shape, image, 1) == Layout((7, 7), 'tokens', 1)
    assert Layout.of(shape, image, 0) is None or Layout.of(shape, image, 0).extra > 2
    # 17 = 1 + 16 = 8 + 9
    assert Layout.of((1, 17, 96), image).extra == 1
    assert Layout.of((1, 17, 96), image, 8) == Layout((3, 3), 'tokens', 8)


@pytest.mark.parametrize(
    'shape, last, layout',
    # Widths of 1024, as ViT-L and Mixer-L have, are a grid of 32 x 32 themselves
    [
        ((1, 1024, 196), False, Layout((14, 14), 'ncl')),
        ((1, 1024, 196), None, Layout((32, 32), 'tokens')),
        ((1, 196, 1024), None, Layout((14, 14), 'tokens')),
        ((1, 201, 1024), True, Layout((14, 14), 'tokens', 5)),
        ((1, 201, 1024), None, Layout((32, 32), 'ncl')),
        # A hint is no order
        ((1, 196, 768), False, Layout((14, 14), 'tokens')),
    ],
)
def test_channels_that_could_be_a_grid(shape, last, layout):
    assert Layout.of(shape, (224, 224), None, last) == layout


def test_grids_of_whole_patches_come_first():
    # 20 = 2 + 3 · 6 = 5 + 3 · 5
    assert Layout.of((1, 20, 7), (48, 80)) == Layout((3, 5), 'tokens', 5)
    assert Layout.of((1, 20, 7), (48, 80), 2) == Layout((3, 6), 'tokens', 2)
    assert Layout.of((1, 20, 7), (49, 81)) == Layout((4, 5), 'tokens')


def test_the_grid_of_tokens_is_that_of_the_patches():
    for height in range(16, 200, 9):
        for width in range(16, 200, 11):
            grid = (height // 16, width // 16)
            if grid == (1, 1):
                continue
            layout = Layout.of((1, 1 + grid[0] * grid[1], 7), (height, width), 1)
            assert layout == Layout(grid, 'tokens', 1), (height, width)


@pytest.mark.parametrize(
    'layout, arrange',
    [
        (Layout((2, 3), 'nchw'), lambda maps: maps),
        (Layout((2, 3), 'nhwc'), lambda maps: maps.permute(0, 2, 3, 1)),
        (Layout((2, 3), 'ncl'), lambda maps: maps.flatten(2)),
        (Layout((2, 3), 'tokens'), lambda maps: maps.flatten(2).mT),
        (Layout((2, 3), 'tokens', 2), lambda maps: F.pad(maps.flatten(2).mT, (0, 0, 2, 0))),
    ],
    ids=['nchw', 'nhwc', 'ncl', 'tokens', 'two more tokens'],
)
def test_every_layout_becomes_one(layout, arrange):
    maps = torch.arange(48.0).view(2, 4, 2, 3) + 1
    value = arrange(maps).contiguous()
    assert layout.to_map(value).equal(maps)
    layout.to_map(value)[0, 1] = 0  # a view, which ablation writes to
    assert layout.to_map(value)[0, 1].eq(0).all()


# Models of other houses


@pytest.mark.parametrize(
    'build, size, name, layout, classifier',
    [
        (
            lambda models: models.resnet18(num_classes=4),
            64,
            'layer4',
            Layout((2, 2), 'nchw'),
            'fc',
        ),
        (
            lambda models: models.VisionTransformer(48, 16, 2, 2, 16, 32, num_classes=4),
            48,
            'encoder.layers.encoder_layer_1.ln_1',
            Layout((3, 3), 'tokens', 1),
            None,
        ),
        (
            lambda models: models.SwinTransformer(
                [4, 4], 16, [1, 2], [1, 2], [4, 4], num_classes=4
            ),
            64,
            'permute',
            Layout((8, 8), 'nchw'),
            'head',
        ),
    ],
    ids=['ResNet', 'VisionTransformer', 'SwinTransformer'],
)
def test_models_of_torchvision(build, size, name, layout, classifier):
    models = pytest.importorskip('torchvision').models
    torch.manual_seed(0)
    model = randomize(build(models), images(size))
    (layer,) = find_layers(model, images(size, seed=2), ['auto'])
    assert (layer.name, layer.layout, layer.classifier) == (name, layout, classifier)
    assert not degenerate_maps(GradCAM()(model, images(size, seed=2), 1), 1e-4).any()


def test_channels_last_between_blocks():
    models = pytest.importorskip('torchvision').models
    torch.manual_seed(0)
    model = models.SwinTransformer([4, 4], 16, [1, 2], [1, 2], [4, 4], num_classes=4)
    model, inputs = randomize(model, images(64)), images((64, 96), seed=2)
    layers = find_layers(model, inputs, ['norm', 'features.1', 'auto'])
    assert [layer.layout.kind for layer in layers] == ['nhwc', 'nhwc', 'nchw']
    # Nothing but a permutation lies between the two
    norm, _, last = GradCAM(['norm', 'features.1', 'auto'])(model, inputs, [0, 3])
    torch.testing.assert_close(norm, last)


class Block(nn.Module):
    """A block of a transformer, with the names that timm gives."""

    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x):
        parts = self.qkv(self.norm1(x)).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """A ViT with a class token and registers, like timm's."""

    def __init__(self, registers=0, width=16, token=True):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, 16, 16)
        self.prefix = nn.Parameter(torch.zeros(1, 1 + registers, width))
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 4)
        self.token = token

    def forward(self, images):
        x = self.patch_embed(images).flatten(2).mT
        x = self.norm(self.blocks(torch.cat((self.prefix.expand(len(x), -1, -1), x), 1)))
        return self.head(x[:, 0] if self.token else x[:, self.prefix.shape[1] :].mean(1))


@pytest.mark.parametrize('registers', [0, 1, 4])
@pytest.mark.parametrize('token, name', [(True, 'blocks.1.norm1'), (False, 'norm')])
@pytest.mark.parametrize('size, grid', [(48, (3, 3)), ((48, 80), (3, 5))])
def test_class_token_and_registers(registers, token, name, size, grid):
    torch.manual_seed(0)
    model = randomize(Transformer(registers, token=token), images(size))
    (layer,) = find_layers(model, images(size), ['auto'])
    assert layer.name == name
    assert layer.layout == Layout(grid, 'tokens', 1 + registers)


# Layers that are asked for


def test_layers_by_name():
    model, inputs = family('ResNet'), images(64)
    layers = find_layers(model, inputs, ['backbone.layer3', 'features', 'auto', 'backbone.layer4'])
    assert [layer.layout.size for layer in layers] == [(4, 4), (2, 2), (2, 2), (2, 2)]
    # All but the first enter global average pooling
    assert [layer.classifier for layer in layers] == [None, *['head.fc'] * 3]
    first, *rest = GradCAM(['backbone.layer3', 'features', 'auto', 'backbone.layer4'])(
        model, inputs
    )
    assert first.shape == (2, 4, 4) and all(each.equal(rest[0]) for each in rest)


def test_hidden_layers_of_as_many_positions_as_channels():
    model, inputs = family('VisionTransformer'), images((48, 80))
    path = 'backbone.layers.0.ffn.layers.0.1'
    (layer,) = find_layers(model, inputs, [path])
    assert layer.layout == Layout((3, 5), 'tokens', 1)


def test_a_norm_that_is_called_twice():
    model, inputs = family('DeiT3'), images(48)
    (layer,) = find_layers(model, inputs, ['backbone.layers.1.ln1@0'])
    assert layer.layout == Layout((3, 3), 'tokens', 1) and layer.name == 'backbone.layers.1.ln1@0'
    with pytest.raises(ValueError, match=r"calls module 'backbone.layers.1.ln1' 2 times"):
        find_layers(model, inputs, ['backbone.layers.1.ln1'])


@pytest.mark.parametrize(
    'name, layer, message',
    [
        ('ResNet', 'backbone.layr4', r"no module 'backbone.layr4'; near names are backbone.layer4"),
        (
            'ResNet',
            'neck.gap',
            r"layer 'neck.gap' is not spatial: its activations have the shape \(1, 32, 1, 1\) "
            r'for an image of \(64, 64\) pixels; possible layers are .*backbone.layer4$',
        ),
        ('ResNet', 'head.fc', r"layer 'head.fc' is not spatial: .* shape \(1, 4\)"),
        (
            'VisionTransformer',
            'backbone.layers.1',
            r"layer 'backbone.layers.1' does not move the score: .* class token; possible layers are "
            r'.*backbone.layers.1.ln1$',
        ),
        ('DistilledVisionTransformer', 'backbone.layers.1', 'does not move the score'),
        ('ResNet', 'head.loss_module', 'does not call module'),
    ],
)
def test_layers_of_which_there_is_no_map(name, layer, message):
    model, inputs = family(name), images(FAMILIES[name][0])
    with pytest.raises(ValueError, match=message):
        GradCAM(layer)(model, inputs)


class Corner(nn.Module):
    """Scores by one position, or by none, and has a branch without influence."""

    def __init__(self, scale=1):
        super().__init__()
        self.scale = scale
        self.conv, self.idle, self.fc = (
            nn.Conv2d(3, 4, 3, 2, 1),
            nn.Conv2d(3, 4, 1),
            nn.Linear(4, 2),
        )

    def forward(self, images):
        with torch.no_grad():
            idle = self.idle(images).sum() * 0
        return self.fc(self.scale * self.conv(images)[:, :, 1, 1]) + idle


def test_no_layer_moves_the_score():
    with pytest.raises(
        ValueError, match="'auto' finds no spatial layer .* spatial layers are conv$"
    ):
        GradCAM()(Corner(), images(8))
    with pytest.raises(
        ValueError, match="'conv' does not move .* zero at all .* possible layers are none$"
    ):
        GradCAM('conv')(Corner(scale=0), images(8))
    with pytest.raises(ValueError, match='layer idle does not move the score: no gradient flows'):
        GradCAM('idle')(Corner(), images(8))


def test_a_layer_that_is_asked_for_may_move_the_score_at_a_single_position():
    torch.manual_seed(0)
    (layer,) = find_layers(Corner(), images(8), ['conv'])
    assert layer.layout == Layout((4, 4), 'nchw')
    maps = GradCAM('conv')(Corner(), images(8))
    assert maps.shape == (2, 4, 4) and not degenerate_maps(maps).any()


def test_a_model_without_a_spatial_layer():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    with pytest.raises(
        ValueError, match="'auto' finds no spatial layer .* spatial layers are none$"
    ):
        GradCAM()(model, images(8))


# Stages


@pytest.mark.parametrize(
    'name, stages',
    [
        (
            'ResNet',
            {
                'backbone.relu': 32,
                'backbone.layer1': 16,
                'backbone.layer2': 8,
                'backbone.layer3': 4,
                'backbone.layer4': 2,
            },
        ),
        ('ResNet_CIFAR', {f'backbone.layer{i}': 2 ** (6 - i) for i in (1, 2, 3, 4)}),
        # Before each pooling
        (
            'VGG',
            {
                'backbone.features.0': 64,
                'backbone.features.2': 32,
                'backbone.features.5': 16,
                'backbone.features.8': 8,
                'backbone.features.11': 4,
            },
        ),
        # Its first block halves the size in its second convolution
        pytest.param(
            'ResNeXt',
            {
                'backbone.relu': 32,
                'backbone.layer1': 16,
                'backbone.layer2': 8,
                'backbone.layer3': 4,
                'backbone.layer4': 2,
            },
        ),
        pytest.param(
            'VisionTransformer',
            {'backbone.layers.1.ln1': 3},
        ),
    ],
)
def test_stages_end_with_the_last_layer_of_each_size(name, stages):
    found = find_stages(family(name), images(FAMILIES[name][0]))
    assert [(layer.name, layer.layout.size) for layer in found] == [
        (path, (side, side)) for path, side in stages.items()
    ]
    assert all(str(layer.tap) == layer.name for layer in found)


def test_windows_of_an_image_are_no_stage():
    found = find_stages(family('SwinTransformer'), images(64))
    assert (4, 4) not in [layer.layout.size for layer in found]


class Dim(nn.Module):
    """Of its first layer one position moves the score, as where most units are dead for an image."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 4, 2, 2)
        self.fc = nn.Linear(4, 2)

    def forward(self, images):
        alive = torch.zeros(8, 8)
        alive[2, 5] = 1
        return self.fc(self.second(self.first(images) * alive).mean((2, 3)))


def test_stages_need_not_move_the_score_at_most_positions():
    found = find_stages(Dim(), images(8))
    assert [(layer.name, layer.layout.size) for layer in found] == [
        ('first', (8, 8)),
        ('second', (4, 4)),
    ]


def test_no_stages():
    with pytest.raises(
        ValueError, match="'auto' finds no spatial layer .* spatial layers are conv$"
    ):
        find_stages(Corner(), images(8))


def test_branches_are_summed_up_as_their_head_predicts():
    model, inputs = family('Conformer'), images(64)
    with torch.no_grad():
        first, second = model(inputs, mode='tensor')
        maps = GradCAM()(model, inputs, 'pred')
    close = GradCAM()(model, inputs, (first + second).argmax(1))
    assert maps.equal(close)


# The model stays as it was


@pytest.mark.parametrize('training', [True, False])
def test_a_search_leaves_no_trace(training):
    model, inputs = family('ResNet').train(training), images(64)
    for parameter in model.backbone.parameters():
        parameter.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        (layer,) = find_layers(model, inputs, ['auto'])
    assert layer.name == 'backbone.layer4'
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert all(module.training == training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not inputs.requires_grad


@pytest.mark.parametrize('layer', ['auto', 'backbone.layers.0'])
@pytest.mark.parametrize('name, size', [('MlpMixer', 64), ('RepMLPNet', 96)])
def test_images_of_another_size_than_the_model_takes(name, size, layer):
    layer = 'backbone.stages.0' if name == 'RepMLPNet' and layer != 'auto' else layer
    message = rf'the model cannot take images of \({size}, {size}\) pixels'
    with pytest.raises(ValueError, match=message):
        find_layers(family(name), images(size), [layer])


@pytest.mark.parametrize('name', ['VisionTransformer', 'DistilledVisionTransformer', 'ResNet'])
def test_a_classifier_of_zeros_has_the_layer_that_it_will_have(name):
    """As mmpretrain's transformers before training."""
    model, inputs = family(name), images(FAMILIES[name][0])
    linear = [each for each in model.head.modules() if isinstance(each, nn.Linear)]
    for each in linear:
        nn.init.zeros_(each.weight)
    (before,) = find_layers(model, inputs, ['auto'])
    (named,) = find_layers(model, inputs, [before.name])
    assert named == before
    maps = GradCAM()(model, inputs)
    assert maps.shape[1:] == before.layout.size
    assert not maps.any()
    for each in linear:
        nn.init.normal_(each.weight)
    assert find_layers(model, inputs, ['auto']) == [before]
    assert GradCAM()(model, inputs).any()
