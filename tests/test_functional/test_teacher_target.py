"""What is left of a teacher's probabilities: numbers by hand, and what each kind keeps."""

import pytest
import torch

from mmkdx.functional.teacher_target import (
    KINDS,
    NEEDS,
    component_target,
    cwtm_weights,
    shuffle_others,
)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def close(found, expected, abs=1e-12):
    torch.testing.assert_close(found, expected, rtol=0, atol=abs)


T = tensor([0.6, 0.25, 0.1, 0.05], [0.8, 0.1, 0.06, 0.04])
LABELS = torch.tensor([0, 0])
MEAN = T.mean(0)


def by_hand(n=4):
    """Statistics in which only what is said of class 0 is not NaN."""
    nothing = torch.full((n, n), torch.nan, dtype=torch.float64)
    mean, cosines = nothing.clone(), nothing.clone()
    mean[0] = MEAN
    cosines[0] = tensor(1, 0.5, 0, -0.5)
    return dict(mass=tensor(0.7)[0], class_mean=mean, weight_similarity=cosines)


@pytest.mark.parametrize(
    'kind, expected',
    [
        ('onehot', [[1, 0, 0, 0], [1, 0, 0, 0]]),
        ('meanmass', [[0.7, 0.1, 0.1, 0.1]] * 2),
        ('uniform', [[0.6, *[0.4 / 3] * 3], [0.8, *[0.2 / 3] * 3]]),
        ('classmean', [[0.7, 0.175, 0.08, 0.045]] * 2),
        (
            'classmean_instmass',
            [
                [0.6, 0.4 * 0.175 / 0.3, 0.4 * 0.08 / 0.3, 0.4 * 0.045 / 0.3],
                [0.8, 0.2 * 0.175 / 0.3, 0.2 * 0.08 / 0.3, 0.2 * 0.045 / 0.3],
            ],
        ),
        ('full', T.tolist()),
    ],
)
def test_numbers(kind, expected):
    close(component_target(T, LABELS, kind, by_hand()), tensor(*expected))


def test_instance_mass_rounded():
    found = component_target(T, LABELS, 'classmean_instmass', by_hand())
    close(found[0], tensor(0.6, 0.2333, 0.1067, 0.06), abs=5e-5)
    close(found[1], tensor(0.8, 0.1167, 0.0533, 0.03), abs=5e-5)


@pytest.mark.parametrize('tau', [0.25, 1.0])
def test_similar_weights_share_what_is_left(tau):
    found = component_target(T, LABELS, 'weightsim', by_hand(), similarity_tau=tau)
    shares = (tensor(0.5, 0, -0.5) / tau).exp()
    shares = shares / shares.sum()
    close(found, torch.cat([T[:, :1], (1 - T[:, :1]) * shares], 1))
    if tau == 0.25:
        close(found, component_target(T, LABELS, 'weightsim', by_hand()))


def probabilities(n=40, classes=7, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    t = torch.randn(n, classes, generator=generator, dtype=dtype).softmax(1)
    return t, torch.randint(classes, (n,), generator=generator)


def measured(t, labels):
    """Statistics of the very images, class by class."""
    means = [t[labels == k].mean(0) for k in range(t.shape[1])]
    mass = t.gather(1, labels[:, None]).mean()
    weight = torch.randn(t.shape[1], 5, generator=torch.Generator().manual_seed(1)).to(t)
    rows = torch.nn.functional.normalize(weight)
    return dict(mass=mass, class_mean=torch.stack(means), weight_similarity=rows @ rows.T)


@pytest.mark.parametrize('anchor', ['label', 'argmax'])
@pytest.mark.parametrize('kind', KINDS)
def test_probabilities_stay_probabilities(kind, anchor):
    t, labels = probabilities()
    found = component_target(t, labels, kind, measured(t, labels), anchor)
    assert found.shape == t.shape and (found >= 0).all()
    close(found.sum(1), torch.ones(len(t), dtype=torch.float64), abs=1e-12)
    kept = labels if anchor == 'label' else t.argmax(1)
    if kind in ('uniform', 'permute', 'weightsim', 'classmean_instmass', 'full'):
        assert torch.equal(found.gather(1, kept[:, None]), t.gather(1, kept[:, None]))
    if kind == 'onehot':
        assert torch.equal(found.argmax(1), kept)


@pytest.mark.parametrize('kind', ['meanmass', 'classmean'])
def test_the_mean_mass_is_that_of_the_teacher(kind):
    """So a difference to a kind with each image's own mass is none of a mean that has moved."""
    t, labels = probabilities()
    found = component_target(t, labels, kind, measured(t, labels))
    close(found.gather(1, labels[:, None]).mean(), t.gather(1, labels[:, None]).mean())


def test_the_teachers_prediction_in_place_of_the_label():
    t, labels = probabilities()
    statistics = measured(t, labels)
    own = t.argmax(1)
    assert not torch.equal(own, labels)
    for kind in set(KINDS) - {'permute'}:
        expected = component_target(t, own, kind, statistics)
        assert torch.equal(component_target(t, None, kind, statistics, 'argmax'), expected)
    torch.manual_seed(0)
    expected = component_target(t, own, 'permute')
    torch.manual_seed(0)
    assert torch.equal(component_target(t, None, 'permute', anchor='argmax'), expected)


# The permutation


def test_permutation_keeps_the_label_and_the_values():
    t, labels = probabilities()
    found = component_target(t, labels, 'permute')
    own = torch.nn.functional.one_hot(labels, t.shape[1]).bool()
    assert torch.equal(found[own], t[own])
    assert torch.equal(found.sort(1).values, t.sort(1).values)  # thus the entropy, too
    assert not torch.equal(found, t)


def test_permutation_follows_the_global_generator():
    t, labels = probabilities()
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(component_target(t, labels, 'permute'))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    # and each call draws anew
    assert not torch.equal(component_target(t, labels, 'permute'), draws[2])


def test_images_are_permuted_each_by_itself_and_uniformly():
    torch.manual_seed(0)
    n, classes = 12_000, 4
    values = torch.arange(4.0).expand(n, classes)
    labels = torch.full((n,), 2)
    found = shuffle_others(values, labels)
    assert (found[:, 2] == 2).all()
    orders, counts = found.unique(dim=0, return_counts=True)
    assert len(orders) == 6  # 3! of the others
    assert (counts - n / 6).abs().max() < 5 * (n * 5 / 36) ** 0.5


def test_two_classes_leave_nothing_to_permute():
    t, labels = probabilities(classes=2)
    assert torch.equal(shuffle_others(t, labels), t)


# Precision


@pytest.mark.parametrize('kind', ['uniform', 'weightsim', 'classmean_instmass'])
def test_a_sure_teacher_keeps_what_is_left(kind):
    """1 - t_y would be 0 in fp32."""
    t = torch.tensor([[1.0, 1e-9, 1e-12, 2e-9]])
    statistics = dict(class_mean=t.expand(4, 4), weight_similarity=torch.eye(4))
    found = component_target(t, torch.tensor([0]), kind, statistics)
    assert found[0, 1:].sum().item() == pytest.approx(3.001e-9, rel=1e-5)


def test_a_class_whose_others_are_all_zero_is_finite():
    t = torch.tensor([[1.0, 0, 0]])
    found = component_target(
        t, torch.tensor([0]), 'classmean_instmass', dict(class_mean=torch.eye(3))
    )
    assert torch.equal(found, t)


def test_statistics_take_the_precision_of_the_probabilities():
    t, labels = probabilities()
    statistics = {key: value.float() for key, value in measured(t, labels).items()}
    for kind in NEEDS:
        assert component_target(t, labels, kind, statistics).dtype == torch.float64


# The rest


def test_weights_of_confidences():
    close(cwtm_weights(tensor(0.9, 0.6, 0.5)), tensor(1.35, 0.9, 0.75))


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(kind='shuffle'), "kind is 'shuffle'; it must be one of onehot, meanmass, "),
        (dict(kind='uniform', anchor='top'), "anchor is 'top'; it must be one of label, argmax"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(ValueError, match=message):
        component_target(T, LABELS, **arguments)
