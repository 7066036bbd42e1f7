"""The benchmark of IntrospectiveLoss times real steps, and leaves out what takes too long."""

import json
import sys

import pytest
import torch
from tiny import tool

benchmark = tool('analysis_tools/benchmark_introspective')


@pytest.mark.slow
def test_it_runs(monkeypatch, capsys, tmp_path):
    sys.path.insert(0, benchmark.__file__.rpartition('/')[0])
    file = tmp_path / 'found.json'
    command = 'benchmark --classes 3 9 --batch-size 2 --size 16 --channels 4 --repeats 2 --passes 8'
    monkeypatch.setattr(sys, 'argv', [*command.split(), '--device', 'cpu', '--json', str(file)])
    benchmark.main()
    out, found = capsys.readouterr().out, json.loads(file.read_text())
    assert out.count('cross entropy') == 4 and '9 classes' in out
    # 9 passes for 9 classes, for 8 candidates and the label, and 10 with probes, are more than 8
    assert set(found['9']) == {
        *benchmark.CLOSED,
        'cross entropy',
        'class averages',
        'cam, gradients',
    }
    assert set(found['3']) == {*found['9'], 'input_grad', 'input_grad, 8 candidates'}
    assert all(values['seconds'] > 0 for values in found['3'].values())
    assert found['3']['cross entropy']['overhead'] == 0


def test_overhead_is_the_median_over_rounds(monkeypatch):
    class Clock:
        """A step that says how long it took: the warm-up, and three rounds."""

        def __init__(self, model, images, samples):
            taught = isinstance(model, benchmark.MODELS.get('mmkdx.Distiller'))
            self.seconds = iter([9.0, 2.0, 3.0, 8.0] if taught else [9.0, 1.0, 2.0, 4.0])

        def __call__(self):
            return next(self.seconds)

    monkeypatch.syspath_prepend(benchmark.__file__.rpartition('/')[0])
    monkeypatch.setattr('benchmark_explainers.peak_memory', lambda step, device: 0.0)
    monkeypatch.setattr(benchmark, 'Step', Clock)
    command = 'benchmark --ways cam --batch-size 2 --size 16 --channels 4 --repeats 3 --device cpu'
    monkeypatch.setattr(sys, 'argv', command.split())
    found = benchmark.measure(3, benchmark.parse_args())
    # 2 / 1, 3 / 2 and 8 / 4: the median of the ratios, not the ratio of the medians
    assert found == {
        'cross entropy': dict(seconds=2.0, overhead=0.0, memory=0.0),
        'cam': dict(seconds=3.0, overhead=1.0, memory=0.0),
    }


def test_a_step_trains():
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    images = torch.ones(3, 2)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = model

        def forward(self, inputs, samples, mode):
            return dict(loss_il=self.linear(inputs).square().mean(), note=torch.ones(()))

    sys.path.insert(0, benchmark.__file__.rpartition('/')[0])
    step = benchmark.Step(Model(), images, [])
    before = model(images).square().mean().item()
    for _ in range(50):
        assert step() > 0
    assert model(images).square().mean().item() < before


def test_a_table():
    found = {
        'cross entropy': dict(seconds=0.1, overhead=0.0, memory=10.0),
        'cam': dict(seconds=0.103, overhead=0.03, memory=12.0),
    }
    lines = benchmark.table(10, found).splitlines()
    cells = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines if '|' in line]
    assert cells[1:] == [['cross entropy', '100.0', '', '10'], ['cam', '103.0', '+3.0 %', '12']]
