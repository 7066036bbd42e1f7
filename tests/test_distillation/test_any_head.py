"""Class-map losses between models whose heads are not GAP + linear."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tiny import LayerNormed, batch, classifier, distiller, run_ranks, stacked, total

from mmkdx.distillation.cache import CachedTeacher
from mmkdx.models.families import forward_tensor

TERMS = dict(
    cat=dict(type='CATLoss', at='cam', resolution=2),
    exp=dict(type='ExpKDLoss', at='cam', channel_reduce='sum'),
    e2=dict(type='E2KDLoss', at='cam', size=8),
)
FORMS = dict(
    stacked_student=dict(student=stacked()),
    stacked_pair=dict(student=stacked(), teacher=dict(model=stacked(8))),
    layer_norm=dict(student=stacked(), teacher=dict(model=LayerNormed(), normalize='same')),
)


def model(form='stacked_pair', **kwargs):
    torch.manual_seed(0)
    return distiller(copy.deepcopy(TERMS), **copy.deepcopy(FORMS[form]), **kwargs)


def step(model, images=None, labels=None):
    """The losses of a training step and the student's gradients."""
    given = batch()
    losses = model.train()(*given, mode='loss')
    total(losses).backward()
    return losses, {k: p.grad.clone() for k, p in model.student.named_parameters()}


def hidden_maps(features, head):
    """The maps of a stacked head: W2 D W1 A, with the active units D of each image."""
    first, second = head.layers[0].fc, head.layers[1].fc
    active = (first(features.mean((2, 3))) > 0).to(features)
    return torch.einsum('kh,nh,hc,ncij->nkij', second.weight, active, first.weight, features)


@pytest.mark.parametrize('form', ['stacked_student', 'stacked_pair'])
def test_a_step_is_that_of_a_plain_formula(form):
    own = model(form)
    plain = copy.deepcopy(own)
    losses, gradients = step(own)
    images, samples = batch()
    features = plain.student.train().backbone(images)[0]
    logits = plain.student.head((plain.student.neck(features),))
    maps = hidden_maps(features, plain.student.head)
    with torch.no_grad():
        theirs = plain.teachers[0].model
        known = theirs.backbone(images)[0]
        if form == 'stacked_pair':
            truth, scores = hidden_maps(known, theirs.head), theirs(images, mode='tensor')
        else:
            truth = F.conv2d(known, theirs.head.fc.weight[..., None, None])
            scores = theirs(images, mode='tensor')
    cat = [
        F.normalize(F.adaptive_avg_pool2d(m, 2).flatten(2), dim=2, eps=1e-6) for m in (maps, truth)
    ]
    exp = [m.relu().softmax(1) for m in (maps, truth)]
    row = torch.arange(6), scores.argmax(1)
    e2 = [
        F.interpolate(m[row].relu()[:, None], 8, mode='bilinear').flatten(1) for m in (maps, truth)
    ]
    expected = dict(
        loss_cat=F.mse_loss(*cat),
        loss_exp=(exp[0] - exp[1]).square().sum() / 6,
        loss_e2=1 - F.cosine_similarity(*e2).mean(),
    )
    target = torch.tensor([sample.gt_label.item() for sample in samples])
    (sum(expected.values()) + F.cross_entropy(logits, target)).backward()
    for key, value in expected.items():
        torch.testing.assert_close(losses[key], value.detach(), rtol=1e-4, atol=1e-6)
    for key, parameter in plain.student.named_parameters():
        torch.testing.assert_close(gradients[key], parameter.grad, rtol=1e-3, atol=1e-6)


def test_a_teacher_with_a_layer_norm():
    own = model('layer_norm')
    losses, _ = step(own)
    net, images = own.teachers[0].model, batch()[0]
    features = net.conv(images)
    centred = features - features.mean(1, keepdim=True)
    pooled = features.mean((2, 3))
    size = (pooled.var(1, correction=0) + 1e-5).sqrt()
    truth = F.conv2d(centred / size[:, None, None, None], net.fc.weight[..., None, None])
    values = own.teachers[0](images)['cam']
    torch.testing.assert_close(values.full(), truth.detach(), rtol=1e-4, atol=1e-6)
    assert losses['loss_cat'] > 0


# What else runs around a step


def test_copies_and_averages():
    own = model()
    other = copy.deepcopy(own)
    with torch.no_grad():
        other.student.head.layers[0].fc.weight.mul_(-1)
    first, second = step(own)[0], step(other)[0]
    assert first['loss_cat'] != second['loss_cat']
    torch.manual_seed(0)
    average = distiller(copy.deepcopy(TERMS), student=stacked(), teacher=dict(type='EMATeacher'))
    assert step(average)[0]['loss_cat'] < 1  # the batch norms differ in training
    taught = average.teachers[0]
    assert taught(batch()[0])['cam'].head


@pytest.mark.parametrize(
    'options', [dict(channels_last=True), dict(compile=dict(backend='eager'))], ids=str
)
def test_memory_and_compiling_change_nothing(options):
    expected, gradients = step(model())
    losses, found = step(model(**options))
    for key, value in expected.items():
        torch.testing.assert_close(losses[key], value, rtol=1e-4, atol=1e-6)
    for key, value in gradients.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-6)


def test_a_wrapped_student():
    """As DDP runs it: hooks of parameters fire once a step."""
    own = model()
    calls = []
    for name, parameter in own.student.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: calls.append(name))
    step(own)
    assert sorted(calls) == sorted(name for name, _ in own.student.named_parameters())
    assert set(own.weights_read) == {'head.layers.0.fc', 'head.layers.1.fc'}


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_half_precision(dtype):
    expected = step(model('layer_norm'))[0]
    form = copy.deepcopy(FORMS['layer_norm'])
    form['teacher'].update(dtype=dtype)
    torch.manual_seed(0)
    form['student'] = stacked()
    torch.manual_seed(0)
    own = distiller(copy.deepcopy(TERMS), **form)
    with torch.autocast('cpu', torch.bfloat16):
        losses = own.train()(*batch(), mode='loss')
    for key in ('loss_cat', 'loss_exp', 'loss_e2'):
        assert losses[key].dtype is torch.float32 and losses[key].isfinite()
    assert abs(losses['loss_e2'] - expected['loss_e2']) < 0.1


def test_an_ensemble_of_any_heads():
    torch.manual_seed(0)
    members = [dict(model=stacked(8)), dict(model=classifier(8))]
    own = distiller(
        copy.deepcopy(TERMS),
        student=stacked(),
        teacher=dict(type='TeacherEnsemble', teachers=members),
    )
    losses, _ = step(own)
    maps = own.teachers[0](batch()[0])['cam']
    single = [member(batch()[0])['cam'].full() for member in own.teachers[0].members]
    torch.testing.assert_close(maps.full(), (single[0] + single[1]) / 2)
    assert losses['loss_cat'] > 0


@pytest.mark.parametrize('resolution', [None, 2])
def test_a_cache_holds_finished_maps_and_their_remainder(resolution, tmp_path):
    torch.manual_seed(0)
    kept = CachedTeacher(dict(model=stacked(8)), str(tmp_path), resolution=resolution)
    own = distiller(
        dict(cat=dict(type='CATLoss', at='cam', resolution=2)), student=stacked(), teacher=kept
    )
    images = batch()[0]
    maps, plain = kept(images)['cam'], kept.teacher(images)['cam']
    assert kept.layout['cam'] == ['maps', 4, *([2, 2] if resolution else [4, 4])]
    torch.testing.assert_close(maps.full(), plain.pooled(resolution))
    torch.testing.assert_close(maps.logits(), plain.logits())
    torch.testing.assert_close(maps.logits(), forward_tensor(kept.model, images))
    assert set(kept.outputs(images)) == {'signature', 'cam.values', 'cam.remainder'}
    assert step(own)[0]['loss_cat'] > 0


SCRIPT = """
import os
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from test_distillation.test_any_head import stacked
from tiny import LayerNormed, batch, classifier, distiller, run_ranks, stacked, total

path, rank, world = sys.argv[1], *map(int, sys.argv[2:])
dist.init_process_group('gloo', f'file://{path}.store', rank=rank, world_size=world)
torch.manual_seed(0)
student = stacked()
student['backbone']['norm'] = False  # which would differ between the parts of a batch
model = distiller(
    dict(cat=dict(type='CATLoss', at='cam', resolution=2)), student=student, teacher=stacked(8)
)
images, samples = batch()
part = slice(rank * 3, rank * 3 + 3)
shared = DistributedDataParallel(model.train())
total(shared(images[part], samples[part], mode='loss')).backward()
found = {key: value.grad.clone() for key, value in model.student.named_parameters()}
model.zero_grad()
total(model(images, samples, mode='loss')).backward()
whole = {key: value.grad for key, value in model.student.named_parameters()}
torch.save((found, whole), f'{path}.{rank}')
dist.barrier()
os._exit(0)
"""


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    first, second = run_ranks(SCRIPT, tmp_path / 'two', 2)
    for key, value in first[1].items():
        torch.testing.assert_close(first[0][key], value, rtol=1e-4, atol=1e-7)
        assert torch.equal(first[0][key], second[0][key])
