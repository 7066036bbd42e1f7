"""The networks that a user names for a new config: their input sizes and their classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from mmengine.runner import CheckpointLoader
from mmpretrain.datasets.categories import IMAGENET_CATEGORIES
from torch import Tensor, nn

from mmkdx.datasets.imagenet_wordnet_ids import WORDNET_IDS
from mmkdx.distillation.class_order import classes_in
from mmkdx.distillation.models import build_model, load_weights, model_config
from mmkdx.models.families import ModelFacts, describe, forward_tensor
from mmkdx.models.flow import fake_images
from mmkdx.models.intercept import fake_forward
from mmkdx.models.libraries import names_network, near_names
from mmkdx.models.taps import TapSet

#: Height and width of images, in pixels, for networks that do not state their own.
USUAL_SIDE = 224
#: The least height and width of a config's images: most networks then have maps of 4 x 4.
LEAST_SIDE = 128


@dataclass
class Network:
    """A network that a user names.

    Args:
        spec (str): The name, with absolute paths.
        key (str): The option that names it, for messages.
        facts (ModelFacts): Its properties.
        num_classes (int): The number of its classes; 0 if it has no classifier.
        config (Any): The network in the form for a config, with its own classes.
    """

    spec: str
    key: str
    facts: ModelFacts
    num_classes: int
    config: Any

    @property
    def side(self) -> int:
        """The height of the images that it was made for, in pixels."""
        return (self.facts.images.size or (USUAL_SIDE,))[0]

    def with_classes(self, count: int) -> Any:
        """The network with ``count`` classes, in the form for a config.

        Raises:
            ValueError: If its number of classes cannot be set.
        """
        if names_network(self.spec):
            if '::' in self.spec:
                return dict(type=self.spec, num_classes=count)
            if self.num_classes != count:
                raise ValueError(
                    f'{self.key}: {self.spec} returns a network of {self.num_classes} classes; it must '
                    f"have the data's {count}"
                )
            return self.spec
        model = model_config(self.spec, self.key)
        for part in ('data_preprocessor', 'init_cfg', 'train_cfg'):
            model.pop(part, None)
        head = model.get('head') or {}
        if 'num_classes' not in head:
            raise ValueError(f'{self.key}: the config {self.spec} has no model.head.num_classes')
        head['num_classes'] = count
        if 'num_classes' in (head.get('loss') or {}):
            head['loss']['num_classes'] = count
        return model

    def takes(self, side: int) -> bool:
        """Whether it takes images of shape (3, side, side)."""
        model = self.facts.model
        try:
            with fake_forward(model):
                forward_tensor(model, torch.empty(2, 3, side, side))
        except Exception:  # of many types
            return False
        return True

    def has_maps(self, side: int) -> bool:
        """Whether its head has class maps."""
        model = self.facts.model
        try:
            with fake_forward(model):
                TapSet(dict(cam='at'), self.key).resolve(model, fake_images(model, (side, side)))
        except ValueError:
            return False
        return True


def absolute(path: str | Path) -> str:
    """Makes a path absolute; URLs stay as they are."""
    return str(path) if '://' in str(path) else str(Path(path).expanduser().absolute())


def user_network(name: str, key: str) -> Network:
    """Builds a network and finds out its properties.

    Args:
        name (str): ``timm::NAME``, ``torchvision::NAME``, ``hf::NAME``, ``module:callable``, a model of
            mmpretrain's zoo or the path of a config.
        key (str): The option, for messages.

    Raises:
        ValueError: If there is no such library, name or package; near names are listed.
    """
    model = build_model(name, key)
    library, _, rest = name.partition('::')
    if Path(name).is_file():
        name = absolute(name)
    elif (
        library == 'hf'
        and Path(rest).exists()
        and rest not in import_module('transformers').CONFIG_MAPPING
    ):
        name = f'hf::{absolute(rest)}'
    return _described(model, name, key, name)


def _described(model: nn.Module, name: str, key: str, config: Any) -> Network:
    facts = describe(model)
    count = facts.num_classes
    if count is None:
        with fake_forward(facts.model):
            side = facts.images.size or (USUAL_SIDE, USUAL_SIDE)
            count = facts.logits_in(forward_tensor(facts.model, fake_images(model, side))).shape[1]
    return Network(name, key, facts, count, config)


def with_weights(
    network: Network, checkpoint: str, key: str
) -> tuple[Network, Sequence[str] | None]:
    """Loads a checkpoint into a network, which gets the checkpoint's number of classes.

    Returns:
        tuple[Network, Sequence[str] | None]: The network, and the names of its classes if known.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If its tensors do not fit the network.
    """
    try:
        state = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
    except FileNotFoundError:
        raise FileNotFoundError(f'{key}: there is no file {checkpoint}') from None
    if not isinstance(state, dict):
        raise ValueError(f'{key}: {checkpoint} holds a {type(state).__name__} and no state dict')
    tensors = state.get('state_dict', state)
    for name, own in network.facts.model.state_dict().items():
        given = tensors.get(name)
        if not isinstance(given, Tensor) or not own.dim() or given.shape[1:] != own.shape[1:]:
            continue
        if len(own) == network.num_classes != len(given):
            config = network.with_classes(len(given))
            model = build_model(config, network.key)
            network = _described(model, network.spec, network.key, config)
            break
    load_weights(network.facts.model, state, f'{key} {checkpoint}')
    return network, classes_in(state) or network.facts.classes


def common_side(short_side: float, *networks: Network) -> int:
    """Chooses the height and width of the images in pixels.

    It is the short side of the images, rounded to a multiple of 32. It is at least ``LEAST_SIDE``,
    but not above a size that a network was made for. A network that takes only one size sets it.

    Raises:
        ValueError: If there is no size that all networks take.
    """
    wanted = max(LEAST_SIDE, 32 * round(short_side / 32))
    side = min(wanted, *(each.side for each in networks))
    fixed = {each.key: each.side for each in networks if not each.takes(side)}
    if not fixed:
        return side
    side = next(iter(fixed.values()))
    for each in networks:
        if not each.takes(side):
            others = ' and '.join(f'{key} {own}' for key, own in fixed.items())
            raise ValueError(
                f'{each.key} cannot take images of {side} x {side} pixels with three channels (the '
                f'networks need: {others}); choose networks of one size'
            )
    return side


def class_map(
    classes: Sequence[str], teacher: Network, names: Sequence[str] | None
) -> tuple[Any, str]:
    """What ``teacher.classes`` must be so that the teacher has the data's classes.

    Args:
        classes (Sequence[str]): The data's classes.
        teacher (Network): The teacher.
        names (Sequence[str], optional): The names of its classes.

    Returns:
        tuple[Any, str]: The value, which is '' if it need not be set and None if there is no value;
            and a sentence that says why.
    """
    count = teacher.num_classes
    if not count:
        return None, 'The teacher has no classifier.'
    if names is not None and list(names) == list(classes):
        return '', "The teacher has the data's classes, by name."
    if names is not None and set(classes) <= set(names):
        return 'match', f"The teacher's {count:,} classes include the data's, by name."
    if names is None and count == len(classes):
        shown = ', '.join(classes[:6]) + ', …' * (len(classes) > 6)
        return '', (
            f"The names of the teacher's {count} classes are unknown; they are taken for the data's, "
            f'in this order: {shown}.'
        )
    known = list(names or ())
    if names is None and count == len(IMAGENET_CATEGORIES):
        indices = _imagenet()
        found = {name: indices.get(_plain(name)) for name in classes}
        if None not in found.values() and len(set(found.values())) == len(found):
            return found, "The data's classes are found among the teacher's, which are ImageNet's."
        known = list(indices)
    missing = [name for name in classes if name not in known and _plain(name) not in known]
    shown = ', '.join(map(repr, missing[:3])) + ', …' * (len(missing) > 3)
    return None, (
        f"The teacher's {count:,} classes do not map to the data's: {len(missing)} of the "
        f'{len(classes)} are not among them ({shown}{near_names(missing[0], known) if missing else ""}).'
    )


def _plain(name: str) -> str:
    return name.replace('_', ' ').replace('-', ' ').lower()


def _imagenet() -> Mapping[str, int]:
    """The index of each WordNet id, and of each name that only one class of ImageNet has."""
    found = {name: i for i, name in enumerate(WORDNET_IDS)}
    several = set()
    for i, names in enumerate(IMAGENET_CATEGORIES):
        for name in map(_plain, names.split(', ')):
            if found.setdefault(name, i) != i:
                several.add(name)
    return {name: i for name, i in found.items() if name not in several}
