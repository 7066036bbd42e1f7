"""What a metric of explanations gets, and how its values become scores."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from torch import Tensor, nn

from mmkdx.arguments import one_of, text
from mmkdx.functional import degenerate_maps
from mmkdx.metrics.about import About
from mmkdx.metrics.scores import Score, mean_score
from mmkdx.models.families import ModelFacts


@dataclass
class Explained:
    """One model's explanations of a batch.

    Args:
        maps (Tensor): Its raw maps of shape (N, h, w), signed, in fp32.
        targets (Tensor): The explained classes, of shape (N, ).
        logits (Tensor): Its logits on the images, of shape (N, K).
        predict (Callable): Yields logits (M, K) for images (M, C, H, W), normalised like
            ``ExplainedBatch.inputs``, without a graph, in eval mode.
        explain (Callable): Yields raw maps (M, h, w) for such images and classes (M, ).
        fixed (bool): Whether the model is the same at every evaluation, so that values may be kept.
        model (nn.Module, optional): The model itself, for metrics that read inner values.
        probabilities (Callable): Yields probabilities (M, K) from logits (M, K). Defaults to softmax,
            and to the sigmoid for one logit.
        like (Callable, optional): Yields the same for another network in the model's place, such as a
            changed copy: its ``predict`` and ``explain`` run the other network, and its maps, targets
            and logits are those here. Defaults to None: the model is unknown.
    """

    maps: Tensor
    targets: Tensor
    logits: Tensor
    predict: Callable[[Tensor], Tensor]
    explain: Callable[[Tensor, Tensor], Tensor]
    fixed: bool = False
    model: nn.Module | None = None
    probabilities: Callable[[Tensor], Tensor] = ModelFacts('torch', nn.Identity()).probabilities
    like: Callable[[nn.Module], Explained] | None = None

    def confidence(self, logits: Tensor, targets: Tensor | None = None) -> Tensor:
        """The probabilities (N, ...) of classes (N, ) in its logits (N, ..., K).

        The classes are ``self.targets`` unless others are given.
        """
        targets = self.targets if targets is None else targets
        values = self.probabilities(logits.flatten(0, -2)).view(logits.shape)
        index = targets.view(-1, *[1] * (logits.ndim - 1))
        return values.take_along_dim(index, -1)[..., 0]


@dataclass
class ExplainedBatch:
    """A batch of images with the explanations of one model or more.

    Args:
        inputs (Tensor): Preprocessed images of shape (N, C, H, W).
        index (Sequence[int]): Each image's position in the data set.
        models (dict[str, Explained]): 'student' and, if given, 'teacher' and 'base' (a student trained
            alone).
        data_samples (Sequence): mmpretrain's ``DataSample`` of each image, or dicts, with labels in
            'gt_label' and a label map (H, W) in 'gt_seg_map'.
        mean (Sequence[float] | Tensor, optional): What preprocessing subtracts from each channel, in
            units of the pixel values. Defaults to None: unknown.
        std (Sequence[float] | Tensor, optional): What it divides by. Defaults to None: unknown.
        shared (dict): What several metrics need and one computes, by keys of theirs.
        dataset (Any, optional): The data set that the images come from, whose ``sample_idx`` are in
            ``index``. Defaults to None: unknown.
        prepare (Callable, optional): Yields images (M, C, H, W), prepared like ``inputs``, from M items
            of the data set. Defaults to None: unknown.
    """

    inputs: Tensor
    index: Sequence[int]
    models: dict[str, Explained]
    data_samples: Sequence[Any] = ()
    mean: Sequence[float] | Tensor | None = None
    std: Sequence[float] | Tensor | None = None
    shared: dict[Any, Any] = field(default_factory=dict)
    dataset: Any = None
    prepare: Callable[[list[Any]], Tensor] | None = None

    def black(self) -> Tensor:
        """The value of a black pixel after preprocessing, of shape (C, 1, 1) or (N, C, 1, 1).

        With an unknown mean, images without negative values are raw pixels, whose black is 0. For
        others the smallest value of each image and channel stands for black, with a warning.
        """
        if self.mean is not None:
            black = -_channels(self.mean, self.inputs)
            return black if self.std is None else black / _channels(self.std, self.inputs)
        black = self.inputs.amin((2, 3), keepdim=True).clamp(max=0)
        if not black.any():
            return black[0]
        warnings.warn(
            'the mean and std of the images are unknown, so the smallest value of each image stands for '
            'black; set mean and std of the data_preprocessor',
            stacklevel=2,
        )
        return black

    def labels(self, owner: str) -> list[int]:
        """The one label of each image.

        Raises:
            ValueError: If an image has no label, or several; the message names the owner.
        """
        labels = [labels_of(sample) for sample in self.data_samples or [{}] * len(self.index)]
        for index, found in zip(self.index, labels):
            if len(found) != 1:
                raise ValueError(
                    f'{owner} needs one label for each image, and sample {int(index)} has {len(found)} '
                    "in 'gt_label'; leave the metric out for such a data set"
                )
        return [found[0] for found in labels]


def labels_of(sample: Any) -> list[int]:
    """The classes of a data sample; a negative label is no class."""
    label = sample.get('gt_label')
    labels = [] if label is None else torch.as_tensor(label).flatten().tolist()
    return [label for label in labels if label >= 0]


def check_common(metric: BaseMetric, prefix: str | None = None) -> None:
    """Checks the options that all metrics of mmengine have."""
    owner = type(metric).__name__
    one_of(f'{owner}.collect_device', metric.collect_device, ('cpu', 'gpu'))
    if prefix is not None:
        text(f'{owner}.prefix', prefix)


class ScoreMetric(BaseMetric):
    """Base of all metrics of explanations: rows of values become named scores.

    ``process`` keeps ``(index, values)`` rows, ranks exchange rows and never maps, and a row that a
    sampler repeats counts once.

    Args:
        collect_device (str): Where ranks exchange rows, 'cpu' or 'gpu'. Defaults to 'cpu'.
        prefix (str, optional): Refused with a ValueError, as the config key 'name' does this here.
    """

    default_prefix = ''
    #: The config key 'name': it tells two metrics of one type apart. 'mark' makes ``energy``
    #: ``mark_energy``.
    name = ''
    #: Whether 'higher' or 'lower' values are better, by the value's name.
    better: dict[str, str] = {}
    #: The question under which a report shows its scores, see ``QUESTIONS``, and its guide.
    question, guide = 'other', ''
    #: One sentence for each score, by the plain name or by its prefix.
    meanings: dict[str, str] = {}
    #: Whether it compares a student with its teacher and so needs one.
    needs_teacher = False
    #: Whether its values judge a map, so that the values of noise are their floor.
    has_floor = False
    #: Whether it measures batches of a student and a base model (``PairedBatch``).
    needs_base = False

    def __init__(self, collect_device: str = 'cpu', prefix: str | None = None) -> None:
        super().__init__(collect_device)
        check_common(self)
        if prefix is not None:
            raise ValueError(
                f"{type(self).__name__}.prefix is {prefix!r}; set the key 'name' of the metric instead"
            )
        #: After ``evaluate`` on the main rank: the values of each row, by index.
        self.rows: dict[int, dict[str, Any]] = {}
        # Values of fixed models from earlier evaluations
        self._kept: dict[tuple[str, str, int], dict[str, Any]] = {}

    def evaluate(self, size: int = sys.maxsize) -> dict[str, Score]:
        """Gathers all ranks' rows, at most ``size``, and returns scores by name on every rank."""
        scores = super().evaluate(size)
        self.rows = {index: self._named(values) for index, values in self.rows.items()}
        return self._named(scores)

    def compute_metrics(self, results: list[tuple[int, dict[str, Any]]]) -> dict[str, Score]:
        """Turns the rows of all ranks into scores."""
        # Samplers repeat samples to fill up the last batch
        self.rows = dict(results)
        return self.summarize([self.rows[index] for index in sorted(self.rows)])

    def summarize(self, rows: list[dict[str, Any]]) -> dict[str, Score]:
        """The scores of a data set, by name: here the mean of each value, without NaN."""
        return {
            name: mean_score([row.get(name, float('nan')) for row in rows], self.direction(name))
            for name in dict.fromkeys(name for row in rows for name in row)
        }

    def direction(self, name: str) -> str | None:
        """What is better for a score of this name, 'higher' or 'lower', or None."""
        return self.better.get(name.rpartition('/')[2])

    def about(self, name: str) -> About:
        """What a report says of a score of this name, without the name of its model."""
        plain = name.removeprefix(f'{self.name}_')
        keys = [
            key for key in self.meanings if plain == key or plain.startswith((f'{key}_', f'{key}@'))
        ]
        return About(
            self.question, self.meanings.get(max(keys, key=len, default=''), ''), self.guide
        )

    def forget(self) -> None:
        """Drops what is kept of fixed models, for another data set."""
        self._kept.clear()

    def report_sections(self) -> list[Any]:
        """What a report shows beside scores and maps, after ``evaluate`` on the main rank.

        Each is a ``PictureSection``, or what ``mmkdx.visualization.sections.draw`` turns into one.
        """
        return []

    def _named(self, values: dict[str, Any]) -> dict[str, Any]:
        """Puts the metric's own name in front of each plain name."""
        front = self.name and f'{self.name}_'
        parts = [key.rpartition('/') for key in values]
        names = [f'{model}{slash}{front}{plain}' for model, slash, plain in parts]
        return dict(zip(names, values.values()))


class ExplanationMetric(ScoreMetric):
    """Base of the metrics of single images: ``process`` takes an ``ExplainedBatch``, a row is an image.

    A subclass implements ``measure`` (one model), ``compare`` (a student beside its teacher), or both.
    The names of values become names of scores, with ``teacher/`` or ``base/`` in front for those
    models. NaN marks a sample that a score does not count.
    """

    #: Whether the protocol counts zero and constant maps; else their values become NaN.
    counts_degenerate = False
    #: The names of values that do not judge the model's own map, so that they have no floor.
    no_floor: tuple[str, ...] = ()
    #: With ``has_floor`` after ``evaluate`` on the main rank: the values of each row as measured.
    measured: dict[int, dict[str, Any]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # A metric that only compares models measures nothing without a teacher
        cls.needs_teacher = cls.measure is ExplanationMetric.measure

    def measure(self, batch: ExplainedBatch, model: Explained) -> dict[str, Tensor | list]:
        """Values of the maps of one model of the batch, N for each name."""
        return {}

    def compare(
        self, batch: ExplainedBatch, student: Explained, teacher: Explained
    ) -> dict[str, Tensor | list]:
        """Values of the maps of a student, or base model, beside its teacher's, N for each name."""
        return {}

    def process(self, data_batch: ExplainedBatch, data_samples: Any = None) -> None:
        """Measures a batch and keeps the values, one row a sample."""
        rows: list[dict[str, Any]] = [{} for _ in data_batch.index]
        teacher = data_batch.models.get('teacher')
        for name, model in data_batch.models.items():
            parts = [self._once(data_batch, name, self.measure, model)]
            if teacher is not None and model is not teacher:
                parts.append(self._once(data_batch, name, self.compare, model, teacher))
            prefix = '' if name == 'student' else f'{name}/'
            for row, *values in zip(rows, *parts):
                row.update({prefix + key: v for part in values for key, v in part.items()})
        self.results.extend(zip(map(int, data_batch.index), rows))

    def compute_metrics(self, results: list[tuple[int, dict[str, Any]]]) -> dict[str, Score]:
        """See the base class."""
        if self.has_floor:
            self.measured = {index: dict(values) for index, values in results}
        return super().compute_metrics(results)

    def judging(self) -> list[str]:
        """The names of the scores that judge a model's own map and say what is better."""
        return list(self._named({name: '' for name in self.better if name not in self.no_floor}))

    def above_floor(self, noise: Mapping[int, dict[str, Any]]) -> dict[str, tuple]:
        """How far the student's scores are above those of noise on the same images.

        Args:
            noise (Mapping[int, dict]): ``measured`` of a copy of the metric that measured noise.

        Returns:
            dict[str, tuple]: By the names of scores that judge maps the noise's score, the difference
            (above 0 if the maps are better), the ends of its paired 95 % interval, and the number of
            images that count for both.
        """
        floor, gaps = self.pairs([(self.measured[i], row) for i, row in sorted(noise.items())])
        found = {}
        for name, better in self.better.items():
            if name in gaps and name not in self.no_floor:
                gap, sign = gaps[name], 1 if better == 'higher' else -1
                ends = sorted((sign * gap.low, sign * gap.high))
                found[name] = floor[name].value, sign * gap.value, *ends, gap.n
        return self._named(found)

    def pairs(
        self, rows: list[tuple[dict[str, Any], dict[str, Any]]]
    ) -> tuple[dict[str, Score], dict[str, Score]]:
        """The scores of noise, and the scores minus these, of an image's values each with the noise's.

        Here both are scores of rows: of the noise's values where the image counts for both, and of the
        differences of all values that depend on the map.
        """
        alone, gaps = [], []
        for own, noise in rows:
            # NaN where one of both does not count
            both = {name: value + 0 * own[name] for name, value in noise.items()}
            kept = {name for name in both if name.startswith('_') or name in self.no_floor}
            alone.append(both)
            gaps.append({name: v if name in kept else own[name] - v for name, v in both.items()})
        return self.summarize(alone), self.summarize(gaps)

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


def by_model(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, list]]:
    """The values of all rows by the front of their names ('', 'teacher/', 'base/') and the rest."""
    models: dict[str, dict[str, list]] = {}
    for key in rows[0] if rows else ():
        model, slash, name = key.rpartition('/')
        models.setdefault(model + slash, {})[name] = [row[key] for row in rows]
    return models


def drop_hidden(rows: list[dict[str, Any]]) -> None:
    """Removes values that are no scores of an image: their plain names begin with '_'."""
    for row in rows:
        for key in [key for key in row if key.rpartition('/')[2].startswith('_')]:
            del row[key]


def _channels(values: Sequence[float] | Tensor, inputs: Tensor) -> Tensor:
    """One value a channel, as a tensor (C, 1, 1) that broadcasts over images."""
    values = torch.as_tensor(values, dtype=inputs.dtype, device=inputs.device).flatten()
    return values.expand(inputs.shape[1])[:, None, None]
