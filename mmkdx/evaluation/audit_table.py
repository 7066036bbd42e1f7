"""An audit as tables: the numbers side by side, the classes, the images that flipped."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping

import numpy as np

from mmkdx.evaluation.audit_findings import Audit, Family
from mmkdx.evaluation.audit_records import Records
from mmkdx.functional.audit import flip_table
from mmkdx.metrics.scores import Score
from mmkdx.visualization.score_groups import Table

#: The most classes, or groups, in a table of a report.
MOST = 20


def _number(value: float, digits: int = 3) -> str:
    return '-' if math.isnan(value) else f'{value:.{digits}f}'


def _score(score: Score | None, scale: float = 1, digits: int = 3) -> str:
    """A score with its interval, like '0.96 (0.94 to 0.97)'."""
    if score is None or math.isnan(score.value):
        return '-'
    value, low, high = (f'{scale * each:.{digits}f}' for each in score[:3])
    return value if math.isnan(score.low) else f'{value} ({low} to {high})'


def _percent(score: Score) -> str:
    return _score(score, 100, 1)


def _changed(family: Family) -> str:
    names = ', '.join(
        f'{each.key} {100 * each.change:+.1f} (p {each.adjusted:.2g})'
        for each in family.significant[:3]
    )
    count = f'{len(family.significant)} of {len(family.changes)}'
    more = ', …' if len(family.significant) > 3 else ''
    return f'{count}: {names}{more}' if names else count


def _map(cell: str) -> Callable[[Audit], str]:
    return lambda each: f'{_score(each.maps[cell])}, n = {each.maps[cell].n}'


#: The rows of the table: a name, and the cell of an audit.
_ROWS: dict[str, Callable[[Audit], str]] = {
    'accuracy of the old, %': lambda each: _percent(each.accuracy[each.old]),
    'accuracy of the new, %': lambda each: _percent(each.accuracy[each.new]),
    'difference, points': lambda each: _percent(each.difference),
    'p, exact McNemar': lambda each: f'{each.p:.3g}',
    'negative flips': lambda each: f'{each.cells["RW"]}: {_percent(each.negative)} %',
    'positive flips': lambda each: f'{each.cells["WR"]}: {_percent(each.positive)} %',
    'relative negative flips': lambda each: _number(each.relative_negative),
    'negative flips by new errors': lambda each: _number(each.negative_impact),
    'changed classes (Holm)': lambda each: _changed(each.classes),
    'flips that a class needs': lambda each: str(each.classes.flips_needed),
    'same prediction, %': lambda each: _percent(each.fidelity.agreement),
    'KL(old, new), nats': lambda each: _score(each.fidelity.kl),
    'kappa of errors': lambda each: _score(each.errors.kappa),
    'overlap of errors (Jaccard)': lambda each: _number(each.errors.jaccard),
    'same wrong class': lambda each: f'{each.errors.same} of {each.errors.both}',
}
_CALIBRATION: dict[str, Callable[[Audit], str]] = {
    'ECE of old and new, %': lambda each: (
        f'{each.calibration.old:.1f} and {each.calibration.new:.1f}'
    ),
    'median margin of RW and WR': lambda each: ' and '.join(
        map(_number, each.flip_margin.values())
    ),
    'difference of ECE': lambda each: _score(each.calibration.difference, digits=1),
}
_GROUPS: dict[str, Callable[[Audit], str]] = {
    'changed groups (Holm)': lambda each: _changed(each.groups),
    'change of the worst group, points': lambda each: _percent(each.groups.worst_change),
    'largest drop of a group, points': lambda each: (
        f'{_percent(each.groups.drop)}, group {each.groups.largest_drop.key}'
    ),
}
_WORST: dict[str, Callable[[Audit], str]] = {
    'change of the worst class, points': lambda each: _percent(each.classes.worst_change),
    'largest drop of a class, points': lambda each: (
        f'{_percent(each.classes.drop)}, class {each.classes.largest_drop.key}'
    ),
}
_MAPS: dict[str, Callable[[Audit], str]] = {
    **{f'maps where {cell}': _map(cell) for cell in ('RR', 'RW', 'WR', 'WW')},
    'p, maps RW and RR (exploratory)': lambda each: (
        '-' if math.isnan(each.maps_p) else f'{each.maps_p:.3g}'
    ),
}


def table_rows(audits: Mapping[str, Audit]) -> list[list[str]]:
    """Comparisons as the rows of a table, one column each; rows that none has are left out.

    Args:
        audits (Mapping[str, Audit]): The comparisons by the heads of their columns.
    """
    parts: list[tuple[str | None, dict[str, Callable[[Audit], str]]]] = [
        *((None, _ROWS), (None, _WORST), ('groups', _GROUPS)),
        *(('calibration', _CALIBRATION), ('maps', _MAPS)),
    ]
    rows = [['n = ' + ', '.join({str(each.n) for each in audits.values()}), *audits]]
    for part, lines in parts:
        has = {
            name: part is None or getattr(each, part) is not None for name, each in audits.items()
        }
        if any(has.values()):
            for name, cell in lines.items():
                cells = [cell(each) if has[key] else '' for key, each in audits.items()]
                rows.append([name, *cells])
    return rows


def report_tables(audits: Mapping[str, Audit]) -> list[Table]:
    """The comparisons, and for each the classes and groups with the most certain changes, as tables."""
    if not audits:
        return []
    head, *rows = table_rows(audits)
    tables = [Table(head, rows, 'comparisons', question='accuracy')]
    for name, found in audits.items():
        for kind, plural, family in (
            ('class', 'classes', found.classes),
            ('group', 'groups', found.groups),
        ):
            if family is None or len(family.changes) < 2:
                continue
            changes = sorted(family.changes, key=lambda each: each.adjusted)[:MOST]
            cells = [
                [
                    each.name,
                    f'{100 * each.old:.1f}',
                    f'{100 * each.new:.1f}',
                    f'{100 * each.change:+.1f}'.replace('-', '−'),
                    f'{each.negative} / {each.positive}',
                    f'{each.adjusted:.2g}',
                    str(each.n),
                ]
                for each in changes
            ]
            note = f'The most certain changes of {len(family.changes)}, at most {MOST}.'
            head = [kind, 'old, %', 'new, %', 'change', 'flips − / +', 'p after Holm', 'n']
            tables.append(Table(head, cells, f'{plural}, {name}', note, 'accuracy'))
    return tables


def class_rows(audits: Mapping[str, Audit]) -> str:
    """The classes and groups of comparisons as CSV, the most certain changes first."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(
        [
            *('comparison', 'family', 'key', 'name', 'n', 'negative', 'positive', 'old', 'new'),
            *('change', 'p', 'p_holm', 'significant'),
        ]
    )
    for name, found in audits.items():
        families = dict(classes=found.classes, groups=found.groups)
        for kind, family in families.items():
            changes = sorted(family.changes, key=lambda each: each.adjusted) if family else ()
            for each in changes:
                counts = each.key, each.name, each.n, each.negative, each.positive
                tested = each.old, each.new, each.change, each.p, each.adjusted, each.significant
                writer.writerow([name, kind, *counts, *tested])
    return text.getvalue()


def flipped_images(records: Records, old: str = 'teacher') -> dict[str, list[int]]:
    """The images that only the old model, and that only the student gets right, by their numbers.

    The clearest come first, by the wrong probability less the label's, where these are known.
    """
    if records.label is None or not {old, 'student'} <= set(records.models):
        return {}
    pair = [records.models[name] for name in (old, 'student')]
    cell = flip_table(records.label, *(each.prediction for each in pair))
    found = {}
    for name, kind, wrong in (('negative', 1, pair[1]), ('positive', 2, pair[0])):
        here = np.flatnonzero(cell == kind)
        if wrong.confidence is not None and wrong.label_probability is not None:
            margin = (wrong.confidence - wrong.label_probability)[here]
            here = here[np.argsort(-margin, kind='stable')]
        found[name] = records.index[here].tolist()
    return found
