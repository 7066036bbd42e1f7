"""What a loss declares: what it compares, and what it needs for that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mmkdx.arguments import flag, integer, number, one_of, positive, size
from mmkdx.losses.contract import check_contract

__all__ = ['DistillLoss', 'flag', 'integer', 'number', 'one_of', 'positive', 'size']


class DistillLoss(nn.Module):
    """Base of the losses that a term computes.

    A subclass declares what it compares and what it needs. Its ``forward`` takes exactly that,
    ``student`` and then ``teacher``, ``target``, ``index``, ``inputs``, ``model`` and ``teacher_model``
    where it needs them. It returns the unweighted loss, a scalar. Constructors refuse arguments out of
    their ranges with a ``ValueError``.

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
    - 'teacher_model': the teacher. Its ``convert`` brings ``inputs`` to the form that its ``model``
      takes. ``check`` takes it, too, and ``model`` and one random image as ``inputs`` where it needs
      them.
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
        check_contract(type(self), DistillLoss)
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
