"""UniCAM: where one of two models sees what the other has not learned."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkdx.arguments import integer, one_of
from mmkdx.explain.activations import activations, pushed_gradient
from mmkdx.explain.base import undisturbed
from mmkdx.explain.gradient import weighted_sum
from mmkdx.explain.layers import Layer, find_layers, find_stages
from mmkdx.functional import no_autocast
from mmkdx.functional.distance_correlation import (
    distance_gradient,
    pair_correlations,
    pairwise_distances,
    remove,
    u_center,
    u_correlation,
)
from mmkdx.models.families import unwrap
from mmkdx.models.taps import Tap, TapSet
from mmkdx.registry import EXPLAINERS

#: What is differentiated: how what only one model has learned correlates with the labels, or the sum
#: over images of its largest entry.
TARGETS = ('gt_correlation', 'row_max')

#: How many stages are compared at most, the last ones.
MAX_STAGES = 4

#: Below so many images of a batch the correlations are mostly noise.
FEW_IMAGES = 16


@dataclass
class PairExplanation:
    """What UniCAM says of one layer of a student and a base model, for a batch of n images.

    Args:
        distilled (Tensor): Raw maps (n, h, w), signed, of what the student has and the base model has
            not; all zero where nothing can be said.
        residual (Tensor): The same of what the base model has and the student has not, (n, h', w').
        scores (dict[str, float]): The correlations of the features and the labels, and rho; see
            ``mmkdx.functional.distance_correlation.pair_correlations``. NaN where one is not defined.
    """

    distilled: Tensor
    residual: Tensor
    scores: dict[str, float]


@EXPLAINERS.register_module()
class UniCAM:
    """Maps of what a student has learned and a base model has not, and the other way round.

    Both models see the same images. From the distances between the images' features in the student
    those in the base model are projected out; how the rest correlates with the labels is differentiated
    by the student's activations, which are weighted by the mean gradient as in Grad-CAM: the distilled
    features. With the roles swapped: the residual features. **A map depends on the whole batch.**

    ``explainer(student, base, inputs, labels)`` explains a pair; it cannot stand where one model is
    explained.

    Source: Adhane et al., "On Explaining Knowledge Distillation: Measuring and Visualising the Knowledge
    Transfer Process", WACV 2025, Eq. 1 to 6; partial distance correlation of networks is of Zhen et al.,
    "On the Versatile Uses of Partial Distance Correlation in Deep Learning", ECCV 2022. Eq. 5 speaks of
    a class score, which does not depend on the base model; the two targets here are those of the
    authors' code.

    Args:
        layers (Sequence | Mapping, optional): Which layers are compared: each a path as of
            ``LayerExplainer.layer`` in both models, or a pair (student's, base's); a third path is the
            teacher's, for ``ExplainHook``. With a mapping its keys name them, else they are called
            'stage1', 'stage2', ... Defaults to None: the last layer at each size of map that both models
            have, of the last four such sizes, as the stages of a ResNet.
        target (str): 'gt_correlation' or 'row_max' (the sum over images of the largest entry of what is
            left, which needs no label and is what the code of 2024 used). Defaults to 'gt_correlation'.
        features (str | Sequence[str], optional): Where features are compared, if not at the layers
            themselves: the tap of a later one, or a pair (student's, base's). Defaults to None.
        pool (str, optional): 'gap' to average features over space before they are compared. Defaults to
            None: all values count.
        embedding (str, optional): A file (.npy) with a vector for each class, of shape (C, e), between
            which the labels' distances are taken, like embeddings of their names. Defaults to None: all
            classes are equally far apart. With two classes it makes no difference.
        max_batch (int): How many images pass a model at once. Defaults to 64.

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
        if isinstance(features, str):
            features = (features, features)
        if features is not None and (
            not isinstance(features, Sequence) or [type(each) for each in features] != [str, str]
        ):
            raise ValueError(
                f'UniCAM.features is {features!r}; it must be a tap, or a pair (student, base)'
            )
        self.target = one_of('UniCAM.target', target, TARGETS)
        self.features = features
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
            inputs (Tensor): Preprocessed images of shape (n, 3, H, W), n from 5; from 64 on, with equal
                shares of the classes, the correlations say something.
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
            raise ValueError("UniCAM needs labels; only the target 'row_max' does without")
        with no_autocast(inputs):
            return self._explain(student, base, inputs, labels, base_inputs, layers)

    def _explain(
        self,
        student: nn.Module,
        base: nn.Module,
        inputs: Tensor,
        labels: Tensor | None,
        base_inputs: Tensor | None,
        layers: Mapping[str, Mapping[str, Layer]] | None,
    ) -> dict[str, PairExplanation]:
        base_inputs = inputs if base_inputs is None else base_inputs
        layers = layers or self.find_layers(
            dict(student=(student, inputs), base=(base, base_inputs))
        )
        label_matrix = None
        if labels is not None:
            if labels.shape != inputs.shape[:1]:
                raise ValueError(
                    f'UniCAM takes one label an image, and got {tuple(labels.shape)} for '
                    f'{len(inputs)} images'
                )
            label_matrix = u_center(pairwise_distances(self.label_features(labels)))
        sides = [
            self._observe(student, inputs, list(layers['student'].values()), 0),
            self._observe(base, base_inputs, list(layers['base'].values()), 1),
        ]
        explanations = {}
        for i, name in enumerate(layers['student']):
            matrices = [side.matrices[i] for side in sides]
            maps = []
            for side, other in zip(sides, reversed(matrices)):
                gradient = self._gradient(side.distances[i], other, label_matrix)
                maps.append(side.maps(i, gradient))
            scores = pair_correlations(*matrices, label_matrix)
            explanations[name] = PairExplanation(
                *maps, {key: float(value) for key, value in scores.items()}
            )
        return explanations

    def find_layers(
        self, models: Mapping[str, tuple[nn.Module, Tensor]]
    ) -> dict[str, dict[str, Layer]]:
        """The layers that are compared.

        Args:
            models (Mapping[str, tuple[nn.Module, Tensor]]): 'student', 'base' and perhaps 'teacher',
                each with images of shape (N, 3, H, W) as it takes them.

        Returns:
            dict[str, dict[str, Layer]]: For each model the layers by name; none of the teacher where it
            has no such stages, or no path for it is given.

        Raises:
            ValueError: If a layer does not exist or has no extent in space, or student and base model
                have no stages in common.
        """
        if self.layers is not None:
            return {
                role: found
                for i, role in enumerate(('student', 'base', 'teacher'))
                if role in models and (found := self._given_layers(i, role, *models[role]))
            }
        stages = {}
        for role, (model, inputs) in models.items():
            with undisturbed(model, inputs):
                stages[role] = {layer.layout.size: layer for layer in find_stages(model, inputs)}
        student, base = stages['student'], stages['base']
        sizes = [size for size in student if size in base][-MAX_STAGES:]
        if not sizes:
            words = [', '.join(layer.name for layer in each.values()) for each in (student, base)]
            raise ValueError(
                f'UniCAM.layers is missing: student and base model have no size of map in common, the '
                f'student has the stages {words[0]}, the base model {words[1]}'
            )
        return {
            role: {f'stage{i}': found[size] for i, size in enumerate(sizes, 1)}
            for role, found in stages.items()
            if all(size in found for size in sizes)
        }

    def _given_layers(
        self, which: int, role: str, model: nn.Module, inputs: Tensor
    ) -> dict[str, Layer]:
        paths = {name: paths[which] for name, paths in self.layers.items() if which < len(paths)}
        try:
            with undisturbed(model, inputs):
                return dict(zip(paths, find_layers(model, inputs, list(paths.values()))))
        except ValueError as error:
            raise ValueError(f'UniCAM.layers: {role}: {error}') from error

    def label_features(self, labels: Tensor) -> Tensor:
        """A vector for each label, of shape (n, e): one-hot, or the class's of ``embedding``.

        Args:
            labels (Tensor): Classes of shape (n, ).

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
        """The target's gradient by the distances; None where there is nothing to differentiate."""
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

    def _observe(
        self, model: nn.Module, inputs: Tensor, layers: list[Layer], side: int
    ) -> _Observed:
        tap = None
        if self.features is not None:
            owner = ('student', 'base model')[side]
            taps = TapSet({self.features[side]: 'UniCAM.features'}, owner)
            with undisturbed(model, inputs), torch.no_grad():
                taps.resolve(model, inputs[:1])
            tap = taps.taps[self.features[side]]
        parts = inputs.split(self.max_batch)
        collected: list[list[Tensor]] = []
        for part in parts:
            values = activations(model, part, [*layers, *([] if tap is None else [tap])])
            collected.append(values)
        values = [torch.cat(column) for column in zip(*collected)]
        features = values[: len(layers)] if tap is None else [values[-1]] * len(layers)
        if self.pool and features[0].dim() == 4:
            features = [each.mean((2, 3)) for each in features]
        distances = [pairwise_distances(each) for each in features]
        return _Observed(
            model, inputs, layers, values[: len(layers)], features, distances, tap, self
        )


@dataclass
class _Observed:
    """One model's side: what its maps are made of."""

    model: nn.Module
    inputs: Tensor
    layers: list[Layer]
    activations: list[Tensor]
    features: list[Tensor]
    distances: list[Tensor]
    tap: Tap | None
    settings: UniCAM

    def __post_init__(self) -> None:
        self.matrices = [u_center(each) for each in self.distances]

    def maps(self, index: int, gradient: Tensor | None) -> Tensor:
        """The raw maps of a layer, from the target's gradient by the distances."""
        values = self.activations[index]
        if gradient is None:
            return values.new_zeros(len(values), *values.shape[2:])
        if self.tap is None:
            # The mean over space of the gradient by the activations is that by their mean
            weights = distance_gradient(gradient, self.distances[index], values.mean((2, 3)))
            if self.settings.pool:
                weights = weights / values[0, 0].numel()
        else:
            by_features = distance_gradient(
                gradient, self.distances[index], self.features[index].flatten(1)
            ).view_as(self.features[index])
            weights = self._pushed(self.layers[index], by_features)
        return weighted_sum(weights.to(values), values)

    def _pushed(self, layer: Layer, by_features: Tensor) -> Tensor:
        """The mean gradient by a layer's activations, from that by later features."""
        size = self.settings.max_batch
        return torch.cat(
            [
                pushed_gradient(self.model, part, layer, self.tap, gradient).mean((2, 3))
                for part, gradient in zip(self.inputs.split(size), by_features.split(size))
            ]
        )


def _named(layers: Sequence | Mapping) -> dict[str, tuple[str, ...]]:
    """The paths of each layer in student, base and, if given, teacher."""
    if isinstance(layers, str) or not isinstance(layers, (Sequence, Mapping)) or not layers:
        raise ValueError(
            f'UniCAM.layers is {layers!r}; it must be a list of paths, or a dict of names and paths'
        )
    if not isinstance(layers, Mapping):
        layers = {f'stage{i}': layer for i, layer in enumerate(layers, 1)}
    named = {
        name: (paths,) * 3 if isinstance(paths, str) else tuple(paths)
        for name, paths in layers.items()
    }
    for name, paths in named.items():
        if len(paths) not in (2, 3) or not all(isinstance(path, str) for path in paths):
            raise ValueError(
                f'UniCAM.layers: {name} is {layers[name]!r}; it must be a path, or the paths of '
                'student, base and, if there is one, teacher'
            )
    return named


def _read_embedding(path: str) -> Tensor:
    if not isinstance(path, (str, Path)):
        raise ValueError(f'UniCAM.embedding is {path!r}; it must be the path of a file (.npy)')
    if not Path(path).is_file():
        raise FileNotFoundError(f'UniCAM.embedding: there is no file {path}')
    try:
        table = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f'UniCAM.embedding: {path} is no NumPy file (.npy): {error}') from error
    if table.ndim != 2 or not np.isfinite(table).all():
        raise ValueError(
            f'UniCAM.embedding: {path} has the shape {table.shape}; it must hold a row of finite '
            'numbers for each class'
        )
    return torch.from_numpy(table.astype(np.float64))
