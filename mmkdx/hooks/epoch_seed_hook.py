"""Random numbers that do not depend on where a run was interrupted."""

from __future__ import annotations

import numpy as np
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner, set_random_seed

from mmkdx.registry import HOOKS


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Reseeds Python, NumPy and torch at the start of each training epoch, by seed, epoch and rank.

    So an epoch draws the same numbers whatever came before, such as another number of validations.
    mmkdx's ``CheckpointHook`` restores the state of the generators inside an epoch.
    mmengine seeds worker processes: with ``persistent_workers=True`` their numbers depend on the epochs
    before.
    """

    # Before the hooks that draw random numbers, if a user has any.
    priority = 'VERY_HIGH'

    def before_train_epoch(self, runner: Runner) -> None:
        """Seeds this epoch."""
        # A hash, so that two runs of a study never share an epoch's numbers.
        words = np.random.SeedSequence([runner.seed, runner.epoch, get_rank()]).generate_state(1)
        set_random_seed(int(words[0]))
