"""Building a student or a teacher from any of the forms a user may name it in."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.logging import print_log
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader
from torch import nn

from mmkdx.data_configs import check_named_config
from mmkdx.registry import MODELS

#: A model dict, a config path, ``pkg::path``, the name of a model of mmpretrain's zoo, or a module.
ModelSpec = dict | str | Path | nn.Module


def build_model(spec: ModelSpec, key: str, data_preprocessor: dict | None = None) -> nn.Module:
    """Builds a model, without its weights; a module is returned as it is. See ``model_config``."""
    if isinstance(spec, nn.Module):
        return spec
    return build_part(model_config(spec, key, data_preprocessor))


def build_part(config: dict) -> Any:
    """Builds a model, teacher or loss in mmkdx's scope, whatever the default scope of the run is."""
    with DefaultScope.overwrite_default_scope('mmkdx'):
        return MODELS.build(config)


def model_config(spec: dict | str | Path, key: str, data_preprocessor: dict | None = None) -> dict:
    """The model dict that a spec stands for, as a copy with its data preprocessor where one is known.

    The config of a distillation run stands for its student, so a distilled model can teach in turn.

    Args:
        spec (dict | str | Path): A model dict, the path of a config file, ``pkg::path`` for the config
            of an installed package, or a model name of mmpretrain's zoo.
        key (str): The config key that error messages name.
        data_preprocessor (dict, optional): The preprocessor of a model whose config has none.

    Raises:
        ValueError: If the spec is of no known form, or names nothing.
    """
    if isinstance(spec, (str, Path)):
        config = read_config(str(spec), key)
        data_preprocessor = config.get('data_preprocessor', data_preprocessor)
        spec = config.get('model')
    if not isinstance(spec, dict) or not {'type', 'student'} & set(spec):
        raise ValueError(
            f'{key} must be a model dict with a type, a config path, pkg::path, a model name of '
            f"mmpretrain's zoo or a module, and is {spec!r}"
        )
    data_preprocessor = spec.get('data_preprocessor') or data_preprocessor
    if 'student' in spec:
        return model_config(spec['student'], key, data_preprocessor)
    spec = copy.deepcopy(spec)
    # Left by a base config of another package; mmkdx's scope finds those parts, and its own.
    spec.pop('_scope_', None)
    if data_preprocessor is not None:
        spec['data_preprocessor'] = copy.deepcopy(data_preprocessor)
    return spec


def read_config(name: str, key: str) -> Config:
    """Reads a config from a path, from ``pkg::path`` or from the entry of mmpretrain's zoo."""
    check_named_config(name, key)
    if name.startswith('mmkdx::'):  # found in a checkout that is not installed, too
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
    """Where mmkdx's 'configs' or 'tools' are: in the installed package, or else in the checkout."""
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
            'and no config path'
        ) from None


def zoo_weights(model: ModelSpec, checkpoint: str | None) -> str:
    """Where mmpretrain's zoo has the weights of a teacher without a checkpoint."""
    if checkpoint:
        raise ValueError(
            'teacher.pretrained and teacher.checkpoint are two sources of weights; remove one'
        )
    weights = zoo_entry(model, 'teacher.model').weights if isinstance(model, str) else None
    if not weights:
        raise ValueError(
            "teacher.pretrained=True needs a model name of mmpretrain's zoo, which has weights, as "
            'teacher.model; else set teacher.checkpoint'
        )
    return weights


def load_file(model: nn.Module, name: str | None, strict: bool = True) -> dict:
    """Loads a teacher's checkpoint, a file or URL, into its model and returns it."""
    if name is None:
        raise ValueError(
            'the teacher has no weights: set teacher.checkpoint to a file or URL, or '
            "teacher.pretrained=True for a model of mmpretrain's zoo"
        )
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
        checkpoint (dict): A checkpoint of mmengine, or a state dict. Of a distillation run the
            student's weights are taken.
        source (str): Where it comes from, for messages.
        strict (bool): Whether every tensor must match. Defaults to True.
        hint (str): What the message advises where tensors do not match. Defaults to ''.

    Raises:
        ValueError: If shapes differ, no tensor matches, or with ``strict`` not all do.
    """
    own = {_bare(key): key for key in model.state_dict()}
    state = {
        own.get(_bare(key), _bare(key)): value
        for key, value in checkpoint.get('state_dict', checkpoint).items()
        if not key.startswith('distill.')
    }
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        first = str(error).splitlines()[1:2] or [str(error)]
        raise ValueError(f'{source} does not fit the model: {first[0].strip()}') from error
    # Batch norm makes up its counter where a file has none, without calling it missing.
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
