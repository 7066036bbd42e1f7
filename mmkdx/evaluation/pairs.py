"""Compares a student with a base model and a teacher on batches of an evaluation's sample."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank, get_world_size
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from mmkdx.arguments import errors_named, integer
from mmkdx.datasets.wrappers import labels
from mmkdx.evaluation.images import read_batch
from mmkdx.evaluation.subjects import Subject
from mmkdx.explain import LayerExplainer, UniCAM, build_explainer
from mmkdx.explain.layers import Layer
from mmkdx.explain.unicam import activations
from mmkdx.functional.distance_correlation import pairwise_distances
from mmkdx.metrics.base import ExplainedBatch
from mmkdx.metrics.relevance import (
    FeatureSimilarityScore,
    PairedBatch,
    PairedModel,
    PairMetric,
    RelevanceScore,
)
from mmkdx.visualization.panel import PAIR_NOTE, pair_panel
from mmkdx.visualization.rendering import label_text
from mmkdx.visualization.sections import PictureSection

#: Number of images of a trial.
TRIAL_SIZE = 6


class PairEvaluation:
    """Runs ``UniCAM`` and metrics of pairs on batches with equal shares of the classes.

    The batches are divided among the ranks. Each is measured as a whole on one rank, so that neither
    features nor maps are exchanged.

    Args:
        unicam (dict): The arguments of ``UniCAM``.
        metrics (Sequence[PairMetric]): The metrics; if there are none, ``FeatureSimilarityScore`` and
            ``RelevanceScore``.
        size (int): Images in a batch, an even number from 6 on.
        seed (int): The random seed of the batches.
        owner (str): The owner of these arguments, for messages.

    Raises:
        ValueError: If the size is another number.
    """

    def __init__(
        self, unicam: dict, metrics: Sequence[PairMetric], size: int, seed: int, owner: str
    ) -> None:
        if integer(f'{owner}.context_size', size) < TRIAL_SIZE or size % 2:
            raise ValueError(
                f'{owner}.context_size is {size}; it must be an even number from {TRIAL_SIZE} on'
            )
        with errors_named(f'{owner}.unicam: ', errors=TypeError):
            self.unicam = UniCAM(**unicam)
        self.metrics = list(metrics) or [FeatureSimilarityScore(), RelevanceScore()]
        self.size = size
        self.seed = seed
        self.owner = owner
        self._analysis: PairAnalysis | None = None

    def begin(
        self,
        subjects: dict[str, Subject],
        dataset: Any,
        place: dict[int, int],
        classes: Sequence[str] | None = None,
    ) -> None:
        """Takes the models, the sample (for each image its index in the data set), and names of classes.

        Raises:
            ValueError: If an image has no label, or several.
        """
        with errors_named(f'{self.owner}.base is compared by classes: '):
            found = labels(Subset(dataset, list(place.values()))).tolist()
        if any(label < 0 for label in found):
            raise ValueError(f'{self.owner}.base is compared by classes, and an image has no label')
        self._sample = list(zip(place, place.values(), found))
        self._subjects, self._classes, self._analysis = subjects, classes, None

    def run(
        self, loader: DataLoader, model: nn.Module, show: int, trial: bool = False
    ) -> list[PictureSection]:
        """Measures this rank's batches, and draws the maps of some images on the first rank.

        The preprocessor of ``model`` prepares the images. A trial takes one small batch.

        Raises:
            ValueError: If there are too few images of two classes.
        """
        drawn = context_batches([label for *_, label in self._sample], self.size, self.seed)
        if not drawn:
            raise ValueError(
                f'{self.owner}.base: the {len(self._sample)} images of the sample make no batch; a '
                'batch needs four images of each of two classes, or two of each of three, so raise '
                f'{self.owner}.num_samples'
            )
        batches = [[self._sample[i] for i in batch] for batch in drawn]
        batches = [batches[0][:TRIAL_SIZE]] if trial else batches
        own = list(enumerate(batches))[get_rank() :: get_world_size()]
        data = DataLoader(
            loader.dataset,
            batch_sampler=[[index for _, index, _ in members] for _, members in own],
            num_workers=min(loader.num_workers, len(own)),
            collate_fn=loader.collate_fn,
            worker_init_fn=loader.worker_init_fn,
            # Its own generator, so that it takes none of the training's random numbers
            generator=torch.Generator(),
        )
        sections = []
        for (number, members), loaded in zip(own, data):
            numbers, _, targets = zip(*members)
            images = read_batch(loaded, model, self.owner, numbers)
            if self._analysis is None or self._analysis.size != images.inputs.shape[2:]:
                self._analysis = PairAnalysis(self._subjects, self.unicam, images.inputs[:1])
            targets = torch.tensor(targets, device=images.inputs.device)
            batch = self._analysis.batch(number, images, targets)
            for metric in self.metrics:
                metric.process(batch)
            if number == 0 and show:
                shown = [images.picture(i) for i in range(min(show, len(members)))]
                sections = [_section(batch, shown, self._classes)]
        return sections

    def facts(self) -> dict[str, Any]:
        """The settings of the comparison."""
        layers = {
            model: {stage: str(layer.tap) for stage, layer in found.items()}
            for model, found in self._analysis.layers.items()
        }
        return dict(unicam=settings_of(self.unicam), layers=layers, context_size=self.size)


class PairAnalysis:
    """Compares the features of a student, a base model and, where there is one, a teacher.

    Args:
        subjects (dict[str, Subject]): The models: 'student', 'base' and perhaps 'teacher'.
        unicam (UniCAM): Explains student and base model.
        images (Tensor): Preprocessed images of shape (N, 3, H, W), to find the layers with.

    Raises:
        ValueError: If there is no layer to compare; see ``UniCAM.find_layers``.
    """

    def __init__(self, subjects: dict[str, Subject], unicam: UniCAM, images: Tensor) -> None:
        self.subjects = subjects
        self.unicam = unicam
        #: Height and width of the images for which the layers are found.
        self.size = images.shape[2:]
        self.layers: dict[str, dict[str, Layer]] = unicam.find_layers(
            {name: (subject.model, subject.convert(images)) for name, subject in subjects.items()}
        )
        self._explainers: dict[tuple[str, str], LayerExplainer] = {}

    def batch(self, number: int, images: ExplainedBatch, labels: Tensor) -> PairedBatch:
        """Explains student and base model on n images with labels (n, ), for metrics."""
        inputs = images.inputs
        student, base = self.subjects['student'], self.subjects['base']
        pair = student.convert(inputs), labels, base.convert(inputs)
        return PairedBatch(
            inputs,
            images.index,
            {name: self._model(name, inputs, labels) for name in self.layers},
            mean=images.mean,
            std=images.std,
            number=number,
            targets=labels,
            label_features=self.unicam.label_features(labels),
            unique=self.unicam(student.model, base.model, *pair, self.layers),
        )

    def _model(self, name: str, inputs: Tensor, labels: Tensor) -> PairedModel:
        subject, layers = self.subjects[name], self.layers[name]
        known: dict[str, dict[str, Tensor]] = {}
        size = self.unicam.max_batch

        def maps(spec: dict | str) -> dict[str, Tensor]:
            if repr(spec) not in known:
                explainer = self._explainer(name, spec)
                parts = [
                    explainer(subject.model, subject.convert(images), targets)
                    for images, targets in zip(inputs.split(size), labels.split(size))
                ]
                known[repr(spec)] = dict(zip(layers, map(torch.cat, zip(*parts))))
            return known[repr(spec)]

        def distances(images: Tensor, names: list[str], normalize: bool) -> dict[str, Tensor]:
            chosen = [layers[each] for each in names]
            parts = [
                activations(subject.model, subject.convert(part), chosen)
                for part in images.split(size)
            ]
            result = {}
            for each, *features in zip(names, *parts):
                values = torch.cat([part.flatten(1) for part in features])
                values = nn.functional.normalize(values) if normalize else values
                result[each] = pairwise_distances(values)
            return result

        return PairedModel(maps, distances)

    def _explainer(self, name: str, spec: dict | str) -> LayerExplainer:
        key = name, repr(spec)
        if key not in self._explainers:
            config = dict(type=spec) if isinstance(spec, str) else dict(spec)
            explainer = build_explainer(config, 'mask')  # or a sentence that says why not
            if 'layer' not in signature(type(explainer)).parameters:
                raise ValueError(
                    f'mask: {config["type"]} does not explain any layer; use one like GradCAM, '
                    "'UniCAM' for what only one of the models has, or None"
                )
            paths = [str(layer.tap) for layer in self.layers[name].values()]
            self._explainers[key] = build_explainer({**config, 'layer': paths}, 'mask')
        return self._explainers[key]


def context_batches(labels: Sequence[int], size: int, seed: int = 0) -> list[list[int]]:
    """Draws batches with equal shares of the classes and two images or more of each drawn class.

    Distances between labels that are all equal, or all different, say nothing. Images of one class
    alone, and those that fill no batch, are left out. With fewer images than asked for there is one
    batch of them all; with less than four of each of two classes, or two of each of three, none.

    Args:
        labels (Sequence[int]): The label of each image.
        size (int): Images in a batch, an even number.
        seed (int): The random seed. Defaults to 0.

    Returns:
        list[list[int]]: Positions in ``labels``, none twice.
    """
    random = np.random.RandomState(seed)
    pairs: dict[Any, list[list[int]]] = {}
    order = random.permutation(len(labels))
    for label in sorted(set(labels)):
        members = [int(i) for i in order if labels[i] == label]
        pairs[label] = [members[i : i + 2] for i in range(0, len(members) - 1, 2)]
    turns = [list(pairs)[i] for i in random.permutation(len(pairs))]
    drawn: list[int] = []
    while len(left := [label for label in turns if pairs[label]]) > 1:
        for label in left:
            drawn += pairs[label].pop()
    batches = [drawn[i : i + size] for i in range(0, len(drawn) - size + 1, size)]
    return batches or ([drawn] if len(drawn) >= 5 else [])


def settings_of(part: Any) -> dict[str, Any]:
    """The settings of a metric or of ``UniCAM``: its type and arguments."""
    values = {
        name: value
        for name, parameter in signature(type(part)).parameters.items()
        if name not in ('collect_device', 'prefix')  # mmengine's
        if (value := getattr(part, name, None)) is not None or parameter.default is not None
    }
    name = dict(name=part.name) if getattr(part, 'name', '') else {}
    return dict(type=type(part).__name__, **name, **values)


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
        picture = pair_panel(image, maps, label_text(label, classes))
        pictures.append((f'image {index}', picture))
        keys.append(f'distilled_{{mode}}_{index:05d}')
    return PictureSection('What was distilled', PAIR_NOTE, pictures, keys)
