"""Comparing methods on the pair of one config."""

import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from tiny import tool

from mmkdx.apis import runs
from mmkdx.apis.methods import methods

ROOT = Path(__file__).parents[2]
CACHED = str(ROOT / 'configs/digits/kd-cached_resnet18_resnet18-tiny_digits100.py')
compare_methods = tool('analysis_tools/compare_methods')


def call(monkeypatch, *words):
    """Runs the tool, with what it would run collected in place of being run."""
    tools, seen = [], {}

    def run_seeds(configs, seeds, work_dir, jobs):
        seen.update(configs=configs, seeds=seeds, jobs=jobs)
        return {name: [{'accuracy/top1': 50 + seed} for seed in seeds] for name in configs}

    monkeypatch.setattr(runs, 'call_tool', lambda *args, log: tools.append(args))
    monkeypatch.setattr(runs, 'run_seeds', run_seeds)
    monkeypatch.setattr(sys, 'argv', ['compare_methods.py', *map(str, words)])
    compare_methods.main()
    return tools, seen


def test_each_method_is_the_config_with_other_terms(tmp_path, monkeypatch, capsys):
    words = [CACHED, '--methods', 'cat-kd', 'wkd-l', '--seeds', 0, 2, '--work-dir', tmp_path]
    tools, seen = call(monkeypatch, *words, '--jobs', 2)
    # The data set counts each view of a repeated image
    known = methods(side=32, batch_size=32, num_images=1200, epochs=20)
    base = Config.fromfile(CACHED)
    assert list(seen['configs']) == ['cat-kd', 'wkd-l'] and seen['jobs'] == 2
    for name, (file, options) in seen['configs'].items():
        cfg = Config.fromfile(file)
        assert cfg.model.terms.to_dict() == known[name].terms and options == []
        assert cfg.model.student_weight == known[name].student_weight
        for key in ('teacher', 'student', 'input_size'):
            assert cfg.model[key] == base.model[key]
        assert cfg.train_dataloader == base.train_dataloader
    # The teacher's outputs are computed once, for the terms of all methods
    ((script, cached),) = tools
    assert script == 'cache_teacher.py'
    terms = Config.fromfile(cached).model.terms
    assert list(terms) == ['cat-kd_cat', 'wkd-l_label', 'wkd-l_transport']
    assert '| cat-kd | 51.00 ± 1.41 |' in capsys.readouterr().out


def test_automatic_weights_stand_beside_the_published_ones(tmp_path, monkeypatch):
    words = [CACHED, '--methods', 'kd', '--weights', 'published', 'auto', '--work-dir', tmp_path]
    _, seen = call(monkeypatch, *words, '--cfg-options', 'train_cfg.max_epochs=3')
    found = {name: Config.fromfile(file).model for name, (file, _) in seen['configs'].items()}
    assert {name: model.terms.kd.weight for name, model in found.items()} == {
        'kd': 0.9,
        'kd-auto': 'auto',
    }
    # An automatic weight is relative to the labels' loss, which therefore counts in full
    assert [model.student_weight for model in found.values()] == [0.1, 1.0]
    assert all(options == ['train_cfg.max_epochs=3'] for _, options in seen['configs'].values())


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (
            'model = dict(type="ImageClassifier")',
            'model.terms and model.teacher: this is no distill',
        ),
        (
            'model = dict(teacher="a", terms=dict(kd=dict()))\ntrain_cfg = dict(max_epochs=2)',
            'train_cfg.max_epochs and model.input_size must be set',
        ),
    ],
)
def test_a_config_without_what_is_compared_is_refused(tmp_path, monkeypatch, text, message):
    file = tmp_path / 'config.py'
    file.write_text(text)
    with pytest.raises(ValueError, match=f'^{file}: {message}'):
        call(monkeypatch, file, '--work-dir', tmp_path)


def test_a_missing_config_is_refused(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        call(monkeypatch, 'nothing.py')
    assert 'there is no config nothing.py' in capsys.readouterr().err
