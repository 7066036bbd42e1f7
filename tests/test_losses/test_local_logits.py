"""SDDLoss and CellGramLoss against the numbers of fp64 references, limits, properties and mistakes."""

import pytest
import torch
import torch.nn.functional as F
from tiny import batch, distiller, total

from mmkdx.distillation.terms import build_term
from mmkdx.functional import ClassMaps
from mmkdx.losses import CellGramLoss, DKDLoss, KLDivLoss, NKDLoss, SDDLoss, local_logits

LABELS = torch.tensor([0, 1])
KD = dict(type='KLDivLoss', tau=4)
DKD = dict(type='DKDLoss', tau=4, alpha=1, beta=8)
NKD = dict(type='NKDLoss', tau=1, gamma=1.5)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def teacher():
    features = [
        [
            [[4, 4, 1, 0], [4, 4, 0, 1], [1, 0, 2, 2], [0, 1, 2, 2]],
            [[0, 1, 3, 3], [1, 0, 3, 3], [2, 2, 0, 0], [2, 2, 0, 0]],
        ],
        [
            [[0, 0, 1, 1], [0, 0, 1, 1], [4, 4, 2, 2], [4, 3, 2, 2]],
            [[2, 2, 1, 1], [2, 1, 1, 1], [0, 0, 2, 2], [0, 0, 2, 2]],
        ],
    ]
    weight = [[1, -0.5], [-0.5, 1], [0.5, 0.5]]
    return ClassMaps(tensor(features), tensor(weight), tensor([0.1, 0, -0.6]))


def student():
    features = [[[[3, 1], [1, 2]], [[1, 2], [2, 0]]], [[[0, 1], [3, 1]], [[2, 1], [0, 3]]]]
    weight = [[0.8, -0.2], [-0.3, 0.9], [0.4, 0.3]]
    return ClassMaps(tensor(features), tensor(weight), tensor([0, 0.1, -0.3]))


def random_maps(seed, side=4, n=3, classes=5, channels=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = (n, channels, side, side), (classes, channels), (classes,)
    return ClassMaps(*(torch.randn(shape, generator=generator).to(dtype) for shape in shapes))


def value(*maps, labels=LABELS, **arguments):
    return SDDLoss(**arguments)(*(maps or (student(), teacher())), labels).item()


def test_logits_of_cells():
    loss = SDDLoss()
    torch.testing.assert_close(
        loss.cell_logits(teacher(), 1)[:, 0],
        tensor([[1.1625, 0.5, 0.9625], [1.19375, 0.34375, 0.8375]]),
    )
    torch.testing.assert_close(
        loss.cell_logits(student(), 1)[:, 0], tensor([[1.15, 0.7, 0.775], [0.7, 1.075, 0.65]])
    )
    expected = [
        [[3.85, -1.5, 1.65], [-0.9, 2.75, 1.15], [-0.4, 1.75, 0.65], [2.1, -1, 0.4]],
        [[-0.775, 1.75, 0.275], [0.6, 0.5, 0.4], [3.85, -1.875, 1.275], [1.1, 1, 1.4]],
    ]
    torch.testing.assert_close(loss.cell_logits(teacher(), 2), tensor(expected))


@pytest.mark.parametrize('scales', [(1, 2), (2, 1)])
def test_complementary_cells(scales):
    loss = SDDLoss(scales)
    cells = torch.cat([loss.cell_logits(teacher(), r) for r in scales], 1)
    found = loss._complementary(cells, teacher(), LABELS).int()
    local, whole = [[0, 1, 1, 0], [1, 0, 0, 0]], [0]
    assert found.tolist() == [whole + row if scales[0] == 1 else row + whole for row in local]


def test_the_loss_of_each_cell():
    s, t = (SDDLoss().cell_logits(each, 2).flatten(0, 1) for each in (student(), teacher()))
    found = torch.cat([KLDivLoss(4).per_sample(s, t).unflatten(0, (2, 4))], 1)
    whole = KLDivLoss(4).per_sample(student().logits(), teacher().logits())[:, None]
    expected = [
        [0.0120574888, 0.6964530098, 0.4503119396, 0.0757519098, 0.0838504581],
        [0.1332140976, 0.0084298162, 0.0044683669, 0.4147376535, 0.5431431053],
    ]
    torch.testing.assert_close(torch.cat([whole, found], 1), tensor(expected), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    'expected, arguments',
    [
        (0.295691151128, {}),
        (0.295691151128, dict(scales=(2, 1))),
        (0.242241784566, dict(complementary=1)),
        (0.402589884251, dict(complementary=4)),
        (1.478455755639, dict(reduction='sum')),
        (0.135451733519, dict(inner=dict(type='KLDivLoss', tau=1))),
        (0.350005461660, dict(split='class')),
        (1.317953835127, dict(inner=NKD)),
        (113.505849635107, dict(inner=dict(NKD, tau=4, gamma=8))),
        (0.925938242768, dict(inner=DKD)),
        (0.367295374975, dict(scales=(1, 2, 4), repeat=True)),
        (1.217732376760, dict(scales=(1, 2, 4), repeat=True, inner=DKD)),
        (1.334019281095, dict(scales=(1, 2, 4), repeat=True, inner=NKD)),
        (0.072635793212, dict(scales=(1,))),
        (0.067051733695, dict(scales=(1,), inner=dict(type='KLDivLoss', tau=1))),
        (0.184280332124, dict(scales=(1,), inner=DKD)),
        (1.296936923875, dict(scales=(1,), inner=NKD)),
    ],
)
def test_values(expected, arguments):
    assert value(**arguments) == pytest.approx(expected, rel=1e-11)


def test_logs_add_up():
    loss = SDDLoss((1, 2, 4), repeat=True)
    found = loss(student(), teacher(), LABELS)
    logs = {key: each.item() for key, each in loss.logs.items()}
    assert logs.pop('complementary_share') == pytest.approx((10 + 5) / 42)
    parts = logs.pop('consistent'), logs.pop('complementary')
    assert min(parts) > 0 and sum(parts) == pytest.approx(found.item(), rel=1e-12)
    assert list(logs) == ['scale_1', 'scale_2', 'scale_4']
    assert logs['scale_1'] == pytest.approx(0.072635793212, rel=1e-11)
    assert not any(each.requires_grad for each in loss.logs.values())


def test_gradient():
    s, t = student(), teacher()
    leaves = [s.features, s.weight, s.bias]
    for each in (*leaves, t.features, t.weight, t.bias):
        each.requires_grad_()
    loss = SDDLoss()(s, t.map(torch.Tensor.detach), LABELS)
    features, weight, bias = torch.autograd.grad(loss, leaves)
    close = dict(rtol=0, atol=1e-12)
    expected = [
        [-0.245704300799, 0.074936976478],
        [0.242744916380, 0.042775339353],
        [0.002959384418, -0.117712315831],
    ]
    torch.testing.assert_close(weight, tensor(expected), **close)
    expected = [-0.035509052631, 0.071704943795, -0.036195891163]
    torch.testing.assert_close(bias, tensor(expected), **close)
    expected = [[-0.050542796034, 0.079960844720], [0.030852732866, -0.018199756005]]
    torch.testing.assert_close(features[0, 0], tensor(expected), **close)
    expected = [[-0.000327228899, 0.009533721101], [0.043408564704, 0.051185747503]]
    torch.testing.assert_close(features[1, 1], tensor(expected), **close)


def ramp():
    """Maps of 7 × 7, without a bias."""
    m = torch.arange(49.0, dtype=torch.float64).view(7, 7)
    column = m.new_tensor(range(7)).expand(7, 7)
    t = torch.stack([3 * m / 48, 2 * m.flip(0) / 48, column / 6])
    s = torch.stack([m / 48, m.T / 48, m.flip(1) / 48])
    return s[None], t[None]


def test_sides_that_are_no_multiple_of_four():
    arguments = dict(scales=(1, 2, 4), labels=torch.tensor([0]))
    assert value(*ramp(), **arguments) == pytest.approx(0.265878307353, rel=1e-11)
    nested = value(*ramp(), cells='nested', **arguments)
    assert nested == pytest.approx(0.274044026393, rel=1e-11)
    for cells in ('adaptive', 'nested'):
        loss = SDDLoss((1, 2, 4), cells=cells)
        t = ClassMaps(ramp()[1])
        local = torch.cat([loss.cell_logits(t, r) for r in (1, 2, 4)], 1)
        apart = loss._complementary(local, t, torch.tensor([0]))
        assert apart[0].nonzero().flatten().tolist() == [1, 2, *range(5, 13)]
    delta = torch.zeros(1, 1, 7, 7, dtype=torch.float64)
    delta[..., 3, 3] = 1
    found = {
        (cells, r): SDDLoss(cells=cells).cell_logits(ClassMaps(delta), r).flatten().tolist()
        for cells in ('adaptive', 'nested')
        for r in (1, 2)
    }
    assert found['adaptive', 1] == pytest.approx([1 / 49])
    assert found['adaptive', 2] == pytest.approx([0.0625] * 4)
    assert found['nested', 1] == pytest.approx([1 / 36])
    assert found['nested', 2] == pytest.approx([1 / 36] * 4)


@pytest.mark.parametrize('side', [4, 8])
def test_nested_cells_of_multiples_of_four(side):
    maps = random_maps(1, side), random_maps(2, side)
    labels = torch.tensor([0, 4, 2])
    arguments = dict(scales=(1, 2, 4), labels=labels)
    assert value(*maps, **arguments) == pytest.approx(
        value(*maps, cells='nested', **arguments), rel=1e-12
    )


@pytest.mark.parametrize('inner', [KLDivLoss(4), DKDLoss(2, 1, 6), NKDLoss(2, 3)], ids=repr)
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16])
def test_one_scale_is_the_inner_loss_bit_for_bit(inner, dtype):
    s, t = (random_maps(seed, 5, dtype=dtype) for seed in (1, 2))
    arguments = dict(type=type(inner).__name__, tau=inner.tau)
    arguments |= {
        key: getattr(inner, key) for key in ('alpha', 'beta', 'gamma') if hasattr(inner, key)
    }
    labels = torch.tensor([0, 4, 2])
    loss = SDDLoss((1,), arguments)(s, t, labels)
    given = (labels,) if 'class' in inner.needs else ()
    assert torch.equal(loss, inner(s.logits(), t.logits(), *given))


def test_maps_without_space_have_one_kind_of_cell():
    flat = [ClassMaps(m.features.mean((2, 3), True).expand(-1, -1, 4, 4), m.weight, m.bias)
            for m in (student(), teacher())]  # fmt: skip
    loss = SDDLoss((1, 2, 4), DKD)
    expected = value(scales=(1,), inner=DKD)
    assert loss(*flat, LABELS).item() == pytest.approx(expected, rel=1e-12)
    assert loss.logs['complementary_share'] == 0


def test_equal_maps():
    for inner in (KD, DKD):
        maps = student().map(lambda each: each.clone().requires_grad_())
        loss = SDDLoss(inner=inner)(maps, student(), LABELS)
        assert loss.item() == pytest.approx(0, abs=1e-12)
        gradient = torch.autograd.grad(loss, maps.features)[0]
        torch.testing.assert_close(gradient, 0 * gradient, rtol=0, atol=1e-12)


def test_a_constant_added_to_all_classes_does_not_count_for_softmax():
    moved = [ClassMaps(m.features, m.weight, m.bias + 7) for m in (student(), teacher())]
    assert value(*moved) == pytest.approx(0.295691151128, rel=1e-11)
    doubled = [ClassMaps(m.features.repeat(2, 1, 1, 1), m.weight, m.bias) for m in moved]
    assert value(*doubled, labels=LABELS.repeat(2)) == pytest.approx(0.295691151128, rel=1e-11)


def test_labels_do_not_count_where_cells_weigh_the_same():
    for labels in ([0, 1], [2, 2]):
        found = value(complementary=1, labels=torch.tensor(labels))
        assert found == pytest.approx(0.242241784566, rel=1e-11)


def test_no_labels_are_needed_for_the_split_by_class():
    loss = SDDLoss(split='class')
    assert loss.needs == ('teacher',)
    term = build_term('sdd', dict(type='SDDLoss', at='cam', split='class'))
    assert term(student(), teacher()).item() == pytest.approx(0.350005461660, rel=1e-6)
    assert 'class' in SDDLoss(split='class', inner=DKD).needs
    with pytest.raises(ValueError, match='terms.sdd: SDDLoss needs the labels of the images'):
        build_term('sdd', dict(type='SDDLoss', at='cam'))(student(), teacher())


@pytest.mark.parametrize('loss', [SDDLoss(), CellGramLoss((2,))], ids=repr)
def test_shards(loss):
    given = (lambda each: (each,)) if 'class' in loss.needs else (lambda each: ())
    whole = loss(student(), teacher(), *given(LABELS)).item()
    halves = []
    for i in (0, 1):
        one = (ClassMaps(m.features[[i]], m.weight, m.bias) for m in (student(), teacher()))
        halves.append(loss(*one, *given(LABELS[[i]])).item())
    assert sum(halves) / 2 == pytest.approx(whole, rel=1e-12)


def test_any_head_has_a_remainder():
    """The cells of scale 1 are the model's logits also where they are no sums of channels."""
    head = torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 5)
    ).double()
    features = random_maps(1).features
    maps = ClassMaps.linearised(features, head)
    found = SDDLoss().cell_logits(maps, 1)[:, 0]
    torch.testing.assert_close(found, head(features.mean((2, 3))))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('loss', [SDDLoss(), SDDLoss(inner=DKD), CellGramLoss((2,))], ids=repr)
def test_half_precision_and_saturation(loss, dtype):
    given = (LABELS,) if 'class' in loss.needs else ()
    maps = [each.map(lambda t: t.to(dtype)) for each in (student(), teacher())]
    with torch.autocast('cpu', torch.bfloat16):
        found = loss(*maps, *given)
    assert found.dtype == torch.float32
    exact = [each.map(torch.Tensor.double) for each in maps]
    assert found.item() == pytest.approx(loss(*exact, *given).item(), rel=1e-4)
    features = (1e4 * student().features).to(dtype).requires_grad_()
    huge = ClassMaps(features, maps[0].weight, maps[0].bias)
    found = loss(huge, maps[1], *given)
    assert found.isfinite()
    assert torch.autograd.grad(found, huge.features)[0].isfinite().all()


def test_two_classes():
    maps = [random_maps(seed, 4, classes=2) for seed in (1, 2)]
    labels = torch.tensor([0, 1, 1])
    assert 0 < value(*maps, labels=labels) < torch.inf
    assert 0 < CellGramLoss((2,))(*maps).item() < torch.inf
    with pytest.raises(
        ValueError, match='DKDLoss needs two classes beside the label, and there are 2'
    ):
        value(*maps, labels=labels, inner=DKD)


def test_a_step_of_a_distiller():
    model = distiller(dict(sdd=dict(type='SDDLoss', at='cam'))).train()
    losses = model(*batch(), 'loss')
    assert {'sdd.consistent', 'sdd.complementary', 'sdd.scale_2'} <= set(losses)
    total(losses).backward()
    assert all(p.grad is not None for p in model.student.head.parameters())


@pytest.mark.parametrize('head', [False, True])
def test_maps_of_a_cached_teacher(head):
    """They are pooled, and those of any head are finished and have a remainder for each sample."""
    t = random_maps(2, 8)
    if head:
        network = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh()).double()
        t = ClassMaps.linearised(t.features, network)
    stored = t.pooled(4).detach() if head else F.adaptive_avg_pool2d(t.features, 4)
    cached = ClassMaps(stored, *((None, t.remainder().detach()) if head else (t.weight, t.bias)))
    labels = torch.tensor([0, 4, 2])
    for scales in ((1, 2), (2, 4)):
        found, expected = (
            value(random_maps(1, 8), m, labels=labels, scales=scales) for m in (cached, t)
        )
        assert found == pytest.approx(expected, rel=1e-10)


def test_the_bias_of_one_side_alone(monkeypatch):
    said = []
    monkeypatch.setattr(local_logits, 'print_log', lambda text, **_: said.append(text))
    loss = SDDLoss()
    loss(student(), teacher(), LABELS)
    loss(student().full(), teacher().full(), LABELS)
    assert not said
    for _ in range(2):
        loss(student(), teacher().full(), LABELS)
    (text,) = said
    assert text.startswith('SDDLoss: the class maps of the teacher have no bias and the others may')


@pytest.mark.parametrize('kind', [SDDLoss, CellGramLoss])
@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(scales=()), r'scales is \[\]; it must be a list of different integers of at least 1'),
        (dict(scales=(2, 2)), r'scales is \[2, 2\]; it must be a list of different integers of'),
        (dict(scales=(0, 2)), r'scales is \[0, 2\]; it must be a list of different integers of'),
        (dict(scales=2), 'scales is 2; it must be a list of integers'),
        (dict(cells='odd'), "cells is 'odd'; it must be one of adaptive, nested"),
        (
            dict(scales=(1, 3), cells='nested'),
            r"scales is \[1, 3\], and cells='nested' has the scales 1, 2 and 4; use cells='adaptive'",
        ),
    ],
)
def test_bad_scales(kind, arguments, message):
    with pytest.raises(ValueError, match=f'^{message}'):
        kind(**arguments)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(inner=3), 'inner is 3; it must be a dict of options'),
        (
            dict(inner=dict(tau=4)),
            'inner.type is None; it must be one of KLDivLoss, DKDLoss, NKDLoss',
        ),
        (dict(inner=dict(type='MSELoss')), "inner.type is 'MSELoss'; it must be one of KLDivLoss,"),
        (dict(inner=dict(KD, tau=0)), 'inner: tau is 0; it must be a finite number above 0'),
        (dict(inner=dict(KD, t=4)), "inner: .* unexpected keyword argument 't'"),
        (
            dict(inner=dict(KD, activation='sigmoid')),
            "inner.activation is 'sigmoid'; SDDLoss compares",
        ),
        (dict(complementary=-1), 'complementary is -1; it must be a finite number of at least 0'),
        (dict(split='code'), "split is 'code'; it must be one of correctness, class"),
        (dict(reduction='max'), "reduction is 'max'; it must be one of mean, sum"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=f'^{message}'):
        SDDLoss(**arguments)


@pytest.mark.parametrize('kind', [SDDLoss, CellGramLoss])
def test_maps_that_do_not_fit(kind):
    loss = kind((2, 4))
    message = (
        'scales has 4, and the class maps of student and teacher have 2x2 and 4x4 positions; leave'
    )
    with pytest.raises(ValueError, match=f'^{message} the scale out, or set repeat=True'):
        loss.check(student(), teacher())
    kind((2, 4), repeat=True).check(student(), teacher())
    loss.check(teacher(), teacher())
    given = (LABELS,) if kind is SDDLoss else ()
    message = (
        r'class maps of shapes \(2, 3, 2, 2\) and \(3, 5, 4, 4\) cannot be compared; images and'
    )
    with pytest.raises(ValueError, match=f'^{message} classes must be the same'):
        loss(student(), random_maps(1), *given)


# Gram matrices


def test_gram_matrices():
    loss = CellGramLoss((2,), tau=1)
    upper = torch.triu_indices(4, 4, 1).unbind()
    expected = dict(
        teacher=[-0.410914418, -0.364068571, 0.975678224, 0.995861708, -0.568819895, -0.517105976],
        student=[0.418388762, 0.418388762, 0.927701744, 1, 0.060623411, 0.060623411],
    )
    for maps, owner in ((teacher(), 'teacher'), (student(), 'student')):
        logits = F.normalize(loss.cell_logits(maps, 2), dim=2)
        gram = logits @ logits.mT
        torch.testing.assert_close(gram[0][upper], tensor(expected[owner]), rtol=0, atol=1e-9)
        torch.testing.assert_close(loss._log_rows(loss.cell_logits(maps, 2)), gram.log_softmax(2))


@pytest.mark.parametrize(
    'expected, arguments',
    [
        (0.049036287059, dict(scales=(2,))),
        (0.049036287059 / 4, dict(scales=(2,), reduction='mean')),
        (0.162113643236, dict(scales=(2,), tau=1)),
        (0.065381716079 / 2, dict(scales=(1, 2), weights=(1 / 3, 2 / 3))),
        (0.222851085384 / 2, dict(scales=(1, 2, 4), weights=(1 / 6, 2 / 6, 3 / 6), repeat=True)),
        (0.049036287059 / 3 + 0.190160227344 * 2 / 3, dict(repeat=True)),
        (0.049036287059 / 3 + 0.190160227344 * 2 / 3, dict(scales=(1, 2, 4), repeat=True)),
    ],
)
def test_gram_values(expected, arguments):
    loss = CellGramLoss(**arguments)
    assert loss(student(), teacher()).item() == pytest.approx(expected, rel=1e-10)
    assert loss.logs.get('scale_1', 0) == 0


def test_a_constant_added_to_all_classes():
    moved = ClassMaps(student().features, student().weight, student().bias + 1)
    found = CellGramLoss((2,))(moved, teacher()).item()
    assert found == pytest.approx(0.113837806463, rel=1e-10)
    loss = CellGramLoss((2,), center=True)
    expected = loss(student(), teacher()).item()
    assert loss(moved, teacher()).item() == pytest.approx(expected, rel=1e-10)


def test_scales_and_classes_of_one_side_do_not_count():
    s = student()
    for maps in (
        ClassMaps(s.features, 3 * s.weight, 3 * s.bias),
        ClassMaps(s.features, s.weight[[2, 0, 1]], s.bias[[2, 0, 1]]),
    ):
        found = CellGramLoss((2,))(maps, teacher()).item()
        assert found == pytest.approx(0.049036287059, rel=1e-10)
    bare = [ClassMaps(m.features, m.weight) for m in (student(), teacher())]
    assert CellGramLoss((2,))(*bare).item() == pytest.approx(0.035163756811, rel=1e-10)


def test_gram_gradient_is_orthogonal_to_the_logits_of_each_cell():
    maps = student().full() + student().bias[:, None, None]
    maps = maps.detach().requires_grad_()
    loss = CellGramLoss((2,))(maps, teacher())
    (gradient,) = torch.autograd.grad(loss, maps)
    assert gradient.abs().max() > 1e-4
    torch.testing.assert_close((gradient * maps).sum(1), 0 * maps[:, 0], rtol=0, atol=1e-14)


def test_cells_of_zero_have_no_gradient():
    maps = torch.zeros(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    loss = CellGramLoss((2,))(maps, teacher())
    assert loss.isfinite()
    assert torch.autograd.grad(loss, maps)[0].count_nonzero() == 0


@pytest.mark.parametrize(
    'arguments, message',
    [
        (
            dict(scales=(1,)),
            r'scales is \[1\], which has one cell and no pairs; add a scale of 2 or',
        ),
        (dict(tau=0), 'tau is 0; it must be a finite number above 0'),
        (dict(reduction='max'), "reduction is 'max'; it must be one of sum, mean"),
        (dict(weights=(1,)), r'weights is \(1,\); it must be a list of 2 numbers, one for each of'),
        (dict(weights=(1, -1)), 'weights is -1; it must be a finite number of at least 0'),
        (dict(scales=(1, 2), weights=(1, 0)), 'weights of the scales above 1 are 0, so nothing is'),
    ],
)
def test_bad_arguments_of_gram_matrices(arguments, message):
    with pytest.raises(ValueError, match=f'^{message}'):
        CellGramLoss(**arguments)
