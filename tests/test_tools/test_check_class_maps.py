"""The check of class maps: that it counts, and that it sees what differs."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from tiny import build, tool

from mmkdx.functional import ClassMaps

check = tool('analysis_tools/check_class_maps')


def maps(seed=0, bias=None):
    generator = torch.Generator().manual_seed(seed)
    features, weight = (
        torch.randn(6, 3, 4, 4, generator=generator),
        torch.randn(5, 3, generator=generator),
    )
    return ClassMaps(features, weight, bias)


def test_accuracy_with_and_without_the_bias():
    bias = 100 * F.one_hot(torch.tensor(2), 5).float()
    values = maps(bias=bias)
    labels = values.logits(bias=False).argmax(1)
    labels[0] = (labels[0] + 1) % 5
    told = check.Statistics()
    told.add(values, values.logits(), labels)
    assert told.images == 6 and told.right_without_bias == 5
    assert told.right == (labels == 2).sum().item()
    assert told.difference < 1e-6
    told.add(values, values.logits(bias=False), labels)
    assert told.difference > 1
    assert told.row('model')[:3] == ['model', f'{100 * (told.right / 12):.2f}', '83.33']


@pytest.mark.parametrize('resolution', [1, 2])
def test_cosines(resolution):
    student, teacher = maps(), maps(1)
    pooled, full = check.cosines(student, teacher, resolution)
    for n in range(6):
        for k in range(5):
            a, b = (
                F.adaptive_avg_pool2d(m.full(), resolution)[n, k].flatten()
                for m in (student, teacher)
            )
            assert pooled[n, k].item() == pytest.approx(
                (a @ b / a.norm() / b.norm()).item(), rel=1e-4
            )
            a, b = (m.full()[n, k].flatten() for m in (student, teacher))
            assert full[n, k].item() == pytest.approx(
                (a @ b / a.norm() / b.norm()).item(), rel=1e-4
            )


def test_on_a_distillation(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(Path(__file__).parents[2])
    config = 'configs/digits/cat_resnet18_resnet18-tiny_digits100.py'
    cfg = Config.fromfile(config)
    student = build(cfg.model.student.to_dict())
    teacher = build(Config.fromfile('configs/digits/resnet18_digits.py').model.to_dict())
    torch.save(student.state_dict(), tmp_path / 'student.pth')
    torch.save(teacher.state_dict(), tmp_path / 'teacher.pth')
    options = [
        f'model.teacher.checkpoint={tmp_path / "teacher.pth"}',
        'test_dataloader.dataset.indices=20',
        'log_level=WARNING',
    ]
    arguments = [config, str(tmp_path / 'student.pth'), '--work-dir', str(tmp_path / 'work')]
    monkeypatch.setattr('sys.argv', ['check_class_maps.py', *arguments, '--cfg-options', *options])
    check.main()
    output = capsys.readouterr().out
    rows = [line for line in output.splitlines() if line.startswith(('| student', '| teacher'))]
    assert [float(row.split('|')[4]) < 1e-5 for row in rows] == [True, True]
    assert 'pooled to 2 x 2' in output and 'in full' in output
