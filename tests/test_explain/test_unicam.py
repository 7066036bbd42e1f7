"""UniCAM: the published maps by hand, the closed form against autograd, and what it refuses."""

import numpy as np
import pytest
import torch
from tiny import build, classifier
from torch import nn, tensor

from mmkdx.explain import UniCAM, build_explainer, explainer_names
from mmkdx.functional import normalize_maps
from mmkdx.functional.distance_correlation import part_dcor
from mmkdx.registry import EXPLAINERS

# Two channels of 2 x 2 for five images, and features of a base model, with labels 0 0 1 1 2
STUDENT = tensor(
    [
        [[[1, 0], [0, 0]], [[0, 0], [0, 2]]],
        [[[2, 0], [1, 0]], [[0, 1], [0, 0]]],
        [[[0, 3], [0, 1]], [[1, 0], [2, 0]]],
        [[[0, 1], [0, 2]], [[3, 0], [0, 1]]],
        [[[1, 1], [4, 0]], [[0, 0], [1, 1]]],
    ]
).double()
BASE = tensor([[1, 0, 0], [1, 1, 0], [0, 2, 1], [0, 1, 3], [2, 0, 2]]).double()
BASE_MAPS = tensor(
    [[[1, 0], [0, 0]], [[1, 1], [0, 0]], [[0, 2], [1, 0]], [[0, 1], [3, 0]], [[2, 0], [2, 1]]]
).double()[:, None]
LABELS = tensor([0, 0, 1, 1, 2])


class Given(nn.Module):
    """A model whose layer yields given activations of the images it sees, told by their first pixel."""

    def __init__(self, values):
        super().__init__()
        self.values = values
        self.layer = nn.Identity()
        self.flat = nn.Flatten()
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, images):
        value = self.layer(self.values[images[:, 0, 0, 0].long()] + 0 * images.sum())
        value = self.pool(value).flatten(1) + 0 * self.flat(value).sum()
        return value @ torch.arange(1.0, 1 + 3 * value.shape[1]).view(-1, 3).to(value)


def images(n, size=8):
    return torch.arange(n).double()[:, None, None, None].expand(n, 3, size, size).contiguous()


def vectors(values):
    """Features of shape (n, d) as maps of 2 x 2 positions, three of them empty."""
    return torch.nn.functional.pad(values[:, :, None, None], (0, 1, 0, 1))


def explain(student, base, labels, settings=None, order=None):
    """UniCAM of given activations (n, C, h, w); those of the base may have any number."""
    inputs = images(len(student))
    inputs = inputs if order is None else inputs[order]
    layers = dict(only=('layer', 'layer'))
    explainer = UniCAM(layers=layers, **(settings or {}))
    return explainer(Given(student), Given(base), inputs, labels)['only']


pytestmark = pytest.mark.filterwarnings('ignore:UniCAM. .* images are few')

BETA = tensor(
    [
        [0.00386927, -0.01526221],
        [-0.03302477, 0.00653629],
        [0.01345164, 0.00369480],
        [0.00707776, -0.00377312],
        [0.00862610, 0.00880424],
    ]
).double()
BETA_ROW_MAX = tensor(
    [
        [0.04556483, -0.10590951],
        [-0.09297757, -0.01388951],
        [0.15145954, 0.20097411],
        [-0.06550905, 0.01861629],
        [-0.03853775, -0.09979137],
    ]
).double()
BETA_GAP = tensor(
    [
        [0.02749399, -0.07910090],
        [-0.04660602, -0.01333186],
        [-0.02521687, 0.20968474],
        [0.06283679, -0.04364404],
        [-0.01850789, -0.07360793],
    ]
).double()


@pytest.mark.parametrize(
    'settings, beta',
    [
        ({}, BETA),
        (dict(target='row_max'), BETA_ROW_MAX),
        (dict(pool='gap'), BETA_GAP),
    ],
    ids=['flat', 'row_max', 'gap'],
)
def test_maps_by_hand(settings, beta):
    # Where features are averaged, all distances of the base model are a quarter, which changes nothing
    found = explain(STUDENT, vectors(BASE), LABELS, settings)
    expected = torch.einsum('nc,nchw->nhw', beta, STUDENT)
    torch.testing.assert_close(found.distilled, expected, rtol=0, atol=1e-7)


def test_positive_maps_and_correlations_by_hand():
    found = explain(STUDENT, vectors(BASE), LABELS)
    positive = found.distilled.relu().flatten(1)
    expected = tensor(
        [
            [0.00386927, 0, 0, 0],
            [0, 0.00653629, 0, 0],
            [0.00369480, 0.04035491, 0.00738960, 0.01345164],
            [0, 0.00707776, 0, 0.01038241],
            [0.00862610, 0.00862610, 0.04330863, 0.00880424],
        ]
    ).double()
    torch.testing.assert_close(positive, expected, rtol=0, atol=2e-8)
    # The authors add 1e-7 to the maximum
    shifted = positive - positive.amin(1, True)
    scaled = shifted / (shifted.amax(1, True) + 1e-7)
    published = tensor([[0, 0.99999727, 0.10078502, 0.26614241], [0, 0.68170063, 0, 0.99999037]])
    torch.testing.assert_close(scaled[2:4], published.double(), rtol=0, atol=1e-6)
    ours = normalize_maps(found.distilled, relu=True).flatten(1)
    torch.testing.assert_close(ours, scaled, rtol=0, atol=3e-5)
    assert found.scores['similarity'] == pytest.approx(0.3578837311170, abs=1e-9)
    assert found.scores['relevance'] == pytest.approx(0.8293682735889, abs=1e-9)
    assert found.scores['base_relevance'] == pytest.approx(0.7383857156060, abs=1e-9)
    assert found.scores['part'] == pytest.approx(0.6051965310136, abs=1e-9)
    assert found.scores['base_part'] == pytest.approx(0.4728895990986, abs=1e-9)
    assert found.scores['partial'] == pytest.approx(0.8974135673397, abs=1e-9)
    assert found.scores['rho'] == pytest.approx(1 - 0.3578837311170**2, abs=1e-9)


def test_roles_swapped_by_hand():
    found = explain(STUDENT, BASE_MAPS, LABELS)
    beta = tensor([0.00130048, -0.03786075, 0.02455823, 0.00236693, 0.00963511]).double()
    expected = beta[:, None, None] * BASE_MAPS[:, 0]
    torch.testing.assert_close(found.residual, expected, rtol=0, atol=1e-7)
    assert found.scores['base_part'] == pytest.approx(0.4759361118, abs=1e-9)
    again = explain(BASE_MAPS, STUDENT, LABELS)
    torch.testing.assert_close(again.distilled, found.residual, rtol=0, atol=1e-15)
    torch.testing.assert_close(again.residual, found.distilled, rtol=0, atol=1e-15)


# Against autograd through the distances of every pair


def naive(student, base, labels, target, pool):
    """The mean gradient of the target by each channel, through the (n, n, d) differences."""

    def centred(x):
        gaps = (x[:, None] - x[None]).square().sum(2)
        eye = torch.eye(len(x)).bool()
        d = torch.where(eye, 0.0, (gaps + eye).sqrt())
        n = len(x)
        u = d - d.sum(0) / (n - 2) - d.sum(1)[:, None] / (n - 2) + d.sum() / ((n - 1) * (n - 2))
        return torch.where(eye, 0.0, u)

    student = student.clone().requires_grad_()
    x = student.mean((2, 3)) if pool else student.flatten(1)
    own, other = centred(x), centred(base.flatten(1))
    left = own - (own * other).sum() / (other * other).sum() * other
    if target == 'row_max':
        value = left.max(1).values.sum()
    else:
        label = centred(torch.eye(3).double()[labels])
        value = (left * label).sum() / ((left * left).sum() * (label * label).sum()).sqrt()
    (gradient,) = torch.autograd.grad(value, student)
    return gradient


@pytest.mark.parametrize('target', ['gt_correlation', 'row_max'])
@pytest.mark.parametrize('pool', [None, 'gap'])
def test_closed_form_is_autograd(target, pool):
    torch.manual_seed(0)
    student, base = torch.randn(9, 4, 3, 3).double(), torch.randn(9, 5, 2, 2).double()
    labels = tensor([0, 1, 2] * 3)
    settings = dict(target=target, pool=pool)
    found = explain(student, base, labels, settings)
    reference = base.mean((2, 3)) if pool else base
    gradient = naive(student, reference, labels, target, pool)
    expected = (gradient.mean((2, 3), True) * student).sum(1)
    torch.testing.assert_close(found.distilled, expected, rtol=0, atol=1e-12)
    # One sum over images, as all distances stay when all images move together
    torch.testing.assert_close(gradient.sum(0), torch.zeros(4, 3, 3).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize('features', ['embedding', 'neck', 'backbone.body', ('head.fc:in', 'neck')])
@pytest.mark.parametrize('max_batch', [64, 5])
def test_later_features_push_their_gradient_through(features, max_batch):
    """From the first convolution to features behind the second, as autograd does in one graph."""
    torch.manual_seed(0)
    student, base = (build(classifier(4)).double().eval() for _ in range(2))
    inputs, labels = torch.randn(8, 3, 8, 8).double(), tensor([0, 1, 2, 3] * 2)
    explainer = UniCAM(layers=['backbone.stem'], features=features, max_batch=max_batch)
    found = explainer(student, base, inputs, labels)['stage1']
    first = student.backbone.stem(inputs).detach().requires_grad_()
    later = student.backbone.body(first)
    other = base.backbone(inputs)[0]
    if features != 'backbone.body':
        later, other = later.mean((2, 3)), other.mean((2, 3))
    one_hot = torch.eye(4).double()[labels]
    value = part_dcor(later, one_hot, given=other.detach())
    (gradient,) = torch.autograd.grad(value, first)
    expected = (gradient.mean((2, 3), True) * first.detach()).sum(1)
    torch.testing.assert_close(found.distilled, expected, rtol=1e-8, atol=1e-12)
    assert found.scores['part'] == pytest.approx(value.item(), abs=1e-12)


# Properties


def random_pair(n=10):
    torch.manual_seed(1)
    labels = tensor([0, 1] * (n // 2))
    student = torch.randn(n, 3, 4, 4).double() + labels[:, None, None, None]
    return student, torch.randn(n, 2, 4, 4).double(), labels


def test_order_and_scale_do_not_matter_and_the_context_does():
    student, base, labels = random_pair()
    found = explain(student, base, labels)
    order = torch.randperm(10)
    turned = explain(student, base, labels[order], order=order)
    torch.testing.assert_close(turned.distilled, found.distilled[order], rtol=0, atol=1e-15)
    scaled = explain(3 * student, base, labels)
    torch.testing.assert_close(
        normalize_maps(scaled.distilled, True), normalize_maps(found.distilled, True)
    )
    turn = torch.linalg.qr(torch.randn(32, 32).double()).Q
    moved = (base.flatten(1) @ turn * 7 + 2).view_as(base)
    torch.testing.assert_close(
        explain(student, moved, labels).distilled, found.distilled, rtol=0, atol=1e-14
    )
    other = student.clone()
    other[5:] = torch.randn_like(other[5:])
    changed = explain(other, base, labels).distilled[:5]
    assert not torch.allclose(changed, found.distilled[:5], rtol=1e-2)


@pytest.mark.parametrize('target, share', [('gt_correlation', 0.45), ('row_max', 0.6)])
def test_a_planted_feature_is_found(target, share):
    """Only the student sees the quarter that tells the classes apart; both see a nuisance."""
    shares = dict(distilled=[], residual=[], nuisance=[])
    for seed in range(20):
        torch.manual_seed(seed)
        labels = tensor([0, 1] * 16)
        student, base = (0.3 * torch.rand(32, 8, 8, 8).double() for _ in range(2))
        strength = 1.1 + 0.1 * torch.randn(32).double()
        student[:, 0, :4, :4] += (strength * labels)[:, None, None]
        nuisance = 1.5 * (torch.rand(32) < 0.5).double()
        for each in (student, base):
            each[:, 1, 4:, 4:] += nuisance[:, None, None]
        found = explain(student, base, labels, dict(target=target))
        for name, maps in (('distilled', found.distilled), ('residual', found.residual)):
            positive = maps[labels == 1].relu()
            energy = positive.sum((1, 2))
            kept = energy > 0
            quarter = positive[kept, :4, :4].sum((1, 2)) / energy[kept]
            shares[name].append(float(quarter.mean()))
            if name == 'distilled':
                corner = positive[kept, 4:, 4:].sum((1, 2)) / energy[kept]
                shares['nuisance'].append(float(corner.mean()))
    mean = {name: float(np.mean(values)) for name, values in shares.items()}
    assert mean['distilled'] > share
    assert mean['distilled'] > 2 * mean['residual']
    assert mean['nuisance'] < 0.25


# What nothing can be said of


def test_the_same_features_yield_no_map():
    student, _, labels = random_pair()
    twin = (student * (1 + 1e-7 * torch.randn_like(student))).float()
    found = explain(student.float(), twin, labels)
    assert not found.distilled.any() and not found.residual.any()
    assert np.isnan(found.scores['part']) and np.isnan(found.scores['base_partial'])
    assert 0 <= found.scores['rho'] < 1e-6


@pytest.mark.parametrize('labels', [[0] * 6, [0, 1, 2, 3, 4, 5], [0, 0, 0, 0, 0, 1]])
def test_labels_that_say_nothing_yield_no_map(labels):
    student, base, _ = random_pair(6)
    found = explain(student, base, tensor(labels))
    assert not found.distilled.any() and not found.residual.any()
    assert np.isnan(found.scores['relevance']) and np.isfinite(found.scores['similarity'])


def test_features_that_are_not_finite_yield_no_map():
    student, base, labels = random_pair()
    student[3, 0, 0, 0] = torch.nan
    found = explain(student, base, labels)
    assert not found.distilled.any() and not found.residual.any()
    assert np.isnan(found.scores['similarity'])


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('target', ['gt_correlation', 'row_max'])
def test_the_same_image_twice(dtype, target):
    student, base, labels = random_pair()
    for each in (student, base):
        each[1] = each[3]
    with torch.autocast('cpu', dtype if dtype == torch.bfloat16 else torch.bfloat16):
        found = explain(student.to(dtype), base.to(dtype), labels, dict(target=target))
    assert found.distilled.isfinite().all() and found.residual.isfinite().all()
    assert found.distilled.any() and found.distilled.dtype == torch.float32


# Layers


def test_stages_of_a_cnn_and_a_transformer():
    from mmpretrain.models import ImageClassifier

    resnet = dict(
        type='ImageClassifier',
        backbone=dict(type='ResNet', depth=18, stem_channels=8, base_channels=8),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=4, in_channels=64),
    )
    student, base = build(resnet).eval(), build(resnet).eval()
    assert isinstance(student, ImageClassifier)
    inputs, labels = torch.randn(6, 3, 64, 64), tensor([0, 1, 2] * 2)
    found = UniCAM()(student, base, inputs, labels)
    sizes = {name: tuple(each.distilled.shape) for name, each in found.items()}
    assert sizes == {f'stage{i}': (6, 16 // 2**k, 16 // 2**k) for k, i in enumerate((1, 2, 3, 4))}
    models = dict(student=(student, inputs), base=(base, inputs), teacher=(student, inputs))
    layers = UniCAM().find_layers(models)
    for role in ('student', 'base', 'teacher'):
        names = [layer.name for layer in layers[role].values()]
        assert names == [f'backbone.layer{i}' for i in (1, 2, 3, 4)]

    vit = dict(
        type='ImageClassifier',
        backbone=dict(type='VisionTransformer', arch='deit-t', img_size=64, patch_size=16),
        head=dict(type='VisionTransformerClsHead', num_classes=4, in_channels=192),
    )
    vit = build(vit).eval()
    assert list(UniCAM()(student, vit, inputs, labels)) == ['stage1']  # of 4 x 4
    explainer = UniCAM(layers={'last': ('backbone.layer4', 'backbone.layers.11.ln1')})
    found = explainer(student, vit, inputs, labels)['last']
    assert found.distilled.shape == (6, 2, 2) and found.residual.shape == (6, 4, 4)
    assert found.distilled.any() and found.residual.any()


def test_models_come_out_as_they_were():
    student, base = build(classifier(4)).train(), build(classifier(6)).train()
    for each in student.parameters():
        each.requires_grad_(False)
    state = {name: value.clone() for name, value in student.state_dict().items()}
    inputs = torch.randn(6, 3, 8, 8)
    with torch.no_grad():
        UniCAM(features='embedding')(student, base, inputs, tensor([0, 1] * 3))
    assert all(torch.equal(state[name], value) for name, value in student.state_dict().items())
    assert all(module.training for module in student.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in student.modules())
    assert all(each.grad is None for each in base.parameters())


def test_models_without_a_common_size():
    models = [Given(torch.randn(6, 2, side, side).double()) for side in (3, 2)]
    with pytest.raises(
        ValueError,
        match='no map size in common; the student has the stages layer, the base model layer',
    ):
        UniCAM()(*models, images(6), tensor([0, 1] * 3))


# Embeddings


def test_an_embedding_of_the_classes(tmp_path):
    table = np.array([[0, 0], [3, 0], [0, 4]])
    np.save(tmp_path / 'classes.npy', table)
    explainer = UniCAM(embedding=str(tmp_path / 'classes.npy'))
    labels = tensor([0, 0, 1, 1, 2, 2])
    assert torch.equal(explainer.label_features(labels), torch.from_numpy(table).double()[labels])
    with pytest.raises(ValueError, match='embedding has vectors for 3 classes and a label is 3'):
        explainer.label_features(tensor([3]))


# What is refused


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(target='class_score'), "UniCAM.target is 'class_score'; it must be one of"),
        (dict(pool='max'), "UniCAM.pool is 'max'; it must be one of None, gap"),
        (dict(max_batch=0), 'UniCAM.max_batch is 0; it must be an integer of at least 1'),
        (dict(layers=[]), 'UniCAM.layers is ..; it must be a list of paths, or'),
        (dict(layers='backbone.body'), "UniCAM.layers is 'backbone.body'; it must be a list of"),
        (dict(layers=dict(a=['x'])), "UniCAM.layers: a is .'x'.; it must be a path, or the paths"),
        (dict(features=('a', 'b', 'c')), 'UniCAM.features is .*; it must be a tap, or a pair'),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        UniCAM(**settings)


def test_bad_embeddings(tmp_path):
    with pytest.raises(FileNotFoundError, match='UniCAM.embedding: there is no file'):
        UniCAM(embedding=str(tmp_path / 'none.npy'))
    (tmp_path / 'text.npy').write_text('no array')
    with pytest.raises(ValueError, match='text.npy is no NumPy file'):
        UniCAM(embedding=str(tmp_path / 'text.npy'))
    np.save(tmp_path / 'flat.npy', np.zeros(3))
    with pytest.raises(
        ValueError, match=r'has the shape \(3,\); it must hold a row of finite numbers'
    ):
        UniCAM(embedding=str(tmp_path / 'flat.npy'))


def test_bad_batches():
    student, base = build(classifier(4)), build(classifier(4))
    inputs, labels = torch.randn(6, 3, 8, 8), tensor([0, 1] * 3)
    explainer = UniCAM(layers=['backbone.body'])
    for twin in (student, torch.nn.parallel.DataParallel(student)):
        with pytest.raises(ValueError, match='student and base are the same module'):
            explainer(student, getattr(twin, 'module', twin), inputs, labels)
    with pytest.raises(ValueError, match='needs 5 or more, not 4'):
        explainer(student, base, inputs[:4], labels[:4])
    with pytest.raises(
        ValueError, match="UniCAM needs labels; only target='row_max' works without"
    ):
        explainer(student, base, inputs)
    with pytest.raises(ValueError, match=r'one label for each image, and got \(5,\) for 6 images'):
        explainer(student, base, inputs, labels[:5])
    with pytest.raises(ValueError, match=r'UniCAM.layers: base: .*no module .backbone.bdy'):
        UniCAM(layers=[('backbone.body', 'backbone.bdy')])(student, base, inputs, labels)
    with pytest.raises(ValueError, match='UniCAM.features: the student has no module .nk.'):
        UniCAM(layers=['backbone.body'], features='nk')(student, base, inputs, labels)
    with pytest.raises(ValueError, match='backbone.stem does not come after layer backbone.body'):
        UniCAM(layers=['backbone.body'], features='backbone.stem')(student, base, inputs, labels)


def test_few_images_are_warned_of():
    student, base, labels = random_pair()
    with pytest.warns(UserWarning, match='UniCAM: 10 images are few; below 16'):
        explain(student, base, labels)


def test_without_labels():
    student, base, _ = random_pair()
    found = explain(student, base, None, dict(target='row_max'))
    assert found.distilled.any() and set(found.scores) == {'similarity', 'rho'}


def test_it_cannot_explain_one_model():
    assert EXPLAINERS.get('UniCAM') is UniCAM
    assert 'UniCAM' not in explainer_names() and 'GradCAM' in explainer_names()
    with pytest.raises(ValueError, match='explainer: UniCAM explains a pair of models'):
        build_explainer('UniCAM')
    with pytest.raises(ValueError) as error:
        build_explainer('UniCam')
    assert 'UniCAM' not in f'{error.value}'
