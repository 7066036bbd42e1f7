"""The gradients of terms beside that of the student's own losses, at taps of the student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from mmengine.dist import all_reduce
from torch import Tensor

from mmkdx.distillation import checks
from mmkdx.functional.class_maps import first_tensor

if TYPE_CHECKING:
    from mmkdx.distillation.terms import Term

#: Below this cosine the gradients of a row are in conflict. An exact 0 may be rounded to -1e-17.
CONFLICT = -1e-6
#: The first factor on losses whose gradients pass tensors in fp16, and by what it shrinks on overflow.
LOSS_SCALE, SHRINK = 2.0**16, 2.0**4
#: Words in errors of torch that a second backward pass of one graph meets, and what to do.
HINTS = {
    'donated': 'set torch._functorch.config.donated_buffer = False, or compile=False',
    'checkpoint': 'use activation checkpointing with use_reentrant=False',
}


class LossScale:
    """A power of two that keeps gradients in fp16 inside its range; it is smaller after an overflow."""

    def __init__(self) -> None:
        self._value: Tensor | None = None

    def of(self, taps: list[Tensor]) -> Tensor | float:
        """The factor on a loss for its gradients by tensors: 1 unless there is fp16."""
        kind = taps[0].device.type
        autocast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
        if torch.float16 not in (autocast, *(tap.dtype for tap in taps)):
            return 1.0
        if self._value is None:
            self._value = torch.tensor(LOSS_SCALE, device=taps[0].device)
        return self._value

    def follow(self, finite: Tensor) -> None:
        """Makes it smaller unless the gradients were finite."""
        if self._value is not None:
            smaller = (self._value / SHRINK).clamp_min(1)
            self._value = torch.where(finite, self._value, smaller)


class Balance:
    """Weighs the losses of terms, after a comparison of gradients where weights need one."""

    def __init__(self) -> None:
        self._scale = LossScale()

    def __call__(
        self,
        terms: Mapping[str, Term],
        values: Mapping[str, Tensor],
        losses: Mapping[str, Tensor],
        student: Mapping[str, Any],
        training: bool,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weighs the losses of one step.

        Args:
            terms (Mapping[str, Term]): All terms.
            values (Mapping[str, Tensor]): Their losses without weights.
            losses (Mapping[str, Tensor]): The student's own losses, with ``student_weight``.
            student (Mapping[str, Any]): What is at the student's taps.
            training (bool): Whether the student is trained. Without gradients nothing is compared.

        Returns:
            tuple[dict[str, Tensor], dict[str, Tensor]]: The terms' losses with weights, and what is
            logged beside.

        Raises:
            ValueError: If a term trains nothing; if a loss does not depend on what is at the tap of a
                weight, or has no second backward pass.
        """
        if training and torch.is_grad_enabled():
            for name, term in terms.items():
                checks.gradients(term, student, values[name])
            self._measure(terms, values, losses, student)
        logs = {}
        for name, term in terms.items():
            logged = {**term.loss.logs, **term.weight.logs}
            logs.update({f'{name}.{key}': value for key, value in logged.items()})
        return {name: term.weight(values[name]) for name, term in terms.items()}, logs

    def _measure(
        self,
        terms: Mapping[str, Term],
        values: Mapping[str, Tensor],
        losses: Mapping[str, Tensor],
        student: Mapping[str, Any],
    ) -> None:
        """Compares gradients for all weights that are due, which sets the automatic ones."""
        due = {name: term for name, term in terms.items() if term.weight.is_due}
        for name in terms.keys() - due.keys():
            terms[name].weight.skip()
        if not due:
            return
        own = [value.mean() for key, value in losses.items() if 'loss' in key]
        for term in due.values():
            checks.own_loss(term, bool(own))
        taps = {term.weight.at: first_tensor(student[term.weight.at]) for term in due.values()}
        for term in due.values():
            checks.measured(term, taps[term.weight.at])
        first = next(iter(due.values()))
        found = _gradients(first, sum(own), list(taps.values()), self._scale)
        gradients = dict(zip(taps, found))
        rows = []
        for name, term in due.items():
            tap, weight = taps[term.weight.at], term.weight
            (gradient,) = _gradients(term, values[name], [tap], weight.scale)
            checks.reached(term, gradients[weight.at] is not None, gradient is not None)
            rows.append(compare(gradients[weight.at], gradient))
        sums = torch.stack(rows)
        # Before roots and before what is valid, so that all processes get the same numbers
        all_reduce(sums)
        self._scale.follow(sums[:, 0].isfinite().all())
        for term, each in zip(due.values(), sums):
            term.weight.scale.follow(each[1].isfinite())
            term.weight.take(term.key, each)


def _gradients(
    term: Term, loss: Tensor, taps: list[Tensor], scale: LossScale
) -> list[Tensor | None]:
    """The gradients of a loss by tensors, in fp64; None where it does not depend on one."""
    factor = scale.of(taps)
    if not loss.requires_grad:
        return [None for _ in taps]
    try:
        found = torch.autograd.grad(loss * factor, taps, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        hint = next((HINTS[word] for word in HINTS if word in str(error)), None)
        if hint is None:
            raise
        raise ValueError(
            f'{term.key}.weight: the gradients at the tap {term.weight.at!r} need a backward pass of '
            f'their own, which the student does not allow; {hint}'
        ) from error
    return [each if each is None else each.double() / factor for each in found]


@torch.no_grad()
def compare(own: Tensor, term: Tensor) -> Tensor:
    """What is summed up of two gradients (N, ...); see ``TermWeight.take``."""
    own, term = (each.reshape(len(each), -1) for each in (own, term))
    squares, others, products = ((a * b).sum(1) for a, b in ((own, own), (term, term), (own, term)))
    # Without a division: a gradient of 0 is in no conflict
    conflicts = (products < CONFLICT * squares.sqrt() * others.sqrt()).sum()
    rows = torch.full_like(conflicts, len(own))
    return torch.stack([squares.sum(), others.sum(), products.sum(), conflicts, rows]).double()


def gradient_ratio(own: Tensor, term: Tensor) -> Tensor:
    """The ratio of two norms from their squares; NaN where one is 0 or not finite."""
    valid = own.isfinite() & term.isfinite() & (own > 0) & (term > 0)
    return torch.where(valid, own.sqrt() / term.sqrt(), torch.nan)


def measured_taps(terms: Sequence[Term], student_weight: float) -> dict[str, str]:
    """The student's taps at which gradients are compared, each with its config key.

    A weight without a tap gets the term's.

    Raises:
        ValueError: If it is not one tap of a tensor, or there is nothing to compare with.
    """
    taps = {}
    for term in terms:
        if term.weight.measures:
            term.weight.at = term.weight.at or term.student_tap
            checks.measured_tap(term, student_weight)
            taps[term.weight.at] = f'{term.key}.weight.at'
    return taps
