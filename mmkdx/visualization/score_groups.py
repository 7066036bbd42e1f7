"""Groups the scores of an evaluation for a report, by the question that they answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmkdx.metrics.about import QUESTIONS, About
from mmkdx.metrics.scores import Floor, Score
from mmkdx.visualization.curves import stage_charts
from mmkdx.visualization.records import by_model, score_rows, with_floors


@dataclass
class Table:
    """A table of a report.

    Args:
        head (Sequence[str]): The heads of its columns.
        rows (Sequence[Sequence[str]]): Its cells; the first of a row names the row.
        heading (str): What it shows. Defaults to '': what its group is about.
        note (str): What to know before reading it. Defaults to ''.
        question (str): The group where it stands, a key of ``QUESTIONS``. Defaults to 'other'.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    heading: str = ''
    note: str = ''
    question: str = 'other'


@dataclass
class ScoreGroup:
    """The tables and charts that answer one question.

    Args:
        name (str): A key of ``QUESTIONS``.
        tables (list[Table]): Tables of scores; the first is of all images.
        charts (list[dict]): Scores over the depth of the networks.
        meanings (dict[str, About]): What the scores are, by their names.
        note (str): What is to be said of them.
    """

    name: str
    tables: list[Table] = field(default_factory=list)
    charts: list[dict[str, Any]] = field(default_factory=list)
    meanings: dict[str, About] = field(default_factory=dict)
    note: str = ''

    @property
    def heading(self) -> str:
        """The question."""
        return QUESTIONS[self.name]


def score_groups(
    scores: Mapping[str, Score],
    about: Mapping[str, About],
    student: str = 'student',
    stages: Sequence[str] = (),
    tables: Sequence[Table] = (),
    floors: Mapping[str, Floor] | None = None,
    notes: Mapping[str, str] | None = None,
) -> list[ScoreGroup]:
    """Groups scores by the question that they answer.

    Scores of stages become charts over the depth of the networks. Scores over some of the images get
    tables of their own.

    Args:
        scores (Mapping[str, Score]): Scores as of ``ExplanationMetric``.
        about (Mapping[str, About]): What they are, by their names without a model's. Unknown ones are
            in the last group.
        student (str): The head of the student's column. Defaults to 'student'.
        stages (Sequence[str]): The names of the stages, from the image to the classifier. Defaults to
            ().
        tables (Sequence[Table]): Further tables, which stand first in their groups. Defaults to ().
        floors (Mapping[str, Floor], optional): What noise gets, by the names of scores. Defaults to
            None (unknown).
        notes (Mapping[str, str], optional): What is to be said of a question. Defaults to None.
    """
    groups = {name: ScoreGroup(name) for name in QUESTIONS}
    taught = any(name.startswith('teacher/') for name in scores)
    for table in tables:
        groups[table.question].tables.append(table)
    parts: dict[tuple[str, str], dict[str, Score]] = {}
    depth: dict[str, dict[str, dict[str, Score]]] = {}
    for plain, row in by_model(scores).items():
        known = about.get(plain, About())
        base, _, stage = plain.rpartition('_')
        if stage in stages:
            depth.setdefault(known.question, {}).setdefault(base, {})[stage] = row
            groups[known.question].meanings[base] = known
            continue
        if not known.variant:
            groups[known.question].meanings[plain] = known
        part = parts.setdefault((known.question, known.variant), {})
        part |= {name: score for name, score in scores.items() if name.rpartition('/')[2] == plain}
    for (question, variant), part in parts.items():
        head, *rows = with_floors(score_rows(part, student, taught), floors or {})
        groups[question].tables.append(Table(head, rows, variant, question=question))
    for question, charts in depth.items():
        groups[question].charts = stage_charts(charts, stages, student)
    for question, note in (notes or {}).items():
        groups[question].note = note
    return [group for group in groups.values() if group.tables or group.charts]
