"""What CRDLoss and OFDLoss keep is the same in two processes as in one with the whole batch."""

import pytest
import torch
from tiny import run_ranks

# In a fresh process each, with a seed of its own. Negatives are fixed: ranks draw theirs for their own
# samples.
SCRIPT = """
import os
import sys
import torch
import torch.distributed as dist
from mmkdx.losses import CRDLoss, OFDLoss

path, rank, world = sys.argv[1], *map(int, sys.argv[2:])
if world > 1:
    dist.init_process_group('gloo', f'file://{path}.store', rank=rank, world_size=world)
torch.manual_seed(rank)
crd, ofd = CRDLoss(16, feat_dim=6, negatives=5), OFDLoss()
crd.connect(torch.empty(2, 4), torch.empty(2, 3))
ofd.connect(torch.empty(2, 4, 2, 2), torch.empty(2, 3, 2, 2))
torch.manual_seed(0)
for parameter in (*crd.parameters(), *ofd.parameters()):
    torch.nn.init.normal_(parameter)
crd.draw = lambda target: (target[:, None] * 3 + torch.arange(5)) % 16

values = []
for step in range(3):
    student, teacher = torch.randn(8, 4, 2, 2), torch.randn(8, 3, 2, 2)
    part = slice(rank * 8 // world, (rank + 1) * 8 // world)
    if rank == 1:
        with torch.no_grad():  # a trial that the other rank does not make
            crd(torch.randn(2, 4), torch.randn(2, 3), torch.tensor([0, 1]), torch.arange(2))
            ofd(torch.randn(2, 4, 2, 2), torch.randn(2, 3, 2, 2))
    torch.manual_seed(step + 1)
    index = torch.randperm(16)[:8]
    values.append(crd(student.mean((2, 3))[part], teacher.mean((2, 3))[part], index[part] % 4,
                      index[part]).detach())
    ofd(student[part], teacher[part])
torch.save(dict(values=torch.stack(values), **dict(crd.named_buffers()),
                sum=ofd.negative_sum, count=ofd.negative_count), f'{path}.{rank}')
if world > 1:
    dist.barrier()
    os._exit(0)  # a thread of gloo may outlive the interpreter, which then aborts with all done
"""


@pytest.fixture(scope='module')
def states(tmp_path_factory):
    folder = tmp_path_factory.mktemp('two_processes')
    return [*run_ranks(SCRIPT, folder / 'one', 1), *run_ranks(SCRIPT, folder / 'two', 2)]


def test_two_processes_keep_what_one_keeps(states):
    one, first, second = states
    assert (one['labels'] >= 0).sum() > 8
    for name in ('student_bank', 'teacher_bank', 'labels', 'log_z', 'sum', 'count'):
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], one[name], msg=name)


def test_the_mean_of_two_processes_is_the_loss_of_one(states):
    one, first, second = (state['values'] for state in states)
    assert not torch.equal(first, second)
    torch.testing.assert_close((first + second) / 2, one)
