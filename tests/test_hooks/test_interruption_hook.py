"""SIGTERM and SIGINT: the step ends, a checkpoint is there, and a resumed run repeats a whole one."""

import multiprocessing
import os
import signal
import time

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from resumable import losses, run_config, same, with_a_teacher

from mmkdx.compat import _init_worker
from mmkdx.hooks import InterruptionHook

ENDLESS = dict(by_epoch=False, max_iters=10, val_interval=4)


class SignalAt(Hook):
    """Sends a signal to this process and to its children, as a terminal does, at an iteration."""

    def __init__(self, iteration, number=signal.SIGTERM, stage='before_train_iter'):
        self.iteration, self.number = iteration, number
        setattr(self, stage, self.send)

    def send(self, runner, **_):
        if runner.iter == self.iteration:
            for child in multiprocessing.active_children():  # from another process than theirs
                os.system(f'kill -{int(self.number)} {child.pid}')
            os.kill(os.getpid(), self.number)


def config(folder, workers=0, loop=None, **changes):
    cfg = run_config(folder, **changes)
    cfg.default_hooks.interruption = dict(type='InterruptionHook')
    cfg.default_hooks.checkpoint.update(save_best='accuracy/top1', max_keep_ckpts=1)
    cfg.train_dataloader.num_workers = workers
    cfg.train_cfg.update(max_epochs=2, val_interval=1)
    if loop:
        cfg.train_cfg = loop
        cfg.default_hooks.checkpoint.update(by_epoch=False, interval=4)
        cfg.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
    return cfg


def train(cfg, *hooks):
    runner = Runner.from_cfg(cfg)
    for hook in hooks:
        runner.register_hook(hook, 'VERY_HIGH')
    runner.train()
    return runner


def stop(cfg, hook, status=143):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    # A shell lets what it runs in the background ignore SIGINT, and so would the run
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as leave:
            train(cfg, hook)
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), before):
            signal.signal(number, handler)
    assert leave.value.code == status


def log_of(folder):
    return ''.join(path.read_text() for path in sorted(folder.glob('*/*.log')))


def assert_equal(folder, whole, name):
    one, two = (torch.load(each / name, weights_only=False) for each in (folder, whole))
    for key, value in two['state_dict'].items():
        assert same(one['state_dict'][key], value), key
    for one_state, two_state in zip(*(each['optimizer']['state'].values() for each in (one, two))):
        assert torch.equal(one_state['momentum_buffer'], two_state['momentum_buffer'])
    assert losses(folder) == losses(whole)
    assert {path.name for path in folder.glob('best_*')} == {p.name for p in whole.glob('best_*')}


@pytest.fixture(scope='module')
def wholes(tmp_path_factory):
    """Uninterrupted runs, by the number of workers and by epoch or by iteration."""
    found = {}

    def whole(workers, loop):
        key = workers, loop is None
        if key not in found:
            found[key] = with_a_teacher(tmp_path_factory.mktemp('whole'))
            train(config(found[key], workers, loop))
        return found[key]

    return whole


@pytest.mark.parametrize(
    ('workers', 'loop', 'iteration', 'number'),
    [
        (0, None, 5, signal.SIGTERM),  # in the second step of the second epoch
        (2, None, 1, signal.SIGINT),
        (0, None, 3, signal.SIGTERM),  # in the last step of an epoch, whose checkpoint is enough
        (0, ENDLESS, 5, signal.SIGTERM),
        pytest.param(2, ENDLESS, 5, signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_goes_on_with_the_next_step(
    tmp_path, wholes, workers, loop, iteration, number
):
    cfg = config(with_a_teacher(tmp_path), workers, loop)
    stop(cfg, SignalAt(iteration, number), 128 + number)
    file = tmp_path / ('epoch_1.pth' if iteration == 3 else 'interrupted.pth')
    assert (tmp_path / 'last_checkpoint').read_text() == str(file)
    assert (
        f'{signal.Signals(number).name}: the run stops after {iteration + 1} iterations; '
        f'--resume goes on from {file}.'
    ) in log_of(tmp_path)
    assert len(losses(tmp_path)) == iteration + 1
    cfg.resume = True
    train(cfg)
    assert_equal(tmp_path, wholes(workers, loop), 'iter_10.pth' if loop else 'epoch_2.pth')
    assert not (tmp_path / 'interrupted.pth').exists()


def test_a_validation_is_broken_off_and_made_up_for(tmp_path, wholes):
    cfg = config(with_a_teacher(tmp_path))
    stop(cfg, SignalAt(4, stage='before_val_iter'))
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'epoch_1.pth')
    assert not list(tmp_path.glob('best_*'))
    cfg.resume = True
    train(cfg)
    assert 'that was due at this checkpoint is missing: it runs now' in log_of(tmp_path)
    assert_equal(tmp_path, wholes(0, None), 'epoch_2.pth')


def test_a_validation_that_no_checkpoint_precedes_ends_first(tmp_path):
    cfg = config(with_a_teacher(tmp_path))
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=10)
    stop(cfg, SignalAt(4, stage='before_val_iter'))
    found = torch.load(tmp_path / 'interrupted.pth', weights_only=False)
    assert found['meta']['epoch'] == 1 and found['progress']['validated'] == 4


def test_gradients_that_wait_are_used_first(tmp_path):
    cfg = config(with_a_teacher(tmp_path))
    cfg.optim_wrapper.accumulative_counts = 3
    stop(cfg, SignalAt(1))
    assert torch.load(tmp_path / 'interrupted.pth', weights_only=False)['meta']['iter'] == 3


def test_a_run_without_our_checkpoints_says_so(tmp_path):
    cfg = config(with_a_teacher(tmp_path))
    cfg.default_hooks.checkpoint = None
    stop(cfg, SignalAt(1))
    assert 'SIGTERM: the run stops after 2 iterations; it has no CheckpointHook' in log_of(tmp_path)


def test_handlers_are_given_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    train(config(with_a_teacher(tmp_path)))
    assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))


def test_the_last_exchange_of_signals_ends_before_the_run(monkeypatch):
    """A process that is faster than the others must not exit while gloo waits for them."""

    class Exchange:
        waited = False

        def wait(self):
            self.waited = True

    exchanges = [Exchange(), Exchange()]
    monkeypatch.setattr(
        'mmkdx.hooks.interruption_hook.distributed.all_reduce',
        lambda *_, **__: exchanges[hook.steps],
    )
    hook = InterruptionHook()
    hook._group = object()
    for hook.steps in range(2):
        hook._agree()
    assert [each.waited for each in exchanges] == [True, False]
    hook.after_train(None)
    assert exchanges[1].waited and hook._group is None, 'a kept group keeps its threads'


def in_a_child(function):
    """The exit status of a fork that runs a function."""
    child = os.fork()
    if not child:
        try:
            function()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_second_signal_ends_the_process(monkeypatch):
    def twice(pause):
        hook = InterruptionHook()
        hook.before_train_iter(None, 0)
        os.kill(os.getpid(), signal.SIGTERM)
        hook._since -= pause
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)

    assert in_a_child(lambda: twice(0)) == 0, 'a launcher sends one twice'
    assert in_a_child(lambda: twice(3)) == -signal.SIGTERM


def test_ignored_signals_stay_ignored():
    def nohup():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        InterruptionHook().before_train_iter(None, 0)
        os._exit(7 if signal.getsignal(signal.SIGINT) is signal.SIG_IGN else 1)

    assert in_a_child(nohup) == 7


def test_a_worker_obeys_its_own_process_alone():
    def worker():
        _init_worker(1, num_workers=2, rank=0, seed=0)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        os._exit(1)

    child = os.fork()
    if not child:
        worker()
    time.sleep(0.5)
    assert os.waitpid(child, os.WNOHANG) == (0, 0)
    os.kill(child, signal.SIGTERM)
    assert os.waitpid(child, 0)[1] == 0
