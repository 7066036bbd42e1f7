import pytest
import torch

from mmkdx.distillation.terms import build_term
from mmkdx.registry import MODELS


def test_found_by_entry_point():
    # Nothing here imports the package
    loss = MODELS.build(dict(type='CharbonnierLoss', eps=0.5))
    assert type(loss).__module__ == 'mmkdx_example_plugin.losses'
    assert loss.eps == 0.5


def test_exact_values():
    # differences 4, -4 and 0 with eps 3: sqrt(16 + 9) - 3 = 2, twice, and 0
    student = torch.tensor([[5.0, -3.0, 7.0]])
    teacher = torch.tensor([[1.0, 1.0, 7.0]])
    loss = MODELS.build(dict(type='CharbonnierLoss', eps=3.0))
    assert loss(student, teacher).item() == pytest.approx(4 / 3, rel=1e-6)
    assert loss(student, student).item() == 0


def test_small_differences_do_not_cancel_out():
    # sqrt(1e-10 + 1e-6) - 1e-3 in exact arithmetic
    loss = MODELS.build(dict(type='CharbonnierLoss'))
    value = loss(torch.full((2, 3, 4, 4), 1e-5), torch.zeros(2, 3, 4, 4))
    assert value.item() == pytest.approx(4.99987500625e-8, rel=1e-5)


def test_half_precision_is_computed_in_float32():
    # 300 squared is more than float16 can hold
    loss = MODELS.build(dict(type='CharbonnierLoss'))
    value = loss(torch.full((4,), 300.0, dtype=torch.float16), torch.zeros(4, dtype=torch.float16))
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(299.999, rel=1e-6)


def test_gradient():
    # the derivative of sqrt(d^2 + eps^2) is d / sqrt(d^2 + eps^2), here 4 / 5, and 0 for d = 0
    student = torch.tensor([4.0, 0.0], requires_grad=True)
    MODELS.build(dict(type='CharbonnierLoss', eps=3.0))(student, torch.zeros(2)).backward()
    assert student.grad.tolist() == pytest.approx([0.4, 0.0])


@pytest.mark.parametrize('eps', [0, float('nan'), True])
def test_eps_must_be_positive(eps):
    with pytest.raises(ValueError, match='eps is .*; it must be a finite number above 0'):
        MODELS.build(dict(type='CharbonnierLoss', eps=eps))


def test_in_a_term():
    term = build_term('fit', dict(type='CharbonnierLoss', at='features', eps=3.0, weight=2))
    student, teacher = torch.tensor([[5.0, -3.0, 7.0]]), torch.tensor([[1.0, 1.0, 7.0]])
    term.connect(student, teacher)
    weighted = term.weight(term(student, teacher))
    assert weighted.item() == pytest.approx(2 * 4 / 3, rel=1e-6)
