"""Images of several labels, and heads of sigmoids: what a term gets, and what is refused."""

import pytest
import torch
from mmpretrain.structures import DataSample
from tiny import batch, classifier, distiller

from mmkdx.distillation.labels import labels_of, multi_hot
from mmkdx.losses import DistillLoss, KLDivLoss

SEVERAL = [[0, 1], [], [2], [3]]
KD = dict(type='KLDivLoss', at='logits', activation='sigmoid', tau=2)


def samples(labels=SEVERAL):
    return [DataSample().set_gt_label(torch.tensor(each, dtype=torch.long)) for each in labels]


def sigmoid(width=4, classes=4):
    config = classifier(width, classes)
    config['head'].update(
        type='MultiLabelLinearClsHead', loss=dict(type='CrossEntropyLoss', use_sigmoid=True)
    )
    return config


def model(terms, **kwargs):
    return distiller(terms, **{'student': sigmoid(), 'teacher': sigmoid(8), **kwargs})


def test_labels_stay_with_their_images():
    assert [each.tolist() for each in labels_of(samples())] == SEVERAL
    assert labels_of(samples([[0], [2]])).tolist() == [0, 2]
    expected = [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert multi_hot(labels_of(samples()), 4).tolist() == expected
    assert multi_hot(torch.tensor([1, 0]), 3).tolist() == [[0, 1, 0], [1, 0, 0]]


def test_a_loss_of_sigmoids_gets_a_number_for_each_class():
    seen = []

    class Several(DistillLoss):
        compares, needs, activation = 'logits', ('teacher', 'target'), 'sigmoid'

        def forward(self, student, teacher, target):
            seen.append(target.tolist())
            return (student - teacher).square().mean()

    own = model(dict(own=dict(type=Several, at='logits')))
    images = batch(4)[0]
    seen.clear()
    own(images, samples(), mode='loss')
    own(images, samples([[0], [1], [2], [3]]), mode='loss')
    rows = torch.eye(4).tolist()
    assert seen == [[[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], rows]


@pytest.mark.parametrize('classes', [4, 1])
def test_distillation_of_sigmoids(classes):
    pair = dict(student=sigmoid(4, classes), teacher=sigmoid(8, classes))
    own = model(dict(kd=KD), **pair).eval()
    images = batch(4)[0]
    labels = samples([[0], [], [0], []] if classes == 1 else SEVERAL)
    losses = own(images, labels, mode='loss')
    with torch.no_grad():
        logits = own(images), own.teachers[0].model(images)
    expected = KLDivLoss(2, 'sigmoid')(*logits)
    assert losses['loss_kd'].item() == pytest.approx(expected.item(), rel=1e-5)
    assert losses['loss_kd'].item() > 0


@pytest.mark.parametrize('classes', [4, 1])
@pytest.mark.parametrize(
    'term',
    [
        *(
            dict(type=name, at='logits')
            for name in ('KLDivLoss', 'DKDLoss', 'DISTLoss', 'CWTMLoss', 'RLDLoss', 'GKLLoss')
        ),
        *(dict(type=name, at='cam') for name in ('ExpKDLoss', 'SDDLoss', 'WKDLogitLoss')),
    ],
    ids=lambda term: term['type'],
)
def test_softmax_of_sigmoid_heads_is_refused_before_training(term, classes):
    message = (
        f'terms.own: {term["type"]} takes the softmax of logits, and the student has a sigmoid '
    )
    with pytest.raises(
        ValueError, match=f"{message}.* dict.type='KLDivLoss', activation='sigmoid'"
    ):
        model(dict(own=term), student=sigmoid(4, classes), teacher=sigmoid(8, classes))


def test_two_kinds_of_heads():
    message = 'terms.kd: KLDivLoss takes the sigmoid of logits, and the student has a softmax head'
    with pytest.raises(ValueError, match=message):
        model(dict(kd=KD), student=classifier(4))
    message = 'terms.kd: KLDivLoss takes the softmax of logits, and the teacher has a sigmoid head'
    with pytest.raises(ValueError, match=message):
        model(dict(kd=dict(type='KLDivLoss', at='logits')), student=classifier(4))


def test_class_maps_of_sigmoid_heads():
    losses = model(dict(cat=dict(type='CATLoss', at='cam')))(batch(4)[0], samples(), mode='loss')
    assert losses['loss_cat'].requires_grad and losses['loss_cat'].item() > 0


def test_several_labels_where_one_is_meant():
    terms = dict(dkd=dict(type='DKDLoss', at='logits'), kd=dict(type='KLDivLoss', at='logits'))
    images = batch(4)[0]
    message = '^terms.dkd: DKDLoss needs one label an image, .* of the batch have 2, 0, 1, 1 labels'
    with pytest.raises(ValueError, match=message):
        distiller(terms, student_weight=0)(images, samples(), mode='loss')
    message = '^student: its softmax head takes one label an image, .* have 2, 0, 1, 1 labels; use'
    with pytest.raises(ValueError, match=message):
        distiller()(images, samples(), mode='loss')
    # Without the student's own loss, no label is read
    assert distiller(student_weight=0)(images, samples(), mode='loss')['loss_kd'].item() > 0


@pytest.mark.parametrize('some', [False, True])
def test_images_without_labels(some):
    """None has one, or some do not have one."""
    images, unlabelled = batch(4)[0], [DataSample() for _ in range(4)]
    if some:
        unlabelled[0].set_gt_label(1)
    assert labels_of(unlabelled) is None
    terms = dict(dkd=dict(type='DKDLoss', at='logits'), kd=dict(type='KLDivLoss', at='logits'))
    message = 'terms.dkd: DKDLoss needs the labels of the images, and the data samples have none'
    with pytest.raises(ValueError, match=f'^{message}$'):
        distiller(terms, student_weight=0)(images, unlabelled, mode='loss')
    message = (
        '^student: its own loss needs the labels of the images, and the data samples have none; set '
        'student_weight=0 to train by the terms alone$'
    )
    for kind in (distiller(), model(dict(kd=KD))):
        with pytest.raises(ValueError, match=message):
            kind(images, unlabelled, mode='loss')
