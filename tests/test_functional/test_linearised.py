"""Class maps of any head, with the numbers of the page on class maps, by hand and by autograd."""

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmkdx.functional import ClassMaps, head_jacobian
from mmkdx.functional.linearised import (
    LinearisedHead,
    degenerate_points,
    directional,
    head_kind,
    head_logits,
)
from mmkdx.losses import CATLoss, ExpKDLoss


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


A = tensor([[[[2, 0], [1, 1]], [[1, 1], [0, 2]], [[0, 3], [4, 1]]]])


def linear(weight, bias=None):
    """A linear layer of given numbers."""
    weight = tensor(weight)
    layer = nn.Linear(*weight.shape[::-1], bias=bias is not None).double()
    layer.weight.data = weight
    if bias is not None:
        layer.bias.data = tensor(bias)
    return layer


def last():
    return linear([[1, 0, 1], [0, 1, -1]], [0.1, -0.2])


def stacked(activation=nn.ReLU):
    return nn.Sequential(
        linear([[1, -1, 1], [0, 2, -1]], [-1, -0.5]),
        activation(),
        linear([[1, 2], [-1, 1], [0.5, -3]], [0, 0.1, -0.2]),
    )


def layer_normed(eps=1e-6):
    norm = nn.LayerNorm(3, eps=eps).double()
    norm.weight.data, norm.bias.data = tensor([1, 2, 0.5]), tensor([0, 1, -1])
    return nn.Sequential(norm, last())


def batch_normed():
    norm = nn.BatchNorm1d(3).double()
    norm.running_mean, norm.running_var = tensor([0.5, 1, 1]), tensor([1, 4, 0.25])
    norm.weight.data, norm.bias.data = tensor([1, 1, 2]), tensor([0, 0.5, 0])
    return nn.Sequential(norm, last()).eval()


COSINE = nn.Parameter(tensor([[3, 0, 4], [0, 1, -1], [1, 2, 2]]))


def cosine(p):
    return 10 * F.linear(F.normalize(p), F.normalize(COSINE))


LAST = last()
FIRST = linear([[1, 0, -1, 0, 0, 1, 0, 1], [0, -1, 0, 0, 1, 0, 0, -1]], [0.5, -0.25])
SECOND = linear([[1, -1], [2, 1]], [0.1, 0])


def gem(features):
    return LAST(features.pow(3).mean((2, 3)).pow(1 / 3))


def flattened(features):
    return SECOND(FIRST(features[:, :2].flatten(1)).relu())


HEADS = dict(
    linear=last(),
    stacked=stacked(),
    layer_norm=layer_normed(),
    cosine=cosine,
    batch_norm=batch_normed(),
    tanh=stacked(nn.Tanh),
)


def close(result, expected, tolerance=1e-9):
    expected = expected if isinstance(expected, torch.Tensor) else tensor(expected)
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)


def maps_of(head, features=A, **kwargs):
    return ClassMaps.linearised(features, head, **kwargs)


def check(maps, logits, mean, remainder, full=None):
    """Compares the first image's class maps with numbers; each is computed in two ways or more."""
    close(maps.logits()[0], logits)
    close(maps.logits(bias=False)[0], mean)
    close(maps.remainder()[0], remainder)
    close(maps.full().mean((2, 3))[0], mean)
    if full is not None:
        close(maps.full()[0].flatten(1), full)


def test_linear_head():  # T1
    full = [[2, 3, 5, 2], [1, -2, -4, 1]]
    check(maps_of(last()), [3.1, -1.2], [3, -1], [0.1, -0.2], full)
    head = last()
    close(ClassMaps(A, head.weight, head.bias).remainder(), [0.1, -0.2])
    close(head_jacobian(head, A.mean((2, 3))), head.weight[None])


def test_stacked_head():  # T2
    full = [[1, 2, 5, 0], [-1, -2, -5, 0], [0.5, 1, 2.5, 0]]
    maps = maps_of(stacked())
    check(maps, [1, -0.9, 0.3], [2, -2, 1], [-1, 1.1, -0.7], full)
    close(
        head_jacobian(stacked(), A.mean((2, 3))),
        [[[1, -1, 1], [-1, 1, -1], [0.5, -0.5, 0.5]]],
    )
    columns = F.adaptive_avg_pool2d(maps.full(), (1, 2))[0].flatten(1)
    close(columns, [[3, 1], [-3, -1], [1.5, 0.5]])
    assert torch.linalg.matrix_rank(maps.full()[0].flatten(1)) == 1


FULL_LN = [
    [1.0606577853, -1.0606577853, 1.0606577853, -1.0606577853],
    [-2.1213012518, 2.1212917059, -2.1213489812, 2.1213203435],
]


def test_layer_norm():  # T3
    full, frozen = maps_of(layer_normed(), norm='full'), maps_of(layer_normed())
    close(full.logits()[0], [-0.9, -0.3213155706])
    close(full.full()[0].flatten(1), FULL_LN)
    close(full.full().mean((2, 3))[0], [0, -0.0000095459])
    first = [1.0606577853, -1.0606577853, 1.0606577853, -1.0606577853]
    second = [1.0606577853, -3.1819733559, -9.5459200677, 3.1819733559]
    check(frozen, [-0.9, -0.3213155706], [0, -2.1213155706], [-0.9, 1.8], [first, second])
    wide, frozen = maps_of(layer_normed(0.1), norm='full'), maps_of(layer_normed(0.1))
    check(frozen, [-0.9, 0.0383393415], [0, -1.7616606585], [-0.9, 1.8])
    close(wide.full().mean((2, 3))[0], [0, -0.5467222733])


def test_cosine():  # T4
    logits = [8.9814623902, -2.8867513459, 9.5257934442]
    full = maps_of(cosine, norm='full').full()[0].flatten(1)
    close(full[0], [0.4082482905, -0.6804138174, 2.0412414523, -1.7690759253])
    close(full.mean(1), [0, 0, 0])
    frozen = maps_of(cosine)
    check(frozen, logits, logits, [0, 0, 0])
    close(frozen.full()[0, 0].flatten(), [4.8989794856, 9.7979589711, 15.5134350376, 5.7154760665])


def test_batch_norm():  # T5
    logits, remainder = [4.5999175024, -3.6999200024], [-4.3999175024, 3.7999206274]
    check(maps_of(batch_normed()), logits, [8.9998350048, -7.4998406298], remainder)


def test_tanh():  # T6
    logits = [-0.1626401586, -1.1237113132, 1.5671485498]
    mean, remainder = [0.8399486832, -0.8399486832, 0.4199743416], [-1.0025888418, -0.28376263]
    check(maps_of(stacked(nn.Tanh)), logits, mean, [*remainder, 1.1471742081])


def test_generalised_mean():  # T7
    maps = maps_of(gem, pooled=False)
    close(maps.logits()[0], [4.3010757881, -1.6866581716])
    close(maps.full()[0, 0].flatten() / 4, [1.0857670466, 0.8346131354, 2.1140631277, 0.1666324784])
    close(maps.remainder()[0], [0.1, -0.2])  # of degree 1, so what is left is the bias


def test_flattened():  # T8
    maps = maps_of(flattened, pooled=False)
    close(maps.logits()[0], [4.6, 9])
    close(maps.full()[0].flatten(1) / 4, [[2, 1, -1, 2], [4, 2, -2, 4]])
    close(maps.logits(bias=False)[0], [4, 8])
    close(maps.remainder()[0], [0.6, 1])
    gradient = torch.autograd.functional.jacobian(flattened, A)[0].squeeze(1)
    grad_cam = (gradient.mean((2, 3), keepdim=True) * A).sum(1)
    close(4 * grad_cam[0].flatten(), [2, 2, 0, 4])


@pytest.mark.parametrize('name', HEADS)
def test_maps_are_grad_cam_times_the_number_of_positions(name):  # T9
    features = A.clone().requires_grad_()
    logits = HEADS[name](features.mean((2, 3)))
    for k in range(logits.shape[1]):
        (gradient,) = torch.autograd.grad(logits[0, k], features, retain_graph=True)
        expected = 4 * (gradient.mean((2, 3), keepdim=True) * A).sum(1)
        maps = maps_of(HEADS[name], norm='full')
        close(maps.full()[:, k], expected)
        close(maps.classes(torch.tensor([[k]]))[:, 0], expected)


@pytest.mark.parametrize('norm', ['full', 'frozen'])
@pytest.mark.parametrize('classes', [None, 1])
def test_second_derivatives_of_a_layer_norm(norm, classes):  # T10
    head = layer_normed(0.1)
    torch.manual_seed(0)
    features = torch.randn(2, 3, 1, 2, dtype=torch.float64, requires_grad=True)
    index = None if classes is None else torch.tensor([[1], [0]])

    def function(features, *weights):
        maps = maps_of(head, features, norm=norm)
        return maps.pooled(2) if index is None else maps.classes(index)

    assert torch.autograd.gradcheck(function, (features, *head.parameters()))


def test_canary_of_the_library_s_layer_norm():
    """If this fails, torch is mended, and norms need not be written out for the gradient's sake."""
    norm = layer_normed(0.1)[0]
    torch.manual_seed(0)
    point, step = torch.randn(2, 3, dtype=torch.float64).unbind()
    point.requires_grad_()
    function = lambda p: torch.func.jvp(norm, (p,), (step,))[1]  # noqa: E731
    with pytest.raises(RuntimeError, match='Jacobian mismatch'):
        torch.autograd.gradcheck(function, (point,))


GRADIENTS = {
    'none': [5.0623329402, -6.1875151862, 5.0624341890, -6.1875759355],
    'jacobian': [5.6249341880, -5.6249139383, 5.6250354369, -5.6249746876],
    'features': [-0.5626012479] * 4,
}


@pytest.mark.parametrize('detach', GRADIENTS)
@pytest.mark.parametrize('way', ['forward', 'reverse'])
def test_what_a_loss_can_train(detach, way):  # T11
    head = layer_normed()
    features = A.clone().requires_grad_()
    maps = maps_of(head, features, norm='full', detach=detach)
    if way == 'reverse':
        maps = maps.full()  # two classes and four positions
    else:
        rows = features.detach() if detach == 'features' else features
        point = features.mean((2, 3))
        point = point.detach() if detach == 'jacobian' else point
        steps = rows.flatten(2).mT
        maps = directional(head, point, steps, 'full', detach == 'jacobian')
    loss = maps.square().sum() / 2
    loss.backward()
    close(loss, 11.2499493762)
    close(features.grad[0, 0].flatten(), GRADIENTS[detach])
    if detach == 'none':
        expected = [
            [4.4999797501, -8.9999595002, 0],
            [-8.9999594995, 17.9999190016, 0],
        ]
        close(head[1].weight.grad, expected)
    if detach == 'jacobian':
        assert head[1].weight.grad is None and head[0].weight.grad is None


@pytest.mark.parametrize('way', ['forward', 'reverse'])
def test_the_divisor_of_frozen_maps_has_a_gradient(way):  # T11
    head, features = layer_normed(), A.clone().requires_grad_()
    if way == 'reverse':
        maps = maps_of(head, features).full()
    else:
        maps = directional(head, features.mean((2, 3)), features.flatten(2).mT)
    loss = maps.square().sum() / 2
    loss.backward()
    close(loss, 58.4997367512)
    expected = [14.6248683759, 16.8748582509, 25.8748177511, 10.1248886258]
    close(features.grad[0, 0].flatten(), expected)
    features.grad = None
    (maps_of(head, features, detach='jacobian').full().square().sum() / 2).backward()
    close(features.grad[0, 0].flatten(), [0, 2.2499898750, 11.2499493752, -4.4999797501])


def test_softmax_over_classes_of_exp_kd():  # T12
    maps, bias = maps_of(stacked()).full().flatten(2), maps_of(stacked()).remainder()
    plain, whole = maps.softmax(1)[0].T, (maps + bias[..., None]).softmax(1)[0].T
    close(plain[0], [0.574096993, 0.0776955791, 0.3482074279])
    close(whole[0], [0.3420087652, 0.377978141, 0.2800130939])
    close(plain[3], [1 / 3] * 3)
    close(whole[3], [0.0950929316, 0.7765450371, 0.1283620313])


def test_cat_kd_of_a_stacked_head():  # T14
    maps = maps_of(stacked())
    close(F.normalize(maps.pooled(1).flatten(2), dim=2)[0, :, 0], [1, -1, 1])
    row = tensor([0.1825741858, 0.3651483717, 0.9128709292, 0])
    close(F.normalize(maps.pooled(2).flatten(2), dim=2)[0], torch.stack([row, -row, row]))
    assert CATLoss(resolution=2)(maps, maps).item() == 0


def pools_first(tail, features):
    """The self-test of a tail; ``models.head_trace`` follows the values in place of it."""
    spread = features.mean((2, 3), keepdim=True).expand_as(features)
    logits, expected = tail(spread.clone()), tail(features.clone())
    return bool((logits - expected).abs().max() <= 1e-5 * expected.abs().max())


@pytest.mark.parametrize('name', HEADS)
def test_what_pools_first(name):  # T15
    assert pools_first(lambda features: HEADS[name](features.mean((2, 3))), A)


@pytest.mark.parametrize('tail', [gem, flattened])
def test_what_does_not_pool_first(tail):  # T15
    assert not pools_first(tail, A)


# Properties


@pytest.fixture(scope='module')
def features():
    """Features (3, 3, 2, 5) of random numbers, positive as after a ReLU."""
    torch.manual_seed(1)
    return torch.rand(3, 3, 2, 5, dtype=torch.float64)


@pytest.mark.parametrize('norm', ['frozen', 'full'])
@pytest.mark.parametrize('name', HEADS)
def test_properties_of_every_head(name, norm, features):
    head = HEADS[name]
    maps = maps_of(head, features, norm=norm)
    full, expected = maps.full(), head(features.mean((2, 3)))
    rows = head_jacobian(head, features.mean((2, 3)), norm=norm)
    mean = torch.einsum('nkc,nc->nk', rows, features.mean((2, 3)))
    close(full.mean((2, 3)), mean)
    close(maps.logits(), expected)
    # Forward and reverse mode
    steps = features.flatten(2).mT
    close(directional(head, features.mean((2, 3)), steps, norm).mT.flatten(2), full.flatten(2))
    # Few classes are rows of all, and pooled maps are the pools of maps
    index = torch.tensor([[1, 0], [0, 1], [1, 1]])
    close(maps.classes(index), full.gather(1, index[..., None, None].expand(-1, -1, 2, 5)))
    few = head_jacobian(head, features.mean((2, 3)), index, norm)
    close(few, rows.gather(1, index[..., None].expand(-1, -1, 3)))
    close(maps.pooled(2), F.adaptive_avg_pool2d(full, 2))
    if norm == 'frozen':
        close(maps.remainder() + mean, expected)
    # Positions permute
    order = torch.randperm(10)
    moved = features.flatten(2)[..., order].unflatten(2, (2, 5))
    close(maps_of(head, moved, norm=norm).full().flatten(2), full.flatten(2)[..., order])


@pytest.mark.parametrize('pooled', [1, 2, None])
def test_properties_of_heads_that_pool_themselves(pooled, features):
    for head in (gem, lambda features: features.flatten(1)[:, :12].tanh()):
        maps = maps_of(head, features, pooled=False)
        rows = torch.autograd.functional.jacobian(lambda a, h=head: h(a).sum(0), features)
        expected = 10 * (rows.transpose(0, 1) * features[:, None]).sum(2)
        if pooled:
            expected = F.adaptive_avg_pool2d(expected, pooled)
        close(maps.pooled(pooled), expected)
        close(maps.full().mean((2, 3)) + maps.remainder(), head(features))


def test_a_bias_changes_the_remainder_only(features):
    head = stacked()
    before = maps_of(head, features)
    maps, remainder = before.full(), before.remainder()
    with torch.no_grad():
        head[2].bias += 3
    after = maps_of(head, features)
    close(after.full(), maps)
    close(after.remainder(), remainder + 3)


def test_frozen_maps_of_a_layer_norm_ignore_a_number_added_to_all_channels(features):
    close(maps_of(layer_normed(), features + 5).full(), maps_of(layer_normed(), features).full())


@pytest.mark.parametrize('norm', ['full', 'frozen'])
def test_scales(norm, features):
    close(
        maps_of(cosine, 7 * features, norm=norm).full(), maps_of(cosine, features, norm=norm).full()
    )
    head = last()
    close(maps_of(head, 7 * features).full(), 7 * maps_of(head, features).full())


@pytest.mark.parametrize(
    ('head', 'form', 'scale_free', 'norm'),
    [
        (last(), 'affine', False, 'frozen'),
        (batch_normed(), 'affine', False, 'frozen'),
        (layer_normed(), 'affine', True, 'frozen'),
        (cosine, 'affine', True, 'frozen'),
        (cosine, 'neither', True, 'full'),
        (stacked(), 'piecewise linear', False, 'frozen'),
        (
            nn.Sequential(linear([[1, -1, 1], [0, 2, -1]]), nn.ReLU()),
            'piecewise linear',
            False,
            'full',
        ),
        (stacked(nn.Tanh), 'neither', False, 'frozen'),
        (stacked(nn.Hardswish), 'neither', False, 'frozen'),
    ],
)
def test_kinds_of_heads(head, form, scale_free, norm, features):
    for precision in (torch.float64, torch.float32):
        module = head.to(precision) if isinstance(head, nn.Module) else head
        points = features.mean((2, 3))
        if module is cosine:
            points = points.double()
        else:
            points = points.to(precision)
        assert head_kind(module, points, norm) == (form, scale_free)
    if isinstance(head, nn.Module):
        head.double()


@pytest.mark.parametrize(
    'norm',
    [
        lambda x: F.group_norm(x, 1, tensor([1, 2, 3]), tensor([0, 1, 0]), 0.1),
        lambda x: F.group_norm(x[..., None, None], 1, tensor([1, 2, 3]), None, 0.1).flatten(1),
        lambda x: F.rms_norm(x, (3,), tensor([1, 2, 3]), 0.1),
        lambda x: F.rms_norm(x, (3,)),
        lambda x: torch.layer_norm(x, (3,), None, None, 0.1),
        lambda x: F.layer_norm(x, (3,), eps=0.1),
        lambda x: x / x.norm(dim=1, keepdim=True),
        lambda x: x / torch.linalg.vector_norm(x, dim=1, keepdim=True),
        lambda x: F.normalize(x, p=1),
        lambda x: x * (x.square().mean(1, keepdim=True) + 0.1).rsqrt(),
        lambda x: (x - x.mean(1, keepdim=True)) / torch.sqrt(x.var(1, keepdim=True) + 0.1),
        lambda x: torch.stack([F.cosine_similarity(x, w[None]) for w in COSINE], 1),
    ],
)
def test_norms_written_out(norm, features):
    """They have the library's values and derivatives, and frozen they are linear."""
    points = features.mean((2, 3))
    close(head_logits(norm, points), norm(points))
    expected = torch.autograd.functional.jacobian(lambda x: norm(x).sum(0), points)
    close(head_jacobian(norm, points, norm='full'), expected.transpose(0, 1))
    frozen = head_jacobian(norm, points)
    constant = norm(points) - torch.einsum('nkc,nc->nk', frozen, points)
    close(constant, constant[:1].expand_as(constant))  # a bias, the same for all images


@pytest.mark.parametrize(
    'dropout', [nn.Dropout(0.5), nn.Dropout(0.5, inplace=True), nn.AlphaDropout()]
)
def test_dropout_is_left_out(dropout, features):
    head = nn.Sequential(dropout, last()).train()
    close(maps_of(head, features).full(), maps_of(last(), features).full())
    assert head.training


def test_a_head_that_overwrites_its_input(features):
    before = features.clone()
    head = nn.Sequential(nn.ReLU(inplace=True), last())
    close(maps_of(head, features).full(), maps_of(last(), features).full())
    assert torch.equal(features, before)


def test_degenerate_points():
    points = tensor([[1, 2, 3], [0, 0, 0]])
    assert degenerate_points(cosine, points).tolist() == [False, True]
    points = tensor([[1, 2, 3], [2, 2, 2]])
    assert degenerate_points(layer_normed(), points).tolist() == [False, True]
    assert degenerate_points(last(), points).tolist() == [False, False]


@pytest.mark.parametrize('precision', [torch.float16, torch.bfloat16])
def test_maps_are_in_full_precision(precision):
    head = stacked().float()
    with torch.autocast('cpu', torch.bfloat16):
        maps = maps_of(head, A.to(precision))
        assert maps.full().dtype is torch.float32
        close(maps.full(), maps_of(stacked()).full().float())
        close(maps.logits(), maps_of(stacked()).logits().float(), 1e-6)


# The cost


def test_the_fewer_directions_or_classes_are_computed(monkeypatch, features):
    calls, file = [], sys.modules[LinearisedHead.__module__]
    for name in ('directional', 'pullback'):
        function = getattr(file, name)

        def noted(*args, name=name, function=function):
            calls.append((name, args[2].shape[1]))
            return function(*args)

        monkeypatch.setattr(file, name, noted)
    maps = maps_of(last(), features)
    maps.full()
    maps.pooled(1)
    maps.classes(torch.zeros(3, 1, dtype=torch.long))
    many = maps_of(linear(torch.ones(20, 3).tolist()), features)
    many.full()
    many.pooled(2)
    many.classes(torch.zeros(3, 9, dtype=torch.long))
    many.classes(torch.zeros(3, 10, dtype=torch.long))
    assert calls == [
        ('pullback', 2),
        ('directional', 1),
        ('pullback', 1),
        ('directional', 10),
        ('directional', 4),
        ('pullback', 9),
        ('directional', 10),
    ]


def test_kept_maps_are_computed_once():
    maps = maps_of(stacked(), keep=True)
    assert maps.full() is maps.full() and maps.pooled(2) is maps.pooled(2)
    assert maps_of(stacked()).shape == (1, 3, 2, 2) and maps.num_classes == 3


def test_functions_of_the_tensors():
    maps = maps_of(last()).map(lambda value: value * 2)
    close(maps.full(), 2 * maps_of(last()).full())


# Losses


def test_exp_kd_takes_maps_of_any_head(features):
    student, teacher = maps_of(stacked(), features), maps_of(stacked(nn.Tanh), features)
    maps = [each.full().relu().softmax(1) for each in (student, teacher)]
    expected = (maps[0] - maps[1]).square().sum() / 3
    for reduce in ('sum', 'mean'):  # a hidden layer has no channels to take the mean over
        close(ExpKDLoss(channel_reduce=reduce)(student, teacher), expected)


@pytest.mark.parametrize('topk', [None, 2])
def test_exp_kd_with_the_remainder(topk, features):
    student, teacher = maps_of(stacked(), features), maps_of(stacked(nn.Tanh), features)
    maps = [m.full() + m.remainder()[..., None, None] for m in (student, teacher)]
    if topk:
        index = teacher.logits().topk(2).indices[..., None, None].expand(-1, -1, 2, 5)
        maps = [each.gather(1, index) for each in maps]
    maps = [each.softmax(1) for each in maps]
    loss = ExpKDLoss(channel_reduce='sum', remainder=True, topk=topk)
    close(loss(student, teacher), (maps[0] - maps[1]).square().sum() / 3)


def test_exp_kd_with_the_bias(features):
    head = last()
    plain = ClassMaps(features, head.weight, head.bias)
    loss = ExpKDLoss(channel_reduce='sum', remainder=True)
    close(
        loss(plain, maps_of(stacked()[:1], features)),
        loss(maps_of(head, features), maps_of(stacked()[:1], features)),
    )


def test_cat_kd_keeps_the_remainder():
    loss = CATLoss(resolution=2, normalize=False, cam_bias='keep')
    close(loss(maps_of(last()), ClassMaps(A, LAST.weight, LAST.bias)), 0.0)
    shift = stacked()
    shift[2].bias.data += 2
    close(loss(maps_of(stacked()), maps_of(shift)), 4.0)


# Errors


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (
            lambda: head_jacobian(last(), A.mean((2, 3)) * math.nan),
            '^the pooled features are not finite',
        ),
        (
            lambda: head_jacobian(last(), A.mean((2, 3)), torch.tensor([[2]])),
            '^index holds classes',
        ),
        (lambda: head_jacobian(last(), A.mean((2, 3)), norm='half'), '^norm is '),
        (lambda: maps_of(last(), A[0]), r'^features have the shape \(3, 2, 2\)'),
        (lambda: maps_of(last(), detach='all'), '^detach is '),
        (lambda: maps_of(last(), norm='none'), '^norm is '),
        (lambda: maps_of(batch_normed().train()), '^the head has a batch norm in training mode'),
        (
            lambda: head_jacobian(batch_normed().train(), A.mean((2, 3))),
            '^the head has a batch norm',
        ),
        (
            lambda: maps_of(cosine, norm='full').pooled(1),
            '^the head ignores the scale of its input',
        ),
        (lambda: maps_of(layer_normed(), norm='full').pooled(1), '^the head ignores the scale'),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert '\n' not in str(error.value) and '. ' not in str(error.value)
