"""Expected calibration error."""

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.registry import DefaultScope
from mmpretrain.structures import DataSample

from mmkdx.metrics import CalibrationError

# Confidences of two classes' predictions, and whether they are right
CONFIDENCES = [0.9, 0.8, 0.62, 0.65, 0.55]
RIGHT = [True, False, True, True, False]


def sample(scores, label=0):
    return DataSample().set_pred_score(torch.tensor(scores)).set_gt_label(label)


def samples(confidences=CONFIDENCES, right=RIGHT):
    return [sample([c, 1 - c], int(not hit)) for c, hit in zip(confidences, right)]


def evaluate(samples, size=None, **arguments):
    with DefaultScope.overwrite_default_scope('mmkdx'):
        evaluator = Evaluator([dict(type='CalibrationError', **arguments), dict(type='Accuracy')])
    for i in range(0, len(samples), 3):
        evaluator.process(samples[i : i + 3])
    return evaluator.evaluate(size or len(samples))


def test_by_hand():
    # Bins of a fifth: 0.62, 0.65, 0.55 and 0.8 (closed above) are split by 0.6, 0.9 is alone
    # (0.4, 0.6]: 0.55, wrong; (0.6, 0.8]: 0.8 wrong, 0.62 and 0.65 right; (0.8, 1]: 0.9 right
    expected = 100 * (1 * 0.55 + 3 * abs(2 / 3 - 0.69) + 1 * 0.1) / 5
    result = evaluate(samples(), bins=5)
    likelihoods = [0.9, 0.2, 0.62, 0.65, 0.45]
    assert result == pytest.approx(
        {
            'calibration/ece': expected,
            'calibration/nll': -np.log(likelihoods).mean(),
            'accuracy/top1': 60,
        },
        rel=1e-5,
    )


def reference(scores: np.ndarray, labels: np.ndarray, bins: int) -> float:
    """Guo et al., Eq. 3, bin by bin."""
    confidence, hits = scores.max(1), scores.argmax(1) == labels
    error = 0.0
    for m in range(bins):
        inside = (confidence > m / bins) & (confidence <= (m + 1) / bins)
        if inside.any():
            error += inside.sum() * abs(hits[inside].mean() - confidence[inside].mean())
    return 100 * error / len(labels)


@pytest.mark.parametrize('bins', [1, 7, 15])
def test_against_a_loop_over_bins(bins):
    rng = np.random.default_rng(0)
    scores = rng.dirichlet([0.4] * 6, 300).astype(np.float32)
    labels = rng.integers(0, 6, 300)
    labels[::2] = scores[::2].argmax(1)
    result = evaluate([sample(s.tolist(), int(y)) for s, y in zip(scores, labels)], bins=bins)
    assert result['calibration/ece'] == pytest.approx(reference(scores, labels, bins), rel=1e-4)
    if bins == 1:  # accuracy less mean confidence
        gap = abs(result['accuracy/top1'] - 100 * scores.max(1).mean())
        assert result['calibration/ece'] == pytest.approx(gap, rel=1e-4)


def test_15_bins_are_the_default():
    confidences = np.linspace(0.51, 0.99, 40).tolist()
    given = samples(confidences, [i % 3 > 0 for i in range(40)])
    found = evaluate(given)
    assert found == evaluate(given, bins=15) and found != evaluate(given, bins=10)


def test_a_calibrated_and_an_overconfident_model():
    hits = [True] * 3 + [False]
    assert evaluate(samples([0.75] * 4, hits))['calibration/ece'] == pytest.approx(0, abs=1e-4)
    sure = evaluate(samples([1.0] * 4, hits))
    assert sure['calibration/ece'] == pytest.approx(25)
    # -ln of the smallest normal number of fp32 for the one that is wrong
    assert sure['calibration/nll'] == pytest.approx(87.3365 / 4, rel=1e-4)


@pytest.mark.parametrize('edge', [0.6, 0.8, 1.0])
def test_bins_are_closed_above(edge):
    # Apart, a hit and a miss do not cancel; together they nearly do
    low = edge - 0.05
    together = evaluate(samples([edge, low], [True, False]), bins=5)['calibration/ece']
    assert together == pytest.approx(100 * abs((edge + low) / 2 - 0.5), rel=1e-4)
    if edge < 1:
        apart = evaluate(samples([edge, edge + 0.05], [True, False]), bins=5)['calibration/ece']
        assert apart == pytest.approx(50 * (1 - edge + edge + 0.05), rel=1e-4)


def test_samples_that_fill_up_the_last_batch_do_not_count():
    wrong = sample([0.99, 0.01], 1)
    assert evaluate([*samples(), wrong, wrong], len(CONFIDENCES)) == evaluate(samples())


def test_results_are_plain_numbers_and_half_precision_is_no_problem():
    metric = CalibrationError()
    given = [each.to_dict() for each in samples()]
    for each in given:
        each['pred_score'] = each['pred_score'].half()
    metric.process(None, given)
    assert all(not torch.is_tensor(value) for row in metric.results for value in row)
    scores = metric.evaluate(5)
    assert set(scores) == {'calibration/ece', 'calibration/nll'}
    assert all(type(value) is float for value in scores.values())
    assert scores['calibration/ece'] == pytest.approx(
        evaluate(samples())['calibration/ece'], rel=5e-3
    )


def test_another_prefix():
    assert 'own/ece' in evaluate(samples(), prefix='own')


@pytest.mark.parametrize('bins', [0, -1])
def test_no_bins(bins):
    with pytest.raises(
        ValueError, match=f'CalibrationError.bins is {bins}; it must be an integer of at least 1'
    ):
        CalibrationError(bins)


@pytest.mark.parametrize(
    ('bad', 'message'),
    [
        (DataSample().set_pred_label(1).set_gt_label(1), r"have none \('pred_score'\)"),
        (DataSample().set_pred_score(torch.tensor([0.5, 0.5])), 'needs one label for each image'),
        (sample([0.5, 0.5], [0, 1]), 'has none, or several'),
        (sample([0.9, 0.8]), 'add up to 1, .* multi-label head'),
        (sample([1.5, -0.5]), 'add up to 1'),
    ],
)
def test_what_is_no_probability_of_one_class(bad, message):
    with pytest.raises(ValueError, match=message):
        CalibrationError().process(None, [samples()[0].to_dict(), bad.to_dict()])


def test_one_logit_is_right_of_class_0_or_of_its_opposite():
    def one(p, labels):
        return DataSample().set_pred_score(torch.tensor([p])).set_gt_label(labels)

    given = [one(0.9, [0]), one(0.8, []), one(0.3, []), one(0.05, [0])]
    metric = CalibrationError(bins=1)
    metric.process(None, [each.to_dict() for each in given])
    found = metric.evaluate(4)
    # Confidences .9, .8, .7 and .95, of which the first and the third are right
    assert found['calibration/ece'] == pytest.approx(100 * abs(0.5 - 0.8375), rel=1e-5)
    expected = -np.log([0.9, 0.2, 0.7, 0.05]).mean()
    assert found['calibration/nll'] == pytest.approx(expected, rel=1e-5)
    unlabelled = DataSample().set_pred_score(torch.tensor([0.5])).to_dict()
    with pytest.raises(ValueError, match='needs one label for each image'):
        CalibrationError().process(None, [unlabelled])
