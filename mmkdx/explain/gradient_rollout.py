"""Maps of a class from the attention of all layers and the gradients with respect to it."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.compiler import set_stance

from mmkdx.arguments import integer, one_of
from mmkdx.explain.attention_layers import (
    AttentionLayers,
    check_dropout,
    count_of,
    find_attention_layers,
    of_latents,
)
from mmkdx.explain.attention_recorder import AttentionRecorder
from mmkdx.explain.base import Explainer
from mmkdx.explain.targets import Scores, Targets
from mmkdx.explain.windows import multiply, to_tokens
from mmkdx.functional import full_precision
from mmkdx.registry import EXPLAINERS


@EXPLAINERS.register_module()
class GradientRollout(Explainer):
    """``r (I + M_B) ... (I + M_1)`` with ``M = mean over heads of relu(G ⊙ A)``, for each class.

    A is the attention of a layer, G the gradient of the score with respect to A, and r the read-out: the
    row of the tokens that the head reads. Maps are not negative. The shape of a map depends on the scale
    of the logits, because the layers are multiplied.

    The network runs with its own kernels. All tokens must attend to all tokens, or in the last stage to
    those of a window.

    Source: Chefer, Gur and Wolf, "Generic attention-model explainability for interpreting bi-modal and
    encoder-decoder transformers", ICCV 2021, without the identity's share in the read-out.

    Args:
        layers (int, optional): How many of the last layers count. Defaults to None (all).
        readout (str): The tokens whose rows are read: 'class', the extra tokens that move the score;
            'mean', all tokens of the image; 'auto', all tokens that move the score behind the last
            layer, or the attention of a pooling head. Where both extra tokens and the image's count,
            each has half of the weight. Defaults to 'auto'.
        stage (str, optional): 'last' for the last stage alone, which a network with attention in windows
            needs. Windows may be shifted and padded. Defaults to None (all layers).
        detach (str): What a loss takes for constant: 'none', or 'gradient' for G, which costs less.
            Defaults to 'none'.
        differentiable (bool): See ``Explainer``. With ``detach='gradient'`` the model keeps its own
            kernels.
    """

    def __init__(
        self,
        layers: int | None = None,
        readout: str = 'auto',
        stage: str | None = None,
        detach: str = 'none',
        differentiable: bool = False,
    ) -> None:
        super().__init__(differentiable)
        self.layers = None if layers is None else integer('layers', layers, 1)
        self.readout = one_of('readout', readout, ('auto', 'class', 'mean'))
        self.stage = one_of('stage', stage, (None, 'last'))
        self.detach = one_of('detach', detach, ('none', 'gradient'))
        self.twice = detach == 'none'

    def explain(self, model: nn.Module, inputs: Tensor, targets: Targets) -> Tensor:
        """See ``Explainer``."""
        recorder = AttentionRecorder(len(inputs), first=0)
        with set_stance('force_eager'), torch.set_grad_enabled(self.differentiable), recorder:
            logits = Scores(model, targets)(inputs)
        name, attentions = type(self).__name__, recorder.attentions
        found = find_attention_layers(name, model, inputs, attentions, self.stage == 'last')
        check_dropout(name, model, attentions)
        found.layers = found.layers[-count_of(name, self.layers, model, len(found.layers)) :]
        again = isinstance(targets, str) and targets == 'all'
        make = partial(self._maps, model, found, logits, again)
        return self.for_targets(make, targets, logits)[0]

    def _maps(
        self,
        model: nn.Module,
        found: AttentionLayers,
        logits: Tensor,
        again: bool,
        weights: Tensor,
    ) -> list[Tensor]:
        attentions = [*found.layers, *([found.pooling] if found.pooling else [])]
        gradients = torch.autograd.grad(
            (logits * weights).sum(),
            [each.output for each in attentions],
            retain_graph=again or self.differentiable,
            create_graph=self.differentiable and self.twice,
            allow_unused=True,
        )
        layers, pool = gradients[: len(found.layers)], gradients[len(found.layers) :]
        # The model may have a pooling head with an unused result
        pooled = bool(pool) and pool[0] is not None
        if not pooled and layers[-1] is None:
            raise ValueError(
                f'GradientRollout: the score does not depend on the last attention of '
                f'{type(model).__name__}; use GradCAM'
            )
        with torch.set_grad_enabled(self.differentiable):
            if pooled:
                row = of_latents(found.pooling.relevance(pool[0], not self.twice), found.length)
                start = torch.zeros_like(row)
            else:
                row = start = self._start(model, found, layers[-1])
            # From the last layer to the first: a row costs less than a product of matrices
            for attention, gradient in reversed([*zip(found.layers, layers)]):
                if gradient is not None:  # its result may be unused
                    relevance = attention.relevance(gradient, not self.twice)
                    row = row + multiply(row, relevance, attention)
            return [found.layout.to_map((row - start).mT)[:, 0]]

    def _start(self, model: nn.Module, found: AttentionLayers, by_output: Tensor) -> Tensor:
        """Returns the read-out (N, 1, L) from the gradient at the last layer's output."""
        gradient = found.layers[-1].by_head(by_output.detach())
        # Behind the last attention tokens do not mix, so the head reads the tokens that move the score
        read = gradient.ne(0).any(3).any(1)[:, None].to(full_precision(gradient).dtype)
        read = to_tokens(read, found.layers[-1])
        extra, image = read.split([found.layout.extra, read.shape[2] - found.layout.extra], 2)
        if self.readout == 'class':
            if not extra.any():
                raise ValueError(
                    f"GradientRollout.readout is 'class', and no class token of {type(model).__name__} "
                    "moves the score; use 'mean' or 'auto'"
                )
            image = torch.zeros_like(image)
        elif self.readout == 'mean':
            extra, image = torch.zeros_like(extra), torch.ones_like(image)
        row = torch.cat(
            [each / each.sum(2, keepdim=True).clamp(min=1) for each in (extra, image)], 2
        )
        return row / row.sum(2, keepdim=True).clamp(min=1)
