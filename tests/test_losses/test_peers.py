"""DMLLoss: hand-computed numbers and gradients, how peers are built, and mistakes."""

import copy
import logging
import math

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from tiny import batch, classifier, distiller, total
from torch import nn

from mmkdx.losses import DMLLoss


class Fixed(nn.Module):
    """A peer of fixed logits."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, inputs):
        return self.logits


def log(*rows):
    return torch.tensor(rows, dtype=torch.float64).log()


def with_peers(*logits):
    loss = DMLLoss(peers=[classifier(4)])
    loss.peers = nn.ModuleList(map(Fixed, logits))
    return loss


# Probabilities of two classes: p = (.5, .5), q = (.8, .2); the label is the first
KL_P_Q = 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)
KL_Q_P = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)


def test_one_peer():
    student, peer = log([0.5, 0.5]).requires_grad_(), log([0.8, 0.2])
    loss = with_peers(peer)
    value = loss(student, torch.tensor([0]), None)
    assert value.item() == pytest.approx(KL_Q_P + KL_P_Q - math.log(0.8), abs=1e-7)
    assert loss.logs['kl'].item() == pytest.approx(KL_Q_P, abs=1e-7)
    assert loss.logs['peer0.ce'].item() == pytest.approx(0.2231436, abs=1e-7)
    assert set(loss.logs) == {'kl', 'peer0.ce'}
    assert not any(each.requires_grad for each in loss.logs.values())
    value.backward()
    # The student is drawn to the peer alone; the peer to the student and to the label.
    assert student.grad[0].tolist() == pytest.approx([-0.3, 0.3])
    (fixed,) = loss.peers
    assert fixed.logits.grad[0].tolist() == pytest.approx([0.3 - 0.2, 0.2 - 0.3])


def test_two_peers_are_averaged():
    student = log([0.5, 0.5]).requires_grad_()
    loss = with_peers(log([0.8, 0.2]), log([0.6, 0.4]))
    loss(student, torch.tensor([0]), None).backward()
    gradients = [student.grad, *(peer.logits.grad for peer in loss.peers)]
    expected = [0.5 - 0.7, 0.8 - 0.55 + 0.8 - 1, 0.6 - 0.65 + 0.6 - 1]
    assert [each[0, 0].item() for each in gradients] == pytest.approx(expected)
    assert loss.logs['kl'].item() == pytest.approx((KL_Q_P + 0.0201355) / 2, abs=1e-7)
    assert loss.logs['peer1.ce'].item() == pytest.approx(-math.log(0.6))


def reference(logits, labels):
    """All networks' losses but the first one's cross entropy, in numpy."""
    p = [np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (each.numpy() for each in logits)]
    value = 0.0
    for i, own in enumerate(p):
        others = [other for j, other in enumerate(p) if j != i]
        value += np.mean([(o * np.log(o / own)).sum(1).mean() for o in others])
        if i:
            value -= (labels.numpy() * np.log(own)).sum(1).mean()
    return value


@pytest.mark.parametrize('soft', [False, True])
def test_against_a_reference_with_hard_and_soft_labels(soft):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5, 3, generator=generator, dtype=torch.float64)
    target = torch.tensor([0, 2, 1, 1, 0])
    labels = torch.nn.functional.one_hot(target, 3).double()
    if soft:
        labels = target = torch.rand(5, 3, generator=generator, dtype=torch.float64).softmax(1)
    value = with_peers(*logits[1:])(logits[0], target, None)
    assert value.item() == pytest.approx(reference(logits, labels), rel=1e-12)


def test_the_authors_small_numbers_hardly_matter():
    """Their code, term by term, for two networks."""
    generator = torch.Generator().manual_seed(0)
    student, peer = torch.randn(2, 6, 10, generator=generator)
    target = torch.arange(6)
    p, q = student.softmax(1), peer.softmax(1)
    theirs = sum((b * (1e-8 + b / (a + 1e-8)).log()).sum(1).mean() for a, b in ((p, q), (q, p)))
    theirs = theirs - q[range(6), target].log().mean()
    assert with_peers(peer)(student, target, None).item() == pytest.approx(theirs.item(), rel=1e-5)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_saturated_logits_are_finite(dtype):
    student = (torch.eye(3) * 1000).to(dtype).requires_grad_()
    loss = with_peers((torch.eye(3).flip(0) * 1000).to(dtype))
    value = loss(student, torch.arange(3), None)
    assert value.dtype == torch.float32 and value.isfinite()
    value.backward()
    assert student.grad.isfinite().all()


# Peers


def weights(model):
    return [each.clone() for each in model.parameters() if each.dim() > 1]


def test_peers_are_initialised_by_their_configs_and_each_by_itself():
    config = classifier(4)
    config['head']['init_cfg'] = dict(type='Constant', layer='Linear', val=0.25)
    before = copy.deepcopy(config)
    term = dict(type='DMLLoss', at='logits', peers=[config, config])

    def built(seed):
        torch.manual_seed(seed)
        model = distiller(dict(dml=term), student=config, teacher=None)
        model.init_weights()
        return [weights(each) for each in (model.student, *model.terms.dml.loss.peers)]

    student, *peers = built(0)
    assert config == before
    for peer in peers:
        assert (peer[-1] == 0.25).all() and (student[-1] == 0.25).all()
    for first, second in ((0, 1), (0, 2), (1, 2)):
        networks = [student, *peers]
        assert not torch.equal(networks[first][0], networks[second][0])
    for again, other, peer in zip(built(0)[1:], built(1)[1:], peers, strict=True):
        assert torch.equal(again[0], peer[0])
        assert not torch.equal(other[0], peer[0])


def test_peers_see_the_images_of_the_student():
    model = distiller(dict(dml=dict(type='DMLLoss', at='logits', peers=[classifier(6)])))
    seen = []
    model.terms.dml.loss.peers[0].backbone.register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    images, samples = batch()
    model(images, samples, 'loss')
    assert len(seen) == 1 and seen[0] is images


def test_a_peer_of_another_package_with_a_preprocessor(monkeypatch):
    config = dict(
        _scope_='mmpretrain',
        **classifier(4),
        data_preprocessor=dict(mean=[5.0] * 3, std=[0.1] * 3),
    )
    before = copy.deepcopy(config)
    logger, handler, said = MMLogger.get_current_instance(), logging.Handler(), []
    handler.emit = lambda record: said.append(record.getMessage())
    monkeypatch.setattr(logger, 'handlers', [handler])
    DMLLoss(peers=[config])  # TinyBackbone is mmkdx's
    assert config == before
    assert not any('backbone.stem' in text for text in said)  # each parameter, by name
    assert not logger.disabled


def test_peers_follow_the_mode_and_the_student_is_evaluated_alone():
    model = distiller(dict(dml=dict(type='DMLLoss', at='logits', peers=[classifier(6)])))
    (peer,) = model.terms.dml.loss.peers
    assert peer.train().training and not model.eval().terms.dml.loss.peers[0].training
    assert model.train() and peer.training
    peer.forward = None
    model.eval()(batch()[0], mode='tensor')


def test_the_student_learns_from_its_peers_alone():
    """Without labels of its own, student_weight=0."""
    model = distiller(
        dict(dml=dict(type='DMLLoss', at='logits', peers=[classifier(6)])), student_weight=0
    )
    losses = model.train()(*batch(), 'loss')
    assert set(losses) == {'loss_dml', 'dml.kl', 'dml.peer0.ce'}
    total(losses).backward()
    assert all(each.grad is not None for each in model.parameters())


# Mistakes


@pytest.mark.parametrize(
    'peers, message',
    [
        ([], r'peers is \[\]; it must be a list of one model dict or more'),
        (None, 'peers is None; it must be a list'),
        (classifier(4), 'peers is {.*; it must be a list'),
        (['resnet18_8xb32_in1k'], r"peers\[0\] is 'resnet18_8xb32_in1k'; a peer is a model dict"),
        ([classifier(4), dict(depth=18)], r"peers\[1\] is {'depth': 18}; a peer is a model dict"),
        ([nn.Linear(2, 2)], r'peers\[0\] is Linear\(.*; a peer is a model dict'),
        (
            [classifier(4), dict(type='TinyBackbone', width=4)],
            r"peers\[1\] is a TinyBackbone; a peer is a classifier of mmpretrain's, such as Image",
        ),
    ],
)
def test_what_is_no_peer(peers, message):
    with pytest.raises(ValueError, match=message):
        DMLLoss(peers=peers)
    with pytest.raises(ValueError, match=rf'terms\.dml: .*{message}'):
        distiller(dict(dml=dict(type='DMLLoss', at='logits', peers=peers)))


def test_peers_of_other_classes():
    term = dict(type='DMLLoss', at='logits', peers=[classifier(4), classifier(4, classes=5)])
    message = (
        r'terms\.dml: DMLLoss cannot take \(2, 4\): peers\[1\] has 5 classes and the student 4; '
        r'set peers\[1\]\.head\.num_classes=4'
    )
    with pytest.raises(ValueError, match=message):
        distiller(dict(dml=term))


def test_a_peer_without_a_classifier():
    config = classifier(4)
    del config['head']
    with pytest.raises(ValueError, match=r'peers\[0\] has no linear classifier'):
        distiller(dict(dml=dict(type='DMLLoss', at='logits', peers=[config])))


def test_other_taps_than_logits():
    with pytest.raises(ValueError, match=r"terms\.dml\.at: DMLLoss compares logits .* 'features'"):
        distiller(dict(dml=dict(type='DMLLoss', at='features', peers=[classifier(4)])))


def test_images_without_labels():
    term = dict(type='DMLLoss', at='logits', peers=[classifier(4)])
    model = distiller(dict(dml=term), teacher=None, student_weight=0)
    with pytest.raises(ValueError, match='terms.dml: DMLLoss needs the labels of the images'):
        model(batch()[0], mode='loss')
