"""A student, a base model and a teacher side by side on batches of images."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmkdx.evaluation.subjects import Subject
from mmkdx.explain import LayerExplainer, UniCAM, build_explainer
from mmkdx.explain.layers import Layer
from mmkdx.explain.unicam import activations
from mmkdx.functional.distance_correlation import pairwise_distances
from mmkdx.metrics.relevance import PairedBatch, PairedModel


class PairAnalysis:
    """Compares the features of a student, a base model and, where there is one, a teacher.

    Args:
        subjects (dict[str, Subject]): The models: 'student', 'base' and perhaps 'teacher'.
        unicam (UniCAM): What explains student and base model.
        images (Tensor): One preprocessed image or more, of shape (N, 3, H, W), to find the layers with.

    Raises:
        ValueError: If there is no layer to compare; see ``UniCAM.find_layers``.
    """

    def __init__(self, subjects: dict[str, Subject], unicam: UniCAM, images: Tensor) -> None:
        self.subjects = subjects
        self.unicam = unicam
        #: Height and width of the images for which the layers are found.
        self.size = images.shape[2:]
        self.layers: dict[str, dict[str, Layer]] = unicam.find_layers(
            {name: (subject.model, subject.converted(images)) for name, subject in subjects.items()}
        )
        self._explainers: dict[tuple[str, str], LayerExplainer] = {}

    def batch(
        self,
        number: int,
        inputs: Tensor,
        index: Sequence[int],
        labels: Tensor,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> PairedBatch:
        """Explains student and base model on a batch, and prepares the rest for metrics.

        Args:
            number (int): Which batch it is.
            inputs (Tensor): Images of shape (n, 3, H, W), preprocessed for the student.
            index (Sequence[int]): Their positions in the data set.
            labels (Tensor): Their labels, of shape (n, ).
            mean (Sequence[float], optional): See ``ExplainedBatch``.
            std (Sequence[float], optional): See ``ExplainedBatch``.
        """
        student, base = self.subjects['student'], self.subjects['base']
        unique = self.unicam(
            student.model,
            base.model,
            student.converted(inputs),
            labels,
            base.converted(inputs),
            self.layers,
        )
        models = {name: self._model(name, inputs, labels) for name in self.layers}
        return PairedBatch(
            inputs,
            index,
            models,
            mean=mean,
            std=std,
            number=number,
            targets=labels,
            label_features=self.unicam.label_features(labels),
            unique=unique,
        )

    def _model(self, name: str, inputs: Tensor, labels: Tensor) -> PairedModel:
        subject, layers = self.subjects[name], self.layers[name]
        known: dict[str, dict[str, Tensor]] = {}
        size = self.unicam.max_batch

        def maps(spec: dict | str) -> dict[str, Tensor]:
            if repr(spec) not in known:
                explainer = self._explainer(name, spec)
                parts = [
                    explainer(subject.model, subject.converted(images), targets)
                    for images, targets in zip(inputs.split(size), labels.split(size))
                ]
                known[repr(spec)] = dict(zip(layers, map(torch.cat, zip(*parts))))
            return known[repr(spec)]

        def distances(images: Tensor, names: list[str], normalize: bool) -> dict[str, Tensor]:
            chosen = [layers[each] for each in names]
            parts = [
                activations(subject.model, subject.converted(part), chosen)
                for part in images.split(size)
            ]
            result = {}
            for each, *features in zip(names, *parts):
                features = [part.flatten(1) for part in features]
                if normalize:
                    features = [torch.nn.functional.normalize(part) for part in features]
                result[each] = pairwise_distances(torch.cat(features))
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
    """Draws batches with equal shares of the classes and at least two images of each that is in one.

    Distances between labels that are all equal, or all different, say nothing. What is left over at the
    end, and images of one class alone, are in no batch; with fewer images than asked for there is one
    batch of them all.

    Args:
        labels (Sequence[int]): The label of each image.
        size (int): Images in a batch, an even number.
        seed (int): The seed of the drawing. Defaults to 0.

    Returns:
        list[list[int]]: Positions in ``labels``, none twice; no batch if there are not four images of
        each of two classes, or two of each of three.
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
    count = len(drawn) // size
    if count:
        return [drawn[i * size : (i + 1) * size] for i in range(count)]
    return [drawn] if len(drawn) >= 5 else []
