"""Compiles models whose values are read by hooks."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.compiler import set_stance


def compile_between(model: nn.Module, paths: Sequence[str], **kwargs: Any) -> None:
    """Compiles in place the largest parts of a model that contain no tapped module.

    Taps are hooks that exist during a step only, and compiled code would not call them.

    Args:
        model (nn.Module): The model.
        paths (Sequence[str]): The paths of the tapped modules.
        **kwargs: The arguments of ``torch.compile``.
    """
    if 'isolate_recompiles' in inspect.signature(torch.compile).parameters:
        # Else all parts share one small limit of recompilations, since the same code calls them
        kwargs = {'isolate_recompiles': True, **kwargs}

    def compile_below(module: nn.Module, path: str) -> None:
        for name, child in module.named_children():
            below = f'{path}{name}'
            lists = isinstance(child, (nn.ModuleList, nn.ModuleDict))
            if lists or any(f'{tap}.'.startswith(f'{below}.') for tap in paths):
                compile_below(child, f'{below}.')
            # A single layer has nothing to be fused with
            elif any(child.children()) and next(child.parameters(), None) is not None:
                child.compile(**kwargs)

    compile_below(model, '')


def eager_where_compiled(model: nn.Module, paths: Iterable[str]) -> AbstractContextManager:
    """A context in which hooks at modules are called even if the modules are in compiled code."""
    for path in paths:
        module = model
        for name in ['', *filter(None, path.split('.'))]:
            module = getattr(module, name) if name else module
            if '_orig_mod' in module._modules or module._compiled_call_impl is not None:
                return set_stance('force_eager')
    return nullcontext()
