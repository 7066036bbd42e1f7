"""Finds the attentions of a transformer that a map is made of, and the grid of their tokens."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile

import torch.nn.functional as F
from torch import Tensor, nn

from mmkdx.explain.attention_recorder import Attention
from mmkdx.explain.layouts import Layout, extra_tokens, patch_grids
from mmkdx.explain.windows import find_places


@dataclass
class AttentionLayers:
    """The attentions between all tokens of an image.

    Args:
        layers (list[Attention]): The self-attentions, first to last.
        pooling (Attention, optional): The attention of a pooling head; None for any other head.
        layout (Layout): The arrangement of the tokens, which are the keys.
    """

    layers: list[Attention]
    pooling: Attention | None
    layout: Layout

    @property
    def length(self) -> int:
        """The number of tokens."""
        height, width = self.layout.size
        return self.layout.extra + height * width


def of_latents(rows: Tensor, length: int) -> Tensor:
    """Sums the rows (N, latents, keys) of a pooling head to (N, 1, length).

    Latents that are not read have the row 0.
    """
    row = rows.sum(1, keepdim=True)
    return F.pad(row, (length - row.shape[2], 0))


def find_attention_layers(
    name: str,
    model: nn.Module,
    inputs: Tensor,
    attentions: list[Attention],
    stage: bool = False,
    pooling: bool = True,
) -> AttentionLayers:
    """Finds the attentions of a forward pass that a map can be made of.

    Args:
        name (str): The explainer, for messages.
        model (nn.Module): The transformer.
        inputs (Tensor): The images (N, C, H, W).
        attentions (list[Attention]): What ``AttentionRecorder`` recorded.
        stage (bool): Whether to take the last stage alone, whose attentions may be in windows. Defaults
            to False (all attentions).
        pooling (bool): Whether the last attention may be that of a pooling head. Defaults to True.

    Raises:
        ValueError: If there are no attentions, one of them is local or over channels, sequences differ
            in length, or tokens are no grid of the image.
    """
    kind, size, grids = type(model).__name__, tuple(inputs.shape[2:]), patch_grids(model, inputs)
    last = attentions[-1] if attentions else None
    if stage and last:
        found = _last_stage(inputs, attentions, grids)
        if found is None:
            raise ValueError(
                f"{name}.stage is 'last', and the last stage of {kind} does not attend to the positions "
                f'of an image of {size} pixels in one window, or in several that share no position; '
                'use GradCAM'
            )
        return found
    pool = last if pooling and last and last.shape[-2] != last.shape[-1] else None
    layers = attentions[:-1] if pool else attentions
    whole = all(_is_whole(each, inputs) for each in layers)
    lengths = {each.shape[-1] for each in layers}
    if not whole or len(lengths) != 1 or (pool and pool.shape[0] != len(inputs)):
        raise ValueError(
            f'{name} needs a transformer whose layers all attend from every token to every token of '
            f'the image, and {kind} {"has" if attentions else "calls"} no such attention; use GradCAM, '
            "or for attention in windows GradientRollout with stage='last'"
        )
    (length,), extra = lengths, extra_tokens(model)
    layout = Layout.of_tokens(length, size, extra, grids)
    if layout is None:
        raise ValueError(
            f'{name}: the {length} tokens of {kind} are no grid of an '
            f'image of {size} pixels after {"up to 8" if extra is None else extra} other tokens; '
            'use GradCAM'
        )
    if pool and pool.shape[-1] not in (length, length - layout.extra):
        raise ValueError(
            f'{name}: the last attention of {kind} has {pool.shape[-1]} keys, which are not the '
            f'{length} tokens before it; use GradCAM'
        )
    return AttentionLayers(layers, pool, layout)


def count_of(name: str, layers: int | None, model: nn.Module, found: int) -> int:
    """Returns how many of the last layers count; all for None.

    Raises:
        ValueError: If there are fewer.
    """
    if layers is not None and layers > found:
        raise ValueError(
            f'{name}.layers is {layers}, and {type(model).__name__} has {found} layers'
        )
    return layers or found


def check_dropout(name: str, model: nn.Module, attentions: list[Attention]) -> None:
    """Refuses dropout inside a fused kernel.

    Raises:
        ValueError: If there is any.
    """
    if any(each.dropout for each in attentions):
        raise ValueError(
            f'{name}: the attention of {type(model).__name__} has dropout inside a fused kernel, which '
            'hides what it dropped; set its rate to 0, or call model.eval()'
        )


def _last_stage(
    inputs: Tensor, attentions: list[Attention], grids: set[tuple[int, int]]
) -> AttentionLayers | None:
    last = attentions[-1]
    layers = [*takewhile(lambda each: each.shape == last.shape, reversed(attentions))][::-1]
    layout = Layout.of_stage(last.shape[-1], grids)
    if layout and all(_is_whole(each, inputs) for each in layers):
        return AttentionLayers(layers, None, layout)
    # The layer after a window takes all positions of the stage
    count = last.positions[1:]
    layers = [*takewhile(lambda each: each.positions[1:] == count, reversed(attentions))][::-1]
    for each in layers:
        each.places = find_places(each)
    layout = Layout.of_stage(count[0], grids) if count else None
    found = layout and all(each.places is not None for each in layers)
    return AttentionLayers(layers, None, layout) if found else None


def _is_whole(attention: Attention, inputs: Tensor) -> bool:
    images, _, queries, keys = attention.shape
    # Attention over channels or in a padded window may have the shape of attention over all tokens
    all_tokens = all(each == queries for each in attention.positions)
    return images == len(inputs) and queries == keys and all_tokens
