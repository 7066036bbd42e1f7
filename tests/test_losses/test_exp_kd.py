"""ExpKDLoss: a toy with exact values, references in loops, and what must hold for any maps."""

import pytest
import torch
import torch.nn.functional as F
from tiny import batch, classifier, distiller, total
from torch import nn, optim

from mmkdx.explain import GradCAM
from mmkdx.functional import ClassMaps
from mmkdx.losses import ExpKDLoss


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def toy(grad=False):
    """Maps of 2 × 2 positions of three classes, from three channels and from two."""
    student = ClassMaps(
        tensor([[[2, 0], [1, 1]], [[1, 1], [0, 2]], [[0, 3], [1, 0]]]).requires_grad_(grad),
        tensor([1, 0, 1], [0, 1, -1], [-1, 1, 0]).requires_grad_(grad),
    )
    teacher = ClassMaps(
        tensor([[[1, 2], [3, 0]], [[0, 1], [2, 4]]]),
        tensor([1, 1], [2, -1], [-1, 0.5]),
        tensor(0.1, -0.2, 0.3),
    )
    return student, teacher


def maps_of_two_sizes():
    a, b = [0, 0, 2, 2], [1, 1, 3, 3]
    ones, other = [1, 1, 1, 1], [0, 4, 0, 4]
    teacher = tensor([[a, a, b, b], [ones, ones, other, other]])
    student = tensor([[[1, 1], [0, 2]], [[0, 2], [1, 1]]])
    return student, teacher


def random_maps(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def close(result, expected, atol=0.0):
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=atol)


def approx(value):
    return pytest.approx(value, rel=1e-9)


# Exact values


def test_toy_maps():
    student, teacher = toy()
    raw = teacher.full() / 2
    close(raw[0, 2], tensor([-0.5, -0.75], [-1, 1]))
    close(raw[0, :2], tensor([[0.5, 1.5], [2.5, 2]], [[1, 1.5], [2, -2]]))
    close(student.full()[0, 1] / 3, tensor([1, -2], [-1, 2]) / 3)
    close(teacher.logits(), tensor([3.35, 1.05, -0.325]))
    close(2 * raw.mean((2, 3)) + teacher.bias, teacher.logits())


def test_distributions_over_classes():
    student, teacher = toy()
    expected = tensor(0.3071958857, 0.5064803911, 0.1863237232)
    close((teacher.full() / 2).relu().softmax(1)[0, :, 0, 0], expected, 1e-10)
    expected = tensor(0.4484408638, 0.3213219199, 0.2302372163)
    close((student.full() / 3).relu().softmax(1)[0, :, 0, 0], expected, 1e-10)


@pytest.mark.parametrize(
    'arguments, expected',
    [
        (dict(), 0.46309468836),
        (dict(tau=2), 0.15526569295),
        (dict(tau=4), 0.04480165404),
        (dict(topk=2), 0.62320216290),
        (dict(topk=3), 0.46309468836),
        (dict(channel_reduce='sum'), 1.47872081571),
    ],
)
def test_toy_values(arguments, expected):
    assert ExpKDLoss(**arguments)(*toy()).item() == approx(expected)


def test_mean_over_channels_is_a_temperature_of_each_model():
    student, teacher = toy()
    student.weight, teacher.weight = student.weight / 3, teacher.weight / 2
    loss = ExpKDLoss(channel_reduce='sum')
    assert loss(student, teacher).item() == approx(0.46309468836)


def test_gradients():
    student, teacher = toy(grad=True)
    loss = ExpKDLoss()(student, teacher)
    features, weight = torch.autograd.grad(loss, (student.features, student.weight))
    expected = tensor(
        [-0.0287221970, -0.1077052050, 0.0188034510],
        [-0.0076047153, 0.1127496567, 0],
        [0.0024293130, 0.0288249788, 0.0718990582],
    )
    close(weight, expected, 1e-10)
    expected = tensor([0.0380546657, -0.0094649116], [-0.0247008725, -0.0825599690])
    close(features[0, 0], expected, 1e-10)


@pytest.mark.parametrize('topk', [None, 2])
def test_gradients_are_those_of_differences(topk):
    weight = random_maps(4, 3, seed=1).requires_grad_()
    features = (random_maps(2, 3, 3, 3).abs() + 0.1).requires_grad_()
    teacher = ClassMaps(random_maps(2, 5, 4, 4, seed=2).abs(), random_maps(4, 5, seed=3))
    loss = ExpKDLoss(topk=topk)
    assert torch.autograd.gradcheck(lambda a, w: loss(ClassMaps(a, w), teacher), (features, weight))


@pytest.mark.parametrize(
    'arguments, expected',
    [(dict(align='student'), 0.85420906814), (dict(), 4.59760867307)],
)
def test_sizes_are_aligned_before_the_softmax(arguments, expected):
    student, teacher = maps_of_two_sizes()
    assert ExpKDLoss(**arguments)(student, teacher).item() == approx(expected)
    twice = [maps.repeat(2, 1, 1, 1) for maps in (student, teacher)]
    assert ExpKDLoss(**arguments)(*twice).item() == approx(expected)
    assert ExpKDLoss(reduction='sum', **arguments)(*twice).item() == approx(2 * expected)


def test_a_peak_survives_a_smaller_student():
    """Sampling without a low-pass filter would skip it."""
    peak = torch.zeros(1, 2, 8, 8, dtype=torch.float64)
    peak[0, 0, 0, 0] = 16
    pooled = F.adaptive_avg_pool2d(peak, 2)
    assert pooled[0, 0].tolist() == [[1, 0], [0, 0]]
    loss = ExpKDLoss(align='student')
    assert loss(pooled, peak).item() == 0
    assert loss(torch.zeros_like(pooled), peak).item() > 0.1


def test_label_and_structure_split_the_loss():
    loss = ExpKDLoss()
    value = loss(*toy())
    assert loss.logs['label'].item() == approx(0.08322408857)
    assert loss.logs['structure'].item() == approx(0.37987059979)
    assert sum(loss.logs.values()).item() == approx(value.item())
    pooled = [ClassMaps(F.adaptive_avg_pool2d(m.features, 1), m.weight) for m in toy()]
    assert loss(*pooled).item() == approx(loss.logs['label'].item())
    assert not any(value.requires_grad for value in loss.logs.values())


def test_maps_are_grad_cams_but_for_a_factor():
    """On GAP + linear; four positions and two channels make it 2."""
    _, teacher = toy()

    class Head(nn.Module):
        def forward(self, images):
            return F.linear(images.mean((2, 3)), teacher.weight, teacher.bias)

    logits = Head()(features := teacher.features.clone().requires_grad_())
    for index in range(3):
        maps = GradCAM().from_forward(features, logits, index)
        close(teacher.full()[:, index] / 2, 2 * maps.detach())


# Properties


def reference(student, teacher, tau):
    """In loops, from finished ReLU maps of one size."""
    value = 0.0
    for s, t in zip(student, teacher):
        for i in range(s.shape[1]):
            for j in range(s.shape[2]):
                ps, pt = ((maps[:, i, j] / tau).exp() for maps in (s, t))
                value += ((ps / ps.sum() - pt / pt.sum()) ** 2).sum()
    return value / len(student)


@pytest.mark.parametrize('tau', [0.5, 3])
def test_reference(tau):
    maps = random_maps(3, 4, 2, 5), random_maps(3, 4, 2, 5, seed=1)
    expected = reference(*(each.relu() for each in maps), tau)
    assert ExpKDLoss(tau=tau)(*maps).item() == approx(expected.item())


def test_top_classes_are_the_teachers_and_equal_the_maps_of_those():
    student = ClassMaps(random_maps(3, 5, 4, 4).abs(), random_maps(9, 5, seed=1))
    teacher = ClassMaps(random_maps(3, 6, 4, 4, seed=2).abs(), random_maps(9, 6, seed=3))
    index = teacher.logits().topk(4, dim=1).indices[..., None, None].expand(-1, -1, 4, 4)
    chosen = [
        (maps.full() / maps.features.shape[1]).gather(1, index) for maps in (student, teacher)
    ]
    assert ExpKDLoss(topk=4)(student, teacher).item() == approx(ExpKDLoss()(*chosen).item())


def test_more_top_classes_than_classes_takes_all_and_says_so():
    maps = random_maps(2, 10, 3, 3), random_maps(2, 10, 3, 3, seed=1)
    loss = ExpKDLoss(topk=30)
    assert loss(*maps).item() == ExpKDLoss()(*maps).item()
    with pytest.warns(UserWarning, match='topk is 30 and there are only 10 classes; all are'):
        loss.check(*maps)


def test_invariances():
    student, teacher = random_maps(2, 5, 3, 3).abs(), random_maps(2, 5, 3, 3, seed=1).abs()
    loss, order = ExpKDLoss(), [3, 1, 4, 0, 2]
    value = loss(student, teacher).item()
    assert loss(teacher, teacher).item() == 0
    assert loss(student + random_maps(2, 1, 3, 3).abs(), teacher).item() == approx(value)
    assert loss(student[:, order], teacher[:, order]).item() == approx(value)
    far = torch.zeros(1, 2, 3, 3)
    far[:, 0] = 1e4
    assert loss(far, far.flip(1)).item() == 2 * 9  # at most 2 a position


def test_the_student_gets_a_gradient_and_the_loss_moves_with_it():
    """Not so in the public code's last version, whose softmax runs over the batch."""
    student, teacher = random_maps(4, 3, 2, 2).requires_grad_(), random_maps(4, 3, 2, 2, seed=1)
    constant = (student.softmax(0).mean() - teacher.softmax(0).mean()).square()
    assert student.softmax(0).mean().item() == approx(1 / 4)
    assert torch.autograd.grad(constant, student)[0].abs().max() < 1e-16
    value = ExpKDLoss()(student, teacher)
    assert torch.autograd.grad(value, student)[0].norm() > 0.01
    assert abs(ExpKDLoss()(2 * student, teacher).item() - value.item()) > 0.01


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_maps(dtype):
    maps = [ClassMaps(each.features.to(dtype), each.weight.to(dtype)) for each in toy()]
    assert ExpKDLoss()(*maps).item() == pytest.approx(0.463, rel=2e-2)
    assert ExpKDLoss()(*maps).dtype == torch.float32
    extreme = [torch.full((1, 3, 2, 2), value, dtype=dtype) for value in (6e4, -6e4)]
    assert ExpKDLoss()(*extreme).item() == 0


def test_batches_can_be_split():
    student, teacher = toy(grad=True)
    features = random_maps(8, 3, 2, 2).abs()
    weight = student.weight
    teachers = random_maps(8, 2, 2, 2, seed=1).abs()

    def gradient(rows):
        maps = ClassMaps(features[rows], weight), ClassMaps(teachers[rows], teacher.weight)
        return torch.autograd.grad(ExpKDLoss()(*maps), weight)[0]

    halves = (gradient(slice(0, 4)) + gradient(slice(4, 8))) / 2
    close(gradient(slice(0, 8)), halves)


# In a distiller


def test_the_teacher_is_not_trained_and_the_student_is():
    terms = dict(expkd=dict(type='ExpKDLoss', at='cam', weight=100))
    model = distiller(terms, student_weight=0).train()
    losses = model(*batch(), mode='loss')
    total(losses).backward()
    assert losses['expkd.label'] + losses['expkd.structure'] == pytest.approx(
        losses['loss_expkd'].item() / 100, rel=1e-4
    )
    assert all(p.grad is None for p in model.teachers[0].parameters())
    assert model.student.head.fc.weight.grad.norm() > 0
    assert model.student.backbone.stem[0].weight.grad.norm() > 0


@pytest.mark.parametrize('channels', [8, 12])
def test_learning(channels):
    torch.manual_seed(0)

    def network(channels):
        return nn.Sequential(
            nn.Conv2d(3, channels, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 1, 1),
            nn.ReLU(),
        ), nn.Linear(channels, 5)

    images = torch.randn(16, 3, 12, 12)
    (body, head), (teacher, top) = network(channels), network(8)
    with torch.no_grad():
        truth = ClassMaps(teacher(images), 10 * top.weight)
    optimizer = optim.Adam([*body.parameters(), head.weight], lr=1e-2)
    loss, values = ExpKDLoss(), []
    for _ in range(300):
        value = loss(ClassMaps(body(images), head.weight), truth)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < values[0] / 5


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(tau=0), 'tau is 0; it must be a finite number above 0'),
        (dict(topk=1), 'topk is 1; it must be an integer of at least 2'),
        (dict(align='teacher'), "align is 'teacher'; it must be one of larger, student"),
        (dict(channel_reduce='max'), "channel_reduce is 'max'; it must be one of mean, sum"),
        (dict(reduction='mean'), "reduction is 'mean'; it must be one of batchmean, sum"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ExpKDLoss(**arguments)


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(teacher=dict(model=classifier(8, classes=6))), 'the student has 4 classes and the'),
        (
            dict(
                student=dict(
                    classifier(4),
                    head=dict(
                        type='StackedLinearClsHead', num_classes=4, in_channels=4, mid_channels=[6]
                    ),
                )
            ),
            "terms.expkd: .* the class maps of the student do not tell it .* channel_reduce='sum'",
        ),
    ],
)
def test_models_that_cannot_be_compared(change, message):
    with pytest.raises(ValueError, match=message):
        distiller(dict(expkd=dict(type='ExpKDLoss', at='cam')), **change)


def test_maps_are_divided_on_both_sides_or_none():
    lazy, finished = ClassMaps(torch.ones(2, 6, 4, 4), torch.ones(5, 6)), torch.ones(2, 5, 4, 4)
    loss = ExpKDLoss()
    loss.check(lazy, lazy)
    loss.check(finished, ClassMaps(finished))
    for pair, side in (((lazy, finished), 'teacher'), ((ClassMaps(finished), lazy), 'student')):
        message = f"the class maps of the {side} .* set channel_reduce='sum'"
        with pytest.raises(ValueError, match=message):
            loss.check(*pair)
        ExpKDLoss(channel_reduce='sum').check(*pair)


def test_the_remainder_needs_the_scale_of_the_logits():
    with pytest.raises(ValueError, match="^remainder=True goes with channel_reduce='sum'"):
        ExpKDLoss(remainder=True)
