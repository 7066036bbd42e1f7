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
from torch.utils.data import DataLoader

from mmkdx.apis import evaluate_explanations
from mmkdx.distillation.class_order import class_groups, compare_order, reorder
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
    'names, known, expected',
    [
        (DATA, DATA, None),
        # mmpretrain's ImageNet has two cranes
        (['crane', 'fox', 'crane'], ['crane', 'fox', 'crane'], None),
        (DATA, TEACHER, "'cat' is class 0 of the data set and class 1 of the teacher"),
        (DATA, ['cat', 'dog', 'owl', 'elk'], "'owl' is class 3 of .* class 2 of the teacher"),
    ],
)
def test_orders_are_compared(names, known, expected, warnings):
    if expected:
        with pytest.raises(ValueError, match=expected):
            compare_order(names, known, 'teacher')
    else:
        compare_order(names, known, 'teacher')
    assert not warnings()


@pytest.mark.parametrize(
    'names, known, mapped, expected',
    [
        (DATA, DATA, {}, None),
        (DATA, TEACHER, {}, [[1], [3], [0], [2]]),
        # fewer, renamed and merged classes
        (DATA[:2], TEACHER, {}, [[1], [3]]),
        (('kitty', 'dog'), TEACHER, dict(kitty=['cat']), [[1], [3]]),
        (('pet', 'owl'), TEACHER, dict(pet=['cat', 3]), [[1, 3], [2]]),
        (('pet', 'bird'), None, dict(pet=[7, 9], bird=[0]), [[7, 9], [0]]),
        # a class may change its place without a change of names
        (DATA, DATA, dict(cat=['dog'], dog=['cat']), [[1], [0], [2], [3]]),
        (
            ['crane', 'fox'],
            ['fox', 'crane', 'crane'],
            {},
            "several classes 'crane'; map it by index",
        ),
        (['crane', 'fox'], ['fox', 'crane', 'crane'], dict(crane=[2]), [[2], [0]]),
        (['fox', 'fox'], ['cat', 'fox'], {}, "1 of the teacher belongs to 'fox' and to 'fox'"),
        (DATA, ['cats', 'dog', 'fox', 'elk'], {}, "no class 'cat'; near names are cats; map it by"),
        (
            DATA,
            TEACHER,
            dict(cow=['cat']),
            "maps to 'cow', which is no class of the data set; near",
        ),
        (DATA, TEACHER, dict(cat=['cow']), "no class 'cow'; near .*classes={'cat': "),
        (DATA, None, {}, 'set teacher.classes to the list of names, or to a map of indices'),
        (DATA, TEACHER, dict(cat=['cat', 'dog']), "3 of the teacher belongs to 'cat' and to 'dog'"),
    ],
)
def test_groups_of_classes(names, known, mapped, expected, warnings):
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            class_groups(names, known, mapped)
    else:
        assert class_groups(names, known, mapped) == expected
    assert not warnings()


@pytest.mark.parametrize(
    'classes, message',
    [
        (dict(cat=[]), r"teacher.classes\['cat'\] is empty; name a class of the teacher"),
        *(
            (dict(cat=value), rf"teacher.classes\['cat'\] is {value!r}; it must be the name or the")
            for value in (1.5, True, None, -1)
        ),
        ('match me', "teacher.classes is 'match me'"),
    ],
)
def test_a_map_of_other_things_is_refused(classes, message):
    with pytest.raises(ValueError, match=message):
        Teacher(classifier(8), classes=classes)


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


#: Two classes of the data set, the first made of two of the teacher's.
PETS = dict(pet=['cat', 'dog'], bird='owl')


@pytest.mark.parametrize(
    'make', [classifier, scaled, conformer], ids=['linear', 'scaled', 'branches']
)
def test_merged_classes_have_summed_probabilities(make):
    model = (build(make()) if make is classifier else make()).eval()
    facts, images = describe(model), batch()[0]
    before = facts.logits(images).detach()
    undo = reorder(model, [(1, 3), 2])
    # What the teacher says of the pets and the bird, given that it is one of them
    chosen = before[:, [1, 3, 2]].softmax(1)
    expected = torch.stack([chosen[:, 0] + chosen[:, 1], chosen[:, 2]], 1)
    torch.testing.assert_close(facts.logits(images).softmax(1), expected)
    assert torch.equal(facts.logits(images)[:, 1], before[:, 2])
    assert not any('class_order' in name for name in model.state_dict())
    undo()
    assert torch.equal(facts.logits(images), before)


def test_chosen_rows_come_back():
    model = build(classifier()).eval()
    images = batch()[0]
    before, state = model(images), dict(model.state_dict())
    undo = reorder(model, [2, 0])
    torch.testing.assert_close(model(images), before[:, [2, 0]])
    undo()
    assert torch.equal(model(images), before) and model.head.fc.out_features == 4
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_what_cannot_be_mapped_is_refused():
    model = build(classifier())
    with pytest.raises(ValueError, match='classes names class 4, and the last of the teacher is 3'):
        reorder(model, [0, 4])
    several = classifier()
    several['head'] = dict(type='MultiLabelLinearClsHead', num_classes=4, in_channels=8)
    with pytest.raises(
        ValueError, match="probabilities of the teacher's sigmoid head cannot be added"
    ):
        reorder(build(several), [(0, 1), 2])


def test_a_student_of_fewer_classes_learns_from_the_teachers_part(checkpoint):
    """Logits, class maps and the gradient of a step, as a plain formula has them."""
    path, model = checkpoint
    distilling = distiller(
        dict(kd=dict(type='KLDivLoss', at='logits'), cat=dict(type='CATLoss', at='cam')),
        student=classifier(4, classes=2),
        teacher=dict(model=classifier(8), checkpoint=path, classes=dict(bird='owl')),
        student_weight=0,
    )
    teacher, student = distilling.teachers[0], distilling.student
    teacher.match_classes(('fox', 'bird'))
    assert teacher.classes == ('fox', 'bird')
    images, samples = batch(classes=2)
    rows = [TEACHER.index('fox'), TEACHER.index('owl')]
    expected = model(images)[:, rows].detach()
    values = teacher(images)
    torch.testing.assert_close(values['logits'], expected)
    weight = model.head.fc.weight[rows]
    maps = torch.einsum('kc,nchw->nkhw', weight, model.backbone(images)[0])
    torch.testing.assert_close(values['cam'].full(), maps)

    losses = distilling.train()(images, samples, mode='loss')
    parameters = list(student.parameters())
    found = torch.autograd.grad(
        losses['loss_kd'], parameters, retain_graph=True, materialize_grads=True
    )
    target = expected.softmax(1)
    plain = -(target * student(images).log_softmax(1)).sum(1).mean()
    for one, other in zip(found, torch.autograd.grad(plain, parameters)):
        torch.testing.assert_close(one, other)


def test_a_student_of_merged_classes(checkpoint):
    path, model = checkpoint
    distilling = distiller(
        student=classifier(4, classes=2),
        teacher=dict(model=classifier(8), checkpoint=path, classes=PETS),
    )
    distilling.teachers[0].match_classes(('bird', 'pet'))
    images, samples = batch(classes=2)
    logits = model(images).detach()
    pet = logits[:, [TEACHER.index('cat'), TEACHER.index('dog')]].logsumexp(1)
    expected = torch.stack([logits[:, TEACHER.index('owl')], pet], 1)
    losses = distilling.train()(images, samples, mode='loss')
    kd = build(dict(type='KLDivLoss'))(distilling.student(images), expected)
    torch.testing.assert_close(losses['loss_kd'], kd)


def test_evaluation_agrees_on_the_mapped_classes(checkpoint):
    path, model = checkpoint
    student = build(classifier(4, classes=2))
    images, _ = batch(8)
    data = [(image, i % 2) for i, image in enumerate(images)]

    class Named(list):
        METAINFO = dict(classes=('bird', 'pet'))
        metainfo = METAINFO

    found = evaluate_explanations(
        student,
        DataLoader(Named(data), 4),
        teacher=dict(model=classifier(8), checkpoint=path, classes=PETS, normalize='same'),
        metrics=['MapAgreement'],
    )
    logits = model(images).detach()
    pet = logits[:, [TEACHER.index('cat'), TEACHER.index('dog')]].logsumexp(1)
    pets = pet > logits[:, TEACHER.index('owl')]
    same = (student.eval()(images).argmax(1) == pets.long()).float().mean()
    assert found.scores['prediction_agreement'].value == pytest.approx(float(same))


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


@pytest.mark.parametrize(
    'classes, expected',
    [
        ('match', [0, 0]),  # only a file would say which they are
        (dict(bird='owl', pet='cat'), [0, 0]),
        (dict(bird=2, pet=[1, 3]), [2, [1, 3]]),
        (TEACHER, None),
    ],
)
def test_a_dry_run_maps_what_is_known(classes, expected):
    """Without weights, of which no file is there."""
    teacher = Teacher(classifier(8), 'no_file.pth', classes=classes)
    teacher.bind(build(classifier(4, classes=2)), dict(logits='terms.kd.at'))
    images, _ = batch()
    logits = teacher.model(images)
    if expected is None:
        with pytest.raises(ValueError, match="the teacher has no class 'bird'"):
            teacher.keep_random_weights(('bird', 'pet'))
        return
    teacher.keep_random_weights(('bird', 'pet'))
    columns = [logits[:, [each] if isinstance(each, int) else each] for each in expected]
    wanted = torch.stack([each.logsumexp(1) for each in columns], 1)
    torch.testing.assert_close(describe(teacher.model).logits(images), wanted)
