"""Loads checkpoint files without running their code, and finds the last whole one after a crash."""

from __future__ import annotations

import codecs
import hashlib
import io
import logging
import os
import pickle
import re
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.dist import barrier, is_main_process
from mmengine.fileio import get_local_path
from mmengine.logging import HistoryBuffer, print_log
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler

from mmkdx.files import write_file

#: numpy's type codes of numbers.
NUMBERS = '?' + np.typecodes['AllInteger'] + np.typecodes['AllFloat']


UNASKED = (
    'which can run code and is not loaded by default: if you trust the file, set '
    'MMKDX_UNSAFE_LOAD=1 in the environment'
)


class CheckpointError(RuntimeError):
    """A checkpoint cannot be loaded; the message names the file."""


class RefusedCheckpointError(CheckpointError):
    """A checkpoint holds objects that are loaded only with the user's explicit permission."""


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """Loads a path for mmengine, which logs the end of this name, after ``load_from_``."""
    return load_checkpoint_file(filename, map_location)


def load_from_http(filename: str, map_location: Any = None) -> Any:
    """Loads a URL for mmengine: rank 0 downloads, the other ranks wait for it."""
    if is_main_process():
        _download(filename)
    barrier()
    # finds rank 0's file, and downloads only on a node that does not share rank 0's disk
    return load_checkpoint_file(_download(filename), map_location)


def load_from_ceph(filename: str, map_location: Any = None) -> Any:
    """Loads ``s3://`` and ``petrel://`` for mmengine, which would unpickle them without a check."""
    with get_local_path(filename, backend_args=dict(backend='petrel')) as path:
        return load_checkpoint_file(path, map_location)


def _download(url: str) -> Path:
    """Downloads ``url`` into torch's cache if it is not there, and returns its path.

    The name in the cache has a hash of the whole URL, since other URLs may end in the same name.
    """
    name = Path(unquote(urlparse(url).path)).name
    folder = Path(torch.hub.get_dir(), 'checkpoints')
    key = hashlib.sha256(url.encode()).hexdigest()[:16]
    path = folder / f'{Path(name).stem[:100]}.{key}{Path(name).suffix[:20]}'
    # A checksum as in resnet18-f37072fd.pth, and no date such as 20240131
    found = re.search(r'-(?!20\d{6}\.)([0-9a-f]{8,64})\.', name)
    checksum = found[1] if found else None
    plain = folder / name
    if checksum and not path.exists() and plain.is_file() and _sha256(plain).startswith(checksum):
        return plain  # downloaded by torch or mmengine
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f'{path.name}.{os.getpid()}.part')
        try:
            torch.hub.download_url_to_file(url, str(part), progress=sys.stderr.isatty())
            _check_download(url, part, checksum)
            os.replace(part, path)
        except OSError as error:
            reason = getattr(error, 'reason', error)
            raise CheckpointError(f'Checkpoint {url} cannot be downloaded: {reason}.') from error
        finally:
            part.unlink(missing_ok=True)
    return path


def _check_download(url: str, path: Path, checksum: str | None) -> None:
    """Compares a download with the checksum in its name; without one, checks that it is whole."""
    if checksum is not None:
        if not (digest := _sha256(path)).startswith(checksum):
            raise CheckpointError(
                f'Checkpoint {url} was downloaded and does not match the checksum in its name: its '
                f'SHA-256 begins with {digest[: len(checksum)]}. If you trust the file, download it '
                'yourself and give its path.'
            )
        return
    try:
        load_checkpoint_file(path)
    except RefusedCheckpointError:
        pass  # whole; loading it needs the user's permission
    except CheckpointError as error:
        raise CheckpointError(
            f'Checkpoint {url} was downloaded ({path.stat().st_size} bytes) and is empty, truncated, '
            'corrupt or no checkpoint at all.'
        ) from error


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def load_checkpoint_file(path: str | os.PathLike, map_location: Any = 'cpu') -> Any:
    """Loads a file of ``torch.save`` without running code that the file may carry.

    It loads tensors, plain containers, numpy arrays and what mmengine's runner writes. Anything
    else needs ``MMKDX_UNSAFE_LOAD=1`` in the environment. Without this variable, the texts of
    configs are left out, since mmengine would run them. ``map_location`` is passed to
    :func:`torch.load`.

    Raises:
        FileNotFoundError: There is no such file.
        RefusedCheckpointError: The file holds an object that needs the user's permission.
        CheckpointError: The file is empty, truncated or corrupt, or needs code that is missing.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'There is no checkpoint file {path}.')
    weights_only = os.environ.get('MMKDX_UNSAFE_LOAD') != '1'
    try:
        _verify_checksums(path)
        with torch.serialization.safe_globals(_safe_globals()):
            found = torch.load(path, map_location=map_location, weights_only=weights_only)
        return _without_programs(found) if weights_only else found
    except PermissionError:
        raise
    except MemoryError as error:
        raise CheckpointError(
            f'Checkpoint {path} ({path.stat().st_size} bytes) needs more memory than there is.'
        ) from error
    except (ImportError, AttributeError) as error:
        raise CheckpointError(
            f'Checkpoint {path} needs code that is not installed: {error}.'
        ) from error
    except Exception as error:
        if refused := _refused(path, error):
            raise RefusedCheckpointError(
                f'Checkpoint {path} holds {refused}, {UNASKED}.'
            ) from error
        if map_location != 'cpu':
            load_checkpoint_file(path)  # if the file is at fault, this says so;
            raise  # otherwise the device is at fault
        raise CheckpointError(
            f'Checkpoint {path} ({path.stat().st_size} bytes) is empty, truncated, corrupt or no '
            'checkpoint at all.'
        ) from error


def _without_programs(checkpoint: Any) -> Any:
    """Removes the texts of configs, which are Python code.

    ``Runner.resume`` and the inferencers of mmengine run them. ``Runner`` and its hooks write them
    under the keys that are removed here.
    """
    if isinstance(checkpoint, dict):
        hub = checkpoint.get('message_hub')
        runtime = hub.get('runtime_info') if isinstance(hub, dict) else None
        for owner in (checkpoint.get('meta'), runtime):
            if isinstance(owner, dict):
                for key in ('cfg', 'config'):
                    owner.pop(key, None)
    return checkpoint


def save_checkpoint_file(content: Any, path: str | os.PathLike) -> None:
    """Saves an object by ``torch.save``; an earlier file stays until the new one is whole.

    Raises:
        WriteError: If the file cannot be written.
    """
    data = io.BytesIO()
    torch.save(content, data)
    write_file(path, data.getbuffer())


def _verify_checksums(path: Path) -> None:
    """Raises an error if a tensor was damaged on disk; torch would load it without an error."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            # torch does not compress, so larger members mean a zip bomb
            if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
                raise zipfile.BadZipFile('its members are larger than the file')
            # torch has an option that writes zeros instead of checksums
            has_checksums = any(member.CRC for member in archive.infolist())
            if has_checksums and (damaged := archive.testzip()):
                raise zipfile.BadZipFile(f'{damaged} does not match its checksum')


def _refused(path: Path, error: Exception) -> str | None:
    """Names what torch's restricted unpickler refused; None if the file is simply broken."""
    text = str(error)
    if found := re.search(r"(?:GLOBAL |got <class ')([\w.]*\w)", text):
        return found[1]
    # the archive is whole, so whatever the unpickler refused was written on purpose
    if 'weights_only' in text and (zipfile.is_zipfile(path) or 'legacy .tar format' in text):
        return 'a kind of pickle that cannot be checked'
    return None


def _safe_globals() -> list:
    """Lists what mmengine's runner saves in addition to tensors and plain containers."""
    return [
        HistoryBuffer,
        OneCycleParamScheduler,
        ConfigDict,  # nested metainfo of a data set
        (_method_of_known_class, 'builtins.getattr'),
        np.ndarray,
        *{type(np.dtype(code)) for code in NUMBERS + 'SU'},
        *((function, name) for name, function in _numpy_functions().items()),
    ]


def _numpy_functions() -> dict[str, Callable]:
    """The functions that pickles of arrays call, by name; numpy 2 has moved some."""
    scalar, buffer = np.float64(0).__reduce__()[0], np.zeros(1).__reduce_ex__(5)[0]
    parts = {
        'multiarray._reconstruct': _empty_array,
        'multiarray.scalar': scalar,
        'numeric._frombuffer': buffer,
    }
    found = {f'numpy.{core}.{name}': parts[name] for core in ('core', '_core') for name in parts}
    return {'numpy.dtype': _plain_dtype, **found}


class PlainUnpickler(pickle.Unpickler):
    """Loads pickles of plain containers and numpy arrays, and refuses all others."""

    def find_class(self, module: str, name: str) -> Any:
        """Looks up a name that the pickle asks for."""
        known = {
            'numpy.ndarray': np.ndarray,
            '_codecs.encode': codecs.encode,
            'collections.OrderedDict': OrderedDict,
            **{
                f'{owner}.{kind.__name__}': kind
                for owner in ('builtins', '__builtin__')  # Python 2's name, used by protocol 2
                for kind in (set, frozenset, complex)
            },
            **_numpy_functions(),
        }
        if f'{module}.{name}' not in known:
            raise pickle.UnpicklingError(f'GLOBAL {module}.{name}')
        return known[f'{module}.{name}']


def _plain_dtype(*args: Any) -> np.dtype:
    """Replaces ``numpy.dtype``: allows numbers and text only, since records can pass for dicts."""
    dtype = np.dtype(*args)
    if dtype.kind not in 'biufcSU':
        raise pickle.UnpicklingError(f'GLOBAL {type(dtype).__module__}.{type(dtype).__name__}')
    return dtype


def _empty_array(kind: type, shape: tuple, dtype: Any) -> np.ndarray:
    """Replaces numpy's ``_reconstruct`` and allows only the shape that pickles use, (0,).

    Another shape would allocate memory that the file does not fill.
    """
    if kind is not np.ndarray or shape != (0,):
        raise pickle.UnpicklingError('GLOBAL numpy._reconstruct')
    return np.zeros(0).__reduce__()[0](kind, shape, dtype)


def _method_of_known_class(owner: Any, name: str) -> Callable:
    """Replaces ``getattr``, which would let a pickle reach anything.

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
    """Finds the checkpoint to resume from, even if the run was killed while writing one.

    It is the first file that loads and holds weights and optimizer state. mmengine's record of the last
    checkpoint is tried first, then every ``*.pth`` from the newest on, and ``best_*`` after all others.

    Raises:
        RefusedCheckpointError: A file is whole but needs the user's permission, as older ones would
            too.
    """
    record = Path(work_dir, 'last_checkpoint')
    # After a power failure a file may hold zero bytes
    text = record.read_text(errors='replace') if record.is_file() else ''
    recorded = text.replace('\0', '').strip()
    # The record has an absolute path; in a copied folder it points to the original folder
    here = Path(work_dir, Path(recorded).name)
    candidates = [here if here.is_file() else Path(recorded)] if recorded else []
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
            warn(f'{error} It is skipped.')
            passed_over = True
            continue
        if passed_over:
            warn(f'Resuming from {path} instead.')
        return str(path)
    if passed_over:
        warn(f'No checkpoint in {work_dir} can be resumed from.')
    return None
