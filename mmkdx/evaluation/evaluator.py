"""Explaining models on a sample of a data set, and measuring the explanations."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from mmengine.dist import collect_results, is_main_process
from mmengine.registry import DefaultScope
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmkdx.arguments import integer, one_of
from mmkdx.datasets.wrappers import class_names, images
from mmkdx.distillation.distiller import Distiller
from mmkdx.evaluation.batches import ImageBatch, read_batch
from mmkdx.evaluation.gallery import FACTS, Facts, ShownImage, gallery_item, one_label_each
from mmkdx.evaluation.pairs import PairEvaluation, settings_of
from mmkdx.evaluation.subjects import (
    TARGETS,
    Subject,
    build_explainers,
    choose_targets,
    find_subjects,
)
from mmkdx.explain import Explainer
from mmkdx.metrics.base import Explained, ExplainedBatch, ScoreMetric
from mmkdx.metrics.scores import Score
from mmkdx.models.families import unwrap
from mmkdx.registry import METRICS
from mmkdx.visualization import class_similarity  # noqa: F401 (registers how it is drawn)
from mmkdx.visualization.records import score_table
from mmkdx.visualization.report import GalleryItem
from mmkdx.visualization.sections import PictureSection, draw

#: Bytes of maps and logits of fixed models that are kept between evaluations.
KEPT_BYTES = 2**30


@dataclass
class Evaluation:
    """The result of an evaluation of explanations; ``str`` of it is a table.

    Args:
        scores (dict[str, Score]): The scores, by name, on every rank.
        count (int): Number of explained images.
        seconds (float): Duration on this rank.
        student (str): The student's name in tables and pictures.
        rows (dict): For each image its values, by the names of scores; on the main rank, as all below.
        gallery (list[GalleryItem]): The pictures.
        sections (list[PictureSection]): Further pictures.
        facts (dict[str, Any]): The settings: explained class, explainers, metrics, comparison.
        classes (tuple[str, ...], optional): The names of the classes.
        sample (str): Which images were explained.
    """

    scores: dict[str, Score]
    count: int
    seconds: float
    student: str
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    gallery: list[GalleryItem] = field(default_factory=list)
    sections: list[PictureSection] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    sample: str = ''

    def __str__(self) -> str:
        return score_table(self.scores, self.student)


class ExplanationEvaluator:
    """Explains a sample of a data set by a student, its teacher and a base model, and measures it.

    It takes no config and no Runner: ``begin``, then ``process`` for each batch, then ``finish``. The
    values of a fixed teacher are computed once, also over several evaluations of one data set.

    Args:
        explainer, metrics, num_samples, show_samples, target, teacher, base, unicam, context_size, seed:
            As those of ``ExplainHook``; a metric may be its type alone, and a model a module.
        owner (str): The owner of these arguments, for messages. Defaults to 'ExplanationEvaluator'.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        explainer: dict | str | Explainer = 'GradCAM',
        metrics: Sequence[dict | str] = (),
        num_samples: int | None = 512,
        show_samples: int = 16,
        target: str | None = None,
        teacher: Any = 0,
        base: Any = None,
        unicam: dict | bool = True,
        context_size: int = 64,
        seed: int = 0,
        owner: str = 'ExplanationEvaluator',
    ) -> None:
        self.owner = owner
        self.target = one_of(f'{owner}.target', target, (None, *TARGETS))
        if num_samples is not None:
            integer(f'{owner}.num_samples', num_samples, 1)
        self.num_samples = num_samples
        self.show_samples = integer(f'{owner}.show_samples', show_samples, 0)
        self.seed = integer(f'{owner}.seed', seed, 0)
        self.explainers = build_explainers(explainer, owner)
        given = [_build_metric(metric, owner) for metric in metrics]
        self.metrics = [Facts(), *(each for each in given if not each.needs_base)]
        self.pair_metrics = [each for each in given if each.needs_base]
        if not isinstance(unicam, (bool, dict)):
            raise ValueError(f'{owner}.unicam is {unicam!r}; it must be a dict, True or False')
        self.pairs = None
        if base is not None and unicam is not False:
            settings = {} if unicam is True else unicam
            self.pairs = PairEvaluation(settings, self.pair_metrics, context_size, seed, owner)
            self.pair_metrics = self.pairs.metrics
        elif self.pair_metrics:
            raise ValueError(
                f'{owner}.metrics: {type(self.pair_metrics[0]).__name__} compares a student with a base '
                f'model; set {owner}.base'
            )
        self.teacher = teacher
        self.base = base
        self.subjects: dict[str, Subject] = {}
        self._loader: DataLoader | None = None
        self._model: nn.Module | None = None
        self._kept: dict[str, dict[int, tuple[Tensor, ...]]] = {}
        self._kept_bytes = 0

    def begin(self, model: nn.Module, loader: DataLoader) -> None:
        """Draws the sample and finds the models.

        Args:
            model (nn.Module): A distiller, or any classifier, which is the student then. Wrappers
                come off, see ``describe``.
            loader (DataLoader): Loads the images; ``process`` takes what it yields.

        Raises:
            ValueError: If models, target, metrics and data set do not fit.
            FileNotFoundError: If a checkpoint file does not exist.
        """
        if self._loader is None or loader.dataset is not self._loader.dataset:
            self._images = images(loader.dataset)
            self._model = None  # the models' classes are compared with the data set's
            self._kept, self._kept_bytes = {}, 0
            for metric in self.metrics:
                metric.forget()
        self._loader = loader
        order = np.random.RandomState(self.seed).permutation(list(self._images)).tolist()
        self._sample = set(order[: self.num_samples])
        self._shown = set(order[: self.num_samples][: self.show_samples])
        self._pictures: list[ShownImage] = []
        self._seconds = 0.0
        if self._model is not unwrap(model):
            self._find(unwrap(model))

    def process(self, data: Any, index: Sequence[int] | None = None) -> None:
        """Explains and measures those images of a batch that are in the sample.

        Args:
            data (Any): A batch of the data loader; see ``read_batch``.
            index (Sequence[int], optional): See ``read_batch``. Defaults to None.
        """
        start = time.perf_counter()
        batch = read_batch(data, self._model, self.owner, index, self._sample)
        if batch is not None:
            self._explain(batch)
        self._seconds += time.perf_counter() - start

    def finish(self) -> Evaluation:
        """Gathers what all ranks measured.

        Raises:
            ValueError: If two metrics yield a score of one name.
        """
        return self._finish(self.show_samples)

    def try_out(self, model: nn.Module, loader: DataLoader) -> Evaluation:
        """Takes one image through a whole evaluation, so that mistakes show early."""
        self.begin(model, loader)
        whole, first = self._sample, min(self._sample)
        self._sample = self._shown = {first}
        data = loader.collate_fn([loader.dataset[self._images[first]]])
        self.process(data, None if isinstance(data, dict) else [first])
        self._sample = whole
        with _quiet():  # what is said of one image is true of no evaluation
            return self._finish(1, trial=True)

    def shown_items(self, count: int) -> Iterator[tuple[str, Any]]:
        """Names and items of the data set for the first images that are drawn."""
        for number in sorted(self._shown)[:count]:
            yield f'image {number}', self._loader.dataset[self._images[number]]

    def place(self) -> dict[int, int]:
        """For each image of the sample, in order, the index in the data set that shows it."""
        return {number: self._images[number] for number in sorted(self._sample)}

    def _find(self, model: nn.Module) -> None:
        """Finds the models, and whether metrics and target fit them."""
        classes = class_names(self._loader.dataset)
        self.subjects = find_subjects(
            model, self.explainers, self.owner, self.teacher, self.base, classes
        )
        self._model = model
        if self.pairs is not None:
            self.pairs.begin(self.subjects)
        has_teacher = 'teacher' in self.subjects
        self.policy = self.target or ('teacher' if has_teacher else 'student')
        advice = f'use a Distiller with a teacher, or set {self.owner}.teacher'
        if self.policy == 'teacher' and not has_teacher:
            raise ValueError(f"{self.owner}.target is 'teacher' and there is none: {advice}")
        for metric in self.metrics:
            if metric.needs_teacher and not has_teacher:
                raise ValueError(
                    f'{self.owner}.metrics: {type(metric).__name__} compares a student with its '
                    f'teacher, and there is none: {advice}'
                )

    def _explain(self, batch: ImageBatch) -> None:
        models = self._models(batch)
        mean, std = batch.format.mean, batch.format.std
        explained = ExplainedBatch(batch.inputs, batch.index, models, batch.samples, mean, std)
        for metric in self.metrics:
            metric.process(explained)
        self._pictures += [
            ShownImage(number, batch.picture(i), {n: m.maps[i].cpu() for n, m in models.items()})
            for i, number in enumerate(batch.index)
            if number in self._shown
        ]

    def _models(self, batch: ImageBatch) -> dict[str, Explained]:
        """Explains all models for the same classes; of fixed ones once in a run."""
        inputs, index = batch.inputs, batch.index
        # For each model the logits, and its maps where these are fixed, too
        kept = {
            name: [torch.stack(column).to(inputs.device) for column in zip(*map(rows.get, index))]
            for name, rows in self._kept.items()
            if all(i in rows for i in index)
        }
        logits = {
            name: kept[name][0] if name in kept else subject.predict(inputs)
            for name, subject in self.subjects.items()
        }
        classes = {name: values.shape[1] for name, values in logits.items()}
        if len(set(classes.values())) > 1:
            raise ValueError(
                f'{self.owner}: the models have different numbers of classes '
                f'({", ".join(f"{name} {count}" for name, count in classes.items())}), so they cannot '
                'be explained for the same class'
            )
        labels = one_label_each(batch.samples)
        labels = None if labels is None else torch.tensor(labels, device=inputs.device)
        targets = choose_targets(self.policy, logits, labels)
        models = {}
        for name, subject in self.subjects.items():
            # What depends on the student's prediction is new at every evaluation.
            fixed = subject.fixed and self.policy != 'student'
            known = kept.get(name, ())
            maps = known[1] if len(known) > 1 else subject.explain(inputs, targets[name])
            models[name] = subject.explained(maps, logits[name], targets[name], fixed)
            if subject.fixed and not known:
                self._keep(name, index, models[name])
        return models

    def _keep(self, name: str, index: list[int], model: Explained) -> None:
        values = [model.logits.cpu(), *([model.maps.cpu()] if model.fixed else [])]
        size = sum(each.nbytes for each in values)
        if self._kept_bytes + size <= KEPT_BYTES:
            self._kept_bytes += size
            self._kept.setdefault(name, {}).update(zip(index, zip(*values)))

    def _finish(self, show: int, trial: bool = False) -> Evaluation:
        """Measures the pairs, and turns all values into scores and pictures."""
        start = time.perf_counter()
        own = []
        if self.pairs is not None:
            own = self.pairs.run(self._loader, self._model, self.place(), show, trial)
        scores: dict[str, Score] = {}
        for metric in (*self.metrics, *self.pair_metrics):
            for name, score in metric.evaluate().items():
                if name in scores:
                    raise ValueError(
                        f'{self.owner}.metrics: two metrics yield the score {name!r}; remove one, or '
                        "give it a key 'name', which stands in front of its scores"
                    )
                scores[name] = score
        pictures = collect_results(self._pictures, sys.maxsize, 'cpu')
        student = 'student'
        if len(self.subjects) == 1 and not isinstance(self._model, Distiller):
            student = type(getattr(self._model, 'backbone', self._model)).__name__
        result = Evaluation(scores, len(self._sample), 0.0, student)
        if is_main_process():
            self._complete(result, {each.index: each for each in pictures}, own)
        result.seconds = self._seconds + time.perf_counter() - start
        return result

    def _complete(
        self, result: Evaluation, pictures: dict[int, ShownImage], own: list[PictureSection]
    ) -> None:
        """Adds what the main rank writes."""
        dataset = self._loader.dataset
        result.classes = class_names(dataset) or self.subjects['student'].facts.classes
        result.sample = f'{len(self._sample)} of {len(self._images)} (seed {self.seed})'
        for metric in self.metrics:
            for index, values in metric.rows.items():
                result.rows.setdefault(index, {}).update(values)
        for index, shown in sorted(pictures.items()):
            row = {
                name: value
                for name, value in result.rows[index].items()
                if name in result.scores or name.rpartition('/')[2] in FACTS
            }
            result.gallery.append(
                gallery_item(shown, row, result.classes, self.policy == 'own', result.student)
            )
        offered = [each for metric in self.metrics for each in metric.report_sections()]
        drawn = (draw(each, result.classes) for each in (*own, *offered))
        result.sections = [section for section in drawn if section is not None]
        explainers = {name: type(each.explainer).__name__ for name, each in self.subjects.items()}
        result.facts = dict(
            target=self.policy,
            explainers=explainers,
            metrics=[settings_of(each) for each in (*self.metrics[1:], *self.pair_metrics)],
            **({} if self.pairs is None else self.pairs.facts()),
        )


def _build_metric(spec: dict | str, owner: str) -> ScoreMetric:
    """A metric with its name."""
    config = dict(type=spec) if isinstance(spec, str) else dict(spec)
    name = config.pop('name', '')
    with DefaultScope.overwrite_default_scope('mmkdx'):
        metric = METRICS.build(config)
    if not isinstance(metric, ScoreMetric):
        raise ValueError(
            f'{owner}.metrics: {type(metric).__name__} is no metric of explanations; it belongs into '
            'val_evaluator'
        )
    metric.name = name
    return metric


@contextmanager
def _quiet() -> Iterator[None]:
    """A context without warnings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(before)
