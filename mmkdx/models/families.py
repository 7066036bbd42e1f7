"""Describes models: where their logits are, what these mean, and the images that models expect."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from mmengine.model import BaseAveragedModel, BaseModel, BaseTTAModel, is_model_wrapper
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.optim.swa_utils import AveragedModel
from torch.utils.weak import WeakIdKeyDictionary

from mmkdx.arguments import number, one_of, positive, size
from mmkdx.functional import full_precision


@dataclass(frozen=True)
class ImageFormat:
    """The format of a model's input images; None means unknown.

    Args:
        mean (tuple[float, ...], optional): The mean of each channel, in 0..255.
        std (tuple[float, ...], optional): The standard deviation of each channel, in 0..255.
        order (str, optional): 'rgb' or 'bgr'.
        size (tuple[int, int], optional): Height and width.

    Raises:
        ValueError: If a number is not finite, ``std`` is not above 0 or another value is not
            allowed.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    order: str | None = None
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for value in self.mean or ():
            number('mean', value)
        for value in self.std or ():
            positive('std', value)
        one_of('order', self.order, (None, 'rgb', 'bgr'))
        if self.size is not None:
            size('size', self.size)


@dataclass(frozen=True)
class ModelFacts:
    """The facts about a classifier.

    A plugin overrides ``logits_in`` if its model returns logits in another form.

    Args:
        family (str): 'mmpretrain', 'timm', 'huggingface', 'torchvision', 'torch' or a plugin's.
        model (nn.Module): The model without wrappers.
        logits_path (str): The path of the module whose output holds the logits; '' is the model.
        activation (str): What turns logits into probabilities, 'softmax' or 'sigmoid'.
        images (ImageFormat): The format of its input images.
        classes (tuple[str, ...], optional): The names of its classes. Defaults to None (unknown).
        num_classes (int, optional): The number of its logits; 0 for a network that returns an
            embedding. Defaults to None (unknown).
    """

    family: str
    model: nn.Module
    logits_path: str = ''
    activation: str = 'softmax'
    images: ImageFormat = field(default_factory=ImageFormat)
    classes: tuple[str, ...] | None = None
    num_classes: int | None = None

    @property
    def name(self) -> str:
        """The class of the network itself, not of a classifier around it."""
        parts = (getattr(self.model, part, None) for part in ('backbone', 'model'))
        inner = next((each for each in parts if isinstance(each, nn.Module)), self.model)
        return type(inner).__name__

    def logits(self, inputs: Tensor) -> Tensor:
        """The logits (N, K) of preprocessed images (N, C, H, W), in the model's present mode."""
        # A model may overwrite its input, which torch refuses for a leaf
        return self.logits_in(forward_tensor(self.model, inputs.clone()))

    def logits_in(self, output: Any) -> Tensor:
        """The logits (N, K) in what the module at ``logits_path`` returned.

        If a head yields a tensor for each branch (Conformer), the logits are their sum. For a
        network without classes they are the embedding.

        Raises:
            ValueError: If the output holds no logits.
        """
        logits = output['logits'] if isinstance(output, Mapping) and 'logits' in output else output
        for name in ('logits', 'image_embeds', 'pooler_output'):  # Hugging Face's
            logits = getattr(logits, name, logits)
        if isinstance(logits, (tuple, list)) and all(isinstance(each, Tensor) for each in logits):
            if len({each.shape for each in logits}) == 1:
                logits = sum(logits)
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            kind = type(logits).__name__
            if isinstance(logits, Tensor):
                kind = f'Tensor of shape {tuple(logits.shape)}'
            raise ValueError(
                f'{type(self.model).__name__} returns a {kind}, and a classifier returns '
                'logits of shape (N, K); for a model that returns them in another form, see '
                'mmkdx.models.register_family'
            )
        return logits

    def probabilities(self, logits: Tensor) -> Tensor:
        """The probabilities (N, K) of logits (N, K), in fp32; a single logit gets the sigmoid."""
        logits = full_precision(logits)
        sigmoid = self.activation == 'sigmoid' or logits.shape[1] == 1
        return logits.sigmoid() if sigmoid else logits.softmax(1)


#: The families, in the order of their registration.
_families: list[tuple[Callable[[nn.Module], bool], Callable[[nn.Module], ModelFacts]]] = []


def register_family(matches: Callable[[nn.Module], bool]) -> Callable:
    """A decorator for a function that takes a model of a family and returns its ``ModelFacts``.

    ``matches`` says whether a model without wrappers is of the family. The family that is
    registered last is asked first.
    """

    def register(facts: Callable[[nn.Module], ModelFacts]) -> Callable[[nn.Module], ModelFacts]:
        _families.append((matches, facts))
        return facts

    return register


def describe(model: nn.Module) -> ModelFacts:
    """Describes a model without running it.

    Wrappers are removed, see ``unwrap``, and a ``Distiller`` is described as its student. Each call
    reads the facts again, so a head may be replaced.

    Raises:
        ValueError: If the model is a ScriptModule, or its preprocessor divides by zero.
    """
    model = unwrap(model)
    if isinstance(getattr(model, 'student', None), nn.Module) and hasattr(model, 'teachers'):
        return describe(model.student)
    return next(facts(model) for matches, facts in reversed(_families) if matches(model))


def unwrap(model: nn.Module) -> nn.Module:
    """Removes the wrappers of a model: DDP, ``DataParallel``, EMA, TTA and ``torch.compile``."""
    averaged = (BaseAveragedModel, AveragedModel, BaseTTAModel)
    while True:
        if isinstance(model, torch.jit.ScriptModule):
            raise ValueError(
                'the model is a ScriptModule, whose layers cannot be read; pass the Python module '
                'that it was made from'
            )
        # Testing for the class of torch.compile's wrapper would need a slow import
        if isinstance(inner := getattr(model, '_orig_mod', None), nn.Module):
            model = inner
        elif isinstance(model, averaged) or is_model_wrapper(model):
            model = model.module
        else:
            return model


def forward_tensor(model: nn.Module, inputs: Tensor) -> Any:
    """The plain forward of a model: ``mode='tensor'`` for models with mmengine's interface."""
    return model(inputs, mode='tensor') if isinstance(model, BaseModel) else model(inputs)


@register_family(lambda model: True)
def _torch(model: nn.Module) -> ModelFacts:
    width = _last_width(model)
    return ModelFacts('torch', model, activation=_activation(width), num_classes=width)


@register_family(lambda model: _is_from(model, 'torchvision.models'))
def _torchvision(model: nn.Module) -> ModelFacts:
    weights = getattr(model, 'weights', None)  # the loaded weights, if they were noted there
    known = hasattr(weights, 'transforms')
    mean, std = _moments(weights) if known else _agreed_moments(type(model).__module__)
    images = _format(model, mean, std, 255, getattr(model, 'image_size', None))
    width = getattr(model, 'num_classes', None) or _last_width(model)
    classes = weights.meta.get('categories') if known else None
    # A new classifier has other classes
    classes = tuple(classes) if classes and len(classes) == width else None
    return ModelFacts('torchvision', model, '', _activation(width), images, classes, width)


@register_family(lambda model: _is_from(model, 'timm'))
def _timm(model: nn.Module) -> ModelFacts:
    known = getattr(model, 'pretrained_cfg', None) or getattr(model, 'default_cfg', None) or {}
    known = known if isinstance(known, Mapping) else vars(known)
    # Only the first layer of a network tells if it was made for another size
    own = getattr(getattr(model, 'patch_embed', None), 'img_size', None)
    sides = own or (known.get('input_size') or (None,))[1:] or None
    images = _format(model, known.get('mean'), known.get('std'), 255, sides)
    width = getattr(model, 'num_classes', None)
    # A new classifier has other classes
    classes = getattr(model, 'class_names', None) or _label_names(known)
    classes = classes if len(classes) == width else None
    return ModelFacts('timm', model, '', _activation(width), images, classes, width)


@register_family(lambda model: _is_from(model, 'transformers'))
def _huggingface(model: nn.Module) -> ModelFacts:
    config = getattr(model, 'config', None)
    multi = getattr(config, 'problem_type', None) == 'multi_label_classification'
    width = getattr(config, 'num_labels', None)
    kind = type(model)
    if kind.__module__.startswith('transformers.') and 'Classification' not in kind.__name__:
        width = 0  # the library's own networks without a classifier
    activation = 'sigmoid' if multi else _activation(width)
    names = getattr(config, 'id2label', None) or {}
    classes = tuple(str(names[key]) for key in sorted(names, key=int))
    if classes == tuple(f'LABEL_{i}' for i in range(len(classes))):  # defaults, or none
        classes = None
    images = _processor_format(model)
    return ModelFacts('huggingface', model, '', activation, images, classes, width)


@register_family(lambda model: isinstance(model, BaseModel))
def _mmpretrain(model: nn.Module) -> ModelFacts:
    # mmpretrain's heads yield the logits when called, in every mode; its wrappers of timm and
    # Hugging Face keep the whole network in `model`
    head, inner = getattr(model, 'head', None), getattr(model, 'model', None)
    images, activation, classes, path = preprocessed(model), None, None, ''
    # mmpretrain's classifiers say whether they have a head; other models may return logits, too
    count = 0 if getattr(model, 'with_head', None) is False else None
    if isinstance(head, nn.Module):
        path = 'head'
        sigmoid = any(each.__name__ == 'MultiLabelClsHead' for each in type(head).__mro__)
        width = getattr(head, 'num_classes', None) or _last_width(head)
        activation = 'sigmoid' if sigmoid else _activation(width)
    elif isinstance(inner, nn.Module):
        path = 'model'
        facts = describe(inner)
        inner_known = images.mean is None and facts.images.mean is not None
        images = facts.images if inner_known else replace(images, size=facts.images.size)
        activation, classes, count = facts.activation, facts.classes, facts.num_classes
    meta = getattr(model, '_dataset_meta', None) or {}  # of mmpretrain.get_model
    classes = meta.get('classes') or classes
    activation = activation or _activation(_last_width(model))
    return ModelFacts(
        'mmpretrain', model, path, activation, images, classes and tuple(classes), count
    )


def _label_names(known: Mapping) -> tuple[str, ...]:
    """The names of the classes in a configuration of timm; descriptions if it has them."""
    names = known.get('label_names') or ()
    if isinstance(names, Mapping):
        names = [names[key] for key in sorted(names, key=int)]
    descriptions = known.get('label_descriptions') or {}
    return tuple(str(descriptions.get(name, name)) for name in names)


def preprocessed(model: nn.Module) -> ImageFormat:
    """The format of the images that the data preprocessor of an mmengine model yields.

    Without a mean it does not normalise images, and without ``to_rgb`` it keeps their channel
    order.
    """
    own = getattr(model, 'data_preprocessor', None)
    order = 'rgb' if getattr(own, 'to_rgb', False) else None
    sides = getattr(getattr(model, 'backbone', None), 'img_size', None)
    mean, std = (_numbers(getattr(own, name, None)) for name in ('mean', 'std'))
    try:
        return ImageFormat(mean, std, order, _sides(sides))
    except ValueError as error:
        raise ValueError(f'data_preprocessor.{error}') from None


def _processor_format(model: nn.Module) -> ImageFormat:
    """The format that Hugging Face's processor makes, if the model has it as an attribute."""
    sides = getattr(getattr(model, 'config', None), 'image_size', None)
    processor = getattr(model, 'image_processor', None) or getattr(model, 'processor', None)
    processor = getattr(processor, 'image_processor', processor)
    mean, std = getattr(processor, 'image_mean', None), getattr(processor, 'image_std', None)
    if not getattr(processor, 'do_normalize', True):
        mean, std = [0.0] * 3, [1.0] * 3
    rescaled = getattr(processor, 'do_rescale', True)
    scale = 1 / getattr(processor, 'rescale_factor', 1 / 255) if rescaled else 1.0
    return _format(model, mean, std, scale, sides)


def _format(model: nn.Module, mean: Any, std: Any, scale: float, sides: Any) -> ImageFormat:
    """The format of a model for RGB images; mean and std are for values in 0..255 / ``scale``."""
    if mean is None or std is None or image_channels(model, len(mean)) != len(mean):
        return ImageFormat(order='rgb', size=_sides(sides))
    mean, std = (tuple(float(value) * scale for value in values) for values in (mean, std))
    return ImageFormat(mean, std, 'rgb', _sides(sides))


def image_channels(model: nn.Module, default: int) -> int:
    """The number of channels of a model's images, as its first convolution takes them."""
    convolutions = (each for each in model.modules() if isinstance(each, nn.Conv2d))
    return next((each.in_channels for each in convolutions), default)


def _sides(value: Any) -> tuple[int, int] | None:
    if isinstance(value, int):
        return value, value
    return tuple(int(side) for side in value) if value and len(value) == 2 else None


def _is_from(model: nn.Module, package: str) -> bool:
    """Whether a package, which is not imported, defines the model's class or one of its bases."""
    return any(f'{base.__module__}.'.startswith(f'{package}.') for base in type(model).__mro__)


def _activation(width: int | None) -> str:
    """'sigmoid' for a network with one logit, else 'softmax'."""
    return 'sigmoid' if width == 1 else 'softmax'


def _last_width(model: nn.Module) -> int | None:
    widths = [each.out_features for each in model.modules() if type(each) is nn.Linear]
    return widths[-1] if widths else None


#: The values of preprocessors' buffers, so that a second call does not wait for a GPU.
_read = WeakIdKeyDictionary()


def _numbers(buffer: Tensor | None) -> tuple[float, ...] | None:
    if buffer is None or buffer.is_meta:
        return None
    version, values = _read.get(buffer, (None, None))
    if version != buffer._version:
        with unset_fake_temporarily():
            values = tuple(buffer.detach().flatten().tolist())
        _read[buffer] = buffer._version, values
    return values


def _moments(weights: Any) -> tuple[Sequence[float] | None, Sequence[float] | None]:
    transforms = weights.transforms()
    return getattr(transforms, 'mean', None), getattr(transforms, 'std', None)


@lru_cache
def _agreed_moments(module: str) -> tuple[Sequence[float] | None, Sequence[float] | None]:
    """The mean and std on which all weights of a module of torchvision agree."""
    from torchvision.models import WeightsEnum

    found = [
        _moments(weights)
        for kind in vars(sys.modules[module]).values()
        if isinstance(kind, type) and issubclass(kind, WeightsEnum)
        for weights in kind
    ]
    return found[0] if found and all(each == found[0] for each in found) else (None, None)
