"""UniCAM: where a model uses features that another model has not learned."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkdx.arguments import integer, one_of, text
from mmkdx.bounds import read_array
from mmkdx.explain.activations import activations, pushed_gradient
from mmkdx.explain.base import undisturbed
from mmkdx.explain.gradient import weighted_sum
from mmkdx.explain.layers import Layer, find_layers, find_stages
from mmkdx.functional import no_autocast
from mmkdx.functional.distance_correlation import (
    pair_correlations,
    remove,
    u_center,
    u_correlation,
)
from mmkdx.functional.distances import distance_gradient, pairwise_distances
from mmkdx.models.families import unwrap
from mmkdx.models.intercept import Tap
from mmkdx.models.taps import TapSet
from mmkdx.registry import EXPLAINERS

#: What is differentiated: the labels' correlation with the features that only one model has learned, or
#: the sum over images of these features' largest entry.
TARGETS = ('gt_correlation', 'row_max')

#: The largest number of compared stages: the last ones.
MAX_STAGES = 4

#: With fewer images in a batch the correlations are mostly noise.
FEW_IMAGES = 16


@dataclass
class PairExplanation:
    """UniCAM's result for one layer of a student and a base model, for a batch of n images.

    Args:
        distilled (Tensor): Raw maps (n, h, w), signed, of what only the student has learned; all zero
            where this is not defined.
        residual (Tensor): The same for the base model, (n, h', w').
        scores (dict[str, float]): The correlations of the features and the labels, and rho; see
            ``mmkdx.functional.distance_correlation.pair_correlations``. NaN where not defined.
    """

    distilled: Tensor
    residual: Tensor
    scores: dict[str, float]


@EXPLAINERS.register_module()
class UniCAM:
    """Maps of what a student has learned and a base model has not, and the other way round.

    Both models see the same images. The base model's distances between the images' features are
    projected out of the student's. The correlation of the rest with the labels has a gradient with
    respect to the student's activations. Its mean over space weights the activations, as in Grad-
    CAM: the distilled features. With the roles swapped: the residual features. **A map depends on
    the whole batch.**

    ``explainer(student, base, inputs, labels)`` explains a pair; it cannot explain a single model.

    Source: Adhane et al., "On Explaining Knowledge Distillation: Measuring and Visualising the Knowledge
    Transfer Process", WACV 2025, Eq. 1 to 6; partial distance correlation of networks is from Zhen et
    al., "On the Versatile Uses of Partial Distance Correlation in Deep Learning", ECCV 2022. The class
    score of Eq. 5 does not depend on the base model; both targets here are from the authors' code.

    Args:
        layers (Sequence | Mapping, optional): The compared layers: each a path as of
            ``LayerExplainer.layer`` in both models, or a pair (student's, base's); a third path is the
            teacher's, for ``ExplainHook``. The keys of a mapping name them, else they are 'stage1',
            'stage2', ... Defaults to None: the last layer at each of the last four sizes of map that
            both models have, as the stages of a ResNet.
        target (str): 'gt_correlation' or 'row_max' (the sum over images of the largest entry of the
            rest, which needs no label; used by the code of 2024). Defaults to 'gt_correlation'.
        features (str | Sequence[str], optional): A later tap whose features are compared instead of the
            layers', or a pair (student's, base's). Defaults to None.
        pool (str, optional): 'gap' to average features over space before they are compared. Defaults to
            None: all values count.
        embedding (str, optional): A file (.npy) with a vector for each class, of shape (C, e), like
            embeddings of their names, for the labels' distances. Defaults to None: all classes have
            equal distances. With two classes it makes no difference.
        max_batch (int): The most images that pass a model at once. Defaults to 64.

    Raises:
        ValueError: If an argument is not one of these.
        FileNotFoundError: If there is no such file.
    """

    def __init__(
        self,
        layers: Sequence | Mapping[str, str | Sequence[str]] | None = None,
        target: str = 'gt_correlation',
        features: str | Sequence[str] | None = None,
        pool: str | None = None,
        embedding: str | None = None,
        max_batch: int = 64,
    ) -> None:
        self.layers = None if layers is None else _named(layers)
        pair = (features, features) if isinstance(features, str) else features
        if pair is not None and (
            not isinstance(pair, Sequence) or [type(each) for each in pair] != [str, str]
        ):
            raise ValueError(
                f'UniCAM.features is {features!r}; it must be a tap, or a pair (student, base)'
            )
        self.target = one_of('UniCAM.target', target, TARGETS)
        self.features = pair
        self.pool = one_of('UniCAM.pool', pool, (None, 'gap'))
        self.embedding = embedding
        self._classes = None if embedding is None else _read_embedding(embedding)
        self.max_batch = integer('UniCAM.max_batch', max_batch, 1)

    def __call__(
        self,
        student: nn.Module,
        base: nn.Module,
        inputs: Tensor,
        labels: Tensor | None = None,
        base_inputs: Tensor | None = None,
        layers: Mapping[str, Mapping[str, Layer]] | None = None,
    ) -> dict[str, PairExplanation]:
        """Explains a pair of models on a batch.

        Args:
            student (nn.Module): A classifier of mmpretrain's interface, or a module that returns logits.
            base (nn.Module): Another, like the same network trained without a teacher.
            inputs (Tensor): Preprocessed images of shape (n, 3, H, W), n from 5. Use 64 or more, with
                equal shares of the classes, for reliable correlations.
            labels (Tensor, optional): Classes of shape (n, ). The target 'row_max' does not need them.
            base_inputs (Tensor, optional): The same images as the base model takes them. Defaults to
                None (``inputs``).
            layers (Mapping, optional): The result of ``find_layers``, if it is known.

        Returns:
            dict[str, PairExplanation]: Maps and correlations for each layer.

        Raises:
            ValueError: If both are the same module, there are fewer than 5 images, labels are missing
                or not one an image, or a layer cannot be explained.
        """
        student, base = unwrap(student), unwrap(base)
        if student is base:
            raise ValueError('UniCAM compares two models, and student and base are the same module')
        if len(inputs) < 5:
            raise ValueError(
                f'UniCAM compares the distances between images and needs 5 or more, not {len(inputs)}'
            )
        if len(inputs) < FEW_IMAGES:
            warnings.warn(
                f'UniCAM: {len(inputs)} images are few; below {FEW_IMAGES} the correlations are mostly '
                'noise',
                stacklevel=2,
            )
        if labels is None and self.target == 'gt_correlation':
            raise ValueError("UniCAM needs labels; only target='row_max' works without them")
        if labels is not None and labels.shape != inputs.shape[:1]:
            raise ValueError(
                f'UniCAM takes one label for each image, and got {tuple(labels.shape)} for '
                f'{len(inputs)} images'
            )
        base_inputs = inputs if base_inputs is None else base_inputs
        explanations = {}
        with no_autocast(inputs):
            layers = layers or self.find_layers(
                dict(student=(student, inputs), base=(base, base_inputs))
            )
            sides = [
                self._observe(student, inputs, list(layers['student'].values()), 0),
                self._observe(base, base_inputs, list(layers['base'].values()), 1),
            ]
            label_matrix = None
            if labels is not None:
                label_matrix = u_center(pairwise_distances(self.label_features(labels)))
            for i, name in enumerate(layers['student']):
                matrices = [u_center(side.distances[i]) for side in sides]
                maps = []
                for side, other in zip(sides, reversed(matrices)):
                    gradient = self._gradient(side.distances[i], other, label_matrix)
                    maps.append(self._maps(side, i, gradient))
                scores = pair_correlations(*matrices, label_matrix)
                explanations[name] = PairExplanation(
                    *maps, {key: float(value) for key, value in scores.items()}
                )
        return explanations

    def find_layers(
        self, models: Mapping[str, tuple[nn.Module, Tensor]]
    ) -> dict[str, dict[str, Layer]]:
        """Finds the compared layers.

        Args:
            models (Mapping[str, tuple[nn.Module, Tensor]]): 'student', 'base' and perhaps 'teacher',
                each with images of shape (N, 3, H, W) as it takes them.

        Returns:
            dict[str, dict[str, Layer]]: Each model's layers by name; no teacher if it has no such
            stages, or no path for it is given.

        Raises:
            ValueError: If a layer does not exist or is not spatial, or student and base model
                have no stages in common.
        """
        if self.layers is not None:
            layers = {}
            for i, role in enumerate(('student', 'base', 'teacher')):
                paths = {name: each[i] for name, each in self.layers.items() if i < len(each)}
                if role in models and paths:
                    try:
                        with undisturbed(*models[role]):
                            found = find_layers(*models[role], list(paths.values()))
                    except ValueError as error:
                        raise ValueError(f'UniCAM.layers: {role}: {error}') from error
                    layers[role] = dict(zip(paths, found))
            return layers
        stages = {}
        for role, (model, inputs) in models.items():
            with undisturbed(model, inputs):
                stages[role] = {layer.layout.size: layer for layer in find_stages(model, inputs)}
        student, base = stages['student'], stages['base']
        sizes = [size for size in student if size in base][-MAX_STAGES:]
        if not sizes:
            words = [', '.join(layer.name for layer in each.values()) for each in (student, base)]
            raise ValueError(
                f'UniCAM.layers is missing: student and base model have no map size in common; the '
                f'student has the stages {words[0]}, the base model {words[1]}'
            )
        return {
            role: {f'stage{i}': found[size] for i, size in enumerate(sizes, 1)}
            for role, found in stages.items()
            if all(size in found for size in sizes)
        }

    def label_features(self, labels: Tensor) -> Tensor:
        """Returns the vectors (n, e) of labels (n, ): one-hot, or from ``embedding``.

        Raises:
            ValueError: If the file has no vector for a class.
        """
        if self._classes is None:
            return F.one_hot(labels.long()).double()
        if labels.max() >= len(self._classes):
            raise ValueError(
                f'UniCAM.embedding has vectors for {len(self._classes)} classes and a label is '
                f'{int(labels.max())}'
            )
        return self._classes.to(labels.device)[labels]

    def _gradient(self, distances: Tensor, other: Tensor, labels: Tensor | None) -> Tensor | None:
        """Returns the target's gradient with respect to the distances; None if it has none."""
        with torch.enable_grad():
            distances = distances.detach().requires_grad_()
            unique = remove(u_center(distances), other)
            if self.target == 'row_max':
                value = unique.amax(1).sum()
            else:
                value = u_correlation(unique, labels)
            if not value.isfinite() or not unique.any():
                return None
            return torch.autograd.grad(value, distances)[0]

    def _observe(self, model: nn.Module, inputs: Tensor, layers: list[Layer], side: int) -> _Side:
        tap = None
        if self.features is not None:
            name = self.features[side]
            taps = TapSet({name: 'UniCAM.features'}, ('student', 'base model')[side])
            with undisturbed(model, inputs), torch.no_grad():
                taps.resolve(model, inputs[:1])
            tap = taps.taps[name]
        points = layers if tap is None else [*layers, tap]
        parts = [activations(model, part, points) for part in inputs.split(self.max_batch)]
        values = [torch.cat(column) for column in zip(*parts)]
        features = values if tap is None else [values.pop()] * len(layers)
        if self.pool and features[0].dim() == 4:
            features = [each.mean((2, 3)) for each in features]
        distances = [pairwise_distances(each) for each in features]
        return _Side(model, inputs, layers, values, features, distances, tap)

    def _maps(self, side: _Side, index: int, gradient: Tensor | None) -> Tensor:
        """Makes the raw maps of a layer from the target's gradient at the distances."""
        values, features = side.activations[index], side.features[index]
        if gradient is None:
            return values.new_zeros(len(values), *values.shape[2:])
        if side.tap is None:
            # The gradient's mean over space is the gradient with respect to the mean activation
            weights = distance_gradient(gradient, side.distances[index], values.mean((2, 3)))
            if self.pool:
                weights = weights / values[0, 0].numel()
        else:
            later = distance_gradient(gradient, side.distances[index], features.flatten(1))
            layer, later = side.layers[index], later.view_as(features)
            parts = zip(side.inputs.split(self.max_batch), later.split(self.max_batch))
            weights = torch.cat(
                [
                    pushed_gradient(side.model, images, layer, side.tap, part).mean((2, 3))
                    for images, part in parts
                ]
            )
        return weighted_sum(weights.to(values), values)


class _Side(NamedTuple):
    """The data for the maps of one model; the lists have an element for each layer."""

    model: nn.Module
    inputs: Tensor
    layers: list[Layer]
    activations: list[Tensor]
    features: list[Tensor]
    distances: list[Tensor]
    tap: Tap | None


def _named(layers: Sequence | Mapping) -> dict[str, tuple[str, ...]]:
    """Returns the paths of each layer in student, base and, if given, teacher."""
    if isinstance(layers, str) or not isinstance(layers, (Sequence, Mapping)) or not layers:
        raise ValueError(
            f'UniCAM.layers is {layers!r}; it must be a list of paths, or a dict of names and paths'
        )
    if not isinstance(layers, Mapping):
        layers = {f'stage{i}': layer for i, layer in enumerate(layers, 1)}
    named = {}
    for name, given in layers.items():
        paths = named[name] = (given,) * 3 if isinstance(given, str) else tuple(given)
        if len(paths) not in (2, 3) or not all(isinstance(path, str) for path in paths):
            raise ValueError(
                f'UniCAM.layers: {name} is {given!r}; it must be a path, or the paths of '
                'student, base and, if there is one, teacher'
            )
    return named


def _read_embedding(path: str) -> Tensor:
    text('UniCAM.embedding', path, 'the path of a file (.npy)')
    if not Path(path).is_file():
        raise FileNotFoundError(f'UniCAM.embedding: there is no file {path}')
    try:
        table = read_array(path)
    except (ValueError, EOFError) as error:
        raise ValueError(f'UniCAM.embedding: {path} is no NumPy file (.npy): {error}') from error
    if table.ndim != 2 or not np.isfinite(table).all():
        raise ValueError(
            f'UniCAM.embedding: {path} has the shape {table.shape}; it must hold a row of finite '
            'numbers for each class'
        )
    return torch.from_numpy(table.astype(np.float64))
