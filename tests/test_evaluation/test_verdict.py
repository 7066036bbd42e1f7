"""The verdict says what the numbers support, and no more: a case for each branch of its rules."""

import re

import numpy as np
import pytest

from mmkdx.evaluation import Evaluation
from mmkdx.evaluation.audit_records import Column, Records
from mmkdx.evaluation.verdict import paragraph, study, tiles
from mmkdx.evaluation.verdict_rules import RULES

FAST = dict(draws=200)


def records(n=200, classes=2, wrong=None, maps=None, group=None, labelled=True, **confidence):
    """Images of classes in turn, of which each model gets some wrong.

    ``wrong`` has for each model the numbers of these images, ``maps`` the mean agreement of student and
    base model with the teacher.
    """
    label = np.arange(n) % classes
    models = {}
    for name, images in (wrong or dict(student=())).items():
        prediction = label.copy()
        # Classes follow each other, so that mistakes of two models can differ
        prediction[list(images)] = (prediction[list(images)] + 1) % classes
        models[name] = Column(prediction)
    noise = np.random.default_rng(0).normal(0, 0.05, n)
    for name, mean in (maps or {}).items():
        models[name].agreement = mean + (noise if name == 'student' else -noise)
    for name, value in confidence.items():
        models[name].confidence = models[name].label_probability = np.full(n, value)
    names = tuple('abcdefghijklmnop'[:classes])
    given = label if labelled else None
    return Records(np.arange(n), models, given, group, names)


def said(given, rule=None, **options):
    """The sentences of a rule, or all, as one text."""
    found = paragraph(given, **FAST, **options)
    assert all(each.numbers for each in found), 'a sentence rests on a statistic'
    assert all(each.text.endswith('.') and not each.text[0].islower() for each in found)
    return ' '.join(each.text for each in found if rule in (None, each.rule))


def tile(given, start, **options):
    return next(each for each in tiles(given, **FAST, **options) if each.label.startswith(start))


SAME = dict(student=range(10), teacher=range(10))
WORSE = dict(student=range(40), teacher=range(10))
BETTER = dict(student=range(10), teacher=range(40))
#: 5 images flip one way and 4 the other.
OPEN = dict(student=range(5, 14), teacher=range(10))


def test_every_rule_is_one_of_the_guide():
    from pathlib import Path

    text = (Path(__file__).parents[2] / 'docs/en/user_guides/audit.md').read_text()
    for rule in RULES:
        assert f'| `{rule.__name__}` |' in text


# Accuracy


def test_a_significant_loss_and_gain():
    assert (
        'The student is 15.0 points less accurate than its teacher (80.0 % against 95.0 %'
        in said(records(wrong=WORSE), 'accuracy')
    )
    assert 'The student is 15.0 points more accurate than its teacher' in said(
        records(wrong=BETTER), 'accuracy'
    )
    assert 'exact McNemar p < 0.001' in said(records(wrong=BETTER), 'accuracy')
    assert tile(records(wrong=WORSE), 'Accuracy').tone == 'bad'
    found = tile(records(wrong=BETTER), 'Accuracy')
    assert (found.tone, found.value) == ('good', '+15.0 points')
    assert found.hint == '95.0 % against 80.0 %; exact McNemar p < 0.001.'


def test_no_significance_is_not_equality():
    for wrong in (SAME, OPEN):
        text = said(records(wrong=wrong), 'accuracy')
        assert 'The difference is not distinguishable from zero (' in text
        assert not re.search('equal|same|identical|as accurate', text)
        assert tile(records(wrong=wrong), 'Accuracy').tone == 'neutral'


def test_the_level_decides():
    wrong = dict(student=range(6), teacher=())  # p = 0.03125
    assert 'less accurate' in said(records(wrong=wrong), 'accuracy')
    assert 'not distinguishable' in said(records(wrong=wrong), 'accuracy', alpha=0.01)


def test_a_margin_that_was_set_beforehand():
    large = records(1000, wrong=dict(student=range(5), teacher=range(5, 10)))
    text = said(large, 'accuracy', margin=1.0)
    assert (
        'The student is at most 1 points less accurate than its teacher, the margin that was'
        in text
    )
    text = said(large, 'accuracy', margin=0.5)
    assert 'A loss of more than 0.5 points, the margin that was set beforehand, is not ex' in text
    assert 'margin' not in said(large)


# Agreement


def test_agreement_with_the_teacher():
    text = said(records(wrong=OPEN), 'agreement')
    assert text == (
        'The student predicts the same class as its teacher on 95.5 % of the images (n = 200, 95 % '
        'interval 91.7 to 97.6).'
    )
    assert tile(records(wrong=OPEN), 'Predicts').hint == 'Without a base model to compare with.'


@pytest.mark.parametrize(
    ('student', 'base', 'text', 'tone'),
    [
        (range(12), range(50), 'The base model does so on 80.0 %, 19.0 points less (', 'good'),
        (range(50), range(12), 'The base model does so on 99.0 %, 19.0 points more (', 'bad'),
        (
            range(12),
            range(1, 12),
            'on 98.5 %. The difference is not distinguishable fr',
            'neutral',
        ),
    ],
)
def test_agreement_beside_the_base_model(student, base, text, tone):
    given = records(wrong=dict(student=student, teacher=range(10), base=base))
    assert text in said(given, 'agreement')
    assert tile(given, 'Predicts').tone == tone


# Maps


TRIO = dict(student=range(10), teacher=range(10), base=range(60))


@pytest.mark.parametrize(
    ('student', 'base', 'text', 'tone'),
    [
        (0.94, 0.51, "the student's evidence is nearer to the teacher's than the base", 'good'),
        (0.51, 0.94, "the student's evidence is farther from the teacher's than the b", 'bad'),
        (0.7, 0.7, "these images do not show that the student's evidence is nearer to ", 'neutral'),
    ],
)
def test_evidence_beside_the_base_model(student, base, text, tone):
    given = records(wrong=TRIO, maps=dict(student=student, base=base))
    found = said(given, 'evidence')
    assert f'Where all three are right, {text}' in found and 'n = 140' in found
    assert f'(Pearson {student:.2f} against {base:.2f}' in found
    assert ('does not show that the evidence is the right one' in found) == (tone == 'good')
    assert tile(given, 'Agreement with').tone == tone


def test_evidence_without_a_base_model():
    given = records(wrong=OPEN, maps=dict(student=0.9))
    found = said(given, 'evidence')
    assert 'Where both are right, their maps agree with Pearson 0.90 (n = 186, 0.8' in found
    assert 'This does not show that the evidence is the right one.' in found
    assert tile(given, 'Agreement with').tone == 'neutral'


def test_too_few_maps():
    given = records(8, wrong=dict(student=(), teacher=()), maps=dict(student=0.9))
    assert said(given, 'evidence') == (
        'Both are right on 8 images with maps, too few to compare their evidence.'
    )
    assert tile(given, 'Agreement with').value == '–'


def test_maps_without_labels():
    given = records(wrong=SAME, maps=dict(student=0.9), labelled=False)
    assert 'Their maps agree with Pearson 0.90 on average (n = 200).' in said(given, 'evidence')
    given = records(wrong=TRIO, maps=dict(student=0.9, base=0.4), labelled=False)
    assert said(given, 'evidence').startswith("On average, the student's evidence is nearer to")


def test_another_score_of_maps_has_its_name():
    given = records(wrong=SAME, maps=dict(student=0.9))
    given.map_score = 'topk_iou'
    assert 'Topk iou 0.90' in said(given, 'evidence')


# Classes and flips


def test_changed_classes_have_a_direction():
    # Class a loses 20 of its 100 images, class b wins 15
    wrong = dict(student=range(0, 40, 2), teacher=range(1, 31, 2))
    text = said(records(wrong=wrong), 'classes')
    start = (
        "2 of 2 classes changed, at a family-wise level of 5 %: class 'a' lost 20.0 points (n = "
    )
    assert text.startswith(start)
    assert "class 'b' gained 15.0 points (n = 100, p < 0.001 after Holm)." in text
    found = tile(records(wrong=wrong), 'Largest loss')
    assert (found.tone, found.value) == ('bad', '−20.0 points')
    assert found.hint == '2 of 2 classes changed significantly, 1 of them for the worse.'


def test_many_changed_classes_are_counted():
    text = said(records(wrong=dict(student=range(100), teacher=()), classes=5), 'classes')
    assert text.startswith('5 of 5 classes changed') and text.endswith('and 2 more.')


def test_no_changed_class_tells_the_power():
    text = said(records(wrong=OPEN), 'classes')
    assert text == (
        'No class changed significantly. With 2 classes that takes 7 flips of one class, all in one '
        'direction. In a class of 100 images a loss of 8.9 points, with nothing won back, is found with '
        'a power of 80 %.'
    )
    assert tile(records(wrong=OPEN), 'Largest loss').tone == 'neutral'
    wrong = dict(student=(), teacher=())
    assert tile(records(wrong=wrong), 'Largest loss').value == 'none'


def test_classes_that_are_too_small():
    given = records(10, wrong=dict(student=(0,), teacher=()))
    assert said(given, 'classes').endswith('. All of the classes have fewer images.')
    given.label[:9] = 0
    given.label[9] = 1
    assert '. 1 of the classes have fewer images. In a class of' not in said(given, 'classes')


def test_one_class_is_no_family():
    given = records(wrong=OPEN)
    given.label[:] = 0
    assert not said(given, 'classes')
    assert not [each for each in tiles(given, **FAST) if each.label.startswith('Largest')]


def test_flips():
    text = said(records(wrong=OPEN), 'flips')
    assert text == (
        'The student is wrong on 4 images that its teacher gets right (2.0 %, 0.8 to 5.0), and '
        'right on 5 images that its teacher gets wrong.'
    )
    text = said(records(wrong=dict(student=(), teacher=(0,))), 'flips')
    assert text == (
        'The student is wrong on no images that its teacher gets right (at most 1.8 %), and '
        'right on 1 image that its teacher gets wrong.'
    )
    assert tile(records(wrong=OPEN), 'Negative flips').interval == '0.8 to 5.0 %, n = 200'


# Groups


def test_groups():
    group = np.repeat([0, 1], 100)
    text = said(records(wrong=WORSE, group=group), 'groups')
    assert text.startswith('The accuracy of the worst group is 60.0 % (group 0), and its teacher')
    assert 'The largest drop is 30.0 points in group 0. 1 of 2 groups changed, at a fam' in text
    text = said(records(wrong=SAME, group=group), 'groups')
    assert 'largest drop' not in text and 'No group changed significantly. With 2 groups' in text
    assert not said(records(wrong=WORSE, group=np.zeros(200)), 'groups')


# The base model, exploratory findings and limits


def test_the_student_beside_the_base_model():
    text = said(records(wrong=TRIO), 'base')
    assert text.startswith(
        'Compared with the base model, the student is 25.0 points more accurate (95.0 % '
    )
    assert text.endswith('two, 2 of 2 classes gained and 0 lost, at a family-wise level of 5 %.')
    same = dict(student=range(10), base=range(10))
    text = said(records(wrong=same), 'base')
    assert text.startswith('Compared with the base model, the student is right on 95.0 % of the im')
    assert 'not distinguishable' in text and 'classes' not in text
    assert tile(records(wrong=TRIO | {'base': ()}), 'Accuracy').label.endswith('with the teacher')
    assert tile(records(wrong=same), 'Accuracy').label == 'Accuracy compared with the base model'


def test_exploratory_findings_are_called_so():
    given = records(wrong=SAME, student=0.6, teacher=0.95)
    text = said(given, 'exploratory')
    assert text.startswith(
        "Exploratory, not corrected for multiple tests: the student's calibration error is h"
    )
    assert tile(given, 'Calibration').tone == 'bad'
    given = records(wrong=SAME, student=0.95, teacher=0.6)
    assert "the student's calibration error is lower than" in said(given, 'exploratory')
    assert tile(given, 'Calibration').tone == 'good'
    given = records(wrong=SAME, student=0.95, teacher=0.95)
    assert not said(given, 'exploratory') and tile(given, 'Calibration').tone == 'neutral'


def test_overlap_of_errors_is_exploratory():
    wrong = dict(student=range(20), teacher=range(20), base=range(100, 160))
    assert "the student's errors coincide more with its teacher's than" in said(
        records(wrong=wrong), 'exploratory'
    )
    wrong = dict(base=range(20), teacher=range(20), student=range(100, 160))
    assert "the student's errors coincide less with its teacher's" in said(
        records(wrong=wrong), 'exploratory'
    )


def test_where_the_student_newly_errs():
    given = records(wrong=dict(student=range(20), teacher=()), maps=dict(student=0.9))
    assert not said(given, 'exploratory')
    given.models['student'].agreement[:20] -= 0.5
    text = said(given, 'exploratory')
    assert (
        "where the student newly errs, its maps agree less with its teacher's than where both"
        in text
    )
    given.models['student'].agreement[:20] += 1
    assert 'its maps agree more with' in said(given, 'exploratory')
    few = records(wrong=dict(student=range(9), teacher=()), maps=dict(student=0.9))
    few.models['student'].agreement[:9] = 0
    assert not said(few, 'exploratory')


def test_few_images_are_called_few():
    wrong = dict(student=(0,), teacher=())
    assert '5 images are too few: no difference of accuracy could be found.' in said(
        records(5, wrong=wrong), 'limits'
    )
    assert '50 images are few: a difference below 12.0 points could not be found, even' in said(
        records(50, wrong=wrong), 'limits'
    )
    assert '1 image is too few' in said(records(1, wrong=wrong), 'limits')
    assert 'few' not in said(records(200, wrong=wrong), 'limits')


def test_what_is_missing_is_said():
    assert 'Without a base model we do not know how similar to its teacher' in said(
        records(wrong=SAME)
    )
    assert 'Without a base model' not in said(records(wrong=TRIO))
    text = said(records(wrong=SAME, labelled=False))
    assert 'The images have no labels, so nothing is said of accuracy and errors.' in text
    assert not re.search('accurate|McNemar|classes', text)
    assert [each.label for each in tiles(records(wrong=SAME, labelled=False), **FAST)] == [
        "Predicts its teacher's class"
    ]


@pytest.mark.parametrize('wrong', [SAME, WORSE, BETTER, OPEN, TRIO])
def test_one_run_says_nothing_of_distillation(wrong):
    found = records(wrong=wrong, maps=dict(student=0.9))
    assert 'distill' not in said(found).lower()
    assert said(found, 'limits').endswith('so nothing follows about the training method.')


# Several training runs


def runs(student, base):
    return dict(runs=dict(student=student, base=base))


def test_several_runs_may_say_something_of_the_method():
    better = runs([0.719, 0.723, 0.717, 0.72, 0.724], [0.712, 0.708, 0.715, 0.71, 0.709])
    text = said(records(wrong=TRIO), 'method', **better)
    assert 'Over 5 students and 5 base models, each from its own training run, the studen' in text
    assert '1.0 points more accurate on average (Welch t = 5.48, p < 0.001). With these se' in text
    assert 'distillation changes the accuracy' in text
    assert 'one training run' not in said(records(wrong=TRIO), 'limits', **better)
    worse = runs(better['runs']['base'], better['runs']['student'])
    assert 'points less accurate on average' in said(records(wrong=TRIO), 'method', **worse)


def test_runs_that_do_not_differ_or_are_too_few():
    text = said(records(wrong=TRIO), 'method', **runs([0.7, 0.8, 0.9], [0.72, 0.79, 0.88]))
    assert (
        'With so few runs this is not distinguishable from zero.' in text and 'distill' not in text
    )
    text = said(records(wrong=TRIO), 'method', **runs([0.9, 0.91], [0.5, 0.51]))
    assert text == (
        '2 students and 2 base models are too few training runs; a statement about the method needs '
        '3 of each.'
    )
    with pytest.raises(
        ValueError, match='^a claim over seeds needs at least two runs in each arm$'
    ):
        said(records(wrong=TRIO), **runs([0.9], [0.5, 0.6]))


# A model alone, evaluations, tiles


def test_a_model_alone():
    given = records(wrong=dict(student=range(0, 40, 2)), student=0.9)
    text = said(given)
    assert text == (
        'The model is right on 90.0 % of the images (n = 200, 95 % interval 85.1 to 93.4). Its lowest '
        "is class 'a' with 80.0 % (n = 100, 71.1 to 86.7). That is the lowest of 2, and so partly "
        'chance.'
    )
    labels = [each.label for each in tiles(given, **FAST)]
    assert labels == ['Accuracy', 'Calibration error', 'Lowest class']
    given.label[:] = 0
    given.models['student'].prediction[:] = 0
    assert 'lowest' not in said(given)
    nothing = records(labelled=False)
    assert said(nothing).startswith('The images have no labels') and tiles(nothing, **FAST) == []


def test_there_are_six_tiles_with_intervals_and_n():
    given = records(wrong=TRIO, maps=dict(student=0.9, base=0.5), student=0.9, teacher=0.9)
    found = tiles(given, **FAST)
    assert len(found) == 6 and all('n = ' in each.interval for each in found)
    assert all(each.hint.endswith('.') for each in found)
    assert {each.tone for each in found} <= {'good', 'bad', 'neutral'}


def evaluation(n):
    rows = {
        i: {
            'prediction': i % 2,
            'teacher/prediction': i % 2,
            'label': i % 2,
            'confidence': 0.9,
            'label_probability': 0.9,
            'teacher/confidence': 0.9,
            'pearson': 0.5,
        }
        for i in range(n)
    }
    return Evaluation({}, n, 0.0, 'student', rows, classes=('cat', 'dog'))


@pytest.mark.parametrize('n', [1, 2, 30])
def test_an_evaluation_of_any_size_has_a_verdict(n):
    found = study(evaluation(n), **FAST)
    assert f'on 100.0 % of the images (n = {n}' in said(found)
    assert len(tiles(found)) >= 3
    assert study(found) is found


def test_an_evaluation_without_images():
    with pytest.raises(ValueError, match='^the audit has no image'):
        paragraph(evaluation(0))
