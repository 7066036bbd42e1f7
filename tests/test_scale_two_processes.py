"""Options of distributed training, with two processes that exchange gradients by gloo."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from resumable import run_config, same, with_a_teacher
from tiny import build, classifier, run_ranks

ROOT = Path(__file__).parents[1]

# Each rank takes its half of each batch. `exchanges` counts how often DDP exchanged gradients.
SCRIPT = """
import os
import sys
from types import SimpleNamespace
import torch
import torch.distributed as dist
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from tiny import batch, classifier, distiller
from mmkdx.hooks import GradientCompressionHook
from mmengine.runner import turn_on_activation_checkpointing  # as mmkdx has mended it

path, rank, world = sys.argv[1], *map(int, sys.argv[2:])
dist.init_process_group('gloo', f'file://{path}.store', rank=rank, world_size=world)

def train(hook=None, checkpointed=(), counts=1, steps=4, **wrapper):
    torch.manual_seed(0)
    model = distiller(
        dict(
            kd=dict(type='KLDivLoss', at='logits', tau=2),
            cat=dict(type='CATLoss', at='cam'),
            fit=dict(type='MSELoss', at='backbone.body.0')),
        student=classifier(64, norm=False), teacher=dict(model=classifier(8))).train()
    turn_on_activation_checkpointing(model, checkpointed)
    wrapped = MMDistributedDataParallel(model, device_ids=None, **wrapper)
    exchanges = []
    if hook is not None:
        GradientCompressionHook(**hook).before_train(SimpleNamespace(model=wrapped))
    else:
        def count(group, bucket):
            exchanges.append(bucket.is_last())
            return default_hooks.allreduce_hook(group, bucket)
        wrapped.register_comm_hook(None, count)
    optim = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), accumulative_counts=counts)
    optim.initialize_count_status(wrapped, 0, steps * counts)
    for step in range(steps):
        images, samples = batch(8, seed=step)
        own = 8 // world // counts
        for part in range(counts):
            i = rank * 8 // world + part * own
            data = dict(inputs=images[i:i + own], data_samples=samples[i:i + own])
            wrapped.train_step(data, optim)
    return dict(model.student.state_dict(), exchanges=sum(exchanges))

result = dict(
    plain=train(),
    static=train(static_graph=True),
    checkpointed=train(checkpointed=['student.backbone.body', 'student.backbone.stem']),
    checkpointed_static=train(checkpointed=['student.backbone'], static_graph=True),
    accumulated=train(counts=2))
if world > 1:
    result.update(
        fp16=train(dict(kind='fp16')),
        bf16=train(dict(kind='bf16')),
        power_sgd=train(dict(kind='power_sgd', matrix_approximation_rank=8, start_powerSGD_iter=2)),
        power_sgd_off=train(dict(kind='power_sgd', start_powerSGD_iter=100)))
    try:
        GradientCompressionHook().before_train(SimpleNamespace(model=torch.nn.ReLU()))
    except ValueError as error:
        result['error'] = str(error)
torch.save(result, f'{path}.{rank}')
dist.barrier()
os._exit(0)  # a thread of gloo may outlive the interpreter, which then aborts with all done
"""


@pytest.fixture(scope='module')
def states(tmp_path_factory):
    folder = tmp_path_factory.mktemp('scale')
    return [*run_ranks(SCRIPT, folder / 'one', 1), *run_ranks(SCRIPT, folder / 'two', 2)]


def distance(a: dict, b: dict) -> float:
    """The largest difference of two states' weights."""
    return max((a[key] - b[key]).abs().max().item() for key in a if key != 'exchanges')


@pytest.mark.parametrize(
    'mode', ['plain', 'static', 'checkpointed', 'checkpointed_static', 'accumulated']
)
def test_two_processes_equal_one(states, mode):
    one, first, second = states
    assert distance(first[mode], second[mode]) == 0
    assert distance(first[mode], one['plain']) < 1e-6
    # One exchange for each step of the optimizer, however many batches it has
    assert [each[mode]['exchanges'] for each in states] == [4] * 3


@pytest.mark.parametrize('mode, error', [('fp16', 1e-4), ('bf16', 1e-3), ('power_sgd', 0.02)])
def test_compressed_gradients(states, mode, error):
    _, first, second = states
    assert distance(first[mode], second[mode]) == 0
    assert 0 < distance(first[mode], first['plain']) < error


def test_power_sgd_begins_where_it_is_told(states):
    assert distance(states[1]['power_sgd_off'], states[1]['plain']) < 1e-6


def test_gradients_that_no_ddp_exchanges_are_not_compressed_silently(states):
    assert states[1]['error'] == (
        'GradientCompressionHook is for a model in MMDistributedDataParallel, and '
        'model_wrapper_cfg makes a ReLU; remove the hook from custom_hooks'
    )


CONFIG = """
default_scope = 'mmkdx'
custom_imports = dict(imports=['tiny'])
student = dict(
    type='ImageClassifier', backbone=dict(type='TinyBackbone', width=4),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=4),
    data_preprocessor=dict(num_classes=10, mean=[78.0] * 3, std=[84.0] * 3))
teacher = dict(
    type='ImageClassifier', backbone=dict(type='TinyBackbone', width=8),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=8))
model = dict(
    type='Distiller', student=student, input_size=32,
    teacher=dict(model=teacher, checkpoint='teacher.pth'),
    terms=dict(kd=dict(type='KLDivLoss', at='logits'), cat=dict(type='CATLoss', at='cam')))
train_dataloader = dict(
    batch_size=6, num_workers=0, persistent_workers=False,
    dataset=dict(type='Digits', indices=48, pipeline=[dict(type='PackInputs')]),
    sampler=dict(type='DefaultSampler', shuffle=True))
train_cfg = dict(by_epoch=True, max_epochs=2)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9))
auto_scale_lr = dict(base_batch_size=24)
default_hooks = dict(logger=dict(type='LoggerHook', interval=1))
custom_hooks = [dict(type='GradientCompressionHook')]
randomness = dict(seed=0)
"""


@pytest.mark.slow
def test_two_nodes_train_as_one_with_two_processes(tmp_path):
    """By tools/dist_train.sh, started once for each node, as on two machines."""
    (tmp_path / 'config.py').write_text(CONFIG)
    torch.manual_seed(0)
    torch.save(build(classifier(8, classes=10)).state_dict(), tmp_path / 'teacher.pth')

    def launch(name: str, processes: int, **variables: str) -> subprocess.Popen:
        path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
        tests = dict(PATH=path, PYTHONPATH=str(ROOT / 'tests'), OMP_NUM_THREADS='1')
        script = ROOT / 'tools/dist_train.sh'
        return subprocess.Popen(
            ['bash', script, 'config.py', str(processes), '--work-dir', name, '--auto-scale-lr'],
            cwd=tmp_path,
            env={**os.environ, **tests, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    nodes = [launch('two', 1, NNODES='2', NODE_RANK=str(i), PORT='29617') for i in range(2)]
    logs = []
    for processes in (nodes, [launch('one', 2, PORT='29618')]):
        try:
            for process in processes:
                logs.append(process.communicate(timeout=180)[0])
                assert process.returncode == 0, logs[-1][-3000:]
        finally:
            for process in processes:
                process.kill()
    states = [
        torch.load(tmp_path / name / 'epoch_2.pth', weights_only=False) for name in ('two', 'one')
    ]
    assert states[0]['meta']['iter'] == 8  # 48 images, in 4 steps of 2 processes of 6 images each
    for key, value in states[0]['state_dict'].items():
        assert same(value, states[1]['state_dict'][key]), key
    # Half the batch that the learning rate is for
    assert states[0]['optimizer']['param_groups'][0]['lr'] == pytest.approx(0.05)
    assert 'Distributed launcher: pytorch' in logs[0] and 'GPU number: 2' in logs[0]


@pytest.mark.slow
def test_a_signal_stops_both_processes_and_the_script_says_so(tmp_path):
    cfg = run_config(with_a_teacher(tmp_path))
    cfg.train_cfg.max_epochs = 500
    cfg.dump(tmp_path / 'run.py')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    command = ['bash', str(ROOT / 'tools/dist_train.sh'), str(tmp_path / 'run.py'), '2']
    folders = [str(Path(sys.executable).parent), os.environ['PATH']]
    env = dict(
        os.environ,
        PYTHONPATH=str(ROOT / 'tests'),
        OMP_NUM_THREADS='1',
        PORT=str(port),
        PATH=os.pathsep.join(folders),
    )
    log = tmp_path / 'log'
    with log.open('w') as file:
        process = subprocess.Popen(command, env=env, stdout=file, stderr=file, cwd=tmp_path)
    end = time.monotonic() + 240
    while not re.search(r'Epoch\(train\) +\[ *2\]', log.read_text()):
        assert process.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 143, log.read_text()[-3000:]
    assert log.read_text().count('SIGTERM: the run stops after') == 1
    checkpoint = torch.load((tmp_path / 'last_checkpoint').read_text(), weights_only=False)
    assert len(checkpoint['progress']['random']) == 2
