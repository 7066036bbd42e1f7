"""The tool that compares explainers: configs, names, folders of images, options, and what it refuses."""

import csv
import sys

import cv2
import numpy as np
import pytest
import torch
from full_disk import full_disk
from mmengine.config import Config
from tiny import build, classifier, tool

from mmkdx.apis.compare import compare_explainers_of, with_options

PREPROCESSOR = dict(num_classes=10, mean=[78.0] * 3, std=[84.0] * 3)
NETWORK = 'torchvision.models:shufflenet_v2_x0_5'


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    """A distillation of digits, its checkpoint, and a folder of two images."""
    home = tmp_path_factory.mktemp('home')
    student, teacher = (
        dict(classifier(width, classes=10), data_preprocessor=PREPROCESSOR) for width in (4, 6)
    )
    torch.manual_seed(0)
    torch.save(build(teacher).state_dict(), home / 'teacher.pth')
    torch.save(build(student).state_dict(), home / 'student.pth')
    data = dict(type='Digits', split='test', indices=30, pipeline=[dict(type='PackInputs')])
    Config(
        dict(
            default_scope='mmkdx',
            custom_imports=dict(imports=['tiny']),
            model=dict(
                type='Distiller',
                student=student,
                input_size=32,
                teacher=dict(model=teacher, checkpoint=str(home / 'teacher.pth')),
                terms=dict(kd=dict(type='KLDivLoss', at='logits')),
            ),
            test_dataloader=dict(batch_size=4, num_workers=0, dataset=data),
        )
    ).dump(home / 'distill.py')
    (home / 'images').mkdir()
    rng = np.random.default_rng(0)
    for name in 'ab':
        image = rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)
        cv2.imwrite(str(home / 'images' / f'{name}.png'), image)
    return home


@pytest.fixture
def run(monkeypatch, home):
    """Runs the tool."""

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['compare_explainers.py', *map(str, arguments)])
        module = tool('analysis_tools/compare_explainers')
        module.main()

    return run


def test_a_distillation(run, home, tmp_path, capsys):
    arguments = home / 'distill.py', home / 'student.pth', '--num-samples', 5, '--show-samples', 1
    metrics = '--metrics', 'SingleDeletion', 'FFidelity', '--options', 'FFidelity.draws=1'
    explainers = '--explainers', 'GradCAM', 'EigenCAM', 'LeGrad', 'InputGradient'
    # The student needs no teacher
    gone = '--cfg-options', 'model.teacher.checkpoint=missing.pth'
    run(*arguments, *explainers, *metrics, *gone, '--out-dir', tmp_path / 'a')
    text = capsys.readouterr().out
    assert '| explainer ' in text and 'RandomMap 32x32' in text and 'LeGrad was left out: ' in text
    assert "Kendall's W of all scores is" in text and f'{tmp_path}/a/report.html' in text
    assert '<title>Explainers of distill</title>' in (tmp_path / 'a' / 'report.html').read_text()
    run(*arguments, *explainers, *metrics, '--model', 'teacher', '--out-dir', tmp_path / 'b')
    values = []
    for name in 'ab':
        with (tmp_path / name / 'explainers.csv').open(newline='') as file:
            values.append([row['value'] for row in csv.DictReader(file)])
    assert len(values[0]) == len(values[1]) == 5 * 5 and values[0] != values[1]


def test_a_network_by_name_on_a_folder(run, home, tmp_path, capsys):
    run(
        *(NETWORK, '--images', home / 'images', '--explainers', 'GradCAM', 'EigenCAM'),
        *(
            '--metrics',
            'SingleDeletion',
            '--options',
            'GradCAM.layer=stage4',
            '--out-dir',
            tmp_path,
        ),
    )
    assert 'GradCAM ' in capsys.readouterr().out
    page = (tmp_path / 'report.html').read_text()
    assert '2 of 2 (seed 0)' in page and page.count('data:image/webp') == 2


def test_a_full_disk_leaves_the_earlier_files(run, home, tmp_path, monkeypatch):
    from mmkdx.evaluation import comparison_report

    arguments = home / 'distill.py', home / 'student.pth', '--num-samples', 2, '--out-dir', tmp_path
    few = '--explainers', 'GradCAM', '--metrics', 'SingleDeletion'
    run(*arguments, *few)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(
        comparison_report, 'write_file', full_disk(200)(comparison_report.write_file)
    )
    with pytest.raises(SystemExit, match='^cannot write .*explainers.csv: File too large$'):
        run(*arguments, *few, '--seed', 1)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--num-samples', 0], '^compare_explainers.num_samples is 0; it must be'),
        (['--explainers', 'Cam'], "^compare_explainers.explainers: there is no explainer 'Cam'"),
        (['--images', 'missing.png'], '^cannot read image missing.png: there is no such file$'),
        (['--options', 'ROAD.noise=1'], '^--options ROAD.noise: write EXPLAINER.OPTION or METRIC'),
        (['--options', 'layer=1'], '^--options layer: write EXPLAINER.OPTION or METRIC.OPTION, wi'),
        (['--options', 'GradCAM.layr=a'], '^compare_explainers.explainers: .*layr'),
    ],
)
def test_what_the_tool_refuses(run, home, arguments, message):
    with pytest.raises(SystemExit, match=message):
        run(home / 'distill.py', home / 'student.pth', *arguments)


def test_a_name_needs_images(tmp_path):
    with pytest.raises(ValueError, match=f'^{NETWORK} names no images; give some by --images FILE'):
        compare_explainers_of(NETWORK)
    dataset = dict(type='CustomDataset', pipeline=[dict(type='PackInputs')])
    config = Config(dict(model=classifier(4), test_dataloader=dict(dataset=dataset)))
    config.dump(tmp_path / 'plain.py')
    with pytest.raises(ValueError, match=f'^{tmp_path}/plain.py names no images; give some by'):
        compare_explainers_of(Config.fromfile(tmp_path / 'plain.py'), False)


def test_options_go_to_all_of_their_type():
    explainers, metrics = with_options(None, ['ROAD'], {'GradCAM.layer': 'a', 'ROAD.noise': 0})
    assert dict(type='GradCAM', layer='a') in explainers and dict(type='CAM') in explainers
    assert metrics == [dict(type='ROAD', noise=0)]
    assert with_options(None, None, {}) == (None, None)
    assert with_options(['CAM'], None, {'CAM.layer': 'x'}) == ([dict(type='CAM', layer='x')], None)
