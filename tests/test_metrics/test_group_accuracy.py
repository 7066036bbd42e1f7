"""Accuracy in groups."""

import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.registry import DefaultScope
from mmpretrain.structures import DataSample

from mmkdx.metrics import GroupAccuracy

LABELS = [0, 1, 0, 0, 1, 1, 0, 0]
PREDICTED = [0, 1, 1, 0, 1, 0, 1, 1]
PLACES = [0, 1, 1, 0, 0, 1, 1, 0]
UNIONS = dict(id=(0, 3), ood=(1, 2))


def samples(predicted=PREDICTED):
    for label, found, place in zip(LABELS, predicted, PLACES):
        sample = DataSample().set_gt_label(label).set_pred_label(found)
        sample.set_field(2 * label + place, 'group', field_type='metainfo')
        yield sample


def evaluate(samples, **arguments):
    samples = list(samples)
    with DefaultScope.overwrite_default_scope('mmkdx'):
        evaluator = Evaluator(dict(type='GroupAccuracy', **arguments))
    for batch in (samples[:3], samples[3:]):
        evaluator.process(batch)
    return evaluator.evaluate(len(samples))


def test_groups_of_waterbirds():
    # counted by hand
    assert evaluate(samples(), unions=UNIONS) == pytest.approx(
        {
            'group_accuracy/0': 200 / 3,
            'group_accuracy/1': 0,
            'group_accuracy/2': 100,
            'group_accuracy/3': 50,
            'group_accuracy/worst': 0,
            'group_accuracy/id': 60,
            'group_accuracy/ood': 100 / 3,
        }
    )


def test_groups_without_samples_are_left_out():
    kept = [sample for sample in samples() if sample.group in (0, 3)]
    scores = evaluate(kept, unions=UNIONS, prefix='bird')
    assert scores == pytest.approx(
        {'bird/0': 200 / 3, 'bird/3': 50, 'bird/worst': 50, 'bird/id': 60}
    )


def test_samples_that_fill_up_the_last_batch_do_not_count():
    metric = GroupAccuracy()
    metric.process(None, [sample.to_dict() for sample in samples()])
    metric.process(None, [next(samples()).to_dict()] * 5)
    assert metric.evaluate(8)['group_accuracy/0'] == pytest.approx(200 / 3)


def test_results_are_plain_numbers():
    metric = GroupAccuracy()
    metric.process(None, [sample.to_dict() for sample in samples()])
    assert all(not torch.is_tensor(value) for row in metric.results for value in row)
    assert all(type(value) is float for value in metric.evaluate(8).values())


def test_no_groups():
    sample = DataSample().set_gt_label(0).set_pred_label(0)
    message = r"the data samples have no 'group'; .*meta_keys=\(…, 'group'\) of PackInputs"
    with pytest.raises(ValueError, match=message):
        GroupAccuracy().process(None, [sample.to_dict()])
