#!/usr/bin/env python
"""Writes the config of a distillation from a folder of images and the names of two networks.

--data is a folder with train/CLASS/* and val/CLASS/*, a folder with CLASS/*, or a CSV with the columns
path and label. OUT gets student.py, teacher.py if the teacher has to learn the classes first, and lists
of the images. A dry run of each config follows. --run trains, tests with a report and exports.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from mmkdx.apis.new_config import METHODS, new_config
from mmkdx.checkpoints import CheckpointError
from mmkdx.data_configs import DataConfigError
from mmkdx.files import exit_on_write_error

TOOLS = Path(__file__).parent


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    networks = 'timm::NAME, torchvision::NAME, hf::NAME, module:callable, a zoo name, or a config'
    add = parser.add_argument
    add('--data', required=True, help='the folder or CSV')
    add('--teacher', required=True, help=networks)
    add('--checkpoint', help="the teacher's weights (default: those of its library)")
    add('--student', required=True, help='as --teacher; it starts with random weights')
    add('--method', default='kd', choices=METHODS, help='default: kd')
    add('--epochs', type=int, default=100, help='epochs of the student; default: 100')
    add('--out', required=True, help='the folder for configs, lists and runs')
    add('--seed', type=int, default=0, help='random seed of the split and the training; default: 0')
    add('--run', action='store_true', help='train, test and export')
    return parser.parse_args()


def call(script: str, *arguments: str) -> None:
    """Runs a script of ``tools``, and ends with its exit status if it fails.

    The script gets all signals, so train.py writes a checkpoint before it stops.
    """
    command = [sys.executable, str(TOOLS / script), *arguments]
    with subprocess.Popen(command) as process:
        # A terminal sends SIGINT to the script, too
        before = [
            signal.signal(signal.SIGINT, lambda *_: None),
            signal.signal(signal.SIGTERM, lambda number, _: process.send_signal(number)),
        ]
        status = process.wait()
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), before):
        signal.signal(number, handler)
    if status:
        # As shells do if a signal ended it: 128 and the signal's number
        sys.exit(status if status > 0 else 128 - status)


@exit_on_write_error()
def main() -> None:
    """Writes, checks, and perhaps runs."""
    args = vars(parse_args())
    run = args.pop('run')
    try:
        made = new_config(**args)
    except (CheckpointError, DataConfigError, FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    print(*made.sentences, sep='\n')
    print(f'Wrote {", ".join(map(str, made.configs))}\n', flush=True)
    for config in made.configs:
        call('misc/check_config.py', str(config))
    if not run:
        print('\nTo train, test with a report, and export:')
        for script, *arguments in made.commands():
            print(shlex.join(['python', os.path.relpath(TOOLS / script), *arguments]))
        return
    for command in made.commands():
        # With --resume, training continues after an interrupted call
        call(*command, *(['--resume'] if command[0] == 'train.py' else []))
    folder = Path(args['out'])
    reports = sorted(folder.glob('student/*/explain/report.html'))
    print(f'Report: {reports[-1]}\nStudent: {folder / "export"}')


if __name__ == '__main__':
    main()
