"""The differences between an old and a new model on the same labelled images, with tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from mmkdx.arguments import integer, positive
from mmkdx.evaluation.audit_findings import (
    Audit,
    Calibration,
    Change,
    Errors,
    Family,
    Fidelity,
    Gain,
)
from mmkdx.evaluation.audit_records import Column, Records
from mmkdx.functional import audit as statistic
from mmkdx.metrics.scores import Score, mean_score

#: Means of maps have an interval from this number of images on.
ENOUGH = 10


def audit(
    records: Records,
    old: str = 'teacher',
    new: str = 'student',
    alpha: float = 0.05,
    margin: float | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> Audit:
    """Compares two models on the same labelled images.

    Args:
        records (Records): What the models say of the images.
        old (str): The model to compare with. Defaults to 'teacher'.
        new (str): The model that is compared. Defaults to 'student'.
        alpha (float): The level, in (0, 0.5]. Defaults to 0.05.
        margin (float, optional): How many points of accuracy the new model may be worse. Fix it before
            you see the numbers. Defaults to None.
        draws (int): Samples of the bootstrap. Defaults to 2000.
        seed (int): The random seed of the bootstrap. Defaults to 0.

    Raises:
        ValueError: If an argument is out of range, a model is missing, or images have no label.
    """
    statistic.check_alpha(alpha)
    if margin is not None:
        positive('margin', margin)
    how = dict(draws=integer('draws', draws, 1), seed=integer('seed', seed, 0))
    first, second = (_model(records, name) for name in (old, new))
    if records.label is None:
        raise ValueError(
            "an audit needs one label for each image ('gt_label'), and an image has none, or several"
        )
    n = len(records)
    cell = statistic.flip_table(records.label, first.prediction, second.prediction)
    counts = np.bincount(cell, minlength=4)
    rr, b, g, ww = counts.tolist()
    accuracy = {old: rate(rr + b, n), new: rate(rr + g, n)}
    wrong_by_chance = accuracy[old].value * (1 - accuracy[new].value)
    difference = Score(*statistic.paired_difference(b, g, n), n)
    maps, maps_p = _maps(second.agreement, cell) if old == 'teacher' else (None, math.nan)
    names = records.classes
    found = Audit(
        old=old,
        new=new,
        n=n,
        alpha=alpha,
        accuracy=accuracy,
        difference=difference,
        p=float(statistic.mcnemar_exact(b, g)),
        cells=dict(zip(statistic.CELLS, counts.tolist())),
        negative=rate(b, n),
        positive=rate(g, n),
        relative_negative=_ratio(b / n, wrong_by_chance) if b else 0.0,
        negative_impact=_ratio(b, b + ww),
        classes=_family(records.label, cell, alpha, names, **how),
        groups=None if records.group is None else _family(records.group, cell, alpha, **how),
        fidelity=fidelity(records, old, new),
        errors=_errors(cell, first.prediction == second.prediction, **how),
        calibration=_calibration(first, second, cell, **how),
        maps=maps,
        maps_p=maps_p,
        flip_margin=dict(negative=_margin(second, cell == 1), positive=_margin(first, cell == 2)),
        margin=margin,
        no_worse=None if margin is None else 100 * difference.low > -margin,
    )
    found.notes = _notes(found)
    return found


def fidelity(records: Records, old: str = 'teacher', new: str = 'student') -> Fidelity:
    """How alike two models predict; it needs no labels.

    Raises:
        ValueError: If a model is missing.
    """
    first, second = (_model(records, name) for name in (old, new))
    same = first.prediction == second.prediction
    kl = None
    if old == 'teacher' and second.kl is not None and not np.isnan(second.kl).all():
        kl = mean_score(second.kl, 'lower')
    agreement = rate(int(same.sum()), len(same), 'higher')
    return Fidelity(agreement, statistic.kappa(first.prediction, second.prediction), kl)


def gain(records: Records, draws: int = 2000, seed: int = 0) -> Gain | None:
    """What the student has in common with its teacher beyond the base model; None without all three."""
    if not {'student', 'teacher', 'base'} <= set(records.models):
        return None
    teacher, student, base = (records.models[name] for name in ('teacher', 'student', 'base'))
    n, label = len(records), records.label
    alike = [each.prediction == teacher.prediction for each in (base, student)]
    lost, won = int((alike[0] & ~alike[1]).sum()), int((alike[1] & ~alike[0]).sum())
    found: dict[str, Any] = dict(
        agreement=Score(*statistic.paired_difference(lost, won, n), n, 'higher')
    )
    if student.kl is not None and base.kl is not None:
        found['kl'] = mean_score(base.kl - student.kl, 'higher')
    counted = np.ones(n, bool)
    if label is not None:
        right = [each.prediction == label for each in (teacher, student, base)]
        counted = np.logical_and.reduce(right)
        found.update(kappa=_kappa_gain(*right, draws, seed), copied={})
        for name, same, own in (('student', alike[1], right[1]), ('base', alike[0], right[2])):
            both = ~right[0] & ~own
            found['copied'][name] = int((both & same).sum()), int(both.sum())
    if student.agreement is not None and base.agreement is not None:
        counted &= ~np.isnan(student.agreement) & ~np.isnan(base.agreement)
        if counted.sum() >= ENOUGH:
            own, other = student.agreement[counted], base.agreement[counted]
            found['maps'] = mean_score(own - other, 'higher')
            found.update(student_maps=float(own.mean()), base_maps=float(other.mean()))
    return Gain(**found)


def rate(k: int, n: int, better: str | None = None) -> Score:
    """A rate with Wilson's interval."""
    return Score(k / n, *statistic.rate_interval(k, n), n, better)


def _model(records: Records, name: str) -> Column:
    if name not in records.models:
        raise ValueError(
            f'the records have no model {name!r}; they have {", ".join(map(repr, records.models))}'
        )
    return records.models[name]


def _ratio(top: float, bottom: float) -> float:
    return top / bottom if bottom else math.nan


def _family(
    keys: np.ndarray,
    cell: np.ndarray,
    alpha: float,
    names: Sequence[str] | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> Family:
    """Tests all classes, or all groups, by the key of each image (n, )."""
    members, place = np.unique(keys, return_inverse=True)
    cells = np.bincount(4 * place + cell, minlength=4 * len(members)).reshape(-1, 4)
    p = statistic.mcnemar_exact(cells[:, 1], cells[:, 2])
    adjusted = statistic.holm(p)
    sizes = cells.sum(1)

    def accuracies(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return (counts[..., 0] + counts[..., 1]) / sizes, (counts[..., 0] + counts[..., 2]) / sizes

    old, new = accuracies(cells)
    changes = []
    for i, key in enumerate(members.tolist()):
        named = names is not None and 0 <= key < len(names) and names[key]
        counts = int(sizes[i]), int(cells[i, 1]), int(cells[i, 2])
        tested = float(p[i]), float(adjusted[i]), bool(adjusted[i] <= alpha)
        name = str(names[key]) if named else str(key)
        changes.append(Change(key, name, *counts, float(old[i]), float(new[i]), *tested))

    def selected(counts: np.ndarray) -> np.ndarray:
        first, second = accuracies(counts)
        return np.stack([second.min(-1) - first.min(-1), (second - first).min(-1)], -1)

    values = selected(cells)
    low, high = statistic.stratified_bootstrap(selected, cells, draws, seed)
    worst, drop = (
        Score(float(values[i]), float(low[i]), float(high[i]), len(cell)) for i in (0, 1)
    )
    needed = statistic.minimum_flips(len(members), alpha)
    return Family(
        changes=changes,
        flips_needed=needed,
        too_small=int((sizes < needed).sum()),
        absent=sorted(set(range(len(names or ()))) - set(members.tolist())),
        worst_old=changes[int(old.argmin())],
        worst_new=changes[int(new.argmin())],
        worst_change=worst,
        largest_drop=changes[int((new - old).argmin())],
        drop=drop,
    )


def _errors(cell: np.ndarray, same: np.ndarray, draws: int, seed: int) -> Errors:
    """From the cell of each image and whether both models predict alike."""
    counts = np.bincount(cell, minlength=4)
    rr, b, g, ww = counts.tolist()

    def consistency(cells: np.ndarray) -> np.ndarray:
        rr, b, g, ww = np.moveaxis(cells[..., 0, :] / len(cell), -1, 0)
        return statistic.error_consistency(rr + ww, rr + b, rr + g)[..., None]

    ends = statistic.stratified_bootstrap(consistency, counts[None], draws, seed)
    kappa = Score(float(consistency(counts[None])[0]), *(float(e[0]) for e in ends), len(cell))
    return Errors(
        kappa=kappa,
        jaccard=_ratio(ww, b + g + ww),
        new_given_old=_ratio(ww, g + ww),
        both=ww,
        same=int((same & (cell == 3)).sum()),
    )


def _kappa_gain(
    teacher: np.ndarray, student: np.ndarray, base: np.ndarray, draws: int, seed: int
) -> Score:
    """Error consistency with the teacher, student minus base, from who is right (n, )."""
    n = len(teacher)
    columns = np.stack([teacher, student, base, teacher == student, teacher == base], 1)

    def difference(sums: np.ndarray) -> np.ndarray:
        right, *others, first, second = np.moveaxis(sums / n, -1, 0)
        kappas = map(statistic.error_consistency, (first, second), (right, right), others)
        return np.subtract(*kappas)[..., None]

    value = difference(columns.sum(0).astype(float))
    low, high = statistic.paired_bootstrap(difference, columns, draws, seed)
    return Score(float(value[0]), float(low[0]), float(high[0]), n, 'higher')


def _calibration(
    old: Column, new: Column, cell: np.ndarray, draws: int, seed: int
) -> Calibration | None:
    """Calibration errors and their paired difference; None where probabilities are unknown."""
    known = [each.confidence for each in (old, new) if each.label_probability is not None]
    if len(known) < 2 or any(each is None or np.isnan(each).any() for each in known):
        return None
    gaps = [
        statistic.calibration_gaps(confidence, hits)
        for confidence, hits in zip(known, (cell < 2, cell % 2 == 0))
    ]
    n, bins = gaps[0].shape

    def both(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        first, second = sums[..., :bins], sums[..., bins:]
        return statistic.calibration_error(first, n), statistic.calibration_error(second, n)

    def difference(sums: np.ndarray) -> np.ndarray:
        first, second = both(sums)
        return (second - first)[..., None]

    columns = np.concatenate(gaps, 1)
    first, second = (float(each) for each in both(columns.sum(0)))
    low, high = statistic.paired_bootstrap(difference, columns, draws, seed)
    return Calibration(
        first, second, Score(second - first, float(low[0]), float(high[0]), n, 'lower')
    )


def _maps(agreement: np.ndarray | None, cell: np.ndarray) -> tuple[dict[str, Score] | None, float]:
    """The mean agreement of maps in each cell, and whether RW differs from RR."""
    if agreement is None or np.isnan(agreement).all():
        return None, math.nan
    parts = {
        name: agreement[(cell == i) & ~np.isnan(agreement)]
        for i, name in enumerate(statistic.CELLS)
    }
    means = {}
    for name, values in parts.items():
        score = mean_score(values, 'higher')
        few = score.n < ENOUGH  # an interval would leave the range of the score
        means[name] = score._replace(low=math.nan, high=math.nan) if few else score
    p = math.nan
    if len(parts['RW']) and len(parts['RR']):
        p = float(stats.mannwhitneyu(parts['RW'], parts['RR']).pvalue)
    return means, p


def _margin(wrong: Column, members: np.ndarray) -> float:
    """The median over some images of the highest probability minus the label's."""
    if wrong.confidence is None or wrong.label_probability is None or not members.any():
        return math.nan
    return float(np.nanmedian((wrong.confidence - wrong.label_probability)[members]))


def _notes(found: Audit) -> list[str]:
    """What limits an audit."""
    notes = []
    least = statistic.minimum_flips(1, found.alpha)
    if found.n < least:
        notes.append(
            f'{found.n} images are too few: the overall test needs {least} flips in one direction'
        )
    if len(found.classes.changes) == 1:
        name = found.classes.changes[0].name
        notes.append(
            f'All images are of one class ({name}), so the classes say no more than the total'
        )
    if found.classes.absent:
        notes.append(
            f'{len(found.classes.absent)} classes have no image and are not in the family of '
            f'{len(found.classes.changes)} tests'
        )
    if found.calibration is None:
        notes.append(
            'The records hold no probabilities of both models for every image, so calibration is not '
            'compared'
        )
    if found.old == 'teacher' and found.fidelity.kl is None:
        notes.append('The records hold no KL divergence, which needs the logits of both models')
    return notes
