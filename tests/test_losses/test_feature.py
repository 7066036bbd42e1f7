"""MSELoss, CosineLoss and ATLoss against numpy."""

import numpy as np
import pytest
import torch

from mmkdx.losses import ATLoss, CosineLoss, MSELoss


def features(seed, *shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def attention_distance(student, teacher, p=2):
    """ATLoss of maps of one size, sample by sample."""
    distances = []
    for s, t in zip(student.double().numpy(), teacher.double().numpy(), strict=True):
        s, t = ((np.abs(side) ** p).sum(0) for side in (s, t))
        distances.append((s / np.linalg.norm(s) - t / np.linalg.norm(t)) ** 2)
    return np.mean(distances)


# Mean squared error


@pytest.mark.parametrize('shape', [(6, 10), (4, 17, 8), (3, 5, 4, 6)])
def test_mean_squared_error(shape):
    student, teacher = features(1, *shape), features(2, *shape)
    expected = np.mean((student.numpy() - teacher.numpy()) ** 2)
    assert MSELoss()(student, teacher).item() == pytest.approx(expected, rel=1e-12)
    student.requires_grad_()
    MSELoss()(student, teacher).backward()
    expected = 2 * (student.detach() - teacher) / student.numel()
    torch.testing.assert_close(student.grad, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_squares_do_not_overflow_or_vanish_in_half_precision(dtype):
    big, small = torch.full((2, 3), 1024.0, dtype=dtype), torch.full((2, 3), 2**-14, dtype=dtype)
    zero = torch.zeros(2, 3, dtype=dtype)
    assert MSELoss()(big, zero).item() == 2**20
    assert MSELoss()(small, zero).item() == 2**-28


@pytest.mark.parametrize('shape', [(2, 8), (3, 4), (2, 4, 1), (1, 4)])
@pytest.mark.parametrize('kind', [MSELoss, CosineLoss])
def test_other_shapes(kind, shape):
    with pytest.raises(ValueError, match=r"shapes \(2, 4\) and .* differ; use adapter='auto'"):
        kind()(torch.zeros(2, 4), torch.zeros(shape))


# Cosine


def test_cosine_by_hand():
    student = torch.tensor([[3.0, 4], [0, 2]], dtype=torch.float64)
    teacher = torch.tensor([[8.0, 6], [-1, 0]], dtype=torch.float64)
    # 48 / 50 and 0
    assert CosineLoss()(student, teacher).item() == pytest.approx(1 - 0.48, rel=1e-12)


@pytest.mark.parametrize('shape', [(6, 10), (4, 17, 8), (3, 5, 4, 6)])
def test_cosine_of_vectors_tokens_and_positions(shape):
    student, teacher = features(1, *shape), features(2, *shape)
    axis = 1 if len(shape) == 4 else -1
    product = (student * teacher).numpy().sum(axis)
    lengths = [np.linalg.norm(each.numpy(), axis=axis) for each in (student, teacher)]
    expected = 1 - (product / lengths[0] / lengths[1]).mean()
    assert CosineLoss()(student, teacher).item() == pytest.approx(expected, rel=1e-12)
    found = CosineLoss()(1e-4 * student, 1e3 * teacher).item()
    assert found == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.gradcheck(lambda s: CosineLoss()(s, teacher), student.requires_grad_())


def test_a_vector_without_a_length_has_no_gradient():
    student = torch.tensor([[0.0, 0], [1, 1]], requires_grad=True)
    loss = CosineLoss()(student, torch.tensor([[1.0, 2], [1, 1]]))
    assert loss.item() == pytest.approx(0.5)
    loss.backward()
    assert student.grad[0].eq(0).all() and student.grad.isfinite().all()


def test_cosine_of_half_precision():
    ones = torch.full((2, 3), 300.0, dtype=torch.float16)  # whose squares overflow
    assert CosineLoss()(ones, ones).item() == pytest.approx(0, abs=1e-6)


# Attention transfer


def test_attention_by_hand():
    # attention (5, 0) / 5 against (9, 12) / 15
    student = torch.tensor([[[[1.0, 0.0]], [[-2.0, 0.0]]]], dtype=torch.float64)
    teacher = torch.tensor([[[[3.0, -(12**0.5)]]]], dtype=torch.float64)
    assert ATLoss()(student, teacher).item() == pytest.approx((0.4**2 + 0.8**2) / 2, rel=1e-12)


@pytest.mark.parametrize('p', [1, 2, 4])
@pytest.mark.parametrize('channels', [(5, 5), (3, 8)])
def test_attention_distance(p, channels):
    student, teacher = (features(i, 4, c, 6, 5) for i, c in enumerate(channels))
    expected = attention_distance(student, teacher, p)
    assert ATLoss(p)(student, teacher).item() == pytest.approx(expected, rel=1e-10)
    flipped = ATLoss(p)(-student.flip(1), teacher).item()  # signs and order of channels
    assert flipped == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize('scale', [0.1, 7, 100])
def test_attention_has_no_scale(scale):
    student, teacher = features(1, 4, 5, 6, 6), features(2, 4, 7, 6, 6)
    loss = ATLoss()(student, teacher).item()
    assert ATLoss()(student * scale, teacher).item() == pytest.approx(loss, rel=1e-10)
    assert ATLoss()(student, teacher * scale).item() == pytest.approx(loss, rel=1e-10)
    # one scale a sample
    scales = torch.tensor([1, 2, 3, scale], dtype=torch.float64)[:, None, None, None]
    assert ATLoss()(student * scales, teacher).item() == pytest.approx(loss, rel=1e-10)


def test_equal_attention():
    student = features(1, 4, 5, 6, 6).requires_grad_()
    loss = ATLoss()(student, student.detach().clone())
    assert loss.item() == 0
    assert torch.autograd.grad(loss, student)[0].count_nonzero() == 0
    twice = torch.cat([student.detach()] * 2, dim=1)
    assert ATLoss()(student, twice).item() == pytest.approx(0, abs=1e-30)


def test_attention_gradient():
    student, teacher = features(1, 2, 3, 3, 4).requires_grad_(), features(2, 2, 2, 3, 4)
    assert torch.autograd.gradcheck(lambda maps: ATLoss()(maps, teacher), student)


def test_the_student_is_resized():
    student, teacher = features(1, 4, 5, 8, 8), features(2, 4, 7, 4, 2)
    pooled = student.view(4, 5, 4, 2, 2, 4).mean((3, 5))
    expected = attention_distance(pooled, teacher)
    assert ATLoss()(student, teacher).item() == pytest.approx(expected, rel=1e-10)
    # a constant map stays constant when it grows
    constant, teacher = torch.ones(4, 5, 2, 2, dtype=torch.float64), features(2, 4, 7, 6, 6)
    expected = attention_distance(torch.ones(4, 1, 6, 6), teacher)
    assert ATLoss()(constant, teacher).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize('zero', ['student', 'teacher', 'both'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('autocast', [False, True])
def test_zero_maps_are_finite(zero, dtype, autocast):
    student, teacher = (
        features(seed, 4, 5, 6, 6, dtype=dtype) * (zero not in (name, 'both'))
        for seed, name in enumerate(('student', 'teacher'))
    )
    student.requires_grad_()
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        loss = ATLoss()(student, teacher)
    # a unit vector against zeros, over 36 positions
    assert loss.item() == pytest.approx(0 if zero == 'both' else 1 / 36, rel=1e-5)
    assert torch.autograd.grad(loss, student)[0].isfinite().all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_attention_is_computed_in_fp32(dtype):
    # squares of such values are beyond fp16
    student, teacher = (features(i, 4, 5, 6, 6, dtype=dtype) * 300 for i in (1, 2))
    loss = ATLoss()(student, teacher)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(attention_distance(student, teacher), rel=1e-5)


@pytest.mark.parametrize('loss', [MSELoss(), ATLoss()])
def test_mean_over_samples(loss):
    student, teacher = features(1, 4, 5, 6, 6), features(2, 4, 5, 6, 6)
    whole = loss(student, teacher).item()
    halves = [loss(student[half], teacher[half]).item() for half in (slice(2), slice(2, 4))]
    assert sum(halves) / 2 == pytest.approx(whole, rel=1e-12)


def test_published_weight_of_attention():
    # the authors, RepDistiller, mdistiller: 1000 for each stage, mean over samples and positions
    shapes = ((3, 8, 8), (5, 8, 8)), ((4, 4, 4), (6, 4, 4))
    theirs = ours = 0
    for student, teacher in shapes:
        student, teacher = features(1, 4, *student), features(2, 4, *teacher)
        maps = [np.square(side.numpy()).mean(1).reshape(4, -1) for side in (student, teacher)]
        maps = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in maps]
        theirs += 1000 * np.square(maps[0] - maps[1]).mean()
        ours += 1000 * ATLoss()(student, teacher).item()
    assert ours == pytest.approx(theirs, rel=1e-10)
