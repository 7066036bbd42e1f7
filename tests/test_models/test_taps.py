"""Taps: their texts, what they read from models of all kinds, and what they leave behind."""

import copy
import gc
import re
import weakref

import pytest
import torch
import torch.nn.functional as F
import torchvision
from mmengine.model import BaseModel
from torch import nn

from mmkdx.functional import ClassMaps
from mmkdx.models.families import describe, forward_tensor
from mmkdx.models.intercept import Tap, fake_forward
from mmkdx.models.path_tap import parse_tap
from mmkdx.models.taps import TapSet
from mmkdx.registry import MODELS

GAP = dict(type='GlobalAveragePooling')
THIN = dict(stem_channels=8, base_channels=8)
SWIN = dict(embed_dims=24, depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 8])
SWIN_V2 = dict(SWIN, extra_norm_every_n_blocks=0)
POOLFORMER = dict(
    layers=[1] * 4, embed_dims=[8, 16, 24, 32], mlp_ratios=[4] * 4, layer_scale_init_value=1e-5
)


def classifier(backbone, channels, neck=GAP, head='LinearClsHead', **arguments):
    """A classifier of mmpretrain with five classes; its backbone is (type, arguments)."""
    kind, options = backbone
    return dict(
        type='ImageClassifier',
        backbone=dict(type=kind, **options),
        neck=neck,
        head=dict(type=head, num_classes=5, in_channels=channels, **arguments),
    )


RESNET = classifier(('ResNet', dict(depth=18, **THIN)), 64)
RESNET_CIFAR = classifier(('ResNet_CIFAR', dict(depth=18, **THIN)), 64)
SWIN_CLASSIFIER = classifier(('SwinTransformer', dict(arch=SWIN, img_size=64, window_size=2)), 192)
VIT = classifier(
    ('VisionTransformer', dict(arch='deit-tiny', img_size=32, patch_size=16)),
    192,
    neck=None,
    head='VisionTransformerClsHead',
)


def build(spec, seed=0):
    """Builds a config, or a model of torchvision by name."""
    torch.manual_seed(seed)
    if isinstance(spec, str):
        return getattr(torchvision.models, spec)(num_classes=5)
    return MODELS.build(spec)


def resolve(model, *names, size=32, owner='student'):
    """Finds taps in a model, which a term `kd` asks for."""
    taps = TapSet({name: 'terms.kd.at' for name in names}, owner)
    with fake_forward(model):
        return taps, taps.resolve(model, torch.empty(2, 3, size, size))


def read(model, *names, size=32):
    """Resolves taps and reads them in a forward of four random images."""
    taps, _ = resolve(model, *names, size=size)
    with taps.record(model) as values:
        output = forward_tensor(model, images(size))
    return values, output


def images(size=32):
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class Net(nn.Module):
    """A classifier with GAP and a linear layer, and a place for something else around them."""

    def __init__(self, before=None, after=None):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.before = before or nn.Identity()
        self.fc = nn.Linear(8, 5)
        self.after = after or nn.Identity()

    def forward(self, x):
        return self.after(self.fc(self.before(self.pool(self.conv(x)).flatten(1))))


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


# Texts


@pytest.mark.parametrize(
    'text, tap',
    [
        ('backbone', Tap('backbone', None, 'out', -1)),
        ('backbone.layer3', Tap('backbone.layer3', None, 'out', -1)),
        ('backbone.stages.3[0]', Tap('backbone.stages.3', None, 'out', 0)),
        ('backbone[-2]', Tap('backbone', None, 'out', -2)),
        ('backbone[12]', Tap('backbone', None, 'out', 12)),
        ('head.fc:in', Tap('head.fc', None, 'in', -1)),
        ('head.fc:out', Tap('head.fc', None, 'out', -1)),
        ('layer1.0.relu@0', Tap('layer1.0.relu', 0, 'out', -1)),
        ('layer1.0.relu@10:in[2]', Tap('layer1.0.relu', 10, 'in', 2)),
        ('_private.block_1', Tap('_private.block_1', None, 'out', -1)),
    ],
)
def test_texts(text, tap):
    assert parse_tap(text) == tap


@pytest.mark.parametrize(
    'text',
    ['', ' ', 'a ', 'a-b', 'a@', 'a@-1', 'a@x', 'a:input', 'a:', 'a[]', 'a[x]', 'a[1', 'a[1][2]']
    + ['a:in@2', 'a[0]:in', '.a', '@0', ':in', '[0]'],
)
def test_wrong_texts(text):
    with pytest.raises(ValueError) as error:
        parse_tap(text)
    assert str(error.value).startswith(
        f"cannot have a tap {text!r}; write the name of a tap, such as 'logits', or path"
    )


def test_modules_of_a_sequence_have_numbers_for_names():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.ReLU(), nn.Conv2d(8, 4, 1)))
    values, output = read(model, '0', '1.0', '1')
    assert torch.equal(values['0'], model[0](images()))
    assert torch.equal(values['1.0'], values['0'].relu())
    assert torch.equal(values['1'], output)


# Named taps


@pytest.mark.parametrize('spec, path', [(RESNET, 'backbone.layer4'), ('resnet18', 'layer4')])
def test_names_in_a_resnet(spec, path):
    model = build(spec).eval()
    linear = model.fc if spec == 'resnet18' else model.head.fc
    values, output = read(model, 'logits', 'features', 'embedding', 'cam', path, size=64)
    assert torch.equal(values['logits'], output)
    assert values['features'].shape[2:] == (2, 2)
    assert torch.equal(values['features'], values[path])
    torch.testing.assert_close(values['embedding'], values['features'].mean((2, 3)))
    torch.testing.assert_close(output, linear(values['embedding']))
    assert isinstance(values['cam'], ClassMaps)
    assert values['cam'].features is values['features']
    assert values['cam'].weight is linear.weight and values['cam'].bias is linear.bias


def test_names_in_a_swin():
    model = build(SWIN_CLASSIFIER).eval()
    values, output = read(
        model, 'logits', 'features', 'embedding', 'backbone', 'backbone.stages.3[0]', size=64
    )
    assert torch.equal(values['logits'], output)
    assert values['features'].shape == (4, 192, 2, 2)
    assert torch.equal(values['features'], values['backbone'])
    assert values['backbone.stages.3[0]'].shape == (4, 4, 192)  # tokens
    torch.testing.assert_close(output, model.head.fc(values['embedding']))


def test_names_in_a_vit():
    model = build(VIT).eval()
    values, output = read(model, 'logits', 'embedding', 'backbone', 'backbone.layers.0')
    assert torch.equal(values['logits'], output)
    assert torch.equal(values['embedding'], values['backbone'])  # the class token
    assert values['backbone.layers.0'].shape == (4, 5, 192)
    torch.testing.assert_close(output, model.head.layers.head(values['embedding']))


def test_resolving_tells_the_shapes_that_recording_yields():
    names = 'logits', 'features', 'embedding', 'cam', 'backbone.layer2', 'backbone.conv1:in'
    model = build(RESNET)
    taps, shapes = resolve(model, *names, size=64)
    with taps.record(model) as values:
        forward_tensor(model, torch.randn(2, 3, 64, 64))
    assert {name: tuple(value.shape) for name, value in shapes.items()} == {
        name: tuple(value.shape) for name, value in values.items()
    }
    assert shapes['cam'].shape == (2, 5, 2, 2)


def test_loss_mode_is_read_as_well():
    from mmpretrain.structures import DataSample

    model = build(RESNET)
    samples = [DataSample().set_gt_label(i) for i in range(4)]
    taps, _ = resolve(model, 'logits', 'cam')
    with taps.record(model) as values:
        losses = model(images(), samples, mode='loss')
    torch.testing.assert_close(losses['loss'], F.cross_entropy(values['logits'], torch.arange(4)))
    torch.testing.assert_close(values['cam'].logits(), values['logits'])


# Class maps


def settle(model):
    """Gives batch norms the statistics of the images, so that deep features do not fade away."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        forward_tensor(model.train(), images(64))
    return model.eval()


HRNET = {
    f'stage{i}': dict(
        num_modules=1,
        num_branches=i,
        block='BASIC' if i > 1 else 'BOTTLENECK',
        num_blocks=[1] * i,
        num_channels=[8 * 2**branch for branch in range(i)],
    )
    for i in (1, 2, 3, 4)
}
HR_NECK = [dict(type='HRFuseScales', in_channels=(8, 16, 32, 64)), GAP]
FAMILIES = dict(
    shufflenet_v1=classifier(('ShuffleNetV1', dict(groups=3)), 960),
    hrnet=classifier(('HRNet', dict(extra=HRNET)), 2048, neck=HR_NECK),
    swin_v2=classifier(('SwinTransformerV2', dict(arch=SWIN_V2, img_size=64, window_size=2)), 192),
    repvgg=classifier(('RepVGG', dict(arch='A0')), 1280),
    mobilevit=classifier(('MobileViT', dict(arch='xx_small')), 320),
    poolformer=classifier(('PoolFormer', dict(arch=POOLFORMER)), 32),
)


@pytest.mark.parametrize('family', FAMILIES)
def test_means_of_class_maps_are_logits(family):
    model = build(FAMILIES[family])
    taps, shapes = resolve(model, 'cam', 'logits', size=64)
    settle(model)
    with torch.no_grad(), taps.record(model) as values:
        forward_tensor(model, images(64))
    maps = values['cam'].full()
    assert maps.shape[1:] == shapes['cam'].shape[1:] and maps.shape[1] == 5
    assert min(maps.shape[2:]) >= 2 and maps.std((2, 3)).min() > 0
    means = maps.mean((2, 3))
    error = (values['logits'] - values['cam'].bias - means).abs().max() / means.abs().max()
    assert error < 1e-5


def timm_model(name, **options):
    """A model of timm with five classes."""
    timm = pytest.importorskip('timm')
    return timm.create_model(name, num_classes=5, **options)


class TwoHeads(Net):
    """The mean of two classifiers, one behind a batch norm, as in LeViT."""

    def __init__(self):
        super().__init__()
        self.norm, self.second = nn.BatchNorm1d(8), nn.Linear(8, 5)

    def forward(self, x):
        x = self.pool(self.conv(x)).flatten(1)
        return (self.fc(x) + self.second(self.norm(x))) / 2


slow = pytest.mark.slow
#: Heads whose maps autograd tells, too, with the size of images.
HEADS = dict(
    two_heads=(TwoHeads, 64),
    tv_alexnet=('alexnet', 64),
)
#: Affine heads, of which some have norms; before pooling, some have functions or tokens.
AFFINE_HEADS = dict(
    arcface=(classifier(('ResNet', dict(depth=18, **THIN)), 64, head='ArcFaceClsHead'), 64),
    timm_levit=(lambda: timm_model('levit_128s'), 224),
)
SLOW = ('timm_levit',)


def some(families):
    """The names of families; those of large networks are marked as slow."""
    return [pytest.param(name, marks=[slow] if name in SLOW else []) for name in families]


def any_head(spec, size):
    """The class maps and logits of two images, with their graph, and the shapes that were told."""
    torch.manual_seed(0)
    model = spec() if callable(spec) else build(spec)
    taps, shapes = resolve(model, 'cam', 'logits', size=size)
    if size == 64:
        settle(model)
    with taps.record(model.eval()) as values:
        forward_tensor(model, images(size)[:2])
    maps = values['cam']
    assert maps.weight is None and maps.shape[1:] == shapes['cam'].shape[1:]
    assert maps.full().shape == maps.shape and max(maps.shape[2:]) > 1
    assert differ(maps.logits(), values['logits']) < 1e-4
    return maps, values['logits']


def differ(result, expected):
    """The largest difference, relative to the largest value."""
    return ((result - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize('family', some(HEADS))
def test_class_maps_of_any_head_are_its_gradients(family):
    maps, logits = any_head(*HEADS[family])
    full = maps.full()
    for k in range(5):
        (gradient,) = torch.autograd.grad(logits[:, k].sum(), maps.features, retain_graph=True)
        expected = (gradient * maps.features).sum(1) * full[0, 0].numel()
        assert differ(full[:, k], expected) < 1e-4


@pytest.mark.parametrize('family', some(AFFINE_HEADS))
def test_class_maps_of_affine_heads_leave_one_bias(family):
    maps, logits = any_head(*AFFINE_HEADS[family])
    rest = logits - maps.full().mean((2, 3))
    assert (rest[0] - rest[1]).abs().max() < 1e-4 * logits.abs().max()
    assert differ(logits[0], logits[1]) > 1e-2


CLASS_TOKEN = (
    'classifies by a class token, pools by attention or joins several maps, so no features have class '
    'maps; use the explainer GradCAM, GradientRollout or LeGrad, or a layer and '
    "'logits' in place of 'cam'"
)


def test_class_maps_of_a_class_token_are_refused():
    with pytest.raises(ValueError) as error:
        resolve(build(VIT), 'cam', owner='teacher 1')
    assert str(error.value) == f'terms.kd.at: the teacher 1 {CLASS_TOKEN}'


@pytest.mark.parametrize(
    'pool',
    [
        lambda x: torch.cat([x.mean((2, 3)), x[:, :, ::2].amax((2, 3))], 1)[:, :8] + x[:, :, 0, 0],
        lambda x: (x.flatten(2) * x.flatten(2).softmax(2)).sum(2),
        lambda x: x.mean((2, 3)) * torch.empty(1).fill_(2),  # cannot be done without writing
    ],
)
def test_several_maps_and_attention_pooling_are_refused(pool):
    model = Beside(pool)
    model.second = nn.Conv2d(3, 8, 3, 2, 1)
    joined = model.forward
    model.forward = lambda x: joined(x) + model.fc(model.second(x).mean((2, 3)))
    with pytest.raises(ValueError, match=re.escape(f'terms.kd.at: the student {CLASS_TOKEN}')):
        resolve(model, 'cam')


class Tokens(nn.Module):
    """The mean of all tokens, some of which are no part of the image."""

    def __init__(self, extra, after=lambda x: x):
        super().__init__()
        self.conv, self.fc, self.after = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 5), after
        self.extra, self.last = nn.Parameter(torch.randn(1, extra, 8)), nn.Identity()

    def forward(self, x):
        x = self.conv(x).flatten(2).transpose(1, 2)
        x = self.last(torch.cat([self.extra.expand(len(x), -1, -1), x], 1))
        return self.fc(self.after(x).mean(1))


@pytest.mark.parametrize(
    'take', [lambda x: x[:, :1], lambda x: x.split([1, 256], 1)[0], lambda x: x.narrow(1, 0, 1)]
)
def test_a_mean_over_the_class_token_alone_is_refused(take):
    """As in CvT; it is no map of one position."""
    model = Tokens(1)
    attention = Function(lambda x: (x @ x.mT).softmax(2) @ x)
    model.last = nn.Sequential(attention, Function(take), nn.LayerNorm(8))
    for model.after in (lambda x: x, lambda x: x.mT.mean(2, keepdim=True).mT):
        with pytest.raises(ValueError, match=re.escape(f'terms.kd.at: the student {CLASS_TOKEN}')):
            resolve(model, 'cam')


@pytest.mark.parametrize(
    'after',
    [
        lambda x: x.mT.reshape(len(x), 8, 16, 16).permute(0, 2, 3, 1).reshape(len(x), -1, 8),
        lambda x: x.view(len(x), 16, 16, 8).flatten(1, 2),
    ],
)
def test_tokens_that_become_a_map_and_tokens_again(after):
    """As in PVT v2."""
    model = Tokens(0, after).eval()
    model.last = nn.Sequential(nn.Identity(), Function(lambda x: (x @ x.mT).softmax(2) @ x))
    values, output = read(model, 'cam')
    features = model.last(model.conv(images()).flatten(2).mT).mT.unflatten(2, (16, 16))
    maps = F.conv2d(features, model.fc.weight[..., None, None])
    torch.testing.assert_close(values['cam'].full(), maps)
    torch.testing.assert_close(values['cam'].logits(), output)
    model.after = lambda x: after(x).unflatten(1, (16, 16)).transpose(1, 2).reshape(len(x), -1, 8)
    with pytest.raises(ValueError, match=re.escape(CLASS_TOKEN)):
        resolve(model, 'cam')  # the tokens stand in another order


@pytest.mark.parametrize('extra', [1, 7])
def test_a_mean_over_tokens_that_are_no_part_of_the_image_is_refused(extra):
    message = f'terms.kd.at: the student pools {256 + extra} tokens, which form no grid with'
    with pytest.raises(ValueError, match=message):
        resolve(Tokens(extra), 'cam')
    values, output = read(Tokens(0).eval(), 'cam')
    assert values['cam'].shape == (4, 5, 16, 16)
    torch.testing.assert_close(values['cam'].logits(), output)


@pytest.mark.parametrize(
    'before, after',
    [
        (nn.ReLU(), None),
        (nn.ReLU(inplace=True), None),
        (nn.Linear(8, 8), None),
        (Function(F.normalize), None),
        (Function(lambda x: x.mul_(2)), None),
        (Function(lambda x: x.add_(1)[:]), None),
        (nn.LayerNorm(8), None),
        (nn.Tanh(), None),
        (Function(lambda x: x.relu() ** 2 / (1 + x.abs())), None),
        (Function(lambda x: 2 - 1 / (2 + x**2)), None),
        (None, Function(lambda x: x * 16)),
        (None, Function(lambda x: x.mul_(16))),
        (None, nn.Softmax(1)),
    ],
)
def test_operations_around_the_linear_layer_are_a_part_of_the_head(before, after):
    model = Net(before, after)
    taps, _ = resolve(model, 'cam', 'logits')
    assert (
        taps.heads['cam'].pooled and taps.heads['cam'].modules[-1:] == ['fc'] and not taps.weights
    )
    for mode in (True, False):
        with taps.record(model.train(mode)) as values:
            model(images())
        assert values['cam'].head
        torch.testing.assert_close(values['cam'].logits(), values['logits'])


@pytest.mark.parametrize(
    'before', [nn.Dropout(), nn.Dropout(inplace=True), nn.Flatten(), nn.Identity()]
)
def test_dropout_and_views_are_no_operation(before):
    model = Net(before)
    taps, shapes = resolve(model, 'cam', 'logits')
    assert shapes['cam'].shape == (2, 5, 16, 16)
    with taps.record(model.eval()) as values:
        model(images())
    torch.testing.assert_close(values['cam'].logits(), values['logits'])


class Beside(nn.Module):
    """The classifier is defined first, and an auxiliary layer is called beside it, after it."""

    def __init__(self, pool):
        super().__init__()
        self.fc, self.conv = nn.Linear(8, 5), nn.Conv2d(3, 8, 3, 2, 1)
        self.auxiliary = nn.Linear(8, 5)
        self.function = pool

    def forward(self, x):
        x = self.function(self.conv(x)).flatten(1)
        logits = self.fc(x)
        return (logits, self.auxiliary(x))[0]


POOLINGS = dict(
    mean=lambda x: x.mean((2, 3)),
    kept=lambda x: torch.mean(x, (-1, -2), keepdim=True),
    by_name=lambda x: torch.mean(input=x, dim=[2, 3]),
    adaptive=lambda x: F.adaptive_avg_pool2d(x, (1, 1)),
    average=lambda x: F.avg_pool2d(x, 16),
    average_of_the_shape=lambda x: F.avg_pool2d(x, kernel_size=x.shape[2:]),
)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('pool', POOLINGS)
def test_classifier_and_pooling_are_found_by_how_values_flow(pool, layout):
    model = Beside(POOLINGS[pool]).to(memory_format=layout)
    values, output = read(model, 'cam', 'embedding', 'features', 'logits')
    assert values['cam'].weight is model.fc.weight and values['logits'] is output
    assert torch.equal(values['features'], model.conv(images()))
    torch.testing.assert_close(values['embedding'], values['features'].mean((2, 3)))
    torch.testing.assert_close(values['cam'].logits(), output)


@pytest.mark.parametrize(
    'pool',
    [
        lambda x: x.mean(3).mean(2),
        lambda x: x.amax((2, 3)),
        lambda x: F.adaptive_avg_pool2d(x, 2).amax((2, 3)),
        lambda x: F.avg_pool2d(x, 15)[:, :, :1, :1].flatten(1),
        lambda x: F.relu(x).mean((2, 3)),
        lambda x: F.relu_(x).mean((2, 3)),
        lambda x: F.relu(x.mean((2, 3))),
        lambda x: F.relu_(x.mean((2, 3))),
        lambda x: x.mean((2, 3)) + x.amax((2, 3)),
        lambda x: x.clamp(min=1e-3).pow(3).mean((2, 3)).pow(1 / 3),
    ],
)
def test_other_poolings_are_a_part_of_the_head(pool):
    model = Beside(pool).eval()
    values, output = read(model, 'cam', 'conv')
    maps = values['cam']
    assert maps.shape == (4, 5, 16, 16)
    torch.testing.assert_close(maps.logits(), output)
    torch.testing.assert_close(maps.full().mean((2, 3)) + maps.remainder(), output)
    features = values['conv'].detach().requires_grad_()
    (gradient,) = torch.autograd.grad(
        model.fc(pool(features.clone()).flatten(1))[:, 0].sum(), features
    )
    expected = 256 * (gradient * features).sum(1)
    torch.testing.assert_close(maps.classes(torch.zeros(4, 1).long())[:, 0], expected)


@pytest.mark.parametrize(
    'pool, reason',
    [
        (lambda x: x.amax((2, 3)), 'has no global average pooling over'),
        (lambda x: F.relu(x).mean((2, 3)), 'pools features that no module takes or returns'),
    ],
)
def test_features_without_a_pooling_or_a_module_are_refused(pool, reason):
    with pytest.raises(ValueError, match=re.escape(f'terms.kd.at: the student {reason}')):
        resolve(Beside(pool), 'features')


def test_a_linear_layer_that_is_not_called_is_no_classifier():
    model = Net().eval()
    model.auxiliary = nn.Linear(8, 5)
    values, output = read(model, 'cam')
    assert values['cam'].weight is model.fc.weight
    torch.testing.assert_close(values['cam'].logits(), output)


class Squeeze(nn.Module):
    """Attention to channels by a pooling and two linear layers, as in SENet."""

    def __init__(self):
        super().__init__()
        self.pool, self.fc = (
            nn.AdaptiveAvgPool2d(1),
            nn.Sequential(nn.Linear(8, 2), nn.Linear(2, 8)),
        )

    def forward(self, x):
        return x * self.fc(self.pool(x).flatten(1))[..., None, None].sigmoid()


def test_pooling_and_linear_layers_of_attention_are_others():
    model = Net(before=nn.Identity())
    model.conv = nn.Sequential(model.conv, Squeeze())
    values, output = read(model.eval(), 'cam', 'conv')
    assert values['cam'].features is values['conv'] and values['cam'].weight is model.fc.weight
    torch.testing.assert_close(values['cam'].logits(), output)


@pytest.mark.parametrize('attention', [False, True])
def test_a_convolution_as_classifier(attention):
    body = [Squeeze()] if attention else []
    head = nn.Conv2d(8, 5, 1)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), *body, nn.AdaptiveAvgPool2d(1), head, nn.Flatten())
    with pytest.raises(ValueError) as error:
        resolve(model, 'embedding')
    assert str(error.value) == (
        'terms.kd.at: the student has no linear classifier (an nn.Linear): its logits come out of '
        f"'{len(body) + 2}', a Conv2d; if it returns an embedding, use the tap 'logits'"
    )
    values, output = read(model, 'features', 'cam')
    maps = values['cam'].full()
    torch.testing.assert_close(maps, F.conv2d(values['features'], head.weight))
    torch.testing.assert_close(maps.mean((2, 3)) + head.bias, output)


def test_a_linear_layer_of_another_kind():
    class Cosine(nn.Linear):
        def forward(self, x):
            return F.linear(F.normalize(x), F.normalize(self.weight))

    model = Net()
    model.fc = Cosine(8, 5)
    values, output = read(model.eval(), 'cam')
    assert values['cam'].weight is None
    torch.testing.assert_close(values['cam'].full().mean((2, 3)), output)


def test_a_model_without_a_linear_layer():
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match='^terms.kd.at: the student has no linear classifier'):
        resolve(model, 'embedding')


def huggingface_tower(name, **arguments):
    transformers = pytest.importorskip('transformers')
    kind = getattr(transformers, name)
    small = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    return kind(kind.config_class(**small, image_size=32, patch_size=16, **arguments))


#: Networks without a classifier, and the vector in what they return.
TOWERS = {
    'timm': (lambda: pytest.importorskip('timm').create_model('test_resnet', num_classes=0), 0),
    'mmpretrain': (lambda: build({**RESNET, 'head': None}), lambda output: output[0]),
    'plain classifier': (
        lambda: build(dict(type='PlainClassifier', network='timm::test_resnet', num_classes=0)),
        0,
    ),
    'ViT': (lambda: huggingface_tower('ViTModel'), lambda output: output.pooler_output),
    'DINOv2': (lambda: huggingface_tower('Dinov2Model'), lambda output: output.pooler_output),
    'CLIP': (
        lambda: huggingface_tower('CLIPVisionModelWithProjection', projection_dim=6),
        lambda output: output.image_embeds,
    ),
}


@pytest.mark.parametrize('name', TOWERS)
def test_the_embedding_of_a_network_without_a_classifier_is_what_it_returns(name):
    make, vector = TOWERS[name]
    torch.manual_seed(0)
    model = make().eval()
    assert describe(model).num_classes == 0
    values, output = read(model, 'embedding', 'logits')
    expected = vector(output) if vector else output
    assert expected.dim() == 2
    for value in values.values():
        assert torch.equal(value, expected)
    assert torch.equal(describe(model).logits(images()), expected)


@pytest.mark.parametrize('wrap', ['compile', 'parallel', 'ema', 'part'])
def test_wrapped_and_compiled_models_are_read(wrap):
    model = build(RESNET_CIFAR).eval()
    expected, _ = read(model, 'cam', 'logits', 'embedding', 'backbone.layer2')
    wrapped = model
    if wrap == 'compile':
        wrapped = torch.compile(model, backend='eager')
    elif wrap == 'parallel':
        wrapped = nn.DataParallel(model)
    elif wrap == 'ema':
        wrapped = torch.optim.swa_utils.AveragedModel(model).eval()
    else:
        model.backbone.compile(backend='eager')
    with torch.no_grad():
        wrapped(images())  # compiles
    taps, _ = resolve(wrapped, *expected)
    with taps.record(wrapped) as values:
        wrapped(images())
    for name in ('logits', 'embedding', 'backbone.layer2'):
        assert torch.equal(values[name], expected[name]), name
    assert torch.equal(values['cam'].full(), expected['cam'].full())
    assert hooks(model) == 0


def test_a_script_module_is_refused():
    with pytest.raises(
        ValueError, match='the model is a ScriptModule, whose layers cannot be read'
    ):
        TapSet({'logits': 'terms.kd.at'}, 'student').resolve(torch.jit.script(Net()), images())


@pytest.fixture(scope='module')
def vit():
    """A small model of Hugging Face."""
    transformers = pytest.importorskip('transformers')
    sides = dict(image_size=32, patch_size=16, num_labels=5)
    sizes = dict(hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    config = transformers.ViTConfig(**sides, **sizes)
    return transformers.ViTForImageClassification(config).eval()


@pytest.mark.parametrize('within', ['plain', 'mmpretrain'])
def test_logits_of_hugging_face(vit, within):
    model = vit
    if within == 'mmpretrain':
        model = object.__new__(MODELS.get('HuggingFaceClassifier'))
        BaseModel.__init__(model)
        model.model = vit
    values, _ = read(model, 'logits', 'embedding')
    torch.testing.assert_close(values['logits'], vit(images()).logits)
    assert values['logits'].shape == (4, 5) and values['logits'].requires_grad
    torch.testing.assert_close(vit.classifier(values['embedding']), values['logits'])


def test_logits_of_several_branches_are_their_sum():
    model = nn.Sequential(Net(), Function(lambda x: [x, 2 * x])).eval()
    values, output = read(model, 'logits')
    torch.testing.assert_close(values['logits'], 3 * output[0])


# Calls, sides and elements


def test_calls_of_one_module():
    model = build(RESNET).eval()
    path, seen = 'backbone.layer1.0.relu', []
    handle = model.get_submodule(path).register_forward_hook(
        lambda module, args, output: seen.append(output.clone())
    )
    values, _ = read(model, f'{path}@0', f'{path}@1')
    handle.remove()
    first, second = seen[-2:]  # the forward before was the fake one
    assert torch.equal(values[f'{path}@0'], first)
    assert torch.equal(values[f'{path}@1'], second)
    assert not torch.equal(first, second)


def test_a_module_called_twice_is_ambiguous():
    path = 'backbone.layer1.0.relu'
    with pytest.raises(ValueError) as error:
        resolve(build(RESNET), path)
    assert str(error.value) == (
        f"terms.kd.at: the student calls module '{path}' 2 times in one forward; write "
        f"'{path}@0' to '{path}@1'"
    )
    with pytest.raises(
        ValueError, match=f"'{path}' 2 times in one forward, so the last call is @1$"
    ):
        resolve(build(RESNET), f'{path}@2')


def test_sides():
    model = build(RESNET).eval()
    names = 'backbone.conv1:in', 'backbone.layer2', 'backbone.layer3:in', 'head.fc:in', 'head:in'
    values, output = read(model, *names)
    assert torch.equal(values['backbone.conv1:in'], images())
    assert torch.equal(values['backbone.layer3:in'], values['backbone.layer2'])
    assert torch.equal(values['head:in'], values['head.fc:in'])  # head gets a tuple
    torch.testing.assert_close(model.head.fc(values['head.fc:in']), output)


def test_the_first_argument_may_have_a_name():
    model = Net(before=Function(lambda x: x))
    inner = nn.Linear(8, 8)
    inner.forward = lambda input, scale: F.linear(input, inner.weight, inner.bias) * scale
    model.before = Function(lambda x: inner(input=x, scale=2))
    model.before.inner = inner
    values, _ = read(model, 'before.inner:in', 'pool')
    assert torch.equal(values['before.inner:in'], values['pool'].flatten(1))


def test_elements_of_a_tuple():
    resnet = dict(depth=18, out_indices=(1, 3), **THIN)
    model = build(classifier(('ResNet', resnet), 64)).eval()
    names = 'backbone', 'backbone[0]', 'backbone[1]', 'backbone[-2]'
    values, _ = read(model, *names, 'backbone.layer2', 'backbone.layer4')
    assert torch.equal(values['backbone'], values['backbone.layer4'])
    assert torch.equal(values['backbone[1]'], values['backbone.layer4'])
    assert torch.equal(values['backbone[0]'], values['backbone.layer2'])
    assert torch.equal(values['backbone[-2]'], values['backbone.layer2'])
    with pytest.raises(
        ValueError, match=r"terms.kd.at: the student holds a tuple .* at 'backbone\[2\]'"
    ):
        resolve(model, 'backbone[2]')


def test_what_is_no_tensor():
    # a stage of a Swin returns its tokens and their height and width
    message = (
        r"holds a tuple and no tensor at 'backbone.stages.3'; .* as in 'backbone.stages.3\[0\]'"
    )
    with pytest.raises(ValueError, match=message):
        resolve(build(SWIN_CLASSIFIER), 'backbone.stages.3', size=64)
    model = nn.Sequential(nn.Conv2d(3, 5, 1), Function(lambda x: dict(x=x)))
    message = 'terms.kd.at: the teacher has no logits: Sequential returns a dict, and a classifier'
    with pytest.raises(ValueError, match=message):
        resolve(model, 'logits', owner='teacher')


# Errors


@pytest.mark.parametrize(
    'name, near',
    [
        ('backbone.layer5', 'backbone.layer4'),
        ('backbone.layr3', 'backbone.layer3'),
        ('head.fcc', 'head.fc'),
        ('layer3', 'backbone.layer3'),
    ],
)
def test_unknown_paths_list_near_names(name, near):
    with pytest.raises(ValueError) as error:
        resolve(build(RESNET), name)
    start, _, names = str(error.value).partition('; near names are ')
    assert start == f"terms.kd.at: the student has no module '{name}'"
    names = names.split(', ')
    assert near in names and len(names) <= 4
    assert all(build(RESNET).get_submodule(name) for name in names)


def test_each_error_names_the_key_that_asks_for_the_tap():
    taps = TapSet({'logits': 'terms.kd.at', 'backbone.nowhere': 'terms.hint.at'}, 'teacher 1')
    model = build(RESNET)
    message = "^terms.hint.at: the teacher 1 has no module 'backbone.nowhere'"
    with fake_forward(model), pytest.raises(ValueError, match=message):
        taps.resolve(model, torch.empty(2, 3, 32, 32))
    taps = TapSet({'logits': 'terms.kd.at', 'backbone@': 'terms.hint.at'}, 'teacher 1')
    message = "^terms.hint.at: the teacher 1 cannot have a tap 'backbone@'"
    with fake_forward(model), pytest.raises(ValueError, match=message):
        taps.resolve(model, torch.empty(2, 3, 32, 32))


def test_modules_outside_the_forward():
    model = Net()
    model.unused = nn.Linear(8, 7)
    with pytest.raises(ValueError, match="the student does not call module 'unused'"):
        resolve(model, 'unused')


def test_images_that_the_model_cannot_take():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 30 * 30, 5))
    resolve(model, 'logits', size=32)
    message = r'^the student cannot take images of \(48, 48\) pixels .*; set model.input_size'
    with pytest.raises(ValueError, match=message):
        resolve(model, 'logits', size=48)
    assert hooks(model) == 0


@pytest.mark.parametrize(
    'name, calls, later', [('gate', 1, 0), ('gate@0', 2, 0), ('gate@1', 2, 1), ('gate@1:in', 2, 1)]
)
def test_a_module_that_a_later_forward_leaves_out(name, calls, later):
    gate = nn.ReLU()
    model = Net(Function(lambda x: ([gate(x) for _ in range(calls)], x)[1]))
    model.gate = gate
    taps, _ = resolve(model, name)
    calls = later
    message = "terms.kd.at: the student's module 'gate' was not called"
    with pytest.raises(RuntimeError, match=message), taps.record(model):
        model(images())
    assert hooks(model) == 0


# Values in place


@pytest.mark.parametrize('training', [False, True])
def test_values_are_those_before_an_operation_in_place(training):
    model = build(RESNET).train(training)
    assert model.backbone.relu.inplace
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    block = 'backbone.layer1.0'
    names = 'backbone.bn1', f'{block}.bn1', f'{block}.relu@0', f'{block}.relu@0:in', f'{block}.bn2'
    values, output = read(model, *names)
    expected, plain_output = read(plain, *names)
    assert torch.equal(output, plain_output)
    for name in names:
        assert torch.equal(values[name], expected[name]), name
    assert values['backbone.bn1'].min() < 0 <= values[f'{block}.relu@0'].min()


def test_gradients_pass_through_values_that_are_overwritten():
    model = build(RESNET)
    values, _ = read(model, 'backbone.bn1')
    values['backbone.bn1'].sum().backward()
    # the derivative of the sum by the shift of each channel is the number of its positions
    assert model.backbone.bn1.bias.grad.tolist() == [4 * 16 * 16] * 8


def test_dropout_in_place_does_not_reach_values():
    model = Net(nn.Dropout(0.5, inplace=True)).train()
    values, _ = read(model, 'pool', 'embedding', 'conv')
    means = values['conv'].mean((2, 3))
    torch.testing.assert_close(values['pool'].flatten(1), means)
    kept = values['embedding'] != 0  # what enters the linear layer comes after the dropout
    assert 0 < kept.sum() < kept.numel()
    torch.testing.assert_close(values['embedding'], means * kept * 2)


def test_only_overwritten_values_are_copied():
    model = build(RESNET).eval()
    names = 'backbone.layer1', 'backbone.layer2.0.conv1', 'features', 'logits', 'backbone.bn1'
    seen = {}
    taps, _ = resolve(model, *names)
    for name, path in zip(names, [*names[:2], 'backbone.layer4', 'head', names[4]], strict=True):
        model.get_submodule(path).register_forward_hook(
            lambda module, args, output, name=name: seen.update({name: output})
        )
    with torch.no_grad(), taps.record(model) as values:
        forward_tensor(model, images())
    shared = {name: values[name].data_ptr() == seen[name].data_ptr() for name in names}
    assert shared == {name: name != 'backbone.bn1' for name in names}


# Nothing is left behind


class Restless(Net):
    """Draws random numbers in each forward, also in eval mode."""

    def __init__(self):
        super().__init__(before=nn.Dropout(0.5))

    def forward(self, x):
        return super().forward(x + torch.rand_like(x) + torch.randn(3, 1, 1))


@pytest.mark.parametrize('model', [Restless, lambda: build(RESNET), lambda: build(SWIN_CLASSIFIER)])
def test_resolving_leaves_the_model_and_the_random_numbers_as_they_were(model):
    model = model().train()
    halves = list(model.modules())[::2]  # a mixture, as with frozen batch norms
    for module in halves:
        module.training = False
    flags = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    resolve(model, 'logits', 'features', 'cam', size=64)
    assert [module.training for module in model.modules()] == flags
    assert model.state_dict().keys() == state.keys()
    for key, value in model.state_dict().items():
        assert type(value) is torch.Tensor and torch.equal(value, state[key]), key
    assert torch.equal(torch.get_rng_state(), random)
    assert hooks(model) == 0


def test_flags_are_restored_after_an_error():
    model = Net(Function(lambda x: x + torch.ones(3))).train()
    model.conv.eval()
    with pytest.raises(ValueError, match='the student cannot take images'):
        resolve(model, 'logits')
    assert model.training and model.pool.training and not model.conv.training
    assert hooks(model) == 0


def test_no_hook_survives_a_recording():
    model = build(RESNET)
    taps, _ = resolve(model, 'logits', 'cam', 'backbone.layer1', 'head.fc:in')
    with taps.record(model):
        assert hooks(model) == 4
        forward_tensor(model, images())
    assert hooks(model) == 0
    with pytest.raises(OSError, match='the disk is full'), taps.record(model) as values:
        forward_tensor(model, images())
        raise OSError('the disk is full')
    assert hooks(model) == 0 and values == {}


def test_a_recording_does_not_see_the_one_before():
    model = build(RESNET).eval()
    taps, _ = resolve(model, 'logits')
    with taps.record(model) as first:
        expected = forward_tensor(model, images())
    with taps.record(model) as second:
        forward_tensor(model, -images())
    assert torch.equal(first['logits'], expected)
    assert not torch.equal(second['logits'], expected)


def test_tensors_are_released_with_their_dict():
    model = build(RESNET)
    taps, _ = resolve(model, 'logits', 'features', 'cam', 'backbone.bn1')
    with taps.record(model) as values:
        forward_tensor(model, images())
    references = [
        weakref.ref(values[name]) for name in ('logits', 'features', 'backbone.bn1', 'cam')
    ]
    gc.disable()  # nothing should need it
    try:
        del values
        assert [reference() for reference in references] == [None] * 4
    finally:
        gc.enable()


def test_taps_work_on_copies():
    model = build(RESNET).eval()
    taps, _ = resolve(model, 'cam', 'backbone.bn1')
    other, copied = copy.deepcopy(model), copy.deepcopy(taps)
    with torch.no_grad():
        other.head.fc.weight.mul_(2)
    with copied.record(other) as values:
        output = forward_tensor(other, images())
    assert values['cam'].weight is other.head.fc.weight
    torch.testing.assert_close(values['cam'].logits(), output)
    assert values['backbone.bn1'].min() < 0
