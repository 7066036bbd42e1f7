# The student alone: three quarters as wide as its teacher, and explained beside it.
_base_ = ['protopnet_resnet18-tiny_parts.py']
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
    dict(
        type='PrototypeStageHook',
        stages=[
            dict(epochs=2, train=['add_on', 'prototypes']),
            dict(train=['backbone', 'add_on', 'prototypes']),
        ],
    ),
    dict(type='PrototypePushHook', start=8, interval=8, tune_epochs=4),
    dict(
        type='ExplainHook',
        explainer=dict(type='PrototypeMap'),
        target='label',
        num_samples=None,
        show_samples=16,
        teacher=dict(
            model='configs/proto2proto/protopnet_resnet18-tiny_parts.py',
            checkpoint='work_dirs/protopnet_resnet18-tiny_parts/epoch_16.pth',
        ),
        metrics=[
            dict(type='PrototypeTransfer'),
            dict(type='PrototypeParts', parts=[1, 2, 3, 4, 5, 6, 7], purity_side=72 / 224),
            dict(type='PointingGame', labels='deciding_labels', name='deciding'),
        ],
    ),
]
