"""Names of classes: another order is an error, or is put right by name."""

import logging

import pytest
import torch
from mmengine.dataset import BaseDataset
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from mmpretrain.structures import DataSample
from tiny import batch, build, classifier, distiller
from torch import nn

from mmkdx.distillation.class_order import class_order, reorder
from mmkdx.distillation.teachers import Teacher
from mmkdx.explain import CAM
from mmkdx.models import describe
from mmkdx.registry import DATASETS

DATA, TEACHER = ('cat', 'dog', 'fox', 'owl'), ['fox', 'cat', 'owl', 'dog']
#: The teacher's index of each class of the data set.
ORDER = [1, 3, 0, 2]


@pytest.fixture
def warnings(caplog):
    """What was warned of."""
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    yield lambda: [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    logger.removeHandler(caplog.handler)


@pytest.fixture
def checkpoint(tmp_path):
    """A teacher's file, with its names as mmengine keeps them, and the model."""
    model = build(classifier(8)).eval()
    meta = dict(dataset_meta=dict(classes=TEACHER))
    torch.save(dict(meta=meta, state_dict=model.state_dict()), tmp_path / 'teacher.pth')
    return str(tmp_path / 'teacher.pth'), model


def taught(path, taps=('logits',), **kwargs):
    teacher = Teacher(classifier(8), path, **kwargs)
    teacher.bind(build(classifier(4)), dict.fromkeys(taps, 'terms.kd.at'))
    return teacher


def test_another_order_is_an_error(checkpoint):
    teacher = taught(checkpoint[0])
    with pytest.raises(
        ValueError,
        match=r"teacher has the classes in another order: 'cat' is class 0 of the data set and class "
        r"1 of the teacher; set teacher=dict\(classes='match'\)",
    ):
        teacher.match_classes(DATA)
    teacher.match_classes(TEACHER)
    assert teacher.classes == tuple(TEACHER)


def test_classes_are_matched_by_name(checkpoint):
    path, model = checkpoint
    distilling = distiller(
        dict(kd=dict(type='KLDivLoss', at='logits'), cat=dict(type='CATLoss', at='cam')),
        teacher=dict(model=classifier(8), checkpoint=path, classes='match'),
    )
    teacher = distilling.teachers[0]
    teacher.match_classes(DATA)
    teacher.match_classes(DATA)
    assert teacher.classes == DATA
    images, samples = batch()
    values = teacher(images)
    expected = model(images)[:, ORDER]
    torch.testing.assert_close(values['logits'], expected)
    torch.testing.assert_close(values['cam'].logits(), expected)
    losses = distilling.train()(images, samples, mode='loss')
    kd = build(dict(type='KLDivLoss'))(distilling.student(images), expected)
    torch.testing.assert_close(losses['loss_kd'], kd)
    # An explainer sees the same model
    maps = CAM()(teacher.model, images, torch.zeros(6, dtype=torch.long))
    torch.testing.assert_close(maps, CAM()(model, images, torch.full((6,), ORDER[0])))


def test_names_may_be_listed(checkpoint):
    images, _ = batch()
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    expected = net(images)[:, ORDER].detach()
    model = distiller(teacher=dict(model=net, classes=TEACHER))
    with pytest.raises(ValueError, match='names are unknown, so its classes cannot be matched'):
        model.teachers[0](images)
    model.teachers[0].match_classes(DATA)
    torch.testing.assert_close(model.teachers[0](images)['logits'], expected)


def test_names_of_models_are_compared_without_a_run(checkpoint):
    student = build(classifier(4))
    student._dataset_meta = dict(classes=list(DATA))
    model = distiller(student=student, teacher=dict(model=classifier(8), checkpoint=checkpoint[0]))
    with pytest.raises(ValueError, match='another order'):
        model.init_weights()


@pytest.mark.parametrize(
    'taps, fails',
    [
        (('features',), False),
        (('embedding', 'backbone.body'), False),
        (('embedding', 'cam'), True),
        (('head',), True),
        ((), True),
    ],
)
def test_features_have_no_classes(checkpoint, taps, fails):
    teacher = taught(checkpoint[0], taps)
    if not fails:
        teacher.match_classes(DATA)
        return
    with pytest.raises(ValueError, match='another order'):
        teacher.match_classes(DATA)


@pytest.mark.parametrize(
    'names, known, by_name, expected',
    [
        (DATA, DATA, False, None),
        (DATA, DATA, True, None),
        (DATA, TEACHER, True, ORDER),
        # mmpretrain's ImageNet has two cranes
        (['crane', 'fox', 'crane'], ['crane', 'fox', 'crane'], False, None),
        (DATA, TEACHER, False, "'cat' is class 0 of the data set and class 1 of the teacher"),
        (
            DATA,
            ['cat', 'dog', 'owl', 'elk'],
            False,
            "'owl' is class 3 of .* class 2 of the teacher",
        ),
        (['crane', 'fox', 'crane'], ['fox', 'crane', 'crane'], True, 'are not unique names'),
        (DATA, ['cat', 'dog', 'fox', 'elk'], True, "the data set's 'owl' and the teacher's 'elk'"),
        (DATA, DATA[:3], True, 'cannot be matched by name'),
        (DATA, None, True, 'set teacher.classes to the list of names'),
    ],
)
def test_orders(names, known, by_name, expected, warnings):
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            class_order(names, known, by_name)
    else:
        assert class_order(names, known, by_name) == expected
    assert not warnings()


def test_other_or_unknown_names_are_warned_of_once(checkpoint, warnings):
    teacher = taught(None, classes=None)
    teacher.loaded = True
    for _ in range(2):
        teacher.match_classes(DATA)
    assert len(warnings()) == 1 and "teacher's classes are unknown" in warnings()[0]
    teacher = taught(checkpoint[0])
    for _ in range(2):
        teacher.match_classes(['Fox', 'cat', 'owl', 'dog'])
    assert len(warnings()) == 2 and "such as 'fox' and 'Fox'" in warnings()[1]


def huggingface():
    transformers = pytest.importorskip('transformers')
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type='basic', num_labels=4
    )
    return transformers.ResNetForImageClassification(config)


def scaled():
    """Logits that are no linear layer's output."""

    class Scaled(nn.Linear):
        def forward(self, inputs):
            return super().forward(inputs) * 2

    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), Scaled(3, 4))


def conformer():
    class Pool(nn.Module):
        def forward(self, images):
            return ([images.mean((2, 3)), images.amax((2, 3))],)

    model = build(classifier())
    model.backbone, model.neck = Pool(), None
    model.head = build(dict(type='ConformerHead', num_classes=4, in_channels=[3, 3]))
    return model


@pytest.mark.parametrize(
    'make, rows',
    [
        (lambda: build(classifier()), True),
        (lambda: pytest.importorskip('timm').create_model('test_vit', num_classes=4), True),
        (huggingface, True),
        (scaled, False),
        (conformer, False),
    ],
    ids=['mmpretrain', 'timm', 'Hugging Face', 'scaled', 'branches'],
)
def test_any_model_can_be_put_in_order(make, rows):
    model = make().eval()
    facts = describe(model)
    images = torch.randn(2, 3, *(facts.images.size or (16, 16)))
    with torch.no_grad():
        before = facts.logits(images)
        reorder(model, ORDER)
        torch.testing.assert_close(facts.logits(images), before[:, ORDER])
    assert any('class_order' in name for name, _ in model.named_buffers()) != rows
    assert not any('class_order' in name for name in model.state_dict())


def test_hugging_faces_outputs_are_put_in_order():
    model = huggingface().eval()
    model.classifier.append(nn.Tanh())
    images = torch.randn(2, 3, 16, 16)
    before = model(images).logits
    reorder(model, ORDER)
    assert torch.equal(model(images).logits, before[:, ORDER])


def test_prototypes_keep_their_classes():
    head = dict(
        type='ProtoPNetHead',
        num_classes=4,
        in_channels=8,
        prototypes_per_class=1,
        prototype_channels=4,
    )
    model = build(dict(classifier(8), neck=None, head=head))
    with pytest.raises(ValueError, match='prototypes belong to its classes'):
        reorder(model, ORDER)


@DATASETS.register_module()
class NamedNoise(BaseDataset):
    METAINFO = dict(classes=DATA)

    def load_data_list(self):
        return [dict(gt_label=i) for i in range(4)]

    def prepare_data(self, index):
        generator = torch.Generator().manual_seed(index)
        images = torch.randint(0, 256, (3, 8, 8), generator=generator, dtype=torch.uint8)
        return dict(inputs=images, data_samples=DataSample().set_gt_label(index))


def runner(tmp_path, name, **teacher):
    loader = dict(batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False))
    return Runner(
        model=dict(
            type='Distiller',
            student=classifier(4),
            teacher=dict(model=classifier(8), **teacher),
            input_size=8,
            terms=dict(kd=dict(type='KLDivLoss', at='logits')),
        ),
        work_dir=str(tmp_path),
        train_dataloader=dict(
            loader,
            dataset=dict(type='ConcatDataset', datasets=[dict(type='NamedNoise')] * 2),
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        default_scope='mmkdx',
        experiment_name=name,
        log_level='WARNING',
    )


def test_a_run_compares_before_its_first_iteration(tmp_path, checkpoint, monkeypatch):
    path, model = checkpoint
    run = runner(tmp_path, 'order', checkpoint=path)
    steps = []
    monkeypatch.setattr(
        type(run.model), 'train_step', lambda *args, **kwargs: steps.append(1) or {}
    )
    with pytest.raises(ValueError, match="'cat' is class 0 of the data set and class 1"):
        run.train()
    assert not steps
    run = runner(tmp_path, 'match', checkpoint=path, classes='match')
    run.train()
    teacher = run.model.teachers[0]
    images, _ = batch()
    torch.testing.assert_close(teacher(images)['logits'], model(images)[:, ORDER])
    # A model that is built afterwards has nothing to do with that run's data
    assert Visualizer.get_current_instance().dataset_meta['classes'] == DATA
    distiller(teacher=dict(model=classifier(8), checkpoint=path)).init_weights()
