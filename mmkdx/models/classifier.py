"""Finding the prototypes of a model."""

from __future__ import annotations

from torch import nn

from mmkdx.models.heads import PrototypeHead, PrototypeLayer


def find_prototypes(model: nn.Module) -> str:
    """The path of the layer with a model's prototypes, a ValueError where it has none."""
    for path, module in model.named_modules():
        if isinstance(module, PrototypeLayer):
            return path
    raise ValueError('has no prototypes; use a prototype head, such as ProtoPNetHead')


def prototype_head(model: nn.Module, owner: str) -> PrototypeHead:
    """The prototype head of mmpretrain's classifier, which ``owner`` needs.

    Raises:
        ValueError: If the classifier has another head.
    """
    head = getattr(model, 'head', None)
    if not isinstance(head, PrototypeHead):
        raise ValueError(
            f'{owner} needs a prototype head, such as ProtoPNetHead, and the model has '
            f'{type(head).__name__}'
        )
    return head
