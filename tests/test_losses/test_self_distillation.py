"""Losses of a student that teaches itself: exact values, epochs, resumes, pairs, and mistakes."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.runner import Runner
from mmpretrain.models import LabelSmoothLoss
from tiny import batch, classifier, distiller, total

import mmkdx.losses
from mmkdx.losses import (
    ConfidencePenaltyLoss,
    CSKDLoss,
    DDGSDLoss,
    OnlineLabelSmoothingLoss,
    PSKDLoss,
    TfKDRegLoss,
)

ARGUMENTS = dict(
    ConfidencePenaltyLoss=dict(),
    OnlineLabelSmoothingLoss=dict(),
    TfKDRegLoss=dict(),
    PSKDLoss=dict(num_samples=50),
    CSKDLoss=dict(),
    DDGSDLoss=dict(mu=0.5),
)
NAMES = list(ARGUMENTS)
WITH_LABELS = [name for name in NAMES if name not in ('ConfidencePenaltyLoss', 'DDGSDLoss')]


@pytest.fixture(autouse=True)
def hub(monkeypatch):
    """Counters of its own for each test."""
    monkeypatch.setattr(MessageHub, '_instance_dict', type(MessageHub._instance_dict)())
    return MessageHub.get_current_instance()


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def connected(loss, classes=3):
    loss.connect(torch.empty(2, classes))
    return loss


def made(name):
    return connected(getattr(mmkdx.losses, name)(**ARGUMENTS[name]), 4)


def given(loss):
    """What a loss needs beside the logits."""
    labels = dict(target=TARGET) if 'class' in loss.needs else {}
    return {**labels, **(dict(index=PAIRS) if 'index' in loss.needs else {})}


# All of them

TARGET, PAIRS = torch.tensor([0, 0, 3, 3, 1, 1]), torch.tensor([7, 7, 2, 2, 9, 9])


@pytest.mark.parametrize('name', NAMES)
def test_gradients(name, hub):
    loss = made(name)
    hub.update_info('epoch', 0)
    logits = random(6, 4).requires_grad_()
    loss(logits, **given(loss))
    hub.update_info('epoch', 1)
    loss(logits, **given(loss)).backward()
    # Of a pair of CS-KD only the first image learns
    learning = logits.grad[0::2] if name == 'CSKDLoss' else logits.grad
    assert (learning.abs().sum(1) > 0).all()
    if name == 'CSKDLoss':
        assert (logits.grad[1::2] == 0).all()
    # A softmax does not change when the same is added to all logits; the distance of logits does
    loss.mu = 0
    logits.grad = None
    loss(logits, **given(loss)).backward()
    assert logits.grad.sum(1).abs().max() < 1e-12
    loss.eval()
    if name != 'CSKDLoss':  # numbers know nothing of a detached partner
        assert torch.autograd.gradcheck(lambda each: loss(each, **given(loss)), logits)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('size', [1, 6e4, 0])
@pytest.mark.parametrize('name', NAMES)
def test_precision_and_large_values(name, size, dtype, hub):
    loss = made(name)
    logits = random(6, 4)
    logits = (size * logits / logits.abs().max()).to(dtype).requires_grad_()
    for epoch in (0, 1):
        hub.update_info('epoch', epoch)
        value = loss(logits, **given(loss))
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.isfinite() and value.dim() == 0
    assert torch.autograd.grad(value, logits)[0].isfinite().all()


@pytest.mark.parametrize('name', WITH_LABELS)
def test_missing_labels(name):
    term = dict(own=dict(type=name, at='logits', **ARGUMENTS[name]))
    with pytest.raises(ValueError, match=f'terms.own: {name} needs the labels of the images'):
        distiller(term, teacher=None, student_weight=0)(batch()[0], mode='loss')


def samples(classes=4):
    """A batch of three pairs of images."""
    images, elements = batch(6, classes=classes)
    for i, element in enumerate(elements):
        element.set_gt_label(TARGET[i].item())
        element.set_metainfo(dict(sample_idx=PAIRS[i].item()))
    return images, elements


@pytest.mark.parametrize('name', NAMES)
def test_in_a_distiller_without_a_teacher(name, hub):
    torch.manual_seed(0)  # some networks get no image right, so that OLS has nothing to count
    term = dict(type=name, at='logits', weight=0.5, **ARGUMENTS[name])
    model = distiller(dict(own=term), teacher=None).train()
    before = {key: value.clone() for key, value in model.terms.own.named_buffers()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in (0, 1):
        hub.update_info('epoch', epoch)
        optimizer.zero_grad()
        losses = model(*samples(), mode='loss')
        total(losses).backward()
        optimizer.step()
    assert {'student.loss', 'loss_own'} <= set(losses) and losses['loss_own'] != 0
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all((each == 0).all() or key == 'loss.epoch' for key, each in before.items())
    saved = {key for key in model.state_dict() if key.startswith('distill.')}
    assert saved == {f'distill.terms.own.{key}' for key in before}
    assert all(
        not torch.equal(each, model.terms.own.get_buffer(key)) for key, each in before.items()
    )


@pytest.mark.parametrize('name', WITH_LABELS)
def test_mixed_labels_are_refused(name):
    model = distiller(
        dict(own=dict(type=name, at='logits', **ARGUMENTS[name])), teacher=None
    ).train()
    images, elements = samples()
    for element in elements:
        element.set_gt_score(torch.full((4,), 0.25))
    with pytest.raises(ValueError, match=f'terms.own: {name} needs one class an image and the'):
        model(images, elements, mode='loss')


@pytest.mark.parametrize('name', ['PSKDLoss', 'DDGSDLoss'])
def test_samples_without_positions_are_refused(name):
    model = distiller(dict(own=dict(type=name, at='logits', **ARGUMENTS[name])), teacher=None)
    with pytest.raises(ValueError, match=f'terms.own: {name} needs the position of each sample'):
        model.train()(*batch(), mode='loss')


@pytest.mark.parametrize(
    'loss, arguments, message',
    [
        (TfKDRegLoss, dict(tau=0), 'tau is 0; it must be a finite number above 0'),
        (TfKDRegLoss, dict(correct=1), 'correct is 1; it must be a finite number '),
        (TfKDRegLoss, dict(correct=0.0), 'correct is 0.0; it must be a finite number '),
        (TfKDRegLoss, dict(version='x'), "version is 'x'; it must be one of code, paper"),
        (PSKDLoss, dict(num_samples=0), 'num_samples is 0; it must be an integer of at least 1'),
        (
            PSKDLoss,
            dict(num_samples=9, max_epochs=0),
            'max_epochs is 0; it must be an integer of at least 1',
        ),
        (PSKDLoss, dict(num_samples=9, alpha=1.1), 'alpha is 1.1; it must be a finite number '),
        (
            PSKDLoss,
            dict(num_samples=9, alpha=-0.1),
            'alpha is -0.1; it must be a finite number of at least 0',
        ),
        (CSKDLoss, dict(tau=-1), 'tau is -1; it must be a finite number above 0'),
        (DDGSDLoss, dict(tau=0), 'tau is 0; it must be a finite number above 0'),
        (DDGSDLoss, dict(mu=-1), 'mu is -1; it must be a finite number of at least 0'),
    ],
)
def test_arguments_out_of_range(loss, arguments, message):
    with pytest.raises(ValueError, match=message):
        loss(**arguments)


# Confidence penalty


def test_confidence_penalty_by_hand():
    p = torch.tensor([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)
    expected = -(1.5 * math.log(2) + math.log(3)) / 2
    assert ConfidencePenaltyLoss()(p.log() + 7).item() == pytest.approx(expected, rel=1e-12)


def test_confidence_penalty_is_the_entropy_and_falls_with_it():
    logits = random(5, 6)
    loss = ConfidencePenaltyLoss()
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean()
    assert loss(logits).item() == pytest.approx(-entropy.item(), rel=1e-12)
    assert loss(9 * logits) > loss(logits) > loss(0 * logits)
    assert loss(torch.tensor([[1e4, 0.0, 0.0]])) == 0


# OLS


def ols_reference(steps, classes):
    """The soft labels after an epoch, image by image."""
    rows = [[] for _ in range(classes)]
    for logits, target in steps:
        for each, label in zip(logits.softmax(1), target.tolist()):
            if int(each.argmax()) == label:
                rows[label].append(each)
    uniform = torch.full((classes,), 1 / classes, dtype=torch.float64)
    return torch.stack([sum(row) / len(row) if row else uniform for row in rows])


def test_ols_by_hand(hub):
    loss = connected(OnlineLabelSmoothingLoss())
    p = torch.tensor([[0.5, 0.3, 0.2], [0.7, 0.1, 0.2], [0.3, 0.6, 0.1], [0.6, 0.3, 0.1]]).double()
    # Of class 0 two are right; the image of class 1 in the third row is, that in the fourth is not
    assert loss(p.log(), torch.tensor([0, 0, 1, 1])) == 0
    assert (loss.soft_labels == 0).all()
    hub.update_info('epoch', 1)
    q = torch.tensor([[0.2, 0.3, 0.5]] * 3).double()
    expected = torch.tensor([[0.6, 0.2, 0.2], [0.3, 0.6, 0.1], [1 / 3, 1 / 3, 1 / 3]])
    value = loss(q.log(), torch.tensor([0, 1, 2]))
    torch.testing.assert_close(loss.soft_labels, expected)
    by_hand = (
        -sum((row.double() * q[0].log()).sum().item() for row in expected) / 3
    )  # mean over samples, sum over classes
    assert value.item() == pytest.approx(by_hand, rel=1e-6)


def test_ols_over_epochs(hub):
    loss = connected(OnlineLabelSmoothingLoss(), 4)
    steps = [
        [
            (2 * random(8, 4, seed=10 * e + i), random(8, seed=e - i).abs().mul(9).long() % 4)
            for i in range(3)
        ]
        for e in range(3)
    ]
    for epoch, batches in enumerate(steps):
        hub.update_info('epoch', epoch)
        for logits, target in batches:
            value = loss(logits, target)
            if epoch:
                soft = ols_reference(steps[epoch - 1], 4)[target]
                expected = -(soft * logits.log_softmax(1)).sum(1).mean()
                assert value.item() == pytest.approx(expected.item(), rel=1e-5)
            else:
                assert value == 0


def test_ols_in_the_first_epoch_has_a_gradient_of_zero():
    """So that a step of this term alone is no mistake of the Distiller's."""
    logits = random(4, 3).requires_grad_()
    value = connected(OnlineLabelSmoothingLoss())(logits, torch.tensor([0, 1, 2, 0]))
    value.backward()
    assert value == 0 and (logits.grad == 0).all()


@pytest.mark.parametrize('moment', ['within', 'between'])
def test_ols_goes_on_from_a_checkpoint(hub, moment):
    loss, target = connected(OnlineLabelSmoothingLoss()), torch.tensor([0, 1, 2, 0, 1])
    logits = F.one_hot(target, 3) + 0.4 * random(5, 3)
    schedule = [(0, 1), (0, 2), (1, 3), (1, 4), (2, 5)]
    stop = 3 if moment == 'within' else 4
    twin = connected(OnlineLabelSmoothingLoss())
    for step, (epoch, size) in enumerate(schedule):
        hub.update_info('epoch', epoch)
        if step == stop:
            twin.load_state_dict(copy.deepcopy(loss.state_dict()))
        value = loss(size * logits, target)
        if step >= stop:
            assert torch.equal(twin(size * logits, target), value)
            assert all(
                torch.equal(each, twin.get_buffer(name)) for name, each in loss.named_buffers()
            )
    assert loss.epoch == 2 and value > 0


def test_ols_takes_a_state_while_it_runs(hub):
    """The epoch of the state counts, not the one that was seen before."""
    loss, target = connected(OnlineLabelSmoothingLoss()), torch.tensor([0, 1, 2])
    logits = 2.0 * torch.eye(3)
    loss(logits, target)
    state = copy.deepcopy(loss.state_dict())
    hub.update_info('epoch', 1)
    loss(3 * logits, target)
    loss.load_state_dict(state)
    assert loss(5 * logits, target) > 0
    torch.testing.assert_close(loss.soft_labels, logits.softmax(1))


def test_ols_that_begins_late_has_no_soft_labels(hub):
    """As after a resume from a run without it."""
    hub.update_info('epoch', 5)
    loss = connected(OnlineLabelSmoothingLoss())
    assert loss(torch.eye(3), torch.tensor([0, 1, 2])) == 0 and loss.epoch == 5


@pytest.mark.parametrize('training, gradients', [(False, True), (True, False)])
@pytest.mark.parametrize('name', ['OnlineLabelSmoothingLoss', 'PSKDLoss'])
def test_trials_and_evaluation_leave_the_state_alone(name, training, gradients, monkeypatch):
    """They may run in one rank alone."""
    loss = made(name).train(training)
    before = {key: value.clone() for key, value in loss.named_buffers()}
    monkeypatch.setattr('mmkdx.losses.samples.all_gather', None)
    logits = 3.0 * F.one_hot(TARGET, 4)
    with torch.set_grad_enabled(gradients):
        assert loss(logits, **given(loss)).isfinite()
    assert all(torch.equal(value, loss.get_buffer(key)) for key, value in before.items())


@pytest.mark.parametrize('name', ['OnlineLabelSmoothingLoss', 'PSKDLoss'])
def test_tables_follow_the_device_of_the_logits(name):
    loss = getattr(mmkdx.losses, name)(**ARGUMENTS[name])
    loss.connect(torch.empty(2, 7, device='meta'))
    assert all(each.is_meta for each in loss.buffers())
    assert 7 in next(loss.buffers()).shape


# Tf-KD


@pytest.mark.parametrize(
    'classes, tau, label, other',
    [(100, 20, 0.010502, None), (100, 40, 0.010248, None), (4, 20, 0.259364, 0.246879)],
)
def test_tf_kd_of_the_code_is_nearly_uniform(classes, tau, label, other):
    """The cross entropy less its least value is the divergence; at a logit it is p - teacher."""
    logits = torch.zeros(1, classes, dtype=torch.float64, requires_grad=True)
    TfKDRegLoss(tau=tau)(logits, torch.tensor([2])).backward()
    teacher = 1 / classes - logits.grad[0]
    assert teacher[2].item() == pytest.approx(label, abs=5e-7)
    assert teacher.sum().item() == pytest.approx(1)
    assert teacher[0].item() == pytest.approx(
        other if other else (1 - teacher[2].item()) / (classes - 1), abs=5e-7
    )


def test_tf_kd_of_the_code_with_its_multiplier():
    """The authors: KLDivLoss of PyTorch with its mean over all elements, times the multiplier."""
    logits, target = random(6, 10), torch.tensor([0, 3, 9, 9, 1, 5])
    alpha, tau, multiplier = 0.1, 20, 30.0
    u = torch.full((6, 10), 0.01 / 9, dtype=torch.float64)
    u[range(6), target] = 0.99
    theirs = F.kl_div(logits.log_softmax(1), (u / tau).softmax(1), reduction='none').mean()
    theirs = theirs * multiplier * alpha
    ours = alpha * multiplier / 10 * TfKDRegLoss(tau=tau)(logits, target)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-9)


@pytest.mark.parametrize('tau', [1, 20])
def test_tf_kd_of_the_paper_is_distillation_from_the_label(tau):
    logits, target = random(6, 10), torch.tensor([0, 3, 9, 9, 1, 5])
    loss = TfKDRegLoss(tau=tau, correct=0.9, version='paper')
    u = torch.full((6, 10), 0.1 / 9, dtype=torch.float64)
    u[range(6), target] = 0.9
    soft = u ** (1 / tau) / (u ** (1 / tau)).sum(1, keepdim=True)
    p = (logits / tau).softmax(1)
    expected = tau**2 * (soft * (soft / p).log()).sum(1).mean()
    assert loss(logits, target).item() == pytest.approx(expected.item(), rel=1e-9)
    assert loss(u.log() + 3, target).item() == pytest.approx(0, abs=1e-12)
    if tau == 1:  # label smoothing, but for its entropy
        smooth = LabelSmoothLoss(1 / 9, num_classes=10)(logits, target)
        entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1 / 9))
        assert loss(logits, target).item() == pytest.approx(smooth.item() - entropy, rel=1e-6)


def test_tf_kd_with_too_few_classes():
    message = r'correct is 0.25; with 4 classes it must be above 1 / 4'
    with pytest.raises(ValueError, match=message):
        distiller(dict(own=dict(type='TfKDRegLoss', at='logits', correct=0.25)), teacher=None)
    TfKDRegLoss(correct=0.26).check(torch.empty(2, 4))


# PS-KD


def test_ps_kd_by_hand(hub):
    """Epoch 1 of 4: alpha is 0.8 * 2 / 4; the image at position 4 was not seen before."""
    hub.update_info('max_epochs', 4)
    loss = connected(PSKDLoss(num_samples=5))
    p = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.7, 0.2]]).double()
    first = loss(p.log(), torch.tensor([0, 2]), torch.tensor([3, 1]))
    # What was not seen yet is the label
    assert first.item() == pytest.approx(-(math.log(0.5) + math.log(0.2)) / 2, rel=1e-6)
    hub.update_info('epoch', 1)
    q = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]).double()
    value = loss(q.log(), torch.tensor([2, 0]), torch.tensor([1, 4]))
    soft = [0.4 * 0.1, 0.4 * 0.7, 0.6 + 0.4 * 0.2]
    expected = -sum(w * math.log(each) for w, each in zip(soft, (0.2, 0.3, 0.5))) - math.log(0.6)
    assert value.item() == pytest.approx(expected / 2, rel=1e-6)
    rows = torch.zeros(5, 3)
    rows[[3, 1, 4]] = torch.stack([p[0], q[0], q[1]]).float()
    torch.testing.assert_close(loss.predictions, rows)


@pytest.mark.parametrize(
    'epoch, max_epochs, argument, expected',
    [
        (None, None, None, 0.5),
        (0, 4, None, 0.125),
        (2, 4, None, 0.375),
        (3, 4, None, 0.5),
        (2, 4, 10, 0.15),
        (2, None, 10, 0.15),
        (12, None, 10, 0.5),
    ],
)
def test_ps_kd_share(hub, epoch, max_epochs, argument, expected):
    for key, value in dict(epoch=epoch, max_epochs=max_epochs).items():
        if value is not None:
            hub.update_info(key, value)
    loss = PSKDLoss(num_samples=2, alpha=0.5, max_epochs=argument)
    assert loss.share() == pytest.approx(expected)


def test_ps_kd_takes_its_targets_before_it_remembers():
    """The gradient is softmax - target, with the softmax of the time before."""
    loss = connected(PSKDLoss(num_samples=9, alpha=1.0))
    target, index = torch.tensor([0, 1, 2]), torch.tensor([8, 0, 4])
    before = random(3, 3, dtype=torch.float32)
    loss(before, target, index)
    logits = random(3, 3, seed=1, dtype=torch.float32).requires_grad_()
    loss(logits, target, index).backward()
    expected = (logits.softmax(1) - before.softmax(1)).detach() / 3
    torch.testing.assert_close(logits.grad, expected)
    assert not loss.predictions.requires_grad


def test_ps_kd_remembers_the_last_of_an_image():
    loss, logits = connected(PSKDLoss(num_samples=5)), random(6, 3)
    loss(logits, torch.tensor([0, 1, 0, 0, 2, 1]), torch.tensor([4, 0, 4, 4, 2, 0]))
    rows = torch.zeros(5, 3)
    rows[[4, 2, 0]] = logits.softmax(1)[[3, 4, 5]].float()
    torch.testing.assert_close(loss.predictions, rows)


def test_two_steps_of_ps_kd_before_one_backward():
    loss, logits = connected(PSKDLoss(num_samples=3)), random(3, 3).requires_grad_()
    values = [loss(logits, torch.arange(3), torch.arange(3)) for _ in range(2)]
    sum(values).backward()
    assert logits.grad.isfinite().all()


def test_wrong_positions():
    loss = connected(PSKDLoss(num_samples=20))
    message = 'num_samples is 20, and there is a sample at position 20; set it to the size'
    with pytest.raises(ValueError, match=message):
        loss(random(2, 3), torch.tensor([0, 1]), torch.tensor([0, 20]))


# CS-KD


@pytest.mark.parametrize('arguments, tau', [(dict(), 4.0), (dict(tau=1.5), 1.5)])
def test_cs_kd(arguments, tau):
    logits, value = random(6, 4), 0.0
    for own, other in ((0, 1), (2, 3), (4, 5)):
        q, p = ((logits[i] / tau).softmax(0) for i in (other, own))
        value += tau**2 * (q * (q / p).log()).sum().item() / 3
    assert CSKDLoss(**arguments)(logits, TARGET).item() == pytest.approx(value, rel=1e-9)


def test_cs_kd_of_equal_predictions_is_zero():
    logits = random(3, 4).repeat_interleave(2, 0)
    assert CSKDLoss()(logits, TARGET).item() == pytest.approx(0, abs=1e-12)


def test_cs_kd_refuses_pairs_of_two_classes():
    loss = CSKDLoss()
    loss(random(6, 4), TARGET)
    message = (
        'CSKDLoss needs pairs of the same class .* images 2 and 3 of the batch are of the classes 3 '
        r"and 1; set train_dataloader.sampler=dict\(type='PairSampler', same='class'\)"
    )
    with pytest.raises(ValueError, match=message):  # on the CPU in each batch
        loss(random(4, 4), torch.tensor([0, 0, 3, 1]))


@pytest.mark.parametrize('loss, same', [(CSKDLoss, 'class'), (DDGSDLoss, 'image')])
def test_odd_batches_are_refused(loss, same):
    message = (
        f'{loss.__name__} needs pairs of images, and the batch has 5; set an even '
        rf"train_dataloader.batch_size and .*sampler=dict\(type='PairSampler', same='{same}'\)"
    )
    with pytest.raises(ValueError, match=message):
        loss()(random(5, 4), TARGET[:5])


# DDGSD


@pytest.mark.parametrize('features', [None, (6, 3), (6, 3, 2, 2)])
@pytest.mark.parametrize('arguments', [dict(), dict(tau=3.0, mu=0.25)])
def test_ddgsd(features, arguments):
    logits = random(6, 4)
    values = logits if features is None else [random(*features, seed=1), logits]
    tau, mu = arguments.get('tau', 1.0), arguments.get('mu', 5e-4)
    kl, seen = 0.0, logits if features is None else values[0]
    for i in (0, 2, 4):
        a, b = ((logits[j] / tau).softmax(0) for j in (i, i + 1))
        kl += tau**2 * ((a - b) * (a / b).log()).sum().item() / 3
    squares = [(x - y) ** 2 for x, y in zip(seen[0::2].flatten(), seen[1::2].flatten())]
    distance = sum(squares).item() / len(squares)
    loss = DDGSDLoss(**arguments)
    assert loss(values, index=PAIRS).item() == pytest.approx(kl + mu * distance, rel=1e-9)
    assert loss.logs['kl'].item() == pytest.approx(kl, rel=1e-9)
    assert loss.logs['discrepancy'].item() == pytest.approx(distance, rel=1e-9)
    swapped = [1, 0, 3, 2, 5, 4]
    turned = logits[swapped] if features is None else [each[swapped] for each in values]
    assert loss(turned).item() == pytest.approx(kl + mu * distance, rel=1e-9)


def test_published_weights_of_ddgsd():
    """The re-implementation: means over all elements, and no tau²; lambda 1, mu 5e-4, T 3."""
    logits = random(6, 4)
    a, b = logits[0::2], logits[1::2]
    kl = sum(
        F.kl_div((x / 3).log_softmax(1), (y / 3).softmax(1), reduction='none').mean()
        for x, y in ((a, b), (b, a))
    )
    with_ce = kl + 5e-4 * F.mse_loss(a, b)
    weight = 1 / (4 * 9)
    ours = weight * DDGSDLoss(tau=3, mu=5e-4 / weight)(logits)
    assert ours.item() == pytest.approx(with_ce.item(), rel=1e-9)


def test_ddgsd_at_an_embedding_in_a_distiller():
    terms = dict(own=dict(type='DDGSDLoss', at=['embedding', 'logits'], mu=0.5))
    model = distiller(terms, teacher=None, student_weight=2.0).train()
    losses = model(*samples(), mode='loss')
    parts = losses['own.kl'] + 0.5 * losses['own.discrepancy']
    assert losses['loss_own'].item() == pytest.approx(parts.item(), rel=1e-6)


def test_ddgsd_refuses_views_of_two_images():
    message = (
        'DDGSDLoss needs pairs of the same image .* images 4 and 5 of the batch are at the positions '
        r"9 and 8; set train_dataloader.sampler=dict\(type='PairSampler', same='image'\)"
    )
    index = PAIRS.clone()
    index[5] = 8
    with pytest.raises(ValueError, match=message):
        DDGSDLoss()(random(6, 4), index=index)


@pytest.mark.parametrize(
    'at, message',
    [
        ('cam', r'terms.own: DDGSDLoss cannot take .*: DDGSDLoss compares logits, or .* set at to'),
        (['features', 'embedding', 'logits'], 'DDGSDLoss compares logits, or tensors of features'),
        ('features', r'DDGSDLoss needs logits of shape \(N, K\), .* holds \(2, 4, 4, 4\)'),
    ],
)
def test_ddgsd_at_other_places(at, message):
    with pytest.raises(ValueError, match=message):
        distiller(dict(own=dict(type='DDGSDLoss', at=at)), teacher=None)


# Runs


def run(work_dir, **changes):
    """Three epochs on 24 digits in pairs, with all that keeps a state."""
    student = dict(
        classifier(4, classes=10),
        data_preprocessor=dict(num_classes=10, mean=[78.0] * 3, std=[84.0] * 3),
    )
    config = dict(
        default_scope='mmkdx',
        work_dir=str(work_dir),
        model=dict(
            type='Distiller',
            student=student,
            input_size=32,
            student_weight=0,
            terms=dict(
                ols=dict(type='OnlineLabelSmoothingLoss', at='logits', weight=0.5),
                pskd=dict(type='PSKDLoss', at='logits', num_samples=24),
                cskd=dict(type='CSKDLoss', at='logits'),
            ),
        ),
        train_dataloader=dict(
            batch_size=12,
            num_workers=0,
            dataset=dict(type='Digits', indices=24, pipeline=[dict(type='PackInputs')]),
            sampler=dict(type='PairSampler', same='class'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=3),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
        custom_hooks=[dict(type='EpochSeedHook')],
        randomness=dict(seed=1),
    )
    runner = Runner.from_cfg(Config({**config, 'experiment_name': str(work_dir), **changes}))
    runner.train()
    return runner


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(tmp_path):
    run(tmp_path)
    whole = torch.load(tmp_path / 'epoch_3.pth', weights_only=False)['state_dict']
    run(tmp_path / 'again', load_from=str(tmp_path / 'epoch_1.pth'), resume=True)
    resumed = torch.load(tmp_path / 'again/epoch_3.pth', weights_only=False)['state_dict']
    assert set(whole) == set(resumed)
    for key, value in whole.items():
        assert torch.equal(value, resumed[key]), key
    own = {key.rpartition('.')[2]: value for key, value in whole.items() if 'distill' in key}
    torch.testing.assert_close(own['predictions'].sum(1), torch.ones(24))
    torch.testing.assert_close(own['soft_labels'].sum(1), torch.ones(10))
    assert own['epoch'] == 2 and 0 < own['counts'].sum() <= 48
