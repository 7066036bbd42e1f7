"""Metrics of explanations."""

from mmkdx.metrics.agreement import MapAgreement
from mmkdx.metrics.average_drop import AverageDrop
from mmkdx.metrics.base import Explained, ExplainedBatch, ExplanationMetric, ScoreMetric
from mmkdx.metrics.class_similarity import ClassMatrices, ClassSimilarity
from mmkdx.metrics.classification import CalibrationError, GroupAccuracy
from mmkdx.metrics.f_fidelity import FFidelity
from mmkdx.metrics.faithfulness import ROAD, DeletionInsertion, PerturbationAUC
from mmkdx.metrics.localisation import MapSegmentation, PointingGame
from mmkdx.metrics.map_properties import MapComplexity, MaxSensitivity
from mmkdx.metrics.part_intervention import PartIntervention
from mmkdx.metrics.prototype import PrototypeParts, PrototypeTransfer
from mmkdx.metrics.randomisation import ParameterRandomisation
from mmkdx.metrics.relevance import (
    FeatureSimilarityScore,
    PairedBatch,
    PairedModel,
    PairMetric,
    RelevanceScore,
)
from mmkdx.metrics.scores import Score, mean_score
from mmkdx.metrics.single_deletion import Infidelity, SingleDeletion

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
    'FFidelity',
    'FeatureSimilarityScore',
    'GroupAccuracy',
    'Infidelity',
    'MapAgreement',
    'MapComplexity',
    'MapSegmentation',
    'MaxSensitivity',
    'PairMetric',
    'PairedBatch',
    'PairedModel',
    'ParameterRandomisation',
    'PartIntervention',
    'PerturbationAUC',
    'PointingGame',
    'PrototypeParts',
    'PrototypeTransfer',
    'RelevanceScore',
    'Score',
    'ScoreMetric',
    'SingleDeletion',
    'mean_score',
]
