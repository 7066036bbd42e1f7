"""The benchmark of explainers runs, and its tables have all rows."""

import sys

import pytest
from tiny import tool


def run(monkeypatch, capsys, words):
    monkeypatch.setattr(sys, 'argv', ['explainers.py', '--device', 'cpu', *words.split()])
    tool('benchmarks/explainers').main()
    return capsys.readouterr().out


@pytest.mark.slow
def test_the_whole_benchmark(monkeypatch, capsys):
    pytest.importorskip('captum')
    words = '--batch 2 --size 64 --rounds 1 --channels 4'
    output = run(monkeypatch, capsys, words)
    for row in (
        *('mmkdx CAM', 'mmkdx EigenCAM', 'captum GradCAM', '4 forwards', '+ own forward'),
        *('mmkdx FullGrad', 'captum IntegratedGradients'),
    ):
        assert f'| {row}' in output, row


@pytest.mark.slow
def test_networks_in_half_precision(monkeypatch, capsys):
    """Other libraries are left out."""
    models = ('resnet18_8xb32_in1k', 'resnet50_8xb32_in1k')
    words = f'--tables maps --model {" ".join(models)} --dtype bfloat16 --batch 2 --size 64'
    output = run(monkeypatch, capsys, f'{words} --rounds 1')
    for model in models:
        assert f'\n{model}, 2 images of 64 x 64, 1 rounds, bfloat16\n' in output
    names = [line.split()[1] for line in output.splitlines() if line.startswith('| ')]
    assert names.count('floor') == 4 and set(names) == {'|', 'floor', 'mmkdx'}
    assert 'Score-CAM' not in output
