"""A distiller whose student is shared out over several devices."""

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
    """torch's ``FullyShardedDataParallel`` around a ``Distiller``, whose checkpoints are the student's.

    Teachers are no part of the module: each process has them as a whole.

    Args:
        module (Distiller): The distiller.
        **kwargs: As of mmengine's ``MMFullyShardedDataParallel``.

    Raises:
        ValueError: If a teacher is made of the student's weights, which no process has as a whole, or
            a term reads weights of a module that ``auto_wrap_policy`` shares out by itself.
    """

    def __init__(self, module: Distiller, **kwargs: Any) -> None:
        if any(teacher.trained_along for teacher in module.teachers):
            raise ValueError(
                'teacher: an EMATeacher averages the whole student, of which each process of '
                'FullyShardedDistiller has a part; use MMDistributedDataParallel'
            )
        student = module.student
        plain = isinstance(student, PlainClassifier)
        super().__init__(module, **kwargs)
        for unit, part in module.student.named_modules():
            read = [path for path in module.weights_read if f'{path}.'.startswith(f'{unit}.')]
            if unit and read and isinstance(part, FullyShardedDataParallel):
                raise ValueError(
                    f"model_wrapper.auto_wrap_policy shares out the student's {read[0]!r} by itself, "
                    "whose weights the tap 'cam' or 'prototypes' reads after its forward; let it take "
                    'larger modules only'
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
