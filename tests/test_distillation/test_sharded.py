"""Two processes that share out a student train what two with the whole student train."""

import pytest
import torch
from tiny import build, classifier, distiller, run_ranks

from mmkdx.distillation import FullyShardedDistiller

SCRIPT = """
import os
import sys
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.runner import FlexibleRunner, Runner
from mmengine.model.wrappers import MMFullyShardedDataParallel
from tiny import build, classifier, distiller
from mmkdx.compat import prepare_cpu_launch
from mmkdx.distillation import FullyShardedDistiller

path, rank, world = sys.argv[1], *map(int, sys.argv[2:])
os.environ['LOCAL_RANK'] = str(rank)
dist.init_process_group('gloo', f'file://{path}.store', rank=rank, world_size=world)
torch.manual_seed(0)
if rank == 0:
    torch.save(build(classifier(8, classes=10)).state_dict(), f'{path}.teacher.pth')
dist.barrier()
student = dict(
    classifier(4, classes=10, norm=False),
    data_preprocessor=dict(num_classes=10, mean=[78.0] * 3, std=[84.0] * 3))
policy = dict(type='torch.distributed.fsdp.wrap.size_based_auto_wrap_policy', min_num_params=100)

def run(name, epochs=2, **changes):
    loader = dict(
        batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
        dataset=dict(type='Digits', indices=24, pipeline=[dict(type='PackInputs')]))
    held_out = dict(loader, sampler=dict(type='DefaultSampler', shuffle=False))
    config = dict(
        default_scope='mmkdx', work_dir=f'{path}.{name}', experiment_name=name, launcher='pytorch',
        custom_imports=dict(imports=['tiny']),
        model=dict(
            type='Distiller', student=student, input_size=32,
            teacher=dict(model=classifier(8, classes=10), checkpoint=f'{path}.teacher.pth'),
            terms=dict(
                kd=dict(type='KLDivLoss', at='logits', weight=dict(type='auto', steps=4, interval=1)),
                cat=dict(type='CATLoss', at='cam'),
                fit=dict(type='VIDLoss', at='backbone.body.0'))),
        train_dataloader=loader, train_cfg=dict(by_epoch=True, max_epochs=epochs, val_interval=2),
        val_dataloader=held_out, val_cfg=dict(), val_evaluator=dict(type='Accuracy'),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
        env_cfg=dict(dist_cfg=dict(backend='gloo')), randomness=dict(seed=0), **changes)
    config = Config(config)
    if 'strategy' in config:
        runner = FlexibleRunner.from_cfg(config)
    else:
        prepare_cpu_launch(config, 'pytorch')
        runner = Runner.from_cfg(config)
    runner.train()
    dist.barrier()


# Config can hold no device, which only a CPU needs
wrap = FullyShardedDistiller.__init__
FullyShardedDistiller.__init__ = lambda self, module, **kwargs: wrap(
    self, module, **dict(kwargs, device_id=torch.device('cpu')))
shared = dict(
    type='FSDPStrategy', state_dict_cfg='full',
    model_wrapper=dict(type='FullyShardedDistiller', auto_wrap_policy=policy))
run('whole')
run('shared', epochs=1, strategy=shared)
run('resumed', strategy=shared, load_from=f'{path}.shared/epoch_1.pth', resume=True)
errors = []
for terms, size in ((dict(cat=dict(type='CATLoss', at='cam')), 10),):
    try:
        FullyShardedDistiller(distiller(terms, student=classifier(8)), auto_wrap_policy=dict(
            policy, min_num_params=size))
    except ValueError as error:
        errors.append(str(error))
plain = MMFullyShardedDataParallel(distiller(), device_id=torch.device('cpu'))
try:
    plain.state_dict()
except ValueError as error:
    errors.append(str(error))
torch.save(dict(errors=errors), f'{path}.{rank}')
dist.barrier()
os._exit(0)  # a thread of gloo may outlive the interpreter, which then aborts with all done
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('sharded')
    errors = [state['errors'] for state in run_ranks(SCRIPT, folder / 'run', 2)]
    return folder, errors


@pytest.mark.slow
def test_a_shared_student_is_the_whole_one_and_resumes(folder):
    folder, _ = folder
    whole, resumed = (
        torch.load(folder / f'run.{name}' / 'epoch_2.pth', weights_only=False)
        for name in ('whole', 'resumed')
    )
    assert resumed['meta']['iter'] == 6
    assert list(whole['state_dict']) == list(resumed['state_dict'])
    for key, value in whole['state_dict'].items():
        torch.testing.assert_close(resumed['state_dict'][key], value, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_its_checkpoint_is_a_plain_students(folder):
    state = torch.load(folder[0] / 'run.shared' / 'epoch_1.pth', weights_only=False)['state_dict']
    student = {key: value for key, value in state.items() if not key.startswith('distill.')}
    assert len(student) < len(state)
    build(classifier(4, classes=10, norm=False)).load_state_dict(student)


@pytest.mark.slow
def test_weights_that_a_term_reads_stay_together(folder):
    sentence = "model_wrapper.auto_wrap_policy shards the student's 'head.fc' on its own"
    for errors in folder[1]:
        assert len(errors) == 2 and errors[0].startswith(sentence)


@pytest.mark.slow
def test_plain_fsdp_says_what_to_take(folder):
    for errors in folder[1]:
        assert "set model_wrapper=dict(type='FullyShardedDistiller')" in errors[1]


def test_no_average_of_a_shared_student():
    model = distiller(teacher=dict(type='EMATeacher'))
    with pytest.raises(ValueError, match='an EMATeacher averages the whole student'):
        FullyShardedDistiller(model)
