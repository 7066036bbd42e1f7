"""Wrong options: shipped configs with one option changed, and constructors with one wrong argument.

``python tests/campaign/fuzz.py --minutes 10`` prints a table and each option that was not refused by a
sentence. A config goes through ``check_config.py``, and on data that are drawn through mmengine's Runner
up to its first iteration.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import inspect
import io
import logging
import math
import os
import random
import resource
import runpy
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DefaultScope, Registry
from mmengine.runner import Runner

from mmkdx import registry
from mmkdx.distillation.models import build_model
from mmkdx.distillation.teacher_target import TeacherTarget
from mmkdx.distillation.terms import Term
from mmkdx.evaluation import ExplanationEvaluator
from mmkdx.functional.schedules import WeightSchedule

ROOT = Path(__file__).parents[2]
#: Wrong values by their kind; other kinds change names.
VALUES = {
    'NaN': math.nan,
    'infinity': math.inf,
    '-infinity': -math.inf,
    'negative': -3,
    'zero': 0,
    'huge': 10**9,
    'text': 'some text',
    'True': True,
    'False': False,
    'None': None,
    'empty list': [],
    'empty dict': {},
}
#: How long one trial may take.
SECONDS = 90
OUTCOMES = ('survived', 'lost', 'silent')
KINDS = (*VALUES, 'misspelt key', 'wrong type', 'swapped tap', 'top-level key')
#: Sections of a config that training reads, how often each is changed.
SECTIONS = dict(
    model=8,
    custom_hooks=4,
    train_dataloader=3,
    val_dataloader=2,
    val_evaluator=1,
    data_preprocessor=2,
    optim_wrapper=2,
    param_scheduler=1,
    train_cfg=1,
    default_hooks=1,
    randomness=1,
)
#: Words in the names of configs whose networks take seconds to build; small ones read the same options.
HEAVY = {'in1k', 'cub', 'cars', 'petimages', 'plantvillage', 'waterbirds'}
#: Those that ``check_config.py`` builds.
CHECKED = (
    'model',
    'custom_hooks',
    'val_evaluator',
    'data_preprocessor',
    'optim_wrapper',
    'param_scheduler',
)
#: Not changed: texts that are looked up nowhere, and what would start processes or take all memory.
LEFT = ('num_workers', 'persistent_workers', 'pin_memory', '_scope_', 'by_epoch', 'collate_fn')
#: Arguments that a constructor keeps, and that are checked with the model or by mmengine.
ELSEWHERE = {
    *('init_cfg', 'module', 'owner', 'serialize_data'),
    *(('base', 'ExplanationEvaluator'), ('teacher', 'ExplanationEvaluator')),
    *(('dataset', 'PairSampler'), ('dataset', 'ViewSampler')),
}
#: The row of options that mmkdx does not read.
OTHERS = 'configs: options of other packages'
#: Options of which a negative number means something.
SIGNED = {
    'baseline': 'a pixel after normalisation',
    'frozen_stages': '-1 freezes nothing',
    'num_classes': "a backbone's -1: no classifier",
    'start_factor': 'a schedule may begin below 0',
    'end_factor': 'and end there',
    'out_indices': 'counted from the end',
}
#: The arguments without which something cannot be built.
HEAD = dict(num_classes=3, in_channels=4)
DIGITS = dict(type='Digits', indices=9)
NETWORK = dict(
    type='ImageClassifier',
    backbone=dict(type='CIFARResNet', depth=8, stem_channels=4, base_channels=4),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=5, in_channels=16),
)
TEACHER = dict(model=NETWORK, checkpoint='teacher.pth')
TERMS = dict(kd=dict(type='KLDivLoss', at='logits'))
NEEDED: dict[str, dict] = dict(
    TeacherTarget=dict(kind='uniform'),
    CATLoss=dict(class_select='topk', num_classes_selected=2),
    CRDLoss=dict(num_samples=9),
    PlainClassifier=dict(network='torchvision::mobilenet_v3_small'),
    CachedTeacher=dict(teacher=TEACHER, cache='cache'),
    CIFARResNet=dict(depth=8),
    CIFARVGG=dict(depth=8),
    CIFARWideResNet=dict(depth=10, widen_factor=1),
    ChannelOrder=dict(order='rgb'),
    ClassSubset=dict(dataset=DIGITS),
    DMLLoss=dict(peers=[]),
    DeleteCell=dict(fill=[104, 116, 124]),
    RandomPixelRemoval=dict(fill=[104, 116, 124]),
    DisturbLabel=dict(num_classes=3),
    Distiller=dict(student=NETWORK, teacher=TEACHER, terms=TERMS, input_size=32),
    E2KDLoss=dict(size=8),
    CIFAR10=dict(data_root='cifar', download=False),
    CIFAR100=dict(data_root='cifar', download=False),
    ImageList=dict(ann_file='list.txt', source='nowhere'),
    ONELoss=dict(branch='layer'),
    PSKDLoss=dict(num_samples=9),
    LocalVisBackend=dict(save_dir='pictures'),
    Parts=dict(num_samples=9),
    PrototypePushHook=dict(start=1),
    PrototypeStageHook=dict(stages=[dict(train=['add_on'])]),
    ProtoPNetHead=HEAD,
    ProtoTreeHead=dict(HEAD, depth=2),
    SeededViews=dict(dataset=DIGITS, views=2),
    StratifiedFold=dict(dataset=DIGITS),
    Teacher=TEACHER,
    WeightSchedule=dict(type='linear', end=4),
)


@dataclass(frozen=True)
class Trial:
    """One wrong option, and what came of it: 'survived', 'lost' (no sentence) or 'silent'."""

    what: str
    where: str
    kind: str
    outcome: str
    said: str = ''

    def __str__(self) -> str:
        return f'{self.outcome}: {self.where} ({self.kind}): {self.said[:300]}'


class Hang(BaseException):
    """Too much time has passed."""


class Begun(Exception):
    """The first iteration is over."""


class Stop(Hook):
    """Ends a run after its first iteration."""

    def after_train_iter(self, *_: Any, **__: Any) -> None:
        """Leaves the loop."""
        raise Begun


def drive(minutes: float, seed: int, configs: int = 320, calls: int = 480) -> list[dict]:
    """Tries wrong options, half of the time in configs; see ``trials``.

    Returns:
        list[dict]: For each kind of owner ``what``, and how many were tried, survived (one sentence that
        names the option, or accepted as it is right), lost (no such sentence) and silent (accepted).
    """
    rows = count(trials(minutes, seed, configs, calls))
    # Other packages check few of their options; see the guide to configs
    for row in rows:
        if row['what'] == OTHERS:
            print(row)
    return [row for row in rows if row['what'] != OTHERS]


def count(found: Iterable[Trial]) -> list[dict]:
    """The rows of ``drive``."""
    rows: dict[str, dict] = {}
    for each in found:
        row = rows.setdefault(
            each.what, dict(what=each.what, tried=0, **dict.fromkeys(OUTCOMES, 0))
        )
        row['tried'] += 1
        row[each.outcome] += 1
    return list(rows.values())


def trials(minutes: float, seed: int, configs: int = 320, calls: int = 480) -> Iterator[Trial]:
    """Yields what becomes of so many changed configs and calls, or as many as the time allows."""
    rng = random.Random(seed)
    with confined():
        end = time.monotonic() + minutes * 10
        for _ in range(calls):
            if time.monotonic() > end:
                break
            yield call(rng)
        end = time.monotonic() + minutes * 50
        files = sorted(ROOT.glob('configs/*/*.py'))
        files = [
            each for each in files if each.parts[-2] != '_base_' and not HEAVY & set(words(each))
        ]
        for _ in range(configs):
            if time.monotonic() > end:
                break
            yield change(rng.choice(files), rng)


def runs(path: Path) -> bool:
    """Whether mmengine's Runner can begin a config here, as its data are drawn."""
    return (
        any(word.startswith(('digits', 'parts')) for word in words(path))
        and 'cached' not in path.stem
    )


def words(path: Path) -> list[str]:
    """The words in a config's name."""
    return path.stem.replace('-', '_').split('_')


# Constructors


@cache
def classes() -> dict[str, tuple[Callable, bool]]:
    """What configs can name, and whether it is mmkdx's own."""
    found: dict[str, tuple[Callable, bool]] = {}
    for each in vars(registry).values():
        if isinstance(each, Registry):
            each.import_from_location()
            while each is not None:
                for name, kind in each.module_dict.items():
                    found.setdefault(name, (kind, kind.__module__.startswith('mmkdx')))
                each = each.parent
    return found


@cache
def constructors() -> list[tuple[Callable, str]]:
    """Each own constructor with each of its arguments."""
    own = [kind for kind, ours in classes().values() if ours and not inspect.isfunction(kind)]
    own += [WeightSchedule, TeacherTarget, ExplanationEvaluator]
    return [
        (kind, name)
        for kind in dict.fromkeys(own)
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and (name, kind.__name__) not in ELSEWHERE
        and name not in ELSEWHERE
    ]


def call(rng: random.Random) -> Trial:
    """A constructor with one wrong argument."""
    kind, name = rng.choice(constructors())
    how = rng.choice((*VALUES, *VALUES, 'misspelt key'))
    given = dict(NEEDED.get(kind.__name__, {}))
    if 'Sampler' in kind.__name__:
        given['dataset'] = digits()
    parameter = inspect.signature(kind).parameters[name]
    old = given.get(name, parameter.default)
    if how == 'misspelt key':
        value, key = given.pop(name, None if old is parameter.empty else old), misspelt(name)
    else:
        value, key = VALUES[how], name
    given[key] = value
    return tried(
        'constructors',
        f'{kind.__name__}({key}={value!r})',
        how,
        (key, name),
        lambda: kind(**given),
        right(how, key, old, parameter),
        said_anyway(kind),
    )


@cache
def digits() -> Any:
    """A data set for samplers."""
    return registry.DATASETS.build(DIGITS)


@cache
def said_anyway(kind: Callable) -> str:
    """What a constructor says of right arguments, such as that files are not there."""
    try:
        kind(**NEEDED.get(kind.__name__, {}))
    except Exception as error:
        return str(error)
    return ''


def right(kind: str, key: str, old: Any, parameter: inspect.Parameter | None) -> bool:
    """Whether an option may well have such a value, so that it is no fault to accept it."""
    text = '' if parameter is None else str(parameter.annotation)
    if kind in ('zero', 'huge', 'swapped tap'):
        return True
    if kind == 'negative':
        return key in SIGNED
    if kind == 'text':
        return isinstance(old, str) or 'str' in text or 'Path' in text
    if kind in ('True', 'False'):
        return isinstance(old, bool) or 'bool' in text
    if kind == 'None':
        return old is None or 'None' in text or 'Any' in text
    if kind.startswith('empty'):
        word = 'Sequence|list|tuple' if kind == 'empty list' else 'dict|Mapping'
        return isinstance(old, (list, tuple, dict)) or any(each in text for each in word.split('|'))
    return False


def misspelt(name: str) -> str:
    """A name of which two letters are swapped, or one is gone."""
    for i in range(len(name) // 2, len(name) - 1):
        if name[i] != name[i + 1]:
            return name[:i] + name[i + 1] + name[i] + name[i + 2 :]
    return name[:-1] or 'x'


# Configs


@cache
def read(path: Path) -> Config:
    """A shipped config."""
    return Config.fromfile(path)


def options(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The paths of all options below a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in items:
        if key in LEFT:
            continue
        yield (*path, key)
        if isinstance(each, dict) or (
            isinstance(each, (list, tuple)) and any(isinstance(part, dict) for part in each)
        ):
            yield from options(each, (*path, key))


def change(path: Path, rng: random.Random) -> Trial:
    """A shipped config with one option changed."""
    cfg = copy.deepcopy(read(path).to_dict())
    # What the Runner alone reads is changed where it can run
    sections = [key for key in SECTIONS if cfg.get(key) and (runs(path) or key in CHECKED)]
    section = rng.choices(sections, [SECTIONS[key] for key in sections])[0]
    everything = [(section, *each) for each in options(cfg[section])] or [(section,)]
    how = rng.choice((*VALUES, *KINDS))
    what, old, parameter = 'configs: names at the top', None, None
    if how == 'top-level key':
        key = misspelt(section)
        value = dict(type='x') if isinstance(cfg[section], dict) else [dict(type='x')]
        if rng.random() < 0.5:
            value = cfg.pop(section)
        cfg[key], place = value, (key,)
    else:
        key_of = {'wrong type': 'type', 'swapped tap': 'at'}
        places = [p for p in everything if p[-1] == key_of.get(how, p[-1])]
        if how == 'misspelt key':
            # The names of terms are the user's own
            places = [p for p in places if isinstance(p[-1], str) and p[-2:-1] != ('terms',)]
        if not places:
            return change(path, rng)
        place = rng.choice(places)
        holder = _at(cfg, place[:-1])
        key, old = place[-1], holder[place[-1]]
        ours, parameter = _owner(cfg, place)
        what = 'configs: options of mmkdx' if ours else OTHERS
        if how == 'misspelt key':
            key = misspelt(key)
            value = holder.pop(place[-1])
        elif how == 'wrong type':
            value = key = f'{old}x'
        elif how == 'swapped tap':
            value = old[::-1] if isinstance(old, (list, tuple)) else rng.choice(TAPS)
        else:
            value = VALUES[how]
            key = next((each for each in place[::-1] if isinstance(each, str)), key)
        holder[key if how == 'misspelt key' else place[-1]] = value
    where = f'{path.relative_to(ROOT)}: {".".join(map(str, place))} = {value!r}'[:200]
    if how == 'None' and len(place) < 3:
        old = None  # mmengine's word for a section that is not there
    with tempfile.TemporaryDirectory() as folder:
        return tried(
            what,
            where,
            how,
            (key, value if place[-1] == 'type' else place[-1]),
            lambda: begin(Config(cfg, filename=str(path)), Path(folder)),
            right(how, key, old, parameter),
        )


TAPS = ('logits', 'cam', 'features', 'backbone', 'backbone.layer9')


def _at(cfg: Any, path: tuple) -> Any:
    for key in path:
        cfg = cfg[key]
    return cfg


def _owner(cfg: dict, path: tuple) -> tuple[bool, inspect.Parameter | None]:
    """Whether mmkdx reads an option, and what its constructor says of it."""
    for end in range(len(path) - 1, 0, -1):
        holder, last = _at(cfg, path[:end]), end == len(path) - 1
        if not isinstance(holder, dict):
            continue
        name = 'Teacher' if {'model', 'checkpoint'} <= set(holder) else holder.get('type')
        if isinstance(name, str) and name in classes():
            kind, ours = classes()[name]
            also = dict(ExplainHook=ExplanationEvaluator).get(
                name, Term if 'at' in holder else kind
            )
            known = {**inspect.signature(also).parameters, **inspect.signature(kind).parameters}
            # An option that mmkdx passes on, as to mmengine's BaseDataset, is not its own
            return ours and (not last or path[end] in known), known.get(path[end]) if last else None
    return False, None


def begin(cfg: Config, folder: Path) -> None:
    """All that happens before the first iteration, and that one."""
    _check_config()(cfg.filename, copy.deepcopy(cfg))
    if not runs(Path(cfg.filename)):
        return
    cfg.work_dir = str(folder)
    draw_weights(Path(cfg.filename))
    runner = Runner.from_cfg(cfg)
    runner.register_hook(Stop(), 'LOWEST')
    with contextlib.suppress(Begun):
        runner.train()


@cache
def _check_config() -> Callable:
    return runpy.run_path(str(ROOT / 'tools/misc/check_config.py'))['check']


@cache
def draw_weights(path: Path) -> None:
    """Gives random weights to the teachers and base models of a config whose files are not there."""

    def find(value: Any) -> None:
        if isinstance(value, dict) and {'model', 'checkpoint'} <= set(value):
            file = Path(value['checkpoint'])
            if not file.is_file():
                file.parent.mkdir(parents=True, exist_ok=True)
                torch.save(build_model(value['model'], 'model').state_dict(), file)
        if isinstance(value, dict | list):
            for each in value.values() if isinstance(value, dict) else value:
                find(each)

    find(read(path).to_dict())


# Trying


def tried(
    what: str,
    where: str,
    kind: str,
    keys: tuple[Any, ...],
    attempt: Callable[[], Any],
    right: bool,
    anyway: str = '',
) -> Trial:
    """Tries something; ``anyway`` is what it says of right options, too."""
    outcome, said = 'survived' if right else 'silent', 'accepted'
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    sink = io.StringIO()
    try:
        with (
            contextlib.redirect_stdout(sink),
            contextlib.redirect_stderr(sink),
            DefaultScope.overwrite_default_scope('mmkdx'),
        ):
            attempt()
    except Hang:
        outcome, said = 'lost', 'hangs'
    except MemoryError:
        outcome = 'survived' if kind == 'huge' else 'lost'
    except (Exception, SystemExit) as error:
        said = f'{type(error).__name__}: {error}'
        text = str(error).strip()
        good = any(str(key) in text for key in keys) and '\n' not in text
        good = good or (kind == 'huge' and ('memory' in text or 'overflow' in text))
        if text == anyway:  # the option was not looked at; Python refuses an unknown name
            outcome = 'survived' if right or kind == 'misspelt key' else 'silent'
        else:
            outcome = 'survived' if good else 'lost'
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return Trial(what, where, kind, outcome, said)


def _alarm(*_: Any) -> None:
    raise Hang


@contextlib.contextmanager
def confined() -> Iterator[None]:
    """A folder of its own, no output, an alarm, and 8 GiB of memory."""
    here, before = os.getcwd(), signal.signal(signal.SIGALRM, _alarm)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**33, limits[1]))
    off = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter('ignore')
            os.chdir(folder)
            yield
    finally:
        os.chdir(here)
        logging.disable(off)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGALRM, before)


def main() -> None:
    """Prints each failure and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--minutes', type=float, default=10)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--configs', type=int, default=320)
    parser.add_argument('--calls', type=int, default=480)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for each in trials(args.minutes, args.seed, args.configs, args.calls):
        found.append(each)
        if each.outcome != 'survived':
            print(each, flush=True)
    for row in count(found):
        print(row)


if __name__ == '__main__':
    main()
