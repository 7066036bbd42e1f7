"""SIGKILL at random moments: what goes on afterwards equals what was never killed."""

from __future__ import annotations

import json
import random
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import torch
from mmengine.registry import DefaultScope
from processes import Script
from resumable import losses, run_config, same, with_a_teacher

from mmkdx.registry import MODELS

ROOT = Path(__file__).parents[2]
VICTIM = Path(__file__).with_name('victim.py')


def run(
    folder: Path,
    tool: str,
    *arguments: object,
    event: int = 0,
    seconds: float = 0,
    **options: object,
) -> Script:
    """Starts a tool that kills itself."""
    return Script(VICTIM, folder, event, seconds, ROOT / 'tools' / tool, *arguments, **options)


def finish(script: Script) -> None:
    """Waits for a tool that must not fail."""
    done = script.wait()
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def validations(work_dir: Path) -> dict[int, dict]:
    """The scores of each validation, of all parts of a run."""
    found = {}
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in path.read_text().split('\n')[:-1]:
            record = json.loads(line)
            if 'loss' not in record:
                times = ('time', 'data_time', 'seconds')
                scores = {k: v for k, v in record.items() if not k.endswith(times)}
                found.setdefault(record['step'], {}).update(scores)
    return found


def differences(whole: Path, resumed: Path) -> list[str]:
    """What of a resumed run is not as in the uninterrupted one."""
    found = []
    if losses(resumed) != losses(whole):
        found.append('losses')
    if validations(resumed) != validations(whole):
        found.append('validations')
    for kind in ('best_*.pth', 'epoch_*.pth', 'iter_*.pth'):
        one, two = ({path.name for path in folder.glob(kind)} for folder in (whole, resumed))
        if one != two:
            found.append(f'files {sorted(one)} and {sorted(two)}')
        for name in one & two:
            found += [
                f'{name}: {key}'
                for key in ('state_dict', 'optimizer', 'param_schedulers', 'best')
                if not equal(_part(whole / name, key), _part(resumed / name, key))
            ]
    return found


def _part(path: Path, key: str) -> object:
    checkpoint = torch.load(path, weights_only=False)
    if key == 'best':
        info = checkpoint['message_hub']['runtime_info']
        return {
            k: Path(v).name if isinstance(v, str) else v for k, v in info.items() if 'best' in k
        }
    return checkpoint.get(key)


def equal(one: object, two: object) -> bool:
    """Whether two states are equal to the last bit."""
    if isinstance(one, torch.Tensor):
        return same(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(equal, one, two))
    return one == two


def training_config(folder: Path, **changes: object) -> Path:
    """A training with a checkpoint each epoch, of which one is kept, and the best."""
    cfg = run_config(with_a_teacher(folder), **changes)
    cfg.val_evaluator = [dict(type='Accuracy'), dict(type='CalibrationError')]
    # It falls in most epochs, so that most have a new best checkpoint
    cfg.default_hooks.checkpoint.update(max_keep_ckpts=1, save_best='calibration/nll', rule='less')
    cfg.train_cfg = dict(by_epoch=True, max_epochs=4, val_interval=1)
    cfg.optim_wrapper.optimizer.lr = 0.03
    cfg.train_dataloader.dataset.indices = 96
    cfg.param_scheduler.T_max = 32
    cfg.custom_hooks = [dict(type='EpochSeedHook')]
    cfg.dump(folder / 'run.py')
    return folder / 'run.py'


def kill_in_turns(
    row: dict,
    folder: Path,
    command: Callable,
    compare: Callable,
    chance: random.Random,
    until: float,
) -> dict:
    """Kills a tool up to three times, lets it end, and compares; again until all is tried.

    Args:
        row (dict): The row of the table, with ``most`` tries.
        folder (Path): Where the tool writes, below this folder.
        command (Callable): From the folder of a run its tool and arguments.
        compare (Callable): From the folders of the whole and of the killed run the differences.
        chance (random.Random): Of the moments.
        until (float): When to end, in the time of ``time.monotonic``.

    Returns:
        dict: The row.
    """
    whole = folder / 'whole'
    begin = time.monotonic()
    finish(run(whole, *command(whole)))
    lasted, events = time.monotonic() - begin, int((folder / 'whole.events').read_text())
    most = row.pop('most')
    while row['tried'] < most and (not row['tried'] or time.monotonic() < until):
        cut = folder / f'cut{row["tried"]}'
        moments = []
        for _ in range(min(3, most - row['tried'])):
            if chance.random() < 0.7:  # each change of a file is as likely as any other
                moments.append(dict(event=chance.randint(1, events)))
            else:
                moments.append(dict(seconds=chance.uniform(lasted / 3, lasted)))
            run(cut, *command(cut), **moments[-1]).wait()
        done = run(cut, *command(cut)).wait()
        wrong = compare(whole, cut) if done.returncode == 0 else [done.stderr[-1500:]]
        if wrong:
            print(f'{row["what"]} at {moments}: {wrong}')
        row['tried'] += len(moments)
        row['survived' if not wrong else 'lost' if done.returncode else 'silent'] += len(moments)
        shutil.rmtree(cut)
    return row


def kill_training(row: dict, folder: Path, chance: random.Random, until: float) -> dict:
    """Kills trainings."""
    config = training_config(folder)

    def command(cut: Path) -> tuple:
        return 'train.py', config, '--work-dir', cut, '--resume'

    return kill_in_turns(row, folder, command, differences, chance, until)


def kill_push(row: dict, folder: Path, chance: random.Random, until: float) -> dict:
    """Kills trainings of prototypes, most of whose time is a push."""
    loaders = {
        key: dict(
            batch_size=9,
            num_workers=0,
            persistent_workers=False,
            dataset=dict(
                type='Parts',
                split=split,
                num_samples=36,
                image_size=32,
                pipeline=[dict(type='PackInputs')],
            ),
            sampler=dict(type='DefaultSampler', shuffle=split == 'train'),
        )
        for key, split in (('train_dataloader', 'train'), ('val_dataloader', 'val'))
    }
    head = dict(
        type='ProtoPNetHead',
        num_classes=9,
        in_channels=6,
        prototypes_per_class=2,
        prototype_channels=5,
    )
    cfg = run_config(
        folder,
        model=dict(
            type='ImageClassifier',
            backbone=dict(type='TinyBackbone', width=6),
            head=head,
            data_preprocessor=dict(num_classes=9, mean=[105.0] * 3, std=[41.0] * 3),
        ),
        custom_hooks=[
            dict(type='EpochSeedHook'),
            dict(type='PrototypePushHook', start=1, interval=1, tune_epochs=1),
        ],
        **loaders,
    )
    cfg.default_hooks.checkpoint.update(max_keep_ckpts=1)
    cfg.train_cfg.update(max_epochs=3, val_interval=1)
    cfg.dump(folder / 'run.py')

    def command(cut: Path) -> tuple:
        return 'train.py', folder / 'run.py', '--work-dir', cut, '--resume'

    return kill_in_turns(row, folder, command, differences, chance, until)


def kill_cache(row: dict, folder: Path, chance: random.Random, until: float) -> dict:
    """Kills writers of a teacher's outputs."""
    cfg = run_config(with_a_teacher(folder))
    cfg.model.teacher = dict(
        type='CachedTeacher', teacher=cfg.model.teacher[0].to_dict(), cache=str(folder / 'whole')
    )
    cfg.model.terms = dict(kd=dict(type='KLDivLoss', at='logits', tau=2))
    loader = cfg.train_dataloader
    loader.dataset = dict(type='SeededViews', views=2, dataset=loader.dataset.to_dict())
    cfg.dump(folder / 'run.py')

    def command(cut: Path) -> tuple:
        cache = f'model.teacher.cache={cut}'
        return 'cache_teacher.py', folder / 'run.py', '--shard-size', 4, '--cfg-options', cache

    def compare(whole: Path, cut: Path) -> list[str]:
        one, two = (
            {
                path.relative_to(each): path.read_bytes()
                for path in each.rglob('*')
                if path.suffix in ('.json', '.safetensors')
            }
            for each in (whole, cut)
        )
        return [str(name) for name in one.keys() | two.keys() if one.get(name) != two.get(name)]

    return kill_in_turns(row, folder, command, compare, chance, until)


def kill_report(row: dict, folder: Path, chance: random.Random, until: float) -> dict:
    """Kills tests that write a report."""
    hook = dict(
        type='ExplainHook', num_samples=8, show_samples=2, metrics=[dict(type='MapComplexity')]
    )
    cfg = run_config(
        with_a_teacher(folder),
        custom_hooks=[hook],
        test_evaluator=dict(type='Accuracy'),
        test_cfg={},
    )
    cfg.test_dataloader = cfg.val_dataloader
    cfg.visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
    cfg.dump(folder / 'run.py')
    weights = folder / 'weights.pth'
    with DefaultScope.overwrite_default_scope('mmkdx'):
        torch.manual_seed(0)
        torch.save(MODELS.build(cfg.model).state_dict(), weights)

    def command(cut: Path) -> tuple:
        out = ('--out', cut / 'metrics.json', '--out-item', 'metrics')
        return 'test.py', folder / 'run.py', weights, '--report', '--work-dir', cut, *out

    def compare(whole: Path, cut: Path) -> list[str]:
        wrong = []
        for path in cut.rglob('*'):  # those of the killed tests, too
            if path.suffix == '.json' and path.name != 'scalars.json' and path.is_file():
                try:
                    json.loads(path.read_text())
                except ValueError:
                    wrong.append(f'half {path}')
            if path.suffix == '.html' and not path.read_text().rstrip().endswith('</html>'):
                wrong.append(f'half {path}')
            if path.suffix == '.png' and cv2.imread(str(path)) is None:
                wrong.append(f'half {path}')
        last = [sorted(each.glob('*/explain'))[-1] for each in (whole, cut)]
        names = [sorted(path.name for path in each.rglob('*')) for each in last]
        if names[0] != names[1]:
            wrong.append(f'{names[0]} and {names[1]}')
        one, two = (json.loads((each / 'metrics.json').read_text()) for each in (whole, cut))
        for scores in (one, two):
            scores.pop('explain/seconds')
        return wrong if one == two else [*wrong, 'metrics']

    return kill_in_turns(row, folder, command, compare, chance, until)


def kill_rank(row: dict, folder: Path, chance: random.Random, until: float) -> dict:
    """Kills one of two processes of a training; the other must end, and both go on later."""
    config = training_config(folder)
    whole, most = folder / 'whole', row.pop('most')

    def start(work_dir: Path, **moments: dict) -> list[Script]:
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        common = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), WORLD_SIZE='2')
        command = ('train.py', config, '--work-dir', work_dir, '--resume', '--launcher', 'pytorch')
        ranks = [dict(common, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)]
        return [run(work_dir, *command, env=env, **moments.get(env['RANK'], {})) for env in ranks]

    begin = time.monotonic()
    for script in start(whole):
        finish(script)
    lasted = time.monotonic() - begin
    while row['tried'] < most and (not row['tried'] or time.monotonic() < until):
        cut = folder / f'cut{row["tried"]}'
        moment = {str(chance.randint(0, 1)): dict(seconds=chance.uniform(lasted / 2, lasted))}
        for script in start(cut, **moment):
            script.wait(60)
        done = [script.wait() for script in start(cut)]
        failed = [each.stderr[-1500:] for each in done if each.returncode]
        wrong = failed or differences(whole, cut)
        if wrong:
            print(f'{row["what"]} at {moment}: {wrong}')
        row['tried'] += 1
        row['survived' if not wrong else 'lost' if failed else 'silent'] += 1
        shutil.rmtree(cut)
    return row


#: For each kind the words of its row, its kills in ten minutes, and its share of the time.
KINDS: dict[str, tuple[str, int, float, Callable]] = dict(
    training=('SIGKILL of a training', 50, 0.5, kill_training),
    cache=('SIGKILL of a cache writer', 10, 0.1, kill_cache),
    report=('SIGKILL of a test with report', 10, 0.1, kill_report),
    push=('SIGKILL of a prototype push', 10, 0.15, kill_push),
    rank=('SIGKILL of one of two processes', 5, 0.15, kill_rank),
)


def drive(minutes: float, seed: int) -> list[dict]:
    """Kills each kind of run as often as the time allows.

    Args:
        minutes (float): The time in minutes; ten give the full counts. With little time, only the
            first kinds are tried.
        seed (int): The seed of the moments.

    Returns:
        list[dict]: For each kind of run the counts of kills: ``tried``, ``survived``, ``lost`` (the run
        does not go on) and ``silent`` (it goes on and differs).
    """
    rows, end = [], time.monotonic() + minutes * 60
    with tempfile.TemporaryDirectory() as name:
        for kind, (what, most, share, kill) in KINDS.items():
            if rows and time.monotonic() > end:
                break
            folder = Path(name, kind)
            folder.mkdir()
            most = max(1, round(most * min(1, minutes / 10)))
            row = dict(what=what, tried=0, survived=0, lost=0, silent=0, most=most)
            until = time.monotonic() + share * minutes * 60
            rows.append(kill(row, folder, random.Random(f'{seed} {kind}'), until))
    return rows
