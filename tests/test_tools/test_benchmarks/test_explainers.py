"""The benchmark of explainers runs, and its tables have all rows."""

import sys

import pytest
from tiny import tool


@pytest.mark.slow
def test_the_whole_benchmark(monkeypatch, capsys):
    pytest.importorskip('captum')
    words = 'explainers.py --batch 2 --size 64 --rounds 1 --channels 4 --device cpu'
    monkeypatch.setattr(sys, 'argv', words.split())
    tool('benchmarks/explainers').main()
    output = capsys.readouterr().out
    for row in (
        *('mmkdx CAM', 'mmkdx EigenCAM', 'captum GradCAM', '4 forwards', '+ own forward'),
        *('mmkdx FullGrad', 'captum IntegratedGradients'),
    ):
        assert f'| {row}' in output, row
