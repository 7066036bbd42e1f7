"""Two processes with half a batch each train what one process trains with the whole batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]

# Each process writes its weights after five steps of SGD on its part of the batches. DDP raises an error
# at the second step if a parameter got no gradient at the first.
SCRIPT = """
import os
import sys
import torch
import torch.distributed as dist
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from tiny import batch, classifier, distiller

rank, world = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
if world > 1:
    dist.init_process_group('gloo')

def train(norm, student_weight):
    torch.manual_seed(0)
    model = distiller(
        dict(
            kd=dict(type='KLDivLoss', at='logits', tau=2),
            cat=dict(type='CATLoss', at='cam'),
            at=dict(type='ATLoss', at='features'),
            fit=dict(type='MSELoss', at='features', weight=0.1)),
        student=classifier(4, norm=norm != 'none'), teacher=dict(model=classifier(8)),
        student_weight=student_weight).train()
    if norm == 'frozen':
        for module in model.student.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
    wrapped = model
    if world > 1:
        wrapped = MMDistributedDataParallel(model, device_ids=None, find_unused_parameters=False)
    optim = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    for step in range(5):
        images, samples = batch(8, seed=step)
        part = slice(rank * 8 // world, (rank + 1) * 8 // world)
        wrapped.train_step(dict(inputs=images[part], data_samples=samples[part]), optim)
    return model.state_dict()

states = {(norm, weight): train(norm, weight) for norm, weight in (
    ('none', 1.0), ('none', 0.0), ('frozen', 1.0), ('batch', 1.0))}
torch.save(states, f'{sys.argv[1]}.{rank}')
"""


@pytest.fixture(scope='module')
def states(tmp_path_factory):
    folder = tmp_path_factory.mktemp('distributed')
    script = folder / 'train.py'
    script.write_text(SCRIPT)
    env = dict(os.environ, PYTHONPATH=f'{ROOT}{os.pathsep}{ROOT / "tests"}', OMP_NUM_THREADS='1')
    run = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    for command in (
        [sys.executable, str(script), str(folder / 'one')],
        [*run, str(script), str(folder / 'two')],
    ):
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / name) for name in ('one.0', 'two.0', 'two.1')]


@pytest.mark.parametrize('norm, student_weight', [('none', 1.0), ('none', 0.0), ('frozen', 1.0)])
def test_two_processes_equal_one(states, norm, student_weight):
    one, first, second = (state[norm, student_weight] for state in states)
    assert 'distill.terms.fit.adapter.project.weight' in one
    for key, value in one.items():
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(first[key], value, rtol=1e-4, atol=1e-6)


def test_processes_agree_with_batch_norm(states):
    # Each half is normalised by itself, so that neither the numbers of one process nor equal running
    # statistics can be expected; SyncBN, which gives both, runs on CUDA only.
    one, first, second = (state['batch', 1.0] for state in states)
    for key, value in one.items():
        if 'running_' not in key:
            assert torch.equal(first[key], second[key]), key
            assert torch.isfinite(value).all()
