"""The findings of an audit: what ``mmkdx.evaluation.audit`` returns."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np

from mmkdx.metrics.scores import Score


@dataclass(frozen=True)
class Change:
    """How one class, or one group, changed.

    Args:
        key (int): The class or group.
        name (str): Its name.
        n (int): Its images.
        negative (int): Images that only the old model gets right.
        positive (int): Images that only the new model gets right.
        old (float): The old model's accuracy, in [0, 1].
        new (float): The new model's.
        p (float): Of McNemar's exact test.
        adjusted (float): p after Holm, for the whole family.
        significant (bool): Whether ``adjusted`` is at most the level.
    """

    key: int
    name: str
    n: int
    negative: int
    positive: int
    old: float
    new: float
    p: float
    adjusted: float
    significant: bool

    @property
    def change(self) -> float:
        """The new accuracy minus the old one."""
        return self.new - self.old


@dataclass(frozen=True)
class Family:
    """All classes, or all groups, that have an image; one test each, with Holm.

    Args:
        changes (list[Change]): One for each, by its key.
        flips_needed (int): So many flips, all in one direction, make a member significant.
        too_small (int): Members with fewer images than that.
        absent (list[int]): Named classes without an image, which are not in the family.
        worst_old (Change): The member with the old model's lowest accuracy.
        worst_new (Change): The member with the new model's lowest accuracy.
        worst_change (Score): The lowest new accuracy minus the lowest old one.
        largest_drop (Change): The member whose accuracy fell most.
        drop (Score): Its change; as it is selected, the interval is too narrow.
    """

    changes: list[Change]
    flips_needed: int
    too_small: int
    absent: list[int]
    worst_old: Change
    worst_new: Change
    worst_change: Score
    largest_drop: Change
    drop: Score

    @property
    def significant(self) -> list[Change]:
        """The members that changed at the family-wise level, by their adjusted p."""
        found = [each for each in self.changes if each.significant]
        return sorted(found, key=lambda each: (each.adjusted, each.change))


@dataclass(frozen=True)
class Fidelity:
    """How alike two models predict; labels are not needed.

    Args:
        agreement (Score): Share of images with the same prediction.
        kappa (float): Cohen's kappa of the predictions.
        kl (Score, optional): KL(old || new) in nats. Defaults to None (unknown).
    """

    agreement: Score
    kappa: float
    kl: Score | None = None


@dataclass(frozen=True)
class Errors:
    """How often two models err on the same images.

    Args:
        kappa (Score): The error consistency.
        jaccard (float): Images that both get wrong, of those that one gets wrong.
        new_given_old (float): Share of the old model's errors that the new one makes, too.
        both (int): Images that both get wrong.
        same (int): Those of them with the same wrong class.
    """

    kappa: Score
    jaccard: float
    new_given_old: float
    both: int
    same: int


@dataclass(frozen=True)
class Calibration:
    """Expected calibration errors in percent, and new minus old with its interval."""

    old: float
    new: float
    difference: Score


@dataclass
class Audit:
    """A comparison of an old and a new model; rates and accuracies are in [0, 1].

    Args:
        old (str): The old model: 'teacher' or 'base'.
        new (str): The new one.
        n (int): Number of images.
        alpha (float): The level of the overall test and, family-wise, of classes and groups.
        accuracy (dict[str, Score]): Of both models.
        difference (Score): New minus old accuracy.
        p (float): Of the overall exact McNemar test.
        cells (dict[str, int]): The images that both get right (RR), only the old (RW), only the new
            (WR), and both wrong (WW).
        negative (Score): Rate of negative flips.
        positive (Score): Rate of positive flips.
        relative_negative (float): Negative flips by those of independent errors.
        negative_impact (float): Share of the new model's errors that are negative flips.
        classes (Family): The classes.
        groups (Family, optional): The groups, if there are some.
        fidelity (Fidelity): How alike both predict.
        errors (Errors): How far both err on the same images.
        calibration (Calibration, optional): None where probabilities are unknown.
        maps (dict[str, Score], optional): Mean agreement of the maps in each cell; None where unknown.
        maps_p (float): Of a Mann-Whitney test of RW and RR, which is exploratory.
        flip_margin (dict[str, float]): Median of the probability of the wrong class minus the label's,
            in negative and positive flips; near 0, noise decides.
        margin (float, optional): The margin that was fixed beforehand, in points.
        no_worse (bool, optional): Whether the new model is at most ``margin`` points worse.
        notes (list[str]): What could not be computed, or limits the audit.
    """

    old: str
    new: str
    n: int
    alpha: float
    accuracy: dict[str, Score]
    difference: Score
    p: float
    cells: dict[str, int]
    negative: Score
    positive: Score
    relative_negative: float
    negative_impact: float
    classes: Family
    groups: Family | None
    fidelity: Fidelity
    errors: Errors
    calibration: Calibration | None
    maps: dict[str, Score] | None
    maps_p: float
    flip_margin: dict[str, float]
    margin: float | None = None
    no_worse: bool | None = None
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """All numbers as dicts and lists that JSON can hold; NaN becomes None."""
        return plain(self)


@dataclass(frozen=True)
class Gain:
    """How much more the student is like its teacher than the base model is: student minus base.

    Args:
        agreement (Score): In the share of equal predictions.
        kl (Score, optional): Base minus student in KL(teacher || model), in nats; above 0 the student
            is nearer.
        kappa (Score, optional): In the error consistency; None without labels.
        maps (Score, optional): In the maps' agreement with the teacher's, over images that all three
            get right, or without labels over all images. None where maps are unknown or fewer than
            ``ENOUGH`` images count.
        student_maps (float): The student's mean over these images.
        base_maps (float): The base model's.
        copied (dict[str, tuple[int, int]]): Of the images that a model and the teacher both get wrong,
            how many have the same wrong class, and how many there are.
    """

    agreement: Score
    kl: Score | None = None
    kappa: Score | None = None
    maps: Score | None = None
    student_maps: float = math.nan
    base_maps: float = math.nan
    copied: dict[str, tuple[int, int]] = field(default_factory=dict)


def plain(value: Any) -> Any:
    """The parts of an audit that JSON can hold."""
    if isinstance(value, Score):
        return {key: plain(each) for key, each in value._asdict().items() if each is not None}
    if is_dataclass(value):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(each) for each in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
