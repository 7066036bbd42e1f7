"""F-Fidelity: exact expectations by hand, draws, and what is shared between maps."""

import itertools

import pytest
import torch
from measuring import batch_of, explained, network, rand, scores, values
from torch import nn

from mmkdx.metrics import FFidelity

CONTRIBUTIONS = torch.tensor([[3.0, 1.5], [-1, 0.5]])


class Additive(nn.Module):
    """Class 1 has the logit Σ x - 2, class 0 the logit 0, which a tie is."""

    def forward(self, images):
        logit = images.sum((1, 2, 3)) - 2
        return torch.stack([torch.zeros_like(logit), logit], 1)


def additive_batch(maps=CONTRIBUTIONS, copies=1):
    images = CONTRIBUTIONS.expand(copies, 1, 2, 2)
    maps = maps.expand(copies, 2, 2)
    student = explained(Additive(), images, maps, [1] * copies)
    return batch_of(images, labels=[1] * copies, student=student)


class Exact(FFidelity):
    """All that a lattice of ``levels`` numbers can draw, once each: means are expectations."""

    levels = 2

    def _fields(self, generator, size):
        numbers = (torch.arange(self.levels) + 0.5) / self.levels
        return torch.tensor(list(itertools.product(numbers.tolist(), repeat=4))).view(-1, *size)


#: alpha, beta, s, levels, then ffid_plus and ffid_minus by hits and by probabilities; None: not given.
BY_HAND = [
    (0.5, 1, 0.25, 2, 0.5, 0.3059278283, 0.125, 0.1000245921),
    (0.5, 1, 0.5, 2, 0.5, 0.4187830753, 0, -0.0129747973),
    (0.5, 1, 0.75, 2, 0.625, 0.4563618425, 0, -0.0358885244),
    (0.5, 1, 1, 2, 0.5625, 0.3807970780, 0, 0),
    (0.5, 0.25, 0.25, 6, None, None, 0.0740740741, 0.0722304287),
    (0.5, 0.25, 0.75, 6, 0.4074074074, 0.3087129735, None, None),
    (0.5, 0.25, 1, 4, 0.28515625, 0.1997777390, 0, 0),
    (0.5, 0.1, 0.25, 5, 0.4, 0.2447422626, None, None),
    (0.5, 0.1, 0.5, 5, 0.2, 0.1714285005, None, None),
    (0.5, 0.1, 1, 10, 0.1081, 0.0833626412, 0, 0),
    (1, 1, 0.25, 1, 1, 0.6118556566, None, None),
]


@pytest.mark.parametrize('case', BY_HAND)
def test_expectations_by_hand(case):
    alpha, beta, share, levels, *expected = case
    hits, found = (
        Exact([share], alpha, beta, kind=kind, max_batch=30000) for kind in ('hit', 'prob')
    )
    hits.levels = found.levels = levels
    for metric, plus, minus in ((hits, *expected[::2]), (found, *expected[1::2])):
        row = values(metric, additive_batch())[0]
        if plus is not None:
            assert row['ffid_plus'] == pytest.approx(plus, abs=2e-6)
        if minus is not None:
            assert row['ffid_minus'] == pytest.approx(minus, abs=2e-6)
        assert row['ffid'] == pytest.approx(row['ffid_plus'] - row['ffid_minus'], abs=1e-6)


def test_a_map_of_the_opposite_order():
    for kind, plus, minus in (('hit', 0, 0.5), ('prob', -0.0129747973, 0.4187830753)):
        row = values(Exact([0.5], 0.5, 1, kind=kind), additive_batch(-CONTRIBUTIONS))[0]
        assert row['ffid_plus'] == pytest.approx(plus, abs=2e-6)
        assert row['ffid_minus'] == pytest.approx(minus, abs=2e-6)


def test_scores_are_means_over_fractions():
    shares, whole = [0.25, 0.5, 0.75], Exact([0.25, 0.5, 0.75], 0.5, 1)
    rows = [values(Exact([each], 0.5, 1), additive_batch())[0] for each in shares]
    for name, value in values(whole, additive_batch())[0].items():
        assert value == pytest.approx(sum(row[name] for row in rows) / 3, abs=1e-6)


@pytest.mark.parametrize('case', [0, 4, 5, 9])
def test_random_draws_come_near_the_expectations(case):
    alpha, beta, share, _, *expected = BY_HAND[case]
    draws, images = 100, 20
    metric = FFidelity([share], alpha, beta, draws, 'hit', max_batch=1000)
    rows = values(metric, additive_batch(copies=images)).values()
    for name, p in (('ffid_plus', expected[0]), ('ffid_minus', expected[2])):
        if p:
            mean = sum(row[name] for row in rows) / images
            assert abs(mean - p) < 4 * (p * (1 - p) / draws / images) ** 0.5


def test_draws_are_those_of_the_image_for_all_maps_and_fractions():
    """What is removed for a small fraction is removed for a larger one where the limits are equal."""
    images, net, seen = rand(2, 3, 6, 6) + 5, network(), []
    batch = batch_of(images, index=[4, 9], student=explained(net, images, rand(2, 6, 6)))
    student = batch.models['student']
    student.predict = lambda copies: (seen.append((copies == 0).all(1)), net(copies).detach())[1]
    metric = FFidelity([0.25, 0.5], 0.5, 1, draws=7, max_batch=64)
    metric.process(batch)
    first, second = (each.view(4, 7, 6, 6) for each in seen)
    for small, large, outside_small, outside_large in (first, second):
        assert (large | ~small).all() and (outside_small | ~outside_large).all()
        assert torch.equal(small | outside_small, large | outside_large)
    assert not torch.equal(first[0] | first[2], second[0] | second[2])
    seen.clear()
    student.maps = rand(2, 6, 6, seed=1)
    FFidelity([0.5], 0.5, 1, draws=7).process(batch)
    again = seen[0].view(2, 7, 6, 6)
    assert torch.equal(again[0] | again[1], first[0] | first[2])
    seen.clear()
    FFidelity([0.5], 0.5, 1, draws=7, seed=5).process(batch)
    other = seen[0].view(2, 7, 6, 6)
    assert torch.equal(other[0] | other[1], (second[0] | second[2]))  # 4 + 5 is 9
    assert not torch.equal(other, again)


def test_no_more_of_the_image_is_removed_than_beta():
    images, net, seen = rand(1, 3, 20, 20) + 5, network(), []
    batch = batch_of(images, student=explained(net, images, rand(1, 20, 20)))
    batch.models['student'].predict = lambda copies: (
        seen.append((copies == 0).all(1).flatten(1).float().mean(1)),
        net(copies).detach(),
    )[1]
    FFidelity(draws=200, max_batch=10**4).process(batch)
    shares = seen[0].view(10, 200).mean(1)
    expected = torch.tensor([0.05, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.05])
    assert (shares - expected).abs().max() < 4 * (0.25 * 0.5 * 0.5 / 200) ** 0.5 / 20 * 2
    assert seen[0].amax() < 0.2


def test_hits_need_one_label_and_several_logits():
    metric = FFidelity(kind='hit')
    batch = additive_batch()
    batch.data_samples = ()
    with pytest.raises(
        ValueError,
        match=r"^FFidelity\(kind='hit'\) needs one label for each image, and sample 0 has 0",
    ):
        metric.process(batch)
    images = rand(1, 3, 4, 4)
    student = explained(network(classes=1), images, rand(1, 4, 4))
    with pytest.raises(ValueError, match='the model has one logit; use kind='):
        metric.process(batch_of(images, labels=[0], student=student))
    assert scores(FFidelity(draws=2), batch_of(images, student=student))['ffid'].n == 1
