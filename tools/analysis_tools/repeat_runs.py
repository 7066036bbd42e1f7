#!/usr/bin/env python
"""Trains and tests configs with several seeds and prints a table of means and standard deviations."""

import argparse
from pathlib import Path

from mmkdx.apis.runs import experiment_parser, markdown, metric_cells, run_seeds


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = experiment_parser(__doc__, [0, 1, 2], 'work_dirs/repeat')
    parser.add_argument('configs', nargs='+', type=Path)
    parser.add_argument('--names', nargs='+', help='names of the rows (default: of the configs)')
    args = parser.parse_args()
    if args.names and len(args.names) != len(args.configs):
        parser.error(f'there are {len(args.names)} names for {len(args.configs)} configs')
    if len({config.stem for config in args.configs}) < len(args.configs):
        parser.error('two configs have the same file name, so their runs would share a folder')
    for config in args.configs:
        if not config.is_file():
            parser.error(f'there is no config {config}')
    return args


def main() -> None:
    """Runs everything and prints the table, in Markdown."""
    args = parse_args()
    runs = {config.stem: (config, args.cfg_options) for config in args.configs}
    results = run_seeds(runs, args.seeds, args.work_dir, args.jobs)
    rows = [
        [name, *metric_cells(found, args.metrics)]
        for name, found in zip(args.names or results, results.values())
    ]
    print(markdown(['', *args.metrics], rows))


if __name__ == '__main__':
    main()
