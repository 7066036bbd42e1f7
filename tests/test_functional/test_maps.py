"""Maps that say nothing, and the scaling of the others."""

import pytest
import torch

from mmkdx.functional import degenerate_maps, normalize_maps, resize_maps

RAMP = torch.arange(4.0).view(2, 2)


@pytest.mark.parametrize(
    ('map_', 'nothing'),
    [
        (RAMP, False),
        (-RAMP, False),
        (1e-30 * RAMP, False),
        (1e30 * RAMP, False),
        (torch.zeros(2, 2), True),
        (torch.full((2, 2), -3.0), True),
        (torch.tensor([[1.0, 1.0], [1.0, 1.0 + 1e-7]]), True),
        (torch.tensor([[1.0, 1.0], [1.0, 1.0 + 1e-4]]), False),
        (torch.tensor([[0.0, 1.0], [2.0, torch.nan]]), True),
        (torch.tensor([[0.0, 1.0], [2.0, torch.inf]]), True),
        (torch.tensor([[0.0, 1.0], [2.0, -torch.inf]]), True),
    ],
)
def test_maps_that_say_nothing(map_, nothing):
    assert degenerate_maps(map_[None]).tolist() == [nothing]
    scaled = normalize_maps(map_[None])
    assert scaled.isfinite().all()
    assert (scaled == 0).all() == nothing


def test_each_map_is_scaled_by_itself():
    maps = torch.stack([RAMP, 100 * RAMP - 7, torch.zeros(2, 2)])
    expected = torch.stack([RAMP / 3, RAMP / 3, torch.zeros(2, 2)])
    torch.testing.assert_close(normalize_maps(maps), expected)


def test_negative_evidence_can_be_left_out():
    scaled = normalize_maps(RAMP[None] - 1, relu=True)
    torch.testing.assert_close(scaled, torch.tensor([[[0.0, 0.0], [0.5, 1.0]]]))
    assert (normalize_maps(-RAMP[None] - 1, relu=True) == 0).all()


def test_half_precision_maps_become_full():
    maps = normalize_maps(RAMP[None].half())
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps, RAMP[None] / 3)


def test_enlarging_is_bilinear_with_half_pixel_centres():
    """Numbers of the Exp-KD protocol: min-max of a map, twice the size."""
    raw = torch.tensor([[0.5, 1.5], [2.5, 2.0]])
    enlarged = resize_maps(normalize_maps(raw[None]), (4, 4))[0]
    expected = [
        [0, 0.125, 0.375, 0.5],
        [0.25, 0.328125, 0.484375, 0.5625],
        [0.75, 0.734375, 0.703125, 0.6875],
        [1, 0.9375, 0.8125, 0.75],
    ]
    torch.testing.assert_close(enlarged, torch.tensor(expected))
    peak = torch.zeros(1, 7, 7)
    peak[0, 3, 3] = 1
    assert resize_maps(peak, (224, 224)).max().item() == 0.968994140625
