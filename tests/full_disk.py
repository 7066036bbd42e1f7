"""A disk that is full, for everybody and without root."""

from __future__ import annotations

import io
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import Any
from unittest import mock

from mmengine.config import Config


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Lets this process write no file beyond a size in bytes; the system says 'File too large'.

    The temporary copies that mmengine makes of configs do not count, as if they were on another disk.
    What is printed is dropped, since stdout may be a file.
    """
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    read = Config.fromfile

    def limit(soft: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    def fromfile(*args: Any, **kwargs: Any) -> Config:
        limit(hard)
        try:
            return read(*args, **kwargs)
        finally:
            limit(size)

    with ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGXFSZ, signal.signal(signal.SIGXFSZ, signal.SIG_IGN))
        stack.enter_context(redirect_stdout(io.StringIO()))
        stack.enter_context(redirect_stderr(io.StringIO()))
        nowhere = os.open(os.devnull, os.O_WRONLY)
        stack.callback(os.close, nowhere)
        for stream in (1, 2):
            copy = os.dup(stream)
            stack.callback(os.close, copy)
            stack.callback(os.dup2, copy, stream)
            os.dup2(nowhere, stream)
        stack.enter_context(mock.patch.object(Config, 'fromfile', fromfile))
        stack.callback(limit, hard)
        limit(size)
        yield
