"""The distiller: its step, its checkpoints, and what it refuses."""

import copy
import gc
import weakref
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import DefaultScope
from mmengine.runner import load_checkpoint
from mmengine.runner.checkpoint import _load_checkpoint_to_model
from mmpretrain.structures import DataSample
from tiny import batch, build, classifier, distiller, total
from torch import nn

from mmkdx.distillation import Distiller
from mmkdx.losses import DistillLoss
from mmkdx.registry import MODELS

ALL_TERMS = dict(
    kd=dict(type='KLDivLoss', at='logits', tau=4, weight=0.5),
    cat=dict(type='CATLoss', at='cam'),
    at=dict(type='ATLoss', at='features'),
    fit=dict(type='MSELoss', at=['backbone.body', 'backbone.stem']),
)


def optimizer_step(model, images, samples, lr=0.1):
    total(model(images, samples, mode='loss')).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= lr * parameter.grad
            parameter.grad = None


def test_losses_are_those_of_the_parts_computed_by_hand():
    model = distiller(ALL_TERMS).train()
    images, samples = batch()
    losses = model(images, samples, mode='loss')
    assert list(losses) == ['student.loss', 'loss_kd', 'loss_cat', 'loss_at', 'loss_fit']

    student, teacher = copy.deepcopy(model.student), model.teachers[0].model
    s = student.backbone(images)[0]  # batch statistics, as in the step
    t = teacher.backbone(images)[0]
    logits = [net.head.fc(f.mean((2, 3))) for net, f in ((student, s), (teacher, t))]
    labels = torch.arange(6) % 4
    kl = (
        logits[1].div(4).softmax(1)
        * (logits[1].div(4).log_softmax(1) - logits[0].div(4).log_softmax(1))
    ).sum() / 6
    torch.testing.assert_close(losses['student.loss'], F.cross_entropy(logits[0], labels))
    torch.testing.assert_close(losses['loss_kd'], 0.5 * 16 * kl)
    maps = [
        F.adaptive_avg_pool2d(F.conv2d(f, net.head.fc.weight[:, :, None, None]), 2).flatten(2)
        for net, f in ((student, s), (teacher, t))
    ]
    maps = [m / m.norm(dim=2, keepdim=True) for m in maps]
    torch.testing.assert_close(losses['loss_cat'], (maps[0] - maps[1]).square().mean())


def test_terms_train_student_and_adapters_and_not_the_teacher():
    model = distiller(ALL_TERMS).train()
    before = copy.deepcopy(model.teachers[0].model.state_dict())
    images, samples = batch()
    total(model(images, samples, mode='loss')).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    names = {name for name, _ in model.named_parameters()}
    assert names == {f'student.{name}' for name, _ in model.student.named_parameters()} | {
        'terms.fit.adapter.project.weight',
        'terms.fit.adapter.project.bias',
    }
    after = model.teachers[0].model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not any(p.requires_grad or p.grad is not None for p in model.teachers[0].parameters())


def test_predict_and_tensor_are_the_student_alone(monkeypatch):
    model = distiller().eval()
    monkeypatch.setattr(type(model.teachers[0]), 'forward', None)  # it must not be called
    images, samples = batch()
    logits = model.student(images)
    assert torch.equal(model(images), logits)
    predicted = model(images, samples, mode='predict')
    assert torch.equal(torch.stack([s.pred_score for s in predicted]), logits.softmax(1))


def test_label_free_needs_no_labels_and_gives_every_parameter_a_gradient():
    model = distiller(dict(cat=dict(type='CATLoss', at='cam')), student_weight=0.0).train()
    images, samples = batch()
    losses = model(images, samples, mode='loss')
    assert list(losses) == ['loss_cat']
    losses['loss_cat'].backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    permuted = [DataSample().set_gt_label(3 - i % 4) for i in range(6)]
    other = model(images, permuted, mode='loss')['loss_cat']
    other.backward()
    assert torch.equal(other, losses['loss_cat'])
    assert all(torch.equal(a, p.grad) for a, p in zip(gradients, model.parameters()))
    assert model(images, mode='loss').keys() == {'loss_cat'}


def test_a_student_without_a_head_learns_an_embedding():
    """mmpretrain's returns a tuple, and the teacher has a classifier."""
    torch.manual_seed(0)
    student = {key: value for key, value in classifier(4).items() if key != 'head'}
    terms = dict(hint=dict(type='CosineLoss', at='embedding', adapter='orthogonal', weight=2))
    images, _ = batch()
    model = distiller(terms, student=student, student_weight=0).train()
    losses = model(images, mode='loss')
    weight = model.terms['hint'].adapter.project.linear.weight
    (embedding,), teacher = model.student(images), model.teachers[0].model
    with torch.no_grad():
        goal = teacher.extract_feat(images)[0]
    expected = 2 - 2 * F.cosine_similarity(embedding @ weight.T, goal).mean()
    torch.testing.assert_close(losses, dict(loss_hint=expected))
    losses['loss_hint'].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


class Tower(nn.Module):
    """An image tower like open_clip's: the projection is no module."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, 2)
        self.proj = nn.Parameter(torch.randn(6, 5))

    def forward(self, images):
        return self.conv(images).mean((2, 3)) @ self.proj


def test_a_plain_tower_teaches_by_what_it_returns():
    tower = Tower()
    terms = dict(fit=dict(type='MSELoss', at=('embedding', 'logits'), adapter='orthogonal'))
    images, _ = batch()
    model = distiller(terms, teacher=dict(model=tower, normalize='same'), student_weight=0).train()
    loss = model(images, mode='loss')['loss_fit']
    weight = model.terms['fit'].adapter.project.linear.weight
    embedding = model.student.extract_feat(images)[0]
    torch.testing.assert_close(loss, F.mse_loss(embedding @ weight.T, tower(images)))
    terms = dict(fit=dict(type='MSELoss', at='embedding'))
    with pytest.raises(ValueError, match="the teacher has no linear .* use the tap 'logits'"):
        distiller(terms, teacher=dict(model=tower, normalize='same'), student_weight=0)


def test_a_student_without_a_classifier_has_no_loss_of_its_own():
    student = {key: value for key, value in classifier(4).items() if key != 'head'}
    terms = dict(hint=dict(type='CosineLoss', at='embedding'))
    with pytest.raises(ValueError) as error:
        distiller(terms, student=student)
    assert str(error.value) == (
        'student has no classifier, so it has no loss of its own: set student_weight=0, or the number '
        "of classes in the student's config"
    )


def test_student_weight_scales_its_losses_and_only_those():
    images, samples = batch()
    model = distiller().train()
    one = model(images, samples, mode='loss')
    model.student_weight = 0.25
    quarter = model(images, samples, mode='loss')
    torch.testing.assert_close(quarter['student.loss'], one['student.loss'] / 4)
    torch.testing.assert_close(quarter['loss_kd'], one['loss_kd'])


def test_logged_loss_is_the_total():
    model = distiller().train()
    images, samples = batch()
    losses = model(images, samples, mode='loss')
    loss, logged = model.parse_losses(losses)
    torch.testing.assert_close(loss, losses['student.loss'] + losses['loss_kd'])
    assert logged['loss'] == loss


def test_mixed_labels_reach_the_loss():

    @MODELS.register_module(name='SoftCE', force=True)
    class SoftCE(DistillLoss):
        compares = 'logits'
        needs = ('target',)

        def forward(self, student, target):
            return F.cross_entropy(student, target)

    model = distiller(dict(ce=dict(type='SoftCE', at='logits'))).train()
    images, samples = batch()
    mixed = [
        DataSample().set_gt_label(0).set_gt_score(torch.tensor([0.1, 0.2, 0.3, 0.4]))
        for _ in samples
    ]
    for labels in (samples, mixed):
        losses = model(images, labels, mode='loss')
        torch.testing.assert_close(losses['loss_ce'], losses['student.loss'])

    SoftCE.needs = ('class',)
    with pytest.raises(
        ValueError, match='terms.ce: SoftCE needs one class an image .* batch_augments'
    ):
        model(images, mixed, mode='loss')
    model(images, samples, mode='loss')


def test_batch_augments_of_the_student_mix_for_both():
    student = classifier(4)
    student['train_cfg'] = dict(augments=dict(type='Mixup', alpha=1.0))
    student['data_preprocessor'] = dict(num_classes=4, mean=[10.0] * 3, std=[2.0] * 3)
    model = distiller(student=student).train()
    data = dict(
        inputs=torch.randint(0, 255, (6, 3, 8, 8), dtype=torch.uint8), data_samples=batch()[1]
    )
    data = model.data_preprocessor(data, True)
    assert 'gt_score' in data['data_samples'][0]
    losses = model(**data, mode='loss')
    assert losses['student.loss'].isfinite() and losses['loss_kd'].isfinite()


def test_nan_names_the_term():
    model = distiller(ALL_TERMS).train()
    images, samples = batch()
    with torch.no_grad():
        model.terms['fit'].adapter.project.bias.fill_(float('nan'))
    with pytest.raises(FloatingPointError, match='terms.fit became NaN'):
        model(images, samples, mode='loss')


def test_the_scope_of_the_config_does_not_matter():
    config = dict(
        type='mmkdx.Distiller',
        student=classifier(4),
        teacher=dict(model=classifier(8)),
        input_size=8,
        terms=ALL_TERMS,
    )
    from mmpretrain.registry import MODELS as parent

    with DefaultScope.overwrite_default_scope('mmpretrain'):
        assert type(parent.build(config)) is Distiller


def test_plain_mmpretrain_loads_a_checkpoint_bit_by_bit(tmp_path):
    model = distiller(ALL_TERMS).train()
    images, samples = batch()
    optimizer_step(model, images, samples)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'run.pth')

    plain = build(classifier(4))
    keys = plain.load_state_dict(torch.load(tmp_path / 'run.pth')['state_dict'], strict=False)
    assert not keys.missing_keys
    assert set(keys.unexpected_keys) == {
        'distill.terms.fit.adapter.project.weight',
        'distill.terms.fit.adapter.project.bias',
    }
    assert torch.equal(plain.eval()(images), model.eval()(images))


def test_module_versions_travel_under_the_students_names():
    plain = build(classifier(4)).state_dict()._metadata
    ours = distiller(ALL_TERMS).state_dict()._metadata
    assert all(ours[key] == version for key, version in plain.items() if key)


@pytest.mark.parametrize('wrap', [False, True])
def test_a_plain_student_file_loads(tmp_path, wrap):
    plain = build(classifier(4))
    state = plain.state_dict()
    torch.save(dict(state_dict=state) if wrap else state, tmp_path / 'student.pth')
    model = distiller(ALL_TERMS)
    load_checkpoint(model, str(tmp_path / 'student.pth'), map_location='cpu')
    assert all(torch.equal(value, model.student.state_dict()[key]) for key, value in state.items())


def test_loading_says_how_many_tensors_match(monkeypatch):
    said = []
    monkeypatch.setattr(
        'mmkdx.distillation.checkpoint.print_log', lambda text, **_: said.append(text)
    )
    model = distiller()
    state = build(classifier(4)).state_dict()
    del state['head.fc.bias']
    model.load_state_dict(state, strict=False)
    assert said == [f'student: {len(state)} of {len(state) + 1} tensors match the checkpoint']


@pytest.mark.parametrize('native', [False, True])
def test_a_file_of_another_model_is_refused(native):
    model = distiller()
    state = {f'encoder.{key}': value for key, value in build(classifier(4)).state_dict().items()}
    with pytest.raises(
        ValueError, match=r"load_from: .* none of the 16 tensors .*'encoder.backbone"
    ):
        if native:
            model.load_state_dict(state, strict=False)
        else:
            _load_checkpoint_to_model(model, state)


def test_state_dict_round_trip_holds_adapters():
    first, second = distiller(ALL_TERMS), distiller(ALL_TERMS)
    second.load_state_dict(first.state_dict())
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


def test_deepcopy_shares_the_teacher_and_copies_the_rest():
    model = distiller(ALL_TERMS).train()
    twin = copy.deepcopy(model)
    assert twin.teachers[0] is model.teachers[0]
    images, samples = batch()
    expected = model(images, samples, mode='loss')
    found = twin(images, samples, mode='loss')
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert list(twin.state_dict()) == list(model.state_dict())
    optimizer_step(twin, images, samples)
    assert not torch.equal(twin.student.head.fc.weight, model.student.head.fc.weight)


def test_teachers_follow_device_moves():
    model = distiller().to('meta')
    assert {p.device.type for p in model.teachers[0].parameters()} == {'meta'}


def test_nothing_is_held_after_a_step():
    model = distiller(ALL_TERMS).train()
    images, samples = batch()
    held = []
    model.student.backbone.register_forward_hook(
        lambda module, args, output: held.append(weakref.ref(output[0]))
    )
    handle = model.teachers[0].model.backbone.register_forward_hook(
        lambda module, args, output: held.append(weakref.ref(output[0]))
    )
    losses = model(images, samples, mode='loss')
    assert len(held) == 2 and held[1]() is not None  # the graph of the losses needs the student's
    del losses
    gc.collect()
    assert [tensor() for tensor in held] == [None, None]
    model.student.backbone._forward_hooks.clear()
    handle.remove()
    for module in [*model.modules(), *model.teachers[0].modules()]:
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_memory_does_not_grow_over_200_steps():
    model = distiller(
        {**ALL_TERMS, 'ema': dict(type='KLDivLoss', at='logits', teacher=1)},
        teacher=[dict(model=classifier(8)), dict(type='EMATeacher')],
    ).train()
    images, samples = batch()

    def tensors():
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    for _ in range(3):
        optimizer_step(model, images, samples, 0.01)
    before = tensors()
    for _ in range(200):
        optimizer_step(model, images, samples, 0.01)
    assert tensors() <= before


def test_several_teachers_and_their_terms():
    teachers = [dict(model=classifier(8)), dict(model=classifier(6))]
    terms = dict(
        a=dict(type='KLDivLoss', at='logits'),
        b=dict(type='KLDivLoss', at='logits', teacher=1),
        fit=dict(type='MSELoss', at='embedding', teacher=1),
    )
    model = distiller(terms, teacher=teachers).train()
    assert model.terms['fit'].adapter.project.out_features == 6
    images, samples = batch()
    logits = copy.deepcopy(model.student)(images)
    losses = model(images, samples, mode='loss')
    for name, teacher in zip('ab', model.teachers):
        expected = F.kl_div(
            logits.log_softmax(1), teacher.model(images).softmax(1), reduction='batchmean'
        )
        torch.testing.assert_close(losses[f'loss_{name}'], expected)


def test_a_student_module_keeps_its_weights():
    student = build(classifier(4))
    student.init_weights = None  # the Runner must not initialise it anew
    weight = student.head.fc.weight.clone()
    model = distiller(student=student, teacher=build(classifier(8)))
    model.init_weights()
    assert torch.equal(model.student.head.fc.weight, weight)


def test_images_of_another_size_are_checked_once(monkeypatch):
    model = distiller(dict(cat=dict(type='CATLoss', at='cam', resolution=4))).train()
    images, samples = batch(size=16)
    with monkeypatch.context() as patch:
        model(images, samples, mode='loss')
        patch.setattr(Distiller, 'probe', None)  # once for each size
        model(images, samples, mode='loss')
        model(*batch(size=8), mode='loss')
    with pytest.raises(ValueError, match=r'terms.cat: .*resolution is 4 .* only 3x3'):
        model(*batch(size=6), mode='loss')


def test_checking_under_autocast_leaves_real_weights():
    model = distiller().train()
    images, samples = batch(size=16)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = model(images, samples, mode='loss')
    total(losses).backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for p in model.student.head.parameters()
    )
    assert losses['loss_kd'].dtype == torch.float32


@pytest.mark.parametrize(
    'change, message',
    [
        (
            dict(terms=dict(kd=dict(type='KLDivLoss', at='backbone.boddy'))),
            r"terms.kd.at: the student has no module 'backbone.boddy'; near names are backbone.body",
        ),
        (dict(terms=dict(kd=dict(type='KLDivLoss'))), "terms.kd has no 'at'"),
        (dict(data_preprocessor=3), 'data_preprocessor is 3; it must be a dict of options'),
        (
            dict(teacher=dict(model=classifier(8), checkpoint=float('nan'))),
            'teacher.checkpoint is nan; it must be a file or URL',
        ),
        (
            dict(terms=dict(cat=dict(type='CATLoss', at='cam', resolution=9))),
            'terms.cat: .*resolution is 9 and the class maps of the student have only 4x4',
        ),
        (
            dict(terms=dict(cat=dict(type='CATLoss', at='cam', resolution=1, normalize=True))),
            'terms.cat: .*resolution is 1 with normalize=True',
        ),
        (
            dict(student=classifier(4, classes=3)),
            'terms.kd.at: the student has 3 classes and the teacher 4; .* set student.head.num_classes',
        ),
        (
            dict(terms=dict(fit=dict(type='MSELoss', at=['features', 'embedding']))),
            r'terms.fit.adapter: no adapter bridges \(2, 4, 4, 4\) of the student and \(2, 8\) of',
        ),
        (dict(teacher=None), 'terms.kd compares with a teacher and there is none: set teacher'),
        (
            dict(terms=dict(kd=dict(type='KLDivLoss', at='logits', teacher=1))),
            'terms.kd.teacher is 1 and the last of the 1 teachers is 0',
        ),
        (
            dict(student=torch.nn.Conv2d(3, 4, 1)),
            r'Conv2d returns a Tensor of shape \(2, 4, 8, 8\), and a classifier returns logits of',
        ),
        (
            dict(student='resnet18_8xb32_in2k'),
            "student: 'resnet18_8xb32_in2k' is no model of mmpretrain",
        ),
        (
            dict(terms={}, student_weight=0, teacher=None),
            'student_weight is 0 and there are no terms',
        ),
        *(
            (dict(terms=each), 'terms is .*; .* a model with a teacher needs at least one')
            for each in ({}, [])
        ),
        (dict(terms=[3], teacher=None), r'terms is \[3\]; it must be a dict of terms'),
        (dict(terms=dict(tau=3)), 'terms.tau is 3; it must be a dict of the arguments of a term'),
        *(
            (
                dict(student_weight=each),
                'student_weight is .*; it must be a finite number of at least 0',
            )
            for each in (None, [], float('nan'), float('inf'), True, '1', -1)
        ),
        *(
            (dict(input_size=each), 'input_size is .*; it must be an integer of at least 1, or two')
            for each in (0, [], (8, 8, 8), 8.0, True)
        ),
        (dict(compile='yes'), "compile is 'yes'; it must be True or False"),
        (dict(channels_last=1), 'channels_last is 1; it must be True or False'),
        (
            dict(terms=dict(cat=dict(type='CATLoss', at='features')), student=classifier(8)),
            "terms.cat.at: CATLoss compares class maps, and tap 'features' holds 8 channels for the "
            "student's 4 classes; use the tap 'cam'",
        ),
    ],
)
def test_a_wrong_config_is_one_sentence(change, message):
    with pytest.raises(ValueError, match=message) as error:
        distiller(**change)
    assert '\n' not in str(error.value).strip()


def test_no_teacher_file_stops_before_the_first_iteration(tmp_path):
    missing = str(Path(tmp_path, 'teacher.pth'))
    model = distiller(teacher=dict(model=classifier(8), checkpoint=missing))
    with pytest.raises(
        FileNotFoundError, match=f'teacher.checkpoint: there is no file .*{missing}'
    ):
        model.init_weights()
    with pytest.raises(FileNotFoundError, match='teacher.checkpoint'):
        model.train()(*batch(), mode='loss')
    with pytest.raises(ValueError, match='the teacher has no weights: set teacher.checkpoint'):
        distiller().init_weights()


def test_a_transformer_teaches_a_convolutional_network_and_learns_from_it():
    vit = dict(
        type='ImageClassifier',
        backbone=dict(type='VisionTransformer', arch='deit-tiny', img_size=32, patch_size=8),
        head=dict(type='VisionTransformerClsHead', num_classes=4, in_channels=192),
    )
    cnn, tokens = 'backbone.body', 'backbone.layers.11'
    images, samples = batch(4, size=32)
    for student, teacher, at, widths in (
        (classifier(4), vit, (cnn, tokens), (4, 192)),
        (vit, classifier(4), (tokens, cnn), (192, 4)),
    ):
        terms = dict(
            kd=dict(type='KLDivLoss', at='logits'),
            fit=dict(type='MSELoss', at=at),
            at=dict(type='ATLoss', at=at),
        )
        model = distiller(
            terms, student=student, teacher=dict(model=teacher), input_size=32
        ).train()
        assert model.terms['fit'].adapter.project.weight.shape[:2] == widths[::-1]
        losses = model(images, samples, mode='loss')
        total(losses).backward()
        assert all(torch.isfinite(value) and value > 0 for value in losses.values())
        assert all(p.grad is not None for p in model.parameters())


def test_a_term_without_gradient_is_refused():
    """As with a frozen backbone or a detached explanation: it would silently train nothing."""
    model = distiller(dict(fit=dict(type='MSELoss', at='features'))).train()
    images, samples = batch()
    model.student.backbone.requires_grad_(False)
    with pytest.raises(
        ValueError, match="terms.fit: no gradient .* the value at tap 'features' is detached"
    ):
        model.loss(images, samples)
    with torch.no_grad():
        model.loss(images, samples)
    model.eval().loss(images, samples)


class DetachedLoss(torch.nn.Module):
    compares = 'logits'

    def forward(self, student, teacher, target=None):
        return (student.detach() - teacher).square().mean()


def test_a_loss_that_detaches_is_refused():
    model = distiller(dict(kd=dict(type='KLDivLoss', at='logits'))).train()
    model.terms['kd'].loss = DetachedLoss()
    with pytest.raises(ValueError, match='terms.kd: no gradient .* its loss is detached'):
        model.loss(*batch())


def test_terms_share_class_maps(monkeypatch):
    terms = {
        name: dict(type='ExpKDLoss', at='cam', channel_reduce=name) for name in ('mean', 'sum')
    }
    model, calls = distiller(terms).train(), []
    einsum = torch.einsum
    monkeypatch.setattr(torch, 'einsum', lambda *args: calls.append(args) or einsum(*args))
    losses = model(*batch(), mode='loss')
    assert len(calls) == 2  # of the student and of the teacher
    total(losses).backward()
    monkeypatch.undo()
    alone = distiller(dict(mean=terms['mean'])).train()
    alone.load_state_dict(model.state_dict())
    alone.teachers = model.teachers
    assert torch.equal(alone(*batch(), mode='loss')['loss_mean'], losses['loss_mean'])
