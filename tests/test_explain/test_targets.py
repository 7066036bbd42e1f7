"""Functions of a model's output as targets: every explainer, against plain autograd."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from explainable import explainer_for, images, model_for
from torch import nn

from mmkdx.explain import (
    AblationCAM,
    AttentionRollout,
    CosineTarget,
    EigenCAM,
    GradCAM,
    HiResCAM,
    InputGradient,
    LayerCAM,
    ScoreCAM,
    explainer_names,
)
from mmkdx.functional import normalize_maps, resize_maps

GUIDE = Path(__file__).parents[2] / 'docs/en/user_guides/explainers.md'
FUNCTIONS = [name for name in explainer_names() if name not in ('CAM', 'PrototypeMap', 'RandomMap')]


def close(found, expected, rtol=1e-4):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-6 * expected.abs().max().item())


def layer_and_gradient(model, layer, inputs, score):
    """A layer's output and the gradient of a score by it, with nothing but torch."""
    kept = []
    handle = model.get_submodule(layer).register_forward_hook(
        lambda module, args, output: kept.append(output)
    )
    output = model(inputs)
    handle.remove()
    (gradient,) = torch.autograd.grad(score(output), kept[0])
    return kept[0].detach(), gradient


def grad_cam(activations, gradient):
    return (gradient.mean((2, 3), keepdim=True) * activations).sum(1)


@pytest.mark.parametrize('name', FUNCTIONS)
def test_the_function_that_picks_a_class_has_the_maps_of_the_class(name):
    model, explainer = model_for(name), explainer_for(name)
    found = explainer(model, images(), lambda logits: logits[:, 2])
    close(found, explainer(model, images(), 2))


class Several(nn.Module):
    """A network with several outputs, of which one is a list."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Tanh())
        self.dense, self.vector = nn.Conv2d(6, 2, 1), nn.Linear(6, 5)

    def forward(self, images):
        features = self.body(images)
        pooled = self.vector(features.mean((2, 3)))
        return dict(dense=self.dense(features).sigmoid(), rest=[pooled, (pooled.square(), None)])


@pytest.mark.parametrize(
    'score',
    [
        lambda output: output['dense'][:, 1, 2:5, :3].sum((1, 2)),
        lambda output: output['rest'][0][:, 3],
        lambda output: output['rest'][1][0].amax(1),
    ],
)
@pytest.mark.parametrize('kind', [GradCAM, HiResCAM, LayerCAM])
def test_outputs_of_any_form(score, kind):
    model = Several()
    activations, gradient = layer_and_gradient(model, 'body', images(), lambda o: score(o).sum())
    expected = {
        GradCAM: grad_cam(activations, gradient),
        HiResCAM: (gradient * activations).sum(1),
        LayerCAM: (gradient.relu() * activations).sum(1),
    }[kind]
    close(kind('body')(model, images(), score), expected)
    inputs = images().requires_grad_()
    activations = model.body(inputs)
    shared = kind().from_forward(activations, Several.forward(_Given(model, activations), 0), score)
    close(shared, expected)


class _Given:
    """A network whose features are known."""

    def __init__(self, model, activations):
        self.body, self.dense, self.vector = lambda _: activations, model.dense, model.vector


def test_the_last_layer_that_moves_most_of_the_score_is_found_for_each_function():
    model, explainer = Several(), GradCAM()
    targets = dict(
        body=lambda output: output['rest'][0][:, 0],
        dense=lambda output: output['dense'].sum((1, 2, 3)),
    )
    for name, target in targets.items():
        (layer,) = explainer.layers(model, images(), target)
        assert layer.name == name and layer.classifier is None


# Vectors


class Tower(nn.Module):
    """An image tower, which returns an embedding."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU())
        self.project = nn.Linear(6, 4)

    def forward(self, images):
        return self.project(self.body(images).mean((2, 3)))


VECTORS = torch.tensor([[1.0, -2, 0, 3], [0, 1, 1, -1], [-1, 0, 2, 0.5]])


@pytest.mark.parametrize('vectors', [VECTORS, VECTORS[0], VECTORS[:1]], ids=['each', 'one', 'row'])
def test_cosine_by_hand(vectors):
    embeddings = torch.tensor([[2.0, -4, 0, 6], [0, 0, 0, -5], [1, 1, 1, 1]])
    expected = [
        sum(a * b for a, b in zip(row, vector))
        / (sum(a * a for a in row) * sum(b * b for b in vector)) ** 0.5
        for row, vector in zip(embeddings.tolist(), vectors.expand(3, 4).tolist())
    ]
    found = CosineTarget(vectors)(embeddings.double())
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.double))


def test_the_cosine_is_differentiable_by_both_sides_and_has_no_length():
    embeddings = torch.randn(3, 4, dtype=torch.double, requires_grad=True)
    vectors = VECTORS.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda e, v: CosineTarget(v)(e), (embeddings, vectors))
    torch.testing.assert_close(
        CosineTarget(vectors)(embeddings), CosineTarget(7 * vectors)(embeddings / 3)
    )


@pytest.mark.parametrize('vectors', [VECTORS, VECTORS[0]], ids=['each', 'one'])
def test_gradient_maps_of_a_vector(vectors):
    model, rows = Tower(), vectors.expand(3, 4)

    def score(output):
        return sum(row @ vector / row.norm() / vector.norm() for row, vector in zip(output, rows))

    activations, gradient = layer_and_gradient(model, 'body', images(), score)
    close(GradCAM()(model, images(), CosineTarget(vectors)), grad_cam(activations, gradient))
    inputs = images().requires_grad_()
    (gradient,) = torch.autograd.grad(score(model(inputs)), inputs)
    close(InputGradient()(model, images(), CosineTarget(vectors)), gradient.abs().amax(1))


@pytest.mark.parametrize('max_batch', [2, 32])
def test_perturbation_maps_of_a_vector_for_each_image(max_batch):
    """Each channel by itself and each image with its own vector."""
    model, target = Tower(), CosineTarget(VECTORS)
    with torch.no_grad():
        activations = model.body(images())
        whole = target(model(images()))
        drops, scores = [], []
        for c in range(6):
            without = activations.clone()
            without[:, c] = 0
            drops.append((whole - target(model.project(without.mean((2, 3))))) / whole.abs())
            mask = normalize_maps(resize_maps(activations[:, c], (16, 16)))[:, None]
            scores.append(target(model(images() * mask)))
    ablation = torch.einsum('cn,nchw->nhw', torch.stack(drops), activations)
    close(AblationCAM('body', max_batch)(model, images(), target), ablation)
    score = torch.einsum('cn,nchw->nhw', torch.stack(scores).softmax(0), activations)
    close(ScoreCAM('body', max_batch=max_batch)(model, images(), target), score)


def test_a_loss_of_the_maps_of_a_vector_trains_the_tower_and_the_vector():
    model, vector = Tower().double(), VECTORS[0].double().requires_grad_()
    inputs = images().double()
    maps = GradCAM('body', differentiable=True)(model, inputs, CosineTarget(vector))
    activations = model.body(inputs)
    score = F.cosine_similarity(model.project(activations.mean((2, 3))), vector[None]).sum()
    (gradient,) = torch.autograd.grad(score, activations, create_graph=True)
    expected = grad_cam(activations, gradient)
    torch.testing.assert_close(maps, expected)
    trained = [model.body[0].weight, model.project.weight, vector]
    found, wanted = (torch.autograd.grad(each.square().sum(), trained) for each in (maps, expected))
    for one, other in zip(found, wanted):
        torch.testing.assert_close(one, other)


class Crops(nn.Module):
    """A network that looks at three crops of each image."""

    def __init__(self):
        super().__init__()
        self.body, self.crop = nn.Conv2d(3, 4, 3, 2, 1), nn.Identity()

    def forward(self, images):
        features = self.body(images)
        corners = features[..., :4, :4], features[..., :4, 4:], features[..., 4:, :4]
        return self.crop(torch.cat(corners)).square().sum((1, 2, 3)).view(3, -1).sum(0)


def test_crops_and_boxes_are_no_maps_of_the_images():
    explainer = GradCAM()
    assert [each.name for each in explainer.layers(Crops(), images(), lambda o: o)] == ['body']
    with pytest.raises(ValueError, match=r"'crop' is not spatial: .* \(9, 4, 4, 4\)"):
        GradCAM('crop')(Crops(), images(), lambda o: o)


# Networks of torchvision; see the guide to explainers


def example(beginning, **changes):
    """The names that an example of the guide defines, with smaller images."""
    blocks = re.findall('```python\n(.*?)```', GUIDE.read_text(), re.DOTALL)
    (code,) = (each for each in blocks if beginning in each)
    for old, new in {'128, 128': '64, 64', **changes}.items():
        assert old in code
        code = code.replace(old, new)
    torch.manual_seed(0)
    names = {}
    exec(code, names)
    return names['model'].eval(), names['images'], names['target'], names['maps']


def test_a_class_inside_a_mask_of_a_segmentation():
    model, inputs, target, maps = example('fcn_resnet50')
    layer = 'backbone.layer4'
    activations, gradient = layer_and_gradient(
        model, layer, inputs, lambda output: output['out'][:, 12, 30:90, 40:100].sum()
    )
    assert maps.shape == (2, 8, 8)
    close(maps, grad_cam(activations, gradient))
    with torch.no_grad():
        chosen = activations.flatten(2).var(2).topk(2, 1).indices
        used = torch.stack([each[index] for each, index in zip(activations, chosen)])
        masks = normalize_maps(resize_maps(used.flatten(0, 1), (64, 64))).view(2, 2, 1, 64, 64)
        scores = torch.stack([target(model(inputs * masks[:, i])) for i in range(2)], 1)
    expected = (scores.softmax(1)[..., None, None] * used).sum(1)
    close(ScoreCAM(layer, channels=2)(model, inputs, target), expected)


def test_the_score_of_a_box_of_a_detector():
    small = 'min_size=64, rpn_post_nms_top_n_test=20, box_detections_per_img=5'
    model, inputs, target, maps = example('fasterrcnn_resnet50_fpn', **{'min_size=128': small})
    activations, gradient = layer_and_gradient(  # from a list, as torchvision documents it
        model, 'backbone.body.layer3', list(inputs), lambda output: output[0]['scores'][0]
    )
    assert maps.shape == (1, 4, 4) and maps.abs().max() > 0
    close(maps, grad_cam(activations, gradient))


def test_explainers_without_a_class_take_a_tower():
    model = Tower()
    maps = EigenCAM('body')(model, images(), CosineTarget(VECTORS))
    close(maps, EigenCAM('body')(model, images(), lambda output: output[:, 0]))
    vit = model_for('AttentionRollout')
    close(
        AttentionRollout()(vit, images(), CosineTarget(VECTORS)), AttentionRollout()(vit, images())
    )


# What is refused


@pytest.mark.parametrize(
    ('function', 'reason'),
    [
        (
            lambda o: o,
            r'returns a tensor of shape \(3, 4\); it must return a tensor with one score ',
        ),
        (lambda o: o.sum(), r'shape \(\); it must return .* for each image, of shape \(3,\)'),
        (lambda o: o[:, :1], r'shape \(3, 1\); it must'),
        (lambda o: [1.0, 2.0, 3.0], 'returns a list; it must'),
        (lambda o: None, 'returns a NoneType; it must'),
        (lambda o: o.detach()[:, 0], 'have no gradient by the image; use the tensors of the model'),
        (lambda o: o.argmax(1), 'have no gradient by the image'),
    ],
)
@pytest.mark.parametrize('name', ['GradCAM', 'ScoreCAM', 'InputGradient', 'FullGrad'])
def test_functions_that_are_no_scores(function, reason, name):
    with pytest.raises(ValueError, match=f'target <lambda> .*{reason}'):
        explainer_for(name)(model_for(name), images(), function)
    with pytest.raises(ValueError, match=f'target <lambda> .*{reason}'):
        GradCAM().from_forward(*_forward(), function)


def _forward():
    activations = torch.randn(3, 6, 4, 4, requires_grad=True)
    return activations, activations.mean((2, 3))[:, :4] * 1


@pytest.mark.parametrize('name', ['CAM', 'PrototypeMap'])
def test_what_explains_classes_alone(name):
    with pytest.raises(ValueError) as error:
        explainer_for(name)(model_for(name), images(), lambda logits: logits[:, 0])
    assert str(error.value) == (
        f'{name} explains classes by the weights of a classifier, so its target cannot be a function; '
        'use GradCAM'
    )


def test_images_in_a_list_are_refused():
    with pytest.raises(ValueError, match=r'images of shape \(N, 3, H, W\), and got list'):
        GradCAM()(Tower(), list(images()), CosineTarget(VECTORS))


@pytest.mark.parametrize(
    ('vectors', 'reason'),
    [
        ([1.0, 2.0], 'vectors is list; it must be a tensor of shape'),
        (torch.zeros(2, 3, 4), r'vectors is \(2, 3, 4\); it must'),
        (torch.tensor(1.0), r'vectors is \(\); it must'),
        (torch.zeros(0, 4), r'vectors is \(0, 4\); it must'),
        (torch.zeros(4), 'a vector that is zero or not finite'),
        (torch.tensor([[1.0, 0], [float('nan'), 1]]), 'a vector that is zero or not finite'),
    ],
)
def test_vectors_that_are_none(vectors, reason):
    with pytest.raises(ValueError, match=f'CosineTarget.* ?{reason}'):
        CosineTarget(vectors)


@pytest.mark.parametrize(
    ('vectors', 'model', 'reason'),
    [
        (VECTORS[:2], Tower, 'has 2 vectors for 3 images'),
        (
            VECTORS[:, :3],
            Tower,
            r'needs embeddings of shape \(N, 3\), and the model returns \(3, 4\)',
        ),
        (VECTORS, Several, r'needs embeddings of shape \(N, 4\), and the model returns dict'),
    ],
)
def test_vectors_that_do_not_fit(vectors, model, reason):
    with pytest.raises(ValueError, match=f'CosineTarget .*{reason}'):
        GradCAM()(model(), images(), CosineTarget(vectors))
