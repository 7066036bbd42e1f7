"""The benchmark of IntrospectiveLoss times real steps, and leaves out what takes too long."""

import re
import sys

import pytest
import torch
from mmengine.model import BaseModel
from tiny import tool


@pytest.fixture(scope='module')
def benchmark(path_of_a_script):
    return tool('benchmarks/introspective')


@pytest.mark.slow
def test_it_runs(benchmark, monkeypatch, capsys):
    words = 'introspective.py --classes 3 9 --batch-size 2 --size 16 --channels 4 --repeats 2'
    monkeypatch.setattr(sys, 'argv', [*words.split(), '--passes', '8', '--device', 'cpu'])
    benchmark.main()
    out = capsys.readouterr().out
    three, nine = (set(re.findall(r'^\| (.+?) +\| \d', part, re.M)) for part in out.split('9 cl'))
    # 9 passes for 9 classes, for 8 candidates and the label, and 10 with probes, are more than 8
    assert nine == {*benchmark.CLOSED, 'cross entropy', 'class averages', 'cam, gradients'}
    assert three == {*nine, 'input_grad', 'input_grad, 8 candidates'}


def test_ways_stand_beside_cross_entropy(benchmark, monkeypatch):
    seen = {}

    def measure(steps, device, rounds):
        seen.update(steps, rounds=rounds)
        for run in steps.values():
            run()

    monkeypatch.setattr(benchmark, 'measure', measure)
    words = (
        'introspective.py --ways cam input_grad --passes 4 --batch-size 2 --size 16 --channels 4'
    )
    monkeypatch.setattr(sys, 'argv', [*words.split(), '--repeats', '3', '--device', 'cpu'])
    benchmark.time_ways(5, benchmark.parse_args())
    assert list(seen) == ['cross entropy', 'cam', 'rounds'] and seen['rounds'] == 3


def test_a_step_trains(benchmark):
    torch.manual_seed(0)
    linear, images = torch.nn.Linear(2, 1), torch.ones(3, 2)

    class Model(BaseModel):
        def __init__(self):
            super().__init__()
            self.linear = linear

        def forward(self, inputs, samples, mode):
            return dict(loss_il=self.linear(inputs).square().mean(), note=torch.ones(()))

    run = benchmark.step(Model(), dict(inputs=images, samples=[]))
    before = linear(images).square().mean().item()
    for _ in range(50):
        run()
    assert linear(images).square().mean().item() < before
