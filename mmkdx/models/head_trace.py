"""Finds a model's head: all that follows its last spatial features."""

from __future__ import annotations

import inspect
from collections import Counter
from functools import cache, cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from mmkdx.functional import tokens_to_map
from mmkdx.models.families import ModelFacts, forward_tensor
from mmkdx.models.flow import Flow, state_of
from mmkdx.models.intercept import Tap, intercept
from mmkdx.models.poolings import mean_layout
from mmkdx.models.traced_head import Call, Program, Slot, TracedHead, Weight, is_reference

#: Operations that may be between a module and the pooling. They only set features to zero or move
#: them, so the maps before and after them are the same.
_KEEPING = {'relu', 'permute', 'transpose', 'contiguous', 'dropout', '__getitem__', '__get__'}
#: These may be there, too, if positions keep their order.
_RESHAPING = {'flatten', 'reshape', 'view'}
#: These take a part of a tensor, such as a class token.
_TAKING = {'__getitem__', 'split', 'chunk', 'narrow', 'select', 'index_select', 'unbind'}
#: If they follow features that are not pooled first, there is a class token or attention pooling.
_ATTENTION = (
    F.softmax,
    torch.softmax,
    Tensor.softmax,
    F.scaled_dot_product_attention,
    F.multi_head_attention_forward,
)


def embedding(flow: Flow) -> Tap:
    """The tap of the vector that enters the classifier, or of the output of a model without one."""
    if flow.facts.num_classes == 0:
        return Tap(flow.facts.logits_path)
    try:
        return Tap(flow.classifier, side='in')
    except ValueError as error:
        raise ValueError(f"{error}; if it returns an embedding, use the tap 'logits'") from None


def linear_head(flow: Flow) -> str | None:
    """The path of the linear layer if nothing else follows global average pooling, else None."""
    try:
        path, positions = flow.classifier, flow.reading(flow.features).value.shape[2:]
    except ValueError:
        return None
    alone = flow.pooling.leaving == flow.reading(Tap(path, side='in')).state
    last = flow.reading(Tap(path)).state == state_of(flow.logits)
    plain = type(flow.model.get_submodule(path)).forward is nn.Linear.forward
    # A convolution of the whole map, as in timm's VGG, acts as a linear layer before it
    whole = positions.numel() == 1 and any(
        isinstance(each.module, nn.Conv2d)
        and each.side == 'in'
        and each.module.kernel_size == tuple(each.value.shape[2:]) != (1, 1)
        for each in flow.passings
    )
    return path if alone and last and plain and not whole else None


class Trace(TorchFunctionMode):
    """Records each call of a torch function in one forward of a model, for one image.

    Args:
        facts (ModelFacts): The model, in eval mode.
        image (Tensor): A preprocessed image (1, C, H, W); in ``fake_forward`` it has no content.
    """

    def __init__(self, facts: ModelFacts, image: Tensor) -> None:
        super().__init__()
        self.facts, self.image = facts, tuple(image.shape[2:])
        self.calls: list[Call] = []
        #: The index of the call that made each slot; the image has none.
        self.made: dict[Slot, int] = {}
        self.shapes: dict[Slot | Weight, tuple[int, ...]] = {}
        #: Poolings over all positions: input, output, layout.
        self.poolings: list[tuple[Slot, Slot, str]] = []
        #: The values that passed the modules, in the order of the forward.
        self.passings: list[tuple[Tap, Slot]] = []
        named = [*facts.model.named_parameters(), *facts.model.named_buffers()]
        self._weights = {id(tensor): Weight(path) for path, tensor in named}
        self.shapes.update({Weight(path): tuple(tensor.shape) for path, tensor in named})
        # By id: the slot, the memory's version then, and the tensor, kept so that its id is unique
        self._known: dict[int, tuple[Slot, int, Tensor]] = {}
        self._passed: Counter = Counter()
        readers = {
            Tap(path, side=side, item=None): partial(self._pass, path, side)
            for path, _ in facts.model.named_modules()
            for side in ('in', 'out')
        }
        with intercept(facts.model, readers), torch.no_grad(), self:
            forward_tensor(facts.model, image)
            self.logits = self._reference(facts.logits_in(self._output))

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        references = tree_map_only(Tensor, self._reference, (args, kwargs))
        output = func(*args, **kwargs)
        made = output if isinstance(output, (tuple, list)) else [output]
        if made and all(isinstance(each, Tensor) for each in made):
            slots, call = tuple(map(self._new, made)), _out_of_place(func, *references)
            if call is None:
                return output
            self.made.update(dict.fromkeys(slots, len(self.calls)))
            self.calls.append(Call(*call, slots))
            layout = mean_layout(func, args, kwargs, output)
            if layout:
                self.poolings.append(
                    (tree_leaves(references, is_leaf=is_reference)[0], slots[0], layout)
                )
        return output

    def program(self, source: Slot, target: Slot, reshape: bool = False) -> Program | None:
        """The calls from a source to a target; None if these need more, such as the image."""
        needed, pending, seen = set(), [target], set()
        while pending:
            slot = pending.pop()
            if slot in seen:
                continue
            seen.add(slot)
            if slot == source:
                continue
            if slot not in self.made:
                return None
            needed.add(self.made[slot])
            pending += self.calls[self.made[slot]].needs()
        calls = [self.calls[i] for i in sorted(needed)]
        shape = self.shapes[source] if reshape else ()
        return Program(calls, source, target, shape) if source in seen else None

    @cached_property
    def head(self) -> TracedHead:
        """The head after the last spatial features.

        Raises:
            ValueError: If there is none. The message continues a sentence about the model.
        """
        pooled = self._pooled_head()
        # A map of one position may come from a convolution in place of a first linear layer
        found = pooled if pooled and max(pooled.size) > 1 else self._other_head() or pooled
        if found is None:
            raise ValueError(
                'classifies by a class token, pools by attention or joins several maps, so no features '
                'have class maps; use the explainer GradCAM, GradientRollout or LeGrad, or a layer and '
                "'logits' in place of 'cam'"
            )
        return found

    def _pooled_head(self) -> TracedHead | None:
        def positions(pooling: tuple[Slot, Slot, str]) -> float:
            features, pooled, _ = (self.shapes.get(each) for each in pooling)
            return torch.Size(features).numel() / torch.Size(pooled).numel()

        # A map of one position may be pooled again
        for features, pooled, layout in sorted(self.poolings[::-1], key=positions, reverse=True):
            head = self.program(pooled, self.logits, reshape=True)
            if head is None:
                continue
            found = ((tap, self.program(slot, features)) for tap, slot in reversed(self.passings))
            tap, made = next((each for each in found if each[1]), (None, None))
            alone = layout in ('tokens', 'ncl') and positions((features, pooled, layout)) == 1
            if tap and self._keeps(made, layout) and not (alone and self._is_taken(features)):
                return self._traced(tap, made, layout, head, True)
        return None

    def _other_head(self) -> TracedHead | None:
        for tap, slot in reversed(self.passings):
            shape = self.shapes[slot]
            if len(shape) != 4 or shape[0] != 1 or min(shape[2:]) == 1:
                continue
            head = self.program(slot, self.logits)
            if head is None:
                continue
            if any(self._mixes(call) for call in head.calls):
                return None
            return self._traced(tap, Program([], slot, slot, ()), 'nchw', head, False)
        return None

    def _keeps(self, features: Program, layout: str) -> bool:
        """Whether the maps of features are also the maps of their source, for one image."""
        names = {getattr(call.func, '__name__', '') for call in features.calls}
        shape = self.shapes[features.source]
        if not names <= _KEEPING | _RESHAPING or shape[0] != 1:
            return False
        if not names & _RESHAPING:
            return len(shape) == (4 if layout in ('nchw', 'nhwc') else 3)
        return layout in ('tokens', 'ncl') and self._in_order(features, layout == 'ncl')

    def _in_order(self, features: Program, transposed: bool) -> bool:
        """Whether tokens keep the order of their source, found by numbering the source's tokens."""
        shape = self.shapes[features.source]
        for dim in (1, 2) if len(shape) == 3 else ():
            with unset_fake_temporarily():
                numbers = torch.arange(1.0, shape[dim] + 1)
                value = numbers.reshape(1, -1, 1) if dim == 1 else numbers
                found = features.run(self.facts.model, value.expand(shape))[0]
                found = found.mT if transposed else found
                if len(found) == len(numbers) and bool((found == numbers[:, None]).all()):
                    return True
        return False

    def _is_taken(self, slot: Slot) -> bool:
        """Whether one token was taken out of several, as a class token is."""
        while slot in self.made:
            call = self.calls[self.made[slot]]
            needs = call.needs()
            sizes = [torch.Size(self.shapes[each]).numel() for each in (slot, *needs)]
            if len(needs) != 1 or sizes[0] != sizes[1]:
                return getattr(call.func, '__name__', '') in _TAKING
            (slot,) = needs
        return False

    def _mixes(self, call: Call) -> bool:
        """Whether a call mixes positions, as heads do not: attention, or a convolution of a map."""
        if call.func is not F.conv2d:
            return call.func in _ATTENTION
        # A kernel as large as the map is a linear layer
        leaves = tree_leaves((call.args, call.kwargs), is_leaf=is_reference)
        image, kernel = (self.shapes[each][2:] for each in leaves[:2])
        whole = image == kernel and max(self.shapes[call.outputs[0]][2:]) == 1
        return max(kernel) > 1 and not whole

    def _traced(self, tap: Tap, features: Program, layout: str, head: Program, pooled: bool) -> Any:
        # A tap without a number means the last call
        last = self._passed[tap.path, tap.side] - 1
        tap = Tap(tap.path, None if tap.call == last else tap.call, tap.side, tap.item)
        shape, classes = self.shapes[features.target], self.shapes[self.logits][1]
        size = dict(nchw=shape[2:], nhwc=shape[1:3], tokens=shape[1:2], ncl=shape[2:])[layout]
        if len(size) == 1 and not _is_grid(size[0], self.image):
            raise ValueError(
                f'pools {size[0]} tokens, which form no grid with the proportions of the image, so '
                'they have no class maps; use the explainer GradCAM, or a layer and '
                "'logits' in place of 'cam'"
            )
        return TracedHead(tap, features, layout, head, pooled, self.image, classes, size)

    def _reference(self, tensor: Tensor) -> Slot | Weight:
        if id(tensor) in self._weights:
            return self._weights[id(tensor)]
        slot, version, _ = self._known.get(id(tensor), (None, None, None))
        # If another view has overwritten its memory, it is no longer the recorded value
        return slot if slot and version == _version(tensor) else self._new(tensor)

    def _new(self, tensor: Tensor) -> Slot:
        slot = Slot(len(self.shapes))
        self.shapes[slot] = tuple(tensor.shape)
        self._known[id(tensor)] = slot, _version(tensor), tensor
        return slot

    def _pass(self, path: str, side: str, value: Any) -> None:
        call = self._passed[path, side]
        self._passed[path, side] += 1
        if path == self.facts.logits_path and side == 'out':
            self._output = value
        elements = value if isinstance(value, (tuple, list)) else [value]
        for i, each in enumerate(elements):
            if isinstance(each, Tensor):
                tap = Tap(path, call, side, -1 if each is value else i)
                slot = self._reference(each)
                if isinstance(slot, Slot):
                    self.passings.append((tap, slot))


def _is_grid(tokens: int, image: tuple[int, int]) -> bool:
    """Whether the number of tokens fits a grid with the proportions of an image."""
    try:
        # tokens_to_map leaves out tokens in front, such as a class token
        return tokens_to_map(torch.empty(1, tokens, 1), image).numel() == tokens
    except ValueError:
        return False


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _out_of_place(func: Any, args: tuple, kwargs: dict) -> tuple[Any, tuple, dict] | None:
    """The function that does not write into its input, and its arguments; None if there is none."""
    func, signature = _without_writing(func)
    if signature is None:
        return (func, args, kwargs) if func else None
    return func, (), {**signature.bind(*args, **kwargs).arguments, 'inplace': False}


@cache
def _without_writing(func: Any) -> tuple[Any, inspect.Signature | None]:
    """The function that does not write into its input; its signature if it has ``inplace``."""
    if inspect.isfunction(func):
        # Some methods of tensors are functions that wrap a built-in one, which has no signature
        signature = inspect.signature(func, follow_wrapped=False)
        if 'inplace' in signature.parameters:
            return func, signature
    name = getattr(func, '__name__', '')
    owner = Tensor if getattr(Tensor, name, None) is func else torch
    if name.startswith('__'):
        return (getattr(Tensor, f'__{name[3:]}') if name in _AUGMENTED else func), None
    return (getattr(owner, name[:-1], None) if name.endswith('_') else func), None


_AUGMENTED = {f'__i{name}__' for name in ('add', 'sub', 'mul', 'truediv', 'pow')}
