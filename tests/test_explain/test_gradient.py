"""The CAM family: numbers by hand, closed forms against autograd, and what must hold for any maps."""

import numpy as np
import pytest
import torch
from families import cnn, family, images
from torch import nn

from mmkdx.explain import (
    CAM,
    EigenCAM,
    EigenGradCAM,
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    XGradCAM,
)

METHODS = [GradCAM, GradCAMPlusPlus, XGradCAM, HiResCAM, LayerCAM, EigenCAM, EigenGradCAM]
# Those that sum up weighted channels, and so are linear in the score where no sign is taken
LINEAR = [GradCAM, XGradCAM, HiResCAM]


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def random_maps(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def close(result, expected, rel=1e-9, abs=1e-12):
    torch.testing.assert_close(result, expected, rtol=rel, atol=abs)


# Two channels of 2 x 2 positions
ACTIVATIONS = tensor([[[1, 2], [3, 4]], [[0, 1], [1, 2]]])
GRADIENTS = tensor([[[1, -1], [2, 2]], [[0.5, 0], [0, -1.5]]])


@pytest.mark.parametrize(
    'method, expected',
    [
        # Mean gradients 1 and -1/4
        (GradCAM, [[1, 1.75], [2.75, 3.5]]),
        # 1 / (2 + 10) + 2 · 2 / (2 + 20) = 35/132 and 0.5 / (2 + 2) = 1/8
        (
            GradCAMPlusPlus,
            [[35 / 132, 70 / 132 + 1 / 8], [105 / 132 + 1 / 8, 140 / 132 + 2 / 8]],
        ),
        # (1 - 2 + 6 + 8) / 10 and -3 / 4
        (XGradCAM, [[1.3, 1.85], [3.15, 3.7]]),
        (HiResCAM, [[1, -2], [6, 5]]),
        (LayerCAM, [[1, 0], [6, 8]]),
    ],
)
def test_by_hand(method, expected):
    close(method().combine(ACTIVATIONS, GRADIENTS), tensor(expected), rel=1e-8)


def test_layer_cam_keeps_the_sign_of_activations():
    maps = LayerCAM().combine(tensor([[[-1, 2, -3]]]), tensor([[[1, -3, -1]]]))
    close(maps, tensor([[-1, 0, 0]]))


@pytest.mark.parametrize(
    'gradient, total, weight',
    # Neither a gradient nor a denominator that is not positive counts
    [
        (1, 8, 0.1),
        (1, 0, 0.5),
        (1, -1, 1.0),
        (1, -2, 0),
        (1, -8, 0),
        (-1, 8, 0),
        (-1, 1, 0),
        (0, 8, 0),
    ],
)
def test_weights_of_grad_cam_plus_plus(gradient, total, weight):
    activations = tensor([[[total, 0]]])
    gradients = tensor([[[gradient, 0]]])
    close(GradCAMPlusPlus().combine(activations, gradients), weight * activations[:, 0])


def test_grad_cam_plus_plus_is_the_papers_formula():
    activations, gradients = random_maps(3, 5, 4, 4).relu(), random_maps(3, 5, 4, 4, seed=1)
    total = activations.sum((2, 3), keepdim=True)
    alpha = gradients**2 / (2 * gradients**2 + total * gradients**3)
    weights = (alpha * gradients.relu()).sum((2, 3), keepdim=True)
    close(GradCAMPlusPlus().combine(activations, gradients), (weights * activations).sum(1))
    # Where squares and cubes of gradients are below fp32, as behind the pooling of large maps
    small = GradCAMPlusPlus().combine(activations.float(), gradients.float() * 1e-20)
    expected = (gradients.relu() / 2).sum((2, 3), keepdim=True) * activations
    close(small.double() * 1e20, expected.sum(1), rel=1e-5, abs=1e-5)


def test_a_dead_channel_counts_nothing():
    activations, gradients = random_maps(2, 3, 4, 4).relu(), random_maps(2, 3, 4, 4, seed=1)
    activations[:, 1] = 0
    kept = [0, 2]
    for method in METHODS:
        maps = method().combine(activations, gradients)
        assert maps.isfinite().all()
        close(maps, method().combine(activations[:, kept], gradients[:, kept]))


@pytest.mark.parametrize('factor', [1.0, -1.0])
def test_eigen_cam_of_one_pattern(factor):
    # All channels are multiples of it, so it is the component itself, centred
    pattern = tensor([0, 1], [2, 5])
    activations = torch.stack([pattern, 2 * factor * pattern])[None]
    expected = 5**0.5 * (pattern - 2)[None]
    # Channels 1 and -2 have a mean of falling activation
    close(EigenCAM().combine(activations), expected * factor)
    ones = torch.ones_like(activations)
    close(EigenGradCAM().combine(ones, activations), expected * factor)


@pytest.mark.parametrize('channels, size', [(3, 4), (40, 4), (16, 4), (5, 3), (5, 2)])
def test_eigen_cam_is_the_first_principal_component(channels, size):
    activations = random_maps(3, channels, size, size)
    maps = EigenCAM().combine(activations)
    for each, result in zip(activations, maps):
        matrix = each.flatten(1).T.numpy()
        matrix = matrix - matrix.mean(0)
        left, values, _ = np.linalg.svd(matrix, full_matrices=False)
        component = left[:, 0] * values[0]
        component *= np.sign(component @ matrix.sum(1))
        close(result.flatten(), torch.from_numpy(component), abs=1e-9)
    close(EigenGradCAM().combine(torch.ones_like(activations), activations), maps)


@pytest.mark.parametrize('method', [EigenCAM, EigenGradCAM])
@pytest.mark.parametrize('channels', [6, 30])
def test_the_sign_of_an_eigenvector_is_that_of_the_mean(method, channels):
    activations = random_maps(20, channels, 4, 4)
    gradients = torch.ones_like(activations)
    maps = method().combine(activations, gradients).flatten(1)
    centred = activations.mean(1).flatten(1)
    centred = centred - centred.mean(1, keepdim=True)
    assert ((maps * centred).sum(1) > 0).all()
    # A negative image of the activations has the negative map
    close(method().combine(-activations, gradients).flatten(1), -maps)


@pytest.mark.parametrize('channels, size', [(8, 7), (80, 3)])
@pytest.mark.parametrize('dead', [0, 2, 7])
@pytest.mark.parametrize('scale', [1.0, 1e-9, 0.0])
def test_gradients_of_eigen_cam_are_finite(channels, size, dead, scale):
    activations = scale * random_maps(3, channels, size, size).float().relu()
    activations[:, :dead] = 0
    activations.requires_grad_()
    maps = EigenCAM().combine(activations)
    (gradient,) = torch.autograd.grad(maps[:, 0].sum(), activations)
    assert maps.isfinite().all() and gradient.isfinite().all()
    assert (maps == 0).all() if not scale else gradient.any()


# Any maps


@pytest.mark.parametrize('method', [*METHODS, CAM])
def test_the_order_of_channels_does_not_matter(method):
    activations, gradients = random_maps(3, 6, 4, 5).relu(), random_maps(3, 6, 4, 5, seed=1)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    expected = method().combine(activations, gradients)
    close(method().combine(activations[:, order], gradients[:, order]), expected)


@pytest.mark.parametrize('method', [*METHODS, CAM])
def test_maps_follow_the_positions(method):
    activations, gradients = random_maps(3, 6, 4, 5).relu(), random_maps(3, 6, 4, 5, seed=1)
    expected = method().combine(activations, gradients).flip(2).mT
    close(method().combine(activations.flip(3).mT, gradients.flip(3).mT), expected)


@pytest.mark.parametrize('method', [*METHODS, CAM])
def test_maps_of_a_batch_are_those_of_its_images(method):
    activations, gradients = random_maps(4, 6, 4, 5), random_maps(4, 6, 4, 5, seed=1)
    maps = method().combine(activations, gradients)
    for i in range(4):
        part = slice(i, i + 1)
        close(maps[part], method().combine(activations[part], gradients[part]))


@pytest.mark.parametrize('method', [m for m in METHODS if m is not EigenCAM] + [CAM])
def test_units_of_the_activations_do_not_matter(method):
    # Channels k times as large, behind weights k times as small, are the same network
    activations, gradients = random_maps(3, 6, 4, 4).relu(), random_maps(3, 6, 4, 4, seed=1)
    units = tensor(1, 2, 0.5, 4, 8, 0.25)[:, None, None]
    expected = method().combine(activations, gradients)
    close(method().combine(activations * units, gradients / units), expected, rel=1e-6)


@pytest.mark.parametrize('method', [*(m for m in METHODS if m is not GradCAMPlusPlus), CAM])
def test_a_larger_score_scales_the_map(method):
    activations, gradients = random_maps(3, 6, 4, 4).relu(), random_maps(3, 6, 4, 4, seed=1)
    expected = method().combine(activations, gradients) * (1 if method is EigenCAM else 3)
    close(method().combine(activations, 3 * gradients), expected)


# Models


class Hidden(nn.Module):
    """A classifier in a wrapping in which its head is not recognised."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, inputs):
        return self.model(inputs, mode='tensor') * 1


MODELS = {
    'cnn': cnn,
    'ConvNeXt': lambda: (family('ConvNeXt').double(), images(64, 3).double()),
    'VisionTransformer': lambda: (family('VisionTransformer').double(), images(48, 3).double()),
}


@pytest.fixture(scope='module', params=MODELS)
def case(request):
    return MODELS[request.param]()


@pytest.mark.parametrize('targets', [None, 2, [3, 0, 1], 'all'], ids=str)
@pytest.mark.parametrize('width', [6, 40])
@pytest.mark.parametrize('method', [*METHODS, CAM])
def test_closed_forms_are_what_autograd_finds(method, width, targets):
    model, inputs = cnn(width)
    explainer, general = method(), (GradCAM if method is CAM else method)()
    maps = explainer(model, inputs, targets)
    hidden = Hidden(model)
    expected = general(hidden, inputs, targets)
    assert explainer.layers(model, inputs)[0].classifier == 'head.fc'
    assert general.layers(hidden, inputs)[0].classifier is None
    assert maps.shape == ((3, 4, 6, 6) if targets == 'all' else (3, 6, 6))
    close(maps, expected * (36 if method is CAM else 1))


def test_a_closed_form_runs_no_backward_pass(monkeypatch):
    model, inputs = cnn()
    explainers = [method() for method in [*METHODS, CAM]]
    expected = [explainer(model, inputs, 1) for explainer in explainers]  # finds the layers

    def grad(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr(torch.autograd, 'grad', grad)
    for explainer, maps in zip(explainers, expected):
        assert explainer(model, inputs, 1).equal(maps)


@pytest.mark.parametrize(
    'name, layer',
    [('cnn', 'backbone.stem'), ('VisionTransformer', 'backbone.layers.1.ln1')],
)
@pytest.mark.parametrize('method', METHODS)
def test_formulas_on_gradients_of_plain_autograd(method, name, layer):
    model, inputs = MODELS[name]()
    kept = []
    handle = model.get_submodule(layer).register_forward_hook(
        lambda module, args, output: kept.append(output) or output.clone()
    )
    logits = model(inputs, mode='tensor')
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[0, 3] + logits[1, 1] + logits[2, 0], kept)
    parts = [kept[0].detach(), gradient]
    if name == 'VisionTransformer':
        # Behind the class token, row by row
        parts = [part[:, 1:].reshape(3, 3, 3, 16).permute(0, 3, 1, 2) for part in parts]
    close(method(layer)(model, inputs, [3, 1, 0]), method().combine(*parts))


@pytest.mark.parametrize('method', METHODS)
def test_classes_and_batches(method, case):
    model, inputs = case
    explainer = method()
    maps = explainer(model, inputs, 'all')
    for index in range(4):
        close(maps[:, index], explainer(model, inputs, index))
    close(explainer(model, inputs, [2, 0, 1]), maps[range(3), [2, 0, 1]])
    for i in range(3):
        close(maps[i : i + 1], explainer(model, inputs[i : i + 1], 'all'))
    different = (maps[:, 0] - maps[:, 1]).abs().amax() > 1e-6
    assert different == method.class_specific
    weights = torch.tensor([[0.7, 0.3, 0, 0], [0, -1, 0.5, 2], [1, 0, 0, 0]], dtype=torch.float64)
    soft = explainer(model, inputs, weights)
    close(soft[2], maps[2, 0])
    if method in LINEAR:
        close(soft, torch.einsum('nk,nkhw->nhw', weights, maps))


@pytest.mark.parametrize('method', METHODS)
def test_several_layers_are_one_by_one(method):
    model, inputs = cnn()
    names = ['backbone.stem', 'auto', 'backbone.stem.0']
    maps = method(names)(model, inputs, [1, 2, 3])
    assert [each.shape for each in maps] == [(3, 12, 12), (3, 6, 6), (3, 12, 12)]
    for name, each in zip(names, maps):
        close(each, method(name)(model, inputs, [1, 2, 3]))


# Maps that share a training step's forward


def test_a_forward_that_ran_already():
    model, inputs = cnn()
    features = model.extract_feat(inputs, stage='backbone')[-1]
    logits = model.head((model.neck(features),))
    for method in [*METHODS, CAM]:
        maps = method().from_forward(features, logits, [3, 0, 1])
        close(maps, method()(model, inputs, [3, 0, 1]))
        assert maps.requires_grad
    close(GradCAM().from_forward(features, logits), GradCAM()(model, inputs))


@pytest.mark.parametrize('method', [*METHODS, CAM])
def test_gradients_of_maps_are_right(method):
    """A two-layer head, so that the map depends on its weights in two ways."""
    first, second = random_maps(5, 4, seed=1), random_maps(3, 5, seed=2)

    def maps(activations, first, second):
        logits = (activations.mean((2, 3)) @ first.T).tanh() @ second.T
        return method().from_forward(activations, logits, [2, 0])

    parts = [random_maps(2, 4, 3, 3), first, second]
    if method is EigenCAM:
        maps, parts = method().combine, parts[:1]
    assert torch.autograd.gradcheck(maps, [part.requires_grad_() for part in parts])


def test_half_precision_is_computed_in_fp32():
    activations = random_maps(2, 4, 3, 3).half().requires_grad_()
    logits = activations.mean((2, 3))
    for method in [*METHODS, CAM]:
        maps = method().from_forward(activations, logits, 1)
        assert maps.dtype == torch.float32
        expected = activations.detach().double().requires_grad_()
        expected = method().from_forward(expected, expected.mean((2, 3)), 1)
        close(maps.double(), expected, rel=1e-2, abs=1e-3)


def test_forwards_of_which_there_is_no_map():
    activations = random_maps(2, 4, 3, 3)
    with pytest.raises(ValueError, match='GradCAM: the activations carry no gradient, so a loss'):
        GradCAM().from_forward(activations, activations.mean((2, 3)), 0)
    activations.requires_grad_()
    tokens = activations.flatten(2).mT
    with pytest.raises(ValueError, match='image is None; pass the image size: the grid of tokens'):
        GradCAM().from_forward(tokens, tokens.mean(1), 0)
    other = random_maps(2, 4).requires_grad_()
    with pytest.raises(ValueError, match='HiResCAM: the logits do not depend on the activations'):
        HiResCAM().from_forward(activations, other, 0)
