"""The search of weights: what is run, what is kept, and that no test data are read."""

import json
import math
from pathlib import Path

import pytest
from mmengine.config import Config
from processes import run_script
from tiny import tool
from tuning import ROOT, write_config

from mmkdx.apis import runs, tuning
from mmkdx.distillation.cache.files import INDEX
from mmkdx.lock import FolderInUseError
from mmkdx.registry import DATASETS

tune = tool('analysis_tools/tune_weights')
WEIGHT = 'terms.kd.weight'


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp('tune'))


@pytest.fixture
def start(config, tmp_path, monkeypatch, capsys):
    """Runs the tool with trainings that only say how good a weight is: best is 8, the config has 1."""
    calls = []

    def call(name, path, *arguments, log):
        options = dict(str(each).split('=', 1) for each in arguments if '=' in str(each))
        seed, weight = int(options['randomness.seed']), float(options[f'model.{WEIGHT}'])
        calls.append((name, path.name, seed, weight))
        wrong = start.fail(len(calls), weight)
        if name == 'train.py':
            (log.parent / 'last_checkpoint').write_text('last.pth')
        else:
            score = 80 - 10 * abs(math.log2(weight / 8)) + seed * (1 if weight == 1 else 2)
            found = {'accuracy/top1': wrong or score, 'loss': 0.5}
            (log.parent / 'test.part.json').write_text(json.dumps(found))

    for module in (runs, tuning):
        monkeypatch.setattr(module, 'call_tool', call)

    def start(*arguments, ranges=f'{WEIGHT}=0.1..100'):
        options = ['--work-dir', str(tmp_path), '--weights', ranges, *arguments]
        monkeypatch.setattr('sys.argv', ['tune_weights.py', str(config), *options])
        tune.main()
        return capsys.readouterr().out.splitlines()

    start.calls, start.folder = calls, tmp_path / 'kd'
    start.fail = lambda count, weight: None
    return start


def trials(folder):
    """The lines of trials.csv, without the head."""
    head, *rows = (folder / 'trials.csv').read_text().splitlines()
    assert head == f'trial,{WEIGHT},accuracy/top1,state'
    return [row.split(',') for row in rows]


def test_a_search_and_what_is_concluded(start):
    lines = start('--trials', '6', '--seeds', '1', '2', '3', '--metrics', 'accuracy/top1', 'loss')
    rows = trials(start.folder)
    assert [row[0] for row in rows] == [*'012345'] and rows[0][1:] == ['1.0', '50.0', 'complete']
    assert all(0.1 <= float(row[1]) <= 100 for row in rows)
    best = max(rows, key=lambda row: float(row[2]))
    weight, value = float(best[1]), float(best[2])
    # The search has one seed and one fold, the comparison others
    searched, compared = start.calls[:12], start.calls[12:]
    assert {each[1:3] for each in searched} == {('fold_0.py', 0)}
    assert {each[1:] for each in compared} == {
        (f'fold_{seed}.py', seed, each) for seed in (1, 2, 3) for each in (1, weight)
    }
    assert lines[:4] == [
        f'| weights | {WEIGHT} | in the search | accuracy/top1 | loss | 95 % interval, accuracy/top1 |',
        '| --- | --- | --- | --- | --- | --- |',
        '| own | 1 | 50.00 | 52.00 ± 1.00 | 0.500 ± 0.000 | 49.52 to 54.48 |',
        f'| found | {weight:.4g} | {value:.2f} | {value + 4:.2f} ± 2.00 | 0.500 ± 0.000 | '
        f'{value + 4 - 4.9683:.2f} to {value + 4 + 4.9683:.2f} |',
    ]
    # Paired: the differences have a standard deviation of 1
    mean = value + 4 - 52
    ends = f'{mean - 2.4841:.2f} to {mean + 2.4841:.2f}'
    assert f'own: {mean:.2f} (n = 3 seeds, 95 % interval {ends})' in lines[-1]
    assert lines[-1].endswith('The found weights are better on held-out training images.')
    found = json.loads((start.folder / 'results.json').read_text())
    assert found['conclusion'] == lines[-1] and found['trials'][found['best']]['value'] == value
    assert found['difference']['value'] == pytest.approx(mean)
    # The same command only reads
    count = len(start.calls)
    assert start('--trials', '6', '--seeds', '1', '2', '3') and len(start.calls) == count
    # Explanations are not computed where the metric is another
    hooks = Config.fromfile(start.folder / 'fold_0.py').custom_hooks
    assert [each.type for each in hooks] == ['EpochSeedHook']


def test_an_interrupted_search_ends_like_another(start, capsys):
    arguments = ('--trials', '6', '--seeds', '1')
    start(*arguments)
    whole = trials(start.folder)
    count = len(start.calls)
    again = ('--work-dir', str(start.folder.parent / 'again'))

    def interrupt(calls, weight):
        if calls == count + 8:  # the test of the fourth trial
            raise KeyboardInterrupt

    start.fail = interrupt
    with pytest.raises(SystemExit) as leave:
        start(*arguments, *again)
    folder = start.folder.parent / 'again/kd'
    assert leave.value.code == 130
    assert f'stopped; run the same command to continue from {folder}' in capsys.readouterr().err
    assert trials(folder) == whole[:3]
    start.fail = lambda *_: None
    start(*arguments, *again)
    assert trials(folder) == whole


def test_a_failed_training_is_left_out(start, monkeypatch, capsys):
    def fail(calls, weight):
        if calls == 3:  # the second training
            raise RuntimeError('train.py kd.py failed; see train.txt')
        return math.nan if weight > 1 else None

    start.fail = fail
    lines = []
    monkeypatch.setattr('builtins.print', lambda text, **_: lines.append(text))
    start('--trials', '3', '--seeds', '1', ranges=f'{WEIGHT}=1..100')
    said = [line for line in lines if 'the search goes on without' in line]
    assert [line.partition(';')[0] for line in said] == [
        'train.py kd.py failed',
        'accuracy/top1 is nan',
    ]
    assert [row[2:] for row in trials(start.folder)] == [['50.0', 'complete'], *[['', 'fail']] * 2]
    table, _, sentence = lines[-1].rpartition('\n\n')
    assert sentence.startswith("No trial was better than the config's own weights")
    assert [line.split(' | ')[0] for line in table.splitlines()[2:]] == ['| own']


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--trials', '0'], '--trials is 0; it must be an integer of at least 1'),
        (['--folds', '1'], '--folds is 1; it must be an integer of at least 2'),
        (['--seeds', '0'], '--seeds 0: give each seed once'),
        (['--metrics', 'accuracy'], '--metrics accuracy: the test measures accuracy/top1, loss'),
        (['--weights', 'terms.kd=1..2'], 'kd.py has no number at model.terms.kd'),
        (['--weights', 'kd'], '--weights kd: write KEY=LOW..HIGH'),
    ],
)
def test_mistakes_are_one_sentence(start, arguments, message):
    with pytest.raises(SystemExit, match=message):
        start(*arguments)


def test_a_folder_holds_one_search(start):
    def fail(*_):
        raise RuntimeError('train.py kd.py failed; see train.txt')

    start.fail = fail
    with pytest.raises(SystemExit, match='train.py kd.py failed; see train.txt'):
        start()  # with the config's own weights, so nothing else would train
    start.fail = lambda *_: None
    for change, what in (
        (['--folds', '3'], 'folds'),
        (['--weights', f'{WEIGHT}=0.5..2'], 'weights'),
        (['--cfg-options', 'train_cfg.max_epochs=2'], 'config'),
    ):
        with pytest.raises(SystemExit, match=f'holds a search with another {what}; choose another'):
            start(*change)


def test_a_folder_in_use_is_left_alone(start, monkeypatch):
    def refuse(folder, advice):
        raise FolderInUseError(f'{folder} is in use; {advice}')

    monkeypatch.setattr(tune, 'FolderLock', refuse)
    with pytest.raises(SystemExit, match='kd is in use; wait for it, or choose another --work-dir'):
        start()
    assert not start.calls


def test_a_cached_teacher_has_a_cache_for_each_fold(tmp_path, monkeypatch):
    calls = []

    def call(name, path, *arguments, log):
        calls.append((name, path.name))
        cfg = Config.fromfile(path)
        if name == 'cache_teacher.py':
            folder = Path(cfg.model.teacher.cache)
            folder.mkdir(parents=True)
            (folder / INDEX).touch()
        (log.parent / 'last_checkpoint').touch()
        (log.parent / 'test.part.json').write_text('{"accuracy/top1": 50}')

    for module in (runs, tuning):
        monkeypatch.setattr(module, 'call_tool', call)
    cfg = Config.fromfile(ROOT / 'configs/digits/kd-cached_resnet18_resnet18-tiny_digits100.py')
    search = tuning.WeightSearch(cfg, {WEIGHT: (0.1, 100)}, tmp_path)
    search.search(2)
    assert list(search.compare([1])) == ['own']
    train = [('train.py', 'fold_0.py'), ('test.py', 'fold_0.py')]
    assert calls[:5] == [('cache_teacher.py', 'fold_0.py'), *train, *train]
    assert calls[5] == ('cache_teacher.py', 'fold_1.py') and len(calls) == 8


def test_there_must_be_a_config(start, monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['tune_weights.py', 'nowhere.py', '--weights', 'a=1..2'])
    with pytest.raises(SystemExit):
        tune.main()
    assert 'there is no config nowhere.py' in capsys.readouterr().err


def test_a_real_run_reads_no_test_data(config, tmp_path, monkeypatch):
    """The type of the config's test data does not exist, so to build them would fail."""

    def call(name, *arguments, log):
        process = run_script(ROOT / 'tools' / name, *arguments)
        assert process.returncode == 0, process.stderr

    for module in (runs, tuning):
        monkeypatch.setattr(module, 'call_tool', call)
    search = tuning.WeightSearch(Config.fromfile(config), {WEIGHT: (0.1, 10)}, tmp_path)
    search.search(1)
    (trial,) = search.trials
    assert trial.params == {WEIGHT: 1.0}
    # Accuracies of the 12 held-out images
    assert trial.value * 12 / 100 == pytest.approx(round(trial.value * 12 / 100), abs=1e-4)
    test = Config.fromfile(config).test_dataloader.dataset
    with pytest.raises(KeyError, match='NoSuchDataSet is not in'):
        DATASETS.build(test)
