"""Teachers: frozen, strict, in their own precision and normalisation, and outside the student."""

import copy

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmpretrain.structures import DataSample
from tiny import batch, build, classifier, distiller, total
from torch import nn

from mmkdx.distillation.composed_teachers import EMATeacher
from mmkdx.distillation.teachers import Teacher, build_teacher
from mmkdx.functional import ClassMaps
from mmkdx.models.intercept import fake_forward


def saved(tmp_path, config=None, name='teacher.pth', **extra):
    model = build(config or classifier(8))
    torch.save(dict(state_dict=model.state_dict(), **extra), tmp_path / name)
    return model, str(tmp_path / name)


def test_weights_come_from_the_checkpoint(tmp_path):
    model, path = saved(tmp_path)
    distilling = distiller(teacher=dict(model=classifier(8), checkpoint=path))
    distilling.init_weights()
    for key, value in model.state_dict().items():
        assert torch.equal(value, distilling.teachers[0].model.state_dict()[key])


def test_without_a_runner_weights_are_loaded_at_the_first_step(tmp_path):
    model, path = saved(tmp_path)
    distilling = distiller(teacher=dict(model=classifier(8), checkpoint=path)).train()
    distilling(*batch(), mode='loss')
    assert torch.equal(distilling.teachers[0].model.head.fc.weight, model.head.fc.weight)


def test_a_distilled_student_teaches_in_turn(tmp_path):
    first = distiller(dict(fit=dict(type='MSELoss', at='embedding')))
    torch.save(dict(state_dict=first.state_dict()), tmp_path / 'run.pth')
    config = dict(
        type='Distiller',
        student=classifier(4),
        teacher=dict(model=classifier(8)),
        input_size=8,
        terms={},
    )
    teacher = Teacher(config, checkpoint=str(tmp_path / 'run.pth'))
    teacher.load()
    assert torch.equal(teacher.model.head.fc.weight, first.student.head.fc.weight)


@pytest.mark.parametrize(
    'change, message',
    [
        (
            lambda s: s.pop('head.fc.bias'),
            r"1 tensors are missing \(as \['head.fc.bias'\]\) and 0 unknown",
        ),
        (
            lambda s: s.update({'neck.extra': torch.zeros(1)}),
            r"0 tensors are missing .* and 1 unknown \(as \['neck.extra'\]\); set teacher.strict=False",
        ),
        (
            lambda s: s.update({'head.fc.bias': torch.zeros(7)}),
            'does not fit the model: .*size mismatch',
        ),
    ],
)
def test_loading_is_strict(tmp_path, change, message):
    model = build(classifier(8))
    state = model.state_dict()
    change(state)
    torch.save(state, tmp_path / 'teacher.pth')
    teacher = Teacher(classifier(8), checkpoint=str(tmp_path / 'teacher.pth'))
    with pytest.raises(
        ValueError, match=r'(?s)teacher.checkpoint .*teacher.pth does not fit.*'
    ) as error:
        teacher.load()
    assert error.match('(?s)' + message)


def test_loading_can_be_lenient_but_never_empty(tmp_path):
    model = build(classifier(8))
    state = model.state_dict()
    del state['head.fc.bias']
    torch.save(state, tmp_path / 'part.pth')
    teacher = Teacher(classifier(8), checkpoint=str(tmp_path / 'part.pth'), strict=False)
    teacher.load()
    assert torch.equal(teacher.model.head.fc.weight, model.head.fc.weight)
    torch.save({f'net.{key}': value for key, value in state.items()}, tmp_path / 'other.pth')
    teacher = Teacher(classifier(8), checkpoint=str(tmp_path / 'other.pth'), strict=False)
    with pytest.raises(ValueError, match="other.pth holds none of the 14 tensors .*'net.backbone"):
        teacher.load()


@pytest.mark.parametrize(
    'spec, message',
    [
        (dict(model=classifier(), dtype='int8'), "teacher.dtype is 'int8'"),
        (
            dict(model=classifier(), pretrained=True),
            'teacher.pretrained=True needs a teacher.model',
        ),
        (
            dict(model='resnet18_8xb32_in1k', pretrained=True, checkpoint='x.pth'),
            'two sources of weights',
        ),
        (
            dict(model=classifier(), chekpoint='x.pth'),
            'teacher takes model, checkpoint.* it has model, chek',
        ),
        (dict(checkpoint='x.pth'), 'teacher takes model'),
        (dict(model='no_such_model'), "teacher.model: 'no_such_model' is no model of mmpretrain"),
        (
            dict(model='mmpretrain::resnet/resnet19.py'),
            'teacher.model: no config .* in an installed package',
        ),
        (dict(model='configs/nowhere.py'), "teacher.model: no config file 'configs/nowhere.py'"),
        (dict(model=dict(backbone=1)), 'teacher.model must be a model dict with a type'),
        (dict(type='TeacherEnsemble', teachers=[dict(type='EMATeacher')]), 'cannot be a member'),
        (dict(model='resnet18_8xb16_cifar100-none', pretrained=True), 'is no model of mmpretrain'),
    ],
)
def test_a_wrong_teacher_is_one_sentence(spec, message):
    with pytest.raises(ValueError, match=message):
        build_teacher(spec)


def test_a_zoo_name_knows_its_weights():
    teacher = build_teacher(dict(model='resnet34_8xb32_in1k', pretrained=True))
    assert teacher.checkpoint.startswith('https://') and 'resnet34_8xb32_in1k' in teacher.checkpoint
    assert not teacher.loaded
    assert teacher.model.data_preprocessor.mean.flatten().tolist() == pytest.approx(
        [123.675, 116.28, 103.53]
    )


@pytest.mark.parametrize('form', ['path', 'package', 'zoo'])
def test_forms_of_a_model(tmp_path, form):
    if form == 'path':
        Config(
            dict(model=classifier(8), data_preprocessor=dict(mean=[1.0] * 3, std=[2.0] * 3))
        ).dump(tmp_path / 'teacher.py')
        model = build_teacher(str(tmp_path / 'teacher.py')).model
        assert model.data_preprocessor.mean.flatten().tolist() == [1, 1, 1]
        assert model.head.fc.in_features == 8
        return
    name = dict(package='mmpretrain::resnet/resnet18_8xb32_in1k.py', zoo='resnet18_8xb32_in1k')[
        form
    ]
    assert build_teacher(name).model.head.fc.weight.shape == (1000, 512)


def test_the_zoo_weights_of_a_package_path():
    teacher = build_teacher(
        dict(model='mmpretrain::resnet/resnet18_8xb32_in1k.py', pretrained=True)
    )
    assert 'resnet18_8xb32_in1k' in teacher.checkpoint


def test_a_teacher_is_fully_in_eval_mode():
    model = distiller(teacher=dict(model=classifier(8, drop=0.5))).train()
    teacher = model.teachers[0]
    assert not any(module.training for module in teacher.modules())
    images, _ = batch()
    before = copy.deepcopy(teacher.state_dict())
    first, second = teacher(images)['logits'], teacher(images)['logits']
    assert torch.equal(first, second) and not first.requires_grad
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())
    teacher.train()
    assert not any(module.training for module in teacher.modules())


def test_a_plain_torch_module_teaches():
    net = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 4),
    )
    model = distiller(
        dict(kd=dict(type='KLDivLoss', at='logits'), cat=dict(type='CATLoss', at='cam')),
        teacher=net,
    )
    images, samples = batch()
    assert model.teachers[0].model is net and model.teachers[0].loaded
    torch.testing.assert_close(model.teachers[0](images)['cam'].logits(), net(images))
    model.init_weights()
    model.train()(images, samples, mode='loss')


@pytest.mark.parametrize('wrapped', [False, True])
def test_a_network_of_hugging_face_teaches(wrapped, tmp_path):
    transformers = pytest.importorskip('transformers')
    config = transformers.ResNetConfig(
        embedding_size=4,
        hidden_sizes=[4, 8],
        depths=[1, 1],
        layer_type='basic',
        id2label=dict(enumerate('abcd')),
    )
    net = transformers.ResNetForImageClassification(config)
    if wrapped:
        config.save_pretrained(tmp_path)
        teacher = build(dict(type='HuggingFaceClassifier', model_name=str(tmp_path)))
        teacher.model.load_state_dict(net.state_dict())
    model = distiller(teacher=teacher if wrapped else net)
    images, samples = batch(size=32)
    values = model.teachers[0](images)
    assert torch.equal(values['logits'], net.eval()(images).logits)
    assert model.teachers[0].classes == ('a', 'b', 'c', 'd')
    losses = model.train()(images, samples, mode='loss')
    kd = build(dict(type='KLDivLoss'))(model.student(images), values['logits'])
    torch.testing.assert_close(losses['loss_kd'], kd)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16', 'float32'])
def test_a_teacher_runs_in_its_own_precision(dtype):
    torch.manual_seed(0)
    model = distiller(teacher=dict(model=classifier(8), dtype=dtype)).train()
    images, samples = batch()
    teacher = model.teachers[0]
    with torch.autocast('cpu', dtype=torch.bfloat16):
        values = teacher(images)
        losses = model(images, samples, mode='loss')
    assert values['logits'].dtype == getattr(torch, dtype)
    assert losses['loss_kd'].dtype == torch.float32
    assert {p.dtype for p in model.student.parameters()} == {torch.float32}
    full = copy.deepcopy(teacher.model).float()(images)
    torch.testing.assert_close(values['logits'].float(), full, atol=0.02, rtol=0.02)


def test_the_bridge_is_used_in_the_step():
    student, other = classifier(4), classifier(8)
    student['data_preprocessor'] = dict(mean=[100.0] * 3, std=[50.0] * 3)
    other['data_preprocessor'] = dict(mean=[0.0] * 3, std=[1.0] * 3)
    model = distiller(student=student, teacher=dict(model=other))
    images, _ = batch()
    torch.testing.assert_close(
        model.teachers[0](images)['logits'], model.teachers[0].model(images * 50 + 100)
    )


def test_ema_teacher_follows_the_student_by_the_formula():
    model = distiller(teacher=dict(type='EMATeacher', momentum=0.25)).train()
    images, samples = batch()
    average = None
    for _ in range(4):
        weight = model.student.head.fc.weight.detach().clone()
        average = weight if average is None else 0.75 * average + 0.25 * weight
        total(model(images, samples, mode='loss')).backward()
        torch.testing.assert_close(model.teachers[0].model.head.fc.weight, average)
        with torch.no_grad():
            for parameter in model.student.parameters():
                parameter -= parameter.grad
    model.eval()(images, samples, mode='loss')
    torch.testing.assert_close(model.teachers[0].model.head.fc.weight, average)


def test_ema_teacher_is_in_the_checkpoint_and_nowhere_else():
    model = distiller(teacher=dict(type='EMATeacher', momentum=0.25)).train()
    images, samples = batch()
    for _ in range(2):
        total(model(images, samples, mode='loss')).backward()
        with torch.no_grad():
            model.student.head.fc.bias -= model.student.head.fc.bias.grad
    assert len(list(model.parameters())) == len(list(model.student.parameters()))
    state = model.state_dict()
    assert sum(key.startswith('distill.teachers.0.average') for key in state) == 17
    twin = distiller(teacher=dict(type='EMATeacher', momentum=0.25)).train()
    twin.load_state_dict(state)
    first = model(images, samples, mode='loss')
    second = twin(images, samples, mode='loss')
    assert torch.equal(first['loss_kd'], second['loss_kd'])
    assert torch.equal(model.teachers[0].average.steps, twin.teachers[0].average.steps)


def test_an_ensemble_is_the_mean_of_its_members():
    members = [dict(model=classifier(8)), build(classifier(6))]
    model = distiller(
        dict(kd=dict(type='KLDivLoss', at='logits'), cat=dict(type='CATLoss', at='cam')),
        teacher=dict(type='TeacherEnsemble', teachers=members),
    )
    images, samples = batch()
    nets = [member.model for member in model.teachers[0].members]
    values = model.teachers[0](images)
    torch.testing.assert_close(values['logits'], (nets[0](images) + nets[1](images)) / 2)
    assert isinstance(values['cam'], ClassMaps)
    torch.testing.assert_close(
        values['cam'].logits(), sum(net(images) - net.head.fc.bias for net in nets) / 2
    )
    model.train()(images, samples, mode='loss')
    with pytest.raises(ValueError, match='the teacher has no weights'):
        model.init_weights()


def test_members_of_an_ensemble_must_agree_in_shape():
    ensemble = dict(type='TeacherEnsemble', teachers=[classifier(8), classifier(6)])
    with pytest.raises(
        ValueError, match="teacher.teachers: the members .* differ at tap 'embedding'"
    ):
        distiller(dict(fit=dict(type='MSELoss', at='embedding')), teacher=ensemble)


def test_members_of_an_ensemble_must_mean_the_same_by_logits():
    several = classifier(6)
    several['head'] = dict(type='MultiLabelLinearClsHead', num_classes=4, in_channels=6)
    teachers = [classifier(8), several]
    with pytest.raises(
        ValueError, match='teacher.teachers: some .* softmax and some sigmoid heads'
    ):
        build_teacher(dict(type='TeacherEnsemble', teachers=teachers))
    assert len(build_teacher(dict(type='TeacherEnsemble', teachers=[several] * 2)).members) == 2
    for wrong in ([], None, 'resnet18'):
        with pytest.raises(ValueError, match='teacher.teachers is .* must be a list of teachers'):
            build_teacher(dict(type='TeacherEnsemble', teachers=wrong))


def ensemble(weights, count=3, **member):
    return dict(
        type='TeacherEnsemble',
        weights=weights,
        teachers=[classifier(width, **member) for width in (8, 6, 4)[:count]],
    )


@pytest.mark.parametrize('weights', ['cross_entropy', 'agreement', [1, 0, 3]])
def test_members_of_an_ensemble_are_weighted(weights):
    """By weights that are computed here from the members' own logits, at every tap."""
    terms = dict(cat=dict(type='CATLoss', at='cam'), kd=dict(type='KLDivLoss', at='logits'))
    images, samples = batch()
    found = []
    for asked in (
        terms,
        {'cat': terms['cat']},
    ):  # without a term of logits they are read all the same
        torch.manual_seed(0)
        model = distiller(asked, teacher=ensemble(weights))
        teacher = model.teachers[0]
        found.append(teacher(images, samples))
        assert set(found[-1]) == {term['at'] for term in asked.values()}
    logits = [member.model(images) for member in teacher.members]
    rows = []
    for i, sample in enumerate(samples):
        p = [each[i].softmax(0) for each in logits]
        if weights == 'cross_entropy':
            losses = torch.stack([-each[int(sample.gt_label)].log() for each in p])
            rows.append((1 - losses.exp() / losses.exp().sum()) / 2)
        elif weights == 'agreement':
            a = torch.stack(
                [
                    (p[k] @ other) / (p[k].norm() * other.norm())
                    for k in range(3)
                    for other in [sum(p[j] for j in range(3) if j != k) / 2]
                ]
            )
            rows.append(a / a.sum())
        else:
            rows.append(torch.tensor([0.25, 0, 0.75]))
    w = torch.stack(rows)
    expected = sum(w[:, k, None] * logits[k] for k in range(3))
    torch.testing.assert_close(found[0]['logits'], expected)
    maps = [
        each.model.head.fc.weight @ each.model.backbone(images)[0].flatten(2)
        for each in teacher.members
    ]
    expected = sum(w[:, k, None, None] * maps[k] for k in range(3))
    for values in found:
        torch.testing.assert_close(values['cam'].full().flatten(2), expected)
    assert model.train()(images, samples, mode='loss')['loss_cat'] > 0


def test_weights_of_an_ensemble_take_mixed_labels_and_half_precision():
    torch.manual_seed(0)
    teacher = distiller(teacher=ensemble('cross_entropy', count=2)).teachers[0]
    images, samples = batch()
    mixed = [DataSample().set_gt_score(torch.eye(4)[int(each.gt_label)]) for each in samples]
    expected = teacher(images, samples)['logits']
    torch.testing.assert_close(teacher(images, mixed)['logits'], expected)
    for member in teacher.members:
        member.model.bfloat16()
    found = teacher(images.bfloat16(), samples)['logits']
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    'spec, message',
    [
        (ensemble('entropy'), "teacher.weights is 'entropy'; .* one of cross_entropy, agreement"),
        (ensemble(0.5), 'teacher.weights is 0.5; it must be a list of numbers'),
        (ensemble([1, -1, 1]), 'teacher.weights is -1; .* at least 0'),
        (
            ensemble([1, 1]),
            r'teacher.weights is \[1, 1\]; there must be a number for each of the 3',
        ),
        (ensemble([0, 0, 0]), 'and one above 0'),
        (ensemble('cross_entropy', 1), 'needs 2 members or more, because one has .* there is 1'),
        (ensemble('agreement', 2), 'needs 3 members or more, because two have .* there are 2'),
    ],
)
def test_wrong_weights_of_an_ensemble_are_one_sentence(spec, message):
    with pytest.raises(ValueError, match=message):
        build_teacher(spec)


def test_weights_by_image_need_softmax_heads_and_rows_of_images():
    several = classifier(6)
    several['head'] = dict(type='MultiLabelLinearClsHead', num_classes=4, in_channels=6)
    teacher = dict(type='TeacherEnsemble', teachers=[several] * 3)
    for weights in ('cross_entropy', 'agreement'):
        with pytest.raises(ValueError, match='the members have sigmoid heads; use numbers'):
            build_teacher(dict(teacher, weights=weights))
    build_teacher(dict(teacher, weights=[1, 2, 3]))
    flat = [build(classifier(4)) for _ in range(2)]
    for each in flat:
        each.backbone.rows = nn.Flatten(0, 1)
        each.backbone.register_forward_hook(
            lambda module, _, output: [module.rows(output[0]), output][1]
        )
    teacher = dict(type='TeacherEnsemble', weights='cross_entropy', teachers=flat)
    terms = dict(fit=dict(type='MSELoss', at=('embedding', 'backbone.rows'), adapter=None))
    with pytest.raises(
        ValueError, match="tap 'backbone.rows' has the shape .* without a row for each"
    ):
        distiller(terms, teacher=teacher)


def test_weights_by_labels_need_one_label_of_the_students_classes(tmp_path):
    model = distiller(teacher=ensemble('cross_entropy'), student_weight=0)
    images, samples = batch()
    need = "teacher.weights is 'cross_entropy', which needs each image's label, and"
    with pytest.raises(ValueError, match=f'{need} the data samples have none'):
        model(images, [DataSample() for _ in samples], mode='loss')
    samples[0].set_gt_label([0, 1])
    with pytest.raises(ValueError, match=f'{need} some images have several'):
        model(images, samples, mode='loss')
    terms = dict(fit=dict(type='MSELoss', at='embedding'))
    members = [classifier(8, classes=5)] * 2
    teacher = dict(type='TeacherEnsemble', weights='cross_entropy', teachers=members)
    with pytest.raises(
        ValueError, match='members have 5 classes where the student has 4; set classes'
    ):
        distiller(terms, teacher=teacher)
    # An order of classes that no term of features would ask for
    _, path = saved(tmp_path, meta=dict(dataset_meta=dict(classes=tuple('bacd'))))
    members = [dict(model=classifier(8), checkpoint=path)] * 2
    teacher = dict(type='TeacherEnsemble', teachers=members)
    distiller(terms, teacher=teacher).teachers[0].match_classes('abcd')
    teacher = distiller(terms, teacher=dict(teacher, weights='cross_entropy')).teachers[0]
    with pytest.raises(ValueError, match='teacher, member 0, has the classes in another order'):
        teacher.match_classes('abcd')


@pytest.mark.parametrize('momentum', [0, 1, float('nan'), True, '0.1'])
def test_a_momentum_is_a_share(momentum):
    with pytest.raises(ValueError, match='teacher.momentum is .* above 0 and below 1'):
        EMATeacher(momentum)


def test_teacher_objects_are_taken_as_they_are():
    teacher = EMATeacher(momentum=0.5)
    assert build_teacher(teacher) is teacher


class Cached(nn.Module):
    """Keeps twice its weight for eval mode, as LeViT keeps its attention biases."""

    def __init__(self):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(3, 4)
        self.train()

    def train(self, mode=True):
        super().train(mode)
        self.twice = None if mode else self.linear.weight.detach() * 2
        return self

    def forward(self, images):
        weight = self.linear.weight * 2 if self.twice is None else self.twice
        return F.linear(self.pool(images).flatten(1), weight)


def test_what_a_model_prepares_for_eval_mode_is_that_of_its_weights(tmp_path):
    trained = Cached()
    torch.save(trained.state_dict(), tmp_path / 'cached.pth')
    teacher = Teacher(Cached(), checkpoint=str(tmp_path / 'cached.pth'))
    model = distiller(teacher=teacher)
    model.init_weights()
    images, _ = batch()
    torch.testing.assert_close(teacher(images)['logits'], trained(images))

    average = EMATeacher(momentum=0.5)
    student = Cached()
    average.bind(student, {'logits': 'x'})
    with fake_forward(student):
        average.resolve(torch.empty(2, 3, 8, 8))
    with torch.no_grad():
        student.linear.weight.add_(1)
    average.update(student)
    torch.testing.assert_close(average(images)['logits'], student(images))
    assert student.training and student.twice is None


def test_an_average_counts_its_updates_on_the_cpu():
    teacher = distiller(teacher=dict(type='EMATeacher')).to('meta').teachers[0]
    assert teacher.average.module.head.fc.weight.device.type == 'meta'
    assert teacher.average.steps.device.type == 'cpu'
