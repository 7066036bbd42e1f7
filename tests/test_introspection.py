"""Where classes have siblings hard to tell apart, it counts which similarities targets follow."""

import pytest
import torch
from test_components import accuracy, images, network, train
from torch import nn

from mmkdx.functional import ClassMaps
from mmkdx.losses import IntrospectiveLoss

pytestmark = pytest.mark.slow


class MapsOf(nn.Module):
    """A network of global average pooling and a linear layer, which yields its class maps."""

    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.features, self.classifier = net[:-3], net[-1]

    def forward(self, pictures: torch.Tensor) -> ClassMaps:
        """The maps of all classes."""
        return ClassMaps(self.features(pictures), self.classifier.weight, self.classifier.bias)


def test_own_similarities_teach_more_than_shuffled_ones():
    few, labels = images(600, 2)
    test = images(1600, 3)

    def trained(seed: int, permute: bool) -> float:
        torch.manual_seed(seed)
        net, loss = network(16), IntrospectiveLoss(permute=permute)
        train(MapsOf(net), few, lambda maps, i: loss(maps, labels[i]), 60)
        return accuracy(net.eval(), *test)

    values = {permute: [trained(seed, permute) for seed in range(4)] for permute in (False, True)}
    means = {permute: sum(each) / 4 for permute, each in values.items()}
    # The network is small and the images are few: cross entropy alone gets about as far as the first
    assert means[False] > means[True] + 3, values
