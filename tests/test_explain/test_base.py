"""What is explained, building explainers, and explanations inside a loss."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from explainable import explainer_for, images, model_for
from mmengine.registry import DefaultScope
from mmpretrain.structures import DataSample
from tiny import build, classifier
from torch import nn

from mmkdx.explain import CAM, GradCAM, LayerCAM, build_explainer
from mmkdx.explain.layers import find_layers
from mmkdx.explain.targets import class_weights

LOGITS = torch.tensor([[0.0, 3.0, 1.0], [5.0, 1.0, 2.0]])
ONE_HOT = [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
SOFT = [[0.2, 0.3, 0.5], [0.0, 1.0, 0.0]]


@pytest.mark.parametrize(
    ('targets', 'expected'),
    [
        (None, ONE_HOT),
        ('pred', ONE_HOT),
        (2, [[0, 0, 1], [0, 0, 1]]),
        (np.int64(2), [[0, 0, 1], [0, 0, 1]]),
        (torch.tensor(2), [[0, 0, 1], [0, 0, 1]]),
        (np.array([1, 0]), ONE_HOT),
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
        ('best', "targets is 'best'; the text must be 'pred', or 'all' where the explainer"),
        ('all', "targets is 'all'; the text must"),
        (['cat', 'dog'], r"targets must be class indices or weights, not \['cat', 'dog'\]"),
        (1.5, 'and are numbers of shape'),
        (
            [0.5, 0.5],
            r'2 class indices or weights of shape \(2, 3\), and are numbers of shape \(2,\)',
        ),
        (torch.zeros(2, 4), r'weights of shape \(2, 3\)'),
        ([DataSample(), DataSample()], "data samples without labels \\('gt_label'\\); use 'pred'"),
        (
            [DataSample().set_gt_label([0, 1]), DataSample().set_gt_label([1, 2])],
            r'data samples with several labels; pass class weights of shape \(N, K\)',
        ),
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


CAMS = ['CAM', 'GradCAM', 'GradCAMPlusPlus', 'XGradCAM', 'HiResCAM', 'LayerCAM', 'EigenGradCAM']


@pytest.mark.parametrize('name', [*CAMS, 'EigenCAM'])
def test_gradients_of_maps_are_those_of_finite_differences(name):
    """By the activations and by the head, whose score is no linear function of them."""
    torch.manual_seed(0)
    explainer = explainer_for(name)
    activations = torch.rand(2, 5, 3, 3, dtype=torch.double, requires_grad=True)
    head = torch.randn(4, 5, dtype=torch.double, requires_grad=True)

    def maps(activations: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        logits = activations.square().mean((2, 3)) @ head.T
        return explainer.from_forward(activations, logits, [1, 2])

    assert torch.autograd.gradcheck(maps, (activations, head))


@pytest.mark.parametrize('name', [*CAMS, 'InputGradient', 'FullGrad'])
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


class Dropping(nn.Module):
    """Dropout between pooling and classifier."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        return self.fc(self.drop(self.pool(self.conv(x)).flatten(1)))


def test_dropout_in_training_is_part_of_a_differentiable_map():
    """The closed form does not know which features are dropped, so it is not used then."""
    torch.manual_seed(0)
    model = Dropping()
    explainer = GradCAM(differentiable=True)
    explainer(model, images(), 1)  # finds the layer
    torch.manual_seed(1)
    maps = explainer(model, images(), 1)
    torch.manual_seed(1)
    kept = model.drop(torch.ones(3, 8))
    weights = model.fc.weight[1] * kept / 14**2
    torch.testing.assert_close(
        maps, (weights[..., None, None] * model.conv(images())).sum(1), rtol=1e-4, atol=1e-7
    )
    torch.testing.assert_close(
        CAM(differentiable=True)(model, images(), 1),
        torch.einsum('c,nchw->nhw', model.fc.weight[1], model.conv(images())),
    )
    closed = model.eval().fc.weight[1] / 14**2
    torch.testing.assert_close(
        explainer(model, images(), 1), torch.einsum('c,nchw->nhw', closed, model.conv(images()))
    )


@pytest.mark.parametrize('name', [*CAMS, 'EigenCAM', 'InputGradient', 'IntegratedGradients',
                                  'SmoothGrad', 'FullGrad', 'AttentionRollout', 'GradientRollout',
                                  'LeGrad'])  # fmt: skip
def test_a_loss_that_trains_nothing_is_refused(name):
    model, explainer = model_for(name), explainer_for(name, differentiable=True)
    message = f'{name}: the model carries no gradient .*, so a loss of its map would train nothing'
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        explainer(model, images(), 1)
    with pytest.raises(ValueError, match=message):
        explainer(model.requires_grad_(False), images(), 1)
    assert explainer(model, images().requires_grad_(), 1).requires_grad  # such a loss moves images


def test_maps_without_gradient_are_refused_where_a_loss_is_made_of_them():
    model = model_for('GradCAM', 'hidden')
    explainer = GradCAM('backbone.body', differentiable=True)
    message = "GradCAM: layer 'backbone.body' carries no gradient .* train nothing"
    model.backbone.requires_grad_(False)
    with pytest.raises(ValueError, match=message):
        explainer(model, images(), 1)
    features = model.backbone(images())[-1]
    with pytest.raises(ValueError, match='GradCAM: the activations carry no gradient'):
        GradCAM().from_forward(features, model.head(model.neck((features,))), 1)
    other = features.clone().requires_grad_()
    with pytest.raises(ValueError, match='GradCAM: the logits do not depend on the activations'):
        GradCAM().from_forward(other, model.head(model.neck((features,))), 1)


def test_an_embedding_loss_and_a_loss_of_maps_share_one_backward():
    """A map that shares the forward leaves its graph to the other losses."""
    model = model_for('GradCAM', 'hidden')
    features = model.backbone(images())[-1]
    logits = model.head(model.neck((features,)))
    maps = GradCAM().from_forward(features, logits, 'pred')
    (maps.square().sum() + logits.square().sum()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(('shape', 'got'), [((3, 16, 16),) * 2, ((0, 3, 16, 16),) * 2])
def test_inputs_that_are_no_images(shape, got):
    with pytest.raises(ValueError) as error:
        GradCAM()(model_for('GradCAM'), torch.zeros(shape))
    assert str(error.value) == f'an explainer takes images of shape (N, 3, H, W), and got {got}'


def test_a_model_with_another_head_is_looked_at_again():
    model, explainer = model_for('GradCAM'), GradCAM()
    assert explainer.layers(model, images())[0].classifier == 'head.fc'
    model.head = model_for('GradCAM', 'hidden').head
    assert explainer.layers(model, images())[0].classifier is None
    torch.testing.assert_close(explainer(model, images(), 1), GradCAM()(model, images(), 1))


def test_layers_are_searched_for_once_a_model_and_size(monkeypatch):
    explainer, model, found = GradCAM(), model_for('GradCAM'), []
    monkeypatch.setattr(
        'mmkdx.explain.base.find_layers', lambda *args: found.append(args) or find_layers(*args)
    )
    for _ in range(3):
        explainer(model, images(), 1)
    assert len(found) == 1
    explainer(model, images()[..., :8], 1)
    assert len(found) == 2
    explainer(model_for('GradCAM'), images(), 1)
    assert len(found) == 3


@pytest.mark.parametrize('head', ['linear', 'hidden'])
def test_no_graph_is_recorded_before_the_layer_and_none_at_all_in_closed_form(head):
    model, explainer = model_for('GradCAM', head), GradCAM()
    explainer(model, images(), 1)  # finds the layer
    graphs = {}
    for name in ('backbone.stem.0', 'backbone.body.0', 'head'):
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: graphs.update({name: output.requires_grad})
        )
    explainer(model, images(), 1)
    assert list(graphs.values()) == [False, False, head == 'hidden']


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        ('GradCAM', {}),
        ('GradCAM', dict(differentiable=True)),
        ('EigenCAM', {}),
        ('AblationCAM', {}),
    ],
)
def test_a_layer_that_the_next_overwrites_in_place(name, options):
    """The activations before the ReLU, not after it."""
    explainer = explainer_for(name, layer='backbone.body.1', **options)
    model = model_for(name)
    maps = explainer(model, images(), 1)
    model.backbone.body[2].inplace = False
    torch.testing.assert_close(maps, explainer(model, images(), 1), rtol=0, atol=0)


@pytest.mark.parametrize('name', ['GradCAM', 'EigenCAM', 'InputGradient', 'FullGrad'])
@pytest.mark.parametrize('differentiable', [False, True])
def test_models_that_save_memory_in_training(name, differentiable):
    """mmpretrain's ``with_cp`` is a checkpointing that has no gradient by a layer."""
    config = classifier(32)
    config['backbone'] = dict(
        type='ResNet', depth=18, base_channels=4, stem_channels=4, with_cp=True
    )
    torch.manual_seed(0)
    model, x = build(config).eval(), torch.randn(2, 3, 32, 32)
    layer = {} if name in ('InputGradient', 'FullGrad') else dict(layer='backbone.layer2')
    explainer = explainer_for(name, differentiable=differentiable, **layer)
    blocks = [module for module in model.modules() if hasattr(module, 'with_cp')]
    maps = explainer(model, x, 1)
    assert blocks and all(block.with_cp for block in blocks)
    for block in blocks:
        block.with_cp = False
    torch.testing.assert_close(explainer(model, x, 1), maps, rtol=0, atol=0)
    assert not any(block.with_cp for block in blocks)


@pytest.mark.parametrize('result', [torch.zeros(3, 4, 2), {'scores': torch.zeros(3, 4)}])
def test_models_without_logits(result):
    class Odd(nn.Module):
        def forward(self, x):
            return result

    with pytest.raises(
        ValueError, match=r'Odd returns a .*, and a classifier returns logits of shape \(N, K\)'
    ):
        build_explainer('InputGradient')(Odd(), images())


def test_explainers_are_built_from_names_dicts_and_objects():
    assert type(build_explainer('LayerCAM')) is LayerCAM
    built = build_explainer(dict(type='LayerCAM', layer='backbone.stem'))
    assert built.layer == 'backbone.stem' and build_explainer(built) is built
    assert type(build_explainer(dict(type=LayerCAM))) is LayerCAM
    with DefaultScope.overwrite_default_scope('mmpretrain'):  # as in its configs
        assert type(build_explainer('LayerCAM')) is LayerCAM


@pytest.mark.parametrize(
    ('spec', 'message'),
    [
        ('Gradcam', "hook.explainer: there is no explainer 'Gradcam'; there are .*GradCAM"),
        (dict(layer='x'), 'hook.explainer: .*type'),
        (None, 'hook.explainer: an explainer is a dict with a type, or a type, and not None'),
        (dict(type='GradCAM', steps=3), 'hook.explainer: .*steps'),
        (
            dict(type='SmoothGrad', samples=0),
            'hook.explainer: .*samples is 0; it must be an integer of at least 1',
        ),
    ],
)
def test_mistakes_name_the_config_key(spec, message):
    with pytest.raises(ValueError, match=message):
        build_explainer(spec, 'hook.explainer')
