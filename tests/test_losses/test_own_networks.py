"""DMLLoss, ONELoss and BYOTLoss train networks of their own beside a student: what they share."""

import copy

import pytest
import torch
from tiny import batch, build, classifier, distiller, run_ranks, total

TERMS = dict(
    dml=dict(type='DMLLoss', at='logits', peers=[classifier(8), classifier(6)]),
    one=dict(type='ONELoss', at=['backbone.body:in', 'logits'], branch='backbone.body'),
    byot=dict(type='BYOTLoss', at=['backbone.stem', 'features', 'logits']),
)
#: Where each keeps its networks, and how many.
PARTS = dict(dml=('peers', 2), one=('branches', 2), byot=('exits', 1))


def model_of(name, seed=0, **kwargs):
    torch.manual_seed(seed)
    model = distiller({name: TERMS[name]}, student=classifier(8), teacher=None, **kwargs)
    model.init_weights()
    return model.train()


def train(model, steps, seed=0):
    """Steps on one batch; the first and the last logged values."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    images, samples = batch(8, seed=seed)
    logged = []
    for _ in range(steps):
        losses = model(images, samples, 'loss')
        optimizer.zero_grad()
        total(losses).backward()
        optimizer.step()
        logged.append({key: each.item() for key, each in losses.items()})
    return logged[0], logged[-1]


@pytest.mark.parametrize('name', TERMS)
def test_student_and_networks_learn(name):
    model = model_of(name)
    parts = model.student, model.terms
    before = [[each.clone() for each in part.parameters()] for part in parts]
    first, last = train(model, 60)
    entropies = [key for key in first if key.endswith('.ce')]
    assert len(entropies) == PARTS[name][1] + (name == 'one')
    for key in ('student.loss', f'loss_{name}', *entropies):
        assert last[key] < 0.8 * first[key], key
    for weights, part in zip(before, parts):
        for old, new in zip(weights, part.parameters(), strict=True):
            # A bias before batch norm moves nothing
            assert new.dim() == 1 or not torch.equal(old, new)


@pytest.mark.parametrize('student_weight', [1.0, 0.0])
@pytest.mark.parametrize('name', TERMS)
def test_every_parameter_gets_a_gradient(name, student_weight):
    model = model_of(name, student_weight=student_weight)
    total(model(*batch(), 'loss')).backward()
    assert not [key for key, each in model.named_parameters() if each.grad is None]
    networks, count = PARTS[name]
    modules = getattr(model.terms[name].loss, networks)
    assert len(modules) == count
    for module in modules:
        assert all(each.grad.any() for each in module.parameters() if each.dim() > 1)


@pytest.mark.parametrize('name', TERMS)
def test_autocast(name):
    model = model_of(name)
    images, samples = batch()
    values = []
    for enabled in (False, True):
        with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
            losses = copy.deepcopy(model)(images, samples, 'loss')
        assert losses[f'loss_{name}'].dtype == torch.float32
        total(losses).backward()
        values.append(losses[f'loss_{name}'].item())
    assert values[1] == pytest.approx(values[0], rel=0.02)


@pytest.mark.parametrize('name', TERMS)
def test_a_checkpoint_is_the_students_and_resumes_the_rest(name, tmp_path):
    model = model_of(name)
    train(model, 3)
    torch.save(model.state_dict(), tmp_path / 'checkpoint.pth')
    state = torch.load(tmp_path / 'checkpoint.pth', weights_only=True)
    own = {key for key in state if key.startswith(f'distill.terms.{name}.loss.{PARTS[name][0]}.')}
    student = {key for key in state if not key.startswith('distill.')}
    assert len(own) >= 8
    plain = build(classifier(8))
    assert student == set(plain.state_dict())
    plain.load_state_dict({key: state[key] for key in student})
    images, samples = batch(seed=1)
    torch.testing.assert_close(plain.eval()(images), model.eval()(images))
    again = model_of(name, seed=1)
    assert again(images, samples, 'loss') != model.train()(images, samples, 'loss')
    model.load_state_dict(state)  # those forwards moved the batch norms
    again.load_state_dict(state)
    assert train(again, 3, seed=2) == train(model, 3, seed=2)


@pytest.mark.parametrize('name', TERMS)
def test_a_seed_gives_one_network(name):
    states = [model_of(name, seed=seed).state_dict() for seed in (0, 0, 1)]
    weights = [key for key in states[0] if key.startswith('distill.') and states[0][key].dim() > 1]
    assert weights
    assert all(torch.equal(states[0][key], states[1][key]) for key in weights)
    assert not any(torch.equal(states[0][key], states[2][key]) for key in weights)


@pytest.mark.parametrize('name', TERMS)
def test_a_copy_is_apart(name):
    """As EMAHook copies the model after steps were taken."""
    model = model_of(name)
    train(model, 2)
    other = copy.deepcopy(model)
    kept = {key: each.clone() for key, each in other.state_dict().items()}
    images, samples = batch(seed=1)
    a, b = (
        {k: v.item() for k, v in each(images, samples, 'loss').items()} for each in (model, other)
    )
    assert a == b
    other.load_state_dict(kept)
    train(model, 2)
    assert all(torch.equal(each, kept[key]) for key, each in other.state_dict().items())


@pytest.mark.parametrize('name', TERMS)
def test_nothing_of_it_is_in_a_prediction(name):
    model, plain = model_of(name).eval(), build(classifier(8)).eval()
    plain.load_state_dict(model.student.state_dict())
    model.terms = None
    images, _ = batch()
    assert torch.equal(model(images), plain(images))


def test_mixed_labels_are_for_mutual_learning():
    model = model_of('dml')
    images, samples = batch()
    for sample in samples:
        sample.set_gt_score(torch.tensor([0.5, 0.5, 0, 0]))
    assert total(model(images, samples, 'loss')).isfinite()


# In a fresh process each, with a seed of its own, from which DDP takes the first rank's weights.
SCRIPT = """
import os
import sys
import torch
import torch.distributed as dist
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from test_own_networks import TERMS, model_of
from tiny import batch

path, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group('gloo', f'file://{path}.store', rank=rank, world_size=2)
states = {}
for name in TERMS:
    model = model_of(name, seed=rank)
    wrapped = MMDistributedDataParallel(model, device_ids=None, find_unused_parameters=False)
    optim = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    states[name, 0] = {key: each.clone() for key, each in model.state_dict().items()}
    for step in (1, 2):
        images, samples = batch(8, seed=step)
        part = slice(rank * 4, rank * 4 + 4)
        wrapped.train_step(dict(inputs=images[part], data_samples=samples[part]), optim)
        states[name, step] = {key: each.clone() for key, each in model.state_dict().items()}
torch.save(states, f'{path}.{rank}')
dist.barrier()
os._exit(0)  # a thread of gloo may outlive the interpreter, which then aborts with all done
"""


@pytest.fixture(scope='module')
def states(tmp_path_factory):
    return run_ranks(SCRIPT, tmp_path_factory.mktemp('own_networks') / 'two', 2)


@pytest.mark.parametrize('name', TERMS)
def test_two_processes_keep_one_set_of_networks(states, name):
    """DDP raises an error at the second step if a parameter got no gradient at the first."""
    first, second = states
    for step in (0, 1, 2):
        for key, value in first[name, step].items():
            if 'running_' not in key:  # of each rank's own images
                assert torch.equal(value, second[name, step][key]), (step, key)
    weights = [key for key, value in first[name, 0].items() if value.dim() > 1]
    for key in weights:
        assert not torch.equal(first[name, 2][key], first[name, 1][key]), key
        assert first[name, 2][key].isfinite().all()
