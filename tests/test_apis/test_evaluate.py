"""Plain modules are measured as ``ExplainHook`` measures them, number by number."""

import csv
import json
import sys
from html import unescape
from types import SimpleNamespace

import pytest
import torch
import torchvision
from full_disk import full_disk
from mmengine.dataset import pseudo_collate
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmpretrain.structures import DataSample
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from mmkdx.apis import evaluate, evaluate_explanations
from mmkdx.files import WriteError
from mmkdx.hooks import ExplainHook

METRICS = [
    dict(type='DeletionInsertion', steps=4),
    'PerturbationAUC',
    'AverageDrop',
    dict(type='ROAD', fractions=(0.5,)),
    'MapComplexity',
    'MapAgreement',
    dict(type='MaxSensitivity', samples=1),
    'ClassSimilarity',
    dict(type='FeatureSimilarityScore', mask=None),
]
COUNT = 10


def network(seed: int) -> nn.Module:
    """Small, with statistics of batch norm that let something pass."""
    torch.manual_seed(seed)
    net = torchvision.models.shufflenet_v2_x0_5(num_classes=3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        net(torch.randn(8, 3, 48, 48))
    return net.eval()


@pytest.fixture(scope='module')
def images() -> TensorDataset:
    inputs = torch.randn(COUNT, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    return TensorDataset(inputs, torch.arange(COUNT) % 3)


@pytest.fixture(scope='module')
def networks() -> dict[str, nn.Module]:
    return dict(student=network(0), teacher=network(1), base=network(2))


@pytest.fixture(scope='module')
def found(images, networks, tmp_path_factory):
    folder = tmp_path_factory.mktemp('plain') / 'new' / 'folder'
    images.classes = ['cat', 'dog', 'fox']
    networks['teacher'].train()
    result = evaluate_explanations(
        networks['student'],
        DataLoader(images, batch_size=5, shuffle=True),
        networks['teacher'],
        networks['base'],
        metrics=METRICS,
        out_dir=folder,
        num_samples=None,
        show_samples=2,
        context_size=6,
        unicam=dict(layers=['stage3', 'conv5']),
    )
    result.folder = folder
    result.modes = {name: net.training for name, net in networks.items()}
    result.trainable = [each.requires_grad for n in networks.values() for each in n.parameters()]
    return result


class Packed(Dataset):
    """The same images as mmpretrain's data sets yield them."""

    def __init__(self, images: TensorDataset) -> None:
        self.images, self.classes = images, images.classes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict:
        image, label = self.images[i]
        sample = DataSample(metainfo=dict(sample_idx=i)).set_gt_label(label)
        return dict(inputs=image, data_samples=sample)


class Wrapped(BaseModel):
    """A plain module as a model that a Runner takes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(data_preprocessor=dict(type='mmpretrain.ClsDataPreprocessor'))
        self.model = model

    def forward(self, inputs, data_samples=None, mode='tensor'):
        logits = self.model(inputs)
        if mode == 'tensor':
            return logits
        return [each.set_pred_score(z.softmax(0)) for each, z in zip(data_samples, logits)]


def test_it_equals_the_hook_number_by_number(found, images, networks, tmp_path):
    hook = ExplainHook(
        metrics=[dict(type=each) if isinstance(each, str) else each for each in METRICS],
        num_samples=None,
        show_samples=2,
        teacher=dict(model=networks['teacher'], normalize='same'),
        base=dict(model=networks['base'], normalize='same'),
        context_size=6,
        # In the base model, which no Runner wraps, layers have names of their own
        unicam=dict(layers=[(f'model.{each}', each, each) for each in ('stage3', 'conv5')]),
    )
    runner = Runner(
        Wrapped(networks['student']),
        work_dir=str(tmp_path),
        default_scope='mmkdx',
        test_dataloader=DataLoader(Packed(images), batch_size=5, collate_fn=pseudo_collate),
        test_cfg=dict(),
        test_evaluator=dict(type='CalibrationError'),
        custom_hooks=[hook],
        log_level='ERROR',
    )
    runner.test()
    (path,) = tmp_path.glob('*/explain/test.json')
    expected = json.loads(path.read_text())['scores']
    assert set(expected) == set(found.scores) and len(expected) > 60
    ours = json.loads((found.folder / 'test.json').read_text())['scores']
    assert ours == expected
    values = path.with_name('test.csv').read_text().splitlines()
    assert [line.split(',', 1)[1] for line in values] == (
        (found.folder / 'test.csv').read_text().splitlines()
    )


def test_files_and_table(found):
    files = {path.name for path in found.folder.iterdir()}
    assert files == {'test.csv', 'test.json', 'test.txt', 'report.html', 'verdict.txt'}
    verdict = ' '.join((found.folder / 'verdict.txt').read_text().split())
    assert verdict.startswith('The student predicts the same class as its teacher on ')
    page = unescape((found.folder / 'report.html').read_text())
    assert f'<p class="answer">{verdict}</p>' in page
    table = (found.folder / 'test.txt').read_text(encoding='utf-8')
    assert table == f'{found}\n' and '| deletion ' in table
    with (found.folder / 'test.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * COUNT
    assert float(rows[0]['deletion']) == found.rows[0]['deletion']
    page = (found.folder / 'report.html').read_text()
    assert 'What was distilled' in page and 'Class similarity' in page
    item = found.gallery[0]
    assert item.label in [f'{name} ({i})' for i, name in enumerate(('cat', 'dog', 'fox'))]
    assert f'<h3>Image {item.index}: {item.label}</h3>' in page
    named = [(row['label'], row['label_class']) for row in rows]
    assert set(named) == {('0', 'cat'), ('1', 'dog'), ('2', 'fox')}
    assert '10 of 10 (seed 0)' in page


def test_models_come_out_as_they_were(found):
    assert found.modes == dict(student=False, teacher=True, base=False)
    assert all(found.trainable)


def test_a_second_call_replaces_the_files(images, networks, tmp_path, monkeypatch):
    data = DataLoader(images, batch_size=4)
    for metrics in (['MapComplexity'], ['AverageDrop']):
        found = evaluate_explanations(
            networks['student'], data, metrics=metrics, out_dir=tmp_path, num_samples=6
        )
    lines = (tmp_path / 'test.csv').read_text().splitlines()
    assert len(lines) == 7 and 'average_drop' in lines[0] and 'gini' not in lines[0]
    assert len((tmp_path / 'test.json').read_text().splitlines()) == 1
    assert '| ShuffleNetV2 ' in str(found), "a plain model's column has its name"
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(evaluate, 'try_files', lambda *_: None)
    with pytest.raises(WriteError, match='cannot write .*/test.csv: File too large'), full_disk(50):
        evaluate_explanations(networks['student'], data, out_dir=tmp_path, num_samples=2)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}
    sample = torch.tensor(list(found.rows))
    assert len(sample) == 6 and set(sample.tolist()) != set(range(6)), 'drawn by the seed'


def test_what_cannot_be_measured(images, networks, tmp_path):
    net, data = networks['student'], DataLoader(images, batch_size=4)
    file = tmp_path / 'file'
    file.write_text('')
    for arguments, message in (
        (dict(data=images), 'data must be a DataLoader'),
        (dict(data=data, num_samples=0), 'evaluate_explanations.num_samples is 0'),
        (
            dict(data=data, metrics=['MapAgreement']),
            'MapAgreement compares a student with its teacher',
        ),
        (dict(data=data, metrics=['Accuracy']), 'Accuracy is no metric of explanations'),
        (dict(data=data, out_dir=file / 'x'), 'out_dir is .*file/x.; nothing can be written there'),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_explanations(net, **arguments)


def test_a_student_by_name(images, monkeypatch):
    """It is measured as the module that the name stands for."""
    monkeypatch.setitem(sys.modules, 'my_networks', SimpleNamespace(build=lambda: network(0)))
    metrics = [dict(type='DeletionInsertion', steps=4)]
    values = [
        evaluate_explanations(student, DataLoader(images, 5), metrics=metrics, num_samples=4).scores
        for student in ('my_networks:build', network(0))
    ]
    assert values[0] == values[1]
    with pytest.raises(ValueError, match='student: .*torchvision has no such classifier'):
        evaluate_explanations('torchvision::resnet', DataLoader(images, 5))
