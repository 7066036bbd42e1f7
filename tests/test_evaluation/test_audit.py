"""Records and findings of an audit, against numbers computed by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from mmkdx.evaluation.audit import audit, fidelity, gain
from mmkdx.evaluation.audit_findings import plain
from mmkdx.evaluation.audit_records import Column, Records
from mmkdx.evaluation.audit_table import class_rows, flipped_images, table_rows
from mmkdx.metrics.scores import mean_score
from mmkdx.visualization.records import append_values

LABEL = np.repeat([0, 1, 2], 4)
TEACHER = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 0])
STUDENT = np.array([0, 0, 1, 0, 1, 0, 2, 1, 2, 2, 1, 0])
COSINE = np.array([0.9, 0.8, 0.85, 0.4, 0.95, 0.5, 0.7, 0.6, 0.75, 0.88, 0.3, 0.2])


def records(student=STUDENT, teacher=TEACHER, label=LABEL, **more):
    columns = dict(student=Column(np.array(student)), teacher=Column(np.array(teacher)))
    return Records(np.arange(len(label)), columns, np.array(label), **more)


def test_two_models_on_twelve_images():
    found = audit(records())
    assert found.cells == dict(RR=5, RW=3, WR=2, WW=2)
    assert found.accuracy['teacher'].value == 2 / 3 and found.accuracy['student'].value == 7 / 12
    assert (found.negative.value, found.positive.value) == (0.25, 1 / 6)
    assert found.negative[1:3] == pytest.approx((0.0889416684, 0.5323053349))
    assert found.difference.value == pytest.approx(-1 / 12)
    assert found.positive.value - found.negative.value == pytest.approx(found.difference.value)
    assert found.relative_negative == pytest.approx(0.9)
    assert found.negative_impact == pytest.approx(0.6)
    assert found.p == 1
    assert found.fidelity.agreement.value == 7 / 12
    assert found.fidelity.kappa == pytest.approx(0.3814432990)
    assert found.errors.kappa.value == pytest.approx(0.1176470588)
    assert found.errors.kappa.low < 0.1176 < found.errors.kappa.high <= 1
    assert found.errors.jaccard == pytest.approx(2 / 7)
    assert found.errors.new_given_old == 0.5
    assert (found.errors.same, found.errors.both) == (2, 2)
    pairs = [(each.negative, each.positive) for each in found.classes.changes]
    assert pairs == [(1, 1), (1, 1), (1, 0)]
    assert found.groups is None and found.calibration is None and found.maps is None


def test_the_order_of_the_images_changes_nothing():
    order = np.random.default_rng(0).permutation(12)
    one, two = (
        audit(records(STUDENT[i], TEACHER[i], LABEL[i]), draws=50) for i in (np.arange(12), order)
    )
    assert one.to_dict() == two.to_dict()


def test_swapped_models_swap_flips():
    one = audit(records())
    two = audit(records(TEACHER, STUDENT))
    assert (two.cells['RW'], two.cells['WR']) == (one.cells['WR'], one.cells['RW'])
    assert two.negative == one.positive and two.p == one.p
    assert two.difference[:3] == pytest.approx([-one.difference[i] for i in (0, 2, 1)])


def test_a_model_beside_itself():
    same = records(TEACHER)
    same.models['student'].kl = np.zeros(12)
    found = audit(same)
    assert (found.cells['RW'], found.cells['WR'], found.p, found.relative_negative) == (0, 0, 1, 0)
    assert found.errors.kappa.value == 1 and found.fidelity.kl.value == 0
    assert [each.adjusted for each in found.classes.changes] == [1, 1, 1]
    assert found.fidelity.agreement.value == 1


def test_sums_over_classes_are_the_totals():
    random = np.random.default_rng(1)
    label, old, new = random.integers(7, size=(3, 500))
    found = audit(records(new, old, label), draws=10)
    assert sum(each.negative for each in found.classes.changes) == found.cells['RW']
    assert sum(each.positive for each in found.classes.changes) == found.cells['WR']
    assert sum(each.n for each in found.classes.changes) == found.n == 500
    assert abs(found.errors.kappa.value) < 0.1


def test_doubled_images_make_p_too_small():
    label = np.zeros(40, int)
    old, new = label.copy(), label.copy()
    new[:7], old[7:9] = 1, 1
    twice = [np.tile(each, 2) for each in (new, old, label)]
    one, two = audit(records(new, old, label)), audit(records(*twice))
    assert one.negative.value == two.negative.value and two.p < one.p


def test_groups_and_two_ways_to_fall():
    label = np.zeros(20, int)
    old, new = np.zeros(20, int), np.zeros(20, int)
    old[[9, 14, 18, 19]] = 1  # groups of 10, 5 and 5: 9, 4 and 3 are right
    new[[12, 13, 14, 19]] = 1  # 10, 2 and 4
    groups = np.repeat([0, 1, 2], (10, 5, 5))
    found = audit(records(new, old, label, group=groups)).groups
    assert [each.old for each in found.changes] == pytest.approx([0.9, 0.8, 0.6])
    assert [each.new for each in found.changes] == pytest.approx([1, 0.4, 0.8])
    assert found.worst_change.value == pytest.approx(-0.2)
    assert found.drop.value == pytest.approx(-0.4) and found.largest_drop.key == 1
    assert found.drop.low <= -0.4 <= found.drop.high
    assert (found.worst_old.key, found.worst_new.key) == (2, 1)


def test_maps_in_each_cell():
    given = records()
    given.models['student'].agreement = COSINE
    found = audit(given)
    cell = (TEACHER != LABEL) * 2 + (STUDENT != LABEL)
    rr = COSINE[cell == 0]
    assert found.maps['RR'].value == pytest.approx(rr.mean())
    assert found.maps['RW'].n == 3 and found.maps['WR'].n == 2 and found.maps['WW'].n == 2
    # Too few for an interval, which would leave the range of the score
    assert all(math.isnan(each.low) for each in found.maps.values())
    assert found.maps_p == pytest.approx(0.1428571429)
    assert [found.maps[cell].value for cell in ('RR', 'RW', 'WR', 'WW')] == pytest.approx(
        [0.856, 0.55, 0.5, 0.45]
    )
    assert mean_score(rr)[:3] == pytest.approx((0.856, 0.7564343403, 0.9555656597))


def test_ten_maps_have_an_interval():
    given = records([0] * 10, [0] * 10, [0] * 10)
    given.models['student'].agreement = np.append(np.linspace(0.5, 0.9, 9), 0.7)
    assert audit(given).maps['RR'].low == pytest.approx(0.7 - 0.0923, abs=2e-3)
    given.models['student'].agreement[0] = np.nan
    assert math.isnan(audit(given).maps['RR'].low) and audit(given).maps['RR'].n == 9


def test_calibration_of_both_models_on_the_same_images():
    given = records()
    random = np.random.default_rng(0)
    for model in given.models.values():
        model.confidence, model.label_probability = random.random((2, 12))
    found = audit(given).calibration
    assert found.difference.value == pytest.approx(found.new - found.old)
    assert found.difference.low < found.difference.value < found.difference.high
    margin = audit(given).flip_margin
    lost = [i for i in range(12) if TEACHER[i] == LABEL[i] != STUDENT[i]]
    column = given.models['student']
    expected = np.median((column.confidence - column.label_probability)[lost])
    assert margin['negative'] == pytest.approx(expected)
    order = sorted(lost, key=lambda i: column.label_probability[i] - column.confidence[i])
    assert flipped_images(given)['negative'] == order
    assert flipped_images(records())['negative'] == lost  # without probabilities by number
    del given.models['teacher']
    assert flipped_images(given) == {}


# The student beside teacher and base model


def trio(n=40, seed=0, **columns):
    random = np.random.default_rng(seed)
    label = np.arange(n) % 2
    models = {}
    for name, wrong in (('student', 5), ('teacher', 4), ('base', 15)):
        prediction = label.copy()
        prediction[random.permutation(n)[:wrong]] ^= 1
        models[name] = Column(prediction)
    return Records(np.arange(n), models, label, **columns)


def test_gains_over_the_base_model():
    given = trio()
    student, teacher, base = (given.models[name] for name in ('student', 'teacher', 'base'))
    student.kl, base.kl = np.full(40, 0.2), np.full(40, 0.5)
    random = np.random.default_rng(3)
    student.agreement, base.agreement = random.random((2, 40)) * 0.1 + [[0.9], [0.4]]
    found = gain(given)
    alike = [(each.prediction == teacher.prediction).mean() for each in (student, base)]
    assert found.agreement.value == pytest.approx(alike[0] - alike[1])
    assert found.kl.value == pytest.approx(0.3)
    kappas = [audit(given, 'teacher', name).errors.kappa.value for name in ('student', 'base')]
    assert found.kappa.value == pytest.approx(kappas[0] - kappas[1])
    assert found.kappa.low < found.kappa.value < found.kappa.high
    right = [each.prediction == given.label for each in (student, teacher, base)]
    counted = np.logical_and.reduce(right)
    assert found.maps.n == counted.sum()
    assert found.maps.value == pytest.approx((student.agreement - base.agreement)[counted].mean())
    assert found.student_maps - found.base_maps == pytest.approx(found.maps.value)
    both = [int((~right[1] & ~each).sum()) for each in (right[0], right[2])]
    assert [found.copied[name] for name in ('student', 'base')] == [(n, n) for n in both]
    given.label = None
    found = gain(given)
    assert found.maps.n == 40 and found.kappa is None and found.copied == {}


def test_gains_need_three_models_and_enough_maps():
    assert gain(records()) is None
    few = trio(8)
    for name in ('student', 'base'):
        few.models[name].agreement = np.ones(8)
    assert gain(few).maps is None


def test_agreement_needs_no_label():
    given = records()
    given.label = None
    assert fidelity(given).agreement.value == 7 / 12
    with pytest.raises(ValueError, match='^an audit needs one label for each image .*or several$'):
        audit(given)


# What is refused, and what is noted


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(alpha=0), 'alpha is 0; it must be a finite number above 0 and of at most 0.5'),
        (dict(alpha=0.7), 'alpha is 0.7'),
        (dict(margin=0), 'margin is 0; it must be a finite number above 0'),
        (dict(margin=-1.0), 'margin is -1.0'),
        (dict(draws=0), 'draws is 0; it must be an integer of at least 1'),
        (dict(seed=-1), 'seed is -1'),
        (dict(old='base'), "the records have no model 'base'; they have 'student', 'teacher'"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=f'^{message}'):
        audit(records(), **options)


def test_no_image_and_columns_of_other_lengths():
    with pytest.raises(ValueError, match='^the audit has no image: the records are empty$'):
        records([], [], [])
    with pytest.raises(
        ValueError, match='^map_score is .js_divergence.; it must be one of cosine, '
    ):
        records(map_score='js_divergence')
    with pytest.raises(ValueError, match='^the audit has 12 images and 3 values of group$'):
        records(group=np.zeros(3))
    with pytest.raises(ValueError, match='12 images and 2 values of teacher.prediction$'):
        records(teacher=[0, 1])


def test_few_images_of_one_class_are_noted():
    found = audit(records([0, 0, 0], [0, 0, 1], [0, 0, 0], classes=('cat', 'dog')))
    assert found.notes == [
        '3 images are too few: the overall test needs 6 flips in one direction',
        'All images are of one class (cat), so the classes say no more than the total',
        '1 classes have no image and are not in the family of 1 tests',
        'The records hold no probabilities of both models for every image, so calibration is not '
        'compared',
        'The records hold no KL divergence, which needs the logits of both models',
    ]
    assert found.classes.absent == [1] and found.classes.changes[0].name == 'cat'


def test_a_margin_is_held_by_the_interval_and_not_by_p():
    n = 1000
    label, old, new = np.zeros((3, n), int)
    new[:5], old[5:10] = 1, 1
    assert audit(records(new, old, label), margin=1.0).no_worse
    assert not audit(records(new, old, label), margin=0.5).no_worse
    assert audit(records(new[:50], old[:50], label[:50]), margin=1.0).no_worse is False


# CSV files


def write(path: Path, label, order=None, classes=None, **models):
    rows = {}
    for i in range(len(label)) if order is None else order:
        rows[int(i)] = {}
        for name, prediction in models.items():
            front = '' if name == 'student' else f'{name}/'
            rows[int(i)][f'{front}prediction'] = int(prediction[i])
            rows[int(i)][f'{front}label'] = int(label[i])
            rows[int(i)].update(
                {f'{front}confidence': 0.5, f'{front}kl': 0.25, f'{front}pearson': 0.9}
            )
    append_values(path, rows, classes)
    return path


def test_csv_files_are_joined_by_index(tmp_path):
    order = np.random.default_rng(0).permutation(12)
    one = write(tmp_path / 'student.csv', LABEL, student=STUDENT)
    lines = write(tmp_path / 'teacher.csv', LABEL, student=TEACHER).read_text().splitlines()
    # Another order, and an image twice
    mixed = [lines[0], *(lines[1 + i] for i in order), lines[1]]
    (tmp_path / 'teacher.csv').write_text('\n'.join(mixed) + '\n')
    found = Records.from_csv(dict(student=one, teacher=tmp_path / 'teacher.csv'))
    assert len(found) == 12
    assert audit(found).cells == audit(records()).cells


def test_one_csv_file_with_all_models(tmp_path):
    path = write(tmp_path / 'test.csv', LABEL, student=STUDENT, teacher=TEACHER, base=LABEL)
    found = Records.from_csv(dict.fromkeys(('student', 'teacher', 'base'), path))
    assert found.models['student'].kl.tolist() == [0.25] * 12
    # Another file may hold what was measured against another teacher
    other = write(tmp_path / 'other.csv', LABEL, student=TEACHER)
    apart = Records.from_csv(dict(student=path, teacher=other))
    assert apart.models['student'].kl is None and apart.models['student'].agreement is None
    assert apart.models['student'].confidence is not None
    assert found.models['base'].prediction.tolist() == LABEL.tolist()
    assert audit(found).cells == audit(records()).cells
    assert found.models['student'].confidence.tolist() == [0.5] * 12


def test_names_of_classes_come_along(tmp_path):
    path = write(tmp_path / 'a.csv', LABEL, classes=('cat', 'dog', 'fox'), student=STUDENT)
    found = Records.from_csv(dict(student=path))
    assert found.classes == ['cat', 'dog', 'fox']


def refused(tmp_path, message, second=None, text=None):
    one = write(tmp_path / 'one.csv', LABEL, classes=('cat', 'dog', 'fox'), student=STUDENT)
    two = tmp_path / 'two.csv'
    if text is None:
        write(two, **second)
    else:
        two.write_text(text)
    with pytest.raises(ValueError, match=message):
        Records.from_csv(dict(student=one, teacher=two))


def test_other_images_are_refused(tmp_path):
    second = dict(label=LABEL[:11], student=TEACHER)
    refused(tmp_path, 'one.csv and .*two.csv have different images: 1 are in only one', second)


def test_other_labels_are_refused(tmp_path):
    second = dict(label=(LABEL + 1) % 3, student=TEACHER)
    refused(tmp_path, 'image 0 has the label 0 in .*one.csv and 1 in .*two.csv; evaluate', second)


def test_other_classes_are_refused(tmp_path):
    second = dict(label=LABEL, student=TEACHER, classes=('dog', 'cat', 'fox'))
    refused(tmp_path, "class 0 is 'cat' in .*and 'dog' in .*; the models have different cl", second)


def test_groups_on_one_side_are_refused(tmp_path):
    text = 'index,prediction,label,group\n' + '\n'.join(f'{i},0,{LABEL[i]},1' for i in range(12))
    refused(tmp_path, 'image 0 has the group none in .* and 1 in .*; both files need', text=text)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (
            'index,prediction\n0,1\n',
            'two.csv has no column label; an audit needs the values of each',
        ),
        ('', 'two.csv has no column index, label, prediction; an audit needs'),
        ('index,prediction,label\n', "two.csv has no row of the model 'student'$"),
        ('index,prediction,label\n0,cat,1\n', 'two.csv, line 2: a value is missing or no num.*cat'),
        ('index,prediction,label\n0,,1\n', "two.csv, line 2: a value is missing .*: 'prediction'$"),
        ('index,prediction,label\n0,1.5,1\n', 'two.csv, line 2: .*: prediction is 1.5$'),
        ('index,prediction,label\n0,0,0\ninf,1,1\n', 'two.csv, line 3: .*: index is inf$'),
        ('index,prediction,label\nnan,1,1\n', 'two.csv, line 2: .*: index is nan$'),
    ],
)
def test_files_without_records_are_refused(tmp_path, text, message):
    refused(tmp_path, message, text=text)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        Records.from_csv(dict(student=tmp_path / 'none.csv'))


# Rows of an evaluation, and tables


def test_rows_of_an_evaluation():
    rows = {
        i: {
            'prediction': int(STUDENT[i]),
            'teacher/prediction': int(TEACHER[i]),
            'label': int(LABEL[i]),
            'kl': 0.25,
            'pearson': COSINE[i],
            'group': i % 2,
        }
        for i in range(12)
    }
    found = Records.from_rows(rows)
    assert audit(found).fidelity.kl.value == 0.25
    assert found.models['student'].agreement.tolist() == COSINE.tolist()
    assert found.models['teacher'].agreement is None and found.group.tolist() == [0, 1] * 6
    del rows[3]['label'], rows[3]['kl']
    found = Records.from_rows(rows)
    assert found.group.dtype == int
    del rows[4]['group']
    assert Records.from_rows(rows).group is None
    assert found.label is None and np.isnan(found.models['student'].kl).sum() == 1
    assert Records.from_rows(rows, map_score='ssim').models['student'].agreement is None


def test_all_numbers_go_into_json():
    given = records(group=np.arange(12) % 2, classes=('cat', 'dog', 'fox', 'owl'))
    given.models['student'].agreement = COSINE
    content = json.loads(json.dumps(audit(given, margin=2.0).to_dict(), allow_nan=False))
    assert content['cells'] == dict(RR=5, RW=3, WR=2, WW=2)
    assert content['alpha'] == 0.05 and content['classes']['flips_needed'] == 7
    assert content['classes']['absent'] == [3] and content['margin'] == 2.0
    assert content['maps']['RW']['low'] is None
    assert content['groups']['changes'][0]['n'] == 6
    assert plain(np.float64(2.5)) == 2.5 and plain([math.nan]) == [None]


def test_tables():
    given = trio(group=np.arange(40) % 2)
    for model in given.models.values():
        model.confidence = model.label_probability = model.agreement = np.full(40, 0.5)
    audits = dict(one=audit(given), two=audit(given, 'base'))
    rows = {row[0]: row[1:] for row in table_rows(audits)}
    assert rows['n = 40'] == ['one', 'two']
    assert rows['difference, points'][0].startswith('-2.5 (')
    assert (
        rows['maps where RR'][1] == ''
    )  # the base model's maps are not compared with the student's
    assert 'group' in rows['largest drop of a group, points'][0]
    assert len(rows) == len({*rows}) and all(len(row) == 2 for row in rows.values())
    plain_rows = {row[0] for row in table_rows(dict(one=audit(records())))}
    assert not plain_rows & {'difference of ECE', 'maps where RR', 'changed groups (Holm)'}
    lines = class_rows(audits).splitlines()
    assert len(lines) == 1 + 2 * (2 + 2)
    assert lines[0].startswith('comparison,family,key,name,n,negative,positive,old,new,change,p,')
    p_values = [float(line.split(',')[11]) for line in lines[1:3]]
    assert p_values == sorted(p_values)
