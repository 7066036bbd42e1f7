#!/usr/bin/env python
"""Explains images with a trained model: where a student and its teacher look."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmengine.config import Config, DictAction
from terminaltables import AsciiTable

from mmkdx.apis import ExplainInferencer
from mmkdx.datasets.wrappers import class_text
from mmkdx.explain import explainer_names
from mmkdx.files import printable


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of a distillation or of a classifier')
    parser.add_argument('checkpoint', help='checkpoint of the student or classifier')
    parser.add_argument('images', nargs='+', help='images, or folders of images')
    parser.add_argument(
        '--explainer',
        default='GradCAM',
        help=f'one of {", ".join(explainer_names())} (default: GradCAM)',
    )
    parser.add_argument(
        '--explainer-options',
        nargs='+',
        action=DictAction,
        default={},
        help="the explainer's arguments as key=value, like layer=backbone.layer3",
    )
    parser.add_argument(
        '--target',
        help="class to explain: its index, or 'teacher', 'student' or 'own' for their prediction "
        "(default: the teacher's prediction; without a teacher, the model's own)",
    )
    parser.add_argument(
        '--out',
        default='explanations',
        help='folder for the pictures; earlier pictures with the same names are replaced',
    )
    parser.add_argument('--batch-size', type=int, default=8, help='images explained at once')
    parser.add_argument('--device', default='cpu', help='device, like cuda:0')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        help='changes of the config as key=value',
    )
    return parser.parse_args()


def main() -> None:
    """Explains the images and prints the predictions."""
    args = parse_args()
    sys.stdout.reconfigure(errors='backslashreplace')  # a terminal may lack letters of a name
    try:
        rows, left_out = explain(args)
    except (OSError, ValueError) as error:
        raise SystemExit(f'{error}') from error
    print(AsciiTable(rows).table)
    if left_out:
        print(f'{left_out} of {len(rows) - 1} images could not be read; the reasons are above.')
    if left_out == len(rows) - 1:
        raise SystemExit('no image could be explained')


def explain(args: argparse.Namespace) -> tuple[list[list[str]], int]:
    """Explains the images.

    Returns:
        tuple[list[list[str]], int]: A table of predictions, and the number of images left out.
    """
    config = Config.fromfile(args.config)
    config.merge_from_dict(args.cfg_options)
    inferencer = ExplainInferencer(
        config,
        args.checkpoint,
        args.device,
        explainer=dict(type=args.explainer, **args.explainer_options),
    )
    target = int(args.target) if (args.target or '').isdecimal() else args.target
    names = list(inferencer.subjects)
    heads = [inferencer.student if name == 'student' else name for name in names]
    rows, left_out = [['image', *heads, 'picture']], 0
    for result in inferencer.stream(args.images, target, args.batch_size, args.out):
        cells = ['left out', *[''] * len(names)]
        if 'error' not in result:
            predictions = [result['predictions'][name] for name in names]
            classes = inferencer.classes
            cells = [
                f'{class_text(each["label"], classes)} {each["score"]:.3f}' for each in predictions
            ]
            cells.append(printable(result['picture']))
        left_out += 'error' in result
        rows.append([printable(Path(result['input']).name), *cells])
    return rows, left_out


if __name__ == '__main__':
    main()
