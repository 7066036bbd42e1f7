"""Hooks; all others of mmengine and mmpretrain can be used as well."""

from mmkdx.hooks.checkpoint_hook import CheckpointHook
from mmkdx.hooks.epoch_seed_hook import EpochSeedHook
from mmkdx.hooks.explain_hook import ExplainHook
from mmkdx.hooks.gradient_compression_hook import GradientCompressionHook
from mmkdx.hooks.interruption_hook import InterruptionHook
from mmkdx.hooks.prototype_push_hook import PrototypePushHook
from mmkdx.hooks.prototype_stage_hook import PrototypeStageHook

__all__ = [
    'CheckpointHook',
    'EpochSeedHook',
    'ExplainHook',
    'GradientCompressionHook',
    'InterruptionHook',
    'PrototypePushHook',
    'PrototypeStageHook',
]
