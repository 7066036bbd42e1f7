"""VkDLoss against the numbers of an fp64 reference, layouts, limits, training and mistakes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tiny import batch, distiller, total

from mmkdx.losses import VkDLoss, orthogonal


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


STUDENT = tensor(
    [[[[0, 2], [1, 1]], [[3, 1], [2, 2]]], [[[-1, 0], [-0.5, -0.5]], [[1, 0], [0, 0]]]]
)
TEACHER = tensor(
    [
        [[[1, 3], [2, 2]], [[0, 0], [1, 3]], [[4, 2], [0, 2]]],
        [[[2, 0], [0, 2]], [[1, 1], [0, 4]], [[5, 3], [2, 2]]],
    ]
)
P = tensor([[0.6, 0], [0.8, 0], [0, 1]])


def projected(weight=P, **arguments):
    """A loss with a projection of this weight (D, C)."""
    loss = VkDLoss(**arguments)
    outputs, inputs = weight.shape
    loss.connect(torch.empty(2, inputs), torch.empty(2, outputs))
    loss.projection.linear = torch.nn.Linear(inputs, outputs, bias=False).double()
    loss.projection.linear.weight.data = weight
    return loss


@pytest.mark.parametrize(
    'expected, arguments',
    [
        (0.561208189840, {}),
        (1.384935337900, dict(criterion='mse')),
        (0.895, dict(normalize='none')),
        (0.573307642206, dict(normalize='batch', pool=False, eps=1e-14)),
    ],
)
def test_values(expected, arguments):
    loss = projected(**arguments)
    assert loss(STUDENT, TEACHER).item() == pytest.approx(expected, rel=1e-11)


def test_gradients():
    loss = projected()
    student = STUDENT.mean((2, 3)).requires_grad_()
    given = [student, loss.projection.linear.weight]
    gradients = torch.autograd.grad(loss(student, TEACHER.mean((2, 3))), given)
    expected = [
        [[0.122624246151, 1 / 6], [0.067021329359, -1 / 6]],
        [
            [-0.074562969231, -0.007339711977],
            [0.167314203762, 0.333009564785],
            [0.25, 0.291666666667],
        ],
    ]
    for found, values in zip(gradients, expected):
        torch.testing.assert_close(found, tensor(values), rtol=0, atol=1e-11)


def test_a_teacher_of_fewer_channels(monkeypatch):
    said = []
    monkeypatch.setattr(orthogonal, 'print_log', lambda text, **_: said.append(text))
    loss = projected(tensor([[0.6, 0.8, 0], [0, 0, 1]]))
    found = loss(tensor([[1, 2, 0], [-0.5, 0.25, 1]]), tensor([[1, 3], [2, -1]]))
    assert found.item() == pytest.approx(1.324996388914, rel=1e-11)
    (text,) = said
    assert text.startswith(
        "VkDLoss: the teacher's 2 channels are fewer than the student's 3, so the"
    )
    projected()
    assert len(said) == 1


def test_maps_tokens_and_vectors_are_the_same():
    tokens = [maps.flatten(2).mT for maps in (STUDENT, TEACHER)]
    special = [torch.cat([torch.full_like(each[:, :1], 9.0), each], 1) for each in tokens]
    vectors = [maps.mean((2, 3)) for maps in (STUDENT, TEACHER)]
    loss = projected()
    for student, teacher in (
        tokens,
        special,
        vectors,
        (STUDENT, special[1]),
        (vectors[0], TEACHER),
    ):
        assert loss(student, teacher).item() == pytest.approx(0.561208189840, rel=1e-11)
    loss = projected(normalize='none', pool=False)
    expected = F.smooth_l1_loss(torch.einsum('dc,nchw->ndhw', P, STUDENT), TEACHER).item()
    for student, teacher in ((STUDENT, TEACHER), tokens, special):
        assert loss(student, teacher).item() == pytest.approx(expected, rel=1e-12)
    large = STUDENT.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert loss(large, TEACHER).item() == pytest.approx(expected, rel=1e-12)


def test_lengths_and_angles_are_kept():
    torch.manual_seed(0)
    loss = VkDLoss(normalize='none')
    student, teacher = torch.randn(4, 5), torch.randn(4, 8)
    loss.connect(student, teacher)
    out = loss.projection(student)
    torch.testing.assert_close(out @ out.T, student @ student.T)
    loss(student, teacher)
    ratio = student.norm(dim=1).mean() / teacher.norm(dim=1).mean()
    torch.testing.assert_close(loss.logs['norm_ratio'], ratio)


def test_what_the_normalisation_does_not_see():
    loss = projected(eps=1e-12)
    expected = loss(STUDENT, TEACHER).item()
    scale = tensor([2, 30])[:, None, None, None]
    assert loss(STUDENT, scale * TEACHER - 7).item() == pytest.approx(expected, rel=1e-9)
    loss = projected(normalize='batch', pool=False, eps=1e-12)
    expected = loss(STUDENT, TEACHER).item()
    scale = tensor([2, 30, 0.1])[:, None, None]
    assert loss(STUDENT, scale * TEACHER - 7).item() == pytest.approx(expected, rel=1e-9)


def test_without_normalisation_and_projection_it_is_the_squared_error():
    loss = projected(torch.eye(3, dtype=torch.float64), normalize='none', criterion='mse')
    student, teacher = torch.randn(2, 4, 3, dtype=torch.float64)
    assert torch.equal(loss(student, teacher), F.mse_loss(student, teacher))


def test_shards_have_the_same_mean():
    loss = projected()
    halves = [loss(STUDENT[[i]], TEACHER[[i]]).item() for i in (0, 1)]
    assert sum(halves) / 2 == pytest.approx(0.561208189840, rel=1e-11)


@pytest.mark.parametrize('normalize', ['layer', 'batch'])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bfloat16])
def test_constant_features_and_half_precision(normalize, dtype):
    teacher = torch.ones_like(TEACHER).to(dtype)
    student = STUDENT.to(dtype).requires_grad_()
    loss = VkDLoss(normalize, pool=False)
    loss.connect(student, teacher)
    loss.to(torch.float64 if dtype == torch.float64 else torch.float32)
    with torch.autocast('cpu', torch.bfloat16, enabled=dtype != torch.float64):
        found = loss(student, teacher)
    assert found.isfinite() and found.dtype == loss.projection.linear.weight.dtype
    assert torch.autograd.grad(found, student)[0].isfinite().all()
    assert loss(student, student.new_zeros(TEACHER.shape)).item() == pytest.approx(
        found.item(), rel=1e-5
    )


@pytest.mark.parametrize('train', [True, False])
def test_it_trains(train):
    torch.manual_seed(0)
    table, teacher = torch.nn.Embedding(16, 8), torch.randn(16, 32)
    loss = VkDLoss(train=train)
    loss.connect(table.weight, teacher)
    start = loss.projection.linear.weight.detach().clone()
    optimizer = torch.optim.Adam([*table.parameters(), *loss.parameters()], lr=1e-2)
    values = []
    for _ in range(100):
        optimizer.zero_grad()
        value = loss(table.weight, teacher)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.8 * values[0]
    weight = loss.projection.linear.weight.detach()
    torch.testing.assert_close(weight.T @ weight, torch.eye(8), rtol=0, atol=1e-5)
    assert torch.equal(weight, start) != train


def test_a_step_of_a_distiller_and_its_checkpoint():
    terms = dict(vkd=dict(type='VkDLoss', at='features'))
    model = distiller(terms).train()
    losses = model(*batch(), 'loss')
    assert 'vkd.norm_ratio' in losses
    total(losses).backward()
    assert all(each.grad is not None for each in model.terms.vkd.parameters())
    keys = [key for key in model.state_dict() if 'projection' in key]
    assert len(keys) == 2 and all(key.startswith('distill.') for key in keys)
    other = distiller(terms).train()
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    weights = (each.terms.vkd.loss.projection.linear.weight for each in (model, other))
    torch.testing.assert_close(*weights, rtol=0, atol=0)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(normalize='whiten'), "normalize is 'whiten'; it must be one of layer, batch, none"),
        (dict(criterion='l1'), "criterion is 'l1'; it must be one of smooth_l1, mse"),
        (dict(eps=0), 'eps is 0; it must be a finite number above 0'),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=f'^{message}'):
        VkDLoss(**arguments)


@pytest.mark.parametrize(
    'arguments, student, teacher, message',
    [
        (
            {},
            torch.zeros(2),
            torch.zeros(2, 3),
            r"one map .* are needed, and the student's tap holds \(2,",
        ),
        ({}, torch.zeros(2, 3), [], "one map .* are needed, and the teacher's tap holds list"),
        (
            {},
            torch.zeros(2, 3),
            torch.zeros(2, 1),
            "normalize='layer' turns a single channel into 0;",
        ),
        (
            dict(pool=False),
            torch.zeros(2, 3),
            torch.zeros(2, 3, 4, 4),
            'pool=False compares positions, and one side has vectors; set pool=True',
        ),
    ],
)
def test_values_that_do_not_fit(arguments, student, teacher, message):
    with pytest.raises(ValueError, match=f'^{message}'):
        VkDLoss(**arguments).connect(student, teacher)


def test_one_row():
    with pytest.raises(
        ValueError, match="^normalize='batch' needs two samples or positions, and there"
    ):
        projected(normalize='batch')(STUDENT[:1], TEACHER[:1])
