"""Does the model depend on the pixels that its map points at?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from mmkdx.functional import full_precision, normalize_maps, resize_maps
from mmkdx.functional.perturbation import (
    blur,
    linear_imputation,
    pixel_ranks,
    sample_generators,
)
from mmkdx.metrics.base import Explained, ExplainedBatch, ExplanationMetric, Score
from mmkdx.registry import METRICS


class _MaskingMetric(ExplanationMetric):
    """A metric that shows the model many copies of each image, with more and more pixels replaced."""

    def __init__(self, max_batch: int, collect_device: str) -> None:
        if max_batch < 1:
            raise ValueError(f'max_batch is {max_batch}; it must be at least 1')
        super().__init__(collect_device)
        self.max_batch = max_batch

    def _logits(
        self,
        model: Explained,
        ranks: Tensor,
        counts: Sequence[int],
        fill: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        """The logits of all copies, in chunks of ``max_batch``.

        Args:
            model (Explained): Whose logits.
            ranks (Tensor): The ranks of pixels, of shape (N, H, W).
            counts (Sequence[int]): For each of S steps how many pixels are chosen.
            fill (Callable): Yields the M copies from the samples (M, ) that they are of and the chosen
                pixels (M, H, W).

        Returns:
            Tensor: Logits of shape (N, S, K).
        """
        steps = torch.tensor(counts, device=ranks.device)
        copies = torch.arange(len(ranks) * len(counts), device=ranks.device)
        logits = []
        for copy in copies.split(self.max_batch):
            sample, step = copy // len(counts), copy % len(counts)
            chosen = ranks[sample] < steps[step][:, None, None]
            logits.append(model.predict(fill(sample, chosen)))
        return torch.cat(logits).unflatten(0, (len(ranks), len(counts)))


def _replace(images: Tensor, values: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """What puts ``values`` in the place of chosen pixels of ``images``, all of shape (N, C, H, W)."""
    return lambda sample, chosen: torch.where(chosen[:, None], values[sample], images[sample])


def _probabilities(logits: Tensor, targets: Tensor) -> Tensor:
    """The softmax probabilities of classes (N, ) from logits of shape (N, ..., K)."""
    probabilities = full_precision(logits).softmax(-1)
    index = targets.view(-1, *[1] * (logits.ndim - 1))
    return probabilities.take_along_dim(index, -1)[..., 0]


@METRICS.register_module()
class DeletionInsertion(_MaskingMetric):
    """The area under the probability of the explained class as its pixels go, or come, by relevance.

    ``deletion`` begins with the image and replaces the most relevant pixels first; lower is better.
    ``insertion`` begins with a baseline and restores the most relevant pixels first; higher is better.
    Both are in [0, 1]: the trapezoidal rule over the true shares of pixels, with the image and the full
    baseline at the ends. Maps are resized to the image, and pixels of equal relevance are taken row by
    row.

    With ``cross``, a student is also tried with its teacher's reasons (``cross_deletion`` and
    ``cross_insertion``: the student's probability of the class that the teacher's map explains, by the
    teacher's map) and the teacher with the student's (``reverse_cross_deletion`` and
    ``reverse_cross_insertion``).

    Source: Petsiuk et al., "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC
    2018. The defaults are those of its public code for ImageNet: 28 steps of 224 · 8 pixels, deletion to
    zeros after normalisation (the mean colour), insertion into a blurred image. torchcam and xplique
    insert into zeros: ``insertion_baseline='zero'``.

    Args:
        steps (int): The number of steps; each takes ⌈H · W / steps⌉ pixels, the last what is left.
            Defaults to 28.
        deletion_baseline (str): What pixels are replaced with: 'zero' (after normalisation), 'black'
            (before it), or 'blur' (see ``mmkdx.functional.perturbation.blur``). Defaults to 'zero'.
        insertion_baseline (str): What insertion begins with, one of the same. Defaults to 'blur'.
        cross (bool): Whether student and teacher are tried with each other's maps, which triples the
            forward passes of a distillation. Defaults to True.
        max_batch (int): How many images are predicted at once. Defaults to 64.
        collect_device (str): Where ranks exchange values, 'cpu' or 'gpu'. Defaults to 'cpu'.

    Raises:
        ValueError: If an argument is out of its range.
    """

    better = dict(
        deletion='lower',
        insertion='higher',
        cross_deletion='lower',
        cross_insertion='higher',
        reverse_cross_deletion='lower',
        reverse_cross_insertion='higher',
    )

    def __init__(
        self,
        steps: int = 28,
        deletion_baseline: str = 'zero',
        insertion_baseline: str = 'blur',
        cross: bool = True,
        max_batch: int = 64,
        collect_device: str = 'cpu',
    ) -> None:
        if steps < 1:
            raise ValueError(f'steps is {steps}; it must be at least 1')
        for key, value in (
            ('deletion_baseline', deletion_baseline),
            ('insertion_baseline', insertion_baseline),
        ):
            if value not in ('zero', 'black', 'blur'):
                raise ValueError(f'{key} is {value!r}; it must be one of zero, black, blur')
        super().__init__(max_batch, collect_device)
        self.steps = steps
        self.deletion_baseline = deletion_baseline
        self.insertion_baseline = insertion_baseline
        self.cross = cross

    def measure(self, batch: ExplainedBatch, model: Explained) -> dict[str, Tensor]:
        """A model under its own maps.

        Args:
            batch (ExplainedBatch): The batch.
            model (Explained): One of its models.

        Returns:
            dict[str, Tensor]: ``deletion`` and ``insertion``, of shape (N, ).
        """
        deletion, insertion = self._areas(batch, model, model)
        return dict(deletion=deletion, insertion=insertion)

    def compare(
        self, batch: ExplainedBatch, student: Explained, teacher: Explained
    ) -> dict[str, Tensor]:
        """Each model under the other's maps.

        Args:
            batch (ExplainedBatch): The batch.
            student (Explained): The student, or the baseline.
            teacher (Explained): The teacher.

        Returns:
            dict[str, Tensor]: The four cross values of shape (N, ), none without ``cross``.
        """
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
        # Not all steps are taken where they would go beyond the last pixel
        counts = [*range(0, pixels, size), pixels]
        clean = _probabilities(model.logits, reasons.targets)[:, None]

        def curve(counts: list[int], fill: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
            return _probabilities(self._logits(model, ranks, counts, fill), reasons.targets)

        start, end = (
            self._baseline(batch, kind)
            for kind in (self.insertion_baseline, self.deletion_baseline)
        )
        deletion = torch.cat([clean, curve(counts[1:], _replace(images, end))], 1)
        insertion = torch.cat([curve(counts[:-1], _replace(start, images)), clean], 1)
        shares = torch.tensor(counts, device=images.device) / pixels
        return torch.trapezoid(deletion, shares), torch.trapezoid(insertion, shares)

    @staticmethod
    def _baseline(batch: ExplainedBatch, kind: str) -> Tensor:
        if kind == 'blur':
            return blur(batch.inputs)
        if kind == 'black':
            return batch.black().expand_as(batch.inputs)
        return torch.zeros_like(batch.inputs)


@METRICS.register_module()
class PerturbationAUC(_MaskingMetric):
    """The positive and the negative perturbation test: accuracy as pixels turn black by relevance.

    A tenth to nine tenths of the pixels, int(H · W · f) of them, turn black: their values are 0 before
    normalisation. ``positive_auc`` takes the most relevant pixels first (lower is better),
    ``negative_auc`` the least relevant first (higher is better); each is the area under the top-1
    accuracy against the *ground truth* over f = 0, 0.1, ... 0.9 by the trapezoidal rule, so that it is
    in [0, 0.9]. ``gap`` is negative minus positive. Maps are signed, resized to the image, and pixels of
    equal relevance are taken row by row. The class that a map explains is the explainer's business; the
    protocol knows maps of the predicted and of the true class.

    These areas mix accuracy with the quality of maps. To compare models of different accuracy there are
    ``relative_positive_auc`` and ``relative_negative_auc``, the areas divided by 0.9 times
    ``clean_accuracy``, the accuracy on the same samples; their confidence intervals are those of a ratio
    of means, by linearisation.

    Source: Chefer et al., "Transformer Interpretability Beyond Attention Visualization", CVPR 2021.
    Issues 27 and 31 of its repository confirm the trapezoids, x = 0 included, and no division by 0.9.

    Args:
        max_batch (int): How many images are predicted at once. Defaults to 64.
        collect_device (str): Where ranks exchange values, 'cpu' or 'gpu'. Defaults to 'cpu'.

    Raises:
        ValueError: If ``max_batch`` is less than 1, or later if a sample has no label.
    """

    better = dict(
        positive_auc='lower',
        negative_auc='higher',
        gap='higher',
        clean_accuracy='higher',
        relative_positive_auc='lower',
        relative_negative_auc='higher',
    )
    fractions = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

    def __init__(self, max_batch: int = 64, collect_device: str = 'cpu') -> None:
        super().__init__(max_batch, collect_device)

    def measure(self, batch: ExplainedBatch, model: Explained) -> dict[str, Tensor]:
        """The areas of single samples, whose hits are 0 or 1.

        Args:
            batch (ExplainedBatch): The batch; its samples need labels.
            model (Explained): One of its models.

        Returns:
            dict[str, Tensor]: ``positive_auc``, ``negative_auc``, ``gap`` and ``clean_accuracy``, of
            shape (N, ).

        Raises:
            ValueError: If a sample has not exactly one label.
        """
        images = batch.inputs
        labels = torch.tensor(_labels(batch), device=images.device)
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
        """The means of all values, and the areas relative to the accuracy of the data set.

        Args:
            rows (list[dict]): Each sample's values.

        Returns:
            dict[str, Score]: The scores, by name.
        """
        scores = super().summarize(rows)
        for name in list(scores):
            prefix, _, value = name.rpartition('/')
            if value in ('positive_auc', 'negative_auc'):
                prefix = prefix and f'{prefix}/'
                areas, accuracy = (
                    np.array([row.get(key, np.nan) for row in rows], dtype=float)
                    for key in (name, f'{prefix}clean_accuracy')
                )
                score = f'{prefix}relative_{value}'
                scores[score] = _ratio_score(
                    areas, self.fractions[-1] * accuracy, self.direction(score)
                )
        return scores


def _labels(batch: ExplainedBatch) -> list[int]:
    labels = []
    samples = batch.data_samples or [{}] * len(batch.index)
    for index, sample in zip(batch.index, samples):
        label = torch.as_tensor(sample.get('gt_label', ())).flatten()
        if len(label) != 1:
            raise ValueError(
                f'PerturbationAUC counts hits against one label an image, and sample {index} has '
                f"{len(label)} in 'gt_label'; leave the metric out for such a data set"
            )
        labels.append(int(label))
    return labels


def _ratio_score(numerators: np.ndarray, denominators: np.ndarray, better: str | None) -> Score:
    """The ratio of two means over the same samples, with its 95 % confidence interval."""
    # Both are NaN for the same samples, those that are not counted
    counted = ~np.isnan(denominators)
    numerators, denominators = numerators[counted], denominators[counted]
    n = len(numerators)
    if n == 0 or not denominators.any():
        return Score(float('nan'), float('nan'), float('nan'), n, better)
    mean = float(denominators.mean())
    ratio = float(numerators.mean()) / mean
    if n == 1:
        return Score(ratio, float('nan'), float('nan'), n, better)
    deviation = (numerators - ratio * denominators).std(ddof=1) / mean
    half = float(stats.t.ppf(0.975, n - 1) * deviation / np.sqrt(n))
    return Score(ratio, ratio - half, ratio + half, n, better)


@METRICS.register_module()
class AverageDrop(ExplanationMetric):
    """What the model makes of the image when only what the map shows is left of it: x ⊙ φ.

    φ is the map, normalised to [0, 1] by its minimum and maximum at its own resolution and resized to
    the image. It multiplies the *normalised* image, as in the public code of ADCC, torchcam and
    grad-cam, so that the rest turns into the mean colour. p is the softmax probability of the explained
    class on the image and p' that on x ⊙ φ; all scores are in [0, 1].

    - ``average_drop``: max(0, p - p') / p; lower is better.
    - ``increase_in_confidence``: 1 where p' > p; higher is better.
    - ``average_gain``: max(0, p' - p) / (1 - p); higher is better.
    - ``coherency``: (1 + Pearson's correlation of φ with that of x ⊙ φ) / 2; higher is better. Where the
      latter map is constant it is 0.
    - ``complexity``: the mean of φ; lower is better.
    - ``adcc``: the harmonic mean of coherency, 1 - complexity and 1 - the drop, of each image; higher is
      better. The score is the mean over images, which is at most the harmonic mean of the three means.

    Source: Chattopadhay et al., "Grad-CAM++", WACV 2018 (drop and increase); Zhang et al., "Opti-CAM",
    CVIU 2024 (gain); Poppi et al., "Revisiting The Evaluation of Class Activation Mapping for
    Explainability", CVPRW 2021 (the others).

    Args:
        relu (bool): Whether negative evidence is set to 0 before a map is normalised. Defaults to True.
        collect_device (str): Where ranks exchange values, 'cpu' or 'gpu'. Defaults to 'cpu'.
    """

    better = dict(
        average_drop='lower',
        increase_in_confidence='higher',
        average_gain='higher',
        coherency='higher',
        complexity='lower',
        adcc='higher',
    )

    def __init__(self, relu: bool = True, collect_device: str = 'cpu') -> None:
        super().__init__(collect_device)
        self.relu = relu

    def measure(self, batch: ExplainedBatch, model: Explained) -> dict[str, Tensor]:
        """The values of one model's maps.

        Args:
            batch (ExplainedBatch): The batch.
            model (Explained): One of its models.

        Returns:
            dict[str, Tensor]: The six values, of shape (N, ).
        """
        size = batch.inputs.shape[2:]
        maps = resize_maps(normalize_maps(model.maps, self.relu), size)
        masked = batch.inputs * maps[:, None].to(batch.inputs)
        before = _probabilities(model.logits, model.targets)
        after = _probabilities(model.predict(masked), model.targets)
        # Where a divisor is 0 so is what it divides
        tiny = torch.finfo(before.dtype).tiny
        drop = (before - after).relu() / before.clamp(min=tiny)
        gain = (after - before).relu() / (1 - before).clamp(min=tiny)
        again = model.explain(masked, model.targets)
        again = resize_maps(normalize_maps(again, self.relu), size)
        coherency = _coherency(maps, again)
        complexity = maps.mean((1, 2))
        adcc = 3 / (1 / coherency + 1 / (1 - complexity) + 1 / (1 - drop))
        return dict(
            average_drop=drop,
            increase_in_confidence=(after > before).float(),
            average_gain=gain,
            coherency=coherency,
            complexity=complexity,
            adcc=adcc,
        )


def _coherency(maps: Tensor, others: Tensor) -> Tensor:
    """Pearson's correlation of maps (N, H, W) as a number in [0, 1]; 0 where there is none."""
    first, second = (m.flatten(1) - m.flatten(1).mean(1, keepdim=True) for m in (maps, others))
    norm = first.norm(dim=1) * second.norm(dim=1)
    pearson = (first * second).sum(1) / torch.where(norm > 0, norm, 1.0)
    return torch.where(norm > 0, (pearson.clamp(-1, 1) + 1) / 2, 0.0)


@METRICS.register_module()
class ROAD(_MaskingMetric):
    """Remove and debias: the probability of the explained class without some of its pixels.

    Replacing pixels by a colour leaves the shape of the map in the image, from which a model may read
    the class. Here they become the weighted mean of their neighbours plus a little noise.
    ``road_morf`` is the mean probability with the most relevant pixels removed (lower is better),
    ``road_lerf`` with the least relevant ones removed (higher is better), both in [0, 1]; ``road`` is
    (LeRF - MoRF) / 2, in [-0.5, 0.5] (higher is better). Maps are resized to the image, and pixels of
    equal relevance are taken row by row.

    Source: Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution Methods", ICML
    2022, which draws a curve of the accuracy. The combination and the shares of pixels are those of
    grad-cam's ``ROADCombined``; its parts are differences from the clean score, which cancels out. The
    authors impute before normalisation, which is the same but for the scale of the noise.

    Args:
        fractions (Sequence[float]): The shares of pixels that are removed, int(H · W · f) of them.
            Defaults to 0.1, 0.2, ... 0.9.
        noise (float): The standard deviation of the noise, in units of the normalised image. Defaults to
            0.01.
        seed (int): Seed of the noise, which is the same for all models, for all shares and in every
            evaluation. Defaults to 0.
        max_batch (int): How many images are filled and predicted at once. Defaults to 64.
        collect_device (str): Where ranks exchange values, 'cpu' or 'gpu'. Defaults to 'cpu'.

    Raises:
        ValueError: If an argument is out of its range.
    """

    better = dict(road='higher', road_morf='lower', road_lerf='higher')

    def __init__(
        self,
        fractions: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        noise: float = 0.01,
        seed: int = 0,
        max_batch: int = 64,
        collect_device: str = 'cpu',
    ) -> None:
        if not fractions or not all(0 < f < 1 for f in fractions):
            raise ValueError(f'fractions is {fractions}; it must hold numbers between 0 and 1')
        if noise < 0:
            raise ValueError(f'noise is {noise}; it must not be negative')
        super().__init__(max_batch, collect_device)
        self.fractions = fractions
        self.noise = noise
        self.seed = seed

    def measure(self, batch: ExplainedBatch, model: Explained) -> dict[str, Tensor]:
        """The values of one model's maps.

        Args:
            batch (ExplainedBatch): The batch.
            model (Explained): One of its models.

        Returns:
            dict[str, Tensor]: ``road``, ``road_morf`` and ``road_lerf``, of shape (N, ).
        """
        images = batch.inputs
        maps = resize_maps(model.maps, images.shape[2:])
        counts = [int(maps[0].numel() * f) for f in self.fractions]
        noise = self.noise * torch.stack(
            [
                torch.randn(images.shape[1:], generator=g, device=g.device)
                for g in sample_generators(batch.index, self.seed, images.device)
            ]
        ).to(images)

        def fill(sample: Tensor, chosen: Tensor) -> Tensor:
            filled = linear_imputation(images[sample], chosen)
            return torch.where(chosen[:, None], filled + noise[sample], filled)

        morf, lerf = (
            _probabilities(
                self._logits(model, pixel_ranks(order), counts, fill), model.targets
            ).mean(1)
            for order in (maps, -maps)
        )
        return dict(road=(lerf - morf) / 2, road_morf=morf, road_lerf=lerf)
