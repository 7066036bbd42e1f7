"""The box of high activation: T6 of Proto2Proto's tests."""

import torch

from mmkdx.functional.activation_boxes import high_activation_boxes


def test_hand_computed_boxes():
    ramp = torch.arange(100.0).view(10, 10)
    assert high_activation_boxes(ramp[None]).tolist() == [[5, 9, 10, 10]]
    spot = torch.zeros(20, 20)
    spot[5:9, 11:17] = 1
    assert high_activation_boxes(spot[None]).tolist() == [[11, 5, 17, 9]]


def test_a_constant_map_is_its_own_box():
    assert high_activation_boxes(torch.full((2, 4, 6), 3.0)).tolist() == [[0, 0, 6, 4]] * 2


def test_one_box_for_two_spots():
    maps = torch.zeros(1, 20, 20)
    maps[0, 3, 4] = maps[0, 10, 15] = 1
    assert high_activation_boxes(maps, 99.6).tolist() == [[4, 3, 16, 11]]
