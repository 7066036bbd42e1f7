import pytest
import torch

from mmkdx.metrics import Explained, ExplainedBatch
from mmkdx.registry import METRICS


def model(*points):
    """Maps of 4 x 4 positions with one peak each."""
    maps = torch.full((len(points), 4, 4), -1.0)
    for single, (y, x) in zip(maps, points):
        single[y, x] = 2.0
    nothing = torch.zeros(len(points), 1)
    return Explained(maps, nothing.long()[:, 0], nothing, None, None)


def test_exact_values():
    metric = METRICS.build(dict(type='CentreDistance'))
    models = dict(student=model((0, 0), (1, 2)), teacher=model((3, 3), (1, 2)))
    metric.process(ExplainedBatch(torch.zeros(2, 3, 4, 4), [0, 1], models))
    score = metric.evaluate()['centre_distance']
    # Three of four positions apart in both directions, and not at all
    assert score.value == pytest.approx((0.75 * 2**0.5 + 0) / 2)
    assert score.better == 'lower' and score.n == 2
