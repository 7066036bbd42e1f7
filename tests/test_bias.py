"""Explanations of trained models, on data whose true reasons are known."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def train_and_test(folder: Path, config: str, epochs: int) -> tuple[dict, dict]:
    """Trains a model and returns what its last validation and its test say."""
    schedule = [
        *(f'train_cfg.max_epochs={epochs}', f'train_cfg.val_interval={epochs}'),
        *(f'param_scheduler.1.T_max={epochs - 1}', f'param_scheduler.1.end={epochs}'),
    ]
    if not (folder / 'configs').exists():
        (folder / 'configs').symlink_to(ROOT / 'configs')
    env = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    config, work_dir = f'configs/parts/{config}.py', folder / config
    for command in (
        ['tools/train.py', config],
        ['tools/test.py', config, work_dir / f'epoch_{epochs}.pth'],
    ):
        done = subprocess.run(
            [sys.executable, ROOT / command[0], *command[1:], '--work-dir', work_dir]
            + ['--cfg-options', *schedule],
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    lines = [
        json.loads(line)
        for path in sorted(work_dir.glob('*/vis_data/scalars.json'))
        for line in path.read_text().splitlines()
    ]
    (val,) = (line for line in lines if 'accuracy/top1' in line and line['step'] == epochs)
    test = json.loads(next(work_dir.glob('*/*.json')).read_text())
    return val, test


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp('bias')


def test_maps_of_a_trained_model_lie_on_the_parts_that_decide(folder):
    val, test = train_and_test(folder, 'resnet18-tiny_parts', 6)
    for metrics in (val, test):
        assert metrics['accuracy/top1'] > 60, 'there are nine classes'
        for region, margin in (('object', 0.3), ('deciding', 0.3)):
            hits, chance = (
                metrics[f'explain/{region}_pointing_game{end}'] for end in ('', '_chance')
            )
            assert hits > chance + margin, region
            assert (
                metrics[f'explain/{region}_energy']
                > 1.3 * metrics[f'explain/{region}_energy_chance']
            )
        # A map that says nothing of the mask has an average precision of one half
        assert metrics['explain/mean_ap'] > 0.62
        assert metrics['explain/degenerate'] == 0


def test_a_planted_bias_is_caught(folder):
    """In training and validation a mark tells the class; in the test there is none."""
    val, test = train_and_test(folder, 'resnet18-tiny_parts-biased', 6)
    assert val['accuracy/top1'] > 80
    assert val['explain/mark_pointing_game'] > 0.5 > 4 * val['explain/mark_pointing_game_chance']
    assert val['explain/mark_energy'] > 2 * val['explain/mark_energy_chance']
    assert val['explain/object_pointing_game'] < val['explain/object_pointing_game_chance']
    assert val['explain/deciding_pointing_game'] < val['explain/deciding_pointing_game_chance']
    assert test['accuracy/top1'] < 40
