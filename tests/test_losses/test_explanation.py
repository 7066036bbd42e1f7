"""E2KDLoss: the toy of known values, closed form and gradients, and what must be refused."""

import pytest
import torch
import torch.nn.functional as F
from tiny import batch, classifier, distiller, total
from torch import nn

from mmkdx.explain import build_explainer
from mmkdx.functional import ClassMaps
from mmkdx.losses import E2KDLoss, KLDivLoss


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def toy():
    """Maps of 2 × 2 positions of three classes; the teacher predicts the second."""
    student = ClassMaps(
        tensor([[[1, 2], [0, 4]], [[3, 0], [1, 1]]]),
        tensor([1, 0], [1, -1], [-1, 2]),
        tensor(0.1, 0.2, 0.3),
    )
    teacher = ClassMaps(
        tensor([[[2, 0], [1, 3]], [[0, 1], [2, 0]]]), tensor([0, 1], [2, -1], [1, 0.9])
    )
    return student, teacher


def forward(maps: ClassMaps) -> list[torch.Tensor]:
    """The same as activations and logits that depend on them."""
    features = maps.features.clone().requires_grad_()
    return [features, F.linear(features.mean((2, 3)), maps.weight, maps.bias)]


def random_maps(seed=0, n=3, channels=4, size=5, classes=6):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, channels, size, size, generator=generator, dtype=torch.float64)
    weight = torch.randn(classes, channels, generator=generator, dtype=torch.float64)
    return ClassMaps(features.relu(), weight, torch.zeros(classes, dtype=torch.float64))


def approx(value):
    return pytest.approx(value, rel=2e-9)


# Exact values


@pytest.mark.parametrize('as_forward', [False, True])
def test_the_class_that_the_teacher_predicts_is_compared(as_forward):
    student, teacher = toy()
    assert teacher.logits().tolist() == [[0.75, 2.25, pytest.approx(2.175)]]
    assert student.logits().argmax().item() == 0
    values = list(map(forward, (student, teacher))) if as_forward else [student, teacher]
    assert E2KDLoss(2)(*values).item() == approx(4 / 13)


@pytest.mark.parametrize('class_, expected', [(0, 0.1526814543), (2, 0.4849737974)])
def test_other_classes_of_the_student_would_give_other_values(class_, expected):
    student, teacher = toy()
    student.weight = student.weight[[class_] * 3]
    assert E2KDLoss(2)(student, teacher).item() == approx(expected)


@pytest.mark.parametrize('as_forward', [False, True])
def test_gradients_reach_activations_and_the_predicted_classs_weights(as_forward):
    student, teacher = toy()
    parts = student.features, student.weight, student.bias
    for part in parts:
        part.requires_grad_()
    if as_forward:
        value = [student.features * 1, None]
        value[1] = F.linear(value[0].mean((2, 3)), student.weight, student.bias)
        loss = E2KDLoss(2)(value, forward(teacher))
    else:
        loss = E2KDLoss(2)(student, teacher)
    features, weight, bias = torch.autograd.grad(loss, parts, allow_unused=True)
    g = 0.0710059172
    expected = tensor([0, 0], [-g, -g], [0, 0])
    torch.testing.assert_close(weight, expected, atol=1e-9, rtol=0)
    assert bias is None or not bias.any()
    a, b = 0.1065088757, 0.0710059172
    channel = tensor([0, a], [0, -b])
    torch.testing.assert_close(features[0], torch.stack([channel, -channel]), atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    'other, size, expected',
    [
        ([[1, 0, 0], [0, 1, 0], [0, 0, 3]], 4, 0.0866177545),
        ([[1, 0, 0], [0, 1, 0], [0, 0, 3]], 8, 0.0876011303),
        ([[1, 0, 0], [0, 1, 0], [0, 0, 3]], (224, 224), 0.0910711048),
        ([[0, 1], [1, 1]], 2, 0.4836022205),
        ([[0, 1], [1, 1]], 4, 0.2499078469),
        ([[0, 1], [1, 1]], 224, 0.2758820901),
    ],
)
def test_maps_are_compared_at_the_size_of_the_images(other, size, expected):
    student, teacher = (ClassMaps(tensor([maps])) for maps in ([[1, 0], [0, 2]], other))
    # torch takes the step between pixels, 3 / 224, in single precision
    assert E2KDLoss(size)(student, teacher).item() == pytest.approx(expected, rel=1e-6)


def test_total_with_the_divergence_of_the_logits():
    student, teacher = toy()
    kd = KLDivLoss()(student.logits(), teacher.logits())
    assert kd.item() == approx(0.4945977412)
    assert (kd + 5 * E2KDLoss(2)(student, teacher)).item() == approx(2.0330592796)
    assert KLDivLoss(tau=5)(student.logits(), teacher.logits()).item() == approx(0.6435242222)


# Properties


@pytest.mark.parametrize('seed', range(4))
def test_closed_form_equals_gradients(seed):
    maps = random_maps(seed), random_maps(seed + 9, channels=7, size=4)
    results = []
    for as_forward in (False, True):
        student = ClassMaps(
            maps[0].features.clone().requires_grad_(), maps[0].weight.clone().requires_grad_()
        )
        value, teacher = student, maps[1]
        if as_forward:
            value = [student.features * 1, None]
            value[1] = F.linear(value[0].mean((2, 3)), student.weight)
            teacher = forward(teacher)
        loss = E2KDLoss(16)(value, teacher)
        results.append((loss, *torch.autograd.grad(loss, (student.features, student.weight))))
    for closed, general in zip(*results):
        torch.testing.assert_close(closed, general)
    assert results[0][1].any() and results[0][2].any()


def test_same_maps_cost_nothing_and_scale_does_not_matter():
    maps = random_maps()
    assert E2KDLoss(8)(maps, maps).item() == pytest.approx(0, abs=1e-12)
    scaled = ClassMaps(1e-3 * maps.features, maps.weight)
    other = random_maps(5)
    loss = E2KDLoss(8)
    assert loss(scaled, other).item() == approx(loss(maps, other).item())
    assert loss.logs['dead'].item() == loss.logs['teacher_dead'].item() == 0


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_a_zero_map_has_a_finite_loss_and_no_gradient(dtype):
    negative = torch.full((2, 1, 2, 2), -1.0, dtype=dtype, requires_grad=True)
    loss = E2KDLoss(4)
    value = loss(ClassMaps(negative), ClassMaps(torch.eye(2, dtype=dtype).repeat(2, 1, 1, 1)))
    assert value.item() == 1 and loss.logs['dead'].item() == 1
    assert not torch.autograd.grad(value, negative)[0].any()
    assert loss(ClassMaps(negative), ClassMaps(negative.detach())).item() == 1
    assert loss.logs['teacher_dead'].item() == 1


def test_tokens_are_laid_out():
    """Tokens with a class token give the map of their grid."""
    generator = torch.Generator().manual_seed(0)
    features, weight = (
        torch.randn(2, 3, 4, 4, generator=generator),
        torch.randn(5, 3, generator=generator),
    )
    maps = [features.requires_grad_(), F.linear(features.mean((2, 3)), weight)]
    tokens = F.pad(features.detach().flatten(2).mT, (0, 0, 1, 0)).requires_grad_()
    row = [tokens, F.linear(tokens[:, 1:].mean(1), weight)]
    other = random_maps(n=2, classes=5)
    loss = E2KDLoss(8)
    torch.testing.assert_close(
        loss(row, forward(other)).double(), loss(maps, forward(other)).double()
    )
    with pytest.raises(ValueError, match='17 tokens do not fill a grid of 1 to 2, as the images,'):
        E2KDLoss((8, 16))(row, forward(other))


# In a distiller


def terms(at, **kwargs):
    return dict(e2=dict(type='E2KDLoss', at=at, size=8, **kwargs))


LAYER = ['backbone.body', 'logits']


@pytest.mark.parametrize('explainer', ['GradCAM', 'XGradCAM', 'LayerCAM', 'HiResCAM'])
def test_a_distiller_takes_the_explainers_own_maps(explainer):
    model = distiller(terms((LAYER, LAYER), explainer=explainer))
    images, samples = batch()
    model.eval()
    losses = model(images, samples, mode='loss')
    teacher = model.teachers[0].model
    classes = teacher(images).argmax(1)
    maps = [
        F.interpolate(
            build_explainer(explainer)(each, images, classes).relu()[:, None], 8, mode='bilinear'
        )
        for each in (model.student, teacher)
    ]
    expected = 1 - F.cosine_similarity(*(each.flatten(1) for each in maps)).mean()
    assert losses['loss_e2'].item() == pytest.approx(expected.item(), rel=1e-4)
    assert {'e2.dead', 'e2.teacher_dead'} <= set(losses)


def test_closed_form_and_gradients_train_alike():
    gradients = []
    for at in ('cam', (LAYER, LAYER)):
        torch.manual_seed(0)
        model = distiller(terms(at), student_weight=0)
        model.train()
        total(model(*batch(), mode='loss')).backward()
        gradients.append([parameter.grad for parameter in model.student.parameters()])
        teacher = model.teachers[0]
        assert all(not p.requires_grad and p.grad is None for p in teacher.parameters())
    for closed, general in zip(*gradients):
        torch.testing.assert_close(closed, general)


def test_teacher_forwards_leave_the_gradient_mode_alone():
    model = distiller(terms((LAYER, LAYER)))
    with torch.no_grad():
        values = model.teachers[0](batch()[0])
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    assert values['backbone.body'].is_leaf and values['backbone.body'].requires_grad
    assert values['logits'].requires_grad


@pytest.mark.parametrize('dtype', ['bfloat16', None])
def test_a_step_in_half_precision(dtype):
    model = distiller(terms((LAYER, LAYER)), teacher=dict(model=classifier(8), dtype=dtype))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = model.train()(*batch(), mode='loss')
    total(losses).backward()
    assert 0 < losses['loss_e2'].item() < 1
    assert all(parameter.grad.isfinite().all() for parameter in model.student.parameters())


# Mistakes


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(explainer='ScoreCAM'), 'explainer is ScoreCAM, whose maps have no gradients'),
        (dict(explainer='Gradcam'), "explainer: there is no explainer 'Gradcam'"),
    ],
)
def test_wrong_explainers(arguments, message):
    with pytest.raises(ValueError, match=message):
        E2KDLoss(8, **arguments)


@pytest.mark.parametrize(
    'at, arguments, message',
    [
        (
            'cam',
            dict(explainer='LayerCAM'),
            "at 'cam' the explainer is GradCAM, and it is LayerCAM",
        ),
        (('logits', 'cam'), {}, "the student's taps must be 'cam', or a layer and 'logits'"),
        ((LAYER, 'backbone.body'), {}, "the teacher's taps must be 'cam', or a layer and"),
        (
            (['embedding', 'logits'], LAYER),
            {},
            r"the student's layer holds \(2, 4\); maps are made of",
        ),
        (([*LAYER, 'cam'], LAYER), {}, "the student's taps must be"),
    ],
)
def test_wrong_taps(at, arguments, message):
    with pytest.raises(ValueError, match=f'terms.e2: E2KDLoss cannot compare .*{message}'):
        distiller(terms(at, **arguments))


def test_other_classes():
    with pytest.raises(ValueError, match='the student has 4 classes and the teacher 7; the same'):
        distiller(terms('cam'), teacher=dict(model=classifier(8, classes=7)))


def test_logits_that_do_not_come_from_the_layer():
    class Detached(nn.Module):
        def forward(self, maps):
            return (maps[-1].mean((2, 3)).detach(),)

    model = distiller(terms((LAYER, LAYER)))
    model.student.neck = Detached()
    with pytest.raises(ValueError, match='the logits do not depend on the activations'):
        model.train()(*batch(), mode='loss')


def test_an_ensemble_has_no_gradients_and_has_class_maps():
    teacher = dict(type='TeacherEnsemble', teachers=[classifier(8), classifier(6)])
    message = "teacher is an ensemble; .* the mean of backbone.body; use the tap 'cam'"
    with pytest.raises(ValueError, match=message):
        distiller(terms((LAYER, LAYER)), teacher=teacher)
    losses = distiller(terms('cam'), teacher=teacher).train()(*batch(), mode='loss')
    assert losses['loss_e2'].requires_grad


# The divergence beside it


@pytest.mark.parametrize(
    'tau, rows, expected',
    [(1, 2, 1.0241407748), (5, 2, 1.1416544161), (1, 1, 1.5739608886)],
)
def test_divergence_of_the_logits(tau, rows, expected):
    student, teacher = tensor([1, 2, 3], [0, 0, 1]), tensor([3, 1, 0.5], [0, 2, 1])
    loss = KLDivLoss(tau=tau)
    assert loss(student[:rows], teacher[:rows]).item() == approx(expected)
    assert KLDivLoss()(teacher, student).item() == approx(0.9745879910)
    assert loss(teacher, teacher).item() == 0
