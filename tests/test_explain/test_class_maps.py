"""CAM: the maps whose mean is the logit."""

import pytest
import torch
from families import cnn, family, images
from torch import nn

from mmkdx.explain import CAM, GradCAM


def close(result, expected, rel=1e-9, abs=1e-12):
    torch.testing.assert_close(result, expected, rtol=rel, atol=abs)


class Pooled(nn.Module):
    """Global average pooling and a linear layer on the images themselves."""

    def __init__(self, weight, bias):
        super().__init__()
        self.scale, self.pool = nn.Conv2d(3, 3, 1, groups=3, bias=False), nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(3, 2)
        with torch.no_grad():
            self.scale.weight.fill_(1)
            self.fc.weight.copy_(torch.tensor(weight))
            self.fc.bias.copy_(torch.tensor(bias))

    def forward(self, images):
        return self.fc(self.pool(self.scale(images)).flatten(1))


def test_by_hand():
    model = Pooled([[1.0, -1, 0.5], [0, 2, 1]], [7.0, -7])
    inputs = torch.tensor([[[[1.0, 2], [3, 4]], [[0, 1], [1, 2]], [[2, 0], [0, 4]]]])
    expected = torch.tensor([[[2.0, 1], [2, 4]], [[2, 2], [2, 8]]])
    close(CAM()(model, inputs, 'all'), expected[None])
    close(CAM()(model, inputs, 0), expected[:1])
    # The bias decides for the first class, and its part is no part of the map
    close(CAM()(model, inputs), expected[:1])


def test_the_mean_of_a_map_is_the_logit_without_bias():
    model, inputs = cnn()
    with torch.no_grad():
        logits = model(inputs, mode='tensor')
    maps = CAM()(model, inputs, 'all')
    close(maps.mean((2, 3)), logits - model.head.fc.bias)
    close(CAM()(model, inputs), maps[range(len(maps)), logits.argmax(1)])


def test_soft_labels_are_weighted_sums():
    model, inputs = cnn()
    weights = torch.tensor([[0.7, 0.3, 0, 0], [0, -1, 0.5, 2], [1, 0, 0, 0]]).double()
    maps = CAM()(model, inputs, weights)
    close(maps, torch.einsum('nk,nkhw->nhw', weights, CAM()(model, inputs, 'all')))


def test_batches_can_be_split():
    model, inputs = cnn()
    maps = CAM()(model, inputs, 'all')
    for i in range(3):
        close(CAM()(model, inputs[i : i + 1], 'all'), maps[i : i + 1])
        close(CAM()(model, inputs[i : i + 1], 2), maps[i : i + 1, 2])


@pytest.mark.parametrize('targets', [1, 'all'])
def test_a_differentiable_map_moves_features_and_classifier(targets):
    model, inputs = cnn()
    (maps := CAM(differentiable=True)(model, inputs, targets)).square().sum().backward()
    close(maps.detach(), CAM()(model, inputs, targets))
    assert model.head.fc.weight.grad.any() and model.backbone.stem[0].weight.grad.any()
    assert model.head.fc.bias.grad is None


@pytest.mark.parametrize('name', ['MobileNetV3', 'ConvNeXt', 'MlpMixer'])
def test_maps_of_other_heads_are_grad_cam(name):
    """MobileNetV3 has a hidden layer, ConvNeXt pools in the backbone, an MlpMixer pools tokens."""
    model, inputs = family(name).double(), images(48 if name == 'MlpMixer' else 64).double()
    gradient = GradCAM('auto' if name == 'MobileNetV3' else 'backbone.stages.3')
    explainer = CAM(norm='full')
    maps = explainer(model, inputs, 'all')
    close(explainer(model, inputs, 1), maps[:, 1])
    close(explainer(model, inputs), maps[range(len(maps)), model(inputs, mode='tensor').argmax(1)])
    if name == 'MlpMixer':  # it normalises before it pools, which leaves one linear layer
        with torch.no_grad():
            close(CAM()(model, inputs, 'all').mean((2, 3)), model(inputs) - model.head.fc.bias)
        return
    expected = gradient(model, inputs, 'all')
    close(maps, expected * maps[0, 0].numel())
    if name == 'ConvNeXt':
        assert maps.mean((2, 3)).abs().max() < 1e-3 * maps.abs().max()
        with torch.no_grad():
            rest = model(inputs) - CAM()(model, inputs, 'all').mean((2, 3))
        close(rest, rest[:1].expand_as(rest))  # the bias


def test_the_map_of_another_head_can_be_trained():
    model, inputs = family('ConvNeXt'), images(64)
    (maps := CAM(differentiable=True)(model, inputs, 1)).square().sum().backward()
    close(maps.detach(), CAM()(model, inputs, 1), 1e-5, 1e-7)
    assert (
        model.backbone.norm3.weight.grad.any()
        and model.backbone.stages[0][0].norm.weight.grad.any()
    )
    model.requires_grad_(False).head.fc.requires_grad_()
    with pytest.raises(ValueError, match="CAM: layer 'backbone.stages.3' carries no gradient"):
        CAM(differentiable=True)(model, inputs, 1)


def test_class_tokens_are_refused():
    model, inputs = family('VisionTransformer'), images(48)
    with pytest.raises(
        ValueError, match='^CAM: the model classifies by a class token, .* GradCAM,'
    ):
        CAM()(model, inputs)
    GradCAM()(model, inputs)


def test_a_head_that_is_no_function_of_the_features():
    model, inputs = cnn()
    model.head.fc.register_forward_hook(lambda module, args, output: output + torch.rand(1) * 9)
    model.head.fc.register_forward_hook(lambda module, args, output: output * 2)
    with pytest.raises(ValueError, match='^CAM: the layers behind the features of .* use GradCAM'):
        CAM()(model, inputs)


def test_dropout_before_the_classifier():
    """The map is that of the head without dropout."""
    model, inputs = cnn(drop=0.5)
    maps = CAM()(model.eval(), inputs, 1)
    close(CAM()(model.train(), inputs, 1), maps)
    close(CAM(differentiable=True)(model.eval(), inputs, 1), maps)


def test_another_norm():
    with pytest.raises(ValueError, match="^norm is 'none'"):
        CAM(norm='none')


@pytest.mark.parametrize('targets', [1, 'all'])
def test_a_norm_with_nothing_to_divide_by_has_a_zero_map(targets):
    model = Pooled([[1.0, -1, 0.5], [0, 2, 1]], [7.0, -7])
    model.fc = nn.Sequential(nn.LayerNorm(3), model.fc)
    inputs = torch.rand(2, 3, 4, 4)
    # All channels have one mean, so their variance is zero, and still the positions differ
    inputs[0] = torch.stack([inputs[0, 0], inputs[0, 0].flip(0), inputs[0, 0].flip(1)])
    maps = CAM()(model, inputs, targets)
    assert not maps[0].any() and maps[1].any()
