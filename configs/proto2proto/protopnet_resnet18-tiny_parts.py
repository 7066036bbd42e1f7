# The teacher: ProtoPNet (Chen et al., NeurIPS 2019) on the first three stages of a trained classifier,
# whose positions see less of the image than those of the fourth.
_base_ = [
    '../_base_/datasets/parts.py',
    '../_base_/schedules/proto2proto_parts.py',
    '../_base_/digits_runtime.py',
]
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='ResNet_CIFAR',
        depth=18,
        stem_channels=8,
        base_channels=8,
        num_stages=3,
        strides=(2, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(2,),
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/resnet18-tiny_parts/epoch_8.pth',
            prefix='backbone.',
        ),
    ),
    head=dict(
        type='ProtoPNetHead',
        num_classes=9,
        in_channels=32,
        prototypes_per_class=10,
        prototype_channels=32,
    ),
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
        metrics=[
            dict(type='PrototypeTransfer'),
            dict(type='PrototypeParts', parts=[1, 2, 3, 4, 5, 6, 7], purity_side=72 / 224),
            dict(type='PointingGame', labels='deciding_labels', name='deciding'),
        ],
    ),
]
