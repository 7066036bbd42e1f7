"""Finding the prototypes of a model."""

from __future__ import annotations

from torch import nn

from mmkdx.models.heads import PrototypeHead, PrototypeLayer


def find_prototypes(model: nn.Module) -> str:
    """The path of the layer that compares patches with prototypes, and holds them.

    Raises:
        ValueError: If the model has none.
    """
    for path, module in model.named_modules():
        if isinstance(module, PrototypeLayer):
            return path
    raise ValueError('has no prototypes; use a prototype head, such as ProtoPNetHead')


def prototype_head(model: nn.Module, owner: str) -> PrototypeHead:
    """The prototype head of a classifier.

    Args:
        model (nn.Module): A classifier of mmpretrain.
        owner (str): What needs it, for the message.

    Raises:
        ValueError: If it has another head.
    """
    head = getattr(model, 'head', None)
    if not isinstance(head, PrototypeHead):
        raise ValueError(
            f'{owner} needs a prototype head, such as ProtoPNetHead, and the model has '
            f'{type(head).__name__}'
        )
    return head
