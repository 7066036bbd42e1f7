# Three quarters as wide: the backbone that students with prototypes begin with (configs/proto2proto).
_base_ = ['resnet18-tiny_parts.py']
model = dict(backbone=dict(stem_channels=6, base_channels=6), head=dict(in_channels=48))
custom_hooks = [dict(type='EpochSeedHook')]
