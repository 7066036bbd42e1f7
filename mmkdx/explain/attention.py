"""Maps from the attention of transformers. They are the same for all classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.compiler import set_stance

from mmkdx.explain.attention_layers import AttentionLayers, find_attention_layers
from mmkdx.explain.attention_recorder import AttentionRecorder
from mmkdx.explain.base import Explainer
from mmkdx.explain.targets import Scores, Targets
from mmkdx.functional import full_precision
from mmkdx.registry import EXPLAINERS


@EXPLAINERS.register_module()
class AttentionRollout(Explainer):
    """The product over layers of ``(attention + identity) / 2``, averaged over heads.

    The map is the class token's row, or without a class token the mean over all rows. It is the same
    for all classes. All tokens must attend to all (ViT, DeiT, BEiT, …); local attention, as in Swin,
    has no such product.

    Source: Abnar and Zuidema, "Quantifying attention flow in transformers", ACL 2020, Sec. 3.
    """

    class_specific = False

    def explain(self, model: nn.Module, inputs: Tensor, targets: Targets) -> Tensor:
        """See ``Explainer``."""
        # Compiled code hides its attention
        with set_stance('force_eager'), AttentionRecorder(len(inputs)) as recorder:
            with torch.set_grad_enabled(self.differentiable and torch.is_grad_enabled()):
                logits = Scores(model, targets)(inputs)
        with torch.set_grad_enabled(self.differentiable):
            # Without a gradient we cannot know whether the scores depend on a pooling head
            found = find_attention_layers(
                'AttentionRollout', model, inputs, recorder.attentions, pooling=False
            )
            row = self._start(found, full_precision(inputs))
            # From the last layer to the first: a row costs less than a product of matrices
            for attention in reversed(found.layers):
                row = (row + row @ attention.weights().mean(1)) / 2
            maps = found.layout.to_map(row.mT)[:, 0]
        return self.for_targets(lambda weights: [maps], targets, logits)[0]

    def _start(self, found: AttentionLayers, like: Tensor) -> Tensor:
        """Returns the weights (N, 1, L) of the tokens behind the last layer."""
        row = like.new_zeros(1, 1, found.length)
        if found.layout.extra:
            row[..., 0] = 1
        return row if found.layout.extra else row + 1 / found.length
