"""CATLoss: toy maps with exact values, a reference in numpy, and what must hold for any maps."""

import re
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmkdx.functional import ClassMaps
from mmkdx.losses import CATLoss
from mmkdx.losses.class_map import class_attention_distance

RAMP = torch.arange(16.0, dtype=torch.float64).view(4, 4)
CHOICES = [
    dict(),
    dict(normalize=False),
    dict(normalize=False, resolution=1),
    dict(resolution=4, reduction='paper'),
    dict(class_select='topk', num_classes_selected=2),
    dict(class_select='bottomk', num_classes_selected=1, normalize=False),
]


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def toy(student_weight=None):
    """Student maps of 2 × 2 and teacher maps of 4 × 4 positions, of three classes."""
    features = tensor([[[1, 2], [3, 4]], [[0, -1], [2, 1]]])
    weight = tensor([1, 0.5], [0.2, -0.4], [-1, 1]) if student_weight is None else student_weight
    return ClassMaps(features, weight), toy_teacher()


def toy_teacher():
    weight = tensor([0.5, -0.25], [1, 0], [-0.1, 0.3])
    return ClassMaps(torch.stack([RAMP, RAMP.flip(0) - 4])[None], weight, tensor(0.7, -0.2, 0.1))


def random_maps(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def normalized(maps):
    flat = maps.flatten(2)
    return flat / flat.square().sum(2, keepdim=True).sqrt()


def close(result, expected, rel=1e-9, abs=0.0):
    torch.testing.assert_close(result, expected, rtol=rel, atol=abs)


def approx(value):
    return pytest.approx(value, rel=1e-9)


# Exact values


def test_normalised_maps():
    student, teacher = toy()
    k0 = 0.159111, 0.238667, 0.636446, 0.716002
    k1 = 0.213201, 0.852803, -0.213201, 0.426401
    k2 = -0.223607, -0.67082, -0.223607, -0.67082
    close(normalized(student.pooled(2)), tensor([k0, k1, k2]), abs=1e-6)
    k0 = -0.045043, 0.015014, 0.675642, 0.735699
    k1 = 0.146052, 0.262893, 0.613417, 0.730258
    k2 = 0.518254, 0.640196, -0.457283, -0.335341
    close(normalized(teacher.pooled(2)), tensor([k0, k1, k2]), abs=1e-6)
    cosines = (normalized(student.pooled(2)) * normalized(teacher.pooled(2))).sum(2)
    close(cosines, tensor([0.95318803, 0.43593616, -0.21813675]), abs=5e-9)
    expected = (1 - cosines.mean()).item() / 2
    assert CATLoss()(student, teacher).item() == approx(expected)


@pytest.mark.parametrize(
    'arguments, expected',
    [
        (dict(), 0.3048354276),
        (dict(reduction='paper'), 1.2193417103),
        (dict(normalize=False), 27.1752083333),
        (dict(normalize=False, reduction='paper'), 4 * 27.1752083333),
        (dict(normalize=False, resolution=1), 19.0485416667),
        (dict(cam_bias='keep'), 0.3098964771),
        (dict(cam_bias='keep', normalize=False), 26.606875),
        (dict(binarize=True), 0.4208958576),
        (dict(binarize=True, normalize=False), 4.29),
        (dict(class_select='topk', num_classes_selected=1), 0.2820319203),
        (dict(class_select='topk', num_classes_selected=2), 0.1527189531),
        (dict(class_select='topk', num_classes_selected=3), 0.3048354276),
        (dict(class_select='bottomk', num_classes_selected=1), 0.6090683766),
        (dict(class_select='bottomk', num_classes_selected=2), 0.3162371812),
        (dict(class_select='topk', num_classes_selected=1, normalize=False), 69.97),
        (dict(class_select='topk', num_classes_selected=2, normalize=False), 36.1178125),
        (dict(class_select='bottomk', num_classes_selected=1, normalize=False), 9.29),
        (dict(class_select='bottomk', num_classes_selected=2, normalize=False), 5.7778125),
    ],
)
def test_toy_values(arguments, expected):
    assert CATLoss(**arguments)(*toy()).item() == approx(expected)


@pytest.mark.parametrize('normalize, expected', [(True, 0.0781484124), (False, 29.56375)])
def test_resolution_above_the_maps_repeats_positions(normalize, expected):
    loss = CATLoss(resolution=4, normalize=normalize)
    assert loss(*toy()).item() == approx(expected)


def test_one_normalised_position_is_a_sign_without_gradient():
    student, teacher = toy()
    pooled = student.pooled(1).requires_grad_()
    distance = class_attention_distance(pooled, teacher.pooled(1), normalize=True)
    assert distance.item() == approx(4 / 3)
    assert torch.autograd.grad(distance, pooled)[0].tolist() == [[[[0]], [[0]], [[0]]]]


@pytest.mark.parametrize(
    'label, cross_entropy, normalised, raw',
    [
        (0, 0.0907043910, 12.2841214944, 49.0060793910),
        (1, 2.5407043910, 14.7341214944, 51.4560793910),
        (2, 4.8407043910, 17.0341214944, 53.7560793910),
    ],
)
def test_total_with_the_classification_loss(label, cross_entropy, normalised, raw):
    student, teacher = toy()
    own = F.cross_entropy(student.logits(), torch.tensor([label]))
    assert own.item() == approx(cross_entropy)
    assert (own + 40 * CATLoss()(student, teacher)).item() == approx(normalised)
    assert (own + 1.8 * CATLoss(normalize=False)(student, teacher)).item() == approx(raw)


@pytest.mark.parametrize(
    'normalize, k0, k1, k2',
    [
        (
            True,
            [[0.00521636, 0.00563468], [-0.00182951, -0.00141119]],
            [[-0.00943585, 0.01934349], [-0.12549677, -0.09671744]],
            [[-0.01749639, -0.01840529], [0.01885974, 0.01795084]],
        ),
        (
            False,
            [[0.22916667, 0.22916667], [-0.27083333, -0.27083333]],
            [[-0.38333333, -0.61666667], [-1.78333333, -2.01666667]],
            [[-0.45, -0.85], [0.08333333, -0.31666667]],
        ),
    ],
)
def test_gradient_in_the_maps(normalize, k0, k1, k2):
    student, teacher = toy()
    maps = student.full().requires_grad_()
    CATLoss(normalize=normalize)(maps, teacher).backward()
    close(maps.grad, tensor([k0, k1, k2]), abs=5.1e-9)
    if normalize:  # moving along the map itself changes nothing
        close((maps.grad * maps).sum((2, 3)), torch.zeros(1, 3, dtype=torch.float64), abs=1e-15)


@pytest.mark.parametrize(
    'normalize, expected',
    [
        (
            True,
            [[0.00535244, -0.01070488], [-0.73410894, -0.36705447], [0.07407561, 0.07407561]],
        ),
        (
            False,
            [[-1.20833333, -1.04166667], [-15.03333333, -4.96666667], [-3.16666667, 0.7]],
        ),
    ],
)
def test_gradient_in_the_classifier(normalize, expected):
    weight = tensor([1, 0.5], [0.2, -0.4], [-1, 1]).requires_grad_()
    CATLoss(normalize=normalize)(*toy(weight)).backward()
    close(weight.grad, tensor(*expected), abs=5.1e-9)


# Any maps


def pool(maps, resolution):
    """Adaptive average pooling, window by window."""
    h, w = maps.shape[2:]
    result = np.empty((*maps.shape[:2], resolution, resolution))
    for i in range(resolution):
        for j in range(resolution):
            top, bottom = i * h // resolution, -(-(i + 1) * h // resolution)
            left, right = j * w // resolution, -(-(j + 1) * w // resolution)
            result[..., i, j] = maps[..., top:bottom, left:right].mean((2, 3))
    return result


def reference(student, teacher, resolution, normalize):
    """The distance, class by class."""
    student, teacher = (
        pool(maps.numpy(), resolution).reshape(-1, resolution**2) for maps in (student, teacher)
    )
    distances = []
    for s, t in zip(student, teacher, strict=True):
        if normalize:
            s, t = s / np.sqrt((s * s).sum()), t / np.sqrt((t * t).sum())
        distances.append(((s - t) ** 2).mean())
    return np.mean(distances)


@pytest.mark.parametrize('normalize', [True, False])
@pytest.mark.parametrize(
    'student, teacher, resolution',
    [((8, 8), (8, 8), 2), ((7, 5), (4, 9), 3), ((4, 4), (7, 7), 4), ((2, 3), (5, 2), 2)],
)
def test_sizes_may_differ_and_be_odd(student, teacher, resolution, normalize):
    student = random_maps(2, 5, *student, seed=1)
    teacher = random_maps(2, 5, *teacher, seed=2)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        loss = CATLoss(resolution=resolution, normalize=normalize)(student, teacher)
    assert loss.item() == approx(reference(student, teacher, resolution, normalize))


@pytest.mark.parametrize('arguments', CHOICES, ids=str)
def test_equal_maps_have_no_loss_and_no_gradient(arguments):
    maps = random_maps(3, 5, 8, 8)
    student = maps.clone().requires_grad_()
    loss = CATLoss(**arguments)(student, maps)
    assert loss.item() == 0
    assert torch.autograd.grad(loss, student)[0].count_nonzero() == 0


@pytest.mark.parametrize('resolution', [2, 4])
def test_normalised_maps_have_no_scale(resolution):
    student, teacher = toy()
    scaled = ClassMaps(student.features * 3.7, student.weight * tensor([1], [0.01], [50]))
    assert CATLoss()(scaled, teacher).item() == approx(0.3048354276)
    maps = random_maps(2, 5, 4, 4)
    loss = CATLoss(resolution=resolution)(maps, -maps)
    assert loss.item() == approx(4 / resolution**2)  # the largest that there is


@pytest.mark.parametrize('resolution', [2, 3, 4])
def test_normalised_loss_is_one_minus_the_cosine(resolution):
    student, teacher = random_maps(3, 5, 8, 8, seed=1), random_maps(3, 5, 8, 8, seed=2)
    pooled = (F.adaptive_avg_pool2d(maps, resolution).flatten(2) for maps in (student, teacher))
    cosine = F.cosine_similarity(*pooled, dim=2).mean().item()
    loss = CATLoss(resolution=resolution)(student, teacher).item()
    assert loss == approx(2 / resolution**2 * (1 - cosine))
    assert 0 < loss < 4 / resolution**2


@pytest.mark.parametrize('size, resolution', [(8, 1), (8, 2), (8, 4), (8, 8), (4, 2), (7, 1)])
def test_raw_loss_is_no_less_than_that_of_the_logits(size, resolution):
    student, teacher = random_maps(4, 6, size, size, seed=1), random_maps(4, 6, size, size, seed=2)
    logits = F.mse_loss(student.mean((2, 3)), teacher.mean((2, 3))).item()
    loss = CATLoss(resolution=resolution, normalize=False)(student, teacher).item()
    assert loss == approx(logits) if resolution == 1 else loss > logits


def test_projecting_pooled_features_is_pooling_projected_ones():
    features, weight = random_maps(2, 6, 7, 7), random_maps(9, 6, seed=1)
    teacher = random_maps(2, 9, 7, 7, seed=2)
    for resolution in (2, 3, 4, 7):
        loss = CATLoss(resolution=resolution)
        maps = F.conv2d(features, weight[:, :, None, None])
        assert loss(ClassMaps(features, weight), teacher).item() == approx(
            loss(maps, teacher).item()
        )


# Chosen classes


@pytest.mark.parametrize('select', ['topk', 'bottomk'])
@pytest.mark.parametrize('n', [1, 3, 7])
def test_exactly_n_classes_are_compared_also_when_all_are_tied(select, n):
    # each class has a bit of its own in the sum, so the sum tells which ones it is made of
    student = torch.tensor([2.0**k for k in range(7)]).sqrt().view(1, 7, 1, 1).expand(3, 7, 4, 4)
    loss = CATLoss(normalize=False, class_select=select, num_classes_selected=n)
    values = [loss(student[i : i + 1], torch.zeros(1, 7, 4, 4)).item() * n for i in range(3)]
    assert [round(value).bit_count() for value in values] == [n] * 3
    assert loss(student, torch.zeros(3, 7, 4, 4)).item() * n == pytest.approx(sum(values) / 3)


@pytest.mark.parametrize('classes', [2, 10, 130])
@pytest.mark.parametrize('select, order', [('topk', -1), ('bottomk', 1)])
def test_classes_are_ranked_by_the_teacher_in_each_sample(classes, select, order):
    student = random_maps(4, classes, 6, 6, seed=1)
    teacher = random_maps(4, classes, 6, 6, seed=2)
    n = classes // 2
    index = np.argsort(order * teacher.mean((2, 3)).numpy(), axis=1)[:, :n]
    chosen = [maps[np.arange(4)[:, None], index] for maps in (student, teacher)]
    loss = CATLoss(class_select=select, num_classes_selected=n)(student, teacher)
    assert loss.item() == approx(CATLoss()(*chosen).item())
    for normalize in (True, False):
        loss = CATLoss(normalize=normalize, class_select=select, num_classes_selected=classes)
        expected = CATLoss(normalize=normalize)(student, teacher).item()
        assert loss(student, teacher).item() == approx(expected)


@pytest.mark.parametrize(
    'select, published, ours', [('topk', 3, 2), ('bottomk', 1, 2), ('bottomk', 2, 3)]
)
def test_the_authors_count_is_off_by_one(select, published, ours):
    legacy = CATLoss(class_select=select, num_classes_selected=published, legacy=True)
    exact = CATLoss(class_select=select, num_classes_selected=ours)
    assert legacy(*toy()).item() == exact(*toy()).item()


def test_one_class_more_than_there_are():
    loss = CATLoss(class_select='bottomk', num_classes_selected=3, legacy=True)
    with pytest.raises(ValueError, match='4 classes are to be selected, and there are 3'):
        loss(*toy())


def test_the_bias_does_not_rank_classes():
    student, teacher = toy()
    teacher.bias = tensor(0, -10, 0)  # with it the first class would be the highest
    loss = CATLoss(class_select='topk', num_classes_selected=1)
    assert loss(student, teacher).item() == approx(0.2820319203)


@pytest.mark.parametrize('select', ['topk', 'bottomk'])
def test_more_classes_than_there_are(select):
    loss = CATLoss(class_select=select, num_classes_selected=4)
    with pytest.raises(ValueError, match='4 classes are to be selected, and there are 3'):
        loss(*toy())


# Batches and labels


@pytest.mark.parametrize('arguments', CHOICES, ids=str)
def test_mean_of_two_halves_is_the_loss_of_the_whole(arguments):
    loss = CATLoss(**arguments)
    student = random_maps(6, 5, 8, 8, seed=1).requires_grad_()
    teacher = random_maps(6, 5, 8, 8, seed=2)
    whole = loss(student, teacher)
    halves = [loss(student[half], teacher[half]) for half in (slice(3), slice(3, 6))]
    assert whole.item() == approx(sum(half.item() for half in halves) / 2)
    gradient = torch.autograd.grad(whole, student)[0]
    close(torch.autograd.grad(sum(halves) / 2, student)[0], gradient, abs=1e-15)


# Precision


@pytest.mark.parametrize('arguments', [*CHOICES[:2], dict(binarize=True)], ids=str)
@pytest.mark.parametrize('zero', ['student', 'teacher', 'both'])
@pytest.mark.parametrize('kind', ['fp32', 'fp16', 'bf16', 'autocast'])
def test_zero_maps_are_finite(arguments, zero, kind):
    dtype = dict(fp16=torch.float16, bf16=torch.bfloat16).get(kind, torch.float32)
    student, teacher = (
        random_maps(4, 10, 4, 4, seed=seed, dtype=dtype) * (zero not in (name, 'both'))
        for seed, name in enumerate(('student', 'teacher'))
    )
    student.requires_grad_()
    with torch.autocast('cpu', torch.bfloat16, enabled=kind == 'autocast'):
        loss = CATLoss(**arguments)(student, teacher)
    assert loss.dtype == torch.float32 and loss.isfinite()
    if arguments == {}:
        assert loss.item() == pytest.approx(0 if zero == 'both' else 1 / 4, rel=1e-3)
    gradient = torch.autograd.grad(loss, student)[0]
    assert gradient.isfinite().all()


def test_constant_maps_binarise_to_zero():
    student = random_maps(2, 3, 4, 4).requires_grad_()
    loss = CATLoss(binarize=True)(student, torch.full((2, 3, 4, 4), 2.0, dtype=torch.float64))
    assert loss.item() == approx(1 / 4)  # unit vectors against zeros
    assert torch.autograd.grad(loss, student)[0].isfinite().all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('normalize', [True, False])
def test_half_precision_is_computed_in_fp32(dtype, normalize):
    # squares of such values are 0 in half precision
    student, teacher = (random_maps(4, 5, 8, 8, seed=i, dtype=dtype) * 1e-3 for i in (1, 2))
    assert student.dtype == dtype
    expected = reference(student.double(), teacher.double(), 2, normalize)
    loss = CATLoss(normalize=normalize)(student, teacher)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    student, teacher = student[..., :2, :2], teacher[..., :2, :2]
    expected = reference(student.double(), teacher.double(), 2, normalize)
    distance = class_attention_distance(student, teacher, normalize)
    assert distance.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('arguments', [*CHOICES, dict(cam_bias='keep')], ids=str)
def test_autocast_changes_nothing(arguments):
    student = ClassMaps(*(random_maps(*s, dtype=torch.float32) for s in ((2, 6, 8, 8), (5, 6))))
    parts = ((2, 9, 7, 7), (5, 9), (5,))
    teacher = ClassMaps(*(random_maps(*s, seed=1, dtype=torch.float32) for s in parts))
    expected = CATLoss(**arguments)(student, teacher).item()
    with torch.autocast('cpu', torch.bfloat16):
        assert CATLoss(**arguments)(student, teacher).item() == expected


# Errors


@pytest.mark.parametrize(
    'student, teacher',
    [((2, 5, 4, 4), (2, 6, 4, 4)), ((2, 512, 4, 4), (2, 160, 4, 4)), ((2, 5, 4, 4), (3, 5, 4, 4))],
    ids=['classes', 'features', 'samples'],
)
def test_maps_of_other_classes(student, teacher):
    message = f'class maps of shapes {student} and {teacher} cannot be compared'
    with pytest.raises(ValueError, match=re.escape(message)):
        CATLoss()(torch.zeros(student), torch.zeros(teacher))


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(resolution=0), 'resolution is 0'),
        (dict(resolution=-2), 'resolution is -2'),
        (dict(resolution=1), 'resolution is 1 with normalize=True'),
        (dict(cam_bias='add'), "cam_bias is 'add'; it must be one of drop, keep"),
        (dict(reduction='mean'), "reduction is 'mean'; it must be one of code, paper"),
        (dict(class_select='top'), "class_select is 'top'; it must be one of all, topk, bottomk"),
        (dict(class_select='topk'), 'num_classes_selected goes with class_select'),
        (dict(class_select='bottomk'), 'num_classes_selected goes with class_select'),
        (dict(num_classes_selected=3), 'num_classes_selected goes with class_select'),
        (dict(class_select='topk', num_classes_selected=0), 'num_classes_selected is 0'),
        (dict(class_select='bottomk', num_classes_selected=-1), 'num_classes_selected is -1'),
        (dict(legacy=True), "legacy goes with class_select 'bottomk', or"),
        (
            dict(class_select='topk', num_classes_selected=1, legacy=True),
            "legacy goes with class_select 'bottomk', or 'topk' with 2 classes",
        ),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        CATLoss(**arguments)


def test_check_refuses_a_resolution_above_that_of_the_maps():
    student, teacher = toy()
    CATLoss(resolution=2).check(student, teacher)
    CATLoss(resolution=3).check(teacher, teacher)
    with pytest.raises(ValueError, match='resolution is 3 and .* of the student have only 2x2'):
        CATLoss(resolution=3).check(student, teacher)
    with pytest.raises(ValueError, match='resolution is 6 and .* of the teacher have only 8x5'):
        CATLoss(resolution=6).check(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 5))


# Training


def network(width):
    layers = nn.Sequential(
        nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1), nn.ReLU()
    )
    return layers, nn.Linear(width, 6)


def train(steps=40):
    """Trains with nothing but CATLoss; returns its values, and the cosine of the full maps."""
    torch.manual_seed(0)
    images = torch.randn(32, 3, 16, 16)
    (features, linear), (layers, classifier) = network(16), network(8)
    with torch.no_grad():
        teacher = ClassMaps(features(images), linear.weight)
    optimizer = torch.optim.Adam([*layers.parameters(), classifier.weight], lr=0.02)
    losses, cosines = [], []
    for _ in range(steps):
        student = ClassMaps(layers(images), classifier.weight)
        loss = CATLoss()(student, teacher)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        cosine = F.cosine_similarity(student.full().flatten(2), teacher.full().flatten(2), dim=2)
        cosines.append(cosine.mean().item())
    return losses, cosines


def test_class_maps_alone_train_a_student():
    losses, cosines = train()
    assert losses[-1] < 0.2 * losses[0]
    assert cosines[-1] > cosines[0] + 0.3
    assert train() == (losses, cosines)
