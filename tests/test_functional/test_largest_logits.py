"""The largest logits and one number for the others: hand-computed, and their probabilities."""

import math

import pytest
import torch

from mmkdx.functional.largest_logits import all_logits, largest_logits


def test_of_the_top_k_the_probabilities_are_exact():
    # exp of them: 1, 2, 4, 8, 3; of the others than 8 and 4 the mean is 2
    logits = torch.tensor([[1.0, 2, 4, 8, 3]]).log()
    encoded = largest_logits(logits, 2)
    assert encoded['index'].tolist() == [[3, 2]] and encoded['index'].dtype == torch.int16
    assert encoded['rest'].item() == pytest.approx(math.log(2), abs=1e-6)
    decoded = all_logits(encoded, 5)
    assert decoded.dtype == torch.float32
    expected = torch.tensor([[2, 2, 4, 8, 2.0]]) / 18
    torch.testing.assert_close(decoded.softmax(1), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize('k', [1, 7, 99])
def test_top_k_of_random_logits(k):
    logits = 4 * torch.randn(16, 100, generator=torch.Generator().manual_seed(k))
    found = all_logits(largest_logits(logits, k), 100)
    top = logits.topk(k).indices
    torch.testing.assert_close(
        found.softmax(1).gather(1, top), logits.softmax(1).gather(1, top), atol=2e-3, rtol=1e-2
    )
    others = found.scatter(1, top, math.nan)
    assert all(len(row[~row.isnan()].unique()) == 1 for row in others)


def test_more_classes_than_16_bits_count():
    logits = torch.zeros(1, 40000)
    logits[0, 39999] = 1
    stored = largest_logits(logits, 1)
    assert stored['index'].dtype == torch.int32 and stored['index'].item() == 39999
    assert all_logits(stored, 40000).argmax() == 39999
