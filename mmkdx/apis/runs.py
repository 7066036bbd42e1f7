"""Running the tools with several seeds, and reading what finished runs have written."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mmengine.config import Config

from mmkdx.arguments import integer
from mmkdx.compat import last_whole_checkpoint
from mmkdx.distillation.models import shipped_folder


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
    """Trains and tests configs with several seeds; a run that was tested before is only read.

    Args:
        runs (Mapping[str, tuple[Path, Sequence[str]]]): By the name of a folder in ``work_dir``, a
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
        if not result.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            common = ['--work-dir', folder, '--cfg-options', f'randomness.seed={seed}', *options]
            call_tool('train.py', config, *common, log=folder / 'train.txt')
            checkpoint = (folder / 'last_checkpoint').read_text()
            # Under another name first, so that an interrupted test is not taken for a finished one
            part = folder / 'test.part.json'
            out = ['--out', part, '--out-item', 'metrics']
            call_tool('test.py', config, checkpoint, *out, *common, log=folder / 'test.txt')
            part.replace(result)
            print(f'{name}, seed {seed}: done', file=sys.stderr)
        return json.loads(result.read_text())

    with ThreadPoolExecutor(integer('jobs', jobs, 1)) as pool:
        futures = {name: [pool.submit(run, name, seed) for seed in seeds] for name in runs}
        return {name: [each.result() for each in found] for name, found in futures.items()}


def metric_cells(results: Sequence[dict], metrics: Sequence[str]) -> list[str]:
    """For each metric mean and deviation over the seeds that have it, like '71.25 ± 0.31', or ''."""
    cells = []
    for metric in metrics:
        values = [each[metric] for each in results if each.get(metric) is not None]
        digits = 2 if metric.startswith('accuracy') else 3
        cell = f'{statistics.mean(values):.{digits}f}' if values else ''
        if len(values) > 1:
            cell += f' ± {statistics.stdev(values):.{digits}f}'
        cells.append(cell)
    return cells


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in (head, ['---'] * len(head), *rows))


def training_parts(work_dir: Path) -> list[tuple[Path, list[dict]]]:
    """The last run in a work folder: the folder and the records of each part that trained.

    A run that was interrupted and resumed has several parts, the first of which begins at epoch 1.

    Raises:
        FileNotFoundError: If nothing was trained there.
    """
    parts: list[tuple[Path, list[dict]]] = []
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        steps = [record for record in records if 'loss' in record]
        if steps:
            if steps[0].get('epoch') == 1:
                parts = []
            parts.append((path.parent.parent, records))
    if not parts:
        raise FileNotFoundError(f'{work_dir} holds no run: no */vis_data/scalars.json has a loss')
    return parts


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


def find_run(work_dir: str) -> tuple[str, str]:
    """The config and the best checkpoint of a run; the last checkpoint where none is the best.

    Raises:
        FileNotFoundError: If there is none.
    """
    folder = Path(work_dir)
    configs = sorted(folder.glob('*.py'))
    if len(configs) != 1:
        raise FileNotFoundError(
            f'{work_dir} is no work directory of a run: it has {len(configs)} configs (*.py)'
        )
    best = sorted(folder.glob('best_*.pth'), key=lambda path: path.stat().st_mtime)
    checkpoint = str(best[-1]) if best else last_whole_checkpoint(folder)
    if checkpoint is None:
        raise FileNotFoundError(f'{work_dir} has no checkpoint')
    return str(configs[0]), checkpoint


def find_term(cfg: Config) -> str:
    """The name of the term with a ``teacher_target``, or else of the one of ``KLDivLoss``.

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
