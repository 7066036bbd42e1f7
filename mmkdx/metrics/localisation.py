"""Whether maps mark the right region, by masks of the data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmkdx.arguments import integer, number, one_of
from mmkdx.functional import degenerate_maps, full_precision, normalize_maps, resize_maps
from mmkdx.functional.segmentation import average_precision, dilate, rank_accuracy
from mmkdx.metrics.base import Explained, ExplainedBatch, ExplanationMetric, by_model, drop_hidden
from mmkdx.metrics.scores import Score, class_mean_score, mean_score, pooled_score
from mmkdx.registry import METRICS

#: Labels of unlabelled pixels.
IGNORED = (255, -1)
#: The side of inputs that tolerances are given for.
REFERENCE_SIDE = 224


class RegionMetric(ExplanationMetric):
    """Base of the metrics that compare maps with a region of the image.

    The region comes from the label map 'gt_seg_map' of each data sample: an array or a tensor (H, W) of
    the input's size, with 0 for background and 255 or -1 for pixels that are ignored. A sample with an
    empty region is not counted.

    Args:
        labels (Sequence[int] | str, optional): The labels that make the region, or the field of the data
            samples that lists them for each sample, like 'deciding_labels' of ``Parts``. Defaults to
            None (every label but 0).

    Raises:
        ValueError: If labels are listed and there are none, or one marks ignored pixels.
    """

    has_floor = True

    def __init__(self, labels: Sequence[int] | str | None = None) -> None:
        super().__init__()
        name = f'{type(self).__name__}.labels'
        if labels is not None and not isinstance(labels, str):
            if not isinstance(labels, Sequence) or not labels:
                raise ValueError(
                    f'{name} is {labels!r}; it must be a list of label ids, the name of a field, or '
                    'None for every label but 0'
                )
            for label in labels:
                if integer(name, label) in IGNORED:
                    raise ValueError(f'{name} has {label}, which marks pixels that are ignored')
        self.labels = labels

    def regions(self, batch: ExplainedBatch) -> tuple[Tensor, Tensor]:
        """The region and the pixels that are not ignored, both booleans (N, H, W).

        Raises:
            ValueError: If a sample has no mask, a mask of another size than the input, or not the field
                of ``labels``.
        """
        regions, kept = [], []
        samples = batch.data_samples or [{}] * len(batch.index)
        masks = label_maps(batch, type(self).__name__)
        for index, sample, mask in zip(batch.index, samples, masks):
            labels = self.labels
            if isinstance(labels, str):
                labels = sample.get(labels)
                if labels is None:
                    raise ValueError(
                        f'labels is {self.labels!r} and sample {index} has no such field; name one that '
                        'the data set provides and PackInputs packs (meta_keys), or list label ids'
                    )
            known = ~torch.isin(mask, mask.new_tensor(IGNORED))
            region = (
                mask != 0 if labels is None else torch.isin(mask, torch.as_tensor(labels).to(mask))
            )
            kept.append(known)
            regions.append(region & known)
        return torch.stack(regions), torch.stack(kept)


def label_maps(batch: ExplainedBatch, owner: str) -> Tensor:
    """The label maps 'gt_seg_map' of a batch's data samples, int32 of shape (N, H, W).

    Raises:
        ValueError: If a sample has none, or one of another size than the input; the message names the
            owner.
    """
    size = tuple(batch.inputs.shape[-2:])
    maps = []
    for index, sample in zip(batch.index, batch.data_samples or [{}] * len(batch.index)):
        mask = sample.get('gt_seg_map')
        if mask is None:
            raise ValueError(
                f'{owner} needs masks and sample {index} has none; the data set must provide a label '
                "map 'gt_seg_map', and PackInputs pack it (algorithm_keys=('gt_seg_map', ))"
            )
        if not isinstance(mask, Tensor):
            mask = torch.from_numpy(np.ascontiguousarray(mask))  # flips yield negative strides
        if tuple(mask.shape) != size:
            raise ValueError(
                f'gt_seg_map of sample {index} has the shape {tuple(mask.shape)} and the input {size}; '
                f'{owner} needs both transformed alike'
            )
        maps.append(mask.int())
    return torch.stack(maps).to(batch.inputs.device)


@METRICS.register_module()
class PointingGame(RegionMetric):
    """Whether a map's maximum, its evidence and its highest pixels are in a region.

    Maps are resized to the input's size (see ``resize_map``). All are in [0, 1]; higher is better.

    - ``pointing_game``: whether a pixel of the region is less than ``tolerance`` from the map's maximum.
      Several maxima count in equal parts. Source: Zhang et al., "Top-down Neural Attention by
      Excitation Backprop", IJCV 2018 (ECCV 2016), with the disc of TorchRay.
    - ``energy``: the share of the positive evidence in the region, of the map after ReLU, then resized.
      Source: Wang et al., "Score-CAM", CVPR Workshops 2020.
    - ``rank_accuracy``: the share of the region among as many highest pixels as the region has.
      Source: Arras et al., "CLEVR-XAI", Information Fusion 2022.
    - ``pointing_game_chance`` and ``energy_chance``: the scores of a map without information: the share
      of the image within the tolerance, and the share of the region (the chance of ``rank_accuracy``
      too).

    Args:
        tolerance (float): The tolerance in pixels of an input whose shorter side is 224; it scales
            with the input. With 0 the maximum itself must be in the region. Defaults to 15.
        labels (Sequence[int] | str, optional): See ``RegionMetric``. Defaults to None.
        average (str): How ``pointing_game`` and its chance are averaged: 'class', the mean over the
            explained classes of the means over their samples (the paper), or 'sample'. Defaults to
            'class'.

    Raises:
        ValueError: If an argument is out of its range.
    """

    question, guide = 'localisation', 'metrics_localisation'
    meanings = dict(
        pointing_game='Share of images in which the maximum of the map hits the region.',
        energy='Share of the positive evidence that lies in the region.',
        rank_accuracy='Share of the highest pixels that lie in the region.',
        pointing_game_chance='The pointing game of a map without information.',
        energy_chance='The energy of a map without information.',
    )
    better = dict(pointing_game='higher', energy='higher', rank_accuracy='higher')

    def __init__(
        self,
        tolerance: float = 15,
        labels: Sequence[int] | str | None = None,
        average: str = 'class',
    ) -> None:
        super().__init__(labels)
        self.tolerance = number('PointingGame.tolerance', tolerance, 0)
        self.average = one_of('PointingGame.average', average, ('class', 'sample'))

    def measure(self, batch: ExplainedBatch, model: Explained) -> dict[str, Tensor]:
        """All scores of each map, and the explained ``_class``."""
        region, kept = self.regions(batch)
        size = batch.inputs.shape[-2:]
        maps = full_precision(model.maps)
        evidence = resize_maps(maps.relu(), size)
        maps = resize_maps(maps, size).masked_fill(~kept, -torch.inf)
        near = dilate(region, self.tolerance * min(size) / REFERENCE_SIDE)
        values = dict(
            pointing_game=_share(maps == maps.amax((1, 2), keepdim=True), near),
            pointing_game_chance=_share(kept, near),
            energy=_share(evidence * kept, region),
            energy_chance=_share(kept, region),
            rank_accuracy=rank_accuracy(maps, region, kept),
        )
        empty = ~region.flatten(1).any(1)
        values = {name: value.masked_fill(empty, torch.nan) for name, value in values.items()}
        return dict(values, _class=model.targets)

    def summarize(self, rows: list[dict[str, Any]]) -> dict[str, Score]:
        """The means over samples or classes."""
        models = by_model(rows)
        drop_hidden(rows)
        scores = super().summarize(rows)
        for prefix, values in models.items() if self.average == 'class' else ():
            for name in ('pointing_game', 'pointing_game_chance'):
                pairs = list(zip(values['_class'], values[name]))
                scores[prefix + name] = class_mean_score(pairs, self.direction(name))
        return scores


@METRICS.register_module()
class MapSegmentation(RegionMetric):
    """How well a map segments the object, in the protocol of ImageNet-Segmentation.

    Source: Chefer et al., "Transformer Interpretability Beyond Attention Visualization", CVPR 2021, as
    the authors' code computes it. A map is resized to the input's size (see ``resize_map``) and scaled
    to [0, 1] by its minimum and maximum; pixels above the map's mean are foreground.

    - ``pixel_accuracy``: correct pixels over labelled ones, both summed over the data set.
    - ``mean_iou``: the mean over background and foreground of the intersection over the union, both
      summed over the data set.
    - ``mean_ap``: the mean over images of the average precision of both classes pooled, with 1 - R
      as the background's scores and R as the foreground's.

    All are in [0, 1]; higher is better. A constant map counts: it predicts background, and its scores
    are all 0. The intervals of the first two are bootstrapped. The argument is that of ``RegionMetric``.
    """

    question, guide = 'localisation', 'metrics_localisation'
    meanings = dict(
        pixel_accuracy='Share of pixels that are rightly above or below the mean of the map.',
        mean_iou='Intersection over union of the map above its mean with the object, and of the rest.',
        mean_ap='Average precision of the map as a score for the object.',
    )
    better = dict(pixel_accuracy='higher', mean_iou='higher', mean_ap='higher')
    counts_degenerate = True

    def measure(self, batch: ExplainedBatch, model: Explained) -> dict[str, Tensor]:
        """Counts of pixels and the average precision of each map."""
        region, kept = self.regions(batch)
        maps = resize_maps(full_precision(model.maps), batch.inputs.shape[-2:])
        good = ~degenerate_maps(maps)[:, None, None]
        maps = normalize_maps(maps)
        found = maps > maps.mean((1, 2), keepdim=True)
        truth = torch.stack([~region & kept, region], 1).flatten(2)
        guess = torch.stack([~found & kept, found & kept], 1).flatten(2)
        both, either = (truth & guess).sum(2), (truth | guess).sum(2)
        scores = torch.stack([(1 - maps) * good, maps * good], 1).flatten(1)
        values = dict(
            labelled=kept.flatten(1).sum(1),
            background_both=both[:, 0],
            background_either=either[:, 0],
            foreground_both=both[:, 1],
            foreground_either=either[:, 1],
            average_precision=average_precision(
                scores, truth.flatten(1), torch.stack([kept, kept], 1).flatten(1)
            ),
        )
        empty = ~region.flatten(1).any(1)
        return {
            name: value.to(maps.dtype).masked_fill(empty, torch.nan)
            for name, value in values.items()
        }

    def summarize(self, rows: list[dict[str, Any]]) -> dict[str, Score]:
        """The scores of the data set, from the counts of its images."""
        scores = {}
        for prefix, values in by_model(rows).items():
            for name, counts in _counts(values).items():
                scores[prefix + name] = ratio_score(*counts, 'higher')
            scores[f'{prefix}mean_ap'] = mean_score(values['average_precision'], 'higher')
        return scores

    def pairs(
        self, rows: list[tuple[dict[str, Any], dict[str, Any]]]
    ) -> tuple[dict[str, Score], dict[str, Score]]:
        """See the base class; both scores are of the same images in each bootstrap sample."""
        noise = [each for _, each in rows]
        own = [{name: each[name] for name in noise[0]} for each, _ in rows]
        first, second = (_counts(by_model(each)['']) for each in (own, noise))
        gaps = {}
        for name in first:
            (one, n), (other, _) = _ratio(*first[name]), _ratio(*second[name])
            gaps[name] = pooled_score(lambda i, one=one, other=other: one(i) - other(i), n)
        values = [one['average_precision'] - other['average_precision'] for one, other in rows]
        return self.summarize(noise), dict(gaps, mean_ap=mean_score(values))


def _counts(values: dict[str, list]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The counts that the ratios of ``MapSegmentation`` are made of, by the names of scores."""

    def columns(*names: str) -> np.ndarray:
        return np.array([values[name] for name in names], float).T

    both = columns('background_both', 'foreground_both')
    return dict(
        pixel_accuracy=(both.sum(1, keepdims=True), columns('labelled')),
        mean_iou=(both, columns('background_either', 'foreground_either')),
    )


def ratio_score(parts: np.ndarray, wholes: np.ndarray, better: str | None = None) -> Score:
    """The mean over columns of sum of parts / sum of wholes; see ``pooled_score``.

    Args:
        parts (np.ndarray): Counts of shape (n, k), a row of NaN for a sample that is left out.
        wholes (np.ndarray): Counts of the same shape. A column without any has the ratio 0.
        better (str, optional): 'higher' or 'lower'.
    """
    return pooled_score(*_ratio(parts, wholes), better)


def _ratio(parts: np.ndarray, wholes: np.ndarray) -> tuple[Callable[[np.ndarray], np.ndarray], int]:
    """What yields the ratio of samples by their positions, and the number of samples."""
    counted = ~np.isnan(parts).any(1)
    parts, wholes = parts[counted], wholes[counted]

    def statistic(index: np.ndarray) -> np.ndarray:
        return (parts[index].sum(-2) / np.maximum(wholes[index].sum(-2), 1)).mean(-1)

    return statistic, len(parts)


def _share(weights: Tensor, region: Tensor) -> Tensor:
    """The share of the weights (N, H, W) that lies in the region, of shape (N, )."""
    weights = full_precision(weights).flatten(1)
    return (weights * region.flatten(1)).sum(1) / weights.sum(1)
