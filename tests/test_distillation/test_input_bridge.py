"""The teacher gets images in the form that its own preprocessor gives them."""

import logging

import pytest
import torch
from mmengine.logging import MMLogger
from tiny import build, classifier, distiller
from torch import nn

from mmkdx.distillation.input_bridge import InputBridge, input_bridge
from mmkdx.distillation.teachers import Teacher, build_teacher
from mmkdx.models import describe
from mmkdx.models.intercept import fake_forward

IMAGENET = dict(mean=[124.0, 116.0, 104.0], std=[58.0, 57.0, 57.0])


def net(width=4, **preprocessor):
    return build(dict(classifier(width), data_preprocessor=preprocessor))


def raw(size=8, channels=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, channels, size, size), dtype=torch.uint8, generator=generator)


def preprocess(model, images=None):
    return model.data_preprocessor(dict(inputs=raw() if images is None else images))['inputs']


@pytest.fixture
def warnings(caplog):
    """What was warned of."""
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    yield lambda: [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    logger.removeHandler(caplog.handler)


@pytest.mark.parametrize('teacher_rgb', [False, True])
@pytest.mark.parametrize('student_rgb', [False, True])
@pytest.mark.parametrize(
    'student', [dict(mean=[10.0, 20.0, 30.0], std=[2.0, 3.0, 4.0]), dict(mean=[9.0], std=[2.0]), {}]
)
def test_the_teachers_images_are_its_own_preprocessors(student, student_rgb, teacher_rgb, warnings):
    student = net(**student, to_rgb=student_rgb)
    teacher = net(8, **IMAGENET, to_rgb=teacher_rgb)
    bridge = input_bridge(student, teacher)
    torch.testing.assert_close(
        bridge(preprocess(student)), preprocess(teacher), atol=1e-5, rtol=1e-5
    )
    assert not warnings()


def test_a_student_without_mean_and_a_teacher_with():
    model = distiller(student=net(to_rgb=True), teacher=net(8, **IMAGENET, to_rgb=True))
    images = preprocess(model)
    teacher = model.teachers[0]
    expected = preprocess(teacher.model)
    torch.testing.assert_close(teacher.convert(images), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(teacher(images)['logits'], teacher.model(expected))
    assert abs(float(teacher.convert(images).mean())) < 0.5 and images.mean() > 100


@pytest.mark.parametrize('kind', ['timm', 'torchvision', 'TimmClassifier'])
@pytest.mark.parametrize('student', [dict(mean=[10.0] * 3, std=[2.0] * 3), {}])
def test_a_network_whose_normalisation_is_known(kind, student, warnings):
    if kind == 'torchvision':
        models = pytest.importorskip('torchvision.models')
        teacher = models.shufflenet_v2_x0_5(num_classes=4)
        transform = models.ShuffleNet_V2_X0_5_Weights.DEFAULT.transforms()
    else:
        timm = pytest.importorskip('timm')
        teacher = timm.create_model('test_resnet', num_classes=4)
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(teacher))
        transform = transform.transforms[-1]
        if kind != 'timm':
            teacher = build(dict(type=kind, model_name='test_resnet', num_classes=4))
    mean, std = (torch.as_tensor(each)[:, None, None] for each in (transform.mean, transform.std))
    student = net(**student, to_rgb=True)
    converted = input_bridge(student, teacher)(preprocess(student))
    expected = (raw().flip(1) / 255 - mean) / std
    torch.testing.assert_close(converted, expected, atol=1e-5, rtol=1e-5)
    assert not warnings()


def test_bgr_of_a_network_that_takes_rgb_is_warned_of(warnings):
    teacher = pytest.importorskip('timm').create_model('test_resnet', num_classes=4)
    student = net()
    converted = input_bridge(student, teacher)(preprocess(student))
    torch.testing.assert_close(converted, raw().flip(1) / 127.5 - 1, atol=1e-5, rtol=1e-5)
    assert len(warnings()) == 1 and 'count as BGR' in warnings()[0]
    named = dict(mean=[127.5] * 3, std=[127.5] * 3, to_rgb=False)
    converted = input_bridge(student, teacher, named)(preprocess(student))
    torch.testing.assert_close(converted, raw() / 127.5 - 1, atol=1e-5, rtol=1e-5)
    assert len(warnings()) == 1


def test_equal_images_cost_nothing(warnings):
    known = dict(mean=[10.0] * 3, std=[2.0] * 3)
    for student, teacher in [(known, known), ({}, {}), (dict(known, to_rgb=True),) * 2]:
        assert type(input_bridge(net(**student), net(8, **teacher))) is nn.Identity
    assert not warnings()


def test_without_means_the_order_of_channels_still_counts():
    student, teacher = net(), net(8, to_rgb=True)
    assert torch.equal(input_bridge(student, teacher)(preprocess(student)), preprocess(teacher))
    # What the pipeline normalised goes to both as it is
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(input_bridge(student, teacher)(images), images.flip(1))


@pytest.mark.parametrize(
    'teacher', [lambda: nn.Linear(2, 2), lambda: net(8)], ids=['module', 'no mean']
)
def test_an_unknown_normalisation_is_warned_of(teacher, warnings):
    student = net(**IMAGENET)
    assert type(input_bridge(student, teacher(), owner='teacher 1')) is nn.Identity
    (warning,) = warnings()
    assert warning.startswith('teacher 1: the normalisation of') and 'normalize=dict(' in warning
    assert type(input_bridge(student, teacher(), 'same')) is nn.Identity
    assert len(warnings()) == 1


def test_a_normalisation_can_be_named(warnings):
    student = net(mean=[10.0, 20.0, 30.0], std=[2.0, 3.0, 4.0], to_rgb=True)
    teacher = build_teacher(
        dict(model=nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), normalize=IMAGENET)
    )
    teacher.bind(student, {})
    # Without to_rgb the order is the student's
    expected = preprocess(net(**IMAGENET, to_rgb=True))
    torch.testing.assert_close(teacher.convert(preprocess(student)), expected)
    teacher = Teacher(net(8, **IMAGENET), normalize=dict(IMAGENET, to_rgb=False))
    teacher.bind(student, {})
    torch.testing.assert_close(teacher.convert(preprocess(student)), preprocess(teacher.model))
    assert not warnings()
    with pytest.raises(ValueError, match=r'normalize needs .* that of Linear is unknown'):
        teacher.bind(nn.Linear(2, 2), {})


@pytest.mark.parametrize(
    'images, shown',
    [
        (torch.linspace(-2.1, 2.6, 384).reshape(2, 3, 8, 8), 'from -2.1 to 2.6'),
        (torch.rand(2, 3, 8, 8), 'from .* to '),
        (raw().float() * 256, 'from 0 to 6.53e'),
    ],
)
def test_images_that_the_pipeline_normalised_are_not_taken_for_raw(images, shown):
    model = distiller(student=net(), teacher=net(8, **IMAGENET))
    with pytest.raises(ValueError, match=f"{shown}.*: set mean .*normalize='same'"):
        model.teachers[0](images)
    same = distiller(student=net(), teacher=dict(model=net(8, **IMAGENET), normalize='same'))
    assert torch.equal(same.teachers[0].convert(images), images)


def test_raw_images_are_looked_at_until_a_batch_shows_them():
    bridge = InputBridge(raw='teacher')
    black = torch.zeros(2, 3, 8, 8)
    assert torch.equal(bridge(black), black) and bridge.raw
    with fake_forward(nn.Linear(2, 2)):
        bridge(torch.empty(2, 3, 8, 8))
    assert bridge.raw
    bridge(raw().float())
    assert torch.equal(bridge(-black - 1), -black - 1)


@pytest.mark.parametrize('size', [16, (16, 24)])
def test_images_are_resized_for_the_teacher(size):
    student = net(mean=[10.0] * 3, std=[2.0] * 3)
    teacher = Teacher(net(8, **IMAGENET), resize=size)
    teacher.bind(student, {})
    sides = (size, size) if isinstance(size, int) else size
    expected = nn.functional.interpolate(
        preprocess(teacher.model), sides, mode='bilinear', antialias=True
    )
    torch.testing.assert_close(teacher.convert(preprocess(student)), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(InputBridge(size=(8, 8))(raw().float()), raw().float())


def test_a_teacher_of_a_fixed_size():
    transformer = dict(embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=16)
    teacher = dict(
        type='ImageClassifier',
        backbone=dict(type='VisionTransformer', arch=transformer, img_size=64),
        head=dict(type='VisionTransformerClsHead', num_classes=4, in_channels=16),
        data_preprocessor=IMAGENET,
    )
    fixed = pytest.importorskip('timm').create_model('test_vit', num_classes=4, img_size=64)
    message = (
        'cannot take images of .8, 8. pixels .*; set resize of the teacher, or model.input_size,'
    )
    for model in (nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 4)), fixed):
        with pytest.raises(ValueError, match=message):
            distiller(teacher=model, student=net(**IMAGENET))
    for model in (teacher, fixed):
        distilling = distiller(student=net(**IMAGENET), teacher=dict(model=model, resize=64))
        assert distilling.teachers[0](preprocess(distilling))['logits'].shape == (2, 4)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(resize=0), 'teacher.resize is 0'),
        (dict(resize=[8, 8, 8]), 'teacher.resize is '),
        (dict(normalize='none'), "teacher.normalize is 'none'; it must be one of None, same"),
        (
            dict(normalize=dict(mean=[1])),
            'teacher.normalize has mean; it takes mean, std and to_rgb',
        ),
        (dict(normalize=dict(mean=[1], std=[0.0])), 'teacher.normalize.std is 0.0; .* above 0'),
        (
            dict(normalize=dict(mean=[1, 2], std=[1])),
            'teacher.normalize: .* number for each channel',
        ),
        (dict(normalize=dict(mean=[1], std=[1], to_rgb=1)), 'teacher.normalize.to_rgb is 1'),
        (dict(strict=1), 'teacher.strict is 1'),
        (dict(pretrained='yes'), "teacher.pretrained is 'yes'"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_teacher(dict(model=nn.Linear(2, 2), **arguments))


def test_a_teacher_that_divides_by_zero_is_refused():
    with pytest.raises(ValueError, match='data_preprocessor.std is 0'):
        distiller(teacher=net(8, mean=[0.0] * 3, std=[0.0] * 3))


def test_a_teacher_in_wrappers():
    inner = net(8, **IMAGENET)
    teacher = Teacher(nn.DataParallel(torch.compile(inner)))
    assert teacher.model is inner and describe(teacher.model).images.mean == (124, 116, 104)


def test_the_bridge_says_what_it_does():
    bridge = InputBridge([2.0], [0.5], True, (4, 4))
    assert repr(bridge) == 'InputBridge(scale=[2.0], shift=[0.5], flip=True, size=(4, 4))'
