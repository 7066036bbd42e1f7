"""Models by run, checkpoint, name and CSV go through the same audit."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from full_disk import full_disk
from mmengine.config import Config
from tiny import build, classifier, tool

from mmkdx.apis import audit
from mmkdx.apis.audit import (
    evaluate_models,
    find_model,
    load_test_images,
    run_accuracies,
    write_audit,
)
from mmkdx.evaluation.audit_records import Records
from mmkdx.evaluation.audit_table import flipped_images
from mmkdx.evaluation.verdict import study
from mmkdx.files import WriteError

COUNT = 27
PREPROCESSOR = dict(num_classes=9, mean=[105.0] * 3, std=[41.0] * 3, to_rgb=True)


def config(width: int, **dataset) -> Config:
    images = dict(type='Parts', split='test', num_samples=COUNT, image_size=32, **dataset)
    return Config(
        dict(
            default_scope='mmkdx',
            model=classifier(width, 9),
            data_preprocessor=PREPROCESSOR,
            test_dataloader=dict(
                batch_size=10,
                num_workers=0,
                dataset=dict(pipeline=[dict(type='PackInputs')], **images),
                sampler=dict(type='DefaultSampler', shuffle=True),
            ),
        )
    )


def write_run(folder: Path, seed: int, width: int = 4, classes=None) -> Path:
    """A finished run, without the training."""
    folder.mkdir(parents=True)
    cfg = config(width)
    cfg.dump(folder / 'config.py')
    torch.manual_seed(seed)
    model = build(cfg.model.to_dict())
    meta = dict(dataset_meta=dict(classes=classes)) if classes else {}
    state = dict(state_dict=model.state_dict(), optimizer={}, meta=meta)
    torch.save(state, folder / 'epoch_1.pth')
    return folder


@pytest.fixture(scope='module')
def runs(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp('runs')
    sizes = dict(student=(0, 4), teacher=(1, 8), base=(2, 4))
    return {name: str(write_run(folder / name, *size)) for name, size in sizes.items()}


@pytest.fixture(scope='module')
def found(runs):
    changes = {'test_dataloader.dataset.mark': 'random'}
    return evaluate_models(**runs, groups=True, changes=changes, show_samples=2)


def test_runs_go_over_all_test_images(found):
    assert sorted(found.rows) == list(range(COUNT))
    assert sum(not item.reason for item in found.gallery) <= 2 < len(found.gallery)
    records = Records.from_evaluation(found)
    assert set(records.models) == {'student', 'teacher', 'base'}
    assert records.label.tolist() == [i % 9 for i in range(COUNT)]
    assert set(records.group) == {0, 1} and records.classes[0].startswith('spiked')
    student = records.models['student']
    assert (student.kl > 0).all() and (student.confidence >= student.label_probability).all()
    assert records.models['teacher'].kl is None and student.agreement is not None


def test_pictures_show_the_clearest_flips(runs):
    found = evaluate_models(runs['student'], runs['teacher'], show_samples=9)
    flipped = flipped_images(Records.from_evaluation(found))
    reasons = {item.index: item.reason for item in found.gallery}
    for kind, reason in (('negative', 'lost'), ('positive', 'won')):
        clearest = [index for index in flipped[kind] if reasons.get(index) != 'differ'][:3]
        assert {index for index, each in reasons.items() if each == reason} == set(clearest)
    assert flipped['negative'] and len(reasons) == len(found.gallery)
    for item in found.gallery:
        assert item.predictions['student'].endswith(f'({found.rows[item.index]["prediction"]})')


def test_kl_and_probabilities_are_those_of_the_logits(found, runs):
    loader = load_test_images(runs['student'], changes={'test_dataloader.dataset.mark': 'random'})
    logits = {}
    for name, width in (('student', 4), ('teacher', 8)):
        model = build({**classifier(width, 9), 'data_preprocessor': PREPROCESSOR}).eval()
        state = torch.load(Path(runs[name]) / 'epoch_1.pth', weights_only=False)
        model.load_state_dict(state['state_dict'])
        with torch.no_grad():
            parts = [model(model.data_preprocessor(batch)['inputs']) for batch in loader]
        logits[name] = torch.cat(parts).double()
    student, teacher = (each.log_softmax(1) for each in logits.values())
    kl = (teacher.exp() * (teacher - student)).sum(1)
    label = torch.arange(COUNT) % 9
    for i in range(COUNT):
        row = found.rows[i]
        assert row['kl'] == pytest.approx(kl[i].item(), abs=1e-5)
        assert row['label_probability'] == pytest.approx(
            student[i, label[i]].exp().item(), abs=1e-5
        )
        assert row['prediction'] == int(student[i].argmax())


def test_the_explained_models_predict_as_those_that_are_not(found, runs):
    quick = evaluate_models(
        runs['student'], runs['teacher'], explainer=None, num_samples=9, groups=False
    )
    assert len(quick.rows) == 9 and not quick.gallery and quick.facts['explainers'] == {}
    assert not any('pearson' in row for row in quick.rows.values())
    assert 'group' not in quick.rows[min(quick.rows)]


def test_a_config_with_a_checkpoint_is_as_good_as_a_run(runs, tmp_path):
    config(4).dump(tmp_path / 'student.py')
    name = f'{tmp_path}/student.py:{runs["student"]}/epoch_1.pth'
    one, two = (
        evaluate_models(each, runs['teacher'], explainer=None) for each in (name, runs['student'])
    )
    assert one.rows == two.rows


def test_networks_of_libraries(runs, tmp_path):
    timm = pytest.importorskip('timm')
    network = timm.create_model('test_resnet', num_classes=9)
    torch.save(network.state_dict(), tmp_path / 'timm.pth')
    name = f'timm::test_resnet:{tmp_path}/timm.pth'
    both = evaluate_models(name, runs['teacher'], data=runs['teacher'], explainer=None)
    other = evaluate_models(runs['student'], name, explainer=None)
    student = Records.from_evaluation(both).models['student'].prediction
    assert student.tolist() == Records.from_evaluation(other).models['teacher'].prediction.tolist()


def test_several_runs_have_accuracies(runs):
    records = Records.from_evaluation(evaluate_models(runs['base'], explainer=None))
    accuracy = (records.models['student'].prediction == records.label).mean()
    assert run_accuracies([runs['student'], runs['base']], runs['student'])[1] == accuracy


# Names


def test_what_names_a_model(runs, monkeypatch):
    found = find_model(runs['student'], 'STUDENT')
    assert found.checkpoint.endswith('epoch_1.pth') and found.data == runs['student']
    found = find_model('timm::resnet18', 'STUDENT')
    assert found.model == dict(type='timm::resnet18', pretrained=True) and found.data is None
    assert find_model('networks:OwnNetwork', 'STUDENT').model == 'networks:OwnNetwork'
    found = find_model('a/b.py:c/d.pth', 'STUDENT')
    assert (found.model, found.checkpoint, found.data) == ('a/b.py', 'c/d.pth', 'a/b.py')
    found = find_model('resnet18_8xb32_in1k', 'TEACHER')
    assert found.checkpoint.startswith('http') and found.model == 'resnet18_8xb32_in1k'
    monkeypatch.setattr(audit, 'zoo_entry', lambda *names: SimpleNamespace(weights=None))
    with pytest.raises(
        ValueError, match='^TEACHER: the zoo has no weights of resnet18_8xb32_in1k$'
    ):
        find_model('resnet18_8xb32_in1k', 'TEACHER')


@pytest.mark.parametrize(
    ('name', 'error', 'message'),
    [
        ('a/b.py', ValueError, 'STUDENT: a/b.py is a config without weights; write a/b.py:CHECKP'),
        (
            'resnet81',
            ValueError,
            "STUDENT: neither a run nor a network: 'resnet81' is no model of mm",
        ),
        ('{tmp}', FileNotFoundError, '{tmp} is no work directory of a run: it has 0 configs'),
    ],
)
def test_what_names_none(name, error, message, tmp_path):
    with pytest.raises(error, match=f'^{message.format(tmp=tmp_path)}'):
        find_model(name.format(tmp=tmp_path), 'STUDENT')


def test_what_cannot_be_compared(runs, tmp_path):
    with pytest.raises(
        ValueError, match='^none of the models has test images; name a run or config'
    ):
        evaluate_models('networks:OwnNetwork')
    with pytest.raises(
        ValueError, match="^--groups: test images of .*student have no 'group'; Water"
    ):
        evaluate_models(runs['student'], explainer=None, groups=True)
    torch.save(build(classifier(4, 5)).state_dict(), tmp_path / 'five.pth')
    Config(dict(model=classifier(4, 5), data_preprocessor=PREPROCESSOR)).dump(tmp_path / 'five.py')
    five = f'{tmp_path}/five.py:{tmp_path}/five.pth'
    message = r'the models have different numbers of classes \(student 9, teacher 5\)'
    with pytest.raises(ValueError, match=message):
        evaluate_models(runs['student'], five, explainer=None)
    with pytest.raises(
        ValueError, match='five.py has no test_dataloader, so there are no test images'
    ):
        evaluate_models(five)
    other = write_run(tmp_path / 'other', 0, classes=tuple('ihgfedcba'))
    cfg = config(4)
    cfg.test_dataloader.dataset.metainfo = dict(classes=tuple('abcdefghi'))
    cfg.dump(tmp_path / 'data.py')
    with pytest.raises(ValueError, match='has the classes in another order'):
        evaluate_models(runs['student'], str(other), data=str(tmp_path / 'data.py'))


# The command line


def run(monkeypatch, *words):
    monkeypatch.setattr('sys.argv', ['audit.py', *map(str, words)])
    tool('analysis_tools/audit').main()


def test_the_tool_prints_and_writes(runs, monkeypatch, capsys, tmp_path):
    out = tmp_path / 'out'
    run(monkeypatch, *runs.values(), '--explainer', 'none', '--margin', '2', '--out', out)
    printed = capsys.readouterr().out
    assert '| teacher to student' in printed and f'n = {COUNT}' in printed
    assert 'The student predicts the same class as its teacher on' in printed
    assert f'The files are in {out}.' in printed
    names = {path.name for path in out.iterdir()}
    assert names == {'audit.json', 'audit.csv', 'classes.csv', 'report.html', 'verdict.txt'}
    page = (out / 'report.html').read_text()
    assert 'Classes, teacher to student' in page and 'p, exact McNemar' in page
    content = json.loads((out / 'audit.json').read_text())
    assert content['n'] == COUNT and content['alpha'] == 0.05
    assert set(content['versions']) == {'mmkdx', 'numpy', 'scipy'}
    assert set(content['audits']) == {'teacher to student', 'base to student', 'teacher to base'}
    assert content['audits']['teacher to student']['margin'] == 2
    assert content['family_sizes']['base to student'] == dict(classes=9, groups=0)
    assert all(each['numbers'] and each['rule'] for each in content['verdict'])
    assert set(content['flipped']) == {'negative', 'positive'}
    with (out / 'classes.csv').open() as file:
        assert len(list(csv.DictReader(file))) == 3 * 9
    # From its own CSV file the audit comes out again
    again = tmp_path / 'again'
    run(monkeypatch, *[out / 'audit.csv'] * 3, '--margin', '2', '--out', again)
    found = json.loads((again / 'audit.json').read_text())
    assert found['audits'] == content['audits'] and found['gain'] == content['gain']
    assert {path.name for path in again.iterdir()} == {'audit.json', 'classes.csv'}
    with pytest.raises(SystemExit, match="^--groups: the images in .*audit.csv have no 'group'$"):
        run(monkeypatch, *[out / 'audit.csv'] * 2, '--groups')
    with pytest.raises(
        SystemExit, match='student is not a CSV file; if one model is a CSV file, all'
    ):
        run(monkeypatch, out / 'audit.csv', runs['student'])


def test_the_tool_takes_several_runs(runs, monkeypatch, capsys, tmp_path):
    arms = (
        '--student-runs',
        runs['student'],
        runs['teacher'],
        '--base-runs',
        runs['base'],
        runs['student'],
    )
    run(
        monkeypatch,
        *(runs['student'], runs['teacher'], '--explainer', 'none', '--out', tmp_path / 'out'),
        *arms,
    )
    assert '2 students and 2 base models are too few training' in ' '.join(
        capsys.readouterr().out.split()
    )


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (('--alpha', '0.7'), 'alpha is 0.7; it must be a finite number above 0 and of at most 0.5'),
        (('--margin', '0'), 'margin is 0.0; it must be a finite number above 0'),
        (('--groups',), "--groups: test images of .*student have no 'group'"),
        (('--student-runs', 'a'), '--student-runs and --base-runs belong together: set both'),
        (('--student-runs', 'a', '--base-runs', 'b'), 'a: .*|STUDENT: neither a run nor a network'),
    ],
)
def test_the_tool_ends_with_a_sentence(runs, monkeypatch, tmp_path, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, runs['student'], runs['teacher'], '--explainer', 'none', *words)
    assert not list(tmp_path.iterdir())


def test_a_torn_checkpoint_ends_with_a_sentence(runs, monkeypatch, tmp_path):
    (tmp_path / 'torn.pth').write_bytes(Path(runs['student'], 'epoch_1.pth').read_bytes()[:500])
    with pytest.raises(SystemExit, match='torn.pth'):
        run(monkeypatch, f'{runs["student"]}/config.py:{tmp_path}/torn.pth', runs['teacher'])
    with pytest.raises(SystemExit, match='none.pth'):
        run(monkeypatch, f'{runs["student"]}/config.py:{tmp_path}/none.pth', runs['teacher'])


def test_a_full_disk_leaves_the_earlier_audit(found, tmp_path):
    findings = study(found, draws=20)
    write_audit(tmp_path / 'out', findings, dict(student='a'), found)
    before = {path.name: path.read_bytes() for path in (tmp_path / 'out').iterdir()}
    with full_disk(4_000), pytest.raises(WriteError, match='^cannot write '):
        write_audit(tmp_path / 'out', findings, dict(student='b'), found)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / 'out').iterdir()}
