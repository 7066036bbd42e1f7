# The student alone: three quarters as wide as its teacher, and explained beside it.
_base_ = ['protopnet_resnet18-tiny_parts.py', '../_base_/teachers/protopnet_resnet18-tiny_parts.py']
model = dict(
    backbone=dict(
        stem_channels=6,
        base_channels=6,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/resnet18-mini_parts/epoch_8.pth',
            prefix='backbone.',
        ),
    ),
    head=dict(in_channels=24),
)
custom_hooks = [
    dict(type='EpochSeedHook'),
    *_base_.prototype_hooks,
    dict(
        _base_.prototype_scores,
        teacher={{_base_.teacher}},
    ),
]
