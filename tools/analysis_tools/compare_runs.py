#!/usr/bin/env python
"""Prints a table of finished runs: parameters, metric and training time, from their work folders."""

import argparse
import re
from datetime import datetime
from pathlib import Path

from terminaltables import AsciiTable

from mmkdx.apis.runs import metric_values, read_run_model, training_parts
from mmkdx.distillation.models import build_model

STAMP = re.compile(r'^(\d{4}/\d\d/\d\d \d\d:\d\d:\d\d) - mmengine', re.MULTILINE)


def seconds(parts: list[tuple[Path, list[dict]]]) -> float:
    """Wall-clock seconds from the first to the last line of a run's logs, evaluations included."""
    total = 0.0
    for folder, _ in parts:
        for log in folder.glob('*.log'):
            stamps = [
                datetime.strptime(s, '%Y/%m/%d %H:%M:%S')
                for s in STAMP.findall(log.read_text(errors='replace'))
            ]
            if stamps:
                total += (stamps[-1] - stamps[0]).total_seconds()
    return total


def parameters(parts: list[tuple[Path, list[dict]]]) -> int:
    """The parameters of a run's model; of a distillation, the student's."""
    model = build_model(read_run_model(parts[-1][0] / 'vis_data' / 'config.py'), 'model')
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('work_dirs', nargs='+', type=Path, help="the runs' work folders")
    parser.add_argument('--metric', default='accuracy/top1', help='default: accuracy/top1')
    parser.add_argument('--names', nargs='+', help="names of the runs; the folders' by default")
    args = parser.parse_args()
    names = args.names or [path.name for path in args.work_dirs]
    if len(names) != len(args.work_dirs):
        raise SystemExit(f'--names has {len(names)} names for {len(args.work_dirs)} folders')
    rows = [['run', 'parameters', args.metric, 'best', 'seconds']]
    try:
        for name, work_dir in zip(names, args.work_dirs):
            parts = training_parts(work_dir)
            history = metric_values(parts, args.metric)
            scores = [f'{history[-1]:.2f}', f'{max(history):.2f}']
            rows.append([name, f'{parameters(parts):,}', *scores, f'{seconds(parts):.0f}'])
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f'{error}') from error
    table = AsciiTable(rows)
    table.justify_columns = {i: 'right' for i in range(1, len(rows[0]))}
    print(table.table)


if __name__ == '__main__':
    main()
