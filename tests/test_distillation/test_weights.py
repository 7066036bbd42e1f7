"""Weights that are measured: the ratio of two gradients' norms at a tap, frozen after some steps.

The numbers of the small example were computed by hand and by numpy.
"""

import copy
import io
import logging
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from mmengine.logging import MessageHub
from mmengine.model import ExponentialMovingAverage
from mmengine.runner import Runner
from mmengine.runner.checkpoint import load_state_dict
from resumable import losses, run_config, with_a_teacher
from tiny import batch, distiller, run_ranks, total
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmkdx.apis.dry_run import term_rows
from mmkdx.distillation.balance import Balance, LossScale, _gradients, compare, gradient_ratio
from mmkdx.distillation.terms import build_term
from mmkdx.distillation.weights import AutoWeight, TermWeight, build_weight
from mmkdx.losses import DistillLoss, KLDivLoss
from mmkdx.registry import MODELS

W = torch.tensor([[1, 0], [0, 1], [-1, 0.5]], dtype=torch.float64)
LABELS = torch.tensor([1, 0])
TEACHER = torch.tensor([[0, 2.5], [1, 0]], dtype=torch.float64)
#: Norms, by hand.
OWN, MSE, KD = 0.306456216269, 0.790569415042, 0.345644207479


def example():
    """A tensor at a tap, and the losses of its linear classifier."""
    tap = torch.tensor([[1, 2], [0.5, -1]], dtype=torch.float64, requires_grad=True)
    logits = tap @ W.T
    losses = dict(
        own=F.cross_entropy(logits, LABELS),
        mse=F.mse_loss(tap, TEACHER),
        kd=KLDivLoss(tau=4)(logits, TEACHER @ W.T),
    )
    return tap, logits, losses


@pytest.fixture
def said(monkeypatch):
    """What is logged as text, each with its level."""
    found = []
    name = 'mmkdx.distillation.weights.print_log'
    monkeypatch.setattr(name, lambda text, level=logging.INFO, **_: found.append((text, level)))
    return found


def close(value, expected, tolerance=1e-11):
    value, expected = (torch.as_tensor(each, dtype=torch.float64) for each in (value, expected))
    return value.item() == pytest.approx(expected.item(), rel=tolerance, abs=tolerance)


def term(weight='auto', **options):
    """A term that compares at the tap 'f'."""
    found = build_term('hint', dict(dict(type='MSELoss', at='f', weight=weight), **options))
    found.weight.at = found.weight.at or 'f'
    return found


def weigh(terms, values, own, taps, balance=None):
    """The weighted losses of terms, and what is logged."""
    given = dict(values=values, losses=dict(loss=own), student=taps, training=True)
    return (balance or Balance())(terms, **given)


def one_step(kind='mse', ratio=1.0, scale=1.0):
    """A step of the example with one measured term."""
    tap, logits, found = example()
    weight = dict(type='auto', ratio=ratio, steps=3)
    values = {'hint': scale * found[kind]}
    weighted, logs = weigh({'hint': term(weight)}, values, found['own'], dict(f=tap))
    return tap, found['own'] + weighted['hint'], logs


# The measurement


@pytest.mark.parametrize(
    'kind, at, norms, ratio, cosine, samples, biased',
    [
        (
            'mse',
            'tap',
            (OWN, MSE),
            0.387639858611,
            0.309121747983,
            (0.815768091236, 0),
            0.387590831818,
        ),
        (
            'kd',
            'tap',
            (OWN, KD),
            0.886623324326,
            0.488325801860,
            (0.738027267847, 0.545828384369),
            0.886366885228,
        ),
        (
            'kd',
            'logits',
            (0.284111108465, 0.252571933011),
            1.124872051609,
            0.312263177801,
            None,
            None,
        ),
    ],
)
def test_ratio_and_cosine_of_two_gradients(kind, at, norms, ratio, cosine, samples, biased):
    """The tap matters, and no number is added to the denominator."""
    tap, logits, found = example()
    place = tap if at == 'tap' else logits
    own, other = (
        torch.autograd.grad(found[name], place, retain_graph=True)[0] for name in ('own', kind)
    )
    sums = compare(own, other)
    assert close(sums[0].sqrt(), norms[0], 1e-10) and close(sums[1].sqrt(), norms[1], 1e-10)
    assert close(gradient_ratio(*sums[:2]), ratio, 1e-10)
    assert close(sums[2] / (norms[0] * norms[1]), cosine, 1e-10)
    if samples:  # an exact zero may be rounded to either sign and is no conflict
        assert sums[3:].tolist() == [0, 2]
    for i, expected in enumerate(samples or ()):
        row = compare(own[i : i + 1], other[i : i + 1])
        assert close(row[2] / (row[0] * row[1]).sqrt(), expected, 1e-9)
    if biased:
        assert close(norms[0] / (norms[1] + 1e-4), biased, 1e-10) and abs(biased - ratio) > 4e-5


def test_conflict_is_the_share_of_opposed_rows():
    own = torch.tensor([[1.0, 0], [0, 1], [1, 1], [1, 0]])
    other = torch.tensor([[-1.0, 0.1], [0, 2], [0, 0], [-1e-9, 1]])
    assert compare(own, other)[3:].tolist() == [1, 4]


def test_the_ratio_holds_at_the_tap_and_not_at_parameters():
    tap, _, found = example()
    for v, ratio, cosine in (
        (torch.eye(2), 0.387639858611, 0.309121747983),
        (torch.diag(torch.tensor([1.0, 2])), 0.434326687319, 0.110357400713),
    ):
        pair = (
            v.double() @ torch.autograd.grad(found[name], tap, retain_graph=True)[0]
            for name in ('own', 'mse')
        )
        sums = compare(*pair)
        assert close(gradient_ratio(*sums[:2]), ratio, 1e-10)
        assert close(sums[2] / (sums[0] * sums[1]).sqrt(), cosine, 1e-10)


def test_small_gradients_have_the_true_ratio():
    """A constant that is added to the denominator would make it 0.099."""
    assert close(gradient_ratio(*torch.tensor([1e-10, 1e-12], dtype=torch.float64)), 10)
    tiny = torch.full((1, 4), 1e-25, dtype=torch.float64)
    assert close(gradient_ratio(*compare(3 * tiny, tiny)[:2]), 3, 1e-6)


def test_parts_of_a_batch_sum_to_the_whole():
    """Each process has the gradients of its part's mean, twice those of the whole. Roots come last."""
    tap, logits, _ = example()
    rows = []
    for i in range(2):
        own = F.cross_entropy(logits[i : i + 1], LABELS[i : i + 1])
        mse = F.mse_loss(tap[i : i + 1], TEACHER[i : i + 1])
        grads = [
            torch.autograd.grad(each, tap, retain_graph=True)[0][i : i + 1] for each in (own, mse)
        ]
        rows.append(compare(*grads))
    sums = sum(rows)
    assert close(gradient_ratio(*sums[:2]), 0.387639858611, 1e-10)
    assert close(sums[2] / (sums[0] * sums[1]).sqrt(), 0.309121747983, 1e-10)
    assert sums[4] == 2
    local = sum(gradient_ratio(*row[:2]) for row in rows) / 2
    assert close(local, 0.378310835557, 1e-10)


@pytest.mark.parametrize(
    'kind, ratio, expected, norm',
    [
        ('mse', 0.5, 0.509431005739, OWN * 1.248647967996),
        ('mse', 1.0, None, 0.495876413961),
        ('kd', 1.0, None, 0.528728156241),
    ],
)
def test_weighted_totals(kind, ratio, expected, norm):
    tap, loss, logs = one_step(kind, ratio)
    if expected:
        assert close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, tap)
    assert close(gradient.norm(), norm, 1e-10)
    tap, _, found = example()
    (own,) = torch.autograd.grad(found['own'], tap)
    assert close((gradient - own).norm(), ratio * OWN, 1e-10)
    assert close(logs['hint.weight'], ratio * logs['hint.grad_ratio'])


def test_a_loss_that_is_scaled_changes_nothing():
    one, thousand = one_step(), one_step(scale=1000)
    assert close(one[1], thousand[1].item(), 1e-12)
    assert close(thousand[2]['hint.weight'] * 1000, one[2]['hint.weight'].item(), 1e-12)


# Properties


def ratio_and_cosine(own, other, taps):
    grads = [torch.autograd.grad(each, taps, retain_graph=True)[0] for each in (own, other)]
    sums = compare(*grads)
    return torch.stack([gradient_ratio(*sums[:2]), sums[2] / (sums[0] * sums[1]).sqrt()])


def test_a_change_of_basis_at_the_tap_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(2, 2, generator=generator, dtype=torch.float64))[0]
    expected = torch.tensor([0.387639858611, 0.309121747983], dtype=torch.float64)
    for matrix, same in (
        (rotation, True),
        (7 * torch.eye(2, dtype=torch.float64), True),
        (torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64)), False),
    ):
        tap = (example()[0].detach() @ matrix).requires_grad_()
        back = tap @ torch.linalg.inv(matrix)
        found = ratio_and_cosine(
            F.cross_entropy(back @ W.T, LABELS), F.mse_loss(back, TEACHER), tap
        )
        assert torch.allclose(found, expected, rtol=1e-10) == same


def test_the_label_loss_beside_itself():
    tap, _, found = example()
    for sign in (1, -1):
        weight = dict(type='auto', steps=1, cosine_interval=1)
        values = {'hint': sign * found['own']}
        _, logs = weigh({'hint': term(weight)}, values, found['own'], dict(f=tap))
        assert close(logs['hint.grad_ratio'], 1) and close(logs['hint.cosine'], sign)
        assert logs['hint.conflict'] == (sign < 0)


def test_at_a_high_temperature_the_ratio_does_not_depend_on_it():
    ratios = []
    for tau in (50, 5000):
        logits = torch.tensor([[1.0, -2, 1], [0.5, 0, -0.5]], dtype=torch.float64).requires_grad_()
        teacher = torch.tensor([[0.0, 1, -1], [2, -1, -1]], dtype=torch.float64)
        pair = F.cross_entropy(logits, LABELS), KLDivLoss(tau=tau)(logits, teacher)
        ratios.append(ratio_and_cosine(*pair, logits)[0].item())
    assert ratios[0] == pytest.approx(ratios[1], rel=0.03)


# The median and the freeze


def feed(weight, pairs):
    """The weights after each pair of norms."""
    found = []
    for own, other in pairs:
        sums = torch.tensor([own**2, other**2, 0, 0, 1], dtype=torch.float64)
        weight.take('terms.kd', sums)
        found.append(float(weight.number))
    return found


def test_lower_medians():
    weight = AutoWeight(steps=7)
    assert feed(weight, [(each, 1) for each in (2, 8, 4, 1, 16, 4, 0.5)]) == [2, 2, 4, 2, 4, 4, 4]
    assert weight.frozen and isinstance(weight.number, float)


PAIRS = [(0.5, 0.25), (0.5, 0), (0.4, 0.05), (0, 0.1), (0.6, 0.15), (0.1, 0.1)]


@pytest.mark.parametrize('ratio', [1.0, 0.5])
def test_steps_without_a_gradient_are_left_out(ratio):
    weight = AutoWeight(steps=6, ratio=ratio)
    expected = [2 * ratio, 2 * ratio, 2 * ratio, 2 * ratio, 4 * ratio, 2 * ratio]
    assert feed(weight, PAIRS) == pytest.approx(expected, rel=1e-12)
    nan = math.nan
    assert weight.ratios.tolist() == pytest.approx([2, nan, 8, nan, 4, 1], nan_ok=True)
    assert not weight.is_due and weight.count == 6
    weight.take('terms.kd', torch.tensor([1, 1e-6, 0, 0, 1], dtype=torch.float64))
    assert weight.number == pytest.approx(2 * ratio) and weight.count == 6


@pytest.mark.parametrize('pair', [(0.5, 0), (0.5, math.inf), (math.nan, 0.5)])
def test_without_a_ratio_the_weight_is_the_option(pair, said):
    weight = AutoWeight(steps=2, ratio=3.0, at='f')
    assert feed(weight, [pair]) == [3] and weight.ratios.isnan().all()
    assert not said and feed(weight, [pair]) == [3]
    ((text, level),) = said
    assert text.startswith('terms.kd.weight: in 2 steps the gradient of the term')
    assert level == logging.WARNING
    assert not weight.frozen and weight.count == 0
    assert feed(weight, [(1, 0.5), (1, 0.5)]) == [6, 6] and weight.frozen


def test_the_frozen_number_is_said_and_is_the_same_as_a_constant(said):
    weight = AutoWeight(dict(type='linear', start_factor=0.3, end=9), ratio=0.7, steps=3, at='f')
    feed(weight, [(1, 3), (2, 7), (1, 11)])
    assert said[0][0] == (
        f'terms.kd.weight: frozen at {weight.number!r}. This is the ratio 0.7 times the median of 3 of '
        f"3 steps at the tap 'f'. Set weight={weight.number!r} for the same weight without measuring."
    )
    constant = build_weight(weight.number, dict(type='linear', start_factor=0.3, end=9), False)
    loss = torch.tensor(1.2345)
    assert torch.equal(weight(loss), constant(loss))


# Real steps


def auto_model(steps=3, seed=0, **options):
    torch.manual_seed(seed)
    weight = dict(dict(type='auto', steps=steps, interval=1), **options)
    terms = dict(
        kd=dict(type='KLDivLoss', at='logits', weight=weight),
        hint=dict(type='MSELoss', at='features', weight=dict(weight, at='backbone.stem')),
    )
    return distiller(terms).train()


def train(model, steps, start=0):
    found = []
    optim = torch.optim.SGD(model.parameters(), lr=0.1)
    for i in range(start, start + steps):
        out = model.loss(*batch(seed=i))
        optim.zero_grad()
        total(out).backward()
        optim.step()
        found.append({key: float(value.detach()) for key, value in out.items()})
    return found


def test_a_measurement_leaves_the_gradients_alone(monkeypatch):
    model = auto_model(steps=1)
    out = model.loss(*batch())
    assert all(each.grad is None for each in model.parameters())
    total(out).backward()
    constants = copy.deepcopy(model)
    constants.zero_grad()
    for each in constants.terms.values():
        assert each.weight.frozen
    monkeypatch.setattr('mmkdx.distillation.balance.compare', None)  # nothing is compared
    again = constants.loss(*batch())
    assert all(torch.equal(out[key], again[key]) for key in again if 'loss' in key)
    total(again).backward()
    for one, two in zip(model.parameters(), constants.parameters()):
        assert torch.equal(one.grad, two.grad)


def test_without_training_nothing_is_measured():
    model = auto_model()
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model.loss(*batch())
    for kind in ('predict', 'loss'):
        model.eval()(*batch(), mode=kind)
    for key in before:
        if 'weight.' in key:
            torch.testing.assert_close(model.state_dict()[key], before[key], equal_nan=True)
    assert set(model.terms.kd.weight.logs) == set()


def test_what_is_logged():
    names = {'weight', 'cosine', 'conflict', 'grad_ratio'}
    model = auto_model(steps=2)
    first, second, third = train(model, 3)
    assert {key[3:] for key in first if key.startswith('kd.')} == names
    for key in ('kd.cosine', 'kd.conflict', 'kd.grad_ratio'):
        assert key not in second and key not in third
    assert third['kd.weight'] == pytest.approx(model.terms.kd.weight.number)
    ratios = model.terms.kd.weight.ratios
    assert first['kd.weight'] == first['kd.grad_ratio'] == ratios[0]
    assert not any('loss' in key for key in first if key.startswith(('kd.', 'hint.')))


def test_cosines_are_measured_every_few_iterations(monkeypatch):
    monkeypatch.setattr(MessageHub, '_instance_dict', type(MessageHub._instance_dict)())
    model = distiller(
        dict(
            kd=dict(
                type='KLDivLoss',
                at='logits',
                weight=dict(type='constant', value=0.5, at='features', cosine_interval=3),
            )
        )
    ).train()
    seen = []
    for i in range(7):
        MessageHub.get_current_instance().update_info('iter', i)
        (step,) = train(model, 1, i)
        seen.append((step['kd.cosine'], step['kd.conflict'], step['kd.grad_ratio']))
        assert step['kd.weight'] == 0.5
    assert len(set(seen)) == 3 and len(set(seen[:3])) == len(set(seen[3:6])) == 1
    assert not list(model.terms.kd.weight.buffers())


def test_tensors_that_are_overwritten_can_be_measured():
    """Batch norm, and then ReLU in place."""

    def ratios(inplace):
        torch.manual_seed(0)
        weight = dict(type='auto', steps=2, interval=1, at='backbone.stem.1')
        model = distiller(dict(kd=dict(type='KLDivLoss', at='logits', weight=weight))).train()
        for module in model.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = inplace
        steps = train(model, 2)
        return model.terms.kd.weight.ratios, steps

    one, two = ratios(True), ratios(False)
    assert one[0].isfinite().all() and torch.equal(one[0], two[0]) and one[1] == two[1]


def test_class_maps_stand_for_their_features():
    def measured(**at):
        torch.manual_seed(0)
        weight = dict(type='auto', steps=1, **at)
        model = distiller(dict(cat=dict(type='CATLoss', at='cam', weight=weight))).train()
        train(model, 1)
        return model.terms.cat.weight.number

    assert measured() == measured(at='features') > 0


# State


def resume(state, **options):
    model = auto_model(seed=9, **options)
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize('interval, stop', [(1, 3), (1, 5), (2, 3), (2, 4)])
def test_a_resumed_calibration_goes_on_bit_for_bit(interval, stop):
    options = dict(steps=4 // interval, interval=interval)
    whole, part = auto_model(**options), auto_model(**options)
    expected = train(whole, 6)
    train(part, stop)
    file = io.BytesIO()
    torch.save(part.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    names = {key.rpartition('.')[2] for key in state if 'distill.terms.kd.' in key}
    assert names == {'ratios', 'count', 'wait'}
    model = resume(state, **options)
    model.teachers = part.teachers
    assert train(model, 6 - stop, stop) == expected[stop:]
    for key, value in whole.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


def test_every_few_steps_one_is_measured(monkeypatch):
    model, measured = auto_model(steps=2, interval=3), []
    take = AutoWeight.take
    monkeypatch.setattr(AutoWeight, 'take', lambda *args: (measured.append(step), take(*args)))
    for step in range(8):
        train(model, 1, step)
        model.eval().loss(*batch(seed=9))  # is no training step
        model.train()
    assert measured == [0, 0, 3, 3] and model.terms.kd.weight.frozen


def test_another_ratio_acts_at_once_and_other_steps_are_refused(said):
    model = auto_model(steps=4)
    train(model, 2)
    state = model.state_dict()
    one, double = resume(state, steps=4), resume(state, steps=4, ratio=2.0)
    assert double.terms.kd.weight.number == 2 * one.terms.kd.weight.number
    message = (
        '^terms.kd.weight.steps is 5, and the checkpoint has distill.terms.kd.weight.ratios of 4 '
        'steps; set steps=4'
    )
    for load in (nn.Module.load_state_dict, load_state_dict):
        with pytest.raises(ValueError, match=message):
            load(auto_model(steps=5), dict(state))
    said.clear()
    one.load_state_dict({key: value for key, value in state.items() if '.kd.weight.' not in key})
    assert said == [
        (
            'terms.kd.weight: the checkpoint has no measured ratios, so 4 steps are measured',
            logging.INFO,
        )
    ]
    assert one.terms.kd.weight.count == 0 and one.terms.kd.weight.is_due


def test_averaged_models_keep_a_valid_state():
    """Averages of buffers, too: a slot is written once, and NaN stays NaN."""
    model = auto_model(steps=4)
    average = ExponentialMovingAverage(model, momentum=0.3, update_buffers=True)
    for i in range(6):
        train(model, 1, i)
        average.update_parameters(model)
    copied = average.module.terms.kd.weight
    assert copied.count == 1 and torch.equal(copied.ratios[:1], model.terms.kd.weight.ratios[:1])
    assert copied.ratios[1:].isnan().all()


@MODELS.register_module()
class ThousandKL(KLDivLoss):
    """A loss in other units."""

    def forward(self, student, teacher):
        return 1000 * super().forward(student, teacher)


def test_a_run_with_a_loss_in_other_units_has_the_same_losses(tmp_path):
    found = []
    for kind in ('KLDivLoss', 'ThousandKL'):
        folder = tmp_path / kind
        folder.mkdir()
        config = run_config(with_a_teacher(folder), custom_hooks=[], val_cfg=None)
        for key in ('val_dataloader', 'val_evaluator', 'val_cfg'):
            config[key] = None
        config.train_cfg = dict(by_epoch=True, max_epochs=2)
        weight = dict(type='auto', steps=2, interval=3, cosine_interval=2)
        config.model.terms = dict(kd=dict(type=kind, at='logits', tau=2, weight=weight))
        config.model.teacher = config.model.teacher[:1]
        Runner.from_cfg(config).train()
        found.append(losses(folder))
    assert len(found[0]) == 8
    for step, values in found[0].items():
        assert set(values) == {'loss', 'student.loss', 'loss_kd'}
        assert values == pytest.approx(found[1][step], rel=1e-4), step


# Half precision


def test_gradients_in_half_precision_do_not_vanish():
    generator = torch.Generator().manual_seed(0)
    tap, teacher = (torch.randn(1000, generator=generator) for _ in range(2))
    norms = {}
    for dtype, factor in ((torch.float32, None), (torch.float16, None), (torch.float16, 1.0)):
        at = tap.to(dtype).requires_grad_()
        loss = ((at.float() - teacher) ** 2).sum() / 51380224
        scale = SimpleNamespace(of=lambda taps: 1.0) if factor else LossScale()
        (gradient,) = _gradients(term(), loss, [at], scale)
        norms[dtype, factor] = gradient.norm().item()
        if factor:
            assert 0.3 < (gradient == 0).double().mean() < 0.5
    true = norms[torch.float32, None]
    assert norms[torch.float16, None] == pytest.approx(true, rel=1e-4 + 5e-4)
    assert abs(norms[torch.float16, 1.0] / true - 1) > 0.01


def test_an_overflow_is_no_measurement_and_makes_the_factor_smaller():
    balance, found = Balance(), term(dict(type='auto', steps=3, interval=1))
    for i in range(3):
        tap = torch.ones(2, 2, dtype=torch.float16, requires_grad=True)
        own, value = tap.float().sum() / 4, 4 * tap.float().sum()
        weigh({'hint': found}, {'hint': value}, own, dict(f=tap), balance)
        assert found.weight.ratios[i].isnan() == (i == 0)
    assert found.weight.scale.of([tap]) == 2**12 and balance._scale.of([tap]) == 2**16
    assert found.weight.number == pytest.approx(0.25 / 4)


def test_full_precision_needs_no_factor():
    tap = torch.ones(2)
    assert LossScale().of([tap]) == 1.0 and LossScale().of([tap.bfloat16()]) == 1.0
    with torch.autocast('cpu', torch.bfloat16):
        assert LossScale().of([tap]) == 1.0
    with torch.autocast('cpu', torch.float16):
        assert LossScale().of([tap]) == 2**16  # what is behind the tap is in fp16


# Several processes

RANKS = """
import sys
import torch
import torch.distributed as dist
sys.path.insert(0, {folder!r})
from test_weights import example, term, weigh, F, TEACHER, LABELS

path, rank, world = sys.argv[1], *map(int, sys.argv[2:])
dist.init_process_group('gloo', 'file://' + path + '.store', rank=rank, world_size=world)
found = term(dict(type='auto', steps=3, interval=1))
calls = []
reduce = dist.all_reduce
dist.all_reduce = lambda *args, **kwargs: (calls.append(1), reduce(*args, **kwargs))[1]
for step in range(3):
    tap, logits, _ = example()
    part = slice(rank, rank + 1)
    own = F.cross_entropy(logits[part], LABELS[part])
    value = F.mse_loss(tap[part], TEACHER[part])
    if step == 1:  # one process alone has no gradient
        value = value * rank
    logs = weigh(dict(hint=found), dict(hint=value), own, dict(f=tap))[1]
    if step == 0:
        first = dict((key, float(value)) for key, value in logs.items())
torch.save((first, found.weight.ratios, found.weight.number, len(calls)), path + '.' + str(rank))
"""


def test_two_processes_measure_the_whole_batch(tmp_path):
    ranks = run_ranks(RANKS.format(folder=str(Path(__file__).parent)), tmp_path / 'ranks', 2)
    for first, ratios, number, calls in ranks:
        assert close(first['hint.grad_ratio'], 0.387639858611, 1e-10)
        assert close(first['hint.cosine'], 0.309121747983, 1e-10)
        assert first['hint.conflict'] == 0 and ratios.isfinite().all()
        assert torch.equal(ratios, ranks[0][1]) and number == ranks[0][2] and calls == 3


# Bad input


@pytest.mark.parametrize(
    'weight, message',
    [
        (dict(type='auto', ratio=0), 'weight.ratio is 0; it must be a finite number above 0'),
        (dict(type='auto', ratio=math.inf), 'weight.ratio is inf; it must be a finite number'),
        (dict(type='auto', ratio=True), 'weight.ratio is True; it must be a finite number'),
        (dict(type='auto', steps=0), 'weight.steps is 0; it must be an integer of at least 1'),
        (
            dict(type='auto', interval=0),
            'weight.interval is 0; it must be an integer of at least 1',
        ),
        (
            dict(type='auto', cosine_interval=-1),
            'weight.cosine_interval is -1; it must be an integer',
        ),
        (dict(type='auto', at=['a', 'b']), r"weight.at is \['a', 'b'\]; it must be one tap"),
        (
            dict(type='auto', value=1),
            'weight has value; it takes type, ratio, steps, interval, at, cosine_int',
        ),
        (dict(type='constant', ratio=1), 'weight has ratio; it takes type, value, at, cosine_int'),
        (dict(type='best'), "weight.type is 'best'; it must be one of auto, constant"),
        (dict(ratio=2), 'weight.type is None; it must be one of auto, constant'),
        ('best', "weight is 'best'; it must be a finite number or 'auto'"),
        (dict(type='constant', value=math.nan), 'weight.value is nan; it must be a finite number$'),
        (dict(type='constant', value=-1), 'weight.value is -1, which trains the student away'),
    ],
)
def test_wrong_options(weight, message):
    with pytest.raises(ValueError, match=f'^terms.kd: {message}'):
        build_term('kd', dict(type='KLDivLoss', at='logits', weight=weight))


@pytest.mark.parametrize(
    'options, weight, message',
    [
        (
            dict(student_weight=0),
            'auto',
            "terms.kd.weight compares the term's gradient with that of the student's own loss, and",
        ),
        (
            dict(student_weight=0),
            dict(type='constant', cosine_interval=1),
            "terms.kd.weight compares the term's gradient",
        ),
        (
            {},
            dict(type='auto', at='backbone.nothing'),
            'terms.kd.weight.at: the student has no module',
        ),
        ({}, dict(type='auto', at='prototypes'), 'terms.kd.weight.at: '),
    ],
)
def test_wrong_models(options, weight, message):
    with pytest.raises(ValueError, match=f'^{message}'):
        distiller(dict(kd=dict(type='KLDivLoss', at='logits', weight=weight)), **options)


def test_several_taps_are_no_place_to_measure():
    class Several(DistillLoss):
        compares = 'anything'
        needs = ()

        def forward(self, student):
            return sum(each.mean() for each in student)

    config = dict(type=Several, at=['features', 'logits'], weight='auto')
    message = (
        r"^terms.kd.weight.at: gradients are compared at one tap, and \('features', 'log.* holds"
    )
    with pytest.raises(ValueError, match=message):
        distiller(dict(kd=config), teacher=None)
    weight = dict(type='auto', at='features')
    model = distiller(dict(kd=dict(config, weight=weight)), teacher=None).train()
    assert train(model, 1)[0]['kd.weight'] > 0


def test_a_tap_behind_the_term():
    weight = dict(type='auto', at='logits')
    model = distiller(dict(kd=dict(type='MSELoss', at='features', weight=weight))).train()
    message = "^terms.kd.weight: MSELoss of the term does not depend on what is at tap 'logits'"
    with pytest.raises(ValueError, match=message):
        model.loss(*batch())


def test_a_tap_beside_the_label_loss():
    tap, _, found = example()
    side = torch.ones(2, 2, dtype=torch.float64, requires_grad=True)
    message = "^terms.hint.weight: the student's own loss does not depend on what is at tap 'f'"
    with pytest.raises(ValueError, match=message):
        weigh({'hint': term()}, {'hint': side.mean()}, found['own'], dict(f=side))
    with pytest.raises(ValueError, match=message):
        weigh({'hint': term()}, {'hint': side.mean()}, torch.tensor(1.0), dict(f=side))


def test_a_frozen_tap():
    model = auto_model()
    model.student.backbone.stem.requires_grad_(False)
    message = "^terms.hint.weight: the value at tap 'backbone.stem' is made of frozen parameters"
    with pytest.raises(ValueError, match=message):
        model.loss(*batch())


def test_a_run_that_drops_the_label_loss_later():
    """As PrototypeStageHook can."""
    model = auto_model(steps=2)
    train(model, 1)
    model.student_weight = 0
    with pytest.raises(ValueError, match='^terms.kd.weight compares .* student_weight is 0'):
        model.loss(*batch())


class Donated(torch.autograd.Function):
    """A backward pass that can run only once, as that of compiled code."""

    @staticmethod
    def forward(ctx, value):
        return value * 2

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError(ctx_message)


ctx_message = 'compiled with non-empty donated buffers'


@pytest.mark.parametrize(
    'function, hint',
    [
        (Donated.apply, 'set torch._functorch.config.donated_buffer = False'),
        (lambda x: checkpoint(torch.exp, x, use_reentrant=True), 'use_reentrant=False'),
    ],
)
def test_graphs_without_a_second_backward_pass(function, hint):
    tap = torch.ones(2, 2, requires_grad=True)
    with pytest.raises(ValueError, match=f'^terms.hint.weight: the gradients at the tap .*{hint}'):
        weigh({'hint': term()}, {'hint': tap.sum()}, function(tap).mean(), dict(f=tap))


def test_other_errors_of_a_backward_pass_stay_as_they_are(monkeypatch):
    monkeypatch.setitem(globals(), 'ctx_message', 'out of memory')
    tap = torch.ones(2, 2, requires_grad=True)
    with pytest.raises(RuntimeError, match='^out of memory'):
        weigh({'hint': term()}, {'hint': tap.sum()}, Donated.apply(tap).mean(), dict(f=tap))


def test_checkpoints_without_reentrance_can_be_measured():
    tap = torch.ones(2, 2, requires_grad=True)
    own = checkpoint(torch.exp, tap, use_reentrant=False).mean()
    _, logs = weigh({'hint': term()}, {'hint': tap.sum()}, own, dict(f=tap))
    assert close(logs['hint.grad_ratio'], math.e / 4, 1e-6)


def test_the_dry_run_shows_the_kind_of_weight():
    model = auto_model(ratio=0.5, steps=1)
    texts = ['auto at logits, ratio 0.5', 'auto at backbone.stem, ratio 0.5']
    assert [row[7] for row in term_rows(model, (8, 8))] == texts
    train(model, 1)
    number = model.terms.kd.weight.number
    assert term_rows(model, (8, 8))[0][7] == f'{texts[0]}: {number:g}'
    assert str(TermWeight(value=0.25)) == '0.25'
