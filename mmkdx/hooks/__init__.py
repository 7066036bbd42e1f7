"""Hooks; all others of mmengine and mmpretrain can be used as well."""

from mmkdx.hooks.epoch_seed_hook import EpochSeedHook
from mmkdx.hooks.explain_hook import ExplainHook
from mmkdx.hooks.gradient_compression_hook import GradientCompressionHook
from mmkdx.hooks.prototype_hooks import PrototypePushHook, PrototypeStageHook

__all__ = [
    'EpochSeedHook',
    'ExplainHook',
    'GradientCompressionHook',
    'PrototypePushHook',
    'PrototypeStageHook',
]
