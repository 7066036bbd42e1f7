# The prototype student alone: it begins with the network of the student alone, and has the same 1,000
# labelled images.
_base_ = ['protopnet_resnet18_fashion.py', '../_base_/teachers/protopnet_resnet18_fashion.py']
model = dict(
    backbone=dict(
        stem_channels=8,
        base_channels=8,
        init_cfg=dict(checkpoint='work_dirs/repeat/resnet18-tiny_fashion1000/seed_0/epoch_10.pth'),
    ),
    head=dict(in_channels=32),
)
custom_hooks = [
    dict(type='EpochSeedHook'),
    *_base_.prototype_hooks,
    dict(_base_.prototype_scores, num_samples=200, teacher={{_base_.teacher}}),
]
