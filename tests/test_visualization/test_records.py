"""Tables, files of values and scores, and curves."""

import csv
import json
import math

import pytest
from full_disk import full_disk

from mmkdx.files import WriteError
from mmkdx.metrics import Score
from mmkdx.visualization.records import (
    append_scores,
    append_values,
    by_model,
    format_score,
    read_curves,
    read_parts,
    score_table,
)

NAN = math.nan
SCORES = {
    'deletion': Score(0.25, 0.24, 0.26, 50, 'lower'),
    'teacher/deletion': Score(0.125, 0.12, 0.13, 50, 'lower'),
    'base/deletion': Score(0.5, 0.4, 0.6, 48, 'lower'),
    'pearson': Score(0.75, 0.7, 0.8, 49, 'higher'),
    'base/pearson': Score(NAN, NAN, NAN, 0, 'higher'),
    'degenerate': Score(3, NAN, NAN, 50, 'lower'),
    'teacher/degenerate': Score(0, NAN, NAN, 50, 'lower'),
}


def cells(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith('|')]
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]


def test_scores_group_by_what_they_are_of():
    grouped = by_model(SCORES)
    assert list(grouped) == ['deletion', 'pearson', 'degenerate']
    assert grouped['deletion']['teacher'] is SCORES['teacher/deletion']
    assert set(grouped['pearson']) == {'student', 'base'}


def test_the_table_has_a_column_for_each_model_and_for_comparisons():
    head, *rows = cells(score_table(SCORES))
    assert head == [
        'score', 'better', 'student', 'teacher', 'base',
        'student with teacher', 'base with teacher', 'n',
    ]  # fmt: skip
    own = ['0.2500 ± 0.0100', '0.1250 ± 0.0050', '0.5000 ± 0.1000']
    assert rows == [
        ['deletion', 'lower', *own, '', '', '50 / 48'],
        ['pearson', 'higher', '', '', '', '0.7500 ± 0.0500', '-', '49 / 0'],
        ['degenerate', 'lower', '3', '0', '', '', '', '50'],
    ]


def test_scores_of_pairs_are_of_their_model_and_of_batches():
    """They compare with the base model, not with the teacher, also where a teacher has none."""
    pairs = {
        'base/fss_stage1': Score(0.5, 0.4, 0.6, 192, None, 3, 0.02),
        'teacher/fss_stage1': Score(0.25, 0.2, 0.3, 192, None, 3, 0.01),
        'part_stage1': Score(0.75, 0.7, 0.8, 192, 'higher', 3, 0.01),
        'base/part_stage1': Score(-0.125, -0.2, -0.05, 128, 'higher', 2, 0.01),
        'rho_stage1': Score(NAN, NAN, NAN, 0, None, 0, NAN),
    }
    head, *rows = cells(score_table(pairs))
    assert head == ['score', 'better', 'student', 'teacher', 'base', 'n']
    assert rows == [
        ['fss_stage1', '', '', '0.2500 ± 0.0500', '0.5000 ± 0.1000', '192 in 3'],
        ['part_stage1', 'higher', '0.7500 ± 0.0500', '', '-0.1250 ± 0.0750', '192 in 3 / 128 in 2'],
        ['rho_stage1', '', '-', '', '', '0 in 0'],
    ]
    head, *rows = cells(score_table({**SCORES, **pairs}))
    assert head[5:7] == ['student with teacher', 'base with teacher']
    own = {row[0]: row[2:5] for row in rows if row[5:7] == ['', '']}
    assert set(own) == {'deletion', 'degenerate', 'fss_stage1', 'part_stage1', 'rho_stage1'}


def test_without_a_teacher_all_scores_are_the_students():
    table = cells(score_table({'deletion': SCORES['deletion']}))
    assert table == [
        ['score', 'better', 'student', 'n'],
        ['deletion', 'lower', '0.2500 ± 0.0100', '50'],
    ]


@pytest.mark.parametrize(
    ('score', 'text'),
    [
        (Score(NAN, NAN, NAN, 0), '-'),
        (Score(0.5, NAN, NAN, 1), '0.5'),
        (Score(-0.25, -0.5, 0.0, 2), '-0.2500 ± 0.2500'),
    ],
)
def test_scores_as_text(score, text):
    assert format_score(score) == text


def test_values_are_one_row_for_each_image_and_model(tmp_path):
    path = tmp_path / 'val.csv'
    rows = {7: {'deletion': 0.5, 'teacher/deletion': 0.25, 'pearson': 0.75}, 2: {'deletion': 0.125}}
    append_values(path, rows, epoch=1)
    append_values(path, {2: {'deletion': NAN}}, epoch=2)
    with path.open(newline='') as file:
        lines = list(csv.reader(file))
    assert lines == [
        ['epoch', 'index', 'model', 'deletion', 'pearson'],
        ['1', '2', 'student', '0.125', ''],
        ['1', '7', 'student', '0.5', '0.75'],
        ['1', '7', 'teacher', '0.25', ''],
        ['2', '2', 'student', 'nan', ''],
    ]


def test_classes_have_their_names_beside_their_numbers(tmp_path):
    rows = {
        0: {'target': 1, 'teacher/target': 1, 'prediction': 2, 'teacher/prediction': 0, 'label': 1}
    }
    append_values(tmp_path / 'val.csv', rows, ['猫', 'football helmet'])
    assert (tmp_path / 'val.csv').read_text(encoding='utf-8').splitlines() == [
        'index,model,target,prediction,label,target_class,label_class,prediction_class',
        '0,student,1,2,1,football helmet,football helmet,',
        '0,teacher,1,0,,football helmet,,猫',
    ]


def test_a_file_of_other_columns_is_not_spoilt(tmp_path):
    path = tmp_path / 'val.csv'
    append_values(path, {0: {'deletion': 0.5}}, epoch=1)
    before = path.read_text()
    with pytest.raises(ValueError, match='val.csv has no column gini; choose another .*out_dir'):
        append_values(path, {0: {'gini': 0.5}}, epoch=2)
    assert path.read_text() == before


@pytest.mark.parametrize('torn', ['', 'epoch,ind', 'epoch,index,model,deletion\r\n1,0,stud'])
def test_what_a_crash_tore_is_cut_off(tmp_path, torn):
    path = tmp_path / 'val.csv'
    path.write_bytes(torn.encode())
    append_values(path, {0: {'deletion': 0.5}}, epoch=2)
    assert path.read_bytes() == b'epoch,index,model,deletion\r\n2,0,student,0.5\r\n'


def test_a_full_disk_leaves_values_and_scores_as_they_were(tmp_path):
    values, scores = tmp_path / 'val.csv', tmp_path / 'val.json'
    rows = {i: {'deletion': 0.5} for i in range(99)}
    for epoch in (1, 2):
        append_values(values, rows, epoch=epoch)
        append_scores(scores, SCORES, epoch=epoch)
        before = values.read_bytes(), scores.read_bytes()
        with full_disk(len(before[0]) + 50):
            with pytest.raises(WriteError, match=f'cannot write {values}: File too large'):
                append_values(values, rows, epoch=3)
        with full_disk(len(before[1]) + 50):
            with pytest.raises(WriteError, match=f'cannot write {scores}: File too large'):
                append_scores(scores, SCORES, epoch=3)
        assert (values.read_bytes(), scores.read_bytes()) == before


def test_scores_are_lines_of_strict_json(tmp_path):
    path = tmp_path / 'val.json'
    for epoch in (1, 2):
        append_scores(path, {'pearson': Score(NAN, NAN, NAN, 0, 'higher')}, epoch=epoch)

    def refuse(name):
        raise AssertionError(f'{name} is no JSON')

    lines = [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]
    assert lines[1] == dict(
        epoch=2, scores=dict(pearson=dict(value=None, low=None, high=None, n=0, better='higher'))
    )


def test_lines_of_pairs_have_batches_and_an_error(tmp_path):
    path = tmp_path / 'val.json'
    pair = Score(0.5, 0.4, 0.6, 192, None, 3, 0.02)
    append_scores(path, {'part': pair, 'none': Score(NAN, NAN, NAN, 0, None, 0, NAN)}, epoch=1)
    scores = json.loads(path.read_text())['scores']
    assert scores['part'] == dict(
        value=0.5, low=0.4, high=0.6, n=192, better=None, batches=3, error=0.02
    )
    assert scores['none']['batches'] == 0 and scores['none']['error'] is None


def test_curves_of_a_resumed_run_are_joined(tmp_path):
    starts = {
        '20260101_000000': [
            {'lr': 0.1, 'loss': 2.0, 'data/x': 1.0, 'step': 1},
            {'accuracy/top1': 50.0, 'explain/pearson': 0.5, 'time': 1.0, 'step': 1},
            {'accuracy/top1': 60.0, 'explain/pearson': NAN, 'step': 2},
        ],
        '20260102_000000': [{'accuracy/top1': 62.0, 'step': 2}, {'accuracy/top1': 70.0, 'step': 3}],
    }
    for name, lines in starts.items():
        folder = tmp_path / name / 'vis_data'
        folder.mkdir(parents=True)
        (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))
    assert read_curves(tmp_path) == {
        'accuracy/top1': [(1, 50.0), (2, 62.0), (3, 70.0)],
        'explain/pearson': [(1, 0.5)],
    }
    # Half a line, and scores of each class
    with (tmp_path / '20260102_000000/vis_data/scalars.json').open('a') as file:
        file.write('\n{"recall/classwise": [1.0, 0.5], "step": 4}\n{"accuracy/top1": 8')
    assert read_curves(tmp_path)['accuracy/top1'][-1] == (3, 70.0)
    assert read_curves(tmp_path / 'nowhere') == {}


def test_what_weights_measured_is_averaged_over_epochs(tmp_path):
    def line(step, epoch, cosine, **more):
        return {'lr': 0.1, 'loss': 1.0, 'kd.cosine': cosine, 'epoch': epoch, 'step': step, **more}

    starts = [
        [line(1, 1, 0.5, weight=3.0), line(2, 1, -0.25), line(3, 2, 1.0), line(4, 2, NAN)],
        [line(3, 2, 0.125, **{'kd.weight': 2.0, 'kd.other': 1.0}), line(4, 2, NAN)],
    ]
    iterations = [{'lr': 0.1, 'loss': 1.0, 'kd.conflict': 0.5, 'step': 500}]
    for i, lines in enumerate([*starts, iterations]):
        folder = tmp_path / ('epochs', 'iterations')[i // 2] / f'{i}/vis_data'
        folder.mkdir(parents=True)
        (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))
    assert read_curves(tmp_path / 'epochs') == {
        'kd.cosine': [(1, 0.125), (2, 0.125)],
        'kd.weight': [(2, 2.0)],
    }
    assert read_curves(tmp_path / 'iterations') == {'kd.conflict': [(500, 0.5)]}


def training(first, last, interval=10, epoch=100):
    """Lines as mmengine logs them at every ``interval`` steps, and a validation after each epoch."""
    for step in range(first + interval, last + 1, interval):
        yield dict(lr=0.1, loss=1.0, epoch=(step - 1) // epoch + 1, step=step)
        if step % epoch == 0:
            yield {'accuracy/top1': float(step + first), 'step': step // epoch}


ANEW, RESUMED, AGAIN, INSIDE = (0, 250), (200, 330), (300, 500), (40, 500)
FINE = (0, 200, 5)


@pytest.mark.parametrize(
    ('starts', 'order'),
    [
        ([ANEW, RESUMED, AGAIN], [ANEW, RESUMED, AGAIN]),
        # The clock was set back
        ([RESUMED, AGAIN, ANEW], [ANEW, RESUMED, AGAIN]),
        ([AGAIN, ANEW, RESUMED], [ANEW, RESUMED, AGAIN]),
        # Begun anew, also with another interval of the log
        ([ANEW, RESUMED, ANEW], [ANEW]),
        ([ANEW, FINE], [FINE]),
        ([FINE, ANEW, RESUMED], [ANEW, RESUMED]),
        # Resumed inside the first epoch, and twice from one checkpoint
        ([ANEW, INSIDE], [ANEW, INSIDE]),
        ([ANEW, RESUMED, RESUMED], [ANEW, RESUMED, RESUMED]),
        ([RESUMED, AGAIN], [RESUMED, AGAIN]),
        ([], []),
    ],
)
def test_parts_of_a_run_are_sorted_by_where_they_begin(tmp_path, starts, order):
    for i, start in enumerate(starts):
        folder = tmp_path / f'{i}/vis_data'
        folder.mkdir(parents=True)
        (folder / 'scalars.json').write_text(
            ''.join(f'{json.dumps(each)}\n' for each in training(*start))
        )
    found = read_parts(tmp_path)
    assert [records for _, records in found] == [list(training(*start)) for start in order]
    if order == [ANEW, RESUMED, AGAIN]:
        # What was resumed counts
        points = [(1, 100.0), (2, 200.0), (3, 500.0), (4, 700.0), (5, 800.0)]
        assert read_curves(tmp_path) == {'accuracy/top1': points}


def test_a_part_with_only_a_validation_counts(tmp_path):
    lines = [list(training(0, 150)), [{'accuracy/top1': 7.0, 'step': 1}], list(training(100, 200))]
    for i, each in enumerate(lines):
        folder = tmp_path / f'{i}/vis_data'
        folder.mkdir(parents=True)
        (folder / 'scalars.json').write_text(''.join(f'{json.dumps(line)}\n' for line in each))
    assert [records for _, records in read_parts(tmp_path)] == lines
    assert read_curves(tmp_path) == {'accuracy/top1': [(1, 7.0), (2, 300.0)]}
