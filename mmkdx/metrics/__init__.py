"""Metrics of explanations."""

from mmkdx.metrics.agreement import MapAgreement
from mmkdx.metrics.average_drop import AverageDrop
from mmkdx.metrics.base import Explained, ExplainedBatch, ExplanationMetric, ScoreMetric
from mmkdx.metrics.calibration import CalibrationError
from mmkdx.metrics.class_similarity import ClassMatrices, ClassSimilarity
from mmkdx.metrics.complexity import MapComplexity
from mmkdx.metrics.faithfulness import ROAD, DeletionInsertion, PerturbationAUC
from mmkdx.metrics.group_accuracy import GroupAccuracy
from mmkdx.metrics.localisation import MapSegmentation, PointingGame
from mmkdx.metrics.prototype import PrototypeParts, PrototypeTransfer
from mmkdx.metrics.relevance import (
    FeatureSimilarityScore,
    PairedBatch,
    PairedModel,
    PairMetric,
    RelevanceScore,
)
from mmkdx.metrics.scores import Score, mean_score
from mmkdx.metrics.sensitivity import MaxSensitivity

__all__ = [
    'ROAD',
    'AverageDrop',
    'CalibrationError',
    'ClassMatrices',
    'ClassSimilarity',
    'DeletionInsertion',
    'Explained',
    'ExplainedBatch',
    'ExplanationMetric',
    'FeatureSimilarityScore',
    'GroupAccuracy',
    'MapAgreement',
    'MapComplexity',
    'MapSegmentation',
    'MaxSensitivity',
    'PairMetric',
    'PairedBatch',
    'PairedModel',
    'PerturbationAUC',
    'PointingGame',
    'PrototypeParts',
    'PrototypeTransfer',
    'RelevanceScore',
    'Score',
    'ScoreMetric',
    'mean_score',
]
