"""What today's mmengine needs to work with today's torch, setuptools and Python.

``import mmkdx`` calls :func:`install`. Each shim is one small function that looks whether there is
something to mend before it mends; its docstring says which upstream version makes it unnecessary.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
import os
import pickle
import pkgutil
import re
import sys
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import mmcv.image.io as mmcv_io
import mmengine
import numpy as np
import torch
from mmengine._strategy import FSDPStrategy
from mmengine.config import Config, ConfigDict
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.device import get_device
from mmengine.dist import barrier, is_distributed, is_main_process
from mmengine.logging import HistoryBuffer, print_log
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner import CheckpointLoader, turn_on_activation_checkpointing
from mmengine.runner import activation_checkpointing as mmengine_activation_checkpointing
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.utils import get_installed_path, is_installed
from mmengine.utils.dl_utils import mmcv_full_available
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils.checkpoint import checkpoint

from mmkdx.sample_numbers import number_concatenated_samples

__all__ = [
    'CheckpointError',
    'RefusedCheckpointError',
    'install',
    'last_whole_checkpoint',
    'load_checkpoint_file',
    'prepare_cpu_launch',
]


def install() -> None:
    """Applies every shim that this environment needs; a second call changes nothing."""
    _load_checkpoints_safely()
    _find_packages_without_pkg_resources()
    _look_for_mmcv_ops_without_find_loader()
    _checkpoint_activations_without_reentry()
    _open_turbojpeg_when_it_is_used()
    _resume_sharded_optimizers()
    number_concatenated_samples()
    # mmengine looks for the configs of the packages in this table only
    MODULE2PACKAGE.setdefault('mmkdx', 'mmkdx')
    # mmcv says so at every start where its compiled operators are missing; mmkdx needs none of them.
    warnings.filterwarnings('ignore', message='Fail to import ``MultiScaleDeformableAttention``')


def _rebind(old: Callable, new: Callable) -> None:
    """Puts ``new`` wherever a loaded mmengine module has bound ``old`` under its own name."""
    for name, module in list(sys.modules.items()):
        if name.partition('.')[0] == 'mmengine' and getattr(module, old.__name__, None) is old:
            setattr(module, old.__name__, new)


class CheckpointError(RuntimeError):
    """A checkpoint cannot be loaded; the message names the file."""


class RefusedCheckpointError(CheckpointError):
    """A checkpoint holds objects that need the user's explicit word."""


def _load_checkpoints_safely() -> None:
    """Sends local files and URLs through :func:`load_checkpoint_file`.

    mmengine 0.10.7 cannot resume from its own checkpoints under torch >= 2.6. onedl-mmengine
    (0.10.12) can, but opens what it does not know with an unrestricted pickle, as both do with
    every URL. Unnecessary once upstream does neither.
    """
    CheckpointLoader.register_scheme(prefixes='', loader=load_from_local, force=True)
    CheckpointLoader.register_scheme(
        prefixes=('http://', 'https://'), loader=load_from_http, force=True
    )
    # 'torchvision://' and 'openmmlab://' look up a URL and hand it to this name
    _rebind(mmengine_checkpoint.load_from_http, load_from_http)


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """Loads a path for mmengine, which logs the part of this name that follows ``load_from_``."""
    return load_checkpoint_file(filename, map_location)


def load_from_http(filename: str, map_location: Any = None) -> Any:
    """Loads a URL for mmengine: rank 0 downloads, the other ranks wait for it."""
    if is_main_process():
        _download(filename)
    barrier()
    # finds rank 0's file, and downloads only on a node that does not share rank 0's disk
    return load_checkpoint_file(_download(filename), map_location)


def _download(url: str) -> Path:
    """Brings ``url`` into torch's cache, unless it is there, and returns its path."""
    path = Path(torch.hub.get_dir(), 'checkpoints', Path(urlparse(url).path).name)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), progress=sys.stderr.isatty())
        except URLError as error:
            raise CheckpointError(
                f'Checkpoint {url} cannot be downloaded: {error.reason}.'
            ) from error
    return path


def load_checkpoint_file(path: str | os.PathLike, map_location: Any = 'cpu') -> Any:
    """Loads a checkpoint without running code that it may carry.

    Tensors, plain containers, numpy arrays and what mmengine's runner writes are loaded. For
    anything else, ``MMKDX_UNSAFE_LOAD=1`` in the environment is the user's word that the file is
    trusted.

    Args:
        path (str | os.PathLike): A file that ``torch.save`` wrote, in its present or older format.
        map_location: As in :func:`torch.load`. Defaults to ``'cpu'``.

    Returns:
        Any: The object in the file.

    Raises:
        FileNotFoundError: There is no such file.
        RefusedCheckpointError: The file holds an object that needs the user's word.
        CheckpointError: The file is empty, truncated or corrupt, or needs code that is missing.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'There is no checkpoint file {path}.')
    weights_only = os.environ.get('MMKDX_UNSAFE_LOAD') != '1'
    try:
        _verify_checksums(path)
        with torch.serialization.safe_globals(_safe_globals()):
            return torch.load(path, map_location=map_location, weights_only=weights_only)
    except (PermissionError, MemoryError):
        raise
    except (ImportError, AttributeError) as error:
        raise CheckpointError(
            f'Checkpoint {path} needs code that is not installed: {error}.'
        ) from error
    except Exception as error:
        if refused := _refused(path, error):
            raise RefusedCheckpointError(
                f'Checkpoint {path} holds {refused}, which can run code and is not loaded unasked: '
                'if you trust the file, set MMKDX_UNSAFE_LOAD=1 in the environment.'
            ) from error
        if map_location != 'cpu':
            load_checkpoint_file(path)  # if the file is at fault, this says so;
            raise  # otherwise the device is
        raise CheckpointError(
            f'Checkpoint {path} ({path.stat().st_size} bytes) is empty, truncated, corrupt or no '
            'checkpoint at all.'
        ) from error


def _verify_checksums(path: Path) -> None:
    """Raises an error if a tensor was damaged on disk, which torch would load all the same."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            # torch can be told to write zeros in their place
            has_checksums = any(member.CRC for member in archive.infolist())
            if has_checksums and (damaged := archive.testzip()):
                raise zipfile.BadZipFile(f'{damaged} does not match its checksum')


def _refused(path: Path, error: Exception) -> str | None:
    """Names what torch's restricted unpickler refused; None if the file is simply broken."""
    text = str(error)
    if found := re.search(r"(?:GLOBAL |got <class ')([\w.]*\w)", text):
        return found[1]
    # a whole archive, so whatever the unpickler stumbled over was written on purpose
    if 'weights_only' in text and (zipfile.is_zipfile(path) or 'legacy .tar format' in text):
        return 'a kind of pickle that cannot be checked'
    return None


def _safe_globals() -> list:
    """Lists what mmengine's runner saves beside tensors and plain containers."""
    numbers = '?' + np.typecodes['AllInteger'] + np.typecodes['AllFloat']
    rebuild = {'_reconstruct': np.zeros(0).__reduce__()[0], 'scalar': np.float64(0).__reduce__()[0]}
    return [
        HistoryBuffer,
        OneCycleParamScheduler,
        ConfigDict,  # nested metainfo of a data set
        (_method_of_known_class, 'builtins.getattr'),
        np.ndarray,
        np.dtype,
        *{type(np.dtype(code)) for code in numbers + 'SU'},
        # under the name of the numpy that wrote the file: numpy 2 has moved them
        *(
            (function, f'numpy.{core}.multiarray.{name}')
            for name, function in rebuild.items()
            for core in ('core', '_core')
        ),
    ]


def _method_of_known_class(owner: Any, name: str) -> Callable:
    """Stands in for ``getattr``, through which a pickle could reach anything.

    Checkpoints need it for the statistics of log buffers and for the curve of a one-cycle schedule.
    """
    for known, names in (
        (HistoryBuffer, ('min', 'max', 'current', 'mean')),
        (OneCycleParamScheduler, ('_annealing_cos', '_annealing_linear')),
    ):
        if owner is known and name in names:
            return getattr(owner, name)
    raise pickle.UnpicklingError('GLOBAL getattr')


def last_whole_checkpoint(work_dir: str | os.PathLike) -> str | None:
    """Finds the checkpoint to resume from, also after a run that was killed while writing one.

    Args:
        work_dir (str | os.PathLike): The folder of the run.

    Returns:
        str | None: The first file that loads and holds weights and optimizer state. mmengine's
        record of the last checkpoint is tried first, then every ``*.pth`` from the newest on, and
        ``best_*`` after all others.

    Raises:
        RefusedCheckpointError: A file is whole but needs the user's word, as older ones would too.
    """
    record = Path(work_dir, 'last_checkpoint')
    recorded = record.read_text().strip() if record.is_file() else ''
    candidates = [Path(recorded)] if recorded else []
    # CheckpointHook may have been told to keep its files elsewhere (`out_dir`)
    folders = {Path(work_dir), *(path.parent for path in candidates)}
    candidates += sorted(
        (path for folder in folders for path in folder.glob('*.pth')),
        key=lambda path: (path.name.startswith('best_'), -path.stat().st_mtime_ns),
    )
    passed_over = False
    for path in dict.fromkeys(path.resolve() for path in candidates):
        try:
            checkpoint = load_checkpoint_file(path)
            for key in ('state_dict', 'optimizer'):
                if not isinstance(checkpoint, dict) or key not in checkpoint:
                    raise CheckpointError(f'Checkpoint {path} holds no {key!r} to resume from.')
        except RefusedCheckpointError:
            raise
        except (CheckpointError, FileNotFoundError) as error:
            print_log(f'{error} It is passed over.', logger='current', level=logging.WARNING)
            passed_over = True
            continue
        if passed_over:
            print_log(f'Resuming from {path} instead.', logger='current', level=logging.WARNING)
        return str(path)
    if passed_over:
        print_log(
            f'No checkpoint in {work_dir} can be resumed from.',
            logger='current',
            level=logging.WARNING,
        )
    return None


def _find_packages_without_pkg_resources() -> None:
    """Makes ``_base_ = ['mmpretrain::…']`` and ``mmengine.hub`` work with setuptools >= 82.

    mmengine 0.10.7 asks pkg_resources, which setuptools has dropped, and which looks for editable
    installs in the wrong folder. Unnecessary with onedl-mmengine (0.10.12) and with any mmengine
    that finds its own folder without pkg_resources.
    """
    try:
        works = 'pkg_resources' not in is_installed.__code__.co_names and os.path.samefile(
            get_installed_path('mmengine'), mmengine.__path__[0]
        )
    except Exception:
        works = False
    if not works:
        _rebind(is_installed, _is_installed)
        _rebind(get_installed_path, _get_installed_path)


def _module_folder(package: str) -> str | None:
    """Returns the folder of a package that is given by import name or by distribution name."""
    names = [package]
    with suppress(PackageNotFoundError):  # raised for a fork's import name
        names += (distribution(package).read_text('top_level.txt') or '').split()
    for name in names:
        # knows the folder of an editable install too; a namespace package has no origin
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            return os.path.dirname(spec.origin)
    return None


def _is_installed(package: str) -> bool:
    """mmengine's ``is_installed`` without pkg_resources."""
    return _module_folder(package) is not None


def _get_installed_path(package: str) -> str:
    """mmengine's ``get_installed_path`` without pkg_resources."""
    folder = _module_folder(package)
    if folder is None:
        raise ModuleNotFoundError(f'Package {package!r} is not installed.')
    return folder


def _look_for_mmcv_ops_without_find_loader() -> None:
    """Lets mmengine ask whether mmcv has compiled ops on Python >= 3.14.

    mmengine 0.10.7 uses ``pkgutil.find_loader`` for it in every run of one process. Unnecessary
    with onedl-mmengine (0.10.12).
    """
    if not hasattr(pkgutil, 'find_loader'):
        _rebind(mmcv_full_available, _mmcv_full_available)


def _mmcv_full_available() -> bool:
    """mmengine's ``mmcv_full_available`` without ``pkgutil.find_loader``."""
    return importlib.util.find_spec('mmcv._ext') is not None


def _checkpoint_activations_without_reentry() -> None:
    """Lets ``activation_checkpointing`` of a config keep all gradients.

    mmengine 0.10.7 leaves torch's ``use_reentrant`` open, which then is True: the module runs without
    a graph, taps inside it read tensors without gradients, and a module at the images, such as a whole
    backbone, trains nothing. Unnecessary once mmengine says ``use_reentrant=False``.
    """
    if 'use_reentrant' not in inspect.getsource(mmengine_activation_checkpointing):
        _rebind(turn_on_activation_checkpointing, _turn_on_activation_checkpointing)


def _turn_on_activation_checkpointing(model: nn.Module, modules: list[str] | str) -> None:
    """mmengine's ``turn_on_activation_checkpointing`` without reentry."""
    for name in [modules] if isinstance(modules, str) else modules:
        try:
            module = model.get_submodule(name)
        except AttributeError as error:
            raise ValueError(
                f'activation_checkpointing: the model has no module {name!r}; those of the student of '
                "a Distiller begin with 'student.'"
            ) from error
        # A partial, as a deep copy of the model is to run its own module
        module.forward = partial(checkpoint, module.forward, use_reentrant=False)


def _open_turbojpeg_when_it_is_used() -> None:
    """Makes ``imdecode_backend='turbojpeg'`` of a config work.

    mmcv 2.2.0 opens the library in ``mmcv.use_backend`` alone, which a config cannot call, and fails
    with a NoneType otherwise. Unnecessary once mmcv opens it for ``imdecode_backend``, too.
    """
    if getattr(mmcv_io, 'jpeg', 0) is None:
        mmcv_io.jpeg = _TurboJPEG()


class _TurboJPEG:
    """Stands in for mmcv's ``jpeg`` until the first image."""

    def decode(self, *args: Any) -> np.ndarray:
        """Opens the library, in each process that reads images, and decodes an image."""
        if mmcv_io.TurboJPEG is None:
            raise ImportError(
                "imdecode_backend='turbojpeg' needs the package PyTurboJPEG and the library "
                "libturbojpeg of the system: install them, or use imdecode_backend='cv2'"
            )
        mmcv_io.jpeg = mmcv_io.TurboJPEG()
        return mmcv_io.jpeg.decode(*args)


def _resume_sharded_optimizers() -> None:
    """Lets runs with mmengine's ``FSDPStrategy`` resume.

    mmengine 0.10.7 gives ``optim_state_dict_to_load`` its arguments in the order that torch 2.0 had.
    Unnecessary once it gives them by name.
    """
    if 'state_dict, self.model' in inspect.getsource(FSDPStrategy.load_optim_state_dict):
        FSDPStrategy.load_optim_state_dict = _load_optim_state_dict


def _load_optim_state_dict(strategy: FSDPStrategy, state_dict: dict) -> None:
    """mmengine's ``FSDPStrategy.load_optim_state_dict`` in the order of torch >= 2.1."""
    state = FullyShardedDataParallel.optim_state_dict_to_load(
        model=strategy.model,
        optim=strategy.optim_wrapper.optimizer,
        optim_state_dict=state_dict,
    )
    strategy.optim_wrapper.load_state_dict(state)


def prepare_cpu_launch(cfg: Config, launcher: str) -> None:
    """Lets a launcher start several processes on a machine without an accelerator.

    mmengine selects a CUDA device in each process before it connects them. Without one, the
    processes are connected here with gloo, and ``cfg`` is told to wrap the model for the CPU.
    Call it before the runner is built.

    Args:
        cfg (Config): The config of the run; changed in place.
        launcher (str): mmengine's launcher: none, pytorch, slurm or mpi.
    """
    if launcher == 'none' or get_device() != 'cpu':
        return
    if launcher != 'pytorch':
        raise RuntimeError(
            f'launcher={launcher!r} needs CUDA, which this machine does not have: '
            "start the processes with torchrun and launcher='pytorch'."
        )
    # without a wrapper of the user's, the one that mmengine would make
    wrapper = cfg.get('model_wrapper_cfg') or dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    cfg.model_wrapper_cfg = dict(wrapper, device_ids=None)
    env_cfg = cfg.get('env_cfg') or {}
    dist_cfg = dict(env_cfg.get('dist_cfg') or {}, backend='gloo')
    cfg.env_cfg = dict(env_cfg, dist_cfg=dist_cfg)
    if not is_distributed():
        timeout = timedelta(seconds=dist_cfg.get('timeout', 1800))
        torch.distributed.init_process_group('gloo', timeout=timeout)
