"""Measuring explanations, with and without a Runner."""

from mmkdx.evaluation.evaluator import ExplanationEvaluator
from mmkdx.evaluation.result import Evaluation

__all__ = ['Evaluation', 'ExplanationEvaluator']
