"""Runs the tools with several seeds, and reads the files of finished runs."""

from __future__ import annotations

import argparse
import ast
import json
import math
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config

from mmkdx.arguments import integer
from mmkdx.compat import last_whole_checkpoint
from mmkdx.data_configs import check_data
from mmkdx.distillation.models import shipped_folder
from mmkdx.files import write_file
from mmkdx.visualization.records import read_parts

#: The time stamp of a line of mmengine's log.
STAMP = re.compile(r'^(\d{4}/\d\d/\d\d \d\d:\d\d:\d\d) - mmengine', re.MULTILINE)


def experiment_parser(description: str, seeds: list[int], work_dir: str) -> argparse.ArgumentParser:
    """A command line for ``run_seeds``, with the defaults of ``--seeds`` and ``--work-dir``."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('--seeds', nargs='+', type=int, default=seeds, help=f'default: {seeds}')
    add('--metrics', nargs='+', default=['accuracy/top1'], help='as in the log of a test')
    add('--work-dir', type=Path, default=Path(work_dir), help='finished runs in it are kept')
    add('--jobs', type=int, default=1, help='number of runs at a time')
    add('--cfg-options', nargs='+', default=[], help='changes to all configs, as of train.py')
    return parser


def call_tool(tool: str, *arguments: object, log: Path) -> None:
    """Runs one of the shipped tools in a process of its own.

    Args:
        tool (str): The path of the script below ``tools/``.
        *arguments: The command line.
        log (Path): The file for its output.

    Raises:
        RuntimeError: If the tool fails.
    """
    command = [sys.executable, str(shipped_folder('tools') / tool), *map(str, arguments)]
    with log.open('w') as file:
        if subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode:
            raise RuntimeError(f'{tool} {arguments[0]} failed; see {log}')


def run_seeds(
    runs: Mapping[str, tuple[Path, Sequence[str]]], seeds: Sequence[int], work_dir: Path, jobs: int
) -> dict[str, list[dict[str, float]]]:
    """Trains and tests configs with several seeds; runs with a result are not repeated.

    Args:
        runs (Mapping[str, tuple[Path, Sequence[str]]]): For each folder name in ``work_dir`` a
            config and its changes as ``key=value``.
        seeds (Sequence[int]): The random seeds.
        work_dir (Path): The folder of all runs.
        jobs (int): The number of runs at a time.

    Returns:
        dict[str, list[dict[str, float]]]: For each name the metrics of each seed.
    """

    def run(name: str, seed: int) -> dict[str, float]:
        config, options = runs[name]
        folder = work_dir / name / f'seed_{seed}'
        result = folder / 'test.json'
        found = _read_result(result)
        if found is None:
            folder.mkdir(parents=True, exist_ok=True)
            common = ['--work-dir', folder, '--cfg-options', f'randomness.seed={seed}', *options]
            call_tool('train.py', config, *common, log=folder / 'train.txt')
            checkpoint = (folder / 'last_checkpoint').read_text()
            # Under another name first, so that an interrupted test is not taken for a finished one
            part = folder / 'test.part.json'
            out = ['--out', part, '--out-item', 'metrics']
            call_tool('test.py', config, checkpoint, *out, *common, log=folder / 'test.txt')
            found = json.loads(part.read_text())
            write_file(result, json.dumps(found))
            part.unlink()
            print(f'{name}, seed {seed}: done', file=sys.stderr)
        return found

    with ThreadPoolExecutor(integer('jobs', jobs, 1)) as pool:
        futures = {name: [pool.submit(run, name, seed) for seed in seeds] for name in runs}
        return {name: [each.result() for each in found] for name, found in futures.items()}


def _read_result(path: Path) -> dict[str, float] | None:
    """The metrics of a test; None if there was no test, or a crash damaged the file."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        print(f'{path} is damaged, so the run is repeated', file=sys.stderr)
        return None


def known_values(results: Sequence[dict], metric: str) -> list[float]:
    """A metric of the runs that have it. A run without an image that counts has NaN."""
    values = (each.get(metric) for each in results)
    return [value for value in values if value is not None and not math.isnan(value)]


def metric_cells(results: Sequence[dict], metrics: Sequence[str]) -> list[str]:
    """Each metric's mean and deviation over seeds: '71.25 ± 0.31', or '' if no seed has it.

    If only some seeds have it, the cell says how many: '0.121 ± 0.160 (n = 4)'.
    """
    cells = []
    for metric in metrics:
        values = known_values(results, metric)
        digits = 2 if metric.startswith('accuracy') else 3
        cell = f'{np.mean(values):.{digits}f}' if values else ''
        if len(values) > 1:
            cell += f' ± {np.std(values, ddof=1):.{digits}f}'
        if values and len(values) < len(results):
            cell += f' (n = {len(values)})'
        cells.append(cell)
    return cells


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in (head, ['---'] * len(head), *rows))


def training_parts(work_dir: Path) -> list[tuple[Path, list[dict]]]:
    """The parts of the last run in a work folder; see ``read_parts``.

    Raises:
        FileNotFoundError: If nothing was trained there.
    """
    parts = read_parts(work_dir)
    if not any('loss' in record for _, records in parts for record in records):
        raise FileNotFoundError(f'{work_dir} holds no run: no */vis_data/scalars.json has a loss')
    return parts


def seconds(parts: list[tuple[Path, list[dict]]]) -> float:
    """Wall-clock seconds from the first to the last line of a run's logs, evaluations included.

    NaN if no line has a time, as with ``log_level='ERROR'``.
    """
    spent = []
    for folder, _ in parts:
        for log in folder.glob('*.log'):
            stamps = [
                datetime.strptime(s, '%Y/%m/%d %H:%M:%S')
                for s in STAMP.findall(log.read_text(errors='replace'))
            ]
            if stamps:
                spent.append((stamps[-1] - stamps[0]).total_seconds())
    return sum(spent) if spent else math.nan


def metric_values(parts: list[tuple[Path, list[dict]]], metric: str) -> list[float]:
    """A metric at each evaluation of a run, in order.

    Args:
        parts (list[tuple[Path, list[dict]]]): What ``training_parts`` returns.
        metric (str): The metric, like 'accuracy/top1'.

    Raises:
        ValueError: If the run never evaluated it.
    """
    evaluated = (each for _, records in parts for each in records if metric in each)
    found = {record['step']: record[metric] for record in evaluated}
    if not found:
        raise ValueError(f'{parts[-1][0]} has no metric {metric!r}')
    return [found[step] for step in sorted(found)]


def read_run_model(path: Path) -> dict[str, Any]:
    """The model dict of a config that mmengine wrote for a run, with its data preprocessor.

    The config is not executed, since a run may come from someone else.

    Raises:
        ValueError: If the config is not plain data, or names another config or a part that is not
            registered.
    """
    model, preprocessor = _read_run(path, 'model', 'data_preprocessor')
    if preprocessor := model.get('data_preprocessor') or preprocessor:
        model['data_preprocessor'] = preprocessor
    return model


def read_run_test_data(work_dir: str) -> tuple[dict[str, Any], str]:
    """The test data loader of a run, and the scope of its names; see ``read_run_model``.

    Raises:
        FileNotFoundError: If the folder holds no config.
        ValueError: If the config is not plain data, or has no test data.
    """
    path = _run_config(work_dir)
    loader, scope = _read_run(path, 'test_dataloader', 'default_scope')
    return loader, scope or 'mmkdx'


def _read_run(path: Path, key: str, other: str) -> tuple[dict[str, Any], Any]:
    """A required dict of a run's config, and another value that may be missing."""
    try:
        content = ast.parse(path.read_text(encoding='utf-8')).body
        config = {each.targets[0].id: _data(each.value) for each in content}
        found = dict(config[key])
        check_data(found)
        if not isinstance(found.get('student', {}), dict):
            raise ValueError(f'{key}.student is {found["student"]!r}')
    except (AttributeError, KeyError, SyntaxError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f'{path} is not executed, since the run may come from someone else; it must be plain '
            f'data with a {key}: {error}'
        ) from error
    return found, config.get(other)


def _data(node: ast.expr) -> Any:
    """The value of an expression of constants, lists, tuples, dicts and ``dict(...)``."""
    match node:
        case ast.Call(func=ast.Name(id='dict'), args=[ast.Dict() as only], keywords=[]):
            return _data(only)  # for keys that are not identifiers
        case ast.Call(func=ast.Name(id='dict'), args=[], keywords=items) if all(
            item.arg for item in items
        ):
            return {item.arg: _data(item.value) for item in items}
        case ast.Dict(keys=keys, values=values):
            pairs = zip(map(ast.literal_eval, keys), map(_data, values))
            return dict(pairs)
        case ast.List(elts=items):
            return [_data(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_data(item) for item in items)
    return ast.literal_eval(node)


def find_run(work_dir: str) -> tuple[dict[str, Any], str]:
    """The model and the best checkpoint of a run, or the last checkpoint if none is the best.

    The run's config is not executed; see ``read_run_model``.

    Raises:
        FileNotFoundError: If there is no config or checkpoint.
        ValueError: If the run's config is not plain data.
    """
    folder, config = Path(work_dir), _run_config(work_dir)
    best = sorted(folder.glob('best_*.pth'), key=lambda path: path.stat().st_mtime)
    checkpoint = str(best[-1]) if best else last_whole_checkpoint(folder)
    if checkpoint is None:
        raise FileNotFoundError(f'{work_dir} has no checkpoint')
    return read_run_model(config), checkpoint


def _run_config(work_dir: str) -> Path:
    """The config in a run's work directory."""
    configs = sorted(Path(work_dir).glob('*.py'))
    if len(configs) != 1:
        raise FileNotFoundError(
            f'{work_dir} is no work directory of a run: it has {len(configs)} configs (*.py)'
        )
    return configs[0]


def find_term(cfg: Config) -> str:
    """The name of the term with a ``teacher_target``, or else of the ``KLDivLoss`` term.

    Raises:
        ValueError: If there is not exactly one.
    """
    terms = cfg.model.get('terms') or {}
    names = [name for name, term in terms.items() if 'teacher_target' in term]
    names = names or [name for name, term in terms.items() if term['type'] == 'KLDivLoss']
    if len(names) != 1:
        raise ValueError(
            f'{cfg.filename}: model.terms must have one term with a teacher_target, or one of '
            f'KLDivLoss, and there are {len(names)}'
        )
    return names[0]
