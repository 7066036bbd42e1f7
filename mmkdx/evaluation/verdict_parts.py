"""The parts of a verdict: findings, sentences, tiles, and numbers as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmkdx.evaluation.audit_findings import Audit, Change, Fidelity, Gain
from mmkdx.evaluation.audit_records import Records
from mmkdx.metrics.scores import Score


@dataclass(frozen=True)
class Sentence:
    """A sentence of the verdict.

    Args:
        text (str): The sentence.
        rule (str): The rule of the guide that wrote it, such as 'agreement'.
        numbers (dict[str, Any]): The statistics that it rests on.
    """

    text: str
    rule: str
    numbers: dict[str, Any]

    def __str__(self) -> str:
        return self.text


@dataclass
class Findings:
    """All that an evaluation's records say; a part is None where a model or the labels are missing.

    Args:
        records (Records): The records.
        teacher (Audit, optional): Teacher against student.
        base (Audit, optional): Base model against student.
        fidelity (Fidelity, optional): How alike teacher and student predict.
        gain (Gain, optional): What the student has in common with the teacher beyond the base model.
        alone (Audit, optional): The student against itself, for its own accuracies.
        reference (Audit, optional): Teacher against base model, to which the first is to be compared.
        alpha (float): The level.
        runs (dict[str, list[float]], optional): The accuracies in [0, 1] of several training runs of
            'student' and 'base'. Defaults to None: one run of each.
    """

    records: Records
    teacher: Audit | None
    base: Audit | None
    fidelity: Fidelity | None
    gain: Gain | None
    alone: Audit | None
    reference: Audit | None
    alpha: float
    runs: dict[str, list[float]] | None = None

    @property
    def audits(self) -> dict[str, Audit]:
        """The comparisons that there are, by their names."""
        named = {
            'teacher to student': self.teacher,
            'base to student': self.base,
            'teacher to base': self.reference,
            'student alone': self.alone,
        }
        return {name: each for name, each in named.items() if each is not None}


def title(kind: str, change: Change) -> str:
    """A class or group in a sentence, like "class 'red fox'" or 'group 1'."""
    return f'{kind} {change.name if change.name == str(change.key) else repr(change.name)}'


def share(value: float) -> str:
    """A rate as text, like '96.8 %'."""
    return f'{100 * value:.1f} %'


def points(value: float) -> str:
    """A difference of rates in points, like '−0.7'."""
    return f'{100 * value:.1f}'.replace('-', '−')


def signed(value: float, digits: int = 1) -> str:
    """A difference as text, with its sign."""
    text = f'{value:+.{digits}f}'.replace('-', '−')
    return text[1:] if not text.strip('+−0.') else text


def number(value: float) -> str:
    """A number between -1 and 1 as text."""
    return f'{value:.2f}'.replace('-', '−')


def p_text(p: float) -> str:
    """A p value as text, like 'p = 0.004'."""
    return 'p < 0.001' if p < 0.001 else f'p = {p:.2g}'


def direction(score: Score) -> int:
    """1 or -1 where an interval lies above or below 0, else 0."""
    return (score.low > 0) - (score.high < 0)
