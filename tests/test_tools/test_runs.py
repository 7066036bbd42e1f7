"""The tools that work on runs: training, testing, exporting, comparing, checking."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from full_disk import full_disk
from mmengine.config import Config
from mmengine.visualization import Visualizer
from tiny import build, tool

from mmkdx.apis import run_tool
from mmkdx.apis.runs import metric_values, training_parts

ROOT = Path(__file__).parents[2]
STUDENT = str(ROOT / 'configs/digits/kd_resnet18_resnet18-tiny_digits100.py')
FAST = [
    'train_cfg.max_epochs=1',
    'train_cfg.val_interval=1',
    'train_dataloader.dataset.times=1',
    'val_dataloader.dataset.indices=40',
    'test_dataloader.dataset.indices=40',
    'custom_hooks.1.num_samples=8',
]


def run_here(name, *words):
    """Runs train.py or test.py in this process: to start one takes longer than what it does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        # As from a terminal: no process of another test has told which rank this is
        for key in ('RANK', 'WORLD_SIZE'):
            patch.delenv(key, raising=False)
        patch.setenv('LOCAL_RANK', '0')  # which mmpretrain's tools set
        patch.setattr(sys, 'argv', [f'{name}.py', *map(str, words)])
        patch.setattr(Visualizer, '_instance_dict', type(Visualizer._instance_dict)())
        run_tool(name)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """One epoch of the shipped distillation, by the command line."""
    folder = tmp_path_factory.mktemp('run')
    cfg = Config.fromfile(ROOT / 'configs/digits/resnet18_digits.py')
    torch.manual_seed(0)
    torch.save(build(cfg.model.to_dict()).state_dict(), folder / 'teacher.pth')
    options = [f'model.teacher.checkpoint={folder / "teacher.pth"}', *FAST]
    run_here('train', STUDENT, '--work-dir', folder / 'kd', '--cfg-options', *options)
    return folder


def test_dist_train_uses_gloo_without_cuda(run):
    env = dict(
        os.environ,
        PATH=f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}',
        PORT='29611',
        OMP_NUM_THREADS='1',
        CUDA_VISIBLE_DEVICES='',
        PYTHONFAULTHANDLER='1',  # an abort says where
    )
    done = subprocess.run(
        [
            'bash',
            'tools/dist_train.sh',
            STUDENT,
            '2',
            '--work-dir',
            str(run / 'two'),
            '--cfg-options',
            f'model.teacher.checkpoint={run / "teacher.pth"}',
            *FAST,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=env,
    )
    assert done.returncode == 0, done.stderr[-20000:]  # torchrun's own lines come last
    output = done.stdout + done.stderr
    assert 'Distributed launcher: pytorch' in output and 'GPU number: 2' in output
    # 100 images in batches of 32 for each of two processes
    assert re.search(r'Epoch\(train\) \[1\]\[2/2\].*loss_kd', output)
    assert len(metric_values(training_parts(run / 'two'), 'accuracy/top1')) == 1


def test_test_py_repeats_the_accuracy_of_training(run):
    out = run / 'metrics.json'
    options = [f'model.teacher.checkpoint={run / "teacher.pth"}', *FAST]
    words = [STUDENT, run / 'kd/epoch_1.pth', '--work-dir', run / 'kd']
    run_here('test', *words, '--out', out, '--out-item', 'metrics', '--cfg-options', *options)
    trained = metric_values(training_parts(run / 'kd'), 'accuracy/top1')
    assert [json.loads(out.read_text())['accuracy/top1']] == pytest.approx(trained)


def test_export_gives_plain_mmpretrain_the_same_student(run, monkeypatch, capsys):
    out = run / 'plain'
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(
        'sys.argv',
        ['export_student.py', STUDENT, str(run / 'kd/epoch_1.pth'), str(out), '--name', 'student'],
    )
    tool('model_converters/export_student').main()
    assert 'student.pth' in capsys.readouterr().out
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(SystemExit, match='^cannot write .*student.pth: File too large$'):
        with full_disk(20_000):  # room for the config
            tool('model_converters/export_student').main()
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}
    assert 'mmkdx' not in (out / 'student.py').read_text()
    assert set(torch.load(out / 'student.pth')) == {'meta', 'state_dict'}

    # In a process of its own, which must not load mmkdx.
    script = (
        'import sys, torch\n'
        'from mmengine.config import Config\n'
        'from mmpretrain.registry import MODELS\n'
        'from mmengine.registry import DefaultScope\n'
        'cfg = Config.fromfile(sys.argv[1] + ".py")\n'
        'with DefaultScope.overwrite_default_scope("mmpretrain"):\n'
        '    model = MODELS.build(cfg.model).eval()\n'
        'model.load_state_dict(torch.load(sys.argv[1] + ".pth")["state_dict"])\n'
        'images = (torch.arange(3 * 32 * 32).reshape(1, 3, 32, 32) % 255).float()\n'
        'torch.save(model(images), sys.argv[2])\n'
        'assert not any(name.split(".")[0] == "mmkdx" for name in sys.modules)\n'
        'assert cfg.test_dataloader.dataset.pipeline\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', script, str(out / 'student'), str(out / 'logits.pt')],
        capture_output=True,
        text=True,
        cwd=out,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ours = build(
        {**Config.fromfile(STUDENT).model.to_dict(), 'teacher': dict(type='EMATeacher')}
    ).eval()
    state = torch.load(run / 'kd/epoch_1.pth', weights_only=False)['state_dict']
    ours.load_state_dict(state, strict=False)
    images = (torch.arange(3 * 32 * 32).reshape(1, 3, 32, 32) % 255).float()
    assert torch.equal(torch.load(out / 'logits.pt'), ours(images))


def test_export_refuses_a_checkpoint_of_another_student(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    state = build(Config.fromfile(STUDENT).model.student.to_dict()).state_dict()
    del state['head.fc.bias']
    torch.save(state, tmp_path / 'part.pth')
    monkeypatch.setattr(
        'sys.argv',
        ['export_student.py', STUDENT, str(tmp_path / 'part.pth'), str(tmp_path / 'out')],
    )
    message = r"part.pth does not fit the model: 1 tensors are missing \(as \['head.fc.bias'\]\)"
    with pytest.raises(ValueError, match=message) as error:
        tool('model_converters/export_student').main()
    assert 'teacher.strict' not in str(error.value)
    assert not (tmp_path / 'out').exists()


def test_export_keeps_data_of_mmpretrain(monkeypatch):
    monkeypatch.chdir(ROOT)
    cfg = Config.fromfile('configs/kd/kd_resnet34_resnet18_8xb32_in1k.py')
    plain = tool('model_converters/export_student').student_config(cfg)
    assert plain.default_scope == 'mmpretrain'
    assert plain.train_dataloader.dataset.type == 'ImageNet'
    assert plain.model.backbone.depth == 18 and 'terms' not in plain.model
    assert plain.optim_wrapper.optimizer.lr == 0.1


def test_export_of_a_student_with_prototypes(tmp_path, monkeypatch, capsys):
    """mmpretrain builds it where mmkdx is installed, and it knows where its prototypes come from."""
    monkeypatch.chdir(ROOT)
    config = 'configs/proto2proto/proto2proto_resnet18-tiny_resnet18-mini_parts.py'
    torch.manual_seed(0)
    student = build(Config.fromfile(config).model.student.to_dict()).eval()
    student.head.source_image.random_(0, 99)
    meta = dict(dataset_meta=dict(classes=[str(i) for i in range(9)]))
    torch.save(dict(state_dict=student.state_dict(), meta=meta), tmp_path / 'epoch_16.pth')
    checkpoint, out = str(tmp_path / 'epoch_16.pth'), tmp_path / 'out'
    monkeypatch.setattr(
        'sys.argv', ['export_student.py', config, checkpoint, str(out), '--name', 'student']
    )
    tool('model_converters/export_student').main()
    assert capsys.readouterr().out.strip().endswith('needs mmkdx')
    plain = Config.fromfile(out / 'student.py')
    assert plain.model.head.type == 'mmkdx.ProtoPNetHead'
    assert plain.model.backbone.type == 'ResNet_CIFAR'
    script = (
        'import sys, torch\n'
        'from mmpretrain import get_model\n'
        f'torch.set_num_threads({torch.get_num_threads()})\n'  # for equal rounding
        'model = get_model(sys.argv[1] + ".py", pretrained=sys.argv[1] + ".pth").eval()\n'
        'images = (torch.arange(3 * 64 * 64).reshape(1, 3, 64, 64) % 255).float()\n'
        'torch.save([model(images).detach(), model.head.source_image], sys.argv[2])\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', script, str(out / 'student'), str(out / 'result.pt')],
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    logits, source = torch.load(out / 'result.pt')
    images = (torch.arange(3 * 64 * 64).reshape(1, 3, 64, 64) % 255).float()
    assert torch.equal(logits, student(images))
    assert torch.equal(source, student.head.source_image)


def test_compare_runs(run, monkeypatch, capsys):
    compare = tool('analysis_tools/compare_runs')
    monkeypatch.setattr('sys.argv', ['compare_runs.py', str(run / 'kd'), '--names', 'KD'])
    compare.main()
    row = [cell.strip() for cell in capsys.readouterr().out.splitlines()[3].split('|')[1:-1]]
    value = metric_values(training_parts(run / 'kd'), 'accuracy/top1')[-1]
    assert row[:4] == ['KD', '44,622', f'{value:.2f}', f'{value:.2f}'] and int(row[4]) > 0

    monkeypatch.setattr('sys.argv', ['compare_runs.py', str(run / 'kd'), '--names', 'a', 'b'])
    with pytest.raises(SystemExit, match='--names has 2 names for 1 folders'):
        compare.main()
    monkeypatch.setattr('sys.argv', ['compare_runs.py', str(run / 'nowhere')])
    with pytest.raises(SystemExit, match='^.*nowhere holds no run: no .*/scalars.json has a loss$'):
        compare.main()
    # A config is a program, and this run may be somebody else's
    other = run / 'other'
    shutil.copytree(run / 'kd', other)
    for config in other.glob('*/vis_data/config.py'):
        config.write_text(f'{config.read_text()}\nopen({str(other / "evil")!r}, "w")\n')
    monkeypatch.setattr('sys.argv', ['compare_runs.py', str(other)])
    with pytest.raises(SystemExit, match='config.py is not executed, since the run may come from'):
        compare.main()
    assert not (other / 'evil').exists()


def test_a_page_of_real_runs(run, monkeypatch, capsys, tmp_path):
    page = tmp_path / 'new/page.html'
    words = [str(run / 'kd'), '--report', str(page), '--num-samples', '6', '--show-samples', '1']
    monkeypatch.setattr('sys.argv', ['compare_runs.py', *words, '--explainer', 'CAM'])
    tool('analysis_tools/compare_runs').main()
    out = ' '.join(capsys.readouterr().out.split())
    value = metric_values(training_parts(run / 'kd'), 'accuracy/top1')[-1]
    assert (
        '1 run of 1 method (1 run each) was compared on 40 test images, and their maps on 6 of these. '
        f'The accuracy of kd is {value:.1f} % (n = 40 images'
    ) in out
    assert out.endswith(f'The page is {page}.')
    text = page.read_text('utf-8')
    assert text.count('<svg class="chart"') == 2 and text.count('<article') == 1


def test_compare_runs_adds_the_times_of_all_parts(tmp_path):
    for day in (1, 3):
        folder = tmp_path / str(day)
        folder.mkdir()
        (folder / 'run.log').write_text(
            f'2026/01/01 00:00:0{day} - mmengine - INFO - a\nb\n2026/01/01 00:00:09 - mmengine - x\n'
        )
        (folder / 'empty.log').touch()  # of a disk that was full
    seconds = tool('analysis_tools/compare_runs').seconds
    assert seconds([(tmp_path / '1', []), (tmp_path / '3', [])]) == 8 + 6
    (tmp_path / '1/run.log').unlink()  # log_level='ERROR': a log without a line
    assert math.isnan(seconds([(tmp_path / '1', [])]))


@pytest.mark.parametrize(
    'config, rows',
    [
        (
            STUDENT,
            [r'kd +\| KLDivLoss +\| logits', r'student +\| ResNet_CIFAR', r'teacher 0 +\| Res'],
        ),
        ('digits/resnet18_digits.py', [r'model +\| ResNet_CIFAR +\| 2,797,610']),
        (
            'cat_kd/cat_wrn_40_2_wrn_16_2_cifar100.py',
            [
                r'cat +\| CATLoss +\| cam',
                r'teacher 0 .* NOT FOUND: checkpoints/mdistiller/wrn_40_2.pth',
            ],
        ),
    ],
)
def test_check_config_prints_what_is_compared(monkeypatch, capsys, tmp_path, config, rows):
    """From any folder: configs name those of their teachers as mmkdx::..."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('sys.argv', ['check_config.py', str(ROOT / 'configs' / config)])
    tool('misc/check_config').main()
    output = capsys.readouterr().out
    for row in rows:
        assert re.search(rf'\| {row}', output), output
    assert re.search(r'One step in [\d.]+ s: loss \d', output)
    assert 'get no gradient' not in output


@pytest.mark.parametrize(
    'options, message',
    [
        ('model.terms.kd.at=logit', "terms.kd.at: the student has no module 'logit'"),
        ('model.terms.kd.tau=-1', 'terms.kd: .*tau is -1'),
        ('model.student.head.num_classes=7', 'the student has 7 classes and the teacher 10'),
    ],
)
def test_check_config_shows_a_mistake(monkeypatch, options, message):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr('sys.argv', ['check_config.py', STUDENT, '--cfg-options', options])
    with pytest.raises(SystemExit, match=message):
        tool('misc/check_config').main()
