"""Two processes with half a batch each train what one process trains with the whole batch."""

import csv
import json

import pytest
import torch
from processes import launch

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
            fit=dict(
                type='MSELoss', at='features',
                weight=dict(type='auto', ratio=0.1, steps=2, interval=2) if student_weight else 0.1)),
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
    for world, name in ((1, 'one'), (2, 'two')):
        launch(script, folder / name, world=world)
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


# A test of 33 images in batches of 4, explained with every kind of metric: per sample, of pairs, pooled
# over the data set, and one that needs further forwards.
EXPLAIN = """
import json
import os
import sys
from pathlib import Path
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from tiny import classifier
from mmkdx.compat import prepare_cpu_launch

work_dir = Path(sys.argv[1])
preprocessor = dict(num_classes=4, mean=[120.0] * 3, std=[60.0] * 3)
student = dict(classifier(4), data_preprocessor=preprocessor)
teacher = dict(classifier(8), data_preprocessor=preprocessor)
loader = dict(
    batch_size=4, num_workers=0, persistent_workers=False,
    dataset=dict(type='Parts', split='val', num_samples=33, image_size=32, pipeline=[dict(
        type='PackInputs', algorithm_keys=('gt_seg_map',), meta_keys=('sample_idx', 'object_labels'))]),
    sampler=dict(type='DefaultSampler', shuffle=False))
region = dict(labels='object_labels')
hook = dict(type='ExplainHook', num_samples=None, show_samples=3, target='student', metrics=[
    dict(type='MapAgreement'), dict(type='MapComplexity'),
    dict(type='MapSegmentation', **region), dict(type='PointingGame', **region),
    dict(type='DeletionInsertion', steps=4), dict(type='PerturbationAUC')])
config = Config(dict(
    default_scope='mmkdx', work_dir=str(work_dir), launcher=sys.argv[2],
    custom_imports=dict(imports=['tiny']),
    env_cfg=dict(dist_cfg=dict(backend='gloo')),
    model=dict(type='Distiller', student=student, teacher=dict(model=teacher), input_size=32,
               terms=dict(kd=dict(type='KLDivLoss', at='logits'))),
    test_dataloader=loader, test_cfg=dict(), test_evaluator=dict(type='Accuracy', topk=(1,)),
    visualizer=dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')]),
    custom_hooks=[hook], randomness=dict(seed=0)))
prepare_cpu_launch(config, sys.argv[2])
runner = Runner.from_cfg(config)
torch.manual_seed(0)
model = getattr(runner.model, 'module', runner.model)
for part in (model.student, model.teachers[0].model):
    for parameter in part.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
model.teachers[0].loaded = True
metrics = runner.test()
(work_dir / f'{runner.rank}.json').write_text(json.dumps(metrics))
"""


@pytest.fixture(scope='module')
def explained(tmp_path_factory):
    folder = tmp_path_factory.mktemp('explained')
    script = folder / 'explain.py'
    script.write_text(EXPLAIN)
    for world, launcher in ((1, 'none'), (2, 'pytorch')):
        (folder / launcher).mkdir()
        launch(script, folder / launcher, launcher, world=world, cwd=folder)
    return folder


def test_two_processes_explain_as_one(explained):
    """33 images do not divide by two, so one is there twice; it must count once."""
    one, first, second = (
        json.loads((explained / name).read_text())
        for name in ('none/0.json', 'pytorch/0.json', 'pytorch/1.json')
    )
    assert len(one) > 30
    for metrics in (one, first, second):
        assert metrics.pop('explain/seconds') > 0
    # Text, because NaN is not equal to itself
    assert json.dumps(first) == json.dumps(second)
    assert one == pytest.approx(first, rel=1e-4, abs=1e-6, nan_ok=True)
    rows = {}
    for launcher in ('none', 'pytorch'):
        (path,) = (explained / launcher).glob('*/explain/test.csv')
        with path.open(newline='') as file:
            rows[launcher] = list(csv.DictReader(file))
        assert len(list((explained / launcher).glob('*/vis_data/vis_image/*.png'))) == 3
    assert len(rows['none']) == 66
    for a, b in zip(rows['none'], rows['pytorch'], strict=True):
        assert (a['index'], a['model'], a['target']) == (b['index'], b['model'], b['target'])
