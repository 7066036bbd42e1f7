"""Measuring explanations, with and without a Runner."""

from mmkdx.evaluation.comparison import Comparison, compare_explainers
from mmkdx.evaluation.evaluator import ExplanationEvaluator
from mmkdx.evaluation.result import Evaluation
from mmkdx.metrics.scores import Floor

__all__ = ['Comparison', 'Evaluation', 'ExplanationEvaluator', 'Floor', 'compare_explainers']
