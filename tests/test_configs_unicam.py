"""The configs of UniCAM's two experiments hold what the paper and its code have, and say the rest.

Sources: the paper's tables (Adhane et al., WACV 2025) and the training scripts of its code of 2024.
"""

from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from mmengine.config import Config
from tiny import build

from mmkdx.apis.dry_run import build_from_config
from mmkdx.distillation.models import read_config

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / 'configs'
PAGE = (CONFIGS / 'unicam/README.md').read_text()

# data: classes, batch, learning rate, momentum, epochs of teachers and of students
DATA = dict(
    petimages=(2, 32, 1e-3, 0.9, 20, 25),
    cifar10=(10, 16, 1e-3, 0.9, 20, 25),
    plantvillage=(38, 16, 1e-2, 0.0, 20, 20),
)
# networks that are trained alone
ALONE = [
    *(('resnet50', data) for data in DATA),
    ('resnet101', 'petimages'),
    ('resnet18', 'petimages'),
]
STAGES = (1, 2, 3, 4)
BLOCKS = (2, 3, 5, 2)  # the last block of each stage of a ResNet-50
KD = (0.7, dict(kd=dict(type='KLDivLoss', at='logits', tau=20, weight=0.3)))
METHODS = dict(
    kd=KD,
    at=(1, {f'at{i}': dict(type='ATLoss', at=f'backbone.layer{i}', weight=1000) for i in STAGES}),
    # 0.0001 times the sum over a map's elements, halved with each earlier stage
    ofd=(
        1,
        {
            f'ofd{i}': dict(
                type='OFDLoss',
                at=f'backbone.layer{i}.{block}.relu@2:in',
                weight=pytest.approx(10.0352),
            )
            for i, block in zip(STAGES, BLOCKS)
        },
    ),
)
# student: data, its network, method, teacher, base
STUDENTS = {
    **{
        f'{method}_resnet50_resnet50_{data}': (data, 'resnet50', method, *[f'resnet50_{data}'] * 2)
        for data in DATA
        for method in METHODS
    },
    'kd_resnet101_resnet18_petimages': (
        *('petimages', 'resnet18', 'kd', 'resnet101_petimages', 'resnet18_petimages'),
    ),
    'kd_resnet101_resnet50_petimages': (
        *('petimages', 'resnet50', 'kd', 'resnet101_petimages', 'resnet50_petimages'),
    ),
    'kd_resnet101-resnet50_resnet18_petimages': (
        *('petimages', 'resnet18', 'kd', 'kd_resnet101_resnet50_petimages', 'resnet18_petimages'),
    ),
}
DIGITS = [f'{method}_resnet18_resnet18-tiny_digits100-unicam' for method in ('kd', 'at', 'cat')]


@cache
def read(path):
    """A config, which is not to be changed."""
    return read_config(str(CONFIGS / path), path)


def spec(name, runs='work_dirs'):
    """What is written for a trained model: where it is, after its last epoch."""
    folder = 'digits' if 'digits' in name else 'unicam'
    epochs = read(f'{folder}/{name}.py').train_cfg.max_epochs
    return dict(model=f'mmkdx::{folder}/{name}.py', checkpoint=f'{runs}/{name}/epoch_{epochs}.pth')


def check_run(cfg, data, students):
    """Data and schedule."""
    classes, batch_size, rate, momentum, *epochs = DATA[data]
    assert cfg.optim_wrapper.optimizer.to_dict() == dict(type='SGD', lr=rate, momentum=momentum)
    assert 'param_scheduler' not in cfg
    assert cfg.train_cfg.to_dict() == dict(
        by_epoch=True, max_epochs=epochs[students], val_interval=1
    )
    for part in ('train', 'val', 'test'):
        assert cfg[f'{part}_dataloader'].batch_size == batch_size
    assert cfg.data_preprocessor.num_classes == classes
    # of ImageNet, with CIFAR's images in RGB already
    assert cfg.data_preprocessor.mean == [123.675, 116.28, 103.53]
    assert cfg.data_preprocessor.std == [58.395, 57.12, 57.375]
    assert cfg.data_preprocessor.to_rgb == (data != 'cifar10')


def check_hook(hook, base):
    assert (hook.type, hook.base) == ('ExplainHook', base)
    assert [metric.type for metric in hook.metrics] == ['FeatureSimilarityScore', 'RelevanceScore']


def check_folder(cfg, name, data):
    assert cfg.get('work_dir') == (f'work_dirs/{name}' if data == 'petimages' else None)


def test_every_config_is_tested_here():
    names = {path.stem for path in CONFIGS.glob('unicam/*.py') if 'parts' not in path.stem}
    assert names == {'_'.join(pair) for pair in ALONE} | set(STUDENTS) | set(DIGITS)
    metafile = yaml.safe_load((CONFIGS / 'unicam/metafile.yml').read_text())
    assert names <= {model['Name'] for model in metafile['Models']}


@pytest.mark.parametrize('network, data', ALONE)
def test_teachers_and_bases(network, data):
    name = f'{network}_{data}'
    cfg = read(f'unicam/{name}.py')
    check_run(cfg, data, students=False)
    check_folder(cfg, name, data)
    assert 'custom_hooks' not in cfg
    model = cfg.model
    assert (model.type, model.backbone.depth) == ('ImageClassifier', int(network[6:]))
    assert model.backbone.init_cfg == dict(type='Pretrained', checkpoint=f'torchvision://{network}')
    assert model.head.num_classes == DATA[data][0]


@pytest.mark.parametrize('name', STUDENTS)
def test_students(name):
    data, network, method, teacher, base = STUDENTS[name]
    cfg = read(f'unicam/{name}.py')
    check_run(cfg, data, students=True)
    check_folder(cfg, name, data)
    assert (cfg.model.type, cfg.model.teacher) == ('Distiller', spec(teacher))
    assert cfg.model.student == read(f'unicam/{network}_{data}.py').model
    assert (cfg.model.student_weight, cfg.model.terms.to_dict()) == METHODS[method]
    (hook,) = cfg.custom_hooks
    check_hook(hook, spec(base))
    # the base is what the student would be without a teacher
    alone = read(f'unicam/{base}.py')
    assert alone.model == cfg.model.student
    for key in ('train_dataloader', 'test_dataloader', 'data_preprocessor', 'optim_wrapper'):
        assert alone[key] == cfg[key]


@pytest.mark.parametrize('name', DIGITS)
def test_digits(name):
    cfg = read(f'unicam/{name}.py')
    seeds, hook = cfg.custom_hooks
    assert seeds == dict(type='EpochSeedHook')
    check_hook(hook, spec('resnet18-tiny_digits100'))
    # everything else is as it was
    whole = read(f'digits/{name.removesuffix("-unicam")}.py')
    added = {'custom_hooks', 'what_was_distilled', 'base'}
    assert {key: value for key, value in cfg.items() if key not in added} == {
        key: value for key, value in whole.items() if key != 'custom_hooks'
    }
    assert cfg.model.teacher == spec('resnet18_digits')


@pytest.mark.parametrize('name', ['resnet50_petimages', *(n for n in STUDENTS if 'petimages' in n)])
def test_a_fold_has_its_own_teachers_and_bases(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv('FOLD', '3')
    cfg = Config.fromfile(f'configs/unicam/{name}.py')
    runs = 'work_dirs/fold3'
    assert cfg.work_dir == f'{runs}/{name}'
    folds = [cfg[f'{part}_dataloader'].dataset for part in ('train', 'val', 'test')]
    assert [(data.fold, data.seed, data.num_splits) for data in folds] == [(3, 42, 5)] * 3
    assert [data.get('test_mode', False) for data in folds] == [False, True, True]
    if name in STUDENTS:
        *_, teacher, base = STUDENTS[name]
        assert cfg.model.teacher == spec(teacher, runs)
        assert cfg.custom_hooks[0].base == spec(base, runs)


def test_how_images_of_cifar_are_enlarged():
    cfg = read('unicam/resnet50_cifar10.py')
    steps = [
        [(step.type, step.get('scale', step.get('crop_size'))) for step in data.dataset.pipeline]
        for data in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader)
    ]
    assert steps[0][:2] == [('Resize', (256, 256)), ('CenterCrop', 224)]
    assert steps[1] == steps[2] == [('Resize', (224, 224)), ('PackInputs', None)]
    assert cfg.train_dataloader.dataset.type == 'CIFAR10'


@pytest.mark.parametrize(
    'data, shown', [('PetImages', '0.15'), ('CIFAR-10', '0.006'), ('PlantVillage', '0.000416')]
)
def test_the_weight_that_the_code_stands_for(data, shown):
    """0.3 T² MSE of probabilities pulls as KLDivLoss does by the weight that the page names."""
    assert f'to {shown} for {data}' in ' '.join(PAGE.split())
    classes = {'PetImages': 2, 'CIFAR-10': 10, 'PlantVillage': 38}[data]
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4096, classes, generator=generator, dtype=torch.float64)
    student.requires_grad_()
    mse = F.mse_loss(*(F.softmax(logits / 20, dim=1) for logits in (student, teacher)))
    term = build(dict(type='KLDivLoss', tau=20))(student, teacher)
    pulls = [
        torch.autograd.grad(loss, student)[0] for loss in (0.3 * 20**2 * mse, float(shown) * term)
    ]
    assert F.cosine_similarity(*(pull.flatten() for pull in pulls), dim=0) > 0.99
    assert pulls[1].norm() / pulls[0].norm() == pytest.approx(1, abs=0.02)


def table(*columns):
    """The rows of the page's table with these first columns, without its header."""
    lines = PAGE.splitlines()
    start = lines.index('| ' + ' | '.join(columns) + ' |')
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith('|'):
            return rows
        rows.append([cell.strip() for cell in line.split('|')[1:-1]])
    return rows


def test_the_papers_first_table_and_its_exceptions():
    rows = table('data', 'kind', 'layer', 'LS, base', 'LS, student', 'residual', 'distilled')
    assert len(rows) == 2 * 3 * 4
    numbers = {tuple(row[:3]): list(map(float, row[3:])) for row in rows}
    assert len(numbers) == len(rows)
    # the base is one model in all three kinds
    for data, kind, layer in numbers:
        assert numbers[data, kind, layer][0] == numbers[data, 'feature', layer][0]
    # sums of the printed columns
    totals = [round(sum(row[i] for row in numbers.values()), 4) for i in range(4)]
    assert totals == [0.3846, 1.015, 0.1062, 0.2532]
    below = [key for key, (base, student, _, _) in numbers.items() if student < base]
    assert below == [('CIFAR-10', 'attention', '3')]
    below = [key for key, (_, _, residual, distilled) in numbers.items() if distilled < residual]
    assert below == [
        ('PetImages', 'response', '1'),
        ('PetImages', 'attention', '1'),
        ('CIFAR-10', 'attention', '3'),
    ]
    text = ' '.join(PAGE.split())
    assert 'has four exceptions. At layer 3 of CIFAR-10 with attention, LS of the student' in text
    assert 'three rows: layer 1 of PetImages with response, layer 1 of PetImages with att' in text


def test_the_papers_second_table():
    way = ('directly', 'by way of the assistant')
    rows = table(
        'layer', *(f'{kind}, {name}' for kind in ('LS', 'unique') for name in ('base', *way))
    )
    assert [row[0] for row in rows] == ['1', '2', '3', '4']
    for row in rows:
        for base, directly, assisted in (row[1:4], row[4:]):
            assert float(directly) < float(base) < float(assisted)


def test_the_page_says_whose_figures_these_are():
    assert PAGE.count("**The paper's RS, not ours**") == 2
    text = ' '.join(PAGE.split())
    assert 'has been trained by us' in text
    assert 'in which batches the published scores were taken' in text


@pytest.mark.parametrize('network', ['resnet18', 'resnet101'])
def test_metafile_has_the_networks_sizes(network):
    model = build_from_config(read(f'unicam/{network}_petimages.py'))
    count = sum(parameter.numel() for parameter in model.parameters())
    metafile = yaml.safe_load((CONFIGS / 'unicam/metafile.yml').read_text())
    listed = {model['Name']: model['Metadata'] for model in metafile['Models']}
    for name, entry in listed.items():
        if entry.get('Student', name) == f'{network}_petimages':
            assert entry['Parameters'] == count
    for name, (_, _, _, teacher, base) in STUDENTS.items():
        assert (listed[name]['Teacher'], listed[name]['Student']) == (teacher, base)
