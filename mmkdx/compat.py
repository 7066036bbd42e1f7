"""Shims that make mmengine work with current versions of torch, setuptools and Python.

``import mmkdx`` calls :func:`install`. Each shim checks first whether it is needed. Its docstring
says which upstream version makes it unnecessary.
"""

from __future__ import annotations

import importlib.util
import inspect
import io
import os
import pkgutil
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

import mmcv.image.io as mmcv_io
import mmengine
import mmengine.runner._flexible_runner as mmengine_flexible_runner
import mmengine.runner.runner as mmengine_runner
import numpy as np
import torch
from mmengine._strategy import BaseStrategy, FSDPStrategy
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.dataset import worker_init_fn
from mmengine.device import get_device
from mmengine.dist import broadcast_object_list, is_distributed, is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import checkpoint_hook
from mmengine.runner import (
    CheckpointLoader,
    Runner,
    find_latest_checkpoint,
    turn_on_activation_checkpointing,
)
from mmengine.runner import activation_checkpointing as mmengine_activation_checkpointing
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.utils import get_installed_path, is_installed
from mmengine.utils.dl_utils import mmcv_full_available
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils.checkpoint import checkpoint

from mmkdx import bounds, data_configs
from mmkdx.checkpoints import (
    CheckpointError,
    RefusedCheckpointError,
    last_whole_checkpoint,
    load_checkpoint_file,
    load_from_ceph,
    load_from_http,
    load_from_local,
)
from mmkdx.files import write_file
from mmkdx.sample_numbers import number_concatenated_samples

__all__ = [
    'CheckpointError',
    'RefusedCheckpointError',
    'finish_launch',
    'install',
    'last_whole_checkpoint',
    'load_checkpoint_file',
    'prepare_cpu_launch',
]


def install() -> None:
    """Applies every shim that this environment needs; a second call changes nothing."""
    _load_checkpoints_safely()
    data_configs.install()
    bounds.install()
    _write_whole_files()
    _give_each_run_a_log_folder()
    _let_workers_outlive_signals()
    _find_packages_without_pkg_resources()
    _read_configs_of_packages()
    _look_for_mmcv_ops_without_find_loader()
    _checkpoint_activations_without_reentry()
    _open_turbojpeg_when_it_is_used()
    _resume_sharded_optimizers()
    number_concatenated_samples()
    # mmengine looks for the configs of the packages in this table only
    MODULE2PACKAGE.setdefault('mmkdx', 'mmkdx')
    # mmcv warns at every start if its compiled operators are missing; mmkdx needs none of them.
    warnings.filterwarnings('ignore', message='Fail to import ``MultiScaleDeformableAttention``')


def _rebind(old: Callable, new: Callable) -> None:
    """Replaces ``old`` by ``new`` in each loaded mmengine module that has it under its own name."""
    for name, module in list(sys.modules.items()):
        if name.partition('.')[0] == 'mmengine' and getattr(module, old.__name__, None) is old:
            setattr(module, old.__name__, new)


def _load_checkpoints_safely() -> None:
    """Sends local files and URLs through :func:`load_checkpoint_file`.

    mmengine 0.10.7 cannot resume from its own checkpoints under torch >= 2.6. onedl-mmengine (0.10.12)
    opens unknown content with an unrestricted pickle. Both do so with every URL.
    """
    CheckpointLoader.register_scheme(prefixes='', loader=load_from_local, force=True)
    CheckpointLoader.register_scheme(
        prefixes=('http://', 'https://'), loader=load_from_http, force=True
    )
    CheckpointLoader.register_scheme(
        prefixes=[r'(\S+\:)?s3://', r'(\S+\:)?petrel://'], loader=load_from_ceph, force=True
    )
    # 'torchvision://' and 'openmmlab://' look up a URL and hand it to this name
    _rebind(mmengine_checkpoint.load_from_http, load_from_http)
    # onedl's function for all else, such as files that 'openmmlab://' names
    if unsafe := getattr(mmengine_checkpoint, '_safe_torch_load', None):
        _rebind(unsafe, load_from_local)
    # resume=True without load_from calls this, and crashes if the file is missing or incomplete
    _rebind(find_latest_checkpoint, last_whole_checkpoint)


def _write_whole_files() -> None:
    """Makes mmengine write a file whole or not at all, even after a crash or on a full disk.

    mmengine 0.10.7 and onedl-mmengine 0.10.12 write checkpoints, configs and results directly under
    their final names.
    """
    LocalBackend.put = lambda self, content, path: write_file(path, content)
    LocalBackend.put_text = lambda self, text, path, encoding='utf-8': write_file(
        path, text.encode(encoding)
    )
    checkpoint_hook.open = _open_whole  # for `last_checkpoint`
    Config.dump = _dump_config


def _dump_config(
    cfg: Config, file: str | os.PathLike | None = None, dump: Callable = Config.dump
) -> str | None:
    """mmengine's ``Config.dump``, which would write Python files without ``LocalBackend``."""
    if file is None or not str(file).endswith('.py'):
        return dump(cfg, file)
    write_file(file, cfg.pretty_text)
    return None


@contextmanager
def _open_whole(path: str, mode: str) -> Iterator[io.StringIO]:
    """Opens a text file for writing; the file appears when it is closed."""
    text = io.StringIO()
    yield text
    write_file(path, text.getvalue())


def _give_each_run_a_log_folder() -> None:
    """Keeps the logs of two runs apart if they start in one work folder within a second.

    mmengine 0.10.7 and onedl-mmengine 0.10.12 name a run's log folder by the second.
    """
    for owner, name in ((Runner, 'setup_env'), (BaseStrategy, '_setup_env')):
        setup_env = getattr(owner, name)
        if setup_env.__module__ != __name__:
            setattr(owner, name, _with_log_folder(setup_env))


def _with_log_folder(setup_env: Callable) -> Callable:
    """mmengine's ``setup_env`` that also creates a log folder for this run alone."""

    def setup(self: Runner | BaseStrategy, *args: Any, **kwargs: Any) -> None:
        setup_env(self, *args, **kwargs)
        names = [self._timestamp]
        number = 1
        while is_main_process():
            try:
                os.makedirs(os.path.join(self.work_dir, names[0]))
                break
            except FileExistsError:
                names[0] = f'{self._timestamp}_{number}'
                number += 1
        broadcast_object_list(names)
        self._timestamp = names[0]

    return setup


def _let_workers_outlive_signals() -> None:
    """Lets a SIGTERM end the workers of a dataloader only if their own process sends it.

    Clusters and terminals send SIGTERM and SIGINT to all processes of a job. The training still
    needs its workers for its last step. mmengine 0.10.7 and onedl-mmengine 0.10.12 leave the
    signals to torch, whose workers end at once.
    """
    for module in (mmengine_runner, mmengine_flexible_runner):
        module.default_worker_init_fn = _init_worker


def _init_worker(worker_id: int, **kwargs: Any) -> None:
    """mmengine's ``worker_init_fn`` for a worker that only its own process can end."""
    parent = os.getppid()

    def obey() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, 'sigwaitinfo'):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=obey, daemon=True).start()
    worker_init_fn(worker_id, **kwargs)


def _find_packages_without_pkg_resources() -> None:
    """Makes ``_base_ = ['mmpretrain::…']`` and ``mmengine.hub`` work with setuptools >= 82.

    mmengine 0.10.7 uses pkg_resources. setuptools has dropped it, and it looks for editable
    installs in the wrong folder. Unnecessary with onedl-mmengine (0.10.12).
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
    """Returns the folder of a package, by its import name or its distribution name."""
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


def _read_configs_of_packages() -> None:
    """Lets ``Config.fromfile`` and every tool read ``mmkdx::digits/resnet18_digits.py``.

    mmengine 0.10.7 and onedl-mmengine 0.10.12 accept such names in ``_base_`` and ``mmengine.hub``
    only.
    """
    if not isinstance(Config.fromfile, partial):
        Config.fromfile = staticmethod(partial(_read_config, Config.fromfile))


def _read_config(fromfile: Callable, filename: str | os.PathLike, *args: Any, **kw: Any) -> Config:
    """mmengine's ``Config.fromfile``, for a file or for ``package::path``."""
    if '::' in str(filename):
        try:
            filename, _ = Config._get_cfg_path(filename, '')
        except (AssertionError, ImportError, OSError, ValueError) as error:
            raise ValueError(f'{filename} is no config of an installed package: {error}') from error
    return fromfile(filename, *args, **kw)


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
    """Makes ``activation_checkpointing`` of a config keep all gradients.

    mmengine 0.10.7 leaves torch's ``use_reentrant`` at True. Then taps inside the module read
    tensors without gradients. A module that takes the images, such as a whole backbone, is not
    trained. Unnecessary once mmengine passes ``use_reentrant=False``.
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
                f'activation_checkpointing: the model has no module {name!r}; the modules of a '
                "Distiller's student begin with 'student.'"
            ) from error
        # A partial, so that a deep copy of the model runs its own module
        module.forward = partial(checkpoint, module.forward, use_reentrant=False)


def _open_turbojpeg_when_it_is_used() -> None:
    """Makes ``imdecode_backend='turbojpeg'`` of a config work.

    mmcv 2.2.0 opens the library only in ``mmcv.use_backend``, which a config cannot call.
    Unnecessary once mmcv opens it for ``imdecode_backend``, too.
    """
    if getattr(mmcv_io, 'jpeg', 0) is None:
        mmcv_io.jpeg = _TurboJPEG()


class _TurboJPEG:
    """Stands in for mmcv's ``jpeg`` until the first image."""

    def decode(self, *args: Any) -> np.ndarray:
        """Opens the library, once in each process that reads images, and decodes an image."""
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

    mmengine selects a CUDA device in each process before it connects them. Without CUDA, gloo
    connects the processes, and ``cfg`` gets a model wrapper for the CPU. Call it before the runner
    is built.

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
    # the user's wrapper, else the one that mmengine would make
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


def finish_launch() -> None:
    """Disconnects the processes of a run that is done."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
