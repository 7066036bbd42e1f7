"""What the quickstart shows: students learn from the teacher, and runs can be repeated."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmkdx.apis.runs import metric_values, training_parts

ROOT = Path(__file__).parents[1]
STUDENT = 'resnet18-tiny_digits100'


@pytest.mark.slow
def test_distillation_adds_to_a_student_and_repeats_itself(tmp_path):
    env = dict(os.environ, PYTHONPATH=str(ROOT))

    def top1(config, work_dir=None):
        work_dir = work_dir or f'work_dirs/{config}'
        subprocess.run(
            [sys.executable, ROOT / 'tools/train.py', ROOT / f'configs/digits/{config}.py']
            + ['--work-dir', work_dir],
            cwd=tmp_path,
            env=env,
            check=True,
            capture_output=True,
        )
        return metric_values(training_parts(tmp_path / work_dir), 'accuracy/top1')

    teacher = top1('resnet18_digits')
    alone = top1(STUDENT)
    kd = top1(f'kd_resnet18_{STUDENT}')
    cat = top1(f'cat_resnet18_{STUDENT}')
    assert teacher[-1] > 96
    assert kd[-1] > alone[-1] + 10 and cat[-1] > alone[-1] + 10
    assert top1(f'cat_resnet18_{STUDENT}', 'again') == cat
