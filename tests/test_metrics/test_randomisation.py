"""ParameterRandomisation: exact values, the random weights, and that the model stays as it was."""

import numpy as np
import pytest
import torch
from explainable import explainer_for, images, model_for, state_of
from scipy import stats
from torch import nn

from mmkdx.evaluation.subjects import Subject
from mmkdx.metrics import Explained, ExplainedBatch, ParameterRandomisation
from mmkdx.metrics.randomisation import (
    forward_places,
    histogram_entropy,
    map_correlation,
    randomise,
)
from mmkdx.registry import METRICS

SCORES = ('mprt', 'mprt_last', 'emprt')


class Backwards(nn.Module):
    """Without batch norm; its layers are registered last first, and two have one shape."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.fc = nn.Linear(4, 3)
        self.third, self.second = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.shift = nn.Parameter(torch.randn(1, 4, 1, 1))

    def forward(self, x):
        x = torch.tanh(self.first(x)) + self.shift
        return self.fc(torch.tanh(self.third(torch.tanh(self.second(x)))).mean((2, 3)))


def gradient(model, inputs, targets):
    """A signed map that each weight has an influence on."""
    with torch.enable_grad():
        inputs = inputs.clone().requires_grad_()
        score = model(inputs).gather(1, targets[:, None]).sum()
        return torch.autograd.grad(score, inputs)[0].sum(1)


def explained(model, inputs, explainer=gradient, maps=None):
    """A model beside an explainer that is a function."""
    targets = inputs.flatten(1).sum(1).abs().long() % 3

    def explain(images, targets):
        return explainer(model, images, targets)

    @torch.no_grad()
    def predict(images):
        return model(images)

    def like(other):
        return explained(other, inputs, explainer, maps)

    maps = explain(inputs, targets) if maps is None else maps
    return Explained(maps, targets, predict(inputs), predict, explain, model=model, like=like)


def batch_of(model, index=(0, 1, 2, 3), explainer=gradient):
    inputs = torch.randn(4, 3, 6, 5, generator=torch.Generator().manual_seed(3))[list(index)]
    return ExplainedBatch(inputs, index, dict(student=explained(model, inputs, explainer)))


def rows(metric, *batches):
    for batch in batches:
        metric.process(batch)
    metric.evaluate(100)
    return metric.rows


def of_subject(name, n=3, training=False):
    """A small network of mmpretrain and a batch explained by one of mmkdx's explainers."""
    model = model_for(name).train(training)
    subject, inputs = Subject(model, explainer_for(name)), images(n)
    logits = subject.predict(inputs)
    targets = logits.argmax(1)
    maps = subject.explain(inputs, targets)
    student = subject.explained(maps, logits, targets, fixed=False)
    return model, ExplainedBatch(inputs, range(n), dict(student=student))


def grid(*values):
    return torch.tensor(values).float().view(1, 1, -1)


def test_correlations_by_hand():
    original = grid(4, 3, 2, 1)
    states = grid(3, 4, 2, 1), grid(1, 2, 3, 4), grid(2, 4, 1, 3)
    found = torch.stack([map_correlation(original, state) for state in states])
    assert found[:, 0].tolist() == pytest.approx([0.8, -1, 0], abs=1e-6)
    assert found.mean().item() == pytest.approx(-0.0666666667)
    signed, other = grid(4, -3, 2, -1), grid(-4, 3, 2, 1)
    assert map_correlation(signed, other).item() == pytest.approx(-0.8)
    assert map_correlation(signed, other, absolute=True).item() == pytest.approx(1)


def test_a_constant_map_has_no_correlation_and_no_entropy():
    some, constant, ones = grid(4, 3, 2, 1), grid(2, 2, 2, 2), grid(1, -1, 1, -1)
    for first, second in ((some, constant), (constant, some), (some, some * float('nan'))):
        assert map_correlation(first, second).isnan()
    assert map_correlation(some, ones, absolute=True).isnan()
    assert not map_correlation(some, ones).isnan()
    assert histogram_entropy(constant).isnan() and histogram_entropy(0 * some).isnan()


def test_entropies_by_hand_and_by_numpy():
    maps = torch.cat([grid(0, 0, 0, 0, 1, 1, 2, 4), grid(0, 1, 2, 3, 4, 1, 2, 3)])
    for bins, expected, rise in (
        (4, (1.2130075660, 1.3208883431), 0.0889366070),
        (100, (1.2130075660, 1.5595811563), 0.2857142857),
    ):
        found = histogram_entropy(maps, bins)
        assert found.tolist() == pytest.approx(expected)
        assert (found[1] / found[0] - 1).item() == pytest.approx(rise, rel=1e-5)
    permuted = maps[:, :, torch.randperm(8)]
    assert torch.equal(histogram_entropy(permuted), histogram_entropy(maps))
    many = torch.randn(5, 20, 30, dtype=torch.float64)
    expected = [stats.entropy(np.histogram(each, 100)[0].ravel()) for each in many.numpy()]
    assert histogram_entropy(many).tolist() == pytest.approx(expected)


@pytest.mark.parametrize('order', ['bottom_up', 'top_down', 'last'])
@pytest.mark.parametrize('absolute', [False, True])
def test_scores_are_those_of_the_states(order, absolute):
    seen, weights = [], []

    def watch(model, inputs, targets):
        seen.append(gradient(model, inputs, targets))
        weights.append({name: p.detach().clone() for name, p in model.named_parameters()})
        return seen[-1]

    model = Backwards()
    batch = batch_of(model, explainer=watch)
    seen.clear(), weights.clear()
    found = rows(ParameterRandomisation(order, absolute=absolute), batch)
    # The copy as it is, and its states; the bare parameter is that of the whole network
    changes = [
        {name.partition('.')[0] for name in now if not torch.equal(now[name], before[name])}
        for before, now in zip(weights, weights[1:])
    ]
    steps = [{'shift'}, {'first'}, {'second'}, {'third'}, {'fc'}]
    steps = dict(bottom_up=steps, top_down=steps[::-1], last=[set().union(*steps)])[order]
    assert changes == steps
    original, *states = (maps.abs() if absolute else maps for maps in seen)
    assert torch.equal(seen[0], batch.models['student'].maps)
    for i, row in found.items():
        rho = [stats.spearmanr(original[i].ravel(), each[i].ravel())[0] for each in states]
        assert row['mprt'] == pytest.approx(np.mean(rho), abs=1e-5)
        assert row['mprt_last'] == pytest.approx(rho[-1], abs=1e-5)
        before, after = histogram_entropy(torch.stack([seen[0][i], seen[-1][i]])).tolist()
        assert row['emprt'] == pytest.approx(after / before - 1, abs=1e-5)


def test_all_orders_end_with_the_same_weights():
    ends = [
        rows(ParameterRandomisation(order), batch_of(Backwards()))[0]
        for order in ('bottom_up', 'top_down', 'last')
    ]
    assert ends[0]['mprt_last'] == ends[1]['mprt_last'] == ends[2]['mprt_last'] == ends[2]['mprt']
    assert ends[0]['mprt'] != ends[1]['mprt'] and ends[0]['emprt'] == ends[2]['emprt']


def test_an_explainer_that_ignores_the_model_fails():
    def edges(model, inputs, targets):
        return inputs.diff(dim=3).abs().sum(1)

    for how in ('permute', 'init'):
        for row in rows(
            ParameterRandomisation(how=how, smooth=3), batch_of(Backwards(), explainer=edges)
        ).values():
            assert [row[name] for name in SCORES] == pytest.approx([1, 1, 0], abs=1e-6)


def test_a_map_that_becomes_constant_is_not_counted():
    model = Backwards()

    def dies(network, inputs, targets):
        return gradient(network, inputs, targets) * (
            network is model or torch.equal(network.fc.weight, model.fc.weight)
        )

    metric = ParameterRandomisation()
    found = rows(metric, batch_of(model, explainer=dies))
    assert all(np.isnan(row[name]) for row in found.values() for name in SCORES)
    metric.process(batch_of(model, explainer=dies))
    assert all(score.n == 0 for score in metric.evaluate(100).values())


def test_layers_of_one_shape_get_different_weights():
    for how in ('permute', 'init'):
        model = Backwards()
        model.second.load_state_dict(model.third.state_dict())
        trained = model.third.weight.detach().clone()
        for name in ('second', 'third'):
            layer = model.get_submodule(name)
            randomise(layer, dict(layer.named_parameters(name)), how, seed=0)
            assert not torch.equal(layer.weight, trained)
        assert not torch.equal(model.second.weight, model.third.weight)
        assert not torch.equal(model.second.bias, model.third.bias)
        for layer in (model.second, model.third):
            same = torch.equal(layer.weight.flatten().sort()[0], trained.flatten().sort()[0])
            assert same == (how == 'permute')


@pytest.mark.parametrize('how', ['permute', 'init'])
def test_bare_parameters_of_a_transformer_are_shuffled(how):
    model, batch = of_subject('LeGrad', n=1)
    end = []
    student = batch.models['student']
    like = student.like
    student.like = lambda other: end.append(other) or like(other)
    rows(ParameterRandomisation('last', how), batch)
    trained = dict(model.named_parameters())
    for name, parameter in end[0].named_parameters():
        assert not torch.equal(parameter, trained[name]), name
        if how == 'permute' or name.endswith(('cls_token', 'pos_embed')):
            assert torch.equal(parameter.flatten().sort()[0], trained[name].flatten().sort()[0])


def test_a_shared_parameter_is_randomised_once():
    model = Backwards()
    model.third.weight = model.second.weight
    seen = []

    def watch(network, inputs, targets):
        seen.append(network.second.weight.detach().clone())
        return gradient(network, inputs, targets)

    rows(ParameterRandomisation(), batch_of(model, explainer=watch))
    changes = [not torch.equal(*pair) for pair in zip(seen[1:], seen[2:])]
    assert changes == [False, False, True, False, False]


def test_places_of_modules_that_are_not_called():
    model = nn.Sequential(nn.Flatten(2), nn.TransformerEncoderLayer(4, 2, 8), nn.Flatten())
    names = {module: name for name, module in model.named_modules()}
    student = explained(model, torch.randn(2, 3, 2, 2), lambda model, inputs, _: inputs[:, 0])
    order = [names[module] for module in forward_places(student, torch.randn(2, 3, 2, 2))]
    attention = order.index('1.self_attn')
    assert order[attention + 1] == '1.self_attn.out_proj'
    assert order.index('1.linear1') > attention + 1 and order[-1] == '2'


class Normed(Backwards):
    """With two batch norms, one without parameters."""

    def __init__(self):
        super().__init__()
        self.norm, self.plain = nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False)

    def forward(self, x):
        x = self.norm(self.first(x))
        x = self.plain(torch.tanh(self.second(torch.tanh(x))))
        return self.fc(torch.tanh(self.third(x)).mean((2, 3)))


@pytest.mark.parametrize('order', ['bottom_up', 'top_down'])
def test_statistics_behind_random_layers_are_those_of_the_batch(order):
    model = Normed().eval()
    seen = []

    def watch(network, inputs, targets):
        with torch.no_grad():
            first = network.first(inputs)
            values = network.second(torch.tanh(network.norm(first)))
        pairs = ((network.norm, first), (network.plain, torch.tanh(values)))
        seen.append(
            [
                torch.allclose(norm.running_mean, value.mean((0, 2, 3)), atol=1e-5)
                and torch.allclose(norm.running_var, value.var((0, 2, 3), False), rtol=1e-4)
                for norm, value in pairs
            ]
        )
        return gradient(network, inputs, targets)

    rows(ParameterRandomisation(order), batch_of(model, explainer=watch))
    # Given, copied, and one state for each module with parameters
    low, mid = [False, False], [False, True]
    high = [True, True]
    states = dict(bottom_up=[high] * 6, top_down=[low, low, mid, high, high, high])[order]
    assert seen == [low, low, *states]
    assert torch.equal(model.norm.running_mean, torch.zeros(4))


@pytest.mark.parametrize('how', ['permute', 'init'])
@pytest.mark.parametrize('name', ['GradCAM', 'LeGrad'])
def test_the_model_is_untouched(name, how):
    model, batch = of_subject(name, training=True)
    next(model.parameters()).requires_grad_(False)
    list(model.parameters())[-1].grad = torch.ones_like(list(model.parameters())[-1])
    before = state_of(model)
    with torch.no_grad():
        found = rows(ParameterRandomisation(how=how, smooth=2), batch)
    assert state_of(model) == before
    assert all(abs(row['mprt']) < 0.999 and np.isfinite(row['emprt']) for row in found.values())


def test_a_copy_gets_images_as_its_model_does():
    """A teacher has a normalisation of its own."""
    _, batch = of_subject('GradCAM')
    model = batch.models['student'].model
    subject = Subject(model, explainer_for('GradCAM'), convert=lambda inputs: inputs / 2)
    targets, inputs = batch.models['student'].targets, batch.inputs
    maps, logits = subject.explain(2 * inputs, targets), subject.predict(2 * inputs)
    converted = subject.explained(maps, logits, targets, fixed=True)
    other = ExplainedBatch(2 * inputs, range(3), dict(student=converted))
    metric = ParameterRandomisation()
    assert rows(metric, other) == rows(ParameterRandomisation(), batch)
    converted.like = None  # it is not asked again
    assert rows(metric, other) == rows(ParameterRandomisation(), batch)


def test_scores_under_inference_mode():
    expected = rows(ParameterRandomisation(), of_subject('GradCAM')[1])
    _, batch = of_subject('GradCAM')
    with torch.inference_mode():
        batch.inputs = batch.inputs.clone()
        assert rows(ParameterRandomisation(), batch) == expected


def test_scores_do_not_depend_on_the_batches_without_batch_norm():
    model = Backwards()
    metric = ParameterRandomisation(smooth=3)
    whole = rows(metric, batch_of(model))
    split = rows(metric, batch_of(model, [2]), batch_of(model, [3, 0]), batch_of(model, [1]))
    assert sorted(split) == sorted(whole)
    for index, row in whole.items():
        assert split[index] == pytest.approx(row, abs=1e-5)


@pytest.mark.parametrize('how', ['permute', 'init'])
def test_the_seed_decides_and_the_global_state_does_not(how):
    model, arguments = Backwards(), dict(how=how, smooth=2)
    torch.manual_seed(1)
    first = rows(ParameterRandomisation(**arguments), batch_of(model))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert rows(ParameterRandomisation(**arguments), batch_of(model)) == first
    assert torch.equal(torch.get_rng_state(), state)
    other = rows(ParameterRandomisation(seed=1, **arguments), batch_of(model))
    assert all(other[i]['mprt'] != first[i]['mprt'] for i in first)


def test_smooth_maps_are_means_over_noise_of_a_tenth_of_the_range():
    seen = []

    def watch(model, inputs, targets):
        seen.append(inputs)
        return gradient(model, inputs, targets)

    model = Backwards()
    batch = batch_of(model, explainer=watch)
    batch.inputs[1] *= 10
    batch.models = dict(student=explained(model, batch.inputs, watch))
    seen.clear()
    metric = ParameterRandomisation('last', smooth=200)
    maps = metric._explain(batch, batch.models['student'])
    assert len(seen) == 200
    targets = batch.models['student'].targets
    expected = torch.stack([gradient(model, inputs, targets) for inputs in seen]).mean(0)
    assert torch.allclose(maps, expected, atol=1e-6)
    noise = torch.stack(seen) - batch.inputs
    assert [not each.any() for each in noise] == [True] + [False] * 199
    for i, each in enumerate(batch.inputs):
        spread = (each.max() - each.min()).item()
        assert noise[1:, i].std().item() == pytest.approx(0.1 * spread, rel=0.03)
    again = metric._explain(batch, batch.models['student'])
    assert torch.equal(again, maps)


def test_a_single_smooth_copy_has_no_noise():
    model = Backwards()
    one = rows(ParameterRandomisation(smooth=1), batch_of(model))
    assert one == rows(ParameterRandomisation(), batch_of(model))
    assert one != rows(ParameterRandomisation(smooth=2), batch_of(model))


def test_scores_and_registry():
    metric = METRICS.build(dict(type='ParameterRandomisation', order='last', how='init'))
    metric.process(batch_of(Backwards()))
    result = metric.evaluate(10)
    better = {name: (score.better, score.n) for name, score in result.items()}
    assert better == dict(mprt=('lower', 4), mprt_last=('lower', 4), emprt=('higher', 4))


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(order='up'), "order is 'up'; it must be one of bottom_up, top_down, last"),
        (dict(how='zero'), "how is 'zero'; it must be one of permute, init"),
        (dict(smooth=-1), 'smooth is -1; it must be an integer of at least 0'),
        (dict(absolute=1), 'absolute is 1; it must be True or False'),
        (dict(seed=-1), 'seed is -1; it must be an integer of at least 0'),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=f'^ParameterRandomisation.{message}'):
        ParameterRandomisation(**arguments)


def test_models_that_cannot_be_randomised():
    metric = ParameterRandomisation()
    batch = batch_of(Backwards())
    batch.models['student'].like = None
    with pytest.raises(ValueError, match='^ParameterRandomisation .* came without their model$'):
        metric.process(batch)

    def edges(model, inputs, targets):
        return inputs[:, 0]

    with pytest.raises(ValueError, match='^ParameterRandomisation: Flatten has no parameters to'):
        metric.process(batch_of(nn.Flatten(), explainer=edges))
    model = Backwards()
    model.buffer = model.fc.weight * 2  # a result of a graph, as of the old weight_norm
    with pytest.raises(ValueError, match='^ParameterRandomisation cannot copy Backwards: Only Ten'):
        metric.process(batch_of(model))
