"""Random numbers by seed, epoch and rank."""

import random
from types import SimpleNamespace

import numpy as np
import torch
from mmengine.runner import get_priority

from mmkdx.hooks import EpochSeedHook


def draw(seed, epoch, rank=0, monkeypatch=None):
    if monkeypatch:
        monkeypatch.setattr('mmkdx.hooks.epoch_seed_hook.get_rank', lambda: rank)
    EpochSeedHook().before_train_epoch(SimpleNamespace(seed=seed, epoch=epoch))
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_numbers_depend_on_seed_epoch_and_rank_alone(monkeypatch):
    first = draw(0, 3)
    torch.rand(10)
    assert draw(0, 3) == first
    others = [draw(0, 4), draw(1, 3), draw(0, 3, 1, monkeypatch)]
    for numbers in zip(first, *others):
        assert len(set(numbers)) == 4


def test_it_runs_before_the_hooks_of_users():
    assert get_priority(EpochSeedHook.priority) < get_priority('HIGH')
