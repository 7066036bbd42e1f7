"""The records of an audit: each image's label and each model's outputs."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmkdx.arguments import one_of
from mmkdx.evaluation.result import Evaluation
from mmkdx.visualization.records import MODELS

#: The values of a model that an audit reads, by the names of an evaluation's rows.
VALUES = ('prediction', 'confidence', 'label_probability', 'kl')
#: The scores of ``MapAgreement`` that are higher for more similar maps.
MAP_SCORES = ('cosine', 'pearson', 'spearman', 'ssim', 'topk_iou')


@dataclass
class Column:
    """What one model says of n images. A value that is unknown is None, and NaN for single images.

    Args:
        prediction (np.ndarray): The predicted classes, int, (n, ).
        confidence (np.ndarray, optional): The highest probability, (n, ).
        label_probability (np.ndarray, optional): The probability of the label, (n, ).
        kl (np.ndarray, optional): KL(teacher || model) in nats, (n, ).
        agreement (np.ndarray, optional): The agreement of the model's map with the teacher's, (n, ).
    """

    prediction: np.ndarray
    confidence: np.ndarray | None = None
    label_probability: np.ndarray | None = None
    kl: np.ndarray | None = None
    agreement: np.ndarray | None = None


@dataclass
class Records:
    """The records of several models on the same n images.

    Args:
        index (np.ndarray): The images' numbers, (n, ), none twice.
        models (dict[str, Column]): 'student' and, if there are such, 'teacher' and 'base'.
        label (np.ndarray, optional): The labels, (n, ). Defaults to None: an image has none, or several.
        group (np.ndarray, optional): The images' groups, int, (n, ). Defaults to None: an image has
            none.
        classes (Sequence[str], optional): The names of the classes. Defaults to None (unknown).
        map_score (str): The score of ``MapAgreement`` in ``Column.agreement``, one of ``MAP_SCORES``.
            Defaults to 'pearson'.

    Raises:
        ValueError: If there is no image, columns have other lengths, or there is no such score.
    """

    index: np.ndarray
    models: dict[str, Column]
    label: np.ndarray | None = None
    group: np.ndarray | None = None
    classes: Sequence[str] | None = None
    map_score: str = 'pearson'

    def __post_init__(self) -> None:
        one_of('map_score', self.map_score, MAP_SCORES)
        if not len(self.index):
            raise ValueError('the audit has no image: the records are empty')
        columns = dict(label=self.label, group=self.group)
        for name, model in self.models.items():
            columns.update({f'{name}.{key}': value for key, value in vars(model).items()})
        for key, value in columns.items():
            if value is not None and len(value) != len(self.index):
                raise ValueError(
                    f'the audit has {len(self.index)} images and {len(value)} values of {key}'
                )

    def __len__(self) -> int:
        return len(self.index)

    @classmethod
    def from_evaluation(cls, found: Evaluation, map_score: str = 'pearson') -> Records:
        """The records that an evaluation of explanations has kept of its images."""
        return cls.from_rows(found.rows, found.classes, map_score)

    @classmethod
    def from_rows(
        cls,
        rows: Mapping[int, Mapping[str, Any]],
        classes: Sequence[str] | None = None,
        map_score: str = 'pearson',
    ) -> Records:
        """Records from ``Evaluation.rows``: for each image its values, as 'teacher/prediction'.

        Raises:
            ValueError: If there is no image.
        """
        index = sorted(rows)
        values = [rows[i] for i in index]

        def column(key: str) -> np.ndarray | None:
            if not any(key in row for row in values):
                return None
            return np.array([row.get(key, np.nan) for row in values])

        models = {}
        for model in MODELS:
            front = '' if model == 'student' else f'{model}/'
            if (prediction := column(f'{front}prediction')) is not None:
                found = {key: column(f'{front}{key}') for key in VALUES[1:]}
                agreement = column(f'{front}{map_score}')
                models[model] = Column(prediction.astype(int), **found, agreement=agreement)
        whole = {}
        for key in ('label', 'group'):  # a part of the images has no meaning
            found = column(key)
            known = found is not None and not np.isnan(found).any()
            whole[key] = found.astype(int) if known else None
        return cls(np.array(index), models, **whole, classes=classes, map_score=map_score)

    @classmethod
    def from_csv(cls, paths: Mapping[str, str | Path], map_score: str = 'pearson') -> Records:
        """Joins the records in the CSV files of evaluations, by the images' numbers.

        A file is what ``evaluate_explanations`` or ``ExplainHook`` writes, ``<mode>.csv``, or any with
        the columns index, prediction and label. Of a file with several models the student's rows count.
        If all models have the same file, their own rows count, and with them KL and the maps' agreement,
        which other files may have measured against another teacher. Of an image that is there twice, as
        after several evaluations, the last row counts.

        Args:
            paths (Mapping[str, str | Path]): A file for 'student', 'teacher' and 'base'.
            map_score (str): See ``Records``. Defaults to 'pearson'.

        Raises:
            ValueError: If a file has no records, or images, labels, groups or the names of classes
                differ.
            FileNotFoundError: If there is no such file.
        """
        same = len({str(path) for path in paths.values()}) == 1
        tables = {}
        for model, path in paths.items():
            tables[model] = _read_csv(Path(path), model if same and len(paths) > 1 else 'student')
        first = next(iter(tables))
        names: dict[int, str] = {}
        for model, table in tables.items():
            _compare(paths[first], tables[first], paths[model], table, names)
        known = (*VALUES, map_score) if same else VALUES[:3]
        rows: dict[int, dict[str, Any]] = {index: {} for index in tables[first]}
        for model, table in tables.items():
            front = '' if model == 'student' else f'{model}/'
            for index, row in table.items():
                kept = {key: row[key] for key in known if key in row}
                rows[index].update({f'{front}{key}': value for key, value in kept.items()})
                rows[index].update({k: row[k] for k in ('label', 'group') if k in row})
        classes = [names.get(i, '') for i in range(max(names) + 1)] if names else None
        return cls.from_rows(rows, classes, map_score)


def _read_csv(path: Path, model: str) -> dict[int, dict[str, Any]]:
    """The rows of a model in a file, by the images' numbers."""
    table: dict[int, dict[str, Any]] = {}
    with path.open(newline='', encoding='utf-8', errors='replace') as file:
        lines = csv.DictReader(file)
        missing = {'index', 'prediction', 'label'} - set(lines.fieldnames or ())
        if missing:
            raise ValueError(
                f'{path} has no column {", ".join(sorted(missing))}; an audit needs the values of each '
                'image, as an evaluation writes them to test.csv'
            )
        for line in lines:
            if line.get('model', model) != model:
                continue
            try:
                row = {
                    key: value if key.endswith('_class') else float(value)
                    for key, value in line.items()
                    if key not in (None, 'model') and value not in (None, '')
                }
                for key in ('index', 'prediction', 'label'):
                    if not row[key].is_integer():
                        raise ValueError(f'{key} is {row[key]}')
                    row[key] = int(row[key])
                table[row['index']] = row
            except (ValueError, KeyError) as error:
                raise ValueError(
                    f'{path}, line {lines.line_num}: a value is missing or no number of its kind: '
                    f'{error}'
                ) from error
    if not table:
        raise ValueError(f'{path} has no row of the model {model!r}')
    return table


def _compare(
    one: Any, first: dict[int, dict], two: Any, second: dict[int, dict], names: dict[int, str]
) -> None:
    """Refuses tables of other images, labels, groups or classes, and notes the names of classes."""
    if odd := sorted(first.keys() ^ second.keys()):
        raise ValueError(
            f'{one} and {two} have different images: {len(odd)} are in only one, such as {odd[0]}; '
            'evaluate both models on the same images'
        )
    for index, row in second.items():
        other = first[index]
        if row['label'] != other['label']:
            raise ValueError(
                f'image {index} has the label {other["label"]} in {one} and {row["label"]} in {two}; '
                'evaluate both models on the same data set'
            )
        if row.get('group') != other.get('group'):
            groups = [f'{each["group"]:g}' if 'group' in each else 'none' for each in (other, row)]
            raise ValueError(
                f'image {index} has the group {groups[0]} in {one} and {groups[1]} in {two}; both '
                'files need the same groups'
            )
        for key in ('label', 'prediction'):
            name = row.get(f'{key}_class')
            if name is not None and names.setdefault(row[key], name) != name:
                raise ValueError(
                    f'class {row[key]} is {names[row[key]]!r} in {one} and {name!r} in {two}; the '
                    'models have different classes, or a different order of classes'
                )
