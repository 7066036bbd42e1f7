#!/usr/bin/env python
"""Compares explainers of one model: scores with intervals, ranks, agreement, pictures side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction
from terminaltables import AsciiTable

from mmkdx.apis.compare import compare_explainers_of, with_options
from mmkdx.evaluation.comparison import METRICS, TARGETS
from mmkdx.evaluation.comparison_report import (
    comparison_notes,
    comparison_table,
    write_comparison,
)
from mmkdx.explain import explainer_names
from mmkdx.files import exit_on_write_error, printable


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config', help='config of a distillation or of a classifier, or a name like timm::resnet18'
    )
    parser.add_argument(
        'checkpoint',
        nargs='?',
        help="checkpoint of the student or classifier (default for a name: the library's weights)",
    )
    parser.add_argument(
        '--explainers',
        nargs='+',
        metavar='NAME',
        help=f'names from {", ".join(explainer_names())} (default: all that fit the model)',
    )
    parser.add_argument(
        '--metrics',
        nargs='+',
        metavar='NAME',
        help=f'metrics of maps (default: {" ".join(METRICS)}, and PointingGame if there are masks)',
    )
    parser.add_argument(
        '--options',
        nargs='+',
        action=DictAction,
        default={},
        help='arguments of explainers and metrics, like GradCAM.layer=backbone.layer3 '
        'PointingGame.labels=deciding_labels',
    )
    parser.add_argument(
        '--images',
        nargs='+',
        default=[],
        help="images, or folders of images (default: the config's test data)",
    )
    parser.add_argument(
        '--model',
        choices=('student', 'teacher'),
        default='student',
        help='which model of a distillation (default: student)',
    )
    parser.add_argument(
        '--target',
        choices=tuple(TARGETS),
        default='prediction',
        help='the class to explain (default: prediction)',
    )
    parser.add_argument(
        '--num-samples', type=int, default=64, help='number of images (default: 64)'
    )
    parser.add_argument('--show-samples', type=int, default=6, help='images drawn (default: 6)')
    parser.add_argument(
        '--out-dir',
        default='explainers',
        help='folder of report.html, explainers.csv and explainers.json (default: explainers)',
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of the images and the bootstrap')
    parser.add_argument('--batch-size', type=int, default=16, help='images explained at once')
    parser.add_argument('--device', default='cpu', help='device, like cuda:0')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        help='changes of the config as key=value',
    )
    return parser.parse_args()


@exit_on_write_error()
def main() -> None:
    """Compares the explainers, prints the table and writes the files."""
    args = parse_args()
    try:
        model: Any = args.config
        if Path(model).suffix in ('.py', '.json', '.yaml', '.yml'):  # else it is a name
            model = Config.fromfile(args.config)
            model.merge_from_dict(args.cfg_options)
        explainers, metrics = with_options(args.explainers, args.metrics, args.options)
        found = compare_explainers_of(
            model,
            args.checkpoint or True,
            args.images,
            args.device,
            args.model,
            args.batch_size,
            explainers=explainers,
            metrics=metrics,
            num_samples=args.num_samples,
            show_samples=args.show_samples,
            target=args.target,
            seed=args.seed,
        )
    except (OSError, ValueError) as error:
        raise SystemExit(f'{error}') from error
    print(AsciiTable(comparison_table(found)).table)
    print('\n'.join(comparison_notes(found)))
    path = write_comparison(args.out_dir, found)
    print(f'The report is {printable(path)}')


if __name__ == '__main__':
    main()
