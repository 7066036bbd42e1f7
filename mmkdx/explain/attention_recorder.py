"""Records the attentions of a forward pass; their gradients are computed one layer at a time."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mmkdx.functional import full_precision


@dataclass
class Attention:
    """An attention of a forward pass with an explicit softmax.

    Args:
        output (Tensor): The tensor by which the gradient of a score is taken: here the weights.
        batch (int): The number of images.
        dropout (float): The rate of dropout inside a fused kernel, whose mask is unknown.
        positions (list[int]): How many positions of an image the next two layers take, commonly the
            projection of the result and an MLP. They are as many as queries, but for attention over
            channels and in windows.
        tokens (Tensor, optional): In these cases, what the second of the layers takes, with a graph.
        places (Tensor, optional): The place of each token of an image among the queries of its windows;
            see ``find_places``. Defaults to None (a single window of all tokens).
    """

    output: Tensor
    batch: int
    dropout: float = 0.0
    positions: list[int] = field(default_factory=list)
    tokens: Tensor | None = None
    places: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, heads, queries, keys); known windows of an image count as images."""
        return tuple(self.by_head(self.output).shape)

    @property
    def masked(self) -> bool:
        """Whether a mask may exclude keys."""
        return True

    def by_head(self, value: Tensor) -> Tensor:
        """Brings the shape (N · heads, L, C), or (N, windows, heads, L, C), to four dimensions."""
        return value.flatten(0, -4) if value.dim() > 3 else value.unflatten(0, (self.batch, -1))

    def weights(self) -> Tensor:
        """The attention (N, heads, queries, keys); each row sums to 1."""
        return full_precision(self.by_head(self.output))

    def gradient(self, by_output: Tensor) -> Tensor:
        """Returns the score's gradient with respect to the weights, given that for ``output``."""
        return full_precision(self.by_head(by_output))

    def relevance(self, by_output: Tensor, fixed: bool = False) -> Tensor:
        """``mean over heads of relu(gradient · weights)``, of shape (N, queries, keys).

        A ``fixed`` gradient is constant for a loss.
        """
        gradient = self.gradient(by_output).relu()  # weights are not negative
        return ((gradient.detach() if fixed else gradient) * self.weights()).mean(1)

    def allowed(self, gradient: Tensor) -> Tensor:
        """Sets a gradient with respect to the weights to 0 at masked keys."""
        return gradient * (self.weights() > 0) if self.masked else gradient


@dataclass
class FusedAttention(Attention):
    """An attention of a fused kernel, which hides its weights.

    The weights follow from queries and keys. The gradient by them is ``gO V^T``, with gO the gradient by
    the kernel's result O.

    Args:
        output (Tensor): O.
        batch (int): The number of images.
        dropout (float): See ``Attention``.
        positions (list[int]): See ``Attention``.
        call (Mapping[str, Any]): The arguments of ``F.scaled_dot_product_attention``.
    """

    call: Mapping[str, Any] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """See ``Attention``."""
        return (*self.by_head(self.call['query']).shape[:3], self.call['key'].shape[-2])

    @property
    def masked(self) -> bool:
        """See ``Attention``."""
        return self.call['attn_mask'] is not None or self.call['is_causal']

    def weights(self) -> Tensor:
        """See ``Attention``."""
        query, key = full_precision(self.by_head(self.call['query'])), self._of_all_heads('key')
        scale, mask = self.call['scale'], self.call['attn_mask']
        logits = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.mT
        if self.call['is_causal']:
            mask = torch.ones(logits.shape[2:], dtype=torch.bool, device=logits.device).tril()
        if mask is not None:
            # Queries (N · heads, L, C) may share one mask
            apart = self.call['query'].dim() == mask.dim() == 3 and len(mask) > 1
            mask = self.by_head(mask) if apart else mask
            whole = mask.dtype == torch.bool
            logits = logits.masked_fill(~mask, -torch.inf) if whole else logits + mask
        return logits.softmax(-1)

    def gradient(self, by_output: Tensor) -> Tensor:
        """See ``Attention``."""
        return full_precision(self.by_head(by_output)) @ self._of_all_heads('value').mT

    def _of_all_heads(self, name: str) -> Tensor:
        value = full_precision(self.by_head(self.call[name]))
        # Groups of heads may share keys and values
        size = self.by_head(self.call['query']).shape[1] // value.shape[1]
        return value.repeat_interleave(size, 1) if size > 1 else value


class AttentionRecorder(TorchFunctionMode):
    """Collects the attentions that torch computes, in the order of the forward pass.

    Args:
        batch (int): The number of images.
        first (int, optional): From this attention on, a graph is recorded: its result becomes a leaf,
            unless it has a graph already, and gradients are switched on. Defaults to None (never, and
            attentions have one head, the mean of all).
    """

    def __init__(self, batch: int, first: int | None = None) -> None:
        super().__init__()
        self.batch, self.first = batch, first
        self.attentions: list[Attention] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            return self._multi_head(**_named(_MULTI_HEAD, args, kwargs))
        if func is F.scaled_dot_product_attention:
            return self._keep(self._fused(*args, **kwargs))
        if func in (F.linear, F.conv2d) and self.attentions:
            last = self.attentions[-1]
            taken = args[0] if args else kwargs['input']
            if len(last.positions) < 2 and taken.dim() > 2:
                width = taken.shape[-1 if func is F.linear else 1]
                last.positions.append(taken.numel() // (width * last.batch))
                local = any(each != last.shape[2] for each in last.positions)
                if len(last.positions) == 2 and local and taken.requires_grad:
                    last.tokens = taken
        result = func(*args, **kwargs)
        if func in (F.softmax, torch.softmax, Tensor.softmax):
            dim = kwargs.get('dim', args[1] if len(args) > 1 else None)
            if dim in (-1, result.dim() - 1) and result.dim() < 5:
                return self._keep(Attention(result, self.batch))
        return result

    def _keep(self, attention: Attention) -> Tensor:
        """Records an attention over images, and returns the output for later layers."""
        *outer, _, _ = attention.output.shape
        if not outer or outer[0] % self.batch:
            return attention.output
        output = attention.output
        if self.first is None:
            # Without gradients only the mean over heads is needed, and it takes less memory
            mean = attention.weights().mean(1, keepdim=True)
            attention = Attention(mean, self.batch, attention.dropout, attention.positions)
        elif len(self.attentions) >= self.first:
            torch.set_grad_enabled(True)
            if not output.requires_grad:
                output = attention.output = output.detach().requires_grad_()
        self.attentions.append(attention)
        return output

    def _fused(self, *args: Any, **kwargs: Any) -> FusedAttention:
        call = _named(_FUSED, args, kwargs)
        output = F.scaled_dot_product_attention(*args, **kwargs)
        return FusedAttention(output, self.batch, call['dropout_p'], call=call)

    def _multi_head(
        self, query: Tensor, key: Tensor, value: Tensor, **call: Any
    ) -> tuple[Tensor, Tensor | None]:
        """``F.multi_head_attention_forward``; the original hides its kernel call."""
        unusual = call['add_zero_attn'] or any(
            call[name] is not None for name in ('bias_k', 'bias_v', 'static_k', 'static_v')
        )
        if unusual or query.dim() != 3:
            raise ValueError(
                'nn.MultiheadAttention with keys that are no tokens (add_bias_kv, add_zero_attn), or '
                'without a batch, has no map of attention; use GradCAM'
            )
        heads, together = call['num_heads'], not call['use_separate_proj_weight']
        weight, bias = call['in_proj_weight'], call['in_proj_bias']
        if together and query is key is value:
            projected = F.linear(query, weight, bias).chunk(3, -1)
        else:
            separate = [call[f'{each}_proj_weight'] for each in 'qkv']
            weights = weight.chunk(3) if together else separate
            biases = [None] * 3 if bias is None else bias.chunk(3)
            projected = map(F.linear, (query, key, value), weights, biases)
        projected = (each.unflatten(-1, (heads, -1)).permute(1, 2, 0, 3) for each in projected)
        dropout = call['dropout_p'] if call['training'] else 0.0
        mask = _added(call['attn_mask'], call['key_padding_mask'], heads, query.dtype)
        attention = self._fused(*projected, mask, dropout)
        attention.positions.append(len(query))
        tokens = self._keep(attention).permute(2, 0, 1, 3).flatten(2)
        result = F.linear(tokens, call['out_proj_weight'], call['out_proj_bias'])
        if not call['need_weights']:
            return result, None
        shown = attention.weights().to(result)
        return result, shown.mean(1) if call['average_attn_weights'] else shown


def _added(
    mask: Tensor | None, padding: Tensor | None, heads: int, dtype: torch.dtype
) -> Tensor | None:
    """Both masks of ``F.multi_head_attention_forward``, in which True forbids, as numbers to add."""
    if mask is not None and mask.dim() == 3:
        mask = mask.unflatten(0, (-1, heads))
    total = None
    for each in (mask, None if padding is None else padding[:, None, None]):
        if each is None:
            continue
        if each.dtype == torch.bool:
            each = torch.zeros_like(each, dtype=dtype).masked_fill(each, -torch.inf)
        total = each if total is None else total + each
    return total


_MULTI_HEAD = inspect.signature(F.multi_head_attention_forward)


def _signature(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> None:
    """The signature of ``F.scaled_dot_product_attention``; torch does not expose it."""


_FUSED = inspect.signature(_signature)


def _named(signature: inspect.Signature, args: tuple, kwargs: dict) -> dict[str, Any]:
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments
