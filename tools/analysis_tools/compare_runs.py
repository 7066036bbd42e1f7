#!/usr/bin/env python
"""Prints a table of finished runs: parameters, metric and training time, from their work folders.

With --report it also writes a page that compares methods. Folders seed_<k> in one folder, as
repeat_runs.py writes them, are the runs of one method. So are runs with the same name in --names.
For the page all models run over the same test images.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

from mmengine.logging import MMLogger
from terminaltables import AsciiTable

from mmkdx.apis.experiment import compare_methods, group_runs
from mmkdx.apis.experiment_page import write_experiment
from mmkdx.apis.runs import metric_values, read_run_model, seconds, training_parts
from mmkdx.distillation.models import build_model
from mmkdx.files import exit_on_write_error

MODEL = 'work directory of a run, CONFIG:CHECKPOINT, or a name like timm::resnet18'


def parameters(parts: list[tuple[Path, list[dict]]]) -> int:
    """The parameters of a run's model; of a distillation, the student's."""
    model = build_model(read_run_model(parts[-1][0] / 'vis_data' / 'config.py'), 'model')
    return sum(parameter.numel() for parameter in model.parameters())


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('work_dirs', nargs='+', type=Path, help="the runs' work folders")
    add('--metric', default='accuracy/top1', help='default: accuracy/top1')
    add('--names', nargs='+', help="names of the runs (default: the folders' names)")
    add = parser.add_argument_group('a page').add_argument
    add('--report', type=Path, metavar='PAGE.html', help='the file of the page')
    add('--teacher', help=f"{MODEL} (default: the distillations' own)")
    add('--base', help=f'the student trained alone, as a mark: {MODEL}')
    add('--data', help='work directory or config with the test images (default: the first run)')
    add('--explainer', default='GradCAM', help='explainer of the maps, or none (default: GradCAM)')
    add('--num-samples', type=int, default=100, help='images with maps (default: 100)')
    add('--show-samples', type=int, default=4, help='images that are shown (default: 4)')
    add('--device', default='cpu', help='device, like cuda:0')
    return parser.parse_args()


@exit_on_write_error()
def main() -> None:
    """Prints the table, and writes the page."""
    args = parse_args()
    if args.report is None:
        if alone := [key for key in ('teacher', 'base', 'data') if getattr(args, key)]:
            raise SystemExit(f'--{alone[0]} belongs to --report, which is missing')
    elif args.report.is_dir():
        raise SystemExit(f'--report {args.report} is a folder; name a file')
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
    if args.report is not None:
        report(args)


def report(args: argparse.Namespace) -> None:
    """Writes the page, and prints its first paragraph."""
    MMLogger.get_current_instance().setLevel('WARNING')  # else it logs each loaded model
    try:
        found = compare_methods(
            group_runs(args.work_dirs, args.names),
            args.teacher,
            args.base,
            args.data,
            None if args.explainer == 'none' else args.explainer,
            args.num_samples,
            args.show_samples,
            args.device,
        )
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f'--report: {error}') from error
    print(textwrap.fill(' '.join(map(str, found.answer)), 100))
    print(f'The page is {write_experiment(args.report, found)}.')


if __name__ == '__main__':
    main()
