"""Distillation losses: ``loss(student, teacher, target=None)`` gives the unweighted scalar."""

from mmkdx.losses.class_map import CATLoss, ExpKDLoss
from mmkdx.losses.explanation import E2KDLoss
from mmkdx.losses.feature import ATLoss, MSELoss
from mmkdx.losses.logit import KLDivLoss

__all__ = ['ATLoss', 'CATLoss', 'E2KDLoss', 'ExpKDLoss', 'KLDivLoss', 'MSELoss']
