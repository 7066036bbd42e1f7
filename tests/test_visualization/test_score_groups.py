"""Scores by the question that they answer, and over the depth of the networks."""

import math

import pytest

from mmkdx.metrics import Score
from mmkdx.metrics.about import QUESTIONS, About
from mmkdx.visualization.curves import BOTTOM, COLORS, LEFT, RIGHT, TOP, stage_charts
from mmkdx.visualization.score_groups import Table, score_groups

NAN = math.nan
SCORES = {
    'gini': Score(0.5, 0.4, 0.6, 8, 'higher'),
    'teacher/gini': Score(0.25, 0.2, 0.3, 8, 'higher'),
    'pearson': Score(0.75, 0.7, 0.8, 8, 'higher'),
    'base/pearson': Score(0.5, 0.4, 0.6, 8, 'higher'),
    'pearson_gain': Score(0.25, 0.2, 0.3, 8, 'higher'),
    'rs_stage1': Score(0.2, 0.1, 0.3, 64, 'higher', 1, 0.02),
    'rs_stage2': Score(0.4, 0.3, 0.5, 64, 'higher', 1, 0.02),
    'base/rs_stage2': Score(0.6, NAN, NAN, 64, 'higher', 1, 0.02),
    'mine': Score(1.0, n=8),
}
ABOUT = {
    'gini': About('complexity', 'G.', 'guide'),
    'pearson': About('agreement', 'P.'),
    'pearson_gain': About('agreement', 'P.', variant='gain over the base model'),
    'rs_stage1': About('distilled', 'R.'),
    'rs_stage2': About('distilled', 'R.'),
}


def groups(**options):
    found = score_groups(SCORES, ABOUT, stages=('stage1', 'stage2'), **options)
    return {group.name: group for group in found}


def test_groups_come_in_the_order_of_the_questions():
    found = groups()
    assert list(found) == [n for n in QUESTIONS if n in found]
    assert list(found) == ['agreement', 'complexity', 'distilled', 'other']
    assert found['agreement'].heading == 'Does it decide for the same reasons?'


def test_tables_of_a_group():
    tables = groups()['agreement'].tables
    assert [table.heading for table in tables] == ['', 'gain over the base model']
    assert tables[0].head == ['score', 'better', 'student with teacher', 'base with teacher', 'n']
    assert tables[0].rows == [['pearson', 'higher', '0.7500 ± 0.0500', '0.5000 ± 0.1000', '8']]
    assert [row[0] for row in tables[1].rows] == ['pearson_gain']
    assert groups(student='tiny')['complexity'].tables[0].head == [
        'score',
        'better',
        'tiny',
        'teacher',
        'n',
    ]
    assert groups()['other'].tables[0].rows == [['mine', '', '1', '8']]


def test_meanings_are_of_the_scores_themselves():
    found = groups()
    assert found['agreement'].meanings == {'pearson': ABOUT['pearson']}
    assert found['distilled'].meanings == {'rs': ABOUT['rs_stage2']}


def test_a_further_table_stands_first():
    table = Table(['class', 'p'], [['a', '0.1']], 'Classes', 'n is 8', 'agreement')
    assert groups(tables=[table])['agreement'].tables[0] is table
    found = score_groups({}, {}, tables=[table])
    assert [group.name for group in found] == ['agreement']


def test_stages_are_a_chart_with_intervals():
    (chart,) = groups()['distilled'].charts
    assert chart['count'] == '64 in 1'
    assert chart['metric'] == 'rs' and [text for text, _ in chart['x_ticks']] == [
        'stage1',
        'stage2',
    ]
    assert [place for _, place in chart['x_ticks']] == [LEFT + 16, RIGHT - 16]
    student, base = chart['lines']
    assert (student['run'], base['run']) == ('student', 'base')
    assert (student['color'], base['color']) == (COLORS[0], COLORS[2])
    # The axis goes from 0.1 to 0.6
    height = BOTTOM - TOP
    assert [float(p['y']) for p in student['points']] == pytest.approx(
        [BOTTOM - height * 0.2, BOTTOM - height * 0.6], abs=0.06
    )
    assert [float(y) for y in student['points'][0]['bar']] == pytest.approx(
        [BOTTOM, BOTTOM - height * 0.4], abs=0.06
    )
    assert base['points'] == [
        dict(x=f'{RIGHT - 12:.1f}', y=f'{TOP:.1f}', at='stage2', bar=[], value='0.600')
    ]


def test_a_chart_of_one_stage_and_one_of_nothing():
    one = dict(rs=dict(s=dict(student=Score(0.5))), no=dict(s=dict(student=Score(NAN))))
    (chart,) = stage_charts(one, ['s'])
    assert chart['metric'] == 'rs' and len(chart['lines'][0]['points']) == 1
