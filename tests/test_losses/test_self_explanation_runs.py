"""IntrospectiveLoss in training: two processes are one, and a resumed run goes on as before."""

import json
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from tiny import classifier, run_ranks

# Each rank has its half of a batch. Under DDP a loss is the mean over ranks, and so are gradients.
SCRIPT = """
import os, sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from mmkdx.losses import IntrospectiveLoss
from tiny import batch, classifier, distiller, total

path, rank, world = sys.argv[1], *map(int, sys.argv[2:])
if world > 1:
    dist.init_process_group('gloo', f'file://{path}.store', rank=rank, world_size=world)
torch.manual_seed(0)
term = dict(type='IntrospectiveLoss', at='cam', level='class')
model = distiller(dict(il=term), student=classifier(4, norm=False), teacher=None, student_weight=0.0)
learner = DistributedDataParallel(model) if world > 1 else model
optimizer = torch.optim.SGD(model.parameters(), 0.5)
for step in range(3):
    images, samples = batch(8, seed=step)
    part = slice(rank * 8 // world, (rank + 1) * 8 // world)
    optimizer.zero_grad()
    total(learner(images[part], samples[part], mode='loss')).backward()
    optimizer.step()
torch.save(model.state_dict(), f'{path}.{rank}')
if world > 1:
    dist.barrier()
os._exit(0)
"""


def test_two_processes_train_what_one_trains(tmp_path):
    (one,) = run_ranks(SCRIPT, tmp_path / 'one', 1)
    first, second = run_ranks(SCRIPT, tmp_path / 'two', 2)
    averages = one['distill.terms.il.loss.averages']
    assert not torch.equal(averages, torch.eye(4))
    for key, value in one.items():
        torch.testing.assert_close(first[key], value, atol=1e-5, rtol=1e-4)
        assert torch.equal(first[key], second[key]), key


def run_config(work_dir: Path, **changes) -> Config:
    """Six epochs of two steps."""
    term = dict(type='IntrospectiveLoss', at='cam', level='class', warmup=4)
    student = classifier(4, classes=10)
    model = dict(
        type='Distiller', student=student, input_size=32, student_weight=0.0, terms=dict(il=term)
    )
    data = dict(type='Digits', split='train', indices=16, pipeline=[dict(type='PackInputs')])
    return Config(
        {
            **dict(
                default_scope='mmkdx',
                model=model,
                data_preprocessor=dict(
                    type='ClsDataPreprocessor', num_classes=10, mean=[78.0] * 3, std=[80.0] * 3
                ),
                work_dir=str(work_dir),
                # Runs of one name that begin in the same second would share their visualizer
                experiment_name=work_dir.name,
                train_dataloader=dict(
                    batch_size=8,
                    num_workers=0,
                    dataset=data,
                    sampler=dict(type='DefaultSampler', shuffle=True),
                ),
                train_cfg=dict(by_epoch=True, max_epochs=6),
                optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.05)),
                default_hooks=dict(
                    logger=dict(type='LoggerHook', interval=1),
                    checkpoint=dict(type='CheckpointHook', interval=1),
                ),
                custom_hooks=[dict(type='EpochSeedHook')],
                randomness=dict(seed=1),
            ),
            **changes,
        }
    )


def records(work_dir: Path) -> dict[int, dict]:
    """What was logged at each step."""
    lines = next(work_dir.glob('*/vis_data/scalars.json')).read_text().splitlines()
    keys = 'loss', 'il.lam', 'il.similarity'
    found = map(json.loads, lines)
    return {each['iter']: {key: each[key] for key in keys if key in each} for each in found}


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(tmp_path):
    Runner.from_cfg(run_config(tmp_path / 'whole')).train()
    resumed = run_config(
        tmp_path / 'resumed', load_from=str(tmp_path / 'whole/epoch_2.pth'), resume=True
    )
    Runner.from_cfg(resumed).train()
    whole, rest = (records(tmp_path / name) for name in ('whole', 'resumed'))
    assert [whole[step]['il.lam'] for step in range(1, 13, 2)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert sorted(rest) == list(range(5, 13))
    assert all(rest[step] == whole[step] for step in rest)
    ends = [tmp_path / name / 'epoch_6.pth' for name in ('whole', 'resumed')]
    states = [torch.load(end, weights_only=False)['state_dict'] for end in ends]
    key = 'distill.terms.il.loss.averages'
    assert not torch.equal(states[0][key], torch.eye(10))
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
