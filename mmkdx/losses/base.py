"""What a loss declares: what it compares, and what it needs for that."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mmkdx.arguments import flag, integer, number, one_of, positive, size

__all__ = ['DistillLoss', 'flag', 'integer', 'number', 'one_of', 'positive', 'size']

COMPARES = ('shape', 'map_size', 'logits', 'class_maps', 'anything')

#: What ``forward`` may take beside the student's value.
ARGUMENTS = ('teacher', 'target', 'index', 'inputs', 'model')

#: What a loss may need. 'class' is a target of one class for each image.
NEEDS = (*ARGUMENTS, 'class', 'gradients')

#: The names that a term reads.
CONTRACT = ('compares', 'needs', 'connect', 'check', 'locate', 'logs')


class DistillLoss(nn.Module):
    """Base of the losses that a term computes.

    A subclass declares what it compares and what it needs. Its ``forward`` takes exactly that,
    ``student`` and then ``teacher``, ``target``, ``index``, ``inputs`` and ``model`` where it needs
    them. It returns the unweighted loss, a scalar. Constructors refuse arguments out of their ranges
    with a ``ValueError``.

    ``compares`` says which inputs ``forward`` takes, and so what ``adapter='auto'`` bridges:

    - 'shape': tensors of one shape. Channels, sizes and layouts are bridged.
    - 'map_size': maps of shape (N, C, H, W) of one size. Sizes and layouts are bridged.
    - 'logits': tensors of shape (N, K) with the same classes. Nothing is bridged.
    - 'class_maps': ``ClassMaps`` or tensors (N, K, H, W) with the same classes. Nothing is bridged.
    - 'anything': anything, also a list of taps. Nothing is bridged.

    ``needs`` is a tuple of:

    - 'teacher': what the teacher's tap holds. A loss without it is for a student alone.
    - 'target': the labels, as classes (N, ) or as probabilities (N, K).
    - 'class': ``target`` holds one class for each image; mixed labels are refused.
    - 'index': the position of each image in the data set, of shape (N, ), on the CPU.
    - 'inputs': the preprocessed images (N, C, H, W).
    - 'model': the student. ``connect`` takes it, too. A loss that needs images or the student is not
      tried on random values before training.
    - 'gradients': the loss takes gradients of the logits by what is at its other taps. Then the teacher
      records a graph from these taps on, and tensors come in the precision they have.

    A loss that turns logits into probabilities has the attribute ``activation``, 'softmax' or 'sigmoid'.
    For a loss that compares logits it is 'softmax' unless it says otherwise.

    Raises:
        ValueError: If the class declares something unknown, or has a name that is nearly one of these.
    """

    compares: str = 'shape'
    needs: tuple[str, ...] = ('teacher',)

    def __init__(self) -> None:
        super().__init__()
        _check_contract(type(self))
        #: Scalars of the last forward, which are logged as ``<term>.<key>``.
        self.logs: dict[str, Tensor] = {}

    def connect(self, student: Any, teacher: Any = None, model: nn.Module | None = None) -> None:
        """Builds layers of the loss's own, once, before the optimizer is built.

        Args:
            student (Tensor | ClassMaps | list): What is at the student's taps; it may be fake.
            teacher (Tensor | ClassMaps | list, optional): The teacher's, if the loss needs a teacher.
            model (nn.Module, optional): The student, if the loss needs the model.
        """

    def check(self, student: Any, teacher: Any = None) -> None:
        """Refuses, before training and for each image size, what would go wrong; see ``connect``."""

    def locate(self, model: nn.Module, size: Sequence[int]) -> str | tuple[str, ...] | None:
        """The taps that ``at='auto'`` stands for in the student, for images of a height and width."""


def _check_contract(loss: type[DistillLoss]) -> None:
    name = loss.__name__
    one_of(f'{name}.compares', loss.compares, COMPARES)
    if not isinstance(loss.needs, tuple):
        raise ValueError(f"{name}.needs is {loss.needs!r}; it must be a tuple like ('teacher',)")
    for need in loss.needs:
        one_of(f'{name}.needs', need, NEEDS)
    for own in sorted(set(dir(loss)) - set(dir(DistillLoss))):
        near = difflib.get_close_matches(own, (*CONTRACT, 'forward'), 1, 0.8)
        if near and not own.startswith('_'):
            raise ValueError(f'{name}.{own} is not read; do you mean {near[0]!r}?')
    needs = {*loss.needs, 'target'} if 'class' in loss.needs else loss.needs
    given = [each for each in ARGUMENTS if each in needs]
    takes = dict(forward=given, connect=('teacher', 'model'), check=('teacher',))
    for method, names in takes.items():
        function = getattr(loss, method)
        wanted = ['student', *(each for each in given if each in names)]
        taken = list(inspect.signature(function).parameters)[1:]
        own = method == 'forward' or function is not getattr(DistillLoss, method)
        if own and sorted(taken) != sorted(wanted):
            raise ValueError(
                f'{name}.{method} takes ({", ".join(taken)}), and with needs={loss.needs} it must '
                f'take ({", ".join(wanted)})'
            )
