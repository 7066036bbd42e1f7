#!/usr/bin/env python
"""Explains images with a trained model: where a student and its teacher look."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmengine.config import Config, DictAction
from terminaltables import AsciiTable

from mmkdx.apis import ExplainInferencer
from mmkdx.explain import explainer_names


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
        help="class to explain: its index, or 'teacher', 'student' or 'own' for what is predicted "
        "(default: the teacher's prediction, without a teacher the model's own)",
    )
    parser.add_argument('--out', default='explanations', help='folder for the pictures')
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
    """Explains the images and prints what was predicted."""
    args = parse_args()
    config = Config.fromfile(args.config)
    config.merge_from_dict(args.cfg_options)
    inferencer = ExplainInferencer(
        config,
        args.checkpoint,
        args.device,
        explainer=dict(type=args.explainer, **args.explainer_options),
    )
    target = int(args.target) if (args.target or '').isdigit() else args.target
    results = inferencer(args.images, target, args.batch_size, args.out)
    names = list(inferencer.subjects)
    rows = [['image', *names, 'picture']]
    for result in results:
        if 'error' in result:
            rows.append([Path(result['input']).name, 'left out', *[''] * len(names)])
            continue
        cells = [
            f'{each.get("class", each["label"])} {each["score"]:.3f}'
            for each in result['predictions'].values()
        ]
        rows.append([Path(result['input']).name, *cells, result['picture']])
    print(AsciiTable(rows).table)
    left_out = sum('error' in result for result in results)
    if left_out:
        print(f'{left_out} of {len(results)} images could not be read; the reasons are above.')


if __name__ == '__main__':
    main()
