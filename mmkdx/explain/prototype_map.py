"""Maps of the similarity to prototypes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmkdx.arguments import integer
from mmkdx.explain.base import Explainer
from mmkdx.explain.targets import Targets
from mmkdx.functional import full_precision
from mmkdx.models.families import describe
from mmkdx.models.heads.prototype_head import find_prototypes
from mmkdx.models.intercept import Tap, intercept
from mmkdx.registry import EXPLAINERS


@EXPLAINERS.register_module()
class PrototypeMap(Explainer):
    """The similarity of each position to the prototypes, summed with their weights for the class.

    The map is ``sum_j W[k, j] s_j(h, w)`` over all prototypes, or ``s_j(h, w)`` of a single one, which
    is the same for all classes. ``ProtoPNetHead`` takes an image's largest similarity; the map shows
    that of every position.

    Source: Chen et al., "This Looks Like That", NeurIPS 2019, section 2.3, which has the maps of single
    prototypes.

    Args:
        prototype (int, optional): The index of a single prototype. Defaults to None (all).
        differentiable (bool): See ``Explainer``.

    Raises:
        ValueError: From a call, if the model has no prototypes, or not so many.
    """

    classes_alone = True

    def __init__(self, prototype: int | None = None, differentiable: bool = False) -> None:
        super().__init__(differentiable)
        if prototype is not None:
            integer('PrototypeMap.prototype', prototype, 0)
        self.prototype = prototype
        self.class_specific = prototype is None

    def explain(self, model: nn.Module, inputs: Tensor, targets: Targets) -> Tensor:
        """See ``Explainer``."""
        try:
            path = find_prototypes(model)
        except ValueError as error:
            raise ValueError(f'PrototypeMap: {type(model).__name__} {error}') from None
        distances: list[Tensor] = []
        with torch.set_grad_enabled(self.differentiable and torch.is_grad_enabled()):
            with intercept(model, {Tap(path): distances.append}):
                logits = describe(model).logits(inputs)
            similarity = model.head.similarity(distances[-1])
            count = similarity.shape[1]
            if self.prototype is not None and self.prototype >= count:
                raise ValueError(
                    f'PrototypeMap.prototype is {self.prototype} and the model has {count} '
                    'prototypes, counted from 0'
                )
            prototypes = full_precision(model.head.class_weights())

            def make(weights: Tensor) -> list[Tensor]:
                if self.prototype is not None:
                    return [similarity[:, self.prototype]]
                weights = full_precision(weights) @ prototypes
                return [torch.einsum('np,nphw->nhw', weights, similarity)]

            return self.for_targets(make, targets, logits)[0]
