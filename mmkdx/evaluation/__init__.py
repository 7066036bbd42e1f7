"""Measuring explanations, with and without a Runner."""

from mmkdx.evaluation.comparison import Comparison, compare_explainers
from mmkdx.evaluation.evaluator import Evaluation, ExplanationEvaluator
from mmkdx.evaluation.floor import Floor

__all__ = ['Comparison', 'Evaluation', 'ExplanationEvaluator', 'Floor', 'compare_explainers']
