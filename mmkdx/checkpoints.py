"""Checkpoint files: loaded without running code that they may carry, and found again after a crash."""

from __future__ import annotations

import logging
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.dist import barrier, is_main_process
from mmengine.logging import HistoryBuffer, print_log
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler


class CheckpointError(RuntimeError):
    """A checkpoint cannot be loaded; the message names the file."""


class RefusedCheckpointError(CheckpointError):
    """A checkpoint holds objects that need the user's explicit word."""


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
    """Loads a file that ``torch.save`` wrote without running code that it may carry.

    Tensors, plain containers, numpy arrays and what mmengine's runner writes are loaded, anything else
    only with ``MMKDX_UNSAFE_LOAD=1`` in the environment. ``map_location`` is that of :func:`torch.load`.

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

    It is the first file that loads and holds weights and optimizer state. mmengine's record of the last
    checkpoint is tried first, then every ``*.pth`` from the newest on, and ``best_*`` after all others.

    Raises:
        RefusedCheckpointError: A file is whole but needs the user's word, as older ones would too.
    """
    record = Path(work_dir, 'last_checkpoint')
    # After a power failure a file may hold zero bytes
    text = record.read_text(errors='replace') if record.is_file() else ''
    recorded = text.replace('\0', '').strip()
    candidates = [Path(recorded)] if recorded else []
    # CheckpointHook may have been told to keep its files elsewhere (`out_dir`)
    folders = {Path(work_dir), *(path.parent for path in candidates)}
    candidates += sorted(
        (path for folder in folders for path in folder.glob('*.pth')),
        key=lambda path: (path.name.startswith('best_'), -path.stat().st_mtime_ns),
    )

    def warn(text: str) -> None:
        print_log(text, logger='current', level=logging.WARNING)

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
            warn(f'{error} It is passed over.')
            passed_over = True
            continue
        if passed_over:
            warn(f'Resuming from {path} instead.')
        return str(path)
    if passed_over:
        warn(f'No checkpoint in {work_dir} can be resumed from.')
    return None
