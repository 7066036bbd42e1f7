"""Compares a student with a base model at an evaluation, for ``ExplainHook``."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from inspect import signature
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmkdx.evaluation.pairs import PairAnalysis, context_batches
from mmkdx.evaluation.subjects import Subject
from mmkdx.explain import UniCAM
from mmkdx.metrics.relevance import (
    FeatureSimilarityScore,
    PairedBatch,
    PairMetric,
    RelevanceScore,
)
from mmkdx.visualization.pair_panel import pair_panel
from mmkdx.visualization.panel import as_rgb

#: Of how many images a trial is.
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

    Raises:
        ValueError: If the size is none of these.
    """

    def __init__(
        self, unicam: dict, metrics: Sequence[PairMetric], size: int = 64, seed: int = 0
    ) -> None:
        if size < TRIAL_SIZE or size % 2:
            raise ValueError(
                f'ExplainHook.context_size is {size}; it must be an even number from {TRIAL_SIZE} on'
            )
        self.unicam = UniCAM(**unicam)
        self.metrics = list(metrics) or [FeatureSimilarityScore(), RelevanceScore()]
        self.size = size
        self.seed = seed
        self._subjects: dict[str, Subject] = {}
        self._analysis: PairAnalysis | None = None

    def begin(self, subjects: dict[str, Subject]) -> None:
        """Takes the models: 'student', 'base' and perhaps 'teacher'."""
        self._subjects, self._analysis = subjects, None

    def try_out(self, runner: Runner, dataloader: DataLoader, sample: Collection[int]) -> None:
        """Takes one small batch through everything, so that mistakes in a config show early."""
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # it is small
            self._run(runner, dataloader, self._batches(dataloader, sample, TRIAL_SIZE)[:1], 0)

    def run(
        self, runner: Runner, dataloader: DataLoader, sample: Collection[int], show: int
    ) -> list[tuple[int, np.ndarray]]:
        """Measures this rank's batches.

        Args:
            runner (Runner): The runner.
            dataloader (DataLoader): The evaluation's, whose data set is read.
            sample (Collection[int]): The images that are explained, by their positions.
            show (int): Of how many images the first rank draws the maps.

        Returns:
            list[tuple[int, np.ndarray]]: The positions of these images, and the pictures.

        Raises:
            ValueError: If images have no labels, or not two classes.
        """
        return self._run(runner, dataloader, self._batches(dataloader, sample, self.size), show)

    def facts(self) -> dict[str, Any]:
        """What was compared and how."""
        layers = {
            model: {stage: str(layer.tap) for stage, layer in found.items()}
            for model, found in self._analysis.layers.items()
        }
        return dict(unicam=settings_of(self.unicam), layers=layers, context_size=self.size)

    def _batches(
        self, dataloader: DataLoader, sample: Collection[int], size: int
    ) -> list[list[tuple[int, int]]]:
        """The positions and labels of each batch."""
        dataset = dataloader.dataset
        known = [(i, dataset.get_data_info(i).get('gt_label')) for i in sorted(sample)]
        if any(not isinstance(label, (int, np.integer)) or label < 0 for _, label in known):
            raise ValueError(
                'ExplainHook.base is compared by classes, and a sample has no label, or several'
            )
        batches = context_batches([label for _, label in known], size, self.seed)
        if not batches:
            raise ValueError(
                f'ExplainHook.base: of the {len(known)} images of the sample no batch can be drawn, '
                'which takes four of each of two classes, or two of each of three; raise '
                'ExplainHook.num_samples'
            )
        return [[known[i] for i in batch] for batch in batches]

    def _run(
        self,
        runner: Runner,
        dataloader: DataLoader,
        batches: list[list[tuple[int, int]]],
        show: int,
    ) -> list[tuple[int, np.ndarray]]:
        rank, world = get_rank(), get_world_size()
        own = list(enumerate(batches))[rank::world]
        loader = DataLoader(
            dataloader.dataset,
            batch_sampler=[[i for i, _ in members] for _, members in own],
            num_workers=min(dataloader.num_workers, len(own)),
            collate_fn=dataloader.collate_fn,
            worker_init_fn=dataloader.worker_init_fn,
            # Of its own, so that a training goes on as it would without
            generator=torch.Generator(),
        )
        pictures: list[tuple[int, np.ndarray]] = []
        for (number, members), data in zip(own, loader):
            images, _, inputs, preprocessor = prepared(runner, data)
            if self._analysis is None or self._analysis.size != inputs.shape[2:]:
                self._analysis = PairAnalysis(self._subjects, self.unicam, inputs[:1])
            batch = self._analysis.batch(
                number,
                inputs,
                [i for i, _ in members],
                torch.tensor([label for _, label in members], device=inputs.device),
                getattr(preprocessor, 'mean', None),
                getattr(preprocessor, 'std', None),
            )
            for metric in self.metrics:
                metric.process(batch)
            if number == 0 and show:
                rgb = [as_rgb(image, getattr(preprocessor, 'to_rgb', False)) for image in images]
                classes = (getattr(dataloader.dataset, 'metainfo', None) or {}).get('classes')
                pictures = _pictures(batch, rgb[:show], classes)
        return pictures


def _pictures(
    batch: PairedBatch, images: Sequence[np.ndarray], classes: Sequence[str] | None
) -> list[tuple[int, np.ndarray]]:
    """The maps of the first images of a batch, at each stage, as pictures."""
    own = {name: model.maps('GradCAM') for name, model in batch.models.items()}
    pictures = []
    for i, image in enumerate(images):
        maps = {
            stage: {
                **{name: maps[stage][i].cpu() for name, maps in own.items()},
                'distilled': unique.distilled[i].cpu(),
                'residual': unique.residual[i].cpu(),
            }
            for stage, unique in batch.unique.items()
        }
        label = int(batch.targets[i])
        word = str(label) if classes is None else str(classes[label])
        pictures.append((int(batch.index[i]), pair_panel(image, maps, word)))
    return pictures


def prepared(
    runner: Runner, data_batch: dict, here: Sequence[int] | None = None
) -> tuple[Any, list, Tensor, nn.Module]:
    """What explanations take of a batch.

    Args:
        runner (Runner): The runner with the model.
        data_batch (dict): What a data loader yields.
        here (Sequence[int], optional): Which of its samples. Defaults to None (all).

    Returns:
        tuple: The images as loaded, their data samples, the preprocessed images, the preprocessor.
    """
    here = range(len(data_batch['data_samples'])) if here is None else here
    samples = [data_batch['data_samples'][i] for i in here]
    images = [data_batch['inputs'][i] for i in here]
    if isinstance(data_batch['inputs'], Tensor):
        images = torch.stack(images)
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    preprocessor = model.data_preprocessor
    inputs = preprocessor(dict(inputs=images, data_samples=samples), False)['inputs']
    return images, samples, inputs, preprocessor


def settings_of(part: Any) -> dict[str, Any]:
    """The conventions of a metric or of ``UniCAM``: its type and arguments."""
    values = {
        name: value
        for name, parameter in signature(type(part)).parameters.items()
        if (value := getattr(part, name, None)) is not None or parameter.default is not None
    }
    name = dict(name=part.name) if getattr(part, 'name', '') else {}
    return dict(type=type(part).__name__, **name, **values)
