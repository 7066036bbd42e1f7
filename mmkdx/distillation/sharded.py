"""A distiller whose student is sharded over several devices."""

from __future__ import annotations

from typing import Any

from mmengine.model.wrappers import MMFullyShardedDataParallel
from torch.distributed.fsdp import FullyShardedDataParallel

from mmkdx.distillation.checkpoint import to_checkpoint
from mmkdx.distillation.distiller import Distiller
from mmkdx.models.plain_classifier import PlainClassifier, without_prefix
from mmkdx.registry import MODEL_WRAPPERS


@MODEL_WRAPPERS.register_module()
class FullyShardedDistiller(MMFullyShardedDataParallel):
    """torch's ``FullyShardedDataParallel`` around a ``Distiller``, with the student's checkpoints.

    Teachers are not part of the module, so they are not sharded: each process has whole teachers.

    Args:
        module (Distiller): The distiller.
        **kwargs: The arguments of mmengine's ``MMFullyShardedDataParallel``.

    Raises:
        ValueError: If a teacher averages the student's weights, as no process has all of them. Also
            if a term reads weights of a module that ``auto_wrap_policy`` shards on its own.
    """

    def __init__(self, module: Distiller, **kwargs: Any) -> None:
        if any(teacher.trained_along for teacher in module.teachers):
            raise ValueError(
                'teacher: an EMATeacher averages the whole student, and each process of '
                'FullyShardedDistiller has only a part of it; use MMDistributedDataParallel'
            )
        student = module.student
        plain = isinstance(student, PlainClassifier)
        super().__init__(module, **kwargs)
        for unit, part in module.student.named_modules():
            read = [path for path in module.weights_read if f'{path}.'.startswith(f'{unit}.')]
            if unit and read and isinstance(part, FullyShardedDataParallel):
                raise ValueError(
                    f"model_wrapper.auto_wrap_policy shards the student's {read[0]!r} on its "
                    "own, and the tap 'cam' or 'prototypes' reads its weights later; let "
                    'the policy wrap larger modules only'
                )
        # FSDP expects the tensors of a state dict under their names in the module
        module.checkpoint_names.remove()
        if plain:
            student.checkpoint_names.remove()

        def name(wrapper: FullyShardedDistiller, state: dict, prefix: str, metadata: dict) -> None:
            if plain:
                without_prefix(student, state, f'{prefix}student.', metadata)
            to_checkpoint(wrapper.module, state, prefix, metadata)

        self.register_state_dict_post_hook(name)
