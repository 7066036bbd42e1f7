"""Reading and replacing what passes a tap."""

from collections import namedtuple

import pytest
import torch
from torch import nn

from mmkdx.models.intercept import Tap, evaluating, intercept

Pair = namedtuple('Pair', 'first second')


class Net(nn.Module):
    """Doubles twice; yields tuples of several kinds."""

    def __init__(self, kind=tuple):
        super().__init__()
        self.twice = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.twice.weight, 2.0)
        self.both = Both(kind)

    def forward(self, x):
        x = self.twice(self.twice(x))
        pair = self.both(value=x)
        return pair, pair[0] + pair[1]


class Both(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, value):
        return self.kind(value, value + 1) if self.kind is Pair else self.kind((value, value + 1))


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_values_are_seen_in_order_and_counted():
    model, seen = Net(), []
    with intercept(model, {Tap('twice'): lambda v: seen.append(v.item())}) as calls:
        model(torch.ones(1, 1))
    assert seen == [2, 4] and calls == {Tap('twice'): 2}
    assert hooks(model) == 0


@pytest.mark.parametrize(
    ('tap', 'expected'),
    [
        (Tap('twice'), [5, 6]),  # replaced at both calls
        (Tap('twice', call=0), [10, 11]),
        (Tap('twice', call=1, side='in'), [10, 11]),
        (Tap('both', side='in'), [5, 6]),  # a keyword argument
        (Tap('both'), [4, 5]),
        (Tap('both', item=0), [5, 5]),
    ],
)
@pytest.mark.parametrize('kind', [tuple, list, Pair])
def test_what_a_function_returns_takes_the_values_place(tap, expected, kind):
    model = Net(kind)
    with intercept(model, {tap: lambda value: torch.full_like(value, 5.0)}):
        pair, total = model(torch.ones(1, 1))
    assert [each.item() for each in pair] == expected
    assert total.item() == sum(expected)
    assert type(pair) is kind


def test_hooks_go_when_the_model_fails():
    model = Net()
    with pytest.raises(ZeroDivisionError):
        with intercept(model, {Tap('twice'): lambda value: 1 / 0}):
            model(torch.ones(1, 1))
    assert hooks(model) == 0


def test_each_module_gets_its_own_mode_back():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Dropout())).train()
    model[1].eval()
    modes = [module.training for module in model.modules()]
    with pytest.raises(ZeroDivisionError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise ZeroDivisionError
    assert [module.training for module in model.modules()] == modes


def test_a_module_without_arguments_has_no_input():
    model, seen = nn.Sequential(nn.Identity()), []
    model[0].forward = lambda: torch.ones(1)
    model.forward = lambda x: x + model[0]()
    with intercept(model, {Tap('0', side='in'): seen.append, Tap('0'): seen.append}):
        assert model(torch.ones(1)).item() == 2
    assert seen == [torch.ones(1)]
