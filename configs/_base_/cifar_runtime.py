# Of the checkpoints of 240 epochs the last two are kept.
_base_ = ['default_runtime.py']
default_hooks = dict(checkpoint=dict(max_keep_ckpts=2))
