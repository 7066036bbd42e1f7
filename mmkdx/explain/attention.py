"""Maps from the attention of transformers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import set_stance
from torch.overrides import TorchFunctionMode

from mmkdx.explain.base import Explainer
from mmkdx.explain.layouts import Layout, extra_tokens, patch_grids
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
        # Compiled code would not show its attention
        with set_stance('force_eager'), _AttentionRecorder(len(inputs)) as recorder:
            with torch.set_grad_enabled(self.differentiable and torch.is_grad_enabled()):
                logits = Scores(model, targets)(inputs)
        attentions = [full_precision(each) for each in recorder.attentions]
        lengths = {attention.shape[-1] for attention in attentions}
        whole = all(each.shape[:2] == (len(inputs), *lengths) for each in attentions)
        if not attentions or not whole:
            raise ValueError(
                'AttentionRollout needs a transformer whose layers all attend from every token to '
                f'every token of the image, and {type(model).__name__} '
                f'{"has" if attentions else "calls"} no such attention; use GradCAM'
            )
        (length,), size = lengths, tuple(inputs.shape[2:])
        extra = extra_tokens(model)
        layout = Layout.of_tokens(length, size, extra, patch_grids(model, inputs))
        if layout is None:
            raise ValueError(
                f'AttentionRollout: the {length} tokens of {type(model).__name__} are no grid of an '
                f'image of {size} pixels after {"up to 8" if extra is None else extra} other tokens; '
                'use GradCAM'
            )
        rollout = identity = torch.eye(length).to(attentions[0])
        for attention in attentions:
            rollout = (attention + identity) / 2 @ rollout
        row = rollout[:, 0] if layout.extra else rollout.mean(1)
        maps = layout.to_map(row[..., None])[:, 0]
        return self.for_targets(lambda weights: [maps], targets, logits)[0]


class _AttentionRecorder(TorchFunctionMode):
    """Collects the attention matrices that torch computes, averaged over heads.

    Fused attention does not show its weights, so they are computed from its queries and keys.
    """

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch
        self.attentions: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            # What it calls itself is out of sight
            output, attention = func(*args, **{**kwargs, 'need_weights': True})
            self._keep(attention)
            return output, attention if kwargs.get('need_weights', True) else None
        result = func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            self._keep(_weights(*args, **kwargs))
        elif func in (F.softmax, torch.softmax, Tensor.softmax):
            self._keep(result)
        return result

    def _keep(self, attention: Tensor) -> None:
        """Keeps what has the shape (N, heads, L, L), (N · heads, L, L), or (N, L, L) as a mean."""
        if attention.dim() == 3 and attention.shape[0] % self.batch == 0:
            attention = attention.unflatten(0, (self.batch, -1))
        if attention.dim() == 4:
            # (N · windows, heads, L, L) of local attention stays apart by its first size.
            self.attentions.append(attention.mean(1))


def _weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """The weights of ``F.scaled_dot_product_attention``, without dropout: its result for unit values."""
    units = torch.eye(key.shape[-2]).to(key).expand(*value.shape[:-1], -1)
    return F.scaled_dot_product_attention(query, key, units, attn_mask, 0.0, *args, **kwargs)
