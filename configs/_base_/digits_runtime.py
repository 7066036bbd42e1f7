# Repeatable runs: the same seed gives the same numbers, also after a resume.
_base_ = ['default_runtime.py']
randomness = dict(seed=0)
custom_hooks = [dict(type='EpochSeedHook')]
default_hooks = dict(checkpoint=dict(max_keep_ckpts=2))
