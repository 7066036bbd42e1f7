"""MapComplexity: values by hand, Quantus as a reference, and what must hold for any maps."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from mmkdx.metrics.base import Explained, ExplainedBatch
from mmkdx.metrics.map_properties import MapComplexity
from mmkdx.registry import METRICS


def batch_of(maps, start=0):
    n = len(maps)
    model = Explained(maps, torch.zeros(n).long(), torch.zeros(n, 2), None, None)
    return ExplainedBatch(torch.zeros(n, 3, 32, 32), range(start, start + n), {'student': model})


def values(maps):
    batch = batch_of(maps)
    return MapComplexity().measure(batch, batch.models['student'])


def test_by_hand():
    maps = torch.zeros(4, 2, 2)
    maps[0] = 3
    maps[1, 0, 1] = -2
    maps[2] = torch.tensor([[0.0, 1], [0, 1]])
    maps[3] = torch.tensor([[1.0, -2], [3, 4]])
    scores = values(maps)
    assert scores['gini'].tolist() == pytest.approx([0, 3 / 4, 1 / 2, 1 / 4])
    half = -sum(p * math.log(p) for p in (0.1, 0.2, 0.3, 0.4))
    expected = [math.log(4), 0, math.log(2), half]
    assert scores['entropy'].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize('shape', [(6, 7, 7), (3, 5, 12)])
def test_quantus_and_scipy(shape):
    quantus = pytest.importorskip('quantus')
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = values(maps)
    entropy = stats.entropy(maps.abs().flatten(1).numpy(), axis=1)
    np.testing.assert_allclose(scores['entropy'].numpy(), entropy, rtol=1e-12)
    size = maps.abs()[:, None].numpy()
    arguments = dict(normalise=False, abs=False, disable_warnings=True)
    for metric, name, tolerance in (
        (quantus.Sparseness, 'gini', 1e-6),
        (quantus.Complexity, 'entropy', 1e-8),
    ):
        peer = metric(**arguments)
        expected = peer(
            model=None,
            x_batch=size.copy(),
            y_batch=np.zeros(len(maps)),
            a_batch=size.copy(),  # Quantus writes into it
        )
        np.testing.assert_allclose(scores[name].numpy(), expected, atol=tolerance)


@pytest.mark.parametrize('scale', [1e-10, -1, 1e10])
def test_multiples_score_alike(scale):
    maps = torch.randn(4, 7, 7, generator=torch.Generator().manual_seed(0))
    for name, expected in values(maps).items():
        torch.testing.assert_close(values(maps * scale)[name], expected)


def test_concentration_is_simpler():
    distance = torch.linspace(-1, 1, 15) ** 2
    distance = distance[:, None] + distance
    scores = values(torch.stack([(-distance / width).exp() for width in (0.05, 0.2, 1, 5)]))
    assert (scores['gini'].diff() < 0).all() and (scores['entropy'].diff() > 0).all()


def evaluate(batches):
    metric = METRICS.build(dict(type='MapComplexity'))
    for batch in batches:
        metric.process(batch)
    return metric.evaluate(sum(len(batch.index) for batch in batches))


def test_scores_do_not_depend_on_batches_and_leave_out_degenerate_maps():
    maps = torch.randn(7, 6, 6, generator=torch.Generator().manual_seed(0))
    maps[2] = 0
    maps[4] = 5
    whole = evaluate([batch_of(maps)])
    parts = evaluate([batch_of(maps[:1]), batch_of(maps[1:5], 1), batch_of(maps[5:], 5)])
    assert set(whole) == {'gini', 'entropy'}
    for name, score in whole.items():
        assert score.n == 5 and score.low < score.value < score.high
        assert parts[name][:4] == pytest.approx(score[:4], rel=1e-6)
    assert (whole['gini'].better, whole['entropy'].better) == ('higher', 'lower')


def test_half_precision():
    maps = torch.rand(2, 14, 14, generator=torch.Generator().manual_seed(0)).half()
    for name, expected in values(maps.float()).items():
        assert (values(maps)[name] == expected).all()
