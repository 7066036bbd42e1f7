"""ReviewKDLoss: fusions and the hierarchical loss against references, layers and mistakes."""

import copy

import numpy as np
import pytest
import torch
from tiny import batch, distiller, total

from mmkdx.losses import ReviewKDLoss
from mmkdx.losses.review import hierarchical_context

STUDENT, TEACHER = [(4, 8, 8), (6, 4, 4), (6,)], [(8, 8, 8), (12, 4, 4), (10,)]


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stages(shapes, n=3, seed=0):
    return [random(n, *shape, seed=seed + i) for i, shape in enumerate(shapes)]


def connected(student=STUDENT, teacher=TEACHER, **arguments):
    torch.manual_seed(0)
    loss = ReviewKDLoss(**arguments)
    loss.connect(stages(student), stages(teacher))
    return loss.double()


@pytest.mark.parametrize(
    'side, weights',
    [
        (1, {1: 1}),
        (2, {2: 1, 1: 0.5}),
        (4, {4: 1, 2: 0.5, 1: 0.25}),
        (8, {8: 1, 4: 0.5, 2: 0.25, 1: 0.125}),
    ],
)
def test_hierarchical_context(side, weights):
    a, b = random(2, 3, side, side), random(2, 3, side, side, seed=1)
    expected = 0.0
    for size, weight in weights.items():
        pooled = [
            each.unfold(2, side // size, side // size)
            .unfold(3, side // size, side // size)
            .mean((4, 5))
            for each in (a, b)
        ]
        expected += weight * ((pooled[0] - pooled[1]) ** 2).mean().item()
    expected /= sum(weights.values())
    assert hierarchical_context(a, b).item() == pytest.approx(expected, rel=1e-9)


def test_hierarchical_context_of_wide_maps():
    a, b = random(2, 3, 8, 2), random(2, 3, 8, 2, seed=1)
    expected = ((a - b) ** 2).mean() + ((a - b).mean((2, 3)) ** 2).mean() / 2
    assert hierarchical_context(a, b).item() == pytest.approx(expected.item() / 1.5, rel=1e-9)
    assert hierarchical_context(a.mT, b.mT).item() == pytest.approx(expected.item() / 1.5)


def enlarge(maps, size):
    """Repeats positions."""
    factor = size // maps.shape[2]
    return maps.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def test_stages_are_reviewed_from_the_last_to_the_first():
    loss = connected().eval()
    s, t = stages(STUDENT, seed=10), stages(TEACHER, seed=20)
    last = [each[..., None, None] if each.dim() == 2 else each for each in s]
    goals = [each[..., None, None] if each.dim() == 2 else each for each in t]
    passed, expected = None, 0.0
    for i in (2, 1, 0):
        fusion = loss.fusions[i]
        x = fusion.enter(last[i])
        assert x.shape[1] == 6
        if i < 2:
            y = enlarge(passed, x.shape[2])
            z = torch.sigmoid(fusion.attention(torch.cat([x, y], 1)))
            x = x * z[:, 0:1] + y * z[:, 1:2]
        passed = x
        expected += hierarchical_context(fusion.leave(x), goals[i]).item()
    assert loss(s, t).item() == pytest.approx(expected, rel=1e-9)
    assert loss.fusions[2].attention is None


def test_sizes_of_both_may_differ():
    loss = connected([(4, 4, 4), (6, 2, 2)], [(8, 8, 8), (12, 4, 4)])
    assert loss(stages([(4, 4, 4), (6, 2, 2)]), stages([(8, 8, 8), (12, 4, 4)])).isfinite()


def test_channels_between_stages_have_a_limit():
    assert connected(max_mid_channels=5).fusions[0].enter[0].out_channels == 5


def test_zero_at_equality():
    loss = connected()
    s = stages(STUDENT, seed=10)
    loss.eval()
    with torch.no_grad():
        passed, goals = None, []
        for fusion, each in zip(reversed(loss.fusions), reversed(s)):
            each = each[..., None, None] if each.dim() == 2 else each
            out, passed = fusion(each, passed, each.shape[2:])
            goals.insert(0, out)
    goals[-1] = goals[-1].flatten(1)
    assert loss(s, goals).item() == 0


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    loss = connected().float().eval()
    s, t = ([each.to(dtype) for each in stages(shapes)] for shapes in (STUDENT, TEACHER))
    value = loss(s, t)
    assert value.dtype == torch.float32
    expected = loss([each.float() for each in s], [each.float() for each in t])
    assert value.item() == pytest.approx(expected.item())
    assert loss([each * 0 + 6e4 for each in s], t).isfinite()


def test_gradients():
    loss = connected()
    s, t = ([each.requires_grad_() for each in stages(shapes, 4)] for shapes in (STUDENT, TEACHER))
    loss(s, t).backward()
    assert all(each.grad.norm() > 0 for each in s)
    assert all(each.grad is None for each in t)
    assert all(parameter.grad.norm() > 0 for parameter in loss.parameters())
    loss.eval()
    s = [each.detach()[:1].requires_grad_() for each in s]
    t = [each.detach()[:1] for each in t]
    assert torch.autograd.gradcheck(lambda *s: loss(list(s), t), s, fast_mode=True)


def test_copies_and_states_give_the_same():
    loss = connected()
    s, t = stages(STUDENT), stages(TEACHER)
    loss(s, t)
    twin = copy.deepcopy(loss)
    for parameter in twin.parameters():
        torch.nn.init.ones_(parameter)
    twin.load_state_dict(loss.state_dict())
    assert torch.equal(twin.eval()(s, t), loss.eval()(s, t))


def test_published_weight():
    """mdistiller: 5 for ResNet-32x4 to 8x4, of means, the stages summed."""
    loss = connected([(4, 8, 8), (6, 1, 1)], [(8, 8, 8), (10, 1, 1)]).eval()
    s, t = stages([(4, 8, 8), (6, 1, 1)]), stages([(8, 8, 8), (10, 1, 1)])
    first, last = loss.fusions
    x = last.enter(s[1])
    y = first.enter(s[0])
    z = first.attention(torch.cat([y, x.expand(-1, -1, 8, 8)], 1)).sigmoid()
    y = y * z[:, [0]] + x * z[:, [1]]
    errors = [first.leave(y) - t[0], last.leave(x) - t[1]]
    toolkit = 0.0
    for error in errors:
        error = error.detach().numpy()
        n, c, h, _ = error.shape
        part, weight, parts = np.square(error).mean(), 1.0, 1.0
        for side in (4, 2, 1):
            if side < h:
                weight /= 2
                parts += weight
                pooled = error.reshape(n, c, side, h // side, side, h // side).mean((3, 5))
                part += weight * np.square(pooled).mean()
        toolkit += part / parts
    assert 5 * loss(s, t).item() == pytest.approx(5 * toolkit, rel=1e-9)


def test_in_a_distiller():
    taps = ['backbone.stem', 'backbone.body', 'embedding']
    model = distiller(dict(review=dict(type='ReviewKDLoss', at=(taps, taps)))).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {name: value.clone() for name, value in model.terms.named_parameters()}
    for _ in range(2):
        optimizer.zero_grad()
        total(model(*batch(), mode='loss')).backward()
        optimizer.step()
    changed = [
        not torch.equal(value, before[name]) for name, value in model.terms.named_parameters()
    ]
    assert all(changed) and len(changed) > 10
    assert any(key.startswith('distill.terms.review.loss.fusions.0') for key in model.state_dict())


@pytest.mark.parametrize(
    'at, message',
    [
        ('backbone.body', 'the student needs a list of taps that hold maps'),
        ((['cam'], ['cam']), 'the student needs a list of taps that hold maps'),
        (
            (['backbone.stem', 'backbone.body'], ['backbone.body']),
            'there are 2 taps in the student and 1 in the teacher',
        ),
    ],
)
def test_mistakes(at, message):
    with pytest.raises(ValueError, match=f'terms.review.at: ReviewKDLoss: {message}'):
        distiller(dict(review=dict(type='ReviewKDLoss', at=at)))


def test_no_channels():
    with pytest.raises(
        ValueError, match='max_mid_channels is 0; it must be an integer of at least 1'
    ):
        ReviewKDLoss(max_mid_channels=0)
