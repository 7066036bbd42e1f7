"""Metrics of explanations."""

from mmkdx.metrics.base import Explained, ExplainedBatch, ExplanationMetric, Score, mean_score

__all__ = ['Explained', 'ExplainedBatch', 'ExplanationMetric', 'Score', 'mean_score']
