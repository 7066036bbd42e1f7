"""LeGrad: the sensitivity of each layer's score to the attention of that layer."""

from __future__ import annotations

from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.compiler import set_stance

from mmkdx.arguments import integer
from mmkdx.explain.attention_blocks import Blocks, find_blocks, split_scores
from mmkdx.explain.attention_layers import check_dropout, count_of, of_latents
from mmkdx.explain.attention_recorder import Attention, AttentionRecorder
from mmkdx.explain.base import Explainer
from mmkdx.explain.targets import Targets
from mmkdx.models.families import forward_tensor
from mmkdx.models.intercept import intercept
from mmkdx.registry import EXPLAINERS


class _Gate:
    """Whether gradients pass from a block to the block before."""

    open = True


class _Passage(torch.autograd.Function):
    """Stops the later score's gradient between two blocks, but no gradient of a loss of maps."""

    @staticmethod
    def forward(ctx: FunctionCtx, value: Tensor, gate: _Gate) -> Tensor:
        ctx.gate = gate
        return value.clone()  # later layers may overwrite it in place

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, None]:
        return (gradient if ctx.gate.open else None), None


@EXPLAINERS.register_module()
class LeGrad(Explainer):
    """``mean over layers, heads and queries of relu(G)``, for each class.

    Each layer has its own score: the head's output for the tokens behind the layer's block. G is the
    gradient of this score with respect to the layer's attention. A head that reads only the class token
    or other extra tokens gets the mean of all tokens instead. A head that pools all tokens gets the
    tokens themselves. With attention pooling, the tokens of each layer go to the head's attention, and G
    is taken with respect to that attention.

    Maps are not negative. If the score is multiplied by c, so are the maps.

    Source: Bousselham et al., "LeGrad: An explainability method for vision transformers via feature
    formation sensitivity", ICCV 2025, and the authors' code.

    Args:
        layers (int, optional): How many of the last layers count. Defaults to None (all).
        differentiable (bool): See ``Explainer``.
    """

    def __init__(self, layers: int | None = None, differentiable: bool = False) -> None:
        super().__init__(differentiable)
        self.layers = None if layers is None else integer('layers', layers, 1)
        self._known: WeakKeyDictionary[nn.Module, dict] = WeakKeyDictionary()

    def explain(self, model: nn.Module, inputs: Tensor, targets: Targets) -> Tensor:
        """See ``Explainer``."""
        blocks = self._find(model, inputs, targets)
        taps = blocks.taps[-count_of('LeGrad', self.layers, model, len(blocks.taps)) :]
        # Nothing is recorded before the first attention that needs a gradient
        first = len(blocks.taps) - (0 if blocks.pooled else len(taps))
        recorder, count, tokens = AttentionRecorder(len(inputs), first), len(inputs), []
        gate = _Gate()

        def keep(value: Tensor) -> Tensor:
            tokens.append(blocks.for_head(value))
            if len(tokens) == len(taps):
                # One run of the head for all layers, and for the logits themselves
                recorder.batch = (len(taps) + 1) * count
                return torch.cat([*tokens, value])
            # The next layers have their own scores
            if self.differentiable:
                return _Passage.apply(value, gate)
            torch.set_grad_enabled(False)
            return value.detach().clone()  # later layers may overwrite it in place

        with set_stance('force_eager'), torch.set_grad_enabled(self.differentiable):
            with intercept(model, dict.fromkeys(taps, keep)), recorder:
                output = forward_tensor(model, inputs.clone())
        *scores, logits = split_scores(model, targets, output, count, len(taps) + 1)
        check_dropout('LeGrad', model, recorder.attentions)
        attentions = recorder.attentions[first:][: 1 if blocks.pooled else len(taps)]
        again = self.differentiable or (isinstance(targets, str) and targets == 'all')
        make = partial(self._maps, blocks, attentions, scores, gate, again)
        return self.for_targets(make, targets, logits)[0]

    def _maps(
        self,
        blocks: Blocks,
        attentions: list[Attention],
        scores: list[Tensor],
        gate: _Gate,
        again: bool,
        weights: Tensor,
    ) -> list[Tensor]:
        sums = [(each * weights).sum() for each in scores]
        outputs = [each.output for each in attentions]
        gate.open = False
        gradients = torch.autograd.grad(
            sum(sums), outputs, retain_graph=again, create_graph=self.differentiable
        )
        gate.open = True
        row = 0.0
        with torch.set_grad_enabled(self.differentiable):
            for attention, gradient in zip(attentions, gradients):
                found = attention.allowed(attention.gradient(gradient).relu()).mean(1)
                if blocks.pooled:
                    # The head's attention for all layers, and for the logits
                    found = of_latents(found, blocks.length).unflatten(0, (len(scores) + 1, -1))
                    row = found[:-1].mean(0)
                else:
                    row = row + found.mean(1, keepdim=True) / len(scores)
            return [blocks.layout.to_map(row.mT)[:, 0]]

    def _find(self, model: nn.Module, inputs: Tensor, targets: Targets) -> Blocks:
        """Finds the model's blocks, once for each model and image size.

        For a function they are searched for at each call, as each function may read other tokens.
        """
        if callable(targets):
            return find_blocks(model, inputs, targets)
        known = self._known.setdefault(model, {})
        # The same model may get another head
        key = (tuple(inputs.shape[2:]), *map(type, model.modules()))
        if key in known:
            return known[key]
        blocks = find_blocks(model, inputs[:1], targets)
        if blocks.certain:
            known[key] = blocks
        return blocks
