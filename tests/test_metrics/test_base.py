"""The base of the metrics of explanations: rows, scores, what is kept, and what is not counted."""

import warnings

import numpy as np
import pytest
import torch
from processes import launch
from scipy import stats

from mmkdx.metrics import Explained, ExplainedBatch, ExplanationMetric, Score, mean_score

NAN = float('nan')


def model(n, seed=0, fixed=False, maps=None):
    if maps is None:
        maps = torch.randn(n, 4, 4, generator=torch.Generator().manual_seed(seed))
    return Explained(
        maps,
        torch.zeros(n, dtype=torch.long),
        torch.zeros(n, 3),
        predict=lambda images: torch.zeros(len(images), 3),
        explain=lambda images, targets: images.mean(1),
        fixed=fixed,
    )


def batch_of(index, **models):
    """Image i has the value i everywhere."""
    inputs = torch.tensor([float(i) for i in index])[:, None, None, None].expand(-1, 3, 4, 4)
    return ExplainedBatch(inputs, index, models or dict(student=model(len(index))))


class Value(ExplanationMetric):
    """Each image's number, times 10 for the teacher, times 100 for the base model."""

    better = dict(value='higher')

    def __init__(self, counts_degenerate=False, as_list=False):
        super().__init__()
        self.counts_degenerate, self.as_list = counts_degenerate, as_list
        self.asked = []

    def measure(self, batch, explained):
        name = next(n for n, m in batch.models.items() if m is explained)
        self.asked.append((name, list(batch.index)))
        value = batch.inputs[:, 0, 0, 0] * dict(student=1, teacher=10, base=100)[name]
        return dict(value=value.tolist() if self.as_list else value)


class Difference(ExplanationMetric):
    """The difference of the first elements of two models' maps."""

    better = dict(difference='lower')

    def compare(self, batch, student, teacher):
        return dict(difference=student.maps[:, 0, 0] - teacher.maps[:, 0, 0])


class Both(Value, Difference):
    better = Value.better | Difference.better


def evaluate(metric, *batches, size=10_000):
    for batch in batches:
        metric.process(batch)
    return metric.evaluate(size)


# The mean of values


def test_interval_is_that_of_scipy():
    values = np.random.default_rng(0).normal(3, 2, 25)
    score = mean_score(list(values), 'higher')
    low, high = stats.t.interval(0.95, 24, loc=values.mean(), scale=stats.sem(values))
    assert score == pytest.approx(Score(values.mean(), low, high, 25, 'higher'))


def test_interval_by_hand():
    # deviation 1, t(0.975, 2) = 4.3027
    score = mean_score([1, 2, 3])
    assert score.value == 2 and score.n == 3 and score.better is None
    assert score.high - 2 == 2 - score.low == pytest.approx(4.302653 / np.sqrt(3))


@pytest.mark.parametrize(
    'values, expected',
    [
        ([], (NAN, NAN, NAN, 0)),
        ([NAN, NAN], (NAN, NAN, NAN, 0)),
        ([NAN, 2.0], (2, NAN, NAN, 1)),
        ([2.0, 2.0, NAN, 2.0], (2, 2, 2, 3)),
        ([True, False], (0.5, 0.5 - 12.7062 / 2, 0.5 + 12.7062 / 2, 2)),
    ],
    ids=str,
)
def test_few_values(values, expected):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        score = mean_score(values, 'lower')
    assert score[:4] == pytest.approx(expected, nan_ok=True, rel=1e-5)
    assert score.better == 'lower' and type(score.value) is float


# From batches to scores


@pytest.mark.parametrize('as_list', [False, True])
def test_names_and_directions_of_several_models(as_list):
    names = ('student', 'teacher', 'base')
    batch = batch_of([1, 3], **{name: model(2, seed) for seed, name in enumerate(names)})
    result = evaluate(Both(as_list=as_list), batch)
    assert {name: score.value for name, score in result.items() if 'value' in name} == {
        'value': 2,
        'teacher/value': 20,
        'base/value': 200,
    }
    maps = [m.maps[:, 0, 0] for m in batch.models.values()]
    assert result['difference'].value == pytest.approx((maps[0] - maps[1]).mean().item())
    assert result['base/difference'].value == pytest.approx((maps[2] - maps[1]).mean().item())
    assert 'teacher/difference' not in result and len(result) == 5
    for name, score in result.items():
        assert score.n == 2 and score.better == ('higher' if 'value' in name else 'lower')


@pytest.mark.parametrize('order', [('teacher', 'student'), ('student', 'teacher')])
def test_models_may_stand_in_any_order(order):
    models = {name: model(1, seed=len(name)) for name in order}
    result = evaluate(Both(), batch_of([2], **models))
    assert result['value'].value == 2 and result['teacher/value'].value == 20
    maps = models['student'].maps - models['teacher'].maps
    assert result['difference'].value == pytest.approx(maps[0, 0, 0].item())


def test_nothing_is_compared_without_a_teacher():
    batch = batch_of([1], student=model(1), base=model(1))
    assert set(evaluate(Both(), batch)) == {'value', 'base/value'}


def test_a_name_without_a_direction():
    class Plain(Value):
        better = {}

    assert evaluate(Plain(), batch_of([1]))['value'].better is None


@pytest.mark.parametrize(
    'split', [[[0, 1, 2, 3, 4]], [[4], [2, 0], [1, 3]], [[0], [1], [2], [3], [4]]]
)
def test_scores_do_not_depend_on_the_batches_or_their_order(split):
    metric = Value()
    result = evaluate(metric, *map(batch_of, split))
    assert result['value'] == mean_score([0, 1, 2, 3, 4], 'higher')
    assert metric.rows == {i: dict(value=i) for i in range(5)}


def test_a_repeated_sample_counts_once():
    metric = Value()
    result = evaluate(metric, batch_of([5, 6]), batch_of([7, 5]), batch_of([5]))
    assert result['value'].n == 3 and result['value'].value == 6
    assert sorted(metric.rows) == [5, 6, 7]


def test_an_index_may_be_a_tensor_and_the_rows_have_plain_numbers():
    metric = Value()
    batch = batch_of([3, 9])
    batch.index = torch.tensor([3, 9])
    evaluate(metric, batch)
    assert metric.rows == {3: dict(value=3.0), 9: dict(value=9.0)}
    assert all(type(i) is int and type(r['value']) is float for i, r in metric.rows.items())


def test_one_evaluation_knows_nothing_of_the_last():
    metric = Value()
    assert evaluate(metric, batch_of([0, 1]))['value'].value == 0.5
    assert evaluate(metric, batch_of([7]))['value'].value == 7
    assert sorted(metric.rows) == [7]


def test_a_value_that_some_samples_lack_is_the_mean_of_the_others():
    rows = [dict(a=1.0), dict(a=2.0, b=5.0), dict(b=7.0)]
    result = Value().summarize(rows)
    assert (result['a'].value, result['a'].n) == (1.5, 2)
    assert (result['b'].value, result['b'].n) == (6, 2)


def test_no_samples_have_no_scores():
    assert Value().summarize([]) == {}


def test_values_of_a_subclass_may_be_summarised_by_itself():
    class Counts(ExplanationMetric):
        def measure(self, batch, explained):
            return dict(counts=[(1, 2)] * len(batch.index))

        def summarize(self, rows):
            hits, total = np.sum([row['counts'] for row in rows], axis=0)
            return dict(share=Score(hits / total, NAN, NAN, len(rows)))

    assert evaluate(Counts(), batch_of([0, 1, 2]))['share'].value == 0.5


# Sample 3 is in both ranks, as when a sampler fills up the last batch
RANKS = """
import torch
import torch.distributed as dist
from mmkdx.metrics import Explained, ExplainedBatch, ExplanationMetric

dist.init_process_group('gloo')

class Value(ExplanationMetric):
    def measure(self, batch, model):
        return dict(value=batch.inputs[:, 0, 0, 0])

metric = Value()
for index in ([[0, 2], [4, 3]] if dist.get_rank() == 0 else [[1, 3]]):
    n = len(index)
    inputs = torch.tensor(index).float()[:, None, None, None].expand(-1, 3, 4, 4)
    model = Explained(torch.rand(n, 4, 4), torch.zeros(n), torch.zeros(n, 2), None, None)
    metric.process(ExplainedBatch(inputs, index, dict(student=model)))
score = metric.evaluate(100)['value']
print(f'[rank {dist.get_rank()}: {score.value} of {score.n}, {len(metric.rows)} rows]', flush=True)
dist.barrier()
dist.destroy_process_group()
"""


def test_ranks_with_samples_of_their_own_know_one_score(tmp_path):
    script = tmp_path / 'ranks.py'
    script.write_text(RANKS)
    written = launch(script)
    assert '[rank 0: 2.0 of 5, 5 rows]' in written
    assert '[rank 1: 2.0 of 5, 0 rows]' in written


# Maps that say nothing

BAD = [torch.zeros(4, 4), torch.full((4, 4), 0.7), torch.full((4, 4), NAN)]


@pytest.mark.parametrize('bad', BAD, ids=['zero', 'constant', 'nan'])
@pytest.mark.parametrize('counts', [False, True])
@pytest.mark.parametrize('which', ['student', 'teacher', 'base'])
def test_only_values_that_rest_on_a_bad_map_are_left_out(bad, counts, which):
    batch = batch_of([1, 2, 3], **{n: model(3) for n in ('student', 'teacher', 'base')})
    batch.models[which].maps[1] = bad
    metric = Both(counts_degenerate=counts)
    result = evaluate(metric, batch)
    rests = dict(
        student=['value', 'difference'],
        teacher=['teacher/value', 'difference', 'base/difference'],
        base=['base/value', 'base/difference'],
    )
    for name, score in result.items():
        left_out = not counts and name in rests[which]
        expected = metric.rows[2][name]
        assert np.isnan(expected) == (
            left_out or ('difference' in name and bad.isnan().any() and name in rests[which])
        )
        assert score.n == 3 - int(np.isnan(expected))
    assert all(np.isfinite(list(metric.rows[i].values())).all() for i in (1, 3))


def test_all_maps_are_bad():
    batch = batch_of([1, 2], student=model(2, maps=torch.zeros(2, 4, 4)))
    score = evaluate(Value(), batch)['value']
    assert np.isnan(score[:3]).all() and score.n == 0


# mmengine's arguments


class Foreign(Value):
    """Written like any metric of mmengine."""

    def __init__(self, collect_device='cpu', prefix=None):
        ExplanationMetric.__init__(self, collect_device=collect_device, prefix=prefix)
        self.asked, self.as_list = [], False


def test_a_metric_may_pass_on_the_arguments_of_mmengine():
    metric = Foreign('gpu')
    assert metric.collect_device == 'gpu'
    assert evaluate(Foreign(), batch_of([1, 3]))['value'].value == 2
    with pytest.raises(ValueError, match="Foreign.prefix is 'mine'; set the key 'name' of the"):
        Foreign(prefix='mine')


# Models that stay the same


def test_a_fixed_model_is_measured_once_in_a_run():
    metric = Value()
    for _ in range(3):
        batches = [
            batch_of(index, student=model(2), teacher=model(2, fixed=True))
            for index in ([0, 1], [2, 3])
        ]
        result = evaluate(metric, *batches)
        assert result['value'].value == 1.5 and result['teacher/value'].value == 15
        assert result['teacher/value'].n == 4
    asked = [name for name, _ in metric.asked]
    assert asked.count('student') == 6 and asked.count('teacher') == 2


def test_kept_values_belong_to_samples_and_not_to_batches():
    metric = Value()
    evaluate(metric, batch_of([0, 1, 2, 3], teacher=model(4, fixed=True)))
    metric.asked.clear()
    evaluate(metric, batch_of([3, 1], teacher=model(2, fixed=True)))
    assert metric.rows == {3: {'teacher/value': 30}, 1: {'teacher/value': 10}}
    assert metric.asked == []
    evaluate(metric, batch_of([3, 8], teacher=model(2, fixed=True)))
    assert metric.asked == [('teacher', [3, 8])]
    assert metric.rows[8] == {'teacher/value': 80}


def test_fixed_models_do_not_share_what_is_kept():
    metric = Value()
    for _ in range(2):
        models = {name: model(1, fixed=True) for name in ('teacher', 'base')}
        result = evaluate(metric, batch_of([1], **models))
        assert result['teacher/value'].value == 10 and result['base/value'].value == 100


def test_a_model_that_changes_is_measured_again():
    metric = Value()
    evaluate(metric, batch_of([4]))
    evaluate(metric, batch_of([4]))
    assert len(metric.asked) == 2


def test_kept_values_can_be_forgotten():
    metric = Value()
    for _ in range(2):
        evaluate(metric, batch_of([1], teacher=model(1, fixed=True)))
        metric.forget()
    assert len(metric.asked) == 2


def test_bad_maps_of_a_fixed_model_stay_left_out():
    metric = Value()
    for maps in (torch.zeros(1, 4, 4), torch.rand(1, 4, 4)):
        teacher = model(1, fixed=True, maps=maps)
        assert evaluate(metric, batch_of([1], teacher=teacher))['teacher/value'].n == 0


# Black


@pytest.mark.parametrize(
    'mean, std, expected',
    [
        (None, None, [0, 0, 0]),
        ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375], [-2.1179, -2.0357, -1.8044]),
        ([127.5] * 3, [127.5] * 3, [-1, -1, -1]),
        ([1, 2, 3], None, [-1, -2, -3]),
        (None, [1, 2, 3], [0, 0, 0]),
    ],
    ids=str,
)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_black_is_0_before_preprocessing(mean, std, expected, dtype):
    batch = batch_of([0, 1])
    batch.inputs = batch.inputs.to(dtype)
    batch.mean, batch.std = (None if v is None else torch.tensor(v) for v in (mean, std))
    black = batch.black()
    assert black.shape == (3, 1, 1) and black.dtype == dtype
    assert black.flatten().tolist() == pytest.approx(
        expected, rel=1e-2 if dtype.itemsize == 2 else 1e-4
    )


def test_black_of_an_unknown_normalisation_is_the_darkest_value_of_each_image():
    inputs = torch.tensor([[[[-1.0, 3.0]], [[2.0, 5.0]]], [[[-4.0, 0.0]], [[-0.5, 1.0]]]])
    batch = ExplainedBatch(inputs, [0, 1], {})
    with pytest.warns(UserWarning, match='unknown, so the smallest value .*; set mean and std of'):
        black = batch.black()
    assert black.flatten(1).tolist() == [[-1.0, 0.0], [-4.0, -0.5]]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert ExplainedBatch(inputs + 4, [0, 1], {}).black().flatten().tolist() == [0, 0]
        grey = ExplainedBatch(inputs[:, :1], [0, 1], {}, mean=(50.0,), std=(25.0,))
        assert grey.black().flatten().tolist() == [-2]


def test_confidence_of_one_logit_is_the_sigmoid():
    logits = torch.tensor([[-3.0], [2.0]])
    one = model(2)
    assert one.confidence(logits).tolist() == pytest.approx([0.0474259, 0.8807971])
    several = torch.tensor([[[0.0, 1.0, 0.0]] * 4] * 2)
    assert one.confidence(several).shape == (2, 4)
    expected = np.exp(1) / (2 + np.exp(1))
    found = one.confidence(several, torch.tensor([1, 1]))
    assert found.flatten().tolist() == pytest.approx([expected] * 8)
