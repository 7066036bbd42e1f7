"""The activations of layers in one forward pass, and gradients with respect to a layer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from mmkdx.explain.base import undisturbed, without_checkpointing
from mmkdx.explain.layers import Layer
from mmkdx.functional import full_precision
from mmkdx.models.families import describe
from mmkdx.models.intercept import Tap, intercept


def activations(model: nn.Module, inputs: Tensor, points: Sequence[Layer | Tap]) -> list[Tensor]:
    """Returns maps (N, C, h, w) of layers and values at taps, in eval mode, in fp32, without a graph.

    One tensor for each of the points; images have the shape (N, 3, H, W).
    """
    kept: dict[Tap, Tensor] = {}

    def keep(tap: Tap, value: Tensor) -> None:
        kept[tap] = value.clone()  # later layers may write in place

    taps = [point.tap if isinstance(point, Layer) else point for point in points]
    with undisturbed(model, inputs), torch.no_grad():
        inputs = inputs.to(next(model.parameters(), inputs))
        with intercept(model, {tap: partial(keep, tap) for tap in taps}):
            describe(model).logits(inputs)
    return [
        full_precision(point.layout.to_map(kept[tap]) if isinstance(point, Layer) else kept[tap])
        for point, tap in zip(points, taps)
    ]


def pushed_gradient(
    model: nn.Module, inputs: Tensor, layer: Layer, tap: Tap, gradient: Tensor
) -> Tensor:
    """Carries the gradient at a later tap back to a layer's activations (N, C, h, w).

    Args:
        model (nn.Module): The model.
        inputs (Tensor): Images of shape (N, 3, H, W).
        layer (Layer): The layer.
        tap (Tap): The later tap.
        gradient (Tensor): The gradient by the value there, or by its average over space.

    Raises:
        ValueError: If the tap does not come after the layer.
    """
    kept: dict[str, Tensor] = {}

    def begin(value: Tensor) -> Tensor:
        torch.set_grad_enabled(True)
        kept['layer'] = value.detach().requires_grad_()
        passed = kept['layer'].clone()
        return end(passed) if tap == layer.tap else passed

    def end(value: Tensor) -> Tensor:
        kept['features'] = value.clone()
        return value

    with undisturbed(model, inputs), without_checkpointing(model), torch.no_grad():
        inputs = inputs.to(next(model.parameters(), inputs))
        with intercept(model, {tap: end, layer.tap: begin}):
            describe(model).logits(inputs)
        features = kept['features']
        if not features.requires_grad:
            raise ValueError(f'UniCAM.features: {tap} does not come after layer {layer.name}')
        if gradient.dim() == 2 and features.dim() == 4:
            gradient = gradient[..., None, None].expand_as(features) / features[0, 0].numel()
        (result,) = torch.autograd.grad(features, kept['layer'], gradient.to(features))
    return full_precision(layer.layout.to_map(result))
