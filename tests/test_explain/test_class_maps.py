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


@pytest.mark.parametrize('name', ['cnn', 'ResNet', 'SwinTransformer', 'DenseNet'])
def test_the_mean_of_a_map_is_the_logit_without_bias(name):
    model, inputs = cnn() if name == 'cnn' else (family(name).double(), images(64).double())
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


@pytest.mark.parametrize('name', ['ConvNeXt', 'MobileNetV3', 'VisionTransformer', 'MlpMixer'])
def test_other_heads(name):
    model, inputs = family(name), images(64 if name[0] in 'CM' and name[1] == 'o' else 48)
    with pytest.raises(ValueError, match='CAM needs .* ImageClassifier is none .*; use GradCAM'):
        CAM()(model, inputs)
    GradCAM()(model, inputs)


def test_dropout_before_the_classifier():
    # In evaluation it is none; in training it would be a factor that the map does not have
    model, inputs = cnn(drop=0.5)
    CAM()(model.train(), inputs)
    with pytest.raises(ValueError, match='or drops out in between'):
        CAM(differentiable=True)(model, inputs)
