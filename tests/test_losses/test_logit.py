"""Losses between logits against scipy or loops, and their behaviour for extreme logits."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

from mmkdx.distillation.terms import build_term
from mmkdx.losses import CWTMLoss, DISTLoss, DKDLoss, KLDivLoss, LogitStdLoss, NKDLoss, WTTMLoss
from mmkdx.losses.logit import correlation, standardize

TAUS = [0.5, 1, 4, 20]


def logits(seed, shape=(6, 10), scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def reference(student, teacher, tau):
    p, q = (softmax(side.double().numpy() / tau, axis=1) for side in (teacher, student))
    return tau**2 * rel_entr(p, q).sum(1).mean()


def test_two_classes_by_hand():
    # (3/4, 1/4) against (1/2, 1/2)
    teacher = torch.tensor([[3.0, 1.0]], dtype=torch.float64).log()
    expected = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    loss = KLDivLoss()(torch.zeros(1, 2, dtype=torch.float64), teacher)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize('tau', TAUS)
def test_value(tau):
    student, teacher = logits(1), logits(2)
    expected = reference(student, teacher, tau)
    assert KLDivLoss(tau)(student, teacher).item() == pytest.approx(expected, rel=1e-10)
    # adding a number to the logits of a sample changes nothing
    moved = student + torch.arange(6.0)[:, None]
    assert KLDivLoss(tau)(moved, teacher).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize('tau', TAUS)
def test_equal_logits(tau):
    student = logits(1).requires_grad_()
    loss = KLDivLoss(tau)(student, student.detach().clone())
    assert loss.item() == 0
    gradient = torch.autograd.grad(loss, student)[0]
    torch.testing.assert_close(gradient, torch.zeros_like(student), rtol=0, atol=1e-15)


@pytest.mark.parametrize('tau', TAUS)
def test_gradient_is_the_difference_of_the_probabilities(tau):
    student, teacher = logits(1).requires_grad_(), logits(2)
    KLDivLoss(tau)(student, teacher).backward()
    p, q = (softmax(side.detach().numpy() / tau, axis=1) for side in (teacher, student))
    np.testing.assert_allclose(student.grad.numpy(), tau * (q - p) / 6, rtol=1e-9, atol=1e-14)


def test_gradient_keeps_its_size_at_high_temperatures():
    # tau² balances the 1 / tau² of the gradient, whose limit is the difference of centred logits
    student, teacher = logits(1).requires_grad_(), logits(2)
    KLDivLoss(1e4)(student, teacher).backward()
    difference = student.detach() - teacher
    limit = (difference - difference.mean(1, keepdim=True)) / (6 * 10)
    torch.testing.assert_close(student.grad, limit, rtol=5e-3, atol=1e-4)


@pytest.mark.parametrize('tau', TAUS)
def test_mean_over_samples(tau):
    student, teacher = logits(1), logits(2)
    loss = KLDivLoss(tau)(student, teacher).item()
    twice = KLDivLoss(tau)(student.repeat(2, 1), teacher.repeat(2, 1)).item()
    assert twice == pytest.approx(loss, rel=1e-12)
    halves = [
        KLDivLoss(tau)(student[half], teacher[half]).item() for half in (slice(3), slice(3, 6))
    ]
    assert sum(halves) / 2 == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('tau', TAUS)
def test_half_precision_is_computed_in_fp32(dtype, tau):
    student, teacher = logits(1).to(dtype), logits(2).to(dtype)
    loss = KLDivLoss(tau)(student, teacher)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(reference(student, teacher, tau), rel=1e-5)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('autocast', [False, True])
def test_saturated_logits_stay_finite(dtype, autocast):
    teacher = torch.tensor([[1e4, -1e4, 0], [-1e4, 1e4, 1e4]]).to(dtype)
    student = teacher.flip(1).requires_grad_()
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        loss = KLDivLoss(2)(student, teacher)
    # where the teacher is sure, the student is 1e4 below its maximum; where it is undecided between
    # two classes, the student agrees in one and is 2e4 below in the other; all over tau
    top = teacher[0, 0].item()  # bf16 has no 1e4
    expected = 2**2 * (top / 2 + (0 + 2 * top / 2) / 2) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert torch.autograd.grad(loss, student)[0].isfinite().all()


@pytest.mark.parametrize('tau', [0, -1, -0.5])
def test_temperature_out_of_range(tau):
    with pytest.raises(ValueError, match=f'tau is {tau}; it must be a finite number above 0'):
        KLDivLoss(tau)


# Sigmoids


def test_sigmoids_by_hand():
    # Probabilities of the teacher 3/4 and 1/4, of the student 1/2 and 3/4; a second sample is the same
    teacher = 2 * torch.tensor([[math.log(3), -math.log(3)], [0.3, -7.0]], dtype=torch.float64)
    student = 2 * torch.tensor([[0, math.log(3)], [0.3, -7.0]], dtype=torch.float64)
    first = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    second = 0.25 * math.log(1 / 3) + 0.75 * math.log(3)
    value = KLDivLoss(2, 'sigmoid')(student, teacher).item()
    assert value == pytest.approx(2**2 * (first + second) / 2, rel=1e-12)
    assert value == pytest.approx(1.3602364, rel=1e-7)


def test_a_shift_of_all_logits_counts_for_sigmoids():
    logits = torch.full((1, 3), -5.0)
    confident = 1 / (1 + math.exp(-5))
    value = KLDivLoss(activation='sigmoid')(logits, logits + 10).item()
    assert value == pytest.approx(3 * 5 * (2 * confident - 1), rel=1e-5)
    assert KLDivLoss()(logits, logits + 10).item() == pytest.approx(0, abs=1e-6)


def test_saturated_sigmoids_are_finite():
    student = torch.tensor([[1e4, -1e4, 1e4]], requires_grad=True)
    value = KLDivLoss(activation='sigmoid')(student, torch.tensor([[-1e4, 1e4, 1e4]]))
    assert value.item() == pytest.approx(2e4)
    assert torch.autograd.grad(value, student)[0].tolist() == [[1, -1, 0]]


def test_gradient_of_sigmoids():
    # tau times the difference of the probabilities, over the samples
    student, teacher = logits(1).requires_grad_(), logits(2)
    gradient = torch.autograd.grad(KLDivLoss(3, 'sigmoid')(student, teacher), student)[0]
    expected = 3 * ((student / 3).sigmoid() - (teacher / 3).sigmoid()) / len(student)
    torch.testing.assert_close(gradient, expected.detach())


def test_an_unknown_activation():
    with pytest.raises(
        ValueError, match="activation is 'relu'; it must be one of softmax, sigmoid"
    ):
        KLDivLoss(activation='relu')


# Decoupled

LABELS = torch.tensor([0, 9, 3, 3, 5, 8])


def given(loss, labels=LABELS):
    """The labels, for a loss that needs them."""
    return (labels,) if 'class' in loss.needs else ()


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def decoupled(student, teacher, target, tau, alpha, beta):
    """DKDLoss with probabilities, sample by sample."""
    total = 0.0
    for s, t, k in zip(student.double().numpy(), teacher.double().numpy(), target.tolist()):
        q, p = softmax(s / tau), softmax(t / tau)
        label = p[k] * np.log(p[k] / q[k]) + (1 - p[k]) * np.log((1 - p[k]) / (1 - q[k]))
        p, q = np.delete(p, k), np.delete(q, k)
        p, q = p / p.sum(), q / q.sum()
        total += alpha * label + beta * (p * np.log(p / q)).sum()
    return tau**2 * total / len(student)


def test_decoupled_by_hand():
    # the label has 1/2 against 1/4; the others, alone, have (1/4, 3/4) against (1/3, 2/3)
    teacher, student = tensor([4, 1, 3]).log(), tensor([1, 1, 2]).log()
    label = 0.5 * np.log(2) + 0.5 * np.log(2 / 3)
    others = 0.25 * np.log(3 / 4) + 0.75 * np.log(9 / 8)
    target = torch.tensor([0])
    for alpha, beta in ((1, 0), (0, 1), (1, 1), (0.5, 8)):
        loss = DKDLoss(1, alpha, beta)
        value = loss(student, teacher, target).item()
        assert value == pytest.approx(alpha * label + beta * others, rel=1e-12)
        logs = {key: value.item() for key, value in loss.logs.items()}
        assert logs == pytest.approx(dict(label=label, others=others), rel=1e-12)


@pytest.mark.parametrize('tau', TAUS)
@pytest.mark.parametrize('alpha, beta', [(1, 8), (1, 0.5), (0, 1), (3, 0)])
def test_decoupled_value(tau, alpha, beta):
    student, teacher = logits(1), logits(2)
    expected = decoupled(student, teacher, LABELS, tau, alpha, beta)
    value = DKDLoss(tau, alpha, beta)(student, teacher, LABELS).item()
    assert value == pytest.approx(expected, rel=1e-10)


def test_decoupled_defaults_are_those_of_the_paper():
    student, teacher = logits(1), logits(2)
    expected = decoupled(student, teacher, LABELS, 4, 1, 8)
    assert DKDLoss()(student, teacher, LABELS).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize('tau', TAUS)
def test_decoupled_with_the_share_of_the_others_is_the_divergence(tau):
    student, teacher = logits(1).requires_grad_(), logits(2)
    share = 1 - (teacher / tau).softmax(1).gather(1, LABELS[:, None])
    parts = [
        DKDLoss(tau, 1, beta.item())(student[[i]], teacher[[i]], LABELS[[i]])
        for i, beta in enumerate(share)
    ]
    loss, expected = sum(parts) / 6, KLDivLoss(tau)(student, teacher)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    gradients = (torch.autograd.grad(each, student)[0] for each in (loss, expected))
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-14)


def test_decoupled_gradient():
    student, teacher = logits(1).requires_grad_(), logits(2)
    assert torch.autograd.gradcheck(lambda each: DKDLoss()(each, teacher, LABELS), student)


@pytest.mark.parametrize(
    'label, expected',
    [
        (0, 1),  # the teacher is sure of the label, the student by one `top` of another class
        (1, 8),  # neither takes the label; among the others the same
        (2, 1),  # the student is sure of the label, the teacher of another class
    ],
)
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_decoupled_saturated_logits_stay_finite(label, expected, dtype):
    teacher = torch.tensor([[1e4, -1e4, 0]]).to(dtype)
    student = torch.tensor([[0, -1e4, 1e4]]).to(dtype).requires_grad_()
    loss = DKDLoss(2)(student, teacher, torch.tensor([label]))
    top = teacher[0, 0].item()  # bf16 has no 1e4
    assert loss.item() == pytest.approx(2**2 * expected * top / 2, rel=1e-6)
    gradient = torch.autograd.grad(loss, student)[0]
    assert gradient.isfinite().all() and gradient.count_nonzero()


def test_decoupled_needs_labels_and_three_classes():
    with pytest.raises(ValueError, match='there are 2 classes in all; use KLDivLoss'):
        DKDLoss()(torch.zeros(6, 2), torch.zeros(6, 2), LABELS % 2)
    term = build_term('dkd', dict(type='DKDLoss', at='logits'))
    with pytest.raises(ValueError, match='terms.dkd: DKDLoss needs the labels of the images'):
        term(logits(1), logits(2))
    with pytest.raises(ValueError, match='DKDLoss needs one class an image'):
        term(logits(1), logits(2), torch.full((6, 10), 0.1))


# Normalised


def normalised(student, teacher, target, tau, gamma):
    """NKDLoss with probabilities, sample by sample."""
    total = 0.0
    for s, t, k in zip(student.double().numpy(), teacher.double().numpy(), target.tolist()):
        label = -softmax(t)[k] * np.log(softmax(s)[k])
        p, q = (softmax(np.delete(side, k) / tau) for side in (t, s))
        total += label - gamma * tau**2 * (p * np.log(q)).sum()
    return total / len(student)


def test_normalised_by_hand():
    # the label has 1/2 against 1/4; the others, alone, have (1/4, 3/4) against (1/3, 2/3)
    teacher, student = tensor([4, 1, 3]).log(), tensor([1, 1, 2]).log()
    label = 0.5 * np.log(4)
    others = 0.25 * np.log(3) + 0.75 * np.log(3 / 2)
    loss = NKDLoss(gamma=3)
    value = loss(student, teacher, torch.tensor([0])).item()
    assert value == pytest.approx(label + 3 * others, rel=1e-12)
    logs = {key: value.item() for key, value in loss.logs.items()}
    assert logs == pytest.approx(dict(label=label, others=others), rel=1e-12)


@pytest.mark.parametrize('arguments', [dict(), dict(tau=4, gamma=8), dict(tau=0.5, gamma=0)])
def test_normalised_value(arguments):
    student, teacher = logits(1), logits(2)
    expected = normalised(student, teacher, LABELS, **{'tau': 1, 'gamma': 1.5, **arguments})
    value = NKDLoss(**arguments)(student, teacher, LABELS).item()
    assert value == pytest.approx(expected, rel=1e-10)


def test_of_equal_logits_only_the_labels_part_is_not_stationary():
    student = logits(1).requires_grad_()
    loss = NKDLoss(tau=2)(student, student.detach(), LABELS)
    (gradient,) = torch.autograd.grad(loss, student)
    p = student.detach().softmax(1)
    own = p.gather(1, LABELS[:, None])
    expected = own * (p - torch.nn.functional.one_hot(LABELS, 10)) / 6
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-14)


def test_normalised_gradient():
    student, teacher = logits(1).requires_grad_(), logits(2)
    assert torch.autograd.gradcheck(lambda each: NKDLoss()(each, teacher, LABELS), student)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_normalised_saturated_logits_stay_finite(dtype):
    teacher = torch.tensor([[1e4, -1e4, 0]]).to(dtype)
    student = torch.tensor([[0, -1e4, 1e4]]).to(dtype).requires_grad_()
    loss = NKDLoss(2)(student, teacher, torch.tensor([0]))
    # the label's part is one `top`; of the others both take the third
    assert loss.item() == pytest.approx(teacher[0, 0].item(), rel=1e-6)
    assert torch.autograd.grad(loss, student)[0].isfinite().all()


def test_normalised_needs_three_classes_and_a_weight():
    message = 'NKDLoss needs two classes beside the label, and there are 2 classes in all'
    with pytest.raises(ValueError, match=message):
        NKDLoss()(torch.zeros(6, 2), torch.zeros(6, 2), LABELS % 2)
    with pytest.raises(ValueError, match='gamma is -1; it must be a finite number of at least 0'):
        NKDLoss(gamma=-1)


# DIST


def pearson(a, b):
    a, b = a - a.mean(), b - b.mean()
    return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())


def relations(student, teacher, tau, beta, gamma):
    """DISTLoss, row by row and column by column."""
    q, p = (softmax(side.double().numpy() / tau, axis=1) for side in (student, teacher))
    between = 1 - np.mean([pearson(*pair) for pair in zip(q, p)])
    within = 1 - np.mean([pearson(*pair) for pair in zip(q.T, p.T)])
    return tau**2 * (beta * between + gamma * within)


def test_relations_by_hand():
    # rows: correlations -1/2 and 1; columns: one side of the first two is constant, the third 1
    student = tensor([2, 1, 1], [1, 1, 2]).log()
    teacher = tensor([1, 2, 1], [1, 1, 2]).log()
    between, within = 1 - (-0.5 + 1) / 2, 1 - 1 / 3
    for beta, gamma in ((1, 0), (0, 1), (2, 3)):
        loss = DISTLoss(1, beta, gamma)
        expected = beta * between + gamma * within
        assert loss(student, teacher).item() == pytest.approx(expected, rel=1e-6)
        logs = {key: value.item() for key, value in loss.logs.items()}
        assert logs == pytest.approx(dict(between=between, within=within), rel=1e-6)


@pytest.mark.parametrize('tau', TAUS)
@pytest.mark.parametrize('beta, gamma', [(1, 1), (2, 0), (0, 3)])
def test_relations(tau, beta, gamma):
    student, teacher = logits(1), logits(2)
    expected = relations(student, teacher, tau, beta, gamma)
    value = DISTLoss(tau, beta, gamma)(student, teacher).item()
    # no more than what 1e-8 in the denominators changes
    assert value == pytest.approx(expected, rel=1e-4)


def test_correlation_has_no_scale_and_no_offset():
    first, second = logits(1), logits(2)
    expected = [pearson(*pair) for pair in zip(first.numpy(), second.numpy())]
    torch.testing.assert_close(correlation(first, second), tensor(*expected), rtol=1e-8, atol=1e-8)
    scale, offset = 1 + torch.arange(6.0)[:, None], 5 * torch.arange(6.0)[:, None]
    for one, two in (
        (first * scale - offset, second),
        (first, second * scale + offset),
        (first + 1e5, second),  # however small the deviations are beside the mean
    ):
        torch.testing.assert_close(
            correlation(one, two), correlation(first, second), rtol=1e-8, atol=1e-8
        )
    torch.testing.assert_close(
        correlation(-first, second), -correlation(first, second), rtol=1e-8, atol=1e-8
    )


@pytest.mark.parametrize('tau', TAUS)
def test_relations_of_equal_logits(tau):
    student = logits(1, scale=1).requires_grad_()
    loss = DISTLoss(tau)(student, student.detach().clone())
    p = softmax(student.detach().numpy() / tau, axis=1)
    squares = [((side - side.mean(1, keepdims=True)) ** 2).sum(1) for side in (p, p.T)]
    expected = tau**2 * sum((1e-8 / (square + 1e-8)).mean() for square in squares)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    elsewhere = DISTLoss(tau)(student, logits(2, scale=1))
    gradient, usual = (torch.autograd.grad(each, student)[0].norm() for each in (loss, elsewhere))
    assert gradient < 5e-3 * usual


def test_relations_gradient():
    student, teacher = logits(1, scale=1).requires_grad_(), logits(2, scale=1)
    assert torch.autograd.gradcheck(lambda each: DISTLoss()(each, teacher), student)


@pytest.mark.parametrize('constant', ['student', 'teacher', 'both', 'row', 'sample'])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('level', [0, 0.1, 17.3, -1e4])
def test_constant_probabilities_have_no_relation(constant, dtype, level):
    student, teacher = logits(1).to(dtype), logits(2).to(dtype)
    for name, side in (('student', student), ('teacher', teacher)):
        if constant in (name, 'both'):
            side.fill_(level)
    student[2:3].fill_(level)
    if constant == 'sample':
        student, teacher = student[:1], teacher[:1]
    student.requires_grad_()
    loss = DISTLoss(2)
    value = loss(student, teacher)
    gradient = torch.autograd.grad(value, student)[0]
    assert value.isfinite() and gradient.isfinite().all()
    assert gradient.abs().max() < 10  # and not that of rounding, scaled up
    if constant in ('student', 'teacher', 'both'):
        assert value.item() == 2**2 * 2
        assert gradient.count_nonzero() == 0 or constant == 'both'
    elif constant == 'sample':
        assert loss.logs['within'].item() == 2**2
    else:
        others = [0, 1, 3, 4, 5]
        q, p = (softmax(side.detach().double().numpy() / 2, axis=1) for side in (student, teacher))
        expected = 1 - sum(pearson(q[i], p[i]) for i in others) / 6
        assert loss.logs['between'].item() == pytest.approx(2**2 * expected, rel=1e-4)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_relations_of_saturated_logits_stay_finite(dtype):
    teacher = torch.tensor([[1e4, -1e4, 0], [-1e4, 1e4, 1e4]]).to(dtype)
    student = teacher.flip(1).requires_grad_()
    loss = DISTLoss(1, 1, 1)
    # rows: one-hot against another one-hot, (0, 1, 1) / 2 against (1, 1, 0) / 2; columns: the middle
    # one of both sides is (0, 1/2), the outer ones are (1, 0) against (0, 1/2) and the reverse
    assert loss(student, teacher).item() == pytest.approx(1.5 + 1 - (1 - 1 - 1) / 3, rel=1e-6)
    assert torch.autograd.grad(loss(student, teacher), student)[0].isfinite().all()


# Standardised


def test_standardised_by_hand():
    # both standardise to (-1, 0, 1) in some order, whatever their scale
    student, teacher = tensor([2, 1, 0]), tensor([-30, 0, 30])
    assert standardize(teacher).tolist() == [[pytest.approx(z, abs=1e-8) for z in (-1, 0, 1)]]
    e = np.exp(1 / 2)
    expected = 2**2 * 2 / 2 * (e - 1 / e) / (e + 1 + 1 / e)
    assert LogitStdLoss()(student, teacher).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('tau', TAUS)
def test_standardised(tau):
    student, teacher = logits(1), logits(2)
    scores = []
    for side in (student.numpy(), teacher.numpy()):
        scores.append(
            [(row - row.mean()) / np.sqrt(((row - row.mean()) ** 2).sum() / 9) for row in side]
        )
    expected = reference(*map(torch.tensor, np.array(scores)), tau)
    assert LogitStdLoss(tau)(student, teacher).item() == pytest.approx(expected, rel=1e-6)


def test_standardised_logits_have_no_scale_and_no_offset():
    student, teacher = logits(1), logits(2)
    loss = LogitStdLoss()(student, teacher).item()
    scale, offset = 1 + torch.arange(6.0)[:, None], 5 * torch.arange(6.0)[:, None]
    for pair in (
        (student * scale - offset, teacher),
        (student, teacher * scale + offset),
        (student + 1e5, teacher),
    ):
        assert LogitStdLoss()(*pair).item() == pytest.approx(loss, rel=1e-6)
    assert LogitStdLoss()(-student, teacher).item() != pytest.approx(loss, rel=1e-2)


@pytest.mark.parametrize('scale', [1, 7])
def test_standardised_equal_logits(scale):
    student = logits(1).requires_grad_()
    loss = LogitStdLoss()(student, scale * student.detach() + 3)
    assert loss.item() == pytest.approx(0, abs=1e-14)
    gradient = torch.autograd.grad(loss, student)[0]
    torch.testing.assert_close(gradient, torch.zeros_like(student), rtol=0, atol=1e-7)


def test_standardised_gradient():
    student, teacher = logits(1).requires_grad_(), logits(2)
    assert torch.autograd.gradcheck(lambda each: LogitStdLoss()(each, teacher), student)


@pytest.mark.parametrize('constant', ['student', 'teacher', 'both'])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('level', [0, 0.1, 17.3, -1e4])
def test_constant_logits_are_standardised_to_zero(constant, dtype, level):
    student, teacher = (
        torch.full((6, 10), level).to(dtype) if constant in (name, 'both') else logits(i).to(dtype)
        for i, name in enumerate(('student', 'teacher'))
    )
    student.requires_grad_()
    loss = LogitStdLoss()(student, teacher)
    gradient = torch.autograd.grad(loss, student)[0]
    if constant == 'both':
        assert loss.item() == 0
    else:
        assert 0 < loss.item() < 5
    if constant == 'teacher':
        assert gradient.isfinite().all() and gradient.count_nonzero()
    else:
        assert gradient.count_nonzero() == 0


@pytest.mark.parametrize(
    'loss, level',
    # a step of the larger numbers does change their probabilities
    [(DISTLoss(), 0.5), (LogitStdLoss(), 0.5), (LogitStdLoss(), 17.3), (LogitStdLoss(), -1e4)],
    ids=repr,
)
def test_rounding_is_no_deviation(loss, level):
    student = torch.full((6, 10), level)
    student[:, ::3] = student[:, ::3].nextafter(torch.tensor(torch.inf))
    assert student.unique().numel() == 2
    student.requires_grad_()
    gradient = torch.autograd.grad(loss(student, logits(2).float()), student)[0]
    assert gradient.abs().max() < 10


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_standardised_saturated_logits_stay_finite(dtype):
    teacher = torch.tensor([[1e4, -1e4, 0], [-1e4, 1e4, 1e4]]).to(dtype)
    student = (teacher.flip(1) + 1).requires_grad_()
    loss = LogitStdLoss()(student, teacher)
    small = LogitStdLoss()(student.detach().double() / 1e4, teacher.double() / 1e4)
    assert loss.item() == pytest.approx(small.item(), rel=1e-5)
    assert torch.autograd.grad(loss, student)[0].isfinite().all()


@pytest.mark.parametrize('classes', [1, 2])
def test_standardising_two_classes_leaves_their_order(classes):
    message = f'with {classes} classes this keeps only their order; use KLDivLoss'
    with pytest.raises(ValueError, match=message):
        LogitStdLoss()(torch.zeros(6, classes), torch.zeros(6, classes))


# All


@pytest.mark.parametrize(
    'loss',
    [DKDLoss(), NKDLoss(), DISTLoss(3, 2, 1), LogitStdLoss(3), CWTMLoss(3), WTTMLoss()],
    ids=repr,
)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('autocast', [False, True])
def test_logit_losses_are_computed_in_fp32(loss, dtype, autocast):
    student, teacher = logits(1).to(dtype), logits(2).to(dtype)
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        value = loss(student, teacher, *given(loss))
    assert value.dtype == torch.float32
    expected = loss(student.double(), teacher.double(), *given(loss)).item()
    assert value.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('type', ['DKDLoss', 'NKDLoss', 'DISTLoss', 'LogitStdLoss', 'CWTMLoss'])
def test_terms(type):
    term = build_term('kd', dict(type=type, at='logits', weight=3, tau=5))
    student, teacher = logits(1).float(), logits(2).float()
    term.connect(student, teacher)
    expected = 3 * term.loss(student, teacher, *given(term.loss)).item()
    weighted = term.weight(term(student, teacher, LABELS))
    assert weighted.item() == pytest.approx(expected)
    assert term.loss.tau == 5 and not list(term.parameters())


@pytest.mark.parametrize('loss', [DKDLoss(), DISTLoss()], ids=repr)
def test_losses_can_be_copied_after_a_step(loss):
    loss(logits(1).requires_grad_(), logits(2), *given(loss))
    assert copy.deepcopy(loss).logs == loss.logs


@pytest.mark.parametrize('kind', [DKDLoss, NKDLoss, DISTLoss, LogitStdLoss, CWTMLoss])
def test_temperatures_of_all_losses(kind):
    for tau in (0, -1):
        with pytest.raises(ValueError, match=f'tau is {tau}; it must be a finite number above 0'):
            kind(tau)


@pytest.mark.parametrize('loss', [DKDLoss(), NKDLoss(), LogitStdLoss(), WTTMLoss()], ids=repr)
def test_mean_over_samples_of_other_losses(loss):
    student, teacher = logits(1), logits(2)
    whole = loss(student, teacher, *given(loss)).item()
    halves = [
        loss(student[half], teacher[half], *given(loss, LABELS[half])).item()
        for half in (slice(3), slice(3, 6))
    ]
    assert sum(halves) / 2 == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize(
    'loss',
    [DKDLoss(), NKDLoss(), DISTLoss(), LogitStdLoss(), CWTMLoss(), WTTMLoss()],
    ids=repr,
)
def test_nan_is_not_hidden(loss):
    student, teacher = logits(1), logits(2)
    student[2, 1] = torch.nan
    assert loss(student, teacher, *given(loss)).isnan()


# Published weights, as in the guide's table


def test_weight_of_decoupled():
    # mdistiller: both parts summed, over N, times T²; alpha 1, beta 8, T 4
    student, teacher = logits(1), logits(2)
    mask = torch.nn.functional.one_hot(LABELS, 10).bool().numpy()
    q, p = (softmax(side.numpy() / 4, axis=1) for side in (student, teacher))
    label = (
        sum(rel_entr(p[m], q[m]).sum() for m in (mask,))
        + rel_entr(np.where(mask, 0, p).sum(1), np.where(mask, 0, q).sum(1)).sum()
    )
    q, p = (softmax(side.numpy() / 4 - 1000 * mask, axis=1) for side in (student, teacher))
    theirs = 1 * label * 4**2 / 6 + 8 * rel_entr(p, q).sum() * 4**2 / 6
    ours = 1.0 * DKDLoss(tau=4, alpha=1, beta=8)(student, teacher, LABELS).item()
    assert ours == pytest.approx(theirs, rel=1e-10)


def test_weight_of_relations():
    # the authors' loss with beta = gamma = 1, times kd_loss_weight 2
    student, teacher = logits(1), logits(2)
    theirs = 0
    for q, p in (
        [softmax(side.numpy(), axis=1) for side in (student, teacher)],
        [softmax(side.numpy(), axis=1).T for side in (student, teacher)],
    ):
        q, p = q - q.mean(1, keepdims=True), p - p.mean(1, keepdims=True)
        norms = np.linalg.norm(q, axis=1) * np.linalg.norm(p, axis=1) + 1e-8
        theirs += 2 * (1 - ((q * p).sum(1) / norms).mean())
    assert 2 * DISTLoss()(student, teacher).item() == pytest.approx(theirs, rel=1e-10)


def test_weight_of_standardised():
    # --logit-stand --base-temp 2 --kd-weight 9: summed over classes, mean over samples, times T²
    student, teacher = logits(1), logits(2)
    q, p = (
        softmax(
            (z - z.mean(1, keepdims=True)) / (1e-7 + z.std(1, ddof=1, keepdims=True)) / 2, axis=1
        )
        for z in (student.numpy(), teacher.numpy())
    )
    theirs = 9 * 2**2 * rel_entr(p, q).sum(1).mean()
    assert 9 * LogitStdLoss(tau=2)(student, teacher).item() == pytest.approx(theirs, rel=1e-10)


# Samples weighed by the teacher's confidence


def test_confident_samples_count_more():
    # confidences .9, .6 and .5, so weights 1.35, .9 and .75
    p = [(0.9, 0.05, 0.05), (0.1, 0.6, 0.3), (0.3, 0.2, 0.5)]
    teacher = torch.tensor(p, dtype=torch.float64).log()
    student, labels = logits(1, (3, 3)).requires_grad_(), torch.tensor([0, 2, 1])
    q = softmax(student.detach().numpy(), axis=1)
    chosen = -np.log(q[np.arange(3), labels])
    weights = np.array([1.35, 0.9, 0.75])
    loss = CWTMLoss()(student, teacher, labels)
    assert loss.item() == pytest.approx((weights * chosen).sum() / 3, rel=1e-10)
    (gradient,) = torch.autograd.grad(loss, student)
    expected = weights[:, None] * (q - np.eye(3)[labels]) / 3
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize('tau', TAUS)
def test_only_confidences_have_a_temperature(tau):
    student, teacher = logits(1), logits(2)
    confidence = softmax(teacher.numpy() / tau, axis=1).max(1)
    chosen = -np.log(softmax(student.numpy(), axis=1)[np.arange(6), LABELS])
    found = CWTMLoss(tau)(student, teacher, LABELS).item()
    assert found == pytest.approx(np.average(chosen, weights=confidence), rel=1e-10)


def test_of_the_teacher_only_its_confidence_counts():
    student, teacher = logits(1), logits(2)
    found = CWTMLoss(4)(student, teacher, LABELS).item()
    assert CWTMLoss(4)(student, teacher.flip(1), LABELS).item() == pytest.approx(found, rel=1e-12)
    alike = torch.nn.functional.cross_entropy(student, LABELS).item()
    flat = CWTMLoss(4)(student, teacher[:1].expand(6, -1), LABELS).item()
    assert flat == pytest.approx(alike, rel=1e-12)


def test_confidence_weighting_needs_labels():
    term = build_term('cwtm', dict(type='CWTMLoss', at='logits'))
    with pytest.raises(ValueError, match='CWTMLoss needs one class an image and .* mixed or soft'):
        term(logits(1), logits(2), logits(3).softmax(1))


# A teacher with a temperature of its own

S = tensor([2, 1, 0.5], [0.2, 1.5, -0.3])
T = tensor([3, 2, -1], [-0.5, 2, 1])


@pytest.mark.parametrize(
    'expected, arguments',
    [
        (0.322202287249, {}),
        (0.145155489464, dict(weighted=False)),
        (0.479035625831, dict(gamma=0.1)),
        (0.150197028156, dict(gamma=0.5)),
        (0.187443469171, dict(gamma=0.1, weighted=False)),
        (0.096855236446, dict(gamma=0.5, weighted=False)),
        (0.115704633296, dict(gamma=1)),
        (0.115704633296, dict(gamma=1, weighted=False)),
    ],
)
def test_transformed(expected, arguments):
    loss = WTTMLoss(**arguments)
    assert loss(S, T).item() == pytest.approx(expected, rel=1e-11)
    if loss.gamma == 1:
        assert loss(S, T).item() == pytest.approx(KLDivLoss()(S, T).item(), rel=1e-14)
    # a constant added to the logits of a sample
    assert loss(S + T[:, :1], T - 5).item() == pytest.approx(expected, rel=1e-11)


def test_transformed_samples():
    loss, logs = WTTMLoss(), []
    for i in (0, 1):
        loss(S[[i]], T[[i]])
        logs += [(loss.logs['flatness'].item(), loss.logs['kl'].item())]
    expected = [(2.124660845664, 0.072908508453), (2.251578467355, 0.217402470476)]
    assert logs == [pytest.approx(each, rel=1e-11) for each in expected]


def test_transformed_gradient():
    student = S.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(WTTMLoss()(student, T), student)
    expected = [
        [0.199321042494, -0.137846926023, -0.061474116472],
        [-0.068160959603, 0.318784668900, -0.250623709297],
    ]
    torch.testing.assert_close(gradient, tensor(*expected), rtol=0, atol=1e-12)
    # none where the student is the tempered teacher, whose probabilities are theirs at 1 / gamma
    student = (0.5 * T + 3).requires_grad_()
    expected = [
        [0.574096992968, 0.348207427884, 0.077695579149],
        [0.151346767365, 0.528252123608, 0.320401109027],
    ]
    torch.testing.assert_close(student.detach().softmax(1), tensor(*expected))
    loss = WTTMLoss(0.5)(student, T)
    assert loss.item() == pytest.approx(0, abs=1e-15)
    (gradient,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(gradient, 0 * student.detach(), rtol=0, atol=1e-15)


def test_flatness_lies_between_sure_and_uniform():
    loss = WTTMLoss()
    for teacher, expected in (([0, 0, 0], 2.408224685281), ([200, 0, 0], 1)):
        found = loss(S[:1], tensor(teacher))
        assert found.isfinite()
        assert loss.logs['flatness'].item() == pytest.approx(expected, rel=1e-11)


def test_probabilities_that_underflow_are_tempered_before():
    # softmax(t) has an exact 0 in fp32, and q does not
    teacher = torch.tensor([[120.0, 0.0, 0.0]])
    loss = WTTMLoss(0.1, weighted=False)(torch.zeros(1, 3), teacher).item()
    expected = KLDivLoss()(torch.zeros(1, 3).double(), 0.1 * teacher.double()).item()
    assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_transformed_saturated_logits_stay_finite(dtype):
    student = (1e4 * S).to(dtype).requires_grad_()
    loss = WTTMLoss()(student, (1e4 * T).to(dtype))
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert torch.autograd.grad(loss, student)[0].isfinite().all()


def test_transformed_arguments():
    for gamma in (0, 1.5):
        message = f'gamma is {gamma}; it must be a finite number above 0 and of at most 1'
        with pytest.raises(ValueError, match=message):
            WTTMLoss(gamma)
    assert WTTMLoss()(S[:, :2], T[:, :2]) > 0
    with pytest.raises(ValueError, match='WTTMLoss compares 2 classes or more, and there is 1$'):
        WTTMLoss()(S[:, :1], T[:, :1])
