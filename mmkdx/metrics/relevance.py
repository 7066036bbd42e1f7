"""How much of a student's features comes from its teacher, by distance correlation."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmkdx.arguments import flag, number, one_of
from mmkdx.explain import build_explainer
from mmkdx.functional import normalize_maps, resize_maps
from mmkdx.functional.distance_correlation import (
    biased_correlation,
    pair_correlations,
    pairwise_distances,
    u_center,
    u_correlation,
)
from mmkdx.functional.perturbation import keep_relevant
from mmkdx.metrics.base import ExplainedBatch, ScoreMetric
from mmkdx.metrics.scores import Score, batch_score
from mmkdx.registry import METRICS


@dataclass
class PairedModel:
    """A model of a ``PairedBatch``.

    Args:
        maps (Callable): Yields for a layer explainer (a type or a config) the raw maps (n, h, w) of the
            batch's images and labels at each layer, by the layer's name.
        distances (Callable): Yields the distances (n, n) between images' features at each layer, from
            images (n, 3, H, W) in the normalisation of the batch's inputs, names of layers, and whether
            features are scaled to length 1.
    """

    maps: Callable[[dict | str], dict[str, Tensor]]
    distances: Callable[[Tensor, list[str], bool], dict[str, Tensor]]


@dataclass
class PairedBatch(ExplainedBatch):
    """A batch of images for a student, a base model and perhaps a teacher.

    Args:
        models (dict[str, PairedModel]): 'student', 'base' and, if there is one, 'teacher'.
        number (int): The position of the batch in the data set.
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

    One rank measures a whole batch. A score is the mean over batches and counts them and their images.
    It leaves out a batch in which it is not defined (labels of one class, features that do not differ,
    NaN).

    The features are those of masked images: only the pixels that an explanation finds relevant are left.

    Args:
        mask (dict | str, optional): What finds the relevant pixels: a layer explainer, which explains
            each model by itself, at the layer, for the label; 'UniCAM' for what only this model has
            learned; or None, for images as they are. Defaults to 'GradCAM'.
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
        if mask not in (None, 'UniCAM'):
            build_explainer(mask, f'{owner}.mask')
        self.mask = mask
        self.perturbation = one_of(f'{owner}.perturbation', perturbation, ('road', 'multiply'))
        self.keep = number(f'{owner}.keep', keep, 0, 1, open_low=True)

    @abstractmethod
    def measure(self, batch: PairedBatch) -> dict[str, Tensor]:
        """The scores of one batch, by name, each a scalar; NaN where one is not defined."""

    def process(self, data_batch: PairedBatch, data_samples: Any = None) -> None:
        """Measures a batch; an image that stands twice in it would bias these scores."""
        if len(set(data_batch.index)) < len(data_batch.index):
            raise ValueError(
                f'{type(self).__name__}: an image is twice in batch {data_batch.number}; repeated '
                'images bias distance correlations'
            )
        values = {name: float(value) for name, value in self.measure(data_batch).items()}
        values['_images'] = len(data_batch.index)
        self.results.append((data_batch.number, values))

    def summarize(self, rows: list[dict[str, float]]) -> dict[str, Score]:
        """The mean of each value over the batches."""
        sizes = [row.pop('_images') for row in rows]
        return {
            name: batch_score(
                [row.get(name, math.nan) for row in rows], sizes, self.direction(name)
            )
            for name in dict.fromkeys(name for row in rows for name in row)
        }

    def distances(
        self, batch: PairedBatch, model: str, mask: dict | str | None
    ) -> dict[str, Tensor]:
        """The distances (n, n) of a model's features of masked images, by layer; kept in the batch."""
        key = (model, repr(mask), self.perturbation, self.keep, self.normalize)
        if key in batch.shared:
            return batch.shared[key]
        subject = batch.models[model]
        result: dict[str, Tensor] = {}
        if mask is None:
            maps = {}
            result = subject.distances(batch.inputs, list(batch.unique), self.normalize)
        elif mask == 'UniCAM':
            side = 'distilled' if model == 'student' else 'residual'
            maps = {name: getattr(unique, side) for name, unique in batch.unique.items()}
        else:
            maps = subject.maps(mask)
        for name, values in maps.items():
            if self.perturbation == 'road':
                images = keep_relevant(batch.inputs, values, self.keep)
            else:
                shown = normalize_maps(resize_maps(values, batch.inputs.shape[2:]), relu=True)
                black = batch.black()
                images = black + (batch.inputs - black) * shown[:, None].to(batch.inputs)
            result |= subject.distances(images, [name], self.normalize)
        batch.shared[key] = result
        return result


@METRICS.register_module()
class FeatureSimilarityScore(PairMetric):
    """FSS: how similar the features of two models are, layer by layer, as a distance correlation.

    ``base/fss_<layer>`` compares the student with the base model, ``teacher/fss_<layer>`` with its
    teacher. 1: the same up to rotation, shift and scale; 0: independent. It estimates a square and is in
    [-1, 1], negative by chance alone. It does not tell what the models have in common.

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

    question, guide = 'distilled', 'what_was_distilled'
    meanings = dict(
        fss="Distance correlation of the student's features with those of this model.",
    )

    def __init__(
        self,
        mask: dict | str | None = 'GradCAM',
        perturbation: str = 'road',
        keep: float = 0.5,
        estimator: str = 'unbiased',
        normalize: bool = False,
    ) -> None:
        super().__init__(mask, perturbation, keep)
        self.estimator = one_of(
            'FeatureSimilarityScore.estimator', estimator, ('unbiased', 'biased')
        )
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
    """RS: how strongly a model's features depend on the labels, layer by layer.

    All scores are distance correlations with the labels' vectors (see ``UniCAM.embedding``), in [-1, 1]
    and near 0 for independent features. They come for each layer of the student, and with ``base/`` and
    ``teacher/`` in front for those models:

    - ``rs``: of the features of images masked by ``mask``.
    - ``rs_unique``: of images masked by UniCAM, which shows what only this model has learned: the
      distilled features of the student, the residual features of the base model.
    - ``part``: of the features of ``rs`` after the other model's are projected out (in the authors' code
      this is the score of distilled and residual features).
    - ``partial``: the same with the other model's projected out of the labels, too: the partial distance
      correlation of statistics.
    - ``rho``: the share of the features' energy that this projection leaves, in [0, 1]; the same for
      both models.

    A negative ``part`` does not mean that a model contradicts the labels: the other model knows what
    this one does not. ``part`` and ``partial`` are not defined where rho is below 1e-6.

    Source: Adhane et al., WACV 2025, Eq. 9 and section 4.2.2; see ``FeatureSimilarityScore``.

    All arguments are those of ``PairMetric``; ``mask`` is for all scores but ``rs_unique``.
    """

    question, guide = 'distilled', 'what_was_distilled'
    meanings = dict(
        rs="Distance correlation of the model's features with the labels.",
        rs_unique='The same for what only this model has learned, as UniCAM shows it.',
        part="Distance correlation with the labels after the other model's features are projected out.",
        partial="Partial distance correlation with the labels, given the other model's features.",
        rho="Share of the features' energy that is left by this projection.",
    )

    def measure(self, batch: PairedBatch) -> dict[str, Tensor]:
        """See the base class."""
        labels = u_center(pairwise_distances(batch.label_features))
        pair = ('student', 'base')
        centred, scores = {}, {}
        for model in pair if self.mask == 'UniCAM' else batch.models:
            prefix = '' if model == 'student' else f'{model}/'
            centred[model] = {}
            for layer, distances in self.distances(batch, model, self.mask).items():
                own = centred[model][layer] = u_center(distances)
                scores[f'{prefix}rs_{layer}'] = u_correlation(own, labels)
        for model in pair if self.mask not in (None, 'UniCAM') else ():
            prefix = '' if model == 'student' else 'base/'
            for layer, distances in self.distances(batch, model, 'UniCAM').items():
                scores[f'{prefix}rs_unique_{layer}'] = u_correlation(u_center(distances), labels)
        found = {
            layer: pair_correlations(*(centred[model][layer] for model in pair), labels)
            for layer in batch.unique
        }
        for name in ('part', 'partial', 'rho'):
            for layer, values in found.items():
                scores[f'{name}_{layer}'] = values[name]
                if name != 'rho':  # the same for both models
                    scores[f'base/{name}_{layer}'] = values[f'base_{name}']
        return scores

    def direction(self, name: str) -> str | None:
        """See the base class."""
        return None if name.rpartition('/')[2].startswith('rho') else 'higher'
