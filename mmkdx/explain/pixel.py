"""Maps at the images' resolution, from the gradient of the score with respect to the pixels."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmkdx.arguments import flag, integer, number
from mmkdx.explain.base import Explainer
from mmkdx.explain.targets import Scores, Targets
from mmkdx.functional import full_precision
from mmkdx.models.intercept import Tap, intercept
from mmkdx.registry import EXPLAINERS


class PixelExplainer(Explainer):
    """Base of the explainers that make maps from the gradient at the pixels."""

    @abstractmethod
    def attribute(self, scores: Scores, inputs: Tensor, weights: Tensor) -> Tensor:
        """The method: makes maps (N, H, W) for class weights (N, K)."""

    def explain(self, model: nn.Module, inputs: Tensor, targets: Targets) -> Tensor:
        """See ``Explainer``."""
        scores = Scores(model, targets)
        with torch.no_grad():
            logits = scores(inputs)
        (maps,) = self.for_targets(
            lambda weights: [self.attribute(scores, inputs, weights)], targets, logits
        )
        return full_precision(maps)

    def gradient(self, scores: Scores, inputs: Tensor, weights: Tensor) -> Tensor:
        """Returns the weighted scores' gradient (N, 3, H, W) with respect to the pixels."""
        inputs = inputs if inputs.requires_grad else inputs.detach().requires_grad_()
        score = (scores(inputs) * weights).sum()
        return torch.autograd.grad(score, inputs, create_graph=self.differentiable)[0]


@EXPLAINERS.register_module()
class InputGradient(PixelExplainer):
    """The largest magnitude of the score's gradient over a pixel's channels.

    Source: Simonyan et al., "Deep inside convolutional networks: Visualising image classification
    models and saliency maps", ICLR workshop 2014, Sec. 3.1.

    Args:
        multiply (bool): Whether the gradient is multiplied by the pixel and summed over channels
            instead ("Gradient × Input"; Shrikumar et al., arXiv 1605.01713). Defaults to False.
        differentiable (bool): See ``Explainer``.
    """

    def __init__(self, multiply: bool = False, differentiable: bool = False) -> None:
        super().__init__(differentiable)
        self.multiply = flag('multiply', multiply)

    def attribute(self, scores: Scores, inputs: Tensor, weights: Tensor) -> Tensor:
        """See ``PixelExplainer``."""
        gradient = self.gradient(scores, inputs, weights)
        return (gradient * inputs).sum(1) if self.multiply else gradient.abs().amax(1)


@EXPLAINERS.register_module()
class IntegratedGradients(PixelExplainer):
    """``sum_c (x - x0) ∫ ∂s/∂x (x0 + a (x - x0)) da``, a from 0 to 1; the sum is ``s(x) - s(x0)``.

    Source: Sundararajan et al., "Axiomatic attribution for deep networks", ICML 2017, Eq. 1. The
    integral is taken by Gauss-Legendre quadrature.

    Args:
        steps (int): Points of the integral, each a forward and a backward pass. Defaults to 50, as in
            captum; the paper uses 20 to 300 with a Riemann sum.
        baseline (float): The value of all pixels of x0 after preprocessing. Defaults to 0 (mean colour).
        differentiable (bool): See ``Explainer``.
    """

    def __init__(
        self, steps: int = 50, baseline: float = 0.0, differentiable: bool = False
    ) -> None:
        super().__init__(differentiable)
        self.baseline = number('baseline', baseline)
        points, shares = np.polynomial.legendre.leggauss(integer('steps', steps, 1))
        self.points, self.shares = ((points + 1) / 2).tolist(), (shares / 2).tolist()

    def attribute(self, scores: Scores, inputs: Tensor, weights: Tensor) -> Tensor:
        """See ``PixelExplainer``."""
        away = inputs - self.baseline
        total = torch.zeros_like(inputs)
        for point, share in zip(self.points, self.shares):
            total = total + share * self.gradient(scores, self.baseline + point * away, weights)
        return (away * total).sum(1)


@EXPLAINERS.register_module()
class SmoothGrad(PixelExplainer):
    """The mean gradient over noisy copies of the image, as its largest magnitude over channels.

    Source: Smilkov et al., "SmoothGrad: removing noise by adding noise", arXiv 1706.03825, Sec. 3. The
    noise has a seed of its own: each call draws the same, and the global random state is untouched.

    Args:
        samples (int): Noisy copies, each a forward and a backward pass. Defaults to 50.
        noise (float): The noise's standard deviation as a share of the image's range of values.
            Defaults to 0.15; the paper recommends 0.1 to 0.2.
        seed (int): The seed. Defaults to 0.
        differentiable (bool): See ``Explainer``.
    """

    def __init__(
        self, samples: int = 50, noise: float = 0.15, seed: int = 0, differentiable: bool = False
    ) -> None:
        super().__init__(differentiable)
        self.samples = integer('samples', samples, 1)
        self.noise = number('noise', noise, 0)
        self.seed = integer('seed', seed, 0)

    def attribute(self, scores: Scores, inputs: Tensor, weights: Tensor) -> Tensor:
        """See ``PixelExplainer``."""
        generator = torch.Generator(inputs.device).manual_seed(self.seed)
        flat = inputs.detach().flatten(1)
        sigma = self.noise * (flat.amax(1) - flat.amin(1))[:, None, None, None]
        total = torch.zeros_like(inputs)
        for _ in range(self.samples):
            # One noise pattern for all images, so a map does not depend on the rest of the batch
            noise = torch.randn(
                inputs.shape[1:], generator=generator, device=inputs.device, dtype=inputs.dtype
            )
            total = total + self.gradient(scores, inputs + sigma * noise, weights)
        return (total / self.samples).abs().amax(1)


@EXPLAINERS.register_module()
class FullGrad(PixelExplainer):
    """``ψ(g ⊙ x) + sum_l sum_c ψ(g_lc b_lc)``: the gradients of the input and of all biases.

    ψ takes magnitudes, scales them to [0, 1] over an image's layer and resizes them to the image.
    Biases are those of convolutions and batch norm (``β - γ mean / sqrt(var + ε)``). In a network of
    these, linear layers and ReLU, the terms without ψ (see ``bias_gradients``) and those of the linear
    layers' biases sum up to the score.

    Source: Srinivas and Fleuret, "Full-gradient representation for neural network visualization",
    NeurIPS 2019, Eq. 4 and Sec. 5.
    """

    def attribute(self, scores: Scores, inputs: Tensor, weights: Tensor) -> Tensor:
        """See ``PixelExplainer``."""
        pixels, layers = self.bias_gradients(scores, inputs, weights)
        return sum(self._visible(each, inputs) for each in (pixels, *layers))

    def bias_gradients(
        self, scores: Scores, inputs: Tensor, weights: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Returns the terms of the full gradient before ψ, for class weights (N, K).

        Returns:
            tuple[Tensor, list[Tensor]]: ``g ⊙ x`` of shape (N, 3, H, W) and for each layer with
            biases, in order of the calls, ``g_l b_l`` of its outputs' shape (N, C, h, w).
        """
        outputs: list[tuple[Tensor, Tensor]] = []

        def keep(bias: Tensor, value: Tensor) -> Tensor | None:
            if value.dim() != 4:
                return None
            outputs.append((value, bias))
            return value.clone()  # later layers may overwrite it in place

        keepers = {
            Tap(path): partial(keep, bias)
            for path, module in scores.model.named_modules()
            if (bias := _bias(module)) is not None
        }
        inputs = inputs if inputs.requires_grad else inputs.detach().requires_grad_()
        with intercept(scores.model, keepers):
            score = (scores(inputs) * weights).sum()
        gradients = torch.autograd.grad(
            score,
            [inputs, *(value for value, _ in outputs)],
            create_graph=self.differentiable,
            allow_unused=True,
        )
        layers = [
            gradient * bias[:, None, None]
            for gradient, (_, bias) in zip(gradients[1:], outputs)
            if gradient is not None
        ]
        return gradients[0] * inputs, layers

    @staticmethod
    def _visible(values: Tensor, inputs: Tensor) -> Tensor:
        values = full_precision(values).abs()
        low, high = (f(values, (1, 2, 3), keepdim=True) for f in (torch.amin, torch.amax))
        values = (values - low) / torch.where(high > low, high - low, 1)
        # Resizing is linear, so the channels are summed up first
        return F.interpolate(values.sum(1, keepdim=True), inputs.shape[2:], mode='bilinear')[:, 0]


def _bias(module: nn.Module) -> Tensor | None:
    """Returns the bias that a convolution or a batch norm in eval mode adds to each channel."""
    if isinstance(module, nn.Conv2d):
        return module.bias
    if not isinstance(module, _BatchNorm) or module.running_mean is None:
        return None
    shift = -module.running_mean / (module.running_var + module.eps).sqrt()
    if module.affine:
        shift = shift * module.weight + module.bias
    return shift
