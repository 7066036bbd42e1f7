"""Class maps against a 1×1 convolution with global average pooling, and maps with exact values."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from mmkdx.functional import ClassMaps

RAMP = torch.arange(16.0, dtype=torch.float64).view(4, 4)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture
def teacher():
    """Maps of three classes over 4 × 4 positions."""
    weight = tensor([0.5, -0.25], [1, 0], [-0.1, 0.3])
    return ClassMaps(torch.stack([RAMP, RAMP.flip(0) - 4])[None], weight, tensor(0.7, -0.2, 0.1))


@pytest.fixture
def parts():
    """Features (2, 5, 7, 7), the weight and the bias of four classes."""
    torch.manual_seed(0)
    shapes = (2, 5, 7, 7), (4, 5), (4,)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def convolution(features, weight):
    return F.conv2d(features, weight[:, :, None, None])


def close(result, expected, tolerance=1e-12):
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)


def test_logits_of_the_toy_teacher(teacher):
    close(teacher.logits(bias=False), tensor([2.875, 7.5, 0.3]))
    close(teacher.logits(), tensor([3.575, 7.3, 0.4]))
    close(teacher.full().mean((2, 3)), tensor([2.875, 7.5, 0.3]))


def test_full_maps_of_the_toy_student():
    features = tensor([[[1, 2], [3, 4]], [[0, -1], [2, 1]]])
    maps = ClassMaps(features, tensor([1, 0.5], [0.2, -0.4], [-1, 1]))
    k0, k1, k2 = [[1, 1.5], [4, 4.5]], [[0.2, 0.8], [-0.2, 0.4]], [[-1, -3], [-1, -3]]
    close(maps.full(), tensor([k0, k1, k2]))
    close(maps.logits(), tensor([2.75, 0.3, -2]))


def test_pooled_maps_of_the_toy_teacher(teacher):
    k0 = [[-0.375, 0.125], [5.625, 6.125]]
    k1 = [[2.5, 4.5], [10.5, 12.5]]
    k2 = [[1.7, 2.1], [-1.5, -1.1]]
    close(teacher.pooled(2), tensor([k0, k1, k2]))


def test_full_maps_are_a_convolution(parts):
    features, weight, bias = parts
    close(ClassMaps(features, weight, bias).full(), convolution(features, weight))


@pytest.mark.parametrize('resolution', [1, 2, 3, 4, 7])
def test_pooling_commutes_with_the_projection(parts, resolution):
    features, weight, bias = parts
    expected = F.adaptive_avg_pool2d(convolution(features, weight), resolution)
    close(ClassMaps(features, weight, bias).pooled(resolution), expected)


def test_maps_of_chosen_classes(parts):
    features, weight, bias = parts
    index = torch.tensor([[3, 0, 3], [1, 2, 0]])
    full = convolution(features, weight)
    expected = torch.stack([full[0, [3, 0, 3]], full[1, [1, 2, 0]]])
    close(ClassMaps(features, weight, bias).classes(index), expected)
    close(ClassMaps(full).classes(index), expected)


def test_logits_are_those_of_the_classifier(parts):
    features, weight, bias = parts
    pooled = features.mean((2, 3))
    maps = ClassMaps(features, weight, bias)
    close(maps.logits(), F.linear(pooled, weight, bias))
    close(maps.logits(bias=False), F.linear(pooled, weight))
    close(ClassMaps(features, weight).logits(), F.linear(pooled, weight))


def test_plain_tensors_are_finished_maps(parts):
    features = parts[0]
    maps = ClassMaps.of(features)
    assert ClassMaps.of(maps) is maps
    assert maps.num_classes == 5
    close(maps.full(), features)
    close(maps.pooled(3), F.adaptive_avg_pool2d(features, 3))
    close(maps.logits(), features.mean((2, 3)))


@pytest.mark.parametrize('weight', [None, SimpleNamespace(shape=(9, 4))])
def test_shapes_are_known_without_computing(weight):
    # stands for tensors with which nothing can be computed
    maps = ClassMaps(SimpleNamespace(shape=(2, 4, 6, 5)), weight)
    assert maps.num_classes == (9 if weight else 4)
    assert maps.shape == (2, maps.num_classes, 6, 5)


@pytest.mark.parametrize(
    'read',
    [
        lambda maps: maps.full(),
        lambda maps: maps.pooled(2),
        lambda maps: maps.classes(torch.tensor([[1, 0], [3, 3]])),
        lambda maps: maps.logits(),
    ],
    ids=['full', 'pooled', 'classes', 'logits'],
)
def test_gradients_in_features_weight_and_bias(parts, read):
    features, weight, bias = parts
    parts = features[..., :3, :3].detach().requires_grad_(), weight, bias
    assert torch.autograd.gradcheck(lambda *parts: read(ClassMaps(*parts)), parts)


def test_gradient_of_the_weight_in_closed_form(parts):
    features, weight, bias = parts
    seen = torch.randn(2, 4, 7, 7, dtype=torch.float64)
    (ClassMaps(features, weight, bias).full() * seen).sum().backward()
    close(weight.grad, (seen[:, :, None] * features[:, None]).sum((0, 3, 4)))
    close(features.grad, (seen[:, :, None] * weight[None, :, :, None, None]).sum(1))
    assert bias.grad is None


@pytest.mark.parametrize('half', [False, True])
def test_autocast_changes_nothing(parts, half):
    features, weight, bias = (part.bfloat16() if half else part.float() for part in parts)
    index = torch.tensor([[1, 0], [3, 3]])

    def results(*parts):
        maps = ClassMaps(*parts)
        return [maps.full(), maps.pooled(2), maps.classes(index), maps.logits()]

    expected = results(features.float(), weight.float(), bias.float())
    with torch.autocast('cpu', torch.bfloat16):
        results = results(features, weight, bias)
    for result, value in zip(results, expected, strict=True):
        torch.testing.assert_close(result, value, rtol=0, atol=0)
        assert result.dtype == torch.float32


@pytest.mark.parametrize(
    'resolution, expected',
    [
        (2, [12, 15, 33, 36]),
        (4, [4, 5.5, 7.5, 9, 14.5, 16, 18, 19.5, 28.5, 30, 32, 33.5, 39, 40.5, 42.5, 44]),
    ],
)
def test_windows_of_an_odd_size(resolution, expected):
    ramp = torch.arange(49, dtype=torch.float64).view(1, 1, 7, 7)
    close(ClassMaps(ramp).pooled(resolution).flatten(), tensor(*expected))


@pytest.mark.parametrize('resolution, expected', [(1, 1 / 49), (2, 1 / 16), (4, 1 / 36)])
def test_overlapping_windows_count_the_centre_more_than_once(resolution, expected):
    delta = torch.zeros(1, 1, 7, 7, dtype=torch.float64)
    delta[..., 3, 3] = 1
    assert ClassMaps(delta).pooled(resolution).mean().item() == pytest.approx(expected, rel=1e-12)


def test_maps_are_made_once_where_they_are_kept(parts, monkeypatch):
    maps = ClassMaps(*parts, keep=True)
    assert maps.full() is maps.full() and maps.pooled(2) is maps.pooled(2)
    assert torch.equal(maps.logits(bias=False), maps.pooled(1).flatten(1))
    assert torch.equal(maps.full(), ClassMaps(*parts).full())
    monkeypatch.setattr(torch, 'einsum', None)
    maps.full(), maps.pooled(2), maps.pooled(1), maps.logits()
    with pytest.raises(TypeError):
        maps.pooled(3)
    monkeypatch.undo()
    fresh = ClassMaps(*parts)
    assert fresh.full() is not fresh.full()


def test_maps_made_without_a_graph_are_not_those_with_one():
    features = torch.ones(1, 2, 2, 2, requires_grad=True)
    maps = ClassMaps(features, torch.ones(3, 2), keep=True)
    with torch.no_grad():
        assert not maps.full().requires_grad
    assert maps.full().requires_grad
    with torch.no_grad():
        assert not maps.full().requires_grad
