"""CRDLoss: the estimate against a reference, negatives, banks, and mistakes."""

import copy
import math

import pytest
import torch
from tiny import batch, distiller, total

from mmkdx.losses import CRDLoss


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def connected(num_samples=20, dtype=torch.float64, **arguments):
    torch.manual_seed(0)
    arguments = dict(dict(feat_dim=6, negatives=7), **arguments)
    loss = CRDLoss(num_samples, **arguments)
    loss.connect(torch.empty(3, 4), torch.empty(3, 5))
    return loss.to(dtype)


def unit(vector):
    return vector / vector.square().sum().sqrt()


def test_the_noise_contrastive_estimate(monkeypatch):
    loss = connected()
    student, teacher = random(3, 4), random(3, 5, seed=1)
    target, index = torch.tensor([0, 1, 0]), torch.tensor([4, 9, 2])
    drawn = torch.randint(20, (3, 7), generator=torch.Generator().manual_seed(2))
    monkeypatch.setattr(loss, 'draw', lambda target: drawn)
    banks = [bank.clone() for bank in (loss.student_bank, loss.teacher_bank)]
    value = loss(student, teacher, target, index)

    s = [unit(loss.project_student(each)) for each in student]
    t = [unit(loss.project_teacher(each)) for each in teacher]
    expected, n, k = 0.0, 20, 7
    for own, bank in ((s, banks[1]), (t, banks[0])):
        scores = [
            [math.exp((own[i] @ bank[j]).item() / 0.07) for j in [index[i], *drawn[i]]]
            for i in range(3)
        ]
        z = n * sum(map(sum, scores)) / (3 * (k + 1))
        for row in scores:
            found, *others = (each / z for each in row)
            expected -= math.log(found / (found + k / n + 1e-7))
            expected -= sum(math.log((k / n) / (each + k / n + 1e-7)) for each in others)
    assert value.item() == pytest.approx(expected / 3, rel=1e-9)


def test_banks_move_towards_the_embeddings():
    loss = connected(momentum=0.25)
    student, teacher = random(2, 4), random(2, 5, seed=1)
    before = loss.student_bank.clone(), loss.teacher_bank.clone()
    index = torch.tensor([4, 9])
    loss(student, teacher, torch.tensor([0, 1]), index)
    pairs = (
        (before[0], loss.student_bank, loss.project_student(student)),
        (before[1], loss.teacher_bank, loss.project_teacher(teacher)),
    )
    for old, new, embeddings in pairs:
        for i, position in enumerate(index.tolist()):
            expected = unit(0.25 * old[position] + 0.75 * unit(embeddings[i]))
            torch.testing.assert_close(new[position], expected.detach())
        others = [i for i in range(20) if i not in index]
        assert torch.equal(old[others], new[others])
    assert loss.labels[index].tolist() == [0, 1] and (loss.labels[others] == -1).all()
    assert not any(each.requires_grad for each in (loss.student_bank, loss.teacher_bank))


def test_normalisers_are_those_of_the_first_batch():
    loss = connected()
    values = random(3, 4), random(3, 5, seed=1), torch.tensor([0, 1, 2]), torch.arange(3)
    assert loss.normalisers.tolist() == [0, 0]
    loss(*values)
    first = loss.normalisers.clone()
    loss(-values[0], -values[1], *values[2:])
    assert (first > 0).all() and torch.equal(first, loss.normalisers)


def test_negatives_are_drawn_evenly_from_other_classes():
    loss = connected(12, negatives=30000)
    loss.labels.copy_(torch.tensor([2, 0, 1, 1, 2, 2, -1, 0, 1, 2, 2, -1]))
    target = torch.tensor([0, 1, 2, 7])
    drawn = loss.draw(target)
    assert drawn.shape == (4, 30000)
    for row, label in zip(drawn, target):
        counts = row.bincount(minlength=12)
        others = loss.labels != label
        assert (counts[~others] == 0).all()
        share = 30000 / others.sum()
        assert (counts[others] - share).abs().max() < 6 * share.sqrt()


def test_draws_follow_the_seed():
    loss = connected()
    rows = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        rows.append(loss.draw(torch.tensor([0, 3])))
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])


def test_evaluation_leaves_the_banks_alone():
    loss = connected().eval()
    before = copy.deepcopy(loss.state_dict()), loss.student_bank.clone(), loss.labels.clone()
    loss(random(2, 4), random(2, 5), torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert torch.equal(before[1], loss.student_bank) and torch.equal(before[2], loss.labels)


def test_banks_are_outside_the_checkpoint_and_follow_the_module():
    loss = connected()
    names = {*loss.state_dict()}
    assert names == {
        'normalisers',
        *(
            f'project_{each}.{part}'
            for each in ('student', 'teacher')
            for part in ('weight', 'bias')
        ),
    }
    assert loss.to('meta').student_bank.is_meta


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('size', [1, 6e4])
def test_half_precision_and_large_values(dtype, size):
    loss = connected(dtype=torch.float32)
    values = [(size * each / each.abs().max()).to(dtype) for each in (random(3, 4), random(3, 5))]
    target, index = torch.tensor([0, 1, 2]), torch.arange(3)
    value = loss(values[0].requires_grad_(), values[1], target, index)
    assert value.dtype == torch.float32 and value.isfinite()
    assert torch.autograd.grad(value, values[0])[0].isfinite().all()


def test_learning_tells_samples_apart():
    torch.manual_seed(0)
    loss = connected(16, dtype=torch.float32, negatives=64)
    student, teacher = random(16, 4).float(), random(16, 5, seed=1).float()
    target, index = torch.arange(16) % 4, torch.arange(16)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.05, momentum=0.9)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        value = loss(student, teacher, target, index)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert sum(values[-5:]) < 0.8 * sum(values[3:8])


def test_in_a_distiller():
    terms = dict(crd=dict(type='CRDLoss', at='embedding', num_samples=50, negatives=8))
    model = distiller(terms).train()
    images, samples = batch()
    for i, sample in enumerate(samples):
        sample.set_metainfo(dict(sample_idx=i + 40))
    bank = model.terms.crd.loss.student_bank
    assert (bank.norm(dim=1) > 0).all() and (model.terms.crd.loss.labels == -1).all()
    before = bank.clone()
    losses = model(images, samples, mode='loss')
    total(losses).backward()
    assert [i for i in range(50) if not torch.equal(bank[i], before[i])] == list(range(40, 46))
    assert model.terms.crd.loss.project_student.weight.grad.norm() > 0
    assert not any('bank' in key for key in model.state_dict())


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(num_samples=0), 'num_samples is 0; it must be at least 1'),
        (dict(negatives=0), 'negatives is 0; it must be at least 1'),
        (dict(feat_dim=-1), 'feat_dim is -1; it must be at least 1'),
        (dict(tau=0), 'tau is 0; a temperature is above 0'),
        (dict(momentum=1), r'momentum is 1; it must be in \[0, 1\)'),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        CRDLoss(**dict(dict(num_samples=5), **arguments))


@pytest.mark.parametrize(
    'target, index, message',
    [
        (None, [0, 1], 'CRDLoss needs the class of each sample'),
        ([0, 1], [3, 20], 'num_samples is 20, and there is a sample at position 20; set it to the'),
    ],
)
def test_wrong_samples(target, index, message):
    target = None if target is None else torch.tensor(target)
    with pytest.raises(ValueError, match=message):
        connected()(random(2, 4), random(2, 5), target, torch.tensor(index))


def test_what_is_no_embedding_is_refused():
    message = r"terms.crd.at: CRDLoss: embeddings .* student's tap holds \(2, 4, 4, 4\)"
    with pytest.raises(ValueError, match=message):
        distiller(dict(crd=dict(type='CRDLoss', at='backbone.body', num_samples=9)))
