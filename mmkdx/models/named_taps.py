"""The taps that have a name: where each one is in a model, and how a cache stores its value."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from mmkdx.arguments import integer
from mmkdx.functional import ClassMaps, full_precision
from mmkdx.functional.largest_logits import all_logits, largest_logits
from mmkdx.models.families import describe
from mmkdx.models.flow import Flow
from mmkdx.models.head_trace import Trace, embedding, linear_head
from mmkdx.models.heads.prototype_head import find_prototypes
from mmkdx.models.intercept import Tap
from mmkdx.models.traced_head import TracedHead

__all__ = ['NAMED_TAPS', 'NamedTap', 'Place']

#: What a cache stores of a value: tensors with a row for each image.
Stored = Mapping[str, Tensor]

#: All named taps by name; each subclass of ``NamedTap`` adds one.
NAMED_TAPS: dict[str, NamedTap] = {}


class Place(NamedTuple):
    """The place of a tap: the point that is read, and the module or head whose weights it uses."""

    tap: Tap
    weights: str = ''
    head: TracedHead | None = None


class NamedTap(ABC):
    """What the name of a tap stands for.

    A subclass registers itself: ``class Embedding(NamedTap, name='embedding')``.
    """

    #: Whether a graph starts here for a term that takes gradients of the logits at this tap.
    starts_graph = True
    #: Whether the value is a weight of the model and not an output.
    of_weights = False

    def __init_subclass__(cls, name: str = '') -> None:
        if name:
            NAMED_TAPS[name] = cls()

    @abstractmethod
    def locate(self, flow: Flow) -> Place:
        """Finds the place in a model.

        Raises:
            ValueError: If there is none. The message continues a sentence that begins with the model.
        """

    def check(self, flow: Flow, place: Place) -> None:  # noqa: B027 (most taps have nothing to refuse)
        """Refuses a model whose value does not fit the name; raises errors as ``locate`` does."""

    def read(self, value: Any, module: nn.Module) -> Any:
        """The tap's value.

        Args:
            value (Any): The value at the place in a forward. An output of the model may hold its
                logits or embedding in another form than a tensor.
            module (nn.Module): The module of the place's weights; the model if there is none.
        """
        return value if isinstance(value, Tensor) else describe(module).logits_in(value)

    def encode(self, value: Any, top_k: int | None, resolution: int | None) -> Stored:
        """What a cache stores of a value.

        ``CachedTeacher`` describes the options. An option that leaves nothing out is a ValueError.
        """
        return dict(values=full_precision(value))

    def decode(self, stored: Stored, shape: Sequence[int], module: nn.Module | None) -> Any:
        """Restores the value from rows of ``encode``.

        Args:
            stored (Stored): The rows.
            shape (Sequence[int]): The shape of one image's value.
            module (nn.Module, optional): The module of the place's weights; None if the stored
                value needs no weights, as the mean over several teachers.
        """
        return stored['values']


class Logits(NamedTap, name='logits'):
    """The logits, of shape (N, K)."""

    starts_graph = False

    def locate(self, flow: Flow) -> Place:
        path, logits = flow.facts.logits_path, flow.logits
        output = flow.reading(Tap(path, item=None)).value
        if isinstance(output, (tuple, list)):
            # The whole output if the logits are made of several tensors
            found = (i for i, each in enumerate(output) if each is logits)
            return Place(Tap(path, item=next(found, None)))
        return Place(Tap(path))

    def encode(self, value: Tensor, top_k: int | None, resolution: int | None) -> Stored:
        value = full_precision(value)
        if top_k is None:
            return dict(values=value)
        return largest_logits(value, integer('teacher.top_k', top_k, 1, value.shape[1] - 1))

    def decode(self, stored: Stored, shape: Sequence[int], module: nn.Module | None) -> Tensor:
        return all_logits(stored, shape[0]) if 'index' in stored else stored['values']


class Features(NamedTap, name='features'):
    """The input of global average pooling, of shape (N, C, H, W)."""

    def locate(self, flow: Flow) -> Place:
        return Place(flow.features)


class Embedding(NamedTap, name='embedding'):
    """The input of the linear classifier, (N, C); the output of a model without a classifier."""

    def locate(self, flow: Flow) -> Place:
        return Place(embedding(flow))


class Cam(NamedTap, name='cam'):
    """The class maps: of one linear layer behind global average pooling, or of any other head."""

    starts_graph = False

    def locate(self, flow: Flow) -> Place:
        path = linear_head(flow)
        if path is not None:
            return Place(flow.features, path)
        head = Trace(flow.facts, flow.inputs[:1]).head
        return Place(head.tap, head=head)

    def read(self, value: Tensor, module: nn.Module) -> ClassMaps:
        return ClassMaps(value, module.weight, module.bias, keep=True)

    def encode(self, value: ClassMaps, top_k: int | None, resolution: int | None) -> Stored:
        side = resolution
        if side is not None:
            integer('teacher.resolution', side, 1, min(value.shape[2:]))
        if value.head:  # such maps are no product of features and weights
            return dict(values=value.pooled(side), remainder=value.remainder())
        features = full_precision(value.features)
        return dict(values=features if side is None else F.adaptive_avg_pool2d(features, side))

    def decode(self, stored: Stored, shape: Sequence[int], module: nn.Module | None) -> ClassMaps:
        weights = (module.weight, module.bias) if module else (None, stored.get('remainder'))
        return ClassMaps(stored['values'], *weights, keep=True)


class Prototypes(NamedTap, name='prototypes'):
    """The prototypes of a prototype head, which are weights, of shape (P, C)."""

    of_weights = True

    def locate(self, flow: Flow) -> Place:
        path = find_prototypes(flow.model)
        return Place(Tap(path), path)

    def read(self, value: Any, module: nn.Module) -> Tensor:
        return module.prototypes
