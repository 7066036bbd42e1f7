"""Distillation losses: ``loss(student, teacher, target=None)`` gives the unweighted scalar."""

from mmkdx.losses.class_map import CATLoss, ExpKDLoss
from mmkdx.losses.contrastive import CRDLoss
from mmkdx.losses.explanation import E2KDLoss
from mmkdx.losses.feature import ATLoss, MSELoss
from mmkdx.losses.logit import DISTLoss, DKDLoss, KLDivLoss, LogitStdLoss
from mmkdx.losses.prototype import GlobalExplanationLoss, PatchPrototypeLoss
from mmkdx.losses.regression import FitNetLoss, OFDLoss, VIDLoss
from mmkdx.losses.relation import NSTLoss, PKTLoss, RKDLoss, SPLoss
from mmkdx.losses.review import ReviewKDLoss

__all__ = [
    'ATLoss',
    'CATLoss',
    'CRDLoss',
    'DISTLoss',
    'DKDLoss',
    'E2KDLoss',
    'ExpKDLoss',
    'FitNetLoss',
    'GlobalExplanationLoss',
    'KLDivLoss',
    'LogitStdLoss',
    'MSELoss',
    'NSTLoss',
    'OFDLoss',
    'PKTLoss',
    'PatchPrototypeLoss',
    'RKDLoss',
    'ReviewKDLoss',
    'SPLoss',
    'VIDLoss',
]
