"""The verdict that the numbers of an evaluation support, as a paragraph and as tiles.

The rules are those of the guide "Audit a distillation". Each sentence carries the numbers that it rests
on. A p above the level never becomes "equal", and one training run says nothing of a training method.
"""

from __future__ import annotations

from typing import Any

from mmkdx.evaluation.audit import audit, fidelity, gain
from mmkdx.evaluation.audit_findings import Audit
from mmkdx.evaluation.audit_records import Records
from mmkdx.evaluation.result import Evaluation
from mmkdx.evaluation.verdict_parts import Findings, Sentence
from mmkdx.evaluation.verdict_rules import RULES
from mmkdx.evaluation.verdict_tiles import TILES
from mmkdx.visualization.report import Tile

__all__ = ['Findings', 'Sentence', 'Tile', 'paragraph', 'study', 'tiles']


def study(
    source: Evaluation | Records | Findings,
    map_score: str = 'pearson',
    runs: dict[str, list[float]] | None = None,
    **options: Any,
) -> Findings:
    """Computes what ``paragraph`` and ``tiles`` say, once for both.

    Args:
        source (Evaluation | Records | Findings): What is known of the images; findings are returned as
            they are.
        map_score (str): The score of ``MapAgreement`` that is taken of an evaluation. It is fixed before
            the numbers are seen. Defaults to 'pearson'.
        runs (dict[str, list[float]], optional): The accuracies in [0, 1] of several training runs of
            'student' and of 'base', for a statement about the training method. Defaults to None.
        **options: ``alpha``, ``margin``, ``draws`` and ``seed`` of ``audit``.

    Returns:
        Findings: What the records say.

    Raises:
        ValueError: If an option is out of range, or there is no image.
    """
    if isinstance(source, Findings):
        return source
    records = source if isinstance(source, Records) else Records.from_evaluation(source, map_score)
    models, labelled = set(records.models), records.label is not None

    def against(old: str, new: str = 'student') -> Audit | None:
        return audit(records, old, new, **options) if {old, new} <= models and labelled else None

    bootstrap = {key: options[key] for key in ('draws', 'seed') if key in options}
    return Findings(
        records=records,
        teacher=against('teacher'),
        base=against('base'),
        fidelity=fidelity(records) if 'teacher' in models else None,
        gain=gain(records, **bootstrap),
        alone=against('student') if models == {'student'} else None,
        reference=against('teacher', 'base'),
        alpha=options.get('alpha', 0.05),
        runs=runs,
    )


def paragraph(source: Evaluation | Records | Findings, **options: Any) -> list[Sentence]:
    """The verdict in sentences; it leaves out sentences on missing models or labels.

    Args:
        source (Evaluation | Records | Findings): See ``study``.
        **options: See ``study``.
    """
    found = study(source, **options)
    written = (rule(found) for rule in RULES)
    return [each for sentences in written for each in sentences]


def tiles(source: Evaluation | Records | Findings, **options: Any) -> list[Tile]:
    """At most six numbers for the first screen; it leaves out missing models and labels.

    Args:
        source (Evaluation | Records | Findings): See ``study``.
        **options: See ``study``.
    """
    found = study(source, **options)
    return [tile for make in TILES if (tile := make(found)) is not None][:6]
