"""Explaining models on a sample of a data set, and measuring the explanations."""

from __future__ import annotations

import logging
import sys
import time
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
from mmkdx.evaluation.facts import FACTS, Facts
from mmkdx.evaluation.gallery import ShownImage, gallery_item
from mmkdx.evaluation.pair_evaluation import PairEvaluation, settings_of
from mmkdx.evaluation.subjects import (
    TARGETS,
    Subject,
    build_explainers,
    choose_targets,
    find_subjects,
)
from mmkdx.explain import Explainer
from mmkdx.metrics.base import Explained, ExplainedBatch, ScoreMetric, labels_of
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
    """What an evaluation of explanations found; ``str`` of it is a table.

    Args:
        scores (dict[str, Score]): The scores, by name, on every rank.
        count (int): Number of explained images.
        seconds (float): How long it took, on this rank.
        rows (dict): For each image its values, by the names of scores; on the main rank, as all below.
        gallery (list[GalleryItem]): The pictures.
        sections (list[PictureSection]): Further pictures.
        facts (dict[str, Any]): What was explained, measured and compared, and how.
        student (str): What tables and pictures call the student.
        classes (tuple[str, ...], optional): The names of the classes.
        sample (str): Which images were explained.
    """

    scores: dict[str, Score]
    count: int
    seconds: float
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    gallery: list[GalleryItem] = field(default_factory=list)
    sections: list[PictureSection] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    student: str = 'student'
    classes: tuple[str, ...] | None = None
    sample: str = ''

    def __str__(self) -> str:
        return score_table(self.scores, self.student)


class ExplanationEvaluator:
    """Explains a sample of a data set by a student, its teacher and a base model, and measures it.

    It takes no config and no Runner: ``begin``, then ``process`` for each batch, then ``finish``. What a
    fixed teacher yields is computed once, also over several evaluations of one data set.

    Args:
        explainer, metrics, num_samples, show_samples, target, teacher, base, unicam, context_size, seed:
            As those of ``ExplainHook``; a metric may be its type alone, and a model a module.
        owner (str): Whose arguments these are, for messages. Defaults to 'ExplanationEvaluator'.

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
            ValueError: If the models do not allow what is asked for.
            FileNotFoundError: If a checkpoint file does not exist.
        """
        if self._loader is None or loader.dataset is not self._loader.dataset:
            self._images = images(loader.dataset)
            self._kept, self._kept_bytes = {}, 0
            for metric in self.metrics:
                metric.forget()
        self._loader = loader
        known = list(self._images)
        order = np.random.RandomState(self.seed).permutation(len(known))[: self.num_samples]
        self._sample = {known[i] for i in order}
        self._shown = {known[i] for i in order[: self.show_samples]}
        self._pictures: list[ShownImage] = []
        self._seconds = 0.0
        if self._model is not unwrap(model):
            self._find(unwrap(model))

    def process(self, data: Any, index: Sequence[int] | None = None) -> None:
        """Explains and measures those images of a batch that are in the sample.

        Args:
            data (Any): What the data loader yields; see ``read_batch``.
            index (Sequence[int], optional): Which image of the data set each is. Defaults to None: what
                the data samples say.
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
        start = time.perf_counter()
        own = []
        if self.pairs is not None:
            own = self.pairs.run(self._loader, self._model, self.place(), self.show_samples)
        return self._gather(own, start)

    def try_out(self, model: nn.Module, loader: DataLoader) -> Evaluation:
        """One image through everything that an evaluation does, so that mistakes show early."""
        self.begin(model, loader)
        whole, first = self._sample, min(self._sample)
        self._sample = self._shown = {first}
        start = time.perf_counter()
        plain = loader.collate_fn([loader.dataset[self._images[first]]])
        self.process(plain, None if isinstance(plain, dict) else [first])
        self._sample, own = whole, []
        if self.pairs is not None:
            own = self.pairs.run(loader, self._model, self.place(), 1, trial=True)
        with _quiet():  # what is said of one image is true of no evaluation
            return self._gather(own, start)

    def shown_items(self, count: int) -> Iterator[tuple[str, Any]]:
        """Names and items of the data set for the first images that are drawn."""
        for number in sorted(self._shown)[:count]:
            yield f'image {number}', self._loader.dataset[self._images[number]]

    def place(self) -> dict[int, int]:
        """For each image of the sample, in order, the index in the data set that shows it."""
        return {number: self._images[number] for number in sorted(self._sample)}

    def _find(self, model: nn.Module) -> None:
        """Finds the models, and whether metrics and target fit them."""
        self.subjects = find_subjects(model, self.explainers, self.owner, self.teacher, self.base)
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

    @property
    def student_name(self) -> str:
        """What tables call the student: a plain model's own name, where it stands alone."""
        if len(self.subjects) > 1 or isinstance(self._model, Distiller):
            return 'student'
        return type(getattr(self._model, 'backbone', self._model)).__name__

    def _explain(self, batch: ImageBatch) -> None:
        models = self._models(batch)
        explained = ExplainedBatch(
            batch.inputs,
            batch.index,
            models,
            batch.samples,
            batch.format.mean,
            batch.format.std,
        )
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
        kept = {
            name: [self._kept[name][i] for i in index]
            for name in self._kept
            if all(i in self._kept[name] for i in index)
        }
        logits = {
            name: torch.stack([each[0] for each in kept[name]]).to(inputs.device)
            if name in kept
            else subject.predict(inputs)
            for name, subject in self.subjects.items()
        }
        classes = {name: values.shape[1] for name, values in logits.items()}
        if len(set(classes.values())) > 1:
            raise ValueError(
                f'{self.owner}: the models have different numbers of classes '
                f'({", ".join(f"{name} {count}" for name, count in classes.items())}), so they cannot '
                'be explained for the same class'
            )
        targets = choose_targets(self.policy, logits, _one_label_each(batch))
        models = {}
        for name, subject in self.subjects.items():
            # What depends on the student's prediction is new at every evaluation.
            fixed = subject.fixed and self.policy != 'student'
            if name in kept and len(kept[name][0]) > 1:
                maps = torch.stack([each[1] for each in kept[name]]).to(inputs.device)
            else:
                maps = subject.explain(inputs, targets[name])
            models[name] = subject.explained(maps, logits[name], targets[name], fixed)
            if subject.fixed and name not in kept:
                self._keep(name, index, models[name])
        return models

    def _keep(self, name: str, index: list[int], model: Explained) -> None:
        rows = [model.logits.cpu(), *([model.maps.cpu()] if model.fixed else [])]
        size = sum(row.nbytes for row in rows)
        if self._kept_bytes + size <= KEPT_BYTES:
            self._kept_bytes += size
            self._kept.setdefault(name, {}).update(
                {i: tuple(row[n] for row in rows) for n, i in enumerate(index)}
            )

    def _gather(self, own: list[PictureSection], start: float) -> Evaluation:
        """Turns what was measured into scores and pictures."""
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
        result = Evaluation(scores, len(self._sample), 0.0, student=self.student_name)
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
        known = {
            *result.scores,
            *(f'{model}{fact}' for model in ('', 'teacher/', 'base/') for fact in FACTS),
        }
        for index, shown in sorted(pictures.items()):
            row = {name: value for name, value in result.rows[index].items() if name in known}
            own_targets = self.policy == 'own'
            result.gallery.append(
                gallery_item(shown, row, result.classes, own_targets, result.student)
            )
        offered = [each for metric in self.metrics for each in metric.report_sections()]
        drawn = (draw(each, result.classes) for each in (*own, *offered))
        result.sections = [section for section in drawn if section is not None]
        result.facts = dict(
            target=self.policy,
            explainers={
                name: type(each.explainer).__name__ for name, each in self.subjects.items()
            },
            metrics=[settings_of(each) for each in (*self.metrics[1:], *self.pair_metrics)],
            **({} if self.pairs is None else self.pairs.facts()),
        )


def _one_label_each(batch: ImageBatch) -> Tensor | None:
    """The labels of a batch, of shape (N, ); None where an image has none, or several."""
    labels = [labels_of(sample) for sample in batch.samples]
    if any(len(each) != 1 for each in labels):
        return None
    return torch.tensor(labels, device=batch.inputs.device)[:, 0]


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
    """A context without warnings in the log."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
