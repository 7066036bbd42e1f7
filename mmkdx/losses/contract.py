"""What the declaration of a loss may say; see ``mmkdx.losses.base.DistillLoss``."""

from __future__ import annotations

import difflib
import inspect

from torch import nn

from mmkdx.arguments import one_of

COMPARES = ('shape', 'map_size', 'logits', 'class_maps', 'anything')

#: What ``forward`` may take beside the student's value.
ARGUMENTS = ('teacher', 'target', 'index', 'inputs', 'model', 'teacher_model')

#: What a loss may need. 'class' is a target of one class for each image.
NEEDS = (*ARGUMENTS, 'class', 'gradients')

#: The names that a term reads.
CONTRACT = ('compares', 'needs', 'connect', 'check', 'locate', 'logs')

#: Names of the former contract, and what to declare in their place.
FORMER = dict(
    needs_teacher="needs without 'teacher'",
    hard_labels="needs with 'class'",
    sample_index="needs with 'index'",
    sees_model="needs with 'inputs' and 'model'",
    explains="needs with 'gradients'",
)


def check_contract(loss: type[nn.Module], base: type[nn.Module]) -> None:
    """Refuses a class of losses whose declaration is wrong.

    Args:
        loss (type[nn.Module]): The class.
        base (type[nn.Module]): ``DistillLoss``.

    Raises:
        ValueError: If it declares what does not exist, or a method takes other arguments than declared.
    """
    name = loss.__name__
    one_of(f'{name}.compares', loss.compares, COMPARES)
    if not isinstance(loss.needs, tuple):
        raise ValueError(f"{name}.needs is {loss.needs!r}; it must be a tuple like ('teacher',)")
    for need in loss.needs:
        one_of(f'{name}.needs', need, NEEDS)
    for own in sorted(set(dir(loss)) - set(dir(base))):
        if own in FORMER:
            raise ValueError(f'{name}.{own} is not read; declare {FORMER[own]}')
        near = difflib.get_close_matches(own, (*CONTRACT, 'forward'), 1, 0.8)
        if near and not own.startswith('_'):
            raise ValueError(f'{name}.{own} is not read; do you mean {near[0]!r}?')
    needs = {*loss.needs, 'target'} if 'class' in loss.needs else loss.needs
    given = [each for each in ARGUMENTS if each in needs]
    tried = ('inputs', 'model', 'teacher_model') if 'teacher_model' in needs else ()
    takes = dict(forward=given, connect=('teacher', 'model'), check=('teacher', *tried))
    for method, names in takes.items():
        function = getattr(loss, method)
        wanted = ['student', *(each for each in given if each in names)]
        taken = list(inspect.signature(function).parameters)[1:]
        own = method == 'forward' or function is not getattr(base, method)
        if own and sorted(taken) != sorted(wanted):
            raise ValueError(
                f'{name}.{method} takes ({", ".join(taken)}), and with needs={loss.needs} it must '
                f'take ({", ".join(wanted)})'
            )
