"""Compresses gradients that processes exchange."""

from __future__ import annotations

from typing import Any

from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from mmkdx.arguments import errors_named, one_of
from mmkdx.registry import HOOKS

TYPES = dict(
    fp16=default_hooks.fp16_compress_hook,
    bf16=default_hooks.bf16_compress_hook,
    power_sgd=powerSGD_hook.powerSGD_hook,
)


@HOOKS.register_module()
class GradientCompressionHook(Hook):
    """Makes ``DistributedDataParallel`` exchange compressed gradients, by torch's own functions.

    Use it if processes wait for the network, since it rounds gradients. With one process it does
    nothing. Checkpoints do not hold PowerSGD's state. So a resumed run begins with plain gradients
    again, until ``start_powerSGD_iter``.

    Source of 'power_sgd': Vogels et al., "PowerSGD", NeurIPS 2019.

    Args:
        kind (str): 'fp16' or 'bf16', which halve the bytes; or 'power_sgd', a low-rank
            approximation that adds each step's error to the next step. Defaults to 'bf16'.
        **options: For 'power_sgd', the arguments of torch's ``PowerSGDState``, such as
            ``matrix_approximation_rank`` and ``start_powerSGD_iter``.

    Raises:
        ValueError: If ``kind`` or an option is unknown; before training, if there are several processes
            and their model is not a ``DistributedDataParallel``.
    """

    def __init__(self, kind: str = 'bf16', **options: Any) -> None:
        one_of('GradientCompressionHook.kind', kind, TYPES)
        if options and kind != 'power_sgd':
            raise ValueError(
                f'GradientCompressionHook: kind={kind!r} takes no options, and there are '
                f'{", ".join(options)}'
            )
        self.kind = kind
        self.state = None
        if kind == 'power_sgd':
            with errors_named(
                'GradientCompressionHook: PowerSGD: ', errors=(TypeError, ValueError)
            ):
                self.state = powerSGD_hook.PowerSGDState(None, **options)

    def before_train(self, runner: Runner) -> None:
        """Registers the compression with the model's wrapper."""
        if get_world_size() == 1:
            return
        if not isinstance(runner.model, DistributedDataParallel):
            raise ValueError(
                'GradientCompressionHook is for a model in MMDistributedDataParallel, and '
                f'model_wrapper_cfg makes a {type(runner.model).__name__}; remove the hook from '
                'custom_hooks'
            )
        runner.model.register_comm_hook(self.state, TYPES[self.kind])
