"""Maps beside those of captum, torchcam and pytorch-grad-cam, which are compared where installed.

Where a peer follows another convention, a test applies it to this package's numbers and gets the peer's.
"""

import pytest
import torch
import torch.nn.functional as F
from families import cnn, family, images

from mmkdx.explain import (
    CAM,
    AblationCAM,
    EigenCAM,
    EigenGradCAM,
    FullGrad,
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    InputGradient,
    IntegratedGradients,
    LayerCAM,
    ScoreCAM,
    XGradCAM,
)
from mmkdx.explain.targets import Scores
from mmkdx.functional import normalize_maps, resize_maps

TARGETS = [3, 1]


def tokens(extra, size):
    return lambda value: value[:, extra:].mT.unflatten(2, size)


#: For each network the images' size, a layer, and for tokens what makes maps of them
NETWORKS = {
    # Behind it are more layers
    'ResNet': (96, 'backbone.layer3', None),
    # Global average pooling and a linear layer alone, so that the maps are a closed form
    'VGG': (64, 'backbone.features.11', None),
    # A head of two layers
    'MobileNetV3': (96, 'backbone.layer12', None),
    # A norm behind the pooling
    'ConvNeXt': (96, 'backbone.stages.3', None),
    'VisionTransformer': (48, 'backbone.layers.1.ln1', tokens(1, (3, 3))),
    'SwinTransformer': (64, 'backbone.stages.1.blocks.1', tokens(0, (8, 8))),
}


@pytest.fixture(scope='module', params=NETWORKS)
def case(request):
    size, layer, reshape = NETWORKS[request.param]
    model = family(request.param, size).double()
    return model, images(size, seed=5).double(), layer, reshape


def network(name):
    size, layer, reshape = NETWORKS[name]
    return family(name, size).double(), images(size, seed=5).double(), layer, reshape


def close(result, expected, rel=1e-6, abs=1e-9):
    torch.testing.assert_close(result, expected, rtol=rel, atol=abs)


def evidence(model, inputs, layer, reshape, targets=TARGETS):
    """The activations of a layer as maps, and the gradients there."""
    kept = []
    handle = model.get_submodule(layer).register_forward_hook(
        lambda module, args, output: kept.append(output) or output.clone()
    )
    logits = model(inputs)
    handle.remove()
    score = logits[range(len(targets)), targets].sum()
    parts = [kept[0].detach(), torch.autograd.grad(score, kept[0])[0]]
    return [reshape(part) for part in parts] if reshape else parts


# captum: signed maps


def test_captum_grad_cam(case):
    captum = pytest.importorskip('captum.attr')
    model, inputs, layer, reshape = case
    if reshape:
        pytest.skip('captum takes the mean over the wrong axes of tokens')
    expected = captum.LayerGradCam(model, model.get_submodule(layer)).attribute(inputs, TARGETS)
    close(GradCAM(layer)(model, inputs, TARGETS), expected[:, 0].detach())


def test_captum_activations_times_gradients(case):
    captum = pytest.importorskip('captum.attr')
    model, inputs, layer, reshape = case
    method = captum.LayerGradientXActivation(model, model.get_submodule(layer))
    expected = method.attribute(inputs, TARGETS).detach()
    expected = reshape(expected) if reshape else expected
    close(HiResCAM(layer)(model, inputs, TARGETS), expected.sum(1))


def test_captum_pixels(case):
    captum = pytest.importorskip('captum.attr')
    model, inputs, *_ = case
    saliency = captum.Saliency(model).attribute(inputs.clone(), TARGETS)
    close(InputGradient()(model, inputs, TARGETS), saliency.amax(1))
    product = captum.InputXGradient(model).attribute(inputs.clone(), TARGETS).detach()
    close(InputGradient(multiply=True)(model, inputs, TARGETS), product.sum(1))


@pytest.mark.parametrize('baseline', [0.0, 0.5])
def test_captum_integrated_gradients(baseline):
    captum = pytest.importorskip('captum.attr')
    model, inputs, *_ = network('VisionTransformer')
    expected = captum.IntegratedGradients(model).attribute(
        inputs, baseline, TARGETS, n_steps=8, method='gausslegendre'
    )
    maps = IntegratedGradients(8, baseline)(model, inputs, TARGETS)
    close(maps, expected.sum(1).detach())


# torchcam: a ReLU and, unless told otherwise, a scale


@pytest.mark.parametrize('method', [GradCAM, XGradCAM, LayerCAM])
def test_torchcam(case, method):
    torchcam = pytest.importorskip('torchcam.methods')
    model, inputs, layer, reshape = case
    with getattr(torchcam, method.__name__)(model, layer, reshape_transform=reshape) as peer:
        (expected,) = peer(TARGETS, model(inputs), normalized=False)
    maps = method(layer)(model, inputs, TARGETS)
    close(maps.relu(), expected)
    assert expected.any() and (method is LayerCAM or (maps < 0).any() or (maps > 0).all())


def test_torchcam_class_maps():
    torchcam = pytest.importorskip('torchcam.methods')
    model, inputs, layer, _ = network('VGG')
    with torchcam.CAM(model, layer, 'head.fc') as peer:
        model(inputs)
        (expected,) = peer(TARGETS, normalized=False)
    close(CAM()(model, inputs, TARGETS), expected)


def test_torchcam_divides_nothing_in_grad_cam_plus_plus():
    torchcam = pytest.importorskip('torchcam.methods')
    model, inputs, layer, reshape = network('ResNet')
    with torchcam.GradCAMpp(model, layer) as peer:
        (expected,) = peer(TARGETS, model(inputs), normalized=False)
    activations, gradients = evidence(model, inputs, layer, reshape)
    # Its α is the squared gradient itself
    weights = gradients.relu().pow(3).sum((2, 3), keepdim=True)
    close((weights * activations).sum(1).relu(), expected)
    maps = normalize_maps(GradCAMPlusPlus(layer)(model, inputs, TARGETS), relu=True)
    assert (maps - normalize_maps(expected)).abs().amax() > 0.02


def score_cam(model, inputs, activations, masks):
    """Score-CAM with masks of any making, of shape (N, C, H, W)."""
    with torch.no_grad():
        scores = [
            model(image * each[:, None])[:, target]
            for image, each, target in zip(inputs, masks, TARGETS)
        ]
    return torch.einsum('nc,nchw->nhw', torch.stack(scores).softmax(1), activations)


def minmax(maps, eps=0.0):
    low = maps.amin((2, 3), keepdim=True)
    return (maps - low) / ((maps - low).amax((2, 3), keepdim=True) + eps)


@pytest.mark.parametrize('name', ['ConvNeXt', 'SwinTransformer'])
def test_torchcam_takes_activations_for_masks_in_score_cam(name):
    torchcam = pytest.importorskip('torchcam.methods')
    model, inputs, layer, reshape = network(name)
    with torch.no_grad(), torchcam.ScoreCAM(model, layer, reshape_transform=reshape) as peer:
        model(inputs)
        (expected,) = peer(TARGETS, normalized=False)
    activations, _ = evidence(model, inputs, layer, reshape)
    # Scaled before they are resized
    resized = F.interpolate(minmax(activations, 1e-8), inputs.shape[2:], mode='bilinear')
    close(score_cam(model, inputs, activations, resized).relu(), expected)
    resized = minmax(F.interpolate(activations, inputs.shape[2:], mode='bilinear'))
    maps = ScoreCAM(layer)(model, inputs, TARGETS)
    close(maps, score_cam(model, inputs, activations, resized))
    # Which is not the same
    assert not maps.relu().allclose(expected, rtol=1e-4)


def test_torchcam_fuses_layers_by_a_maximum():
    torchcam = pytest.importorskip('torchcam.methods')
    model, inputs, *_ = network('ResNet')
    names = ['backbone.layer2', 'backbone.layer3']
    with torchcam.LayerCAM(model, names) as peer:
        expected = peer.fuse_cams(peer(TARGETS, model(inputs)))
    maps = [normalize_maps(each, relu=True) for each in LayerCAM(names)(model, inputs, TARGETS)]
    fused = torch.stack([resize_maps((2 * each).tanh(), maps[0].shape[1:]) for each in maps])
    close(fused.amax(0), expected)


# pytorch-grad-cam: ReLU, scale, resize, mean over layers and scale again, in single precision


def grad_cam(method, model, inputs, layers, reshape=None, **kwargs):
    package = pytest.importorskip('pytorch_grad_cam')
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    modules = [model.get_submodule(layer) for layer in layers]
    with getattr(package, method)(model, modules, reshape_transform=reshape, **kwargs) as peer:
        maps = peer(inputs, [ClassifierOutputTarget(target) for target in TARGETS])
    return torch.from_numpy(maps).double()


def shown(maps, size):
    return normalize_maps(resize_maps(normalize_maps(maps, relu=True), size))


@pytest.mark.parametrize('method', [GradCAM, XGradCAM, HiResCAM, LayerCAM])
def test_grad_cam(case, method):
    model, inputs, layer, reshape = case
    expected = grad_cam(method.__name__, model, inputs, [layer], reshape)
    maps = method(layer)(model, inputs, TARGETS)
    close(shown(maps, inputs.shape[2:]), expected, abs=1e-4)
    assert expected.any()


@pytest.mark.parametrize('method', [EigenCAM, EigenGradCAM])
def test_grad_cam_leaves_the_sign_of_components_to_chance(case, method):
    model, inputs, layer, reshape = case
    expected = grad_cam(method.__name__, model, inputs, [layer], reshape)
    maps = method(layer)(model, inputs, TARGETS)
    signs = [shown(sign * maps, inputs.shape[2:]) for sign in (1, -1)]
    for one, other, peer in zip(*signs, expected):
        errors = [(each - peer).abs().amax() for each in (one, other)]
        assert min(errors) < 1e-4 < max(errors)


@pytest.mark.parametrize('scale', [1.0, 1e3])
def test_grad_cam_has_an_epsilon_in_grad_cam_plus_plus(case, scale):
    """It is large beside squared gradients, and not divided by anything where scores are small."""
    model, inputs, layer, reshape = case
    model = Scaled(model, scale)
    layer = f'model.{layer}'
    expected = grad_cam('GradCAMPlusPlus', model, inputs, [layer], reshape)
    activations, gradients = evidence(model, inputs, layer, reshape)
    total = activations.sum((2, 3), keepdim=True)
    denominator = 2 * gradients**2 + total * gradients**3 + 1e-6
    weights = (gradients**2 / denominator * gradients.relu()).sum((2, 3), keepdim=True)
    size = inputs.shape[2:]
    close(shown((weights * activations).sum(1), size), expected, abs=1e-4)
    if activations.min() >= 0 and scale > 1:
        # There no denominator is negative, of which this package takes none
        maps = GradCAMPlusPlus(layer)(model, inputs, TARGETS)
        close(shown(maps, size), expected, abs=1e-4)


class Scaled(torch.nn.Module):
    """A classifier with larger logits."""

    def __init__(self, model, scale):
        super().__init__()
        self.model, self.scale = model, scale

    def forward(self, inputs):
        return self.model(inputs) * self.scale


@pytest.mark.parametrize('name', ['ConvNeXt', 'SwinTransformer'])
def test_grad_cam_aligns_corners_of_masks_in_score_cam(name):
    model, inputs, layer, reshape = network(name)
    expected = grad_cam('ScoreCAM', model, inputs, [layer], reshape)
    activations, _ = evidence(model, inputs, layer, reshape)
    size = inputs.shape[2:]
    masks = minmax(F.interpolate(activations, size, mode='bilinear', align_corners=True), 1e-8)
    close(shown(score_cam(model, inputs, activations, masks), size), expected, abs=1e-4)
    exact = shown(ScoreCAM(layer)(model, inputs, TARGETS), size)
    assert (exact - expected).abs().amax() > 1e-3


@pytest.mark.parametrize('layer', ['backbone.stem', 'backbone.body'])
def test_grad_cam_ablation_of_activations_after_a_relu(layer):
    model, inputs = cnn()
    inputs = inputs[:2]
    with torch.no_grad():
        model.head.fc.bias += 10  # the peer's maps change their sign with the score's
        assert (model(inputs)[range(2), TARGETS] > 0).all()
    expected = grad_cam('AblationCAM', model, inputs, [layer])
    close(shown(AblationCAM(layer)(model, inputs, TARGETS), inputs.shape[2:]), expected, abs=1e-4)


def test_grad_cam_ablates_signed_activations_to_a_large_number():
    model, inputs, layer, _ = network('ConvNeXt')
    expected = grad_cam('AblationCAM', model, inputs, [layer], batch_size=1)
    activations, _ = evidence(model, inputs, layer, None)
    with torch.no_grad():
        scores = model(inputs)[range(2), TARGETS]
        drops = []
        for value in (lambda each: 0, lambda each: each.amin((1, 2, 3))[:, None, None] - 1e7):
            channels = []
            for channel in range(activations.shape[1]):
                ablated = activations.clone()
                ablated[:, channel] = value(ablated)
                handle = model.get_submodule(layer).register_forward_hook(
                    lambda module, args, output: ablated  # noqa: B023
                )
                channels.append(scores - model(inputs)[range(2), TARGETS])
                handle.remove()
            drops.append(torch.stack(channels, 1) / scores[:, None])
    maps, peer = (torch.einsum('nc,nchw->nhw', drop, activations) for drop in drops)
    close(shown(peer, inputs.shape[2:]), expected, abs=1e-4)
    close(AblationCAM(layer)(model, inputs, TARGETS), maps)


def test_grad_cam_scales_each_channel_of_full_gradients():
    model, inputs = cnn()
    inputs = inputs[:2]
    expected = grad_cam('FullGrad', model, inputs, [])
    weights = F.one_hot(torch.tensor(TARGETS), 4).double()
    pixels, layers = FullGrad().bias_gradients(Scores(model), inputs, weights)
    terms = [minmax(term.detach().abs(), 1e-7) for term in (pixels, *layers)]
    resized = [F.interpolate(term, (12, 12), mode='bilinear').sum(1) for term in terms]
    close(normalize_maps(sum(resized)), expected, abs=1e-4)
    assert (normalize_maps(FullGrad()(model, inputs, TARGETS)) - expected).abs().amax() > 0.01


def test_grad_cam_fuses_layers_by_a_mean():
    model, inputs, *_ = network('ResNet')
    names = ['backbone.layer2', 'backbone.layer3']
    expected = grad_cam('GradCAM', model, inputs, names)
    maps = GradCAM(names)(model, inputs, TARGETS)
    size = inputs.shape[2:]
    fused = sum(resize_maps(normalize_maps(each, relu=True), size) for each in maps)
    close(normalize_maps(fused), expected, abs=1e-4)
