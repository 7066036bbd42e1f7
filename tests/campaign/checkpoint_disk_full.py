"""No room for checkpoints: a sentence, an exit status, and what was there is whole."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from pathlib import Path

from campaign.kill import differences, finish, run, training_config

#: Sizes in ten minutes.
MOST = 20


def drive(minutes: float, seed: int) -> list[dict]:
    """Resumes a training where no file can be larger than some bytes, and again with room.

    Args:
        minutes (float): The time in minutes; ten suffice for 20 sizes.
        seed (int): The seed of the sizes.

    Returns:
        list[dict]: One row. ``lost`` are runs without a sentence or with a damaged checkpoint.
        ``silent`` are runs that end with status 0 although something is missing.
    """
    row = dict(what='disk full at a checkpoint', tried=0, survived=0, lost=0, silent=0)
    chance, until = random.Random(seed), time.monotonic() + minutes * 60
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = training_config(folder)
        whole, half = folder / 'whole', folder / 'half'
        finish(run(whole, 'train.py', config, '--work-dir', whole))
        events = int((folder / 'whole.events').read_text())
        run(half, 'train.py', config, '--work-dir', half, event=2 * events // 3).wait()
        largest = (whole / 'epoch_4.pth').stat().st_size
        while row['tried'] < MOST and (not row['tried'] or time.monotonic() < until):
            row['tried'] += 1
            cut = folder / f'cut{row["tried"]}'
            shutil.copytree(half, cut)
            last = cut / 'last_checkpoint'
            last.write_text(str(cut / Path(last.read_text()).name))
            size = chance.randint(1000, largest - 1)
            command = ('train.py', config, '--work-dir', cut, '--resume')
            full = run(cut, *command, env=dict(MOST_BYTES=str(size))).wait()
            done = run(cut, *command).wait()
            wrong = []
            if not any('cannot write' in line for line in full.stderr.split('\n')):
                wrong.append(f'no sentence: {full.stderr[-1500:]}')
            if done.returncode:
                wrong.append(done.stderr[-1500:])
            else:
                wrong += differences(whole, cut)
            if full.returncode == 0:
                kind = 'silent'
            else:
                kind = 'lost' if wrong else 'survived'
            row[kind] += 1
            if kind != 'survived':
                print(f'{size} bytes: {wrong}')
            shutil.rmtree(cut)
    return [row]
