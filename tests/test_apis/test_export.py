"""Exported students are the students: weights bit for bit, logits, and what a file says of itself."""

import copy
import json

import pytest
import safetensors
import safetensors.torch
import torch
from networks import NETWORKS, PARAMETERS, OwnNetwork, spec_of
from tiny import batch, build, classifier

from mmkdx.apis.export import METADATA, export_model
from mmkdx.distillation.models import build_student
from mmkdx.files import WriteError
from mmkdx.models.libraries import find_network

NORMAL = dict(mean=[127.5] * 3, std=[51.0] * 3, to_rgb=True)
CLASSES = ['cat', 'dog', 'fox', 'owl']
KNOWN = dict(
    classes=CLASSES, mean=[127.5] * 3, std=[51.0] * 3, channel_order='rgb', activation='softmax'
)


@pytest.fixture(params=PARAMETERS, scope='module')
def network(request):
    """A student, and a fresh network of the library, and images."""
    spec, side = spec_of(request.param)
    torch.manual_seed(0)
    student = build_student(spec, NORMAL).eval()
    arguments = {key: value for key, value in spec.items() if key != 'type'}
    return student, find_network(spec['type'], 'x')(**arguments).eval(), batch(3, side)[0]


def without_size(known):
    """Metadata with lists, without the size, which follows the images."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in known.items() if k != 'size'}


def said(texts):
    """Metadata of texts as values."""
    texts = {key: text for key, text in texts.items() if key != 'format'}
    plain = 'channel_order', 'activation'
    return without_size({k: v if k in plain else json.loads(v) for k, v in texts.items()})


@pytest.mark.parametrize('network', ['networks:OwnNetwork'], indirect=True)
def test_the_librarys_own_model_loads_the_weights(network, tmp_path):
    student, plain, images = network
    path = export_model(student, tmp_path / 'student', 'library', images, CLASSES)
    assert path == tmp_path / 'student.pth'
    file = torch.load(path)
    plain.load_state_dict(file['state_dict'])
    output = plain(images)
    assert torch.equal(getattr(output, 'logits', output), student(images))
    assert without_size(file['meta']) == KNOWN
    # That of the images, whatever the library says
    assert tuple(file['meta']['size']) == tuple(images.shape[2:])
    other = export_model(student, tmp_path / 'student', 'safetensors', images, CLASSES)
    state = safetensors.torch.load_file(other)
    assert state.keys() == file['state_dict'].keys()
    assert all(torch.equal(value, file['state_dict'][key]) for key, value in state.items())
    with safetensors.safe_open(other, 'pt') as opened:
        assert said(opened.metadata()) == KNOWN


#: Those whose programs are made within seconds.
QUICK = ('networks:OwnNetwork', 'hf::resnet')


@pytest.mark.parametrize(
    'network',
    [pytest.param(each, marks=() if each in QUICK else pytest.mark.slow) for each in NETWORKS],
    indirect=True,
)
def test_programs_yield_the_same_logits(network, tmp_path):
    student, _, images = network
    path = export_model(student, tmp_path / 'student', 'torch.export', images, CLASSES)
    extra = {METADATA: ''}
    program = torch.export.load(path, extra_files=extra).module()
    some = torch.randn(5, *images.shape[1:])
    torch.testing.assert_close(program(some), student(some), rtol=1e-4, atol=1e-5)
    assert without_size(json.loads(extra[METADATA])) == KNOWN


def test_onnx_yields_the_same_logits(network, tmp_path):
    runtime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    student, _, images = network
    path = export_model(student, tmp_path / 'student', 'onnx', images, CLASSES)
    session = runtime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    for count in (1, 5):
        some = torch.randn(count, *images.shape[1:])
        [found] = session.run(['logits'], {'images': some.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), student(some), rtol=1e-4, atol=1e-5)
    assert said(session.get_modelmeta().custom_metadata_map) == KNOWN


def test_mmpretrains_students_have_programs_and_safetensors(tmp_path):
    student, images = build(classifier()).eval(), batch()[0]
    for format in ('safetensors', 'torch.export'):
        path = export_model(student, tmp_path / 'a', format, images)
    program = torch.export.load(path).module()
    torch.testing.assert_close(program(images), student(images))
    state = safetensors.torch.load_file(tmp_path / 'a.safetensors')
    assert all(torch.equal(value, state[key]) for key, value in student.state_dict().items())
    with pytest.raises(
        ValueError, match='the student is a ImageClassifier of mmpretrain and no network'
    ):
        export_model(student, tmp_path / 'b', 'library', images)
    assert not (tmp_path / 'b.pth').exists()


def test_timms_wrapper_of_mmpretrain_is_timms(tmp_path):
    timm = pytest.importorskip('timm')
    student = build(dict(type='TimmClassifier', model_name='test_resnet', num_classes=4)).eval()
    path = export_model(student, tmp_path / 'a', 'library', batch(2, 32)[0])
    timm.create_model('test_resnet', num_classes=4).load_state_dict(torch.load(path)['state_dict'])


def plain():
    return build(dict(type='PlainClassifier', network=OwnNetwork())).eval()


def test_the_model_stays_as_it_was(tmp_path):
    student = plain().train()
    before = copy.deepcopy(student.state_dict())
    for format in ('library', 'safetensors', 'torch.export'):
        export_model(student, tmp_path / 'a', format, batch(2, 16)[0])
    assert student.training
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())


class Counting(OwnNetwork):
    """A network with a loop over its images, which a program of any number of images cannot have."""

    def forward(self, images):
        return torch.stack([super(Counting, self).forward(each[None])[0] for each in images])


def test_what_cannot_be_exported_is_said(tmp_path, monkeypatch):
    student, images = plain(), batch(2, 16)[0]
    with pytest.raises(
        ValueError, match='format is .tflite.; it must be one of library, safetensors'
    ):
        export_model(student, tmp_path / 'a', 'tflite', images)
    looping = build(dict(type='PlainClassifier', network=Counting()))
    with pytest.raises(ValueError, match='format: torch.export cannot take the Counting: '):
        export_model(looping, tmp_path / 'a', 'torch.export', images)
    (tmp_path / 'file').touch()
    with pytest.raises(WriteError, match='cannot write .*file'):
        export_model(student, tmp_path / 'file/a', 'library', images)

    def missing(name):
        raise ImportError(name=name)

    monkeypatch.setattr('mmkdx.apis.export.import_module', missing)
    message = (
        r"format 'onnx' needs onnx, which is not installed: pip install onnx .* its extra 'export'"
    )
    with pytest.raises(ValueError, match=message):
        export_model(student, tmp_path / 'a', 'onnx', images)
    assert [each.name for each in tmp_path.iterdir()] == ['file']


def test_a_file_that_is_not_the_model_is_not_written(tmp_path, monkeypatch):
    student, images = plain(), batch(2, 16)[0]

    class Off:
        def module(self):
            return lambda images: student(images) + 1

    monkeypatch.setattr(torch.export, 'load', lambda *args, **kwargs: Off())
    with pytest.raises(ValueError, match=r"torch.export's logits differ from the model's by \d"):
        export_model(student, tmp_path / 'a', 'torch.export', images)
    changed = {key: value + 1 for key, value in student.model.state_dict().items()}
    monkeypatch.setattr(torch, 'load', lambda *args, **kwargs: dict(state_dict=changed))
    with pytest.raises(
        ValueError, match="tensor 'model.0.weight' does not come back from the file"
    ):
        export_model(student, tmp_path / 'a', 'library', images)
    assert not list(tmp_path.iterdir())
