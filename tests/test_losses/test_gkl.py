"""GKLLoss against the numbers of an fp64 reference, the sum over pairs, limits and mistakes."""

import pytest
import torch

from mmkdx.losses import GKLLoss, KLDivLoss


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


S, T = tensor([[2, 1, 0.5], [0.2, 1.5, -0.3]]), tensor([[3, 2, -1], [-0.5, 2, 1]])
LABELS = torch.tensor([0, 2])
TABLE = tensor([[0.7, 0.2, 0.1], [0.15, 0.6, 0.25], [0.1, 0.3, 0.6]])


@pytest.fixture
def file(tmp_path):
    """Statistics at temperature 4."""
    path = tmp_path / 'statistics.pth'
    found = dict(mass=torch.tensor(0.6), class_mean=TABLE, weight_similarity=None, tau=4.0)
    torch.save(found, path)
    return str(path)


def by_class(file, **arguments):
    return GKLLoss(weights='class', weight_tau=4, statistics=file, **arguments)


@pytest.mark.parametrize(
    'mse, arguments',
    [
        (0.358981800385, dict(weight_tau=4)),
        (0.076788292813, {}),
        (0.501930566057, dict(weight_tau=4, gamma=0.1, normalize='batch')),
        (0.516111111111 * 9, dict(gamma=0)),
        (0.516111111111, dict(gamma=0, normalize='sample')),
        (0.516111111111, dict(gamma=0, normalize='batch')),
        (0.516111111111, dict(weights='uniform')),
    ],
)
def test_values(mse, arguments):
    loss = GKLLoss(**arguments)
    assert loss.needs == ('teacher',)
    found = loss(S, T).item()
    logs = {key: value.item() for key, value in loss.logs.items()}
    assert logs == pytest.approx(dict(mse=mse, ce=1.071473608115), rel=1e-9)
    assert found == pytest.approx(8 * mse + 1.071473608115, rel=1e-9)


@pytest.mark.parametrize(
    'total, arguments',
    [(2.993273608115, {}), (5.028201555374, dict(gamma=0.1, normalize='batch'))],
)
def test_values_by_class(file, total, arguments):
    loss = by_class(file, **arguments)
    assert loss.needs == ('teacher', 'class')
    assert loss(S, T, LABELS).item() == pytest.approx(total, rel=1e-11)
    assert not list(loss.parameters()) and not loss.state_dict()


@pytest.mark.parametrize(
    'expected, arguments',
    [
        ([[-0.0875, -0.025, 0.1125], [0.078, 0.054, -0.132]], {}),
        (
            [[-0.139484060, -0.123060245, 0.262544305], [0.171393487, -0.012457189, -0.158936299]],
            dict(gamma=0.1, normalize='batch'),
        ),
    ],
)
def test_gradients(file, expected, arguments):
    student = S.clone().requires_grad_()
    loss = by_class(file, alpha=0, beta=1, **arguments)(student, T, LABELS)
    (gradient,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(gradient, tensor(expected), rtol=0, atol=2e-9)


@pytest.mark.parametrize('normalize', ['none', 'sample', 'batch'])
def test_the_sum_over_pairs(normalize):
    generator = torch.Generator().manual_seed(0)
    s, t = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)
    loss = GKLLoss(gamma=0.3, weight_tau=2, normalize=normalize)
    loss(s, t)
    w, d = (t / 2).softmax(1) ** 0.3, t - s
    pairs = w[:, :, None] * w[:, None] * (d[:, :, None] - d[:, None]) ** 2
    pairs, square = pairs.sum((1, 2)) / 4, w.sum(1) ** 2
    expected = dict(
        none=pairs.mean(), sample=(pairs / square).mean(), batch=pairs.sum() / square.sum()
    )
    torch.testing.assert_close(loss.logs['mse'], expected[normalize], rtol=1e-12, atol=0)


def test_the_cross_entropy_has_a_sixteenth_of_the_gradient_of_the_divergence():
    student = S.clone().requires_grad_()
    one = torch.autograd.grad(GKLLoss(beta=0)(student, T), student)[0]
    other = torch.autograd.grad(KLDivLoss(4)(student, T), student)[0]
    torch.testing.assert_close(16 * one, other)


def test_a_constant_added_to_all_classes_does_not_count():
    loss = GKLLoss()
    expected = loss(S, T).item()
    assert loss(S + 100, T - 3).item() == pytest.approx(expected, rel=1e-12)
    loss(T + 1, T)
    assert loss.logs['mse'].item() == pytest.approx(0, abs=1e-28)
    assert loss.logs['ce'].item() == pytest.approx(1.046851056344, rel=1e-11)
    halves = [loss(S[[i]], T[[i]]).item() for i in (0, 1)]
    assert sum(halves) / 2 == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('gamma', [1, 0.1, 0])
def test_half_precision_and_saturation(dtype, gamma):
    loss = GKLLoss(gamma=gamma)
    with torch.autocast('cpu', torch.bfloat16):
        found = loss(S.to(dtype), T.to(dtype))
    assert found.dtype == torch.float32
    expected = loss(S.to(dtype).double(), T.to(dtype).double()).item()
    assert found.item() == pytest.approx(expected, rel=1e-5)
    student = (1e3 * S).to(dtype).requires_grad_()  # the gradient grows with the logits
    found = loss(student, (1e3 * T).to(dtype))
    assert found.isfinite() and torch.autograd.grad(found, student)[0].isfinite().all()


def test_numbers_of_classes(file):
    assert GKLLoss()(S[:, :2], T[:, :2]).isfinite()
    with pytest.raises(ValueError, match='^GKLLoss compares 2 classes or more, and there is 1$'):
        GKLLoss()(S[:, :1], T[:, :1])
    message = '^statistics: .* has 3 classes, and the teacher has 2; make it again with tools/'
    with pytest.raises(ValueError, match=message):
        by_class(file)(S[:, :2], T[:, :2], LABELS)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(tau=0), 'tau is 0; it must be a finite number above 0'),
        (dict(weight_tau=0), 'weight_tau is 0; it must be a finite number above 0'),
        (dict(gamma=-1), 'gamma is -1; it must be a finite number of at least 0'),
        (dict(alpha=0, beta=0), 'alpha and beta are 0, so nothing is compared'),
        (dict(weights='all'), "weights is 'all'; it must be one of sample, class, uniform"),
        (dict(normalize='all'), "normalize is 'all'; it must be one of none, sample, batch"),
        (dict(weights='class'), "statistics goes with weights='class', and only with it"),
        (dict(statistics='a.pth'), "statistics goes with weights='class', and only with it"),
        (dict(weights='class', statistics=3), 'statistics is 3; it must be the path of a file'),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=f'^{message}'):
        GKLLoss(**arguments)


def test_bad_files(file, tmp_path):
    message = (
        '^statistics: .* has tau 4, and weight_tau is 1; make it again with tools/analysis_tools'
    )
    with pytest.raises(ValueError, match=message):
        GKLLoss(weights='class', statistics=file)
    with pytest.raises(
        FileNotFoundError, match="^statistics: there is no file 'a.pth'; make it with"
    ):
        GKLLoss(weights='class', statistics='a.pth')
    other = tmp_path / 'other.pth'
    torch.save(dict(tau=1.0), other)
    with pytest.raises(
        ValueError, match='^statistics: .* holds no statistics of a teacher; make it'
    ):
        GKLLoss(weights='class', statistics=str(other))
