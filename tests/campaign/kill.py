"""SIGKILL at random moments: what goes on afterwards equals what was never killed."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from processes import Script
from resumable import losses, run_config, with_a_teacher

ROOT = Path(__file__).parents[2]
VICTIM = Path(__file__).with_name('victim.py')
#: Kills of each kind in ten minutes.
COUNTS = dict(training=50, cache=10, report=10, push=10, rank=5)


def run(
    folder: Path,
    tool: str,
    *arguments: object,
    event: int = 0,
    seconds: float = 0,
    **options: object,
) -> Script:
    """Starts a tool that kills itself."""
    return Script(VICTIM, folder, event, seconds, ROOT / 'tools' / tool, *arguments, **options)


def finish(script: Script) -> None:
    """Waits for a tool that must not fail."""
    done = script.wait()
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def validations(work_dir: Path) -> dict[int, dict]:
    """The scores of each validation, of all parts of a run."""
    found = {}
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in path.read_text().split('\n')[:-1]:
            record = json.loads(line)
            if 'loss' not in record:
                times = ('time', 'data_time', 'seconds')
                scores = {k: v for k, v in record.items() if not k.endswith(times)}
                found.setdefault(record['step'], {}).update(scores)
    return found


def differences(whole: Path, resumed: Path) -> list[str]:
    """What of a resumed run is not as in the uninterrupted one."""
    found = []
    if losses(resumed) != losses(whole):
        found.append('losses')
    if validations(resumed) != validations(whole):
        found.append('validations')
    for kind in ('best_*.pth', 'epoch_*.pth', 'iter_*.pth'):
        one, two = ({path.name for path in folder.glob(kind)} for folder in (whole, resumed))
        if one != two:
            found.append(f'files {sorted(one)} and {sorted(two)}')
        for name in one & two:
            found += [
                f'{name}: {key}'
                for key in ('state_dict', 'optimizer', 'param_schedulers', 'best')
                if not equal(_part(whole / name, key), _part(resumed / name, key))
            ]
    return found


def _part(path: Path, key: str) -> object:
    checkpoint = torch.load(path, weights_only=False)
    if key == 'best':
        info = checkpoint['message_hub']['runtime_info']
        return {
            k: Path(v).name if isinstance(v, str) else v for k, v in info.items() if 'best' in k
        }
    return checkpoint.get(key)


def equal(one: object, two: object) -> bool:
    """Whether two states are equal to the last bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(equal, one, two))
    return one == two


def training_config(folder: Path, **changes: object) -> Path:
    """A training with a checkpoint each epoch, of which one is kept, and the best."""
    cfg = run_config(with_a_teacher(folder), **changes)
    cfg.default_hooks.checkpoint.update(max_keep_ckpts=1, save_best='accuracy/top1')
    cfg.train_cfg = dict(by_epoch=True, max_epochs=4, val_interval=1)
    cfg.optim_wrapper.optimizer.lr = 0.03
    cfg.train_dataloader.dataset.indices = 96
    cfg.param_scheduler.T_max = 32
    cfg.custom_hooks = [dict(type='EpochSeedHook')]
    cfg.dump(folder / 'run.py')
    return folder / 'run.py'


def kill_training(folder: Path, chance: random.Random, until: float, most: int) -> dict:
    """Kills trainings, up to three times each."""
    config = training_config(folder)
    whole = folder / 'whole'
    begin = time.monotonic()
    finish(run(whole, 'train.py', config, '--work-dir', whole))
    lasted, events = time.monotonic() - begin, int((folder / 'whole.events').read_text())
    row = dict(what='SIGKILL while training', tried=0, survived=0, lost=0, silent=0)
    number = 0
    while row['tried'] < most and time.monotonic() < until:
        number += 1
        cut = folder / f'cut{number}'
        command = ('train.py', config, '--work-dir', cut, '--resume')
        moments = []
        for _ in range(min(3, most - row['tried'])):
            if chance.random() < 0.7:  # each change of a file is as likely as any other
                moment = dict(event=chance.randint(1, events))
            else:
                moment = dict(seconds=chance.uniform(lasted / 3, lasted))
            moments.append(moment)
            if run(cut, *command, **moment).wait().returncode == 0:
                break
        row['tried'] += len(moments)
        done = run(cut, *command).wait()
        wrong = differences(whole, cut) if done.returncode == 0 else [done.stderr[-1500:]]
        if wrong:
            print(f'training killed at {moments}: {wrong}')
        row['lost' if done.returncode else 'silent'] += len(moments) if wrong else 0
        row['survived'] += 0 if wrong else len(moments)
        if not wrong:
            shutil.rmtree(cut)
    return row


KILLS: dict[str, Callable] = dict(training=kill_training)


def drive(minutes: float, seed: int) -> list[dict]:
    """Kills each kind of run as often as the time allows.

    Args:
        minutes (float): The time in minutes; ten suffice for the full counts.
        seed (int): The seed of the moments.

    Returns:
        list[dict]: For each kind of run the counts of kills: ``tried``, ``survived``, ``lost`` (the run
        does not go on) and ``silent`` (it goes on and differs).
    """
    rows = []
    share = minutes * 60 / sum(COUNTS.values())
    with tempfile.TemporaryDirectory() as name:
        for kind, kill in KILLS.items():
            folder = Path(name, kind)
            folder.mkdir()
            most = max(1, round(COUNTS[kind] * min(1, minutes / 10)))
            until = time.monotonic() + share * COUNTS[kind]
            rows.append(kill(folder, random.Random(f'{seed} {kind}'), until, most))
    return rows


if __name__ == '__main__':
    import sys

    sys.path[:0] = [str(ROOT / 'tests')]
    print(*drive(float(sys.argv[1]), int(sys.argv[2])), sep='\n')
