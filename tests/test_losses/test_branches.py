"""ONELoss and BYOTLoss: numbers against references, their layers, and mistakes."""

import math

import pytest
import torch
import torch.nn.functional as F
from mmengine.logging import MessageHub
from tiny import TinyBackbone, batch, classifier, distiller
from torch import nn

from mmkdx.losses import BYOTLoss, ONELoss
from mmkdx.registry import MODELS

ONE = dict(type='ONELoss', at=['backbone.body:in', 'logits'], branch='backbone.body')
BYOT = dict(type='BYOTLoss', at=['backbone.stem', 'features', 'logits'])
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


class Fixed(nn.Module):
    """A layer of a fixed result, whatever comes in."""

    def __init__(self, *values):
        super().__init__()
        self.values = nn.ParameterList(values)

    def forward(self, _):
        return self.values[0] if len(self.values) == 1 else tuple(self.values)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def authors_kl(student, teacher, tau):
    """As ONE's code has it, with its small number."""
    target = (teacher / tau).softmax(1) + 1e-7
    return tau**2 * (target * (target.log() - (student / tau).log_softmax(1))).sum(1).mean()


# ONE


def one(branches, gate, **arguments):
    loss = ONELoss('backbone.body', branches=len(branches), **arguments)
    loss.branches = nn.ModuleList(map(Fixed, branches))
    loss.gate = Fixed(gate)
    return loss


@pytest.mark.parametrize('tau', [1, 3])
def test_one_is_what_the_authors_code_computes(tau):
    own, *others = logits = random(3, 6, 4)
    gate = random(6, 3, seed=1).softmax(1)
    loss = one(others, gate, tau=tau)
    ensemble = sum(gate[:, b : b + 1] * each for b, each in enumerate(logits))
    labels = [F.cross_entropy(each, LABELS) for each in (ensemble, *others)]
    theirs = sum(labels) + sum(authors_kl(each, ensemble, tau) for each in logits)
    value = loss([random(6, 2, 3, 3), own], LABELS)
    assert value.item() == pytest.approx(theirs.item(), abs=2e-5)
    p = (ensemble / tau).softmax(1)
    exact = [(p * (p.log() - (each / tau).log_softmax(1))).sum(1).mean() for each in logits]
    exact = tau**2 * sum(exact)
    assert value.item() == pytest.approx((sum(labels) + exact).item(), rel=1e-12)
    assert list(loss.logs) == ['ensemble.ce', 'branch1.ce', 'branch2.ce', 'kl']
    logged = [each.item() for each in loss.logs.values()]
    assert logged == pytest.approx([each.item() for each in (*labels, exact)])
    assert not any(each.requires_grad for each in loss.logs.values())


def test_gradients_of_one():
    """By hand, for one image of two classes, with the ensemble as a constant in KL."""
    own = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    other = torch.tensor([[math.log(16), 0.0]], dtype=torch.float64)
    gate = torch.tensor([[0.25, 0.75]], dtype=torch.float64)
    loss = one([other], gate, tau=2).eval()
    loss([random(1, 2, 3, 3), own], torch.tensor([1])).backward()
    # The ensemble's logits are (ln 8, 0), 8/9 at temperature 1 and `soft` at 2; the branches give
    # 1/2 and 16/17, and 1/2 and 4/5 at 2. The label is the second class.
    soft = 8**0.5 / (8**0.5 + 1)
    assert own.grad[0, 0].item() == pytest.approx(0.25 * 8 / 9 + 2 * (0.5 - soft))
    branch = loss.branches[0].values[0].grad[0, 0].item()
    assert branch == pytest.approx(0.75 * 8 / 9 + 16 / 17 + 2 * (0.8 - soft))
    assert loss.gate.values[0].grad[0].tolist() == pytest.approx([0, 8 / 9 * math.log(16)])


def connected(**arguments):
    torch.manual_seed(0)
    model = distiller(dict(one={**ONE, **arguments}), teacher=None)
    return model, model.terms.one.loss


def test_the_gate_of_one():
    _, loss = connected()
    shared = torch.randn(6, 4, 8, 8)
    linear, norm = loss.gate[2], loss.gate[3]
    scores = shared.mean((2, 3)) @ linear.weight.T + linear.bias
    scores = (scores - scores.mean(0)) / (scores.var(0, unbiased=False) + norm.eps).sqrt()
    expected = scores.clamp(min=0).softmax(1)
    assert expected.shape == (6, 3)
    torch.testing.assert_close(loss.train().gate(shared), expected)


def test_one_branches_are_what_follows_the_stage_with_weights_of_their_own():
    student = classifier(4)
    torch.manual_seed(0)
    model = distiller(dict(one=dict(ONE, branches=3)), student=student, teacher=None)
    loss = model.terms.one.loss
    kernels = [
        model.student.backbone.body[0].weight,
        *(each[0][0].weight for each in loss.branches),
    ]
    matrices = [model.student.head.fc.weight, *(each[3].weight for each in loss.branches)]
    for weights in (kernels, matrices):
        assert len(weights) == 4 and len({each.data_ptr() for each in weights}) == 4
        for i, first in enumerate(weights):
            assert all(not torch.equal(first, second) for second in weights[:i])
    # With the student's weights a branch is the student
    branch = loss.branches[1]
    branch[0].load_state_dict(model.student.backbone.body.state_dict())
    branch[3].load_state_dict(model.student.head.fc.state_dict())
    images, _ = batch()
    model.eval()
    shared = model.student.backbone.stem(images)
    torch.testing.assert_close(branch(shared), model(images, mode='tensor'))


def test_one_branches_of_a_trained_and_frozen_student_are_fresh():
    student = distiller({}, teacher=None).student
    for parameter in student.parameters():
        nn.init.constant_(parameter, 3.0)
    student.backbone.body[1].running_mean.fill_(7)
    student.backbone.body.requires_grad_(False)
    model = distiller(dict(one=ONE), student=student, teacher=None)
    for branch in model.terms.one.loss.branches:
        convolution, norm, _ = branch[0]
        assert all(each.requires_grad for each in branch.parameters())
        # Kaiming's, by outputs
        assert convolution.weight.std().item() == pytest.approx((2 / (4 * 9)) ** 0.5, rel=0.2)
        assert (norm.weight == 1).all() and (norm.running_mean == 0).all()
        assert branch[3].weight.abs().max() < 1
    assert (student.backbone.body[0].weight == 3).all()
    assert not student.backbone.body[0].weight.requires_grad


@pytest.mark.parametrize(
    'epoch, factor', [(0, 0.0067379), (20, 0.0600547), (40, 0.2865048), (80, 1), (200, 1)]
)
def test_ramp(monkeypatch, epoch, factor):
    """exp(-5 (1 - t / 80)^2), as in the authors' code."""
    monkeypatch.setattr(MessageHub, '_instance_dict', type(MessageHub._instance_dict)())
    hub = MessageHub.get_instance('one')
    hub.update_info('epoch', epoch)
    own, *others = random(3, 6, 4)
    gate = random(6, 3, seed=1).softmax(1)
    values = []
    for ramp in (None, dict(type='sigmoid', end=81)):
        loss = one(others, gate, ramp=ramp)
        value = loss([random(6, 2, 3, 3), own], LABELS)
        labels = sum(each for key, each in loss.logs.items() if key.endswith('ce'))
        values.append((value - labels) / loss.logs['kl'])
    assert [each.item() for each in values] == pytest.approx([1, factor], abs=1e-6)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(branches=0), 'branches is 0; it must be an integer of at least 1'),
        (dict(tau=0), 'tau is 0; it must be a finite number above 0'),
        (dict(ramp=dict(type='step', end=9)), "ramp.type is 'step'; it must be one of linear"),
        (dict(ramp=dict(type='linear', end=1)), r'ramp.end \(1\) must be at least ramp.begin \+ 2'),
        (dict(ramp=dict(type='linear')), "ramp: .* 'end'"),
        (dict(ramp=3), 'ramp is 3; it must be a dict of options'),
        (dict(branch=True), 'branch is True; it must be the path of a module'),
        (
            dict(branch='backbone.layer4'),
            "branch is 'backbone.layer4', and the student has no such",
        ),
        (
            dict(branch='backbone.stem'),
            "branch is 'backbone.stem', which must be the last stage before the linear classifier "
            "'head.fc'; it is followed by backbone.body.0, backbone.body.1",
        ),
        (dict(branch='head.fc'), "branch is 'head.fc', .* it is followed by no layer"),
        (dict(branch='neck'), "branch is 'neck', .* it is followed by backbone.stem.0"),
        (dict(at='logits'), r"two taps are needed, .*, as in \['backbone.body:in', 'logits'\]"),
        (dict(at=['logits', 'backbone.stem']), 'two taps are needed'),
        (dict(at=['backbone.stem', 'logits', 'logits']), 'two taps are needed'),
    ],
)
def test_mistakes_with_one(arguments, message):
    with pytest.raises(ValueError, match=rf'terms\.one(\.at)?: .*{message}'):
        distiller(dict(one={**ONE, **arguments}), teacher=None)


@MODELS.register_module()
class Doubled(TinyBackbone):
    """Its features are there twice."""

    def forward(self, images):
        features = super().forward(images)[0]
        return (torch.cat([features, features], 1),)


@MODELS.register_module()
class Wrapped(TinyBackbone):
    """Its last stage returns a tuple."""

    def __init__(self, width):
        super().__init__(width)
        self.last = TinyBackbone(width)
        self.last.stem = self.body
        del self.body

    def forward(self, images):
        return self.last(self.stem(images))


def resnet(**head):
    config = classifier(**head)
    config['backbone'] = dict(type='ResNet_CIFAR', depth=18, stem_channels=4, base_channels=4)
    config['head'].update(in_channels=32)
    return config


def changed(width=4, neck='GlobalAveragePooling', **backbone):
    config = classifier(width)
    config['backbone'].update(**backbone)
    config['neck'] = dict(type=neck)
    config['head']['in_channels'] = width * (1 + (backbone.get('type') == 'Doubled'))
    return config


@pytest.mark.parametrize(
    'student, arguments, message',
    [
        (
            resnet(),
            dict(branch='backbone.layer4', at=['backbone.layer4', 'logits']),
            r"branch 'backbone.layer4' cannot turn the map \(2, 32, 1, 1\) of the first tap "
            "into another; let the tap be 'backbone.layer4:in', and the stage return one map",
        ),
        (
            changed(type='Wrapped'),
            dict(branch='backbone.last', at=['backbone.last:in', 'logits']),
            "branch 'backbone.last' cannot turn .* and the stage return one map",
        ),
        (
            changed(type='Doubled'),
            {},
            "branch 'backbone.body' returns 4 channels, and the linear classifier 'head.fc' takes",
        ),
        (
            changed(neck='GeneralizedMeanPooling'),
            {},
            r'branch is .backbone.body., which must be the last stage .*; it is followed by neck',
        ),
    ],
)
def test_students_that_one_does_not_fit(student, arguments, message):
    with pytest.raises(ValueError, match=rf'terms\.one\.at: ONELoss: {message}'):
        distiller(dict(one={**ONE, **arguments}), student=student, teacher=None)


def test_a_batch_of_one_image():
    model, _ = connected()
    message = "the batch has one image, and ONELoss's gate has batch norm; .*drop_last=True"
    with pytest.raises(ValueError, match=message):
        model.train()(*batch(1), 'loss')
    assert model.eval()(*batch(1), 'loss')['loss_one'].isfinite()


# BYOT


def byot(exits, **arguments):
    loss = BYOTLoss(**arguments)
    loss.exits = nn.ModuleList(Fixed(*each) for each in exits)
    return loss


@pytest.mark.parametrize('alpha, tau', [(0.1, 3), (0.6, 1)])
def test_byot_is_what_the_authors_code_computes(alpha, tau):
    """But for the entropy of the end, which has no gradient, and in their batch and width."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(10, (128,), generator=generator)
    logits, *predictions = torch.randn(4, 128, 10, generator=generator).double()
    last = torch.randn(128, 512, 2, 2, generator=generator).double().relu()
    features = [random(128, 512, seed=i).relu() for i in range(3)]
    loss = byot(list(zip(features, predictions)), alpha=alpha, tau=tau)
    final = last.mean((2, 3))
    soft = (logits / tau).softmax(1)
    theirs = 0.0
    for each in loss.exits:
        f, z = each.values
        ce = F.cross_entropy(z, target)
        kd = -((z / tau).log_softmax(1) * soft).sum(1).mean() * tau**2
        mask = (f > 0) | (final > 0)
        theirs = theirs + (1 - alpha) * ce + alpha * kd + 1e-6 * ((f - final) ** 2 * mask).sum()
    early = [random(128, 4, 8, 8)] * 3
    ours = loss([*early, last, logits], target)
    entropy = -(soft * soft.log()).sum(1).mean().item()
    constant = 3 * alpha * tau**2 * entropy
    assert ours.item() == pytest.approx(theirs.item() - constant, rel=1e-9)
    values = [value for each in loss.exits for value in each.values]
    assert len(values) == 6
    for a, b in zip(torch.autograd.grad(ours, values), torch.autograd.grad(theirs, values)):
        torch.testing.assert_close(a, b)


def test_the_end_is_a_constant_for_exits():
    logits, last = random(6, 4).requires_grad_(), random(6, 5, 2, 2).requires_grad_()
    loss = byot([(random(6, 5, seed=1), random(6, 4, seed=2))])
    loss([random(6, 3, 4, 4), last, logits], LABELS).backward()
    assert logits.grad is None and last.grad is None
    parts = {key: each.item() for key, each in loss.logs.items()}
    assert set(parts) == {'exit1.ce', 'kl', 'hint'}
    pooled = last.detach().mean((2, 3))
    assert parts['hint'] == pytest.approx((random(6, 5, seed=1) - pooled).square().mean().item())
    assert parts['exit1.ce'] == pytest.approx(F.cross_entropy(random(6, 4, seed=2), LABELS).item())
    p, q = (each.softmax(1) for each in (logits.detach() / 3, random(6, 4, seed=2) / 3))
    assert parts['kl'] == pytest.approx(9 * (p * (p / q).log()).sum(1).mean().item())
    assert not any(each.requires_grad for each in loss.logs.values())


@pytest.mark.parametrize(
    'early, last, kernel',
    [
        ((64, 32, 32), (512, 4, 4), (8, 8)),
        ((64, 7, 5), (512, 3, 2), (2, 2)),
        ((64, 9, 4), (512, 3, 2), (3, 2)),
        ((64, 4, 4), (512, 4, 4), (1, 1)),
        ((64, 2, 4), (512, 4, 4), (1, 1)),
        ((3, 4, 4), (2, 2, 2), (2, 2)),
    ],
)
def test_exits_bring_maps_to_the_channels_and_size_of_the_last(early, last, kernel):
    loss = BYOTLoss()
    shapes = (2, *early), (2, *last), (2, 10)
    loss.connect([torch.empty(shape) for shape in shapes])
    (leave,) = loss.exits
    convolutions = [each for each in leave.modules() if isinstance(each, nn.Conv2d)]
    inner = max(last[0] // 4, 1)
    assert [tuple(each.weight.shape) for each in convolutions] == [
        (inner, early[0], 1, 1),
        (inner, inner, *kernel),
        (last[0], inner, 1, 1),
    ]
    assert convolutions[1].stride == kernel
    for each in convolutions[:2]:  # Kaiming's, by outputs
        fan = each.weight[:, 0].numel()
        if fan > 100:
            assert each.weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.05)
    maps = torch.randn(5, *early)
    features, logits = leave.eval()(maps)
    torch.testing.assert_close(features, leave.bottleneck(maps).mean((2, 3)))
    assert features.shape == (5, last[0]) and (features >= 0).all()
    torch.testing.assert_close(logits, features @ leave.fc.weight.T + leave.fc.bias)
    assert logits.shape == (5, 10)


def test_byot_on_a_resnet():
    taps = [*(f'backbone.layer{i}' for i in (1, 2, 3)), 'features', 'logits']
    model = distiller(dict(byot=dict(BYOT, at=taps)), student=resnet(), teacher=None, input_size=32)
    exits = model.terms.byot.loss.exits
    assert [each.bottleneck[3].kernel_size[0] for each in exits] == [8, 4, 2]
    losses = model.train()(*batch(size=32), 'loss')
    assert {f'byot.exit{i}.ce' for i in (1, 2, 3)} <= set(losses)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(alpha=1.5), 'alpha is 1.5; it must be a finite number '),
        (dict(alpha=-0.1), 'alpha is -0.1'),
        (dict(beta=-1), 'beta is -1; it must be a finite number of at least 0'),
        (dict(tau=0), 'tau is 0; it must be a finite number above 0'),
        (dict(at='logits'), 'taps of one early map .* or more, of the last map and of the logits'),
        (dict(at=['features', 'logits']), 'taps of one early map'),
        (dict(at=['backbone.stem', 'features', 'features']), 'taps of one early map'),
        (dict(at=['backbone.stem', 'embedding', 'logits']), 'taps of one early map'),
        (dict(at=['backbone.stem', 'logits', 'features']), 'taps of one early map'),
    ],
)
def test_mistakes_with_byot(arguments, message):
    with pytest.raises(ValueError, match=rf'terms\.byot(\.at)?: .*{message}'):
        distiller(dict(byot={**BYOT, **arguments}), teacher=None)


# Both


@pytest.mark.parametrize('term', [ONE, BYOT], ids=['one', 'byot'])
def test_mixed_labels(term):
    model = distiller(dict(term=term), teacher=None).train()
    images, samples = batch()
    for sample in samples:
        sample.set_gt_score(torch.full((4,), 0.25))
    message = f'terms.term: {term["type"]} needs one class an image and the batches have mixed'
    with pytest.raises(ValueError, match=message):
        model(images, samples, 'loss')


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('term', [ONE, BYOT], ids=['one', 'byot'])
def test_half_precision_is_computed_in_fp32(term, dtype):
    torch.manual_seed(0)
    loss = distiller(dict(term=term), teacher=None).terms.term.loss
    maps = [random(6, 4, 8, 8), random(6, 4, 4, 4)][: len(term['at']) - 1]
    values = [each.to(dtype) for each in (*maps, 100 * random(6, 4))]
    value = loss(values, LABELS)
    assert value.dtype == torch.float32
    assert value.item() == loss([each.float() for each in values], LABELS).item()
