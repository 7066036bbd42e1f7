"""Channels last and compiled parts change nothing but speed."""

import copy

import pytest
import torch
from tiny import batch, classifier, distiller, total

from mmkdx.explain import GradCAM
from mmkdx.models.families import forward_tensor
from mmkdx.models.intercept import Tap
from mmkdx.models.taps import TapSet

TERMS = dict(
    kd=dict(type='KLDivLoss', at='logits'),
    cat=dict(type='CATLoss', at='cam', resolution=2),
    at=dict(type='ATLoss', at='backbone.stem'),
)


def model(**options):
    torch.manual_seed(0)
    return distiller(TERMS, **options).train()


def compiled(module) -> list[str]:
    return [name for name, each in module.named_modules() if each._compiled_call_impl is not None]


class Counter:
    """A compiler's backend that runs what it is given as it is, and counts."""

    def __init__(self):
        self.graphs = self.runs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1

        def run(*args):
            self.runs += 1
            return graph.forward(*args)

        return run


def step(each, images, samples):
    losses = each(images, samples, mode='loss')
    total(losses).backward()
    return losses, {name: p.grad for name, p in each.named_parameters() if p.grad is not None}


def assert_equal(found, expected):
    for ours, theirs in zip(found, expected):
        assert list(ours) == list(theirs)
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)


def test_channels_last():
    plain, last = model(), model(channels_last=True)
    seen = []
    for each in (last.student, last.teachers[0].model):
        each.backbone.body.register_forward_hook(lambda m, args, output: seen.append(output))
    assert_equal(step(last, *batch()), step(plain, *batch()))
    for output in seen:
        assert output.is_contiguous(memory_format=torch.channels_last)
        assert not output.is_contiguous()
    images = batch()[0]
    torch.testing.assert_close(last(images), plain(images))
    # Files of one are read by the other
    plain.load_state_dict(last.state_dict())


def test_parts_without_a_tap_are_compiled():
    counter = Counter()
    parts = model(compile=dict(backend=counter))
    # The stem is a tap, so what is inside it stays as it is: single layers
    assert compiled(parts.student) == ['backbone.body']
    assert compiled(parts.teachers[0].model) == ['backbone.body']
    assert_equal(step(parts, *batch()), step(model(), *batch()))
    assert counter.graphs == 2 and counter.runs == 2
    parts(*batch(), mode='loss')
    assert counter.graphs == 2 and counter.runs == 4


def test_what_holds_no_tap_is_one_part():
    parts = distiller(dict(cat=dict(type='CATLoss', at='cam')), compile=dict(backend=Counter()))
    assert compiled(parts.student) == ['backbone', 'head']
    assert compiled(distiller(dict(cat=dict(type='CATLoss', at='cam'))).student) == []


def test_lists_of_modules_are_compiled_by_their_members():
    layers = torch.nn.ModuleList(torch.nn.Sequential(torch.nn.Linear(2, 2)) for _ in range(3))
    net = torch.nn.Module()
    net.layers = layers
    taps = TapSet({'layers.1': 'key'}, 'student')
    taps.taps = {'layers.1': Tap('layers.1')}
    taps.compile(net, backend=Counter())
    assert compiled(net) == ['layers.0', 'layers.2']


def test_many_parts_do_not_share_a_limit():
    """torch compiles no more than eight versions of one function."""
    if 'isolate_recompiles' not in torch.compile.__kwdefaults__:
        pytest.skip('this torch has one limit for all parts')
    counter = Counter()
    net = torch.nn.Sequential(
        *(torch.nn.Sequential(torch.nn.Linear(width, width + 1)) for width in range(1, 13))
    )
    taps = TapSet({}, 'student')
    taps.compile(net, backend=counter)
    net(torch.ones(1, 1))
    assert counter.graphs == 12


def test_copies_are_not_compiled():
    parts = model(compile=dict(backend=Counter()))
    assert compiled(copy.deepcopy(parts)) == []


def test_explanations_look_into_compiled_parts():
    plain, parts = model(), model(compile=dict(backend=Counter()))
    images, classes = batch()[0], torch.arange(6) % 4
    explainer = GradCAM(layer='backbone.body')
    torch.testing.assert_close(
        explainer(parts.student, images, classes), explainer(plain.student, images, classes)
    )


def test_other_sizes_are_checked_uncompiled():
    counter = Counter()
    parts = model(compile=dict(backend=counter))
    parts(*batch(size=16), mode='loss')
    assert counter.runs == 2


def test_members_of_an_ensemble_are_compiled():
    members = [dict(model=classifier(8)), dict(model=classifier(8))]
    ensemble = dict(type='TeacherEnsemble', teachers=members)
    parts = distiller(teacher=ensemble, compile=dict(backend=Counter()))
    for member in parts.teachers[0].members:
        assert compiled(member.model) == ['backbone']


def test_teachers_run_in_inference_mode_and_yield_plain_tensors():
    each = model()
    seen = []
    each.teachers[0].model.backbone.register_forward_hook(
        lambda module, args, output: seen.append(output[0].is_inference())
    )
    values = each.teachers[0](batch()[0])
    assert seen == [True]
    tensors = [values['logits'], values['cam'].features, values['backbone.stem']]
    assert not any(tensor.is_inference() for tensor in tensors)
    with torch.no_grad():
        expected = forward_tensor(each.teachers[0].model, batch()[0])
    assert torch.equal(values['logits'], expected)
