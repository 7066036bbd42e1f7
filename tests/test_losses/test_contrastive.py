"""CRDLoss: the estimate against a reference, negatives, banks, and mistakes."""

import copy
import math

import pytest
import torch
from tiny import batch, distiller, total
from torch.utils._python_dispatch import TorchDispatchMode

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


SAMPLES = dict(target=torch.tensor([0, 1, 0]), index=torch.tensor([4, 9, 2]))


def fixed(loss, monkeypatch):
    """Fixes the negatives of three samples."""
    drawn = torch.randint(20, (3, 7), generator=torch.Generator().manual_seed(2))
    monkeypatch.setattr(loss, 'draw', lambda target: drawn)
    return drawn


def authors(loss, student, teacher, index, drawn, eps):
    """The loss as the authors' code computes it, score by score; it estimates Z."""
    banks = loss.student_bank.clone(), loss.teacher_bank.clone()
    s = [unit(loss.project_student(each)) for each in student]
    t = [unit(loss.project_teacher(each)) for each in teacher]
    value, n, k = 0.0, loss.num_samples, drawn.shape[1]
    for own, bank in ((s, banks[1]), (t, banks[0])):
        scores = [
            [math.exp((own[i] @ bank[j]).item() / loss.tau) for j in [index[i], *drawn[i]]]
            for i in range(len(own))
        ]
        z = n * sum(map(sum, scores)) / (len(own) * (k + 1))
        for row in scores:
            found, *others = (each / z for each in row)
            value -= math.log(found / (found + k / n + eps))
            value -= sum(math.log((k / n) / (each + k / n + eps)) for each in others)
    return value / len(s)


@pytest.mark.parametrize('tau', [0.07, 0.5])
def test_the_noise_contrastive_estimate(monkeypatch, tau):
    loss = connected(tau=tau)
    student, teacher = random(3, 4), random(3, 5, seed=1)
    drawn = fixed(loss, monkeypatch)
    expected = authors(loss, student, teacher, SAMPLES['index'], drawn, 0)
    assert loss(student, teacher, **SAMPLES).item() == pytest.approx(expected, rel=1e-9)


def test_published_weight(monkeypatch):
    """RepDistiller and mdistiller: 0.8, with 1e-7 beside probabilities."""
    loss = connected()
    student, teacher = random(3, 4), random(3, 5, seed=1)
    drawn = fixed(loss, monkeypatch)
    theirs = 0.8 * authors(loss, student, teacher, SAMPLES['index'], drawn, 1e-7)
    assert 0.8 * loss(student, teacher, **SAMPLES).item() == pytest.approx(theirs, rel=1e-5)


def test_by_hand(monkeypatch):
    """Two samples and one negative, with all scores but one alike: P is 1/2, or as given."""
    loss = connected(2, feat_dim=2, negatives=1, tau=1.0)
    loss.connect(torch.empty(3, 2), torch.empty(3, 2))
    loss.double()
    for layer in (loss.project_student, loss.project_teacher):
        torch.nn.init.eye_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    loss.student_bank = torch.zeros(2, 2, dtype=torch.float64)
    loss.teacher_bank = torch.tensor([[math.log(3), 0], [0, 0]], dtype=torch.float64)
    monkeypatch.setattr(loss, 'draw', lambda target: torch.tensor([[1]]))
    east = torch.tensor([[5.0, 0.0]], dtype=torch.float64)
    # Student: scores 3 and 1, Z = 4, P = 3/4 and 1/4, K / M = 1/2; teacher: P = 1/2 and 1/2
    student = -math.log(0.75 / 1.25) - math.log(0.5 / 0.75)
    teacher = 2 * math.log(2)
    value = loss(east, east, torch.tensor([0]), torch.tensor([0])).item()
    assert value == pytest.approx(student + teacher, rel=1e-12)
    assert loss.log_z.exp().tolist() == pytest.approx([4, 2])


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
    assert loss.log_z.isinf().all()
    loss(*values)
    first = loss.log_z.clone()
    loss(-values[0], -values[1], *values[2:])
    assert first.isfinite().all() and torch.equal(first, loss.log_z)
    twin = connected()
    twin.load_state_dict(loss.state_dict())
    twin(-values[0], -values[1], *values[2:])
    assert torch.equal(first, twin.log_z)


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


def state(loss):
    return {
        name: value.clone() for name, value in (*loss.named_buffers(), *loss.named_parameters())
    }


@pytest.mark.parametrize('training, gradients', [(False, True), (True, False)])
def test_trials_and_evaluation_leave_the_state_alone(monkeypatch, training, gradients):
    """They may run in one rank alone."""
    loss = connected().train(training)
    before = state(loss)
    monkeypatch.setattr('mmkdx.losses.samples.all_gather', None)
    with torch.set_grad_enabled(gradients):
        value = loss(random(2, 4), random(2, 5), torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert value.isfinite()
    assert all(torch.equal(before[name], value) for name, value in state(loss).items())


def test_banks_are_outside_the_checkpoint_and_follow_the_module():
    loss = connected()
    names = {*loss.state_dict()}
    assert names == {
        'log_z',
        *(
            f'project_{each}.{part}'
            for each in ('student', 'teacher')
            for part in ('weight', 'bias')
        ),
    }
    loss(random(3, 4), random(3, 5), **SAMPLES)  # banks are new tensors now
    assert loss.to('meta').student_bank.is_meta


def test_banks_start_with_the_same_numbers():
    loss = connected(dtype=torch.float32)
    torch.manual_seed(5)
    twin = CRDLoss(20, feat_dim=6)
    twin.connect(torch.empty(3, 4), torch.empty(3, 5))
    assert not torch.equal(twin.project_student.weight, loss.project_student.weight)
    assert torch.equal(twin.student_bank, loss.student_bank)
    assert torch.equal(twin.teacher_bank, loss.teacher_bank)
    assert not torch.equal(twin.teacher_bank, loss.student_bank)
    assert 0.6 < loss.student_bank.abs().max() < 0.5**0.5  # norms are near 1


def test_copies_and_states_go_on_alike():
    loss = connected()
    values = random(3, 4), random(3, 5, seed=1), *SAMPLES.values()
    loss(*values)
    twin = copy.deepcopy(loss)
    twin.load_state_dict(loss.state_dict())
    torch.manual_seed(1)
    expected = loss(*values)
    torch.manual_seed(1)
    assert torch.equal(twin(*values), expected)
    assert twin.student_bank is not loss.student_bank


def test_gradients():
    loss = connected()
    values = [random(3, 4).requires_grad_(), random(3, 5, seed=1).requires_grad_()]
    loss(*values, **SAMPLES).backward()
    assert values[0].grad.norm() > 0 and values[1].grad is None
    assert all(parameter.grad.norm() > 0 for parameter in loss.parameters())
    loss.eval()

    def seeded(student):
        torch.manual_seed(1)
        return loss(student, values[1], **SAMPLES)

    assert torch.autograd.gradcheck(seeded, values[0])


def test_two_steps_before_one_backward():
    """Banks are renewed while the former ones are still needed."""
    loss = connected()
    student = random(3, 4).requires_grad_()
    values = [loss(student, random(3, 5, seed=1), **SAMPLES) for _ in range(2)]
    sum(values).backward()
    assert student.grad.isfinite().all()


def test_no_tensor_of_the_negatives_embeddings():
    loss = connected(50, feat_dim=32, negatives=200, dtype=torch.float32)

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for each in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(each, torch.Tensor):
                    storage = each.untyped_storage()
                    self.elements = max(self.elements, storage.nbytes() // each.element_size())
            return result

    with Largest() as mode:
        loss(random(3, 4).float().requires_grad_(), random(3, 5).float(), **SAMPLES).backward()
    assert mode.elements == 50 * 32  # the bank; gathered, there would be 3 * 201 * 32 numbers


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('size, tau', [(1, 0.07), (6e4, 0.07), (0, 0.07), (6e4, 1e-4)])
def test_half_precision_and_large_values(dtype, size, tau):
    loss = connected(dtype=torch.float32, tau=tau)
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
    loss = model.terms.crd.loss
    before = state(loss)
    assert (loss.labels == -1).all() and loss.log_z.isinf().all()  # the term's trial left no trace
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        total(model(images, samples, mode='loss')).backward()
        optimizer.step()
    after = state(loss)
    assert not any(torch.equal(after[name], before[name]) for name in before)
    for bank in ('student_bank', 'teacher_bank'):
        rows = (after[bank] != before[bank]).any(1).nonzero().flatten()
        assert rows.tolist() == list(range(40, 46))
    saved = {key for key in model.state_dict() if key.startswith('distill.')}
    assert saved == {f'distill.terms.crd.loss.{name}' for name in loss.state_dict()}


def test_samples_without_positions_are_refused():
    terms = dict(crd=dict(type='CRDLoss', at='embedding', num_samples=50, negatives=8))
    with pytest.raises(ValueError, match='terms.crd: CRDLoss needs the position of each sample'):
        distiller(terms).train()(*batch(), mode='loss')


def test_mixed_labels_are_refused():
    terms = dict(crd=dict(type='CRDLoss', at='embedding', num_samples=50, negatives=8))
    images, samples = batch()
    for i, sample in enumerate(samples):
        sample.set_metainfo(dict(sample_idx=i))
        sample.set_gt_score(torch.full((4,), 0.25))
    with pytest.raises(ValueError, match='terms.crd: CRDLoss needs one class an image'):
        distiller(terms).train()(images, samples, mode='loss')


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(num_samples=0), 'num_samples is 0; it must be an integer of at least 1'),
        (dict(negatives=0), 'negatives is 0; it must be an integer of at least 1'),
        (dict(feat_dim=-1), 'feat_dim is -1; it must be an integer of at least 1'),
        (dict(tau=0), 'tau is 0; it must be a finite number above 0'),
        (dict(momentum=1), 'momentum is 1; it must be a finite number of at least 0 and below 1'),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        CRDLoss(**dict(dict(num_samples=5), **arguments))


def test_wrong_samples():
    message = 'num_samples is 20, and there is a sample at position 20; set it to the'
    index = torch.tensor([3, 20])
    with pytest.raises(ValueError, match=message):
        connected()(random(2, 4), random(2, 5), torch.tensor([0, 1]), index)


def test_what_is_no_embedding_is_refused():
    message = r"terms.crd.at: CRDLoss: embeddings .* student's tap holds \(2, 4, 4, 4\)"
    with pytest.raises(ValueError, match=message):
        distiller(dict(crd=dict(type='CRDLoss', at='backbone.body', num_samples=9)))
