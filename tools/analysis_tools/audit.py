#!/usr/bin/env python
"""Tests with statistics what a student took over from its teacher, lost and invented.

All models run over the same test images. Pass BASE, the student trained alone, to separate the
teacher's effect from what the network does by itself. The tool prints a table and a verdict in
words. It writes audit.json, classes.csv, audit.csv (a row for each image and model) and
report.html.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

from mmengine.config import DictAction
from terminaltables import AsciiTable

from mmkdx.apis.audit import audit_files, evaluate_models, run_accuracies, write_audit
from mmkdx.checkpoints import CheckpointError
from mmkdx.evaluation.audit_table import table_rows
from mmkdx.evaluation.verdict import paragraph, study
from mmkdx.files import exit_on_write_error

MODEL = 'work directory of a run, CONFIG:CHECKPOINT, a name like timm::resnet18, or a CSV file'


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('student', metavar='STUDENT', help=f'{MODEL} of an evaluation')
    add('teacher', metavar='TEACHER', help='the teacher, in the form of STUDENT')
    add('base', metavar='BASE', nargs='?', help='the student trained alone, in the same form')
    add('--data', help='work directory or config with the test images (default: the STUDENT)')
    add(
        '--explainer', default='GradCAM', help='whose maps are compared, or none (default: GradCAM)'
    )
    add('--num-samples', type=int, help='number of images (default: all test images)')
    add('--groups', action='store_true', help='compare groups of images, as Waterbirds has them')
    add('--alpha', type=float, default=0.05, help='level of significance (default: 0.05)')
    add(
        '--margin',
        type=float,
        help='points of accuracy that the student may lose; choose it before the audit',
    )
    add('--draws', type=int, default=2000, help='samples of the bootstrap (default: 2000)')
    add('--student-runs', nargs='+', help='runs of the method, with several seeds')
    add('--base-runs', nargs='+', help='as many runs without a teacher')
    add('--out', default='audit', help='folder for the files (default: audit)')
    add('--device', default='cpu', help='device, like cuda:0')
    add(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        help="changes of the test data's config as test_dataloader.KEY=VALUE",
    )
    return parser.parse_args()


@exit_on_write_error()
def main() -> None:
    """Runs the models, prints the table and the verdict, and writes the files."""
    args = parse_args()
    options = dict(alpha=args.alpha, margin=args.margin, draws=args.draws)
    given = dict(student=args.student, teacher=args.teacher, base=args.base)
    if bool(args.student_runs) != bool(args.base_runs):
        raise SystemExit('--student-runs and --base-runs belong together: set both')
    models = {name: each for name, each in given.items() if each is not None}
    evaluation = None
    try:
        if args.student_runs:
            arms = dict(student=args.student_runs, base=args.base_runs)
            where = args.data or args.student_runs[0], args.device, args.cfg_options
            options['runs'] = {arm: run_accuracies(each, *where) for arm, each in arms.items()}
        if any(Path(each).suffix == '.csv' for each in models.values()):
            findings = audit_files(**models, groups=args.groups, **options)
        else:
            evaluation = evaluate_models(
                **models,
                data=args.data,
                explainer=None if args.explainer == 'none' else args.explainer,
                num_samples=args.num_samples,
                groups=args.groups,
                device=args.device,
                changes=args.cfg_options,
            )
            findings = study(evaluation, **options)
        write_audit(args.out, findings, models, evaluation)
    except (CheckpointError, ValueError, FileNotFoundError) as error:
        raise SystemExit(f'{error}') from error
    print(AsciiTable(table_rows(findings.audits)).table)
    print(textwrap.fill(' '.join(map(str, paragraph(findings))), 100))
    for note in dict.fromkeys(note for each in findings.audits.values() for note in each.notes):
        print(f'Note: {note}.')
    print(f'The files are in {args.out}.')


if __name__ == '__main__':
    main()
