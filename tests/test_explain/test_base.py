"""What is explained, building explainers, and explanations inside a loss."""

import pytest
import torch
import torch.nn.functional as F
from explainable import explainer_for, images, model_for
from mmpretrain.structures import DataSample
from torch import nn

from mmkdx.explain import GradCAM, LayerCAM, build_explainer
from mmkdx.explain.base import class_weights

LOGITS = torch.tensor([[0.0, 3.0, 1.0], [5.0, 1.0, 2.0]])
ONE_HOT = [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
SOFT = [[0.2, 0.3, 0.5], [0.0, 1.0, 0.0]]


@pytest.mark.parametrize(
    ('targets', 'expected'),
    [
        (None, ONE_HOT),
        ('pred', ONE_HOT),
        (2, [[0, 0, 1], [0, 0, 1]]),
        ([1, 0], ONE_HOT),
        ((1, 0), ONE_HOT),
        (torch.tensor([1, 0]), ONE_HOT),
        (torch.tensor([1, 0], dtype=torch.int32), ONE_HOT),
        (torch.tensor(SOFT), SOFT),
        ([DataSample().set_gt_label(1), DataSample().set_gt_label(0)], ONE_HOT),
        ([DataSample().set_gt_score(torch.tensor(row)) for row in SOFT], SOFT),
    ],
)
def test_targets_become_weights_of_classes(targets, expected):
    torch.testing.assert_close(class_weights(targets, LOGITS), torch.tensor(expected).float())


@pytest.mark.parametrize(
    ('targets', 'message'),
    [
        (3, 'target 3 is no class of the model, which has 3'),
        ([0, -1], 'target -1 is no class'),
        ([0, 1, 2], 'there are 3 targets for 2 images'),
        ('best', "targets is 'best'; as a word it must be 'pred' or 'all'"),
        (
            [0.5, 0.5],
            r'2 class indices or weights of shape \(2, 3\), and are numbers of shape \(2,\)',
        ),
        (torch.zeros(2, 4), r'weights of shape \(2, 3\)'),
        ([DataSample(), DataSample()], "data samples without labels \\('gt_label'\\); use 'pred'"),
    ],
)
def test_targets_that_are_none(targets, message):
    with pytest.raises(ValueError, match=message):
        class_weights(targets, LOGITS)


@pytest.mark.parametrize(
    'name', ['CAM', 'GradCAM', 'AblationCAM', 'ScoreCAM', 'InputGradient', 'EigenCAM']
)
@pytest.mark.parametrize('head', ['linear', 'hidden'])
def test_all_classes_are_each_class_in_turn(name, head):
    model, explainer = model_for(name, head), explainer_for(name)
    together = explainer(model, images(), 'all')
    assert together.shape[:2] == (3, 4)
    for index in range(4):
        torch.testing.assert_close(together[:, index], explainer(model, images(), index))


def test_several_layers_in_one_forward():
    model = model_for('GradCAM')
    deep, shallow = GradCAM(['backbone.body', 'backbone.stem'])(model, images(), 1)
    assert deep.shape == (3, 8, 8) and shallow.shape == (3, 16, 16)
    torch.testing.assert_close(deep, GradCAM('backbone.body')(model, images(), 1))
    torch.testing.assert_close(shallow, GradCAM('backbone.stem')(model, images(), 1))


class Bilinear(nn.Module):
    """A network whose Grad-CAM is known, with its gradient by all parameters."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 1, bias=False)
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        return self.fc(self.conv(x).square().mean((2, 3)))


def known_map(model: Bilinear, x: torch.Tensor, index: int) -> torch.Tensor:
    """With A the convolution's result the logit is W mean(A²), so g = 2 W A / Z."""
    activations = model.conv(x)
    weights = 2 * model.fc.weight[index] * activations.mean((2, 3)) / activations[0, 0].numel()
    return (weights[..., None, None] * activations).sum(1)


@pytest.mark.parametrize('shared', [False, True])
def test_a_loss_of_maps_trains_backbone_and_head(shared):
    """The gradient flows through activations and channel weights; half of it is another loss."""
    torch.manual_seed(0)
    model, x = Bilinear().double(), torch.randn(2, 1, 4, 4, dtype=torch.double)
    if shared:
        activations = model.conv(x)
        logits = model.fc(activations.square().mean((2, 3)))
        maps = GradCAM().from_forward(activations, logits, 1)
    else:
        maps = GradCAM('conv', differentiable=True)(model, x, 1)
    expected = known_map(model, x, 1)
    torch.testing.assert_close(maps, expected)
    goal = torch.randn_like(expected)
    parameters = [model.conv.weight, model.fc.weight]
    found = torch.autograd.grad(F.mse_loss(maps, goal), parameters)
    wanted = torch.autograd.grad(F.mse_loss(expected, goal), parameters)
    for one, other in zip(found, wanted):
        torch.testing.assert_close(one, other)
    half = known_map(model, x, 1)
    detached = (2 * model.fc.weight[1] * model.conv(x).mean((2, 3)) / 16).detach()
    half = (detached[..., None, None] * model.conv(x)).sum(1)
    (wrong,) = torch.autograd.grad(F.mse_loss(half, goal), model.conv.weight)
    assert not torch.allclose(wrong, wanted[0])


@pytest.mark.parametrize(
    'name',
    [
        'CAM',
        'GradCAM',
        'GradCAMPlusPlus',
        'XGradCAM',
        'HiResCAM',
        'LayerCAM',
        'InputGradient',
        'FullGrad',
    ],
)
@pytest.mark.parametrize('head', ['linear', 'hidden'])
def test_differentiable_maps_have_the_values_of_the_others_and_a_gradient(name, head):
    model = model_for(name, head)
    maps = explainer_for(name, differentiable=True)(model, images(), [0, 1, 2])
    torch.testing.assert_close(maps.detach(), explainer_for(name)(model, images(), [0, 1, 2]))
    gradients = torch.autograd.grad(
        maps.square().sum(), list(model.parameters()), allow_unused=True
    )
    weights = [
        p for p, g in zip(model.parameters(), gradients) if g is not None and g.abs().sum() > 0
    ]
    assert any(p is model.backbone.stem[0].weight for p in weights)
    head_weights = [
        module.weight for module in model.head.modules() if isinstance(module, nn.Linear)
    ]
    assert all(any(w is p for p in weights) for w in head_weights)


def test_closed_form_and_general_gradients_train_alike():
    model = model_for('GradCAM')
    closed = GradCAM(differentiable=True)(model, images(), 1)
    features = model.backbone(images())[-1]
    logits = model.head(model.neck((features,)))
    general = GradCAM().from_forward(features, logits, 1)
    torch.testing.assert_close(closed, general)
    parameters = [model.backbone.stem[0].weight, model.head.fc.weight]
    for one, other in zip(
        torch.autograd.grad(closed.square().sum(), parameters),
        torch.autograd.grad(general.square().sum(), parameters),
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_dropout_in_training_is_part_of_a_differentiable_map():
    """The closed form does not know which features are dropped, so it is not used then."""
    model = model_for('GradCAM', 'hidden').train()
    layers = GradCAM(differentiable=True)
    torch.manual_seed(0)
    first = layers(model, images(), 1)
    torch.manual_seed(1)
    assert not torch.allclose(first, layers(model, images(), 1))


def test_maps_without_gradient_are_refused_where_a_loss_is_made_of_them():
    model = model_for('GradCAM', 'hidden')
    explainer = GradCAM('backbone.body', differentiable=True)
    message = "GradCAM: layer 'backbone.body' carries no gradient .* train nothing"
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        explainer(model, images(), 1)
    model.backbone.requires_grad_(False)
    with pytest.raises(ValueError, match=message):
        explainer(model, images(), 1)
    features = model.backbone(images())[-1]
    with pytest.raises(ValueError, match='GradCAM: the activations carry no gradient'):
        GradCAM().from_forward(features, model.head(model.neck((features,))), 1)
    other = features.clone().requires_grad_()
    with pytest.raises(ValueError, match='GradCAM: the logits do not depend on the activations'):
        GradCAM().from_forward(other, model.head(model.neck((features,))), 1)


def test_inputs_that_are_no_images():
    with pytest.raises(ValueError, match=r'images of shape \(N, 3, H, W\), and got \(3, 16, 16\)'):
        GradCAM()(model_for('GradCAM'), images()[0])


@pytest.mark.parametrize('result', [torch.zeros(3, 4, 2), {'logits': torch.zeros(3, 4)}])
def test_models_without_logits(result):
    class Odd(nn.Module):
        def forward(self, x):
            return result

    with pytest.raises(
        ValueError, match=r'needs a classifier with logits of shape \(N, K\); Odd returns'
    ):
        build_explainer('InputGradient')(Odd(), images())


def test_explainers_are_built_from_names_dicts_and_objects():
    assert type(build_explainer('LayerCAM')) is LayerCAM
    built = build_explainer(dict(type='LayerCAM', layer='backbone.stem'))
    assert built.layer == 'backbone.stem' and build_explainer(built) is built
    assert type(build_explainer(dict(type=LayerCAM))) is LayerCAM


@pytest.mark.parametrize(
    ('spec', 'message'),
    [
        ('Gradcam', "hook.explainer: there is no explainer 'Gradcam'; there are .*GradCAM"),
        (dict(layer='x'), 'hook.explainer: .*type'),
        (dict(type='GradCAM', steps=3), 'hook.explainer: .*steps'),
        (
            dict(type='IntegratedGradients', steps=0),
            'hook.explainer: .*steps is 0; it must be at least 1',
        ),
        (
            dict(type='SmoothGrad', samples=0),
            'hook.explainer: .*samples is 0; it must be at least 1',
        ),
        (
            dict(type='ScoreCAM', max_batch=0),
            'hook.explainer: .*max_batch is 0; it must be at least 1',
        ),
    ],
)
def test_mistakes_name_the_config_key(spec, message):
    with pytest.raises(ValueError, match=message):
        build_explainer(spec, 'hook.explainer')
