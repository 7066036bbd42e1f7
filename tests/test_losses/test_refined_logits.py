"""RLDLoss against the numbers of an fp64 reference, DKD, limits, properties and mistakes."""

import pytest
import torch

from mmkdx.losses import DKDLoss, RLDLoss


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


STUDENT = tensor(
    [[2, 1, 0.5, -1, 0], [0.2, 1.5, -0.3, 0.4, 1], [1, 0, -1, 0.5, 0.25], [0, 1, 2, -0.5, 0.5]]
)
TEACHER = tensor([[3, 2, -1, 0, 1], [-0.5, 2, 1, 0.6, 0], [2, 1.5, -2, 0.3, 1], [1, 1, 0.2, -1, 1]])
#: The teacher is right; its second is the label; its last; the label ties with two classes.
LABELS = torch.tensor([0, 2, 2, 1])


def value(rows=slice(None), student=STUDENT, teacher=TEACHER, labels=LABELS, **arguments):
    loss = RLDLoss(**arguments)
    return loss(student[rows], teacher[rows], labels[rows]).item(), loss.logs


@pytest.mark.parametrize(
    'expected, arguments',
    [
        (2.044579847146, {}),
        (2.049017172640, dict(confidence_tau=4)),
        (0.441973043918, dict(tau=1, beta=0.5)),
        (0.627074547549, dict(tau=1, beta=2)),
        (0.380272542707, dict(beta=0)),
        (0.384709868202, dict(beta=0, confidence_tau=4)),
        (8 * 0.208038413055, dict(alpha=0)),
        (8 * 0.123401002421, dict(alpha=0, tau=1)),
    ],
)
def test_values(expected, arguments):
    found, logs = value(**arguments)
    assert found == pytest.approx(expected, rel=1e-11)
    assert logs['kept'].item() == pytest.approx((4 + 3 + 0 + 2) / 16)
    # the first of the tied classes is the prediction
    assert logs['teacher_wrong'] == 0.75


@pytest.mark.parametrize(
    'key, arguments, expected',
    [
        ('confidence', {}, [0.011127308127, 0.799085186124, 0.694622348289, 0.016255328288]),
        (
            'confidence',
            dict(confidence_tau=4),
            [0.030242529390, 0.693894196771, 0.809921000023, 0.004781746622],
        ),
        ('correlation', {}, [0.492786163885, 0.136941634827, 0, 0.202425853507]),
        ('correlation', dict(tau=1), [0.226231062412, 0.150847898866, 0, 0.116525048406]),
    ],
)
def test_samples(key, arguments, expected):
    found = [value(slice(i, i + 1), **arguments)[1][key].item() for i in range(4)]
    assert found == pytest.approx(expected, rel=1e-10)


def test_gradients():
    student = STUDENT.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(RLDLoss()(student, TEACHER, LABELS), student)
    expected = [
        [-0.018346854, -0.342650825, 0.843353739, -0.211925858, -0.270430202],
        [0.140100761, 0.053838433, -0.119087035, -0.465371719, 0.390519559],
        [0.041613012, 0.015308572, -0.101817746, 0.025239568, 0.019656595],
        [0.001774220, -0.018885345, 0.628408593, -0.614222662, 0.002925194],
    ]
    torch.testing.assert_close(gradient, tensor(expected), rtol=0, atol=3e-9)
    (gradient,) = torch.autograd.grad(RLDLoss(beta=0)(student, TEACHER, LABELS), student)
    expected = [-0.018346854, 0.008696241, 0.005274537, 0.001176908, 0.003199168]
    torch.testing.assert_close(gradient[0], tensor(expected), rtol=0, atol=3e-9)
    # The closed form
    own, theirs = student.softmax(1), TEACHER.softmax(1).amax(1)
    p = own.gather(1, LABELS[:, None])[:, 0]
    scale = (p - theirs) / (1 - p) / 4
    expected = scale[:, None] * (torch.nn.functional.one_hot(LABELS, 5) - own)
    torch.testing.assert_close(gradient, expected.detach())


@pytest.mark.parametrize('alpha', [1, 0])
def test_a_teacher_that_is_right_makes_it_decoupled_distillation(alpha):
    generator = torch.Generator().manual_seed(0)
    s, t = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    labels = t.argmax(1)
    found = RLDLoss(4, 4, alpha, 8)(s, t, labels).item()
    assert found == pytest.approx(DKDLoss(4, alpha, 8)(s, t, labels).item(), rel=1e-12)
    found, _ = value(slice(1), confidence_tau=4)
    assert found == pytest.approx(3.972531840473, rel=1e-11)


def test_ties_with_the_label_are_left_out():
    kept = [value(slice(i, i + 1))[1]['kept'].item() for i in range(4)]
    assert kept == pytest.approx([1, 0.75, 0, 0.5])
    # With the ties, and the label itself, the mean over samples would be 2.9033
    assert value()[0] == pytest.approx(2.044579847146)


def test_equal_logits():
    _, logs = value(student=TEACHER)
    assert logs['correlation'].item() == 0 and logs['confidence'].item() > 0.1
    assert value(slice(1), student=TEACHER)[0] == pytest.approx(0, abs=1e-15)


def test_what_does_not_count():
    expected, _ = value()
    moved = torch.arange(4.0)[:, None]
    assert value(student=STUDENT + moved)[0] == pytest.approx(expected, rel=1e-12)
    assert value(teacher=TEACHER - moved)[0] == pytest.approx(expected, rel=1e-12)
    order = torch.tensor([3, 1, 4, 0, 2])
    permuted = dict(student=STUDENT[:, order], teacher=TEACHER[:, order])
    found, _ = value(labels=order.argsort()[LABELS], **permuted)
    assert found == pytest.approx(expected, rel=1e-12)
    halves = [value(half)[0] for half in (slice(2), slice(2, 4))]
    assert sum(halves) / 2 == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize('rows', [slice(2, 3), slice(None)])
def test_a_label_that_the_teacher_ranks_last(rows):
    student = STUDENT[rows].clone().requires_grad_()
    teacher = TEACHER[rows].clone()
    labels = teacher.argmin(1)
    loss = RLDLoss(alpha=0)(student, teacher, labels)
    assert loss.item() == 0
    assert torch.autograd.grad(loss, student)[0].count_nonzero() == 0


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_saturated_logits(dtype):
    student = torch.tensor([[-120.0, 0, 0]], dtype=dtype, requires_grad=True)
    teacher, label = torch.tensor([[5.0, 0, 0]], dtype=dtype), torch.tensor([0])
    loss = RLDLoss(beta=0)(student, teacher, label)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(119.017672659122, rel=1e-6)
    assert torch.autograd.grad(loss, student)[0].isfinite().all()
    large = (1e4 * STUDENT).to(dtype).requires_grad_()
    loss = RLDLoss()(large, (1e4 * TEACHER).to(dtype), LABELS)
    assert loss.isfinite() and torch.autograd.grad(loss, large)[0].isfinite().all()


def test_two_classes():
    arguments = dict(student=STUDENT[:, :2], teacher=TEACHER[:, :2], labels=LABELS % 2)
    assert value(beta=0, **arguments)[0] > 0
    message = 'RLDLoss needs two classes beside the label, and there are 2 classes in all'
    with pytest.raises(ValueError, match=f'^{message}; use KLDivLoss, or beta=0 with two classes'):
        value(**arguments)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(tau=0), 'tau is 0; it must be a finite number above 0'),
        (dict(confidence_tau=-1), 'confidence_tau is -1; it must be a finite number above 0'),
        (dict(alpha=-1), 'alpha is -1; it must be a finite number of at least 0'),
        (dict(alpha=0, beta=0), 'alpha and beta are 0, so nothing is compared'),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=f'^{message}'):
        RLDLoss(**arguments)
