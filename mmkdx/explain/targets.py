"""What is explained: scores of classes, or any function of a model's output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkdx.functional import full_precision
from mmkdx.models.families import describe, forward_tensor

#: What can be explained; see ``Explainer.__call__``.
Targets = int | str | Tensor | Sequence | Callable[[Any], Tensor] | None


class Scores:
    """The scores (N, K) of images: a model's logits, or the single score of a function (N, 1).

    Args:
        model (nn.Module): The model.
        targets (int | str | Tensor | Sequence | Callable, optional): The targets, of which only a
            function matters. Defaults to None.
    """

    def __init__(self, model: nn.Module, targets: Targets = None) -> None:
        self.model = model
        self.function = targets if callable(targets) else None

    def __call__(self, inputs: Tensor) -> Tensor:
        """Returns the scores, in fp32 at least, of images (N, C, H, W)."""
        if self.function is None:
            return full_precision(describe(self.model).logits(inputs))
        # A model may overwrite its input, which is forbidden for a leaf
        output = forward_tensor(self.model, inputs.clone())
        return function_scores(self.function, output, len(inputs))


def function_scores(function: Callable[[Any], Tensor], output: Any, count: int) -> Tensor:
    """Applies a target function to a model's output. Returns scores (N, 1), in fp32 at least.

    Raises:
        ValueError: If it does not return one score for each of ``count`` images, or scores without a
            gradient where one is needed.
    """
    scores, name = function(output), target_name(function)
    if not isinstance(scores, Tensor) or scores.shape != (count,):
        kind = type(scores).__name__
        if isinstance(scores, Tensor):
            kind = f'tensor of shape {tuple(scores.shape)}'
        raise ValueError(
            f'the target {name} returns a {kind}; it must return a tensor with one score for each '
            f'image, of shape ({count},)'
        )
    if torch.is_grad_enabled() and not scores.requires_grad:
        raise ValueError(
            f'the scores of the target {name} have no gradient by the image; use the tensors of the '
            'model without detach, argmax, numpy or torch.no_grad'
        )
    return full_precision(scores)[:, None]


class CosineTarget:
    """The cosine of an embedding with a given vector, for networks that return embeddings.

    It is differentiable by the embedding and by the vectors.

    Args:
        vectors (Tensor): One vector for all images, of shape (D, ) or (1, D), or one for each image,
            (N, D). Their lengths do not matter.

    Example:
        >>> maps = GradCAM()(image_tower, images, CosineTarget(text_tower(texts)))

    Raises:
        ValueError: If these are no vectors, or one of them is zero or not finite.
    """

    def __init__(self, vectors: Tensor) -> None:
        if not isinstance(vectors, Tensor) or vectors.dim() not in (1, 2) or not vectors.numel():
            shape = tuple(vectors.shape) if isinstance(vectors, Tensor) else type(vectors).__name__
            raise ValueError(
                f'CosineTarget.vectors is {shape}; it must be a tensor of shape (D, ) or (N, D)'
            )
        lengths = vectors.detach().double().norm(dim=-1)
        if not (lengths.isfinite() & (lengths > 0)).all():
            raise ValueError('CosineTarget.vectors has a vector that is zero or not finite')
        self.vectors = vectors.reshape(-1, vectors.shape[-1])

    def __call__(self, output: Any) -> Tensor:
        """Returns the cosines (N, ) of embeddings (N, D).

        Raises:
            ValueError: If the output is no embedding of this width, or there are more or fewer
                vectors than images.
        """
        count, width = self.vectors.shape
        if not isinstance(output, Tensor) or output.dim() != 2 or output.shape[1] != width:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f'CosineTarget compares with vectors of {width} numbers and needs embeddings of shape '
                f'(N, {width}), and the model returns {shape}'
            )
        if count not in (1, len(output)):
            raise ValueError(f'CosineTarget has {count} vectors for {len(output)} images')
        output = full_precision(output)
        return F.cosine_similarity(output, self.vectors.to(output), dim=1)


def class_weights(targets: Targets, logits: Tensor) -> Tensor:
    """Returns class weights in the shape of the logits (N, K), one-hot for class indices.

    Targets are those of ``Explainer.__call__`` but 'all'. The single score of a function has weight 1.

    Raises:
        ValueError: If a target is no class of the model, or there are more or fewer than images.
    """
    count, classes = logits.shape
    if callable(targets):
        return torch.ones_like(logits)
    if targets is None or (isinstance(targets, str) and targets == 'pred'):
        targets = logits.argmax(1)
    elif isinstance(targets, str):
        raise ValueError(
            f"targets is {targets!r}; the text must be 'pred', or 'all' where the explainer "
            'runs the model'
        )
    elif isinstance(targets, Sequence) and len(targets) and hasattr(targets[0], 'get'):
        targets = _labels(targets)
    try:
        targets = torch.as_tensor(targets, device=logits.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f'targets must be class indices or weights, not {targets!r}') from error
    if targets.is_inference():
        targets = targets.clone()  # such a tensor cannot take part in a graph
    if not targets.dim():
        targets = targets.expand(count)
    if len(targets) != count:
        raise ValueError(f'there are {len(targets)} targets for {count} images')
    if targets.dim() == 2 and targets.shape[1] == classes:
        return targets.to(logits.dtype)
    if targets.dim() != 1 or targets.is_floating_point():
        raise ValueError(
            f'targets must be {count} class indices or weights of shape ({count}, {classes}), and are '
            f'{"numbers" if targets.is_floating_point() else "indices"} of shape {tuple(targets.shape)}'
        )
    # Compared on the device where it is free; indices outside would be an error there without a name
    bad = targets[(targets < 0) | (targets >= classes)]
    if len(bad):
        raise ValueError(f'target {int(bad[0])} is no class of the model, which has {classes}')
    return F.one_hot(targets.long(), classes).to(logits.dtype)


def _labels(data_samples: Sequence[Any]) -> Tensor:
    for key in ('gt_score', 'gt_label'):
        if all(sample.get(key) is not None for sample in data_samples):
            labels = [torch.as_tensor(sample.get(key)).reshape(-1) for sample in data_samples]
            if key == 'gt_label' and any(len(label) != 1 for label in labels):
                raise ValueError(
                    'targets are data samples with several labels; pass class weights of shape (N, K)'
                )
            return torch.stack(labels).squeeze(1)
    raise ValueError("targets are data samples without labels ('gt_label'); use 'pred'")


def target_name(function: Callable) -> str:
    """Returns the name of a function for messages and pictures."""
    return getattr(function, '__name__', type(function).__name__)
