"""Losses between relations against loops, by hand, and what must hold for any features."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmkdx.distillation.terms import build_term
from mmkdx.functional import ClassMaps
from mmkdx.losses import NSTLoss, PKTLoss, RKDLoss, SPLoss, relation
from mmkdx.losses.relation import angle_cosines, unit_vectors

SAMPLES = [SPLoss(), PKTLoss(), RKDLoss(), RKDLoss(1, 0), RKDLoss(0, 1)]
HALVES = [torch.float16, torch.bfloat16]


def features(seed, *shape, dtype=torch.float64, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def rotation(size, seed=7):
    return torch.linalg.qr(features(seed, size, size))[0]


def name(loss):
    weights = f'{loss.distance:g}-{loss.angle:g}' if isinstance(loss, RKDLoss) else ''
    return type(loss).__name__ + weights


# References, element by element


def similarities(student, teacher):
    rows = []
    for side in (student, teacher):
        n = len(side)
        gram = [[sum(a * b for a, b in zip(side[i], side[j])) for j in range(n)] for i in range(n)]
        rows.append([[g / math.sqrt(sum(h * h for h in row)) for g in row] for row in gram])
    pairs = zip(itertools.chain(*rows[0]), itertools.chain(*rows[1]))
    return sum((s - t) ** 2 for s, t in pairs) / len(student) ** 2


def neighbours(student, teacher):
    total, n = 0.0, len(student)
    for i in range(n):
        p, q = [], []
        for side, out in ((teacher, p), (student, q)):
            for j in range(n):
                cosine = side[i] @ side[j] / np.linalg.norm(side[i]) / np.linalg.norm(side[j])
                out.append((cosine + 1) / 2 + 1e-7)
        p, q = np.array(p) / sum(p), np.array(q) / sum(q)
        total += sum(p * np.log(p / q))
    return total / n


def smooth(x, y):
    d = abs(x - y)
    return d * d / 2 if d < 1 else d - 0.5


def normalised_distances(side):
    n = len(side)
    d = {(i, j): np.linalg.norm(side[i] - side[j]) for i in range(n) for j in range(n)}
    mean = np.mean([value for value in d.values() if value > 0])
    return {pair: value / mean for pair, value in d.items()}


def cosine_at(side, i, j, k):
    a, b = side[i] - side[j], side[k] - side[j]
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return a @ b / norms if norms else 0.0


def distances_and_angles(student, teacher, distance=1, angle=2):
    n = range(len(student))
    pairs, triples = list(itertools.product(n, n)), list(itertools.product(n, n, n))
    s, t = normalised_distances(student), normalised_distances(teacher)
    loss = distance * np.mean([smooth(s[pair], t[pair]) for pair in pairs])
    cosines = [(cosine_at(student, *each), cosine_at(teacher, *each)) for each in triples]
    return loss + angle * np.mean([smooth(*pair) for pair in cosines])


def discrepancy(student, teacher):
    """The mean over samples of the squared discrepancy, kernel by kernel."""

    def kernel(a, b):
        return np.mean([[(x @ y) ** 2 for y in b] for x in a])

    total = 0.0
    for s, t in zip(student, teacher):
        s, t = ([m.ravel() / np.linalg.norm(m) for m in side] for side in (s, t))
        total += kernel(s, s) + kernel(t, t) - 2 * kernel(s, t)
    return total / len(student)


REFERENCES = [
    (SPLoss(), similarities),
    (PKTLoss(), neighbours),
    (RKDLoss(), distances_and_angles),
    (RKDLoss(3, 0), lambda s, t: distances_and_angles(s, t, 3, 0)),
    (RKDLoss(0, 5), lambda s, t: distances_and_angles(s, t, 0, 5)),
]


# By hand


def test_similarities_by_hand():
    # orthogonal samples against equal ones: the identity, and rows of (1, 1) / √2
    loss = SPLoss()(tensor([2, 0], [0, 3]), tensor([5], [5]))
    expected = (2 * (1 - 0.5**0.5) ** 2 + 2 * 0.5) / 4
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_neighbours_by_hand():
    # orthogonal samples, affinities 1 and 1/2, against parallel ones, 1 and 1
    loss = PKTLoss()(tensor([2, 0], [0, 3]), tensor([1], [5]))
    expected = 0.5 * np.log(0.5 / (2 / 3)) + 0.5 * np.log(0.5 / (1 / 3))
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_distances_and_angles_by_hand():
    # three samples on a line, distances (1, 2, 3) / 2, against a triangle of equal sides
    line, triangle = tensor([0], [2], [6]), tensor([0, 0], [1, 0], [0.5, 0.75**0.5])
    distance = 2 * (0.125 + 0 + 0.125) / 9
    # cosines 1, -1 and 1 against 1/2
    angle = 2 * (0.125 + 1 + 0.125) / 27
    for weights in ((1, 2), (1, 0), (0, 1), (25, 50)):
        loss = RKDLoss(*weights)
        expected = weights[0] * distance + weights[1] * angle
        assert loss(line, triangle).item() == pytest.approx(expected, rel=1e-12)
        logs = {key: value.item() for key, value in loss.logs.items()}
        parts = dict(distance=distance, angle=angle) if weights[1] else dict(distance=distance)
        assert logs == pytest.approx(parts, rel=1e-12)
    assert RKDLoss()(line, triangle) == RKDLoss(1, 2)(line, triangle)


def test_selectivity_by_hand():
    # two channels at two places, against one channel at the first of them
    student = tensor([[2, 0], [0, -3]]).view(1, 2, 1, 2)
    teacher = tensor([[5, 0]]).view(1, 1, 1, 2)
    # kernels: half of the student's pairs, the teacher's own, half of the pairs of both
    assert NSTLoss()(student, teacher).item() == pytest.approx(0.5 + 1 - 2 * 0.5, rel=1e-12)


# Any features


@pytest.mark.parametrize('loss, expected', REFERENCES, ids=lambda each: name(each))
@pytest.mark.parametrize('student, teacher', [((7, 4), (7, 9)), ((2, 3), (2, 3)), ((5, 8), (5, 2))])
def test_samples(loss, expected, student, teacher):
    student, teacher = features(1, *student), features(2, *teacher)
    value = expected(student.numpy(), teacher.numpy())
    assert loss(student, teacher).item() == pytest.approx(value, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize('loss', SAMPLES, ids=name)
def test_any_shapes_are_flattened(loss):
    student, teacher = features(1, 5, 3, 2, 2), features(2, 5, 4, 6)
    expected = loss(student.reshape(5, 12), teacher.reshape(5, 24))
    assert loss(student, teacher) == expected


@pytest.mark.parametrize('sizes', [(3, 2), (2, 5), (9, 3)], ids=str)
@pytest.mark.parametrize('channels', [(4, 6), (6, 4), (5, 5), (1, 7), (30, 2), (2, 2)], ids=str)
def test_selectivity(sizes, channels):
    # both ways to sum: more places than channels, and fewer
    student, teacher = (features(i, 3, c, *sizes) for i, c in enumerate(channels))
    expected = discrepancy(student.numpy(), teacher.numpy())
    assert NSTLoss()(student, teacher).item() == pytest.approx(expected, rel=1e-10)


def test_selectivity_resizes_the_student():
    student, teacher = features(1, 3, 5, 8, 8), features(2, 3, 4, 4, 2)
    pooled = student.view(3, 5, 4, 2, 2, 4).mean((3, 5))
    expected = discrepancy(pooled.numpy(), teacher.numpy())
    assert NSTLoss()(student, teacher).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize('loss', SAMPLES, ids=name)
def test_equal_relations(loss):
    student = features(1, 6, 5).requires_grad_()
    for teacher in (student.detach().clone(), student.detach() @ rotation(5)):
        value = loss(student, teacher)
        assert value.item() == pytest.approx(0, abs=1e-14)
        gradient = torch.autograd.grad(value, student)[0]
        torch.testing.assert_close(gradient, torch.zeros_like(student), rtol=0, atol=1e-14)


@pytest.mark.parametrize('size', [2, 5])
def test_equal_selectivity(size):
    student = features(1, 3, 6, size, size).requires_grad_()
    value = NSTLoss()(student, student.detach().clone())
    assert value.item() == pytest.approx(0, abs=1e-15)
    gradient = torch.autograd.grad(value, student)[0]
    torch.testing.assert_close(gradient, torch.zeros_like(student), rtol=0, atol=1e-15)
    # twice the channels have the same distribution
    twice = student.detach().repeat(1, 2, 1, 1)
    assert NSTLoss()(student, twice).item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize('loss', SAMPLES, ids=name)
def test_gradient(loss):
    student, teacher = features(1, 5, 3).requires_grad_(), features(2, 5, 4)
    assert torch.autograd.gradcheck(lambda each: loss(each, teacher), student)


@pytest.mark.parametrize('size', [(2, 2), (4, 3)])
def test_selectivity_gradient(size):
    student, teacher = features(1, 2, 4, *size).requires_grad_(), features(2, 2, 3, *size)
    assert torch.autograd.gradcheck(lambda maps: NSTLoss()(maps, teacher), student)


# What relations do not depend on


@pytest.mark.parametrize('loss', SAMPLES, ids=name)
@pytest.mark.parametrize(
    'change',
    [lambda each: each @ rotation(each.shape[1]), lambda each: each * 37.5, lambda each: -each],
    ids=['rotation', 'scale', 'sign'],
)
def test_features_of_other_coordinates(loss, change):
    student, teacher = features(1, 6, 5), features(2, 6, 7)
    expected = loss(student, teacher).item()
    assert loss(change(student), teacher).item() == pytest.approx(expected, rel=1e-10)
    assert loss(student, change(teacher)).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize('loss', SAMPLES, ids=name)
def test_samples_in_another_order(loss):
    student, teacher, order = features(1, 6, 5), features(2, 6, 7), [3, 1, 5, 0, 2, 4]
    expected = loss(student, teacher).item()
    assert loss(student[order], teacher[order]).item() == pytest.approx(expected, rel=1e-10)
    assert loss(student[order], teacher).item() != pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize(
    'loss, change',
    [
        (PKTLoss(), lambda each: each * torch.arange(1.0, 7)[:, None]),
        (RKDLoss(), lambda each: each + 100),
        (RKDLoss(), lambda each: each * 1e-3),
        (SPLoss(), lambda each: each * 1e-3),
    ],
    ids=['one scale a sample', 'shift', 'distances', 'similarities'],
)
def test_features_on_another_scale(loss, change):
    student, teacher = features(1, 6, 5), features(2, 6, 7)
    expected = loss(student, teacher).item()
    assert loss(change(student), teacher).item() == pytest.approx(expected, rel=1e-8)
    assert loss(student, change(teacher)).item() == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize('size', [2, 5])
def test_selectivity_knows_no_channel_by_its_place_scale_or_sign(size):
    student, teacher = features(1, 3, 6, size, size), features(2, 3, 4, size, size)
    expected = NSTLoss()(student, teacher).item()
    for changed in (student[:, [3, 1, 5, 0, 2, 4]], student * features(3, 3, 6, 1, 1), -student):
        assert NSTLoss()(changed, teacher).item() == pytest.approx(expected, rel=1e-10)
    assert NSTLoss()(student.flip(3), teacher.flip(3)).item() == pytest.approx(expected, rel=1e-10)
    assert NSTLoss()(student.flip(3), teacher).item() != pytest.approx(expected, rel=1e-2)


def test_selectivity_is_the_mean_over_samples():
    student, teacher = features(1, 4, 6, 3, 3), features(2, 4, 5, 3, 3)
    parts = [NSTLoss()(student[i : i + 1], teacher[i : i + 1]).item() for i in range(4)]
    assert NSTLoss()(student, teacher).item() == pytest.approx(np.mean(parts), rel=1e-12)


# Edges


@pytest.mark.parametrize('loss', SAMPLES, ids=name)
def test_one_sample_has_no_relation(loss):
    student = features(1, 1, 3, 2, 2).requires_grad_()
    for teacher in (features(2, 1, 7), torch.zeros(1, 7)):
        value = loss(student, teacher)
        assert value.item() == 0
        assert torch.autograd.grad(value, student)[0].count_nonzero() == 0


@pytest.mark.parametrize('loss', SAMPLES, ids=name)
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, *HALVES])
@pytest.mark.parametrize('which', ['student', 'teacher', 'both'])
@pytest.mark.parametrize('kind', ['zero', 'all zero', 'equal', 'all equal', 'opposite'])
def test_degenerate_samples_are_finite(loss, dtype, which, kind):
    student, teacher = features(1, 5, 4, dtype=dtype), features(2, 5, 6, dtype=dtype)
    for owner, side in (('student', student), ('teacher', teacher)):
        if which in (owner, 'both'):
            some = side if kind.startswith('all') else side[1:3]
            some[:] = dict(zero=0, equal=side[0], opposite=-side[3])[kind.split()[-1]]
    student.requires_grad_()
    value = loss(student, teacher)
    gradient = torch.autograd.grad(value, student)[0]
    assert value.isfinite() and gradient.isfinite().all()
    # what has no direction is not pushed by rounding
    assert gradient.abs().max() < 10
    if kind == 'all zero' and which != 'teacher':
        assert gradient.count_nonzero() == 0


def test_opposite_samples_are_finite_in_spite_of_rounding():
    # in fp32 some of these cosines are below -1 by more than what is added to affinities
    student = features(1, 512, 33, dtype=torch.float32, scale=3)
    student = torch.cat([student, -student]).requires_grad_()
    loss = PKTLoss()(student, features(2, 1024, 7, dtype=torch.float32))
    assert loss.isfinite()
    gradient = torch.autograd.grad(loss, student)[0]
    assert gradient.isfinite().all() and gradient.abs().max() < 10


@pytest.mark.parametrize('weights', [(1, 2), (1, 0), (0, 1)])
def test_coinciding_samples(weights):
    # angles and distances of duplicates, against the direct form
    student, teacher = features(1, 6, 4), features(2, 6, 5)
    student[4], teacher[2], student[5] = student[1], teacher[0], student[1]
    expected = distances_and_angles(student.numpy(), teacher.numpy(), *weights)
    assert RKDLoss(*weights)(student, teacher).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize('offset', [0, 1e3])
@pytest.mark.parametrize('gap', [1, 1e-2])
def test_close_samples_in_fp32(gap, offset):
    # pairs a hundredth of the spread apart, and far off zero: products of features would be rounding
    student, teacher = (
        torch.cat([each, each + gap * features(9, 14, 16)]).float() + offset
        for each in (features(1, 14, 16), features(2, 14, 16))
    )
    expected = distances_and_angles(student.double().numpy(), teacher.double().numpy())
    assert RKDLoss()(student, teacher).item() == pytest.approx(expected, rel=1e-4)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        exact = student.to(dtype).requires_grad_()
        loss = RKDLoss()(exact, teacher.to(dtype))
        gradients.append(torch.autograd.grad(loss, exact)[0].double())
    error = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    assert error < 1e-3


@pytest.mark.parametrize('size', [2, 5])
@pytest.mark.parametrize('dtype', [torch.float32, *HALVES])
def test_dead_channels_are_finite(size, dtype):
    student, teacher = (features(i, 3, 6, size, size, dtype=dtype) for i in (1, 2))
    student[:, 2], student[1], teacher[:, 4], teacher[2] = 0, 0, 0, 0
    student.requires_grad_()
    value = NSTLoss()(student, teacher)
    gradient = torch.autograd.grad(value, student)[0]
    assert value.isfinite() and gradient.isfinite().all()
    assert gradient[1].count_nonzero() == 0 and gradient[:, 2].count_nonzero() == 0
    assert gradient[0, 0].count_nonzero()


def test_unit_vectors_of_next_to_nothing():
    vectors = tensor([3, 4], [0, 0], [1e-13, 0], [3e-6, 4e-6]).requires_grad_()
    units = unit_vectors(vectors)
    torch.testing.assert_close(units, tensor([0.6, 0.8], [0, 0], [0, 0], [0.6, 0.8]))
    gradient = torch.autograd.grad(units.sum(), vectors)[0]
    assert gradient[1:3].count_nonzero() == 0 and gradient[[0, 3]].count_nonzero() == 4


def test_angles_of_a_triangle():
    # sides 3, 4 and 5: a right angle between the first two, cosines 3/5 and 4/5
    distances = tensor([0, 3, 4], [3, 0, 5], [4, 5, 0])
    cosines = angle_cosines(distances, slice(0, 3))
    expected = tensor(
        [[0, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[1, 0, 0.6], [0, 0, 0], [0.6, 0, 1]],
        [[1, 0.8, 0], [0.8, 1, 0], [0, 0, 0]],
    )
    torch.testing.assert_close(cosines, expected, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(angle_cosines(distances, slice(1, 2)), cosines[1:2])


# Precision


@pytest.mark.parametrize('loss', SAMPLES, ids=name)
@pytest.mark.parametrize('dtype', HALVES)
@pytest.mark.parametrize('scale', [1, 1e4, 1e-3])
@pytest.mark.parametrize('autocast', [False, True])
def test_half_precision_is_computed_in_fp32(loss, dtype, scale, autocast):
    student, teacher = (features(i, 6, 8, dtype=dtype, scale=scale) for i in (1, 2))
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        value = loss(student, teacher)
    assert value.dtype == torch.float32
    expected = loss(student.double(), teacher.double()).item()
    assert value.item() == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize('size', [2, 5])
@pytest.mark.parametrize('dtype', HALVES)
@pytest.mark.parametrize('scale', [1, 1e4, 1e-3])
@pytest.mark.parametrize('autocast', [False, True])
def test_selectivity_is_computed_in_fp32(size, dtype, scale, autocast):
    student, teacher = (features(i, 3, 6, size, size, dtype=dtype, scale=scale) for i in (1, 2))
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        value = NSTLoss()(student, teacher)
    assert value.dtype == torch.float32
    expected = NSTLoss()(student.double(), teacher.double()).item()
    assert value.item() == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize('loss', [*SAMPLES, NSTLoss()], ids=name)
def test_nan_is_not_hidden(loss):
    student, teacher = features(1, 5, 4, 3, 3), features(2, 5, 6, 3, 3)
    student[2, 1, 0, 0] = torch.nan
    assert loss(student, teacher).isnan()


# Memory


class LargestTensor(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(each, torch.Tensor) and each.untyped_storage():
                self.elements = max(
                    self.elements, each.untyped_storage().nbytes() // each.element_size()
                )
        return result


def largest(loss, student, teacher):
    student.requires_grad_()
    with LargestTensor() as mode:
        torch.autograd.grad(loss(student, teacher), student)
    return mode.elements


@pytest.mark.parametrize('loss', SAMPLES, ids=name)
def test_no_tensor_of_pairs_by_features(loss):
    n, d = 12, 700
    student, teacher = features(1, n, d), features(2, n, d)
    assert largest(loss, student, teacher) == n * d  # 8,400; angles are 12³ = 1,728


def test_angles_are_computed_in_blocks(monkeypatch):
    student, teacher = features(1, 12, 4), features(2, 12, 4)
    loss = RKDLoss(0, 1)
    student.requires_grad_()
    expected = loss(student, teacher)
    gradient = torch.autograd.grad(expected, student)[0]
    for limit, rows in ((500, 3), (720, 5), (1, 1), (12**3, 12)):
        monkeypatch.setattr(relation, 'ANGLES_AT_ONCE', limit)
        assert largest(loss, student.detach().clone(), teacher) == rows * 12**2
        value = loss(student, teacher)
        assert value.item() == pytest.approx(expected.item(), rel=1e-12)
        torch.testing.assert_close(torch.autograd.grad(value, student)[0], gradient)


@pytest.mark.parametrize(
    'channels, size, expected',
    # Gram matrices by places, by channels, or no larger than the maps
    [
        ((40, 50), 3, 2 * 50 * 9),
        ((40, 50), 6, 2 * 50 * 36),
        ((5, 50), 6, 2 * 50 * 36),
        ((50, 5), 6, 2 * 50 * 36),
        ((5, 6), 9, 2 * 6 * 81),
    ],
)
def test_no_tensor_of_pairs_of_channels_by_places(channels, size, expected):
    student, teacher = (features(i, 2, c, size, size) for i, c in enumerate(channels))
    assert largest(NSTLoss(), student, teacher) == expected < 2 * math.prod(channels) * size**2


# Terms


@pytest.mark.parametrize('type', ['SPLoss', 'PKTLoss', 'RKDLoss'])
@pytest.mark.parametrize('student, teacher', [((4, 6), (4, 3, 2, 2)), ((4, 9, 5), (4, 7))])
def test_a_term_bridges_nothing(type, student, teacher):
    term = build_term('relation', dict(type=type, at='embedding', weight=3))
    student, teacher = features(1, *student).float(), features(2, *teacher).float()
    student.requires_grad_()
    term.connect(student, teacher)
    assert term.adapter is None and not list(term.parameters())
    weighted = term.weight(term(student, teacher))
    assert weighted.item() == pytest.approx(3 * term.loss(student, teacher).item())
    copy.deepcopy(term)  # also with what the last forward logged


def test_a_term_brings_maps_to_one_size():
    term = build_term('nst', dict(type='NSTLoss', at='features'))
    student, tokens = features(1, 4, 6, 8, 8).float(), features(2, 4, 17, 5).float()
    term.connect(student, tokens)
    teacher = tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    assert term(student, tokens).item() == pytest.approx(NSTLoss()(student, teacher).item())


@pytest.mark.parametrize('loss', [SPLoss(), PKTLoss(), RKDLoss()], ids=name)
@pytest.mark.parametrize(
    'student, teacher, message',
    [
        (torch.zeros(4), torch.zeros(4, 2), r"the student's tap holds one of shape \(4,\)"),
        (torch.zeros(4, 2), [torch.zeros(4, 2)] * 3, "the teacher's tap holds a list of 3"),
        (
            ClassMaps(torch.zeros(4, 3, 2, 2), torch.zeros(5, 3)),
            torch.zeros(4, 2),
            "the student's tap holds ClassMaps",
        ),
    ],
)
def test_other_than_one_tensor(loss, student, teacher, message):
    message = (
        rf'{type(loss).__name__} compares one tensor of shape \(N, ...\) with one, and {message}'
    )
    with pytest.raises(ValueError, match=message):
        loss(student, teacher)


@pytest.mark.parametrize('loss', [SPLoss(), PKTLoss(), RKDLoss()], ids=name)
def test_other_samples(loss):
    message = 'the same samples, and there are 4 of the student and 3 of the teacher'
    with pytest.raises(ValueError, match=f'{type(loss).__name__} compares .* {message}'):
        loss(torch.zeros(4, 2), torch.zeros(3, 2))


# Published weights, as in the guide's table


def test_weight_of_similarities():
    # RepDistiller and mdistiller: 3000, of the squared Frobenius norm over N²
    student, teacher = features(1, 6, 5, 2, 2), features(2, 6, 7, 3, 3)
    grams = [side.reshape(6, -1).numpy() for side in (student, teacher)]
    grams = [side @ side.T for side in grams]
    grams = [gram / np.linalg.norm(gram, axis=1, keepdims=True) for gram in grams]
    theirs = 3000 * np.linalg.norm(grams[0] - grams[1], 'fro') ** 2 / 6**2
    assert 3000 * SPLoss()(student, teacher).item() == pytest.approx(theirs, rel=1e-10)


def test_weight_of_neighbours():
    # RepDistiller and mdistiller: 30000, of the mean over N², with 1e-7 beside probabilities
    n, eps = 8, 1e-7
    student, teacher = features(1, n, 5), features(2, n, 7)
    sides = []
    for side in (student.numpy(), teacher.numpy()):
        side = side / (np.linalg.norm(side, axis=1, keepdims=True) + eps)
        affinity = (side @ side.T + 1) / 2
        sides.append(affinity / affinity.sum(1, keepdims=True))
    theirs = 30000 * (sides[1] * np.log((sides[1] + eps) / (sides[0] + eps))).mean()
    ours = 30000 / n * PKTLoss()(student, teacher).item()
    assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize(
    'theirs, ours',
    [
        ((25, 50), lambda *pair: 25 * RKDLoss()(*pair)),
        ((25, 50), lambda *pair: RKDLoss(distance=25, angle=50)(*pair)),
        ((1, 2), lambda *pair: RKDLoss()(*pair)),
    ],
)
def test_weight_of_distances_and_angles(theirs, ours):
    # RepDistiller, mdistiller: 25 and 50; the authors, torchdistill: 1 and 2; means over N² and N³
    student, teacher = features(1, 6, 5), features(2, 6, 7)
    parts = []
    for side in (student.numpy(), teacher.numpy()):
        difference = side[None] - side[:, None]
        norm = np.linalg.norm(difference, axis=2)
        unit = difference / np.where(norm == 0, 1, norm)[..., None]
        parts.append((norm / norm[norm > 0].mean(), unit @ unit.transpose(0, 2, 1)))
    means = [np.vectorize(smooth)(*pair).mean() for pair in zip(*parts)]
    expected = theirs[0] * means[0] + theirs[1] * means[1]
    assert ours(student, teacher).item() == pytest.approx(expected, rel=1e-10)


def test_weight_of_selectivity():
    # RepDistiller and mdistiller: 50 a stage, of means over N · C · C'
    student, teacher = features(1, 3, 6, 4, 4), features(2, 3, 5, 4, 4)
    s, t = (
        maps.flatten(2).numpy() / np.linalg.norm(maps.flatten(2).numpy(), axis=2, keepdims=True)
        for maps in (student, teacher)
    )
    kernels = [
        ((a[:, None] * b[:, :, None]).sum(3) ** 2).mean() for a, b in ((t, t), (s, s), (s, t))
    ]
    theirs = 50 * (kernels[0] + kernels[1] - 2 * kernels[2])
    assert 50 * NSTLoss()(student, teacher).item() == pytest.approx(theirs, rel=1e-10)
