"""Finding the classifier of a model: GAP + linear, with class maps in closed form, or prototypes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mmkdx.models.heads import PrototypeHead, PrototypeLayer


def find_global_pooling(model: nn.Module) -> str:
    """The path of the global average pooling before the classifier.

    Raises:
        ValueError: If the model has none as a module.
    """
    # Squeeze-and-excitation blocks pool as well; the classifier's pooling comes after all of them.
    paths = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1))
    ]
    if not paths:
        raise ValueError(
            'has no global average pooling (an nn.AdaptiveAvgPool2d(1), as in the neck '
            'GlobalAveragePooling), so that its features before pooling cannot be found; name a '
            "module in place of it, as in 'backbone.layer4'"
        )
    return paths[-1]


def find_classifier(model: nn.Module) -> str:
    """The path of the last linear layer.

    Raises:
        ValueError: If the model has no linear layer.
    """
    paths = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not paths:
        raise ValueError('has no linear classifier (an nn.Linear)')
    return paths[-1]


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


def check_gap_linear(outputs: Mapping[str, tuple[Any, int | None]]) -> None:
    """Checks that ``logits = linear(GAP(features))`` with nothing in between.

    Flattening is a view and dropout in eval mode is the identity, so the pooled features, what enters
    the linear layer, and likewise its output and the logits, share memory, unwritten in the meantime,
    exactly when no other operation stands between them (a norm, a hidden layer, a scale).

    Args:
        outputs (Mapping[str, tuple]): Of one (fake) forward in eval mode the values 'pooled',
            'linear_in', 'linear_out' and 'logits', each with its version when it was read.

    Raises:
        ValueError: If something stands in between.
    """
    for first, second, gap in (
        ('pooled', 'linear_in', 'between its global average pooling and its last linear layer'),
        ('linear_out', 'logits', 'after its last linear layer'),
    ):
        if not all(isinstance(outputs[key][0], Tensor) for key in (first, second)):
            raise ValueError(
                'is not GAP + linear: its forward does not pass its last global average pooling and its '
                'last linear layer'
            )
        states = {
            (value.untyped_storage()._cdata, version)
            for value, version in (outputs[first], outputs[second])
        }
        if len(states) > 1:
            raise ValueError(
                f'is not GAP + linear: another operation stands {gap}, so its class maps have no '
                'closed form'
            )
