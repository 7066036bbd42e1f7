"""Building metrics of explanations from configs."""

from __future__ import annotations

from mmengine.registry import DefaultScope

from mmkdx.arguments import text
from mmkdx.metrics.base import ScoreMetric
from mmkdx.registry import METRICS


def build_metric(spec: dict | str, owner: str) -> ScoreMetric:
    """Builds a metric of explanations.

    Args:
        spec (dict | str): Its config, also with the key 'name', or its type alone.
        owner (str): The owner of the argument ``metrics``, for messages.

    Raises:
        ValueError: If there is no such metric, it has no such argument, or it is no metric of
            explanations.
    """
    if not isinstance(spec, str | dict):
        raise ValueError(f'{owner}.metrics has {spec!r}; a metric is a dict with a type, or a type')
    config = dict(type=spec) if isinstance(spec, str) else dict(spec)
    name = text(f'{owner}.metrics: name', config.pop('name', ''))
    try:
        with DefaultScope.overwrite_default_scope('mmkdx'):
            metric = METRICS.build(config)
    except (TypeError, KeyError) as error:
        raise ValueError(f'{owner}.metrics: {error.args[0]}') from error
    if not isinstance(metric, ScoreMetric):
        raise ValueError(
            f'{owner}.metrics: {type(metric).__name__} is no metric of explanations; put it into '
            'val_evaluator'
        )
    metric.name = name
    return metric
