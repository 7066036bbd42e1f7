"""Networks of timm, torchvision, transformers and mmpretrain: one table, and what holds for each.

Each network is built once, by mmkdx and by its library. Numbers are in double precision.
"""

import copy
from pathlib import Path
from typing import NamedTuple

import networks
import pytest
import torch
import torch.nn.functional as F
import torchvision
from families import randomize
from tiny import batch, build, distiller, total

from mmkdx.apis.export import export_model
from mmkdx.distillation.models import build_student
from mmkdx.explain import build_explainer
from mmkdx.explain.layers import find_layers
from mmkdx.models import describe
from mmkdx.models.intercept import intercept
from mmkdx.models.taps import TapSet

NORMAL = dict(mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True)
GAP = dict(type='GlobalAveragePooling')
HF = dict(num_classes=4, hidden_sizes=[4, 8], depths=[1, 1])
HF_VIT = dict(num_classes=4, hidden_size=8, num_hidden_layers=2, num_attention_heads=2)
CONVNEXT = dict(depths=[1, 1, 1, 1], channels=[8, 16, 24, 32])
BLOCKS = [[1, 8, 1, 1], [6, 16, 2, 2], [6, 24, 1, 2], [6, 32, 1, 2], [6, 32, 1, 2]]
PVT = dict(
    num_encoder_blocks=2,
    hidden_sizes=[4, 8],
    depths=[1, 1],
    sr_ratios=[2, 1],
    strides=[4, 2],
    patch_sizes=[7, 3],
    num_attention_heads=[1, 2],
    mlp_ratios=[2, 2],
)
VIT = dict(embed_dim=16, depth=2, num_heads=2, img_size=32)


class Row(NamedTuple):
    """A network.

    Args:
        family (str): How the guide on networks calls it.
        kind (str): What its head is; 'none' where it has no class maps.
        spec (dict): Its arguments; of mmpretrain its config.
        side (int): Height and width of its images.
        linear (str): The path of its last linear layer behind pooling, if that alone makes logits.
        norm (str): The path of the layer norm between both.
    """

    family: str
    kind: str
    spec: dict
    side: int
    linear: str = ''
    norm: str = ''


def mm(backbone: dict, channels: int, neck: dict | None = GAP, **head) -> dict:
    """A classifier of mmpretrain."""
    head = dict(dict(type='LinearClsHead', num_classes=4, in_channels=channels), **head)
    return dict(type='ImageClassifier', backbone=backbone, neck=neck, head=head)


NETWORKS = {
    'timm::test_resnet': Row('ResNet', 'affine', {}, 64, 'fc'),
    'timm::resnext50_32x4d': Row(
        'ResNeXt', 'affine', dict(layers=(1, 1, 1, 1), cardinality=4), 64, 'fc'
    ),
    'timm::mobilenetv3_small_050': Row('MobileNetV3', 'neither', {}, 64),
    'timm::test_efficientnet': Row('EfficientNet', 'affine', {}, 64, 'classifier'),
    'timm::tf_efficientnetv2_b0': Row(
        'EfficientNetV2',
        'affine',
        dict(channel_multiplier=0.25, depth_multiplier=0.2),
        64,
        'classifier',
    ),
    'timm::test_convnext': Row('ConvNeXt', 'affine', {}, 64, 'head.fc', 'head.norm'),
    'timm::densenet121': Row(
        'DenseNet', 'affine', dict(growth_rate=8, block_config=(2, 2, 2, 2)), 64, 'classifier'
    ),
    'networks:thin_vgg': Row('VGG with its hidden layers', 'piecewise linear', {}, 64),
    'timm::swin_tiny_patch4_window7_224': Row(
        'Swin',
        'affine',
        dict(img_size=64, embed_dim=24, depths=(1, 1, 1), num_heads=(2, 2, 4), window_size=4),
        64,
        'head.fc',
    ),
    'timm::test_vit': Row(
        'ViT with mean pooling',
        'affine',
        dict(img_size=32, global_pool='avg', depth=2),
        32,
        'head',
        'fc_norm',
    ),
    'timm::deit_tiny_patch16_224': Row('DeiT', 'none', VIT, 32),
    'timm::regnetx_002': Row('RegNet', 'affine', {}, 64, 'head.fc'),
    'timm::ghostnet_050': Row('GhostNet', 'piecewise linear', dict(drop_rate=0.0), 64),
    'torchvision::mobilenet_v2': Row(
        'MobileNetV2',
        'affine',
        dict(inverted_residual_setting=BLOCKS, dropout=0.0),
        64,
        'classifier.1',
    ),
    'torchvision::shufflenet_v2_x0_5': Row('ShuffleNetV2', 'affine', {}, 64, 'fc'),
    'torchvision::squeezenet1_1': Row('SqueezeNet', 'affine', dict(dropout=0.0), 64),
    'torchvision::mnasnet0_5': Row('MNASNet', 'affine', dict(dropout=0.0), 64, 'classifier.1'),
    'torchvision::googlenet': Row(
        'GoogLeNet', 'affine', dict(dropout=0.0, init_weights=False, aux_logits=False), 64, 'fc'
    ),
    'hf::resnet': Row(
        'ResNet', 'affine', dict(HF, embedding_size=4, layer_type='basic'), 32, 'classifier.1'
    ),
    'hf::convnext': Row(
        'ConvNeXt', 'affine', dict(HF, num_stages=2), 32, 'classifier', 'convnext.layernorm'
    ),
    'hf::mobilenet_v2': Row(
        'MobileNetV2',
        'affine',
        dict(num_classes=4, depth_multiplier=0.25, classifier_dropout_prob=0.0),
        64,
        'classifier',
    ),
    'hf::swin': Row(
        'Swin',
        'affine',
        dict(
            num_classes=4,
            image_size=32,
            patch_size=4,
            embed_dim=16,
            depths=[1, 1],
            num_heads=[2, 2],
            window_size=4,
        ),
        32,
        'classifier',
    ),
    'hf::pvt_v2': Row('PVTv2', 'affine', dict(num_classes=4, **PVT), 32, 'classifier'),
    'hf::deit': Row('DeiT', 'none', dict(HF_VIT, intermediate_size=8, image_size=32), 32),
    'hf::vit': Row(
        'ViT with a class token', 'none', dict(HF_VIT, intermediate_size=8, image_size=32), 32
    ),
    'networks:OwnNetwork': Row('your own with one linear layer', 'affine', {}, 16, 'fc'),
    'mmpretrain ResNet_CIFAR': Row(
        'ResNet',
        'affine',
        mm(dict(type='ResNet_CIFAR', depth=18, stem_channels=8, base_channels=8), 64),
        32,
        'head.fc',
    ),
    'mmpretrain MobileNetV3': Row(
        'MobileNetV3',
        'neither',
        mm(
            dict(type='MobileNetV3', arch='small_050'),
            288,
            type='StackedLinearClsHead',
            mid_channels=[32],
            act_cfg=dict(type='HSwish'),
        ),
        64,
    ),
    'mmpretrain ShuffleNetV2': Row(
        'ShuffleNetV2',
        'affine',
        mm(dict(type='ShuffleNetV2', widen_factor=0.5), 1024),
        64,
        'head.fc',
    ),
    'mmpretrain ConvNeXt': Row(
        'ConvNeXt',
        'affine',
        mm(dict(type='ConvNeXt', arch=CONVNEXT, drop_path_rate=0.0), 32, None),
        64,
        'head.fc',
        'backbone.norm3',
    ),
    'mmpretrain stacked ReLU head': Row(
        '`StackedLinearClsHead` with ReLU',
        'piecewise linear',
        mm(
            dict(type='ResNet_CIFAR', depth=18, stem_channels=8, base_channels=8),
            64,
            type='StackedLinearClsHead',
            mid_channels=[16],
        ),
        32,
    ),
    'mmpretrain TimmClassifier': Row(
        'ResNet',
        'affine',
        dict(type='TimmClassifier', model_name='test_resnet', num_classes=4),
        64,
        'fc',
    ),
    'mmpretrain HuggingFaceClassifier': Row(
        'ResNet', 'affine', dict(type='HuggingFaceClassifier', num_labels=4), 32, 'classifier.1'
    ),
}


class Network:
    """A student, the same network as its library builds it, images and labels."""

    def __init__(self, name, folder):
        self.row = row = NETWORKS[name]
        library, _, rest = name.partition('::')
        self.spec = spec = dict(row.spec)
        if library == 'timm':
            timm = pytest.importorskip('timm')
            spec.setdefault('num_classes', 4)
            plain = timm.create_model(rest, **spec)
        elif library == 'torchvision':
            spec.setdefault('num_classes', 4)
            plain = torchvision.models.get_model(rest, **spec)
        elif library == 'hf':
            hf = pytest.importorskip('transformers')
            config = {k: v for k, v in spec.items() if k != 'num_classes'}
            config = hf.AutoConfig.for_model(rest, num_labels=4, architectures=[], **config)
            plain = hf.AutoModelForImageClassification.from_config(config)
        elif name.startswith('networks:'):
            plain = getattr(networks, name.partition(':')[2])()
        if 'type' not in spec:
            self.spec = spec = dict(spec, type=name)
        elif spec['type'] == 'TimmClassifier':
            plain = pytest.importorskip('timm').create_model('test_resnet', num_classes=4)
        elif spec['type'] == 'HuggingFaceClassifier':
            hf = pytest.importorskip('transformers')
            config = hf.ResNetConfig(
                embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type='basic'
            )
            config.save_pretrained(folder)
            spec['model_name'] = str(folder)
            config.num_labels = 4
            plain = hf.AutoModelForImageClassification.from_config(config)
        else:
            plain = build(dict(spec))
        torch.manual_seed(0)
        self.student = build_student(copy.deepcopy(spec), NORMAL)
        if rest == 'squeezenet1_1':  # a ReLU follows its last layer, and a class may be dead
            torch.nn.init.ones_(self.student.model.classifier[1].bias)
        randomize(self.student, batch(8, row.side, seed=1)[0])
        whole = spec['type'] == 'ImageClassifier'
        few, _ = batch(2, row.side)
        self.file = str(folder / 'student.pth')
        if whole:
            torch.save(dict(state_dict=self.student.state_dict()), self.file)
        else:
            assert str(export_model(self.student, folder / 'student', 'library', few)) == self.file
        plain.load_state_dict(torch.load(self.file)['state_dict'])
        self.student.double(), plain.double().eval()
        self.plain, self.taps = plain, None
        images, self.samples = batch(4, row.side)
        self.images = images.double()

    def logits(self, images, plain=None):
        """The library's logits."""
        output = (plain or self.plain)(images)
        return getattr(output, 'logits', output)

    def maps(self, plain, images):
        """The class maps by a plain formula, the logits, and what logits have beside the maps' means."""
        row = self.row
        if self.taps is None:
            self.taps = TapSet({'cam': 'test'}, 'model')
            with torch.no_grad():
                self.taps.resolve(plain, images[:1])
        with self.taps.record(plain) as values:
            logits = self.logits(images, plain)
        features = values['cam'].features
        if row.kind != 'affine':
            maps = []
            for k in range(4):
                (each,) = torch.autograd.grad(logits[:, k].sum(), features, create_graph=True)
                maps.append((each * features).sum(1) * features[0, 0].numel())
            return torch.stack(maps, 1), logits, None
        weight, rest = torch.eye(4).to(features), torch.zeros(4).to(features)
        if row.linear:
            linear = plain.get_submodule(row.linear)
            weight, rest = linear.weight, linear.bias
        if row.norm:
            norm = plain.get_submodule(row.norm)
            size = (features.mean((2, 3)).var(1, correction=0) + norm.eps).sqrt()
            features = features - features.mean(1, keepdim=True)
            features = features / size[:, None, None, None] * norm.weight[:, None, None]
            rest = rest + weight @ norm.bias
        return torch.einsum('kc,nchw->nkhw', weight, features), logits, rest


#: Those that take seconds, and have relatives among the others.
SLOW = (
    'timm::ghostnet_050',
    'timm::mobilenetv3_small_050',
    'torchvision::googlenet',
    'torchvision::mnasnet0_5',
    'torchvision::shufflenet_v2_x0_5',
    'hf::mobilenet_v2',
)


@pytest.fixture(
    scope='module',
    params=[pytest.param(k, marks=[pytest.mark.slow] if k in SLOW else []) for k in NETWORKS],
)
def network(request, tmp_path_factory):
    torch.manual_seed(0)
    return Network(request.param, tmp_path_factory.mktemp('network'))


def test_the_guide_says_which_networks_have_class_maps():
    guide = Path(__file__).parents[1] / 'docs/en/user_guides/networks.md'
    rows = [line.split('|')[1:-1] for line in guide.read_text().splitlines() if line[:1] == '|']
    kinds = ('affine', 'piecewise linear', 'neither', 'none')
    said = {kind.strip(): names.strip() for kind, names, *_ in rows if kind.strip() in kinds}
    families = {kind: [r.family for r in NETWORKS.values() if r.kind == kind] for kind in kinds}
    assert said == {kind: ', '.join(sorted(set(names))) for kind, names in families.items()}


def close(found, expected, tolerance=1e-9):
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * scale)


REFUSED = (
    'classifies by a class token, pools by attention or joins several maps, so no features have class '
    'maps; use the explainer GradCAM, GradientRollout or LeGrad, or a layer and '
    "'logits' in place of 'cam'"
)


def test_logits_are_the_librarys(network):
    """Of the student, and of a plain module; the library loads what was exported."""
    with torch.no_grad():
        expected = network.logits(network.images)
        assert torch.equal(network.student(network.images), expected)
    # They depend on the image
    assert expected.std(0).min() > 1e-6 * expected.abs().max()
    for model in (network.student, network.plain):
        facts = describe(model)
        with torch.no_grad():
            assert torch.equal(facts.logits(network.images), expected)
        assert facts.activation == 'softmax' and facts.num_classes in (4, None)


def test_class_maps_make_up_the_logit(network):
    taps = TapSet({'cam': 'terms.kd.at', 'logits': 'terms.kd.at'}, 'student')
    if network.row.kind == 'none':
        with pytest.raises(ValueError) as error:
            taps.resolve(network.student, network.images[:1])
        assert str(error.value) == f'terms.kd.at: the student {REFUSED}'
        with pytest.raises(ValueError, match='^CAM: the model classifies by a class token'):
            build_explainer('CAM', 'x')(network.plain, network.images)
        return
    with torch.no_grad():
        taps.resolve(network.student, network.images[:1])
    with torch.no_grad(), taps.record(network.student) as values:
        network.student(network.images)
    maps = values['cam']
    expected, logits, rest = network.maps(network.plain, network.images)
    assert maps.shape[:2] == (4, 4) and min(maps.shape[2:]) > 1
    close(maps.full(), expected.detach())
    close(maps.logits(), logits.detach())
    if rest is not None:
        close(expected.mean((2, 3)) + rest, logits)
    kind = maps.head.kind(maps.features).form if maps.head else 'affine'
    assert kind == network.row.kind


def test_a_step_is_that_of_a_plain_formula(network):
    """CAT-KD from the network as teacher; the logits are distilled where there are no class maps."""
    images, samples = network.images, network.samples
    term = dict(type='KLDivLoss', at='logits', tau=2)
    side = 2 if network.row.kind != 'none' else None
    if side:
        term = dict(type='CATLoss', at='cam', resolution=side, weight=3)
    model = distiller(
        dict(term=term),
        student=copy.deepcopy(network.student).float(),
        teacher=dict(model=network.spec, checkpoint=network.file, normalize='same'),
        input_size=network.row.side,
    )
    model.teachers[0].load()
    model.double().train()
    student, plain = model.student, copy.deepcopy(network.plain)
    with torch.no_grad():
        for mine, theirs in zip(student.parameters(), plain.parameters(), strict=True):
            mine.add_(0.05 * torch.randn_like(mine) * mine.std(correction=0))
            theirs.copy_(mine)
    with torch.no_grad():
        known = describe(model.teachers[0].model).logits(images)
        assert torch.equal(known, network.logits(images))
    torch.manual_seed(1)
    loss = total(model(images, samples, mode='loss'))
    plain.train()
    torch.manual_seed(1)
    if side:
        maps, logits, _ = network.maps(plain, images)
        truth = network.maps(network.plain, images)[0].detach()
        pair = (F.adaptive_avg_pool2d(each, side).flatten(2) for each in (maps, truth))
        own = 3 * F.mse_loss(*(F.normalize(each, dim=2, eps=1e-6) for each in pair))
    else:
        logits = network.logits(images, plain)
        truth = (network.logits(images) / 2).softmax(1).detach()
        own = 4 * F.kl_div((logits / 2).log_softmax(1), truth, reduction='batchmean')
    expected = F.cross_entropy(logits, torch.arange(4)) + own
    assert own > 1e-6
    close(loss, expected)
    gradients = torch.autograd.grad(loss, list(student.parameters()), allow_unused=True)
    plains = torch.autograd.grad(expected, list(plain.parameters()), allow_unused=True)
    assert [each is None for each in gradients] == [each is None for each in plains]
    # Some are zero, as of a bias before a batch norm
    flat = (torch.cat([g.flatten() for g in each if g is not None]) for each in (gradients, plains))
    close(*flat, 1e-7)


def component(values):
    """Each position's score on the first principal component, by a singular value decomposition."""
    rows = values.flatten(2).mT
    rows = rows - rows.mean(1, keepdim=True)
    left, size, _ = torch.linalg.svd(rows, full_matrices=False)
    scores = left[..., 0] * size[:, :1]
    sign = (scores * rows.sum(2)).sum(1, keepdim=True).sign()
    return (scores * sign).unflatten(1, values.shape[2:])


def weighted(weights, values):
    return (weights[..., None, None] * values).sum(1)


def plus_plus(a, g):
    alpha = g**2 / (2 * g**2 + a.sum((2, 3), keepdim=True) * g**3)
    return weighted((alpha.where((g > 0) & (alpha > 0), 0) * g).sum((2, 3)), a)


FORMULAS = dict(
    GradCAM=lambda a, g: weighted(g.mean((2, 3)), a),
    GradCAMPlusPlus=plus_plus,
    XGradCAM=lambda a, g: weighted((g * a).sum((2, 3)) / (a.sum((2, 3)) + 1e-8), a),
    HiResCAM=lambda a, g: (g * a).sum(1),
    LayerCAM=lambda a, g: (g.relu() * a).sum(1),
    EigenCAM=lambda a, g: component(a),
    EigenGradCAM=lambda a, g: component(g * a),
)


def test_explainers_are_their_formulas(network, monkeypatch):
    model, images = network.plain, network.images[:2]
    rows, targets = torch.arange(2), torch.tensor([1, 3])
    (layer,) = find_layers(model, images, ['auto'])
    # Each explainer would search for it again
    monkeypatch.setattr('mmkdx.explain.base.find_layers', lambda *args: [layer])
    kept = []

    def keep(value):
        kept.append(value)
        return value.clone()

    with intercept(model, {layer.tap: keep}):
        logits = network.logits(images)
    score = logits[rows, targets]
    gradients = layer.layout.to_map(torch.autograd.grad(score.sum(), kept[0])[0])
    values = layer.layout.to_map(kept[0]).detach()
    score = score.detach()[:, None]
    for name, formula in FORMULAS.items():
        found = build_explainer(name, 'x')(model, images, targets)
        close(found, formula(values, gradients), 1e-6)
    if network.row.kind != 'none':
        maps = network.maps(model, images)[0].detach()[rows, targets]
        close(build_explainer('CAM', 'x')(model, images, targets), maps)

    def without(channel):
        """The drop of the score without a channel."""

        def ablate(value):
            value = value.clone()
            layer.layout.to_map(value)[:, channel] = 0
            return value

        with intercept(model, {layer.tap: ablate}), torch.no_grad():
            return score[:, 0] - network.logits(images)[rows, targets]

    some = values[:1].shape[1] <= 64
    if some:
        drop = torch.stack(list(map(without, range(values.shape[1]))), 1)
        found = build_explainer('AblationCAM', 'x')(model, images, targets)
        close(found, weighted(drop / score.abs(), values), 1e-6)
    # Score-CAM of the three channels with the largest variance
    chosen = values.flatten(2).var(2).topk(3, 1).indices
    used = values.gather(1, chosen[..., None, None].expand(-1, -1, *values.shape[2:]))
    masks = F.interpolate(used, images.shape[2:], mode='bilinear')
    low, high = masks.amin((2, 3), keepdim=True), masks.amax((2, 3), keepdim=True)
    masks = (masks - low) / (high - low)
    with torch.no_grad():
        scores = [network.logits(images * m[:, None])[rows, targets] for m in masks.unbind(1)]
    found = build_explainer(dict(type='ScoreCAM', channels=3), 'x')(model, images, targets)
    close(found, weighted(torch.stack(scores, 1).softmax(1), used), 1e-6)
