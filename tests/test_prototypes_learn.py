"""Proto2Proto for real, by the commands of configs/proto2proto/README.md: T15 of its tests."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEACHER, ALONE, STUDENT = (
    f'proto2proto/{name}_parts'
    for name in (
        'protopnet_resnet18-tiny',
        'protopnet_resnet18-mini',
        'proto2proto_resnet18-tiny_resnet18-mini',
    )
)


def logged(work_dir: Path) -> list[dict]:
    return [
        json.loads(line)
        for path in sorted(work_dir.glob('*/vis_data/scalars.json'))
        for line in path.read_text().splitlines()
    ]


@pytest.mark.slow
def test_a_student_recognises_things_as_its_teacher_does(tmp_path):
    """A quarter of an hour on two cores."""
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    env = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')

    def run(tool: str, *arguments: object) -> None:
        command = [sys.executable, ROOT / f'tools/{tool}.py', *map(str, arguments)]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]

    runs = {}
    for name in ('parts/resnet18-tiny_parts', 'parts/resnet18-mini_parts', TEACHER, ALONE, STUDENT):
        run('train', f'configs/{name}.py')
        runs[name] = logged(tmp_path / 'work_dirs' / Path(name).name)
    scores = {name: next(r for r in reversed(runs[name]) if 'accuracy/top1' in r) for name in runs}
    assert scores[TEACHER]['accuracy/top1'] > 95
    assert scores[STUDENT]['accuracy/top1'] > 90
    for score in ('explain/pms', 'explain/ajs@0.1'):
        assert scores[STUDENT][score] > 1.5 * scores[ALONE][score], score
    losses = [r['loss_prototypes'] for r in runs[STUDENT] if 'loss_prototypes' in r]
    epochs = [r['epoch'] for r in runs[STUDENT] if 'loss_prototypes' in r]
    warm = [loss for loss, epoch in zip(losses, epochs) if epoch <= 2]
    assert warm[-1] < warm[0] / 10
    # the pictures are made of what was pushed
    stem = Path(STUDENT).name
    pictures = ('analysis_tools/prototypes', f'configs/{STUDENT}.py')
    run(*pictures, f'work_dirs/{stem}/epoch_16.pth', '--out', 'pictures', '--num', 2)
    numbers = json.loads((tmp_path / 'pictures/prototypes.json').read_text())
    assert set(numbers) >= {'global', 'local', 'transfer'}
