"""Builds a student or a teacher from any form that a config may have."""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader
from torch import nn

from mmkdx.arguments import flag, options, text
from mmkdx.data_configs import check_named_config
from mmkdx.models.families import describe
from mmkdx.models.libraries import check_library, find_network, names_network, near_names
from mmkdx.registry import MODELS

#: A model dict, a config path, ``pkg::path``, the name of a model of mmpretrain's zoo or of a network of
#: another library (see ``mmkdx.models.libraries``), or a module.
ModelSpec = dict | str | Path | nn.Module


def build_model(spec: ModelSpec, key: str, data_preprocessor: dict | None = None) -> nn.Module:
    """Builds a model, without its weights; a module is returned as it is. See ``model_config``."""
    if isinstance(spec, nn.Module):
        return spec
    return build_part(model_config(spec, key, data_preprocessor))


def build_student(spec: ModelSpec, data_preprocessor: dict | None = None) -> BaseModel:
    """Builds a model to train; ``PlainClassifier`` wraps one without mmengine's interface."""
    if data_preprocessor is not None:
        options('data_preprocessor', data_preprocessor)
    model = build_model(spec, 'student', data_preprocessor)
    if isinstance(model, BaseModel):
        return model
    return build_part(
        dict(type='PlainClassifier', network=model, data_preprocessor=data_preprocessor)
    )


def build_part(config: dict) -> Any:
    """Builds a model, teacher or loss in mmkdx's scope, whatever the default scope of the run is."""
    with DefaultScope.overwrite_default_scope('mmkdx'):
        return MODELS.build(config)


def model_config(spec: dict | str | Path, key: str, data_preprocessor: dict | None = None) -> dict:
    """Returns a copy of a spec's model dict, with its data preprocessor if one is known.

    The config of a distillation run means its student, so a distilled model can be a teacher.

    Args:
        spec (dict | str | Path): A model dict, the path of a config file, ``pkg::path`` for the config
            of an installed package, a model name of mmpretrain's zoo, or the name of a network of
            another library. A model dict has such a name as its type, and the library's arguments
            beside it: ``dict(type='timm::resnet18', num_classes=10)``.
        key (str): The config key that error messages name.
        data_preprocessor (dict, optional): The preprocessor of a model whose config has none.

    Raises:
        ValueError: If the form of the spec is unknown, or what it names does not exist.
    """
    if names_network(spec):
        spec = dict(type=spec)
    elif isinstance(spec, (str, Path)):
        check_library(str(spec), key)
        config = read_config(str(spec), key)
        data_preprocessor = config.get('data_preprocessor', data_preprocessor)
        spec = config.get('model')
    if not isinstance(spec, dict) or not {'type', 'student'} & set(spec):
        raise ValueError(
            f'{key} must be a model dict with a type, a config path, pkg::path, a model name of '
            f"mmpretrain's zoo or of another library (timm::resnet18), or a module, and is {spec!r}"
        )
    data_preprocessor = spec.get('data_preprocessor') or data_preprocessor
    if 'student' in spec:
        return model_config(spec['student'], key, data_preprocessor)
    spec = copy.deepcopy(spec)
    # A base config of another package leaves this; mmkdx's scope finds the parts of both.
    spec.pop('_scope_', None)
    if names_network(spec['type']):
        find_network(spec['type'], key)  # raises if there is no such network
        spec = dict(spec, type='PlainClassifier', network=spec['type'])
    if data_preprocessor is not None:
        spec['data_preprocessor'] = copy.deepcopy(data_preprocessor)
    return spec


def read_config(name: str, key: str) -> Config:
    """Reads a config from a path, from ``pkg::path`` or from the entry of mmpretrain's zoo."""
    check_named_config(name, key)
    if name.startswith('mmkdx::'):  # also found in a checkout that is not installed
        name = str(shipped_folder('configs') / name.removeprefix('mmkdx::'))
    if '::' in name:
        try:
            return get_config(name)
        except Exception as error:
            raise ValueError(
                f'{key}: no config {name!r} in an installed package ({error})'
            ) from error
    if Path(name).suffix in ('.py', '.yml', '.yaml', '.json'):
        if not Path(name).is_file():
            raise ValueError(f'{key}: no config file {name!r} (looked in {Path.cwd()})')
        return Config.fromfile(name)
    return zoo_entry(name, key).config


def shipped_folder(name: str) -> Path:
    """The folder of mmkdx's 'configs' or 'tools', in the installed package or in the checkout."""
    package = Path(__file__).parents[1]
    installed = package / '.mim' / name
    return installed if installed.is_dir() else package.parent / name


def zoo_entry(name: str, key: str) -> Any:
    """The entry of mmpretrain's model zoo for a model name or ``mmpretrain::path``."""
    from mmpretrain.apis.model import ModelHub

    try:
        return ModelHub.get(Path(name).stem if '::' in name else name)
    except ValueError:
        raise ValueError(
            f"{key}: {name!r} is no model of mmpretrain's zoo (mmpretrain.list_models() lists them) "
            f'and no config path{near_names(name, ModelHub._models_dict)}'
        ) from None


def weights_source(model: ModelSpec, checkpoint: str | None, pretrained: bool) -> str | dict | None:
    """Finds the weights that ``load_file`` loads for a teacher; ``Teacher`` has the arguments.

    Returns:
        str | dict | None: The checkpoint. With ``pretrained`` the URL of the zoo's weights, or the
        model dict of a library's network with its weights.
    """
    if not flag('teacher.pretrained', pretrained):
        return (
            None if checkpoint is None else text('teacher.checkpoint', checkpoint, 'a file or URL')
        )
    if checkpoint:
        raise ValueError(
            'teacher.pretrained and teacher.checkpoint are two sources of weights; remove one'
        )
    named = model if isinstance(model, dict) else dict(type=model)
    if names_network(named.get('type')):
        return dict(named, pretrained=True)
    weights = zoo_entry(model, 'teacher.model').weights if isinstance(model, str) else None
    if not weights:
        raise ValueError(
            "teacher.pretrained=True needs a teacher.model with weights, by a name of mmpretrain's "
            'zoo or of another library; else set teacher.checkpoint'
        )
    return weights


def load_file(model: nn.Module, name: str | dict | None, strict: bool = True) -> dict:
    """Loads the weights that ``weights_source`` found into a teacher; returns the checkpoint."""
    if name is None:
        raise ValueError(
            'the teacher has no weights: set teacher.checkpoint to a file or URL, or '
            "teacher.pretrained=True for a model of mmpretrain's zoo or of another library"
        )
    if isinstance(name, dict):
        network = build_model(name, 'teacher.model')
        model.load_state_dict(network.state_dict())
        return dict(meta=dict(CLASSES=describe(network).classes))
    try:
        state = CheckpointLoader.load_checkpoint(name, map_location='cpu')
    except FileNotFoundError:
        raise FileNotFoundError(
            f'teacher.checkpoint: there is no file {name!r}; train the teacher first, or name its '
            'checkpoint'
        ) from None
    hint = '; set teacher.strict=False to load what fits'
    load_weights(model, state, f'teacher.checkpoint {name}', strict, hint)
    return state


def load_weights(
    model: nn.Module,
    checkpoint: dict,
    source: str,
    strict: bool = True,
    hint: str = '',
) -> None:
    """Loads a checkpoint's weights into a model and logs how many tensors matched.

    Args:
        model (nn.Module): The model.
        checkpoint (dict): A checkpoint of mmengine, or a state dict. From a
            distillation run, the student's weights are taken.
        source (str): Where it comes from, for messages.
        strict (bool): Whether every tensor must match. Defaults to True.
        hint (str): Advice in the message if tensors do not match. Defaults to ''.

    Raises:
        ValueError: If shapes differ, no tensor matches, or with ``strict`` not all do.
    """
    known = set(model.state_dict())
    own = {_bare(key): key for key in known}
    source_state = checkpoint.get('state_dict', checkpoint)
    state = OrderedDict(
        (own.get(_bare(key), _bare(key)), value)
        for key, value in source_state.items()
        if not key.startswith('distill.')
    )
    # The modules' versions, which guide the conversion of old files
    versions = getattr(source_state, '_metadata', {})
    state._metadata = {_bare(f'{key}.').rstrip('.'): value for key, value in versions.items()}
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        first = str(error).splitlines()[1:2] or [str(error)]
        raise ValueError(f'{source} does not fit the model: {first[0].strip()}') from error
    # mmpretrain's timm models remove a prefix from their state dict, but torch reports it
    missing = [each if each in known else each.removeprefix('model.') for each in missing]
    unexpected = [each if each in state else each.removeprefix('model.') for each in unexpected]
    # Batch norm creates its counter if a file has none, and torch does not report it as missing.
    names = [key for key in model.state_dict() if not key.endswith('num_batches_tracked')]
    total, matched = len(names), len(set(names) - set(missing))
    if not matched:
        raise ValueError(
            f'{source} holds none of the {total} tensors of the model; its first key is '
            f'{next(iter(state), None)!r}'
        )
    if strict and (missing or unexpected):
        raise ValueError(
            f'{source} does not fit the model: {len(missing)} tensors are missing (as '
            f'{missing[:2]}) and {len(unexpected)} unknown (as {unexpected[:2]}){hint}'
        )
    print_log(f'{source}: {matched} of {total} tensors loaded', logger='current')


def _bare(key: str) -> str:
    """The name of a tensor without what DDP, FSDP and ``torch.compile`` put in front."""
    return re.sub(r'^(module\.)+', '', re.sub(r'(_orig_mod|_fsdp_wrapped_module)\.', '', key))
