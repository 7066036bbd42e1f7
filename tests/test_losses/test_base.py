"""What a loss declares, and what is refused when it is built."""

import inspect
import re

import pytest
import torch
from torch import nn

import mmkdx.losses
from mmkdx.distillation.terms import build_term
from mmkdx.losses import DistillLoss


def declared(**names):
    """A loss class with these names in place of, or beside, those of a good one."""
    forward = dict(forward=lambda self, student, teacher: (student - teacher).mean())
    return type('MyLoss', (DistillLoss,), {**forward, **names})


def test_a_good_one():
    loss = declared()()
    assert (loss.compares, loss.needs, loss.logs) == ('shape', ('teacher',), {})
    loss.connect(torch.zeros(1), torch.zeros(1))
    loss.check(torch.zeros(1), torch.zeros(1))
    assert loss.locate(nn.Identity(), (8, 8)) is None
    assert loss(torch.tensor([3.0, 5.0]), torch.tensor([1.0, 1.0])).item() == 3


@pytest.mark.parametrize(
    'names, message',
    [
        (dict(compares='logit'), "compares is 'logit'; it must be one of shape, map_size, logits"),
        (dict(compares=None), 'compares is None; it must be one of shape, map_size, logits'),
        (dict(needs='teacher'), r"needs is 'teacher'; it must be a tuple like \('teacher',\)"),
        (dict(needs=('techer',)), "needs is 'techer'; it must be one of teacher, target, index"),
        (dict(need=('teacher',)), "need is not read; do you mean 'needs'"),
        (dict(compare='logits'), "compare is not read; do you mean 'compares'"),
        (dict(chek=lambda self: None), "chek is not read; do you mean 'check'"),
        (dict(conect=lambda self: None), "conect is not read; do you mean 'connect'"),
        (dict(log={}), "log is not read; do you mean 'logs'"),
        (dict(needs_teacher=False), "needs_teacher is not read; declare needs without 'teacher'"),
        (dict(sees_model=True), "sees_model is not read; declare needs with 'inputs' and 'model'"),
        (dict(hard_labels=True), "hard_labels is not read; declare needs with 'class'"),
        (dict(sample_index=True), "sample_index is not read; declare needs with 'index'"),
        (dict(explains=True), "explains is not read; declare needs with 'gradients'"),
        (
            dict(needs=('teacher', 'class', 'index')),
            r'forward takes \(student, teacher\), and .* must take \(student, teacher, target, index\)',
        ),
        (dict(needs=()), r'forward takes \(student, teacher\), and .* must take \(student\)'),
        (
            dict(forward=lambda self, student, teacher, target=None: None),
            r"forward takes \(student, teacher, target\), and with needs=\('teacher',\) it must",
        ),
        (dict(forward=lambda self, s, t: None), r'forward takes \(s, t\), .* \(student, teacher\)'),
        (dict(connect=lambda self, student: None), r'connect takes \(student\), and with'),
        (dict(check=lambda self, student, teacher, target: None), r'check takes \(student, teach'),
        (
            dict(
                needs=('teacher', 'inputs', 'teacher_model'),
                forward=lambda self, student, teacher, inputs, teacher_model: None,
                check=lambda self, student, teacher: None,
            ),
            r'check takes \(student, teacher\), .* \(student, teacher, inputs, teacher_model\)',
        ),
    ],
)
def test_a_name_that_is_not_of_the_contract(names, message):
    with pytest.raises(ValueError, match=rf'^MyLoss\.{message}') as error:
        declared(**names)()
    assert '\n' not in str(error.value)


def test_a_loss_without_forward():
    with pytest.raises(ValueError, match=r'^MyLoss\.forward takes'):
        type('MyLoss', (DistillLoss,), {})()


@pytest.mark.parametrize('attributes', [{}, dict(compares='logits', hard_labels=True)])
def test_a_loss_of_the_former_contract(attributes):
    class Old(nn.Module):
        def forward(self, student, teacher, target=None):
            return (student - teacher).mean()

    for name, value in attributes.items():
        setattr(Old, name, value)
    message = (
        '^terms.old: Old does not declare what it needs; derive it from '
        r"mmkdx.losses.base.DistillLoss, .* needs=\('teacher', 'target'\), and let its forward take"
    )
    with pytest.raises(ValueError, match=message):
        build_term('old', dict(type=Old, at='logits'))


# Arguments of all losses

LOSSES = [getattr(mmkdx.losses, name) for name in mmkdx.losses.__all__ if name != 'DistillLoss']
REQUIRED = dict(
    CATLoss=dict(class_select='topk', num_classes_selected=2),
    CRDLoss=dict(num_samples=9),
    DMLLoss=dict(peers=[]),
    E2KDLoss=dict(size=8),
    ONELoss=dict(branch='layer'),
    PSKDLoss=dict(num_samples=9),
)


def options(kind):
    """The losses and their options whose annotation names a type."""
    return [
        pytest.param(loss, name, id=f'{loss.__name__}-{name}')
        for loss in LOSSES
        for name, parameter in inspect.signature(loss).parameters.items()
        if re.search(rf'\b{kind}\b', str(parameter.annotation))
    ]


@pytest.mark.parametrize('loss, option', options('(int|float)'))
def test_numbers(loss, option):
    for value in (float('nan'), float('inf'), '2', True, []):
        with pytest.raises(ValueError, match=f'^{option} is .*; it must be'):
            loss(**{**REQUIRED.get(loss.__name__, {}), option: value})


@pytest.mark.parametrize('loss, option', options('bool'))
def test_flags(loss, option):
    for value in ('no', 1, float('nan'), None):
        with pytest.raises(ValueError, match=f'^{option} is .*; it must be True or False'):
            loss(**{**REQUIRED.get(loss.__name__, {}), option: value})


@pytest.mark.parametrize(
    'name, arguments, message',
    [
        ('ATLoss', dict(p=0), 'p is 0; it must be a finite number above 0'),
        ('DISTLoss', dict(beta=0, gamma=0), 'beta and gamma are 0, so nothing is compared'),
        ('DKDLoss', dict(alpha=0, beta=0), 'alpha and beta are 0, so nothing is compared'),
        ('RKDLoss', dict(distance=0, angle=0), 'distance and angle are 0, so nothing is compared'),
        ('DKDLoss', dict(beta=-8), 'beta is -8; it must be a finite number of at least 0'),
        ('DISTLoss', dict(gamma=-1), 'gamma is -1; it must be a finite number of at least 0'),
        ('RKDLoss', dict(angle=-2), 'angle is -2; it must be a finite number of at least 0'),
        ('PSKDLoss', dict(num_samples=0), 'num_samples is 0; it must be an integer of at least 1'),
    ],
)
def test_options_that_train_nothing_or_away_from_the_teacher(name, arguments, message):
    with pytest.raises(ValueError, match=f'^{message}'):
        getattr(mmkdx.losses, name)(**arguments)
