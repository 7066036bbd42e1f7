"""Searches term weights on held-out training data, and compares them with the config's own.

The test set is never read. The search holds out the first fold of the training data and uses one
seed. The comparison uses other seeds, and holds out other folds. So no weight was chosen on the
images that it measures.
"""

from __future__ import annotations

import copy
import csv
import hashlib
import io
import json
import math
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from mmengine.config import Config
from scipy.stats import qmc

from mmkdx.apis.held_out import cached_teachers, fold_config
from mmkdx.apis.runs import call_tool, markdown, metric_cells, run_seeds
from mmkdx.arguments import integer
from mmkdx.datasets.wrappers import type_name
from mmkdx.distillation.cache.files import INDEX
from mmkdx.distillation.terms import Term
from mmkdx.evaluation.verdict_rules import RUNS
from mmkdx.files import write_file
from mmkdx.metrics.scores import Score, mean_score

#: The seed and the fold of the search; the comparison uses others.
SEARCH = 0
#: Number of trials after the first that cover the ranges evenly; optuna chooses the later ones.
SPREAD = 4


def read_ranges(texts: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Parses ranges like ``terms.kd.weight=0.1..100``, with keys below ``model``.

    Raises:
        ValueError: If a range has another form, is empty or not above 0, or a key is given twice.
    """
    found: dict[str, tuple[float, float]] = {}
    for text in texts:
        key, _, both = text.partition('=')
        key = key.removeprefix('model.')
        try:
            low, high = map(float, both.split('..'))
        except ValueError:
            raise ValueError(
                f'--weights {text}: write KEY=LOW..HIGH, as in terms.kd.weight=0.1..100'
            ) from None
        if not 0 < low < high < math.inf:
            raise ValueError(
                f'--weights {text}: LOW must be above 0 and HIGH above LOW, since weights are '
                'drawn on a logarithmic scale'
            )
        if key in found:
            raise ValueError(f'--weights gives two ranges for {key}')
        found[key] = low, high
    return found


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuses seeds that are given twice, and the seed of the search."""
    if SEARCH in seeds or len(set(seeds)) < len(seeds):
        raise ValueError(
            f'--seeds {" ".join(map(str, seeds))}: give each seed once, and not {SEARCH}, the seed '
            'of the search'
        )


def own_weights(cfg: Config, ranges: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """The config's own weights at the keys of ``ranges``.

    Raises:
        ValueError: If there is no number at a key, or it is outside its range, or a term's weight is
            'auto'.
    """
    terms = cfg.get('model', {}).get('terms') or {}
    auto = [name for name, term in terms.items() if _is_auto(term.get('weight'))]
    if auto:
        raise ValueError(
            f"{cfg.filename}: model.terms.{auto[0]}.weight is 'auto', which sets itself in training; "
            'search with numbers as weights'
        )
    found = {}
    for key, (low, high) in ranges.items():
        value: Any = cfg.get('model', {})
        for part in key.split('.'):
            missing = signature(Term).parameters['weight'].default if part == 'weight' else None
            value = value.get(part, missing) if isinstance(value, dict) else None
        if isinstance(value, bool) or not isinstance(value, int | float):
            names = ', '.join(f'terms.{name}.weight' for name in terms) or 'none'
            raise ValueError(
                f'--weights {key}: {cfg.filename} has no number at model.{key}; weights of its terms '
                f'are: {names}'
            )
        if not low <= value <= high:
            raise ValueError(
                f"--weights {key}: the config's own {value:g} is not in {low:g}..{high:g}, so the "
                'search could not find it; widen the range'
            )
        found[key] = float(value)
    return found


def _is_auto(weight: Any) -> bool:
    return weight == 'auto' or (isinstance(weight, dict) and weight.get('type') == 'auto')


def spread(ranges: Mapping[str, tuple[float, float]]) -> list[dict[str, float]]:
    """A few points that cover ranges evenly on a logarithmic scale (Halton's sequence)."""
    points = qmc.Halton(len(ranges), scramble=False).fast_forward(1).random(SPREAD)
    lows, highs = np.array(list(ranges.values())).T
    return [dict(zip(ranges, map(float, lows * (highs / lows) ** each))) for each in points]


class WeightSearch:
    """A search of weights that keeps its state in a folder and resumes from it.

    Args:
        cfg (Config): The config of a distillation, with all changes.
        ranges (Mapping): For each key below ``model`` the least and the greatest value.
        work_dir (Path): The folder of all runs and results.
        metric (str): The metric to maximise, named as in the log of a test.
        num_folds (int): The number of folds of the training data. Defaults to 5.

    Raises:
        ValueError: If optuna is missing, the folder holds another search, or the config and the ranges
            do not fit; see ``own_weights`` and ``fold_config``.
    """

    def __init__(
        self,
        cfg: Config,
        ranges: Mapping[str, tuple[float, float]],
        work_dir: Path,
        metric: str = 'accuracy/top1',
        num_folds: int = 5,
    ) -> None:
        self.optuna = _import_optuna()
        self.folds = integer('--folds', num_folds, 2)
        self.ranges, self.metric, self.work_dir = dict(ranges), metric, work_dir
        self.own = own_weights(cfg, ranges)
        self.cfg = cfg = copy.deepcopy(cfg)
        if not metric.startswith('explain/'):  # explanations take time and do not change the metric
            hooks = cfg.get('custom_hooks') or []
            cfg.custom_hooks = [each for each in hooks if type_name(each) != 'ExplainHook']
        fold_config(cfg, SEARCH, self.folds, work_dir / 'caches')
        text = json.dumps(cfg.to_dict(), sort_keys=True, default=str)
        settings = dict(
            config=hashlib.sha256(text.encode()).hexdigest()[:16],
            weights={key: list(ends) for key, ends in self.ranges.items()},
            metric=metric,
            folds=self.folds,
        )
        work_dir.mkdir(parents=True, exist_ok=True)
        self.study = self.optuna.create_study(
            storage=f'sqlite:///{work_dir / "study.db"}',
            study_name='weights',
            direction='maximize',
            load_if_exists=True,
        )
        before = self.study.user_attrs.get('settings') or settings
        if changed := [key for key in settings if settings[key] != before[key]]:
            raise ValueError(
                f'--work-dir {work_dir} holds a search with another {" and ".join(changed)}; choose '
                'another folder'
            )
        self.study.set_user_attr('settings', settings)

    @property
    def trials(self) -> list[Any]:
        """The finished trials, and those whose training failed."""
        return [each for each in self.study.trials if each.state.is_finished()]

    @property
    def best(self) -> int:
        """The number of the best trial, the first of equal ones; 0 has the config's own weights."""
        values = [-math.inf if each.value is None else each.value for each in self.trials]
        return int(np.argmax(values))

    def search(self, count: int) -> None:
        """Runs trials until there are ``count``, the config's own weights first.

        The first trials have fixed weights. Later trials take weights from optuna's sampler, seeded
        with the trial's number. So an interrupted search ends with the same result.

        Raises:
            RuntimeError: If the run with the config's own weights fails.
            ValueError: If the test does not measure the metric.
        """
        space = {
            key: self.optuna.distributions.FloatDistribution(*ends, log=True)
            for key, ends in self.ranges.items()
        }
        first = [self.own, *spread(self.ranges)]
        while (number := len(self.trials)) < integer('--trials', count, 1):
            self.study.sampler = self.optuna.samplers.TPESampler(seed=number, n_startup_trials=1)
            if number <= SPREAD:
                self.study.enqueue_trial(first[number])
            trial = self.study.ask(space)
            try:
                name = f'trial_{number:02}'
                (found,) = self._run({name: trial.params}, SEARCH, SEARCH, 1)[name]
                self.study.tell(trial, self._value(found))
            except RuntimeError as error:
                if not number:
                    raise
                print(f'{error}; the search goes on without {trial.params}', file=sys.stderr)
                self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL)
            write_file(self.work_dir / 'trials.csv', self._trial_text())

    def compare(self, seeds: Sequence[int], jobs: int = 1) -> dict[str, list[dict[str, float]]]:
        """Trains and tests the config's own weights and the found weights with each seed.

        The i-th seed holds out fold 1 + i mod (folds - 1). If no trial was better than the config's
        own weights, only these run.
        """
        arms = dict(own=self.own)
        if self.best:
            arms[f'found_{self.best:02}'] = self.trials[self.best].params
        results: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
        for i, seed in enumerate(seeds):
            for name, found in self._run(arms, seed, 1 + i % (self.folds - 1), jobs).items():
                results[name] += found
        return dict(zip(('own', 'found'), results.values()))

    def _run(
        self, arms: Mapping[str, Mapping[str, float]], seed: int, fold: int, jobs: int
    ) -> dict[str, list[dict[str, float]]]:
        """Trains and tests weights with one seed and one fold held out."""
        path = self.work_dir / f'fold_{fold}.py'
        cfg = fold_config(self.cfg, fold, self.folds, self.work_dir / 'caches')
        if not path.is_file():
            write_file(path, cfg.pretty_text)
        if not all(Path(each['cache'], INDEX).is_file() for each in cached_teachers(cfg)):
            call_tool('cache_teacher.py', path, log=path.with_suffix('.txt'))
        runs = {
            f'{name}/fold_{fold}': (
                path,
                [f'model.{key}={each!r}' for key, each in weights.items()],
            )
            for name, weights in arms.items()
        }
        found = run_seeds(runs, [seed], self.work_dir, jobs)
        return dict(zip(arms, found.values()))

    def _value(self, found: Mapping[str, float]) -> float:
        if self.metric not in found:
            raise ValueError(
                f'--metrics {self.metric}: the test measures {", ".join(sorted(found))}'
            )
        value = found[self.metric]
        if not math.isfinite(value):
            raise RuntimeError(f'{self.metric} is {value}')
        return value

    def _trial_text(self) -> str:
        """The trials as CSV."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator='\n')
        rows.writerow(['trial', *self.ranges, self.metric, 'state'])
        for i, trial in enumerate(self.trials):
            value = '' if trial.value is None else trial.value
            rows.writerow([i, *map(trial.params.get, self.ranges), value, trial.state.name.lower()])
        return text.getvalue()

    def table(self, results: Mapping[str, Sequence[dict]], metrics: Sequence[str]) -> str:
        """The comparison in Markdown: means, standard deviations, and the first metric's interval."""
        rows = []
        for name, number in (('own', 0), ('found', self.best)):
            if name in results:
                trial = self.trials[number]
                weights = [f'{trial.params[key]:.4g}' for key in self.ranges]
                score = mean_score([each[self.metric] for each in results[name]], 'higher')
                cells = metric_cells(results[name], metrics)
                searched = metric_cells([{self.metric: trial.value}], [self.metric])
                rows.append([name, *weights, *searched, *cells, _interval(score, self.metric)])
        head = ['weights', *self.ranges, 'in the search', *metrics, f'95 % interval, {self.metric}']
        return markdown(head, rows)


def conclusion(results: Mapping[str, Sequence[dict]], metric: str) -> tuple[str, Score | None]:
    """Says whether the numbers show that the found weights are better than the config's own.

    Returns:
        tuple[str, Score | None]: The sentence, and the mean difference found - own, paired over
        seeds, with its 95 % interval of Student's t distribution. The score is None if nothing was
        found.
    """
    if 'found' not in results:
        return (
            "No trial was better than the config's own weights, so there is nothing to compare.",
            None,
        )
    pairs = zip(results['found'], results['own'])
    each = [found[metric] - own[metric] for found, own in pairs]
    each = [value for value in each if not math.isnan(value)]
    score, count = mean_score(each, 'higher'), len(each)
    (mean,) = metric_cells([{metric: score.value}], [metric])
    text = f"{metric} with the found weights, minus that with the config's own: {mean}"
    if count < RUNS:
        return f'{text}. n = {count} seeds are too few for a statement; use {RUNS} or more.', score
    if not np.ptp(each):
        return f'{text} for each of {count} seeds, so nothing is known of its spread.', score
    text += f' (n = {count} seeds, 95 % interval {_interval(score, metric)})'
    if score.low > 0:
        return f'{text}. The found weights are better on held-out training images.', score
    if score.high < 0:
        return f"{text}. The found weights are worse; keep the config's own.", score
    return f'{text}. The runs do not tell the two apart.', score


def _interval(score: Score, metric: str) -> str:
    ends = [metric_cells([{metric: each}], [metric])[0] for each in (score.low, score.high)]
    return '-' if math.isnan(score.low) else ' to '.join(ends)


def _import_optuna() -> ModuleType:
    try:
        optuna = import_module('optuna')
    except ImportError as error:
        raise ValueError(
            'a search of weights needs optuna, which is not installed: pip install optuna'
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
