"""Maps of pixels: linear and cubic scores by hand, and the sums that must come out."""

import pytest
import torch
import torch.nn.functional as F
from families import cnn, family, images
from torch import nn

from mmkdx.explain import FullGrad, InputGradient, IntegratedGradients, SmoothGrad
from mmkdx.explain.targets import Scores

EXPLAINERS = [
    InputGradient(),
    InputGradient(multiply=True),
    IntegratedGradients(steps=4),
    SmoothGrad(samples=3),
    FullGrad(),
]


def name_of(explainer):
    return type(explainer).__name__ + str(getattr(explainer, 'multiply', ''))


def close(result, expected, rel=1e-9, abs=1e-12):
    torch.testing.assert_close(result, expected, rtol=rel, atol=abs)


class Power(nn.Module):
    """Scores of two classes: the weighted sums of powers of all pixels."""

    def __init__(self, weight, power=1):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight).double())
        self.power = power

    def forward(self, images):
        return torch.einsum('kchw,nchw->nk', self.weight, images**self.power)


# Two classes of 3 channels x 1 x 2 pixels
WEIGHT = [[[[1.0, -2]], [[0, 3]], [[-4, 1]]], [[[0, 0]], [[5, 0]], [[1, -1]]]]
PIXELS = torch.tensor([[[[1.0, 2]], [[3, -1]], [[0.5, 4]]]]).double()


@pytest.mark.parametrize(
    'explainer, expected',
    [
        (InputGradient(), [[[4.0, 3]], [[5, 1]]]),
        (InputGradient(multiply=True), [[[-1.0, -3]], [[15.5, -4]]]),
        (IntegratedGradients(steps=1), [[[-1.0, -3]], [[15.5, -4]]]),
        # (1 - 1) · 1 + 0 + (0.5 - 1) · -4, …
        (IntegratedGradients(steps=3, baseline=1.0), [[[2.0, -5]], [[9.5, -3]]]),
        (SmoothGrad(samples=3), [[[4.0, 3]], [[5, 1]]]),
    ],
    ids=lambda value: name_of(value) if not isinstance(value, list) else '',
)
def test_a_linear_score_by_hand(explainer, expected):
    close(explainer(Power(WEIGHT), PIXELS, 'all'), torch.tensor([expected]).double())


@pytest.mark.parametrize('baseline', [0.0, -0.5])
def test_two_points_integrate_a_cubic_score(baseline):
    model = Power(WEIGHT, 3)
    expected = torch.einsum('kchw,nchw->nkhw', model.weight, PIXELS**3 - baseline**3).detach()
    close(IntegratedGradients(2, baseline)(model, PIXELS, 'all'), expected)
    far = (IntegratedGradients(1, baseline)(model, PIXELS, 'all') - expected).abs().amax()
    assert far > 1


@pytest.mark.parametrize('baseline, steps, rel', [(0.0, 50, 1e-6), (0.7, 50, 1e-6), (0.0, 6, 1e-2)])
def test_integrated_gradients_sum_up_to_the_change_of_score(baseline, steps, rel):
    model, inputs = family('VisionTransformer').double(), images(48).double()
    maps = IntegratedGradients(steps, baseline)(model, inputs, 'all')
    with torch.no_grad():
        start, end = (
            model(each, mode='tensor') for each in (torch.full_like(inputs, baseline), inputs)
        )
    close(maps.sum((2, 3)), end - start, rel=rel, abs=rel)


@pytest.mark.parametrize('name', ['cnn', 'VisionTransformer'])
def test_gradients_are_those_of_plain_autograd(name):
    model, inputs = cnn() if name == 'cnn' else (family(name).double(), images(48, 3).double())
    inputs = inputs.requires_grad_()
    logits = model(inputs, mode='tensor')
    (gradient,) = torch.autograd.grad(logits[0, 3] + logits[1, 1] + logits[2, 0], inputs)
    close(InputGradient()(model, inputs, [3, 1, 0]), gradient.abs().amax(1))
    product = (gradient * inputs).sum(1).detach()
    close(InputGradient(multiply=True)(model, inputs, [3, 1, 0]), product)


def test_smooth_grad_sample_by_sample():
    model, inputs = cnn()
    inputs = inputs * torch.tensor([1.0, 10, 0.1]).double()[:, None, None, None]
    generator = torch.Generator().manual_seed(7)
    total = 0
    for _ in range(4):
        noise = torch.randn(inputs.shape[1:], generator=generator, dtype=torch.float64)
        spans = torch.stack([each.max() - each.min() for each in inputs])[:, None, None, None]
        noisy = (inputs + 0.2 * spans * noise).requires_grad_()
        total = total + torch.autograd.grad(model(noisy, mode='tensor')[:, 2].sum(), noisy)[0]
    maps = SmoothGrad(samples=4, noise=0.2, seed=7)(model, inputs, 2)
    close(maps, (total / 4).abs().amax(1))


def test_smooth_grad_without_noise_is_the_gradient():
    model, inputs = cnn()
    close(SmoothGrad(3, noise=0.0)(model, inputs, 1), InputGradient()(model, inputs, 1))


def test_noise_is_the_same_each_time_and_leaves_the_random_state():
    model, inputs = cnn()
    explainer = SmoothGrad(3)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, second = explainer(model, inputs, 1), explainer(model, inputs, 1)
    assert first.equal(second) and torch.get_rng_state().equal(state)
    assert not SmoothGrad(3, seed=1)(model, inputs, 1).equal(first)


# Full-gradients


def full_terms(model, inputs, target):
    weights = F.one_hot(torch.full((len(inputs),), target), 4).double()
    pixels, layers = FullGrad().bias_gradients(Scores(model), inputs, weights)
    return [pixels.detach(), *(layer.detach() for layer in layers)]


class Plain(nn.Sequential):
    """Convolutions with biases, of which one is called twice, and a hidden layer in the head."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(
            nn.ReLU(inplace=True),
            nn.Conv2d(3, 5, 3, 2, 1),
            nn.ReLU(inplace=True),
            conv := nn.Conv2d(5, 5, 3, 1, 1),
            nn.BatchNorm2d(5, affine=False),
            conv,
            nn.Flatten(),
            nn.Linear(180, 8),
            nn.ReLU(),
            nn.Linear(8, 4),
        )
        self[4].running_mean.normal_()
        self.eval().double()


@pytest.mark.parametrize('name, count', [('cnn', 4), ('ResNet', 20), ('plain', 4)])
@pytest.mark.parametrize('target', [0, 3])
def test_all_terms_sum_up_to_the_score(name, count, target):
    if name == 'ResNet':
        model, inputs = family(name).double(), images(64).double()
        biases = model.head.fc.bias[target]
    else:
        model, inputs = cnn()
        biases = model.head.fc.bias[target]
    if name == 'plain':
        model = Plain()
        hidden, last = model[7], model[9]
        on = nn.Sequential(*list(model)[:8])(inputs.clone()) > 0
        biases = last.bias[target] + (on * hidden.bias) @ last.weight[target]
    terms = full_terms(model, inputs, target)
    # A term for each convolution with bias and each batch norm, besides that of the pixels
    assert len(terms) == 1 + count
    with torch.no_grad():
        score = (model(inputs.clone()) if name == 'plain' else model(inputs, mode='tensor'))[
            :, target
        ]
        close(sum(term.sum((1, 2, 3)) for term in terms) + biases, score)


def test_full_grad_is_the_sum_of_visible_terms():
    model, inputs = cnn()
    expected = 0
    for term in full_terms(model, inputs, 1):
        for i, image in enumerate(term.abs()):
            image = (image - image.min()) / (image.max() - image.min())
            term[i] = image
        resized = [
            F.interpolate(term[:, c : c + 1], (12, 12), mode='bilinear', align_corners=False)
            for c in range(term.shape[1])
        ]
        expected = expected + sum(resized)[:, 0]
    close(FullGrad()(model, inputs, 1), expected)


def test_terms_of_equal_magnitude_add_nothing():
    # The one bias has a gradient of 1/9 at each of its positions, and so has each of the pixels
    model = nn.Sequential(nn.Conv2d(3, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    nn.init.constant_(model[0].weight, 1)
    ones = torch.ones(2, 3, 3, 3).double()
    close(FullGrad()(model, ones, 0), torch.zeros(2, 3, 3).double())


# Any explainer of pixels


@pytest.fixture(scope='module')
def case():
    return cnn()


@pytest.mark.parametrize('explainer', EXPLAINERS, ids=name_of)
def test_classes_and_batches(explainer, case):
    model, inputs = case
    maps = explainer(model, inputs, 'all')
    assert maps.shape == (3, 4, 12, 12)
    assert (maps[:, 0] - maps[:, 1]).abs().amax() > 1e-6
    close(explainer(model, inputs, [2, 0, 1]), maps[range(3), [2, 0, 1]])
    for i in range(3):
        close(explainer(model, inputs[i : i + 1], 'all'), maps[i : i + 1])
    with torch.no_grad():
        predicted = model(inputs, mode='tensor').argmax(1)
    close(explainer(model, inputs), maps[range(3), predicted])


@pytest.mark.parametrize('explainer', EXPLAINERS[1:3], ids=name_of)
def test_soft_labels_are_weighted_sums(explainer, case):
    model, inputs = case
    weights = torch.tensor([[0.7, 0.3, 0, 0], [0, -1, 0.5, 2], [1, 0, 0, 0]]).double()
    maps = explainer(model, inputs, 'all')
    close(explainer(model, inputs, weights), torch.einsum('nk,nkhw->nhw', weights, maps))


@pytest.mark.parametrize('explainer', EXPLAINERS, ids=name_of)
def test_a_model_may_overwrite_its_input(explainer):
    model, inputs = Plain(), images(12, 3).double()
    kept = inputs.clone()
    maps = explainer(model, inputs, 1)
    assert inputs.equal(kept) and maps.any()
    model[0].inplace = False
    close(explainer(model, inputs, 1), maps)


class Smooth(nn.Module):
    """A network whose gradients have gradients themselves."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, 4, 3, 2, 1), nn.Linear(4, 2)
        self.double()

    def forward(self, images):
        return self.fc(self.conv(images).tanh().mean((2, 3)))


@pytest.mark.parametrize(
    'explainer',
    [
        InputGradient(differentiable=True),
        InputGradient(multiply=True, differentiable=True),
        IntegratedGradients(steps=3, differentiable=True),
        SmoothGrad(samples=2, differentiable=True),
        FullGrad(differentiable=True),
    ],
    ids=name_of,
)
def test_gradients_of_maps_are_right(explainer):
    model, inputs = Smooth(), images(6).double()
    weights = torch.rand(2, 6, 6).double()
    # The last bias moves no map
    parameters = [*model.conv.parameters(), model.fc.weight]
    gradients = torch.autograd.grad((explainer(model, inputs, 1) * weights).sum(), parameters)
    for parameter, gradient in zip(parameters, gradients):
        values, step = [], torch.randn_like(parameter)
        for share in (1e-6, -2e-6):
            parameter.data += share * step
            values.append((explainer(model, inputs, 1) * weights).sum().item())
        parameter.data += 1e-6 * step
        slope = (gradient * step).sum().item()
        assert slope == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5, abs=1e-8)
