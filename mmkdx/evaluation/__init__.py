"""Measuring explanations, with and without a Runner."""

from mmkdx.evaluation.evaluator import Evaluation, ExplanationEvaluator

__all__ = ['Evaluation', 'ExplanationEvaluator']
