"""The numbers of a report's first screen."""

from __future__ import annotations

from collections.abc import Callable

from mmkdx.evaluation.audit import ENOUGH
from mmkdx.evaluation.verdict_parts import (
    Findings,
    direction,
    number,
    p_text,
    points,
    share,
    signed,
    title,
)
from mmkdx.functional.audit import rate_interval
from mmkdx.visualization.report import Tile

TONES = {1: 'good', 0: 'neutral', -1: 'bad'}


def accuracy(found: Findings) -> Tile | None:
    """The difference of accuracies to the teacher, or else to the base model, or the accuracy alone."""
    if (only := found.alone) is not None:
        score = only.accuracy['student']
        ends = f'{points(score.low)} to {points(score.high)} %, n = {score.n}'
        return Tile(
            'Accuracy', share(score.value), ends, 'There is no other model to compare with.'
        )
    if (old := found.teacher or found.base) is None:
        return None
    name = 'teacher' if old.old == 'teacher' else 'base model'
    values = [share(old.accuracy[each].value) for each in (old.new, old.old)]
    return Tile(
        f'Accuracy compared with the {name}',
        f'{signed(100 * old.difference.value)} points',
        f'{points(old.difference.low)} to {points(old.difference.high)}, n = {old.n}',
        f'{values[0]} against {values[1]}; exact McNemar {p_text(old.p)}.',
        _tone(old.difference.value, old.p, old.alpha),
    )


def agreement(found: Findings) -> Tile | None:
    """The share of images that student and teacher predict alike."""
    if found.fidelity is None:
        return None
    score, hint, tone = found.fidelity.agreement, 'Without a base model to compare with.', 'neutral'
    if found.gain is not None:
        more = found.gain.agreement
        hint = (
            f'The base model: {share(score.value - more.value)} (difference {points(more.low)} to '
            f'{points(more.high)} points).'
        )
        tone = TONES[direction(more)]
    ends = f'{points(score.low)} to {points(score.high)} %, n = {score.n}'
    return Tile("Predicts its teacher's class", share(score.value), ends, hint, tone)


def evidence(found: Findings) -> Tile | None:
    """How far student and teacher look at the same places."""
    name = found.records.map_score.replace('_', ' ').capitalize()
    label = f"Agreement with the teacher's maps ({name})"
    if found.gain is not None and (more := found.gain.maps) is not None:
        where = 'images that all three get right' if found.records.label is not None else 'images'
        gained = f'{signed(more.low, 2)} to {signed(more.high, 2)}'
        ends = f'{gained} compared with the base model, n = {more.n}'
        hint = f'The base model: {number(found.gain.base_maps)}; over {where}.'
        value = number(found.gain.student_maps)
        return Tile(label, value, ends, hint, TONES[direction(more)])
    if found.teacher is None or found.teacher.maps is None:
        return None
    score = found.teacher.maps['RR']
    if score.n < ENOUGH:
        hint = 'Too few images that both get right.'
        return Tile(label, '–', f'n = {score.n}', hint)
    ends = f'{number(score.low)} to {number(score.high)}, n = {score.n}'
    return Tile(label, number(score.value), ends, 'Over images that both get right.')


def negative_flips(found: Findings) -> Tile | None:
    """The share of images that the student newly gets wrong."""
    if (old := found.teacher or found.base) is None:
        return None
    name = 'teacher' if old.old == 'teacher' else 'base model'
    score, g = old.negative, old.cells['WR']
    ends = f'{points(score.low)} to {points(score.high)} %, n = {score.n}'
    hint = (
        f'{old.cells["RW"]} images that only the {name} gets right; {g} that only the student does.'
    )
    return Tile('Negative flips', share(score.value), ends, hint)


def calibration(found: Findings) -> Tile | None:
    """The difference of the calibration errors, or the error alone."""
    old = found.teacher or found.base or found.alone
    if old is None or (both := old.calibration) is None:
        return None
    if old is found.alone:
        hint = 'Expected calibration error, 15 bins; biased upwards in small samples.'
        return Tile('Calibration error', f'{both.new:.1f} %', f'n = {old.n}', hint)
    score = both.difference
    name = 'teacher' if old.old == 'teacher' else 'base model'
    ends = f'{signed(score.low)} to {signed(score.high)}, n = {score.n}'
    hint = f'{both.new:.1f} % against {both.old:.1f} %; 15 bins; lower is better.'
    label, value = f'Calibration error compared with the {name}', f'{signed(score.value)} points'
    return Tile(label, value, ends, hint, TONES[-direction(score)])


def worst_class(found: Findings) -> Tile | None:
    """The class with the most certain change, or the lowest class of a model alone."""
    old = found.teacher or found.base or found.alone
    if old is None or len(old.classes.changes) < 2:
        return None
    family, count = old.classes, len(old.classes.changes)
    if old is found.alone:
        worst = family.worst_new
        low, high = rate_interval(round(worst.new * worst.n), worst.n)
        ends = f'{points(low)} to {points(high)} %, n = {worst.n}'
        hint = f'{title("Class", worst)}, the lowest of {count} and so partly chance.'
        return Tile('Lowest class', share(worst.new), ends, hint)
    drop = family.largest_drop
    if drop.change >= 0:
        return Tile('Largest loss of a class', 'none', f'n = {old.n}', f'Of {count} classes.')
    lost = [each for each in family.significant if each.change < 0]
    ends = f'{title("class", drop)}, n = {drop.n}, {p_text(drop.adjusted)} after Holm'
    changed = len(family.significant)
    hint = f'{changed} of {count} classes changed significantly, {len(lost)} of them for the worse.'
    value = f'{signed(100 * drop.change)} points'
    return Tile('Largest loss of a class', value, ends, hint, 'bad' if lost else 'neutral')


def _tone(value: float, p: float, alpha: float) -> str:
    return TONES[(value > 0) - (value < 0) if p <= alpha else 0]


#: The tiles in their order; a tile without values is left out.
TILES: tuple[Callable[[Findings], Tile | None], ...] = (
    *(accuracy, agreement, evidence, negative_flips, calibration, worst_class),
)
