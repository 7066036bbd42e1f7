"""The interface of all explainers."""

from __future__ import annotations

import math
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from mmengine.registry import DefaultScope
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.checkpoint import checkpoint

from mmkdx.arguments import flag
from mmkdx.explain.layers import Layer, find_layers
from mmkdx.explain.targets import Scores, Targets, class_weights
from mmkdx.functional import full_precision, math_kernel, no_autocast
from mmkdx.models.families import unwrap
from mmkdx.models.intercept import evaluating, intercept
from mmkdx.registry import EXPLAINERS


class Explainer(metaclass=ABCMeta):
    """Base of all explainers: ``explainer(model, inputs, targets)`` yields raw maps.

    Maps are signed, in fp32 at least, on the model's device, and have the resolution at which they
    arise. They explain the logit of a class, a weighted sum of logits, or any score of the output.

    A call restores the model's modes, gradients, ``requires_grad``, hooks and random states. The model
    runs in eval mode and without autocast, also inside ``torch.no_grad`` and with frozen parameters.
    Wrappers are removed, see ``mmkdx.models.families.unwrap``.

    Args:
        differentiable (bool): Whether a loss can use the maps: they carry gradients to the parameters
            through all factors, and the model runs in its current mode. It then runs with torch's math
            kernel of attention, since fused kernels have no second derivative. Defaults to False.
    """

    #: Whether the maps of two classes can differ.
    class_specific = True
    #: Whether a loss of differentiable maps takes second derivatives.
    twice = True
    #: Whether it reads the weights of a classifier. A function cannot be its target then.
    classes_alone = False

    def __init__(self, differentiable: bool = False) -> None:
        self.differentiable = flag('differentiable', differentiable)

    def __call__(
        self, model: nn.Module, inputs: Tensor, targets: Targets = None
    ) -> Tensor | list[Tensor]:
        """Explains a batch.

        Args:
            model (nn.Module): A classifier, see ``mmkdx.models.describe``; for a function as target
                any network.
            inputs (Tensor): Preprocessed images of shape (N, C, H, W).
            targets (int | str | Tensor | Sequence | Callable, optional): What is explained: one class
                for all images; one for each (N integers); weights of the classes, of shape (N, K),
                like soft labels; mmpretrain's data samples, by their labels; 'pred', the predicted
                classes; 'all', every class in turn; or a function that takes what the model returns
                for all images and returns scores (N, ). Defaults to None ('pred').

        Returns:
            Tensor | list[Tensor]: Maps of shape (N, h, w), with 'all' (N, K, h, w); a list of these for
            a list of layers.

        Raises:
            ValueError: If there is no image, the model is a ScriptModule or returns no logits, a target
                is no class of the model, targets and images differ in number, a function returns no
                scores or cannot be explained, a layer cannot be explained, or a differentiable map
                would carry no gradient.
        """
        model = unwrap(model)
        if not isinstance(inputs, Tensor) or inputs.dim() != 4 or not len(inputs):
            got = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
            raise ValueError(f'an explainer takes images of shape (N, 3, H, W), and got {got}')
        if callable(targets) and self.classes_alone:
            raise ValueError(
                f'{type(self).__name__} explains classes by the weights of a classifier, so its target '
                'cannot be a function; use GradCAM'
            )
        if self.differentiable:
            sources = (inputs, *model.parameters())
            grad = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
            if not grad or not any(each.requires_grad for each in sources):
                raise ValueError(
                    f'{type(self).__name__}: the model carries no gradient (frozen parameters, or '
                    'torch.no_grad), so a loss of its map would train nothing'
                )
            kernel = math_kernel(self.twice)
            with no_autocast(inputs), without_checkpointing(model), kernel:
                return self.explain(model, inputs, targets)
        with undisturbed(model, inputs), without_checkpointing(model):
            # A tensor of inference mode cannot be part of a graph
            inputs = inputs.clone() if inputs.is_inference() else inputs.detach()
            parameter = next(model.parameters(), inputs)
            maps = self.explain(model, inputs.to(parameter), targets)
            return maps.detach() if isinstance(maps, Tensor) else [each.detach() for each in maps]

    @abstractmethod
    def explain(self, model: nn.Module, inputs: Tensor, targets: Targets) -> Tensor | list[Tensor]:
        """Explains a batch with a prepared model; see ``__call__``."""

    def for_targets(
        self, make: Callable[[Tensor], list[Tensor]], targets: Targets, logits: Tensor
    ) -> list[Tensor]:
        """Makes the maps of targets in any form, for logits (N, K).

        ``make`` makes lists of maps (N, h, w) from class weights (N, K).
        """
        if not (isinstance(targets, str) and targets == 'all'):
            return make(class_weights(targets, logits))
        classes = logits.shape[1]
        if not self.class_specific:
            once = make(class_weights(None, logits))
            return [maps[:, None].expand(-1, classes, -1, -1) for maps in once]
        columns = [make(class_weights(index, logits)) for index in range(classes)]
        return [torch.stack(column, 1) for column in zip(*columns)]


@contextmanager
def undisturbed(model: nn.Module, inputs: Tensor) -> Iterator[None]:
    """A context with eval mode, full precision on the inputs' device, and gradients."""
    training = any(module.training for module in model.modules())
    mode = evaluating(model) if training else nullcontext()
    with torch.inference_mode(False), torch.enable_grad(), no_autocast(inputs), mode:
        yield


@contextmanager
def without_checkpointing(model: nn.Module) -> Iterator[None]:
    """A context that turns off gradient checkpointing, so the model keeps all activations.

    Checkpointing with reentry (``with_cp`` of mmpretrain) refuses the gradient by a layer. Without it
    (timm's, and ``activation_checkpointing`` of a config) a layer is computed again after the
    explanation, with another kernel of attention.
    """
    changes: list[tuple[nn.Module, str, Any, Any]] = []
    for module in model.modules():
        own = vars(module)
        for name in ('with_cp', 'grad_checkpointing'):
            if own.get(name) is True:
                changes.append((module, name, True, False))
        run = own.get('forward')
        if isinstance(run, partial) and run.func is checkpoint:
            changes.append((module, 'forward', run, run.args[0]))
    try:
        for module, name, _, without in changes:
            setattr(module, name, without)
        yield
    finally:
        for module, name, usual, _ in changes:
            setattr(module, name, usual)


class LayerExplainer(Explainer):
    """Base of the explainers that make maps from a layer's activations.

    Up to the layer the model runs without a graph, and the gradient goes from the score down to the
    layer and no further. Before global average pooling and a linear classifier the gradient is known
    (the classifier's weights over the number of positions), and there is no backward pass.

    Args:
        layer (str | Sequence[str]): A layer's path as of a tap, like 'backbone.layer4'; 'features' for
            the input of global average pooling; 'auto' for the last layer that maps can be made of (see
            ``mmkdx.explain.layers.find_layers``); or a list of these. Defaults to 'auto'.
        differentiable (bool): See ``Explainer``.
    """

    #: Whether the maps need gradients with respect to the activations.
    needs_gradients = False

    def __init__(self, layer: str | Sequence[str] = 'auto', differentiable: bool = False) -> None:
        super().__init__(differentiable)
        names = [layer] if isinstance(layer, str) else layer
        if not (isinstance(names, Sequence) and names and all(isinstance(n, str) for n in names)):
            raise ValueError(f'layer is {layer!r}; it must be a path, or a list of paths')
        self.layer = layer if isinstance(layer, str) else list(layer)
        self._layers: WeakKeyDictionary[nn.Module, dict] = WeakKeyDictionary()

    @abstractmethod
    def maps(self, evidence: Evidence, weights: Tensor) -> list[Tensor]:
        """The method: makes raw maps (N, h, w) of each layer for class weights (N, K)."""

    def layers(self, model: nn.Module, inputs: Tensor, targets: Targets = None) -> list[Layer]:
        """Returns the explained layers. They are searched for once for each model and image size.

        For a function they are searched for at each call, as each function may need others.
        """
        names = [self.layer] if isinstance(self.layer, str) else self.layer
        if callable(targets):
            return find_layers(model, inputs, names, Scores(model, targets))
        known = self._layers.setdefault(model, {})
        # The same model may get another head
        key = (tuple(inputs.shape[2:]), *map(type, model.modules()))
        if key not in known:
            known[key] = find_layers(model, inputs, names)
        return known[key]

    def explain(self, model: nn.Module, inputs: Tensor, targets: Targets) -> Tensor | list[Tensor]:
        """See ``Explainer``."""
        evidence = self.observe(model, inputs, targets)
        maps = self.for_targets(partial(self.maps, evidence), targets, evidence.logits)
        return maps[0] if isinstance(self.layer, str) else maps

    def observe(self, model: nn.Module, inputs: Tensor, targets: Targets = None) -> Evidence:
        """Runs the model and keeps the activations, logits and gradients for the maps."""
        scores = Scores(model, targets)
        layers = self.layers(model, inputs, targets)
        closed = all(layer.classifier for layer in layers)
        if self.differentiable:
            # In training, dropout after pooling is a factor that the closed form lacks.
            closed = closed and not any(
                isinstance(module, _DropoutNd) and module.training and module.p
                for module in model.modules()
            )
        cut = self.needs_gradients and not closed and not self.differentiable
        values: dict[Layer, Tensor] = {}

        def keep(layer: Layer, value: Tensor) -> Tensor:
            if self.differentiable and not value.requires_grad:
                raise ValueError(
                    f'{type(self).__name__}: layer {layer.name!r} carries no gradient (frozen '
                    'parameters, or torch.no_grad), so a loss of its map would train nothing'
                )
            if cut:
                # A graph is recorded from the first layer on, not before it.
                torch.set_grad_enabled(True)
                if not value.requires_grad:
                    value = value.detach().requires_grad_()
            values[layer] = value
            return value.clone()  # the rest of the model may overwrite it in place

        with torch.set_grad_enabled(self.differentiable and torch.is_grad_enabled()):
            with intercept(model, {layer.tap: partial(keep, layer) for layer in layers}):
                logits = scores(inputs)
        heads = [model.get_submodule(layer.classifier) for layer in layers] if closed else None
        values = {layer: values[layer] for layer in layers}
        return Evidence(scores, inputs, values, logits, heads, self.differentiable)


@dataclass
class Evidence:
    """The inputs of a method: activations and logits of a forward pass, and gradients on demand.

    Args:
        scores (Scores): The model, and what is explained of it.
        inputs (Tensor): The images of shape (N, 3, H, W).
        values (dict[Layer, Tensor]): What passed the layers.
        logits (Tensor): The scores of the images: logits (N, K), or those of a function, (N, 1).
        heads (list[nn.Linear], optional): For each layer the linear classifier behind global average
            pooling, which saves the backward pass; None for any other head.
        differentiable (bool): Whether all results have graphs.
        memo (dict): What a method keeps between classes.
    """

    scores: Scores
    inputs: Tensor
    values: dict[Layer, Tensor]
    logits: Tensor
    heads: list[nn.Linear] | None
    differentiable: bool
    memo: dict = field(default_factory=dict)

    @property
    def activations(self) -> list[Tensor]:
        """The activations of each layer, of shape (N, C, h, w)."""
        values = self.values.items()
        maps = [full_precision(layer.layout.to_map(value)) for layer, value in values]
        return maps if self.differentiable else [each.detach() for each in maps]

    def gradients(self, weights: Tensor) -> list[Tensor]:
        """Returns the weighted logits' gradients (N, C, h, w) with respect to the activations."""
        if self.heads is not None:
            gradients = []
            for head, value in zip(self.heads, self.activations):
                means = weights @ full_precision(head.weight) / math.prod(value.shape[2:])
                gradients.append(means[..., None, None].expand_as(value))
            return gradients
        gradients = torch.autograd.grad(
            (self.logits * weights).sum(),
            list(self.values.values()),
            retain_graph=True,  # for the next class
            create_graph=self.differentiable,
        )
        return [
            full_precision(layer.layout.to_map(gradient))
            for layer, gradient in zip(self.values, gradients)
        ]


def explainer_names() -> list[str]:
    """Returns the sorted names of all explainers of single models, including plugins."""
    EXPLAINERS.import_from_location()
    kinds = EXPLAINERS.module_dict.items()
    return sorted(name for name, kind in kinds if issubclass(kind, Explainer))


def build_explainer(spec: dict | str | Explainer, key: str = 'explainer') -> Explainer:
    """Builds an explainer.

    Args:
        spec (dict | str | Explainer): A config, its type alone, or an explainer.
        key (str): The config key that error messages name. Defaults to 'explainer'.

    Raises:
        ValueError: If it is none of these, there is no such explainer, or it has no such argument.
    """
    if isinstance(spec, Explainer):
        return spec
    config = dict(type=spec) if isinstance(spec, str) else spec
    if not isinstance(config, dict):
        raise ValueError(f'{key}: an explainer is a dict with a type, or a type, and not {spec!r}')
    with DefaultScope.overwrite_default_scope('mmkdx'):
        kind = config.get('type')
        if isinstance(kind, str) and EXPLAINERS.get(kind) is None:
            known = ', '.join(explainer_names())
            raise ValueError(f'{key}: there is no explainer {kind!r}; there are {known}')
        try:
            explainer = EXPLAINERS.build(config)
        except (TypeError, ValueError, KeyError) as error:
            raise ValueError(f'{key}: {str(error.args[0]).partition(chr(10))[0]}') from error
    if not isinstance(explainer, Explainer):
        raise ValueError(
            f'{key}: {type(explainer).__name__} explains a pair of models; it is for ExplainHook.unicam'
        )
    return explainer
