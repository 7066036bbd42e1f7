#!/usr/bin/env python
"""Finds which parts of a teacher's output help a student: trains it without some parts.

CONFIG is a distillation with a term of `KLDivLoss`. Each variant changes the teacher's output in
that term. It is trained and tested with each seed, and is a row of the table. The read-outs below
the table are differences between two variants, seed by seed.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from mmengine.config import Config

from mmkdx.apis import runs
from mmkdx.compat import load_checkpoint_file
from mmkdx.files import exit_on_write_error, write_file
from mmkdx.functional.teacher_target import KINDS, NEEDS

#: The settings of the term, and of the model, that differ from the config's.
CHANGES = {
    'ce': ({'weight': 0}, {'student_weight': 1}),
    **{kind: ({'teacher_target.kind': kind}, {}) for kind in KINDS},
    'cwtm': ({'type': 'CWTMLoss', 'teacher_target.kind': 'full'}, {}),
    'tckd': ({'type': 'DKDLoss', 'alpha': 1, 'beta': 0, 'teacher_target.kind': 'full'}, {}),
    'nckd': ({'type': 'DKDLoss', 'alpha': 0, 'beta': 1, 'teacher_target.kind': 'full'}, {}),
}

#: Differences of two variants: the first one has the named part, the second one does not.
READOUTS = {
    'response': ('uniform', 'onehot'),
    'response, to labels alone': ('uniform', 'ce'),
    'adaptive mass': ('uniform', 'meanmass'),
    'class similarity': ('full', 'permute'),
    'class similarity, of class means': ('classmean', 'meanmass'),
    'instance': ('full', 'classmean_instmass'),
}


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = runs.experiment_parser(__doc__, [0, 1, 2, 3], 'work_dirs/components')
    parser.add_argument('config', type=Path)
    parser.add_argument(
        '--kinds', nargs='+', choices=CHANGES, default=list(CHANGES), help='default: all'
    )
    parser.add_argument('--json', type=Path, help='a file for all numbers')
    args = parser.parse_args()
    if not args.config.is_file():
        parser.error(f'there is no config {args.config}')
    if set(str(args.work_dir)) & set(' ,()[]'):
        parser.error(f'--work-dir {args.work_dir} must not contain spaces, commas or brackets')
    return args


def changes(kind: str, term: str, file: Path) -> list[str]:
    """The options ``key=value`` of train.py that make a variant, with the file of statistics."""
    of_term, of_model = CHANGES[kind]
    if kind in NEEDS:
        of_term = {**of_term, 'teacher_target.statistics': file}
    options = [f'model.terms.{term}.{key}={value}' for key, value in of_term.items()]
    return options + [f'model.{key}={value}' for key, value in of_model.items()]


def make_statistics(config: Path, file: Path, options: list[str]) -> None:
    """Makes the file of statistics if there is none."""
    if file.is_file():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    arguments = ['--out', file, *(['--cfg-options', *options] if options else [])]
    tool = 'analysis_tools/teacher_statistics.py'
    runs.call_tool(tool, config, *arguments, log=file.with_suffix('.txt'))


def find_readouts(results: dict[str, list[dict]], metrics: list[str]) -> dict[str, list[dict]]:
    """The differences of metrics, seed by seed, for each read-out whose variants were run."""
    found = {}
    for name, pair in READOUTS.items():
        seeds = zip(*(results.get(kind, []) for kind in pair))
        found[name] = [
            {m: a[m] - b[m] for m in metrics if None not in (a.get(m), b.get(m))} for a, b in seeds
        ]
    return {name: seeds for name, seeds in found.items() if any(seeds)}


def table(results: dict[str, list[dict]], readouts: dict[str, list], metrics: list[str]) -> str:
    """The two tables, in Markdown: the variants, and the read-outs."""
    rows = [[kind, *runs.metric_cells(seeds, metrics)] for kind, seeds in results.items()]
    text = runs.markdown(['variant', *metrics], rows)
    if readouts:
        rows = [
            [name, ' - '.join(READOUTS[name]), *runs.metric_cells(seeds, metrics)]
            for name, seeds in readouts.items()
        ]
        text += '\n\n' + runs.markdown(['read-out', 'difference', *metrics], rows)
    return text


def summaries(readouts: dict[str, list[dict]], metrics: list[str]) -> dict[str, dict]:
    """The read-outs in numbers."""
    found = {name: dict(variants=READOUTS[name], metrics={}) for name in readouts}
    for name, seeds in readouts.items():
        for metric in metrics:
            if each := runs.known_values(seeds, metric):
                sd = float(np.std(each, ddof=1)) if len(each) > 1 else None
                found[name]['metrics'][metric] = dict(mean=float(np.mean(each)), sd=sd, each=each)
    return found


@exit_on_write_error()
def main() -> None:
    """Runs everything and prints the tables."""
    args = parse_args()
    cfg = Config.fromfile(args.config)
    term = runs.find_term(cfg)
    loss = cfg.model.terms[term].type
    if loss != 'KLDivLoss':
        raise ValueError(f'{args.config}: model.terms.{term}.type is {loss}; it must be KLDivLoss')
    folder = args.work_dir / args.config.stem
    file = folder / 'teacher_statistics.pth'
    if set(args.kinds) & set(NEEDS):
        make_statistics(args.config, file, args.cfg_options)
        if 'weightsim' in args.kinds and load_checkpoint_file(file)['weight_similarity'] is None:
            raise SystemExit('the teacher has no linear classifier; leave weightsim out (--kinds)')
    variants = {
        kind: (args.config, [*args.cfg_options, *changes(kind, term, file)]) for kind in args.kinds
    }
    results = runs.run_seeds(variants, args.seeds, folder, args.jobs)
    readouts = find_readouts(results, args.metrics)
    print(table(results, readouts, args.metrics))
    if args.json:
        found = dict(config=str(args.config), seeds=args.seeds, variants=results)
        found['readouts'] = summaries(readouts, args.metrics)
        write_file(args.json, json.dumps(found, indent=1))


if __name__ == '__main__':
    main()
