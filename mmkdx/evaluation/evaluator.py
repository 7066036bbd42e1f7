"""Explaining models on a sample of a data set, and measuring the explanations."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.dist import broadcast_object_list, collect_results, is_main_process
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmkdx.arguments import flag, integer, one_of
from mmkdx.datasets.wrappers import class_names, images
from mmkdx.distillation.distiller import Distiller
from mmkdx.evaluation.floor import (
    FloorMeter,
    image_agreement,
)
from mmkdx.evaluation.images import Facts, ImageBatch, gallery_item, one_label_each, read_batch
from mmkdx.evaluation.pairs import PairEvaluation, settings_of
from mmkdx.evaluation.result import Evaluation
from mmkdx.evaluation.subjects import TARGETS, build_explainers, choose_targets, find_subjects
from mmkdx.evaluation.telling import telling_images
from mmkdx.explain import Explainer
from mmkdx.metrics.about import About
from mmkdx.metrics.base import Explained
from mmkdx.metrics.build import build_metric
from mmkdx.metrics.scores import Score
from mmkdx.models.families import unwrap
from mmkdx.visualization import class_similarity  # noqa: F401 (registers how it is drawn)
from mmkdx.visualization.sections import PictureSection, draw


class ExplanationEvaluator:
    """Explains a sample of images with student, teacher and base model, and measures the maps.

    It takes no config and no Runner: ``begin``, then ``process`` for each batch, then ``finish``. All
    models are explained for the same class. The values of a frozen teacher are computed once, also over
    several evaluations of one data set.

    Args:
        explainer (dict | str | Explainer): The explainer, or a dict of one for each model ('student',
            'teacher', 'base'). Defaults to 'GradCAM'.
        metrics (Sequence[dict | str]): The metrics of explanations. A key 'name' stands in front of a
            metric's scores, so that there may be two of one kind. Defaults to ().
        num_samples (int, optional): Number of explained images. Defaults to 512. None: all.
        show_samples (int): Number of images that are drawn. Defaults to 16.
        target (str, optional): The explained class: what the 'teacher' or the 'student' predicts, the
            'label', or for each model its 'own' prediction. Defaults to None: 'teacher', or 'student'
            where there is no teacher.
        teacher (int | dict | str | nn.Module | None): Which of the distiller's teachers (members of an
            ensemble count each); or, for a model without a distiller, a teacher in any form that
            ``Distiller`` takes; or None for none. Defaults to 0.
        base (dict | str | nn.Module, optional): The student trained alone, in such a form. It is
            explained, too, and batches of the sample are compared by ``unicam``, with
            ``FeatureSimilarityScore`` and ``RelevanceScore`` as default metrics. Defaults to None.
        unicam (dict | bool): The arguments of ``UniCAM``; False for no comparison. Defaults to True.
        context_size (int): Images in a compared batch, an even number from 6 on. Defaults to 64.
        seed (int): The random seed of the sample. Defaults to 0.
        floor (bool): Whether metrics measure noise (``RandomMap``) in place of the student's maps, too.
            It costs as much as measuring the student. Defaults to True.
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
        floor: bool = True,
        owner: str = 'ExplanationEvaluator',
    ) -> None:
        self.owner = owner
        self.target = one_of(f'{owner}.target', target, (None, *TARGETS))
        if num_samples is not None:
            integer(f'{owner}.num_samples', num_samples, 1)
        self.num_samples = num_samples
        self.show_samples = integer(f'{owner}.show_samples', show_samples, 0)
        self.seed = integer(f'{owner}.seed', seed, 0)
        self.floor = flag(f'{owner}.floor', floor)
        self.explainers = build_explainers(explainer, owner)
        if not isinstance(metrics, list | tuple):
            raise ValueError(f'{owner}.metrics is {metrics!r}; it must be a list of metrics')
        given = [build_metric(metric, owner) for metric in metrics]
        self.metrics = [Facts(), *(each for each in given if not each.needs_base)]
        self.pair_metrics = [each for each in given if each.needs_base]
        self._floor = FloorMeter(self.metrics)
        self._with_floor = False
        if not isinstance(unicam, (bool, dict)):
            raise ValueError(f'{owner}.unicam is {unicam!r}; it must be a dict, True or False')
        arguments = {} if isinstance(unicam, bool) else unicam
        pairs = PairEvaluation(arguments, self.pair_metrics, context_size, seed, owner)
        self.pairs = None
        if base is not None and unicam is not False:
            self.pairs, self.pair_metrics = pairs, pairs.metrics
        elif self.pair_metrics:
            raise ValueError(
                f'{owner}.metrics: {type(self.pair_metrics[0]).__name__} compares a student with a base '
                f'model; set {owner}.base'
            )
        self.teacher = teacher
        self.base = base
        self._loader: DataLoader | None = None
        self._model: nn.Module | None = None

    def begin(self, model: nn.Module, loader: DataLoader, floor: bool = True) -> None:
        """Draws the sample and finds the models.

        Args:
            model (nn.Module): A distiller, or any classifier, which is the student then. Wrappers
                come off, see ``describe``.
            loader (DataLoader): Loads the images; ``process`` takes what it yields.
            floor (bool): Whether the floor is measured, if the evaluator's ``floor`` is set. Defaults to
                True.

        Raises:
            ValueError: If models, target, metrics and data set do not fit.
            FileNotFoundError: If a checkpoint file does not exist.
        """
        model = unwrap(model)
        self._with_floor = self.floor and floor
        new = model is not self._model or loader.dataset is not self._loader.dataset
        self._loader = loader
        if new:
            self._model = None
            self._images = images(loader.dataset)
            self._kept: dict[tuple[str, str], dict[int, Tensor]] = {}
            self._kept_bytes = 0
            for metric in self.metrics:
                metric.forget()
        order = np.random.RandomState(self.seed).permutation(list(self._images)).tolist()
        self._sample = set(order[: self.num_samples])
        self._shown = set(order[: self.num_samples][: self.show_samples])
        self._pictures: dict[int, tuple[np.ndarray, dict[str, Tensor]]] = {}
        self._seconds = 0.0
        if new:
            self._find(model)

    def process(self, data: Any, index: Sequence[int] | None = None) -> None:
        """Explains and measures those images of a batch that are in the sample.

        Args:
            data (Any): A batch of the data loader; see ``read_batch``.
            index (Sequence[int], optional): See ``read_batch``. Defaults to None.
        """
        start = time.perf_counter()
        batch = read_batch(data, self._model, self.owner, index, self._sample)
        if batch is not None:
            batch.models = self._explain(batch)
            batch.dataset, batch.prepare = self._loader.dataset, self._prepare
            for metric in self.metrics:
                metric.process(batch)
            if self._with_floor:
                self._floor.process(batch, batch.models['student'], self.subjects['student'])
            self._keep(batch, self._shown)
        self._seconds += time.perf_counter() - start

    def _keep(self, batch: ImageBatch, shown: Collection[int]) -> None:
        """Keeps images of a batch that are drawn, and their maps."""
        for i, number in enumerate(batch.index):
            if number in shown:
                maps = {name: model.maps[i].cpu() for name, model in batch.models.items()}
                self._pictures[number] = batch.picture(i), maps

    def _keep_telling(self) -> dict[int, str]:
        """Explains again, on all ranks, the images that say most, and returns the reasons."""
        rows: dict[int, dict[str, Any]] = {}
        for metric in self.metrics:
            for index, values in metric.rows.items():  # on the main rank
                rows.setdefault(index, {}).update(values)
        chosen = [telling_images(rows)]
        broadcast_object_list(chosen)
        numbers = list(chosen[0])
        if numbers:
            dataset = self._loader.dataset
            data = self._loader.collate_fn([dataset[self._images[each]] for each in numbers])
            own = None if isinstance(data, dict) else numbers
            batch = read_batch(data, self._model, self.owner, own)
            batch.models = self._explain(batch)
            self._keep(batch, numbers)
        return chosen[0]

    def try_out(self, model: nn.Module, loader: DataLoader, floor: bool = True) -> Evaluation:
        """Takes one image through a whole evaluation, so that mistakes show early; see ``begin``."""
        self.begin(model, loader, floor)
        whole, first = self._sample, min(self._sample)
        self._sample = self._shown = {first}
        data = loader.collate_fn([loader.dataset[self._images[first]]])
        self.process(data, None if isinstance(data, dict) else [first])
        self._sample = whole
        with _quiet():  # warnings about one image do not hold for an evaluation
            return self.finish(trial=True)

    def shown_items(self, count: int) -> Iterator[tuple[str, Any]]:
        """Names and items of the data set for the first images that are drawn."""
        for number in sorted(self._shown)[:count]:
            yield f'image {number}', self._loader.dataset[self._images[number]]

    def place(self) -> dict[int, int]:
        """For each image of the sample, in order, the index in the data set that shows it."""
        return {number: self._images[number] for number in sorted(self._sample)}

    def _prepare(self, items: list[Any]) -> Tensor:
        """The images (M, C, H, W) of items of the data set, as the student takes them."""
        data = self._loader.collate_fn(items)
        return read_batch(data, self._model, self.owner, range(len(items))).inputs

    def _find(self, model: nn.Module) -> None:
        """Finds the models, and whether metrics and target fit them."""
        classes = class_names(self._loader.dataset)
        self.subjects = find_subjects(
            model, self.explainers, self.owner, self.teacher, self.base, classes
        )
        self._model = model
        known = (classes, *(each.classes for each in self.subjects.values()))
        self._classes = next(filter(None, known), None)
        if self.pairs is not None:
            place = self.place()
            self.pairs.begin(self.subjects, self._loader.dataset, place, self._classes)
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

    def _explain(self, batch: ImageBatch) -> dict[str, Explained]:
        """Explains all models for the same classes."""
        inputs, index = batch.inputs, batch.index
        logits = {
            name: self._once((name, 'logits'), index, subject.fixed, subject.predict, inputs)
            for name, subject in self.subjects.items()
        }
        if len({values.shape[1] for values in logits.values()}) > 1:
            counts = ', '.join(f'{name} {values.shape[1]}' for name, values in logits.items())
            raise ValueError(
                f'{self.owner}: the models have different numbers of classes ({counts}), so they '
                'cannot be explained for the same class'
            )
        targets = choose_targets(self.policy, logits, one_label_each(batch.data_samples))
        models = {}
        for name, subject in self.subjects.items():
            # What depends on the student's prediction is new at every evaluation.
            fixed = subject.fixed and self.policy != 'student'
            maps = self._once((name, 'maps'), index, fixed, subject.explain, inputs, targets[name])
            models[name] = subject.explained(maps, logits[name], targets[name], fixed)
        return models

    def _once(
        self, key: tuple[str, str], index: list[int], fixed: bool, compute: Callable, *args: Tensor
    ) -> Tensor:
        """A value of each image, computed once for a data set where it is fixed."""
        rows = self._kept.setdefault(key, {})
        if fixed and all(i in rows for i in index):
            return torch.stack([rows[i] for i in index]).to(args[0].device)
        values = compute(*args)
        if fixed and self._kept_bytes + values.nbytes <= 2**30:
            self._kept_bytes += values.nbytes
            rows.update(zip(index, values.cpu()))
        return values

    def finish(self, trial: bool = False, telling: bool = False) -> Evaluation:
        """Compares student and base model, and gathers all ranks' values.

        Args:
            trial (bool): Whether few images are enough. Defaults to False.
            telling (bool): Whether the gallery has the images that say most, too, as a report shows
                them first; see ``telling_images``. Defaults to False.

        Raises:
            ValueError: If two metrics yield a score of one name.
        """
        start = time.perf_counter()
        own = []
        if self.pairs is not None:
            show = 1 if trial else self.show_samples
            own = self.pairs.run(self._loader, self._model, show, trial)
        scores: dict[str, Score] = {}
        about: dict[str, About] = {}
        for metric in (*self.metrics, *self.pair_metrics):
            for name, score in metric.evaluate().items():
                if name in scores:
                    raise ValueError(
                        f'{self.owner}.metrics: two metrics yield the score {name!r}; remove one, or '
                        "give it a key 'name', the prefix of its scores"
                    )
                scores[name] = score
                plain = name.rpartition('/')[2]
                about[plain] = metric.about(plain)
        floors, noise = self._floor.evaluate() if self._with_floor else ({}, {})
        reasons = self._keep_telling() if telling and self.show_samples else {}
        pictures = collect_results(list(self._pictures.items()), sys.maxsize, 'cpu')
        student = 'student'
        if len(self.subjects) == 1 and not isinstance(self._model, Distiller):
            student = self.subjects['student'].facts.name
        found = Evaluation(scores, len(self._sample), 0.0, student, about=about, floors=floors)
        if is_main_process():
            self._complete(found, dict(pictures), own, reasons)
            for index, values in noise.items():
                found.rows[index].update({f'floor_{key}': each for key, each in values.items()})
        found.seconds = self._seconds + time.perf_counter() - start
        return found

    def _complete(
        self,
        found: Evaluation,
        pictures: dict[int, tuple],
        own: list[PictureSection],
        reasons: dict[int, str],
    ) -> None:
        """Adds what the main rank writes."""
        found.classes = self._classes
        found.models = {name: str(each) for name, each in self.subjects.items()}
        found.sample = f'{len(self._sample)} of {len(self._images)} (seed {self.seed})'
        for metric in self.metrics:
            for index, values in metric.rows.items():
                found.rows.setdefault(index, {}).update(values)
        for index, (picture, maps) in sorted(pictures.items()):
            row, own_targets = found.rows[index], self.policy == 'own'
            words = found.scores, found.classes, own_targets, found.student
            item = gallery_item(index, picture, maps, row, *words)
            item.reason = reasons.get(index, '')
            found.gallery.append(item)
            found.maps[index] = picture, maps
        found.metric_agreement = image_agreement(found.rows, found.scores, self.metrics)
        offered = [each for metric in self.metrics for each in metric.report_sections()]
        drawn = (draw(each, found.classes) for each in (*own, *offered))
        found.sections = [section for section in drawn if section is not None]
        found.facts = dict(
            target=self.policy,
            explainers={name: type(e.explainer).__name__ for name, e in self.subjects.items()},
            metrics=[settings_of(each) for each in (*self.metrics[1:], *self.pair_metrics)],
            **({} if self.pairs is None else self.pairs.facts()),
        )


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
