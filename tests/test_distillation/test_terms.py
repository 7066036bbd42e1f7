"""Terms: what a loss gets, how much it counts, and what is refused."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.logging import MessageHub
from tiny import batch, distiller
from torch import nn

from mmkdx.distillation.terms import build_term
from mmkdx.functional import ClassMaps, tokens_to_map
from mmkdx.losses import ATLoss, CATLoss, DistillLoss, KLDivLoss
from mmkdx.models.intercept import fake_forward
from mmkdx.registry import MODELS


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def loss_of(function, **attributes):
    """A loss class as a third party would write it."""

    class Loss(DistillLoss):
        needs = ('teacher', 'target')

        def forward(self, student, teacher, target):
            return function(student, teacher, target)

    for name, value in attributes.items():
        setattr(Loss, name, value)
    return Loss


LABELS = torch.tensor([3, 0, 1, 1])


def connect(config, student, teacher):
    """Builds a term and connects and checks it as a distiller does, with fake values of the shapes.

    A pair of shapes stands for class maps of features and a weight.
    """

    def fake(shape):
        if isinstance(shape[0], tuple):
            return ClassMaps(*map(torch.empty, shape))
        return torch.empty(shape)

    with fake_forward(nn.Identity()):
        student, teacher = fake(student), fake(teacher)
    term = build_term('hint', dict(at='backbone', **config))
    term.connect(student, teacher)
    return term


LOGITS = (4, 5)
CAM = ((4, 8, 4, 4), (5, 8))


# How much


def test_value_is_that_of_the_loss():
    student, teacher = random(4, 5), random(4, 5, seed=1)
    term = connect(dict(type='KLDivLoss', tau=4), LOGITS, LOGITS)
    assert isinstance(term.loss, KLDivLoss) and term.loss.tau == 4
    assert term(student, teacher) == KLDivLoss(4)(student, teacher)


@pytest.mark.parametrize('weight', [0, 0.5, 1, 20])
def test_weight_multiplies_value_and_gradient(weight):
    student, teacher = random(4, 5).requires_grad_(), random(4, 5, seed=1)
    term = connect(dict(type='KLDivLoss', weight=weight), LOGITS, LOGITS)
    loss = KLDivLoss()(student, teacher)
    weighted = term.weight(term(student, teacher))
    assert weighted.item() == pytest.approx(weight * loss.item(), rel=1e-6)
    gradient = weight * torch.autograd.grad(loss, student)[0]
    torch.testing.assert_close(torch.autograd.grad(weighted, student)[0], gradient)


def test_schedule_multiplies_the_weight(monkeypatch):
    monkeypatch.setattr(MessageHub, '_instance_dict', type(MessageHub._instance_dict)())
    schedule = dict(type='linear', end=5, start_factor=1, end_factor=3)
    term = connect(dict(type='KLDivLoss', weight=10, schedule=schedule), LOGITS, LOGITS)
    student, teacher = random(4, 5), random(4, 5, seed=1)
    loss = KLDivLoss()(student, teacher).item()
    for epoch, factor in enumerate([1, 1.5, 2, 2.5, 3, 3]):
        MessageHub.get_current_instance().update_info('epoch', epoch)
        weighted = term.weight(term(student, teacher))
        assert weighted.item() == pytest.approx(10 * factor * loss, rel=1e-6)


# Where


@pytest.mark.parametrize(
    'at, taps',
    [
        ('logits', ('logits', 'logits')),
        (['backbone.layer1', 'backbone.layer2'], ('backbone.layer1', 'backbone.layer2')),
        (('head.fc:in', 'embedding'), ('head.fc:in', 'embedding')),
        ((['a', 'b'], ['c']), (('a', 'b'), ('c',))),
    ],
)
def test_taps(at, taps):
    kind = 'KLDivLoss' if isinstance(taps[0], str) else loss_of(None, compares='anything')
    term = build_term('kd', dict(type=kind, at=at, teacher=2))
    assert (term.student_tap, term.teacher_tap) == taps
    assert term.teacher == 2


# Adapters


def test_features_of_another_shape_are_bridged_and_the_bridge_is_trained():
    term = connect(dict(type='MSELoss'), (4, 6, 8, 8), (4, 9, 4, 4))
    student, teacher = random(4, 6, 8, 8), random(4, 9, 4, 4, seed=1)
    project = term.adapter.project
    bridged = F.avg_pool2d(F.conv2d(student, project.weight, project.bias), 2)
    loss = term(student, teacher)
    assert loss.item() == pytest.approx(F.mse_loss(bridged, teacher).item(), rel=1e-5)
    loss.backward()
    assert project.weight.grad.count_nonzero() == project.weight.numel()


@pytest.mark.parametrize('kind', ['MSELoss', 'CosineLoss'])
def test_an_orthogonal_adapter_is_there_for_equal_widths_too(kind):
    term = connect(dict(type=kind, adapter='orthogonal'), (4, 6), (4, 6))
    student, teacher = random(4, 6), random(4, 6, seed=1)
    projected = student @ term.adapter.project.linear.weight.T
    assert term(student, teacher).item() == pytest.approx(term.loss(projected, teacher).item())


def test_a_second_connection_keeps_the_adapter():
    term = connect(dict(type='MSELoss'), (4, 6, 8, 8), (4, 9, 4, 4))
    adapter = term.adapter
    term.connect(torch.empty(4, 6, 6, 6), torch.empty(4, 9, 3, 3))
    assert term.adapter is adapter


def test_attention_needs_no_channels_and_no_parameters():
    term = connect(dict(type='ATLoss'), (4, 6, 8, 8), (4, 9, 4, 4))
    assert list(term.parameters()) == []
    student, teacher = random(4, 6, 8, 8), random(4, 9, 4, 4, seed=1)
    assert term(student, teacher) == ATLoss()(F.avg_pool2d(student, 2), teacher)


@pytest.mark.parametrize(
    'student, teacher',
    [((4, 17, 8), (4, 17, 8)), ((4, 17, 8), (4, 17, 12)), ((4, 16, 8), (4, 17, 8))],
)
def test_attention_between_tokens_is_that_between_their_maps(student, teacher):
    term = connect(dict(type='ATLoss'), student, teacher)
    student, teacher = random(*student), random(*teacher, seed=1)
    expected = ATLoss()(tokens_to_map(student), tokens_to_map(teacher)).item()
    assert term(student, teacher).item() == pytest.approx(expected, rel=1e-6)


def test_no_adapter():
    term = connect(dict(type='ATLoss', adapter=None), (4, 6, 8, 8), (4, 9, 4, 4))
    assert term.adapter is None
    message = r"^terms.hint: MSELoss cannot compare \(4, 6\) and \(4, 9\): .* use adapter='auto'"
    with pytest.raises(ValueError, match=message):
        connect(dict(type='MSELoss', adapter=None), (4, 6), (4, 9))


@pytest.mark.parametrize('name', ['MSELoss', 'ATLoss'])
@pytest.mark.parametrize(
    'student, teacher', [((4, 6), (4, 6, 8, 8)), ((4, 17, 6), (4, 6)), ((4, 15, 6), (4, 17, 6))]
)
def test_bridges_that_cannot_be_built(name, student, teacher):
    with pytest.raises(ValueError) as error:
        connect(dict(type=name), student, teacher)
    message = str(error.value)
    assert message.startswith(f'terms.hint.adapter: no adapter bridges {student} of the student')
    assert message.endswith('; choose other taps (at)')


@pytest.mark.parametrize('teacher', [(4, 6), (4, 7)])
def test_attention_of_vectors_is_refused(teacher):
    with pytest.raises(ValueError, match='^terms.hint'):
        connect(dict(type='ATLoss'), (4, 6), teacher)


# Kinds of inputs


def test_class_maps_are_never_bridged():
    # another width and size of the features behind the same classes, and finished maps
    for teacher in (((4, 6, 7, 7), (5, 6)), (4, 5, 8, 8)):
        term = connect(dict(type='CATLoss'), CAM, teacher)
        assert term.adapter is None
    student, teacher = random(4, 5, 4, 4), random(4, 5, 8, 8, seed=1)
    assert term(student, teacher) == CATLoss()(student, teacher)


@pytest.mark.parametrize('kind, classes', [('logits', 5), ('anything', 9)])
def test_other_kinds_are_never_bridged(kind, classes):
    loss = loss_of(lambda s, t, y: s.mean() - t.mean(), compares=kind)
    assert connect(dict(type=loss), (4, 5), (4, classes)).adapter is None


@pytest.mark.parametrize(
    'name, student, teacher, message',
    [
        (
            'KLDivLoss',
            (4, 5, 8, 8),
            LOGITS,
            r'KLDivLoss compares logits of shape \(N, K\), and tap '
            r"'backbone' holds \(4, 5, 8, 8\)",
        ),
        ('KLDivLoss', LOGITS, (4, 5, 8, 8), r'.* holds \(4, 5, 8, 8\)'),
        ('KLDivLoss', CAM, CAM, r'KLDivLoss compares logits .* holds \(4, 5, 4, 4\)'),
        (
            'CATLoss',
            LOGITS,
            CAM,
            r'CATLoss compares class maps of shape \(N, K, H, W\), and tap '
            r"'backbone' holds \(4, 5\)",
        ),
        ('CATLoss', CAM, (4, 17, 5), r'.* holds \(4, 17, 5\)'),
        ('MSELoss', CAM, CAM, "MSELoss compares tensors, and tap 'cam' holds class maps"),
        ('ATLoss', (4, 5, 4, 4), CAM, "ATLoss compares tensors, and tap 'cam' holds class maps"),
        (
            'KLDivLoss',
            LOGITS,
            (4, 6),
            'the student has 5 classes and the teacher 6; KLDivLoss needs',
        ),
        ('CATLoss', CAM, ((4, 8, 4, 4), (7, 8)), 'the student has 5 classes and the teacher 7'),
        (
            'CATLoss',
            (4, 512, 4, 4),
            (4, 160, 4, 4),
            'the student has 512 classes and the teacher 160',
        ),
    ],
)
def test_inputs_of_the_wrong_kind(name, student, teacher, message):
    with pytest.raises(ValueError, match=f'^terms.hint.at: {message}'):
        connect(dict(type=name), student, teacher)


def test_the_tap_of_the_wrong_kind_is_named():
    term = build_term('kd', dict(type='KLDivLoss', at=('logits', 'backbone.layer4')))
    with pytest.raises(ValueError, match=r"tap 'backbone.layer4' holds \(4, 5, 8, 8\)"):
        term.connect(torch.empty(4, 5), torch.empty(4, 5, 8, 8))


def test_the_check_of_the_loss_is_asked():
    message = (
        '^terms.hint: CATLoss cannot compare .* resolution is 5 .* of the student have only 4x4'
    )
    with pytest.raises(ValueError, match=message):
        connect(dict(type='CATLoss', resolution=5), CAM, CAM)


# Precision


def test_losses_get_fp32_inside_autocast():
    seen = []

    def loss(student, teacher, target):
        seen.extend([student.dtype, teacher.dtype, (student @ teacher.T).dtype])
        return (student @ teacher.T).mean()

    term = connect(dict(type=loss_of(loss)), (4, 6), (4, 9))
    seen.clear()
    student, teacher = random(4, 6), random(4, 9, seed=1, dtype=torch.float16)
    with torch.autocast('cpu', torch.bfloat16):
        result = term(student, teacher, LABELS)
    assert seen == [torch.float32] * 3
    assert result.dtype == torch.float32
    result.backward()
    assert term.adapter.project.weight.grad.dtype == torch.float32


def test_autocast_does_not_round_the_loss():
    student, teacher = (ClassMaps(random(4, 8, 4, 4, seed=i), random(5, 8, seed=i)) for i in (1, 2))
    term = connect(dict(type='CATLoss'), CAM, CAM)
    expected = CATLoss()(student, teacher)
    with torch.autocast('cpu', torch.bfloat16):
        assert term(student, teacher) == expected


# Labels


def test_mixed_labels_are_refused_where_the_loss_needs_one_class():
    def loss(student, teacher, target):
        return F.cross_entropy(student, target) + 0 * teacher.sum()

    term = connect(dict(type=loss_of(loss, needs=('teacher', 'class'))), LOGITS, LOGITS)
    student, labels = random(4, 5), LABELS
    expected = F.cross_entropy(student, labels)
    assert term(student, random(4, 5), labels) == expected
    with pytest.raises(
        ValueError, match='^terms.hint: Loss needs one class an image .* batch_augments'
    ):
        term(student, random(4, 5), F.one_hot(labels, 5).float())
    soft = connect(dict(type=loss_of(loss)), LOGITS, LOGITS)
    assert soft(student, random(4, 5), F.one_hot(labels, 5).float()).item() == pytest.approx(
        expected.item(), rel=1e-6
    )


# What a loss may ask for


def test_a_loss_builds_layers_of_its_own_once():
    class Projected(DistillLoss):
        compares = 'anything'

        def connect(self, student, teacher):
            self.project = nn.Linear(student.shape[1], teacher.shape[1])

        def forward(self, student, teacher):
            return F.mse_loss(self.project(student), teacher)

    term = connect(dict(type=Projected), (4, 6), (4, 9))
    project = term.loss.project
    term.connect(random(4, 6), random(4, 9))
    assert term.loss.project is project and project.weight.shape == (9, 6)
    student, teacher = random(4, 6), random(4, 9, seed=1)
    expected = F.mse_loss(project(student), teacher).item()
    assert term(student, teacher).item() == pytest.approx(expected)


def test_what_a_loss_says_of_its_inputs_names_the_term():
    class Picky(ATLoss):
        compares = 'anything'

        def connect(self, student, teacher):
            raise ValueError('maps must be square')

    with pytest.raises(ValueError, match='^terms.hint.at: Picky: maps must be square$'):
        connect(dict(type=Picky), (4, 6, 8, 8), (4, 6, 8, 4))


def test_several_places_at_once():
    seen = []

    def loss(student, teacher, target):
        seen.extend(each.dtype for each in (*student, *teacher))
        return sum(each.mean() for each in student) - teacher[0].mean()

    kind = loss_of(loss, compares='anything')
    model = distiller(
        dict(
            several=dict(type=kind, at=(['backbone.stem', 'backbone.body'], ['logits'])),
            kd=dict(type='KLDivLoss', at='logits'),
        )
    )
    with torch.autocast('cpu', torch.bfloat16):
        losses = model(*batch(), mode='loss')
    assert set(seen) == {torch.float32} and losses['loss_several'].requires_grad
    model.eval()
    result = model(*batch(), mode='loss')['loss_several']
    student, teacher, images = model.student, model.teachers[0].model, batch()[0]
    with torch.no_grad():
        stem = student.backbone.stem(images)
        expected = stem.mean() + student.backbone.body(stem).mean() - teacher(images).mean()
    assert result.item() == pytest.approx(expected.item(), abs=1e-6)


def test_samples_have_positions():
    seen = []

    class Indexed(DistillLoss):
        compares, needs = 'anything', ('teacher', 'index')

        def forward(self, student, teacher, index):
            seen.append(index.tolist())
            return F.mse_loss(student, teacher)

    model = distiller(dict(memory=dict(type=Indexed, at='logits')))
    images, samples = batch(3)
    with pytest.raises(ValueError, match="^terms.memory: Indexed needs the .*'sample_idx'"):
        model(images, samples, mode='loss')
    for sample, position in zip(samples, (7, 2, 40)):
        sample.set_metainfo(dict(sample_idx=position))
    seen.clear()
    model(images, samples, mode='loss')
    assert seen == [[7, 2, 40]]


def test_a_loss_logs_more_than_its_value():
    class Telling(DistillLoss):
        def forward(self, student, teacher):
            value = F.mse_loss(student, teacher)
            self.logs = dict(root=value.detach().sqrt())
            return value

    model = distiller(dict(hint=dict(type=Telling, at='logits')))
    losses = model(*batch(), mode='loss')
    assert losses['hint.root'].item() == pytest.approx(losses['loss_hint'].item() ** 0.5)
    total, logged = model.parse_losses(losses)
    assert logged['hint.root'] == losses['hint.root']
    assert total.item() == pytest.approx(
        (losses['student.loss'] + losses['loss_hint']).item(), rel=1e-6
    )


# Without a teacher


class Alone(DistillLoss):
    """A loss of a student alone."""

    needs = ()
    compares = 'anything'

    def forward(self, student):
        values = student if isinstance(student, list) else [student]
        return sum(value.square().mean() for value in values)


@pytest.mark.parametrize('at', ['logits', ['backbone.body', 'logits']])
def test_a_student_alone(at):
    model = distiller(dict(alone=dict(type=Alone, at=at, weight=3)), teacher=None)
    images, samples = batch()
    losses = model(images, samples, mode='loss')
    model.eval()
    with torch.no_grad():
        loss = model(images, samples, mode='loss')['loss_alone']
        features = model.student.backbone.body(model.student.backbone.stem(images))
        expected = model(images).square().mean()
        expected = 3 * (expected + (features.square().mean() if isinstance(at, list) else 0))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert losses['loss_alone'].requires_grad and 'student.loss' in losses


def test_one_term_with_a_teacher_and_one_without():
    terms = dict(alone=dict(type=Alone, at='logits'), kd=dict(type='KLDivLoss', at='logits'))
    losses = distiller(terms)(*batch(), mode='loss')
    assert {'loss_alone', 'loss_kd'} < set(losses)
    with pytest.raises(ValueError, match='terms.kd compares with a teacher and there is none'):
        distiller(terms, teacher=None)


@pytest.mark.parametrize('at', [('logits', ['logits']), 3, [], ['logits', 3]])
def test_the_place_of_a_student_alone(at):
    message = 'it must be a tap or a list of taps, as Alone compares with no teacher'
    with pytest.raises(ValueError, match=message):
        build_term('alone', dict(type=Alone, at=at))


def test_what_a_loss_of_a_student_alone_cannot_take():
    class Narrow(Alone):
        compares = 'logits'

    with pytest.raises(ValueError, match=r'compares logits of shape \(N, K\), and tap'):
        distiller(dict(alone=dict(type=Narrow, at='features')), teacher=None)

    class Failing(Alone):
        def forward(self, student):
            raise RuntimeError('no such thing')

    with pytest.raises(
        ValueError, match=r'terms.alone: Failing cannot take \(2, 4\): no such thing'
    ):
        distiller(dict(alone=dict(type=Failing, at='logits')), teacher=None)


def test_a_loss_sees_the_model_and_its_images():
    seen = {}

    class Seeing(Alone):
        needs = ('inputs', 'model')

        def connect(self, student, model):
            seen['connected'] = model

        def forward(self, student, inputs, model):
            seen.update(inputs=inputs, model=model)
            return student.mean()

    model = distiller(dict(alone=dict(type=Seeing, at='logits')), teacher=None)
    assert list(seen) == ['connected']  # it is not tried without images
    images, samples = batch()
    model(images, samples, mode='loss')
    assert seen['inputs'] is images and seen['model'] is seen['connected'] is model.student


def test_a_loss_chooses_its_place():
    class Choosing(Alone):
        def locate(self, model, size):
            assert isinstance(model, nn.Module) and tuple(size) == (8, 8)
            return 'embedding'

    model = distiller(dict(alone=dict(type=Choosing, at='auto')), teacher=None)
    assert model.terms['alone'].student_tap == 'embedding'
    with pytest.raises(ValueError, match="terms.alone.at: the student has no module 'auto'"):
        distiller(dict(alone=dict(type=Alone, at='auto')), teacher=None)


# A part of what the teacher says


def test_a_part_of_what_the_teacher_says():
    part = dict(type='KLDivLoss', at='logits', tau=2, teacher_target=dict(kind='uniform'))
    model = distiller(dict(kd=part)).eval()
    images, samples = batch()
    target = torch.cat([sample.gt_label for sample in samples])
    with torch.no_grad():
        found = model(images, samples, mode='loss')['loss_kd']
        t = (model.teachers[0].model(images) / 2).softmax(1).gather(1, target[:, None])
        t = ((1 - t) / 3).expand(-1, 4).scatter(1, target[:, None], t)
        prediction = (model(images) / 2).log_softmax(1)
        expected = 4 * F.kl_div(prediction, t, reduction='batchmean')
    assert model.terms['kd'].teacher_target.tau == 2
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_part_of_something_else():
    for config in (dict(type='MSELoss', at='features'), dict(type=Alone, at='logits')):
        with pytest.raises(
            ValueError, match='teacher_target needs a loss that takes the softmax of'
        ):
            build_term('hint', dict(teacher_target=dict(kind='uniform'), **config))


# Losses of third parties


@pytest.fixture
def registered():
    """A function that registers a loss as `ThirdPartyLoss` for one test."""

    def register(loss):
        MODELS.register_module(name='ThirdPartyLoss', module=loss)

    yield register
    MODELS.module_dict.pop('ThirdPartyLoss', None)


def test_a_registered_loss(registered):
    class Distance(DistillLoss):
        def __init__(self, power=1):
            super().__init__()
            self.power = power

        def forward(self, student, teacher):
            return (student - teacher).abs().pow(self.power).mean()

    registered(Distance)
    term = connect(dict(type='ThirdPartyLoss', power=3), (4, 6, 8, 8), (4, 6, 4, 4))
    assert term.loss.power == 3 and term.loss_name == 'Distance'
    student, teacher = random(4, 6, 8, 8), random(4, 6, 4, 4, seed=1)
    expected = (F.avg_pool2d(student, 2) - teacher).abs().pow(3).mean().item()
    assert term(student, teacher).item() == pytest.approx(expected, rel=1e-6)


DISTANCES = dict(
    branch=lambda s, t, y: (s - t).abs().mean() if not s.isnan().any() else s.sum(),
    item=lambda s, t, y: (s - t).abs().mean() * (1 + 0 * t.sum().item()),
    tolist=lambda s, t, y: (s - t).abs().mean() * (1 + 0 * sum(y.tolist())),
    mask=lambda s, t, y: (s - t)[(s - t).abs() >= 0].abs().mean(),
    nonzero=lambda s, t, y: (s - t).abs().mean() * (1 + 0 * t.nonzero().shape[0]),
    unique=lambda s, t, y: (s - t).abs().mean() * (1 + 0 * y.unique().numel()),
    numpy=lambda s, t, y: (s - t).abs().mean() * (1 + 0 * float(t.detach().numpy().sum())),
)


@pytest.mark.parametrize('name', DISTANCES)
def test_losses_may_look_at_values(name, registered):
    registered(loss_of(DISTANCES[name]))
    term = connect(dict(type='ThirdPartyLoss'), (4, 6), (4, 6))
    student, teacher, target = random(4, 6), random(4, 6, seed=1), torch.arange(4)
    expected = (student - teacher).abs().mean().item()
    assert term(student, teacher, target).item() == pytest.approx(expected, rel=1e-6)


def test_checking_leaves_the_state_of_a_loss_alone(registered):
    class Centred(DistillLoss):
        def __init__(self):
            super().__init__()
            self.register_buffer('centre', torch.zeros(6))
            self.register_buffer('steps', torch.tensor(0))

        def forward(self, student, teacher):
            self.centre = 0.5 * self.centre + 0.5 * teacher.mean(0)
            self.steps += 1
            return (student - teacher + self.centre).square().mean()

    registered(Centred)
    term = connect(dict(type='ThirdPartyLoss'), (4, 6), (4, 6))
    student, teacher = random(4, 6), random(4, 6, seed=1)
    expected = (student - teacher + teacher.mean(0) / 2).square().mean().item()
    assert type(term.loss.centre) is torch.Tensor
    assert term(student, teacher).item() == pytest.approx(expected, rel=1e-6)
    assert term.loss.steps.item() == 1


@pytest.mark.parametrize(
    'loss, message',
    [
        (
            lambda s, t, y: (s - t).mean(1),
            r'Loss returns a tensor of shape \(4,\); a loss returns a scalar',
        ),
        (lambda s, t, y: 0.5, 'Loss '),
        (lambda s, t, y: dict(loss=(s - t).mean()), 'Loss '),
        (lambda s, t, y: s @ t, r'Loss cannot compare \(4, 6\) and \(4, 6\)'),
    ],
    ids=['vector', 'float', 'dict', 'shapes'],
)
def test_losses_that_cannot_work(loss, message):
    with pytest.raises(ValueError, match=f'^terms.hint: .*{message}'):
        connect(dict(type=loss_of(loss)), (4, 6), (4, 6))


def test_no_scalar_in_training():
    term = connect(dict(type=loss_of(lambda s, t, y: (s - t).mean())), (4, 6), (4, 6))
    term.loss.forward = lambda student, teacher, target: student - teacher
    with pytest.raises(
        ValueError, match=r'Loss returns a tensor of shape \(4, 6\); a loss returns'
    ):
        term(random(4, 6), random(4, 6), LABELS)


# Errors of configs


@pytest.mark.parametrize(
    'config, message',
    [
        (dict(at='logits'), "terms.kd has no 'type'; a term needs a loss"),
        (dict(type='KLDivLoss'), "terms.kd has no 'at'; a term needs a loss"),
        (dict(type='NoSuchLoss', at='logits'), 'terms.kd: NoSuchLoss is not in the mmkdx::model'),
        (dict(type='KLDivLoss', at='logits', taw=4), "terms.kd: .*KLDivLoss.* argument 'taw'"),
        (dict(type=nn.Linear, at='logits'), "terms.kd: .*Linear.* missing .* 'in_features'"),
        (dict(type='KLDivLoss', at='logits', tau=0), 'terms.kd: tau is 0'),
        (dict(type='CATLoss', at='cam', resolution=1), 'terms.kd: resolution is 1 with normalize'),
        (dict(type='KLDivLoss', at='logits', adapter='conv'), "terms.kd: adapter is 'conv'"),
        *(
            (
                dict(type='KLDivLoss', at='logits', weight=each),
                'terms.kd: weight is .*; it must be a finite number or .auto.',
            )
            for each in (float('nan'), float('inf'), '2', True, None)
        ),
        (
            dict(type='KLDivLoss', at='logits', weight=-0.5),
            'terms.kd: weight is -0.5, which trains the student away .* set allow_negative=True',
        ),
        (
            dict(type='KLDivLoss', at='logits', allow_negative=1),
            'terms.kd: allow_negative is 1; it must be True or False',
        ),
        *(
            (
                dict(type='KLDivLoss', at='logits', teacher=each),
                'terms.kd: teacher is .*; it must be an integer of at least 0',
            )
            for each in (-1, 0.0, True, None)
        ),
        *(
            (
                dict(type='KLDivLoss', at='logits', **{key: 3}),
                f'terms.kd: {key} is 3; it must be a dict of arguments',
            )
            for key in ('schedule', 'teacher_target')
        ),
        (
            dict(
                type='KLDivLoss', at='logits', teacher_target=dict(kind='classmean', statistics=3)
            ),
            'terms.kd: teacher_target.statistics is 3; it must be the path of a file',
        ),
        (dict(type='KLDivLoss', at='logits', adapter=True), 'terms.kd: adapter is True'),
        *(
            (
                dict(type=kind, at='layer', adapter='orthogonal'),
                "terms.kd: adapter is 'orthogonal', which projects the student's features to the "
                f"teacher's, and {kind} does not compare features of one shape; remove it",
            )
            for kind in ('KLDivLoss', 'ATLoss', 'ConfidencePenaltyLoss')
        ),
        (dict(type='KLDivLoss', at=['logits']), r"terms.kd: at is \['logits'\]; it must be a tap"),
        (dict(type='KLDivLoss', at=('a', 'b', 'c')), r"terms.kd: at is \('a', 'b', 'c'\)"),
        (dict(type='KLDivLoss', at=[]), r'terms.kd: at is \[\]'),
        (dict(type='KLDivLoss', at=None), 'terms.kd: at is None; it must be a tap'),
        (dict(type='KLDivLoss', at=3), 'terms.kd: at is 3; it must be a tap'),
        (dict(type='KLDivLoss', at=('logits', 3)), r"terms.kd: at is \('logits', 3\)"),
        (dict(type='KLDivLoss', at=(['logits'], [])), r"terms.kd: at is \(\['logits'\], \[\]\)"),
        (
            dict(type='KLDivLoss', at=('logits', ['logits'])),
            'terms.kd: at is .* and KLDivLoss takes single taps, not lists',
        ),
        (
            dict(type='KLDivLoss', at='logits', schedule=dict(type='step', end=4)),
            "terms.kd: schedule.type is 'step'",
        ),
        (
            dict(type='KLDivLoss', at='logits', schedule=dict(type='linear')),
            "terms.kd: .*[sS]chedule.* missing .* 'end'",
        ),
    ],
)
def test_wrong_configs(config, message):
    with pytest.raises(ValueError, match=f'^{message}'):
        build_term('kd', config)


def test_a_negative_weight_that_is_meant():
    for weight in (-2, dict(type='constant', value=-2)):
        given = dict(type='KLDivLoss', at='logits', weight=weight)
        away = build_term('kd', dict(given, allow_negative=True))
        assert away.weight(torch.tensor(0.5)) == -1


def test_an_unknown_kind_of_comparison():
    with pytest.raises(ValueError, match="^terms.hint: .*'maps'"):
        connect(dict(type=loss_of(lambda s, t, y: (s - t).mean(), compares='maps')), (4, 6), (4, 6))


def test_a_name_that_mmengine_would_sum_up():
    with pytest.raises(ValueError, match="terms.my_loss: a term's name must not contain 'loss'"):
        build_term('my_loss', dict(type='KLDivLoss', at='logits'))
