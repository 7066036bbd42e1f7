"""The rows of a dry run that say what class maps hold."""

import pytest
import torch
from tiny import LayerNormed, batch, classifier, distiller, stacked

from mmkdx.apis.heads import head_rows

CAT = dict(cat=dict(type='CATLoss', at='cam', resolution=2))


def rows(**kwargs):
    torch.manual_seed(0)
    model = distiller(dict(CAT), **kwargs)
    inputs, samples = batch()
    return head_rows(model, dict(inputs=inputs, data_samples=samples)), model, inputs


@pytest.mark.parametrize(
    ('model', 'kind'),
    [
        (classifier(8), 'affine'),
        (stacked(8), 'piecewise linear'),
        (stacked(8, act_cfg=dict(type='GELU')), 'neither'),
        (LayerNormed(), 'affine, ignores the scale'),
    ],
)
def test_kinds_of_heads(model, kind):
    (student, teacher), _, _ = rows(teacher=dict(model=model, normalize='same'))
    assert student[:2] == ['student', 'affine'] and teacher[:2] == ['teacher 0', kind]


def test_the_share_is_that_of_the_predicted_class():
    ((_, _, share), _), model, inputs = rows()
    head = model.student.eval().head.fc
    with torch.no_grad():
        logits = model.student(inputs, mode='tensor')
        top = logits.argmax(1)
        bias = head.bias[top]
        mean = logits.gather(1, top[:, None])[:, 0] - bias
    expected = mean.abs() / (mean.abs() + bias.abs())
    assert share == f'{expected.mean():.0%}' and share not in ('0%', '100%')


def test_other_taps_have_no_rows():
    torch.manual_seed(0)
    model = distiller()
    inputs, samples = batch()
    assert head_rows(model, dict(inputs=inputs, data_samples=samples)) == []


def test_teachers_that_are_made_of_others(tmp_path):
    cached = dict(type='CachedTeacher', teacher=dict(model=stacked(8)), cache=str(tmp_path))
    assert rows(teacher=cached)[0][1][:2] == ['teacher 0', 'piecewise linear']
    ensemble = dict(type='TeacherEnsemble', teachers=[dict(model=stacked(8))])
    assert rows(teacher=ensemble)[0][1][1] == 'of several models'
