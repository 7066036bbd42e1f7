"""Networks by name: ``timm::…``, ``torchvision::…``, ``hf::…``, and callables by path."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmpretrain.datasets.categories import IMAGENET_CATEGORIES
from torch import nn

from mmkdx.data_configs import check_named_config

#: A function or class by its path, such as ``my_package.my_module:build``.
_CALLABLE = re.compile(r'[A-Za-z_][\w.]*:[A-Za-z_]\w*')

Builder = Callable[..., nn.Module]


def names_network(spec: Any) -> bool:
    """Whether a spec is the name of a network of another library, or the path of a callable."""
    if not isinstance(spec, str):
        return False
    return spec.partition('::')[0] in LIBRARIES if '::' in spec else bool(_CALLABLE.fullmatch(spec))


def has_own_weights(spec: Any) -> bool:
    """Whether a model dict builds a network with its weights, so that it needs no checkpoint."""
    if isinstance(spec, str):
        return names_network(spec) and '::' not in spec
    if not isinstance(spec, dict) or not names_network(spec.get('type')):
        return False
    return has_own_weights(spec['type']) or bool(spec.get('pretrained') or spec.get('weights'))


def find_network(name: str, key: str) -> Builder:
    """Finds the function that builds a network, without building it.

    Args:
        name (str): ``timm::NAME``, ``torchvision::NAME`` (a classifier), ``hf::NAME``, or
            ``module:callable``, which returns a module. A NAME of ``hf`` is a type of models
            (``resnet``), the class of a model or config, a folder, a config file or a repository of
            the hub.
        key (str): The config key that error messages name.

    Returns:
        Callable: It takes the library's own keyword arguments. ``num_classes`` and ``pretrained`` mean
        the same in all three libraries.

    Raises:
        ValueError: If the library is not installed, or there is no such library, name or callable.
            The returned function raises it if arguments do not fit or no module is returned.
    """
    library, mark, rest = name.partition('::')
    build = LIBRARIES[library](rest, f'{key}: {name!r}') if mark else _find_callable(name, key)
    return partial(_build, build, f'{key}: {name!r}')


def check_library(name: str, key: str) -> None:
    """Refuses ``LIBRARY::NAME`` if LIBRARY is no library of networks and no package of configs.

    Raises:
        ValueError: If it is neither; the message lists similar names.
    """
    library, mark, _ = name.partition('::')
    if mark and library.isidentifier() and find_spec(library) is None:
        raise ValueError(
            f'{key}: there is no library {library!r} of networks and no package of this name with '
            f'configs; the libraries are {", ".join(LIBRARIES)}{near_names(library, LIBRARIES)}'
        )


def _build(build: Builder, what: str, **arguments: Any) -> nn.Module:
    try:
        network = build(**arguments)
    except (TypeError, ValueError, KeyError, OSError, AssertionError) as error:
        reason = str(error).strip().partition('\n')[0]
        raise ValueError(f'{what} cannot be built with {arguments}: {reason}') from error
    if not isinstance(network, nn.Module):
        raise ValueError(f'{what} returns a {type(network).__name__}; it must return an nn.Module')
    return network


def _timm(name: str, what: str) -> Builder:
    timm = _library('timm', what)
    # A colon follows a source of models, as in 'hf-hub:'
    if ':' not in name and not timm.is_model(name):
        raise ValueError(f'{what}: timm has no such model{near_names(name, timm.list_models())}')

    def build(pretrained: bool = False, **arguments: Any) -> nn.Module:
        network = timm.create_model(name, pretrained=pretrained, **arguments)
        known = getattr(network, 'pretrained_cfg', None) or {}
        # A file of the user may have other classes
        given = {'checkpoint_path', 'pretrained_cfg', 'pretrained_cfg_overlay'} & arguments.keys()
        if pretrained and not given and 'in1k' in (known.get('tag') or ''):
            network.class_names = IMAGENET_CATEGORIES  # ``describe`` reads them
        return network

    return build


def _torchvision(name: str, what: str) -> Builder:
    models = _library('torchvision', what).models
    known = models.list_models(module=models)
    if name not in known:
        raise ValueError(f'{what}: torchvision has no such classifier{near_names(name, known)}')

    def build(pretrained: bool = False, weights: Any = None, **arguments: Any) -> nn.Module:
        weights = 'DEFAULT' if pretrained and weights is None else weights
        if name == 'inception_v3' or (name == 'googlenet' and weights is None):
            # In training they would return a second classifier's logits, too
            arguments.setdefault('aux_logits', False)
            arguments.setdefault('init_weights', True)
        if weights is None:
            return models.get_model(name, **arguments)
        weights = models.get_model_weights(name)[str(weights).rpartition('.')[2]]
        classes = arguments.pop('num_classes', None)
        network = models.get_model(name, weights=weights, **arguments)
        network.weights = weights  # ``describe`` reads its normalisation and its classes
        if classes not in (None, len(weights.meta['categories'])):
            # As timm does it: a new classifier for other classes
            linear = [path for path, m in network.named_modules() if isinstance(m, nn.Linear)]
            if not linear:
                raise ValueError('its classifier is no linear layer, so num_classes cannot change')
            old = network.get_submodule(linear[-1])
            new = nn.Linear(old.in_features, classes, old.bias is not None)
            network.set_submodule(linear[-1], new)
        return network

    return build


def _huggingface(name: str, what: str) -> Builder:
    hf = _library('transformers', what)
    kind = getattr(hf, name, None) if name.isidentifier() else None
    is_class = isinstance(kind, type)
    if not is_class and name not in hf.CONFIG_MAPPING and not (Path(name).exists() or '/' in name):
        known = [*hf.CONFIG_MAPPING, *(each for each in dir(hf) if each.endswith('Classification'))]
        raise ValueError(
            f'{what}: transformers has no such model, config or class, and there is no such '
            f'folder{near_names(name, known)}'
        )
    auto = hf.AutoModelForImageClassification

    def from_config(config: Any) -> nn.Module:
        # If a type has several classifiers, as DeiT has, transformers iterates over these
        config.architectures = getattr(config, 'architectures', None) or []
        return auto.from_config(config)

    def build(
        pretrained: bool = False, num_classes: int | None = None, **arguments: Any
    ) -> nn.Module:
        if pretrained and (is_class or name in hf.CONFIG_MAPPING):
            raise ValueError(
                'a class or type has no weights of its own; name a folder or a repository of the hub'
            )
        if num_classes is not None:
            arguments['num_labels'] = num_classes
        if is_class and issubclass(kind, hf.PreTrainedModel):
            return kind(kind.config_class(**arguments))
        if is_class:
            return from_config(kind(**arguments))
        if name in hf.CONFIG_MAPPING:
            return from_config(hf.AutoConfig.for_model(name, **arguments))
        if pretrained:
            other = num_classes is not None  # a new classifier for other classes
            network = auto.from_pretrained(name, ignore_mismatched_sizes=other, **arguments)
        else:
            network = from_config(hf.AutoConfig.from_pretrained(name, **arguments))
        if not Path(name).exists() or Path(name, 'preprocessor_config.json').is_file():
            network.image_processor = hf.AutoImageProcessor.from_pretrained(name)
        return network

    return build


#: The functions that find a network, by the library's name in configs.
LIBRARIES: dict[str, Callable[[str, str], Builder]] = {
    'timm': _timm,
    'torchvision': _torchvision,
    'hf': _huggingface,
}


def _find_callable(name: str, key: str) -> Builder:
    check_named_config(name, key)
    path, _, attribute = name.partition(':')
    try:
        module = import_module(path)
    except ImportError as error:
        raise ValueError(
            f'{key}: {name!r} is the path of a callable (module:callable), and the module cannot be '
            f'imported: {error}'
        ) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        names = [each for each in vars(module) if callable(getattr(module, each))]
        raise ValueError(
            f'{key}: module {path!r} has no callable {attribute!r}{near_names(attribute, names)}'
        )
    return found


def _library(name: str, what: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ValueError(
            f'{what} needs {name}, which is not installed: pip install {name}, or install mmkdx with '
            "its extra 'libraries'"
        ) from error


def near_names(name: str, known: Iterable[str]) -> str:
    """The end of a sentence: the known names that are similar to a name."""
    near = get_close_matches(name, list(known), 4, 0.5)
    return f'; near names are {", ".join(near)}' if near else ''
