"""Comparing the names of a teacher's classes with the data set's, and putting them in its order."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.visualization import Visualizer
from torch import Tensor, nn

from mmkdx.arguments import one_of
from mmkdx.models.families import describe
from mmkdx.models.flow import find_flow, state_of
from mmkdx.models.heads import PrototypeHead
from mmkdx.models.intercept import Tap
from mmkdx.models.taps import TapSet


def classes_in(checkpoint: dict) -> tuple[str, ...] | None:
    """The names of the classes that a checkpoint of mmengine, or of mmcls, was trained on."""
    meta = checkpoint.get('meta') or {}
    names = (meta.get('dataset_meta') or {}).get('classes') or meta.get('CLASSES')
    return tuple(map(str, names)) if names else None


class ClassNames:
    """What the names of a teacher's classes are compared with; ``classes`` is as for ``Teacher``."""

    def __init__(self, classes: str | Sequence[str] | None) -> None:
        listed = isinstance(classes, (list, tuple))
        if not listed:
            one_of('teacher.classes', classes, (None, 'match'))
        #: The teacher's names, where they are given.
        self.given = tuple(map(str, classes)) if listed else None
        self.by_name = classes is not None
        #: The data set's names: those that are given, else those of the run, else the student's.
        self.wanted: Sequence[str] | None = None
        self.student: Sequence[str] | None = None
        self._compared: Sequence[str] | None = None
        self._earlier = _dataset_meta()  # of a run before the teacher was built

    def settle(
        self, model: nn.Module, known: Sequence[str] | None, taps: TapSet | None
    ) -> Sequence[str] | None:
        """Compares a model's class names, reorders its classes if asked, and returns their names.

        If only features are read from the model (``taps``), the order of its classes does not matter.

        Raises:
            ValueError: See ``class_order``; or if the data set's names are unknown and to be matched.
        """
        owner = taps.owner if taps else 'teacher'
        meta = _dataset_meta()
        names = meta.get('classes') if meta and meta is not self._earlier else None
        names = self.wanted or names or self.student
        if not names and self.by_name and not self._compared:
            raise ValueError(
                f"{owner}.classes: the data set's names are unknown, so its classes cannot be matched; "
                'call match_classes(names) of the teacher'
            )
        if not names or names == self._compared:
            return known
        # An evaluation reads no tap, and needs the order all the same
        if not self.by_name and taps and taps.names and not taps.explained:
            by_class = {'logits', 'cam', 'prototypes', describe(model).logits_path}
            if by_class.isdisjoint(taps.names):
                return known
        order = class_order(names, known, self.by_name, owner)
        self._compared = names
        if order is None:
            return known
        reorder(model, order)
        return tuple(names)


def class_order(
    names: Sequence[str], known: Sequence[str] | None, by_name: bool, owner: str = 'teacher'
) -> list[int] | None:
    """The teacher's index of each class of a data set; None where the order is the teacher's.

    Args:
        names (Sequence[str]): The names of the data set's classes.
        known (Sequence[str], optional): The names of the teacher's classes.
        by_name (bool): Whether classes are matched by name. If not, another order is an error.
        owner (str): How messages call the teacher. Defaults to 'teacher'.

    Raises:
        ValueError: If the order is another, or the names cannot be matched.
    """
    if known is None:
        if by_name:
            raise ValueError(
                f"{owner}.classes='match' needs the names of the teacher's classes, and its checkpoint "
                'has none: set teacher.classes to the list of names'
            )
        _warn(
            f"the names of the {owner}'s classes are unknown, so their order is not compared with the "
            'data set; set teacher.classes to the list of names'
        )
        return None
    names, known = list(names), list(known)
    if names == known:
        return None
    if by_name:
        if sorted(names) != sorted(known) or len(set(names)) < len(names):
            raise ValueError(
                f"{owner}.classes: the classes cannot be matched by name, as the data set's "
                f"{_examples(names, known)} and the teacher's {_examples(known, names)} are not unique "
                'names of both'
            )
        return [known.index(name) for name in names]
    places = {name: i for i, name in enumerate(known) if known.count(name) == 1}
    for i, name in enumerate(names):
        if names.count(name) == 1 and places.get(name, i) != i:
            raise ValueError(
                f'the {owner} has the classes in another order: {name!r} is class {i} of the data set '
                f"and class {places[name]} of the teacher; set teacher=dict(classes='match') to match "
                'them by name'
            )
    _warn(
        f"the {owner}'s classes have other names than the data set's, such as "
        f'{_examples(known, names)} and {_examples(names, known)}; they count as the same in this order'
    )
    return None


def reorder(model: nn.Module, order: Sequence[int]) -> None:
    """Puts the classes of a model in another order, in place.

    Where the logits are a linear layer's output, its rows change places, so that class maps in closed
    form stay possible. Else the logits do, at each forward. ``order`` has each new class's old index.

    Raises:
        ValueError: If the model has prototypes.
    """
    facts = describe(model)
    if any(isinstance(each, PrototypeHead) for each in facts.model.modules()):
        raise ValueError(
            "teacher.classes: a teacher's prototypes belong to its classes, which cannot be put in "
            "another order; train it with the data set's order"
        )
    try:
        flow = find_flow(facts.model)
        linear = facts.model.get_submodule(flow.classifier)
        whole = flow.reading(Tap(flow.classifier)).state == state_of(flow.logits)
    except Exception:  # it takes images of another size, or has no such layer
        whole = False
    if whole and type(linear).forward is nn.Linear.forward:
        with torch.no_grad():
            for parameter in linear.parameters():
                parameter.copy_(parameter[list(order)])
        return
    module = facts.model.get_submodule(facts.logits_path)
    device = next(facts.model.parameters()).device
    module.register_buffer('class_order', torch.tensor(order, device=device), persistent=False)
    module.register_forward_hook(_in_order)


def _in_order(module: nn.Module, args: tuple, output: Any) -> Any:
    if isinstance(output, Tensor):
        return output[:, module.class_order]
    if isinstance(output, (tuple, list)):
        return type(output)(each[:, module.class_order] for each in output)
    output.logits = output.logits[:, module.class_order]
    return output


def _dataset_meta() -> dict | None:
    # mmengine's Runner tells the Visualizer the classes before it initialises weights, one dict for each
    # loop. A model never gets its Runner, and a hook would have to stand in each config. Without an
    # instance there is nothing to ask, and asking would leave a lock behind.
    return Visualizer.get_current_instance().dataset_meta if Visualizer._instance_dict else None


def _examples(names: Sequence[str], other: Sequence[str]) -> str:
    """The first names that are not among others."""
    return ', '.join(repr(name) for name in names if name not in other)[:200] or repr(names[0])


def _warn(text: str) -> None:
    print_log(text, logger='current', level=logging.WARNING)
