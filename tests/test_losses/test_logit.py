"""KLDivLoss against scipy, and its behaviour for extreme logits."""

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

from mmkdx.losses import KLDivLoss

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


def test_labels_are_not_used():
    student, teacher = logits(1), logits(2)
    assert KLDivLoss()(student, teacher, torch.arange(6)) == KLDivLoss()(student, teacher)


@pytest.mark.parametrize('tau', [0, -1, -0.5])
def test_temperature_out_of_range(tau):
    with pytest.raises(ValueError, match=f'tau is {tau}; a temperature is above 0'):
        KLDivLoss(tau)
