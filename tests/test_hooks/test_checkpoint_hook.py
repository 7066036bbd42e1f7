"""Checkpoints: the old one goes last, and what a crash left out is made up for."""

import json
import os
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from processes import run_ranks
from resumable import losses, run_config, same, with_a_teacher

from mmkdx.files import WriteError
from mmkdx.hooks import CheckpointHook
from mmkdx.registry import METRICS


@METRICS.register_module()
class Told:
    """A metric that returns what it is told, one value for each validation."""

    values: list = []
    calls = 0

    def __init__(self, **_):
        self.results, self.prefix = [], None

    def process(self, data_batch, data_samples):
        pass

    def evaluate(self, size):
        Told.calls += 1
        return dict(a=Told.values[Told.calls - 1], b=-Told.values[Told.calls - 1])


class Killed(BaseException):
    """What stands for SIGKILL."""


class KillAt(Hook):
    """Breaks the run off at a stage and an iteration."""

    priority = 'LOWEST'

    def __init__(self, iteration, stage):
        self.iteration = iteration
        setattr(self, stage, self.kill)

    def kill(self, runner, **_):
        if runner.iter == self.iteration:
            raise Killed


@pytest.fixture
def told():
    """What validations yield."""

    def tell(*values):
        Told.values, Told.calls = list(values), 0

    return tell


def config(folder, loop=None, **checkpoint):
    cfg = run_config(folder, val_evaluator=dict(type='Told'))
    cfg.default_hooks.checkpoint.update(
        save_best='a', rule='greater', max_keep_ckpts=1, **checkpoint
    )
    cfg.train_cfg = loop or dict(by_epoch=True, max_epochs=3, val_interval=1)
    cfg.custom_hooks = [dict(type='EpochSeedHook')]
    return cfg


def train(cfg, *hooks, whole=True):
    runner = Runner.from_cfg(cfg)
    for hook in hooks:
        runner.register_hook(hook, hook.priority)
    if whole:
        runner.train()
    else:
        with pytest.raises(Killed):
            runner.train()
    return runner


def files(folder):
    return sorted(path.name for path in folder.glob('*.pth') if path.name != 'teacher.pth')


def steps(folder):
    """The step of each validation in the log."""
    lines = [
        json.loads(line)
        for path in sorted(folder.glob('*/vis_data/scalars.json'))
        for line in path.read_text().splitlines()
    ]
    return [line['step'] for line in lines if 'a' in line]


@pytest.mark.parametrize(
    ('stage', 'validated'),
    [
        ('before_val', [1, 2, 3]),  # between checkpoint and validation
        ('after_val_iter', [1, 2, 3]),
        ('after_val_epoch', [1, 2, 3]),  # after all was saved
    ],
)
def test_a_missed_validation_is_made_up_for(tmp_path, told, stage, validated):
    cfg = config(with_a_teacher(tmp_path))
    told(1, 2) if stage == 'after_val_epoch' else told(1)
    train(cfg, KillAt(8, stage), whole=False)
    told(*[2, 0.5][stage == 'after_val_epoch' :])
    cfg.resume = True
    train(cfg)
    assert steps(tmp_path) == validated
    assert files(tmp_path) == ['best_a_epoch_2.pth', 'epoch_3.pth']
    info = torch.load(tmp_path / 'epoch_3.pth', weights_only=False)['message_hub']['runtime_info']
    assert info['best_score'] == 2 and Path(info['best_ckpt']).name == 'best_a_epoch_2.pth'


def test_after_the_last_epoch_too(tmp_path, told):
    cfg = config(with_a_teacher(tmp_path))
    told(1, 2)
    train(cfg, KillAt(12, 'before_val'), whole=False)
    told(3)
    cfg.resume = True
    train(cfg)
    assert steps(tmp_path) == [1, 2, 3]
    assert files(tmp_path) == ['best_a_epoch_3.pth', 'epoch_3.pth']
    told()  # nothing is left to do
    train(cfg)


def test_by_iteration(tmp_path, told):
    loop = dict(by_epoch=False, max_iters=7, val_interval=3)
    cfg = config(with_a_teacher(tmp_path), loop, by_epoch=False, interval=3)
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
    cfg.default_hooks.logger.log_metric_by_epoch = False
    told(1)
    train(cfg, KillAt(6, 'before_val'), whole=False)
    told(2, 0)
    cfg.resume = True
    train(cfg)
    assert steps(tmp_path) == [3, 6, 7]
    assert files(tmp_path) == ['best_a_iter_6.pth', 'iter_7.pth']


@pytest.mark.parametrize(
    ('loop', 'due'),
    [
        (dict(val_interval=2), False),
        (dict(val_interval=1, val_begin=2), False),
        (dict(val_interval=1, max_epochs=1), True),
        (dict(val_interval=5, dynamic_intervals=[(1, 1)]), True),
    ],
)
def test_only_what_is_due_is_made_up_for(tmp_path, told, loop, due):
    folder = with_a_teacher(tmp_path)
    cfg = config(folder, dict(by_epoch=True, max_epochs=9, val_interval=1))
    told()
    train(cfg, KillAt(4, 'before_val'), whole=False)
    told(*[1] * 3)
    cfg.train_cfg = dict(by_epoch=True, **{'max_epochs': 9, **loop})
    cfg.resume = True
    train(cfg, KillAt(4, 'before_train_iter'), whole='max_epochs' in loop)
    assert steps(tmp_path) == ([1] if due else [])


def test_killed_between_the_best_and_the_checkpoint_that_names_it(tmp_path, told, monkeypatch):
    cfg = config(with_a_teacher(tmp_path))
    told(1, 2)
    save = Runner.save_checkpoint

    def kill(self, *args, **kwargs):
        save(self, *args, **kwargs)
        if self.iter == 8 and kwargs.get('filename', '').startswith('best'):
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Runner, 'save_checkpoint', kill)
        train(cfg, whole=False)
    # both the old and the new best are there
    assert files(tmp_path) == ['best_a_epoch_1.pth', 'best_a_epoch_2.pth', 'epoch_2.pth']
    told(2, 0)
    cfg.resume = True
    train(cfg)
    assert steps(tmp_path) == [1, 2, 2, 3]  # the second one again
    assert files(tmp_path) == ['best_a_epoch_2.pth', 'epoch_3.pth']


@pytest.mark.parametrize('kind', ['epoch_2', 'best_a_epoch_2'])
def test_what_cannot_be_written_costs_nothing(tmp_path, told, monkeypatch, kind):
    told(1, 2)
    replace = os.replace

    def full(part, path):
        if Path(path).stem == kind:
            raise OSError(28, 'No space left on device')
        replace(part, path)

    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(WriteError, match=rf'cannot write {tmp_path}/{kind}\.pth: No space left'):
        train(config(with_a_teacher(tmp_path)))
    left = ['best_a_epoch_1.pth', 'epoch_1.pth' if kind == 'epoch_2' else 'epoch_2.pth']
    assert files(tmp_path) == left


@pytest.mark.parametrize('by_epoch', [True, False])
def test_a_runner_that_overwrites_the_place_does_not_move_it(tmp_path, told, monkeypatch, by_epoch):
    """mmengine's FlexibleRunner takes each checkpoint for one inside the hook after training."""
    save = Runner.save_checkpoint

    def flexible(self, *args, meta, by_epoch, **options):
        meta.update(epoch=self.epoch + by_epoch, iter=self.iter + (not by_epoch))
        save(self, *args, meta=meta, by_epoch=by_epoch, **options)

    monkeypatch.setattr(Runner, 'save_checkpoint', flexible)
    if by_epoch:
        cfg = config(with_a_teacher(tmp_path))
        cfg.train_cfg.max_epochs, place = 1, (1, 4)
    else:
        loop, place = dict(by_epoch=False, max_iters=3, val_interval=3), (0, 3)
        cfg = config(with_a_teacher(tmp_path), loop, by_epoch=False, interval=3)
        cfg.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
    told(1)
    hook = next(each for each in train(cfg).hooks if isinstance(each, CheckpointHook))
    meta = torch.load(hook.last_ckpt, weights_only=False)['meta']
    assert (meta['epoch'], meta['iter']) == place and hook.is_saved(place[1])


def test_several_best_ones(tmp_path, told):
    cfg = config(with_a_teacher(tmp_path))
    cfg.default_hooks.checkpoint.update(save_best=['a', 'b'])
    told(1, 2, 0)
    train(cfg)
    assert files(tmp_path) == ['best_a_epoch_2.pth', 'best_b_epoch_3.pth', 'epoch_3.pth']


def test_a_checkpoint_cannot_name_files_to_be_removed(tmp_path, told):
    work_dir = tmp_path / 'work'
    work_dir.mkdir()
    cfg = config(with_a_teacher(work_dir))
    told(1)
    train(cfg, KillAt(4, 'before_train_iter'), whole=False)
    precious = tmp_path / 'precious'
    precious.write_text('')
    file = work_dir / 'epoch_1.pth'
    hostile = torch.load(file, weights_only=False)
    hostile['message_hub']['runtime_info']['best_ckpt'] = str(precious)
    torch.save(hostile, file)
    told(2, 3)
    cfg.resume = True
    train(cfg)
    assert precious.exists()


@pytest.mark.parametrize('progress', [None, 'text', {}])
def test_checkpoints_of_others_resume(tmp_path, told, progress):
    cfg = config(with_a_teacher(tmp_path))
    told(1)
    train(cfg, KillAt(4, 'before_train_iter'), whole=False)
    file = tmp_path / 'epoch_1.pth'
    checkpoint = {**torch.load(file, weights_only=False), 'progress': progress}
    torch.save(checkpoint, file)
    told(1, 2, 3)  # whether they hold the validation is unknown
    cfg.resume = True
    train(cfg)
    assert steps(tmp_path) == [1, 1, 2, 3]


def test_an_epoch_of_another_length_begins_again(tmp_path, told):
    loop = dict(by_epoch=True, max_epochs=1, val_interval=9)
    cfg = config(with_a_teacher(tmp_path), loop, by_epoch=False, interval=2)
    told()
    train(cfg, KillAt(2, 'before_train_iter'), whole=False)
    cfg.train_dataloader.batch_size = 16
    cfg.resume = True
    told(1)
    train(cfg)
    assert (
        'The checkpoint is from the middle of an epoch of 4 batches, and now an epoch has 3: this '
        'epoch begins again.'
    ) in sorted(tmp_path.glob('*/*.log'))[-1].read_text()
    assert sorted(losses(tmp_path)) == [1, 2, 3, 4, 5]


def test_checkpoints_inside_an_epoch_go_on_there(tmp_path, told):
    loop = dict(by_epoch=True, max_epochs=2, val_interval=1)
    whole, cut = (with_a_teacher(tmp_path / name) for name in self_made(tmp_path, 'whole', 'cut'))
    for folder in (whole, cut):
        cfg = config(folder, loop, by_epoch=False, interval=3)
        told(1, 2)
        train(
            cfg, *([KillAt(6, 'before_train_iter')] if folder == cut else []), whole=folder == whole
        )
    told(2)
    cfg.resume = True
    train(cfg)
    one, two = (torch.load(each / 'iter_8.pth', weights_only=False) for each in (whole, cut))
    for key, value in one['state_dict'].items():
        assert same(value, two['state_dict'][key]), key
    assert losses(whole) == losses(cut)


def self_made(folder, *names):
    """Names of folders that are made."""
    for name in names:
        (folder / name).mkdir()
    return names


def test_two_runs_of_one_second_have_two_log_folders(tmp_path, monkeypatch):
    monkeypatch.setattr('time.time', lambda: 1e9)
    cfg = config(with_a_teacher(tmp_path))
    names = [Runner.from_cfg(cfg).timestamp for _ in range(3)]
    assert names == [names[0], f'{names[0]}_1', f'{names[0]}_2']
    assert all((tmp_path / name / f'{name}.log').is_file() for name in names)


def test_what_a_kill_left_no_time_to_remove(tmp_path, told):
    cfg = config(with_a_teacher(tmp_path))
    told(1)
    train(cfg, KillAt(8, 'before_val'), whole=False)
    left = [tmp_path / name for name in ('epoch_1.pth', 'best_a_epoch_0.pth')]
    others = [tmp_path / 'mine.pth', tmp_path.parent / f'{tmp_path.name}_other.pth']
    for path in (*left, *others):
        path.touch()
    saved = torch.load(tmp_path / 'epoch_2.pth', weights_only=False)
    assert saved['progress']['outdated'] == [str(left[0])]
    saved['progress']['outdated'] = [*map(str, left), str(others[1])]
    torch.save(saved, tmp_path / 'epoch_2.pth')
    told(2, 0.5)
    cfg.resume = True
    train(cfg)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in others)


BUFFERS = """
import os
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from mmengine.runner import Runner
from resumable import run_config, with_a_teacher

path, rank, world = Path(sys.argv[1]), *map(int, sys.argv[2:])
dist.init_process_group('gloo', f'file://{path}.store', rank=rank, world_size=world)
folder = Path(f'{path}_{rank}')
folder.mkdir()
cfg = run_config(with_a_teacher(folder), randomness=dict(seed=rank))  # images of its own
cfg.train_cfg.update(max_epochs=1, val_interval=9)
runner = Runner.from_cfg(cfg)
runner.train()
torch.save(dict(runner.model.named_buffers()), f'{path}.{rank}')
dist.barrier()
os._exit(0)  # a thread of gloo may outlive the interpreter, which then aborts with all done
"""


def test_all_processes_go_on_with_the_buffers_of_the_checkpoint(tmp_path):
    first, second = run_ranks(BUFFERS, tmp_path / 'run', 2)
    saved = torch.load(next(tmp_path.rglob('epoch_1.pth')), weights_only=False)['state_dict']
    name = 'backbone.stem.1.running_mean'
    assert saved[name].abs().sum() > 0
    for key in first:
        assert same(first[key], second[key]), key
    assert torch.equal(saved[name], first[f'student.{name}'])
