"""Weights of mdistiller's networks yield their logits here, and other files one sentence."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from full_disk import full_disk
from mmengine.config import Config
from mmengine.registry import DefaultScope
from public_networks import PUBLISHED, PublicNetwork, layout

import mmkdx
from mmkdx.distillation.models import build_model
from mmkdx.registry import MODELS

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools/model_converters/convert_mdistiller.py'
tool = runpy.run_path(str(TOOL))
main = tool['main']


def config(name):
    return Config.fromfile(ROOT / f'configs/_base_/models/{name}_cifar.py').model.to_dict()


def public(name, images=None):
    """A network with random weights, after it has seen images."""
    network = PublicNetwork(name)
    network.logits = network.run(torch.zeros(1, 3, 32, 32).double() if images is None else images)
    return network


def images(n=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, 32, 32, generator=generator, dtype=torch.float64)


def converted(name, weights, folder):
    """A network with weights that were saved in the public layout and converted."""
    torch.save(dict(epoch=240, model=weights, best_acc=0.0), folder / 'public.pth')
    main([name, str(folder / 'public.pth'), str(folder / 'ours.pth')])
    model = build_model(config(name), 'model').double()
    model.load_state_dict(torch.load(folder / 'ours.pth', weights_only=True)['state_dict'])
    model.eval()
    return model


def close(ours, theirs):
    """Rounding apart, whereas 1e-4 is what is promised."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9 * theirs.abs().max().item())


def test_all_networks():
    assert sorted(tool['NAMES']) == sorted(PUBLISHED)


@pytest.mark.parametrize('name', PUBLISHED)
def test_public_weights_yield_the_public_logits(name, tmp_path):
    network = public(name, images())
    assert layout(network.weights) == PUBLISHED[name][:2]
    assert tool['recognise'](network.weights) == name
    model = converted(name, network.weights, tmp_path)
    assert len(model.state_dict()) == PUBLISHED[name][0]

    seen = {}
    for path in network.stages.keys() - {'features'}:
        model.get_submodule(f'backbone.{path}').register_forward_hook(
            lambda module, inputs, output, path=path: seen.update({path: output.clone()})
        )
    with torch.no_grad():
        (features,) = model.backbone(images())
        logits = model.head(model.neck((features,)))
    close(logits, network.logits)
    close(features, network.stages.pop('features'))
    assert len(seen) == len(network.stages)
    for path, output in network.stages.items():
        close(seen[path], output)


@pytest.mark.parametrize(
    'name', ['resnet8x4', 'wrn_16_2', 'vgg8', 'mobilenetv2', 'shufflenetv1', 'shufflenetv2']
)
def test_no_activation_is_bounded(name, tmp_path):
    network = public(name, images(1))
    for key, value in network.weights.items():
        if f'{key.removesuffix("weight")}running_var' in network.weights:
            value *= 3
    logits = network.run(images(1))
    assert all(value.abs().max() > 6 for value in network.stages.values())
    with torch.no_grad():
        close(converted(name, network.weights, tmp_path)(images(1)), logits)


@pytest.mark.parametrize('name', ['resnet8x4', 'mobilenetv2'])
def test_whole_distiller_gives_its_student(name, tmp_path):
    student, teacher = public(name), public('vgg8')
    weights = {f'module.student.{key}': value for key, value in student.weights.items()}
    weights |= {f'module.teacher.{key}': value for key, value in teacher.weights.items()}
    weights['module.projection.weight'] = torch.ones(3)
    model = converted(name, weights, tmp_path)
    with torch.no_grad():
        close(model(images()), student.run(images()))


def test_files_without_counters(tmp_path):
    weights = public('wrn_16_2').weights
    few = {key: value for key, value in weights.items() if 'num_batches' not in key}
    assert len(few) < len(weights)
    state = converted('wrn_16_2', few, tmp_path).state_dict()
    assert state['backbone.bn1.num_batches_tracked'] == 0
    assert torch.equal(state['backbone.bn1.running_mean'], weights['bn1.running_mean'])


@pytest.mark.parametrize('name', ['resnet8x4', 'mobilenetv2', 'shufflenetv2'])
def test_converted_file_starts_a_frozen_backbone(name, tmp_path):
    weights = converted(name, public(name).weights, tmp_path).backbone.state_dict()
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'ours.pth'), prefix='backbone.')
    largest = 7 if name == 'mobilenetv2' else 3
    with DefaultScope.overwrite_default_scope('mmkdx'):
        backbone = MODELS.build(
            dict(config(name)['backbone'], frozen_stages=largest, init_cfg=init_cfg)
        )
        backbone.init_weights()
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, weights[key].to(value.dtype)), key


def test_file_says_what_it_is(tmp_path, capsys):
    weights = public('resnet8x4').weights
    torch.save(dict(model=weights), tmp_path / 'public.pth')
    main(['resnet8x4', str(tmp_path / 'public.pth'), str(tmp_path / 'a/new/folder/ours.pth')])
    checkpoint = torch.load(tmp_path / 'a/new/folder/ours.pth', weights_only=True)
    assert checkpoint['meta'] == dict(mmkdx_version=mmkdx.__version__, network='resnet8x4')
    assert capsys.readouterr().out == (
        f'Wrote {tmp_path}/a/new/folder/ours.pth: 62 tensors of resnet8x4\n'
    )


def failure(name, src, dst):
    with pytest.raises(SystemExit) as error:
        main([name, str(src), str(dst)])
    return str(error.value)


@pytest.mark.parametrize('name', ['resnet20', 'wrn_40_1', 'vgg8', 'shufflenetv2'])
def test_other_network(name, tmp_path):
    torch.save(dict(model=public(name).weights), tmp_path / 'public.pth')
    asked = 'vgg8' if name != 'vgg8' else 'vgg13'
    assert failure(asked, tmp_path / 'public.pth', tmp_path / 'ours.pth') == (
        f'{tmp_path}/public.pth does not hold {asked}: it looks like {name}.'
    )
    assert not (tmp_path / 'ours.pth').exists()


def test_network_that_mmkdx_has_not(tmp_path):
    weights = public('resnet32').weights
    weights = {key: value for key, value in weights.items() if '.4.' not in key}
    torch.save(dict(model=weights), tmp_path / 'public.pth')
    message = failure('resnet20', tmp_path / 'public.pth', tmp_path / 'ours.pth')
    assert message.endswith('does not hold resnet20: it looks like resnet26.')
    message = failure('resnet26', tmp_path / 'public.pth', tmp_path / 'ours.pth')
    assert message.startswith("There is no network 'resnet26'; NAME is one of resnet20, resnet32,")


@pytest.mark.parametrize(
    'change, message',
    [
        (
            lambda w: w.pop('layer2.0.downsample.1.running_var'),
            "has no tensor for 'backbone.layer2.0.downsample.1.running_var' of resnet8x4.",
        ),
        (lambda w: w.pop('fc.bias'), "has no tensor for 'head.fc.bias' of resnet8x4."),
        (
            lambda w: w.update({'fc.weight': torch.ones(200, 256)}),
            ": 'fc.weight' is of shape (200, 256), and resnet8x4 needs (100, 256).",
        ),
        (
            lambda w: w.update({'layer1.0.conv9.weight': torch.ones(1)}),
            "has a tensor 'layer1.0.conv9.weight', which resnet8x4 has not.",
        ),
        (
            lambda w: w.update({'linear.weight': torch.ones(100, 256)}),
            "has a tensor 'linear.weight', which resnet8x4 has not.",
        ),
    ],
    ids=['missing', 'no bias', 'shape', 'unknown', 'two classifiers'],
)
def test_tensors_that_do_not_fit(change, message, tmp_path):
    weights = public('resnet8x4').weights
    change(weights)
    torch.save(dict(model=weights), tmp_path / 'public.pth')
    (tmp_path / 'ours.pth').write_text('what was there')
    found = failure('resnet8x4', tmp_path / 'public.pth', tmp_path / 'ours.pth')
    assert found.replace(f'{tmp_path}/public.pth', '').strip() == message
    assert (tmp_path / 'ours.pth').read_text() == 'what was there'


@pytest.mark.parametrize(
    'content, message',
    [
        ([torch.ones(2)], "is none of mdistiller's files: it has no weights in 'model'."),
        (dict(state_dict={}), "is none of mdistiller's files: it has no weights in 'model'."),
        (dict(model=dict(a=1)), "is none of mdistiller's files: it has no weights in 'model'."),
        (dict(model={}), "does not hold vgg8: it looks like none of mdistiller's networks."),
    ],
)
def test_file_of_something_else(content, message, tmp_path):
    torch.save(content, tmp_path / 'public.pth')
    found = failure('vgg8', tmp_path / 'public.pth', tmp_path / 'ours.pth')
    assert found == f'{tmp_path}/public.pth {message}'


def test_missing_and_corrupt_file(tmp_path):
    path = tmp_path / 'public.pth'
    assert failure('vgg8', path, tmp_path / 'x') == f'There is no checkpoint file {path}.'
    path.write_bytes(b'not a checkpoint')
    assert f'Checkpoint {path} (16 bytes) is empty, truncated' in failure(
        'vgg8', path, tmp_path / 'x'
    )
    path.write_bytes(b'')
    assert 'is empty' in failure('vgg8', path, tmp_path / 'x')


def test_nothing_half_written_stays(tmp_path):
    torch.save(dict(model=public('resnet8x4').weights), tmp_path / 'public.pth')
    (tmp_path / 'ours.pth').write_text('what was there')

    with full_disk(100_000):
        message = failure('resnet8x4', tmp_path / 'public.pth', tmp_path / 'ours.pth')
    assert message == f'cannot write {tmp_path}/ours.pth: File too large'
    assert (tmp_path / 'ours.pth').read_text() == 'what was there'
    (tmp_path / 'taken').mkdir()
    assert 'taken' in failure('resnet8x4', tmp_path / 'public.pth', tmp_path / 'taken')
    assert {path.name for path in tmp_path.iterdir()} == {'public.pth', 'ours.pth', 'taken'}


def test_runs_as_a_script(tmp_path, monkeypatch):
    torch.save(dict(model=public('resnet8x4').weights), tmp_path / 'public.pth')
    arguments = ['resnet8x4', str(tmp_path / 'public.pth'), str(tmp_path / 'ours.pth')]
    monkeypatch.setattr(sys, 'argv', [str(TOOL), *arguments])
    runpy.run_path(str(TOOL), run_name='__main__')
    assert (tmp_path / 'ours.pth').is_file()
