"""Compares a student with a base model on batches of an evaluation's sample."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank, get_world_size
from torch import nn
from torch.utils.data import DataLoader, Subset

from mmkdx.arguments import integer
from mmkdx.datasets.wrappers import class_names, labels
from mmkdx.evaluation.batches import read_batch
from mmkdx.evaluation.pairs import PairAnalysis, context_batches
from mmkdx.evaluation.subjects import Subject
from mmkdx.explain import UniCAM
from mmkdx.metrics.relevance import (
    FeatureSimilarityScore,
    PairedBatch,
    PairMetric,
    RelevanceScore,
)
from mmkdx.visualization.pair_panel import NOTE, pair_panel
from mmkdx.visualization.sections import PictureSection

#: Number of images of a trial.
TRIAL_SIZE = 6


class PairEvaluation:
    """Runs ``UniCAM`` and metrics of pairs on batches of its own of an evaluation's sample.

    The batches have equal shares of the classes and are divided among the ranks; each is measured as a
    whole on one rank, so that neither features nor maps are exchanged.

    Args:
        unicam (dict): The arguments of ``UniCAM``.
        metrics (Sequence[PairMetric]): The metrics; if there are none, ``FeatureSimilarityScore`` and
            ``RelevanceScore``.
        size (int): Images in a batch, an even number from 6 on.
        seed (int): The seed of the batches.
        owner (str): Whose arguments these are, for messages.

    Raises:
        ValueError: If the size is none of these.
    """

    def __init__(
        self, unicam: dict, metrics: Sequence[PairMetric], size: int, seed: int, owner: str
    ) -> None:
        if integer(f'{owner}.context_size', size) < TRIAL_SIZE or size % 2:
            raise ValueError(
                f'{owner}.context_size is {size}; it must be an even number from {TRIAL_SIZE} on'
            )
        self.unicam = UniCAM(**unicam)
        self.metrics = list(metrics) or [FeatureSimilarityScore(), RelevanceScore()]
        self.size = size
        self.seed = seed
        self.owner = owner
        self._subjects: dict[str, Subject] = {}
        self._analysis: PairAnalysis | None = None
        self._labels: tuple[Any, dict[int, int]] = (None, {})

    def begin(self, subjects: dict[str, Subject]) -> None:
        """Takes the models: 'student', 'base' and perhaps 'teacher'."""
        self._subjects, self._analysis = subjects, None

    def run(
        self,
        loader: DataLoader,
        model: nn.Module,
        place: Mapping[int, int],
        show: int,
        trial: bool = False,
    ) -> list[PictureSection]:
        """Measures this rank's batches.

        Args:
            loader (DataLoader): The evaluation's, whose data set is read.
            model (nn.Module): The model whose preprocessor prepares the images.
            place (Mapping[int, int]): For each image of the sample the index in the data set.
            show (int): For how many images the first rank draws the maps.
            trial (bool): Whether one small batch is enough. Defaults to False.

        Returns:
            list[PictureSection]: The pictures of what was distilled, on the first rank.

        Raises:
            ValueError: If images have no labels, or not two classes.
        """
        if not trial:
            return self._run(loader, model, place, self._batches(loader.dataset, place), show)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # it is small
            batches = self._batches(loader.dataset, place, TRIAL_SIZE)[:1]
            return self._run(loader, model, place, batches, show)

    def facts(self) -> dict[str, Any]:
        """What was compared and how."""
        layers = {
            model: {stage: str(layer.tap) for stage, layer in found.items()}
            for model, found in self._analysis.layers.items()
        }
        return dict(unicam=settings_of(self.unicam), layers=layers, context_size=self.size)

    def _batches(
        self, dataset: Any, place: Mapping[int, int], size: int | None = None
    ) -> list[list[int]]:
        """The images of each batch."""
        if self._labels[0] is not dataset:
            try:
                found = labels(Subset(dataset, list(place.values()))).tolist()
            except ValueError as error:
                raise ValueError(f'{self.owner}.base is compared by classes: {error}') from None
            self._labels = dataset, dict(zip(place, found))
        known = self._labels[1]
        if any(label < 0 for label in known.values()):
            raise ValueError(f'{self.owner}.base is compared by classes, and an image has no label')
        batches = context_batches(list(known.values()), size or self.size, self.seed)
        if not batches:
            raise ValueError(
                f'{self.owner}.base: of the {len(known)} images of the sample no batch can be drawn, '
                'which takes four of each of two classes, or two of each of three; raise '
                f'{self.owner}.num_samples'
            )
        images = list(known)
        return [[images[i] for i in batch] for batch in batches]

    def _run(
        self,
        loader: DataLoader,
        model: nn.Module,
        place: Mapping[int, int],
        batches: list[list[int]],
        show: int,
    ) -> list[PictureSection]:
        own = list(enumerate(batches))[get_rank() :: get_world_size()]
        data = DataLoader(
            loader.dataset,
            batch_sampler=[[place[image] for image in members] for _, members in own],
            num_workers=min(loader.num_workers, len(own)),
            collate_fn=loader.collate_fn,
            worker_init_fn=loader.worker_init_fn,
            # Of its own, so that a training goes on as it would without
            generator=torch.Generator(),
        )
        sections = []
        for (number, members), loaded in zip(own, data):
            images = read_batch(loaded, model, self.owner, members)
            if self._analysis is None or self._analysis.size != images.inputs.shape[2:]:
                self._analysis = PairAnalysis(self._subjects, self.unicam, images.inputs[:1])
            batch = self._analysis.batch(
                number,
                images.inputs,
                members,
                torch.tensor([self._labels[1][i] for i in members], device=images.inputs.device),
                images.format.mean,
                images.format.std,
            )
            for metric in self.metrics:
                metric.process(batch)
            if number == 0 and show:
                shown = [images.picture(i) for i in range(min(show, len(members)))]
                sections = [_section(batch, shown, class_names(loader.dataset))]
        return sections


def _section(
    batch: PairedBatch, images: Sequence[np.ndarray], classes: Sequence[str] | None
) -> PictureSection:
    """The maps of the first images of a batch, at each stage, as pictures."""
    own = {name: model.maps('GradCAM') for name, model in batch.models.items()}
    pictures, keys = [], []
    for i, image in enumerate(images):
        maps = {
            stage: {
                **{name: maps[stage][i].cpu() for name, maps in own.items()},
                'distilled': unique.distilled[i].cpu(),
                'residual': unique.residual[i].cpu(),
            }
            for stage, unique in batch.unique.items()
        }
        label, index = int(batch.targets[i]), int(batch.index[i])
        word = str(label) if classes is None else str(classes[label])
        pictures.append((f'image {index}', pair_panel(image, maps, word)))
        keys.append(f'distilled_{{mode}}_{index:05d}')
    return PictureSection('What was distilled', NOTE, pictures, keys)


def settings_of(part: Any) -> dict[str, Any]:
    """The conventions of a metric or of ``UniCAM``: its type and arguments."""
    values = {
        name: value
        for name, parameter in signature(type(part)).parameters.items()
        if name not in ('collect_device', 'prefix')  # mmengine's
        if (value := getattr(part, name, None)) is not None or parameter.default is not None
    }
    name = dict(name=part.name) if getattr(part, 'name', '') else {}
    return dict(type=type(part).__name__, **name, **values)
