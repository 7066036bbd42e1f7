"""Random numbers that do not depend on where a run was interrupted."""

from __future__ import annotations

import numpy as np
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner, set_random_seed

from mmkdx.registry import HOOKS


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Seeds Python, NumPy and torch anew at the start of each training epoch, by seed, epoch and rank.

    A checkpoint does not hold the state of the random generators. With this hook a resumed run repeats
    an uninterrupted one exactly, as long as data are loaded in the main process (``num_workers=0``);
    mmengine seeds worker processes.
    """

    # Before the hooks that draw random numbers, if a user has any.
    priority = 'VERY_HIGH'

    def before_train_epoch(self, runner: Runner) -> None:
        """Seeds this epoch."""
        # A hash, so that no two of a study's runs share an epoch's numbers.
        words = np.random.SeedSequence([runner.seed, runner.epoch, get_rank()]).generate_state(1)
        set_random_seed(int(words[0]))
