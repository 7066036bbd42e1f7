"""Projects prototypes onto patches of training images during training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from mmkdx.arguments import flag, integer, number, options, positive
from mmkdx.datasets.push_set import check_push_set, images_of_classes, listed, push_dataloader
from mmkdx.datasets.wrappers import class_names
from mmkdx.hooks.prototype_stage_hook import models_of
from mmkdx.models.heads import ProtoPNetHead, PrototypeHead
from mmkdx.models.heads.prototype_head import prototype_head
from mmkdx.models.heads.push import find_nearest_patches, push
from mmkdx.models.intercept import evaluating
from mmkdx.registry import HOOKS
from mmkdx.visualization.prototype_sheets import PrototypeSheets
from mmkdx.visualization.sections import PictureSection


@HOOKS.register_module()
class PrototypePushHook(Hook):
    """Projects every prototype onto the nearest patch of a training image, and tunes the last layer.

    A push also follows the last epoch. A prototype moves to the nearest patch of its allowed
    images, over all ranks. In ``ProtoPNetHead`` these are the images of its class. The prototype
    then knows its source (see ``PrototypeHead``). The student's own losses tune the last layer with
    Adam. Validation scores are logged as ``prototypes/<pre_push | pushed | tuned>/<score>``.

    With ``prune`` the last push drops prototypes. A ``ProtoPNetHead`` drops a prototype if fewer
    than ``min_same_class`` of its k nearest training images are of its class. Its last layer is
    then tuned for ``prune['tune_epochs']`` more. Before the push, a ``ProtoTreeHead`` drops each
    subtree in which no leaf has a probability above ``threshold``.

    Source: Chen et al., "This Looks Like That", NeurIPS 2019, section 2.2, and Nauta et al., "Neural
    Prototype Trees", CVPR 2021. In their public code, batch norm statistics change while the last
    layer is tuned (``norm_eval=False``).

    Args:
        start (int): The first epoch, counted from 1, that a push follows.
        interval (int): Number of epochs from one push to the next. Defaults to 10.
        dataloader (dict, optional): The images to project onto, without augmentation. Defaults to None:
            ``push_dataloader`` of the config if there is one, else the training data set with the
            validation pipeline.
        tune_epochs (int): Number of passes over the training data to tune the last layer. Defaults
            to 20.
        tune_lr (float): The learning rate of these passes. Defaults to 1e-4.
        norm_eval (bool): Whether the network is in eval mode in these passes. Defaults to True.
        prune (dict, optional): 'k' (6), 'min_same_class' (3) and 'tune_epochs' (100) for a
            ``ProtoPNetHead``, or 'threshold' (0.01) for a ``ProtoTreeHead``. Defaults to None.

    Raises:
        ValueError: If an argument is out of range; before training, if the images are augmented, or a
            class has no images.
    """

    def __init__(
        self,
        start: int,
        interval: int = 10,
        dataloader: dict | None = None,
        tune_epochs: int = 20,
        tune_lr: float = 1e-4,
        norm_eval: bool = True,
        prune: dict | None = None,
    ) -> None:
        self.start = integer('PrototypePushHook.start', start, 1)
        self.interval = integer('PrototypePushHook.interval', interval, 1)
        if dataloader is not None:
            options('PrototypePushHook.dataloader', dataloader)
        self.dataloader: dict | DataLoader | None = dataloader
        self.tune_epochs = integer('PrototypePushHook.tune_epochs', tune_epochs, 0)
        self.tune_lr = positive('PrototypePushHook.tune_lr', tune_lr)
        self.norm_eval = flag('PrototypePushHook.norm_eval', norm_eval)
        if prune is not None:
            key = 'PrototypePushHook.prune'
            options(key, prune)
            k = integer(f'{key}.k', prune.get('k', 6), 1)
            integer(f'{key}.min_same_class', prune.get('min_same_class', 3), 0, k)
            integer(f'{key}.tune_epochs', prune.get('tune_epochs', 100), 0)
            number(f'{key}.threshold', prune.get('threshold', 0.01), 0, 1, open_high=True)
        self.prune = prune

    def pushes_after(self, epoch: int, max_epochs: int) -> bool:
        """Whether a push follows an epoch, counted from 1."""
        regular = epoch >= self.start and (epoch - self.start) % self.interval == 0
        return regular or epoch == max_epochs

    def before_train(self, runner: Runner) -> None:
        """Builds and checks the push data."""
        head = prototype_head(models_of(runner)[1], 'PrototypePushHook')
        tree = not isinstance(head, ProtoPNetHead)
        known = ('threshold',) if tree else ('k', 'min_same_class', 'tune_epochs')
        if unknown := set(self.prune or ()) - set(known):
            raise ValueError(
                f'PrototypePushHook.prune has the unknown key {sorted(unknown)[0]!r}; for '
                f'{type(head).__name__} there are {", ".join(known)}'
            )
        if tree and self.tune_epochs:
            raise ValueError(
                f'PrototypePushHook.tune_epochs is {self.tune_epochs} and {type(head).__name__} has no '
                'last layer; set it to 0'
            )
        if not isinstance(self.dataloader, DataLoader):
            self.dataloader = Runner.build_dataloader(
                push_dataloader(runner.cfg, self.dataloader), seed=runner.seed
            )
        check_push_set(self.dataloader, head.num_classes)
        if self.prune is not None and not tree:
            self._warn_of_small_classes(runner, head)

    def after_train_epoch(self, runner: Runner) -> None:
        """Pushes and tunes the last layer if a push is due."""
        epoch = runner.epoch + 1
        if not self.pushes_after(epoch, runner.max_epochs):
            return
        student = models_of(runner)[1]
        head: PrototypeHead = student.head
        prune = self.prune if epoch == runner.max_epochs else None
        scores = dict(pre_push=self._evaluate(runner))
        if prune is not None and not isinstance(head, ProtoPNetHead):
            try:
                count = head.prune(**prune)
                runner.logger.info(f'Pruned {count} of {len(head.alive)} prototypes')
            except ValueError as error:  # a long training should not end here
                runner.logger.warning(f'PrototypePushHook.prune: nothing is pruned: {error}')
        before = head.prototypes.detach().clone()
        push(student, self.dataloader)
        moved = (head.prototypes - before).norm(dim=1).mean()
        scores['pushed'] = self._evaluate(runner)
        self._tune(runner, student, self.tune_epochs)
        if prune is not None and isinstance(head, ProtoPNetHead):
            self._prune(runner, student, prune)
            self._tune(runner, student, prune.get('tune_epochs', 100))
        if self.tune_epochs or prune is not None:
            scores['tuned'] = self._evaluate(runner)
        lines, logged = [f'prototypes moved by {moved:.4f}'], {}
        for state, values in scores.items():
            said = ', '.join(f'{name} {value:.4f}' for name, value in values.items())
            lines.append(f'{state} {said}')
            logged.update({f'prototypes/{state}/{name}': each for name, each in values.items()})
        runner.logger.info(f'Push after epoch {epoch}: {"; ".join(lines)}')
        runner.message_hub.update_scalars({f'val/{name}': each for name, each in logged.items()})
        if logged:
            runner.visualizer.add_scalars(logged, step=epoch)

    def report_sections(
        self, runner: Runner, shown: Sequence[tuple[str, dict]], classes: Sequence[str] | None
    ) -> list[PictureSection]:
        """Sections for ``ExplainHook``'s report: the prototypes that decide on some images.

        Each image of ``shown`` is a name and a sample.
        """
        student = models_of(runner)[1]
        if not isinstance(getattr(student, 'head', None), ProtoPNetHead) or not shown:
            return []
        try:
            data = self.dataloader
            if not isinstance(data, DataLoader):  # there was no training
                data = Runner.build_dataloader(push_dataloader(runner.cfg, data))
            return [PrototypeSheets(student, data.dataset, classes).decisions(shown)]
        except (ValueError, FileNotFoundError) as error:
            runner.logger.warning(f'The report has no section of prototypes: {error}')
            return []

    def _warn_of_small_classes(self, runner: Runner, head: ProtoPNetHead) -> None:
        """Warns of classes that have too few images to keep any of their prototypes."""
        least = self.prune.get('min_same_class', 3)
        dataset = self.dataloader.dataset
        counts = images_of_classes(dataset, head.num_classes)
        small = np.flatnonzero(counts < least).tolist()
        if small:
            runner.logger.warning(
                'PrototypePushHook.prune will drop all prototypes of '
                f'{listed(small, class_names(dataset))}, because there are fewer than '
                f'min_same_class={least} images to project onto; set prune.min_same_class to at most '
                f'{counts.min()}, or leave prune out'
            )

    def _prune(self, runner: Runner, student: nn.Module, prune: dict) -> None:
        """Drops prototypes of a ``ProtoPNetHead``, and logs their classes."""
        head: ProtoPNetHead = student.head
        before = head.alive.clone()
        nearest = find_nearest_patches(student, self.dataloader, prune.get('k', 6))
        count = head.prune(nearest.labels, prune.get('min_same_class', 3))
        names = class_names(self.dataloader.dataset)
        dropped = head.class_identity[before & ~head.alive].any(0).nonzero()[:, 0].tolist()
        of = f', of the classes {listed(dropped, names)}' if dropped else ''
        runner.logger.info(f'Pruned {count} of {len(before)} prototypes{of}')
        if empty := head.classes_without_prototypes():
            runner.logger.warning(
                f'PrototypePushHook.prune left {len(empty)} of {head.num_classes} classes without a '
                f'prototype: {listed(empty, names)}'
            )

    @torch.no_grad()
    def _evaluate(self, runner: Runner) -> dict[str, float]:
        """The scores of a validation that calls no hooks."""
        loop = runner.val_loop
        if loop is None:
            return {}
        with evaluating(runner.model):
            for batch in loop.dataloader:
                loop.evaluator.process(data_samples=runner.model.val_step(batch), data_batch=batch)
        return loop.evaluator.evaluate(len(loop.dataloader.dataset))

    def _tune(self, runner: Runner, student: nn.Module, epochs: int) -> None:
        """Trains only the last layer."""
        if not epochs:
            return
        weight = student.head.last_layer.weight
        optimizer = torch.optim.Adam([weight], lr=self.tune_lr)
        trained = [(each, each.requires_grad) for each in student.parameters()]
        student.requires_grad_(False)
        weight.requires_grad_()
        with evaluating(student):  # restores the modes
            student.train(not self.norm_eval)
            for epoch in range(epochs):
                runner.train_dataloader.sampler.set_epoch(runner.epoch + epoch)
                for batch in runner.train_dataloader:
                    data = student.data_preprocessor(batch, True)
                    loss, _ = student.parse_losses(student(**data, mode='loss'))
                    optimizer.zero_grad()
                    loss.backward()
                    all_reduce(weight.grad, op='mean')
                    optimizer.step()
        for parameter, before in trained:
            parameter.requires_grad_(before)
        weight.grad = None
