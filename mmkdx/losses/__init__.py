"""Distillation losses; each returns an unweighted scalar."""

from mmkdx.losses.base import DistillLoss
from mmkdx.losses.branches import BYOTLoss, ONELoss
from mmkdx.losses.class_map import CATLoss
from mmkdx.losses.contrastive import CRDLoss
from mmkdx.losses.exp_kd import ExpKDLoss
from mmkdx.losses.explanation import E2KDLoss, ExplanationMapLoss
from mmkdx.losses.feature import ATLoss, CosineLoss, MSELoss
from mmkdx.losses.gkl import GKLLoss
from mmkdx.losses.image_pairs import CSKDLoss, DDGSDLoss
from mmkdx.losses.label import LabelLoss
from mmkdx.losses.local_logits import CellGramLoss, SDDLoss
from mmkdx.losses.logit import (
    CWTMLoss,
    DISTLoss,
    DKDLoss,
    KLDivLoss,
    LogitStdLoss,
    NKDLoss,
    WTTMLoss,
)
from mmkdx.losses.orthogonal import VkDLoss
from mmkdx.losses.peers import DMLLoss
from mmkdx.losses.prototype import GlobalExplanationLoss, PatchPrototypeLoss
from mmkdx.losses.refined_logits import RLDLoss
from mmkdx.losses.regression import FitNetLoss, OFDLoss, VIDLoss
from mmkdx.losses.relation import NSTLoss, PKTLoss, RKDLoss, SPLoss
from mmkdx.losses.review import ReviewKDLoss
from mmkdx.losses.self_distillation import (
    ConfidencePenaltyLoss,
    OnlineLabelSmoothingLoss,
    PSKDLoss,
    TfKDRegLoss,
)
from mmkdx.losses.self_explanation import IntrospectiveLoss
from mmkdx.losses.wasserstein import WKDFeatureLoss, WKDLogitLoss

__all__ = [
    'ATLoss',
    'BYOTLoss',
    'CATLoss',
    'CRDLoss',
    'CSKDLoss',
    'CWTMLoss',
    'CellGramLoss',
    'ConfidencePenaltyLoss',
    'CosineLoss',
    'DDGSDLoss',
    'DISTLoss',
    'DKDLoss',
    'DMLLoss',
    'DistillLoss',
    'E2KDLoss',
    'ExpKDLoss',
    'ExplanationMapLoss',
    'FitNetLoss',
    'GKLLoss',
    'GlobalExplanationLoss',
    'IntrospectiveLoss',
    'KLDivLoss',
    'LabelLoss',
    'LogitStdLoss',
    'MSELoss',
    'NKDLoss',
    'NSTLoss',
    'OFDLoss',
    'ONELoss',
    'OnlineLabelSmoothingLoss',
    'PKTLoss',
    'PSKDLoss',
    'PatchPrototypeLoss',
    'RKDLoss',
    'RLDLoss',
    'ReviewKDLoss',
    'SDDLoss',
    'SPLoss',
    'TfKDRegLoss',
    'VIDLoss',
    'VkDLoss',
    'WKDFeatureLoss',
    'WKDLogitLoss',
    'WTTMLoss',
]
