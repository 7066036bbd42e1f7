"""class_cka by hand, and what it does not see."""

import pytest
import torch

from mmkdx.functional.class_cka import class_cka
from mmkdx.losses.wasserstein import transport_cost

X = torch.tensor(
    [[[1, 0], [0, 1], [2, 1]], [[0, 1], [1, 1], [1, 3]], [[2, 0], [1, 1], [0, 3]]],
    dtype=torch.float64,
)


def pairs(values):
    return [values[0, 1].item(), values[0, 2].item(), values[1, 2].item()]


def test_three_classes():
    found = class_cka(X)
    assert pairs(found) == pytest.approx([0.7980238751, 0.5575963644, 0.9304027149], abs=1e-10)
    assert torch.equal(found, found.T) and found.diagonal().tolist() == [1, 1, 1]
    assert transport_cost(found, 1)[0, 1].item() == pytest.approx(0.1828855636, abs=1e-10)


def test_the_definition():
    outputs = torch.randn(2, 7, 4, dtype=torch.float64)
    a, b = outputs - outputs.mean(1, keepdim=True)
    expected = (b.T @ a).norm() ** 2 / (a.T @ a).norm() / (b.T @ b).norm()
    torch.testing.assert_close(class_cka(outputs)[0, 1], expected)


def test_scales_shifts_and_order():
    changed = X.clone()
    changed[1] = 7 * changed[1] + 3
    torch.testing.assert_close(class_cka(changed), class_cka(X))
    changed[1] = changed[1].flip(0)
    assert class_cka(changed)[0, 1].item() == pytest.approx(0.4715595626, abs=1e-10)


def test_a_class_of_one_output():
    assert class_cka(torch.cat([X, torch.ones_like(X[:1])]))[3].tolist() == [0, 0, 0, 1]
