"""Explains models at every evaluation, and measures the explanations."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import collect_results, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import DefaultScope
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmkdx.datasets.push_set import push_dataloader
from mmkdx.distillation.subjects import (
    TARGETS,
    Subject,
    build_explainers,
    choose_targets,
    find_subjects,
)
from mmkdx.functional import degenerate_maps
from mmkdx.hooks.pair_evaluation import PairEvaluation, prepared, settings_of
from mmkdx.hooks.prototype_push_hook import PrototypePushHook
from mmkdx.metrics.base import Explained, ExplainedBatch, ExplanationMetric, Score
from mmkdx.metrics.class_similarity import ClassSimilarity
from mmkdx.metrics.relevance import PairMetric
from mmkdx.models.heads import ProtoPNetHead
from mmkdx.registry import HOOKS, METRICS
from mmkdx.visualization.class_similarity import similarity_section
from mmkdx.visualization.pair_panel import NOTE as PAIR_NOTE
from mmkdx.visualization.panel import as_rgb, explanation_panel
from mmkdx.visualization.prototype_sheets import LOCAL_NOTE, PrototypeSheets
from mmkdx.visualization.records import (
    append_scores,
    append_values,
    by_model,
    read_curves,
    score_table,
)
from mmkdx.visualization.report import GalleryItem, PictureSection, class_word, write_report

#: Bytes of maps and logits of fixed models that are kept between evaluations.
KEPT_BYTES = 2**30

#: Of how many images the report shows by which prototypes they are decided.
SHOWN_DECISIONS = 8

#: Values of an image that are no scores.
FACTS = ('target', 'prediction', 'confidence', 'degenerate', 'label')

#: What the policies of ``target`` mean, for the report.
TARGET_WORDS = {
    'teacher': 'what the teacher predicts',
    'student': 'what the student predicts',
    'label': 'the label',
    'own': 'what each model predicts itself',
}


@HOOKS.register_module()
class ExplainHook(Hook):
    """Shows and measures at every evaluation where a student and its teacher look.

    On a fixed sample of the validation or test images it explains the student, its teacher and, where
    one is given, a base model, all for the same class. The scores stand as ``explain/…`` in the log, in
    ``scalars.json``, in the ``metrics`` of the evaluation (so ``save_best='explain/…'`` works, with a
    ``rule``), and in a printed table; each with its 95 % confidence interval in
    ``<log_dir>/explain/<val|test>.json``, and each image's values in ``<val|test>.csv`` beside it. A
    picture for some of the images goes to the run's visualizer, and one of the classes where
    ``ClassSimilarity`` is among the metrics.

    It adds the time of its sample to an evaluation, and logs how much. What a frozen teacher yields is
    computed once in a run. Before training, one image is explained and measured on trial, so that a
    mistake in the config shows at once.

    Data samples must have 'sample_idx', as those of mmpretrain's ``PackInputs`` do.

    Args:
        explainer (dict | str): The explainer, or a dict of one for each model ('student', 'teacher',
            'base'). Defaults to 'GradCAM', which is the CAM where the head allows.
        metrics (Sequence[dict]): The metrics, of those for explanations. A key 'name' stands in front
            of a metric's scores, so that there may be two of one kind. Defaults to ().
        num_samples (int, optional): How many images are explained. Defaults to 512. None: all.
        show_samples (int): How many of them are shown. Defaults to 16.
        target (str, optional): For which class: that which the 'teacher' or the 'student' predicts,
            the 'label', or for each model its 'own' prediction. Defaults to None: 'teacher', or
            'student' where there is no teacher.
        teacher (int | dict | str | None): Which of the distiller's teachers (members of an ensemble
            count each); or, for a model without a distiller, a teacher in any form that ``Distiller``
            takes; or None for none. Defaults to 0.
        base (dict | str, optional): The student trained alone, in any form that ``Distiller`` takes for
            a teacher. It is explained, too, and then shows what was distilled: batches of the sample
            are compared by ``unicam``, with ``FeatureSimilarityScore`` and ``RelevanceScore`` unless
            metrics of pairs are given. Defaults to None.
        unicam (dict | bool): The arguments of ``UniCAM``; False to explain and measure the base model
            alone. Defaults to True.
        context_size (int): Images in a batch of which student and base model are compared, an even
            number from 6 on. Defaults to 64.
        interval (int): Explain at every so many-th evaluation in training. Defaults to 1.
        seed (int): The seed of the sample. Defaults to 0.
        report (bool | dict): Whether to write ``<log_dir>/explain/report.html`` after a test; with a
            dict of names and work directories it shows the curves of these runs, too. Of a student
            with a ``ProtoPNetHead`` it shows the prototypes that decide, if the config has its
            ``PrototypePushHook``. Defaults to False.
        enable (bool): Whether to do all this. Defaults to True.
        out_dir (str, optional): Where files are written. Defaults to None (``<log_dir>/explain``).

    Raises:
        ValueError: If an argument is out of range, or, before the first iteration, if the model, the
            data or a metric does not allow what is asked for.
    """

    priority = 'NORMAL'

    def __init__(
        self,
        explainer: dict | str = 'GradCAM',
        metrics: Sequence[dict] = (),
        num_samples: int | None = 512,
        show_samples: int = 16,
        target: str | None = None,
        teacher: int | dict | str | None = 0,
        base: dict | str | None = None,
        unicam: dict | bool = True,
        context_size: int = 64,
        interval: int = 1,
        seed: int = 0,
        report: bool | dict[str, str] = False,
        enable: bool = True,
        out_dir: str | None = None,
    ) -> None:
        if target not in (None, *TARGETS):
            raise ValueError(
                f'ExplainHook.target is {target!r}; it must be one of {", ".join(TARGETS)}'
            )
        for name, value, least in (
            ('num_samples', num_samples, 1),
            ('show_samples', show_samples, 0),
            ('interval', interval, 1),
        ):
            if value is not None and value < least:
                raise ValueError(f'ExplainHook.{name} is {value}; it must be at least {least}')
        self.explainers = build_explainers(explainer, 'ExplainHook')
        with DefaultScope.overwrite_default_scope('mmkdx'):
            self.metrics = [
                METRICS.build({key: metric[key] for key in metric if key != 'name'})
                for metric in metrics
            ]
        for metric, given in zip(self.metrics, metrics):
            if not isinstance(metric, (ExplanationMetric, PairMetric)):
                raise ValueError(
                    f'ExplainHook.metrics: {type(metric).__name__} is no metric of explanations; it '
                    'belongs into val_evaluator'
                )
            metric.name = given.get('name', '')
        self.pair_metrics = [each for each in self.metrics if isinstance(each, PairMetric)]
        self.metrics = [each for each in self.metrics if isinstance(each, ExplanationMetric)]
        self.metrics.insert(0, _Facts())
        self.pairs = None
        if base is not None and unicam is not False:
            settings = {} if unicam is True else unicam
            self.pairs = PairEvaluation(settings, self.pair_metrics, context_size, seed)
            self.pair_metrics = self.pairs.metrics
        elif self.pair_metrics:
            raise ValueError(
                f'ExplainHook.metrics: {type(self.pair_metrics[0]).__name__} compares a student with a '
                'base model; set ExplainHook.base'
            )
        self.num_samples = num_samples
        self.show_samples = show_samples
        self.target = target
        self.teacher = teacher
        self.base = base
        self.interval = interval
        self.seed = seed
        self.report = report
        self.enable = enable
        self.out_dir = out_dir
        self._evaluations = 0
        self._dataset: Any = None
        self._model: nn.Module | None = None
        self._subjects: dict[str, Subject] = {}
        self._kept: dict[str, dict[int, tuple[Tensor, ...]]] = {}
        self._kept_bytes = 0

    # When

    def before_train(self, runner: Runner) -> None:
        """Explains and measures one image on trial."""
        if self.enable and runner.val_loop is not None:
            self._try(runner, runner.val_loop.dataloader)

    def before_test(self, runner: Runner) -> None:
        """Explains and measures one image on trial."""
        if self.enable:
            self._try(runner, runner.test_loop.dataloader)

    def before_val_epoch(self, runner: Runner) -> None:
        """Draws the sample."""
        self._evaluations += 1
        # What an evaluation leaves out must not be logged again
        for name in list(runner.message_hub.log_scalars):
            if name.startswith('val/explain/'):
                runner.message_hub.log_scalars.pop(name)
        self._begin(
            runner, runner.val_loop.dataloader, (self._evaluations - 1) % self.interval == 0
        )

    def before_test_epoch(self, runner: Runner) -> None:
        """Draws the sample."""
        self._begin(runner, runner.test_loop.dataloader, True)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict, outputs: Sequence
    ) -> None:
        """Explains those images of the batch that are in the sample."""
        self._process(runner, data_batch)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict, outputs: Sequence
    ) -> None:
        """Explains those images of the batch that are in the sample."""
        self._process(runner, data_batch)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float]) -> None:
        """Reports, and adds the scores to ``metrics``."""
        self._finish(runner, metrics, 'val')

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float]) -> None:
        """Reports, and adds the scores to ``metrics``."""
        self._finish(runner, metrics, 'test')

    # What

    def _begin(self, runner: Runner, dataloader: Any, active: bool) -> None:
        if dataloader.dataset is not self._dataset:
            self._dataset = dataloader.dataset
            self._kept, self._kept_bytes = {}, 0
            for metric in self.metrics:
                metric.forget()
        count = len(dataloader.dataset)
        order = np.random.RandomState(self.seed).permutation(count)[: self.num_samples]
        self._sample = set(order.tolist()) if self.enable and active else set()
        self._shown = set(order[: self.show_samples].tolist())
        self._pictures: list[dict[str, Any]] = []
        self._seconds = 0.0
        if self._sample:
            self._prepare(runner)

    def _try(self, runner: Runner, dataloader: Any) -> None:
        """One image through everything, without a trace."""
        self._begin(runner, dataloader, True)
        first, whole = min(self._sample), self._sample
        self._sample, self._shown = {first}, set()
        self._process(runner, dataloader.collate_fn([dataloader.dataset[first]]))
        self._sample = whole
        if self.pairs is not None:
            self.pairs.try_out(runner, dataloader, whole)
        for metric in (*self.metrics, *self.pair_metrics):
            metric.results.clear()

    def _prepare(self, runner: Runner) -> None:
        """Finds the models."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if self._model is model:
            return
        try:
            self._subjects = find_subjects(
                model, self.explainers, 'ExplainHook', self.teacher, self.base
            )
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f'{error}; or evaluate without explanations by ExplainHook.enable=False'
            ) from None
        self._model = model
        if self.pairs is not None:
            self.pairs.begin(self._subjects)
        self._policy = self.target or ('teacher' if 'teacher' in self._subjects else 'student')
        if self._policy == 'teacher' and 'teacher' not in self._subjects:
            raise ValueError(
                "ExplainHook.target is 'teacher' and there is none: use a Distiller with a teacher, or "
                'set ExplainHook.teacher'
            )
        for metric in self.metrics:
            if (
                'teacher' not in self._subjects
                and type(metric).measure is ExplanationMetric.measure
            ):
                raise ValueError(
                    f'ExplainHook.metrics: {type(metric).__name__} compares a student with its teacher, '
                    'and there is none: use a Distiller with a teacher, or set ExplainHook.teacher'
                )

    def _process(self, runner: Runner, data_batch: dict) -> None:
        if not self._sample:
            return
        start = time.perf_counter()
        samples = data_batch['data_samples']
        if any('sample_idx' not in sample for sample in samples):
            raise ValueError(
                "ExplainHook: the data samples have no 'sample_idx'; let the dataset's PackInputs keep "
                'it (meta_keys)'
            )
        here = [i for i, sample in enumerate(samples) if sample.sample_idx in self._sample]
        if here:
            self._explain(runner, data_batch, here)
        self._seconds += time.perf_counter() - start

    def _explain(self, runner: Runner, data_batch: dict, here: list[int]) -> None:
        images, samples, inputs, preprocessor = prepared(runner, data_batch, here)
        index = [int(sample.sample_idx) for sample in samples]
        labels = None
        if all('gt_label' in sample and sample.gt_label.numel() == 1 for sample in samples):
            labels = torch.cat([sample.gt_label for sample in samples]).to(inputs.device)
        models = self._models(inputs, index, labels)
        batch = ExplainedBatch(
            inputs,
            index,
            models,
            samples,
            getattr(preprocessor, 'mean', None),
            getattr(preprocessor, 'std', None),
        )
        for metric in self.metrics:
            metric.process(batch)
        for i, sample in enumerate(samples):
            if index[i] in self._shown:
                self._pictures.append(
                    dict(
                        index=index[i],
                        image=as_rgb(images[i], getattr(preprocessor, 'to_rgb', False)),
                        path=sample.get('img_path'),
                        maps={name: each.maps[i].cpu() for name, each in models.items()},
                    )
                )

    def _models(
        self, inputs: Tensor, index: list[int], labels: Tensor | None
    ) -> dict[str, Explained]:
        """Explains all models for the same classes; of fixed ones once in a run."""
        kept = {
            name: [self._kept[name][i] for i in index]
            for name in self._kept
            if all(i in self._kept[name] for i in index)
        }
        logits = {
            name: torch.stack([each[0] for each in kept[name]]).to(inputs.device)
            if name in kept
            else subject.predict(inputs)
            for name, subject in self._subjects.items()
        }
        classes = {name: values.shape[1] for name, values in logits.items()}
        if len(set(classes.values())) > 1:
            raise ValueError(
                'ExplainHook: the models have different numbers of classes '
                f'({", ".join(f"{name} {count}" for name, count in classes.items())}), so they cannot '
                'be explained for the same class'
            )
        targets = choose_targets(self._policy, logits, labels)
        models = {}
        for name, subject in self._subjects.items():
            if name in kept and len(kept[name][0]) > 1:
                maps = torch.stack([each[1] for each in kept[name]]).to(inputs.device)
                models[name] = subject.with_maps(maps, logits[name], targets[name], True)
                continue
            models[name] = subject.explained(inputs, logits[name], targets[name])
            # What depends on the student's prediction is new at every evaluation.
            models[name].fixed = subject.fixed and self._policy != 'student'
            if subject.fixed and name not in kept:
                self._keep(name, index, models[name])
        return models

    def _keep(self, name: str, index: list[int], model: Explained) -> None:
        rows = [model.logits.cpu(), *([model.maps.cpu()] if model.fixed else [])]
        size = sum(row.nbytes for row in rows)
        if self._kept_bytes + size <= KEPT_BYTES:
            self._kept_bytes += size
            self._kept.setdefault(name, {}).update(
                {i: tuple(row[n] for row in rows) for n, i in enumerate(index)}
            )

    def _finish(self, runner: Runner, metrics: dict[str, float], mode: str) -> None:
        """Turns what was measured into scores, files, pictures and log entries."""
        if not self._sample:
            return
        start = time.perf_counter()
        scores: dict[str, Score] = {}
        sheets = []
        if self.pairs is not None:
            loop = runner.val_loop if mode == 'val' else runner.test_loop
            sheets = self.pairs.run(runner, loop.dataloader, self._sample, self.show_samples)
        for metric in (*self.metrics, *self.pair_metrics):
            for name, score in metric.evaluate().items():
                if name in scores:
                    raise ValueError(
                        f'ExplainHook.metrics: two metrics yield the score {name!r}; remove one, or '
                        "give it a key 'name', which stands in front of its scores"
                    )
                scores[name] = score
        pictures = collect_results(self._pictures, sys.maxsize, 'cpu')
        # Not `runner.train_loop`, which would be built for a test
        epochs = not isinstance(runner._train_loop, IterBasedTrainLoop)
        step = runner.epoch if epochs else runner.iter
        if is_main_process():
            unique = {picture['index']: picture for picture in pictures}
            self._write(
                runner,
                mode,
                'epoch' if epochs else 'iter',
                step,
                scores,
                list(unique.values()),
                sheets,
            )
        for name, score in scores.items():
            metrics[f'explain/{name}'] = score.value
            runner.message_hub.update_scalar(f'{mode}/explain/{name}', score.value)
        seconds = self._seconds + time.perf_counter() - start
        metrics['explain/seconds'] = seconds
        runner.message_hub.update_scalar(f'{mode}/explain/seconds', seconds)
        runner.logger.info(
            f'Explained {len(self._sample)} images in {seconds:.1f} s\n{score_table(scores)}'
        )

    def _write(
        self,
        runner: Runner,
        mode: str,
        unit: str,
        step: int,
        scores: dict[str, Score],
        pictures: list[dict[str, Any]],
        sheets: list[tuple[int, np.ndarray]],
    ) -> None:
        """The files of an evaluation, and its pictures."""
        folder = Path(self.out_dir or Path(runner.log_dir) / 'explain')
        folder.mkdir(parents=True, exist_ok=True)
        rows: dict[int, dict[str, Any]] = {}
        for metric in self.metrics:
            for index, values in metric.rows.items():
                rows.setdefault(index, {}).update(values)
        append_values(folder / f'{mode}.csv', rows, **{unit: step})
        explainers = {name: type(each.explainer).__name__ for name, each in self._subjects.items()}
        append_scores(
            folder / f'{mode}.json',
            scores,
            **{unit: step},
            target=self._policy,
            explainers=explainers,
            metrics=[settings_of(each) for each in (*self.metrics[1:], *self.pair_metrics)],
            **({} if self.pairs is None else self.pairs.facts()),
        )
        classes = (getattr(self._dataset, 'metainfo', None) or {}).get('classes')
        known = {
            *scores,
            *(f'{model}{fact}' for model in ('', 'teacher/', 'base/') for fact in FACTS),
        }
        gallery = []
        for picture in sorted(pictures, key=lambda each: each['index']):
            row = {name: v for name, v in rows[picture['index']].items() if name in known}
            item = self._panel(picture, row, classes)
            runner.visualizer.add_image(f'explain_{mode}_{item.index:05d}', item.picture, step)
            gallery.append(item)
        for index, sheet in sheets:
            runner.visualizer.add_image(f'distilled_{mode}_{index:05d}', sheet, step)
        sections = []
        if sheets:
            sheets = [(f'image {index}', sheet) for index, sheet in sheets]
            sections.append(PictureSection('What was distilled', PAIR_NOTE, sheets))
        for metric in self.metrics:
            if isinstance(metric, ClassSimilarity):
                section = similarity_section(metric.matrices, classes, metric.name)
                if section is not None:
                    key = '_'.join(filter(None, (metric.name, 'class_similarity', mode)))
                    runner.visualizer.add_image(key, section.pictures[0][1], step)
                    sections.append(section)
        if self.report and mode == 'test':
            compare = self.report if isinstance(self.report, dict) else {}
            title = Path(runner.work_dir).name
            known_run = any(
                Path(d).absolute() == Path(runner.work_dir).absolute() for d in compare.values()
            )
            path = write_report(
                folder / 'report.html',
                title=title,
                facts={
                    'config': runner.cfg.filename or '',
                    'checkpoint': runner._load_from or '',
                    'explainer': ', '.join(
                        f'{model}: {kind}' for model, kind in explainers.items()
                    ),
                    'explained class': TARGET_WORDS[self._policy],
                    'images': f'{len(self._sample)} of {len(self._dataset)} (seed {self.seed})',
                    'made': time.strftime('%Y-%m-%d %H:%M'),
                },
                scores=scores,
                curves=_curves(compare if known_run else {title: runner.work_dir, **compare}),
                gallery=gallery,
                sections=[*sections, *self._prototypes(runner, classes)],
                unit=unit,
            )
            runner.logger.info(f'The report is {path}')

    def _prototypes(self, runner: Runner, classes: Sequence[str] | None) -> list[PictureSection]:
        """What speaks for the student's decisions, where prototypes do and their images are there."""
        student = self._subjects['student'].model
        hooks = [hook for hook in runner.hooks if isinstance(hook, PrototypePushHook)]
        if not hooks or not isinstance(getattr(student, 'head', None), ProtoPNetHead):
            return []
        try:
            data = hooks[0].dataloader
            if not isinstance(data, DataLoader):  # as after a training
                data = Runner.build_dataloader(push_dataloader(runner.cfg, data))
            sheets = PrototypeSheets(student, data.dataset, classes)
        except (ValueError, FileNotFoundError) as error:
            runner.logger.warning(f'The report has no section of prototypes: {error}')
            return []
        pictures = []
        for index in sorted(self._shown)[:SHOWN_DECISIONS]:
            drawn, facts = sheets.explain_image(self._dataset[index], f'image {index}')
            pictures += [
                (f'{facts["image"]}: {each["class"]}', picture)
                for each, picture in zip(facts['classes'], drawn)
            ]
        return [PictureSection('Prototypes', LOCAL_NOTE, pictures)] if pictures else []

    def _panel(
        self, picture: dict[str, Any], row: dict[str, Any], classes: Sequence[str] | None
    ) -> GalleryItem:
        """The picture of one image, and what a gallery tells of it."""
        captions, predictions = {}, {}
        models = by_model(row)
        # A score of some of the images only, or of chance, has the name of its score in front.
        own = [
            name
            for name in models
            if name not in FACTS and not any(name.startswith(f'{other}_') for other in models)
        ]
        pairs = [
            name for name in own if 'teacher' in picture['maps'] and 'teacher' not in models[name]
        ]
        for name in picture['maps']:
            prediction = class_word(models['prediction'][name], classes)
            predictions[name] = prediction
            captions[name] = [
                f'{prediction} {models["confidence"][name]:.3f}',
                *(
                    _line(each, models[each][name])
                    for each in own
                    if each not in pairs and name in models[each]
                ),
            ][:3]
        captions['difference'] = [_line(name, row[name]) for name in pairs][:2]
        label = class_word(row['label'], classes) if row.get('label', -1) >= 0 else None
        explained = class_word(models['target']['student'], classes)
        captions['input'] = [
            *([f'label: {label}'] if label is not None else []),
            f'explained: {explained if self._policy != "own" else "own prediction"}',
        ]
        return GalleryItem(
            picture=explanation_panel(picture['image'], picture['maps'], captions),
            index=picture['index'],
            label=label,
            predictions=predictions,
            scores={
                name: float(models[name]['student']) for name in own if 'student' in models[name]
            },
        )


class _Facts(ExplanationMetric):
    """What is to be known of each image beside its scores."""

    better = {'degenerate': 'lower'}
    counts_degenerate = True

    def measure(self, batch: ExplainedBatch, model: Explained) -> dict[str, Tensor | list]:
        """The classes, and whether the map says nothing."""
        confidence, prediction = model.logits.softmax(1).max(1)
        facts = dict(
            target=model.targets,
            prediction=prediction,
            confidence=confidence,
            degenerate=degenerate_maps(model.maps).long(),
        )
        labels = [sample.get('gt_label') for sample in batch.data_samples]
        if all(label is not None and label.numel() == 1 for label in labels):
            facts['label'] = [int(label) for label in labels]
        return facts

    def summarize(self, rows: list[dict[str, Any]]) -> dict[str, Score]:
        """The number of maps that say nothing."""
        names = dict.fromkeys(name for row in rows for name in row if 'degenerate' in name)
        return {
            name: Score(
                float(sum(row[name] for row in rows)), math.nan, math.nan, len(rows), 'lower'
            )
            for name in names
        }


def _line(name: str, value: float) -> str:
    return f'{name.replace("_", " ")} {value:.3f}'


def _curves(runs: dict[str, str]) -> dict[str, dict[str, list]]:
    """The curves of several runs by metric, then by run."""
    curves: dict[str, dict[str, list]] = {}
    for run, work_dir in runs.items():
        for name, points in read_curves(work_dir).items():
            if name != 'explain/seconds':
                curves.setdefault(name, {})[run] = points
    return curves
