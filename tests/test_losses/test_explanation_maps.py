"""ExplanationMapLoss: maps of any two explainers, of models of any two families."""

import copy
import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import mmengine.runner
import pytest
import torch
import torch.nn.functional as F
from attending import Sines
from tiny import batch, build, classifier, distiller, run_ranks, total
from torch import nn

from mmkdx.distillation import Teacher
from mmkdx.explain import build_explainer
from mmkdx.explain.base import explainer_names
from mmkdx.functional import resize_maps
from mmkdx.losses import ExplanationMapLoss
from mmkdx.registry import EXPLAINERS

GUIDE = Path(__file__).parents[2] / 'docs/en/user_guides/losses.md'


def tensor(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def approx(value):
    return pytest.approx(value, rel=2e-9)


ARCH = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=16)


def vit(kind='VisionTransformer', head='VisionTransformerClsHead', **backbone) -> dict:
    """The config of a transformer of two layers, 16 patches and a class token."""
    backbone = {**dict(type=kind, arch=ARCH, img_size=32, patch_size=8), **backbone}
    head = dict(type=head, num_classes=4, in_channels=16)
    return dict(type='ImageClassifier', backbone=backbone, head=head)


SWIN = dict(
    classifier(),
    backbone=dict(
        type='SwinTransformer',
        arch=dict(embed_dims=8, depths=[1, 1], num_heads=[1, 2]),
        **dict(img_size=32, patch_size=4, window_size=4, out_indices=(1,)),
    ),
    head=dict(type='LinearClsHead', num_classes=4, in_channels=16),
)


def torchvision_vit() -> nn.Module:
    """torchvision's transformer, whose last layer is 0 when it is built."""
    models = pytest.importorskip('torchvision.models')
    sizes = dict(num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=16, num_classes=4)
    torch.manual_seed(0)
    model = models.VisionTransformer(32, 8, **sizes)
    nn.init.normal_(model.heads.head.weight)
    return model


def map_distiller(student=None, teacher=None, **term):
    """A distiller of random models with this loss alone, and images of 32 pixels."""
    torch.manual_seed(0)
    teacher = teacher or dict(model=classifier(8), normalize='same')
    kind = dict(type='ExplanationMapLoss', at='logits')
    return distiller(
        dict(maps={**kind, **term}),
        **dict(student=student or vit(), teacher=teacher, input_size=32),
    ).train()


def step(model, autocast=False):
    """The losses of a step in training, and the gradients of the term alone."""
    torch.manual_seed(1)
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        losses = model(*batch(3, 32), 'loss')
    gradients = torch.autograd.grad(
        losses['loss_maps'], list(model.student.parameters()), retain_graph=True, allow_unused=True
    )
    return losses, gradients


def assert_trains(gradients):
    found = [each for each in gradients if each is not None]
    assert all(each.isfinite().all() for each in found)
    # No map depends on the last bias, and little else has no gradient
    assert sum(bool(each.any()) for each in found) >= 0.5 * len(gradients)


TOKENS = dict(explainer='GradientRollout', teacher_explainer='GradCAM')


# Exact values

A, B = tensor([1, 0], [0, 2]), tensor([1, 0, 0], [0, 1, 0], [0, 0, 3])


def between(student, teacher, **arguments):
    return ExplanationMapLoss(**arguments).distance_between(student[None], teacher[None]).item()


def test_cosine():
    assert between(A, B, size=4) == pytest.approx(0.0866177545, rel=1e-6)
    enlarged = tensor([1, 0.5, 0], [0.5, 0.75, 1], [0, 1, 2])
    expected = 1 - (1 + 0.75 + 6) / (enlarged.norm().item() * 11**0.5)
    assert between(A, B) == between(B, A) == approx(expected)
    assert between(A, 7 * A) == pytest.approx(0, abs=1e-12)


def test_l1():
    unit = tensor([1, 0], [0, 2]) / 5**0.5, tensor([3, 4], [0, 0]) / 5
    expected = sum((a - b).abs().sum() for a, b in [unit])
    assert between(A, tensor([3, 4], [0, 0]), distance='l1') == approx(expected.item())
    assert between(A, 9 * A, distance='l1') == pytest.approx(0, abs=1e-12)


def test_a_size_below_the_maps_takes_means():
    four = tensor([1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 2, 2], [0, 0, 2, 2])
    assert between(four, A, size=2) == pytest.approx(0, abs=1e-12)


def test_maps_of_other_proportions_meet_at_the_larger_of_each_side():
    tall, wide = tensor([1], [3]), tensor([1, 3])
    enlarged = tensor([1, 1], [3, 3]), tensor([1, 3], [1, 3])
    expected = 1 - (enlarged[0] * enlarged[1]).sum().item() / 20
    assert between(tall, wide) == approx(expected)


def test_negative_evidence():
    signed, other = tensor([1, -2], [0, 2]), tensor([1, 2], [0, 2])
    assert between(signed, other) == approx(1 - 5 / (5 * 9) ** 0.5)
    assert between(signed, other, relu=False) == approx(1 - (1 - 4 + 4) / 9)


@pytest.mark.parametrize('distance, most', [('cosine', 1), ('l1', 2**0.5)])
def test_a_zero_map_has_similarity_0_and_no_gradient(distance, most):
    loss = ExplanationMapLoss(distance=distance)
    zero = (-torch.ones(2, 2, 2)).requires_grad_()
    value = loss.distance_between(zero, torch.eye(2).repeat(2, 1, 1))
    assert value.item() == pytest.approx(most)
    assert (loss.logs['dead'].item(), loss.logs['teacher_dead'].item()) == (1, 0)
    assert not torch.autograd.grad(value, zero)[0].any()


@pytest.mark.parametrize('distance', ['cosine', 'l1'])
def test_maps_of_small_numbers_count_as_others_do(distance):
    large, small = (scale * torch.eye(2)[None] for scale in (1, 1e-10))
    loss = ExplanationMapLoss(distance=distance)
    assert loss.distance_between(large, small).item() == pytest.approx(0, abs=1e-6)
    assert loss.logs['dead'].item() == loss.logs['teacher_dead'].item() == 0


# Gradients


def of_pair(student, explainer, **arguments):
    """The loss of a student in double precision as a function without arguments."""
    teacher, images = Sines('all', spread=0.5), Sines.images(2)
    with torch.no_grad():
        teacher.head.copy_(teacher.head.flip(0))
    loss = ExplanationMapLoss(explainer, **arguments)
    holder = SimpleNamespace(model=teacher.requires_grad_(False), convert=lambda x: x)
    logits = teacher(images)
    return lambda: loss(logits, logits, None, images, student, holder)


@pytest.mark.parametrize(
    'explainer, distance',
    [
        ('GradientRollout', 'cosine'),
        ('GradientRollout', 'l1'),
        ('LeGrad', 'cosine'),
        (dict(type='GradCAM', layer='blocks.0'), 'cosine'),
    ],
)
def test_gradients_are_those_of_finite_differences(explainer, distance):
    """Through two layers of attention, whose fused kernel has no second derivative."""
    torch.manual_seed(2)
    student = Sines('class', spread=0.5)
    # The positive part of this layer's maps is zero
    run = of_pair(student, explainer, distance=distance, relu=isinstance(explainer, str))
    parameters = list(student.parameters())
    gradients = torch.autograd.grad(run(), parameters, allow_unused=True)
    generator = torch.Generator().manual_seed(0)
    reached = 0
    for parameter, gradient in zip(parameters, gradients):
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        ends = []
        for side in (1e-6, -1e-6):
            with torch.no_grad():
                parameter.add_(direction, alpha=side)
                ends.append(run().item())
                parameter.sub_(direction, alpha=side)
        slope = 0 if gradient is None else (gradient * direction).sum().item()
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(slope, rel=1e-5, abs=1e-9)
        reached += abs(slope) > 1e-9
    assert reached == len(parameters) - 1  # no map depends on the last bias


# Families

PAIRS = {
    'class token': (vit(), None, TOKENS),
    'distilled': (vit('DistilledVisionTransformer', 'DeiTClsHead'), None, dict(explainer='LeGrad')),
    'tokens of a layer': (vit(), None, dict(explainer='HiResCAM')),
    'window': (SWIN, None, dict(explainer=dict(type='GradientRollout', stage='last'))),
    'torchvision': (torchvision_vit, None, dict(explainer='LeGrad')),
    'timm': (dict(type='timm::test_vit', num_classes=4, img_size=32), None, TOKENS),
    'transformers': (
        dict(
            **dict(type='hf::ViTConfig', hidden_size=8, num_hidden_layers=2, num_classes=4),
            **dict(num_attention_heads=2, intermediate_size=8, image_size=32, patch_size=8),
        ),
        None,
        TOKENS,
    ),
    'convolutions': (classifier(4), vit(), dict(teacher_explainer='GradientRollout')),
    'pixels': (classifier(4), vit(), dict(explainer='InputGradient')),
    'a teacher without gradients': (classifier(4), None, dict(teacher_explainer='ScoreCAM')),
}


@pytest.mark.parametrize('name', PAIRS)
def test_families_meet(name):
    """A student's step is the plain formula of two explainers of models in eval mode."""
    pytest.importorskip(name if name in ('timm', 'transformers') else 'torch')
    student, teacher, term = PAIRS[name]
    student = student() if callable(student) else student
    teacher = dict(model=teacher or classifier(8), normalize='same')
    term = {'explainer': 'GradCAM', 'teacher_explainer': 'GradCAM', **term}
    model = map_distiller(student, teacher, **term)
    losses, gradients = step(model)
    assert_trains(gradients)
    images, teacher = batch(3, 32)[0], model.teachers[0].model
    classes = teacher(images).argmax(1)
    maps = [
        build_explainer(term[key])(each, images, classes).relu()
        for key, each in (('explainer', model.student), ('teacher_explainer', teacher))
    ]
    size = [max(sides) for sides in zip(*(each.shape[1:] for each in maps))]
    flat = [resize_maps(each, size).flatten(1) for each in maps]
    expected = 1 - F.cosine_similarity(*flat).mean().item()
    assert losses['loss_maps'].item() == pytest.approx(expected, abs=1e-5)
    assert losses['maps.dead'].item() == losses['maps.teacher_dead'].item() == 0


def test_equal_models_cost_nothing():
    model = map_distiller(vit(), dict(model=vit(), normalize='same'), explainer='LeGrad')
    model.teachers[0].model.load_state_dict(model.student.state_dict())
    assert step(model)[0]['loss_maps'].item() == pytest.approx(0, abs=1e-6)


# The step


def test_a_second_forward_leaves_the_step_as_it_is():
    """Modes, batch norm, random numbers, the other losses and the teacher are as without the term."""
    student = classifier(4, drop=0.3)
    kd = dict(kd=dict(type='KLDivLoss', at='logits'))
    maps = dict(maps=dict(type='ExplanationMapLoss', at='logits'))
    states = []
    for terms in (kd, {**kd, **maps}):
        torch.manual_seed(0)
        model = distiller(terms, student=student)
        model.train()
        model.student.backbone.stem.eval()  # a mode of its own
        modes = [each.training for each in model.modules()]
        frozen = copy.deepcopy(model.teachers[0].model).state_dict()
        torch.manual_seed(1)
        losses = model(*batch(), 'loss')
        total(losses).backward()
        teacher = model.teachers[0]
        assert modes == [each.training for each in model.modules()]
        assert all(torch.equal(v, frozen[k]) for k, v in teacher.model.state_dict().items())
        assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
        buffers = dict(model.student.named_buffers())
        states.append((losses['loss_kd'], losses['student.loss'], torch.rand(1), buffers))
    assert states[0][:3] == states[1][:3]
    for name, value in states[0][3].items():
        assert torch.equal(value, states[1][3][name]), name


def test_dropout_and_stochastic_depth_are_off():
    drops = dict(drop_rate=0.5, drop_path_rate=0.5)
    attention = dict(layer_cfgs=dict(attn_drop_rate=0.5))
    losses = []
    for backbone in ({}, {**drops, **attention}):
        model = map_distiller(vit(**backbone), **TOKENS)
        losses.append(step(model)[0]['loss_maps'].item())
    assert losses[0] == losses[1]


def test_autocast_explains_in_full_precision():
    model = map_distiller(**TOKENS)
    assert step(model)[0]['loss_maps'] == step(model, autocast=True)[0]['loss_maps']


def test_no_gradient_where_none_is_taken():
    model = map_distiller(**TOKENS)
    expected = step(model)[0]['loss_maps']
    with torch.no_grad():
        loss = model(*batch(3, 32), 'loss')['loss_maps']
    assert loss == expected and not loss.requires_grad
    with torch.inference_mode(), pytest.raises(ValueError, match='explainer: .* no gradient'):
        model(*batch(3, 32), 'loss')


def timm_checkpointing(model):
    model.student.model.set_grad_checkpointing(True)


def config_checkpointing(model):
    layers = [f'student.backbone.layers.{i}' for i in range(2)]
    mmengine.runner.turn_on_activation_checkpointing(model, layers)


@pytest.mark.parametrize('turn_on', [timm_checkpointing, config_checkpointing])
def test_checkpointing_changes_nothing(turn_on):
    student = vit()
    if turn_on is timm_checkpointing:
        pytest.importorskip('timm')
        student = dict(type='timm::test_vit', num_classes=4, img_size=32)
    model = map_distiller(student, **TOKENS)
    expected = step(model)
    turn_on(model)
    found = step(model)
    assert found[0]['loss_maps'] == expected[0]['loss_maps']
    for ours, theirs in zip(found[1], expected[1]):
        assert ours is theirs is None or torch.equal(ours, theirs)


def test_compiled_models_are_explained_as_they_are():
    model = map_distiller(**TOKENS)
    compiled = map_distiller(**TOKENS)
    compiled.student.compile(backend='aot_eager')
    compiled.teachers[0].model.compile(backend='aot_eager')
    images, samples = batch(3, 32)
    term, teacher = compiled.terms['maps'].loss, compiled.teachers[0]
    classes = torch.tensor([0, 1, 2])
    maps = term.explain(images, compiled.student, teacher, classes)
    expected = term.explain(images, model.student, model.teachers[0], classes)
    for ours, theirs in zip(maps, expected):
        torch.testing.assert_close(ours, theirs)
    gradients = torch.autograd.grad(
        maps[0].sum(), list(compiled.student.parameters()), allow_unused=True
    )
    assert_trains(gradients)


DDP = """
import os, sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tiny import batch, classifier, total
from test_explanation_maps import TOKENS, map_distiller

path, rank, world = sys.argv[1], *map(int, sys.argv[2:])
model = map_distiller(**TOKENS)
images, samples = batch(4, 32)
part = slice(rank * 4 // world, (rank + 1) * 4 // world)
dist.init_process_group('gloo', f'file://{path}.store', rank=rank, world_size=world)
run = DistributedDataParallel(model)
for _ in range(2):  # DDP says in the second step what it missed in the first
    model.zero_grad()
    total(run(images[part], samples[part], mode='loss')).backward()
torch.save({name: p.grad for name, p in model.named_parameters()}, f'{path}.{rank}')
"""


def test_two_processes_have_the_gradients_of_one(tmp_path):
    model = map_distiller(**TOKENS)
    total(model(*batch(4, 32), 'loss')).backward()
    both = run_ranks(DDP, tmp_path / 'two', 2)
    one = {name: each.grad for name, each in model.named_parameters()}
    for name, value in one.items():
        assert torch.equal(both[0][name], both[1][name]), name
        torch.testing.assert_close(both[0][name], value, rtol=1e-4, atol=1e-6, msg=name)


# Classes


def test_the_label_can_be_explained():
    images, samples = batch(3, 32)
    model = map_distiller(**TOKENS, target='label')
    term, teacher = model.terms['maps'].loss, model.teachers[0]
    labels = torch.stack([each.gt_label[0] for each in samples])
    maps = term.explain(images, model.student, teacher, labels)
    assert step(model)[0]['loss_maps'] == term.distance_between(*maps)
    predicted = map_distiller(**TOKENS)
    assert not torch.equal(labels, teacher.model(images).argmax(1))
    assert step(model)[0]['loss_maps'] != step(predicted)[0]['loss_maps']
    # Mixed labels explain the weighted logits
    mixed = F.one_hot(labels, 4).float().lerp(torch.full((3, 4), 0.25), 0.5)
    found = term(None, torch.zeros(3, 4), mixed, images, model.student, teacher)
    torch.testing.assert_close(
        found, term.distance_between(*term.explain(images, model.student, teacher, mixed))
    )


def test_classes_of_a_teacher_are_matched_by_name():
    names = ['a', 'b', 'c', 'd']
    plain = map_distiller(teacher=dict(model=classifier(8), normalize='same'), **TOKENS)
    order = [2, 0, 3, 1]
    network = copy.deepcopy(plain.teachers[0].model)
    for part in (network.head.fc.weight, network.head.fc.bias):
        # Class k of the data set is the teacher's class at the place of k in the order
        part.data = part.data[torch.tensor(order).argsort()]
    teacher = Teacher(network, normalize='same', classes=dict(zip(names, order)))
    other = map_distiller(teacher=teacher, **TOKENS)
    teacher.match_classes(names)
    torch.testing.assert_close(step(other)[0]['loss_maps'], step(plain)[0]['loss_maps'])


# Teachers


def test_the_teachers_own_images_and_maps():
    resized = map_distiller(
        teacher=dict(model=classifier(8), normalize='same', resize=48), **TOKENS
    )
    term, teacher = resized.terms['maps'].loss, resized.teachers[0]
    images = batch(3, 32)[0]
    _, maps = term.explain(images, resized.student, teacher, torch.zeros(3, dtype=int))
    assert maps.shape == (3, 24, 24) and not maps.requires_grad
    larger = F.interpolate(images, 48, mode='bilinear', antialias=True)
    expected = build_explainer('GradCAM')(teacher.model, larger, 0)
    torch.testing.assert_close(maps, expected)


def test_a_teacher_in_half_precision_and_one_that_is_an_average():
    full, half = (
        map_distiller(teacher=dict(model=classifier(8), normalize='same', dtype=dtype), **TOKENS)
        for dtype in (None, 'bfloat16')
    )
    losses = [step(each)[0]['loss_maps'] for each in (full, half)]
    torch.testing.assert_close(*losses, rtol=1e-2, atol=0)
    assert losses[0] != losses[1]
    average = map_distiller(classifier(4), dict(type='EMATeacher'), explainer='LayerCAM')
    losses, gradients = step(average)
    assert 0 < losses['loss_maps'] < 0.5
    assert_trains(gradients)


def test_a_cache_has_the_logits_and_its_teacher_is_explained(tmp_path):
    live = dict(model=classifier(8), normalize='same')
    cached = dict(type='CachedTeacher', teacher=live, cache=str(tmp_path))
    losses = [step(map_distiller(teacher=each, **TOKENS))[0] for each in (live, cached)]
    assert losses[0]['loss_maps'] == losses[1]['loss_maps']


# E2KDLoss


def test_e2kd_explains_models_at_the_logits_as_at_a_layer():
    """In eval mode all three places have one value and one gradient."""
    layer = ['backbone.body', 'logits']
    found = []
    for at in ('cam', (layer, layer), 'logits'):
        model = map_distiller(classifier(4), type='E2KDLoss', at=at, size=32).eval()
        found.append(step(model))
    for losses, gradients in found[1:]:
        torch.testing.assert_close(losses, found[0][0], rtol=1e-5, atol=1e-6)
        for ours, theirs in zip(gradients, found[0][1]):
            ours = torch.zeros_like(theirs) if ours is None and theirs is not None else ours
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-7)


def test_e2kd_takes_explainers_of_transformers():
    model = map_distiller(type='E2KDLoss', size=32, **TOKENS)
    same = map_distiller(size=32, **TOKENS)
    (losses, gradients), expected = step(model), step(same)
    assert losses['loss_maps'] == expected[0]['loss_maps']
    assert_trains(gradients)


def test_e2kd_at_a_layer_before_an_attention():
    """The step's own forward then has a second derivative, too."""
    layer = ['backbone.layers.1.ln1', 'logits']
    model = map_distiller(type='E2KDLoss', size=32, at=(layer, ['backbone.body', 'logits']))
    assert_trains(step(model)[1])


# The guide


def test_the_guides_block_runs():
    section = GUIDE.read_text().partition('## Maps of any explainer')[2]
    code = re.findall('```python\n(.*?)```', section, re.DOTALL)[0]
    names = {}
    exec(code, names)
    assert {'loss_kd', 'loss_maps', 'maps.dead', 'maps.teacher_dead'} == set(names['losses'])


# Mistakes


@pytest.mark.parametrize('kind', sorted(explainer_names()))
def test_every_explainer_is_taken_or_refused_by_a_sentence(kind):
    known = EXPLAINERS.get(kind)
    if 'differentiable' in inspect.signature(known).parameters:
        assert ExplanationMapLoss(kind).explainer.differentiable
        assert not ExplanationMapLoss('GradCAM', kind).teacher_explainer.differentiable
    else:
        with pytest.raises(ValueError, match=f'^explainer is {kind}, whose maps have no gradients'):
            ExplanationMapLoss(kind)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(explainer=3), 'explainer is 3; it must be the type of an explainer, or a dict'),
        (dict(explainer='Cam'), "explainer: there is no explainer 'Cam'"),
        (dict(teacher_explainer='Cam'), "teacher_explainer: there is no explainer 'Cam'"),
        (dict(explainer=dict(type='LeGrad', layers=0)), 'explainer: layers is 0; it must be'),
        (
            dict(explainer=dict(type='LeGrad', differentiable=False)),
            'explainer.differentiable is False, and a loss needs gradients; remove it',
        ),
        (
            dict(explainer='AttentionRollout', target='label'),
            "target is 'label', and an explainer makes the same map for all classes",
        ),
        (
            dict(teacher_explainer='EigenCAM', target='label'),
            "target is 'label', and an explainer makes the same map for all classes",
        ),
        (dict(distance='l2'), "distance is 'l2'; it must be one of cosine, l1"),
        (dict(target='labels'), "target is 'labels'; it must be one of pred, label"),
        (dict(size=0), 'size is 0; it must be'),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=f'^{message}'):
        ExplanationMapLoss(**arguments)


def frozen():
    model = build(classifier(4))
    model.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    'student, teacher, term, message',
    [
        (SWIN, None, TOKENS, "compare .*: explainer: GradientRollout needs .* stage='last'"),
        (classifier(4), None, dict(explainer='LeGrad'), 'compare .*: teacher_explainer: LeGrad'),
        (
            classifier(4),
            dict(model=SWIN, normalize='same'),
            dict(teacher_explainer='LeGrad'),
            'compare .*: teacher_explainer: LeGrad needs a transformer',
        ),
        (frozen, None, {}, 'compare .*: explainer: GradCAM: the model carries no gradient'),
        (
            vit(),
            None,
            dict(TOKENS, explainer=dict(type='GradientRollout', layers=3)),
            'compare .*: explainer: .*layers is 3',
        ),
        (
            classifier(4),
            dict(type='TeacherEnsemble', teachers=[classifier(8)]),
            {},
            'compare .*: the teacher is a TeacherEnsemble, and only a single model can be',
        ),
        (classifier(4), dict(model=classifier(8, classes=7)), {}, 'at: .* 4 classes and .* 7'),
        (
            classifier(4),
            dict(model=classifier(8, classes=7)),
            dict(type='E2KDLoss', size=8),
            'compare .*: the student has 4 classes and the teacher 7',
        ),
        (classifier(4), None, dict(at='features'), r'at: .* tap .features. holds \(2, 4, 16, 16\)'),
        (
            classifier(4),
            None,
            dict(type='E2KDLoss', size=8, at=(['features', 'logits'],) * 2, explainer='LeGrad'),
            "compare .*: at a layer and 'logits' the explainer is of the CAM family, and it is LeGrad",
        ),
    ],
)
def test_what_is_refused_before_training(student, teacher, term, message):
    with pytest.raises(ValueError, match=rf'^terms\.maps.*{message}') as error:
        map_distiller(student() if callable(student) else student, teacher, **term)
    assert '\n' not in str(error.value)
