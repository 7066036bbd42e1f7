"""Schedules: exact factors, the runner's own counters, and errors."""

import math

import pytest
import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from torch.utils.data import DataLoader, TensorDataset

from mmkdx.functional.schedules import WeightSchedule


@pytest.fixture(autouse=True)
def fresh_managers(monkeypatch):
    """Keeps the counters of other runners out, and those of this file's in."""
    for manager in (DefaultScope, MessageHub, MMLogger, Visualizer):
        monkeypatch.setattr(manager, '_instance_dict', type(manager._instance_dict)())


@pytest.mark.parametrize(
    'arguments, expected',
    [
        (dict(type='linear', end=5), [0, 0.25, 0.5, 0.75, 1, 1, 1]),
        (dict(type='linear', begin=2, end=5), [0, 0, 0, 0.5, 1, 1, 1]),
        (dict(type='linear', begin=1, end=3, start_factor=4, end_factor=2), [4, 4, 2, 2, 2, 2, 2]),
        (dict(type='linear', end=2), [0, 1, 1, 1, 1, 1, 1]),
        (
            dict(type='cosine', end=5),
            [0, 0.5 - math.sqrt(2) / 4, 0.5, 0.5 + math.sqrt(2) / 4, 1, 1, 1],
        ),
        (
            dict(type='cosine', begin=1, end=5, start_factor=1, end_factor=0.2),
            [1, 1, 0.8, 0.4, 0.2, 0.2, 0.2],
        ),
        # exp(-5 (1 - t)^2) at t = 0, 1/4, 1/2, 3/4 and 1, and nothing before it begins
        (
            dict(type='sigmoid', begin=1, end=6),
            [0, 0.00673795, 0.06005467, 0.28650480, 0.73161563, 1, 1],
        ),
    ],
)
def test_factors(arguments, expected):
    schedule = WeightSchedule(**arguments)
    assert [schedule.at(step) for step in range(7)] == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize('curve', ['linear', 'cosine'])
@pytest.mark.parametrize('begin, end', [(-1, 2), (0, 2), (0, 20), (7, 30)])
def test_ends_are_exact_and_the_way_is_monotonic(curve, begin, end):
    schedule = WeightSchedule(curve, begin=begin, end=end, start_factor=0.3, end_factor=0.1)
    factors = [schedule.at(step) for step in range(end + 3)]
    assert factors[: begin + 1] == [0.3] * (begin + 1)
    assert factors[end - 1 :] == [0.1] * 4
    way = factors[begin:end]
    assert all(first > second for first, second in zip(way, way[1:], strict=False))
    # point symmetric about the middle
    assert [a + b for a, b in zip(way, way[::-1], strict=True)] == pytest.approx([0.4] * len(way))


@pytest.mark.parametrize('warmup', [2, 3, 20])
def test_warmup_of_many_papers(warmup):
    schedule = WeightSchedule('linear', start_factor=1 / warmup, begin=0, end=warmup)
    for epoch in range(1, 2 * warmup):  # papers count from 1
        assert schedule.at(epoch - 1) == pytest.approx(min(epoch / warmup, 1), rel=1e-12)


@pytest.mark.parametrize('by_epoch, key', [(True, 'epoch'), (False, 'iter')])
def test_counters(by_epoch, key):
    schedule = WeightSchedule('linear', end=11, by_epoch=by_epoch)
    assert schedule() == 0  # no runner
    hub = MessageHub.get_current_instance()
    hub.update_info('iter' if by_epoch else 'epoch', 9)
    assert schedule() == 0
    hub.update_info(key, 3)
    assert schedule() == pytest.approx(0.3)


class Listener(BaseModel):
    """Notes the factors in its forwards."""

    def __init__(self, **schedules):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.schedules = schedules
        self.seen = {name: [] for name in schedules}

    def forward(self, *inputs, mode):
        for name, schedule in self.schedules.items():
            self.seen[name].append(schedule())
        return dict(loss=self.weight.sum())


def train(work_dir, epochs, resume=False):
    """Trains with two iterations an epoch, and returns the factors that the forwards saw."""
    model = Listener(
        epochs=WeightSchedule('linear', end=5),
        iterations=WeightSchedule('linear', end=9, by_epoch=False),
    )
    Runner(
        model,
        str(work_dir),
        train_dataloader=DataLoader(TensorDataset(torch.zeros(2, 1)), batch_size=1),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        resume=resume,
        log_level='ERROR',
        experiment_name=f'{work_dir.name}_{epochs}',
    ).train()
    return model.seen


def test_a_runner_and_a_resumed_one(tmp_path):
    seen = train(tmp_path, 3)
    assert seen['epochs'] == pytest.approx([0, 0, 0.25, 0.25, 0.5, 0.5])
    assert seen['iterations'] == pytest.approx([0, 1 / 8, 2 / 8, 3 / 8, 4 / 8, 5 / 8])
    seen = train(tmp_path, 4, resume=True)
    assert seen == dict(epochs=pytest.approx([0.75] * 2), iterations=pytest.approx([6 / 8, 7 / 8]))


def test_what_it_says_about_itself():
    schedule = WeightSchedule('cosine', begin=1, end=5, start_factor=0.5)
    assert repr(schedule) == 'cosine 0.5 to 1 over epochs 1 to 5'
    schedule = WeightSchedule('linear', end=500, end_factor=0, by_epoch=False)
    assert repr(schedule) == 'linear 0 to 0 over iterations 0 to 500'


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(type='step', end=5), "schedule.type is 'step'; it must be one of linear, cosine"),
        (
            dict(type='linear', end=1),
            r'schedule.end \(1\) must be at least schedule.begin \+ 2 \(2\)',
        ),
        (dict(type='linear', end=0), r'schedule.end \(0\)'),
        (dict(type='cosine', begin=4, end=5), r'schedule.end \(5\) must .* \(6\)'),
        (dict(type='cosine', begin=4, end=2), r'schedule.end \(2\) must .* \(6\)'),
        *(
            (dict(type='linear', **{'end': 5, key: value}), f'schedule.{key} is .*; it must be')
            for key in ('end', 'begin', 'start_factor', 'end_factor')
            for value in (float('nan'), float('inf'), '2', True)
        ),
        (dict(type='linear', end=5, by_epoch=1), 'schedule.by_epoch is 1; it must be True or'),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        WeightSchedule(**arguments)


def test_epochs_of_a_run_that_has_one_are_warned_of_once(monkeypatch):
    said = []
    monkeypatch.setattr('mmkdx.functional.schedules.print_log', lambda text, **_: said.append(text))
    hub = MessageHub.get_instance('one_epoch')
    hub.update_info('max_epochs', 1)
    hub.update_info('epoch', 0)
    hub.update_info('iter', 3)
    schedule = WeightSchedule('linear', end=5)
    assert [schedule(), schedule()] == [0, 0]
    assert len(said) == 1 and 'stays 0: set schedule.by_epoch=False' in said[0]
    assert WeightSchedule('linear', end=5, by_epoch=False)() == 0.75 and len(said) == 1


@pytest.mark.parametrize('decay, epochs', [(150, 240), (0, 100), (30, 100)])
def test_the_cosine_decay_of_wkd(decay, epochs):
    """Its epochs count from 1, and the factor falls after the decay's to 0 in the last."""
    schedule = WeightSchedule('cosine', start_factor=1, end_factor=0, begin=decay - 1, end=epochs)
    for epoch in range(1, epochs + 1):
        done = max(epoch - decay, 0) / (epochs - decay)
        assert schedule.at(epoch - 1) == pytest.approx(
            (1 + math.cos(math.pi * done)) / 2, abs=1e-15
        )
    if decay == 150:
        found = [schedule.at(epoch - 1) for epoch in (150, 151, 195, 240)]
        assert found == pytest.approx([1, 0.999695, 0.5, 0], abs=1e-6)
