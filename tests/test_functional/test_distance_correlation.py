"""Distance correlations by hand, by other packages, and their gradient by autograd."""

import math

import pytest
import torch
import torch.nn.functional as F
from tiny import import_numba_user
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmkdx.functional import distance_correlation
from mmkdx.functional import distances as distances_module
from mmkdx.functional.distance_correlation import (
    bias_corrected_dcor,
    biased_correlation,
    class_prototypes,
    dcor_standard_error,
    pair_correlations,
    part_dcor,
    partial_dcor,
    remove,
    residual_share,
    u_center,
    u_inner,
)
from mmkdx.functional.distances import distance_gradient, pairwise_distances


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def one_hot(labels):
    return F.one_hot(torch.tensor(labels))


def random(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def naive_distances(x):
    """Distances by the (n, n, d) tensor, with a subgradient of 0 at 0."""
    squares = (x.flatten(1)[:, None] - x.flatten(1)).square().sum(-1)
    apart = squares > 0
    return torch.where(apart, squares.where(apart, 1).sqrt(), 0)


def centred(x):
    return u_center(pairwise_distances(x))


def biased_dcor(x, y):
    return biased_correlation(pairwise_distances(x), pairwise_distances(y))


def close(value, expected, tol=1e-9):
    assert value.dtype == torch.float64 and value.shape == ()
    assert value.item() == pytest.approx(expected, abs=tol)


# Five numbers each

X, Y, Z = (double(each) for each in ([0, 1, 3, 6, 10], [1, 0, 4, 2, 8], [0, 2, 1, 5, 3]))

# Six samples in two and three dimensions, of three classes

PLANE = double([[0, 0], [1, 0], [0, 2], [3, 1], [4, 4], [5, 2]])
SPACE = double([[0, 1, 0], [1, 1, 0], [0, 2, 2], [2, 0, 1], [3, 3, 1], [1, 4, 2]])
CLASSES = one_hot([0, 0, 1, 1, 2, 2])

# Activations of a student, with two channels of 2 x 2 positions, and of a base

STUDENT = double(
    [
        [[[1, 0], [0, 0]], [[0, 0], [0, 2]]],
        [[[2, 0], [1, 0]], [[0, 1], [0, 0]]],
        [[[0, 3], [0, 1]], [[1, 0], [2, 0]]],
        [[[0, 1], [0, 2]], [[3, 0], [0, 1]]],
        [[[1, 1], [4, 0]], [[0, 0], [1, 1]]],
    ]
)
BASE = double([[1, 0, 0], [1, 1, 0], [0, 2, 1], [0, 1, 3], [2, 0, 2]])
LABELS = one_hot([0, 0, 1, 1, 2])


@pytest.mark.parametrize(
    ('x', 'upper'),
    [
        (X, [-36, -4, 20, 20, -4, 20, 20, 4, 4, -44]),
        (Y, [-20, 12, -4, 12, 12, -4, 12, 4, -28, 4]),
        (Z, [0, -16, 8, 8, 0, 0, 0, 8, 8, -16]),
    ],
)
def test_centred_distances_of_five_numbers(x, upper):
    matrix = 12 * centred(x)
    rows, columns = torch.triu_indices(5, 5, 1)
    assert matrix[rows, columns].tolist() == pytest.approx(upper, abs=1e-9)
    assert torch.equal(matrix, matrix.T) and not matrix.diagonal().any()


@pytest.mark.parametrize(
    ('a', 'b', 'expected'),
    [
        *[(X, X, 34 / 5), (Y, Y, 38 / 15), (Z, Z, 16 / 15)],
        *[(X, Y, 14 / 15), (X, Z, 8 / 5), (Y, Z, -8 / 15)],
    ],
)
def test_inner_products_of_five_numbers(a, b, expected):
    close(u_inner(centred(a), centred(b)), expected)


def test_what_is_removed_from_five_numbers():
    rest, given = remove(centred(X), centred(Z)), centred(Z)
    rows, columns = torch.triu_indices(5, 5, 1)
    thirds = [-9, 5, 2, 2, -1, 5, 5, -2, -2, -5]
    assert (3 * rest[rows, columns]).tolist() == pytest.approx(thirds, abs=1e-9)
    close(u_inner(rest, given), 0)


@pytest.mark.parametrize(
    ('function', 'features', 'expected'),
    [
        (bias_corrected_dcor, (X, Y), 0.2248723981711),
        (bias_corrected_dcor, (X, Z), 0.5940885257860),
        (bias_corrected_dcor, (Y, Z), -0.3244428422615),
        (biased_dcor, (X, Y), 0.7531298227880),
        (partial_dcor, (X, Y, Z), 0.5488604301970),
        (part_dcor, (X, Y, Z), 0.5191699914901),
        (part_dcor, (Z, Y, X), -0.5694146490031),
        (bias_corrected_dcor, (PLANE, SPACE), 0.5595132444762),
        (bias_corrected_dcor, (PLANE, CLASSES), 0.5355395416564),
        (bias_corrected_dcor, (SPACE, CLASSES), 0.5022623209242),
        (part_dcor, (PLANE, CLASSES, SPACE), 0.3070831881328),
        (part_dcor, (SPACE, CLASSES, PLANE), 0.2444686539751),
        (partial_dcor, (PLANE, CLASSES, SPACE), 0.3551263472374),
        (partial_dcor, (SPACE, CLASSES, PLANE), 0.2894798278034),
        (biased_dcor, (PLANE, SPACE), 0.8293196758729),
        (biased_dcor, (PLANE, CLASSES), 0.7314211159988),
        (bias_corrected_dcor, (STUDENT, BASE), 0.3578837311170),
        (bias_corrected_dcor, (STUDENT, LABELS), 0.8293682735889),
        (bias_corrected_dcor, (BASE, LABELS), 0.7383857156060),
        (part_dcor, (STUDENT, LABELS, BASE), 0.6051965310136),
        (part_dcor, (BASE, LABELS, STUDENT), 0.4728895990986),
        (partial_dcor, (STUDENT, LABELS, BASE), 0.8974135673397),
        (biased_dcor, (STUDENT, BASE), 0.9037559508719),
        (bias_corrected_dcor, (STUDENT.mean((2, 3)), BASE), None),
    ],
)
def test_correlations_by_hand(function, features, expected):
    if expected is not None:
        # Labels stay integers
        close(function(*features), expected)
    single = [each.float() for each in features]
    # Dyadic features less their mean are not; 1e-6 is fp32's rounding of a distance
    assert function(*single).item() == pytest.approx(function(*features).item(), abs=2e-6)


@pytest.mark.parametrize('embedding', [torch.eye(2), random(2, 768), random(2, 768, seed=1) * 40])
def test_two_classes_need_no_embedding(embedding):
    x, labels = double([0, 1, 2, 10, 11, 12]), torch.tensor([0, 0, 0, 1, 1, 1])
    close(bias_corrected_dcor(x, embedding.double()[labels]), 0.9926846128176)
    close(biased_dcor(x, embedding.double()[labels]), 0.9860214439999)


@pytest.mark.parametrize(
    ('embedding', 'expected'),
    [
        ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], 0.8164965809277),
        ([[0, 0], [3, 0], [0, 4]], 0.7446524944739),
    ],
)
def test_three_classes_depend_on_their_embedding(embedding, expected):
    x, labels = double([0, 1, 5, 6, 9, 11]), torch.tensor([0, 0, 1, 1, 2, 2])
    close(bias_corrected_dcor(x, double(embedding)[labels]), expected)


# Algebra


def hollow(n, seed=0):
    return random(n, n, seed=seed).fill_diagonal_(0)


def symmetric(n, seed=0):
    return hollow(n, seed) + hollow(n, seed).T


def test_centring_is_a_projection():
    a, b = symmetric(7), symmetric(7, 1)
    u = u_center(a)
    assert u.sum(0).abs().max() < 1e-13 and u.sum(1).abs().max() < 1e-13
    assert (u_center(u) - u).abs().max() < 1e-13
    assert u_inner(u, b).item() == pytest.approx(u_inner(a, u_center(b)).item(), abs=1e-13)
    assert (u_center(2 * a + b) - 2 * u - u_center(b)).abs().max() < 1e-13


@pytest.mark.parametrize('n', [5, 6, 7, 8])
def test_the_image_and_the_kernel_of_centring(n):
    matrices = []
    for i in range(n):
        for j in range(i):
            matrix = torch.zeros(n, n, dtype=torch.float64)
            matrix[i, j] = matrix[j, i] = 1
            matrices.append(u_center(matrix).flatten())
    assert torch.linalg.matrix_rank(torch.stack(matrices)) == n * (n - 3) // 2
    u = random(n)
    assert not u_center((u[:, None] + u).fill_diagonal_(0)).any()


def test_the_inner_product_leaves_out_the_diagonal():
    a, b = random(6, 6), random(6, 6, seed=1)
    expected = sum(a[i, j] * b[i, j] for i in range(6) for j in range(6) if i != j) / 18
    close(u_inner(a, b), expected.item(), 1e-14)


def test_correlations_see_neither_motion_nor_scale():
    x, y = random(9, 4), random(9, 3, seed=1) + random(9, 1)
    expected = bias_corrected_dcor(x, y)
    rotation = torch.linalg.qr(random(4, 4, seed=2))[0]
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    for other, same in (
        *((x + random(4, seed=3), y), (x @ rotation, y), (3 * x, y / 7)),
        *((x[order], y[order]), (y, x), (1e-9 * x, 1e12 * y)),
    ):
        close(bias_corrected_dcor(other, same), expected.item(), 1e-12)
    assert (bias_corrected_dcor(x[order], y) - expected).abs() > 1e-3
    close(bias_corrected_dcor(x, x), 1, 1e-14)
    for seed in range(20):
        assert -1 <= bias_corrected_dcor(random(5, 1, seed=seed), random(5, 1, seed=seed + 50)) <= 1


def test_identities():
    x, y, z = random(8, 3), random(8, 2, seed=1), random(8, 5, seed=2)
    y = y + x[:, :2] / 2 + z[:, :2]
    xy, xz, yz = (bias_corrected_dcor(*pair) for pair in ((x, y), (x, z), (y, z)))
    part = (xy - xz * yz) / (1 - xz**2).sqrt()
    close(part_dcor(x, y, z), part.item(), 1e-12)
    close(partial_dcor(x, y, z), (part / (1 - yz**2).sqrt()).item(), 1e-12)
    close(residual_share(centred(x), centred(z)), (1 - xz**2).item(), 1e-12)


# What is undefined


@pytest.mark.parametrize('n', [0, 1, 3, 4])
def test_few_samples(n):
    sentence = f'{n} samples are too few for a distance correlation: it takes at least 5, as with 4'
    x, y = torch.zeros(n, 2), torch.zeros(n, 3)
    for call in (
        *(lambda: u_center(torch.zeros(n, n)), lambda: bias_corrected_dcor(x, y)),
        *(lambda: part_dcor(x, y, y), lambda: partial_dcor(x, y, y)),
        lambda: dcor_standard_error(n),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()


def test_why_four_samples_are_too_few(monkeypatch):
    monkeypatch.setattr(distance_correlation, '_check_number', lambda n: n)
    for seed in range(5):
        x, y, z = (random(4, 3, seed=3 * seed + k) for k in range(3))
        assert abs(partial_dcor(x, y, z).item()) == pytest.approx(1, abs=1e-9)


def test_other_samples():
    with pytest.raises(ValueError, match='not of the same samples: x has 6, y has 7'):
        bias_corrected_dcor(random(6, 2), random(7, 2))


@pytest.mark.parametrize(
    ('function', 'last'), [(part_dcor, 'given'), (partial_dcor, 'z')], ids=['part', 'partial']
)
def test_other_samples_of_three(function, last):
    with pytest.raises(ValueError, match=f'same samples: x has 6, y has 6, {last} has 5'):
        function(random(6, 2), random(6, 2), random(5, 2))


@pytest.mark.parametrize(
    'labels', [[0] * 5, [0, 1, 2, 3, 4], [0, 0, 0, 0, 1], [3] * 40, [*range(40)], [0] * 39 + [1]]
)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.float16, torch.int64])
def test_degenerate_labels(labels, dtype):
    x, y = random(len(labels), 8), random(len(labels), 3, seed=1)
    labels = F.one_hot(torch.tensor(labels), 41).to(dtype)
    assert not centred(labels).any()
    assert bias_corrected_dcor(x, labels).isnan()
    assert part_dcor(x, labels, y).isnan() and part_dcor(labels, x, y).isnan()
    assert residual_share(centred(labels), centred(x)).isnan()
    # To remove nothing is to keep everything
    assert torch.equal(remove(centred(x), centred(labels)), centred(x))
    close(part_dcor(x, y, labels), bias_corrected_dcor(x, y).item())


@pytest.mark.parametrize(
    ('labels', 'expected'), [([0, 0, 0, 0, 1, 2], 2 / 15), ([0, 0, 0, 0, 1, 1], 8 / 15)]
)
def test_labels_that_are_just_enough(labels, expected):
    close(u_inner(*2 * [centred(one_hot(labels))]), expected)


@pytest.mark.parametrize('noise', [0, 1e-7])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_nothing_is_left_of_the_same_features(noise, dtype):
    x, labels = random(16, 200), one_hot([0, 1] * 8)
    other = x * (1 + noise * random(16, 200, seed=1))
    p, given = centred(x.to(dtype)), centred(other.to(dtype))
    assert abs(residual_share(p, given)) < 1e-9
    assert not remove(p, given).any()
    assert part_dcor(x.to(dtype), labels, other.to(dtype)).isnan()
    assert partial_dcor(labels, x.to(dtype), other.to(dtype)).isnan()


def test_a_small_residual_remains():
    x = random(16, 200)
    p, given = centred(x), centred(x * (1 + 0.01 * random(16, 200, seed=1)))
    share = residual_share(p, given).item()
    assert 1e-6 < share < 1e-3
    assert u_inner(*2 * [remove(p, given)]).item() == pytest.approx(
        share * u_inner(p, p).item(), rel=1e-9
    )


def test_the_cut_of_residuals():
    given = centred(random(8, 3))
    other = remove(centred(random(8, 3, seed=1)), given)
    other, unit = (each / u_inner(each, each).sqrt() for each in (other, given))
    for size, left in ((0.99e-3, False), (1.01e-3, True)):
        p = unit + size * other
        assert remove(p, given).any() == left
        close(residual_share(p, given), size**2 / (1 + size**2), 1e-12)


@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_features_that_are_no_numbers(value):
    x, y = random(6, 3), random(6, 2, seed=1)
    bad = x.clone()
    bad[2, 1] = value
    for function in (bias_corrected_dcor, biased_dcor):
        assert function(bad, y).isnan() and function(y, bad).isnan()
    for function in (part_dcor, partial_dcor):
        assert all(function(*each).isnan() for each in ((bad, y, x), (y, bad, x), (y, x, bad)))
    bad.requires_grad_()
    bias_corrected_dcor(bad, y).backward()
    assert bad.grad.isnan().all() and pairwise_distances(bad).isnan().all()


def test_correlations_of_a_pair():
    student, base, labels = (centred(each) for each in (STUDENT, BASE, LABELS))
    found = pair_correlations(student, base, labels)
    expected = dict(
        similarity=0.3578837311170,
        rho=1 - 0.3578837311170**2,
        relevance=0.8293682735889,
        part=0.6051965310136,
        partial=0.8974135673397,
        base_relevance=0.7383857156060,
        base_part=0.4728895990986,
        base_partial=partial_dcor(BASE, LABELS, STUDENT).item(),
    )
    assert {key: value.item() for key, value in found.items()} == pytest.approx(expected, abs=1e-9)
    assert set(pair_correlations(student, base)) == {'similarity', 'rho'}


# Estimators


def test_the_biased_estimate_saturates():
    unbiased, biased = [], []
    for seed in range(200):
        x, y = (random(32, 1024, seed=2 * seed + k, dtype=torch.float32) for k in (0, 1))
        unbiased.append(bias_corrected_dcor(x, y).item())
        if seed < 20:
            biased.append(biased_dcor(x, y).item())
    unbiased = double(unbiased)
    assert abs(unbiased.mean()) < 0.02 and 0.035 < unbiased.std() < 0.058
    assert unbiased.std().item() == pytest.approx(dcor_standard_error(32), rel=0.15)
    assert sum(biased) / len(biased) > 0.98


@pytest.mark.parametrize(
    ('n', 'expected'), [(5, 0.447), (8, 0.224), (16, 0.098), (32, 0.046), (128, 0.0112)]
)
def test_standard_errors(n, expected):
    assert dcor_standard_error(n) == pytest.approx(expected, rel=0.012)


# Distances and their gradient


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few columns."""
    monkeypatch.setattr(distances_module, '_BLOCK', 40)


@pytest.mark.parametrize('shape', [(9,), (9, 1), (9, 2), (9, 4, 3, 3), (12, 70)])
@pytest.mark.parametrize('blocks', [2**21, 40, 1])
def test_distances(shape, blocks, monkeypatch):
    monkeypatch.setattr(distances_module, '_BLOCK', blocks)
    x = random(*shape) + 5
    x[3] = x[0]
    distances = pairwise_distances(x)
    assert (distances - naive_distances(x.reshape(len(x), -1))).abs().max() < 1e-12
    assert torch.equal(distances, distances.T) and not distances.diagonal().any()
    assert distances[0, 3] == 0 and (distances == 0).sum() == len(x) + 2


@pytest.mark.parametrize(
    'change',
    [
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
        lambda x: x.repeat(1, 1, 1, 2)[..., ::2],
        lambda x: x.flatten(1).T.contiguous().T,
        lambda x: x[:, :, :1].expand(-1, -1, 5, -1),
    ],
    ids=['channels_last', 'sliced', 'strided', 'transposed', 'expanded'],
)
def test_layouts(change, small_blocks):
    x = change(random(7, 3, 4, 2)).detach()
    weights = hollow(7)
    leaf, other = x.requires_grad_(), x.detach().contiguous().requires_grad_()
    (weights * pairwise_distances(leaf)).sum().backward()
    (weights * naive_distances(other)).sum().backward()
    assert (pairwise_distances(leaf) - naive_distances(other)).abs().max() < 1e-12
    assert leaf.grad.shape == x.shape and (leaf.grad - other.grad).abs().max() < 1e-12


class Sizes(TorchDispatchMode):
    """The numbers of elements of all that is made, without views of what there is."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = {
            each.untyped_storage().data_ptr()
            for each in tree_leaves(args)
            if isinstance(each, torch.Tensor)
        }
        if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in given:
            self.made.append(out.numel())
        return out


@pytest.mark.parametrize('dtype', [torch.float16, torch.float32])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_memory(dtype, layout, monkeypatch):
    monkeypatch.setattr(distances_module, '_BLOCK', 2000)
    x = random(10, 8, 25, 25).to(dtype).contiguous(memory_format=layout).requires_grad_()
    with torch.no_grad():
        # Many that are close, and two that are equal
        x[2:] = x[2] * torch.linspace(1, 1.005, 8)[:, None, None, None].to(dtype)
        x[9] = x[2]
    with Sizes() as forward:
        distances = pairwise_distances(x)
    assert max(forward.made) == 2000 and distances[2, 9] == 0
    with Sizes() as backward:
        gradient = torch.autograd.grad(distances, x, torch.ones_like(distances))[0]
    large = [size for size in backward.made if size > 2000]
    assert large == [50000] and gradient.dtype == dtype


@pytest.mark.parametrize('blocks', [2**21, 50])
def test_gradient_is_that_of_autograd(blocks, monkeypatch):
    monkeypatch.setattr(distances_module, '_BLOCK', blocks)
    x, base, labels = random(9, 4, 3, 3), random(9, 20, seed=1), one_hot([0, 1, 2] * 3)
    for function in (bias_corrected_dcor, part_dcor, partial_dcor, biased_dcor):
        given = () if function in (bias_corrected_dcor, biased_dcor) else (base,)
        gradients = []
        for distances in (pairwise_distances, naive_distances):
            monkeypatch.setattr(distance_correlation, 'pairwise_distances', distances)
            leaves = [each.clone().requires_grad_() for each in (x, *given)]
            function(leaves[0], labels.double(), *leaves[1:]).backward()
            gradients.append([leaf.grad for leaf in leaves])
        for ours, naive in zip(*gradients):
            assert naive.abs().max() > 1e-3 and (ours - naive).abs().max() < 1e-12
            assert ours.sum(0).abs().max() < 1e-14
        # Scores do not depend on the scale
        assert abs((gradients[0][0] * x).sum()) < 1e-14


def test_gradient_by_finite_differences():
    x = random(6, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: part_dcor(x, CLASSES, SPACE), x, atol=1e-6)


def test_gradient_of_the_hand_made_student():
    x = STUDENT.clone().requires_grad_()
    part_dcor(x, LABELS, BASE).backward()
    assert x.grad[2, 1, 1, 0].item() == pytest.approx(0.0210672933, abs=1e-9)
    expected = [
        *[[0.00386927, -0.01526221], [-0.03302477, 0.00653629], [0.01345164, 0.00369480]],
        *[[0.00707776, -0.00377312], [0.00862610, 0.00880424]],
    ]
    assert (x.grad.mean((2, 3)) - double(expected)).abs().max() < 1e-8


def test_gradient_of_features_that_are_averaged():
    x, weights = random(8, 3, 5, 5), random(8, 8, seed=1)
    distances = pairwise_distances(x)
    full = distance_gradient(weights, distances, x.flatten(1)).view_as(x)
    pooled = distance_gradient(weights, distances, x.mean((2, 3)))
    assert pooled.shape == (8, 3) and (full.mean((2, 3)) - pooled).abs().max() < 1e-12
    i, j = 2, torch.arange(8) != 2
    factors = ((weights + weights.T)[i] / distances[i])[j]
    by_hand = (factors[:, None] * (x[i] - x[j]).flatten(1)).sum(0)
    assert (full[i].flatten() - by_hand).abs().max() < 1e-12


@pytest.mark.parametrize(
    ('dtype', 'out'),
    [
        *[(torch.float16, torch.float32), (torch.bfloat16, torch.float32)],
        *[(torch.float32, torch.float32), (torch.float64, torch.float64)],
    ],
)
def test_types_of_gradients(dtype, out):
    x = random(6, 4).to(dtype)
    distances = pairwise_distances(x)
    assert distances.dtype == torch.float64
    gradient = distance_gradient(hollow(6), distances, x)
    exact = distance_gradient(hollow(6), distances, x.double())
    assert gradient.dtype == out and (gradient - exact).abs().max() < 1e-5


def test_no_second_derivative():
    x = PLANE.clone().requires_grad_()
    gradient = torch.autograd.grad(bias_corrected_dcor(x, SPACE), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match='once_differentiable'):
        gradient.sum().backward()


def test_no_graph_without_need():
    assert not bias_corrected_dcor(PLANE, SPACE).requires_grad
    x = PLANE.clone().requires_grad_()
    with torch.no_grad():
        assert not pairwise_distances(x).requires_grad


# Rounding


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize('autocast', [None, torch.bfloat16, torch.float16])
def test_duplicates(dtype, autocast, small_blocks):
    x = (20 + random(8, 3, 5, 5)).to(dtype)
    x[5] = x[1]
    x[7] = x[1]
    x.requires_grad_()
    with torch.autocast('cpu', autocast or torch.bfloat16, enabled=autocast is not None):
        distances = pairwise_distances(x)
        score = part_dcor(x, one_hot([0, 0, 1, 1, 2, 0, 1, 2]), random(8, 5, seed=1))
    exact = naive_distances(x.detach().double())
    assert (distances - exact).abs().max() < 1e-5 * exact.max()
    assert torch.equal(distances == 0, exact == 0) and (exact == 0).sum() == 8 + 6
    score.backward()
    assert x.grad.isfinite().all() and x.grad.any()
    precise = x.detach().double().requires_grad_()
    part_dcor(precise, one_hot([0, 0, 1, 1, 2, 0, 1, 2]), random(8, 5, seed=1)).backward()
    bound = {torch.float16: 1e-3, torch.bfloat16: 1e-2}.get(dtype, 1e-5)
    assert (x.grad - precise.grad).abs().max() < bound * precise.grad.abs().max()


def test_large_and_half():
    x = (300 * random(8, 100)).half()  # squares are beyond fp16
    exact = naive_distances(x.double())
    assert (pairwise_distances(x) - exact).abs().max() < 1e-5 * exact.max()


def test_all_samples_are_equal(small_blocks):
    x = random(1, 30).float().expand(9, -1).clone() / 3
    assert not pairwise_distances(x).any()
    assert bias_corrected_dcor(x, random(9, 2)).isnan()


@pytest.mark.parametrize('gap', [1e-1, 1e-3, 1e-6])
def test_samples_that_are_close(gap, small_blocks):
    x = random(8, 60, dtype=torch.float32)
    x[4] = x[1] * (1 + gap)
    x[6] = x[1] * (1 - gap)
    distances, exact = pairwise_distances(x), naive_distances(x.double())
    relative = ((distances - exact) / exact).nan_to_num().abs()
    assert relative.max() < 1e-3 and relative[1, 4] < 1e-3 and exact[1, 4] > 0
    if gap < 1e-1:  # directly
        assert relative[[1, 1, 4], [4, 6, 6]].max() < 1e-6
    weights = hollow(8)
    leaf = x.double().requires_grad_()
    (weights * naive_distances(leaf)).sum().backward()
    gradient = distance_gradient(weights, distances, x)
    assert (gradient - leaf.grad).abs().max() < 1e-5 * leaf.grad.abs().max()


def test_squares_do_not_vanish():
    x = random(8, 60, dtype=torch.float32)
    x[4] = x[1]
    x[:, 0], x[4, 0] = 1e-30, 3e-30
    assert pairwise_distances(x)[1, 4].item() == pytest.approx(2e-30, rel=1e-6, abs=0)


@pytest.mark.parametrize('offset', [0, 5, 50])
def test_a_common_offset(offset):
    shift = offset * torch.rand(2048, generator=torch.Generator().manual_seed(3))
    shared = random(16, 2048, seed=9)
    x, y = (
        (shift + 0.01 * (shared + random(16, 2048, seed=k))).float().requires_grad_()
        for k in (0, 1)
    )
    score = bias_corrected_dcor(x, y)
    exact_x, exact_y = (each.detach().double().requires_grad_() for each in (x, y))
    exact = bias_corrected_dcor(exact_x, exact_y)
    assert score.item() == pytest.approx(exact.item(), abs=1e-4)
    (ours,) = torch.autograd.grad(score, x)
    (reference,) = torch.autograd.grad(exact, exact_x)
    assert (ours - reference).abs().max() < 1e-4 * reference.abs().max()


def test_blocks_make_no_difference(monkeypatch):
    x, y = random(12, 300), random(12, 7, seed=1)
    x[3] = x[8]
    x[5] = x[8] * (1 + 1e-5)
    found = []
    for block in (2**21, 12 * 300, 12 * 299, 100, 12, 1):
        monkeypatch.setattr(distances_module, '_BLOCK', block)
        leaf = x.clone().requires_grad_()
        score = bias_corrected_dcor(leaf, y)
        score.backward()
        found.append((score.item(), leaf.grad))
    for score, gradient in found[1:]:
        assert score == pytest.approx(found[0][0], abs=1e-12)
        assert (gradient - found[0][1]).abs().max() < 1e-12


class Precisions(TorchDispatchMode):
    """The precision of each matrix product."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.mm.default:
            self.found.append(precision())
        return function(*args, **(kwargs or {}))


def precision():
    """What all switches of the precision of products say."""
    try:
        old = torch.get_float32_matmul_precision()
    except RuntimeError:
        old = 'mixed'
    new = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    return old, *(getattr(each, 'fp32_precision', None) for each in new)


@pytest.fixture
def switches():
    """Sets switches, for this test only."""

    def old(value):
        torch.set_float32_matmul_precision(value)

    def new(value):
        if not hasattr(torch.backends.cuda.matmul, 'fp32_precision'):
            pytest.skip('the switch is of torch 2.9')
        torch.backends.cuda.matmul.fp32_precision = value

    before = precision()
    yield dict(old=old, new=new)
    old(before[0])
    if before[1] is not None:
        torch.backends.cuda.matmul.fp32_precision = before[1]
        torch.backends.mkldnn.matmul.fp32_precision = before[2]
    assert precision() == before


@pytest.mark.parametrize(
    ('switch', 'value'), [('old', 'highest'), ('old', 'high'), ('old', 'medium'), ('new', 'tf32')]
)
def test_products_are_not_rounded_for_speed(switch, value, switches):
    switches[switch](value)
    before = precision()
    x = random(8, 20, dtype=torch.float32).requires_grad_()
    with Precisions() as products:
        bias_corrected_dcor(x, x.detach() ** 2).backward()
    assert len(products.found) == 3
    for found in products.found:
        assert not {'high', 'medium', 'tf32', 'bf16'} & set(found)
    assert precision() == before


@pytest.mark.parametrize('switch', ['old', 'new'])
def test_switches_are_put_back_after_an_error(switch, switches, monkeypatch):
    switches[switch]('high' if switch == 'old' else 'tf32')
    before = precision()
    monkeypatch.setattr(distances_module, '_blocks', lambda features: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pairwise_distances(random(8, 20))
    assert precision() == before


@pytest.mark.gpu
@pytest.mark.parametrize('allowed', ['highest', 'high'])
def test_the_gpu_agrees(allowed, switches):
    switches['old'](allowed)
    x, y = (3 + random(64, 2048, seed=k) + random(64, 2048, seed=2) for k in (0, 1))
    x[7] = x[9]
    labels = one_hot([0, 1, 2, 3] * 16)
    for function in (bias_corrected_dcor, part_dcor, partial_dcor):
        features = (x, labels) if function is bias_corrected_dcor else (x, labels, y)
        exact = [each.double().requires_grad_() for each in features]
        gpu = [each.float().cuda().requires_grad_() for each in features]
        expected, found = function(*exact), function(*gpu)
        assert found.is_cuda and found.item() == pytest.approx(expected.item(), abs=1e-4)
        expected.backward()
        found.backward()
        reference = exact[0].grad
        assert (gpu[0].grad.cpu() - reference).abs().max() < 1e-3 * reference.abs().max()
        assert not torch.equal(gpu[0].grad[7], gpu[0].grad[8])
    assert pairwise_distances(x.float().cuda())[7, 9] == 0


# Prototypes of classes


def test_class_prototypes():
    features = torch.tensor([[3.0, 4], [0, 2], [5, 0], [0, 0.1]])
    prototypes = class_prototypes(features, torch.tensor([0, 2, 1, 0]), 3)
    first = torch.tensor([0.6, 1.8])  # the sum of (0.6, 0.8) and (0, 1)
    expected = torch.stack([first / first.norm(), torch.tensor([1.0, 0]), torch.tensor([0, 1.0])])
    assert (prototypes - expected).abs().max() < 1e-6 and prototypes.dtype == torch.float32


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int32, torch.int64])
def test_prototypes_of_half_precision(dtype):
    features, labels = random(40, 300), torch.arange(40) % 3
    full = class_prototypes(features, labels, 3)
    half = class_prototypes(features.half(), labels.to(dtype), 3)
    assert full.dtype == torch.float64 and half.dtype == torch.float32
    assert full.norm(dim=1).tolist() == pytest.approx([1, 1, 1])
    assert (half - full).abs().max() < 1e-3


@pytest.mark.parametrize(
    ('labels', 'classes', 'sentence'),
    [
        ([0, 3, 0, 1], 4, 'class 2 has no samples'),
        ([0, 1, 0, 1], 3, 'class 2 has no samples'),
        ([], 2, 'class 0 has no samples'),
        ([0, 1, 4, 1], 3, 'labels range from 0 to 4; 3 classes count from 0 to 2'),
        ([0, 1, -1, 1], 2, 'labels range from -1 to 1; 2 classes count from 0 to 1'),
    ],
)
def test_classes_without_samples(labels, classes, sentence):
    with pytest.raises(ValueError, match=sentence):
        class_prototypes(random(len(labels), 3), torch.tensor(labels).long(), classes)


# Other packages


def cases():
    generator = torch.Generator().manual_seed(0)
    for seed in range(50):
        n = int(torch.randint(6, 41, (), generator=generator))
        widths = torch.randint(1, 65, (3,), generator=generator).tolist()
        x, y, z = (random(n, d, seed=3 * seed + k) for k, d in enumerate(widths))
        # Half of them with something in common
        yield x, y + (seed % 2) * x[:, :1], z + (seed % 2) * x[:, :1] / 2


def test_dcor_agrees():
    dcor = import_numba_user('dcor')
    for x, y, z in cases():
        a, b, c = (each.numpy() for each in (x, y, z))
        close(bias_corrected_dcor(x, y), dcor.u_distance_correlation_sqr(a, b, method='naive'))
        close(partial_dcor(x, y, z), dcor.partial_distance_correlation(a, b, c))
        close(biased_dcor(x, y), dcor.distance_correlation_sqr(a, b, method='naive'))
        distances = pairwise_distances(x)
        assert abs(distances.numpy() - dcor.distances.pairwise_distances(a)).max() < 1e-9
        u = dcor.u_centered(distances.numpy())
        assert abs(u_center(distances).numpy() - u).max() < 1e-9
        close(u_inner(centred(x), centred(y)), dcor.u_product(u, centred(y).numpy()))
        rest = dcor.u_complementary_projection(centred(z).numpy())(u)
        assert abs(remove(centred(x), centred(z)).numpy() - rest).max() < 1e-9


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_hyppo_agrees():
    partial = import_numba_user('hyppo.conditional').PartialDcorr(use_cov=False)
    dcorr = import_numba_user('hyppo.independence').Dcorr(bias=False)
    for x, y, z in cases():
        a, b, c = (each.numpy() for each in (x, y, z))
        close(bias_corrected_dcor(x, y), dcorr.statistic(a, b))
        close(partial_dcor(x, y, z), partial.statistic(a, b, c))
