"""Active patches, their similarity, and the matching score, beside sets."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from mmkdx.functional import prototype_transfer
from mmkdx.functional.prototype_transfer import (
    active_patches,
    cell_agreement,
    match_prototypes,
    matching_caps,
    patch_similarity,
    prototype_matching_score,
)

# Three images, four prototypes

TEACHER = torch.tensor([[0, 1, 1, 3], [2, 2, 0, 1], [3, 3, 3, 3]])
TEACHER_DISTANCES = torch.tensor(
    [[0.05, 0.30, 0.10, 2], [0.02, 0.40, 0.60, 0.09], [0.5, 0.7, 0.9, 1.1]]
)
STUDENT = torch.tensor([[0, 1, 2, 3], [2, 0, 0, 1], [3, 0, 3, 3]])
STUDENT_DISTANCES = torch.tensor(
    [[0.08, 0.20, 0.10, 0.4], [0.30, 0.05, 0.50, 0.20], [0.6, 0.7, 0.9, 1.5]]
)

# Ten images, two prototypes

PAIR = torch.tensor([[0, 1]] * 5 + [[2, 3]] * 5)
OTHER = torch.tensor(
    [[0, 0], [0, 1], [1, 0], [1, 0], [1, 1], [3, 2], [3, 3], [3, 3], [2, 2], [0, 0]]
)

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def random_models(seed, images=37, prototypes=13, others=None, cells=49):
    """Distances with ties, and cells, of two models."""
    rng = np.random.default_rng(seed)
    models = []
    for count in (prototypes, others or prototypes):
        distances = torch.tensor(rng.integers(0, 8, (images, count)) / 8, dtype=torch.float32)
        models += [distances, torch.tensor(rng.integers(0, cells, (images, count)))]
    return models


def related(seed, images=37, prototypes=13, cells=49):
    """Cells of two models, of which about half agree after a permutation."""
    rng = np.random.default_rng(seed)
    teacher = rng.integers(0, cells, (images, prototypes))
    noise = rng.integers(0, cells, teacher.shape)
    student = np.where(rng.random(teacher.shape) < 0.5, teacher, noise)
    return torch.tensor(teacher), torch.tensor(student[:, rng.permutation(prototypes)])


def active_sets(distances, cells, tau):
    return [
        {cell for distance, cell in zip(*rows) if distance <= tau}
        for rows in zip(distances.tolist(), cells.tolist())
    ]


def score_of_sets(teacher, student, caps):
    """PMS by its definition, with the cap on the union."""
    signatures = [[set(enumerate(column)) for column in m.T.tolist()] for m in (teacher, student)]
    scores = []
    for cap in caps:
        index = np.zeros((len(signatures[0]), len(signatures[1])))
        for j, first in enumerate(signatures[0]):
            for k, second in enumerate(signatures[1]):
                common = len(first & second)
                index[j, k] = 1 if common >= cap else common / min(len(first | second), cap)
        scores.append(index[linear_sum_assignment(1 - index)].mean())
    return np.mean(scores)


# Active patches


@pytest.mark.parametrize(
    'tau, teacher, student, similarities, itself',
    [
        (0.01, 0, 0, [0, 0, 0], 0),
        (0.1, 4 / 3, 1, [1 / 3, 0, 0], 2 / 3),
        (0.45, 4 / 3, 7 / 3, [1 / 2, 2 / 3, 0], 2 / 3),
        (1, 2, 3, [1 / 2, 1, 1 / 2], 1),
        (math.inf, 7 / 3, 3, [3 / 4, 1, 1 / 2], 1),
        (None, 7 / 3, 3, [3 / 4, 1, 1 / 2], 1),
    ],
)
def test_worked_example(tau, teacher, student, similarities, itself):
    models = (TEACHER_DISTANCES, TEACHER, STUDENT_DISTANCES, STUDENT)
    assert active_patches(*models[:2], tau).mean().item() == pytest.approx(teacher, rel=1e-6)
    assert active_patches(*models[2:], tau).mean().item() == pytest.approx(student, rel=1e-6)
    assert patch_similarity(*models, tau).tolist() == pytest.approx(similarities, rel=1e-6)
    mean = sum(similarities) / 3
    assert patch_similarity(*models, tau).mean().item() == pytest.approx(mean, rel=1e-6)
    same = patch_similarity(*models[:2], *models[:2], tau).mean().item()
    assert same == pytest.approx(itself, rel=1e-6)


def test_tau_has_no_limit_by_default():
    assert active_patches(TEACHER_DISTANCES * 1e6, TEACHER).tolist() == [3, 3, 1]
    models = (TEACHER_DISTANCES * 1e6, TEACHER, STUDENT_DISTANCES * 1e6, STUDENT)
    assert patch_similarity(*models).mean().item() == pytest.approx(0.75)
    assert patch_similarity(*models).tolist() == [0.75, 1, 0.5]
    assert active_patches(*models[:2]).mean().item() == pytest.approx(7 / 3)


@pytest.mark.parametrize('cells', [3, 49, 200])
@pytest.mark.parametrize('prototypes, others', [(1, 1), (5, 40), (40, 40)])
@pytest.mark.parametrize('tau', [-1, 0, 0.25, 0.5, None])
def test_sets_say_the_same(cells, prototypes, others, tau):
    for seed in range(10):
        models = random_models(seed, 23, prototypes, others, cells)
        limit = math.inf if tau is None else tau
        teacher, student = (active_sets(*models[i : i + 2], limit) for i in (0, 2))
        assert active_patches(*models[:2], tau).tolist() == [len(s) for s in teacher]
        expected = [len(a & b) / len(a | b) if a | b else 0 for a, b in zip(teacher, student)]
        assert patch_similarity(*models, tau).tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('tau', [0.25, None])
def test_order_of_prototypes_does_not_matter(tau):
    td, tc, sd, sc = random_models(0, prototypes=20)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(active_patches(td, tc, tau), active_patches(td[:, order], tc[:, order], tau))
    expected = patch_similarity(td, tc, sd, sc, tau)
    assert torch.equal(patch_similarity(td, tc, sd[:, order], sc[:, order], tau), expected)


@pytest.mark.parametrize('dtype', INTEGERS)
def test_cells_of_all_integers(dtype):
    td, tc, sd, sc = random_models(1)
    expected = patch_similarity(td, tc, sd, sc, 0.5), prototype_matching_score(tc, sc)
    tc = tc.to(dtype)
    assert torch.equal(patch_similarity(td, tc, sd, sc, 0.5), expected[0])
    assert prototype_matching_score(tc, sc) == expected[1]
    assert prototype_matching_score(tc, sc.to(dtype)) == expected[1]


# The matching score


def test_worked_example_of_the_score():
    assert cell_agreement(PAIR, OTHER).tolist() == [[3, 5], [6, 4]]
    values = [1, 1, 1, 1, 1, 11 / 12, 11 / 14, 11 / 16, 11 / 18, 0.55]
    for cap, value in enumerate(values, 1):
        assert prototype_matching_score(PAIR, OTHER, [cap]) == pytest.approx(value, abs=1e-12)
    assert prototype_matching_score(PAIR, OTHER) == pytest.approx(0.855099, abs=5e-7)
    legacy = matching_caps(10, legacy=True)
    assert prototype_matching_score(PAIR, OTHER, legacy) == pytest.approx(0.888999, abs=5e-7)
    assert match_prototypes(PAIR, OTHER).tolist() == [1, 0]


@pytest.mark.parametrize('seed', range(8))
@pytest.mark.parametrize('images, prototypes, cells', [(37, 13, 300), (12, 40, 4), (110, 7, 9)])
def test_products_say_what_sets_say(seed, images, prototypes, cells):
    teacher, student = related(seed, images, prototypes, cells)
    for legacy in (False, True):
        caps = matching_caps(images, legacy=legacy)
        expected = score_of_sets(teacher, student, caps)
        assert 0.1 < expected < 1
        score = prototype_matching_score(teacher, student, caps)
        assert score == pytest.approx(expected, abs=1e-12)
    counts = [[(t == s).sum().item() for s in student.T] for t in teacher.T]
    agreement = cell_agreement(teacher, student)
    assert agreement.tolist() == counts and agreement.dtype == torch.int64


@pytest.mark.parametrize('seed', range(4))
def test_permuted_prototypes_match_wholly(seed):
    teacher, _ = related(seed, 40, 25)
    assert prototype_matching_score(teacher, teacher) == 1
    order = torch.randperm(25, generator=torch.Generator().manual_seed(seed))
    student = teacher[:, order]
    assert prototype_matching_score(teacher, student) == 1
    assert torch.equal(match_prototypes(teacher, student), order.argsort())


def test_order_does_not_change_the_score():
    teacher, student = related(5, 50, 20)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    expected = prototype_matching_score(teacher, student)
    for cells in ((teacher[:, order], student), (teacher, student[:, order])):
        assert prototype_matching_score(*cells) == pytest.approx(expected, abs=1e-12)


def test_matching_has_the_most_agreement():
    teacher, student = related(0, 30, 40, 5)
    agreement = cell_agreement(teacher, student)
    match = match_prototypes(teacher, student)
    assert match.dtype == torch.int64 and match.sort().values.tolist() == list(range(40))
    best = linear_sum_assignment(agreement.numpy(), maximize=True)
    assert agreement[range(40), match].sum() == agreement.numpy()[best].sum()


def test_agreement_of_different_numbers_of_prototypes():
    teacher, student = related(0, 21, 12)[0], related(1, 21, 5)[0]
    expected = (teacher[:, :, None] == student[:, None]).sum(0)
    assert torch.equal(cell_agreement(teacher, student), expected)


@pytest.mark.parametrize('block', [1, 49 * 13, 49 * 13 * 5, 49 * 13 * 36, 49 * 13 * 1000])
def test_blocks_do_not_change_results(monkeypatch, block):
    teacher, student = related(3)
    expected = cell_agreement(teacher, student), prototype_matching_score(teacher, student)
    monkeypatch.setattr(prototype_transfer, '_BLOCK', block)
    assert torch.equal(cell_agreement(teacher, student), expected[0])
    assert prototype_matching_score(teacher, student) == expected[1]


def test_one_hot_cells_are_made_in_blocks(monkeypatch):
    teacher, student = related(0, 40, 10)
    sizes = []
    addmm = torch.Tensor.addmm_
    monkeypatch.setattr(
        torch.Tensor, 'addmm_', lambda self, a, b: (sizes.append(b.numel()), addmm(self, a, b))[1]
    )
    monkeypatch.setattr(prototype_transfer, '_BLOCK', 49 * 10 * 16)
    cell_agreement(teacher, student)
    assert max(sizes) <= 49 * 10 * 16 and len(sizes) == 3


def test_autocast_does_not_round_counts():
    teacher = torch.zeros(301, 2, dtype=torch.int16)
    with torch.autocast('cpu', torch.bfloat16):  # 301 is 302 or 300 in bf16
        assert cell_agreement(teacher, teacher).tolist() == [[301, 301]] * 2


def test_random_cells_do_not_score_0():
    rng = np.random.default_rng(0)
    cells = [torch.tensor(rng.integers(0, 49, (1000, 200))) for _ in range(2)]
    caps = matching_caps(1000, legacy=True)
    assert prototype_matching_score(*cells, caps) == pytest.approx(0.103, abs=1e-3)
    assert prototype_matching_score(*cells) == pytest.approx(0.096, abs=1e-3)


# Caps


@pytest.mark.parametrize(
    'images, count, last',
    [
        (5794, 10, 5790),
        (8041, 10, 8040),
        (8000, 9, 7200),
        (110, 9, 99),
        (109, 10, 100),
        (11, 10, 10),
        (10, 9, 9),
        (9, 8, 8),
        (2, 1, 1),
    ],
)
def test_caps_of_the_authors_code(images, count, last):
    caps = matching_caps(images, legacy=True)
    assert (len(caps), caps[-1]) == (count, last)
    if images >= 10:
        assert caps == range(images // 10, images, images // 10)


@pytest.mark.parametrize(
    'images, count, caps',
    [
        (5794, 10, [579 * k for k in range(1, 11)]),
        (8000, 10, [800 * k for k in range(1, 11)]),
        (19, 10, list(range(1, 11))),
        (10, 10, list(range(1, 11))),
        (9, 10, list(range(1, 10))),
        (1, 10, [1]),
        (100, 4, [25, 50, 75, 100]),
        (7, 1, [7]),
    ],
)
def test_caps_are_shares_of_the_images(images, count, caps):
    assert list(matching_caps(images, count)) == caps


@pytest.mark.parametrize('images', range(1, 12))
def test_few_images(images):
    teacher, student = related(0, images, 6, 4)
    score = prototype_matching_score(teacher, student)
    expected = score_of_sets(teacher, student, range(1, min(images, 10) + 1))
    assert score == pytest.approx(expected, abs=1e-12)


def test_caps_as_a_number():
    teacher, student = related(0, 40, 6)
    expected = prototype_matching_score(teacher, student, [10, 20, 30, 40])
    assert prototype_matching_score(teacher, student, 4) == expected
    assert expected != prototype_matching_score(teacher, student)


# Errors


@pytest.mark.parametrize(
    'function, message',
    [
        (lambda: matching_caps(10, 0), 'caps is 0; it must be an integer of at least 1'),
        (lambda: matching_caps(1, legacy=True), '1 images are too few for a cap'),
        (lambda: matching_caps(0), '0 images are too few for a cap'),
        (
            lambda: prototype_matching_score(PAIR, OTHER, 0),
            'caps is 0; it must be an integer of at least 1',
        ),
        (lambda: prototype_matching_score(PAIR, OTHER, [0, 3]), r'caps is \[0, 3\]; for 10 images'),
        (lambda: prototype_matching_score(PAIR, OTHER, [11]), r'\[11\]; .* caps are 1 to 10'),
        (lambda: prototype_matching_score(PAIR, OTHER, []), r'caps is \[\]'),
    ],
)
def test_caps_out_of_range(function, message):
    with pytest.raises(ValueError, match=message):
        function()


@pytest.mark.parametrize('function', [prototype_matching_score, match_prototypes])
def test_other_numbers_of_prototypes(function):
    message = 'teacher_cells are of 2 prototypes and student_cells of 1; .* one to one'
    with pytest.raises(ValueError, match=message):
        function(PAIR, OTHER[:, :1])


@pytest.mark.parametrize(
    'function',
    [
        prototype_matching_score,
        match_prototypes,
        cell_agreement,
        lambda *cells: patch_similarity(cells[0].float(), cells[0], cells[1].float(), cells[1]),
    ],
    ids=['score', 'match', 'agreement', 'similarity'],
)
@pytest.mark.parametrize(
    'teacher, student, message',
    [
        (PAIR, OTHER[:9], 'teacher_cells of 10 images and student_cells of 9 images cannot'),
        (PAIR.float(), OTHER, 'teacher_cells is of torch.float32; cells are integers'),
        (PAIR, OTHER > 0, 'student_cells is of torch.bool; cells are integers'),
        (PAIR - 1, OTHER, 'teacher_cells holds -1; cells count from 0'),
        (PAIR, OTHER[:, 0], r'student_cells has the shape \(10,\); it must be \(images, proto'),
        (PAIR[:0], OTHER[:0], r'teacher_cells has the shape \(0, 2\)'),
        (PAIR[:, :0], OTHER[:, :0], r'teacher_cells has the shape \(10, 0\)'),
    ],
    ids=['images', 'float', 'bool', 'negative', 'vector', 'no image', 'no prototype'],
)
def test_what_are_no_cells(function, teacher, student, message):
    with pytest.raises(ValueError, match=message):
        function(teacher, student)


def test_distances_of_another_shape():
    message = r'^distances have the shape \(3, 3\) and cells \(3, 4\)'
    with pytest.raises(ValueError, match=message):
        active_patches(TEACHER_DISTANCES[:, :3], TEACHER).mean()
    message = r'student_distances have the shape \(2, 4\) and student_cells \(3, 4\)'
    with pytest.raises(ValueError, match=message):
        patch_similarity(TEACHER_DISTANCES, TEACHER, STUDENT_DISTANCES[:2], STUDENT).mean()
    with pytest.raises(ValueError, match='teacher_distances have the shape'):
        patch_similarity(TEACHER_DISTANCES[:2], TEACHER, STUDENT_DISTANCES, STUDENT)
    with pytest.raises(ValueError, match='^cells is of torch.float32'):
        active_patches(TEACHER_DISTANCES, TEACHER_DISTANCES)
