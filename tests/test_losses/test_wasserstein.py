"""WKDLogitLoss and WKDFeatureLoss against numbers of fp64 references, linear programs and limits."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from tiny import batch, distiller, total

from mmkdx.functional import ClassMaps
from mmkdx.losses import WKDFeatureLoss, WKDLogitLoss
from mmkdx.losses.wasserstein import sinkhorn, transport_cost


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


WEIGHT = tensor([[1, 0], [0.8, 0.6], [0, 1], [-0.6, 0.8]])
S = tensor([[2, 1, 0.5, -1], [0.2, 1.5, -0.3, 0.4]])
T = tensor([[3, 2, -1, 0], [-0.5, 2, 1, 0.6]])
LABELS = torch.tensor([0, 2])


def maps(logits, weight=WEIGHT):
    """Class maps with these logits, and with this weight."""
    features = torch.zeros(len(logits), weight.shape[1], 2, 2, dtype=logits.dtype)
    found = ClassMaps(features, weight.to(logits))
    found.logits = lambda: logits
    return found


def value(student=S, teacher=T, labels=LABELS, weight=WEIGHT, **arguments):
    loss = WKDLogitLoss(**arguments)
    found = loss(
        maps(student, weight), maps(teacher, weight), *((labels,) if loss.separate else ())
    )
    return found, {key: each.item() for key, each in loss.logs.items()}


def distributions(logits, tau=2):
    """Of the classes other than the label."""
    return (logits / tau).scatter(1, LABELS[:, None], -torch.inf).softmax(1)


def least_cost(a, b, cost):
    """By linear programming."""
    k = len(a)
    rows = np.kron(np.eye(k), np.ones(k)), np.kron(np.ones(k), np.eye(k))
    found = linprog(cost.flatten(), A_eq=np.concatenate(rows), b_eq=np.concatenate([a, b]))
    return found.fun


@pytest.mark.parametrize(
    'kappa, expected',
    [
        (1, [0.181269246922, 0.632120558829, 0.798103482005, 0.329679953964, 0.632120558829]),
        (2, [0.329679953964, 0.864664716763, 0.959237796022, 0.550671035883, 0.864664716763]),
        (0, [0.2, 1, 1.6, 0.4, 1]),
    ],
)
def test_costs(kappa, expected):
    cost = transport_cost(WEIGHT @ WEIGHT.T, kappa)
    upper = torch.triu_indices(4, 4, 1).unbind()
    torch.testing.assert_close(cost[upper], tensor([*expected, expected[0]]), rtol=0, atol=1e-11)
    assert cost.diagonal().count_nonzero() == 0 and torch.equal(cost, cost.T)
    torch.testing.assert_close(WKDLogitLoss(kappa=kappa)._weight_cost(maps(T, 3 * WEIGHT)), cost)


@pytest.mark.parametrize(
    'transport, arguments',
    [
        (0.038442606427, {}),
        (0.057561429842, dict(tau=1)),
        (0.016127710681, dict(tau=4)),
        (0.048864693144, dict(kappa=2)),
        (0.032740525356, dict(separate=False)),
        (0.004251164891, dict(iterations=1)),
        (0.008245296137, dict(iterations=2)),
        (0.026516226509, dict(iterations=5)),
        (0.040259520624, dict(iterations=20)),
        (0.040321153825, dict(iterations=100)),
        (0.041532502408, dict(iterations=1000)),
    ],
)
def test_values(transport, arguments):
    found, logs = value(transport_weight=30, **arguments)
    target = 0 if arguments.get('separate') is False else 0.429521768618
    assert logs['transport'] == pytest.approx(transport, rel=1e-10)
    assert logs.get('target', 0) == pytest.approx(target, rel=1e-11)
    assert found.item() == pytest.approx(target + 30 * transport, rel=1e-10)


def test_samples_and_parts():
    assert value(transport_weight=30)[0].item() == pytest.approx(1.582799961435, rel=1e-11)
    assert value(transport_weight=0)[0].item() == pytest.approx(0.429521768618, rel=1e-11)
    found = [value(S[[i]], T[[i]], LABELS[[i]], target_weight=0) for i in (0, 1)]
    values = [each.item() for each, _ in found]
    assert values == pytest.approx([0.061039562645, 0.015845650209], rel=1e-10)
    # Below the least cost, as columns do not sum to the teacher's probabilities
    assert values[1] < 0.018195347029
    errors = [logs['column_error'] for _, logs in found]
    assert max(errors) == pytest.approx(0.0206, abs=5e-5)
    assert not found[0][1].keys() & {'target'}


def test_many_iterations_come_near_the_least_cost():
    a, b, cost = distributions(S), distributions(T), transport_cost(WEIGHT @ WEIGHT.T, 1)
    expected = [least_cost(*pair, cost.numpy()) for pair in zip(a.numpy(), b.numpy())]
    assert expected == pytest.approx([0.064487090076, 0.018195347029], rel=1e-9)
    found = {}
    for reg, iterations in ((0.1, 2000), (0.05, 4000)):
        values, error = sinkhorn(a, b, cost, reg, iterations)
        assert error < 1e-8
        found[reg] = values.mean().item()
    assert found[0.1] == pytest.approx(0.046851527596, rel=1e-7)
    assert found[0.05] == pytest.approx(0.041532599344, rel=1e-7)
    assert found[0.1] > found[0.05] > np.mean(expected)


def test_other_costs():
    a, b = distributions(S), distributions(T)
    discrete = 1 - torch.eye(4, dtype=torch.float64)
    variation = (a - b).abs().sum(1) / 2
    torch.testing.assert_close(variation, tensor([0.222548721404, 0.088033373271]))
    found, _ = sinkhorn(a, b, discrete, 0.05, 500)
    torch.testing.assert_close(found, variation, rtol=1e-4, atol=1e-6)
    # However large reg is, nothing but the independent plan is left
    cost = transport_cost(WEIGHT @ WEIGHT.T, 1)
    found, _ = sinkhorn(a, b, cost, 1e9, 2)
    torch.testing.assert_close(found, tensor([0.252451154523, 0.311004271311]))
    two = tensor([[0, 0.4], [0.4, 0]])
    found, _ = sinkhorn(tensor([[0.7, 0.3]]), tensor([[0.45, 0.55]]), two, 0.01, 200)
    assert found.item() == pytest.approx(0.1, rel=1e-6)
    same = S.clone().requires_grad_()
    found, _ = value(same, weight=WEIGHT[:1].expand(4, -1), target_weight=0)
    assert found.item() == 0
    assert torch.autograd.grad(found, same)[0].count_nonzero() == 0


def test_equal_logits_are_not_stationary():
    student = T.clone().requires_grad_()
    found, _ = value(student, target_weight=0)
    assert found.item() == pytest.approx(0.002426344157, rel=1e-9)
    (gradient,) = torch.autograd.grad(found, student)
    expected = tensor([0, -0.000661946, 0.000610882, 0.000051064])
    torch.testing.assert_close(gradient[0], expected, rtol=0, atol=1e-8)


def test_gradients():
    student = S.clone().requires_grad_()
    expected = dict(
        target_weight=[
            [-0.135983571, 0.078067760, 0.047350490, 0.010565322],
            [0.016686978, 0.061229473, -0.098297972, 0.020381521],
        ],
        transport_weight=[
            [0, -0.019525809, 0.018952509, 0.000573300],
            [0.007905955, -0.006819446, 0, -0.001086508],
        ],
    )
    for part, other in (list(expected), list(expected)[::-1]):
        found, _ = value(student, **{other: 0})
        (gradient,) = torch.autograd.grad(found, student)
        torch.testing.assert_close(gradient, tensor(expected[part]), rtol=0, atol=1e-8)


def test_what_does_not_count():
    expected, _ = value()
    moved, _ = value(S + T[:, :1], T - 3)
    assert moved.item() == pytest.approx(expected.item(), rel=1e-11)
    order = torch.tensor([2, 0, 3, 1])
    found, _ = value(S[:, order], T[:, order], order.argsort()[LABELS], WEIGHT[order])
    assert found.item() == pytest.approx(expected.item(), rel=1e-11)
    halves = [value(S[[i]], T[[i]], LABELS[[i]])[0].item() for i in (0, 1)]
    assert sum(halves) / 2 == pytest.approx(expected.item(), rel=1e-12)
    found, _ = value(separate=False, labels=LABELS.flip(0))
    assert found.item() == pytest.approx(0.032740525356, rel=1e-10)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('reg', [0.05, 0.011])
def test_half_precision_and_saturation(dtype, reg):
    with torch.autocast('cpu', torch.bfloat16):
        found, _ = value(S.to(dtype), T.to(dtype), reg=reg)
    assert found.dtype == torch.float32
    exact, _ = value(S.to(dtype).double(), T.to(dtype).double(), reg=reg)
    assert found.item() == pytest.approx(
        exact.item(), rel=1e-2 if dtype == torch.bfloat16 else 1e-3
    )
    student = (1e3 * S).to(dtype).requires_grad_()
    found, _ = value(student, (1e3 * T).to(dtype), reg=reg)
    assert found.isfinite() and torch.autograd.grad(found, student)[0].isfinite().all()


def test_many_classes_in_single_precision():
    generator = torch.Generator().manual_seed(0)
    s, t = 3 * torch.randn(2, 4, 1000, generator=generator)
    weight = torch.randn(1000, 16, generator=generator)
    labels = torch.arange(4)
    found, exact = (
        value(s.to(dtype), t.to(dtype), labels, weight.to(dtype), target_weight=0)[0].item()
        for dtype in (torch.float32, torch.float64)
    )
    assert found == pytest.approx(exact, rel=2e-6)


def test_numbers_of_classes():
    two = S[:, :2], T[:, :2], LABELS % 2, WEIGHT[:2]
    assert 0 < value(*two, separate=False)[0] < 1
    with pytest.raises(
        ValueError, match='^WKDLogitLoss compares 3 classes or more, and there are 2$'
    ):
        value(*two)


def test_a_step_of_a_distiller():
    terms = dict(
        wkd=dict(type='WKDLogitLoss', at='cam'), f=dict(type='WKDFeatureLoss', at='features')
    )
    model = distiller(terms).train()
    losses = model(*batch(), 'loss')
    assert {'wkd.target', 'wkd.transport', 'wkd.column_error', 'f.mean', 'f.std'} <= set(losses)
    total(losses).backward()
    assert all(p.grad is not None for p in model.terms.f.parameters())
    assert not list(model.terms.wkd.parameters())


@pytest.fixture
def file(tmp_path):
    def write(**changes):
        found = dict(
            mass=torch.tensor(0.5),
            class_mean=torch.full((4, 4), 0.25),
            weight_similarity=None,
            tau=1.0,
            class_cka=WEIGHT @ WEIGHT.T,
        )
        torch.save({**found, **changes}, tmp_path / 'statistics.pth')
        return str(tmp_path / 'statistics.pth')

    return write


def test_a_file_of_similarities(file):
    loss = WKDLogitLoss(similarity='cka', statistics=file(), transport_weight=30)
    assert loss.compares == 'logits' and not loss.state_dict()
    assert loss(S, T, LABELS).item() == pytest.approx(1.582799961435, rel=1e-11)
    with pytest.raises(
        ValueError, match='statistics are of 4 classes, and the teacher has 3 classes'
    ):
        loss(S[:, :3], T[:, :3], LABELS)


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(class_cka=None), 'statistics: .* has no class_cka; make it with tools/.* --cka'),
        (dict(class_cka=WEIGHT), 'class_cka of .* is no symmetric K x K matrix of numbers'),
        (dict(class_cka=torch.full((4, 4), torch.nan)), 'class_cka of .* is no symmetric K x K'),
        (dict(class_cka=torch.ones(4, 4).tril()), 'class_cka of .* is no symmetric K x K'),
        (dict(class_cka=torch.zeros(4, 4)), 'class_cka of .* is not 1 between a class and itself'),
    ],
)
def test_bad_files(file, changes, message):
    with pytest.raises(ValueError, match=message):
        WKDLogitLoss(similarity='cka', statistics=file(**changes))


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(tau=0), 'tau is 0; it must be a finite number above 0'),
        (dict(reg=0), 'reg is 0; it must be a finite number above 0'),
        (dict(iterations=0), 'iterations is 0; it must be an integer of at least 1'),
        (dict(kappa=-1), 'kappa is -1; it must be a finite number of at least 0'),
        (dict(similarity='fc'), "similarity is 'fc'; it must be one of weight, cka"),
        (dict(similarity='cka'), "statistics goes with similarity='cka', and only with it"),
        (dict(statistics='a.pth'), "statistics goes with similarity='cka', and only with it"),
        (
            dict(target_weight=0, transport_weight=0),
            'target_weight and transport_weight are 0, so nothing is compared',
        ),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=f'^{message}'):
        WKDLogitLoss(**arguments)


def test_a_kernel_without_digits(file):
    message = (
        '^reg is 0.01 and the largest cost of a pair of classes 0.865; set reg to at least 0.011,'
    )
    with pytest.raises(ValueError, match=message):
        WKDLogitLoss(reg=0.01).check(maps(S), maps(T))
    with pytest.raises(
        ValueError, match='^reg is 0.001 and the largest cost of a pair of classes 0.798;'
    ):
        WKDLogitLoss(reg=0.001, similarity='cka', statistics=file())


def test_a_teacher_without_a_linear_classifier():
    bare = torch.zeros(2, 4, 3, 3)
    for teacher in (bare, ClassMaps(bare)):
        with pytest.raises(
            ValueError, match="^similarity='weight' needs the teacher's tap 'cam' and"
        ):
            WKDLogitLoss().check(maps(S), teacher)


# Features


def bare(**arguments):
    """A loss without a projector."""
    loss = WKDFeatureLoss(**arguments)
    loss.projector = torch.nn.Identity()
    return loss


def squares():
    s = [[[[1, 2], [3, 4]], [[0, 1], [0, 2]]], [[[2, 2], [2, 2]], [[1, 0], [3, 0]]]]
    t = [[[[2, 2], [4, 6]], [[1, 0], [1, 0]]], [[[0, 1], [2, 3]], [[0, 0], [4, 0]]]]
    return tensor(s), tensor(t)


def ramps():
    count = torch.arange(32.0, dtype=torch.float64).view(1, 2, 4, 4)
    return count % 7, count.flip(2) % 5


def test_gaussians_by_hand():
    loss = bare(reduction='sum')
    assert loss(*squares()).item() == pytest.approx(2.580160718900, rel=1e-11)
    logs = {key: each.item() for key, each in loss.logs.items()}
    assert logs == pytest.approx(dict(mean=0.65625, std=1.267660718900), rel=1e-11)
    assert bare()(*squares()).item() == pytest.approx(1.290080359450, rel=1e-11)
    assert bare(mean_ratio=0)(*squares()).item() == pytest.approx(1.267660718900 / 2, rel=1e-11)


@pytest.mark.parametrize(
    'grid, mean, std', [(2, 3.390625, 1.873732286829), (1, 1.66015625, 0.647113905366)]
)
def test_cells(grid, mean, std):
    loss = bare(grid=grid, reduction='sum', mean_ratio=3)
    assert loss(*ramps()).item() == pytest.approx(3 * mean + std, rel=1e-11)
    assert loss.logs['mean'].item() == pytest.approx(mean, rel=1e-12)


def test_a_batch_of_one():
    s, t = squares()
    halves = [bare()(s[[i]], t[[i]]).item() for i in (0, 1)]
    assert sum(halves) / 2 == pytest.approx(1.290080359450, rel=1e-11)


def test_cells_are_those_of_adaptive_pooling():
    maps = torch.randn(2, 3, 7, 5, dtype=torch.float64)
    _, means = bare(grid=3)._moments(maps)
    pooled = torch.nn.functional.adaptive_avg_pool2d(maps, 3)
    torch.testing.assert_close(means, pooled.flatten(2))


def test_what_gaussians_do_not_see():
    s, t = ramps()
    loss = bare(grid=2)
    expected = loss(s, t).item()
    swapped = s[:, :, [1, 0, 3, 2]]  # within cells
    assert loss(swapped, t).item() == pytest.approx(expected, rel=1e-12)
    assert loss(t[:, :, [1, 0, 2, 3]], t).item() == pytest.approx(0, abs=1e-25)
    std = loss.logs['std'].item()
    loss(t + 5, t)
    assert loss.logs['std'].item() == pytest.approx(std, abs=1e-12)
    assert loss.logs['mean'].item() == pytest.approx(25)
    constant = torch.ones_like(t, requires_grad=True)
    found = loss(constant, t)
    assert torch.autograd.grad(found, constant)[0].isfinite().all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_features_in_half_precision(dtype):
    s, t = (1000 + each for each in ramps())
    found = bare()(s.to(dtype), t.to(dtype))
    assert found.dtype == torch.float32
    exact = bare()(s.to(dtype).double(), t.to(dtype).double())
    assert found.item() == pytest.approx(exact.item(), rel=1e-4)


@pytest.mark.parametrize('side, goal', [(4, 4), (8, 4), (4, 8), (7, 5)])
@pytest.mark.parametrize('projector', ['conv', 'bottleneck'])
def test_projectors(side, goal, projector):
    student, teacher = torch.randn(2, 3, side, side), torch.randn(2, 5, goal, goal)
    loss = WKDFeatureLoss(projector=projector, grid=2)
    loss.connect(student, teacher)
    assert loss(student, teacher).isfinite()
    kernels = [m.kernel_size for m in loss.projector.modules() if hasattr(m, 'kernel_size')]
    if (projector, side) == ('bottleneck', goal):
        assert kernels == [(1, 1), (3, 3), (1, 1)]
    assert len(kernels) == (1 if projector == 'conv' else 3)
    with pytest.raises(ValueError, match=r'map is projected to \(5, .* of another size'):
        loss(torch.randn(2, 3, 2 * side, 2 * side), teacher)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(mean_ratio=-1), 'mean_ratio is -1; it must be a finite number of at least 0'),
        (dict(grid=0), 'grid is 0; it must be an integer of at least 1'),
        (dict(eps=0), 'eps is 0; it must be a finite number above 0'),
        (dict(projector='fc'), "projector is 'fc'; it must be one of conv, bottleneck"),
        (dict(reduction='max'), "reduction is 'max'; it must be one of mean, sum"),
    ],
)
def test_bad_arguments_of_features(arguments, message):
    with pytest.raises(ValueError, match=f'^{message}'):
        WKDFeatureLoss(**arguments)


@pytest.mark.parametrize('grid, side', [(1, 1), (4, 4), (5, 4)])
def test_cells_of_one_position(grid, side):
    maps = torch.zeros(2, 3, side, side)
    message = (
        f'^grid is {grid} and the map of the teacher has {side}x{side} positions, so that a cell'
    )
    with pytest.raises(ValueError, match=message):
        WKDFeatureLoss(grid=grid).check(maps, maps)
