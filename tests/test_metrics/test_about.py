"""What a report says of each score."""

import inspect

import pytest

from mmkdx import metrics
from mmkdx.metrics import ScoreMetric
from mmkdx.metrics.about import QUESTIONS, About

CLASSES = [each for each in vars(metrics).values() if inspect.isclass(each)]
BASES = {'ScoreMetric', 'ExplanationMetric', 'PairMetric'}
KINDS = [k for k in CLASSES if issubclass(k, ScoreMetric) and k.__name__ not in BASES]


@pytest.mark.parametrize('kind', KINDS)
def test_each_score_has_a_sentence_a_question_and_a_guide(kind, request):
    guides = request.config.rootpath / 'docs/en/user_guides'
    assert kind.question in QUESTIONS and kind.question != 'other'
    assert (guides / f'{kind.guide}.md').is_file()
    assert set(kind.better) <= set(kind.meanings)
    for sentence in kind.meanings.values():
        assert sentence[-1] == '.' and sentence[0].isupper() and len(sentence.split()) <= 20
    # The docstring and the sentences tell of the same scores
    assert all(f'{name}' in kind.__doc__ for name in kind.meanings), kind.meanings


@pytest.mark.parametrize(
    'kind, name, begin, variant',
    [
        (metrics.MapAgreement, 'pearson', 'Linear correlation', ''),
        (metrics.MapAgreement, 'pearson_gain', 'Linear', 'gain over the base model'),
        (metrics.MapAgreement, 'ssim_teacher_wrong', 'Structural', 'where the teacher is wrong'),
        (metrics.RelevanceScore, 'rs_stage2', "Distance correlation of the model's features", ''),
        (metrics.RelevanceScore, 'rs_unique_stage2', 'The same for what only', ''),
        (metrics.PrototypeTransfer, 'ajs@0.45', 'Jaccard index', ''),
        (metrics.DeletionInsertion, 'nothing', '', ''),
    ],
)
def test_a_name_finds_its_sentence(kind, name, begin, variant):
    about = kind().about(name)
    assert about.sentence.startswith(begin) and bool(about.sentence) == bool(begin)
    assert about.variant == variant and about.question == kind.question


def test_a_metric_with_a_name_of_its_own():
    metric = metrics.PointingGame(labels=[1])
    metric.name = 'mark'
    assert metric.about('mark_energy').sentence == metrics.PointingGame.meanings['energy']


def test_a_metric_that_says_nothing_is_among_the_others():
    assert About() == ('other', '', '', '')


def test_effects_of_filled_parts_say_so():
    sentences = {
        kind: metrics.PartIntervention(kind=kind).about('part_correlation').sentence
        for kind in ('remove', 'inpaint')
    }
    assert sentences['inpaint'] == f'{sentences["remove"]} The parts were filled in: see the guide.'
