#!/usr/bin/env python
"""Trains and tests configs with several seeds and prints a table of means and standard deviations."""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('configs', nargs='+', type=Path)
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2], help='default: 0 1 2')
    parser.add_argument('--names', nargs='+', help="the rows' names; the configs' by default")
    parser.add_argument(
        '--metrics', nargs='+', default=['accuracy/top1'], help='as in the log of a test'
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs/repeat'),
        help='runs that are finished there are not run again',
    )
    parser.add_argument('--jobs', type=int, default=1, help='how many runs at a time')
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], help='changes to all configs, as of train.py'
    )
    args = parser.parse_args()
    if args.names and len(args.names) != len(args.configs):
        parser.error(f'there are {len(args.names)} names for {len(args.configs)} configs')
    for config in args.configs:
        if not config.is_file():
            parser.error(f'there is no config {config}')
    return args


def call(tool: str, *arguments: object, log: Path) -> None:
    """Runs a tool, with its output in a file.

    Raises:
        RuntimeError: If it fails.
    """
    with log.open('w') as file:
        command = [sys.executable, str(ROOT / 'tools' / tool), *map(str, arguments)]
        if subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode:
            raise RuntimeError(f'{tool} {arguments[0]} failed; see {log}')


def run(
    config: Path, seed: int, work_dir: Path, options: list[str], name: str | None = None
) -> dict[str, float]:
    """The metrics of a test after training with a seed; trains only where that is not done.

    Args:
        config (Path): The config.
        seed (int): The seed.
        work_dir (Path): The folder of all runs.
        options (list[str]): Changes to the config.
        name (str, optional): The folder of these runs in ``work_dir``. Defaults to None: the config's
            name.

    Returns:
        dict[str, float]: What the test yields.
    """
    name = name or config.stem
    folder = work_dir / name / f'seed_{seed}'
    result = folder / 'test.json'
    if not result.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        common = ['--work-dir', folder, '--cfg-options', f'randomness.seed={seed}', *options]
        call('train.py', config, *common, log=folder / 'train.txt')
        checkpoint = (folder / 'last_checkpoint').read_text()
        # Written under another name first, so that a test that was broken off is not taken for done
        part = folder / 'test.part.json'
        out = ['--out', part, '--out-item', 'metrics']
        call('test.py', config, checkpoint, *out, *common, log=folder / 'test.txt')
        os.replace(part, result)
        print(f'{name}, seed {seed}: done', file=sys.stderr)
    return json.loads(result.read_text())


def cell(values: list[float], digits: int) -> str:
    """The mean and the standard deviation of a metric over seeds."""
    text = f'{statistics.mean(values):.{digits}f}'
    return text if len(values) == 1 else f'{text} ± {statistics.stdev(values):.{digits}f}'


def main() -> None:
    """Runs everything and prints the table, in Markdown."""
    args = parse_args()
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = {
            config: [
                pool.submit(run, config, seed, args.work_dir, args.cfg_options)
                for seed in args.seeds
            ]
            for config in args.configs
        }
        results = {config: [each.result() for each in jobs] for config, jobs in runs.items()}
    names = args.names or [config.stem for config in args.configs]
    print('| ' + ' | '.join(['', *args.metrics]) + ' |')
    print('| --- ' * (len(args.metrics) + 1) + '|')
    for name, config in zip(names, args.configs):
        row = [name]
        for metric in args.metrics:
            values = [each[metric] for each in results[config] if each.get(metric) is not None]
            row.append(cell(values, 2 if metric.startswith('accuracy') else 3) if values else '')
        print('| ' + ' | '.join(row) + ' |')


if __name__ == '__main__':
    main()
