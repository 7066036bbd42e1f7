"""Checkpoints that a crash cannot damage, and runs that resume where they stopped."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import (
    all_gather_object,
    broadcast,
    get_rank,
    get_world_size,
    is_main_process,
)
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from mmkdx.registry import HOOKS

#: The checkpoint of a run that a signal has stopped.
INTERRUPTED = 'interrupted.pth'


@HOOKS.register_module()
class CheckpointHook(MMEngineCheckpointHook):
    """mmengine's ``CheckpointHook`` for runs that may be killed at any moment.

    An outdated checkpoint is removed after the new one is complete. A checkpoint also holds the
    state of the random generators, the number of finished batches in the epoch, and which
    validation was done last. A resumed run skips these batches. If a validation was due at the
    checkpoint and is missing, it runs first. A checkpoint is written again after its validation.
    All processes of a distributed run continue with the checkpoint's buffers, such as the
    statistics of batch norm.

    Args:
        *args: Arguments of mmengine's hook.
        **kwargs: Arguments of mmengine's hook, such as ``interval``, ``save_best`` and
            ``max_keep_ckpts``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Positions in a run are counted in finished iterations
        self._saved: tuple[int, int] | None = None  # its position and last validation
        self._validated, self._batch = -1, 0
        self._progress: dict | None = None
        self._place: dict[str, int] = {}
        self._loaded: dict = {}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keeps the run's position from the checkpoint."""
        found = checkpoint.get('progress')
        self._loaded = found if isinstance(found, dict) else {}

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Adds the run's position."""
        if self._progress is not None:
            checkpoint['progress'] = self._progress
            # FlexibleRunner assumes that each checkpoint is from the end of a training epoch
            checkpoint['meta'].update(self._place)

    def before_train(self, runner: Runner) -> None:
        """Brings a resumed run to its position."""
        super().before_train(runner)
        loop, found = runner.train_loop, self._loaded
        if not runner.iter:
            return
        self._validated, self._batch = found.get('validated', -1), found.get('batch', 0)
        if self._batch and found.get('batches') != len(loop.dataloader):
            runner.logger.warning(
                f'The checkpoint is from the middle of an epoch of {found.get("batches")} batches, '
                f'and now an epoch has {len(loop.dataloader)}: this epoch begins again.'
            )
            self._batch = 0
        last = runner.message_hub.runtime_info.get('last_ckpt')
        if last is not None and Path(last).name != INTERRUPTED:
            self.last_ckpt, self._saved = last, (runner.iter, self._validated)
            if is_main_process():  # a killed run had no time to remove them
                self._remove(list(map(str, found.get('outdated') or ())))
        states = found.get('random', ())
        if len(states) == get_world_size():
            set_random_state(states[get_rank()])
        if not self._batch and _validation_is_due(runner) and self._validated != runner.iter:
            runner.logger.info(
                'The validation that was due at this checkpoint is missing: it runs now.'
            )
            runner.val_loop.run()
        state = random_state()
        _skip(loop, self._batch, lambda: set_random_state(state))

    def before_train_epoch(self, runner: Runner) -> None:
        """Resets the count of batches."""
        self._batch = 0

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Counts the batch, and saves if checkpoints are by iteration."""
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            self._batch = batch_idx + 1
        super().after_train_iter(runner, batch_idx, data_batch, outputs)

    def after_train_epoch(self, runner: Runner) -> None:
        """Saves if checkpoints are by epoch."""
        self._batch = 0
        super().after_train_epoch(runner)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float]) -> None:
        """Saves the best checkpoint, and the last one again with its validation."""
        if not hasattr(self, 'file_backend'):  # no training
            super().after_val_epoch(runner, metrics)
            return
        self._validated = runner.iter
        with self._removing_last():
            super().after_val_epoch(runner, metrics)
            if self._saved is not None and self._saved[0] == runner.iter != self._saved[1]:
                step = runner.epoch if self.by_epoch else runner.iter
                meta = dict(epoch=runner.epoch, iter=runner.iter)
                self._save_checkpoint_with_step(runner, step, meta)

    def is_saved(self, iterations: int) -> bool:
        """Whether the last checkpoint is from this iteration."""
        return self._saved is not None and self._saved[0] == iterations

    def save_interrupted(self, runner: Runner, epoch: int, iterations: int) -> str:
        """Saves a run before it stops, unless the last checkpoint is up to date.

        Args:
            runner (Runner): The runner.
            epoch (int): The number of finished epochs.
            iterations (int): The number of finished iterations.

        Returns:
            str: The checkpoint.
        """
        if self._saved != (iterations, self._validated):
            before = self.max_keep_ckpts, self.filename_tmpl
            self.max_keep_ckpts, self.filename_tmpl = -1, INTERRUPTED
            meta = dict(epoch=epoch, iter=iterations)
            try:
                self._save_checkpoint_with_step(runner, iterations, meta)
            finally:
                self.max_keep_ckpts, self.filename_tmpl = before
        return self.last_ckpt

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        # Batch norm statistics differ between processes; a checkpoint holds the first process's
        for buffer in runner.model.buffers():
            broadcast(buffer)
        if self.filename_tmpl != INTERRUPTED:
            # FlexibleRunner has changed this dict if mmengine's hook saved the best with it
            place = (step, runner.iter) if self.by_epoch else (runner.epoch, step)
            meta.update(zip(('epoch', 'iter'), place))
        self._place = dict(meta)
        self._progress = dict(
            batch=self._batch,
            batches=len(runner.train_loop.dataloader),
            validated=self._validated,
            random=all_gather_object(random_state()),
        )
        with self._removing_last():
            self._progress['outdated'] = self.file_backend.removed
            super()._save_checkpoint_with_step(runner, step, meta)
            if is_main_process():
                self.file_backend.remove(self.file_backend.join_path(self.out_dir, INTERRUPTED))
        self._progress, self._saved = None, (self._place['iter'], self._validated)

    @contextmanager
    def _removing_last(self) -> Iterator[None]:
        """Removes outdated files only after new ones are complete."""
        backend = self.file_backend
        if isinstance(backend, _Postponed):
            yield
            return
        self.file_backend = postponed = _Postponed(backend)
        try:
            yield
        finally:
            self.file_backend = backend
        self._remove(postponed.removed)

    def _remove(self, paths: Sequence[str]) -> None:
        """Removes outdated checkpoints, but no file outside the folder."""
        best = getattr(self, 'best_ckpt_path_dict', {}).values()
        new = {self.last_ckpt, getattr(self, 'best_ckpt_path', None), *best}
        for path in paths:
            # A loaded checkpoint names earlier ones, and may name any file
            inside = Path(path).parent == Path(self.out_dir) and Path(path).suffix == '.pth'
            if path not in new and inside:
                if self.file_backend.isfile(path):
                    self.file_backend.remove(path)
                elif self.file_backend.isdir(path):
                    self.file_backend.rmtree(path)


class _Postponed:
    """A file backend that only lists the files to remove."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.removed: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def remove(self, path: str) -> None:
        """Lists a file or a folder."""
        self.removed.append(path)

    rmtree = remove


def random_state() -> dict[str, Any]:
    """The state of this process's random generators, in types that load without running code."""
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    return dict(
        python=random.getstate(),
        numpy=np.random.get_state(),
        torch=torch.get_rng_state(),
        cuda=torch.cuda.get_rng_state() if cuda else None,
    )


def set_random_state(state: dict[str, Any]) -> None:
    """Sets this process's random generators to a state from ``random_state``."""
    random.setstate(state['python'])
    np.random.set_state(state['numpy'])
    torch.set_rng_state(state['torch'].cpu())  # a checkpoint is loaded to the model's device
    if state['cuda'] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())


def _validation_is_due(runner: Runner) -> bool:
    """Whether mmengine's loop validates at the run's position."""
    loop = runner.train_loop
    if runner.val_loop is None or not isinstance(loop, (EpochBasedTrainLoop, IterBasedTrainLoop)):
        return False
    loop._decide_current_val_interval()
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    place, end = (loop.epoch, loop.max_epochs) if by_epoch else (loop.iter, loop.max_iters)
    return place >= loop.val_begin and (place % loop.val_interval == 0 or place == end)


def _skip(loop: Any, batches: int, then: Callable[[], None]) -> None:
    """Makes a loop draw the finished batches without training, and then call ``then``."""
    if isinstance(loop, IterBasedTrainLoop):  # mmengine skips by itself
        if not getattr(loop, 'fast_forward_on_resume', False):
            loop.dataloader_iterator = _Advanced(loop.dataloader_iterator, loop.iter, then)
    elif batches:

        def pass_over(index: int, data: Any) -> None:
            if index == batches - 1:
                del loop.run_iter  # so the method of the class is back
                then()

        loop.run_iter = pass_over


class _Advanced:
    """An iterator over batches that calls a function when the first ones have been skipped."""

    def __init__(self, iterator: Any, count: int, then: Callable[[], None]) -> None:
        self.iterator, self.count, self.then = iterator, count, then

    def __next__(self) -> Any:
        data = next(self.iterator)
        self._advance(1)
        return data

    def skip_iter(self, count: int) -> None:
        """Skips as the iterator of onedl-mmengine does."""
        self.iterator.skip_iter(count)
        self.iterator._ensure_iterator()  # a new iterator draws a random number
        self._advance(count)

    def _advance(self, count: int) -> None:
        self.count -= count
        if self.count == 0:
            self.then()
