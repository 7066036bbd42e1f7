"""Targets made of explanations: hand-computed numbers, symmetries, and gradients as a reference."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmkdx.functional.self_explanation import (
    EXPLAINERS,
    class_similarity,
    gradient_norms,
    gradient_products,
    gradient_similarity,
    soft_targets,
    tau_for_mass,
)

FEATURES = torch.tensor([[[[1.0, 0.0], [0.0, 2.0]], [[0.0, 3.0], [1.0, 0.0]]]])
WEIGHT = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
ROOT = math.sqrt(1 / 3)  # 0.577350


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def case(
    count: int = 4, channels: int = 6, size: int = 3, classes: int = 5
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features, weights and labels."""
    labels = torch.arange(count) % classes
    return random(count, channels, size, size), random(classes, channels, seed=1), labels


# Similarities


@pytest.mark.parametrize(
    'explainer, center, label, expected',
    [
        ('cam', False, 0, (1, 0, ROOT)),
        ('cam', False, 1, (0, 1, 0.816497)),
        ('cam', True, 0, (1, -0.816497, -ROOT)),
        ('grad_act', False, 0, (1, 0, ROOT)),
        ('grad_act', True, 0, (1, -0.816497, -ROOT)),
        ('weight', False, 0, (1, 0, math.sqrt(0.5))),
        # The rows less their mean: (1, -2) / 3, (-2, 1) / 3 and (1, 1) / 3
        ('weight', True, 0, (1, -0.8, -math.sqrt(0.1))),
    ],
)
def test_similarities_of_the_toy(explainer, center, label, expected):
    labels = torch.tensor([label])
    closed = class_similarity(FEATURES, WEIGHT, labels, explainer, center)
    assert closed[0].tolist() == pytest.approx(expected, abs=1e-6)
    features = FEATURES.clone().requires_grad_()
    logits = features.mean((2, 3)) @ WEIGHT.T
    by_gradient = gradient_similarity(logits, features, labels, explainer, center)
    assert by_gradient[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert not by_gradient.requires_grad and features.grad is None


@pytest.mark.parametrize('chunk', [1, 2, 5, 16])
@pytest.mark.parametrize('center', [True, False])
@pytest.mark.parametrize('explainer', EXPLAINERS)
def test_gradients_agree_with_the_closed_forms(explainer, center, chunk):
    features, weight, labels = case()
    features.requires_grad_()
    logits = features.mean((2, 3)) @ weight.T
    found = gradient_similarity(logits, features, labels, explainer, center, chunk=chunk)
    closed = class_similarity(features, weight, labels, explainer, center)
    torch.testing.assert_close(found, closed.detach(), atol=1e-12, rtol=0)


@pytest.mark.parametrize('relu', [False, True])
def test_class_activation_maps_are_those_of_the_definition(relu):
    features, weight, labels = case()
    maps = torch.einsum('kc,nchw->nkhw', weight - weight.mean(0), features)
    maps = (maps.relu() if relu else maps).flatten(2)
    own = maps[torch.arange(len(labels)), labels][:, None]
    expected = F.cosine_similarity(maps, own, dim=2)
    expected = expected.scatter(1, labels[:, None], 1.0)
    closed = class_similarity(features, weight, labels, relu=relu)
    torch.testing.assert_close(closed, expected, atol=1e-12, rtol=0)
    features.requires_grad_()
    logits = features.mean((2, 3)) @ weight.T
    found = gradient_similarity(logits, features, labels, relu=relu)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_another_base_point_changes_only_what_is_not_centred():
    labels = torch.tensor([0])
    moved = WEIGHT + torch.tensor([5.0, -2.0])
    raw = class_similarity(FEATURES, moved, labels, center=False)
    assert raw[0].tolist() == pytest.approx((1, 0.986440, 0.978232), abs=1e-6)
    torch.testing.assert_close(
        class_similarity(FEATURES, moved, labels), class_similarity(FEATURES, WEIGHT, labels)
    )


def test_opposite_maps_and_zero_maps():
    weight = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, 0.0]])
    labels = torch.tensor([0])
    signed = class_similarity(FEATURES, weight, labels, center=False)
    assert signed[0].tolist() == pytest.approx((1, -1, ROOT), abs=1e-6)
    positive = class_similarity(FEATURES, weight, labels, center=False, relu=True)
    assert positive[0].tolist() == pytest.approx((1, 0, ROOT), abs=1e-6)
    for explainer in EXPLAINERS:
        features = torch.zeros(1, 2, 2, 2, requires_grad=True)
        weights = (weight if explainer != 'weight' else torch.zeros(3, 2)).clone().requires_grad_()
        found = class_similarity(features, weights, labels, explainer)
        assert found.tolist() == [[1, 0, 0]]
        found.sum().backward()
        assert all(each.grad is None or each.grad.isfinite().all() for each in (features, weights))


def test_tiny_explanations_still_have_a_direction():
    features, weight, labels = case()
    for explainer in EXPLAINERS:
        small = class_similarity(
            (1e-12 * features).float(), (1e-8 * weight).float(), labels, explainer
        )
        whole = class_similarity(features, weight, labels, explainer)
        # Squares of 1e-40 have few digits in fp32
        torch.testing.assert_close(
            small.double(), whole, atol=1e-2 if explainer != 'weight' else 1e-5, rtol=0
        )


def test_names_of_classes_and_lengths_do_not_count():
    features, weight, labels = case()
    order = torch.tensor([3, 0, 4, 1, 2])
    place = order.argsort()
    for explainer in EXPLAINERS:
        renamed = class_similarity(features, weight[order], place[labels], explainer)
        expected = class_similarity(features, weight, labels, explainer)[:, order]
        torch.testing.assert_close(renamed, expected, atol=1e-12, rtol=0)
        lengths = torch.tensor([1.0, 2.0, 0.5, 3.0, 10.0], dtype=torch.float64)[:, None]
        torch.testing.assert_close(
            class_similarity(features, weight * lengths, labels, explainer, center=False),
            class_similarity(features, weight, labels, explainer, center=False),
            atol=1e-12,
            rtol=0,
        )
    q = soft_targets(class_similarity(features, weight, labels), labels)
    again = soft_targets(class_similarity(features, weight[order], place[labels]), place[labels])
    torch.testing.assert_close(again, q[:, order], atol=1e-15, rtol=0)
    # Equal rows get equal targets
    weight[3] = weight[4]
    q = soft_targets(class_similarity(features, weight, labels), labels)
    torch.testing.assert_close(q[:3, 3], q[:3, 4], atol=1e-12, rtol=0)


def test_half_precision():
    features = random(32, 512, 4, 4, dtype=torch.float32).relu()
    weight = random(100, 512, seed=1, dtype=torch.float32)
    labels = torch.arange(32)
    for explainer in EXPLAINERS:
        whole = class_similarity(features, weight, labels, explainer)
        with torch.autocast('cpu', torch.bfloat16):
            half = class_similarity(features.bfloat16(), weight, labels, explainer)
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, whole, atol=5e-3, rtol=0)
        torch.testing.assert_close(
            soft_targets(half, labels).sum(1), torch.ones(32), atol=2e-7, rtol=0
        )


def test_other_heads_are_explained_by_their_gradients():
    torch.manual_seed(0)
    head = nn.Sequential(nn.Flatten(), nn.Linear(54, 16), nn.Tanh(), nn.Linear(16, 5)).double()
    features, _, labels = case()
    features.requires_grad_()
    found = gradient_similarity(head(features), features, labels, 'weight')
    for i, label in enumerate(labels.tolist()):
        jacobian = torch.autograd.functional.jacobian(
            lambda image: head(image[None])[0], features[i].detach()
        ).flatten(1)
        jacobian = jacobian - jacobian.mean(0)
        expected = F.cosine_similarity(jacobian, jacobian[label][None], dim=1)
        torch.testing.assert_close(found[i], expected, atol=1e-10, rtol=0)
    assert all(parameter.grad is None for parameter in head.parameters())


def test_classes_that_are_no_candidates_get_the_mean():
    features, weight, labels = case(classes=7)
    features.requires_grad_()
    logits = features.mean((2, 3)) @ weight.T
    whole = gradient_similarity(logits, features, labels)
    some = gradient_similarity(logits, features, labels, candidates=3, chunk=2)
    for i, label in enumerate(labels.tolist()):
        ranked = [k for k in logits[i].argsort(descending=True).tolist() if k != label]
        chosen, rest = ranked[:3], ranked[3:]
        torch.testing.assert_close(some[i, chosen], whole[i, chosen], atol=1e-12, rtol=0)
        mean = whole[i, chosen].mean().expand(len(rest))
        torch.testing.assert_close(some[i, rest], mean, atol=1e-12, rtol=0)
        assert some[i, label] == 1
    # More candidates than there are other classes are all
    torch.testing.assert_close(gradient_similarity(logits, features, labels, candidates=99), whole)


def test_no_more_than_a_chunk_of_gradients_is_held(monkeypatch):
    features, weight, labels = case(classes=50)
    features.requires_grad_()
    logits = features.mean((2, 3)) @ weight.T
    sizes, whole = [], torch.autograd.grad

    def grad(*args, **kwargs):
        result = whole(*args, **kwargs)
        sizes.append(result[0].numel() // features.numel())
        return result

    monkeypatch.setattr(torch.autograd, 'grad', grad)
    gradient_similarity(logits, features, labels, chunk=8)
    assert sizes == [1, 8, 8, 8, 8, 8, 8, 2]


def test_similarities_can_be_trained():
    features, weight, labels = case()
    features.requires_grad_(), weight.requires_grad_()
    logits = features.mean((2, 3)) @ weight.T
    inputs = features, weight
    for explainer in EXPLAINERS:
        closed = class_similarity(features, weight, labels, explainer)
        slow = gradient_similarity(logits, features, labels, explainer, create_graph=True)
        mix = random(*closed.shape, seed=2)
        found, expected = (
            torch.autograd.grad((each * mix).sum(), inputs, retain_graph=True, allow_unused=True)
            for each in (slow, closed)
        )
        for first, second in zip(found, expected):
            if second is None or first is None:
                assert explainer == 'weight'
                continue
            torch.testing.assert_close(first, second, atol=1e-10, rtol=0)


# One backward pass and one forward-mode derivative


def test_products_by_one_vjp_and_one_jvp():
    jacobian = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0], [2.0, 0.0, 1.0]])
    inputs, labels = torch.ones(1, 3), torch.tensor([0])
    products, own = gradient_products(lambda x: x @ jacobian.T, inputs, labels, center=False)
    assert products.tolist() == [[5, 2, 2]] and own.tolist() == [5]
    torch.manual_seed(0)
    norms = gradient_norms(lambda x: x @ jacobian.T, inputs, 20000, center=False).sqrt()
    assert norms[0].tolist() == pytest.approx((2.236068, 1.414214, 2.236068), rel=0.02)
    assert (products[0, 1] / (norms[0, 0] * norms[0, 1])).item() == pytest.approx(
        0.632456, rel=0.03
    )


@pytest.mark.parametrize('center', [True, False])
@pytest.mark.parametrize('multiply', [True, False])
def test_products_are_those_of_the_jacobian(multiply, center):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 6)
    )
    net.double().eval()
    images, labels = random(3, 3, 6, 6), torch.tensor([4, 0, 4])
    products, own = gradient_products(net, images, labels, multiply, center)
    for i, label in enumerate(labels.tolist()):
        rows = torch.autograd.functional.jacobian(lambda x: net(x[None])[0], images[i])
        rows = (rows - rows.mean(0) if center else rows) * (images[i] if multiply else 1)
        rows = rows.flatten(1)
        torch.testing.assert_close(products[i], rows @ rows[label], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(own[i], rows[label].square().sum(), rtol=1e-9, atol=1e-12)


# Targets

SIMILARITY = torch.tensor([[1.0, 0.0, 0.577350]])
FIRST = torch.tensor([0])


@pytest.mark.parametrize(
    'settings, expected',
    [
        (dict(mode='softmax', tau=1), (0.494270, 0.181832, 0.323899)),
        (dict(mode='softmax', tau=0.5), (0.639074, 0.086489, 0.274437)),
        (dict(mode='softmax', tau=0.1), (0.985563, 0.000045, 0.014393)),
        (dict(tau=1), (0.9, 0.035954, 0.064046)),
        (dict(tau=0.1), (0.9, 0.000310, 0.099690)),
        (dict(eps=0), (1, 0, 0)),
        (dict(eps=1, tau=1), (0, 0.359543, 0.640457)),
    ],
)
def test_targets_of_the_toy(settings, expected):
    q = soft_targets(SIMILARITY, FIRST, **settings)
    assert q[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_without_similarity_it_is_label_smoothing():
    similarity, labels = random(6, 4).softmax(1), torch.arange(6) % 4
    q = soft_targets(similarity, labels, eps=0.075, tau=1e9)
    logits = random(6, 4, seed=3)
    smoothed = F.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(F.cross_entropy(logits, q), smoothed, atol=1e-9, rtol=0)
    assert q[0].tolist() == pytest.approx((0.925, 0.025, 0.025, 0.025))


@pytest.mark.parametrize(
    'classes, mean, expected',
    [(10, 0, 0.227560), (100, 0, 0.147225), (100, 0.5, 0.073612), (1000, 0, 0.109842)],
)
def test_the_temperature_for_a_mass(classes, mean, expected):
    tau = tau_for_mass(classes, 0.1, mean)
    assert tau == pytest.approx(expected, abs=1e-6)
    similarity = torch.full((1, classes), float(mean), dtype=torch.float64)
    similarity[0, 0] = 1
    q = soft_targets(similarity, FIRST, 'softmax', tau=tau)
    assert q[0, 0].item() == pytest.approx(0.9, abs=1e-9)


@pytest.mark.parametrize('mode', ['mass', 'softmax'])
def test_a_permutation_keeps_everything_but_whose_similarity_it_is(mode):
    labels = torch.arange(64) % 10
    similarity = random(1, 10).expand(64, -1).clone().scatter(1, labels[:, None], 1.0)
    q = soft_targets(similarity, labels, mode)
    torch.manual_seed(0)
    permuted = soft_targets(similarity, labels, mode, permute=True)
    torch.testing.assert_close(permuted.sort(1).values, q.sort(1).values)
    torch.testing.assert_close(permuted.gather(1, labels[:, None]), q.gather(1, labels[:, None]))
    torch.testing.assert_close(permuted.sum(1), torch.ones(64, dtype=torch.float64))
    # Drawn for each sample by itself, every place is as likely as another, and by torch's seed
    assert len({tuple(row) for row in permuted[labels == 0].tolist()}) > 5
    torch.manual_seed(0)
    assert torch.equal(soft_targets(similarity, labels, mode, permute=True), permuted)
    many = similarity[:1].expand(20000, -1)
    drawn = soft_targets(many, torch.zeros(20000, dtype=torch.long), mode, permute=True)
    shares = drawn.argsort(1)[:, 0].bincount()
    assert shares[0] == 0
    assert shares[1:].float() / 20000 == pytest.approx(torch.full((9,), 1 / 9).numpy(), abs=0.01)


# Bad input


def test_bad_arguments():
    with pytest.raises(ValueError, match="explainer is 'lime'; it must be one of weight, cam"):
        class_similarity(FEATURES, WEIGHT, FIRST, 'lime')
    with pytest.raises(ValueError, match="relu is for the explainer 'cam', and it is 'weight'"):
        class_similarity(FEATURES, WEIGHT, FIRST, 'weight', relu=True)
    with pytest.raises(ValueError, match="mode is 'hard'; it must be one of mass, softmax"):
        soft_targets(SIMILARITY, FIRST, 'hard')
    with pytest.raises(ValueError, match='eps is 1.5; it must be a finite number '):
        soft_targets(SIMILARITY, FIRST, eps=1.5)
    with pytest.raises(ValueError, match='tau is 0; it must be a finite number above 0'):
        soft_targets(SIMILARITY, FIRST, tau=0)
