"""Maps of the evidence that prototypes find."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmkdx.arguments import integer
from mmkdx.explain.base import Explainer, Targets, class_weights
from mmkdx.functional import full_precision
from mmkdx.models.classifier import find_prototypes
from mmkdx.models.families import describe
from mmkdx.models.taps import Tap, intercept
from mmkdx.registry import EXPLAINERS


@EXPLAINERS.register_module()
class PrototypeMap(Explainer):
    """The similarity of each position to the prototypes, weighted as they speak for the class.

    The map is ``sum_j W[k, j] s_j(h, w)`` over all prototypes, or ``s_j(h, w)`` of a single one, which
    is then the same for all classes. Where ``ProtoPNetHead`` takes the largest similarity of an image,
    the map shows that of every position.

    Source: Chen et al., "This Looks Like That", NeurIPS 2019, section 2.3, of which the maps of single
    prototypes are.

    Args:
        prototype (int, optional): The index of a single prototype. Defaults to None (all).
        differentiable (bool): See ``Explainer``.

    Raises:
        ValueError: From a call, if the model has no prototypes, or not so many.
    """

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
            every = isinstance(targets, str) and targets == 'all'
            # also refuses targets that are none
            chosen = logits.new_ones(0) if every else class_weights(targets, logits)
            if self.prototype is not None:
                count = similarity.shape[1]
                if self.prototype >= count:
                    raise ValueError(
                        f'PrototypeMap.prototype is {self.prototype} and the model has {count} '
                        'prototypes, counted from 0'
                    )
                maps = similarity[:, self.prototype]
                return maps[:, None].expand(-1, logits.shape[1], -1, -1) if every else maps
            weights = full_precision(model.head.class_weights())
            if every:
                return torch.einsum('kp,nphw->nkhw', weights, similarity)
            return torch.einsum('np,nphw->nhw', full_precision(chosen) @ weights, similarity)
