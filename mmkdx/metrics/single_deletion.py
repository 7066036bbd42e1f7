"""Does a map predict how far the score falls when cells of the image are deleted?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmkdx.arguments import integer, integers, one_of
from mmkdx.functional import degenerate_maps, full_precision, resize_maps
from mmkdx.functional.perturbation import cell_numbers, sample_generators
from mmkdx.functional.similarity import spearman_correlation
from mmkdx.metrics.base import Explained, ExplainedBatch, labels_of
from mmkdx.metrics.faithfulness import BASELINES, MaskingMetric, baseline_images
from mmkdx.registry import METRICS


class CellMetric(MaskingMetric):
    """Base of the metrics that delete cells of a grid and look at the logit of the explained class."""

    def __init__(self, grid: int, max_batch: int) -> None:
        super().__init__(max_batch)
        self.grid = integer(f'{type(self).__name__}.grid', grid, 2)

    def _deleted(
        self, batch: ExplainedBatch, model: Explained, sets: Tensor, kind: str
    ) -> tuple[Tensor, Tensor]:
        """The map's sum over each set of cells (N, S), and all logits without the set (N, S, K).

        Sets are booleans (N, S, grid²). The logits do not depend on the map, so several maps of one
        model share them.
        """
        images, values = batch.inputs, baseline_images(batch, kind)
        cells = cell_numbers(images.shape[2:], self.grid, f'{type(self).__name__}.grid')
        cells, sets = cells.to(images.device), sets.to(images.device)

        def delete(sample: Tensor, number: Tensor) -> Tensor:
            deleted = sets[sample, number][:, cells]
            return torch.where(deleted[:, None], values[sample], images[sample])

        key = self.grid, kind, sets.cpu().numpy().tobytes(), model.predict
        if key not in batch.shared:
            batch.shared[key] = self.predict_copies(model, sets.shape[:2], images.device, delete)
        maps = resize_maps(full_precision(model.maps), images.shape[2:]).flatten(1)
        cells = cells.flatten()
        # Ranks need all digits: no atomic sums, whose order varies, and no matrix product in TF32
        sums = torch.stack([maps[:, cells == cell].sum(1) for cell in range(self.grid**2)], 1)
        relevance = (sets * sums[:, None]).sum(-1)
        return relevance, batch.shared[key]


@METRICS.register_module()
class SingleDeletion(CellMetric):
    """Rank correlation of the map over cells with the fall of the score without each cell.

    The image is cut into ``grid`` · ``grid`` cells. Each cell is deleted once, alone. Its effect is how
    far the logit of the explained class falls, and its relevance is the map's sum over the cell. Maps
    are signed and resized to the image.

    - ``single_deletion``: Spearman's rank correlation of relevance and effect over the cells, in
      [-1, 1]; higher is better. For noise it is 0 with a standard deviation of 1 / sqrt(grid² - 1)
      an image.
    - ``single_deletion_top``: 1 where the most relevant cell has the largest effect, else 0; higher is
      better.
    - ``deleted_accuracy``: the share of cells without which the label is predicted, for images with one
      label; higher is better.
    - ``accuracy_drop``: how much higher the accuracy on whole images is; lower is better. It tells how
      far out of domain images with a deleted cell are.

    The first two are NaN where all cells have one relevance or one effect.

    Source: Hesse et al., "Benchmarking the Attribution Quality of Vision Models", NeurIPS 2024 (IDSDS).
    The paper fine-tunes the model on images with a deleted cell, so that no image is out of domain;
    ``DeleteCell`` is the transform for that. For any other model the score is only the paper's "SDS".
    The paper explains the label; here the explainer decides. All pixels count here, also of sizes that
    the grid does not divide.

    Args:
        grid (int): The number of cells in each direction, at least 2. Defaults to 4.
        baseline (str): What replaces pixels: 'zero' (the mean colour), 'black', or 'blur' (see
            ``mmkdx.functional.perturbation.blur``). Defaults to 'zero'.
        max_batch (int): The most images predicted at once. Defaults to 64.

    Raises:
        ValueError: If an argument is out of its range; from an evaluation, if an image has fewer pixels
            than cells in a direction.
    """

    question, guide = 'faithfulness', 'metrics_faithfulness'
    meanings = dict(
        single_deletion='Rank correlation of the relevance of cells with their effects on the score.',
        single_deletion_top='Share of images in which the most relevant cell has the largest effect.',
        deleted_accuracy='Accuracy on the images with one deleted cell.',
        accuracy_drop='How much accuracy falls when one cell is deleted.',
    )
    better = dict(
        single_deletion='higher',
        single_deletion_top='higher',
        deleted_accuracy='higher',
        accuracy_drop='lower',
    )
    no_floor = ('deleted_accuracy', 'accuracy_drop')

    def __init__(self, grid: int = 4, baseline: str = 'zero', max_batch: int = 64) -> None:
        super().__init__(grid, max_batch)
        self.baseline = one_of('SingleDeletion.baseline', baseline, BASELINES)

    def measure(self, batch: ExplainedBatch, model: Explained) -> dict[str, Tensor]:
        """The values of one model's maps."""
        single = torch.eye(self.grid**2, dtype=torch.bool).expand(len(batch.inputs), -1, -1)
        relevance, logits = self._deleted(batch, model, single, self.baseline)
        scores = _target_logits(model, logits)
        # The effect without the clean score, which changes no rank
        effect = -scores
        first = relevance == relevance.amax(1, keepdim=True)
        top = (first & (effect == effect.amax(1, keepdim=True))).any(1)
        # The effects are constant where they are small beside the score: they are rounding errors
        bad = degenerate_maps(relevance[:, None]) | degenerate_maps(scores[:, None])
        values = dict(
            single_deletion=spearman_correlation(relevance, effect), single_deletion_top=top.float()
        )
        values = {name: value.masked_fill(bad, torch.nan) for name, value in values.items()}
        labels = [labels_of(sample) for sample in batch.data_samples]
        if logits.shape[-1] > 1 and labels and all(len(each) == 1 for each in labels):
            labels = torch.tensor(labels, device=logits.device)
            deleted = (logits.argmax(-1) == labels).float().mean(1)
            clean = (model.logits.argmax(-1) == labels[:, 0]).float()
            values.update(deleted_accuracy=deleted, accuracy_drop=clean - deleted)
        return values


@METRICS.register_module()
class Infidelity(CellMetric):
    """Relative error of the map in predicting how far the score falls without random cells.

    The image is cut into ``grid`` · ``grid`` cells. a is the map's sum over a set of cells, d is how far
    the logit of the explained class falls without the set (its pixels become 0, the mean colour).
    ``infidelity`` is the least E[(βa - d)²] / E[d²] over β >= 0, in [0, 1]; lower is better. It is 0 if
    a is proportional to d, and 1 for a map of the opposite sign. It is NaN where no set changes the
    score.

    Source: Yeh et al., "On the (In)fidelity and Sensitivity of Explanations", NeurIPS 2019. Its value
    grows with the squares of map and logits, so two models cannot be compared. Here it is relative.
    captum's ``normalize=True`` also allows β < 0, so that it finds no fault in a map of the opposite
    sign.

    Args:
        grid (int): The number of cells in each direction, at least 2. Defaults to 4.
        subsets (int): The number of random sets for each image. Defaults to 50.
        size (Sequence[int]): The least and the largest number of cells in a set; sizes between are
            equally likely. Defaults to (1, 8).
        seed (int): Seed of the sets, which are the same for all models and in every evaluation. Defaults
            to 0.
        max_batch (int): The most images predicted at once. Defaults to 64.

    Raises:
        ValueError: If an argument is out of its range; from an evaluation, if an image has fewer pixels
            than cells in a direction.
    """

    question, guide = 'faithfulness', 'metrics_faithfulness'
    meanings = dict(
        infidelity='Relative error of the map in telling the effects of random sets of cells.',
    )
    better = dict(infidelity='lower')

    def __init__(
        self,
        grid: int = 4,
        subsets: int = 50,
        size: Sequence[int] = (1, 8),
        seed: int = 0,
        max_batch: int = 64,
    ) -> None:
        super().__init__(grid, max_batch)
        self.subsets = integer('Infidelity.subsets', subsets, 1)
        self.size = integers('Infidelity.size', size)
        if len(self.size) != 2 or not 1 <= self.size[0] <= self.size[1] <= self.grid**2:
            raise ValueError(
                f'Infidelity.size is {size!r}; it must be two integers from 1 to {self.grid**2} (the '
                'number of cells), the smaller one first'
            )
        self.seed = integer('Infidelity.seed', seed, 0)

    def measure(self, batch: ExplainedBatch, model: Explained) -> dict[str, Tensor]:
        """The values of one model's maps."""
        relevance, logits = self._deleted(batch, model, self._sets(batch.index), 'zero')
        scores = _target_logits(model, logits)
        clean = _target_logits(model, model.logits)[:, None]
        effect = clean - scores
        # Such small effects are rounding errors
        unmoved = effect.abs().amax(1) <= 1e-6 * torch.maximum(
            clean.abs()[:, 0], scores.abs().amax(1)
        )
        infidelity = relative_infidelity(relevance, effect)
        return dict(infidelity=infidelity.masked_fill(unmoved, torch.nan))

    def _sets(self, index: Sequence[int]) -> Tensor:
        """Random sets of cells for the images at some positions, booleans (N, subsets, grid²)."""
        sets, (low, high) = [], self.size
        # Drawn on the CPU, so that they are the same for every device
        for generator in sample_generators(index, self.seed, torch.device('cpu')):
            counts = torch.randint(low, high + 1, (self.subsets, 1), generator=generator)
            order = torch.rand(self.subsets, self.grid**2, generator=generator).argsort(1)
            sets.append(order < counts)
        return torch.stack(sets)


def relative_infidelity(relevance: Tensor, effect: Tensor) -> Tensor:
    """The least E[(βa - d)²] / E[d²] over β >= 0, for relevance a and effects d, both (N, S).

    That is 1 minus the square of a's and d's uncentred correlation where it is positive, else 1.

    Returns:
        Tensor: Values (N, ) in [0, 1]; NaN where all effects are 0, and 1 where the relevance is 0.
    """
    # Scaled, as squares of small maps would be 0
    largest = relevance.abs().amax(1, keepdim=True)
    relevance = relevance / torch.where(largest == 0, 1.0, largest)
    effect = effect / effect.abs().amax(1, keepdim=True)
    shared = (relevance * effect).mean(1).relu().square()
    power = relevance.square().mean(1)
    explained = shared / torch.where(power == 0, 1.0, power) / effect.square().mean(1)
    return (1 - explained).clamp(min=0)


def _target_logits(model: Explained, logits: Tensor) -> Tensor:
    """The explained classes' logits (N, ...) of logits (N, ..., K)."""
    index = model.targets.view(-1, *[1] * (logits.ndim - 1))
    return full_precision(logits).take_along_dim(index, -1)[..., 0]
