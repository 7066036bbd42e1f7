"""Score-CAM and Ablation-CAM: loops over channels, and what their options leave out."""

import pytest
import torch
import torch.nn.functional as F
from families import cnn, family, images, randomize
from tiny import build, classifier
from torch import nn

from mmkdx.explain import AblationCAM, GradCAM, ScoreCAM


def close(result, expected, rel=1e-9, abs=1e-12):
    torch.testing.assert_close(result, expected, rtol=rel, atol=abs)


@pytest.fixture(autouse=True)
def no_graph():
    with torch.no_grad():
        yield


CASES = {
    'cnn': (cnn, 'backbone.body'),
    'ConvNeXt': (lambda: (family('ConvNeXt').double(), images(64).double()), 'backbone.stages.3'),
    'VisionTransformer': (
        lambda: (family('VisionTransformer').double(), images(48).double()),
        'backbone.layers.1.ln1',
    ),
}


def activations_of(model, inputs, layer):
    """The activations as the layer yields them, and as maps."""
    kept = []
    handle = model.get_submodule(layer).register_forward_hook(
        lambda module, args, output: kept.append(output.clone())
    )
    model(inputs, mode='tensor')
    handle.remove()
    if kept[0].dim() == 3:
        return kept[0], kept[0][:, 1:].mT.unflatten(2, (3, 3))
    return kept[0], kept[0]


def ablated(model, inputs, layer, channel):
    """The logits where a channel of the image's positions is 0."""

    def ablate(module, args, output):
        output = output.clone()
        if output.dim() == 3:
            output[:, 1:, channel] = 0
        else:
            output[:, channel] = 0
        return output

    handle = model.get_submodule(layer).register_forward_hook(ablate)
    logits = model(inputs, mode='tensor')
    handle.remove()
    return logits


@pytest.mark.parametrize('name', CASES)
def test_ablation_channel_by_channel(name):
    build, layer = CASES[name]
    model, inputs = build()
    _, activations = activations_of(model, inputs, layer)
    logits = model(inputs, mode='tensor')
    without = torch.stack(
        [ablated(model, inputs, layer, channel) for channel in range(activations.shape[1])], 1
    )
    for target in (0, 3):
        drop = (logits[:, None, target] - without[..., target]) / logits[:, target, None].abs()
        expected = torch.einsum('nc,nchw->nhw', drop, activations)
        close(AblationCAM(layer)(model, inputs, target), expected, rel=1e-6)


class Hidden(nn.Module):
    """A classifier in a wrapping in which its head is not recognised."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, inputs):
        return self.model(inputs, mode='tensor') * 1


@pytest.mark.parametrize('targets', [None, 2, [3, 0, 1], 'all'], ids=str)
def test_the_closed_form_of_ablation(targets):
    model, inputs = cnn()
    hidden, explainer = Hidden(model), AblationCAM()
    maps = AblationCAM()(model, inputs, targets)
    close(maps, explainer(hidden, inputs, targets), rel=1e-6)
    assert explainer.layers(hidden, inputs)[0].classifier is None


@pytest.mark.parametrize('wrap', [lambda model: model, Hidden], ids=['closed form', 'forwards'])
def test_the_sign_of_the_score_does_not_turn_a_map(wrap):
    """A network with one logit, once 3 above and once 3 below where it was."""
    torch.manual_seed(0)
    model = randomize(build(classifier(6, classes=1)), images(12)).double()
    inputs, maps, scores = images(12, 3).double(), [], []
    for bias in (3, -3):
        model.head.fc.bias.fill_(bias)
        scores.append(model(inputs, mode='tensor')[:, 0])
        maps.append(AblationCAM()(wrap(model), inputs))
    assert (scores[0] > 0).all() and (scores[1] < 0).all()
    scaled = [each * score.abs()[:, None, None] for each, score in zip(maps, scores)]
    close(*scaled)
    peer = GradCAM()(model, inputs)
    for one, two, other in zip(*maps, peer):
        table = torch.corrcoef(torch.stack([each.flatten() for each in (one, two, other)]))
        assert table[0, 1] > 0.99 and table[0, 2] > 0.5


def test_a_score_of_zero_has_a_map_without_a_scale():
    model, inputs = cnn()
    weights = torch.zeros(3, 4).double()
    assert AblationCAM()(model, inputs, weights).eq(0).all()


def test_the_closed_form_runs_one_forward():
    model, inputs = cnn()
    calls = []
    explainer = AblationCAM()
    explainer.layers(model, inputs)
    model.backbone.register_forward_hook(lambda *_: calls.append(1))
    explainer(model, inputs, 'all')
    assert len(calls) == 1


def test_soft_labels_are_an_ablation_of_their_score():
    model, inputs = cnn()
    weights = torch.tensor([[0.7, 0.3, 0, 0], [0, -1, 0.5, 2], [1, 0, 0, 0]]).double()
    close(AblationCAM()(Hidden(model), inputs, weights), AblationCAM()(model, inputs, weights))
    score = (model(inputs, mode='tensor') * weights).sum(1)
    head = model.head.fc
    _, activations = activations_of(model, inputs, 'backbone.body')
    drop = (weights @ head.weight) * activations.mean((2, 3)) / score[:, None].abs()
    close(AblationCAM()(model, inputs, weights), torch.einsum('nc,nchw->nhw', drop, activations))


def score_cam(model, inputs, layer, targets, channels=None, size=None):
    """The method, image by image and channel by channel."""
    maps = []
    _, activations = activations_of(model, inputs, layer)
    for image, channel_maps, target in zip(inputs, activations, targets):
        image = image[None]
        if size:
            image = F.interpolate(image, (size, size), mode='bilinear', antialias=True)
        chosen = range(len(channel_maps))
        if channels:
            variances = [channel_maps[c].var().item() for c in chosen]
            chosen = sorted(chosen, key=lambda c: -variances[c])[:channels]
        scores = []
        for channel in chosen:
            mask = channel_maps[channel][None, None]
            mask = F.interpolate(mask, image.shape[2:], mode='bilinear', align_corners=False)
            span = mask.max() - mask.min()
            mask = (mask - mask.min()) / span if span > 1e-6 * mask.abs().max() else 0 * mask
            scores.append(model(image * mask, mode='tensor')[0, target])
        weights = torch.stack(scores).softmax(0)
        maps.append(sum(weight * channel_maps[c] for weight, c in zip(weights, chosen)))
    return torch.stack(maps)


@pytest.mark.parametrize('name', CASES)
def test_score_cam_channel_by_channel(name):
    build, layer = CASES[name]
    model, inputs = build()
    targets = [3, 1, 0][: len(inputs)]
    close(ScoreCAM(layer)(model, inputs, targets), score_cam(model, inputs, layer, targets))


@pytest.mark.parametrize(
    'options', [dict(channels=3), dict(size=8), dict(channels=2, size=6)], ids=str
)
def test_options_of_score_cam(options):
    model, inputs = cnn(8)
    expected = score_cam(model, inputs, 'backbone.body', [3, 1, 0], **options)
    close(ScoreCAM(**options)(model, inputs, [3, 1, 0]), expected)


def test_more_channels_than_there_are_are_all():
    model, inputs = cnn()
    # topk orders them otherwise, so sums differ in rounding
    close(ScoreCAM(channels=100)(model, inputs, 1), ScoreCAM()(model, inputs, 1))
    close(ScoreCAM(size=12)(model, inputs, 1), ScoreCAM()(model, inputs, 1))


@pytest.mark.parametrize('options, least', [(dict(channels=24), 0.9), (dict(size=8), 0.9)], ids=str)
def test_options_come_near_the_exact_map(options, least):
    model, _ = cnn(32)
    smooth = F.interpolate(images(4, 6).double(), (12, 12), mode='bicubic')
    exact, fast = (
        explainer(model, smooth, 1).flatten(1) for explainer in (ScoreCAM(), ScoreCAM(**options))
    )
    for one, other in zip(exact, fast):
        correlation = torch.corrcoef(torch.stack((one, other)))[0, 1]
        assert least < correlation < 1 - 1e-9


@pytest.mark.parametrize('explainer', [ScoreCAM, AblationCAM])
@pytest.mark.parametrize('name', CASES)
def test_batches_do_not_matter(explainer, name):
    build, layer = CASES[name]
    model, inputs = build()
    maps = explainer(layer)(model, inputs, 'all')
    for count in (1, 7, 1000):
        close(explainer(layer, max_batch=count)(model, inputs, 'all'), maps)
    for i in range(len(inputs)):
        close(explainer(layer)(model, inputs[i : i + 1], 'all'), maps[i : i + 1])
        close(explainer(layer)(model, inputs[i : i + 1], 2), maps[i : i + 1, 2])


@pytest.mark.parametrize('explainer', [ScoreCAM, AblationCAM])
def test_forwards_are_no_larger_than_asked_for_and_serve_all_classes(explainer):
    model, inputs = cnn()
    explainer = explainer('backbone.stem', max_batch=4)
    explainer.layers(model, inputs)
    sizes = []
    model.backbone.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    explainer(model, inputs, 'all')
    # One of three images, and then one image for each of 3 · 6 channels
    assert sizes == [3, 4, 4, 4, 4, 2]


@pytest.mark.parametrize('explainer', [ScoreCAM, AblationCAM])
def test_several_layers_are_one_by_one(explainer):
    model, inputs = cnn()
    names = ['backbone.stem', 'auto']
    maps = explainer(names)(model, inputs, [1, 2, 3])
    for name, each in zip(names, maps):
        close(each, explainer(name)(model, inputs, [1, 2, 3]), rel=1e-6)
    assert [each.shape for each in maps] == [(3, 12, 12), (3, 6, 6)]


def test_a_constant_channel_masks_everything():
    model, inputs = cnn(2)
    # The first channel is 5 everywhere, and the second is what it was
    model.backbone.body[1].weight[0], model.backbone.body[1].bias[0] = 0, 5
    _, activations = activations_of(model, inputs, 'backbone.body')
    assert activations[:, 0].eq(5).all()
    mask = F.interpolate(activations[:, 1:], (12, 12), mode='bilinear')
    low, high = mask.amin((2, 3), keepdim=True), mask.amax((2, 3), keepdim=True)
    masked = [inputs * 0, inputs * (mask - low) / (high - low)]
    scores = torch.stack([model(each, mode='tensor')[:, 1] for each in masked], 1)
    expected = torch.einsum('nc,nchw->nhw', scores.softmax(1), activations)
    close(ScoreCAM()(model, inputs, 1), expected)


@pytest.mark.parametrize('explainer', [ScoreCAM, AblationCAM])
def test_a_model_may_overwrite_its_input(explainer):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3, 2, 1), nn.GELU(), nn.Flatten(), nn.Linear(144, 4)
    ).double()
    inputs = images(12, 3).double()
    kept = inputs.clone()
    maps = explainer()(model, inputs, 1)
    assert inputs.equal(kept)
    model[0].inplace = False
    close(explainer()(model, inputs, 1), maps)
