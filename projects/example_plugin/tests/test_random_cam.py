import torch
from torch import nn

from mmkdx.explain import build_explainer


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 2, 3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2, 4)

    def forward(self, images):
        return self.fc(self.pool(self.body(images)).flatten(1))


def test_maps_are_the_seeds_sums_of_channels():
    torch.manual_seed(3)
    model, images = Net().eval(), torch.randn(5, 3, 8, 8)
    maps = build_explainer(dict(type='RandomCAM', seed=1))(model, images)
    weights = torch.rand(2, generator=torch.Generator().manual_seed(1)) * 2 - 1
    activations = model.body(images)
    expected = weights[0] * activations[:, 0] + weights[1] * activations[:, 1]
    torch.testing.assert_close(maps, expected.detach())
    other = build_explainer(dict(type='RandomCAM', seed=2))(model, images)
    assert not torch.allclose(maps, other)
