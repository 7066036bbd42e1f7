"""The files and pictures of an evaluation of explanations."""

from __future__ import annotations

import tempfile
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path

from mmkdx.evaluation.audit_table import report_tables
from mmkdx.evaluation.floor import as_json
from mmkdx.evaluation.result import Evaluation
from mmkdx.evaluation.subjects import TARGETS
from mmkdx.evaluation.verdict import Findings, paragraph, study, tiles
from mmkdx.files import WriteError, write_file
from mmkdx.visualization.records import append_scores, append_values, read_curves, read_header
from mmkdx.visualization.report import write_report

#: The rules of a verdict that make a report's first paragraph; the others stand under it.
FIRST = ('agreement', 'own_accuracy', 'accuracy', 'evidence', 'base', 'method')


def write_files(folder: Path, mode: str, found: Evaluation, **step: int) -> None:
    """Appends each image's values to ``<mode>.csv`` and the scores to ``<mode>.json``.

    The folder is made if there is none. ``step`` is the epoch or iteration. The scores are written last,
    so an evaluation whose scores are there has all its values.
    """
    append_values(folder / f'{mode}.csv', found.rows, found.classes, **step)
    standing = as_json(found.floors, found.metric_agreement)
    append_scores(folder / f'{mode}.json', found.scores, **step, **found.facts, **standing)


def write_page(
    folder: Path,
    found: Evaluation,
    title: str,
    facts: Mapping[str, str],
    runs: Mapping[str, str] | None = None,
    unit: str = 'epoch',
    findings: Findings | None = None,
) -> Path:
    """Writes ``report.html``, and its first paragraph as ``verdict.txt``; returns the page's path.

    It shows facts about the models, unless they are empty, and over epochs or iterations the curves of
    runs, which are given by name and work directory. The findings are those of ``study`` unless others
    are given.
    """
    explainers = found.facts['explainers'].items()
    curves: dict[str, dict[str, list]] = {}
    for run, work_dir in (runs or {}).items():
        for name, points in read_curves(work_dir).items():
            if name != 'explain/seconds':
                curves.setdefault(name, {})[run] = points
    findings = study(found) if findings is None else findings
    sentences = paragraph(findings)
    # A class or group that changed belongs into it, and what could have been found does not
    answer = [s.text for s in sentences if s.rule in FIRST or 'changed' in s.numbers]
    write_file(folder / 'verdict.txt', textwrap.fill(' '.join(answer), 100) + '\n')
    return write_report(
        folder / 'report.html',
        title=title,
        answer=answer,
        details=[each.text for each in sentences if each.text not in answer],
        tiles=tiles(findings),
        facts={
            **facts,
            'explainer': ', '.join(f'{model}: {kind}' for model, kind in explainers),
            'explained class': TARGETS[found.facts['target']],
            'images': found.sample,
            'made': time.strftime('%Y-%m-%d %H:%M'),
        },
        scores=found.scores,
        tables=report_tables(findings.audits),
        about=found.about,
        floors=found.floors,
        notes={'faithfulness': found.sentence} if found.sentence else None,
        stages=tuple(found.facts.get('layers', {}).get('student', ())),
        models=found.models,
        student=found.student,
        curves=None if runs is None else curves,
        gallery=found.gallery,
        sections=found.sections,
        unit=unit,
    )


def try_files(folder: Path, mode: str, found: Evaluation, key: str, **step: int) -> None:
    """Writes the files of a trial into a temporary folder beside the real one; see ``write_files``.

    Raises:
        WriteError: If a file cannot be written there.
        ValueError: If there can be no such folder, or earlier files there have other columns; it names
            the option ``key``.
    """
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    try:
        with tempfile.TemporaryDirectory(dir=there) as place:
            write_files(Path(place), mode, found, **step)
            write_page(Path(place), found, '', {})
            columns = read_header(Path(place) / f'{mode}.csv')
    except WriteError:  # the option is right, and the disk is full
        raise
    except OSError as error:
        raise ValueError(
            f'{key} is {str(folder)!r}; nothing can be written there: {error}'
        ) from None
    known = read_header(folder / f'{mode}.csv')
    if known and (new := sorted(set(columns) - set(known))):
        raise ValueError(
            f'{folder / mode}.csv has no column {", ".join(new)}; choose another {key}'
        )
