"""What OLS and PS-KD keep is the same in two processes as in one with the whole batch."""

import pytest
import torch
from tiny import run_ranks

# In a fresh process each. Images stand in another order in each epoch, so that ranks see other ones.
SCRIPT = """
import os
import sys
import torch
import torch.distributed as dist
from mmengine.logging import MessageHub
from mmkdx.losses import OnlineLabelSmoothingLoss, PSKDLoss

path, rank, world = sys.argv[1], *map(int, sys.argv[2:])
if world > 1:
    dist.init_process_group('gloo', f'file://{path}.store', rank=rank, world_size=world)
hub = MessageHub.get_current_instance()
hub.update_info('max_epochs', 4)
ols, pskd = OnlineLabelSmoothingLoss(), PSKDLoss(16)
for loss in (ols, pskd):
    loss.connect(torch.empty(2, 4))

values, tables = [], []
for epoch in range(3):
    hub.update_info('epoch', epoch)
    torch.manual_seed(epoch)
    order = torch.randperm(16)
    for step, index in enumerate(order.split(8)):
        torch.manual_seed(10 * epoch + step)
        logits = torch.randn(8, 4) + 2 * torch.nn.functional.one_hot(index % 4, 4)
        part = slice(rank * 8 // world, (rank + 1) * 8 // world)
        if rank == 1:
            with torch.no_grad():  # a trial that the other rank does not make
                ols(torch.randn(2, 4), torch.tensor([0, 1]))
                pskd(torch.randn(2, 4), torch.tensor([0, 1]), torch.arange(2))
        own = logits[part], index[part] % 4
        values.append(torch.stack([ols(*own), pskd(*own, index[part])]))
        tables.append(dict(ols.state_dict(), predictions=pskd.predictions.clone()))
        tables[-1] = {name: value.clone() for name, value in tables[-1].items()}
torch.save(dict(values=torch.stack(values), tables=tables), f'{path}.{rank}')
if world > 1:
    dist.barrier()
    os._exit(0)  # a thread of gloo may outlive the interpreter, which then aborts with all done
"""


@pytest.fixture(scope='module')
def states(tmp_path_factory):
    folder = tmp_path_factory.mktemp('two_processes')
    return [*run_ranks(SCRIPT, folder / 'one', 1), *run_ranks(SCRIPT, folder / 'two', 2)]


def test_two_processes_keep_what_one_keeps_after_each_step(states):
    one, first, second = (state['tables'] for state in states)
    assert len(one) == 6 and (one[-1]['soft_labels'] > 0).all()
    assert (one[-1]['predictions'].sum(1) > 0.99).all() and one[-1]['counts'].sum() > 4
    for step, (whole, *parts) in enumerate(zip(one, first, second)):
        for name, value in whole.items():
            assert torch.equal(parts[0][name], parts[1][name]), (step, name)
            torch.testing.assert_close(parts[0][name], value, msg=f'{name} after step {step}')


def test_the_mean_of_two_processes_is_the_loss_of_one(states):
    one, first, second = (state['values'] for state in states)
    assert (one[:2, 0] == 0).all() and (one[2:] > 0).all()
    assert not torch.equal(first, second)
    torch.testing.assert_close((first + second) / 2, one)
