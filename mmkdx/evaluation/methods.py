"""Compares training methods, each with one run or several seeds.

The rules are those of the guide "Compare methods over seeds". The runs of a method are the sample: the
interval of a mean over seeds says how training varies. One run says nothing about its method.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from mmkdx.evaluation.audit import rate
from mmkdx.evaluation.verdict_parts import Sentence, number, p_text, points, share
from mmkdx.evaluation.verdict_rules import NAMED, RUNS
from mmkdx.functional.audit import holm, welch
from mmkdx.metrics.scores import Score, mean_score


class Measure(NamedTuple):
    """What is compared.

    Args:
        name (str): How a sentence calls it, after "the highest".
        axis (str): How a chart calls it.
        head (str): How a table calls it.
        percent (bool): Whether it is the share of images for which a value is 1, shown in percent; else
            it is a mean in [-1, 1].
    """

    name: str
    axis: str
    head: str
    percent: bool = True

    def text(self, value: float) -> str:
        """A value in a sentence."""
        return share(value) if self.percent else number(value)

    def bare(self, value: float) -> str:
        """A value without its unit."""
        return points(value) if self.percent else number(value)

    def cell(self, score: Score) -> str:
        """A value with its interval, in a table."""
        if math.isnan(score.value):
            return '-'
        ends = f' ({self.bare(score.low)} to {self.bare(score.high)})'
        return self.bare(score.value) + ('' if math.isnan(score.low) else ends)

    def difference(self, value: float) -> str:
        """The size of a difference in a sentence."""
        return f'{points(abs(value))} points' if self.percent else number(abs(value))


#: What is compared, by the names of values in ``Method.runs``.
MEASURES = dict(
    accuracy=Measure('accuracy', 'Accuracy, %', 'accuracy, %'),
    predictions=Measure(
        "agreement with the teacher's predictions",
        'Same prediction as the teacher, %',
        'same as teacher, %',
    ),
    maps=Measure(
        "agreement with the teacher's maps (Pearson)",
        'Agreement of maps with the teacher, Pearson',
        'maps, Pearson',
        percent=False,
    ),
)


@dataclass
class Method:
    """The runs of one method, by what they did on the same images.

    Args:
        runs (Sequence[Mapping[str, np.ndarray]]): For each run the values of images, by the names of
            ``MEASURES``: 0 or 1 for shares, and numbers for means, NaN where there is none.
    """

    runs: Sequence[Mapping[str, np.ndarray]]

    @property
    def seeds(self) -> int:
        """The number of runs."""
        return len(self.runs)

    def means(self, key: str) -> list[float]:
        """The mean over images of each run."""
        return [mean_score(run[key]).value for run in self.runs]

    def score(self, key: str) -> Score:
        """The mean with its 95 % interval, within the range of possible values.

        Over several seeds the runs are the sample (Student's t distribution), and ``n`` is their number.
        With one run the images are: Wilson's interval for shares, Student's t for means.
        """
        if self.seeds > 1:
            found = mean_score(self.means(key), 'higher')
        elif MEASURES[key].percent:
            (run,) = self.runs
            found = rate(int(run[key].sum()), len(run[key]), 'higher')
        else:
            found = mean_score(self.runs[0][key], 'higher')
        least = 0.0 if MEASURES[key].percent else -1.0
        # max and min keep NaN where it stands first
        return found._replace(low=max(found.low, least), high=min(found.high, 1.0))

    def sample(self, key: str) -> str:
        """What the interval is over, in words."""
        return f'{self.seeds} seeds' if self.seeds > 1 else f'n = {self.score(key).n} images'


def pairwise(methods: Mapping[str, Method], key: str) -> dict[tuple[str, str], float]:
    """Welch's tests of all pairs of methods with at least 3 runs, with Holm's correction over them.

    All pairs are in the family, though sentences name those with the best method alone: the best is
    chosen by the same numbers. Pairs whose runs are all alike have no test, and count with p = 1.

    Returns:
        dict[tuple[str, str], float]: For each pair, in both orders, the adjusted p.
    """
    able = {name: each.means(key) for name, each in methods.items() if each.seeds >= RUNS}
    able = {name: means for name, means in able.items() if not np.isnan(means).any()}
    pairs = list(combinations(able, 2))
    raw = [_welch(able[a], able[b]) for a, b in pairs]
    adjusted = holm(raw).tolist() if raw else []
    found = dict(zip(pairs, adjusted))
    return found | {(b, a): p for (a, b), p in found.items()}


def _welch(first: Sequence[float], second: Sequence[float]) -> float:
    if not (np.ptp(first) or np.ptp(second)):
        return 1.0
    with warnings.catch_warnings():  # SciPy warns where the runs of one method are all alike
        warnings.simplefilter('ignore', RuntimeWarning)
        return welch(first, second)[2]


def conclusions(
    methods: Mapping[str, Method], images: int, mapped: int, alpha: float = 0.05
) -> list[Sentence]:
    """The first paragraph of a page, limited to claims that the numbers support, and its details.

    Details are the sentences whose rule ends with 'differences'.

    Args:
        methods (Mapping[str, Method]): The methods by name.
        images (int): Number of test images.
        mapped (int): Number of images whose maps were compared; 0 for none.
        alpha (float): The family-wise level of the tests of each measure. Defaults to 0.05.
    """
    total = sum(each.seeds for each in methods.values())
    verb = 'was' if total == 1 else 'were'
    counts = sorted({each.seeds for each in methods.values()})
    each = f'{counts[0]} to {counts[-1]} runs' if len(counts) > 1 else _count(counts[0], 'run')
    text = (
        f'{_count(total, "run")} of {_count(len(methods), "method")} ({each} each) {verb} compared on '
        f'{images} test images{f", and their maps on {mapped} of these" if mapped else ""}.'
    )
    found = [Sentence(text, 'runs', dict(runs=total, images=images, mapped=mapped))]
    for key in ('accuracy', 'maps' if mapped else 'predictions'):
        found += _highest(methods, key, alpha)
    single = [name for name, each in methods.items() if each.seeds == 1]
    if single:
        each, plural = ('', '') if len(single) == 1 else (' each', 's')
        text = (
            f'There is one run{each} of {_few(single)}, from which nothing follows about the training '
            f'method{plural}.'
        )
        found.append(Sentence(text, 'one_run', dict(methods=single)))
    return found


def _highest(methods: Mapping[str, Method], key: str, alpha: float) -> list[Sentence]:
    """The method with the highest mean, and the methods that the runs distinguish from it."""
    measure, scores = MEASURES[key], {name: each.score(key) for name, each in methods.items()}
    scores = {name: score for name, score in scores.items() if not math.isnan(score.value)}
    several = {name: score for name, score in scores.items() if score.n == methods[name].seeds > 1}
    known = several if len(several) > 1 else scores
    if not known:
        return []
    best = max(known, key=lambda name: known[name].value)
    top = known[best]
    if len(known) == 1:
        text = f'The {measure.name} of {best} is'
    elif several is known:
        text = f'Of {len(known)} methods with several seeds, {best} has the highest mean {measure.name}:'
    else:
        kind = 'methods' if any(methods[name].seeds > 1 for name in known) else 'runs'
        text = f'Of {len(known)} {kind}, {best} has the highest {measure.name}:'
    text += f' {measure.text(top.value)} ({_ends(measure, top, methods[best], key)})'
    numbers: dict[str, Any] = dict(best=best, scores=scores)
    sentences = []
    if several is known:
        others = [name for name in known if name != best]
        near = [name for name in others if known[name].high >= top.low]
        far = [name for name in others if name not in near]
        parts = []
        if near:
            parts.append(f'overlaps {_those(near)}')
        if far:
            parts.append(f'lies above {_those(far)}')
        text += f'; its interval over seeds {" and ".join(parts)}'
        numbers.update(overlap=near, above=far)
        sentences = _tests(methods, key, best, others, alpha)
    return [Sentence(f'{text}.', key, numbers), *sentences]


def _tests(
    methods: Mapping[str, Method], key: str, best: str, others: Sequence[str], alpha: float
) -> list[Sentence]:
    """The results of Welch's tests of the best method with the others."""
    measure, tests = MEASURES[key], pairwise(methods, key)
    tested = [name for name in others if (best, name) in tests]
    if not tested:
        text = f'There is no test, which needs {RUNS} runs of this method and of another.'
        return [Sentence(text, f'{key}_test', dict(runs=RUNS))]
    parts = []
    for phrase, names in (
        ('distinguish it from', [name for name in tested if tests[best, name] <= alpha]),
        ('do not distinguish it from', [name for name in tested if tests[best, name] > alpha]),
    ):
        if names:
            ends = f' ({p_text(tests[best, names[0]])})' if len(names) == 1 else ''
            parts.append(f'{phrase} {_few(names)}{ends}')
    pairs = _count(len(tests) // 2, 'pair')
    text = (
        f"Welch's tests over the seeds (family-wise level {100 * alpha:g} %, Holm over {pairs}) "
        f'{" and ".join(parts)}.'
    )
    mean = {name: methods[name].score(key).value for name in (best, *others)}
    differences = [
        f'{name} {measure.difference(mean[best] - mean[name])} '
        f'({p_text(tests[best, name]) if name in tested else "too few runs for a test"})'
        for name in others
    ]
    more = f'Mean {measure.name} of {best}, minus that of others: {", ".join(differences)}.'
    numbers = dict(p={name: tests[best, name] for name in tested}, alpha=alpha)
    return [
        Sentence(text, f'{key}_test', numbers),
        Sentence(more, f'{key}_differences', dict(means=mean)),
    ]


#: The text under all numbers.
LIMITS = (
    'An interval over seeds says how much training runs differ on the same test images. It does not '
    'contain the choice of these images.',
    'An interval of one run is over images. It does not say how much another seed would differ.',
    'Accuracy and agreement are a family of tests each. The highest mean is chosen by the same numbers, '
    'so the correction covers all pairs of methods.',
    'Agreement with the teacher does not show that the evidence is the right one.',
    'If checkpoints were chosen by their accuracy on the same images, all accuracies are too high.',
)


def _ends(measure: Measure, score: Score, method: Method, key: str) -> str:
    if math.isnan(score.low):
        return method.sample(key)
    ends = f'{measure.bare(score.low)} to {measure.bare(score.high)}'
    return f'{method.sample(key)}, 95 % interval {ends}'


def _those(names: Sequence[str]) -> str:
    return f'{"that" if len(names) == 1 else "those"} of {_few(names)}'


def _few(names: Sequence[str]) -> str:
    """Names, or their number where a list would be long."""
    return _names(names) if len(names) <= NAMED else f'{len(names)} methods'


def _names(names: Sequence[str]) -> str:
    return ' and '.join(filter(None, (', '.join(names[:-1]), names[-1])))


def _count(count: int, what: str) -> str:
    return f'{count} {what}{"s" * (count != 1)}'
