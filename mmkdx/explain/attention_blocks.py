"""Finds the blocks of a transformer, and the tokens that its head reads behind the last one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import set_stance
from torch.utils._pytree import tree_map_only

from mmkdx.explain.attention_layers import AttentionLayers, find_attention_layers
from mmkdx.explain.attention_recorder import AttentionRecorder
from mmkdx.explain.layouts import Layout
from mmkdx.explain.targets import Targets, function_scores
from mmkdx.functional import full_precision, no_autocast
from mmkdx.models.families import describe, forward_tensor
from mmkdx.models.intercept import Tap, evaluating, intercept


@dataclass(frozen=True)
class Blocks:
    """The blocks of a transformer, each with one self-attention, and its head.

    Args:
        taps (tuple[Tap, ...]): Where the tokens (N, L, C) leave the blocks, first to last.
        pooled (bool): Whether the head pools tokens by attention.
        averaged (bool): Whether the head reads extra tokens alone, such as the class token.
        layout (Layout): The arrangement of the tokens.
        length (int): The number of tokens.
        certain (bool): Whether the head reads any tokens; those that it reads are unknown otherwise.
    """

    taps: tuple[Tap, ...]
    pooled: bool
    averaged: bool
    layout: Layout
    length: int
    certain: bool

    def for_head(self, tokens: Tensor) -> Tensor:
        """Returns the tokens of a block as the head gets them: the mean replaces a class token."""
        return tokens.mean(1, keepdim=True).expand_as(tokens) if self.averaged else tokens


def find_blocks(model: nn.Module, inputs: Tensor, targets: Targets) -> Blocks:
    """Finds the blocks of a transformer with two forward passes.

    Raises:
        ValueError: If it has no global attention, its attentions are not in modules that pass tokens
            from one to the next, or the head reads more than the last block's tokens.
    """
    taps, found = _taps(model, inputs[:1])
    kept: list[Tensor] = []

    def double(tokens: Tensor) -> Tensor:
        kept.append(tokens.detach().requires_grad_())
        return torch.cat([kept[-1], kept[-1]])

    recorder = AttentionRecorder(len(inputs), first=0)
    with _quiet(model, inputs), torch.enable_grad(), recorder:
        with intercept(model, {taps[-1]: double}):
            try:
                output = forward_tensor(model, inputs.clone())
            except RuntimeError as error:
                raise _not_alone(model) from error
        scores = split_scores(model, targets, output, len(inputs), 2)
        attentions = [each.output for each in recorder.attentions]
        by_tokens, *others = torch.autograd.grad(
            scores[0].amax(1).sum(), [*kept, *attentions], allow_unused=True
        )
    if by_tokens is None or any(each is not None for each in others[: len(taps)]):
        raise _not_alone(model)
    # The model may have a pooling head with an unused result
    pooled, layout = any(each is not None for each in others[len(taps) :]), found.layout
    read = by_tokens.ne(0).any(2).any(0)
    averaged = not pooled and layout.extra > 0 and not read[layout.extra :].any()
    return Blocks(taps, pooled, averaged, layout, found.length, bool(read.any()))


def split_scores(
    model: nn.Module, targets: Targets, output: Any, images: int, runs: int
) -> list[Tensor]:
    """Splits the output of one batched run of a head into the scores (N, K) of each run.

    Raises:
        ValueError: If it does not return as many scores.
    """
    if callable(targets):

        def part(run: int, value: Tensor) -> Tensor:
            together = value.dim() and len(value) == runs * images
            return value[run * images : (run + 1) * images] if together else value

        parts = (tree_map_only(Tensor, partial(part, run), output) for run in range(runs))
        return [function_scores(targets, each, images) for each in parts]
    scores = full_precision(describe(model).logits_in(output))
    if len(scores) != runs * images:
        raise _not_alone(model)
    return list(scores.split(images))


@dataclass
class _Passing:
    """A call of a module that runs exactly one attention: number ``start``."""

    tap: Tap
    start: int
    given: Any
    tokens: Tensor


def _taps(model: nn.Module, inputs: Tensor) -> tuple[tuple[Tap, ...], AttentionLayers]:
    """Returns the output taps of the blocks, and their attentions."""
    recorder = AttentionRecorder(len(inputs))
    starts: dict[str, tuple[int, Any]] = {}
    calls: Counter = Counter()
    passings: list[_Passing] = []

    def enter(path: str, value: Any) -> None:
        starts[path] = len(recorder.attentions), value

    def leave(path: str, value: Any) -> None:
        value = value[0] if isinstance(value, (tuple, list)) and value else value
        start, given = starts.pop(path, (None, None))
        end, call = len(recorder.attentions), calls[path]
        calls[path] += 1
        if isinstance(value, Tensor) and start is not None and end == start + 1:
            passings.append(_Passing(Tap(path, call, item=0), start, given, value))

    paths = [path for path, _ in model.named_modules()]
    readers = {Tap(path, side='in', item=None): partial(enter, path) for path in paths}
    readers |= {Tap(path, item=None): partial(leave, path) for path in paths}
    with _quiet(model, inputs), torch.no_grad(), recorder, intercept(model, readers):
        forward_tensor(model, inputs.clone())
    found = find_attention_layers('LeGrad', model, inputs, recorder.attentions)
    blocks: list[_Passing] = []
    for i in range(len(found.layers)):
        inside = [
            each
            for each in passings
            if each.start == i and each.tokens.dim() == 3 and each.tokens.shape[1] == found.length
        ]
        # With a single block, the encoder around it is no block: it may end in a norm
        elements = [each for each in inside if _is_element(model, each.tap.path)]
        # The last is the outermost
        block = (elements or inside or [None])[-1]
        chained = block and (not blocks or _is_same(blocks[-1].tokens, block.given))
        if not chained:
            raise ValueError(
                'LeGrad needs a module for each block, which gets the tokens of the block before, and '
                f'{type(model).__name__} has none for its attention {i + 1}; use GradientRollout'
            )
        blocks.append(block)
    return tuple(each.tap for each in blocks), found


def _not_alone(model: nn.Module) -> ValueError:
    return ValueError(
        f'LeGrad gives the tokens of every block to the head, and the head of {type(model).__name__} '
        "cannot take them: it needs more than the last block's tokens; use GradientRollout"
    )


def _is_element(model: nn.Module, path: str) -> bool:
    parent = model.get_submodule(path.rpartition('.')[0])
    return bool(path) and isinstance(parent, (nn.ModuleList, nn.Sequential))


def _is_same(tokens: Tensor, given: Any) -> bool:
    return isinstance(given, Tensor) and tokens.shape == given.shape and tokens.equal(given)


@contextmanager
def _quiet(model: nn.Module, inputs: Tensor) -> Iterator[None]:
    """A context with eval mode, full precision and no compiled code."""
    with evaluating(model), no_autocast(inputs), set_stance('force_eager'):
        yield
