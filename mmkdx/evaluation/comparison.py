"""Comparing explainers of one model: the same images, the same classes, several metrics."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmkdx.arguments import integer, one_of, text
from mmkdx.datasets.wrappers import class_names, images
from mmkdx.evaluation.images import ImageBatch, one_label_each, read_batch
from mmkdx.evaluation.subjects import Subject, build_explainers, choose_targets, find_subjects
from mmkdx.explain import Explainer, RandomMap, build_explainer, explainer_names
from mmkdx.functional import degenerate_maps
from mmkdx.metrics.base import ExplanationMetric
from mmkdx.metrics.build import build_metric
from mmkdx.metrics.rank_agreement import (
    Rank,
    RankAgreement,
    bootstrap_ranks,
    mean_image_tau,
    rank_agreement,
    turned,
)
from mmkdx.metrics.scores import Floor, Score
from mmkdx.models.families import unwrap

OWNER = 'compare_explainers'
#: The default metrics; with masks also 'PointingGame'.
METRICS = ('SingleDeletion', 'DeletionInsertion', 'Infidelity')
#: What is explained.
TARGETS = dict(prediction='what the model predicts', label='the label')


@dataclass(eq=False)
class Entrant:
    """One explainer, or noise of the size of some explainers' maps, in a comparison.

    Args:
        name (str): Its name.
        explainer (Explainer): The explainer.
        metrics (list[ExplanationMetric]): The metrics, which measure it alone.
        size (tuple[int, int]): Height and width of its maps.
        scores (dict[str, Score]): Its scores.
        rows (dict[int, dict[str, float]]): Each image's values.
        floors (dict[str, Floor]): What noise of that size gets; none for noise.
        ranks (dict[str, Rank]): Its rank by each score that is a mean over images.
        mean_rank (Rank): The mean of these.
        empty (int): Number of images whose map says nothing.
    """

    name: str
    explainer: Explainer
    metrics: list[ExplanationMetric]
    size: tuple[int, int]
    scores: dict[str, Score] = field(default_factory=dict)
    rows: dict[int, dict[str, float]] = field(default_factory=dict)
    floors: dict[str, Floor] = field(default_factory=dict)
    ranks: dict[str, Rank] = field(default_factory=dict)
    mean_rank: Rank = Rank(math.nan, math.nan, math.nan)
    empty: int = 0


@dataclass
class Comparison:
    """The result of ``compare_explainers``.

    Args:
        model (str): The model's name.
        entrants (list[Entrant]): The explainers, the best mean rank first.
        noise (list[Entrant]): ``RandomMap`` at the size of some explainers' maps.
        left_out (dict[str, str]): The explainers that do not fit, with the reasons.
        better (dict[str, str]): The scores that judge maps, each 'higher' or 'lower'.
        agreement (RankAgreement, optional): How far scores agree on the ranks of explainers; None with
            fewer than three.
        image_taus (dict[tuple[str, str], Score]): For each pair of scores the mean over images of
            Kendall's tau over explainers; none with fewer than three.
        sample (str): Which images.
        target (str): What is explained, one of ``TARGETS``.
        classes (Sequence[str], optional): The names of the classes.
        pictures (list[tuple[int, np.ndarray, dict[str, Tensor], int]]): The shown images: number,
            picture, each explainer's map, explained class.
    """

    model: str
    entrants: list[Entrant]
    noise: list[Entrant]
    left_out: dict[str, str]
    better: dict[str, str]
    agreement: RankAgreement | None
    image_taus: dict[tuple[str, str], Score]
    sample: str
    target: str
    classes: Sequence[str] | None
    pictures: list[tuple[int, np.ndarray, dict[str, Tensor], int]]


def compare_explainers(
    model: nn.Module,
    loader: DataLoader,
    explainers: Sequence[str | dict] | None = None,
    metrics: Sequence[str | dict] | None = None,
    which: str = 'student',
    num_samples: int = 64,
    show_samples: int = 6,
    target: str = 'prediction',
    seed: int = 0,
) -> Comparison:
    """Explains a sample of images with several explainers, and measures and ranks them.

    All explain the same classes. ``RandomMap`` is measured at the size of each explainer's maps: it is
    the floor. The model comes out as it was.

    Args:
        model (nn.Module): A distiller or any classifier, see ``mmkdx.models.describe``.
        loader (DataLoader): Loads the images as ``ExplanationEvaluator`` takes them, by position.
        explainers (Sequence[str | dict], optional): Types or configs; a key 'name' tells two of one type
            apart. Those that do not fit the model are left out. Defaults to None: all that fit.
        metrics (Sequence[str | dict], optional): The metrics, as of ``ExplanationEvaluator``. Defaults
            to None: ``METRICS``, and 'PointingGame' where the images have masks.
        which (str): Which model of a distiller, 'student' or 'teacher'. Defaults to 'student'.
        num_samples (int): Number of images. Defaults to 64.
        show_samples (int): Number of images that are drawn. Defaults to 6.
        target (str): What is explained: the 'prediction' or the 'label'. Defaults to 'prediction'.
        seed (int): The random seed of the sample and of the bootstrap. Defaults to 0.

    Raises:
        ValueError: If an argument is out of range, a metric needs a second model, there is no teacher,
            or no explainer fits.
    """
    integer(f'{OWNER}.num_samples', num_samples, 1)
    integer(f'{OWNER}.show_samples', show_samples, 0)
    integer(f'{OWNER}.seed', seed, 0)
    one_of(f'{OWNER}.target', target, tuple(TARGETS))
    one_of(f'{OWNER}.which', which, ('student', 'teacher'))
    model = unwrap(model)
    candidates = _explainers(explainers)
    classes = class_names(loader.dataset)
    teacher = 0 if which == 'teacher' else None
    subjects = find_subjects(
        model, build_explainers('RandomMap', OWNER), OWNER, teacher, None, classes
    )
    if which not in subjects:
        raise ValueError(f"{OWNER}.which is 'teacher', and the model has none; use a Distiller")
    subject = subjects[which]
    known = images(loader.dataset)
    order = np.random.RandomState(seed).permutation(list(known)).tolist()[:num_samples]
    shown = set(order[:show_samples])
    batches = _batches(model, loader, {number: known[number] for number in sorted(order)})
    first = next(batches)
    built = _metrics(metrics, first)
    entrants, left_out = _entrants(
        candidates, built, subject, first, _targets(subject, first, target)[1]
    )
    noise = [
        Entrant(f'RandomMap {height}x{width}', RandomMap(), copy.deepcopy(built), (height, width))
        for height, width in dict.fromkeys(each.size for each in entrants)
    ]
    pictures = []
    for batch in (first, *batches):
        maps, targets = _measure(entrants, noise, subject, batch, target)
        for i, number in enumerate(batch.index):
            if number in shown:
                drawn = {name: values[i].cpu() for name, values in maps.items()}
                pictures.append((number, batch.picture(i), drawn, int(targets[i])))
    for entrant in (*entrants, *noise):
        for metric in entrant.metrics:
            entrant.scores.update(metric.evaluate())
            for number, row in metric.rows.items():
                entrant.rows.setdefault(number, {}).update(row)
    for entrant in entrants:
        own = next(each for each in noise if each.size == entrant.size)
        for metric, floor in zip(entrant.metrics, own.metrics):
            if metric.has_floor:
                found = metric.above_floor(floor.measured)
                entrant.floors.update({name: Floor(*each) for name, each in found.items()})
    judging = {name: kind for each in built for name, kind in _judging(each).items()}
    better = {name: kind for name, kind in judging.items() if name in entrants[0].scores}
    agreement, taus = _rank(entrants, better, seed)
    return Comparison(
        subject.facts.name,
        sorted(entrants, key=lambda each: (math.isnan(each.mean_rank.value), each.mean_rank.value)),
        noise,
        left_out,
        better,
        agreement,
        taus,
        f'{len(order)} of {len(known)} (seed {seed})',
        target,
        subject.classes or classes,
        pictures,
    )


def _rank(
    entrants: list[Entrant], better: dict[str, str], seed: int
) -> tuple[RankAgreement | None, dict[tuple[str, str], Score]]:
    """Ranks the entrants; returns the agreement of scores on ranks, overall and on single images."""
    values = {
        name: np.array(
            [[row.get(name, math.nan) for row in each.rows.values()] for each in entrants], float
        )
        for name in better
        # Others, such as the mean IoU, are no means over images and rank nothing
        if all(name in row for row in entrants[0].rows.values())
    }
    if not values:
        return None, {}
    values = turned(values, better)
    ranks, mean_ranks = bootstrap_ranks(values, seed)
    for i, entrant in enumerate(entrants):
        entrant.ranks = {name: each[i] for name, each in ranks.items()}
        entrant.mean_rank = mean_ranks[i]
    if len(entrants) < 3:
        return None, {}
    standing = {name: [each.value for each in found] for name, found in ranks.items()}
    taus = {
        pair: mean_image_tau(*(values[name].T for name in pair)) for pair in combinations(values, 2)
    }
    return rank_agreement(standing, dict.fromkeys(values, 'lower')), taus


def _explainers(specs: Sequence[str | dict] | None) -> dict[str, Explainer]:
    """The explainers by their names."""
    if specs is None:
        specs = [name for name in explainer_names() if name != 'RandomMap']
    elif not isinstance(specs, list | tuple) or not specs:
        raise ValueError(f'{OWNER}.explainers is {specs!r}; it must be a list of explainers')
    found: dict[str, Explainer] = {}
    for spec in specs:
        config = dict(spec) if isinstance(spec, dict) else dict(type=spec)
        name = text(f'{OWNER}.explainers: name', config.pop('name', config.get('type')))
        if name in found:
            raise ValueError(f"{OWNER}.explainers has {name} twice; give one of them a key 'name'")
        found[name] = build_explainer(config, f'{OWNER}.explainers')
    return found


def _metrics(specs: Sequence[str | dict] | None, batch: ImageBatch) -> list[ExplanationMetric]:
    """The metrics, by default those that fit the first batch."""
    if specs is None:
        masks = all('gt_seg_map' in sample for sample in batch.data_samples)
        specs = [*METRICS, *(['PointingGame'] if masks else [])]
    elif not isinstance(specs, list | tuple) or not specs:
        raise ValueError(f'{OWNER}.metrics is {specs!r}; it must be a list of metrics')
    built = [build_metric(spec, OWNER) for spec in specs]
    for metric in built:
        if not isinstance(metric, ExplanationMetric) or metric.needs_teacher:
            raise ValueError(
                f'{OWNER}.metrics: {type(metric).__name__} compares models; name metrics that measure '
                "one model's maps"
            )
    names = [name for metric in built for name in _judging(metric)]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(
            f"{OWNER}.metrics: two metrics yield the score {twice[0]!r}; give one a key 'name'"
        )
    return built


def _judging(metric: ExplanationMetric) -> dict[str, str]:
    """The scores of a metric that judge a map, and what is better."""
    directions = [kind for name, kind in metric.better.items() if name not in metric.no_floor]
    return dict(zip(metric.judging(), directions))


def _batches(model: nn.Module, loader: DataLoader, place: dict[int, int]) -> Iterator[ImageBatch]:
    """Batches of images by their numbers and indices in the data set."""
    numbers, size = list(place), loader.batch_size or 1
    for start in range(0, len(numbers), size):
        part = numbers[start : start + size]
        data = loader.collate_fn([loader.dataset[place[number]] for number in part])
        yield read_batch(data, model, OWNER, part)


def _targets(subject: Subject, batch: ImageBatch, target: str) -> tuple[Tensor, Tensor]:
    """The logits (N, K) and the explained classes (N, ) of a batch."""
    logits = subject.predict(batch.inputs)
    policy = 'student' if target == 'prediction' else 'label'
    labels = one_label_each(batch.data_samples)
    return logits, choose_targets(policy, dict(student=logits), labels)['student']


def _entrants(
    candidates: dict[str, Explainer],
    metrics: list[ExplanationMetric],
    subject: Subject,
    batch: ImageBatch,
    targets: Tensor,
) -> tuple[list[Entrant], dict[str, str]]:
    """The explainers that can explain the first image, and why others cannot."""
    entrants, left_out = [], {}
    for name, explainer in candidates.items():
        try:
            maps = replace(subject, explainer=explainer).explain(batch.inputs[:1], targets[:1])
        except (ValueError, RuntimeError, TypeError) as error:
            left_out[name] = f'{error}'.partition('\n')[0] or type(error).__name__
            continue
        if isinstance(maps, list):
            left_out[name] = 'it explains several layers; name one'
            continue
        entrants.append(Entrant(name, explainer, copy.deepcopy(metrics), tuple(maps.shape[1:])))
    if not entrants:
        reasons = '; '.join(f'{name}: {reason}' for name, reason in left_out.items())
        raise ValueError(f'{OWNER}: no explainer fits the model ({reasons})')
    return entrants, left_out


def _measure(
    entrants: list[Entrant], noise: list[Entrant], subject: Subject, batch: ImageBatch, target: str
) -> tuple[dict[str, Tensor], Tensor]:
    """Measures all on a batch; returns the explainers' maps and the explained classes."""
    logits, targets = _targets(subject, batch, target)
    predict = subject.predict
    # The size of maps can depend on that of the images
    sizes: dict[tuple[int, int], tuple[int, ...]] = {}
    found = {}
    for entrant in (*entrants, *noise):
        explainer = entrant.explainer
        if entrant in noise:
            explainer = RandomMap(size=sizes[entrant.size])
        used = replace(subject, explainer=explainer)
        maps = found[entrant.name] = used.explain(batch.inputs, targets)
        sizes.setdefault(entrant.size, tuple(maps.shape[1:]))
        entrant.empty += int(degenerate_maps(maps).sum())
        # By one function of all, the predictions that do not depend on maps are shared
        explained = used.explained(maps, logits, targets, fixed=False)
        explained = replace(explained, predict=predict)
        own = replace(batch, models=dict(student=explained))
        for metric in entrant.metrics:
            metric.process(own)
    return {each.name: found[each.name] for each in entrants}, targets
