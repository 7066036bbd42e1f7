"""Explains models at every evaluation, and measures the explanations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner

from mmkdx.arguments import flag, integer, text
from mmkdx.distillation.class_order import classes_in
from mmkdx.evaluation import Evaluation, ExplanationEvaluator
from mmkdx.evaluation.writer import try_files, write_files, write_page
from mmkdx.models.families import unwrap
from mmkdx.models.intercept import evaluating
from mmkdx.registry import HOOKS


@HOOKS.register_module()
class ExplainHook(Hook):
    """Shows and measures where a student and its teacher look, at every evaluation.

    It explains a fixed sample of the validation or test images with an ``ExplanationEvaluator``. The
    scores are named ``explain/…`` in the log, in ``scalars.json`` and in the ``metrics`` of the
    evaluation. So ``save_best='explain/…'`` works, with a ``rule``. A printed table and
    ``<log_dir>/explain/<val|test>.json`` show the scores with 95 % confidence intervals. The file
    ``<val|test>.csv`` beside it has each image's values. The run's visualizer gets some pictures.

    Before training, one image goes through all of this, files and metrics included. So a mistake in
    the config shows at once. Data samples must have 'sample_idx', which ``PackInputs`` packs. To
    explain without a run, use ``mmkdx.apis.evaluate_explanations``.

    Args:
        interval (int): Explain at every ``interval``-th evaluation in training. Defaults to 1.
        report (bool | dict): Whether a test writes ``<log_dir>/explain/report.html``; a dict of names
            and work directories adds the curves of these runs. Defaults to False.
        enable (bool): Whether the hook is active. Defaults to True.
        out_dir (str, optional): The folder of the files. Defaults to None (``<log_dir>/explain``).
        **options: ``explainer``, ``metrics``, ``num_samples``, ``show_samples``, ``target``,
            ``teacher``, ``base``, ``unicam``, ``context_size``, ``seed``, ``floor`` of
            ``ExplanationEvaluator``. The floor is measured only in tests.

    Raises:
        ValueError: If an argument is out of range; before the first iteration, if model, data or a
            metric do not fit.
    """

    def __init__(
        self,
        *,
        interval: int = 1,
        report: bool | dict[str, str] = False,
        enable: bool = True,
        out_dir: str | None = None,
        **options: Any,
    ) -> None:
        self.evaluator = ExplanationEvaluator(**options, owner='ExplainHook')
        self.interval = integer('ExplainHook.interval', interval, 1)
        self.report = report if isinstance(report, dict) else flag('ExplainHook.report', report)
        self.enable = flag('ExplainHook.enable', enable)
        if out_dir is not None:
            text('ExplainHook.out_dir', out_dir, 'the path of a folder')
        self.out_dir = out_dir
        self._active, self._mode = False, 'val'
        #: The names of the classes in the checkpoint that was loaded last.
        self._classes: tuple[str, ...] | None = None

    def before_train(self, runner: Runner) -> None:
        """Evaluates one image on trial."""
        if runner.val_loop is not None:
            self._try(runner, runner.val_loop, 'val')

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keeps the names of the checkpoint's classes."""
        self._classes = classes_in(checkpoint)

    def before_test(self, runner: Runner) -> None:
        """Evaluates one image on trial."""
        if self._classes:
            model = unwrap(runner.model)
            # As mmpretrain's get_model does; a training may start from a file of other classes
            getattr(model, 'student', model)._dataset_meta = dict(classes=self._classes)
        self._try(runner, runner.test_loop, 'test')

    def _before_epoch(self, runner: Runner, mode: str = 'train') -> None:
        """Draws the sample."""
        if mode == 'train':
            return
        # Scores that an evaluation leaves out must not be logged again
        scalars = runner.message_hub.log_scalars
        for name in [each for each in scalars if each.startswith(f'{mode}/explain/')]:
            del scalars[name]
        self._mode = mode
        self._active = self.enable
        if mode == 'val':
            # Kept in checkpoints, so that a resumed run goes on counting
            key = f'explain_hook_{runner.hooks.index(self)}_evaluations'
            done = runner.message_hub.runtime_info.get(key, 0)
            self._active = self.enable and done % self.interval == 0
            runner.message_hub.update_info(key, done + 1)
        if self._active:
            loop = runner.val_loop if mode == 'val' else runner.test_loop
            self.evaluator.begin(runner.model, loop.dataloader, floor=mode == 'test')

    def _after_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any, mode: str = 'train'
    ) -> None:
        """Explains the images of the batch that are in the sample."""
        if mode != 'train' and self._active:
            self.evaluator.process(data_batch)

    def _try(self, runner: Runner, loop: Any, mode: str) -> None:
        """Runs one image through the metrics and through all steps of an evaluation."""
        if not self.enable:
            return
        try:
            found = self.evaluator.try_out(runner.model, loop.dataloader, mode == 'test')
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f'{error}; or evaluate without explanations by ExplainHook.enable=False'
            ) from None
        if is_main_process():
            unit, step = _step(runner)
            try_files(self._folder(runner), mode, found, 'ExplainHook.out_dir', **{unit: step})
        data = loop.dataloader.collate_fn([loop.dataloader.dataset[0]])
        with evaluating(runner.model), torch.no_grad():
            outputs = getattr(runner.model, f'{mode}_step')(data)
        loop.evaluator.process(data_samples=outputs, data_batch=data)
        if mode == 'val':  # in a test a metric may write a file
            loop.evaluator.evaluate(1)
        for metric in loop.evaluator.metrics:
            metric.results.clear()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float]) -> None:
        """Writes the results, and adds the scores to ``metrics``."""
        if not self._active:
            return
        found = self.evaluator.finish(telling=bool(self.report) and self._mode == 'test')
        if is_main_process():
            self._write(runner, self._mode, found)
        values = {name: score.value for name, score in found.scores.items()}
        values |= {f'floor/{name}': floor.value for name, floor in found.floors.items()}
        values |= {f'above_floor/{name}': each.difference for name, each in found.floors.items()}
        for name, value in dict(values, seconds=found.seconds).items():
            metrics[f'explain/{name}'] = value
            runner.message_hub.update_scalar(f'{self._mode}/explain/{name}', value)
        runner.logger.info(f'Explained {found.count} images in {found.seconds:.1f} s\n{found}')

    after_test_epoch = after_val_epoch

    def _write(self, runner: Runner, mode: str, found: Evaluation) -> None:
        """Writes the files and pictures of an evaluation."""
        folder = self._folder(runner)
        unit, step = _step(runner)
        write_files(folder, mode, found, **{unit: step})
        add = runner.visualizer.add_image
        for item in found.gallery:
            add(f'explain_{mode}_{item.index:05d}', item.picture, step)
        for section in found.sections:
            for key, (_, picture) in zip(section.keys, section.pictures):
                add(key.format(mode=mode), picture, step)
        if not self.report or mode != 'test':
            return
        # Other hooks may add sections, such as the images that prototypes come from
        offers = [hook.report_sections for hook in runner.hooks if hasattr(hook, 'report_sections')]
        shown = list(self.evaluator.shown_items(8)) if offers else []
        for offer in offers:
            found.sections += offer(runner, shown, found.classes)
        compare = self.report if isinstance(self.report, dict) else {}
        own = Path(runner.work_dir).absolute()
        if all(Path(each).absolute() != own for each in compare.values()):
            name = own.name if own.name not in compare else str(own)
            compare = {name: runner.work_dir, **compare}
        facts = dict(config=runner.cfg.filename or '', checkpoint=runner._load_from or '')
        path = write_page(folder, found, own.name, facts, compare, unit)
        runner.logger.info(f'The report is {path}')

    def _folder(self, runner: Runner) -> Path:
        return Path(self.out_dir or Path(runner.log_dir) / 'explain')


def _step(runner: Runner) -> tuple[str, int]:
    """The unit that counts evaluations, and the number of units done in training."""
    # Not `runner.train_loop`, which would build a loop in a test
    epochs = not isinstance(runner._train_loop, IterBasedTrainLoop)
    return ('epoch', runner.epoch) if epochs else ('iter', runner.iter)
