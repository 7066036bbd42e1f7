"""Stops a run on a signal without losing its progress."""

from __future__ import annotations

import os
import signal
import threading
import time
from functools import partial
from typing import Any

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import distributed

from mmkdx.hooks.checkpoint_hook import CheckpointHook
from mmkdx.registry import HOOKS

#: Signals within so many seconds count as one: launchers signal a group and each process.
TOGETHER = 2.0


@HOOKS.register_module()
class InterruptionHook(Hook):
    """Ends a training with a checkpoint on SIGTERM or SIGINT, which clusters send.

    The current step ends, the ``CheckpointHook`` of mmkdx saves the run, and the process exits with
    status 143 (SIGTERM) or 130 (SIGINT). All processes of a distributed run stop at the same step. With
    gradient accumulation the run first goes on to the next update. A second signal, two seconds
    later or more, ends the process at once.

    A run of one process breaks off a validation if its last checkpoint is from this iteration,
    because a resumed run validates first. Any other validation is finished before the run stops.

    ``tools/train.py`` adds this hook.

    Raises:
        SystemExit: After a signal, with status 143 or 130.
    """

    priority = 'LOWEST'

    def __init__(self) -> None:
        self._signal, self._since, self._stopping = 0, 0.0, 0
        self._old: dict[int, Any] | None = None
        self._group: Any = None
        self._pending: tuple[Any, torch.Tensor] | None = None

    def before_train(self, runner: Runner) -> None:
        """Creates a group in which the processes share signals."""
        if get_world_size() > 1:
            self._group = distributed.new_group(backend='gloo')

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Installs the signal handlers; before the first step there is nothing to save."""
        if self._old is None:
            self._old = {}
            if threading.current_thread() is threading.main_thread():
                process = os.getpid()
                for number in (signal.SIGTERM, signal.SIGINT):
                    if signal.getsignal(number) is not signal.SIG_IGN:
                        note = partial(self._note, process)
                        self._old[number] = signal.signal(number, note)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Stops, unless the epoch ends anyway or gradients are being accumulated."""
        self._stopping = self._agree()
        loop = runner.train_loop
        ends = isinstance(loop, EpochBasedTrainLoop) and batch_idx + 1 == len(loop.dataloader)
        if self._stopping and not ends and _is_updated(runner):
            self._stop(runner, runner.epoch, runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        """Stops at the end of an epoch."""
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        if self._stopping and by_epoch and _is_updated(runner):
            self._stop(runner, runner.epoch + 1, runner.iter)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Stops a run of one process if it is saved; several may be at different batches."""
        hook = _checkpoint_hook(runner)
        if self._signal and self._group is None and hook and hook.is_saved(runner.iter):
            self._stop(runner, runner.epoch, runner.iter, saved=hook.last_ckpt)

    def after_val(self, runner: Runner) -> None:
        """Stops after a validation."""
        if self._old is None:
            return
        self._agree()
        self._stopping = self._agree()
        if self._stopping:
            self._stop(runner, runner.epoch, runner.iter)

    def after_train(self, runner: Runner) -> None:
        """Restores the earlier signal handlers, and ends the exchange."""
        for number, handler in (self._old or {}).items():
            signal.signal(number, handler)
        self._old = None
        if self._pending is not None:
            # An exchange that ends while Python shuts down aborts the process with status 134
            self._pending[0].wait()
        self._group = self._pending = None

    def _note(self, process: int, number: int, frame: Any) -> None:
        """Handles a signal."""
        if os.getpid() != process:
            return  # a worker that has just started
        if not self._signal:
            self._signal, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > TOGETHER:
            signal.signal(number, signal.SIG_DFL)
            os.kill(process, number)

    def _agree(self) -> int:
        """The signal of any process up to the last call; with one process, up to now.

        The exchange runs during the next step, so no step waits for it.
        """
        if self._group is None:
            return self._signal
        found = 0
        if self._pending is not None:
            work, flag = self._pending
            work.wait()
            found = int(flag)
        flag = torch.tensor(self._signal)
        work = distributed.all_reduce(
            flag, distributed.ReduceOp.MAX, group=self._group, async_op=True
        )
        self._pending = work, flag
        return found

    def _stop(self, runner: Runner, epoch: int, iterations: int, saved: str | None = None) -> None:
        """Saves and exits."""
        number = self._signal or self._stopping
        hook = _checkpoint_hook(runner)
        if saved is None and hook is not None:
            saved = hook.save_interrupted(runner, epoch, iterations)
        how = f'--resume goes on from {saved}' if saved else 'it has no CheckpointHook of mmkdx'
        runner.logger.warning(
            f'{signal.Signals(number).name}: the run stops after {iterations} iterations; {how}.'
        )
        if self._group is not None:
            self._pending[0].wait()
            distributed.barrier(self._group)  # a launcher kills the others when the first one ends
        for each in self._old or ():
            signal.signal(each, signal.SIG_IGN)
        runner.visualizer.close()
        raise SystemExit(128 + number)


def _checkpoint_hook(runner: Runner) -> CheckpointHook | None:
    """The run's checkpoint hook, if it is mmkdx's."""
    return next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)


def _is_updated(runner: Runner) -> bool:
    """Whether no gradients wait for an update; a checkpoint does not hold gradients."""
    ask = getattr(runner.optim_wrapper, 'should_update', None)
    return ask is None or ask()
