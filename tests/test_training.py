"""Real runs of mmengine's Runner: learning, interruption, resume, and what the command line does."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.runner import Runner
from resumable import EPOCHS, losses, run_config, with_a_teacher
from tiny import build, classifier

from mmkdx.compat import CheckpointError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def work_dir(tmp_path):
    return with_a_teacher(tmp_path)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """The folder of a run from its beginning to its end."""
    folder = with_a_teacher(tmp_path_factory.mktemp('whole'))
    Runner.from_cfg(run_config(folder)).train()
    return folder


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(whole, work_dir):
    expected = losses(whole)
    assert len(expected) == 4 * EPOCHS
    assert {'student.loss', 'loss_kd', 'loss_fit', 'loss_ema'} < set(expected[1])
    final = torch.load(whole / f'epoch_{EPOCHS}.pth', weights_only=False)

    runner = Runner.from_cfg(
        run_config(work_dir, load_from=str(whole / 'epoch_2.pth'), resume=True)
    )
    runner.train()
    rest = losses(work_dir)
    assert sorted(rest) == list(range(9, 17))
    for step, values in rest.items():
        assert values == expected[step], step
    resumed = torch.load(work_dir / f'epoch_{EPOCHS}.pth', weights_only=False)
    for part in ('state_dict', 'ema_state_dict'):
        for key, value in final[part].items():
            assert torch.equal(value, resumed[part][key]), key


def test_the_student_learns_more_from_terms_that_fall(whole):
    steps = losses(whole)
    assert steps[16]['loss_fit'] < 0.7 * steps[1]['loss_fit']


@pytest.mark.slow
def test_killed_in_the_middle_of_an_epoch_and_resumed(work_dir):
    config = work_dir / 'run.py'
    run_config(work_dir).dump(config)
    whole = work_dir / 'whole'
    env = dict(os.environ, PYTHONPATH=f'{ROOT}{os.pathsep}{ROOT / "tests"}', OMP_NUM_THREADS='1')
    command = [sys.executable, str(ROOT / 'tools/train.py'), str(config)]
    subprocess.run([*command, '--work-dir', str(whole)], env=env, check=True, capture_output=True)
    expected = losses(whole)

    process = subprocess.Popen(
        [*command, '--work-dir', str(work_dir / 'cut')],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in process.stdout:
        if re.search(r'Epoch\(train\) \[3\]\[[12]/4\]', line):
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    process.wait()
    assert not (work_dir / 'cut' / 'epoch_3.pth').exists()

    # The last file was cut short as well: the one before it is taken, and the log says so.
    last = work_dir / 'cut' / 'epoch_2.pth'
    last.write_bytes(last.read_bytes()[:2000])
    time.sleep(1.1)  # folders of runs are named by the second
    resumed = subprocess.run(
        [*command, '--work-dir', str(work_dir / 'cut'), '--resume'],
        env=env,
        check=True,
        capture_output=True,
        text=True,
    )
    output = resumed.stdout + resumed.stderr
    assert re.search(r'Checkpoint \S*epoch_2.pth .* is empty, truncated, corrupt', output)
    assert re.search(r'Resuming from \S*epoch_1.pth instead', output)
    rest = losses(work_dir / 'cut')
    assert sorted(rest) == sorted(expected)
    for step in range(5, 17):
        assert rest[step] == expected[step], step


def test_a_truncated_checkpoint_is_named(whole, work_dir):
    broken = work_dir / 'epoch_1.pth'
    broken.write_bytes((whole / 'epoch_1.pth').read_bytes()[:-300])
    runner = Runner.from_cfg(run_config(work_dir, load_from=str(broken), resume=True))
    with pytest.raises(CheckpointError, match=f'Checkpoint {broken} .* truncated'):
        runner.train()


def test_load_from_takes_a_plain_student(work_dir):
    plain = build(classifier(4, classes=10))
    torch.save(plain.state_dict(), work_dir / 'student.pth')
    runner = Runner.from_cfg(
        run_config(work_dir, load_from=str(work_dir / 'student.pth'), custom_hooks=[])
    )
    runner.load_or_resume()
    assert torch.equal(runner.model.student.head.fc.weight, plain.head.fc.weight)


def test_missing_teacher_file_stops_before_the_first_iteration(tmp_path):
    runner = Runner.from_cfg(run_config(tmp_path))
    with pytest.raises(FileNotFoundError, match='teacher.checkpoint: there is no file'):
        runner.train()
    assert losses(tmp_path) == {}
