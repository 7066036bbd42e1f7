"""Trains a prototype network in stages."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, zip_longest

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from mmkdx.arguments import flag, integer, number
from mmkdx.datasets.wrappers import class_names, class_text
from mmkdx.distillation import Distiller
from mmkdx.models.heads import ProtoPNetHead, PrototypeHead
from mmkdx.models.heads.prototype_head import prototype_head
from mmkdx.registry import HOOKS

#: The parts of a prototype network that a stage can train, and their modules.
GROUPS = {
    'backbone': ('backbone', 'neck'),
    'add_on': ('head.add_on',),
    'prototypes': ('head.prototype_layer',),
    'last_layer': ('head.last_layer',),
}


@HOOKS.register_module()
class PrototypeStageHook(Hook):
    """Trains the parts of a prototype network in stages.

    A part that a stage does not train stays exactly as it is: it has no gradients, and its batch norms
    keep their running statistics. The optimizer forgets its moments at the start of a stage,
    because each stage of the public code has its own optimizer. Set the parts' learning rates and
    weight decays in ``optim_wrapper.paramwise_cfg.custom_keys``. Its keys are 'backbone', 'add_on',
    'prototype_layer' and 'last_layer'. In distributed training set
    ``find_unused_parameters = True``.

    Source: Chen et al., "This Looks Like That", NeurIPS 2019, and Keswani et al., "Proto2Proto", CVPR
    2022. In their public code, batch norm statistics change in all stages (``norm_eval=False``).

    Args:
        stages (Sequence[dict]): The stages in order. ``train`` lists the trained parts: some of
            'backbone', 'add_on', 'prototypes' and 'last_layer'. ``epochs`` is the length; the last
            stage may omit it and then takes the rest of the training. ``student_weight`` is
            optional and replaces the distiller's.
        norm_eval (bool): Whether the batch norms of parts that are not trained are in eval mode.
            Defaults to True.
        copy_last_layer (bool): Whether the student starts with its teacher's last layer. Defaults
            to False.

    Raises:
        ValueError: If a stage has another form; before training, if the model, its teacher or the
            config do not fit.
    """

    def __init__(
        self, stages: Sequence[dict], norm_eval: bool = True, copy_last_layer: bool = False
    ) -> None:
        if not isinstance(stages, list | tuple) or not all(isinstance(s, dict) for s in stages):
            raise ValueError(f'PrototypeStageHook.stages is {stages!r}; it must be a list of dicts')
        for i, stage in enumerate(stages):
            key = f'PrototypeStageHook.stages[{i}]'
            if unknown := set(stage) - {'epochs', 'train', 'student_weight'}:
                raise ValueError(
                    f'{key} has the unknown key {sorted(unknown)[0]!r}; a stage has train, epochs and '
                    'student_weight'
                )
            train = stage.get('train')
            if not isinstance(train, list | tuple) or not train or set(train) - set(GROUPS):
                raise ValueError(
                    f'{key}.train is {train!r}; it must list some of {", ".join(GROUPS)}'
                )
            if 'epochs' in stage:
                integer(f'{key}.epochs', stage['epochs'], 1)
            elif i < len(stages) - 1:
                raise ValueError(f'{key}.epochs is missing; only the last stage may be open-ended')
            if 'student_weight' in stage:
                number(f'{key}.student_weight', stage['student_weight'], 0)
        if not stages:
            raise ValueError('PrototypeStageHook.stages is empty')
        self.stages = stages
        self.norm_eval = flag('PrototypeStageHook.norm_eval', norm_eval)
        self.copy_last_layer = flag('PrototypeStageHook.copy_last_layer', copy_last_layer)
        self._student_weight: float | None = None

    def stage_at(self, epoch: int) -> tuple[int, bool]:
        """The stage of an epoch, counted from 0, and whether the epoch is the stage's first."""
        ends = list(accumulate(stage['epochs'] for stage in self.stages[:-1]))
        return bisect_right(ends, epoch), epoch in (0, *ends)

    def before_train(self, runner: Runner) -> None:
        """Checks that the stages can be trained, and copies the teacher's last layer."""
        model, student = models_of(runner)
        head = prototype_head(student, 'PrototypeStageHook')
        if is_model_wrapper(runner.model) and not runner.cfg.get('find_unused_parameters'):
            raise ValueError(
                'PrototypeStageHook trains only some parts, so distributed training needs '
                'find_unused_parameters = True in the config'
            )
        if isinstance(model, Distiller):
            self._student_weight = model.student_weight
        elif any('student_weight' in stage for stage in self.stages):
            raise ValueError(
                'PrototypeStageHook.stages: student_weight needs a Distiller, and the model is a '
                f'{type(model).__name__}'
            )
        for name in {name for stage in self.stages for name in stage['train']}:
            if not _group(student, name):
                raise ValueError(
                    f'PrototypeStageHook.stages: {type(head).__name__} has no {name} to train'
                )
        if self.copy_last_layer:
            self._copy_last_layer(runner, model, head)

    def before_train_epoch(self, runner: Runner) -> None:
        """Starts a stage if one begins here, and sets which parts are trained."""
        number, first = self.stage_at(runner.epoch)
        stage = self.stages[number]
        model, student = models_of(runner)
        if first:
            runner.optim_wrapper.optimizer.state.clear()
            runner.logger.info(f'Stage {number}: trains {", ".join(stage["train"])}')
        for name in GROUPS:
            for module in _group(student, name):
                module.requires_grad_(name in stage['train'])
                if name not in stage['train']:
                    module.zero_grad(set_to_none=True)
        if self._student_weight is not None:
            model.student_weight = stage.get('student_weight', self._student_weight)
        if hasattr(student.head, 'begin_epoch'):
            student.head.begin_epoch(len(runner.train_dataloader))

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        """Puts batch norms that are not trained into eval mode, after the loop's ``train()``."""
        if batch_idx or not self.norm_eval:
            return
        stage = self.stages[self.stage_at(runner.epoch)[0]]
        for name in set(GROUPS) - set(stage['train']):
            for part in _group(models_of(runner)[1], name):
                for module in part.modules():
                    if isinstance(module, _NormBase):
                        module.eval()

    def _copy_last_layer(self, runner: Runner, model: nn.Module, head: PrototypeHead) -> None:
        key = 'PrototypeStageHook.copy_last_layer'
        teachers = getattr(model, 'teachers', ())
        theirs = getattr(getattr(teachers[0], 'model', None), 'head', None) if teachers else None
        if not (isinstance(theirs, ProtoPNetHead) and isinstance(head, ProtoPNetHead)):
            raise ValueError(f'{key}: student and teacher must both have a ProtoPNetHead')
        if not torch.equal(theirs.class_identity.cpu(), head.class_identity.cpu()):
            raise ValueError(
                f"{key}: the student's prototypes belong to other classes than the teacher's; set "
                "student.head.num_classes and prototypes_per_class to the teacher's values"
            )
        names = class_names(runner.train_dataloader.dataset)
        known = getattr(teachers[0], 'classes', None)
        if names and known and list(names) != list(known):
            pairs = enumerate(zip_longest(names, known))
            i = next(i for i, (name, other) in pairs if name != other)
            raise ValueError(
                f"{key}: the training data's classes have another order or other names than the "
                f"teacher's classes, first at class {class_text(i, names)}"
            )
        if runner.iter == 0:  # not after a resume
            with torch.no_grad():
                head.last_layer.weight.copy_(theirs.last_layer.weight)


def models_of(runner: Runner) -> tuple[nn.Module, nn.Module]:
    """A runner's model without its wrapper, and the model's student."""
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    return model, model.student if isinstance(model, Distiller) else model


def _group(student: nn.Module, name: str) -> list[nn.Module]:
    """The modules of a part."""
    modules = dict(student.named_modules())
    return [modules[path] for path in GROUPS[name] if path in modules]
