"""What a metric of explanations gets, and how its values become scores."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from mmengine.evaluator import BaseMetric
from scipy import stats
from torch import Tensor, nn

from mmkdx.functional import degenerate_maps


@dataclass
class Explained:
    """One model's explanations of a batch.

    Args:
        maps (Tensor): Its raw maps of shape (N, h, w), signed, in fp32.
        targets (Tensor): The explained classes, of shape (N, ).
        logits (Tensor): Its logits on the images, of shape (N, K).
        predict (Callable): Yields logits (M, K) for any images (M, 3, H, W) in the normalisation of
            ``ExplainedBatch.inputs``, without a graph, in eval mode.
        explain (Callable): Yields raw maps (M, h, w) for such images and classes (M, ).
        fixed (bool): Whether the model is the same at every evaluation, so that its values may be kept.
        model (nn.Module, optional): The model itself, for metrics of what goes on inside; ``predict``
            runs it.
    """

    maps: Tensor
    targets: Tensor
    logits: Tensor
    predict: Callable[[Tensor], Tensor]
    explain: Callable[[Tensor, Tensor], Tensor]
    fixed: bool = False
    model: nn.Module | None = None


@dataclass
class ExplainedBatch:
    """A batch of images with the explanations of one model or more.

    Args:
        inputs (Tensor): Preprocessed images of shape (N, 3, H, W).
        index (Sequence[int]): The position of each sample in the data set.
        models (dict[str, Explained]): The models: 'student', and where there are such 'teacher' and
            'base' (a student trained alone).
        data_samples (Sequence): mmpretrain's ``DataSample`` of each image, or dicts; a label stands in
            'gt_label', a label map of shape (H, W), as mmcv's transforms treat it, in 'gt_seg_map'.
        mean (Tensor, optional): What preprocessing subtracts from each channel, in units of the pixel
            values. Defaults to None (zero).
        std (Tensor, optional): What preprocessing divides each channel by. Defaults to None (one).
        shared (dict): What several metrics need of the batch and compute once, by keys of theirs.
    """

    inputs: Tensor
    index: Sequence[int]
    models: dict[str, Explained]
    data_samples: Sequence[Any] = ()
    mean: Tensor | None = None
    std: Tensor | None = None
    shared: dict[Any, Any] = field(default_factory=dict)

    def black(self) -> Tensor:
        """The value of a black pixel after preprocessing, of shape (3, 1, 1)."""
        black = self.inputs.new_zeros(self.inputs.shape[1])
        if self.mean is not None:
            black = black - self.mean.flatten().to(black)
        if self.std is not None:
            black = black / self.std.flatten().to(black)
        return black[:, None, None]


class Score(NamedTuple):
    """A score of a data set.

    Args:
        value (float): The score.
        low (float): The lower end of its 95 % confidence interval.
        high (float): The upper end.
        n (int): How many samples it rests on.
        better (str, optional): 'higher' or 'lower'; None where neither is.
        batches (int, optional): How many batches these are in, for a score that is a mean over batches.
        error (float, optional): Its standard error, of such a score.
    """

    value: float
    low: float
    high: float
    n: int
    better: str | None = None
    batches: int | None = None
    error: float | None = None


@dataclass
class _Row:
    """One sample's values, as ranks exchange them."""

    index: int
    values: dict[str, Any] = field(default_factory=dict)


class ExplanationMetric(BaseMetric):
    """Base of all metrics of explanations.

    It is mmengine's ``BaseMetric`` with batches of explanations in place of predictions: ``process``
    takes an ``ExplainedBatch``, one row of values for each sample is kept, ranks exchange rows and
    never maps, and a sample that a sampler repeats counts once, by its index.

    A subclass yields values for one model (``measure``), for a student beside its teacher
    (``compare``), or both. The names of values become those of scores: plain for the student and for
    comparisons, with ``teacher/`` or ``base/`` in front for those models. NaN stands for a sample
    that a score does not count.

    Args:
        collect_device (str): Where ranks exchange rows, 'cpu' or 'gpu'. Defaults to 'cpu'.
    """

    default_prefix = ''
    #: What stands in front of its scores' names, to tell two metrics of one kind apart: with 'mark'
    #: ``energy`` becomes ``mark_energy``. ``ExplainHook`` sets it from the config's key 'name'.
    name = ''
    #: For each name of a value what is better, 'higher' or 'lower'.
    better: dict[str, str] = {}
    #: Whether the protocol counts zero and constant maps; else their values become NaN.
    counts_degenerate = False

    def __init__(self, collect_device: str = 'cpu') -> None:
        super().__init__(collect_device)
        #: After ``evaluate`` on the main rank: for each sample, by index, its values.
        self.rows: dict[int, dict[str, Any]] = {}
        # What fixed models yielded at earlier evaluations
        self._kept: dict[tuple[str, str, int], dict[str, Any]] = {}

    def measure(self, batch: ExplainedBatch, model: Explained) -> dict[str, Tensor | list]:
        """Values of one model's maps.

        Args:
            batch (ExplainedBatch): The batch.
            model (Explained): One of its models.

        Returns:
            dict[str, Tensor | list]: For each name N values.
        """
        return {}

    def compare(
        self, batch: ExplainedBatch, student: Explained, teacher: Explained
    ) -> dict[str, Tensor | list]:
        """Values of a student's maps beside its teacher's.

        Args:
            batch (ExplainedBatch): The batch.
            student (Explained): The student, or the base model.
            teacher (Explained): The teacher.

        Returns:
            dict[str, Tensor | list]: For each name N values.
        """
        return {}

    def process(self, data_batch: ExplainedBatch, data_samples: Any = None) -> None:
        """Measures a batch and keeps the values, one row a sample.

        Args:
            data_batch (ExplainedBatch): The batch.
            data_samples (Any): Not used; mmengine's interface has it.
        """
        rows = [_Row(int(index)) for index in data_batch.index]
        teacher = data_batch.models.get('teacher')
        for name, model in data_batch.models.items():
            parts = [self._once(data_batch, name, self.measure, model)]
            if teacher is not None and model is not teacher:
                parts.append(self._once(data_batch, name, self.compare, model, teacher))
            prefix = '' if name == 'student' else f'{name}/'
            for row, *values in zip(rows, *parts):
                row.values.update({prefix + key: v for part in values for key, v in part.items()})
        self.results.extend(rows)

    def evaluate(self, size: int = sys.maxsize) -> dict[str, Score]:
        """Gathers the rows of all ranks and turns them into scores.

        Args:
            size (int): mmengine cuts off so many rows, before repeated samples are taken out. Defaults
                to no limit.

        Returns:
            dict[str, Score]: The scores, by name, on every rank.
        """
        scores = super().evaluate(size)
        self.rows = {index: self._named(values) for index, values in self.rows.items()}
        return self._named(scores)

    def compute_metrics(self, results: list[_Row]) -> dict[str, Score]:
        """Turns the rows of all ranks into scores.

        Args:
            results (list): The rows.

        Returns:
            dict[str, Score]: The scores, by name.
        """
        # Samplers repeat samples to fill up the last batch
        self.rows = {row.index: row.values for row in results}
        return self.summarize([self.rows[index] for index in sorted(self.rows)])

    def summarize(self, rows: list[dict[str, Any]]) -> dict[str, Score]:
        """The scores of a data set: here the mean of each value, without NaN.

        Args:
            rows (list[dict]): Each sample's values.

        Returns:
            dict[str, Score]: The scores, by name.
        """
        names = dict.fromkeys(name for row in rows for name in row)
        return {
            name: mean_score([row.get(name, np.nan) for row in rows], self.direction(name))
            for name in names
        }

    def _named(self, values: dict[str, Any]) -> dict[str, Any]:
        """Puts the metric's own name in front of each plain name."""
        if not self.name:
            return values
        parts = {name: name.rpartition('/') for name in values}
        return {
            f'{model}{slash}{self.name}_{plain}': values[name]
            for name, (model, slash, plain) in parts.items()
        }

    def forget(self) -> None:
        """Drops what is kept of fixed models, for another data set."""
        self._kept.clear()

    def direction(self, name: str) -> str | None:
        """What is better for a score of this name, 'higher' or 'lower', or None."""
        return self.better.get(name.rpartition('/')[2])

    def _once(
        self, batch: ExplainedBatch, name: str, method: Callable, *models: Explained
    ) -> list[dict[str, Any]]:
        """Each sample's values of a method, computed once in a run where all models are fixed."""
        fixed = all(model.fixed for model in models)
        keys = [(name, method.__name__, int(index)) for index in batch.index]
        if fixed and all(key in self._kept for key in keys):
            return [self._kept[key] for key in keys]
        count = len(keys)
        bad = [False] * count
        if not self.counts_degenerate:
            flags = [degenerate_maps(model.maps).tolist() for model in models]
            bad = [any(each) for each in zip(*flags)]
        rows: list[dict[str, Any]] = [{} for _ in keys]
        for key, column in method(batch, *models).items() if count else ():
            column = column.tolist() if isinstance(column, Tensor) else list(column)
            if len(column) != count:
                raise ValueError(
                    f'{type(self).__name__} yields {len(column)} values of {key!r} for {count} samples'
                )
            for row, value, degenerate in zip(rows, column, bad):
                row[key] = float('nan') if degenerate else value
        if fixed:
            self._kept.update(zip(keys, rows))
        return rows


def mean_score(values: Sequence[float], better: str | None = None) -> Score:
    """The mean of values with the 95 % confidence interval of Student's t distribution.

    Args:
        values (Sequence[float]): The samples' values; NaN is left out.
        better (str, optional): 'higher' or 'lower'.

    Returns:
        Score: The score; its ends are NaN with fewer than two values.
    """
    array = np.asarray(values, dtype=float)
    array = array[~np.isnan(array)]
    n = len(array)
    if n == 0:
        return Score(float('nan'), float('nan'), float('nan'), 0, better)
    mean = float(array.mean())
    if n == 1:
        return Score(mean, float('nan'), float('nan'), 1, better)
    half = float(stats.t.ppf(0.975, n - 1) * array.std(ddof=1) / np.sqrt(n))
    return Score(mean, mean - half, mean + half, n, better)
