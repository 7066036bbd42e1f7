"""The records of an evaluation: a table, each image's values, and the scores."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from terminaltables import AsciiTable

from mmkdx.distillation.weights import MEASURED
from mmkdx.files import append_text, read_json_lines
from mmkdx.metrics.scores import Floor, Score

#: The models of an evaluation, in the order of a table's columns.
MODELS = ('student', 'teacher', 'base')


def by_model(scores: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Groups scores, or a sample's values, by plain name and then by model.

    One that compares a student with its teacher has none of 'teacher'.
    """
    grouped: dict[str, dict[str, Any]] = {}
    for name, score in scores.items():
        model, _, plain = name.rpartition('/')
        grouped.setdefault(plain, {})[model or 'student'] = score
    return grouped


def score_rows(
    scores: Mapping[str, Score], student: str = 'student', taught: bool | None = None
) -> list[list[str]]:
    """Returns the scores as the rows of a table, with a column for each model.

    Args:
        scores (Mapping[str, Score]): Scores as of ``ExplanationMetric``.
        student (str): The head of the student's column. Defaults to 'student'.
        taught (bool, optional): Whether there is a teacher. Defaults to None: if a score is its own.

    Returns:
        list[list[str]]: The head, then a row for each score: its name, what is better, its values, and
        the number of samples, like '256 in 4' for a mean over 4 batches.
    """
    grouped = by_model(scores)
    models = [model for model in MODELS if any(model in row for row in grouped.values())]
    taught = 'teacher' in models if taught is None else taught
    # Agreement with the teacher has its own column; a mean over batches compares with the base
    compared = {
        name
        for name, row in grouped.items()
        if taught and 'teacher' not in row
        if all(score.batches is None for score in row.values())
    }
    alone = {model for name, row in grouped.items() if name not in compared for model in row}
    columns = [
        (student if model == 'student' else model, model, False)
        for model in models
        if model in alone
    ]
    if compared:
        others = [model for model in models if model != 'teacher']
        columns += [(f'{model} with teacher', model, True) for model in others]
    rows = [['score', 'better', *(head for head, _, _ in columns), 'n']]
    for name, row in grouped.items():
        cells = [
            format_score(row[model]) if model in row and (name in compared) == pair else ''
            for _, model, pair in columns
        ]
        rows.append([name, next(iter(row.values())).better or '', *cells, count_text(row.values())])
    return rows


def count_text(scores: Iterable[Score]) -> str:
    """Returns the numbers of samples of scores, like '256 / 128', or '256 in 4' for 4 batches."""
    counts = dict.fromkeys(
        str(score.n) if score.batches is None else f'{score.n} in {score.batches}'
        for score in scores
    )
    return ' / '.join(counts)


def score_table(
    scores: Mapping[str, Score], student: str = 'student', floors: Mapping[str, Floor] | None = None
) -> str:
    """Returns the scores as a table for a terminal; see ``score_rows`` and ``with_floors``."""
    return AsciiTable(with_floors(score_rows(scores, student), floors or {})).table


def with_floors(rows: list[list[str]], floors: Mapping[str, Floor]) -> list[list[str]]:
    """Adds columns of the floors to the rows of a table of scores, before the last column.

    Args:
        rows (list[list[str]]): What ``score_rows`` returns.
        floors (Mapping[str, Floor]): The floors by the names of scores; if no row has one the rows stay.
    """
    if not any(row[0] in floors for row in rows[1:]):
        return rows
    (*head, last), *body = rows
    table = [[*head, 'floor (noise)', 'above floor', last]]
    for *cells, last in body:
        floor = floors.get(cells[0])
        table.append([*cells, *(('', '') if floor is None else floor_cells(floor)), last])
    return table


def floor_cells(floor: Floor) -> tuple[str, str]:
    """Returns a floor and the difference from it as text; '-' if there is none."""
    value, gap = (
        '-' if each != each else f'{each:{sign}.4f}'
        for each, sign in ((floor.value, ''), (floor.difference, '+'))
    )
    if floor.low == floor.low:
        gap += f' ± {(floor.high - floor.low) / 2:.4f}'
    return value, gap


def format_score(score: Score) -> str:
    """Returns a score as text, like '0.412 ± 0.013'; '-' if there is none."""
    if math.isnan(score.value):
        return '-'
    if math.isnan(score.low):
        return f'{score.value:.4g}'
    return f'{score.value:.4f} ± {(score.high - score.low) / 2:.4f}'


def append_values(
    path: Path,
    rows: Mapping[int, Mapping[str, Any]],
    classes: Sequence[str] | None = None,
    **constants: Any,
) -> None:
    """Appends each image's values to a CSV file, one row for each image and model.

    Args:
        path (Path): The file; a new one gets a header.
        rows (Mapping[int, Mapping[str, Any]]): For each sample index its values, named as scores are.
        classes (Sequence[str], optional): The names of the classes, for columns beside those of their
            indices. Defaults to None: no such columns.
        **constants: Columns with one value for all rows, which come first.

    Raises:
        ValueError: If the file has other columns.
        WriteError: If the file cannot be written.
    """
    lines = []
    for index, values in sorted(rows.items()):
        models = by_model(values)
        for model in MODELS:
            cells = {name: row[model] for name, row in models.items() if model in row}
            if cells:
                names = {
                    f'{key}_class': classes[cells[key]]
                    for key in ('target', 'prediction', 'label')
                    if classes is not None and 0 <= cells.get(key, -1) < len(classes)
                }
                lines.append({**constants, 'index': index, 'model': model, **cells, **names})
    columns = list(dict.fromkeys(column for line in lines for column in line))
    known = read_header(path)
    if known and (new := sorted(set(columns) - set(known))):
        raise ValueError(f'{path} has no column {", ".join(new)}; choose another out_dir')
    text = io.StringIO()
    writer = csv.DictWriter(text, known or columns)
    if not known:
        writer.writeheader()
    writer.writerows(lines)
    append_text(path, text.getvalue())


def read_header(path: Path) -> list[str]:
    """Returns the columns of a CSV file; none if there is no file, or no complete line in it."""
    if not path.exists():
        return []
    with path.open(newline='', errors='replace') as file:
        line = file.readline()
    return next(csv.reader([line])) if line.endswith('\n') else []


def append_scores(path: Path, scores: Mapping[str, Score], **facts: Any) -> None:
    """Appends the scores and facts of an evaluation to a file of JSON lines."""
    values = {
        name: {
            # JSON has no NaN
            key: None if isinstance(value, float) and math.isnan(value) else value
            for key, value in score._asdict().items()
            if value is not None or key == 'better'
        }
        for name, score in scores.items()
    }
    append_text(path, json.dumps({**facts, 'scores': values}) + '\n')


def read_parts(work_dir: str | Path) -> list[tuple[Path, list[dict[str, Any]]]]:
    """Reads the log of the last run in a work directory.

    Each start of a run makes a folder, so a run that was resumed has several. They are sorted by the
    epoch and step where they begin. Their names tell the time, and a clock may have been set back.

    Args:
        work_dir (str | Path): The work directory.

    Returns:
        list[tuple[Path, list[dict[str, Any]]]]: The folder and the lines of ``scalars.json`` of each
        start; none where nothing was logged.
    """
    logs = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    parts = [(path.parents[1], records) for path in logs if (records := read_json_lines(path))]
    begins = [_begin(records) for _, records in parts]
    # A restarted run replaces earlier runs. It logs its first step after as many steps
    # as there are between two lines; of a few lines, it is the earliest.
    new = [i for i, (at, gap) in enumerate(begins) if at == min(begins)[0] or at[1] == gap]
    # A resumed log before every start had a wrong clock, and is kept
    kept = [i for i in range(len(parts)) if i < new[0] or i >= new[-1]]
    return [parts[i] for i in sorted(kept, key=lambda i: begins[i][0])]


def _begin(records: list[dict[str, Any]]) -> tuple[tuple[int, int], int]:
    """Returns where a log begins (epoch, step), and the steps to its next training line, 0 if none."""
    steps = [(each.get('epoch', 0), each.get('step', 0)) for each in records if 'loss' in each]
    if not steps:  # only a validation; its step is its epoch
        return (records[0].get('step', 0) + 1, 0), -1
    return steps[0], steps[1][1] - steps[0][1] if len(steps) > 1 else 0


def read_curves(work_dir: str | Path) -> dict[str, list]:
    """Reads a run's curves from its logs: its evaluations, and what its weights measured.

    Names of evaluations have a '/'. What the weights of terms measured in training, such as the cosine
    of two gradients, is averaged over each epoch.

    Args:
        work_dir (str | Path): The work directory, with one folder for each start.

    Returns:
        dict[str, list]: For each name the pairs (epoch, value), of a resumed run the last of each.
        Iterations stand for epochs where training is counted in iterations.
    """
    curves: dict[str, dict[int, float]] = {}
    measured: dict[str, dict[int, tuple[int, float]]] = {}
    for _, records in read_parts(work_dir):
        for record in records:
            for name, value in record.items() if 'step' in record else ():
                # Scores of each class are a list
                if not isinstance(value, (int, float)) or not math.isfinite(value):
                    continue
                # Training lines hold the learning rate
                if 'lr' not in record:
                    if '/' in name:
                        curves.setdefault(name, {})[record['step']] = value
                elif name.rpartition('.')[2] in MEASURED and '.' in name:
                    point = record.get('epoch', record['step']), value
                    measured.setdefault(name, {})[record['step']] = point
    for name, steps in measured.items():
        epochs: dict[int, list[float]] = {}
        for epoch, value in steps.values():
            epochs.setdefault(epoch, []).append(value)
        curves[name] = {epoch: fmean(values) for epoch, values in epochs.items()}
    return {name: sorted(values.items()) for name, values in curves.items()}
