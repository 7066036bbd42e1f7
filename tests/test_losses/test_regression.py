"""FitNetLoss, VIDLoss and OFDLoss: references from the formulas, layers, limits and mistakes."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import batch, distiller, total

from mmkdx.losses import FitNetLoss, OFDLoss, VIDLoss, regression

LOSSES = [FitNetLoss, VIDLoss, OFDLoss]


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def connected(loss, student, teacher, dtype=torch.float64):
    torch.manual_seed(0)
    loss.connect(torch.empty(2, *student), torch.empty(2, *teacher))
    return loss.to(dtype)


# FitNet


@pytest.mark.parametrize(
    'student, teacher, kernel',
    [
        ((3, 8, 8), (5, 8, 8), (5, 3, 1, 1)),
        ((3, 8, 8), (5, 4, 4), (5, 3, 3, 3)),
        ((3, 4, 4), (5, 8, 8), (3, 5, 4, 4)),
        ((3, 7, 9), (5, 5, 5), (5, 3, 3, 5)),
    ],
)
@pytest.mark.parametrize('relu', [True, False])
def test_fitnet_regresses_the_teachers_features(student, teacher, kernel, relu):
    loss = connected(FitNetLoss(**({} if relu else dict(relu=False))), student, teacher)
    layer, norm = loss.regressor[:2]
    assert tuple(layer.weight.shape) == kernel
    s, t = random(4, *student), random(4, *teacher, seed=1)
    mean = layer(s)
    assert mean.shape == t.shape
    z = (mean - mean.mean((0, 2, 3), keepdim=True)) / (
        mean.var((0, 2, 3), keepdim=True, unbiased=False) + norm.eps
    ).sqrt()
    z = torch.where(z > 0, z, 0) if relu else z
    expected = sum((a - b) ** 2 for a, b in zip(z.flatten(), t.flatten())) / t.numel()
    assert loss(s, t).item() == pytest.approx(expected.item(), rel=1e-9)


def test_fitnet_of_a_small_map():
    with pytest.raises(
        ValueError, match=r"map of \(3, 3\) is smaller than the teacher's of \(8, 8\)"
    ):
        FitNetLoss().connect(torch.empty(2, 3, 3, 3), torch.empty(2, 3, 8, 8))


def test_fitnet_of_other_images():
    loss = connected(FitNetLoss(), (3, 7, 7), (5, 5, 5))
    message = r"map of \(14, 14\) is regressed to \(12, 12\), and the teacher's is \(10, 10\)"
    with pytest.raises(ValueError, match=message):
        loss(random(2, 3, 14, 14), random(2, 5, 10, 10))
    message = r"map of \(3, 3\) is regressed to \(1, 1\), and the teacher's is \(2, 2\)"
    with pytest.raises(ValueError, match=message):  # these would be broadcast
        loss(random(2, 3, 3, 3), random(2, 5, 2, 2))


# VID


@pytest.mark.parametrize('sizes', [(4, 4), (8, 4), (4, 8)])
def test_vid_is_the_negative_log_likelihood(sizes):
    loss = connected(VIDLoss(init_variance=2.0, eps=0.1), (3, *2 * sizes[:1]), (5, *2 * sizes[1:]))
    with torch.no_grad():
        loss.log_scale += random(5, seed=3)
    s, t = random(2, 3, *2 * sizes[:1]), random(2, 5, *2 * sizes[1:], seed=1)
    value = loss(s, t).item()
    s, t = (F.adaptive_avg_pool2d(each, min(sizes)) for each in (s, t))
    mean, expected = loss.regressor(s), 0.0
    for c in range(5):
        variance = math.log(1 + math.exp(loss.log_scale[c].item())) + 0.1
        error = ((t[:, c] - mean[:, c]) ** 2).sum().item()
        expected += error / (2 * variance) + 0.5 * math.log(variance) * t[:, c].numel()
    assert value == pytest.approx(expected / t.numel(), rel=1e-9)


def test_vid_starts_at_its_variance():
    loss = connected(VIDLoss(), (3, 4, 4), (5, 4, 4))
    torch.testing.assert_close(F.softplus(loss.log_scale) + 1e-5, torch.full((5,), 5.0).double())


# OFD


def test_ofd_by_hand():
    """One channel, two samples of two positions."""
    loss = connected(OFDLoss(), (1, 1, 2), (1, 1, 2))
    loss.connector = torch.nn.Identity()
    student = torch.tensor([[[[3.0, -2.0]]], [[[-5.0, 0.0]]]])
    teacher = torch.tensor([[[[1.0, -1.0]]], [[[-3.0, 2.0]]]])
    # The margin is -2: the goals are 1, -1, -2 and 2, and -2 and -5 lie below theirs
    assert loss(student, teacher).item() == pytest.approx((4 + 0 + 0 + 4) / 4)
    assert loss.negative_sum.tolist() == [-4] and loss.negative_count.tolist() == [2]
    loss.eval()
    # Goals -1, 1, 3 and -2: only -2, -5 and 3 are compared with a positive goal or lie above theirs
    assert loss(student, -teacher).item() == pytest.approx((16 + 9 + 64 + 4) / 4)
    assert loss.negative_count.tolist() == [2]


def reference_ofd(student, teacher, margins):
    value = 0.0
    for n, c, i, j in torch.cartesian_prod(*map(torch.arange, teacher.shape)).tolist():
        s, t = student[n, c, i, j].item(), teacher[n, c, i, j].item()
        goal = max(t, margins[c].item())
        if s > goal or goal > 0:
            value += (s - goal) ** 2
    return value / teacher.numel()


def test_ofd_reference():
    loss = connected(OFDLoss(), (3, 4, 4), (5, 4, 4))
    s, t = random(3, 3, 4, 4), random(3, 5, 4, 4, seed=1) - 0.3
    margins = torch.stack([each[each < 0].mean() for each in t.transpose(0, 1)])
    value = loss(s, t).item()
    assert value == pytest.approx(reference_ofd(loss.connector(s), t, margins), rel=1e-9)


def test_ofd_margins_are_those_of_batch_norm():
    """The authors' closed form for N(b, w²): b - w · pdf(b / w) / cdf(-b / w)."""
    normal = torch.distributions.Normal(0.0, 1.0)
    mean, std = torch.tensor([0.5, -1.0, 0.0]), torch.tensor([1.0, 0.5, 2.0])
    ratio = mean / std
    expected = mean - std * normal.log_prob(ratio).exp() / normal.cdf(-ratio)
    loss = connected(OFDLoss(), (3, 16, 16), (3, 16, 16), torch.float32)
    for seed in range(20):
        teacher = mean[:, None, None] + std[:, None, None] * random(16, 3, 16, 16, seed=seed)
        loss(torch.zeros(16, 3, 16, 16), teacher.float())
    margins = loss.negative_sum / loss.negative_count
    torch.testing.assert_close(margins.float(), expected, rtol=0.02, atol=0)


@pytest.mark.parametrize('training, gradients', [(False, True), (True, False)])
def test_ofd_counts_in_training_steps_only(monkeypatch, training, gradients):
    """A trial, or an evaluation, may run in one rank alone."""
    loss = connected(OFDLoss(), (3, 4, 4), (5, 4, 4)).train(training)
    monkeypatch.setattr(regression, 'all_reduce', None)
    with torch.set_grad_enabled(gradients):
        assert loss(random(2, 3, 4, 4), random(2, 5, 4, 4)).isfinite()
    assert loss.negative_count.sum() == 0


def test_ofd_starts_as_the_authors_do():
    weight = connected(OFDLoss(), (50, 1, 1), (200, 1, 1)).connector[0].weight
    assert weight.std().item() == pytest.approx((2 / 200) ** 0.5, rel=0.03)


def test_ofd_brings_the_student_to_the_teachers_size():
    loss = connected(OFDLoss(), (3, 4, 6), (5, 2, 2)).eval()
    s, t = random(2, 3, 4, 6), random(2, 5, 2, 2, seed=1)
    pooled = loss.connector(s).view(2, 5, 2, 2, 2, 3).mean((3, 5))
    expected = reference_ofd(pooled, t, torch.zeros(5))
    assert loss(s, t).item() == pytest.approx(expected, rel=1e-9)


def test_ofd_without_negative_responses_is_a_plain_distance():
    loss = connected(OFDLoss(), (2, 3, 3), (2, 3, 3))
    s, t = random(2, 2, 3, 3), random(2, 2, 3, 3, seed=1).abs() + 0.1
    assert loss(s, t).item() == pytest.approx(F.mse_loss(loss.connector(s), t).item())


# All


@pytest.mark.parametrize('kind', LOSSES)
def test_gradients_reach_the_student_and_the_layers_and_not_the_teacher(kind):
    loss = connected(kind(), (3, 4, 4), (5, 4, 4))
    s, t = random(4, 3, 4, 4).requires_grad_(), random(4, 5, 4, 4, seed=1).requires_grad_()
    loss(s, t).backward()
    assert s.grad.norm() > 0 and t.grad is None
    assert all(parameter.grad.norm() > 0 for parameter in loss.parameters() if parameter.dim() > 1)
    loss.eval()
    x, t = random(2, 3, 4, 4, seed=5).requires_grad_(), t.detach()[:2]
    assert torch.autograd.gradcheck(lambda x: loss(x, t), x)


@pytest.mark.parametrize('kind', LOSSES)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_and_large_values(kind, dtype):
    loss = connected(kind(), (3, 4, 4), (5, 4, 4), torch.float32)
    s, t = random(4, 3, 4, 4, dtype=dtype), random(4, 5, 4, 4, seed=1, dtype=dtype)
    twin = copy.deepcopy(loss)
    value = loss(s, t)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(twin(s.float(), t.float()).item())
    assert loss(s * 0 + 6e4, t * 0 - 6e4).isfinite()


@pytest.mark.parametrize('kind', LOSSES)
def test_layers_are_trained_and_saved(kind):
    terms = dict(hint=dict(type=kind.__name__, at='backbone.body.0'))
    model = distiller(terms).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {name: value.clone() for name, value in model.terms.state_dict().items()}
    for _ in range(2):
        optimizer.zero_grad()
        total(model(*batch(), mode='loss')).backward()
        optimizer.step()
    after = model.terms.state_dict()
    assert before and all(not torch.equal(after[name], before[name]) for name in before)
    state = model.state_dict()
    assert all(torch.equal(state[f'distill.terms.{name}'], after[name]) for name in after)
    twin = distiller(terms)
    twin.load_state_dict(state)
    for name, value in twin.terms.state_dict().items():
        assert torch.equal(value, after[name])


@pytest.mark.parametrize('kind', LOSSES)
@pytest.mark.parametrize(
    'at, message',
    [
        ('logits', r"student's tap holds \(2, 4\)"),
        (('backbone.body', 'embedding'), r"teacher's tap holds \(2, 8\)"),
        ((['backbone.body'], 'backbone.body'), "student's tap holds list"),
    ],
)
def test_what_is_no_map_is_refused(kind, at, message):
    with pytest.raises(ValueError, match=f'terms.hint.at: {kind.__name__}: one map .*{message}'):
        distiller(dict(hint=dict(type=kind.__name__, at=at)))


@pytest.mark.parametrize(
    'arguments', [dict(init_variance=1e-6), dict(eps=0), dict(init_variance=0)]
)
def test_variances_out_of_range(arguments):
    with pytest.raises(
        ValueError, match='(init_variance|eps) is .*; it must be a finite number above'
    ):
        VIDLoss(**arguments)


# Published weights


def relu(maps):
    return np.maximum(maps.detach().numpy(), 0)


def test_weight_of_fitnet():
    """RepDistiller and mdistiller: 100, mean over the elements, after a ReLU."""
    loss = connected(FitNetLoss(), (3, 8, 8), (5, 4, 4))
    s, t = random(4, 3, 8, 8), random(4, 5, 4, 4, seed=1)
    conv, norm, _ = loss.regressor
    toolkit = 100 * np.square(relu(norm(conv(s))) - t.numpy()).mean()
    assert 100 * loss(s, t).item() == pytest.approx(toolkit)


def test_weight_of_vid():
    """RepDistiller and mdistiller: 1 for each stage, mean over the elements."""
    shapes = ((3, 8, 8), (5, 8, 8)), ((4, 4, 4), (6, 4, 4))
    ours = toolkit = 0.0
    for s_shape, t_shape in shapes:
        loss = connected(VIDLoss(), s_shape, t_shape)
        s, t = random(4, *s_shape), random(4, *t_shape, seed=1)
        ours += 1 * loss(s, t).item()
        mean = loss.regressor(s).detach().numpy()
        variance = np.log(1 + np.exp(loss.log_scale.detach().numpy())) + 1e-5
        error = np.square(mean - t.numpy()) / variance[None, :, None, None]
        toolkit += (0.5 * (error + np.log(variance)[None, :, None, None])).mean()
    assert ours == pytest.approx(toolkit, rel=1e-9)


@pytest.mark.parametrize('published', [1e-3, 1e-4])
def test_weight_of_ofd(published):
    """The authors, mdistiller: sums over N, times 1e-3 (CIFAR) or 1e-4 (ImageNet), halved by stage."""
    shapes = ((3, 8, 8), (5, 8, 8)), ((4, 4, 4), (6, 4, 4)), ((5, 2, 2), (7, 2, 2))
    ours = toolkit = 0.0
    for i, (s_shape, t_shape) in enumerate(shapes, start=1):
        loss = connected(OFDLoss(), s_shape, t_shape)
        s, t = random(4, *s_shape), random(4, *t_shape, seed=1)
        ours += published * math.prod(t_shape) / 2 ** (3 - i) * loss(s, t).item()
        source, margin = (each.detach().numpy() for each in (loss.connector(s), loss.negative_sum))
        margin = (margin / loss.negative_count.numpy())[None, :, None, None]
        goal = np.maximum(t.numpy(), margin)
        squares = np.square(source - goal) * ((source > goal) | (goal > 0))
        toolkit += published * squares.sum() / len(t) / 2 ** (3 - i)
    assert ours == pytest.approx(toolkit, rel=1e-9)
