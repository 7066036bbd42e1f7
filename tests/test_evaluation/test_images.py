"""What an evaluation notes of each image for an audit."""

import pytest
import torch
from mmpretrain.structures import DataSample
from tiny import build, classifier

from mmkdx.evaluation.images import Facts, read_batch
from mmkdx.metrics import Explained, ExplainedBatch

TEACHER, STUDENT = [[2.0, 0.0, -1.0]], [[1.0, 0.0, 0.0]]


def noted(labels=(0,), group=None, **logits):
    """The row of an image with these logits of models."""
    models = {}
    for name, values in logits.items():
        options = {}
        if isinstance(values, tuple):
            values, options = values[0], dict(probabilities=values[1])
        values = torch.tensor(values)
        maps = torch.rand(len(values), 2, 2)
        models[name] = Explained(maps, values.argmax(1), values, None, None, **options)
    sample = DataSample(metainfo={} if group is None else dict(group=group))
    if labels:
        sample.set_gt_label(list(labels))
    facts = Facts()
    facts.process(ExplainedBatch(torch.rand(1, 3, 4, 4), [7], models, [sample]))
    facts.evaluate(1)
    return facts.rows[7]


def test_kl_is_of_the_teachers_probabilities():
    assert noted(student=STUDENT, teacher=TEACHER)['kl'] == pytest.approx(0.1833833627)
    assert noted(student=TEACHER, teacher=STUDENT)['kl'] == pytest.approx(0.2542259785)
    row = noted(student=STUDENT, teacher=TEACHER, base=TEACHER)
    assert row['base/kl'] == pytest.approx(0, abs=1e-7) and 'teacher/kl' not in row
    assert 'kl' not in noted(student=STUDENT)


def test_the_labels_probability():
    row = noted(labels=(1,), student=STUDENT, teacher=TEACHER)
    for name, logits in (('', STUDENT), ('teacher/', TEACHER)):
        expected = torch.tensor(logits).softmax(1)[0]
        assert row[f'{name}label_probability'] == pytest.approx(expected[1].item())
        assert row[f'{name}confidence'] == pytest.approx(expected.max().item())


@pytest.mark.parametrize('labels', [(), (0, 2), (5,)])
def test_without_one_label_that_the_model_knows_there_is_no_probability(labels):
    row = noted(labels=labels, student=STUDENT, teacher=TEACHER)
    assert 'label_probability' not in row and 'kl' in row
    assert ('label' in row) == (len(labels) == 1)


def test_sigmoids_are_no_distribution():
    row = noted(student=(STUDENT, torch.sigmoid), teacher=TEACHER)
    assert 'label_probability' not in row and 'kl' not in row and 'confidence' in row
    assert 'label_probability' not in noted(student=([[0.5]], torch.sigmoid))


def test_groups_are_noted_where_samples_have_them():
    assert noted(student=STUDENT, group=3)['group'] == 3
    assert 'group' not in noted(student=STUDENT)


def test_normalised_images_are_refused_by_a_model_that_normalises():
    config = dict(classifier(4), data_preprocessor=dict(mean=[0.5] * 3, std=[0.2] * 3))
    model, raw = build(config), torch.rand(2, 3, 8, 8)
    batch = read_batch((raw, [0, 1]), model, 'evaluate', [0, 1])
    assert torch.allclose(batch.inputs, (raw - 0.5) / 0.2)
    with pytest.raises(
        ValueError, match='^evaluate: the images have values below 0, and the model'
    ):
        read_batch((batch.inputs, [0, 1]), model, 'evaluate', [0, 1])
    model.data_preprocessor = build(classifier(4)).data_preprocessor  # without mean and std
    assert torch.equal(read_batch((-raw, [0, 1]), model, 'evaluate', [0, 1]).inputs, -raw)
