"""Explanations of classifiers: maps that show which parts of the image move a decision."""

from mmkdx.explain.attention import AttentionRollout
from mmkdx.explain.base import Explainer, LayerExplainer, build_explainer, explainer_names
from mmkdx.explain.gradient import (
    CAM,
    BaseCAM,
    EigenCAM,
    EigenGradCAM,
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    XGradCAM,
)
from mmkdx.explain.gradient_rollout import GradientRollout
from mmkdx.explain.legrad import LeGrad
from mmkdx.explain.perturbation import AblationCAM, ScoreCAM
from mmkdx.explain.pixel import FullGrad, InputGradient, IntegratedGradients, SmoothGrad
from mmkdx.explain.prototype_map import PrototypeMap
from mmkdx.explain.random_map import RandomMap
from mmkdx.explain.targets import CosineTarget
from mmkdx.explain.unicam import PairExplanation, UniCAM

__all__ = [
    'CAM',
    'AblationCAM',
    'AttentionRollout',
    'BaseCAM',
    'CosineTarget',
    'EigenCAM',
    'EigenGradCAM',
    'Explainer',
    'FullGrad',
    'GradCAM',
    'GradCAMPlusPlus',
    'GradientRollout',
    'HiResCAM',
    'InputGradient',
    'IntegratedGradients',
    'LayerCAM',
    'LayerExplainer',
    'LeGrad',
    'PairExplanation',
    'PrototypeMap',
    'RandomMap',
    'ScoreCAM',
    'SmoothGrad',
    'UniCAM',
    'XGradCAM',
    'build_explainer',
    'explainer_names',
]
