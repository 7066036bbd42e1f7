#!/usr/bin/env python
"""Searches the weights of terms on held-out training images; the test set is never read.

Each trial trains CONFIG with other weights and validates on a fold of the training data. Then the
best weights and the config's own ones are trained with several other seeds, and compared on other
folds. After an interruption (Ctrl-C), run the same command to continue; finished runs are kept.
"""

import argparse
import json
import sys
from pathlib import Path

from mmengine.config import Config, DictAction

from mmkdx.apis.runs import experiment_parser
from mmkdx.apis.tuning import WeightSearch, check_seeds, conclusion, read_ranges
from mmkdx.files import exit_on_write_error, write_file
from mmkdx.lock import FolderInUseError, FolderLock


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = experiment_parser(__doc__, [1, 2, 3, 4], 'work_dirs/tune')
    add = parser.add_argument
    add('config', type=Path, help='config of a distillation')
    add(
        '--weights',
        nargs='+',
        required=True,
        metavar='KEY=LOW..HIGH',
        help='what to search, on a logarithmic scale, such as terms.kd.weight=0.1..100',
    )
    add('--trials', type=int, default=12, help="trials, with the config's own (default: 12)")
    add('--folds', type=int, default=5, help='hold out 1 / FOLDS of the training data (default: 5)')
    args = parser.parse_args()
    if not args.config.is_file():
        parser.error(f'there is no config {args.config}')
    return args


def read_config(path: Path, options: list[str]) -> Config:
    """Reads a config with changes as train.py takes them."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--options', nargs='+', action=DictAction, default={})
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(parser.parse_args(['--options', *options] if options else []).options)
    return cfg


@exit_on_write_error()
def main() -> None:
    """Searches, compares, and prints the table and its conclusion."""
    args = parse_args()
    folder = args.work_dir / args.config.stem
    try:
        lock = FolderLock(folder, 'wait for it, or choose another --work-dir')
        check_seeds(args.seeds)
        cfg, ranges = read_config(args.config, args.cfg_options), read_ranges(args.weights)
        search = WeightSearch(cfg, ranges, folder, args.metrics[0], args.folds)
        search.search(args.trials)
        results = search.compare(args.seeds, args.jobs)
    except (FolderInUseError, RuntimeError, ValueError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        print(f'stopped; run the same command to continue from {folder}', file=sys.stderr)
        sys.exit(130)
    text, difference = conclusion(results, search.metric)
    print(f'{search.table(results, args.metrics)}\n\n{text}')
    found = dict(
        config=str(args.config),
        settings=search.study.user_attrs['settings'],
        trials=[dict(weights=each.params, value=each.value) for each in search.trials],
        best=search.best,
        seeds=args.seeds,
        results=results,
        difference=difference and difference._asdict(),
        conclusion=text,
    )
    write_file(folder / 'results.json', json.dumps(found, indent=1))
    lock.release()


if __name__ == '__main__':
    main()
