"""Compares the names of a teacher's classes with the data set's, and reorders the classes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.visualization import Visualizer
from torch import Tensor, nn

from mmkdx.arguments import one_of
from mmkdx.models.families import describe
from mmkdx.models.flow import Flow, find_flow, state_of
from mmkdx.models.heads import PrototypeHead
from mmkdx.models.intercept import Tap
from mmkdx.models.libraries import near_names
from mmkdx.models.taps import TapSet


def classes_in(checkpoint: dict) -> tuple[str, ...] | None:
    """The names of the classes that a checkpoint of mmengine, or of mmcls, was trained on."""
    meta = checkpoint.get('meta') or {}
    names = (meta.get('dataset_meta') or {}).get('classes') or meta.get('CLASSES')
    return tuple(map(str, names)) if names else None


class ClassNames:
    """Compares a teacher's class names with the data set's; ``classes`` is as for ``Teacher``."""

    def __init__(self, classes: str | Sequence[str] | Mapping | None) -> None:
        self.map = _checked_map(classes) if isinstance(classes, Mapping) else {}
        listed = isinstance(classes, (list, tuple))
        if not listed and not self.map:
            one_of('teacher.classes', classes, (None, 'match'))
        #: The teacher's names, where they are given.
        self.given = tuple(map(str, classes)) if listed else None
        self.by_name = classes is not None
        #: The data set's names, if they are given; else ``settle`` takes the run's or the
        #: student's.
        self.wanted: Sequence[str] | None = None
        self._student: tuple[nn.Module, ...] = ()
        self._compared: Sequence[str] | None = None
        self._earlier = _dataset_meta()  # left by a run before the teacher was built

    def meet(self, student: nn.Module) -> None:
        """Stores the student; its class names count if no others are known."""
        self._student = (student,)  # a tuple is not a sub-module

    @contextmanager
    def foreseen(self, model: nn.Module, inputs: Tensor) -> Iterator[None]:
        """A context in which a model that needs mapping has as many classes as the student.

        ``inputs`` are fake images (N, C, H, W) for the student.
        """
        if not self.by_name or self._compared:
            yield
            return
        count = Flow(describe(self._student[0]), inputs).logits.shape[1]
        merged = any(len(group) > 1 for group in self.map.values())
        undo = reorder(model, [(0, 0) if merged else (0,)] * count)
        try:
            yield
        finally:
            undo()

    def settle_without_weights(
        self, model: nn.Module, names: Sequence[str], known: Sequence[str] | None
    ) -> None:
        """Maps classes as ``settle`` does, in a model that keeps its random weights.

        If the names of its classes are only in a checkpoint, its first class stands for all.
        """
        meant = [each for name in names for each in self.map.get(name, (name,))]
        if known is None and any(isinstance(each, str) for each in meant):
            groups: Any = [0] * len(names)
        else:
            groups = class_groups(names, known, self.map)
        if groups is not None:
            reorder(model, groups)
        self._compared = names

    def settle(
        self, model: nn.Module, known: Sequence[str] | None, taps: TapSet | None
    ) -> Sequence[str] | None:
        """Compares a model's class names, reorders its classes if asked, and returns their names.

        If only features are read from the model (``taps``), the order of its classes does not matter.

        Raises:
            ValueError: If the data set's names are unknown and must be matched, or names do not fit
                (see ``class_groups`` and ``compare_order``).
        """
        owner = taps.owner if taps else 'teacher'
        meta = _dataset_meta()
        names = meta.get('classes') if meta and meta is not self._earlier else None
        student = describe(self._student[0]).classes if self._student else None
        names = self.wanted or names or student
        if not names and self.by_name and not self._compared:
            raise ValueError(
                f"{owner}.classes: the data set's names are unknown, so its classes cannot be matched; "
                'call match_classes(names) of the teacher'
            )
        if not names or names == self._compared:
            return known
        # An evaluation reads no tap, but still needs the order
        if not self.by_name and taps and taps.names and not taps.explained:
            by_class = {'logits', 'cam', 'prototypes', describe(model).logits_path}
            if by_class.isdisjoint(taps.names):
                return known
        if self.by_name:
            groups = class_groups(names, known, self.map, owner)
        else:
            compare_order(names, known, owner)
            groups = None
        self._compared = names
        if groups is None:
            return known
        reorder(model, groups, owner)
        print_log(
            f"{owner}: {len(names)} classes are mapped from {sum(map(len, groups))} of the model's",
            logger='current',
        )
        return tuple(names)


def class_groups(
    names: Sequence[str],
    known: Sequence[str] | None,
    mapped: Mapping[str, Sequence[str | int]] | None = None,
    owner: str = 'teacher',
) -> list[list[int]] | None:
    """Finds the teacher's classes for each class of a data set; None if both lists are the same.

    Args:
        names (Sequence[str]): The names of the data set's classes.
        known (Sequence[str], optional): The names of the teacher's classes.
        mapped (Mapping, optional): Names or indices of the teacher's classes, by the name of the
            data set's class. All other classes have the same name in both. Defaults to None.
        owner (str): The teacher's name in messages. Defaults to 'teacher'.

    Raises:
        ValueError: If a name is unknown or stands for several classes, or a class belongs to two.
    """
    names, known, mapped = list(names), None if known is None else list(known), mapped or {}
    if names == known and not mapped:
        return None
    if unknown := [name for name in mapped if name not in names]:
        raise ValueError(
            f'{owner}.classes maps to {unknown[0]!r}, which is no class of the data set'
            f'{near_names(unknown[0], names)}'
        )

    def index(name: str, each: str | int) -> int:
        if isinstance(each, int):
            return each
        if known is None:
            raise ValueError(
                f"{owner}.classes needs the names of the teacher's classes to find {each!r}, and its "
                'checkpoint has none: set teacher.classes to the list of names, or to a map of indices'
            )
        if (count := known.count(each)) != 1:
            raise ValueError(
                f'{owner}.classes: the teacher has {"several classes" if count else "no class"} {each!r}'
                f'{near_names(each, known) if not count else ""}; map it by index, as in '
                f'teacher=dict(classes={{{name!r}: [0, 1]}})'
            )
        return known.index(each)

    groups = [[index(name, each) for each in mapped.get(name, (name,))] for name in names]
    taken: dict[int, str] = {}
    for name, group in zip(names, groups):
        for each in group:
            if each in taken:
                raise ValueError(
                    f'{owner}.classes: class {each} of the teacher belongs to {taken[each]!r} and to '
                    f'{name!r}; a class belongs to one'
                )
            taken[each] = name
    return groups


def compare_order(names: Sequence[str], known: Sequence[str] | None, owner: str) -> None:
    """Refuses a teacher that has the data set's classes in another order.

    Different or unknown names cause a warning. They count as the same classes in the same order.

    Raises:
        ValueError: If a class has another index in the teacher.
    """
    if known is None:
        _warn(
            f"the names of the {owner}'s classes are unknown, so their order is not compared with the "
            'data set; set teacher.classes to the list of names'
        )
        return
    names, known = list(names), list(known)
    if names == known:
        return
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


def reorder(
    model: nn.Module, groups: Sequence[int | Sequence[int]], owner: str = 'teacher'
) -> Callable[[], None]:
    """Replaces a model's classes in place; each new class is one old class or several together.

    The logit of several classes is the log-sum-exp of their logits. Its softmax is then the sum of
    their probabilities among the chosen classes. If a linear layer yields the logits and each new
    class is one old class, rows of the layer are chosen. Then class maps in closed form stay
    possible. Otherwise the logits are mapped at each forward.

    Args:
        model (nn.Module): The model.
        groups (Sequence): For each new class, the indices of the old classes, or the index of one.
        owner (str): The model's name in messages. Defaults to 'teacher'.

    Returns:
        Callable[[], None]: A function that undoes the change.

    Raises:
        ValueError: If the model has prototypes, lacks such a class, or has a sigmoid head and
            several classes would become one.
    """
    facts = describe(model)
    groups = [[each] if isinstance(each, int) else list(each) for each in groups]
    merged = any(len(each) > 1 for each in groups)
    if any(isinstance(each, PrototypeHead) for each in facts.model.modules()):
        raise ValueError(
            f"{owner}.classes: a teacher's prototypes belong to its classes, which cannot be put in "
            "another order; train it with the data set's order"
        )
    if merged and facts.activation == 'sigmoid':
        raise ValueError(
            f"{owner}.classes: the probabilities of the teacher's sigmoid head cannot be added; "
            'map each class to one of its classes'
        )
    linear, width = None, facts.num_classes
    try:
        flow = find_flow(facts.model)
        width = flow.logits.shape[1]
        found = facts.model.get_submodule(flow.classifier)
        if flow.reading(Tap(flow.classifier)).state == state_of(flow.logits):
            linear = found
    except Exception:  # it takes images of another size, or has no such layer
        pass
    top = max(map(max, groups))
    if width is not None and top >= width:
        raise ValueError(
            f'{owner}.classes names class {top}, and the last of the teacher is {width - 1}'
        )
    if linear is not None and not merged and type(linear).forward is nn.Linear.forward:
        return _choose_rows(linear, [each for [each] in groups])
    module = facts.model.get_submodule(facts.logits_path)
    device = next(facts.model.parameters()).device
    longest = max(map(len, groups))
    padded = [group + [-1] * (longest - len(group)) for group in groups]
    module.register_buffer('class_order', torch.tensor(padded, device=device), persistent=False)
    handle = module.register_forward_hook(_mapped)

    def undo() -> None:
        handle.remove()
        del module.class_order

    return undo


def _choose_rows(linear: nn.Linear, order: list[int]) -> Callable[[], None]:
    """Chooses rows of a linear layer in place, and returns a function that undoes it."""
    before = dict(linear._parameters), linear.out_features
    for name, old in before[0].items():
        if old is not None:
            new = old.detach()[order]
            setattr(linear, name, nn.Parameter(new, requires_grad=old.requires_grad))
    linear.out_features = len(order)

    def undo() -> None:
        linear._parameters.update(before[0])
        linear.out_features = before[1]

    return undo


def _mapped(module: nn.Module, args: tuple, output: Any) -> Any:
    """The output of the module that yields the logits, with mapped classes."""
    index = module.class_order

    def mapped(logits: Tensor) -> Tensor:
        if index.shape[1] == 1:
            return logits[:, index[:, 0]]
        members = logits[:, index.clamp(min=0)]
        return members.masked_fill(index < 0, -torch.inf).logsumexp(2)

    if isinstance(output, Tensor):
        return mapped(output)
    if isinstance(output, (tuple, list)):
        # Several branches; the logits are their sum
        return type(output)(map(mapped, output)) if index.shape[1] == 1 else mapped(sum(output))
    output.logits = mapped(output.logits)
    return output


def _checked_map(classes: Mapping) -> dict[str, list[str | int]]:
    """A map from the data set's classes to one or several of the teacher's."""
    found = {}
    for name, value in classes.items():
        group = list(value) if isinstance(value, (list, tuple, range)) else [value]
        for each in group:
            whole = isinstance(each, int) and not isinstance(each, bool) and each >= 0
            if not whole and not isinstance(each, str):
                raise ValueError(
                    f'teacher.classes[{name!r}] is {value!r}; it must be the name or the index of a '
                    "teacher's class, or a list of these"
                )
        if not group:
            raise ValueError(f'teacher.classes[{name!r}] is empty; name a class of the teacher')
        found[str(name)] = group
    return found


def _dataset_meta() -> dict | None:
    # mmengine's Runner gives the classes to the Visualizer before it initialises weights, one dict
    # for each loop. A model has no access to its Runner, and a hook would have to be in each
    # config. Without an instance there is nothing to read, and the call would leave a lock behind.
    return Visualizer.get_current_instance().dataset_meta if Visualizer._instance_dict else None


def _examples(names: Sequence[str], other: Sequence[str]) -> str:
    """The first names that are not among others."""
    return ', '.join(repr(name) for name in names if name not in other)[:200] or repr(names[0])


def _warn(text: str) -> None:
    print_log(text, logger='current', level=logging.WARNING)
