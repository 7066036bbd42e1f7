"""OrthogonalProjection: orthogonal throughout training, also with weight decay."""

import pytest
import torch

from mmkdx.models.projection import OrthogonalProjection


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def deviation(projection):
    """How far the columns, or the rows if there are fewer, are from orthonormal."""
    weight = projection.linear.weight.detach().double()
    gram = weight.T @ weight if weight.shape[0] >= weight.shape[1] else weight @ weight.T
    return (gram - torch.eye(len(gram))).abs().max().item()


def test_maps_and_tokens_are_projected_at_each_position():
    projection = OrthogonalProjection(8, 12)
    maps = random(2, 8, 4, 3)
    tokens = maps.flatten(2).mT
    expected = torch.einsum('dc,nchw->ndhw', projection.linear.weight, maps)
    torch.testing.assert_close(projection(maps), expected)
    torch.testing.assert_close(projection(tokens), expected.flatten(2).mT)


@pytest.mark.parametrize('widths', [(24, 40), (40, 24), (32, 32)])
@pytest.mark.parametrize('kind', [torch.optim.SGD, torch.optim.AdamW])
def test_the_projection_stays_orthogonal_and_learns(widths, kind):
    """Weight decay, which would take the signs of Householder's reflections, does not change it."""
    torch.manual_seed(0)
    projection = OrthogonalProjection(*widths)
    start = projection.linear.weight.detach().clone()
    turned = OrthogonalProjection(*widths).linear.weight.detach()
    optimizer = kind(projection.parameters(), lr=0.05, weight_decay=5e-4)
    first = last = None
    for step in range(200):
        student = random(16, widths[0], seed=step)
        loss = (projection(student) - student @ turned.T).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first, last = first or loss.item(), loss.item()
    assert last < 0.8 * first
    assert deviation(projection) < 1e-5
    assert (projection.linear.weight - start).norm() > 1


def test_weight_decay_alone_leads_to_the_projection_of_the_start():
    torch.manual_seed(0)
    projection = OrthogonalProjection(6, 9)
    start = projection.linear.weight.detach().clone()
    parameter = projection.linear.parametrizations.weight.original
    with torch.no_grad():
        parameter.add_(torch.randn_like(parameter))
    assert not torch.allclose(projection.linear.weight, start, atol=0.1)
    assert deviation(projection) < 1e-6
    optimizer = torch.optim.SGD([parameter], lr=1.0, weight_decay=0.1)
    for _ in range(200):
        parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    torch.testing.assert_close(projection.linear.weight, start, rtol=0, atol=1e-5)


def test_the_projection_is_computed_in_full_precision():
    projection = OrthogonalProjection(8, 12)
    with torch.autocast('cpu', torch.bfloat16):
        projected = projection(random(2, 8).bfloat16())
    assert projected.dtype == torch.float32
    torch.testing.assert_close(projected, projection(random(2, 8).bfloat16().float()))


@pytest.mark.parametrize('widths', [(2, 3), (48, 16), (16, 48), (16, 16)])
@pytest.mark.parametrize(
    'kind, options',
    [
        (torch.optim.SGD, dict(lr=0.5, weight_decay=0.1)),
        (torch.optim.AdamW, dict(lr=5e-4, weight_decay=0.05)),
    ],
)
def test_strong_weight_decay_leaves_a_gradient(widths, kind, options):
    torch.manual_seed(0)
    projection = OrthogonalProjection(*widths)
    optimizer = kind(projection.parameters(), **options)
    goal = random(8, widths[1], seed=1)
    for _ in range(50):
        student = random(8, widths[0]).requires_grad_()
        loss = (projection(student) - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert deviation(projection) < 1e-5
        assert student.grad.norm() > 1e-3


def test_a_rotation_by_the_cayley_transform():
    """With the parameter's skew-symmetric part A it is the base times (I - A/2)^-1 (I + A/2)."""
    projection = OrthogonalProjection(3, 3).double()
    (cayley,) = projection.linear.parametrizations.weight
    parameter = projection.linear.parametrizations.weight.original
    with torch.no_grad():
        parameter.copy_(random(3, 3))
        lower = parameter.tril(-1)
        skew, unit = lower - lower.T, torch.eye(3, dtype=torch.float64)
        expected = cayley.base @ torch.linalg.solve(unit - skew / 2, unit + skew / 2)
        # Whatever is symmetric in the parameter does not count
        parameter.add_(parameter.diag().diag())
    torch.testing.assert_close(projection.linear.weight, expected)
    with torch.no_grad():
        parameter.zero_()
    torch.testing.assert_close(projection.linear.weight, cayley.base, rtol=0, atol=1e-15)


def test_a_projection_that_is_not_trained():
    projection = OrthogonalProjection(6, 9, trained=False)
    assert not [each for each in projection.parameters() if each.requires_grad]
    assert deviation(projection) < 1e-6
