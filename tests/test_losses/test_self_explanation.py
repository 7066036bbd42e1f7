"""IntrospectiveLoss: numbers by hand, what it leaves alone, where it looks, and what it refuses."""

import copy
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from mmengine.logging import MessageHub
from mmpretrain.structures import DataSample
from tiny import batch, classifier, distiller, total
from torch import nn

from mmkdx.explain.layouts import Layout
from mmkdx.functional import ClassMaps
from mmkdx.functional.self_explanation import class_similarity, soft_targets
from mmkdx.losses import IntrospectiveLoss
from mmkdx.registry import MODELS

FEATURES = torch.tensor([[[[1.0, 0.0], [0.0, 2.0]], [[0.0, 3.0], [1.0, 0.0]]]])
WEIGHT = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
FIRST = torch.tensor([0])


@pytest.fixture(autouse=True)
def fresh_counters(monkeypatch):
    """Keeps the counters of other runners out."""
    monkeypatch.setattr(MessageHub, '_instance_dict', type(MessageHub._instance_dict)())


def maps(n: int = 4, channels: int = 6, size: int = 3, classes: int = 5) -> ClassMaps:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(n, channels, size, size, generator=generator, dtype=torch.float64)
    weight = torch.randn(classes, channels, generator=generator, dtype=torch.float64)
    return ClassMaps(features.requires_grad_(), weight.requires_grad_())


def student(at='cam', **settings) -> nn.Module:
    """A distiller that teaches itself."""
    term = dict(type='IntrospectiveLoss', at=at, **settings)
    return distiller(dict(il=term), teacher=None, student_weight=0.0)


@MODELS.register_module()
class TwoLayerHead(nn.Module):
    """A head without a closed form: a hidden layer, or attention over positions."""

    def __init__(self, channels: int, attention: bool = False, norm: bool = False) -> None:
        super().__init__()
        self.query = nn.Linear(channels, 1) if attention else None
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.hidden = nn.Linear(channels, channels)
        self.norm = nn.BatchNorm1d(channels) if norm else nn.Identity()
        self.fc = nn.Linear(channels, 4)

    def forward(self, feats):
        """The logits (N, K) of feature maps."""
        feats = feats[-1]
        if self.query is None:
            feats = self.pool(feats).flatten(1)
        else:
            tokens = feats.flatten(2).transpose(1, 2)
            feats = (self.query(tokens).softmax(1) * tokens).sum(1)
        return self.fc(self.norm(self.hidden(feats)).relu())


def other_head(**head) -> dict:
    config = classifier(8)
    config.update(neck=None, head=dict(type='TwoLayerHead', channels=8, **head))
    return config


# Numbers


@pytest.mark.parametrize(
    'temperature, expected, gradient',
    [
        (1, 0.279521, (-0.284759, 0.209728, 0.075031)),
        (4, 4.329152, (-1.128922, 0.635356, 0.493566)),
    ],
)
def test_loss_and_gradient_of_the_toy(monkeypatch, temperature, expected, gradient):
    target = torch.tensor([[0.9, 0.07, 0.03]])
    monkeypatch.setattr('mmkdx.losses.self_explanation.soft_targets', lambda *_: target)
    features = torch.tensor([[[[2.0]], [[1.0]], [[0.0]]]], requires_grad=True)
    loss = IntrospectiveLoss(lam=0.5, temperature=temperature)
    value = loss(ClassMaps(features, torch.eye(3)), FIRST)
    assert value.item() == pytest.approx(expected, abs=1e-6)
    value.backward()
    assert features.grad.flatten().tolist() == pytest.approx(gradient, abs=1e-6)


def test_without_soft_targets_it_is_cross_entropy():
    value, target = maps(), torch.tensor([1, 0, 4, 4])
    for settings in (dict(lam=0), dict(eps=0), dict(warmup=dict(type='linear', end=9))):
        loss = IntrospectiveLoss(**settings)(value, target)
        plain = F.cross_entropy(value.logits(), target)
        torch.testing.assert_close(loss, plain, atol=1e-12, rtol=0)
        found, expected = (
            torch.autograd.grad(each, value.features, retain_graph=True)[0]
            for each in (loss, plain)
        )
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_targets_without_a_label_part_are_finite():
    value, target = maps(), torch.tensor([1, 0, 4, 4])
    loss = IntrospectiveLoss(eps=1, tau=1e-3)(value, target)
    loss.backward()
    assert loss.isfinite() and value.features.grad.isfinite().all()


def test_a_softened_target_is_that_of_knowledge_distillation():
    value, target = maps(), torch.tensor([1, 0, 4, 4])
    settings = dict(mode='softmax', tau=0.5, temperature=3.0)
    similarity = class_similarity(value.features, value.weight, target)
    teacher = (similarity / 0.5).detach()
    kd = F.kl_div(
        F.log_softmax(value.logits() / 3, 1), F.softmax(teacher / 3, 1), reduction='batchmean'
    )
    loss = IntrospectiveLoss(soften_target=True, **settings)(value, target)
    torch.testing.assert_close(loss, 9 * kd, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    'detach, gradient',
    [
        (True, ((-0.3294, -0.4392), (0.1276, 0.1702), (0.2017, 0.2690))),
        (False, ((-0.3294, -1.5433), (-0.0618, 0.1702), (-0.0400, 0.5107))),
    ],
)
@pytest.mark.parametrize('closed', [True, False])
def test_targets_are_constants_by_default(closed, detach, gradient):
    features, weight = FEATURES.clone(), WEIGHT.clone().requires_grad_()
    settings = dict(mode='softmax', tau=0.5, center=False, **({} if detach else dict(detach=False)))
    value = ClassMaps(features, weight)
    if not closed:
        features.requires_grad_()
        value = [features, features.mean((2, 3)) @ weight.T]
    loss = IntrospectiveLoss(**settings)(value, FIRST)
    assert loss.item() == pytest.approx(0.461145, abs=1e-6)
    loss.backward()
    assert weight.grad.flatten().tolist() == pytest.approx(sum(gradient, ()), abs=1e-4)


def test_what_is_logged():
    value, target = maps(), torch.tensor([1, 0, 4, 4])
    loss = IntrospectiveLoss(tau=0.5, lam=0.7, eps=0.6)
    loss(value, target)
    similarity = class_similarity(value.features, value.weight, target).detach()
    q = soft_targets(similarity, target, eps=0.6, tau=0.5)
    means, spreads, entropies = [], [], []
    for row, share, label in zip(similarity, q, target.tolist()):
        others = [k for k in range(5) if k != label]
        means.append(row[others].mean().item())
        spreads.append(row[others].std(unbiased=False).item())
        p = share[others] / 0.6
        entropies.append(-(p * p.log()).sum().item())
    logs = {key: value.item() for key, value in loss.logs.items()}
    assert logs == pytest.approx(
        dict(
            similarity=sum(means) / 4,
            spread=sum(spreads) / 4,
            entropy=sum(entropies) / 4,
            other=(q.argmax(1) != target).double().mean().item(),
            lam=0.7,
        )
    )
    assert 0 < logs['other']
    loss(value, target[:1].expand(4))
    IntrospectiveLoss(eps=0)(value, target)  # nothing to share


# Averages of classes


def test_class_averages_move(monkeypatch):
    rows = iter([torch.tensor([[1, 0.1, 0.3], [1, 0.3, 0.5], [0.2, 0.4, 1]])])
    loss = IntrospectiveLoss(level='class')
    loss.connect(ClassMaps(torch.zeros(3, 2, 1, 1), WEIGHT), None)
    assert torch.equal(loss.averages, torch.eye(3)) and 'averages' in loss.state_dict()
    monkeypatch.setattr(loss, 'similarity', lambda *_: next(rows))
    features = torch.randn(3, 2, 1, 1)
    loss(ClassMaps(features, WEIGHT), torch.tensor([0, 0, 2]))
    expected = torch.tensor([[1, 0.02, 0.04], [0, 1, 0], [0.02, 0.04, 1]])
    torch.testing.assert_close(loss.averages, expected)
    again = IntrospectiveLoss(level='class')
    again.connect(ClassMaps(torch.zeros(3, 2, 1, 1), WEIGHT), None)
    again.load_state_dict(loss.state_dict())
    assert torch.equal(again.averages, loss.averages)


def test_all_images_of_a_class_have_its_target_and_evaluation_moves_nothing(monkeypatch):
    targets = []

    def keep(similarity, *args):
        targets.append(similarity.clone())
        return soft_targets(similarity, *args)

    monkeypatch.setattr('mmkdx.losses.self_explanation.soft_targets', keep)
    value, target = maps(), torch.tensor([1, 0, 1, 4])
    loss = IntrospectiveLoss(level='class').double()
    loss.connect(value, None)
    loss(value, target)
    assert torch.equal(targets[0][0], targets[0][2]) and targets[0][0, 1] == 1
    before = loss.averages.clone()
    loss.eval()(value, target)
    assert torch.equal(loss.averages, before) and torch.equal(targets[1], targets[0])


# Warm-up


def factors(loss: IntrospectiveLoss, unit: str, steps: int) -> list[float]:
    hub, value = MessageHub.get_current_instance(), maps()
    found = []
    for step in range(steps):
        hub.update_info(unit, step)
        loss(value, torch.tensor([1, 0, 4, 4]))
        found.append(loss.logs['lam'].item())
    return found


def test_the_loss_grows_over_the_first_epochs():
    hub = MessageHub.get_current_instance()
    hub.update_info('max_epochs', 80)
    expected = [0, 0.25, 0.5, 0.75, 1, 1]
    assert factors(IntrospectiveLoss(), 'epoch', 6) == pytest.approx(expected)  # 5 % of 80
    assert factors(IntrospectiveLoss(warmup=2, lam=0.5), 'epoch', 4) == [0, 0.25, 0.5, 0.5]
    assert factors(IntrospectiveLoss(warmup=1), 'epoch', 3) == [0, 1, 1]
    assert factors(IntrospectiveLoss(warmup=0), 'epoch', 2) == [1, 1]
    sigmoid = IntrospectiveLoss(warmup=dict(type='sigmoid', end=5))
    assert factors(sigmoid, 'epoch', 5) == pytest.approx(
        [0.00674, 0.06006, 0.28650, 0.73162, 1], abs=1e-5
    )
    hub.update_info('max_epochs', 12)
    assert factors(IntrospectiveLoss(), 'epoch', 3) == [0, 1, 1]  # one epoch at least
    # A resumed run counts on
    hub.update_info('max_epochs', 80)
    hub.update_info('epoch', 3)
    loss = IntrospectiveLoss()
    loss(maps(), torch.tensor([1, 0, 4, 4]))
    assert loss.logs['lam'] == 0.75


def test_a_run_without_epochs_counts_iterations():
    hub = MessageHub.get_current_instance()
    hub.update_info('max_epochs', 1)
    hub.update_info('max_iters', 40)
    assert factors(IntrospectiveLoss(), 'iter', 4) == [0, 0.5, 1, 1]


def test_without_a_runner_nothing_warms_up():
    loss = IntrospectiveLoss()
    loss(maps(), torch.tensor([1, 0, 4, 4]))
    assert loss.logs['lam'] == 1


# In a distiller


@pytest.mark.parametrize('explainer', ['weight', 'cam', 'grad_act'])
def test_a_student_is_taught_by_itself(explainer):
    torch.manual_seed(0)
    model = student(explainer=explainer).train()
    images, samples = batch()
    before = model.student.backbone.stem[1].running_mean.clone()
    count = model.student.backbone.stem[1].num_batches_tracked.item()
    losses = model(images, samples, mode='loss')
    assert set(losses) == {
        'loss_il',
        *(f'il.{key}' for key in ('similarity', 'spread', 'entropy', 'other', 'lam')),
    }
    assert all(parameter.grad is None for parameter in model.parameters())
    total(losses).backward()
    assert all(parameter.grad is not None for parameter in model.student.parameters())
    assert not torch.equal(model.student.backbone.stem[1].running_mean, before)
    assert model.student.backbone.stem[1].num_batches_tracked == count + 1
    # The value by hand
    features = {}
    hook = model.student.backbone.register_forward_hook(
        lambda _, args, out: features.update(a=out[-1])
    )
    logits = model(images)
    hook.remove()
    target = torch.cat([sample.gt_label for sample in samples])
    weight = model.student.head.fc.weight
    q = soft_targets(class_similarity(features['a'], weight, target, explainer), target)
    expected = F.kl_div(logits.log_softmax(1), q, reduction='batchmean')
    assert losses['loss_il'].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    'at, explainer', [(['features', 'logits'], 'cam'), (['backbone.body', 'logits'], 'grad_act')]
)
def test_a_layer_in_front_of_gap_and_linear_gives_the_closed_form(at, explainer):
    images, samples = batch()
    values = []
    for place in ('cam', at):
        torch.manual_seed(0)
        model = student(place, explainer=explainer).train()
        loss = model(images, samples, mode='loss')
        total(loss).backward()
        gradient = model.student.backbone.stem[0].weight.grad
        values.append((loss['loss_il'].item(), loss['il.spread'].item(), gradient))
    assert values[0][:2] == pytest.approx(values[1][:2], rel=1e-4)
    torch.testing.assert_close(values[0][2], values[1][2], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('explainer', ['input_grad', 'input_x_grad'])
@pytest.mark.parametrize('probes', [None, pytest.param(400, marks=pytest.mark.slow)])
def test_pixels_are_explained_one_image_at_a_time(explainer, probes):
    torch.manual_seed(0)
    model = student('logits', explainer=explainer, probes=probes).train()
    images, samples = batch()
    loss = model.terms['il'].loss
    target = torch.cat([sample.gt_label for sample in samples])
    buffers = copy.deepcopy(dict(model.student.named_buffers()))
    torch.manual_seed(1)
    whole = loss.similarity(torch.zeros(6, 4), target, images, model.student)
    other = images.clone()
    other[1] = torch.randn(3, 8, 8)
    torch.manual_seed(1)
    changed = loss.similarity(torch.zeros(6, 4), target, other, model.student)
    assert torch.equal(whole[0], changed[0]) and not torch.equal(whole[1], changed[1])
    assert all(torch.equal(value, buffers[key]) for key, value in model.student.named_buffers())
    assert model.student.training and model.student.backbone.stem[1].training
    assert all(parameter.grad is None for parameter in model.parameters())
    # By the Jacobian of each image, in eval mode
    model.eval()
    for i, label in enumerate(target.tolist()):
        rows = torch.autograd.functional.jacobian(lambda x: model(x[None])[0], images[i])
        rows = (rows - rows.mean(0)) * (images[i] if explainer == 'input_x_grad' else 1)
        expected = F.cosine_similarity(rows.flatten(1), rows[label].flatten()[None], dim=1)
        tolerance = dict(atol=1e-5, rtol=0) if probes is None else dict(atol=0.25, rtol=0)
        torch.testing.assert_close(whole[i], expected, **tolerance)
    # A step moves batch norm once
    model.train()
    count = model.student.backbone.stem[1].num_batches_tracked.item()
    losses = model(images, samples, mode='loss')
    assert model.student.backbone.stem[1].num_batches_tracked == count + 1
    total(losses).backward()
    assert all(parameter.grad is not None for parameter in model.student.parameters())


@pytest.mark.parametrize('explainer', ['cam', 'weight'])
def test_one_image_and_two_classes(explainer):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        model = distiller(
            dict(il=dict(type='IntrospectiveLoss', at='cam', explainer=explainer)),
            student=classifier(4, classes=2),
            teacher=None,
            student_weight=0.0,
        )
    messages = [str(each.message) for each in caught]
    assert any("with two classes mode 'mass' gives eps to the one other" in m for m in messages)
    total(model.eval()(*batch(1), mode='loss')).backward()
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        loss = IntrospectiveLoss(mode='softmax', level='class')
        loss.connect(ClassMaps(torch.zeros(1, 4, 2, 2), torch.zeros(2, 4)), None)


# Heads without a closed form


def test_auto_takes_the_closed_form_where_there_is_one(caplog):
    assert student('auto').terms['il'].student_tap == 'cam'
    assert student('auto', explainer='input_grad').terms['il'].student_tap == 'logits'
    assert not caplog.text


@pytest.mark.parametrize('attention', [False, True])
def test_auto_explains_other_heads_by_gradients(attention, monkeypatch):
    said = []
    monkeypatch.setattr(
        'mmkdx.losses.self_explanation.print_log', lambda text, **_: said.append(text)
    )
    torch.manual_seed(0)
    config = dict(type='IntrospectiveLoss', at='auto', explainer='grad_act')
    model = distiller(
        dict(il=config), student=other_head(attention=attention), teacher=None, student_weight=0.0
    )
    place = model.terms['il'].student_tap
    assert place[1] == 'logits' and place[0].startswith('backbone')
    assert len(said) == 1
    assert ('pools by attention' if attention else 'is not GAP + linear') in said[0]
    assert f'layer {place[0]!r} is explained by gradients' in said[0]
    losses = model.train()(*batch(), mode='loss')
    total(losses).backward()
    assert losses['il.spread'] > 0
    assert all(parameter.grad is not None for parameter in model.student.backbone.parameters())


@pytest.mark.parametrize('explainer', ['cam', 'grad_act'])
def test_transformers(explainer):
    torch.manual_seed(0)
    vit = dict(
        type='ImageClassifier',
        backbone=dict(
            type='VisionTransformer',
            arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32),
            img_size=16,
            patch_size=4,
        ),
        head=dict(type='VisionTransformerClsHead', num_classes=4, in_channels=16),
    )
    term = dict(type='IntrospectiveLoss', at='auto', explainer=explainer)
    model = distiller(dict(il=term), student=vit, teacher=None, student_weight=0.0, input_size=16)
    losses = model.train()(*batch(size=16), mode='loss')
    total(losses).backward()
    assert losses['il.spread'] > 0
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_maps_with_the_channels_last():
    """As Swin's: the layout is that of the layer that was found."""
    torch.manual_seed(0)
    features, weight = torch.randn(2, 3, 3, 6, requires_grad=True), torch.randn(4, 6)
    target = torch.tensor([1, 3])
    loss = IntrospectiveLoss()
    loss._layout = Layout((3, 3), 'nhwc')
    found = loss.similarity([features, features.mean((1, 2)) @ weight.T], target)
    expected = class_similarity(features.permute(0, 3, 1, 2), weight, target).detach()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_batch_norm_behind_the_layer_is_refused_when_it_trains():
    config = dict(type='IntrospectiveLoss', at=['backbone.body', 'logits'])
    model = distiller(
        dict(il=config), student=other_head(norm=True), teacher=None, student_weight=0.0
    )
    with pytest.raises(ValueError, match='a batch norm in training mixes the images between the'):
        model.train()(*batch(), mode='loss')
    model.train().student.head.eval()
    model(*batch(), mode='loss')


def test_tokens():
    torch.manual_seed(0)
    tokens = torch.randn(2, 10, 6, requires_grad=True)
    weight = torch.randn(4, 6)
    target = torch.tensor([1, 3])
    loss = IntrospectiveLoss()
    student = [tokens, tokens[:, 1:].mean(1) @ weight.T]
    for image, size in [((12, 12), (3, 3)), ((18, 2), (9, 1))]:
        found = loss.similarity(student, target, torch.zeros(2, 3, *image))
        grid = tokens[:, 1:].transpose(1, 2).unflatten(2, size)
        expected = class_similarity(grid, weight, target).detach()
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match='10 tokens do not fill a grid of 1 to 3, as the images,'):
        loss.similarity(student, target, torch.zeros(2, 3, 8, 24))


# Bad input


@pytest.mark.parametrize(
    'settings, message',
    [
        (
            dict(explainer='lime'),
            "explainer is 'lime'; it must be one of weight, cam, grad_act, input",
        ),
        (dict(mode='hard'), "mode is 'hard'; it must be one of mass, softmax"),
        (dict(level='batch'), "level is 'batch'; it must be one of sample, class"),
        (dict(eps=-0.1), 'eps is -0.1; it must be a finite number '),
        (dict(lam=2), 'lam is 2; it must be a finite number '),
        (dict(tau=0), 'tau is 0; it must be a finite number above 0'),
        (dict(temperature=-1), 'temperature is -1; it must be a finite number above 0'),
        (dict(momentum=1), 'momentum is 1; it must be a finite number of at least 0 and below 1'),
        (dict(candidates=0), 'candidates is 0; it must be an integer of at least 1'),
        (dict(chunk=0), 'chunk is 0; it must be an integer of at least 1'),
        (dict(probes=0), 'probes is 0; it must be an integer of at least 1'),
        (
            dict(relu=True, explainer='weight'),
            "relu is for the explainer 'cam', and it is 'weight'",
        ),
        (
            dict(probes=8),
            "probes is for the explainers 'input_grad' and 'input_x_grad'.*'cam', True",
        ),
        (dict(probes=8, explainer='input_grad', detach=False), "'input_grad', False and None"),
        (dict(probes=8, explainer='input_grad', candidates=3), "'input_grad', True and 3"),
        (
            dict(level='class', detach=False),
            "level 'class' keeps averages of past similarities; set detach=True",
        ),
        (dict(warmup=-1), 'warmup is -1; it must be an integer of at least 0'),
        (dict(warmup=dict(type='step', end=3)), "warmup.type is 'step'"),
        (dict(warmup={}), "warmup: .* missing 1 required positional argument: 'type'"),
    ],
)
def test_bad_arguments(settings, message):
    with pytest.raises(ValueError, match=message):
        IntrospectiveLoss(**settings)


@pytest.mark.parametrize(
    'at, settings, message',
    [
        (
            'logits',
            dict(),
            "^terms.il.at: IntrospectiveLoss: with the explainer 'cam' the tap must",
        ),
        ('cam', dict(explainer='input_grad'), "explainer 'input_grad' the tap must be 'logits'"),
        (['features'], dict(), "'cam', a layer and 'logits' as a list, or 'auto'"),
        (['logits', 'features'], dict(), "'cam', a layer and 'logits' as a list, or 'auto'"),
    ],
)
def test_taps_that_cannot_be_explained(at, settings, message):
    with pytest.raises(ValueError, match=message):
        student(at, **settings)


def test_a_head_without_the_closed_form_is_refused_at_cam():
    with pytest.raises(ValueError, match='IntrospectiveLoss: the student is not GAP \\+ linear'):
        distiller(
            dict(il=dict(type='IntrospectiveLoss', at='cam')),
            student=other_head(),
            teacher=None,
            student_weight=0.0,
        )


def test_mixed_and_multiple_labels():
    images, _ = batch()
    mixed = [DataSample().set_gt_score(torch.full((4,), 0.25)) for _ in images]
    with pytest.raises(
        ValueError, match='terms.il: IntrospectiveLoss needs one class an image and'
    ):
        student()(images, mixed, mode='loss')
    several = [DataSample().set_gt_label([0, 2]) for _ in images]
    with pytest.raises(
        ValueError, match='terms.il: .* one label an image, .* 2, 2, 2, 2, 2, 2 labels'
    ):
        student()(images, several, mode='loss')
    with pytest.raises(
        ValueError, match='terms.il: IntrospectiveLoss needs the labels of the images'
    ):
        student()(images, mode='loss')


def test_half_precision_steps():
    torch.manual_seed(0)
    for at, settings in (
        ('cam', {}),
        (['features', 'logits'], {}),
        ('logits', dict(explainer='input_grad')),
        ('logits', dict(explainer='input_grad', probes=2)),
    ):
        model = student(at, **settings).train()
        images, samples = batch()
        with torch.autocast('cpu', torch.bfloat16):
            losses = model(images, samples, mode='loss')
        assert losses['loss_il'].dtype == torch.float32
        total(losses).backward()
        assert math.isfinite(model.student.backbone.stem[0].weight.grad.sum().item())
