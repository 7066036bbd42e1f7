"""The floor of the scores of maps: the scores of noise."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, NamedTuple

from mmengine.dist import broadcast_object_list, is_main_process
from torch import Tensor

from mmkdx.evaluation.subjects import Subject
from mmkdx.explain import RandomMap
from mmkdx.metrics.base import Explained, ExplainedBatch, ScoreMetric
from mmkdx.metrics.rank_agreement import DISAGREEMENT, Tau, kendall_tau, turned
from mmkdx.metrics.scores import Floor, Score


class FloorMeter:
    """Measures noise in place of a model's maps.

    Args:
        metrics (Sequence[ScoreMetric]): Metrics of an evaluation, of which copies are made before these
            have measured. Those that judge no maps (``has_floor``) are left out.
    """

    def __init__(self, metrics: Sequence[ScoreMetric]) -> None:
        self.metrics = [each for each in metrics if each.has_floor]
        self._copies = [copy.deepcopy(each) for each in self.metrics]

    def process(self, batch: ExplainedBatch, model: Explained, subject: Subject) -> None:
        """Measures noise in place of the maps of a model of a batch, and keeps the values."""
        if not self.metrics:
            return
        noise = dict(student=noisy(batch, model, subject))
        taught = {name: each for name, each in batch.models.items() if name == 'teacher'}
        for metric in self._copies:
            # Others would measure the teacher once more
            models = noise | taught if metric.needs_teacher else noise
            metric.process(replace(batch, models=models))

    def evaluate(self) -> tuple[dict[str, Floor], dict[int, dict[str, float]]]:
        """Each score's floor, on every rank, and each image's values of noise, on the main rank.

        Call it after ``evaluate`` of the metrics. Only scores that judge a model's own map and say what
        is better have a floor.
        """
        floors: dict[str, Floor] = {}
        rows: dict[int, dict[str, float]] = {}
        for metric, noise in zip(self.metrics, self._copies):
            noise.evaluate()
            if is_main_process():
                found = metric.above_floor(noise.measured)
                floors.update({name: Floor(*each) for name, each in found.items()})
                for index, values in noise.rows.items():
                    named = {name: value for name, value in values.items() if name in found}
                    rows.setdefault(index, {}).update(named)
        shared = [floors]
        broadcast_object_list(shared)
        return shared[0], rows


def noisy(batch: ExplainedBatch, model: Explained, subject: Subject) -> Explained:
    """Replaces the explainer of a model with noise of the size of its maps."""
    noise = RandomMap(size=list(model.maps.shape[1:]))

    def explain(images: Tensor, targets: Tensor) -> Tensor:
        return noise(subject.model, subject.convert(images), targets)

    maps = explain(batch.inputs, model.targets)
    return replace(model, maps=maps, explain=explain, fixed=False)


def image_agreement(
    rows: Mapping[int, Mapping[str, Any]],
    scores: Mapping[str, Score],
    metrics: Sequence[ScoreMetric],
) -> dict[tuple[str, str], Tau]:
    """Kendall's tau over images of each pair of scores that judge the student's maps.

    Signs are turned where lower is better, so a positive tau says that the same images have good maps.
    Scores that are no mean over images are left out.

    Args:
        rows (Mapping[int, Mapping[str, Any]]): Each image's values.
        scores (Mapping[str, Score]): The scores by name.
        metrics (Sequence[ScoreMetric]): The metrics that yielded them.
    """
    # Agreement with a teacher does not judge a map by itself
    judging = [m for m in metrics if m.has_floor and not m.needs_teacher]
    names = [name for each in judging for name in each.judging() if name in scores]
    values = {
        name: [row.get(name, float('nan')) for row in rows.values()]
        for name in names
        if any(name in row for row in rows.values())
    }
    values = turned(values, {name: scores[name].better for name in values})
    return {pair: kendall_tau(*map(values.get, pair)) for pair in combinations(values, 2)}


def agreement_sentence(taus: Mapping[tuple[str, str], Tau], over: str = 'images') -> str:
    """The agreement of metrics in two sentences; empty without a finite tau."""
    known = {pair: tau.value for pair, tau in taus.items() if tau.value == tau.value}
    if not known:
        return ''
    (one, other), least = min(known.items(), key=lambda each: each[1])
    if len(known) == 1:
        return f"Kendall's tau of {one} and {other} over {over}: {least:.2f}. {DISAGREEMENT}"
    mean = sum(known.values()) / len(known)
    return (
        f"Kendall's tau of scores over {over}: {mean:.2f} on average of {len(known)} pairs, and least, "
        f'{least:.2f}, of {one} and {other}. {DISAGREEMENT}'
    )


def as_json(
    floors: Mapping[str, Floor], taus: Mapping[tuple[str, str], Tau]
) -> dict[str, dict[str, Any] | list[dict[str, Any]]]:
    """Floors and agreement as JSON takes them, which has no NaN."""
    return dict(
        floors={name: _finite(floor) for name, floor in floors.items()},
        agreement=[dict(scores=list(pair), **_finite(tau)) for pair, tau in taus.items()],
    )


def _finite(values: NamedTuple) -> dict[str, float | None]:
    return {key: value if value == value else None for key, value in values._asdict().items()}
