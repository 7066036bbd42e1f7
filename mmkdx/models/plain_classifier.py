"""Any network that returns logits, as a classifier of mmpretrain's interface."""

from __future__ import annotations

import logging
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from mmengine.logging import print_log
from mmengine.model import BaseModel
from torch import Tensor, nn

from mmkdx.arguments import options
from mmkdx.models.families import ModelFacts, describe, preprocessed, register_family
from mmkdx.models.libraries import find_network
from mmkdx.registry import MODELS


@MODELS.register_module()
class PlainClassifier(BaseModel):
    """Trains and tests a network of any library with mmpretrain's losses and metrics.

    Its state dict is the network's own, without a prefix, so the library can load a checkpoint of a
    training. Images are normalised as the library does it, unless ``data_preprocessor`` sets
    ``mean``.

    Args:
        network (str | nn.Module): A network, or its name; see ``mmkdx.models.libraries.find_network``.
        loss (dict, optional): A loss of mmpretrain. With ``use_sigmoid=True`` an image may have
            several labels. Defaults to None: cross entropy, which is binary for a network of
            several labels.
        train_cfg (dict, optional): ``augments`` mix the images of a batch, as for mmpretrain's
            ``ImageClassifier``. Defaults to None.
        data_preprocessor (dict, optional): The arguments of ``ClsDataPreprocessor``. Image files
            are loaded in BGR; if a data set yields RGB, set ``to_rgb=False``. A network by name
            also gets its ``num_classes``. Defaults to None.
        init_cfg (dict, optional): The initialisation, as of mmengine's ``BaseModule``. Without it the
            network keeps the weights that it is built with.
        **kwargs: The library's arguments for a network by name, such as ``num_classes`` and
            ``pretrained``.

    Raises:
        ValueError: If there is no such network, it has one logit, or arguments do not fit.
    """

    def __init__(
        self,
        network: str | nn.Module,
        loss: dict | None = None,
        train_cfg: dict | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
        **kwargs: Any,
    ) -> None:
        given = dict(loss=loss, train_cfg=train_cfg, data_preprocessor=data_preprocessor)
        for key, value in given.items():
            if value is not None:
                options(key, value)
        images = dict(data_preprocessor or {})
        if isinstance(network, str):
            if '::' in network and images.get('num_classes') is not None:
                kwargs.setdefault('num_classes', images['num_classes'])
            for key in kwargs:
                # torchvision's networks take any argument without an error
                if near := get_close_matches(key, (*given, 'init_cfg'), 1, 0.8):
                    raise ValueError(f'PlainClassifier takes no {key}; do you mean {near[0]}?')
            network = find_network(network, 'network')(**kwargs)
        elif kwargs:
            raise ValueError(
                f'PlainClassifier takes no {", ".join(kwargs)} if the network is already built'
            )
        if not isinstance(network, nn.Module):
            raise ValueError(
                f'network is {network!r}; it must be a name such as timm::resnet18, or a module'
            )
        if isinstance(network, BaseModel):
            raise ValueError(
                f'network is a {type(network).__name__}, which has the interface of mmengine already; '
                'use it, or its config, instead of a PlainClassifier'
            )
        #: The facts that the library gives about the network.
        self.known = facts = describe(network)
        name = type(facts.model).__name__
        if facts.num_classes == 1:
            raise ValueError(
                f'network: {name} has one logit, and the losses and metrics of mmpretrain need one for '
                'each class; build it with num_classes=2'
            )
        if 'mean' not in images and facts.images.mean is not None:
            images.update(mean=facts.images.mean, std=facts.images.std)
            images.setdefault('to_rgb', facts.images.order == 'rgb')
        elif 'mean' not in images:
            print_log(
                f'the normalisation of {name} is unknown, so its images stay as the pipeline makes '
                'them; if it needs another one, set mean, std and to_rgb in data_preprocessor',
                logger='current',
                level=logging.WARNING,
            )
        images.setdefault('type', 'ClsDataPreprocessor')
        images.setdefault('batch_augments', train_cfg)
        # Mixed labels have a probability for each class
        images.setdefault('num_classes', facts.num_classes)
        super().__init__(MODELS.build(images), init_cfg)
        self.model = facts.model
        # Else mmengine calls its init_weights, which timm's and Hugging Face's networks have, too
        self.model.is_init = True
        if loss is None:
            loss = dict(type='CrossEntropyLoss', use_sigmoid=facts.activation == 'sigmoid')
        criterion = MODELS.build(loss)
        several = any(
            getattr(each, 'use_sigmoid', False) or type(each).__name__ == 'FocalLoss'
            for each in criterion.modules()
        )
        kind = 'MultiLabelClsHead' if several else 'ClsHead'
        self.scoring = MODELS.build(dict(type=kind, loss=criterion))
        #: Kept for a wrapper that collects tensors first and renames them later.
        self.checkpoint_names = self.register_state_dict_post_hook(without_prefix)
        self.register_load_state_dict_pre_hook(_with_prefix)

    def forward(
        self, inputs: Tensor, data_samples: list | None = None, mode: str = 'tensor'
    ) -> Any:
        """Returns the network's logits, or mmpretrain's predictions or losses from them.

        Args:
            inputs (Tensor): Preprocessed images of shape (N, C, H, W).
            data_samples (list, optional): The labels, as mmpretrain's ``DataSample``.
            mode (str): 'tensor' for the logits (N, K), 'predict' for data samples with predictions,
                'loss' for a dict of losses. Defaults to 'tensor'.

        Raises:
            ValueError: If the network returns no logits (N, K), or there is no such mode.
        """
        if mode not in ('tensor', 'predict', 'loss'):
            raise ValueError(f"mode is {mode!r}; it must be 'tensor', 'predict' or 'loss'")
        logits = self.known.logits_in(self.model(inputs))
        if mode == 'tensor':
            return logits
        return getattr(self.scoring, mode)((logits,), data_samples)


@register_family(lambda model: isinstance(model, PlainClassifier))
def _plain(model: PlainClassifier) -> ModelFacts:
    inner, images = describe(model.model), preprocessed(model)
    classes = (getattr(model, '_dataset_meta', None) or {}).get('classes') or inner.classes
    sigmoid = type(model.scoring).__name__ == 'MultiLabelClsHead'
    return replace(
        inner,
        model=model,
        logits_path=f'model.{inner.logits_path}'.rstrip('.'),
        activation='sigmoid' if sigmoid else 'softmax',
        images=inner.images if images.mean is None else replace(images, size=inner.images.size),
        classes=classes and tuple(classes),
    )


def without_prefix(
    model: PlainClassifier, state: dict[str, Tensor], prefix: str, metadata: dict
) -> None:
    """Names the tensors of a ``PlainClassifier`` as its network does."""
    # Also the modules' versions, which are needed to convert old files
    for names, stop in ((state, ''), (getattr(state, '_metadata', {}), '.')):
        inner = f'{prefix}model.'
        # All keys are removed first, since a part of the network may be called `model`, too
        taken = {key: names.pop(key) for key in list(names) if f'{key}{stop}'.startswith(inner)}
        for key, value in taken.items():
            names[f'{prefix}{key[len(inner) :]}'.rstrip('.')] = value


def _with_prefix(model: PlainClassifier, state: dict[str, Tensor], prefix: str, *args: Any) -> None:
    for names in (state, getattr(state, '_metadata', None) or {}):
        own = [each for each in names if each.startswith(prefix)]
        own = [each for each in own if not each[len(prefix) :].startswith('scoring.')]
        for key, value in {key: names.pop(key) for key in own}.items():
            names[f'{prefix}model.{key[len(prefix) :]}'.rstrip('.')] = value
