"""The rules that turn findings into sentences; the guide "Audit a distillation" lists them.

Each rule yields sentences, or none where it has nothing to say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mmkdx.evaluation.audit import ENOUGH
from mmkdx.evaluation.audit_findings import Audit, Family, plain
from mmkdx.evaluation.verdict_parts import (
    Findings,
    Sentence,
    direction,
    number,
    p_text,
    points,
    share,
    signed,
    title,
)
from mmkdx.functional.audit import detectable_loss, minimum_flips, rate_interval, welch

#: How many changed classes a sentence names.
NAMED = 3
#: The least number of training runs in each arm for a statement about a method.
RUNS = 3
#: How sentences call a model.
WORDS = dict(teacher='its teacher', base='the base model')


def agreement(found: Findings) -> Iterator[Sentence]:
    """How often student and teacher predict alike, and whether the base model does so less often."""
    if found.fidelity is None:
        return
    score = found.fidelity.agreement
    text = (
        f'The student predicts the same class as its teacher on {share(score.value)} of the images '
        f'(n = {score.n}, 95 % interval {points(score.low)} to {points(score.high)})'
    )
    if found.gain is not None:
        more = found.gain.agreement
        base = share(score.value - more.value)
        between = f'{points(abs(more.value))} points'
        if sign := direction(more):
            word = 'less' if sign > 0 else 'more'
            text += f'. The base model does so on {base}, {between} {word} ({_interval(more)})'
        else:
            text += (
                f'. The base model does so on {base}. The difference is not distinguishable from zero '
                f'({_interval(more)})'
            )
    yield _sentence(agreement, f'{text}.', agreement=found.fidelity, gain=found.gain)


def accuracy(found: Findings) -> Iterator[Sentence]:
    """Whether the student is more or less accurate than its teacher."""
    if found.teacher is not None:
        yield _compared(accuracy, found.teacher, 'The student')
        yield from _margin(found.teacher)


def own_accuracy(found: Findings) -> Iterator[Sentence]:
    """The accuracy of a model that has no other beside it, and its lowest class."""
    if (alone := found.alone) is None:
        return
    score = alone.accuracy['student']
    text = (
        f'The model is right on {share(score.value)} of the images (n = {score.n}, 95 % interval '
        f'{points(score.low)} to {points(score.high)})'
    )
    family = alone.classes
    if len(family.changes) > 1:
        worst = family.worst_new
        low, high = rate_interval(round(worst.new * worst.n), worst.n)
        text += (
            f'. Its lowest is {title("class", worst)} with {share(worst.new)} (n = {worst.n}, '
            f'{points(low)} to {points(high)}). That is the lowest of {len(family.changes)}, and so '
            'partly chance'
        )
    yield _sentence(own_accuracy, f'{text}.', accuracy=score, worst=family.worst_new)


def evidence(found: Findings) -> Iterator[Sentence]:
    """Whether student and teacher look at the same places where they are right."""
    name = found.records.map_score.replace('_', ' ').capitalize()
    labelled = found.records.label is not None
    where = 'Where all three are right' if labelled else 'On average'
    own = found.records.models['student'].agreement
    if found.gain is not None and found.gain.maps is not None:
        more = found.gain.maps
        values = (
            f'({name} {number(found.gain.student_maps)} against {number(found.gain.base_maps)}, '
            f'n = {more.n}, difference {number(more.low)} to {number(more.high)})'
        )
        if sign := direction(more):
            word = 'nearer to' if sign > 0 else 'farther from'
            text = (
                f"{where}, the student's evidence is {word} the teacher's than the base model's "
                f'is {values}'
            )
        else:
            text = (
                f"{where}, these images do not show that the student's evidence is nearer to the "
                f"teacher's than the base model's is {values}"
            )
        if sign > 0:
            text += '. This does not show that the evidence is the right one'
        yield _sentence(evidence, f'{text}.', gain=found.gain)
    elif found.teacher is not None and found.teacher.maps is not None:
        score = found.teacher.maps['RR']
        if score.n < ENOUGH:
            text = (
                f'Both are right on {score.n} images with maps, too few to compare their evidence.'
            )
        else:
            text = (
                f'Where both are right, their maps agree with {name} {number(score.value)} (n = '
                f'{score.n}, {number(score.low)} to {number(score.high)}). This does not show that the '
                'evidence is the right one.'
            )
        yield _sentence(evidence, text, maps=score)
    elif not labelled and own is not None and (~np.isnan(own)).sum():
        known = own[~np.isnan(own)]
        text = f'Their maps agree with {name} {number(known.mean())} on average (n = {len(known)}).'
        yield _sentence(evidence, text, mean=float(known.mean()), n=len(known))


def classes(found: Findings) -> Iterator[Sentence]:
    """Which classes changed against the teacher, or how large a change could hide."""
    if found.teacher is not None and len(found.teacher.classes.changes) > 1:
        yield from _changed(classes, found.teacher, found.teacher.classes, 'classes', 'class')


def flips(found: Findings) -> Iterator[Sentence]:
    """How many images the student newly gets wrong and right."""
    if found.teacher is None:
        return
    old = found.teacher
    b, g = old.cells['RW'], old.cells['WR']
    if b:
        ends = f'{share(old.negative.value)}, {points(old.negative.low)} to {points(old.negative.high)}'
    else:
        ends = f'at most {share(rate_interval(0, old.n, "exact")[1])}'
    text = (
        f'The student is wrong on {_images(b)} that its teacher gets right ({ends}), and right on '
        f'{_images(g)} that its teacher gets wrong.'
    )
    yield _sentence(flips, text, negative=old.negative, positive=old.positive)


def groups(found: Findings) -> Iterator[Sentence]:
    """The worst group and the largest drop of a group, which are different numbers."""
    if found.teacher is None or found.teacher.groups is None:
        return
    family = found.teacher.groups
    if len(family.changes) < 2:
        return
    before, after, drop = family.worst_old, family.worst_new, family.largest_drop
    text = (
        f'The accuracy of the worst group is {share(after.new)} (group {after.name}), and its '
        f"teacher's {share(before.old)} (group {before.name}; change {_interval(family.worst_change)})"
    )
    if drop.change < 0:
        text += f'. The largest drop is {points(-drop.change)} points in group {drop.name}'
    yield _sentence(groups, f'{text}.', worst=family.worst_change, drop=family.drop)
    yield from _changed(groups, found.teacher, family, 'groups', 'group')


def base(found: Findings) -> Iterator[Sentence]:
    """The student against the same network trained alone."""
    if found.base is None:
        return
    yield _compared(base, found.base, 'Compared with the base model, the student')
    family = found.base.classes
    if len(family.changes) > 1 and (changed := family.significant):
        won = sum(each.change > 0 for each in changed)
        text = (
            f'Between these two, {won} of {len(family.changes)} classes gained and '
            f'{len(changed) - won} lost, at a family-wise level of {100 * found.alpha:g} %.'
        )
        yield _sentence(base, text, changed=changed)


def exploratory(found: Findings) -> Iterator[Sentence]:
    """Further differences whose intervals exclude 0; they are selected and so exploratory."""
    parts: list[str] = []
    numbers: dict[str, Any] = {}
    old, more = found.teacher, found.gain
    if old is not None and old.calibration is not None and direction(old.calibration.difference):
        both, difference = old.calibration, old.calibration.difference
        word = 'higher' if difference.value > 0 else 'lower'
        parts.append(
            f"the student's calibration error is {word} than its teacher's ({both.new:.1f} against "
            f'{both.old:.1f} %; difference {_plain_interval(difference)} points)'
        )
        numbers['calibration'] = both
    if more is not None and more.kappa is not None and direction(more.kappa):
        word = 'more' if more.kappa.value > 0 else 'less'
        parts.append(
            f"the student's errors coincide {word} with its teacher's than the base model's do (kappa "
            f'{number(old.errors.kappa.value)}; difference {_plain_interval(more.kappa, 2)})'
        )
        numbers['kappa'] = more.kappa
    if old is not None and old.maps is not None and old.cells['RW'] and old.maps['RR'].n >= ENOUGH:
        lost, kept = old.maps['RW'], old.maps['RR']
        if lost.n >= ENOUGH and old.maps_p <= found.alpha:
            word = 'less' if lost.value < kept.value else 'more'
            parts.append(
                f"where the student newly errs, its maps agree {word} with its teacher's than where "
                f'both are right ({number(lost.value)} against {number(kept.value)}; Mann-Whitney '
                f'{p_text(old.maps_p)})'
            )
            numbers['maps'] = dict(RW=lost, RR=kept, p=old.maps_p)
    if parts:
        text = (
            f'Exploratory, not corrected for multiple tests: {". Also exploratory: ".join(parts)}.'
        )
        yield _sentence(exploratory, text, **numbers)


def method(found: Findings) -> Iterator[Sentence]:
    """Whether training runs with and without a teacher differ; the runs are the sample."""
    if found.runs is None:
        return
    first, second = (100 * np.array(found.runs[arm]) for arm in ('student', 'base'))
    t, degrees, p = welch(first, second)
    gained = float(first.mean() - second.mean())
    test = f'Welch t = {number(t)}, {p_text(p)}'
    counts = f'{len(first)} students and {len(second)} base models'
    if min(len(first), len(second)) < RUNS:
        text = f'{counts} are too few training runs; a statement about the method needs {RUNS} of each.'
    elif p <= found.alpha:
        word = 'more' if gained > 0 else 'less'
        text = (
            f'Over {counts}, each from its own training run, the students are {abs(gained):.1f} '
            f'points {word} accurate on average ({test}). With these settings, distillation changes '
            'the accuracy.'
        )
    else:
        text = (
            f'Over {counts}, each from its own training run, the mean accuracies differ by '
            f'{signed(gained)} points ({test}). With so few runs this is not distinguishable from zero.'
        )
    yield _sentence(method, text, runs=found.runs, t=t, degrees=degrees, p=p)


def limits(found: Findings) -> Iterator[Sentence]:
    """What the numbers cannot say."""
    old = found.teacher or found.base or found.alone
    models = found.records.models
    n = len(found.records)
    if old is None:
        text = 'The images have no labels, so nothing is said of accuracy and errors.'
        yield _sentence(limits, text, n=n)
    elif found.alone is None and 20 * (least := minimum_flips(1, found.alpha)) > n:
        if n < least:
            verb = 'is' if n == 1 else 'are'
            text = f'{_images(n).capitalize()} {verb} too few: no difference of accuracy could be found.'
        else:
            text = (
                f'{_images(n).capitalize()} are few: a difference below {points(least / n)} points '
                'could not be found, even if all flips went one way.'
            )
        yield _sentence(limits, text, n=n, flips=least)
    if 'teacher' in models and 'base' not in models:
        text = (
            'Without a base model we do not know how similar to its teacher a student trained alone '
            'would be.'
        )
        yield _sentence(limits, text, models=len(models))
    if len(models) > 1 and found.runs is None:
        text = (
            'These are checkpoints of one training run each, so nothing follows about the training '
            'method.'
        )
        yield _sentence(limits, text, runs=1)


#: The rules in the order of the paragraph.
RULES: tuple[Callable[[Findings], Iterator[Sentence]], ...] = (
    *(agreement, own_accuracy, accuracy, evidence, classes, flips, groups, base, exploratory),
    *(method, limits),
)


def _sentence(rule: Callable, text: str, **numbers: Any) -> Sentence:
    return Sentence(text, rule.__name__, {key: plain(value) for key, value in numbers.items()})


def _compared(rule: Callable, found: Audit, subject: str) -> Sentence:
    """Whether the student's accuracy differs from that of another model."""
    old, new = (share(found.accuracy[name].value) for name in (found.old, found.new))
    test = f'{_interval(found.difference)}; exact McNemar {p_text(found.p)}'
    if found.p <= found.alpha:
        word = 'more' if found.difference.value > 0 else 'less'
        than = f' than {WORDS[found.old]}' if found.old == 'teacher' else ''
        text = (
            f'{subject} is {points(abs(found.difference.value))} points {word} accurate{than} '
            f'({new} against {old}; interval {test}).'
        )
    else:
        text = (
            f'{subject} is right on {new} of the images and {WORDS[found.old]} on {old}. The difference '
            f'is not distinguishable from zero ({test}).'
        )
    return _sentence(rule, text, difference=found.difference, p=found.p, alpha=found.alpha)


def _margin(found: Audit) -> Iterator[Sentence]:
    """Whether a loss of more than the margin is excluded."""
    if found.margin is None:
        return
    margin, lost = f'{found.margin:g}', points(-found.difference.low)
    if found.no_worse:
        text = (
            f'The student is at most {margin} points less accurate than its teacher, the margin that '
            f'was set beforehand (the interval allows for a loss of {lost}).'
        )
    else:
        text = (
            f'A loss of more than {margin} points, the margin that was set beforehand, is not excluded '
            f'(the interval allows for {lost}).'
        )
    yield _sentence(accuracy, text, difference=found.difference, margin=found.margin)


def _changed(
    rule: Callable, found: Audit, family: Family, plural: str, single: str
) -> Iterator[Sentence]:
    """The members of a family that changed, or how large a change could hide."""
    changed, count = family.significant, len(family.changes)
    level = f'{100 * found.alpha:g} %'
    if changed:
        named = [
            f'{title(single, each)} {"gained" if each.change > 0 else "lost"} '
            f'{points(abs(each.change))} points (n = {each.n}, {p_text(each.adjusted)} after Holm)'
            for each in changed[:NAMED]
        ]
        if len(changed) > NAMED:
            named.append(f'and {len(changed) - NAMED} more')
        count_text = f'{len(changed)} of {count} {plural} changed'
        text = f'{count_text}, at a family-wise level of {level}: '
        yield _sentence(rule, f'{text}{", ".join(named)}.', changed=changed, family=count)
        return
    middle = int(np.median([each.n for each in family.changes]))
    text = (
        f'No {single} changed significantly. With {count} {plural} that takes {family.flips_needed} '
        f'flips of one {single}, all in one direction'
    )
    if family.too_small:
        which = 'All' if family.too_small == count else str(family.too_small)
        text += f'. {which} of the {plural} have fewer images'
    lost = detectable_loss(middle, count, found.alpha)
    if not math.isnan(lost):
        text += (
            f'. In a {single} of {middle} images a loss of {points(lost)} points, with nothing won '
            'back, is found with a power of 80 %'
        )
    yield _sentence(
        rule, f'{text}.', family=count, flips=family.flips_needed, too_small=family.too_small
    )


def _interval(score: Any) -> str:
    """The interval of a difference of rates, in points."""
    return f'{points(score.low)} to {points(score.high)} points'


def _plain_interval(score: Any, digits: int = 1) -> str:
    return f'{score.low:.{digits}f} to {score.high:.{digits}f}'.replace('-', '−')


def _images(count: int) -> str:
    return f'{count or "no"} image{"s" * (count != 1)}'
