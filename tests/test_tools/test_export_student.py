"""A timm student from a folder's data set to timm's own model: training, testing, export."""

import json
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from mmengine.config import Config
from mmengine.visualization import Visualizer
from mmpretrain import get_model
from tiny import tool

from mmkdx.apis import run_tool
from mmkdx.apis.runs import metric_values, training_parts

timm = pytest.importorskip('timm')

ROOT = Path(__file__).parents[2]
CONFIG = f"""
_base_ = ['{ROOT}/configs/_base_/datasets/digits_100.py', '{ROOT}/configs/_base_/digits_runtime.py']
model = dict(
    type='Distiller',
    student=dict(
        type='timm::test_resnet',
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1),
        train_cfg=dict(augments=dict(type='Mixup', alpha=0.8)),
    ),
    teacher=dict(
        model=dict(type='timm::test_resnet', num_classes=20),
        checkpoint='FOLDER/teacher.pth',
        classes={{str(i): [i, 10 + i] for i in range(10)}},
    ),
    input_size=32,
    terms=dict(
        kd=dict(type='KLDivLoss', at='logits'),
        fit=dict(type='MSELoss', at=('model.layer1', 'model.layer2')),
    ),
)
train_dataloader = dict(dataset=dict(times=1))
val_dataloader = dict(dataset=dict(indices=40))
test_dataloader = dict(dataset=dict(indices=40))
train_cfg = dict(by_epoch=True, max_epochs=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01))
custom_hooks = [
    dict(type='EMAHook'),
    dict(
        type='ExplainHook', num_samples=4, show_samples=1, metrics=[dict(type='MapAgreement')]
    ),
]
"""


def run_here(name, *words):
    """Runs train.py or test.py in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        for key in ('RANK', 'WORLD_SIZE'):
            patch.delenv(key, raising=False)
        patch.setenv('LOCAL_RANK', '0')
        patch.setattr(sys, 'argv', [f'{name}.py', *map(str, words)])
        patch.setattr(Visualizer, '_instance_dict', type(Visualizer._instance_dict)())
        run_tool(name)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """One epoch of a timm student with a timm teacher of twenty classes."""
    folder = tmp_path_factory.mktemp('run')
    torch.manual_seed(0)
    torch.save(
        timm.create_model('test_resnet', num_classes=20).state_dict(), folder / 'teacher.pth'
    )
    (folder / 'timm_digits.py').write_text(CONFIG.replace('FOLDER', str(folder)))
    run_here('train', folder / 'timm_digits.py', '--work-dir', folder / 'work')
    return folder


def logits(state):
    model = timm.create_model('test_resnet', num_classes=10).eval()
    model.load_state_dict(state)
    return model(torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32))


def export(run, monkeypatch, capsys, *words):
    checkpoint = run / 'work/epoch_1.pth'
    arguments = ['export_student.py', run / 'timm_digits.py', checkpoint, run / 'out', *words]
    monkeypatch.setattr(sys, 'argv', list(map(str, arguments)))
    tool('model_converters/export_student').main()
    return capsys.readouterr().out


def test_the_run_was_tested_and_explained(run):
    accuracy = metric_values(training_parts(run / 'work'), 'accuracy/top1')
    assert len(accuracy) == 1 and 0 <= accuracy[0] <= 100
    [scores] = (run / 'work').rglob('scalars.json')
    assert 'prediction_agreement' in scores.read_text()


def test_timm_loads_the_exported_weights(run, monkeypatch, capsys):
    saved = torch.load(run / 'work/epoch_1.pth', weights_only=False)['state_dict']
    own = {key: value for key, value in saved.items() if not key.startswith('distill.')}
    expected = logits(own)  # the checkpoint itself, without the adapter
    assert len(own) < len(saved)
    assert 'student.pth' in export(
        run, monkeypatch, capsys, '--format', 'library', '--name', 'student'
    )
    file = torch.load(run / 'out/student.pth')
    assert torch.equal(logits(file['state_dict']), expected)
    assert file['meta']['classes'] == [str(i) for i in range(10)]
    assert 'timm_digits.safetensors' in export(run, monkeypatch, capsys, '--format', 'safetensors')
    tensors = safetensors.torch.load_file(run / 'out/timm_digits.safetensors')
    assert torch.equal(logits(tensors), expected)
    with safetensors.safe_open(run / 'out/timm_digits.safetensors', 'pt') as opened:
        known = opened.metadata()
    preprocessor = Config.fromfile(run / 'timm_digits.py').data_preprocessor
    assert json.loads(known['mean']) == pytest.approx(preprocessor.mean)


def test_mmpretrain_loads_the_student_where_mmkdx_is(run, monkeypatch, capsys):
    assert export(run, monkeypatch, capsys, '--name', 'plain').strip().endswith('needs mmkdx')
    # In this process, which has mmkdx
    model = get_model(str(run / 'out/plain.py'), pretrained=str(run / 'out/plain.pth')).eval()
    expected = logits(torch.load(run / 'out/plain.pth')['state_dict'])
    assert torch.equal(model(torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)), expected)


def test_onnx_is_a_sentence_where_its_packages_are_missing(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'onnxscript', None)  # which cannot be imported then
    with pytest.raises(ValueError, match=r"not installed: pip install onnx .* extra 'export'"):
        export(run, monkeypatch, capsys, '--format', 'onnx')


def test_weights_are_not_downloaded_to_be_overwritten():
    model = dict(
        type='Distiller', student=dict(type='timm::test_resnet', pretrained=True), terms={}
    )
    plain = tool('model_converters/export_student').student_config(Config(dict(model=model)))
    assert plain.model.type == 'mmkdx.PlainClassifier' and 'pretrained' not in plain.model
