"""How much of what a student has learned its teacher brought, by distance correlation."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmkdx.arguments import flag, number, one_of
from mmkdx.functional import normalize_maps, resize_maps
from mmkdx.functional.distance_correlation import (
    biased_correlation,
    pair_correlations,
    pairwise_distances,
    u_center,
    u_correlation,
)
from mmkdx.functional.perturbation import keep_relevant
from mmkdx.metrics.base import ExplainedBatch, Row, ScoreMetric
from mmkdx.metrics.scores import Score, batch_score
from mmkdx.registry import METRICS

#: What is done to an image but for its most relevant pixels.
PERTURBATIONS = ('road', 'multiply')

#: Of the distance correlation.
ESTIMATORS = ('unbiased', 'biased')

#: The value of a batch that is its number of images.
IMAGES = '_images'


@dataclass
class PairedModel:
    """A model of a ``PairedBatch``.

    Args:
        maps (Callable): Yields for a layer explainer (a type or a config) the raw maps (n, h, w) of the
            batch's images and labels at each layer, by the layer's name.
        distances (Callable): Yields for images (n, 3, H, W) in the normalisation of the batch's inputs,
            names of layers, and whether features are scaled to length 1, the distances (n, n) between
            the images' features at each of these layers.
    """

    maps: Callable[[dict | str], dict[str, Tensor]]
    distances: Callable[[Tensor, list[str], bool], dict[str, Tensor]]


@dataclass
class PairedBatch(ExplainedBatch):
    """A batch of images for a student, a base model and perhaps a teacher.

    Args:
        models (dict[str, PairedModel]): 'student', 'base' and, where there is one, 'teacher'.
        number (int): Which batch of the data set it is.
        targets (Tensor): The images' labels, of shape (n, ).
        label_features (Tensor): A vector for each image's label, of shape (n, e).
        unique (Mapping): For each layer the ``distilled`` and ``residual`` maps of ``UniCAM``.
    """

    models: dict[str, PairedModel]
    number: int = 0
    targets: Tensor = field(default_factory=lambda: torch.empty(0))
    label_features: Tensor = field(default_factory=lambda: torch.empty(0))
    unique: Mapping[str, Any] = field(default_factory=dict)


class PairMetric(ScoreMetric):
    """Base of the scores that compare the features of a student and a base model on batches of images.

    A batch is measured as a whole, on one rank. A score is the mean over batches; a batch in which it is
    not defined (labels of one class, features that do not differ, NaN) is left out, and the score says
    how many batches and images count.

    The features are those of masked images: only the pixels that an explanation finds relevant are left.

    Args:
        mask (dict | str, optional): What finds the relevant pixels: a layer explainer, which explains
            each model by itself, at the layer, for the label; 'UniCAM' for what it has and the other has
            not; or None, for images as they are. Defaults to 'GradCAM'.
        perturbation (str): 'road' keeps a share of the pixels and fills the others from their neighbours
            (see ``keep_relevant``); 'multiply' darkens each pixel by its relevance in [0, 1]. Defaults
            to 'road'.
        keep (float): The share of pixels that 'road' keeps, in (0, 1]. Defaults to 0.5.

    Raises:
        ValueError: If an argument is out of its range.
    """

    needs_base = True
    #: Whether features are scaled to length 1 before they are compared.
    normalize = False

    def __init__(
        self, mask: dict | str | None = 'GradCAM', perturbation: str = 'road', keep: float = 0.5
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        self.mask = mask
        self.perturbation = one_of(f'{owner}.perturbation', perturbation, PERTURBATIONS)
        self.keep = number(f'{owner}.keep', keep, 0, 1, open_low=True)

    @abstractmethod
    def measure(self, batch: PairedBatch) -> dict[str, Tensor]:
        """The scores of one batch, by name, each a scalar; NaN where one is not defined."""

    def process(self, data_batch: PairedBatch, data_samples: Any = None) -> None:
        """Measures a batch, in which no image may stand twice, which biases these scores."""
        if len(set(data_batch.index)) < len(data_batch.index):
            raise ValueError(
                f'{type(self).__name__}: an image stands twice in batch {data_batch.number}; images '
                'that repeat themselves bias distance correlations'
            )
        values = {name: float(value) for name, value in self.measure(data_batch).items()}
        values[IMAGES] = len(data_batch.index)
        self.results.append(Row(data_batch.number, values))

    def summarize(self, rows: list[dict[str, float]]) -> dict[str, Score]:
        """The mean of each value over the batches."""
        return {
            name: batch_score(
                [row.get(name, math.nan) for row in rows],
                [row[IMAGES] for row in rows],
                self.direction(name),
            )
            for name in dict.fromkeys(name for row in rows for name in row)
            if name != IMAGES
        }

    def distances(
        self, batch: PairedBatch, model: str, mask: dict | str | None
    ) -> dict[str, Tensor]:
        """The distances (n, n) of a model's features of perturbed images, for each layer."""
        key = (model, repr(mask), self.perturbation, self.keep, self.normalize)
        if key not in batch.shared:
            batch.shared[key] = self._distances(batch, model, mask)
        return batch.shared[key]

    def _distances(
        self, batch: PairedBatch, model: str, mask: dict | str | None
    ) -> dict[str, Tensor]:
        subject = batch.models[model]
        if mask is None:
            return subject.distances(batch.inputs, list(batch.unique), self.normalize)
        if mask == 'UniCAM':
            side = 'distilled' if model == 'student' else 'residual'
            maps = {name: getattr(unique, side) for name, unique in batch.unique.items()}
        else:
            maps = subject.maps(mask)
        result = {}
        for name, values in maps.items():
            if self.perturbation == 'road':
                images = keep_relevant(batch.inputs, values, self.keep)
            else:
                shown = normalize_maps(resize_maps(values, batch.inputs.shape[2:]), relu=True)
                black = batch.black()
                images = black + (batch.inputs - black) * shown[:, None].to(batch.inputs)
            result |= subject.distances(images, [name], self.normalize)
        return result


@METRICS.register_module()
class FeatureSimilarityScore(PairMetric):
    """FSS: how alike the features of two models are, layer by layer, as a distance correlation.

    ``base/fss_<layer>`` is that of the student and the base model, the paper's; ``teacher/fss_<layer>``
    that of the student and its teacher. 1: the same up to rotation, shift and scale; 0: independent. It
    estimates a square and is in [-1, 1], negative by chance alone. It tells nothing of what is alike.

    Source: Adhane et al., "On Explaining Knowledge Distillation: Measuring and Visualising the Knowledge
    Transfer Process", WACV 2025, Eq. 8, with the estimator of its Eq. 2 and 4.

    Args:
        mask (dict | str, optional): See ``PairMetric``. Defaults to 'GradCAM'.
        perturbation (str): See ``PairMetric``. Defaults to 'road'.
        keep (float): See ``PairMetric``. Defaults to 0.5.
        estimator (str): 'unbiased', or 'biased', as in the authors' code of 2026, which is near 1 for
            any two CNNs. Defaults to 'unbiased'.
        normalize (bool): Whether features are scaled to length 1, as there. Defaults to False.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        mask: dict | str | None = 'GradCAM',
        perturbation: str = 'road',
        keep: float = 0.5,
        estimator: str = 'unbiased',
        normalize: bool = False,
    ) -> None:
        super().__init__(mask, perturbation, keep)
        self.estimator = one_of('FeatureSimilarityScore.estimator', estimator, ESTIMATORS)
        self.normalize = flag('FeatureSimilarityScore.normalize', normalize)

    def measure(self, batch: PairedBatch) -> dict[str, Tensor]:
        """See the base class."""
        others = [name for name in batch.models if name != 'student']
        if self.mask == 'UniCAM':  # which is of student and base model alone
            others = ['base']
        student = self.distances(batch, 'student', self.mask)
        scores = {}
        for model in others:
            for layer, distances in self.distances(batch, model, self.mask).items():
                pair = student[layer], distances
                scores[f'{model}/fss_{layer}'] = (
                    biased_correlation(*pair)
                    if self.estimator == 'biased'
                    else u_correlation(*map(u_center, pair))
                )
        return scores


@METRICS.register_module()
class RelevanceScore(PairMetric):
    """RS: how much a model's features have to do with the labels, layer by layer.

    All are distance correlations with the labels' vectors (see ``UniCAM.embedding``), in [-1, 1] and
    near 0 where there is nothing. For each layer, of the student, and with ``base/`` and ``teacher/`` in
    front of those:

    - ``rs``: of the features of images of which the pixels are left that ``mask`` finds relevant.
    - ``rs_unique``: of images of which those are left where UniCAM finds what only this model has
      learned: for the student the distilled, for the base model the residual features.
    - ``part``: of what is left of the same features as in ``rs`` when those of the other model are
      projected out (in the authors' code this is the score of distilled and residual features).
    - ``partial``: the same, with the other model's projected out of the labels, too, which is the
      partial distance correlation of statistics.
    - ``rho``: which share of the features' energy is left by that projection, in [0, 1]; the same for
      both models.

    A negative ``part`` does not say that a model speaks against the labels: it comes out where the other
    model knows what this one does not. ``part`` and ``partial`` are not defined where rho is below 1e-6.

    Source: Adhane et al., WACV 2025, Eq. 9 and section 4.2.2; see ``FeatureSimilarityScore``.

    Args:
        mask (dict | str, optional): See ``PairMetric``; of ``rs``, ``part``, ``partial`` and ``rho``.
            Defaults to 'GradCAM'.
        perturbation (str): See ``PairMetric``. Defaults to 'road'.
        keep (float): See ``PairMetric``. Defaults to 0.5.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def measure(self, batch: PairedBatch) -> dict[str, Tensor]:
        """See the base class."""
        labels = u_center(pairwise_distances(batch.label_features))
        models = [name for name in batch.models if name != 'teacher' or self.mask != 'UniCAM']
        centred = {
            model: {
                layer: u_center(distances)
                for layer, distances in self.distances(batch, model, self.mask).items()
            }
            for model in models
        }
        scores: dict[str, Any] = {}
        for model, layers in centred.items():
            prefix = '' if model == 'student' else f'{model}/'
            for layer, own in layers.items():
                scores[f'{prefix}rs_{layer}'] = u_correlation(own, labels)
        for model in ('student', 'base') if self.mask not in (None, 'UniCAM') else ():
            prefix = '' if model == 'student' else 'base/'
            for layer, distances in self.distances(batch, model, 'UniCAM').items():
                scores[f'{prefix}rs_unique_{layer}'] = u_correlation(u_center(distances), labels)
        pairs = {
            layer: pair_correlations(centred['student'][layer], centred['base'][layer], labels)
            for layer in batch.unique
        }
        for name in ('part', 'partial'):
            for layer, pair in pairs.items():
                scores[f'{name}_{layer}'] = pair[name]
                scores[f'base/{name}_{layer}'] = pair[f'base_{name}']
        scores |= {f'rho_{layer}': pair['rho'] for layer, pair in pairs.items()}
        return scores

    def direction(self, name: str) -> str | None:
        """See the base class."""
        return None if name.rpartition('/')[2].startswith('rho') else 'higher'
