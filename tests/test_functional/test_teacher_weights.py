"""How much each of several teachers counts: numbers computed by hand, and limits."""

import math

import pytest
import torch

from mmkdx.functional.teacher_weights import agreement_weights, cross_entropy_weights


def logits(*probabilities):
    """Logits of one image, of shape (T, 1, K)."""
    return torch.tensor(probabilities).log()[:, None]


def test_weights_by_cross_entropy():
    """CE is -log p of class 0, so its softmax over the teachers is 1/p over the sum of all 1/p."""
    three = logits([0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.125, 0.5, 0.375])
    # 1/p = 2, 4, 8, whose sum is 14: w = (12, 10, 6) / 14 / 2
    expected = torch.tensor([[6 / 14], [5 / 14], [3 / 14]])
    torch.testing.assert_close(cross_entropy_weights(three, torch.tensor([0])), expected)
    # Half of class 0 and half of class 1: p becomes the geometric mean of both
    inverse = [1 / math.sqrt(p) for p in (0.125, 0.125, 0.0625)]
    expected = torch.tensor([[(1 - each / sum(inverse)) / 2] for each in inverse])
    mixed = torch.tensor([[0.5, 0.5, 0.0]])
    torch.testing.assert_close(cross_entropy_weights(three, mixed), expected)
    # A teacher that is wrong without doubt: the two others share its weight
    wrong = torch.tensor([[[0.0, 0.0]], [[0.0, 0.0]], [[-6e4, 6e4]]]).half()
    found = cross_entropy_weights(wrong, torch.tensor([0]))
    assert found.dtype == torch.float32 and found.flatten().tolist() == [0.5, 0.5, 0.0]


def test_weights_by_agreement():
    three = logits([0.8, 0.2], [0.8, 0.2], [0.2, 0.8])
    # cosines of (0.8, 0.2) and (0.5, 0.5), twice, and of (0.2, 0.8) and (0.8, 0.2)
    near, far = 0.5 / math.sqrt(0.68 * 0.5), 0.32 / 0.68
    expected = torch.tensor([near, near, far]) / (2 * near + far)
    torch.testing.assert_close(agreement_weights(three).flatten(), expected)
    # One-hot probabilities: two teachers of one class leave a third nothing, three of three are alike
    certain = 1000 * torch.eye(3)
    found = agreement_weights(certain[[0, 0, 1]][:, None]).flatten()
    torch.testing.assert_close(found, torch.tensor([0.5, 0.5, 0.0]))
    assert agreement_weights(certain[:, None]).flatten().tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_weights_are_shares(dtype):
    several = 5 * torch.randn(4, 20, 10, generator=torch.Generator().manual_seed(0)).to(dtype)
    target = torch.arange(20) % 10
    for found in (cross_entropy_weights(several, target), agreement_weights(several)):
        assert found.shape == (4, 20) and found.min() >= 0
        torch.testing.assert_close(found.sum(0), torch.ones(20))
    swapped = cross_entropy_weights(several[[1, 0, 2, 3]], target)
    torch.testing.assert_close(swapped[0], cross_entropy_weights(several, target)[1])
