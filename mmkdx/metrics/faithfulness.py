"""Does the model depend on the pixels that its map marks?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmkdx.arguments import flag, integer, number, numbers, one_of
from mmkdx.functional import resize_maps
from mmkdx.functional.perturbation import blur, linear_imputation, pixel_ranks, sample_generators
from mmkdx.metrics.base import Explained, ExplainedBatch, ExplanationMetric, by_model
from mmkdx.metrics.scores import Score, mean_ratio_score
from mmkdx.registry import METRICS

#: What replaces pixels.
BASELINES = ('zero', 'black', 'blur')


class MaskingMetric(ExplanationMetric):
    """A metric that shows the model many copies of each image, with more and more pixels replaced."""

    has_floor = True

    def __init__(self, max_batch: int = 64) -> None:
        super().__init__()
        self.max_batch = integer(f'{type(self).__name__}.max_batch', max_batch, 1)

    def predict_copies(
        self,
        model: Explained,
        shape: Sequence[int],
        device: torch.device,
        make: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        """The logits (N, S, K) of S changed copies of N images, for ``shape`` (N, S).

        ``make`` makes M copies from the numbers of their images and of their changes, both (M, ).
        """
        images, changes = shape
        copies = torch.arange(images * changes, device=device)
        logits = [
            model.predict(make(part // changes, part % changes))
            for part in copies.split(self.max_batch)
        ]
        return torch.cat(logits).unflatten(0, (images, changes))

    def _logits(
        self,
        model: Explained,
        ranks: Tensor,
        counts: Sequence[int],
        fill: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        """The logits (N, S, K) of all copies, for pixel ranks (N, H, W) and S counts of chosen pixels.

        ``fill`` makes M copies from their samples (M, ) and the chosen pixels (M, H, W).
        """
        steps = torch.tensor(counts, device=ranks.device)

        def make(sample: Tensor, step: Tensor) -> Tensor:
            return fill(sample, ranks[sample] < steps[step][:, None, None])

        return self.predict_copies(model, (len(ranks), len(counts)), ranks.device, make)


def _replace(images: Tensor, values: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """What puts ``values`` in the place of chosen pixels of ``images``, all of shape (N, C, H, W)."""
    return lambda sample, chosen: torch.where(chosen[:, None], values[sample], images[sample])


def baseline_images(batch: ExplainedBatch, kind: str) -> Tensor:
    """The images (N, C, H, W) that replace pixels of a batch; ``kind`` is one of ``BASELINES``."""
    if kind == 'blur':
        return blur(batch.inputs)
    if kind == 'black':
        return batch.black().expand_as(batch.inputs)
    return torch.zeros_like(batch.inputs)


@METRICS.register_module()
class DeletionInsertion(MaskingMetric):
    """The area under the explained class's probability as pixels are deleted or inserted by relevance.

    ``deletion`` begins with the image and replaces the most relevant pixels first; lower is better.
    ``insertion`` begins with a baseline and restores the most relevant pixels first; higher is better.
    Both are in [0, 1]: the trapezoidal rule over the share of pixels, from the image to the full
    baseline. Maps are resized to the image; pixels of equal relevance come row by row.

    With ``cross``, the student's probability of the class that the teacher's map explains is measured
    by the teacher's map (``cross_deletion`` and ``cross_insertion``), and the other way round
    (``reverse_cross_deletion`` and ``reverse_cross_insertion``).

    Source: Petsiuk et al., "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC
    2018. The defaults are those of its public code for ImageNet; there a step is 224 · 8 pixels.
    torchcam and xplique insert into zeros: ``insertion_baseline='zero'``.

    Args:
        steps (int): The number of steps; each takes ⌈H · W / steps⌉ pixels, the last what is left.
            Defaults to 28.
        deletion_baseline (str): What replaces pixels: 'zero' (the mean colour), 'black', or 'blur' (see
            ``mmkdx.functional.perturbation.blur``). Defaults to 'zero'.
        insertion_baseline (str): What insertion begins with, one of the same. Defaults to 'blur'.
        cross (bool): Whether student and teacher are measured by each other's maps, which triples the
            forward passes of a distillation. Defaults to True.
        max_batch (int): The most images predicted at once. Defaults to 64.

    Raises:
        ValueError: If an argument is out of its range.
    """

    question, guide = 'faithfulness', 'metrics_faithfulness'
    meanings = dict(
        deletion='Mean probability of the class while the most relevant pixels are deleted first.',
        insertion='Mean probability of the class while the most relevant pixels are restored first.',
        cross_deletion="Deletion in the student, in the order of its teacher's map.",
        cross_insertion="Insertion in the student, in the order of its teacher's map.",
        reverse_cross_deletion="Deletion in the teacher, in the order of its student's map.",
        reverse_cross_insertion="Insertion in the teacher, in the order of its student's map.",
    )
    better = dict(
        deletion='lower',
        insertion='higher',
        cross_deletion='lower',
        cross_insertion='higher',
        reverse_cross_deletion='lower',
        reverse_cross_insertion='higher',
    )
    no_floor = tuple(name for name in better if 'cross' in name)

    def __init__(
        self,
        steps: int = 28,
        deletion_baseline: str = 'zero',
        insertion_baseline: str = 'blur',
        cross: bool = True,
        max_batch: int = 64,
    ) -> None:
        super().__init__(max_batch)
        owner = type(self).__name__
        self.steps = integer(f'{owner}.steps', steps, 1)
        self.deletion_baseline = one_of(f'{owner}.deletion_baseline', deletion_baseline, BASELINES)
        self.insertion_baseline = one_of(
            f'{owner}.insertion_baseline', insertion_baseline, BASELINES
        )
        self.cross = flag(f'{owner}.cross', cross)

    def measure(self, batch: ExplainedBatch, model: Explained) -> dict[str, Tensor]:
        """A model under its own maps."""
        deletion, insertion = self._areas(batch, model, model)
        return dict(deletion=deletion, insertion=insertion)

    def compare(
        self, batch: ExplainedBatch, student: Explained, teacher: Explained
    ) -> dict[str, Tensor]:
        """Each model under the other's maps."""
        if not self.cross:
            return {}
        deletion, insertion = self._areas(batch, student, teacher)
        reverse_deletion, reverse_insertion = self._areas(batch, teacher, student)
        return dict(
            cross_deletion=deletion,
            cross_insertion=insertion,
            reverse_cross_deletion=reverse_deletion,
            reverse_cross_insertion=reverse_insertion,
        )

    def _areas(
        self, batch: ExplainedBatch, model: Explained, reasons: Explained
    ) -> tuple[Tensor, Tensor]:
        """Deletion and insertion of ``model`` by the maps and classes of ``reasons``."""
        images = batch.inputs
        ranks = pixel_ranks(resize_maps(reasons.maps, images.shape[2:]))
        pixels = ranks[0].numel()
        size = -(-pixels // self.steps)
        # Steps beyond the last pixel are left out
        counts = [*range(0, pixels, size), pixels]
        clean = model.confidence(model.logits, reasons.targets)[:, None]

        def curve(counts: list[int], fill: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
            return model.confidence(self._logits(model, ranks, counts, fill), reasons.targets)

        start, end = (
            baseline_images(batch, kind)
            for kind in (self.insertion_baseline, self.deletion_baseline)
        )
        deletion = torch.cat([clean, curve(counts[1:], _replace(images, end))], 1)
        insertion = torch.cat([curve(counts[:-1], _replace(start, images)), clean], 1)
        shares = torch.tensor(counts, device=images.device) / pixels
        return torch.trapezoid(deletion, shares), torch.trapezoid(insertion, shares)


@METRICS.register_module()
class PerturbationAUC(MaskingMetric):
    """The positive and the negative perturbation test: accuracy as pixels turn black by relevance.

    Of the pixels int(H · W · f), f = 0.1, 0.2, ... 0.9, turn black (0 before normalisation).
    ``positive_auc`` takes the most relevant pixels first (lower is better), ``negative_auc`` the least
    relevant first (higher is better); each is the area under the top-1 accuracy against the *ground
    truth* over f = 0, 0.1, ... 0.9 by the trapezoidal rule, in [0, 0.9]. ``gap`` is negative minus
    positive. Maps are signed and resized to the image; pixels of equal relevance come row by row.
    The explainer decides which class a map explains; the protocol knows the predicted and the true one.

    These areas mix accuracy with the quality of maps. To compare models of different accuracy use
    ``relative_positive_auc`` and ``relative_negative_auc``, the areas divided by 0.9 times
    ``clean_accuracy``, the accuracy on the same samples. Their confidence intervals are those of a ratio
    of means, by linearisation.

    Source: Chefer et al., "Transformer Interpretability Beyond Attention Visualization", CVPR 2021.
    Issues 27 and 31 of its repository confirm the trapezoids, x = 0 included, and no division by 0.9.

    Args:
        max_batch (int): The most images predicted at once. Defaults to 64.

    Raises:
        ValueError: If ``max_batch`` is less than 1; from an evaluation, if a sample has no label.
    """

    question, guide = 'faithfulness', 'metrics_faithfulness'
    meanings = dict(
        positive_auc='Mean accuracy while the most relevant pixels turn black first.',
        negative_auc='Mean accuracy while the least relevant pixels turn black first.',
        gap='Negative minus positive AUC; 0 by chance.',
        clean_accuracy='Accuracy on the images as they are.',
        relative_positive_auc='Positive AUC, divided by what the clean accuracy allows.',
        relative_negative_auc='Negative AUC, divided by what the clean accuracy allows.',
    )
    better = dict(
        positive_auc='lower',
        negative_auc='higher',
        gap='higher',
        clean_accuracy='higher',
        relative_positive_auc='lower',
        relative_negative_auc='higher',
    )
    no_floor = ('clean_accuracy',)
    fractions = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

    def measure(self, batch: ExplainedBatch, model: Explained) -> dict[str, Tensor]:
        """The areas of single samples, whose hits are 0 or 1."""
        if model.logits.shape[1] == 1:
            raise ValueError(
                'PerturbationAUC counts which class is predicted, and the model has one logit; use '
                'DeletionInsertion, which measures its probability'
            )
        images = batch.inputs
        labels = torch.tensor(batch.labels(type(self).__name__), device=images.device)
        fill = _replace(images, batch.black().expand_as(images))
        maps = resize_maps(model.maps, images.shape[2:])
        counts = [int(maps[0].numel() * f) for f in self.fractions]
        shares = torch.tensor((0.0, *self.fractions), device=images.device)
        clean = (model.logits.argmax(-1) == labels).float()

        def area(maps: Tensor) -> Tensor:
            predicted = self._logits(model, pixel_ranks(maps), counts, fill).argmax(-1)
            hits = (predicted == labels[:, None]).float()
            return torch.trapezoid(torch.cat([clean[:, None], hits], 1), shares)

        positive, negative = area(maps), area(-maps)
        return dict(
            positive_auc=positive,
            negative_auc=negative,
            gap=negative - positive,
            clean_accuracy=clean,
        )

    def summarize(self, rows: list[dict[str, Any]]) -> dict[str, Score]:
        """The means, and the areas relative to the accuracy of the data set."""
        scores = super().summarize(rows)
        for prefix, values in by_model(rows).items():
            possible = [self.fractions[-1] * each for each in values['clean_accuracy']]
            for name in ('positive_auc', 'negative_auc'):
                if name in values:
                    score = f'relative_{name}'
                    ratio = mean_ratio_score(values[name], possible, self.better[score])
                    scores[prefix + score] = ratio
        return scores


@METRICS.register_module()
class ROAD(MaskingMetric):
    """Remove and debias: the probability of the explained class without some of its pixels.

    Pixels of one colour would leave the shape of the map in the image, from which a model may read the
    class. Here they become the weighted mean of their neighbours plus a little noise.
    ``road_morf`` is the mean probability with the most relevant pixels removed (lower is better),
    ``road_lerf`` with the least relevant ones removed (higher is better), both in [0, 1]; ``road`` is
    (LeRF - MoRF) / 2, in [-0.5, 0.5] (higher is better). Maps are resized to the image; pixels of equal
    relevance come row by row.

    Source: Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution Methods", ICML
    2022, which draws a curve of the accuracy. The combination and the shares of pixels are those of
    grad-cam's ``ROADCombined``; the clean score cancels out of it. The authors impute before
    normalisation, which only changes the scale of the noise.

    Args:
        fractions (Sequence[float]): The shares of removed pixels, int(H · W · f) of them. Defaults to
            0.1, 0.2, ... 0.9.
        noise (float): The standard deviation of the noise, in units of the normalised image. Defaults to
            0.01.
        seed (int): Seed of the noise, which is the same for all models, for all shares and in every
            evaluation. Defaults to 0.
        max_batch (int): The most images filled and predicted at once. Defaults to 64.

    Raises:
        ValueError: If an argument is out of its range.
    """

    question, guide = 'faithfulness', 'metrics_faithfulness'
    meanings = dict(
        road='How much more the relevant pixels matter than the others; 0 by chance.',
        road_morf='Mean probability of the class with the most relevant pixels in-painted.',
        road_lerf='Mean probability of the class with the least relevant pixels in-painted.',
    )
    better = dict(road='higher', road_morf='lower', road_lerf='higher')

    def __init__(
        self,
        fractions: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        noise: float = 0.01,
        seed: int = 0,
        max_batch: int = 64,
    ) -> None:
        super().__init__(max_batch)
        self.fractions = numbers('ROAD.fractions', fractions, 0, 1, open_low=True, open_high=True)
        self.noise = number('ROAD.noise', noise, 0)
        self.seed = integer('ROAD.seed', seed, 0)

    def measure(self, batch: ExplainedBatch, model: Explained) -> dict[str, Tensor]:
        """The values of one model's maps."""
        images = batch.inputs
        maps = resize_maps(model.maps, images.shape[2:])
        counts = [int(maps[0].numel() * f) for f in self.fractions]
        generators = sample_generators(batch.index, self.seed, images.device)
        noise = [torch.randn(images.shape[1:], generator=g, device=g.device) for g in generators]
        noise = self.noise * torch.stack(noise).to(images)

        def fill(sample: Tensor, chosen: Tensor) -> Tensor:
            filled = linear_imputation(images[sample], chosen)
            return torch.where(chosen[:, None], filled + noise[sample], filled)

        morf, lerf = (
            model.confidence(self._logits(model, pixel_ranks(order), counts, fill)).mean(1)
            for order in (maps, -maps)
        )
        return dict(road=(lerf - morf) / 2, road_morf=morf, road_lerf=lerf)
