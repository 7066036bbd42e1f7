"""Hooks; all others of mmengine and mmpretrain can be used as well."""

from mmkdx.hooks.epoch_seed_hook import EpochSeedHook
from mmkdx.hooks.explain_hook import ExplainHook

__all__ = ['EpochSeedHook', 'ExplainHook']
