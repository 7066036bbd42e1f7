"""MaxSensitivity: exact values, captum's, and that nothing random is left to chance."""

import numpy as np
import pytest
import torch

from mmkdx.functional.perturbation import sample_generators
from mmkdx.metrics import Explained, ExplainedBatch
from mmkdx.metrics.map_properties import MaxSensitivity
from mmkdx.registry import METRICS


def explain(images, targets):
    """Maps of half the resolution that depend on the image and the class."""
    maps = torch.sin(images).sum(1) * (1 + targets[:, None, None]) - images.prod(1)
    return maps[:, ::2, ::2]


def batch_of(index=(0, 1, 2, 3), explain=explain, **kwargs):
    images = torch.randn(8, 3, 6, 8, generator=torch.Generator().manual_seed(0))[list(index)]
    targets = torch.arange(8)[list(index)] % 3
    model = Explained(
        explain(images, targets), targets, torch.zeros(len(images), 3), None, explain, **kwargs
    )
    return ExplainedBatch(images, index, dict(student=model))


def values(metric, *batches):
    for batch in batches:
        metric.process(batch)
    metric.evaluate(1000)
    return metric.rows


def perturbations(index, radius, samples, seed=0):
    """The changes, of shape (N, samples, 3, 6, 8)."""
    changes = []
    for generator in sample_generators(index, seed, 'cpu'):
        drawn = [torch.rand(3, 6, 8, generator=generator) for _ in range(samples)]
        changes.append(torch.stack(drawn) * 2 * radius - radius)
    return torch.stack(changes)


@pytest.mark.parametrize('radius, samples', [(0.02, 10), (0.5, 1), (0.2, 25)])
def test_equals_captum_with_the_same_perturbations(radius, samples):
    captum = pytest.importorskip('captum.metrics')
    batch = batch_of()
    noise = perturbations(batch.index, radius, samples).flatten(0, 1)
    model = batch.models['student']

    def attribute(images):
        images = images[0] if isinstance(images, tuple) else images
        targets = model.targets.repeat_interleave(len(images) // len(model.targets))
        return (explain(images, targets).contiguous(),)

    expected = captum.sensitivity_max(
        attribute, batch.inputs, lambda images: images + noise, n_perturb_samples=samples
    )
    rows = values(MaxSensitivity(radius, samples), batch)
    assert [rows[i]['max_sensitivity'] for i in range(4)] == pytest.approx(
        expected.tolist(), rel=1e-4
    )


def test_values_by_hand():
    # a map that is the image: the change is that of the image itself
    def same(images, targets):
        return images.sum(1)

    batch = batch_of(explain=same)
    changes = perturbations(batch.index, 0.1, 4).sum(2).flatten(2).norm(dim=2)
    changes = changes / batch.inputs.sum(1).flatten(1).norm(dim=1)[:, None]
    rows = values(MaxSensitivity(radius=0.1, samples=4), batch)
    for i in range(4):
        assert rows[i]['max_sensitivity'] == pytest.approx(changes[i].max().item(), rel=1e-4)
        assert rows[i]['avg_sensitivity'] == pytest.approx(changes[i].mean().item(), rel=1e-4)
        assert 0 < rows[i]['avg_sensitivity'] < rows[i]['max_sensitivity']


def test_changes_stay_within_the_radius_and_fill_it():
    seen = []

    def watch(images, targets):
        seen.append(images)
        return explain(images, targets)

    batch = batch_of(explain=watch)
    values(MaxSensitivity(radius=0.3, samples=20), batch)
    changes = torch.stack(seen[1:]) - batch.inputs
    assert len(changes) == 20
    assert -0.3001 < changes.min() < -0.29 and 0.29 < changes.max() < 0.3001
    assert changes.mean().item() == pytest.approx(0, abs=0.01)
    assert not torch.equal(changes[0], changes[1])


def test_a_map_that_does_not_change_is_not_sensitive_and_a_step_is():
    def constant(images, targets):
        return torch.arange(12.0).view(1, 3, 4).expand(len(images), 3, 4)

    def steep(images, targets):
        return torch.sign(torch.sin(1e4 * images)).sum(1)

    assert values(MaxSensitivity(), batch_of(explain=constant))[0]['max_sensitivity'] == 0
    assert values(MaxSensitivity(), batch_of(explain=steep))[0]['max_sensitivity'] > 0.5


def test_a_larger_radius_and_more_samples_find_more():
    def largest(**kwargs):
        return values(MaxSensitivity(**kwargs), batch_of([0]))[0]['max_sensitivity']

    assert largest(radius=0.1) > largest(radius=0.02)
    assert largest(samples=100) > largest(samples=10) > largest(samples=1)


def test_a_zero_map_has_the_change_itself_and_is_not_counted():
    batch = batch_of(explain=lambda images, targets: torch.ones(len(images), 3, 4))
    model = batch.models['student']
    model.maps = torch.zeros(4, 3, 4)
    metric = MaxSensitivity(samples=2)
    change = metric.measure(batch, model)['max_sensitivity']
    assert change.tolist() == pytest.approx([12**0.5] * 4)
    metric.process(batch)
    result = metric.evaluate(10)['max_sensitivity']
    assert np.isnan(result.value) and result.n == 0


def test_values_do_not_depend_on_the_batches():
    whole = values(MaxSensitivity(), batch_of(range(8)))
    split = values(MaxSensitivity(), batch_of([6]), batch_of([1, 0, 7]), batch_of([2, 3, 4, 5]))
    assert sorted(split) == list(range(8))
    for index in range(8):
        assert split[index] == pytest.approx(whole[index], rel=1e-6)


def test_the_seed_decides_and_the_global_state_does_not():
    torch.manual_seed(1)
    first = values(MaxSensitivity(), batch_of())
    torch.manual_seed(2)
    state = torch.get_rng_state()
    metric = MaxSensitivity()
    assert values(metric, batch_of()) == first == values(metric, batch_of())
    assert torch.equal(torch.get_rng_state(), state)
    assert values(MaxSensitivity(seed=1), batch_of()) != first


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_maps_are_measured_in_fp32(dtype):
    def half(images, targets):
        return explain(images, targets).to(dtype)

    def rounded(images, targets):
        return half(images, targets).float()

    row = values(MaxSensitivity(radius=0.5), batch_of(explain=half))[0]
    expected = values(MaxSensitivity(radius=0.5), batch_of(explain=rounded))[0]
    assert row == pytest.approx(expected, rel=1e-6)


def test_scores_and_registry():
    metric = METRICS.build(dict(type='MaxSensitivity', radius=0.1))
    metric.process(batch_of())
    result = metric.evaluate(10)
    assert set(result) == {'max_sensitivity', 'avg_sensitivity'}
    assert all(score.better == 'lower' and score.n == 4 for score in result.values())


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(radius=0), 'MaxSensitivity.radius is 0; it must be a finite number above 0'),
        (dict(radius=-1.5), 'MaxSensitivity.radius is -1.5; it must be'),
        (dict(samples=0), 'samples is 0; it must be an integer of at least 1'),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        MaxSensitivity(**arguments)
