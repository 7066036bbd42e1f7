"""Attention in windows: the places of the tokens of an image, and products with all its windows."""

from __future__ import annotations

import torch
from torch import Tensor

from mmkdx.explain.attention_recorder import Attention
from mmkdx.functional import full_precision


def find_places(attention: Attention) -> Tensor | None:
    """Finds the place of each token of an image among the queries of all its windows.

    The layer behind the attention takes the tokens in the order of the map, and each token depends on
    one query. The derivatives of some tokens at all queries show one binary digit of each token's
    number. A token's key has the place of its query.

    Args:
        attention (Attention): A self-attention of a forward with a graph.

    Returns:
        Tensor, optional: L integers from 0 to windows · queries - 1. No token has a place of padding.
        None if tokens and queries do not match exactly.
    """
    tokens, images = attention.tokens, attention.batch
    groups, _, queries, keys = attention.shape
    if tokens is None or len(tokens) != images or groups % images or queries != keys:
        return None
    # Behind a norm, the sum over channels would be constant
    weights = torch.arange(1, tokens.shape[-1] + 1, device=tokens.device).sin().to(tokens)

    def slope(chosen: Tensor) -> Tensor | None:
        by_tokens = (chosen.to(tokens)[:, None] * weights).view(tokens.shape)
        (by_output,) = torch.autograd.grad(
            tokens, attention.output, by_tokens, retain_graph=True, allow_unused=True
        )
        if by_output is None:
            return None
        return full_precision(attention.by_head(by_output).transpose(1, 2).flatten(2).flatten(0, 1))

    numbers = torch.arange(tokens[..., 0].numel(), device=tokens.device)
    whole = slope(torch.ones_like(numbers))
    if whole is None:
        return None
    size, found = whole.abs().amax(1), numbers.new_zeros(len(whole))
    for digit in range(len(numbers).bit_length()):
        part = slope(numbers >> digit & 1)
        one = (part * whole).sum(1) > (whole * whole).sum(1) / 2
        if ((part - one[:, None] * whole).abs().amax(1) > 0.01 * size).any():
            return None  # a token depends on several queries
        found += one.long() << digit
    return _of_every_image(found, size > 0, numbers.view(images, -1))


def _of_every_image(found: Tensor, seen: Tensor, numbers: Tensor) -> Tensor | None:
    """Returns the places that all images share, given the token number at each query."""
    images, length = numbers.shape
    if not seen.any():  # the attention has no effect: its gradient is 0 everywhere
        return numbers[0] if length <= len(found) // images else None
    # Stochastic depth drops whole images
    kept = seen.view(images, -1).any(1).nonzero()
    seen = seen.nonzero()[:, 0]
    order = seen[found[seen].argsort()]
    if not torch.equal(found[order], numbers[kept[:, 0]].flatten()):
        return None
    places = order.view(-1, length) - kept * (len(found) // images)
    return places[0] if (places == places[0]).all() else None


def to_tokens(values: Tensor, attention: Attention) -> Tensor:
    """Brings values (N · windows, 1, queries) to the tokens' order, of shape (N, 1, L)."""
    if attention.places is None:
        return values
    return values.reshape(attention.batch, 1, -1)[..., attention.places]


def multiply(row: Tensor, relevance: Tensor, attention: Attention) -> Tensor:
    """``row @ M``, where M is 0 for tokens of different windows.

    Args:
        row (Tensor): Weights of the tokens (N, 1, L).
        relevance (Tensor): The windows' parts of M, of shape (N · windows, queries, keys).
        attention (Attention): Their attention, with the tokens' places, or None for a single window.

    Returns:
        Tensor: (N, 1, L).
    """
    if attention.places is None:
        return row @ relevance
    count = len(relevance) * relevance.shape[1] // len(row)
    windows = row.new_zeros(len(row), count).index_copy(1, attention.places, row[:, 0])
    return to_tokens(windows.view(len(relevance), 1, -1) @ relevance, attention)
