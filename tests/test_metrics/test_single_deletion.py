"""SingleDeletion and Infidelity: an additive model by hand, noise, and rules for what says nothing."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from measuring import batch_of, explained, network, rand, scores, values
from scipy.stats import spearmanr
from torch import nn

from mmkdx.explain import RandomMap
from mmkdx.functional.perturbation import blur, cell_numbers
from mmkdx.metrics import DeletionInsertion, Infidelity, SingleDeletion
from mmkdx.metrics.single_deletion import relative_infidelity

X = torch.tensor([[1.0, 2, 0, 1], [0, 1, 3, -1], [2, -1, 1, 1], [1, 0, 2, 2]])
W = torch.tensor([[0.5, 1, -1, 2], [1, -0.5, 1, 1], [1, 1, -2, 0.5], [-1, 3, 0.5, -1]])
#: The score falls by these without each cell of 2 x 2 pixels.
EFFECTS = [2.0, 4, 0, -2.5]


class Additive(nn.Module):
    """Class 0 has the logit relu(Σ w · x - shift), without the relu for no shift; class 1 has 0."""

    def __init__(self, weight=W, shift=None):
        super().__init__()
        self.weight, self.shift = weight, shift

    def forward(self, images):
        logit = (images * self.weight).sum((1, 2, 3))
        if self.shift is not None:
            logit = (logit - self.shift).relu()
        return torch.stack([logit, torch.zeros_like(logit)], 1)


def additive_batch(*maps, shift=None):
    images = X.expand(len(maps), 1, 4, 4)
    student = explained(Additive(shift=shift), images, torch.stack(maps), [0] * len(maps))
    return batch_of(images, student=student)


def test_single_deletion_by_hand():
    """The effects are 2, 4, 0 and -2.5."""
    maps = dict(exact=W * X, absolute=(W * X).abs(), weight=W, image=X, square=(W * X) ** 2)
    maps |= dict(opposite=-W * X, affine=3 * W * X - 7, small=1e-9 * W * X)
    expected = dict(exact=1, absolute=0.2, weight=0.4, image=-0.4, square=0.2, opposite=-1)
    rows = values(SingleDeletion(grid=2), additive_batch(*maps.values()))
    for row, name in zip(rows.values(), maps):
        rho = expected.get(name, 1)
        assert row['single_deletion'] == pytest.approx(rho, abs=1e-6), name
    tops = [row['single_deletion_top'] for row in rows.values()]
    # The second cell has the largest effect; the weight, the image and the opposite name others
    assert tops == [1, 1, 0, 0, 1, 0, 1, 1]


def test_single_deletion_behind_a_relu():
    """The effects are 0.5, 0.5, 0 and -2.5; the first two share the largest one."""
    batch = additive_batch(W * X, -W * X, shift=3)
    first, second = values(SingleDeletion(grid=2), batch).values()
    assert first['single_deletion'] == pytest.approx(0.948683298, abs=1e-6)
    assert first['single_deletion_top'] == 1 and second['single_deletion_top'] == 0
    assert second['single_deletion'] == pytest.approx(-0.948683298, abs=1e-6)


def test_accuracy_on_images_with_a_deleted_cell():
    """Class 0 is found where its logit is above 0: 3.5 - (2, 4, 0, -2.5), and with the shift 1.5."""
    images, maps = X.expand(3, 1, 4, 4), torch.stack([W * X] * 3)
    model = Additive()
    student = explained(model, images, maps, [0] * 3)
    batch = batch_of(images, labels=[0, 1, 0], student=student)
    batch.models['student'].logits = torch.tensor([[3.5, 0], [3.5, 0], [0, 1]])
    found = scores(metric := SingleDeletion(grid=2), batch)
    rows = [(r['deleted_accuracy'], r['accuracy_drop']) for r in metric.rows.values()]
    assert rows == [(0.75, 0.25), (0.25, -0.25), (0.75, -0.75)]
    assert found['deleted_accuracy'].better == 'higher' and found['accuracy_drop'].better == 'lower'
    # Without one label for each image, or with one logit, there is no accuracy
    for labels in (None, [0, [0, 1], 0]):
        assert 'accuracy_drop' not in scores(metric, batch_of(images, labels, student=student))
    student = explained(lambda x: model(x)[:, :1], images, maps, [0] * 3)
    assert 'accuracy_drop' not in scores(metric, batch_of(images, [0] * 3, student=student))


def test_maps_of_one_model_share_its_predictions():
    images, net, calls = rand(2, 3, 8, 8), network(), []
    one = explained(net, images, rand(2, 8, 8))
    one.predict = lambda copies: (calls.append(len(copies)), net(copies).detach())[1]
    batch = batch_of(images, student=one)
    other = replace(one, maps=rand(2, 8, 8, seed=1))
    metrics = SingleDeletion(), Infidelity(subsets=3), SingleDeletion(baseline='black')
    together = [metric.measure(batch, each) for metric in metrics for each in (one, other)]
    assert calls == [32, 6, 32]
    alone = [
        metric.measure(batch_of(images, student=each), each)
        for metric in metrics
        for each in (one, other)
    ]
    for first, second in zip(together, alone):
        assert all(map(torch.equal, first.values(), second.values()))


def test_what_says_nothing_is_not_counted():
    # The third map is not constant, and its sums over cells are
    stripes = torch.tensor([1.0, -1]).repeat(2).expand(4, 4)
    maps = [W * X, torch.ones(4, 4), stripes, (W * X).abs()]
    metric = SingleDeletion(grid=2)
    score = scores(metric, additive_batch(*maps))['single_deletion']
    assert score.value == pytest.approx(0.6) and score.n == 2 and score.better == 'higher'
    nothing = [math.isnan(row['single_deletion_top']) for row in metric.rows.values()]
    assert nothing == [False, True, True, False]
    # The score is 0 with and without each cell
    still = additive_batch(W * X, shift=99)
    for kind in (SingleDeletion, Infidelity):
        for score in scores(kind(grid=2, **SETS.get(kind, {})), still).values():
            assert math.isnan(score.value) and score.n == 0


SETS = {Infidelity: dict(size=(1, 4))}


def test_rounding_errors_of_the_score_are_no_effects():
    noise = 1 + 1e-7 * rand(64)

    def predict(images):
        return 50 * noise[: len(images), None].expand(-1, 2)

    batch = additive_batch(W * X)
    batch.models['student'].predict = predict
    batch.models['student'].logits = torch.full((1, 2), 50.0)
    for metric in (SingleDeletion(2), Infidelity(2, size=(1, 4))):
        assert all(math.isnan(score.value) for score in scores(metric, batch).values())


def test_spearman_is_that_of_scipy_on_sizes_that_the_grid_does_not_divide():
    net, images, maps = network(), rand(3, 3, 13, 11), rand(3, 13, 11, seed=1)
    rows = values(SingleDeletion(grid=4), batch_of(images, student=explained(net, images, maps)))
    for image, map_, row in zip(images, maps, rows.values()):
        with torch.no_grad():
            target = net(image[None]).argmax()
            relevance, effect = [], []
            for i in range(4):
                for j in range(4):
                    inside = torch.zeros(13, 11, dtype=torch.bool)
                    for y in range(13):
                        for x in range(11):
                            inside[y, x] = y * 4 // 13 == i and x * 4 // 11 == j
                    relevance.append(map_[inside].sum().item())
                    gone = image.masked_fill(inside, 0)
                    effect.append((net(image[None]) - net(gone[None]))[0, target].item())
        expected = spearmanr(relevance, effect).statistic
        assert row['single_deletion'] == pytest.approx(expected, abs=1e-5)
        assert row['single_deletion_top'] == (np.argmax(relevance) == np.argmax(effect))


@pytest.mark.parametrize('baseline', ['zero', 'black', 'blur'])
def test_baselines(baseline):
    """Of a model that sees one colour: its effect is image minus baseline."""
    images = rand(1, 3, 4, 4).abs() + torch.arange(16.0).view(4, 4)
    model = Additive(torch.ones(3, 4, 4))
    batch = batch_of(images, mean=[3.0], std=[2.0], student=explained(model, images, rand(1, 4, 4)))
    fill = dict(zero=torch.zeros(1), black=torch.tensor(-1.5))
    effects = (images - fill.get(baseline, blur(images))).sum(1)
    batch.models['student'].maps = effects
    row = values(SingleDeletion(baseline=baseline), batch)[0]
    assert row['single_deletion'] == pytest.approx(1, abs=1e-6)


def test_numbers_of_cells():
    assert cell_numbers((4, 4), 3, 'grid')[:, 0].div(3, rounding_mode='floor').tolist() == [
        0,
        0,
        1,
        2,
    ]
    assert cell_numbers((4, 7), 4, 'grid')[0].tolist() == [0, 0, 1, 1, 2, 2, 3]
    counts = cell_numbers((9, 14), 4, 'grid').flatten().bincount()
    assert len(counts) == 16 and counts.sum() == 9 * 14
    with pytest.raises(
        ValueError, match=r'^grid is 5 and the image has 4x7 pixels; it must be at mo'
    ):
        cell_numbers((4, 7), 5, 'grid')


@pytest.mark.parametrize('kind', [SingleDeletion, Infidelity])
def test_an_image_smaller_than_the_grid_is_refused(kind):
    with pytest.raises(
        ValueError, match=f'^{kind.__name__}.grid is 5 and the image has 4x4 pixels'
    ):
        scores(kind(grid=5), additive_batch(W * X))


# Infidelity


@pytest.mark.parametrize(
    'relevance, expected',
    [
        (EFFECTS, 0),
        ([10 * each for each in EFFECTS], 0),
        ([1e-30 * each for each in EFFECTS], 0),
        ([3, 6, 4, 5.5], 0.8897586432),
        ([1, 1, 1, 1], 0.8833333333),
        ([-each for each in EFFECTS], 1),
        ([0, 0, 0, 0], 1),
    ],
)
def test_infidelity_by_hand(relevance, expected):
    found = relative_infidelity(torch.tensor([relevance]), torch.tensor([EFFECTS]))
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_infidelity_is_the_least_squared_error():
    relevance, effect = rand(4, 50) + 0.3, rand(4, 50, seed=1) + 0.3
    betas = torch.linspace(0, 3, 3001)[:, None, None]
    errors = (betas * relevance - effect).square().mean(2) / effect.square().mean(1)
    torch.testing.assert_close(
        relative_infidelity(relevance, effect), errors.amin(0), rtol=0, atol=1e-5
    )


def test_infidelity_of_an_additive_model():
    maps = [W * X, 10 * W * X, -W * X, W, torch.ones(4, 4)]
    metric = Infidelity(grid=2, size=(1, 3))
    score = scores(metric, additive_batch(*maps))['infidelity']
    exact, tenfold, opposite, weight, constant = (r['infidelity'] for r in metric.rows.values())
    assert exact == pytest.approx(0, abs=1e-6) and tenfold == pytest.approx(0, abs=1e-6)
    assert opposite == 1 and 0.05 < weight < 0.95
    assert math.isnan(constant) and score.n == 4 and score.better == 'lower'


def test_random_sets_have_sizes_of_the_range_and_all_cells():
    sets = Infidelity(subsets=400, size=[2, 5])._sets(range(10))
    sizes = sets.sum(-1).flatten().bincount()
    assert sizes[:2].sum() == 0 and len(sizes) == 6
    # 4000 sets, each size as likely: five standard deviations
    assert ((sizes[2:] - 1000).abs() < 5 * (4000 * 0.25 * 0.75) ** 0.5).all()
    shares = sets.float().mean((0, 1))
    assert ((shares - 3.5 / 16).abs() < 0.035).all()
    assert len({each.numpy().tobytes() for each in sets}) == 10
    assert torch.equal(Infidelity(subsets=400, size=[2, 5])._sets([3]), sets[3:4])
    assert not torch.equal(Infidelity(subsets=400, size=[2, 5], seed=99)._sets([3]), sets[3:4])


@pytest.mark.parametrize('size', [(0, 3), (3, 2), (1, 17), (1,), (1, 2, 3), []])
def test_sizes_of_sets_that_cannot_be(size):
    message = (
        r'^Infidelity.size is .*; it must be two integers from 1 to 16 \(the number of cells\)'
    )
    with pytest.raises(ValueError, match=message):
        Infidelity(size=size)


# Both


METRICS = [SingleDeletion(), Infidelity(subsets=9, seed=3)]


@pytest.mark.parametrize('metric', METRICS, ids=lambda m: type(m).__name__)
def test_values_do_not_depend_on_batches_or_the_global_state(metric):
    net, images, maps = network(), rand(6, 3, 12, 12), rand(6, 12, 12, seed=1)

    def batch(part):
        student = explained(net, images[part], maps[part])
        return batch_of(
            images[part],
            [1] * len(images[part]),
            index=range(6)[part],
            student=student,
            teacher=student,
        )

    state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    whole = values(metric, batch(slice(None)))
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.random.get_state()[1].tolist() == state[1]
    torch.manual_seed(7)
    metric.max_batch = 5
    scores(metric, batch(slice(0, 1)), batch(slice(1, 4)), batch(slice(4, 6)))
    metric.max_batch = 64
    assert set(whole) == set(metric.rows)
    for index, row in whole.items():
        assert metric.rows[index] == pytest.approx(row, abs=1e-5)
        for name in type(metric).better:
            assert row[f'teacher/{name}'] == row[name]


def test_single_deletion_is_the_same_for_cells_that_change_places():
    weight, images = rand(3, 8, 8, seed=2), rand(2, 3, 8, 8)
    maps = rand(2, 8, 8, seed=3)

    def flipped(values):
        return values.flip(-1).roll(2, -2)  # whole cells of 2 x 2

    def measured(turn):
        model = Additive(turn(weight))
        return values(
            SingleDeletion(),
            batch_of(turn(images), student=explained(model, turn(images), turn(maps), [0, 0])),
        )

    one, other = measured(lambda values: values), measured(flipped)
    for index in one:
        assert one[index] == pytest.approx(other[index], abs=1e-5)


def test_noise_is_the_floor():
    """For Spearman's correlation 0, with the standard deviation of 16 independent ranks."""
    images, model = rand(500, 1, 4, 4), Additive(rand(1, 4, 4, seed=4) + 0.1)
    targets = torch.zeros(500, dtype=torch.long)
    noise = RandomMap(size=4)(model, images, targets)
    exact = (images * model.weight).sum(1)

    def found(metric, maps):
        rows = values(metric, batch_of(images, student=explained(model, images, maps, targets)))
        (name,) = (name for name in rows[0] if not name.endswith('_top'))
        return torch.tensor([row[name] for row in rows.values()])

    floor = found(SingleDeletion(max_batch=8000), noise)
    deviation = 1 / math.sqrt(15)
    assert deviation == pytest.approx(0.2581988897)
    assert floor.mean().abs() < 4 * deviation / 500**0.5
    assert floor.std().item() == pytest.approx(deviation, abs=4 * deviation / 1000**0.5)
    assert found(SingleDeletion(max_batch=8000), exact).min() > 1 - 1e-6
    infidelity = Infidelity(subsets=20, max_batch=10000)
    assert found(infidelity, exact).max() < 1e-5 < 0.8 < found(infidelity, noise).mean() < 1


def test_single_deletion_deletes_the_same_cells_as_the_masking_metrics_would():
    """One cell of a grid of 2 is the first step of four of a map that names it."""
    images, net = rand(1, 3, 8, 8), network(classes=3)
    cells = cell_numbers((8, 8), 2, 'grid')
    seen = []
    student = explained(net, images, rand(1, 8, 8))
    student.predict = lambda copies: (seen.append(copies), net(copies).detach())[1]
    SingleDeletion(grid=2).process(batch_of(images, student=student))
    (copies,) = seen
    for cell, copy in enumerate(copies):
        student.maps, steps = (cells == cell)[None].float(), DeletionInsertion(steps=4)
        seen.clear()
        steps.process(batch_of(images, student=student))
        torch.testing.assert_close(seen[0][0], copy, rtol=0, atol=0)
